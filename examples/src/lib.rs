//! What the example programs share: clusters of real processes on this machine, and talking to them.

pub mod api;
pub mod local;
