//! What the example programs share: clusters of real processes on this machine, networks between them,
//! and talking to them, and measuring them.

pub mod api;
pub mod bench;
pub mod local;
pub mod network;
pub mod shell;

/// The page on Rust; what it shows compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/rust.md")]
pub struct RustPage;
