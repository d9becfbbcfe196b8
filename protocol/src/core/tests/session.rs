//! Sessions: what mappers leave for their reducers.

use std::time::Duration;

use crate::{
    id::{JobId, PipelineId, Token},
    io::{Change, Outcome, Request, Target},
    message::SessionOf,
    pipeline::{Combine, EachInput, PhaseInput, PipelineDef, Quorum, Settings},
    record::Progress,
    view::JobState,
};

use super::cluster::{Cluster, name};

const PHASES: [(&str, u32); 3] = [("split", 4), ("count", 8), ("sum", 4)];

fn for_each(of: &str, phases: Vec<PhaseInput>, named: &str) -> PhaseInput {
    let combine = Combine::List;
    let each = EachInput { of: name(of), phases, tolerate_percent: 0, combine };
    PhaseInput { each: Some(each), ..PhaseInput::named(name(named)) }
}

/// `split` gives items, `count` runs for each, `sum` gets what they gave.
fn mapping(items: u32, settings: Settings) -> Cluster {
    let mut cluster = Cluster::new(3, &PHASES);
    (cluster.items, cluster.sessions) = (items, true);
    let count = for_each("split", vec![PhaseInput::named(name("count"))], "counts");
    let phases = vec![PhaseInput::named(name("split")), count, PhaseInput::named(name("sum"))];
    let pipeline = PipelineDef::with(name("p"), phases, settings).expect("a valid pipeline");
    cluster.apply_pipeline(0, pipeline);
    cluster.coordinator();
    cluster
}

/// The attempt of the first phase that counts.
fn mapper(cluster: &Cluster, job: JobId) -> Token {
    let cores = || cluster.nodes.iter().filter_map(|node| node.core.as_ref());
    let of = PipelineId::of_name("p");
    let records = cores().filter_map(|core| core.record(of, job).expect("the disk can be read"));
    let mut tokens = records.filter_map(|record| match record.controls.get(&0)?.progress {
        Progress::Succeeded { token, .. } => Some(token),
        _ => None,
    });
    tokens.next().expect("it succeeded")
}

fn left_by(token: Token) -> Vec<SessionOf> {
    let entries = format!("{{\"by\":\"{token}\"}}").into();
    vec![SessionOf { step: name("split"), entries }]
}

fn running(cluster: &Cluster, step: &str) -> Option<(usize, Token)> {
    let all = cluster.nodes.iter().enumerate();
    let mut all = all.flat_map(|(at, node)| node.attempts.iter().map(move |it| (at, it)));
    all.find(|(_, it)| it.step.as_str() == step).map(|(at, it)| (at, it.token))
}

#[test]
fn a_reducer_reads_what_its_mapper_left_and_nobody_else_does() {
    let strict =
        Settings { accept: Quorum::Majority, execute: Quorum::Majority, ..Settings::default() };
    for settings in [Settings::default(), strict] {
        let mut cluster = mapping(30, settings);
        let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
        let other = cluster.enqueue(1, "p", None, "{}").expect("accepted").job;
        assert_eq!(cluster.wait_for(2, job).state, JobState::Succeeded);
        assert_eq!(cluster.wait_for(2, other).state, JobState::Succeeded);
        let of = |job| (name("sum"), left_by(mapper(&cluster, job)));
        let mut expected = vec![of(job), of(other)];
        let mut left = cluster.left.clone();
        expected.sort_by_key(|(_, left)| left[0].entries.clone());
        left.sort_by_key(|(_, left)| left[0].entries.clone());
        assert_eq!(left, expected);
    }
}

#[test]
fn a_mapper_without_items_leaves_a_session_too() {
    let mut cluster = mapping(0, Settings::default());
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(cluster.left, [(name("sum"), left_by(mapper(&cluster, job)))]);
}

#[test]
fn a_session_outlives_its_coordinator_between_map_and_reduce() {
    let mut cluster = mapping(300, Settings::default());
    cluster.run_time = Duration::from_millis(50);
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let ran =
        |cluster: &Cluster| cluster.runs.keys().filter(|(_, at)| at.as_str() == "count").count();
    cluster.run_until("some items ran", |cluster| ran(cluster) > 100);
    let token = mapper(&cluster, job);
    for _ in 0..2 {
        let coordinator = cluster.coordinator();
        cluster.kill(coordinator);
        cluster.start(coordinator);
        cluster.coordinator();
    }
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    assert!(!cluster.left.is_empty());
    for left in &cluster.left {
        assert_eq!(*left, (name("sum"), left_by(token)));
    }
}

#[test]
fn what_a_failed_attempt_left_is_gone() {
    let mut cluster = mapping(0, Settings::default());
    cluster.automatic = false;
    cluster.sessions = false;
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.run_until("it runs", |cluster| running(cluster, "split").is_some());
    let (at, first) = running(&cluster, "split").expect("it runs");
    cluster.leave(at, first, "{\"old\":true}");
    let (error, retry, after) = ("no".to_owned(), true, Some(Duration::ZERO));
    cluster.finish(at, first, Outcome::Failed { error, retry, after });
    cluster.run_for(Duration::from_millis(100));
    cluster.run_until("it runs again", |cluster| running(cluster, "split").is_some());
    let (at, second) = running(&cluster, "split").expect("it runs");
    assert!(second > first);
    cluster.finish(at, second, Outcome::Succeeded("{}".into()));
    cluster.automatic = true;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(cluster.left, []);
}

#[test]
fn a_job_that_is_tried_again_begins_with_an_empty_session() {
    let mut cluster = mapping(3, Settings::default());
    cluster.failing_steps.insert(name("sum"));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    cluster.failing_steps.clear();
    cluster.left.clear();
    // This time it leaves nothing.
    cluster.sessions = false;
    let (target, change) = (Target::Job(job), Change::Retry { from_start: true });
    cluster.request(2, Request::Change { target, change });
    let view = cluster.wait_for(0, job);
    assert_eq!((view.state, view.generation), (JobState::Succeeded, 1));
    assert_eq!(cluster.left, []);
}

#[test]
fn where_the_mapper_is_not_tried_again_its_session_stays() {
    let mut cluster = mapping(3, Settings::default());
    cluster.failing_steps.insert(name("sum"));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    cluster.failing_steps.clear();
    cluster.left.clear();
    let (target, change) = (Target::Job(job), Change::Retry { from_start: false });
    cluster.request(2, Request::Change { target, change });
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(cluster.left, [(name("sum"), left_by(mapper(&cluster, job)))]);
}

#[test]
fn fan_outs_within_each_other_keep_theirs_apart() {
    let mut cluster = Cluster::new(3, &PHASES);
    (cluster.items, cluster.sessions) = (2, true);
    let called = |phase, step| PhaseInput { phase: name(phase), ..PhaseInput::named(name(step)) };
    let within = vec![
        called("split", "split-part"),
        for_each("split-part", vec![PhaseInput::named(name("count"))], "counts"),
        called("sum", "sum-part"),
    ];
    let mut phases = vec![PhaseInput::named(name("split")), for_each("split", within, "parts")];
    phases.push(PhaseInput::named(name("sum")));
    let pipeline = PipelineDef::with(name("p"), phases, Settings::default());
    cluster.apply_pipeline(0, pipeline.expect("a valid pipeline"));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    // Three mappers, and the reducer of each.
    let mut all: Vec<_> = cluster.left.iter().map(|(_, left)| left[0].entries.clone()).collect();
    assert_eq!(all.last(), Some(&left_by(mapper(&cluster, job))[0].entries));
    all.sort();
    all.dedup();
    assert_eq!((cluster.left.len(), all.len()), (3, 3));
}

#[test]
fn a_session_that_is_too_large_fails_its_attempt_for_good() {
    let many: Vec<String> = (0..1025).map(|key| format!("\"{key}\":0")).collect();
    let large = format!("{{\"k\":\"{}\"}}", "x".repeat(1 << 20));
    for (entries, why) in [
        (large, "limits.session_bytes"),
        (format!("{{{}}}", many.join(",")), "1025 keys: at most 1024"),
        ("[1]".to_owned(), "no JSON object"),
        ("{\"k\":1,\"k\":2}".to_owned(), "comes twice"),
    ] {
        let mut cluster = mapping(0, Settings::default());
        (cluster.automatic, cluster.sessions) = (false, false);
        let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
        cluster.run_until("it runs", |cluster| running(cluster, "split").is_some());
        let (at, token) = running(&cluster, "split").expect("it runs");
        cluster.leave(at, token, &entries);
        cluster.finish(at, token, Outcome::Succeeded("{}".into()));
        let view = cluster.wait_for(0, job);
        assert_eq!(view.state, JobState::Dead, "{why}");
        let error = view.invocations[0].attempts[0].error.clone().expect("an error");
        assert!(error.contains(why), "{error}");
    }
}
