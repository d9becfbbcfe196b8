//! Which faults explain what: the only place that forgives.

use crate::{
    fault::Kind,
    history::{Fault, History},
    journal::Record,
};

/// How long the effects of a fault go on after it is over: a lease, the grace for whoever comes
/// back, an election, and what a request may take.
pub(super) const SLACK_MS: u64 = 10_000;

/// Whether a fault, with its effects, touches a span of time. What is done to a node that is asked to
/// end excuses nothing: it has the time to end what it runs.
fn touches(fault: &Fault, from_ms: u64, until_ms: u64) -> bool {
    fault.kind != Kind::Replace && fault.from_ms <= until_ms && from_ms <= fault.until_ms + SLACK_MS
}

/// What explains that a phase started again after an earlier run of it: its worker was hit, or
/// something parted those who knew of it.
pub(super) fn of_extra_run(history: &History, first: &Record, again: &Record) -> Option<Kind> {
    let near = |fault: &&Fault| touches(fault, first.at_ms, again.at_ms);
    let hit = |fault: &&Fault| fault.nodes.contains(&first.node);
    let mut near_faults = history.faults.iter().filter(near);
    let worker = near_faults.clone().find(hit);
    let parted = near_faults.clone().find(|fault| fault.kind.separates());
    // What is lost with a disk takes along who ran what.
    let lost = near_faults.find(|fault| fault.destroyed);
    worker.or(parted).or(lost).map(|fault| fault.kind)
}

/// What explains that one side went on with what the other had finished.
pub(super) fn of_two_sides(history: &History, from_ms: u64, until_ms: u64) -> Option<Kind> {
    let near = |fault: &&Fault| touches(fault, from_ms, until_ms);
    let apart = |fault: &&Fault| fault.kind.separates() || fault.destroyed;
    history.faults.iter().filter(near).find(apart).map(|fault| fault.kind)
}

/// On how many disks what was stored at that time may have been, of those that were then destroyed
/// before all copies were there again.
pub(super) fn destroyed_after(faults: &[Fault], at_ms: u64) -> usize {
    let after = |fault: &&Fault| fault.destroyed && fault.until_ms >= at_ms;
    let mut later: Vec<&Fault> = faults.iter().filter(after).collect();
    later.sort_by_key(|fault| fault.from_ms);
    let Some(first) = later.first() else { return 0 };
    let whole_ms = first.converged_ms.unwrap_or(u64::MAX);
    later.iter().filter(|fault| fault.from_ms <= whole_ms).count()
}
