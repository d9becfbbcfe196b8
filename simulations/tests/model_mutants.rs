//! The model checker finds bugs: one is switched on in every core, and a scenario has to show it.
//! `cargo test -p carbonmesh-simulations --features mutants --test model_mutants -- --nocapture`
//! prints how each comes about.

use std::time::Duration;

use carbonmesh_protocol::mutant::Mutant;
use carbonmesh_simulations::model::{Bounds, Options, SCENARIOS, check};

/// Explores a scenario within bounds of its own, in which the bug has to break one of these.
fn is_found(mutant: Mutant, scenario: &str, bounds: Bounds, expected: &[&str]) {
    let scenario = SCENARIOS.into_iter().find(|it| it.name == scenario).expect("it is there");
    let limit = Some(Duration::from_secs(300));
    let options = Options { limit, mutant: Some(mutant), ..Options::new(scenario, bounds) };
    println!("{mutant:?} in {options}");
    let outcome = check(options).expect("the preset is there");
    println!("{outcome}");
    let broken = outcome.broken.map(|broken| broken.invariant);
    assert!(broken.is_some_and(|it| expected.contains(&it)), "{mutant:?} breaks {broken:?}");
}

#[test]
fn a_vote_before_its_sync_is_given_twice() {
    let (timers, crashes) = ([1, 1, 0, 0], [0, 0, 1, 0]);
    let bounds = Bounds { timers, crashes, holds: 1, connections: 1, ..Bounds::default() };
    is_found(Mutant::VoteBeforeSync, "election", bounds, &["one-vote"]);
}

#[test]
fn work_before_the_merge_leaves_a_voters_job_out() {
    let bounds = Bounds { timers: [1, 0, 0, 0], holds: 1, ..Bounds::default() };
    is_found(Mutant::DispatchBeforeMerge, "election", bounds, &["adopt-first"]);
}

#[test]
fn a_deposed_coordinator_stays_beside_the_next() {
    let bounds = Bounds { timers: [0, 1, 0, 0], cuts: 2, connections: 1, ..Bounds::default() };
    is_found(Mutant::DeposedStays, "two-jobs", bounds, &["one-vote", "assertion"]);
}

#[test]
fn an_attempt_that_is_given_twice_runs_twice() {
    let bounds = Bounds { repeats: 1, jobs: 1, ..Bounds::default() };
    is_found(Mutant::AssignTwice, "two-jobs", bounds, &["fenced"]);
}

#[test]
fn a_coordinator_that_does_not_look_at_its_lease_acts_beside_the_next() {
    let bounds = Bounds { timers: [0, 6, 0, 0], pauses: [1, 0, 0, 0], ..Bounds::default() };
    is_found(Mutant::LeaseIgnored, "strict-takeover", bounds, &["one-coordinator"]);
}
