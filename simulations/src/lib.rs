//! The protocol's core in a seeded, faulty world, held to its invariants.
//!
//! One seed decides everything: who plays which part, what fails when, what clients do. The same
//! seed gives the same run, event by event, so that every failure can be looked at again.
//!
//! A run has two halves: faults, in which nothing unsafe may happen; then peace, in which every
//! acknowledged job has to reach its end.

pub mod options;
mod oracle;
mod random;
mod world;

pub use options::Options;
pub use oracle::{Kind, Violation};

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// How many events there were.
    pub events: u64,
    /// A hash of all of them.
    pub trace: u64,
    /// How many jobs were acknowledged.
    pub acknowledged: usize,
    /// How many attempts were started.
    pub attempts: usize,
    /// What should not have been.
    pub violations: Vec<Violation>,
}

/// Runs one seed.
pub fn run(options: &Options) -> Report {
    world::World::new(options.clone()).run()
}
