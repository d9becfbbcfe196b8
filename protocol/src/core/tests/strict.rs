//! Groups whose majority decides: what they refuse, and how they are recovered.

use std::{sync::Arc, time::Duration};

use crate::{
    id::{DiskId, PipelineId},
    io::{Change, Input, Refusal, Request, Response, Target},
    message::{GroupUpdate, JobUpdate, Message, Replicate},
    pipeline::PhaseInput,
    record::FIRST_CONTROL,
    view::JobState,
};

use super::{
    cluster::{Cluster, name},
    three,
};

#[test]
fn a_minority_of_a_strict_group_takes_nothing_and_says_why() {
    let mut cluster = three_strict();
    assert!(cluster.enqueue(0, "q", None, "{}").is_ok());
    (1..3).for_each(|index| cluster.kill(index));
    cluster.run_for(Duration::from_secs(10));
    let refused = cluster.enqueue(0, "q", None, "{}");
    assert!(matches!(refused, Err(Refusal::NoCoordinator(_))), "{refused:?}");
}

/// Three nodes with a strict pipeline `q` of one phase.
fn three_strict() -> Cluster {
    three_strict_with(&["a"])
}

fn three_strict_with(phases: &[&str]) -> Cluster {
    let mut cluster = three();
    let phases = phases.iter().map(|phase| PhaseInput::named(name(phase))).collect();
    let majority = crate::pipeline::Quorum::Majority;
    let settings = crate::pipeline::Settings {
        accept: majority,
        execute: majority,
        ..crate::pipeline::Settings::default()
    };
    let strict = crate::pipeline::PipelineDef::with(name("q"), phases, settings);
    cluster.apply_pipeline(0, strict.expect("a valid pipeline"));
    cluster.run_for(Duration::from_secs(5));
    cluster
}

#[test]
fn a_disk_that_only_an_old_advert_speaks_of_does_not_come_into_the_view() {
    let mut cluster = three_strict();
    let pipeline = PipelineId::of_name("q");
    let coordinates = |cluster: &Cluster, index: &usize| {
        let core = cluster.nodes[*index].core.as_ref().expect("it runs");
        core.groups[&pipeline].is_coordinator()
    };
    let coordinator = (0..3).find(|index| coordinates(&cluster, index)).expect("one coordinates");
    let (other, gone) = ((coordinator + 1) % 3, DiskId(99));
    let node = cluster.nodes[other].config.node;
    // As if its last advert had been lost, and the one before were all that is known.
    let core = cluster.nodes[coordinator].core.as_mut().expect("it runs");
    core.members.get_mut(&node).expect("it is known").advert.disk = gone;
    for _ in 0..20 {
        cluster.run_for(Duration::from_millis(500));
        let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
        let holders = core.group_view(pipeline).holders();
        assert!(!holders.contains(&(node, gone)), "{holders:?}");
    }
}

fn recover(cluster: &mut Cluster, at: usize, lost: &[usize], accept_loss: bool) -> Response {
    let lost = lost.iter().map(|index| cluster.nodes[*index].config.node).collect();
    cluster.request(at, Request::Recover { pipeline: name("q"), lost, accept_loss })
}

fn why_not(response: Response) -> String {
    match response {
        Response::Refused(Refusal::NotRecoverable(why)) => why,
        other => panic!("no refusal: {other:?}"),
    }
}

/// Who coordinates `q`, each by its own word.
fn strict_coordinators(cluster: &Cluster) -> Vec<usize> {
    let of = |index: &usize| {
        let core = cluster.nodes[*index].core.as_ref();
        let groups = core.map(|core| core.snapshot().groups).unwrap_or_default();
        groups[&crate::id::PipelineId::of_name("q")].coordinates.is_some()
    };
    (0..cluster.nodes.len()).filter(|it| cluster.nodes[*it].core.is_some()).filter(of).collect()
}

#[test]
fn a_strict_group_is_recovered_only_without_a_majority_and_with_each_lost_one_named() {
    let mut cluster = three_strict();
    assert!(why_not(recover(&mut cluster, 0, &[], true)).contains("needs no recovery"));
    cluster.kill(2);
    cluster.run_for(Duration::from_secs(10));
    assert!(why_not(recover(&mut cluster, 0, &[2], true)).contains("needs no recovery"));
    cluster.kill(1);
    cluster.run_for(Duration::from_millis(100));
    assert!(why_not(recover(&mut cluster, 0, &[1, 2], true)).contains("a moment ago"));
    cluster.run_for(Duration::from_secs(10));
    assert!(why_not(recover(&mut cluster, 0, &[1], true)).contains("give up exactly"));
    let told = why_not(recover(&mut cluster, 0, &[1, 2], false));
    assert!(told.contains("two groups act") && told.contains("Nothing was changed"), "{told}");
    cluster.run_for(Duration::from_secs(10));
    assert!(cluster.enqueue(0, "q", None, "{}").is_err(), "nothing was changed");
    let other = cluster
        .request(0, Request::Recover { pipeline: name("p"), lost: [].into(), accept_loss: true });
    assert!(why_not(other).contains("execute = \"any\""));
}

#[test]
fn a_recovered_strict_group_goes_on_and_takes_the_lost_ones_back() {
    let mut cluster = three_strict();
    let receipt = cluster.enqueue(0, "q", None, r#"{"n":1}"#).expect("it is taken");
    (1..3).for_each(|index| cluster.kill(index));
    cluster.run_for(Duration::from_secs(10));
    let recovered = recover(&mut cluster, 0, &[1, 2], true);
    assert!(matches!(recovered, Response::Recovered { .. }), "{recovered:?}");
    cluster.run_until("it coordinates", |cluster| strict_coordinators(cluster) == [0]);
    let done = cluster.wait_for(0, receipt.job);
    assert_eq!(done.state, JobState::Succeeded);
    let later = cluster.enqueue(0, "q", None, r#"{"n":2}"#).expect("it is taken");
    assert_eq!(cluster.wait_for(0, later.job).state, JobState::Succeeded);
    // The recovery itself is on disk.
    cluster.kill(0);
    cluster.start(0);
    cluster.run_until("it coordinates again", |cluster| strict_coordinators(cluster) == [0]);
    (1..3).for_each(|index| cluster.start(index));
    cluster.run_for(Duration::from_secs(20));
    assert_eq!(strict_coordinators(&cluster).len(), 1);
    cluster.kill(0);
    cluster
        .run_until("the others have all of it", |cluster| strict_coordinators(cluster).len() == 1);
    cluster.run_for(Duration::from_secs(5));
    assert_eq!(cluster.job(1, later.job).state, JobState::Succeeded, "they were members again");
}

#[test]
fn lost_ones_that_lived_on_yield_to_the_recovered_group_and_their_jobs_are_kept() {
    let mut cluster = three_strict();
    let before = cluster.enqueue(0, "q", None, r#"{"n":1}"#).expect("it is taken");
    cluster.run_for(Duration::from_secs(2));
    (1..3).for_each(|index| cluster.disconnect(0, index));
    cluster.run_for(Duration::from_secs(10));
    // The operator is wrong: the others live, and are a majority.
    let theirs = cluster.enqueue(1, "q", None, r#"{"n":2}"#).expect("a majority takes it");
    let recovered = recover(&mut cluster, 0, &[1, 2], true);
    assert!(matches!(recovered, Response::Recovered { .. }), "{recovered:?}");
    cluster.run_for(Duration::from_secs(10));
    assert!(strict_coordinators(&cluster).contains(&0));
    let ours = cluster.enqueue(0, "q", None, r#"{"n":3}"#).expect("it is taken");
    (1..3).for_each(|index| cluster.connect(0, index));
    cluster.run_for(Duration::from_secs(3));
    assert_eq!(strict_coordinators(&cluster), [0], "the recovered group outranks the other");
    cluster.run_for(Duration::from_secs(30));
    assert_eq!(strict_coordinators(&cluster).len(), 1);
    for job in [before.job, theirs.job, ours.job] {
        for at in 0..3 {
            assert_eq!(cluster.job(at, job).state, JobState::Succeeded);
        }
    }
}

#[test]
fn a_strict_group_whose_disks_are_all_others_is_recovered_with_what_they_hold() {
    let mut cluster = three_strict();
    let receipt = cluster.enqueue(0, "q", None, "{}").expect("it is taken");
    cluster.run_for(Duration::from_secs(2));
    // As after all were restored from backups.
    for index in 0..3 {
        cluster.kill(index);
        cluster.nodes[index].config.disk = crate::id::DiskId(100 + index as u64);
    }
    (0..3).for_each(|index| cluster.start(index));
    cluster.run_for(Duration::from_secs(20));
    assert!(strict_coordinators(&cluster).is_empty(), "no disk has a vote");
    let recovered = recover(&mut cluster, 1, &[], true);
    assert!(matches!(&recovered, Response::Recovered { members, .. } if members.len() == 3));
    cluster.run_until("it goes on", |cluster| strict_coordinators(cluster).len() == 1);
    // The others hear of it with its next beats.
    cluster.run_for(Duration::from_secs(3));
    assert_eq!(cluster.wait_for(2, receipt.job).state, JobState::Succeeded);
}

#[test]
fn a_retry_that_was_never_committed_is_outranked_whatever_parts_of_it_came_through() {
    let mut cluster = three_strict_with(&["a", "b"]);
    cluster.automatic = false;
    let job = cluster.enqueue(0, "q", None, "{}").expect("it is taken").job;
    cluster.run_for(Duration::from_millis(100));
    let target = Target::Job(job);
    let cancel = Change::Cancel { reason: "no".to_owned() };
    cluster.request(0, Request::Change { target: target.clone(), change: cancel });
    cluster.run_for(Duration::from_secs(2));
    let old = strict_coordinators(&cluster)[0];
    let others: Vec<usize> = (0..3).filter(|index| *index != old).collect();
    others.iter().for_each(|other| cluster.disconnect(old, *other));
    cluster.ask(old, Request::Change { target, change: Change::Retry { from_start: true } });
    cluster.run_for(Duration::from_millis(5));
    let pipeline = PipelineId::of_name("q");
    let record = |cluster: &Cluster, index: usize| {
        let core = cluster.nodes[index].core.as_ref().expect("it runs");
        core.record(pipeline, job).expect("it reads").expect("it is there")
    };
    let retried = record(&cluster, old);
    assert_eq!((retried.generation(), record(&cluster, others[0]).generation()), (1, 0));
    // Of two batches, the first of which raises all parts, only the second gets to somebody.
    let core = cluster.nodes[old].core.as_ref().expect("it runs");
    let term = core.snapshot().groups[&pipeline].coordinates.expect("it coordinates");
    let part = retried.component(FIRST_CONTROL).expect("it was tried");
    let updates = vec![JobUpdate { job, components: vec![part] }];
    let groups = Arc::new(vec![GroupUpdate { pipeline, term, updates, view: None }]);
    let message = Message::Replicate(Replicate { batch: u64::MAX, groups });
    let from = cluster.nodes[old].config.node;
    cluster.input(others[0], Input::Message { from, message });
    cluster.run_until("another takes over", |cluster| {
        strict_coordinators(cluster).iter().any(|index| *index != old)
    });
    others.iter().for_each(|other| cluster.connect(old, *other));
    cluster.run_for(Duration::from_secs(20));
    let copies: Vec<_> = (0..3).map(|index| record(&cluster, index)).collect();
    assert!(copies.iter().all(|copy| *copy == copies[0]), "{copies:#?}");
    assert_eq!((copies[0].generation(), copies[0].state()), (1, JobState::Cancelled));
}
