//! Lists of jobs that begin with the newest, and what is told of each step.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    id::JobId,
    io::{Request, Response},
    view::{JobState, StepCounts},
};

use super::cluster::{Cluster, chain, name};

const PHASES: [(&str, u32); 2] = [("a", 2), ("b", 2)];

/// All jobs, page by page, the newest first.
fn newest(cluster: &mut Cluster, index: usize, state: Option<JobState>, limit: u32) -> Vec<JobId> {
    let (mut all, mut after) = (Vec::new(), None);
    for _ in 0..100 {
        let request = Request::Newest { pipeline: name("p"), state, after, limit };
        match cluster.request(index, request) {
            Response::Jobs { jobs, next } => {
                assert!(jobs.len() <= limit as usize);
                all.extend(jobs.iter().map(|job| job.job));
                match next {
                    Some(_) => after = next,
                    None => return all,
                }
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("pages without end: {all:?}");
}

fn steps(cluster: &mut Cluster, index: usize) -> Vec<StepCounts> {
    match cluster.request(index, Request::Steps(name("p"))) {
        Response::Steps(steps) => steps,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_newest_jobs_come_first_on_every_node_and_page_by_page() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    let mut jobs = Vec::new();
    for _ in 0..25 {
        jobs.push(cluster.enqueue(0, "p", None, "{}").expect("accepted").job);
        cluster.run_for(Duration::from_millis(5));
    }
    let keyed: BTreeSet<JobId> = (0..12)
        .map(|at| {
            let key = format!("key {at}");
            cluster.enqueue(1, "p", Some(&key), "{}").expect("accepted").job
        })
        .collect();
    jobs.iter().chain(&keyed).for_each(|job| {
        cluster.wait_for(0, *job);
    });
    jobs.reverse();
    // By the time, then those whose ids say nothing of it.
    let wanted: Vec<JobId> = jobs.iter().chain(keyed.iter().rev()).copied().collect();
    for index in 0..3 {
        for limit in [1, 7, 25, 37, 100] {
            assert_eq!(newest(&mut cluster, index, None, limit), wanted, "pages of {limit}");
        }
    }
    assert_eq!(newest(&mut cluster, 2, Some(JobState::Succeeded), 10), wanted);
    assert_eq!(newest(&mut cluster, 2, Some(JobState::Dead), 10), []);
}

#[test]
fn every_node_tells_what_waits_and_runs_at_each_step() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a", "b"]));
    cluster.coordinator();
    assert_eq!(steps(&mut cluster, 1), []);
    cluster.run_time = Duration::from_secs(60);
    let jobs = cluster.enqueue_many(0, "p", 10);
    cluster.run_for(Duration::from_secs(1));
    // Three nodes have two slots each.
    let told = StepCounts { step: name("a"), waiting: 4, running: 6 };
    for index in 0..3 {
        assert_eq!(steps(&mut cluster, index), std::slice::from_ref(&told));
    }
    cluster.run_for(Duration::from_secs(61));
    let found = steps(&mut cluster, 2);
    let (a, b) = (&found[0], &found[1]);
    assert_eq!((a.step.as_str(), a.waiting, a.running), ("a", 0, 4), "{found:?}");
    assert_eq!((b.step.as_str(), b.waiting, b.running), ("b", 0, 6), "{found:?}");
    cluster.run_for(Duration::from_secs(100));
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    assert_eq!(steps(&mut cluster, 0), []);
}
