//! What was promised for single jobs: none is lost, stuck, invented or doubled, and all nodes agree.

use std::collections::{BTreeMap, BTreeSet};

use super::{Crime, Story, Verdict, excuse};
use crate::{
    history::{History, JobState},
    work::{STEPS, output},
};

pub(super) fn check(
    history: &History,
    stories: &BTreeMap<u64, Story>,
    ids: &BTreeMap<u64, BTreeSet<String>>,
    verdict: &mut Verdict,
) {
    for (number, story) in stories {
        for (id, (at_ms, copies)) in &story.acknowledged {
            kept(history, (*number, id, *at_ms, *copies), verdict);
        }
    }
    asked_for(stories, ids, verdict);
    let by_number = numbers(ids);
    for (id, state) in &history.finals {
        if let (Some(told), Some(known)) = (state.number, by_number.get(id.as_str()))
            && known.iter().any(|number| **number != told)
        {
            verdict.add(Crime::Unexpected, format!("job {id} has the numbers {known:?}"));
        }
        right_result(id, state, verdict);
    }
    agree(history, verdict);
}

/// An acknowledged job is at its end.
fn kept(history: &History, acked: (u64, &String, u64, u32), verdict: &mut Verdict) {
    let (number, id, at_ms, copies) = acked;
    match history.finals.get(id) {
        None if excuse::destroyed_after(&history.faults, at_ms) >= copies as usize => {
            verdict.counts.lost_with_disk += 1;
        }
        None => verdict
            .add(Crime::Lost, format!("job {id} (number {number}), on {copies} disks at {at_ms}")),
        Some(state) if state.state == "dead" || state.state == "cancelled" => {
            verdict.add(Crime::Dead, format!("job {id} (number {number}) is {}", state.state));
        }
        Some(state) if !state.is_terminal() => {
            verdict.add(Crime::Stuck, format!("job {id} (number {number}) is {}", state.state));
        }
        Some(_) => {}
    }
}

/// Only what was asked for is there, once.
fn asked_for(
    stories: &BTreeMap<u64, Story>,
    ids: &BTreeMap<u64, BTreeSet<String>>,
    verdict: &mut Verdict,
) {
    for (number, ids) in ids {
        let Some(story) = stories.get(number) else {
            verdict.add(Crime::Unexpected, format!("number {number}: jobs {ids:?}"));
            continue;
        };
        if story.keyed && ids.len() > 1 {
            verdict.add(Crime::KeySplit, format!("number {number}: jobs {ids:?}"));
        }
        let told = story.acknowledged.len() + story.unknown;
        if told == 0 && !ids.is_empty() {
            verdict.add(Crime::RefusedAndKept, format!("number {number}: jobs {ids:?}"));
        } else if !story.keyed && ids.len() > told {
            verdict.add(Crime::Unexpected, format!("number {number}, asked for once: {ids:?}"));
        }
    }
}

fn numbers(ids: &BTreeMap<u64, BTreeSet<String>>) -> BTreeMap<&str, Vec<&u64>> {
    let mut numbers: BTreeMap<&str, Vec<&u64>> = BTreeMap::new();
    for (number, ids) in ids {
        ids.iter().for_each(|id| numbers.entry(id).or_default().push(number));
    }
    numbers
}

fn right_result(id: &str, state: &JobState, verdict: &mut Verdict) {
    let Some(number) = state.number.filter(|_| state.state == "succeeded") else { return };
    for step in STEPS {
        let got = state.results.get(step).map(|(output, _)| output.as_str());
        let expected = output(step, number);
        if got != Some(&expected) {
            verdict.add(Crime::Corrupt, format!("job {id}: {step} is {got:?}, not {expected}"));
        }
    }
}

/// What each node holds by itself is what all of them say together.
fn agree(history: &History, verdict: &mut Verdict) {
    for copy in &history.copies {
        for (id, state) in &copy.jobs {
            match history.finals.get(id) {
                None => verdict.add(
                    Crime::Diverged,
                    format!("{} alone has job {id}, {}", copy.node, state.state),
                ),
                // A node that keeps only leftovers must not take them for open.
                Some(truth) if !same(truth, state) => verdict.add(
                    Crime::Diverged,
                    format!("{} has job {id} as {state:?}, all together: {truth:?}", copy.node),
                ),
                Some(_) => {}
            }
        }
        let missing = history.finals.keys().filter(|id| !copy.jobs.contains_key(*id)).count();
        if copy.is_replica && missing > 0 {
            let of = history.finals.len();
            let detail = format!("{} lacks {missing} of {of} jobs", copy.node);
            verdict.add(Crime::Diverged, detail);
        }
    }
}

/// Results were not asked of every node for every job.
fn same(truth: &JobState, state: &JobState) -> bool {
    truth.state == state.state && (state.results.is_empty() || state.results == truth.results)
}
