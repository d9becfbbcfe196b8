//! Attempts that a node gave to itself and that wait for a slot, which others hold meanwhile.

use std::time::Duration;

use crate::{
    codec,
    id::{JobId, PipelineId, Term},
    io::{Input, Outcome},
    message::{JobUpdate, Message},
    record::{Component, REAPED, Reaped},
};

use super::cluster::{Cluster, chain};

/// One slot for two namespaces: the job of one runs, that of the other is given out and waits.
fn one_waits() -> (Cluster, JobId) {
    let mut cluster = Cluster::new(2, &[("a", 1), ("team/a", 1)]);
    cluster.automatic = false;
    for pipeline in ["p", "team/p"] {
        cluster.apply_pipeline(0, chain(pipeline, &["a"]));
    }
    cluster.kill(1);
    cluster.run_for(Duration::from_secs(10));
    cluster.enqueue(0, "p", None, "{}").expect("accepted");
    cluster.run_until("the first runs", |cluster| cluster.nodes[0].attempts.len() == 1);
    let job = cluster.enqueue(0, "team/p", None, "{}").expect("accepted").job;
    cluster.run_until("the second waits", |cluster| held(cluster) == 2);
    assert_eq!(cluster.nodes[0].attempts.len(), 1);
    (cluster, job)
}

fn held(cluster: &Cluster) -> usize {
    cluster.nodes[0].core.as_ref().map_or(0, |core| core.worker.held(|_| true).len())
}

fn end_first(cluster: &mut Cluster) {
    let token = cluster.nodes[0].attempts[0].token;
    cluster.finish(0, token, Outcome::Succeeded("{}".into()));
}

#[test]
fn what_waits_for_a_slot_begins_when_it_is_free() {
    let (mut cluster, job) = one_waits();
    end_first(&mut cluster);
    cluster
        .run_until("it runs", |cluster| cluster.nodes[0].attempts.iter().any(|it| it.job == job));
}

#[test]
fn what_was_forgotten_elsewhere_while_it_waited_does_not_begin() {
    let (mut cluster, job) = one_waits();
    let pipeline = PipelineId::of_name("team/p");
    let at_ms = cluster.nodes[0].core.as_ref().expect("it runs").wall_ms();
    let bytes = codec::encode(&Reaped { generation: 0, at_ms });
    let records = vec![JobUpdate { job, components: vec![Component { tag: REAPED, bytes }] }];
    let message = Message::SyncPush { session: 1, part: 1, pipeline, term: Term::ZERO, records };
    let from = cluster.nodes[1].config.node;
    cluster.input(0, Input::Message { from, message });
    end_first(&mut cluster);
    cluster.run_for(Duration::from_millis(100));
    assert!(cluster.nodes[0].attempts.iter().all(|it| it.job != job), "it has begun");
    // The slot is free for the next one at once.
    let next = cluster.enqueue(0, "team/p", None, "{}").expect("accepted").job;
    cluster.run_for(Duration::from_millis(100));
    assert!(cluster.nodes[0].attempts.iter().any(|it| it.job == next), "its slot is taken");
    let snapshot = cluster.nodes[0].core.as_ref().expect("it runs").snapshot();
    assert_eq!(snapshot.groups[&pipeline].running, 1);
}
