//! The same work through other queues, measured beside CarbonMesh: what needs none of their clients.
//!
//! The program `bench-peers` does the measuring; it is built with the feature `clients` only.

pub mod beanstalk;
pub mod figures;
pub mod report;
