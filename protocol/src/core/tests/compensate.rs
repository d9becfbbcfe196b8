//! What jobs that failed have done is undone.

use std::time::Duration;

use crate::{
    id::{JobId, PipelineId},
    io::{Change, NewJob, Refusal, Request, Response, Target},
    pipeline::{Combine, EachInput, PhaseInput, PipelineDef, Quorum, Settings},
    record::JobOptions,
    view::{JobState, JobView},
};

use super::cluster::{Cluster, name};

const PHASES: [(&str, u32); 3] = [("a", 4), ("b", 4), ("c", 4)];

/// A phase, and what undoes it; the same workers run both.
fn undone(step: &str) -> PhaseInput {
    let undo = PhaseInput { phase: name(step), ..PhaseInput::named(name(&format!("undo-{step}"))) };
    PhaseInput { compensate: Some(Box::new(undo)), ..PhaseInput::named(name(step)) }
}

fn saga(phases: Vec<PhaseInput>, quorum: Quorum) -> Cluster {
    let mut cluster = Cluster::new(3, &PHASES);
    let settings = Settings { accept: quorum, execute: quorum, ..Settings::default() };
    let definition = PipelineDef::with(name("p"), phases, settings).expect("a valid pipeline");
    assert!(definition.is_valid());
    cluster.apply_pipeline(0, definition);
    cluster.coordinator();
    cluster.run_for(Duration::from_secs(3));
    cluster
}

/// Three phases, of which the last fails and cannot be undone.
fn failing_last(quorum: Quorum) -> Cluster {
    let phases = vec![undone("a"), undone("b"), PhaseInput::named(name("c"))];
    let mut cluster = saga(phases, quorum);
    cluster.failing_steps.insert(name("c"));
    cluster
}

fn enqueue(cluster: &mut Cluster) -> JobId {
    cluster.enqueue(0, "p", None, "{\"order\":7}").expect("accepted").job
}

fn awake(cluster: &Cluster) -> usize {
    (0..3).find(|index| cluster.nodes[*index].core.is_some()).expect("somebody")
}

/// The job that undoes a job, once it has ended.
fn compensation(cluster: &mut Cluster, job: JobId) -> JobView {
    let asked = awake(cluster);
    assert_eq!(cluster.wait_for(asked, job).state, JobState::Dead);
    let by = cluster.job(asked, job).compensation.expect("it is compensated");
    let undo = cluster.wait_for(asked, by);
    assert_eq!(undo.compensates, Some(job));
    undo
}

fn retry(cluster: &mut Cluster, job: JobId, from_start: bool) -> Response {
    let change = Change::Retry { from_start };
    cluster.request(0, Request::Change { target: Target::Job(job), change })
}

fn steps_of(cluster: &Cluster, job: JobId) -> Vec<String> {
    let began = cluster.began.iter().filter(|(of, _, _)| *of == job);
    began.map(|(_, step, _)| step.to_string()).collect()
}

#[test]
fn what_a_failed_job_has_done_is_undone_the_last_first() {
    for quorum in [Quorum::Any, Quorum::Majority] {
        let mut cluster = failing_last(quorum);
        let job = enqueue(&mut cluster);
        let undo = compensation(&mut cluster, job);
        assert_eq!(undo.state, JobState::Succeeded);
        assert_eq!(steps_of(&cluster, job), ["a", "b", "c"]);
        assert_eq!(steps_of(&cluster, undo.job), ["undo-b", "undo-a"]);
        // Each gets what a phase behind all that succeeded would get.
        let first = cluster.began.iter().find(|(of, _, _)| *of == undo.job).expect("it began");
        assert_eq!(first.2, ["{\"order\":7}", "{\"a\":1}", "{\"b\":1}"]);
    }
}

#[test]
fn what_has_done_nothing_is_not_undone() {
    let mut cluster = saga(vec![undone("a"), undone("b"), undone("c")], Quorum::Any);
    cluster.failing_steps.insert(name("b"));
    let job = enqueue(&mut cluster);
    let undo = compensation(&mut cluster, job);
    assert_eq!(steps_of(&cluster, undo.job), ["undo-a"]);
    // Nothing to undo, nothing that undoes it.
    cluster.failing_steps.insert(name("a"));
    let job = enqueue(&mut cluster);
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    assert_eq!(cluster.job(0, job).compensation, None);
}

#[test]
fn a_job_that_was_compensated_is_tried_again_from_its_start_and_compensated_again() {
    let mut cluster = failing_last(Quorum::Any);
    cluster.run_time = Duration::from_secs(1);
    let job = enqueue(&mut cluster);
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    let by = cluster.job(0, job).compensation.expect("it is compensated");
    let response = retry(&mut cluster, job, true);
    assert!(matches!(response, Response::Refused(Refusal::Compensating { .. })), "{response:?}");
    cluster.wait_for(0, by);
    let response = retry(&mut cluster, job, false);
    assert!(matches!(response, Response::Refused(Refusal::Compensated { .. })), "{response:?}");
    let response = retry(&mut cluster, job, true);
    assert!(matches!(response, Response::Changed(_)), "{response:?}");
    let again = compensation(&mut cluster, job);
    assert_ne!(again.job, by);
    assert_eq!(steps_of(&cluster, job), ["a", "b", "c", "a", "b", "c"]);
    assert_eq!(steps_of(&cluster, again.job), ["undo-b", "undo-a"]);
}

#[test]
fn what_was_under_way_is_cancelled_and_undone_too_once_it_has_had_time_to_end() {
    let beside = PhaseInput { after: Some(Vec::new()), ..undone("b") };
    let mut cluster = saga(vec![undone("a"), beside], Quorum::Any);
    cluster.automatic = false;
    cluster.failing_steps.insert(name("a"));
    cluster.run_time = Duration::from_secs(1);
    let job = enqueue(&mut cluster);
    cluster.run_for(Duration::from_secs(1) + Duration::from_millis(100));
    assert!(cluster.nodes.iter().all(|node| node.attempts.is_empty()), "it is cancelled");
    cluster.automatic = true;
    let by = cluster.job(0, job).compensation.expect("it is compensated");
    cluster.run_for(Duration::from_secs(25));
    assert!(steps_of(&cluster, by).is_empty());
    assert_eq!(compensation(&mut cluster, job).state, JobState::Succeeded);
    assert_eq!(steps_of(&cluster, by), ["undo-b"]);
}

#[test]
fn a_job_is_compensated_once_whenever_its_coordinator_is_lost() {
    for quorum in [Quorum::Any, Quorum::Majority] {
        for after in 0..25 {
            let mut cluster = failing_last(quorum);
            let job = enqueue(&mut cluster);
            cluster.run_for(Duration::from_millis(after));
            let coordinator = cluster.coordinator();
            cluster.kill(coordinator);
            cluster.coordinator();
            cluster.run_for(Duration::from_secs(2));
            let undo = compensation(&mut cluster, job);
            assert_eq!(undo.state, JobState::Succeeded, "after {after} ms");
            let states = undo.invocations.iter().map(|it| (it.step.to_string(), it.state));
            let expected = [("undo-b", JobState::Succeeded), ("undo-a", JobState::Succeeded)];
            assert!(states.eq(expected.map(|(step, state)| (step.to_owned(), state))));
            let ended = |cluster: &Cluster, step: &str| {
                let (of, step) = (undo.job, name(step));
                cluster.began.iter().filter(|it| (it.0, &it.1) == (of, &step)).count()
            };
            // Only what ran on the node that died may run twice.
            assert!(ended(&cluster, "undo-a") <= 2 && ended(&cluster, "undo-b") <= 2);
        }
    }
}

#[test]
fn nothing_is_undone_of_a_job_that_failed_for_a_deposed_coordinator_alone() {
    let mut cluster = failing_last(Quorum::Majority);
    cluster.run_time = Duration::from_millis(300);
    let coordinator = cluster.coordinator();
    cluster.failing_at = Some(coordinator);
    let jobs: Vec<JobId> = (0..12).map(|_| enqueue(&mut cluster)).collect();
    cluster.run_until("the last phase runs there", |cluster| {
        cluster.began.iter().filter(|(_, step, _)| *step == name("c")).count() == 12
    });
    let others: Vec<usize> = (0..3).filter(|index| *index != coordinator).collect();
    others.iter().for_each(|other| cluster.disconnect(coordinator, *other));
    cluster.run_for(Duration::from_secs(20));
    let succeeded = |cluster: &Cluster, job: JobId| {
        let core = cluster.nodes[others[0]].core.as_ref().expect("it runs");
        let record = core.record(PipelineId::of_name("p"), job).expect("readable");
        record.is_some_and(|record| record.state() == JobState::Succeeded)
    };
    assert!(jobs.iter().all(|job| succeeded(&cluster, *job)), "others run it again");
    others.iter().for_each(|other| cluster.connect(coordinator, *other));
    cluster.run_for(Duration::from_secs(60));
    assert!(jobs.iter().all(|job| succeeded(&cluster, *job)));
    let undone = cluster.began.iter().filter(|(_, step, _)| step.as_str().starts_with("undo"));
    assert_eq!(undone.count(), 0, "{:?}", cluster.began);
}

#[test]
fn what_was_done_beyond_a_partition_is_undone_wherever_the_job_failed() {
    for fails_at_old in [true, false] {
        let approval = PhaseInput {
            wait_for: Some(name("go")),
            timeout: Some(Duration::from_secs(600)),
            ..PhaseInput::named(name("b"))
        };
        let mut cluster = saga(vec![undone("a"), approval], Quorum::Any);
        let old = cluster.coordinator();
        let others: Vec<usize> = (0..3).filter(|index| *index != old).collect();
        let not_before_ms = 1_700_000_000_000 + cluster.now.as_millis() + 30_000;
        let options = JobOptions { not_before_ms, ..JobOptions::default() };
        let new = NewJob { key: None, options, trace: None, instructions: "{}".into() };
        let request = Request::Enqueue { pipeline: name("p"), jobs: vec![new] };
        let response = cluster.request(0, request);
        let Response::Enqueued(receipts) = response else { panic!("{response:?}") };
        let job = receipts[0].as_ref().expect("it is taken").job;
        others.iter().for_each(|other| cluster.disconnect(old, *other));
        cluster.run_until("both coordinate", |cluster| cluster.coordinators().len() == 2);
        // On one side it fails before it has done anything, on the other it goes on.
        let there = if fails_at_old { old } else { others[0] };
        let (target, data) = (Target::Job(job), Err("not approved".to_owned()));
        let change = Change::Signal { name: name("go"), data };
        let response = cluster.request(there, Request::Change { target, change });
        assert!(matches!(response, Response::Changed(_)), "{response:?}");
        assert_eq!(cluster.job(there, job).compensation, None);
        cluster.run_for(Duration::from_secs(35));
        assert_eq!(steps_of(&cluster, job), ["a"]);
        others.iter().for_each(|other| cluster.connect(old, *other));
        cluster.run_for(Duration::from_secs(10));
        let undo = compensation(&mut cluster, job);
        assert_eq!(undo.state, JobState::Succeeded);
        assert_eq!(steps_of(&cluster, undo.job), ["undo-a"]);
    }
}

#[test]
fn what_undoes_a_job_is_tried_again_before_the_job_is() {
    let mut cluster = failing_last(Quorum::Any);
    cluster.failing_steps.insert(name("undo-a"));
    let job = enqueue(&mut cluster);
    let undo = compensation(&mut cluster, job);
    assert_eq!(undo.state, JobState::Dead);
    let response = retry(&mut cluster, job, true);
    assert!(matches!(response, Response::Refused(Refusal::Compensating { .. })), "{response:?}");
    let discard = Request::Change { target: Target::Job(undo.job), change: Change::Discard };
    assert!(matches!(cluster.request(0, discard), Response::Changed(_)));
    let response = retry(&mut cluster, job, false);
    assert!(matches!(response, Response::Refused(Refusal::Compensated(_))), "{response:?}");
    let response = retry(&mut cluster, job, true);
    assert!(matches!(response, Response::Changed(_)), "{response:?}");
}

#[test]
fn a_phase_for_items_that_fails_is_undone() {
    let each = EachInput {
        of: name("a"),
        phases: vec![PhaseInput::named(name("b"))],
        tolerate_percent: 0,
        combine: Combine::Group,
    };
    let items = PhaseInput { phase: name("b"), each: Some(each), ..undone("b") };
    let mut cluster = saga(vec![PhaseInput::named(name("a")), items], Quorum::Any);
    cluster.items = 5;
    cluster.failing_steps.insert(name("b"));
    let job = enqueue(&mut cluster);
    let undo = compensation(&mut cluster, job);
    assert_eq!(steps_of(&cluster, undo.job), ["undo-b"]);
}

#[test]
fn whoever_takes_over_compensates_what_nobody_has() {
    let mut cluster = failing_last(Quorum::Any);
    let job = enqueue(&mut cluster);
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    let by = cluster.job(0, job).compensation.expect("it is compensated");
    (0..3).for_each(|index| cluster.kill(index));
    (0..3).for_each(|index| cluster.lose_record(index, by));
    (0..3).for_each(|index| cluster.start(index));
    cluster.run_until("it is there again", |cluster| cluster.all_succeeded(&[by]));
    assert_eq!(steps_of(&cluster, by).last().map(String::as_str), Some("undo-a"));
}

#[test]
fn what_waits_to_undo_a_job_ends_when_that_has_not_failed_after_all() {
    let timeout = Some(Duration::from_secs(3600));
    let signal = PhaseInput { wait_for: Some(name("go")), timeout, ..PhaseInput::named(name("b")) };
    let mut cluster = saga(vec![undone("a"), signal], Quorum::Any);
    let pause = |paused| {
        let step = Some(name("undo-a"));
        Request::Pause { pipeline: name("p"), step, paused }
    };
    cluster.request(0, pause(true));
    let job = enqueue(&mut cluster);
    cluster.run_for(Duration::from_secs(1));
    let old = cluster.coordinator();
    let others: Vec<usize> = (0..3).filter(|index| *index != old).collect();
    others.iter().for_each(|other| cluster.disconnect(old, *other));
    cluster.run_until("another coordinator", |cluster| cluster.coordinators().len() == 2);
    let new = cluster.coordinators().into_iter().find(|index| *index != old).expect("another");
    for (at, data) in [(old, Ok("{}".into())), (new, Err("no".to_owned()))] {
        let change = Change::Signal { name: name("go"), data };
        let response = cluster.request(at, Request::Change { target: Target::Job(job), change });
        assert!(matches!(response, Response::Changed(_)), "{response:?}");
    }
    let by = cluster.job(new, job).compensation.expect("it is compensated");
    others.iter().for_each(|other| cluster.connect(old, *other));
    cluster.run_for(Duration::from_secs(20));
    assert_eq!(cluster.coordinators(), [new]);
    assert_eq!(cluster.job(new, job).state, JobState::Succeeded);
    cluster.request(0, pause(false));
    assert_eq!(cluster.wait_for(new, by).state, JobState::Cancelled);
    assert!(steps_of(&cluster, by).is_empty());
}
