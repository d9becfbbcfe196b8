//! Histories made by hand: what is right passes, and each kind of violation is caught.

use std::collections::BTreeMap;

use super::*;
use crate::{
    fault::Kind,
    history::{Copy, Fault, JobState, Op, Seen},
    journal::{Moment, Record},
    work::{STEPS, output},
};

fn op(at_ms: u64, number: u64, outcome: Outcome) -> Op {
    Op { at_ms, number, node: "n0".into(), keyed: number.is_multiple_of(2), outcome }
}

fn id(number: u64) -> String {
    format!("job-{number}")
}

fn ok(number: u64, copies: u32) -> Outcome {
    Outcome::Ok { id: id(number), copies }
}

fn token(step: &str) -> String {
    format!("{step}-1")
}

fn start(at_ms: u64, number: u64, step: &str, token: &str) -> Record {
    let before = STEPS.iter().take_while(|name| **name != step);
    Record {
        at_ms,
        moment: Moment::Start,
        node: "n1".into(),
        job: id(number),
        number,
        generation: 0,
        step: step.into(),
        attempt: 1,
        token: token.into(),
        inputs: before.map(|name| self::token(name)).collect(),
        hash: String::new(),
    }
}

fn finish(at_ms: u64, number: u64, step: &str, token: &str) -> Record {
    let hash = output(step, number);
    Record { moment: Moment::Finish, hash, ..start(at_ms, number, step, token) }
}

fn succeeded(number: u64) -> JobState {
    let results = STEPS.map(|step| (step.to_owned(), (output(step, number), token(step))));
    JobState { state: "succeeded".into(), number: Some(number), results: results.into() }
}

fn fault(kind: Kind, node: &str, from_ms: u64, until_ms: u64) -> Fault {
    let (nodes, destroyed) = (vec![node.to_owned()], kind.destroys());
    Fault {
        kind,
        nodes,
        of_coordinator: false,
        from_ms,
        until_ms,
        destroyed,
        converged_ms: None,
        note: String::new(),
    }
}

/// Three jobs that went as they should, at 1 s, 2 s and 3 s.
fn clean() -> History {
    let mut history = History {
        nodes: vec!["n0".into(), "n1".into()],
        replicas: 2,
        healed_ms: 50_000,
        drained_ms: 60_000,
        ..History::default()
    };
    for number in 1..=3 {
        let at = number * 1000;
        history.ops.push(op(at, number, Outcome::Invoked));
        history.ops.push(op(at + 5, number, ok(number, 2)));
        for (place, step) in STEPS.iter().enumerate() {
            let begin = at + 10 + place as u64 * 20;
            history.runs.push(start(begin, number, step, &token(step)));
            history.runs.push(finish(begin + 10, number, step, &token(step)));
        }
        history.seen.push(Seen {
            at_ms: at + 100,
            id: id(number),
            node: "n0".into(),
            state: "succeeded".into(),
        });
        history.finals.insert(id(number), succeeded(number));
    }
    for node in ["n0", "n1"] {
        let jobs = history.finals.clone();
        history.copies.push(Copy { node: node.into(), is_replica: true, jobs });
    }
    history
}

fn crimes(history: &History) -> Vec<Crime> {
    check(history).violations.iter().map(|violation| violation.crime).collect()
}

/// Takes a job out of what is left in the end.
fn without(mut history: History, number: u64) -> History {
    history.finals.remove(&id(number));
    history.copies.iter_mut().for_each(|copy| drop(copy.jobs.remove(&id(number))));
    history
}

/// A step that ran before runs once more on another node.
fn run_again(history: &mut History, number: u64, step: &str, at_ms: u64) {
    history.runs.push(Record { node: "n0".into(), ..start(at_ms, number, step, "again") });
    history.runs.push(Record { node: "n0".into(), ..finish(at_ms + 5, number, step, "again") });
}

#[test]
fn what_went_as_it_should_passes() {
    let verdict = check(&clean());
    assert_eq!(verdict.violations, vec![]);
    assert_eq!((verdict.counts.acknowledged, verdict.counts.terminal), (3, 3));
    assert_eq!(verdict.counts.runs, BTreeMap::from([(1, 9)]));
}

#[test]
fn an_acknowledged_job_that_is_gone_is_lost() {
    assert_eq!(crimes(&without(clean(), 2)), vec![Crime::Lost]);
}

#[test]
fn one_destroyed_disk_excuses_no_loss_from_two() {
    let mut history = without(clean(), 2);
    history.faults.push(fault(Kind::Wipe, "n0", 5000, 6000));
    assert_eq!(crimes(&history), vec![Crime::Lost]);
    history.faults.push(fault(Kind::Wipe, "n1", 7000, 8000));
    let verdict = check(&history);
    assert_eq!((verdict.violations.len(), verdict.counts.lost_with_disk), (0, 1));
}

#[test]
fn a_disk_destroyed_after_all_copies_were_made_again_excuses_nothing() {
    let mut history = without(clean(), 2);
    let first = fault(Kind::Wipe, "n0", 5000, 6000);
    history.faults.push(Fault { converged_ms: Some(6500), ..first });
    history.faults.push(fault(Kind::Wipe, "n1", 7000, 8000));
    assert_eq!(crimes(&history), vec![Crime::Lost]);
}

#[test]
fn a_disk_destroyed_before_the_acknowledgement_excuses_nothing() {
    let mut history = without(clean(), 2);
    history.ops.iter_mut().for_each(|op| {
        op.outcome = match &op.outcome {
            Outcome::Ok { id, .. } => Outcome::Ok { id: id.clone(), copies: 1 },
            other => other.clone(),
        }
    });
    history.faults.push(fault(Kind::Wipe, "n0", 500, 900));
    assert_eq!(crimes(&history), vec![Crime::Lost]);
}

#[test]
fn a_job_that_stays_open_is_stuck() {
    let mut history = clean();
    history.seen.clear();
    for copy in history.copies.iter_mut().map(|copy| &mut copy.jobs).chain([&mut history.finals]) {
        copy.entry(id(1)).and_modify(|state| state.state = "queued".into());
    }
    assert_eq!(crimes(&history), vec![Crime::Stuck]);
}

#[test]
fn a_job_that_is_open_after_its_end_was_seen_is_resurrected() {
    let mut history = clean();
    for copy in history.copies.iter_mut().map(|copy| &mut copy.jobs).chain([&mut history.finals]) {
        copy.entry(id(1)).and_modify(|state| state.state = "queued".into());
    }
    assert_eq!(crimes(&history), vec![Crime::Stuck, Crime::Resurrected]);
}

#[test]
fn a_job_that_is_given_up_although_nothing_fails_is_told() {
    let mut history = clean();
    for copy in history.copies.iter_mut().map(|copy| &mut copy.jobs).chain([&mut history.finals]) {
        copy.entry(id(1)).and_modify(|state| state.state = "dead".into());
    }
    assert_eq!(crimes(&history), vec![Crime::Dead]);
}

#[test]
fn what_nobody_asked_for_is_unexpected() {
    let mut history = clean();
    history.runs.push(start(4000, 9, "a", "a-1"));
    assert_eq!(crimes(&history), vec![Crime::Unexpected]);
}

#[test]
fn a_job_under_another_jobs_number_is_unexpected() {
    let mut history = clean();
    let other = Record { job: id(1), ..start(4000, 2, "a", "a-1") };
    history.runs.push(other);
    assert!(crimes(&history).contains(&Crime::Unexpected));
}

#[test]
fn two_jobs_for_one_request_are_unexpected() {
    let mut history = clean();
    history.runs.push(Record { job: "other".into(), ..start(4000, 3, "a", "a-1") });
    assert_eq!(crimes(&history), vec![Crime::Unexpected]);
}

#[test]
fn what_was_refused_may_not_be_there() {
    let mut history = clean();
    history.ops.retain(|op| op.number != 2);
    history.ops.push(op(2000, 2, Outcome::Invoked));
    history.ops.push(op(2005, 2, Outcome::Failed("429".into())));
    assert_eq!(crimes(&history), vec![Crime::RefusedAndKept]);
}

#[test]
fn what_is_unknown_may_be_there_or_not() {
    let mut history = clean();
    history.ops.retain(|op| op.number != 2);
    history.ops.push(op(2000, 2, Outcome::Invoked));
    history.ops.push(op(2005, 2, Outcome::Unknown("time-out".into())));
    let verdict = check(&history);
    assert_eq!((verdict.violations.len(), verdict.counts.recovered), (0, 1));
    history = without(history, 2);
    history.runs.retain(|run| run.number != 2);
    let verdict = check(&history);
    assert_eq!((verdict.violations.len(), verdict.counts.recovered), (0, 0));
    assert_eq!(verdict.counts.unknown, 1);
}

#[test]
fn one_key_is_one_job() {
    let mut history = clean();
    let other = Outcome::Ok { id: "other".into(), copies: 2 };
    history.ops.push(op(2500, 2, Outcome::Invoked));
    history.ops.push(op(2505, 2, other));
    history.finals.insert("other".into(), succeeded(2));
    history.copies.clear();
    assert_eq!(crimes(&history), vec![Crime::KeySplit]);
}

#[test]
fn an_extra_run_needs_a_fault() {
    let mut history = clean();
    history.seen.clear();
    run_again(&mut history, 1, "a", 1500);
    assert_eq!(crimes(&history), vec![Crime::ExtraRun]);
    // Another node was killed: that is no reason.
    history.faults.push(fault(Kind::Kill, "n0", 1100, 1300));
    assert_eq!(crimes(&history), vec![Crime::ExtraRun]);
    // Nor is that its worker was asked to end.
    history.faults.push(fault(Kind::Replace, "n1", 1100, 1300));
    assert_eq!(crimes(&history), vec![Crime::ExtraRun]);
    history.faults.push(fault(Kind::Kill, "n1", 1100, 1300));
    let verdict = check(&history);
    assert_eq!(verdict.violations, vec![]);
    assert_eq!(verdict.counts.explained, BTreeMap::from([("kill".to_owned(), 1)]));
}

#[test]
fn a_fault_long_over_explains_no_extra_run() {
    let mut history = clean();
    history.seen.clear();
    history.faults.push(fault(Kind::Kill, "n1", 100, 200));
    let late = 200 + excuse::SLACK_MS + 1;
    history.runs.iter_mut().filter(|run| run.number == 1).for_each(|run| run.at_ms += late);
    run_again(&mut history, 1, "a", late + 5000);
    assert_eq!(crimes(&history), vec![Crime::ExtraRun]);
}

/// Step b is run twice, each time with another run of step a.
fn two_ends() -> History {
    let mut history = clean();
    history.seen.clear();
    run_again(&mut history, 1, "a", 1100);
    run_again(&mut history, 1, "b", 1200);
    let last = history.runs.len();
    history.runs[last - 2..].iter_mut().for_each(|run| run.inputs = vec!["again".into()]);
    history
}

#[test]
fn two_ends_of_one_phase_are_told_unless_the_cluster_was_parted() {
    let mut history = two_ends();
    history.faults.push(fault(Kind::Kill, "n1", 1010, 1020));
    assert_eq!(crimes(&history), vec![Crime::CompletedTwice]);
    history.faults.push(fault(Kind::Partition, "n1", 1010, 1020));
    let verdict = check(&history);
    assert_eq!((verdict.violations.len(), verdict.counts.completed_twice), (0, 1));
}

#[test]
fn nothing_starts_after_an_end_that_was_seen() {
    let mut history = clean();
    history.faults.push(fault(Kind::Kill, "n1", 1010, 1020));
    run_again(&mut history, 1, "c", 1500);
    assert_eq!(crimes(&history), vec![Crime::Resurrected]);
    history.faults.push(fault(Kind::Partition, "n1", 1010, 1020));
    assert_eq!(check(&history).counts.revived, 1);
}

#[test]
fn nothing_at_all_starts_when_everything_is_done() {
    let mut history = clean();
    history.faults.push(fault(Kind::Partition, "n1", 59_000, 59_500));
    history.seen.clear();
    run_again(&mut history, 1, "c", 60_500);
    assert_eq!(crimes(&history), vec![Crime::Resurrected]);
}

#[test]
fn a_phase_is_given_only_what_was_finished() {
    let mut history = clean();
    history
        .runs
        .retain(|run| (run.number, run.step.as_str(), run.moment) != (1, "a", Moment::Finish));
    assert_eq!(crimes(&history), vec![Crime::OutOfOrder, Crime::OutOfOrder]);
}

#[test]
fn a_phase_is_given_everything_before_it() {
    let mut history = clean();
    history.runs.iter_mut().filter(|run| run.number == 1).for_each(|run| {
        run.inputs.pop();
    });
    assert!(crimes(&history).contains(&Crime::OutOfOrder));
}

#[test]
fn a_wrong_result_is_told() {
    let mut history = clean();
    for copy in history.copies.iter_mut().map(|copy| &mut copy.jobs).chain([&mut history.finals]) {
        let state = copy.entry(id(1)).or_default();
        state.results.insert("b".into(), ("something else".into(), token("b")));
    }
    assert_eq!(crimes(&history), vec![Crime::Corrupt]);
}

#[test]
fn a_worker_that_makes_something_else_is_told() {
    let mut history = clean();
    let last = history.runs.len() - 1;
    history.runs[last].hash = "something else".into();
    assert_eq!(crimes(&history), vec![Crime::Corrupt]);
}

#[test]
fn a_replica_that_lacks_a_job_has_diverged() {
    let mut history = clean();
    history.copies[1].jobs.remove(&id(3));
    assert_eq!(crimes(&history), vec![Crime::Diverged]);
    // Another node need not have it.
    history.copies[1].is_replica = false;
    assert_eq!(crimes(&history), vec![]);
}

#[test]
fn a_node_that_takes_an_ended_job_for_open_has_diverged() {
    let mut history = clean();
    history.copies[1].is_replica = false;
    history.copies[1].jobs.entry(id(3)).and_modify(|state| state.state = "queued".into());
    assert_eq!(crimes(&history), vec![Crime::Diverged]);
}

#[test]
fn two_nodes_with_other_ends_of_one_phase_have_diverged() {
    let mut history = clean();
    let state = history.copies[1].jobs.entry(id(3)).or_default();
    state.results.insert("b".into(), (output("b", 3), "another".into()));
    assert_eq!(crimes(&history), vec![Crime::Diverged]);
}

#[test]
fn what_one_node_alone_has_is_told() {
    let mut history = clean();
    history.copies[1].jobs.insert("other".into(), succeeded(3));
    assert_eq!(crimes(&history), vec![Crime::Diverged]);
}

#[test]
fn offences_are_passed_on() {
    let history = History { offences: vec!["n0: panicked at".into()], ..clean() };
    assert_eq!(crimes(&history), vec![Crime::Offence]);
}
