//! What the nodes of a CarbonMesh cluster agree on.
//!
//! This crate does no input or output: it reads no clock, opens no socket or file, starts no thread
//! and draws no random number of its own. [`core::Core`] takes inputs and time, and gives effects
//! back. The same code runs in a node, in the simulator and under a model checker.

pub mod advert;
pub mod catalog;
pub mod codec;
pub mod condition;
pub mod config;
pub mod core;
pub mod event;
pub mod figures;
pub mod group_view;
pub mod handler;
pub mod id;
pub mod io;
pub mod journal;
pub mod mapping;
pub mod message;
pub mod mutant;
pub mod name;
pub mod pipeline;
pub mod placement;
pub mod record;
pub mod requirement;
pub mod rights;
pub mod schedule;
pub mod secret;
pub mod store;
pub mod time;
pub mod trace;
pub mod view;
