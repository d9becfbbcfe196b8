//! CarbonMesh: job pipelines on a cluster without a broker.
//!
//! This crate is the shell around [`carbonmesh_protocol`]: it owns the sockets, the disk, the clock,
//! the phases and the clients, and decides nothing that the cluster has to agree on.

mod backup;
pub mod cli;
mod clock;
pub mod config;
pub mod document;
mod driver;
mod facts;
mod follow;
pub mod handle;
mod history;
pub mod http;
mod key;
mod library;
mod local;
mod logs;
mod metrics;
pub mod net;
pub mod node;
pub mod notify;
mod otlp;
pub mod outbound;
pub mod phase;
pub mod results;
pub mod scope;
mod service;
pub mod tls;
mod trust;

pub use carbonmesh_protocol as protocol;
