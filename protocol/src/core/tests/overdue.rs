//! Workers that keep what they were given.

use std::time::Duration;

use super::cluster::{Cluster, name};
use crate::{
    config::Timing,
    id::PipelineId,
    io::Outcome,
    pipeline::{PhaseInput, PipelineDef},
};

const TIMEOUT: Duration = Duration::from_secs(5);

/// Three nodes, with a pipeline of one phase that may take five seconds.
fn timed() -> Cluster {
    let timing = Timing { overdue: Duration::from_secs(5), ..Timing::DEFAULT };
    let mut cluster = Cluster::with_timing(3, &[("a", 4)], timing);
    let step = PhaseInput { timeout: Some(TIMEOUT), ..PhaseInput::named(name("a")) };
    cluster.apply_pipeline(0, PipelineDef::new(name("p"), vec![step]).expect("a pipeline"));
    cluster.run_for(Duration::from_secs(2));
    cluster.automatic = false;
    cluster
}

/// How long the node says that another is left out.
fn left_out(cluster: &Cluster, at: usize, other: usize) -> Option<Duration> {
    let node = cluster.nodes[other].config.node;
    let view = cluster.nodes[at].core.as_ref().expect("it runs").cluster_view();
    view.members.into_iter().find(|member| member.node == node).and_then(|member| member.avoided)
}

#[test]
fn an_attempt_that_its_worker_does_not_end_is_given_to_another_and_the_worker_left_out() {
    let mut cluster = timed();
    let coordinator = cluster.coordinator();
    let jobs = cluster.enqueue_many(0, "p", 3);
    cluster.run_for(Duration::from_millis(100));
    let stuck = (0..3).find(|at| *at != coordinator).expect("another");
    assert_eq!(cluster.nodes[stuck].attempts.len(), 1, "one for each");
    // The others keep to the time-out; this one says that it is at it, for ever.
    for at in (0..3).filter(|at| *at != stuck) {
        for attempt in std::mem::take(&mut cluster.nodes[at].attempts) {
            cluster.finish(at, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    cluster.run_for(Duration::from_secs(14));
    assert_eq!(cluster.runs.values().max(), Some(&1), "it has time yet");
    cluster.automatic = true;
    let took = cluster.run_until("another runs it", |it| it.all_succeeded(&jobs));
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(left_out(&cluster, coordinator, stuck).is_some_and(|it| it <= Duration::from_secs(10)));
    assert_eq!(cluster.runs.values().sum::<u32>() as usize, jobs.len() + 1);

    // It gets nothing for a while, then it does again.
    let before = cluster.nodes[stuck].started;
    let more = cluster.enqueue_many(0, "p", 12);
    cluster.run_until("all done", |it| it.all_succeeded(&more));
    assert_eq!(cluster.nodes[stuck].started, before);
    cluster.run_for(Duration::from_secs(11));
    assert_eq!(left_out(&cluster, coordinator, stuck), None);
    let more = cluster.enqueue_many(0, "p", 12);
    cluster.run_until("all done", |it| it.all_succeeded(&more));
    assert!(cluster.nodes[stuck].started > before);
}

#[test]
fn a_worker_that_does_it_again_is_left_out_for_longer() {
    let mut cluster = timed();
    let coordinator = cluster.coordinator();
    let stuck = (0..3).find(|at| *at != coordinator).expect("another");
    let mut last = Duration::ZERO;
    for _ in 0..2 {
        cluster.enqueue_many(0, "p", 3);
        cluster.run_until("it keeps one", |it| left_out(it, coordinator, stuck).is_some());
        let pause = left_out(&cluster, coordinator, stuck).expect("it is");
        assert!(pause > last + Duration::from_secs(5), "{pause:?} after {last:?}");
        last = pause;
        cluster.run_until("it is over", |it| left_out(it, coordinator, stuck).is_none());
        for at in 0..3 {
            for attempt in std::mem::take(&mut cluster.nodes[at].attempts) {
                if at != stuck {
                    cluster.finish(at, attempt.token, Outcome::Succeeded("{}".into()));
                }
            }
        }
    }
}

#[test]
fn a_worker_that_lies_about_its_slots_holds_jobs_up_once_and_gets_one_at_a_time_then() {
    let mut cluster = timed();
    let coordinator = cluster.coordinator();
    let liar = (0..3).find(|at| *at != coordinator).expect("another");
    cluster.kill(liar);
    cluster.nodes[liar].config.phases = [(name("a"), 1000)].into();
    cluster.start(liar);
    cluster.run_for(Duration::from_secs(2));
    assert_eq!(cluster.coordinator(), coordinator);
    let jobs = cluster.enqueue_many(coordinator, "p", 100);
    cluster.run_for(Duration::from_millis(100));
    let taken = cluster.nodes[liar].attempts.len();
    assert!(taken > 80, "it was believed: {taken}");

    // It ends none of them; all others do.
    cluster.automatic = true;
    for at in (0..3).filter(|at| *at != liar) {
        for attempt in std::mem::take(&mut cluster.nodes[at].attempts) {
            cluster.finish(at, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    let took = cluster.run_until("others run them", |it| it.all_succeeded(&jobs));
    assert!(took < Duration::from_secs(18), "{took:?}");
    assert!(left_out(&cluster, coordinator, liar).is_some());

    // Whatever it says, it gets no more than it has shown to do.
    cluster.run_until("it is over", |it| left_out(it, coordinator, liar).is_none());
    cluster.automatic = false;
    cluster.enqueue_many(coordinator, "p", 50);
    cluster.run_for(Duration::from_secs(1));
    assert_eq!(cluster.nodes[liar].attempts.len(), 1);
}

#[test]
fn an_end_that_comes_too_late_does_not_move_when_its_job_ended() {
    let mut cluster = timed();
    let coordinator = cluster.coordinator();
    let jobs = cluster.enqueue_many(0, "p", 3);
    cluster.run_for(Duration::from_millis(100));
    let away = (0..3).find(|at| *at != coordinator).expect("another");
    let late = std::mem::take(&mut cluster.nodes[away].attempts).remove(0);
    for at in (0..3).filter(|at| *at != away) {
        for attempt in std::mem::take(&mut cluster.nodes[at].attempts) {
            cluster.finish(at, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    cluster.disconnect(coordinator, away);
    cluster.automatic = true;
    cluster.run_until("another runs it", |it| it.all_succeeded(&jobs));
    cluster.run_for(Duration::from_secs(1));
    let ended = cluster.job(coordinator, late.job).finished_ms;
    assert!(ended.is_some());
    cluster.finish(away, late.token, Outcome::Succeeded("{}".into()));
    cluster.connect(coordinator, away);
    let noted = |cluster: &Cluster| {
        let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
        let record = core.record(PipelineId::of_name("p"), late.job).expect("readable");
        record.is_some_and(|record| record.controls[&0].late_count == 1)
    };
    cluster.run_until("it is noted", noted);
    assert_eq!(cluster.job(coordinator, late.job).finished_ms, ended);
}
