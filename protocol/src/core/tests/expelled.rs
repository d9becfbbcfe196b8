//! A node that was shut out counts for nothing any more, though it still speaks.

use std::time::Duration;

use crate::{
    id::{PipelineId, Term, Token},
    io::{Input, Outcome},
    message::{Completion, Message},
    view::JobState,
};

use super::{
    PHASES,
    cluster::{Cluster, chain},
    three,
};

/// The others are told that it was shut out; nothing is cut, so that they hear it still.
fn expel(cluster: &mut Cluster, gone: usize) {
    let node = cluster.nodes[gone].config.node;
    for index in (0..cluster.nodes.len()).filter(|index| *index != gone) {
        cluster.input(index, Input::Expelled(node));
    }
}

#[test]
fn its_leases_and_attempts_go_to_others_and_no_job_is_lost() {
    let mut cluster = three();
    cluster.automatic = false;
    cluster.run_for(Duration::from_secs(2));
    let jobs = cluster.enqueue_many(0, "p", 9);
    cluster.run_for(Duration::from_millis(100));
    let gone = cluster.coordinator();
    let other = (gone + 1) % 3;
    expel(&mut cluster, gone);
    let node = cluster.nodes[gone].config.node;
    assert!(cluster.view(other).members.iter().all(|member| member.node != node));
    cluster.automatic = true;
    for index in (0..3).filter(|index| *index != gone) {
        for attempt in std::mem::take(&mut cluster.nodes[index].attempts) {
            cluster.finish(index, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    cluster.nodes[gone].attempts.clear();
    for job in jobs {
        assert_eq!(cluster.wait_for(other, job).state, JobState::Succeeded);
    }
    let pipeline = cluster.view(other).pipelines.remove(0);
    assert!(!pipeline.replicas.contains(&node), "{:?}", pipeline.replicas);
    assert!(pipeline.coordinator.is_some_and(|(coordinator, _)| coordinator != node));
}

#[test]
fn another_keeps_its_copies_at_once() {
    let mut cluster = Cluster::new(4, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.run_for(Duration::from_secs(2));
    let node = cluster.view(0).pipelines[0].replicas[0];
    let gone = cluster.index_of(node);
    let asked = (gone + 1) % 4;
    expel(&mut cluster, gone);
    let replicas = cluster.view(asked).pipelines.remove(0).replicas;
    assert!(replicas.len() == 3 && !replicas.contains(&node), "{replicas:?}");
}

#[test]
fn nobody_tells_the_end_of_anothers_attempt() {
    let mut cluster = three();
    cluster.automatic = false;
    cluster.run_for(Duration::from_secs(2));
    let job = cluster.enqueue_many(0, "p", 1)[0];
    cluster.run_for(Duration::from_millis(100));
    let worker = (0..3).find(|index| !cluster.nodes[*index].attempts.is_empty()).expect("a worker");
    let token: Token = cluster.nodes[worker].attempts[0].token;
    let (at, pipeline) = (cluster.coordinator(), PipelineId::of_name("p"));
    let end = |outcome| {
        let (items, session) = (0, None);
        Message::Completed(Completion { token, pipeline, job, step: 0, outcome, items, session })
    };
    let liar = (0..3).find(|index| ![worker, at].contains(index)).expect("another");
    let from = cluster.nodes[liar].config.node;
    let lie = end(Outcome::Succeeded("{\"lie\":1}".into()));
    cluster.input(at, Input::Message { from, message: lie });
    cluster.run_for(Duration::from_millis(100));
    assert_eq!(cluster.job(0, job).invocations[0].state, JobState::Running);
    assert_ne!(token.term, Term::ZERO);
    cluster.finish(worker, token, Outcome::Succeeded("{\"truth\":1}".into()));
    cluster.run_for(Duration::from_millis(100));
    let first = cluster.job(0, job).invocations.remove(0);
    assert_eq!(first.state, JobState::Succeeded);
    assert_eq!(first.result.as_deref(), Some(&b"{\"truth\":1}"[..]));
}
