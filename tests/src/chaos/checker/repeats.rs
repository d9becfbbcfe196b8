//! What happened more than once, or in the wrong order: judged by the workers' journals.

use std::collections::{BTreeMap, BTreeSet};

use super::{Crime, Verdict, excuse};
use crate::{
    history::History,
    journal::{Moment, Record},
    work::{STEPS, output},
};

type Phase<'a> = (&'a str, u32, &'a str);

pub(super) fn check(history: &History, verdict: &mut Verdict) {
    let mut starts: BTreeMap<Phase<'_>, Vec<&Record>> = BTreeMap::new();
    for run in history.runs.iter().filter(|run| run.moment == Moment::Start) {
        starts.entry((&run.job, run.generation, &run.step)).or_default().push(run);
    }
    for ((job, _, step), mut runs) in starts {
        runs.sort_by_key(|run| run.at_ms);
        *verdict.counts.runs.entry(runs.len()).or_default() += 1;
        extra_runs(history, (job, step), &runs, verdict);
    }
    accepted_once(history, verdict);
    in_order(history, verdict);
    ended(history, verdict);
}

/// Each run but the first is explained by a fault.
fn extra_runs(
    history: &History,
    (job, step): (&str, &str),
    runs: &[&Record],
    verdict: &mut Verdict,
) {
    for pair in runs.windows(2) {
        let [first, again] = pair else { continue };
        match excuse::of_extra_run(history, first, again) {
            Some(kind) => {
                *verdict.counts.explained.entry(kind.name().to_owned()).or_default() += 1;
            }
            None => verdict.add(
                Crime::ExtraRun,
                format!(
                    "job {job} step {step}: token {} on {} at {}, token {} on {} at {}",
                    first.token, first.node, first.at_ms, again.token, again.node, again.at_ms
                ),
            ),
        }
    }
}

/// Of each phase, one run was taken for its end: the one whose token later phases were given and the
/// job shows.
fn accepted_once(history: &History, verdict: &mut Verdict) {
    let mut accepted: BTreeMap<(&str, &str), BTreeMap<&str, u64>> = BTreeMap::new();
    for run in history.runs.iter().filter(|run| run.moment == Moment::Start) {
        for (step, token) in STEPS.iter().zip(&run.inputs) {
            accepted.entry((&run.job, step)).or_default().entry(token).or_insert(run.at_ms);
        }
    }
    for (id, state) in &history.finals {
        for (step, (_, token)) in &state.results {
            let tokens = accepted.entry((id, step)).or_default();
            tokens.entry(token).or_insert(history.drained_ms);
        }
    }
    for ((job, step), tokens) in accepted.iter().filter(|(_, tokens)| tokens.len() > 1) {
        verdict.counts.completed_twice += 1;
        let (from, until) = (tokens.values().min(), tokens.values().max());
        let span = (from.copied().unwrap_or_default(), until.copied().unwrap_or_default());
        if excuse::of_two_sides(history, span.0, span.1).is_none() {
            let detail = format!("job {job} step {step}: tokens and when each was used {tokens:?}");
            verdict.add(Crime::CompletedTwice, detail);
        }
    }
}

/// A phase is given only what was finished before, and what comes out is right.
fn in_order(history: &History, verdict: &mut Verdict) {
    let finishes = history.runs.iter().filter(|run| run.moment == Moment::Finish);
    let mut finished: BTreeMap<(&str, &str, &str), u64> = BTreeMap::new();
    for run in finishes {
        if run.hash != output(&run.step, run.number) {
            let detail = format!("job {} step {} on {}: {}", run.job, run.step, run.node, run.hash);
            verdict.add(Crime::Corrupt, detail);
        }
        finished.insert((&run.job, &run.step, &run.token), run.at_ms);
    }
    for run in history.runs.iter().filter(|run| run.moment == Moment::Start) {
        let due = STEPS.iter().take_while(|step| **step != run.step).count();
        let given = STEPS.iter().zip(&run.inputs).filter(|(step, token)| {
            let end = finished.get(&(run.job.as_str(), **step, token.as_str()));
            end.is_some_and(|end| *end <= run.at_ms)
        });
        if given.count() != due {
            let detail =
                format!("job {} step {} at {}: {:?}", run.job, run.step, run.at_ms, run.inputs);
            verdict.add(Crime::OutOfOrder, detail);
        }
    }
}

/// After a job's end was seen, it does not go on and is not open again.
fn ended(history: &History, verdict: &mut Verdict) {
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    for seen in &history.seen {
        let end = ends.entry(&seen.id).or_insert(seen.at_ms);
        *end = seen.at_ms.min(*end);
        let now = history.finals.get(&seen.id);
        if now.is_some_and(|state| !state.is_terminal()) {
            let detail = format!("job {} was {} at {}", seen.id, seen.state, seen.at_ms);
            verdict.add(Crime::Resurrected, detail);
        }
    }
    let mut told = BTreeSet::new();
    for run in history.runs.iter().filter(|run| run.moment == Moment::Start) {
        let end = ends.get(run.job.as_str()).copied().filter(|end| run.at_ms > *end);
        let after_all = history.drained_ms > 0 && run.at_ms > history.drained_ms;
        let explained = end.and_then(|end| excuse::of_two_sides(history, end, run.at_ms));
        if !after_all && explained.is_some() {
            verdict.counts.revived += 1;
        } else if (after_all || end.is_some()) && told.insert(&run.job) {
            let detail = format!("job {} step {} at {}, end {end:?}", run.job, run.step, run.at_ms);
            verdict.add(Crime::Resurrected, detail);
        }
    }
}
