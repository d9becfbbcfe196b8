//! The trace that a client has goes with its job, wherever that goes.

use std::time::Duration;

use crate::{
    id::JobId,
    io::{Change, NewJob, Request, Response, Target},
    pipeline::{Combine, EachInput, PhaseInput, PipelineDef, Quorum, Settings},
    trace::TraceParent,
    view::JobState,
};

use super::cluster::{Cluster, chain, name};

fn trace(span: u8) -> TraceParent {
    format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902{span:02x}-01")
        .parse()
        .expect("valid")
}

fn enqueue(cluster: &mut Cluster, key: Option<&str>, trace: Option<TraceParent>) -> JobId {
    let (key, options) = (key.map(str::to_owned), Default::default());
    let job = NewJob { key, options, trace, instructions: "{}".into() };
    let request = Request::Enqueue { pipeline: name("p"), jobs: vec![job] };
    let Response::Enqueued(receipts) = cluster.request(0, request) else { panic!("no receipts") };
    receipts[0].as_ref().expect("accepted").job
}

/// What attempts of a step got, each once.
fn given(cluster: &Cluster, step: &str) -> Vec<Option<TraceParent>> {
    let of = cluster.traces.iter().filter(|(at, _)| at.as_str() == step);
    let mut given: Vec<_> = of.map(|(_, trace)| *trace).collect();
    given.dedup();
    given
}

#[test]
fn every_attempt_gets_the_trace_and_every_node_tells_it() {
    let strict =
        Settings { accept: Quorum::Majority, execute: Quorum::Majority, ..Settings::default() };
    for settings in [Settings::default(), strict] {
        let mut cluster = Cluster::new(3, &[("a", 2), ("b", 2)]);
        let phases = ["a", "b"].map(|phase| PhaseInput::named(name(phase))).to_vec();
        cluster.apply_pipeline(0, PipelineDef::with(name("p"), phases, settings).expect("valid"));
        cluster.coordinator();
        let job = enqueue(&mut cluster, None, Some(trace(1)));
        assert_eq!(cluster.wait_for(1, job).state, JobState::Succeeded);
        for step in ["a", "b"] {
            assert_eq!(given(&cluster, step), [Some(trace(1))]);
        }
        cluster.run_for(Duration::from_secs(3));
        (0..3).for_each(|at| assert_eq!(cluster.job(at, job).trace, Some(trace(1))));
        let plain = enqueue(&mut cluster, None, None);
        assert_eq!(cluster.wait_for(2, plain).trace, None);
    }
}

#[test]
fn a_trace_outlives_its_coordinator_and_a_restart_of_all() {
    let mut cluster = Cluster::new(3, &[("a", 2), ("b", 2)]);
    cluster.apply_pipeline(0, chain("p", &["a", "b"]));
    cluster.coordinator();
    cluster.run_time = Duration::from_secs(2);
    let job = enqueue(&mut cluster, None, Some(trace(1)));
    cluster.run_until("it runs", |cluster| !given(cluster, "a").is_empty());
    let old = cluster.coordinator();
    cluster.kill(old);
    cluster.run_until("another", |cluster| cluster.coordinators().len() == 1);
    cluster.start(old);
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    assert_eq!(given(&cluster, "b"), [Some(trace(1))]);
    (0..3).for_each(|at| cluster.kill(at));
    (0..3).for_each(|at| cluster.start(at));
    cluster.coordinator();
    assert_eq!(cluster.wait_for(0, job).trace, Some(trace(1)));
}

#[test]
fn the_first_trace_of_a_key_stays_and_outlives_another_try() {
    let mut cluster = Cluster::new(3, &[("a", 2)]);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    cluster.failing_steps.insert(name("a"));
    let job = enqueue(&mut cluster, Some("k"), Some(trace(1)));
    assert_eq!(enqueue(&mut cluster, Some("k"), Some(trace(2))), job);
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    cluster.failing_steps.clear();
    let change = Change::Retry { from_start: true };
    let response = cluster.request(0, Request::Change { target: Target::Job(job), change });
    assert!(matches!(response, Response::Changed(_)), "{response:?}");
    let view = cluster.wait_for(1, job);
    assert_eq!((view.state, view.trace), (JobState::Succeeded, Some(trace(1))));
    assert_eq!(given(&cluster, "a"), [Some(trace(1))]);
}

#[test]
fn jobs_of_items_and_those_that_undo_others_go_on_with_the_trace() {
    let mut cluster = Cluster::new(3, &[("split", 2), ("each", 4), ("undo", 2), ("last", 2)]);
    cluster.items = 5;
    let each = EachInput {
        of: name("split"),
        phases: vec![PhaseInput::named(name("each"))],
        tolerate_percent: 0,
        combine: Combine::List,
    };
    let undo = PhaseInput { phase: name("undo"), ..PhaseInput::named(name("undo-split")) };
    let phases = vec![
        PhaseInput { compensate: Some(Box::new(undo)), ..PhaseInput::named(name("split")) },
        PhaseInput { each: Some(each), ..PhaseInput::named(name("all")) },
        PhaseInput { max_attempts: 1, ..PhaseInput::named(name("last")) },
    ];
    let definition = PipelineDef::with(name("p"), phases, Settings::default()).expect("valid");
    cluster.apply_pipeline(0, definition);
    cluster.coordinator();
    cluster.failing_steps.insert(name("last"));
    let job = enqueue(&mut cluster, None, Some(trace(1)));
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    let undone = cluster.job(0, job).compensation.expect("it is undone");
    assert_eq!(cluster.wait_for(0, undone).trace, Some(trace(1)));
    for step in ["split", "each", "last", "undo-split"] {
        assert_eq!(given(&cluster, step), [Some(trace(1))], "{step}");
    }
}
