//! What a schedule leaves out stays left out, and what it enqueues is enqueued once.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    id::JobId,
    io::{Change, Request, Response, Target},
    pipeline::{PhaseInput, PipelineDef, Quorum, Settings},
    schedule::{Missed, Overlap, Schedule},
    view::{JobState, JobSummary},
};

use super::cluster::{Cluster, name};

/// The clusters' wall clock at their timestamp zero.
const WALL_ZERO_MS: u64 = 1_700_000_000_000;

fn schedule(overlap: Overlap, missed: Missed) -> Schedule {
    Schedule {
        name: name("often"),
        cron: "*/10 * * * * *".to_owned(),
        timezone: "UTC".to_owned(),
        instructions: Bytes::from_static(b"{}"),
        missed,
        overlap,
        since_ms: 0,
    }
}

/// A run every ten seconds, each of which takes so long.
fn running(run_time: Duration, strict: bool, schedule: Schedule) -> Cluster {
    let mut cluster = Cluster::new(3, &[("a", 4)]);
    cluster.run_time = run_time;
    let quorum = if strict { Quorum::Majority } else { Quorum::Any };
    let settings = Settings { accept: quorum, execute: quorum, ..Settings::default() };
    let phases = vec![PhaseInput::named(name("a"))];
    let mut definition = PipelineDef::with(name("p"), phases, settings).expect("a valid pipeline");
    let since_ms = WALL_ZERO_MS + cluster.now.as_millis();
    definition.schedules = vec![Schedule { since_ms, ..schedule }];
    cluster.apply_pipeline(0, definition);
    cluster.coordinator();
    cluster
}

fn jobs(cluster: &mut Cluster) -> Vec<JobSummary> {
    let (pipeline, limit) = (name("p"), 100);
    let request = Request::Jobs { pipeline, of: None, state: None, after: None, limit };
    match cluster.request(1, request) {
        Response::Jobs { jobs, .. } => jobs,
        other => panic!("{other:?}"),
    }
}

fn in_state(cluster: &mut Cluster, state: JobState) -> Vec<JobId> {
    let jobs = jobs(cluster).into_iter().filter(|job| job.state == state);
    jobs.map(|job| job.job).collect()
}

#[test]
fn what_was_left_out_is_not_run_by_the_next_coordinator() {
    for strict in [false, true] {
        let run_time = Duration::from_secs(25);
        let mut cluster = running(run_time, strict, schedule(Overlap::Skip, Missed::All));
        cluster.run_until("a run began", |cluster| cluster.runs.len() == 1);
        // Two more were due by now, and left out.
        cluster.run_for(Duration::from_secs(22));
        let left_out = in_state(&mut cluster, JobState::Cancelled);
        assert_eq!(left_out.len(), 2, "{:?}", jobs(&mut cluster));
        let view = cluster.job(0, left_out[0]);
        let note = view.invocations[0].note.clone().expect("a note");
        assert!(note.contains("overlap"), "{note}");
        cluster.run_for(Duration::from_secs(4));
        assert_eq!(in_state(&mut cluster, JobState::Succeeded).len(), 1);
        // Nothing is unfinished now: whoever looks at these runs for the first time would run them.
        let coordinator = cluster.coordinator();
        cluster.kill(coordinator);
        cluster.run_for(Duration::from_millis(100));
        cluster.start(coordinator);
        cluster.coordinator();
        cluster.run_for(Duration::from_secs(60));
        for job in left_out {
            assert!(!cluster.runs.contains_key(&(job, name("a"))), "strict: {strict}");
            assert_eq!(cluster.job(1, job).state, JobState::Cancelled);
        }
        assert!(cluster.runs.len() > 1, "later runs come");
        assert!(cluster.runs.values().all(|runs| *runs == 1), "{:?}", cluster.runs);
    }
}

#[test]
fn a_run_that_is_on_its_way_is_not_left_out_and_is_run_once() {
    let mut cluster =
        running(Duration::from_millis(1), false, schedule(Overlap::Skip, Missed::All));
    for _ in 0..4 {
        cluster.run_for(Duration::from_secs(17));
        let coordinator = cluster.coordinator();
        cluster.kill(coordinator);
        cluster.run_for(Duration::from_secs(8));
        cluster.start(coordinator);
        cluster.coordinator();
    }
    cluster.run_for(Duration::from_secs(20));
    assert!(cluster.runs.len() > 8, "{:?}", cluster.runs);
    assert!(cluster.runs.values().all(|runs| *runs == 1), "{:?}", cluster.runs);
}

#[test]
fn runs_that_are_made_good_do_not_overlap_either() {
    let mut cluster = running(Duration::from_secs(25), false, schedule(Overlap::Skip, Missed::All));
    (0..3).for_each(|at| cluster.kill(at));
    // Long enough for several runs to be due, each within five minutes.
    cluster.run_for(Duration::from_secs(65));
    (0..3).for_each(|at| cluster.start(at));
    cluster.coordinator();
    cluster.run_for(Duration::from_secs(5));
    assert_eq!(cluster.runs.len(), 1, "{:?}", cluster.runs);
    assert!(in_state(&mut cluster, JobState::Cancelled).len() >= 4, "{:?}", jobs(&mut cluster));
}

#[test]
fn what_was_left_out_may_be_run_by_hand() {
    let run_time = Duration::from_secs(25);
    let mut cluster = running(run_time, false, schedule(Overlap::Skip, Missed::Last));
    cluster.run_until("a run began", |cluster| cluster.runs.len() == 1);
    cluster.run_for(Duration::from_secs(15));
    let job = in_state(&mut cluster, JobState::Cancelled)[0];
    let (target, change) = (Target::Job(job), Change::Retry { from_start: false });
    cluster.request(2, Request::Change { target, change });
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
}

#[test]
fn where_runs_may_overlap_none_is_left_out() {
    let mut cluster =
        running(Duration::from_secs(25), false, schedule(Overlap::Allow, Missed::Last));
    cluster.run_for(Duration::from_secs(60));
    assert!(in_state(&mut cluster, JobState::Cancelled).is_empty());
    assert!(cluster.runs.len() >= 4, "{:?}", cluster.runs);
}
