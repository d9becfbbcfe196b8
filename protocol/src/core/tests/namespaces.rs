//! Namespaces: apart by name, and served in turn by workers that serve several.

use std::time::Duration;

use crate::{
    io::{Request, Response},
    pipeline::PipelineDef,
    view::{ClusterView, JobState, PipelineView},
};

use super::cluster::{Cluster, chain, name};

fn pipeline(cluster: &mut Cluster, which: &str) -> PipelineView {
    let Response::Cluster(view) = cluster.request(0, Request::Cluster) else {
        panic!("no view of the cluster")
    };
    let ClusterView { pipelines, .. } = *view;
    let mut found = pipelines.into_iter().filter(|one| one.definition.name == name(which));
    found.next().expect("it is known")
}

#[test]
fn equal_names_and_keys_in_two_namespaces_are_two_pipelines_and_two_jobs() {
    let mut cluster = Cluster::new(3, &[("a", 4), ("team/a", 4)]);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.apply_pipeline(0, chain("team/p", &["a"]));
    let ours = cluster.enqueue(1, "p", Some("k"), "{\"of\":1}").expect("accepted");
    let theirs = cluster.enqueue(1, "team/p", Some("k"), "{\"of\":2}").expect("accepted");
    assert!(ours.job != theirs.job && !theirs.existed);
    for job in [ours.job, theirs.job] {
        assert_eq!(cluster.wait_for(2, job).state, JobState::Succeeded);
    }
    // The default one is the same by both its names, and its jobs have the ids that they always had.
    let again = cluster.enqueue(2, "default/p", Some("k"), "{\"of\":1}").expect("accepted");
    assert_eq!((again.job, again.existed), (ours.job, true));
}

#[test]
fn a_worker_of_one_namespace_runs_nothing_of_another() {
    let mut cluster = Cluster::new(3, &[("a", 4)]);
    cluster.apply_pipeline(0, chain("team/p", &["a"]));
    cluster.enqueue_many(0, "team/p", 5);
    cluster.run_for(Duration::from_secs(5));
    assert!(cluster.runs.is_empty(), "{:?}", cluster.runs);
    assert_eq!(pipeline(&mut cluster, "team/p").unoffered, [name("team/a")]);
}

#[test]
fn a_definition_with_phases_of_another_namespace_is_none() {
    let own = chain("team/p", &["a"]);
    assert_eq!(own.phases[0].phase, name("team/a"));
    assert!(own.is_valid());
    let mut stray: PipelineDef = own.clone();
    stray.phases[0].phase = name("other/a");
    assert!(!stray.is_valid());
    let mut named = own;
    named.phases[0].name = name("team/a");
    assert!(!named.is_valid());
}

/// One namespace has twenty pipelines with a thousand jobs before the other enqueues ten.
#[test]
fn a_namespace_with_little_work_does_not_wait_for_one_with_much() {
    const SLOTS: u32 = 4;
    let mut cluster = Cluster::new(1, &[("big/a", SLOTS), ("small/a", SLOTS)]);
    cluster.run_time = Duration::from_millis(100);
    for at in 0..20 {
        cluster.apply_pipeline(0, chain(&format!("big/p{at}"), &["a"]));
    }
    cluster.apply_pipeline(0, chain("small/p", &["a"]));
    cluster.run_for(Duration::from_secs(5));
    for at in 0..20 {
        cluster.enqueue_many(0, &format!("big/p{at}"), 50);
    }
    cluster.run_for(Duration::from_secs(1));
    let before = cluster.nodes[0].started;
    // The slots are those of the worker, not of each namespace.
    let most = 10 * SLOTS + 2 * SLOTS;
    assert!((8 * SLOTS..=most).contains(&before), "{before}");
    let jobs = cluster.enqueue_many(0, "small/p", 10);
    let took = cluster.run_until("its jobs", |cluster| cluster.all_succeeded(&jobs));
    let others = cluster.nodes[0].started - before - 10;
    // Every other slot that gets free is theirs; all of them are the other's before their first begins
    // and while their last run.
    assert!((5..=10 + 3 * SLOTS).contains(&others), "{others} of the other's began meanwhile");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
