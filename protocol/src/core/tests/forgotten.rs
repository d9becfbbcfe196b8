//! Nodes that were away for longer than it is kept in mind what was forgotten.

use std::time::Duration;

use crate::{
    config::Timing,
    id::{DiskId, JobId, PipelineId},
    io::{Change, Input, NewJob, Outcome, Request, Response, Target},
    pipeline::{Keep, PhaseInput, PipelineDef, Quorum, Retention, Settings},
    placement::rank,
    record::{JobOptions, JobRecord},
    view::JobState,
};

use super::{PHASES, cluster::Cluster, cluster::name};

const KEPT: Duration = Duration::from_secs(2);
const MARKS_KEPT: Duration = Duration::from_secs(60);
const REPLACED_AFTER: Duration = Duration::from_secs(10);

/// Four nodes, three of which keep each job until shortly after its end.
fn forgetful() -> Cluster {
    forgetful_with(Quorum::Any)
}

fn forgetful_with(quorum: Quorum) -> Cluster {
    forgetful_of(&["a"], quorum)
}

fn forgetful_of(phases: &[&str], quorum: Quorum) -> Cluster {
    let phases = phases.iter().map(|phase| PhaseInput::named(name(phase))).collect();
    forgetful_for(KEPT, phases, quorum)
}

/// Four nodes that keep jobs for so long after their end.
fn forgetful_for(kept: Duration, phases: Vec<PhaseInput>, quorum: Quorum) -> Cluster {
    let timing =
        Timing { tombstones: MARKS_KEPT, replace_after: REPLACED_AFTER, ..Timing::DEFAULT };
    let mut cluster = Cluster::with_timing(4, &PHASES, timing);
    let keep = Keep { age: Some(kept), count: None };
    // What is set aside stays for the operator.
    let retention = Retention { succeeded: keep, dead: keep, ..Retention::DEFAULT };
    let settings = Settings { accept: quorum, execute: quorum, retention, ..Settings::default() };
    let definition = PipelineDef::with(name("p"), phases, settings);
    cluster.apply_pipeline(0, definition.expect("a valid pipeline"));
    cluster.coordinator();
    cluster.run_for(Duration::from_secs(3));
    cluster
}

fn pipeline() -> PipelineId {
    PipelineId::of_name("p")
}

fn record(cluster: &Cluster, index: usize, job: JobId) -> Option<JobRecord> {
    let core = cluster.nodes[index].core.as_ref()?;
    core.record(pipeline(), job).expect("the disk can be read")
}

/// Waits until nobody who is here has so much as a mark of a job.
fn wait_until_forgotten(cluster: &mut Cluster, job: JobId) {
    cluster.run_for(REPLACED_AFTER + MARKS_KEPT);
    cluster.run_until("nothing is kept", |cluster| {
        (0..4).all(|index| record(cluster, index, job).is_none())
    });
}

/// A replica, and whether it is to be the coordinator.
fn replica(cluster: &mut Cluster, job: JobId, coordinates: bool) -> usize {
    let coordinator = cluster.coordinator();
    let holds = |index: &usize| record(cluster, *index, job).is_some();
    let fits = |index: &usize| (*index == coordinator) == coordinates;
    (0..4).filter(holds).find(fits).expect("three keep it")
}

fn runs(cluster: &Cluster, job: JobId) -> u32 {
    cluster.runs.iter().filter(|((of, _), _)| *of == job).map(|(_, runs)| *runs).sum()
}

/// A job that does not begin within any test.
fn enqueue_for_later(cluster: &mut Cluster, key: Option<&str>) -> JobId {
    let options = JobOptions { not_before_ms: u64::MAX, ..JobOptions::default() };
    let key = key.map(Into::into);
    let job = NewJob { key, options, trace: None, instructions: "{\"x\":1}".into() };
    let coordinator = cluster.coordinator();
    let request = Request::Enqueue { pipeline: name("p"), jobs: vec![job] };
    let Response::Enqueued(told) = cluster.request(coordinator, request) else { panic!("none") };
    told[0].as_ref().expect("accepted").job
}

fn has_ended_anywhere(cluster: &Cluster, job: JobId) -> bool {
    (0..4).any(|index| record(cluster, index, job).is_some_and(|it| it.is_over()))
}

/// A replica goes away; its key gets another job, which nobody finishes; the replica comes back.
fn use_key_again_while_one_is_away(cluster: &mut Cluster, job: JobId) {
    let away = replica(cluster, job, false);
    cluster.kill(away);
    wait_until_forgotten(cluster, job);
    cluster.automatic = false;
    let coordinator = cluster.coordinator();
    let again = cluster.enqueue(coordinator, "p", Some("k"), "{\"x\":1}").expect("free again");
    assert_eq!((again.job, again.existed), (job, false));
    cluster.start(away);
    cluster.run_for(Duration::from_secs(20));
}

#[test]
fn an_old_mark_does_not_take_a_job_that_has_its_key_anew() {
    let mut cluster = forgetful();
    let job = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted").job;
    cluster.run_until("a mark is all", |cluster| {
        (0..4).all(|index| record(cluster, index, job).is_none_or(|it| it.is_reaped()))
    });
    cluster.run_for(Duration::from_secs(1));
    use_key_again_while_one_is_away(&mut cluster, job);
    for index in 0..4 {
        let held = record(&cluster, index, job);
        assert!(held.is_none_or(|it| it.spec.is_some()), "node {index} lost it");
    }
    // Wherever it ran, it runs to its end.
    cluster.automatic = true;
    for index in 0..4 {
        for attempt in std::mem::take(&mut cluster.nodes[index].attempts) {
            cluster.finish(index, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
}

#[test]
fn an_old_end_does_not_end_a_job_that_has_its_key_anew() {
    let mut cluster = forgetful();
    let job = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted").job;
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    cluster.run_for(Duration::from_millis(500));
    use_key_again_while_one_is_away(&mut cluster, job);
    assert!(!has_ended_anywhere(&cluster, job), "nobody finished it");
}

#[test]
fn nor_does_it_when_others_are_lost_as_it_comes_back() {
    for all in [true, false] {
        let mut cluster = forgetful();
        use_key_again_and_lose_others(&mut cluster, all);
    }
}

fn use_key_again_and_lose_others(cluster: &mut Cluster, all: bool) {
    let job = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted").job;
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    cluster.run_for(Duration::from_millis(500));
    let away = replica(cluster, job, false);
    cluster.kill(away);
    wait_until_forgotten(cluster, job);
    assert_eq!(enqueue_for_later(cluster, Some("k")), job);
    let coordinator = cluster.coordinator();
    let lost: Vec<usize> = match all {
        true => (0..4).filter(|index| *index != away).collect(),
        false => vec![coordinator],
    };
    lost.iter().for_each(|index| cluster.kill(*index));
    cluster.start(away);
    lost.iter().filter(|_| all).for_each(|index| cluster.start(*index));
    cluster.run_for(Duration::from_secs(40));
    assert!(!has_ended_anywhere(cluster, job), "nobody finished it");
}

#[test]
fn nor_does_it_whoever_decides_and_however_old_that_job_is() {
    for quorum in [Quorum::Any, Quorum::Majority] {
        for older_than_marks in [false, true] {
            let mut cluster = forgetful_with(quorum);
            let job = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted").job;
            cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
            cluster.run_for(Duration::from_millis(500));
            let away = replica(&mut cluster, job, false);
            cluster.kill(away);
            wait_until_forgotten(&mut cluster, job);
            assert_eq!(enqueue_for_later(&mut cluster, Some("k")), job);
            if older_than_marks {
                cluster.run_for(MARKS_KEPT * 2);
            }
            cluster.start(away);
            cluster.run_for(Duration::from_secs(40));
            assert!(!has_ended_anywhere(&cluster, job), "{quorum:?}, {older_than_marks}");
        }
    }
}

/// The one that keeps jobs only while another is away, one that does and does not coordinate, and a
/// job that the first has seen ending, when it stood in for the second.
fn stood_in(cluster: &mut Cluster) -> (usize, usize, JobId) {
    let ranked = rank(pipeline(), cluster.nodes.iter().map(|node| node.config.node));
    let ranked: Vec<usize> = ranked.into_iter().map(|node| cluster.index_of(node)).collect();
    let (coordinator, stale) = (cluster.coordinator(), ranked[3]);
    let away = ranked.into_iter().find(|index| ![coordinator, stale].contains(index));
    let away = away.expect("three keep jobs");
    // Something is always unfinished, so that nobody compares what has ended of itself.
    enqueue_for_later(cluster, None);
    cluster.kill(away);
    cluster.run_for(Duration::from_secs(3));
    let job = cluster.enqueue(coordinator, "p", Some("k"), "{}").expect("accepted").job;
    cluster.run_until("a stand-in has its end", |cluster| {
        record(cluster, stale, job).is_some_and(|it| it.is_over())
    });
    cluster.run_for(Duration::from_millis(100));
    cluster.kill(stale);
    cluster.start(away);
    (stale, away, job)
}

#[test]
fn nor_does_it_when_it_has_stood_in_for_another_meanwhile() {
    let mut cluster = forgetful();
    let (stale, away, job) = stood_in(&mut cluster);
    cluster.run_for(Duration::from_secs(25));
    // It is not told what was forgotten before, and does not count as knowing it.
    cluster.kill(away);
    cluster.run_for(Duration::from_secs(3));
    cluster.start(stale);
    cluster.run_for(Duration::from_secs(5));
    cluster.kill(stale);
    cluster.start(away);
    cluster.run_until("nothing is kept", |cluster| {
        (0..4).all(|index| record(cluster, index, job).is_none())
    });
    assert_eq!(enqueue_for_later(&mut cluster, Some("k")), job);
    cluster.start(stale);
    cluster.run_for(Duration::from_secs(20));
    assert!(!has_ended_anywhere(&cluster, job), "nobody finished it");
}

#[test]
fn nor_does_it_take_the_place_of_one_where_a_stale_copy_stands_in_for_another() {
    let mut cluster =
        forgetful_for(Duration::from_secs(40), vec![PhaseInput::named(name("a"))], Quorum::Any);
    let (stale, away, job) = stood_in(&mut cluster);
    wait_until_forgotten(&mut cluster, job);
    let coordinator = cluster.coordinator();
    let again = cluster.enqueue(coordinator, "p", Some("k"), "{\"x\":1}").expect("free again");
    assert_eq!((again.job, again.existed), (job, false));
    cluster.run_until("done again", |cluster| cluster.all_succeeded(&[job]));
    // The stale copy is back, stands in, and gets the place for good.
    cluster.kill(away);
    cluster.run_for(Duration::from_secs(3));
    cluster.start(stale);
    cluster.run_for(REPLACED_AFTER + Duration::from_secs(5));
    for index in (0..4).filter(|index| *index != away) {
        let spec = record(&cluster, index, job).and_then(|record| record.spec).expect("known");
        assert_eq!(spec.instructions, "{\"x\":1}", "node {index} has the old one");
    }
}

/// A job runs when one who keeps it goes away; the others finish and forget it.
fn forgotten_while_away(cluster: &mut Cluster, coordinates: bool) -> (JobId, usize) {
    cluster.run_time = Duration::from_secs(5);
    let job = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted").job;
    cluster.run_for(Duration::from_secs(1));
    let away = replica(cluster, job, coordinates);
    cluster.kill(away);
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    wait_until_forgotten(cluster, job);
    (job, away)
}

/// The same, and its coordinator is lost as the node comes back. Says how often the job has run.
fn lose_coordinator_as_one_comes_back(cluster: &mut Cluster) -> (JobId, u32) {
    let (job, away) = forgotten_while_away(cluster, false);
    let ran = runs(cluster, job);
    let coordinator = cluster.coordinator();
    cluster.kill(coordinator);
    cluster.start(away);
    (job, ran)
}

/// An operator can find what the node brought back, and nobody runs it.
fn assert_set_aside(cluster: &mut Cluster, job: JobId, ran: u32) {
    cluster.run_for(Duration::from_secs(30));
    assert_eq!(runs(cluster, job), ran, "it ran again");
    let states = (0..4).filter_map(|index| record(cluster, index, job)).map(|it| it.state());
    let states: Vec<JobState> = states.collect();
    assert!(states.iter().all(|state| *state == JobState::Cancelled), "{states:?}");
}

#[test]
fn what_was_forgotten_meanwhile_does_not_run_again() {
    let mut cluster = forgetful();
    let (job, away) = forgotten_while_away(&mut cluster, false);
    let ran = runs(&cluster, job);
    cluster.start(away);
    assert_set_aside(&mut cluster, job, ran);
}

#[test]
fn nor_does_it_look_as_if_its_time_had_run_out() {
    for quorum in [Quorum::Any, Quorum::Majority] {
        let timeout = Some(Duration::from_secs(20));
        let awaited = PhaseInput::named(name("b"));
        let awaited = PhaseInput { wait_for: Some(name("go")), timeout, ..awaited };
        let phases = vec![PhaseInput::named(name("a")), awaited];
        let mut cluster = forgetful_for(KEPT, phases, quorum);
        let job = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted").job;
        cluster.run_until("it waits", |cluster| runs(cluster, job) == 1);
        cluster.run_for(Duration::from_secs(1));
        let away = replica(&mut cluster, job, false);
        cluster.kill(away);
        let change = Change::Signal { name: name("go"), data: Ok("{}".into()) };
        let coordinator = cluster.coordinator();
        let target = Target::Job(job);
        cluster.request(coordinator, Request::Change { target, change });
        cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
        wait_until_forgotten(&mut cluster, job);
        cluster.start(away);
        assert_set_aside(&mut cluster, job, 1);
    }
}

#[test]
fn nor_when_the_coordinator_is_lost_as_the_node_comes_back() {
    let mut cluster = forgetful();
    let (job, ran) = lose_coordinator_as_one_comes_back(&mut cluster);
    assert_set_aside(&mut cluster, job, ran);
}

#[test]
fn nor_when_all_restart_and_the_node_stands_first() {
    let mut cluster = forgetful();
    let (job, away) = forgotten_while_away(&mut cluster, true);
    let ran = runs(&cluster, job);
    (0..4).for_each(|index| cluster.kill(index));
    (0..4).for_each(|index| cluster.start(index));
    assert!(record(&cluster, away, job).is_some(), "it still has a copy");
    assert_set_aside(&mut cluster, job, ran);
}

#[test]
fn nor_when_who_takes_over_has_to_begin_again() {
    let mut cluster = forgetful();
    let (job, ran) = lose_coordinator_as_one_comes_back(&mut cluster);
    let doubts = |cluster: &Cluster, index: &usize| {
        let core = cluster.nodes[*index].core.as_ref();
        core.is_some_and(|core| !core.groups[&pipeline()].doubtful.is_empty())
    };
    cluster.run_until("one takes over", |cluster| (0..4).any(|index| doubts(cluster, &index)));
    let elected = (0..4).find(|index| doubts(&cluster, index)).expect("it takes over");
    cluster.nodes[elected].core.as_mut().expect("it runs").step_down(pipeline());
    assert_set_aside(&mut cluster, job, ran);
}

#[test]
fn a_job_that_has_the_key_anew_wins_over_the_one_that_was_forgotten() {
    let mut cluster = forgetful();
    let (job, away) = forgotten_while_away(&mut cluster, false);
    let ran = runs(&cluster, job);
    let coordinator = cluster.coordinator();
    let again = cluster.enqueue(coordinator, "p", Some("k"), "{\"x\":1}").expect("free again");
    assert_eq!((again.job, again.existed), (job, false));
    cluster.start(away);
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    assert_eq!(runs(&cluster, job), ran + 1);
}

#[test]
fn a_cluster_that_was_off_for_long_goes_on_as_if_nothing_had_been() {
    let mut cluster = forgetful();
    cluster.automatic = false;
    let jobs = cluster.enqueue_many(0, "p", 20);
    cluster.run_for(Duration::from_secs(1));
    (0..4).for_each(|index| cluster.kill(index));
    cluster.run_for(MARKS_KEPT * 3);
    cluster.automatic = true;
    (0..4).for_each(|index| cluster.start(index));
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
}

#[test]
fn nor_does_it_where_a_majority_decides() {
    for coordinates in [false, true] {
        let mut cluster = forgetful_with(Quorum::Majority);
        let (job, away) = forgotten_while_away(&mut cluster, coordinates);
        let ran = runs(&cluster, job);
        (0..4).for_each(|index| cluster.kill(index));
        // Whoever was away has a say in who coordinates, or stands itself.
        cluster.start(away);
        (0..4).filter(|index| *index != away).for_each(|index| cluster.start(index));
        assert!(record(&cluster, away, job).is_some(), "it still has a copy");
        assert_set_aside(&mut cluster, job, ran);
    }
}

#[test]
fn who_founds_a_group_anew_learns_what_others_held_of_old_jobs() {
    for behind in 0..4 {
        let mut cluster = forgetful_of(&["a", "b"], Quorum::Any);
        cluster.automatic = false;
        let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
        cluster.run_for(MARKS_KEPT * 2);
        let begun = |cluster: &Cluster, step: &str| {
            let mut nodes = cluster.nodes.iter().enumerate();
            nodes.find_map(|(at, node)| {
                let attempt = node.attempts.iter().find(|it| it.step.as_str() == step)?;
                Some((at, attempt.token))
            })
        };
        cluster.run_until("the first phase runs", |cluster| begun(cluster, "a").is_some());
        let (at, token) = begun(&cluster, "a").expect("it runs");
        let backup = cluster.nodes[behind].disk.rows();
        cluster.finish(at, token, Outcome::Succeeded("{}".into()));
        cluster.run_until("the second runs", |cluster| begun(cluster, "b").is_some());
        let ran = cluster.runs[&(job, name("a"))];
        // All come back on disks that count for nothing, and one without the first phase's end.
        (0..4).for_each(|index| cluster.kill(index));
        cluster.nodes[behind].disk.set_rows(backup);
        for (index, node) in cluster.nodes.iter_mut().enumerate() {
            node.config.disk = DiskId(100 + index as u64);
        }
        (0..4).for_each(|index| cluster.start(index));
        cluster.run_until("the second runs again", |cluster| begun(cluster, "b").is_some());
        cluster.run_for(Duration::from_secs(30));
        assert_eq!(cluster.runs[&(job, name("a"))], ran, "what was done is done again");
    }
}

#[test]
fn what_one_side_of_a_long_cut_forgot_does_not_run_again_when_the_other_comes_back() {
    let mut cluster = forgetful();
    cluster.automatic = false;
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    // It lives on and coordinates for itself, in an earlier term, and has no worker.
    let apart = cluster.coordinator();
    cluster.input(apart, Input::Offers(Vec::new()));
    let others: Vec<usize> = (0..4).filter(|index| *index != apart).collect();
    others.iter().for_each(|other| cluster.disconnect(apart, *other));
    let begun = |cluster: &Cluster| {
        let at = others.iter().find(|at| !cluster.nodes[**at].attempts.is_empty());
        at.map(|at| (*at, cluster.nodes[*at].attempts[0].token))
    };
    cluster.run_until("it runs with the others", |cluster| begun(cluster).is_some());
    let (at, token) = begun(&cluster).expect("it runs");
    cluster.finish(at, token, Outcome::Succeeded("{}".into()));
    cluster.run_for(KEPT + REPLACED_AFTER + MARKS_KEPT * 2);
    assert!(others.iter().all(|index| record(&cluster, *index, job).is_none()), "forgotten");
    assert!(record(&cluster, apart, job).is_some(), "but not beyond the cut");
    let ran = runs(&cluster, job);
    others.iter().for_each(|other| cluster.connect(apart, *other));
    assert_set_aside(&mut cluster, job, ran);
}
