//! CarbonMesh: job pipelines on a cluster without a broker.
//!
//! This crate is the shell around [`carbonmesh_protocol`]: it owns the sockets, the disk, the clock,
//! the phases and the clients, and decides nothing that the cluster has to agree on.

pub mod cli;
mod clock;
pub mod config;
pub mod document;
mod driver;
pub mod handle;
pub mod http;
mod key;
mod metrics;
pub mod net;
pub mod node;
pub mod phase;

pub use carbonmesh_protocol as protocol;
