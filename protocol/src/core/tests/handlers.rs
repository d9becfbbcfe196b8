//! Handlers that the cluster keeps, and phases that come and go with them.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;

use crate::{
    handler::{Handler, HandlerEntry, Language},
    io::{Input, Outcome, Refusal, Request, Response},
    view::JobState,
};

use super::cluster::{Cluster, chain, name};

fn handler(source: &str) -> Handler {
    Handler {
        language: Language::Python,
        requires: BTreeSet::new(),
        slots: 2,
        source: Bytes::copy_from_slice(source.as_bytes()),
    }
}

fn put(cluster: &mut Cluster, at: usize, phase: &str, source: &str) -> Response {
    let handler = Box::new(handler(source));
    cluster.request(at, Request::PutHandler { phase: name(phase), handler })
}

fn handlers(cluster: &mut Cluster, at: usize) -> Vec<HandlerEntry> {
    match cluster.request(at, Request::Handlers) {
        Response::Handlers(all) => all,
        other => panic!("{other:?}"),
    }
}

fn remove(cluster: &mut Cluster, phase: &str, force: bool) -> Response {
    cluster.request(0, Request::RemoveHandler { phase: name(phase), force })
}

#[test]
fn a_handler_is_on_every_disk_when_it_is_acknowledged() {
    let mut cluster = Cluster::new(3, &[]);
    let response = put(&mut cluster, 0, "hash", "one");
    assert!(
        matches!(response, Response::HandlerPut { changed: true, copies: 3, .. }),
        "{response:?}"
    );
    let again = put(&mut cluster, 1, "hash", "one");
    assert!(matches!(again, Response::HandlerPut { changed: false, copies: 3, .. }), "{again:?}");
    for at in 0..3 {
        cluster.kill(at);
        cluster.start(at);
        cluster.run_for(Duration::from_millis(20));
        let all = handlers(&mut cluster, at);
        assert_eq!(all[0].handler, Some(handler("one")));
        assert_eq!((all[0].generation, all[0].versions.len()), (1, 1));
    }
}

#[test]
fn a_node_that_was_away_learns_what_it_missed() {
    let mut cluster = Cluster::new(3, &[]);
    put(&mut cluster, 0, "hash", "one");
    put(&mut cluster, 0, "gone", "one");
    cluster.kill(2);
    cluster.run_for(Duration::from_secs(5));
    put(&mut cluster, 0, "hash", "two");
    assert_eq!(remove(&mut cluster, "gone", false), Response::Removed);
    cluster.start(2);
    cluster.run_for(Duration::from_secs(5));
    let all = handlers(&mut cluster, 2);
    let sources: Vec<_> = all.iter().map(|entry| entry.handler.clone()).collect();
    assert_eq!(sources, [Some(handler("two"))]);
    assert_eq!(all[0].versions.len(), 2);
}

#[test]
fn a_handler_that_a_pipeline_uses_stays_unless_forced() {
    let mut cluster = Cluster::new(3, &[]);
    put(&mut cluster, 0, "hash", "one");
    cluster.apply_pipeline(0, chain("p", &["hash"]));
    let refused = remove(&mut cluster, "hash", false);
    let expected = Refusal::HandlerInUse { phase: "hash".into(), pipelines: vec!["p".into()] };
    assert_eq!(refused, Response::Refused(expected));
    assert_eq!(remove(&mut cluster, "hash", true), Response::Removed);
    let unknown = remove(&mut cluster, "hash", true);
    assert!(matches!(unknown, Response::Refused(Refusal::UnknownHandler { .. })), "{unknown:?}");
    let large = "x".repeat(crate::handler::MAX_SOURCE_BYTES + 1);
    let large = put(&mut cluster, 0, "large", &large);
    assert!(matches!(large, Response::Refused(Refusal::InvalidHandler(_))), "{large:?}");
}

#[test]
fn phases_that_are_offered_later_run_and_those_that_go_end_what_they_run() {
    let mut cluster = Cluster::new(2, &[]);
    cluster.automatic = false;
    cluster.apply_pipeline(0, chain("p", &["late"]));
    cluster.coordinator();
    let jobs = cluster.enqueue_many(0, "p", 3);
    cluster.run_for(Duration::from_secs(2));
    assert!(cluster.nodes.iter().all(|node| node.attempts.is_empty()));

    cluster.input(1, Input::Offers(vec![(name("late"), 2)]));
    cluster.run_until("two attempts", |cluster| cluster.nodes[1].attempts.len() == 2);
    // It goes, and comes again: what ran meanwhile is counted once.
    cluster.input(1, Input::Offers(Vec::new()));
    cluster.run_for(Duration::from_millis(200));
    cluster.input(1, Input::Offers(vec![(name("late"), 3)]));
    cluster.run_until("the third", |cluster| cluster.nodes[1].attempts.len() == 3);
    cluster.input(1, Input::Offers(Vec::new()));
    for attempt in cluster.nodes[1].attempts.clone() {
        cluster.finish(1, attempt.token, Outcome::Succeeded("{}".into()));
    }
    for job in jobs {
        let job = cluster.wait_for(0, job);
        assert_eq!((job.state, job.invocations[0].attempt_count), (JobState::Succeeded, 1));
    }
    let waiting = cluster.enqueue_many(0, "p", 1)[0];
    cluster.run_for(Duration::from_secs(3));
    assert_eq!(cluster.job(0, waiting).state, JobState::Queued);
    assert_eq!(cluster.view(0).pipelines[0].unoffered, [name("late")]);
}
