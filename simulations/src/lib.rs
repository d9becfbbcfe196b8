//! The protocol's core in a seeded, faulty world, held to its invariants.
//!
//! One seed decides everything: who plays which part, what fails when, what clients do. The same
//! seed gives the same run, event by event, so that every failure can be looked at again.
//!
//! A run has two halves: faults, in which nothing unsafe may happen; then peace, in which every
//! acknowledged job has to reach its end.
//!
//! ```text
//! Options::from_seed ─► World: cores, network, disks, clients ─Fact─► invariants ─► Report
//! ```

pub mod cost;
mod invariants;
pub mod model;
mod options;
mod random;
mod shrink;
mod world;

use std::panic::{self, AssertUnwindSafe};

pub use invariants::{Kind, Violation};
pub use options::{Options, SIMPLIFICATIONS, Simplification};
pub use shrink::shrink;

use world::World;

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many events there were.
    pub events: u64,
    /// A hash of all of them.
    pub trace: u64,
    /// How long the run was, in virtual ms.
    pub virtual_ms: u64,
    /// The same, summed over its nodes.
    pub node_ms: u64,
    /// How long it took from the last fault until all was at its end, in virtual ms.
    pub peace_ms: u64,
    /// How many jobs were acknowledged.
    pub acknowledged: usize,
    /// How many attempts were started.
    pub attempts: usize,
    /// What should not have been.
    pub violations: Vec<Violation>,
}

/// Runs one world. A core that breaks one of its own assertions is a violation like others.
pub fn run(options: &Options) -> Report {
    let world = World::new(options.clone());
    panic::catch_unwind(AssertUnwindSafe(|| world.run())).unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let detail = text.unwrap_or_else(|| "a panic".to_owned());
        let violation = Violation { kind: Kind::Assertion, invariant: "assertion", detail };
        Report { violations: vec![violation], ..Report::default() }
    })
}

/// Runs one world and prints what happens, a line each: `ms node what`.
pub fn replay(options: &Options) -> Report {
    let mut world = World::new(options.clone());
    world.narrate();
    world.run()
}
