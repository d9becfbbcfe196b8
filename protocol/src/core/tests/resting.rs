//! Jobs that wait take little memory, and are none the worse for it.

use std::time::Duration;

use crate::{
    id::JobId,
    io::{Change, NewJob, Refusal, Request, Response, Target},
    pipeline::{KeyedLimit, PhaseInput, PipelineDef, Settings},
    record::JobOptions,
    view::JobState,
};

use super::cluster::{Cluster, chain, name};

/// Three nodes that keep some ten jobs in memory, and whose workers do nothing yet.
fn crowded(definition: PipelineDef) -> Cluster {
    let mut cluster = Cluster::new(3, &[("a", 2), ("b", 2)]);
    for index in 0..3 {
        cluster.kill(index);
        cluster.nodes[index].config.limits.resident_bytes = 2000;
        cluster.start(index);
    }
    cluster.apply_pipeline(0, definition);
    cluster.coordinator();
    // All have a copy that counts.
    cluster.run_for(Duration::from_secs(5));
    cluster.automatic = false;
    cluster
}

fn settled(cluster: &mut Cluster) {
    cluster.run_for(Duration::from_millis(200));
}

/// How many jobs are in memory at a node, and how many rest.
fn memory(cluster: &Cluster, index: usize) -> (usize, usize) {
    let core = cluster.nodes[index].core.as_ref().expect("it runs");
    let group = core.groups.values().next().expect("one");
    (group.jobs.values().count(), group.jobs.resting())
}

fn let_go(cluster: &mut Cluster) {
    cluster.automatic = true;
    for index in 0..3 {
        for attempt in std::mem::take(&mut cluster.nodes[index].attempts) {
            let outcome = crate::io::Outcome::Succeeded("{}".into());
            cluster.finish(index, attempt.token, outcome);
        }
    }
}

#[test]
fn what_waits_is_on_disk_and_runs_in_its_turn() {
    let mut cluster = crowded(chain("p", &["a", "b"]));
    let jobs = cluster.enqueue_many(0, "p", 500);
    settled(&mut cluster);
    for index in 0..3 {
        let (resident, resting) = memory(&cluster, index);
        assert!(resident < 50 && resident + resting == 500, "{resident} and {resting}");
    }
    let_go(&mut cluster);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    assert_eq!(cluster.runs.len(), 1000);
    assert!(cluster.runs.values().all(|runs| *runs == 1));
    settled(&mut cluster);
    (0..3).for_each(|index| assert_eq!(memory(&cluster, index), (0, 0)));
}

#[test]
fn whoever_takes_over_runs_what_rests_the_most_urgent_first() {
    let mut cluster = crowded(chain("p", &["a"]));
    let mut jobs = cluster.enqueue_many(0, "p", 200);
    let options = JobOptions { priority: 9, ..JobOptions::default() };
    // Whoever traces it has it rest all the same.
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().ok();
    let urgent = NewJob { key: None, options, trace, instructions: "{}".into() };
    let request = Request::Enqueue { pipeline: name("p"), jobs: vec![urgent.clone(); 20] };
    let Response::Enqueued(receipts) = cluster.request(0, request) else { panic!("no receipt") };
    let urgent: Vec<JobId> =
        receipts.iter().map(|receipt| receipt.as_ref().expect("accepted").job).collect();
    settled(&mut cluster);
    for index in 0..3 {
        let (resident, resting) = memory(&cluster, index);
        assert!(resident < 50 && resident + resting == 220, "{resident} and {resting}");
        let group = cluster.nodes[index].core.as_ref().expect("it runs").groups.values().next();
        let rest = |job: &&JobId| group.is_some_and(|group| group.jobs.is_resting(job));
        assert!(urgent.iter().filter(rest).count() > 10);
    }
    let old = cluster.coordinator();
    cluster.kill(old);
    cluster.run_until("another", |cluster| cluster.coordinators().len() == 1);
    let before = cluster.began.len();
    let_go(&mut cluster);
    jobs.extend(&urgent);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    assert!(urgent.contains(&cluster.began[before].0));
}

#[test]
fn a_cluster_that_restarts_goes_on_with_what_rests() {
    let mut cluster = crowded(chain("p", &["a", "b"]));
    let jobs = cluster.enqueue_many(0, "p", 300);
    settled(&mut cluster);
    (0..3).for_each(|index| cluster.kill(index));
    (0..3).for_each(|index| cluster.start(index));
    for index in 0..3 {
        let (resident, resting) = memory(&cluster, index);
        assert!(resting > 200 && resident + resting == 300, "{resident} and {resting}");
    }
    cluster.automatic = true;
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
}

#[test]
fn a_replica_that_comes_back_hears_of_what_rests() {
    let mut cluster = crowded(chain("p", &["a"]));
    let coordinator = cluster.coordinator();
    let away = (0..3).find(|index| *index != coordinator).expect("another");
    cluster.kill(away);
    cluster.run_for(Duration::from_secs(5));
    let jobs = cluster.enqueue_many(coordinator, "p", 300);
    cluster.start(away);
    cluster.run_until("it has a copy", |cluster| {
        let (resident, resting) = memory(cluster, away);
        resident + resting == 300 && resting > 200
    });
    let_go(&mut cluster);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
}

#[test]
fn whoever_asks_for_what_rests_is_answered() {
    let mut cluster = crowded(chain("p", &["a"]));
    let jobs = cluster.enqueue_many(0, "p", 100);
    let keyed = cluster.enqueue(1, "p", Some("k"), "{\"x\":1}").expect("accepted").job;
    settled(&mut cluster);
    let again = cluster.enqueue(2, "p", Some("k"), "{\"x\":1}").expect("accepted");
    assert_eq!((again.job, again.existed), (keyed, true));
    let other = cluster.enqueue(2, "p", Some("k"), "{\"x\":2}").expect_err("a conflict");
    assert_eq!(other, Refusal::KeyConflict { key: "k".to_owned(), job: keyed });
    assert_eq!(cluster.job(1, jobs[99]).state, JobState::Queued);
    let wait = Some(Duration::from_secs(60));
    let waiting = cluster.ask(2, Request::Job { job: jobs[98], wait });
    let cancel = |job: JobId| Request::Change {
        target: Target::Job(job),
        change: Change::Cancel { reason: "enough".to_owned() },
    };
    cluster.request(0, cancel(jobs[97]));
    assert_eq!(cluster.job(1, jobs[97]).state, JobState::Cancelled);
    let resting: usize = (0..3).map(|index| memory(&cluster, index).1).sum();
    assert!(resting > 200, "{resting}");
    let_go(&mut cluster);
    match cluster.answered(waiting) {
        Response::Job(view) => assert_eq!(view.state, JobState::Succeeded),
        other => panic!("{other:?}"),
    }
    cluster.wait_for(0, keyed);
    assert_eq!(cluster.runs.get(&(jobs[97], name("a"))), None);
}

#[test]
fn all_that_rests_is_queued_after_a_takeover_where_there_is_room_by_then() {
    let settings = Settings { fair_by: Some("/of".to_owned()), ..Settings::default() };
    let definition = PipelineDef::with(name("p"), vec![PhaseInput::named(name("a"))], settings);
    let mut cluster = crowded(definition.expect("a valid pipeline"));
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.extend(cluster.enqueue_many(0, "p", 500));
        settled(&mut cluster);
    }
    for node in &mut cluster.nodes {
        node.core.as_mut().expect("it runs").config.limits.resident_bytes = 1 << 20;
    }
    let old = cluster.coordinator();
    cluster.kill(old);
    cluster.run_until("another", |cluster| cluster.coordinators().len() == 1);
    let_go(&mut cluster);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
}

#[test]
fn owners_come_in_turn_after_a_takeover_too() {
    let settings = Settings { fair_by: Some("/of".to_owned()), ..Settings::default() };
    let definition = PipelineDef::with(name("p"), vec![PhaseInput::named(name("a"))], settings);
    let mut cluster = crowded(definition.expect("a valid pipeline"));
    let mut enqueue = |of: &str, count: usize| -> Vec<JobId> {
        let instructions = format!("{{\"of\":\"{of}\"}}");
        let one = |_| cluster.enqueue(0, "p", None, &instructions).expect("accepted").job;
        (0..count).map(one).collect()
    };
    let (many, few) = (enqueue("many", 60), enqueue("few", 2));
    settled(&mut cluster);
    let old = cluster.coordinator();
    cluster.kill(old);
    cluster.run_until("another", |cluster| cluster.coordinators().len() == 1);
    let before = cluster.began.len();
    let_go(&mut cluster);
    cluster.run_until("all done", |cluster| {
        cluster.all_succeeded(&many) && cluster.all_succeeded(&few)
    });
    let first: Vec<JobId> = cluster.began[before..].iter().take(8).map(|it| it.0).collect();
    assert!(few.iter().all(|job| first.contains(job)), "{first:?}");
}

#[test]
fn jobs_that_a_limit_holds_back_rest_again_after_a_takeover() {
    let limit = KeyedLimit { key: "/of".to_owned(), running: 1 };
    let phase = PhaseInput { limit: Some(limit), ..PhaseInput::named(name("a")) };
    let definition = PipelineDef::with(name("p"), vec![phase], Settings::default());
    let mut cluster = crowded(definition.expect("a valid pipeline"));
    let mut enqueue = |of: &str, count: usize| -> Vec<JobId> {
        let instructions = format!("{{\"of\":\"{of}\"}}").into();
        let (key, options, trace) = (None, JobOptions::default(), None);
        let jobs = vec![NewJob { key, options, trace, instructions }; count];
        let request = Request::Enqueue { pipeline: name("p"), jobs };
        let Response::Enqueued(receipts) = cluster.request(0, request) else { panic!("none") };
        settled(&mut cluster);
        receipts.into_iter().map(|receipt| receipt.expect("accepted").job).collect()
    };
    let mut jobs: Vec<JobId> = (0..3).flat_map(|_| enqueue("many", 500)).collect();
    let few = enqueue("few", 1);
    jobs.extend(&few);
    let old = cluster.coordinator();
    cluster.kill(old);
    cluster.run_until("another", |cluster| cluster.coordinators().len() == 1);
    cluster.run_until("another's turn has come", |cluster| {
        cluster.began.iter().any(|began| began.0 == few[0])
    });
    let new = cluster.coordinator();
    let (resident, resting) = memory(&cluster, new);
    assert!(resident < 100 && resident + resting > 1400, "{resident} and {resting}");
    let_go(&mut cluster);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
}
