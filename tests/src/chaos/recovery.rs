//! How long work stood still around each fault, as clients and workers saw it.
//!
//! With jobs coming in all the time, a gap between two acknowledgements, or between two starts of
//! phases, is a time in which the cluster did not serve.

use std::collections::BTreeMap;

use crate::{
    fault::Kind,
    history::{Fault, History, Outcome},
    journal::Moment,
};

/// How long after a fault is over its effects are looked for.
const AFTER_MS: u64 = 10_000;

/// How long one kind of fault stopped things, in ms, one value a fault.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recovery {
    /// The longest time in which no client anywhere got an acknowledgement.
    pub(crate) acknowledged: Vec<u64>,
    /// The longest time in which no phase started anywhere.
    pub(crate) dispatched: Vec<u64>,
    /// From the end of the fault until the node that was hit runs something again.
    pub(crate) returned: Vec<u64>,
}

/// By kind of fault, and whether it hit the coordinator.
pub(crate) fn measure(history: &History) -> BTreeMap<(Kind, bool), Recovery> {
    let acks = acknowledgements(history);
    let starts = history.runs.iter().filter(|run| run.moment == Moment::Start);
    let mut starts: Vec<(u64, &str)> = starts.map(|run| (run.at_ms, run.node.as_str())).collect();
    starts.sort_unstable();
    let times: Vec<u64> = starts.iter().map(|(at_ms, _)| *at_ms).collect();
    let mut all: BTreeMap<(Kind, bool), Recovery> = BTreeMap::new();
    for (at, fault) in history.faults.iter().enumerate() {
        let (from, until) = window(history, at, fault);
        let recovery = all.entry((fault.kind, fault.of_coordinator)).or_default();
        recovery.acknowledged.extend(longest_gap(&acks, from, until));
        recovery.dispatched.extend(longest_gap(&times, from, until));
        let node = fault.nodes.first().map_or("", String::as_str);
        let back = starts.iter().find(|(at_ms, on)| *at_ms >= fault.until_ms && *on == node);
        recovery.returned.extend(back.map(|(at_ms, _)| at_ms - fault.until_ms));
    }
    all
}

/// When clients were told that a job is kept, in order.
fn acknowledgements(history: &History) -> Vec<u64> {
    let acks = history.ops.iter().filter(|op| matches!(op.outcome, Outcome::Ok { .. }));
    let mut acks: Vec<u64> = acks.map(|op| op.at_ms).collect();
    acks.sort_unstable();
    acks
}

/// The longest time in a span in which no client anywhere was told that a job is kept, in ms; nothing
/// if none ever was.
pub(crate) fn longest_pause(history: &History, from_ms: u64, until_ms: u64) -> Option<u64> {
    let mut times = acknowledgements(history);
    // What comes after the last one counts too.
    times.last()?;
    times.push(until_ms.max(*times.last()?));
    longest_gap(&times, from_ms, until_ms)
}

/// The time in which the effects are this fault's: until the next one begins.
fn window(history: &History, at: usize, fault: &Fault) -> (u64, u64) {
    let end = (fault.until_ms + AFTER_MS).min(history.healed_ms.max(fault.until_ms));
    let others = history.faults.iter().enumerate().filter(|(other, _)| *other != at);
    let later = others.map(|(_, other)| other.from_ms).filter(|from| *from > fault.until_ms);
    (fault.from_ms, later.min().unwrap_or(end).min(end))
}

/// The longest stretch without any of these, within a span; nothing if there are none around.
fn longest_gap(times: &[u64], from: u64, until: u64) -> Option<u64> {
    let first = times.partition_point(|time| *time < from).saturating_sub(1);
    let around = &times[first..];
    let pairs = around.windows(2).take_while(|pair| pair[0] <= until);
    pairs.map(|pair| pair[1].min(until).saturating_sub(pair[0].max(from))).max()
}

/// The one in the middle (of two, the smaller), and the greatest.
pub(crate) fn median_and_worst(values: &[u64]) -> Option<(u64, u64)> {
    let mut values = values.to_vec();
    values.sort_unstable();
    Some((*values.get(values.len().checked_sub(1)? / 2)?, *values.last()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_counts_within_the_span() {
        assert_eq!(longest_gap(&[0, 100, 200, 900, 1000], 500, 950), Some(400));
        assert_eq!(longest_gap(&[0, 100, 200, 900, 1000], 150, 950), Some(700));
        // What follows is the next fault's.
        assert_eq!(longest_gap(&[0, 100, 200, 900, 1000], 50, 300), Some(100));
        assert_eq!(longest_gap(&[], 0, 100), None);
    }

    #[test]
    fn the_middle_and_the_worst_are_of_what_was_measured() {
        assert_eq!(median_and_worst(&[5, 1, 9]), Some((5, 9)));
        assert_eq!(median_and_worst(&[]), None);
    }
}
