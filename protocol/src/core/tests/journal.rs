//! What changes of unfinished jobs is on disk from the first, though few of them have rows of their own.

use std::time::Duration;

use crate::{
    config::Timing,
    id::{JobId, PipelineId},
    io::{Change, NewJob, Outcome, Request, Response, Target},
    pipeline::{Keep, PhaseInput, PipelineDef, Retention, Settings},
    record::JobOptions,
    store::Table,
    view::JobState,
};

use super::cluster::{Cluster, chain, name};

/// One node, whose journal holds so much.
fn alone(bytes: usize, jobs: usize) -> Cluster {
    let mut cluster = Cluster::new(1, &[("a", 100), ("b", 100)]);
    cluster.kill(0);
    cluster.nodes[0].config.limits.journal_bytes = bytes;
    cluster.nodes[0].config.limits.journal_jobs = jobs;
    cluster.start(0);
    cluster.apply_pipeline(0, chain("p", &["a", "b"]));
    cluster.coordinator();
    cluster.automatic = false;
    cluster
}

fn begun(cluster: &mut Cluster, count: usize) {
    cluster.run_until("they run", |cluster| cluster.nodes[0].attempts.len() == count);
}

fn end(cluster: &mut Cluster, count: usize) {
    let attempts: Vec<_> = cluster.nodes[0].attempts.drain(..count).collect();
    for attempt in attempts {
        cluster.finish(0, attempt.token, Outcome::Succeeded("{}".into()));
    }
}

/// How many rows a table has.
fn rows(cluster: &Cluster, table: Table) -> usize {
    cluster.nodes[0].disk.rows().keys().filter(|(of, _)| *of == table).count()
}

/// All are done, and that is on disk.
fn done(cluster: &mut Cluster, jobs: usize) {
    cluster.run_until("all done", |cluster| rows(cluster, Table::Ended) == jobs);
}

fn restart(cluster: &mut Cluster) {
    cluster.kill(0);
    cluster.start(0);
    cluster.coordinator();
}

#[test]
fn a_job_has_rows_of_its_own_when_it_is_over() {
    let mut cluster = alone(1 << 20, 1000);
    cluster.enqueue_many(0, "p", 10);
    begun(&mut cluster, 10);
    assert_eq!((rows(&cluster, Table::Jobs), rows(&cluster, Table::Live)), (10, 0));
    end(&mut cluster, 10);
    begun(&mut cluster, 10);
    assert_eq!((rows(&cluster, Table::Jobs), rows(&cluster, Table::Live)), (10, 0));
    end(&mut cluster, 10);
    done(&mut cluster, 10);
    // What was enqueued, and what its two phases ended as.
    assert_eq!((rows(&cluster, Table::Jobs), rows(&cluster, Table::Live)), (30, 0));
}

#[test]
fn a_start_finds_what_only_the_journal_has() {
    let mut cluster = alone(1 << 20, 1000);
    let jobs = cluster.enqueue_many(0, "p", 10);
    begun(&mut cluster, 10);
    end(&mut cluster, 4);
    begun(&mut cluster, 10);
    restart(&mut cluster);
    // Nobody has the attempts any more: the first phase of four is done, once.
    cluster.automatic = true;
    done(&mut cluster, jobs.len());
    assert_eq!(rows(&cluster, Table::Live), 0);
    let first = |job: &JobId| cluster.runs[&(*job, name("a"))];
    let again = jobs.iter().filter(|job| first(job) == 2).count();
    assert_eq!(again, 6);
}

#[test]
fn what_is_too_much_for_the_journal_gets_rows() {
    for (bytes, most) in [(1 << 20, 4), (300, 1000), (0, 0)] {
        let mut cluster = alone(bytes, most);
        let mut jobs = Vec::new();
        for _ in 0..10 {
            jobs.extend(cluster.enqueue_many(0, "p", 2));
            begun(&mut cluster, jobs.len());
        }
        let (listed, changed) = (rows(&cluster, Table::Live), rows(&cluster, Table::Jobs) - 20);
        assert_eq!(listed, 20 - most.min(20));
        assert!(if bytes < 1000 { changed > 10 } else { changed == 0 }, "{changed} with {bytes}");
        restart(&mut cluster);
        assert_eq!(rows(&cluster, Table::Live), 20);
        cluster.automatic = true;
        done(&mut cluster, jobs.len());
        assert_eq!(rows(&cluster, Table::Live), 0);
        assert_eq!(rows(&cluster, Table::Jobs), 60);
    }
}

#[test]
fn a_job_that_was_begun_anew_is_unfinished_after_a_start() {
    let mut cluster = alone(1 << 20, 1000);
    let job = cluster.enqueue_many(0, "p", 1)[0];
    begun(&mut cluster, 1);
    let attempt = cluster.nodes[0].attempts.remove(0);
    let outcome = Outcome::Failed { error: "no".to_owned(), retry: false, after: None };
    cluster.finish(0, attempt.token, outcome);
    cluster.run_until("it is dead", |cluster| rows(cluster, Table::Ended) == 1);
    let change = Change::Retry { from_start: false };
    cluster.request(0, Request::Change { target: Target::Job(job), change });
    begun(&mut cluster, 1);
    restart(&mut cluster);
    assert_eq!((rows(&cluster, Table::Live), rows(&cluster, Table::Ended)), (1, 0));
    cluster.automatic = true;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
}

#[test]
fn a_journal_has_so_many_rows_and_no_more() {
    let mut cluster = alone(1 << 20, 100_000);
    cluster.automatic = true;
    for _ in 0..1200 {
        let job = cluster.enqueue_many(0, "p", 1)[0];
        cluster.run_until("it is done", |cluster| cluster.all_succeeded(&[job]));
    }
    cluster.run_for(Duration::from_secs(1));
    assert!((1000..=2048).contains(&rows(&cluster, Table::Journal)));
    restart(&mut cluster);
    cluster.run_for(Duration::from_secs(1));
    assert_eq!(rows(&cluster, Table::Journal), 0);
}

#[test]
fn a_journal_keeps_no_job_that_is_over() {
    let mut cluster = alone(0, 1000);
    let jobs = cluster.enqueue_many(0, "p", 10);
    begun(&mut cluster, 10);
    assert_eq!(rows(&cluster, Table::Journal), 1);
    cluster.automatic = true;
    end(&mut cluster, 10);
    done(&mut cluster, jobs.len());
    assert_eq!(rows(&cluster, Table::Journal), 0);
}

#[test]
fn a_large_value_is_written_once() {
    let mut cluster = alone(1 << 20, 1000);
    cluster.enqueue_many(0, "p", 1);
    begun(&mut cluster, 1);
    let attempt = cluster.nodes[0].attempts.remove(0);
    let result = format!("{{\"a\":\"{}\"}}", "x".repeat(100_000));
    cluster.finish(0, attempt.token, Outcome::Succeeded(result.into()));
    begun(&mut cluster, 1);
    let all = cluster.nodes[0].disk.rows();
    let large = all.iter().filter(|(_, value)| value.len() > 50_000).map(|((table, _), _)| *table);
    assert_eq!(large.collect::<Vec<_>>(), [Table::Jobs]);
    restart(&mut cluster);
    cluster.automatic = true;
    done(&mut cluster, 1);
}

#[test]
fn a_job_that_has_a_key_anew_knows_nothing_of_the_one_before_after_a_start_either() {
    let timing = Timing { tombstones: Duration::from_secs(60), ..Timing::DEFAULT };
    let mut cluster = Cluster::with_timing(1, &[("a", 1)], timing);
    let keep = Keep { age: Some(Duration::from_secs(2)), count: None };
    let retention = Retention { succeeded: keep, ..Retention::DEFAULT };
    let settings = Settings { retention, ..Settings::default() };
    let definition = PipelineDef::with(name("p"), vec![PhaseInput::named(name("a"))], settings);
    cluster.apply_pipeline(0, definition.expect("a valid pipeline"));
    cluster.coordinator();
    let enqueue = |cluster: &mut Cluster, not_before_ms: u64| {
        let options = JobOptions { not_before_ms, ..JobOptions::default() };
        let (key, instructions) = (Some("k".into()), "{}".into());
        let jobs = vec![NewJob { key, options, trace: None, instructions }];
        let request = Request::Enqueue { pipeline: name("p"), jobs };
        let Response::Enqueued(told) = cluster.request(0, request) else { panic!("no receipt") };
        told[0].as_ref().expect("accepted").job
    };
    let record = |cluster: &Cluster, job: JobId| {
        let core = cluster.nodes[0].core.as_ref().expect("it runs");
        core.record(PipelineId::of_name("p"), job).expect("the disk can be read")
    };
    let job = enqueue(&mut cluster, 0);
    cluster.wait_for(0, job);
    cluster.run_for(Duration::from_secs(60));
    cluster.run_until("it is forgotten", |cluster| record(cluster, job).is_none());
    // It does not begin within the test.
    assert_eq!(enqueue(&mut cluster, u64::MAX), job);
    restart(&mut cluster);
    let again = record(&cluster, job).expect("it waits");
    assert!(again.controls.is_empty() && !again.is_over(), "{again:?}");
}
