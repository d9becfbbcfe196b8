//! Whole small clusters on virtual time.

mod cluster;
mod compensate;
mod copies;
mod events;
mod expelled;
mod figures;
mod forgotten;
mod handlers;
mod items;
mod journal;
mod lists;
mod namespaces;
mod overdue;
mod partitions;
mod resting;
mod schedules;
mod secrets;
mod session;
mod strict;
mod trace;
mod waiting;

use std::time::Duration;

use crate::{
    advert::Roles,
    config::Timing,
    id::{JobId, PipelineId, Term},
    io::{Input, Outcome, Refusal, Request, Response},
    message::{JobUpdate, Message},
    pipeline::{PhaseInput, PipelineDef, Quorum, Settings},
    record::{JobOptions, JobRecord, JobSpec},
    view::JobState,
};

use cluster::{Cluster, chain, name};

const PHASES: [(&str, u32); 3] = [("a", 4), ("b", 4), ("c", 4)];

fn three() -> Cluster {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a", "b", "c"]));
    cluster
}

#[test]
fn a_job_goes_through_its_phases_in_order_each_once() {
    let mut cluster = three();
    let receipt = cluster.enqueue(1, "p", None, "{}").expect("accepted");
    assert_eq!((receipt.copies, receipt.target, receipt.degraded), (3, 3, false));
    let view = cluster.wait_for(2, receipt.job);
    assert_eq!(view.state, JobState::Succeeded);
    let results: Vec<&[u8]> = view.results.iter().map(|result| result.as_ref()).collect();
    assert_eq!(results, [b"{\"a\":1}", b"{\"b\":1}", b"{\"c\":1}"]);
    assert!(cluster.runs.values().all(|runs| *runs == 1), "{:?}", cluster.runs);
}

#[test]
fn a_single_node_is_a_whole_cluster() {
    let mut cluster = Cluster::new(1, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a", "b"]));
    let receipt = cluster.enqueue(0, "p", None, "{}").expect("accepted");
    assert_eq!((receipt.copies, receipt.degraded), (1, false));
    assert_eq!(cluster.wait_for(0, receipt.job).state, JobState::Succeeded);
}

#[test]
fn jobs_are_spread_evenly_over_workers() {
    for jobs_at_once in [10, 1000] {
        let mut cluster = Cluster::new(4, &PHASES);
        cluster.apply_pipeline(0, chain("p", &["a"]));
        cluster.coordinator();
        cluster.run_time = Duration::from_millis(100);
        cluster.run_for(Duration::from_secs(2));
        let mut jobs = Vec::new();
        while jobs.len() < 1000 {
            jobs.extend(cluster.enqueue_many(0, "p", jobs_at_once.min(1000 - jobs.len())));
            cluster.run_for(Duration::from_millis(10));
        }
        cluster.run_for(Duration::from_secs(10));
        assert!(cluster.all_succeeded(&jobs));
        let started: Vec<u32> = cluster.nodes.iter().map(|node| node.started).collect();
        let even = 225..=275;
        assert!(started.iter().all(|count| even.contains(count)), "{started:?}");
    }
}

#[test]
fn pipelines_of_one_coordinator_run_side_by_side() {
    let mut cluster = Cluster::new(1, &[("a", 4)]);
    cluster.automatic = false;
    let names = ["p0", "p1", "p2", "p3"];
    names.iter().for_each(|name| cluster.apply_pipeline(0, chain(name, &["a"])));
    cluster.run_for(Duration::from_secs(5));
    for name in names {
        cluster.enqueue_many(0, name, 1);
    }
    cluster.run_for(Duration::from_millis(250));
    let attempts = &cluster.nodes[0].attempts;
    let tokens: std::collections::BTreeSet<_> = attempts.iter().map(|it| it.token).collect();
    // Their terms may be equal, their tokens must not be.
    assert_eq!((attempts.len(), tokens.len()), (4, 4), "{tokens:?}");
    let all = names.map(name);
    assert!(all.iter().all(|name| attempts.iter().any(|attempt| attempt.pipeline == *name)));
}

#[test]
fn the_same_key_is_one_job_and_another_payload_is_a_conflict() {
    let mut cluster = three();
    let first = cluster.enqueue(0, "p", Some("k"), "{\"x\":1}").expect("accepted");
    let again = cluster.enqueue(1, "p", Some("k"), "{\"x\":1}").expect("accepted");
    assert_eq!((again.job, again.existed), (first.job, true));
    let other = cluster.enqueue(2, "p", Some("k"), "{\"x\":2}").expect_err("a conflict");
    assert_eq!(other, Refusal::KeyConflict { key: "k".to_owned(), job: first.job });
    cluster.wait_for(0, first.job);
    let late = cluster.enqueue(2, "p", Some("k"), "{\"x\":2}").expect_err("still a conflict");
    assert!(matches!(late, Refusal::KeyConflict { .. }));
}

#[test]
fn a_killed_coordinator_is_replaced_and_running_phases_are_adopted() {
    let mut cluster = three();
    cluster.automatic = false;
    cluster.run_for(Duration::from_secs(2));
    let jobs = cluster.enqueue_many(0, "p", 8);
    cluster.run_for(Duration::from_millis(100));
    let old = cluster.coordinator();
    let died = cluster.nodes[old].attempts.len();
    assert!((2..=3).contains(&died), "{died}");
    cluster.kill(old);
    let took =
        cluster.run_until("another coordinator", |cluster| cluster.coordinators().len() == 1);
    assert!(took < Duration::from_secs(1), "{took:?}");
    cluster.run_for(Duration::from_secs(5));
    let survivors: Vec<usize> = (0..3).filter(|index| *index != old).collect();
    cluster.automatic = true;
    for index in survivors {
        let attempts = std::mem::take(&mut cluster.nodes[index].attempts);
        for attempt in attempts {
            let outcome = Outcome::Succeeded("{}".into());
            cluster.finish(index, attempt.token, outcome);
        }
    }
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    // Only what ran on the node that died may have run twice.
    let twice = cluster.runs.values().filter(|runs| **runs > 1).count();
    assert_eq!(twice, died, "{:?}", cluster.runs);
}

#[test]
fn a_killed_workers_phases_start_elsewhere() {
    let mut cluster = three();
    let coordinator = cluster.coordinator();
    cluster.automatic = false;
    let jobs = cluster.enqueue_many(0, "p", 6);
    cluster.run_for(Duration::from_millis(50));
    let worker = (0..3).find(|index| *index != coordinator).expect("another");
    let had = cluster.nodes[worker].attempts.len();
    assert_eq!(had, 2);
    let before: usize = cluster.nodes.iter().map(|node| node.attempts.len()).sum();
    cluster.kill(worker);
    let took = cluster.run_until("all start elsewhere", |cluster| {
        cluster.nodes.iter().map(|node| node.attempts.len()).sum::<usize>() == before
    });
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(cluster.runs.len(), jobs.len());
}

#[test]
fn one_survivor_of_three_finishes_what_was_acknowledged() {
    let mut cluster = three();
    let jobs = cluster.enqueue_many(0, "p", 50);
    let coordinator = cluster.coordinator();
    let other = (0..3).find(|index| *index != coordinator).expect("another");
    cluster.kill(coordinator);
    cluster.kill(other);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    let survivor = (0..3).find(|index| cluster.nodes[*index].core.is_some()).expect("one");
    let receipt = cluster.enqueue(survivor, "p", None, "{}").expect("accepted");
    assert_eq!((receipt.copies, receipt.degraded), (1, true));
}

#[test]
fn a_whole_cluster_that_restarts_goes_on() {
    let mut cluster = three();
    cluster.automatic = false;
    let jobs = cluster.enqueue_many(0, "p", 20);
    cluster.run_for(Duration::from_millis(100));
    (0..3).for_each(|index| cluster.kill(index));
    cluster.automatic = true;
    (0..3).for_each(|index| cluster.start(index));
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
}

#[test]
fn a_node_that_joins_late_gets_work_and_a_copy() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.kill(2);
    cluster.apply_pipeline(0, chain("p", &["a", "b", "c"]));
    let early = cluster.enqueue_many(0, "p", 10);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&early));
    cluster.start(2);
    cluster.run_for(Duration::from_secs(3));
    let jobs = cluster.enqueue_many(2, "p", 60);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    assert!(cluster.nodes[2].started > 20, "{}", cluster.nodes[2].started);
    cluster.run_for(Duration::from_secs(5));
    let snapshots: Vec<_> = cluster
        .nodes
        .iter()
        .filter_map(|node| node.core.as_ref())
        .map(|core| core.snapshot())
        .collect();
    let finished: Vec<_> = snapshots
        .iter()
        .flat_map(|it| it.groups.values().map(|group| (group.admitted, group.finished)))
        .collect();
    assert!(finished.iter().all(|state| *state == finished[0] && state.0), "{finished:?}");
}

#[test]
fn failed_phases_are_tried_again_and_then_become_dead_letters() {
    let mut cluster = three();
    cluster.automatic = false;
    let receipt = cluster.enqueue(0, "p", None, "{}").expect("accepted");
    for _ in 0..3 {
        cluster.run_until("an attempt", |cluster| {
            cluster.nodes.iter().any(|node| !node.attempts.is_empty())
        });
        let index = (0..3).find(|index| !cluster.nodes[*index].attempts.is_empty()).expect("one");
        let token = cluster.nodes[index].attempts[0].token;
        let outcome = Outcome::Failed { error: "no disk".to_owned(), retry: true, after: None };
        cluster.finish(index, token, outcome);
        cluster.run_for(Duration::from_millis(20));
    }
    let view = cluster.wait_for(0, receipt.job);
    assert_eq!((view.state, view.invocations[0].attempt_count), (JobState::Dead, 3));
    assert!(
        view.invocations[0]
            .attempts
            .iter()
            .all(|attempt| attempt.error.as_deref() == Some("no disk"))
    );
}

#[test]
fn a_phase_that_nobody_offers_waits_and_is_named() {
    let mut cluster = three();
    cluster.apply_pipeline(0, chain("q", &["a", "nowhere"]));
    let receipt = cluster.enqueue(0, "q", None, "{}").expect("accepted");
    cluster.run_for(Duration::from_secs(2));
    assert_eq!(cluster.job(1, receipt.job).state, JobState::Queued);
    let view = cluster.view(2);
    let pipeline = view.pipelines.iter().find(|it| it.definition.name == name("q")).expect("known");
    assert_eq!(pipeline.unoffered, [name("nowhere")]);
    assert_eq!(pipeline.counts.map(|counts| counts.queued), Some(1));
}

/// A pipeline of one phase that asks this of its worker.
fn demanding(pipeline: &str, requires: &[&str]) -> PipelineDef {
    let requires = requires.iter().map(|text| text.parse().expect("a requirement")).collect();
    let phase = PhaseInput { requires, ..PhaseInput::named(name("a")) };
    PipelineDef::new(name(pipeline), vec![phase]).expect("a valid pipeline")
}

#[test]
fn phases_go_only_to_workers_that_have_what_they_require() {
    let mut cluster = Cluster::new(3, &[("a", 4)]);
    let labels = [("gpu", "nvidia"), ("memory", "16GiB")];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    cluster.kill(1);
    cluster.nodes[1].config.labels = labels.into();
    cluster.start(1);
    cluster.run_for(Duration::from_secs(1));
    cluster.apply_pipeline(0, demanding("p", &["gpu", "memory>=8GiB"]));
    cluster.apply_pipeline(0, chain("q", &["a"]));
    let (demanding_jobs, others) =
        (cluster.enqueue_many(0, "p", 40), cluster.enqueue_many(2, "q", 40));
    cluster.run_until("all done", |cluster| {
        cluster.all_succeeded(&demanding_jobs) && cluster.all_succeeded(&others)
    });
    let able = cluster.nodes[1].config.node;
    let mut elsewhere = 0;
    for job in &demanding_jobs {
        let ran = cluster.job(0, *job).invocations[0].attempts[0].worker;
        assert_eq!(ran, able);
    }
    for job in &others {
        let ran = cluster.job(0, *job).invocations[0].attempts[0].worker;
        elsewhere += usize::from(ran != able);
    }
    // What nobody may do does not hold up what everybody may.
    assert!(elsewhere >= 20, "{elsewhere}");
}

#[test]
fn what_no_worker_has_is_waited_for_and_told() {
    let mut cluster = three();
    cluster.apply_pipeline(0, demanding("p", &["gpu"]));
    let waiting = cluster.enqueue_many(0, "p", 3);
    cluster.apply_pipeline(0, chain("q", &["a"]));
    let others = cluster.enqueue_many(0, "q", 3);
    cluster.run_until("the others are done", |cluster| cluster.all_succeeded(&others));
    let view = cluster.view(0);
    let told = |pipeline: &str| {
        let mut all = view.pipelines.iter();
        let found = all.find(|one| one.definition.name == name(pipeline)).expect("known");
        found.unoffered.clone()
    };
    assert_eq!((told("p"), told("q")), (vec![name("a")], vec![]));
    assert_eq!(cluster.job(0, waiting[0]).state, JobState::Queued);
    // Jobs of a phase that is not there any more keep what it required.
    cluster.apply_pipeline(0, chain("p", &["b"]));
    cluster.run_for(Duration::from_secs(2));
    assert_eq!(cluster.job(0, waiting[0]).state, JobState::Queued);
    // A node that has it comes, or the pipeline asks for it no more.
    cluster.apply_pipeline(0, demanding("p", &[]));
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&waiting));
}

#[test]
fn a_partition_heals_into_one_coordinator_with_equal_copies() {
    let mut cluster = three();
    let coordinator = cluster.coordinator();
    let others: Vec<usize> = (0..3).filter(|index| *index != coordinator).collect();
    others.iter().for_each(|other| cluster.disconnect(coordinator, *other));
    let alone = cluster.enqueue_many(coordinator, "p", 10);
    cluster.run_for(Duration::from_secs(2));
    let together = cluster.enqueue_many(others[0], "p", 10);
    cluster.run_for(Duration::from_secs(5));
    others.iter().for_each(|other| cluster.connect(coordinator, *other));
    cluster.run_for(Duration::from_secs(15));
    assert_eq!(cluster.coordinators().len(), 1);
    assert!(cluster.all_succeeded(&alone) && cluster.all_succeeded(&together));
    let groups: Vec<_> = cluster
        .nodes
        .iter()
        .filter_map(|node| node.core.as_ref())
        .flat_map(|core| core.snapshot().groups.into_values())
        .map(|group| (group.live, group.finished))
        .collect();
    assert!(groups.iter().all(|group| *group == groups[0]), "{groups:?}");
}

#[test]
fn bad_requests_are_refused_with_the_reason() {
    let mut cluster = three();
    let unknown = cluster.enqueue(0, "nope", None, "{}").expect_err("unknown");
    assert_eq!(unknown.to_string(), "no pipeline is named `nope`: known are p");
    let large = "x".repeat((1 << 20) + 1);
    assert!(matches!(cluster.enqueue(0, "p", None, &large), Err(Refusal::TooLarge { .. })));
    let long_key = "k".repeat(300);
    assert!(matches!(
        cluster.enqueue(0, "p", Some(&long_key), "{}"),
        Err(Refusal::KeyLength { .. })
    ));
    let job = crate::id::JobId::MIN;
    let response = cluster.request(1, Request::Job { job, wait: None });
    assert_eq!(response, Response::Refused(Refusal::UnknownJob(job)));
}

#[test]
fn a_full_disk_refuses_jobs_and_says_so() {
    let mut cluster = three();
    for index in 0..3 {
        cluster.input(index, crate::io::Input::Accepting(Err("the disk is full".to_owned())));
    }
    let refusal = cluster.enqueue(0, "p", None, "{}").expect_err("refused");
    assert!(matches!(refusal, Refusal::StorageFull(_)), "{refusal}");
}

#[test]
fn a_pipeline_with_unfinished_jobs_stays_and_one_without_goes() {
    let mut cluster = three();
    cluster.automatic = false;
    let receipt = cluster.enqueue(0, "p", None, "{}").expect("accepted");
    cluster.run_for(Duration::from_secs(2));
    let refused = cluster.request(1, Request::Remove(name("p")));
    assert!(matches!(refused, Response::Refused(Refusal::PipelineInUse { unfinished: 1, .. })));
    cluster.automatic = true;
    for index in 0..3 {
        for attempt in std::mem::take(&mut cluster.nodes[index].attempts) {
            cluster.finish(index, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    cluster.wait_for(0, receipt.job);
    cluster.run_for(Duration::from_secs(2));
    assert_eq!(cluster.request(1, Request::Remove(name("p"))), Response::Removed);
    cluster.run_for(Duration::from_secs(2));
    assert!(matches!(cluster.enqueue(0, "p", None, "{}"), Err(Refusal::UnknownPipeline { .. })));
}

#[test]
fn a_pipeline_that_is_applied_again_takes_jobs_as_before() {
    for count in [1, 2, 3] {
        let mut cluster = Cluster::new(count, &PHASES);
        cluster.apply_pipeline(0, chain("p", &["a"]));
        let jobs = cluster.enqueue_many(0, "p", 5);
        cluster.run_until("done", |cluster| cluster.all_succeeded(&jobs));
        cluster.run_for(Duration::from_secs(5));
        assert_eq!(cluster.request(0, Request::Remove(name("p"))), Response::Removed);
        cluster.run_for(Duration::from_secs(5));
        cluster.apply_pipeline(0, chain("p", &["a"]));
        cluster.run_for(Duration::from_secs(5));
        let receipt = cluster.enqueue(0, "p", None, "{}").expect("accepted");
        assert_eq!((receipt.copies, receipt.degraded), (count as u32, false), "{count} nodes");
    }
}

#[test]
fn the_last_survivor_takes_over_at_once_though_it_started_just_now() {
    for lived in 0..20 {
        let mut cluster = Cluster::new(2, &PHASES);
        cluster.apply_pipeline(0, chain("p", &["a"]));
        let old = cluster.coordinator();
        let jobs = cluster.enqueue_many(old, "p", 10);
        cluster.run_for(Duration::from_millis(lived * 97));
        cluster.kill(old);
        let took =
            cluster.run_until("another coordinator", |cluster| cluster.coordinators().len() == 1);
        let Timing { minority_wait, election_step, .. } = Timing::DEFAULT;
        assert!(took <= minority_wait + election_step * 3 / 2, "{took:?}");
        cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    }
}

#[test]
fn a_node_that_starts_alone_looks_for_the_others_first() {
    let mut cluster = three();
    let jobs = cluster.enqueue_many(0, "p", 10);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    (0..3).for_each(|index| cluster.kill(index));
    cluster.start(0);
    cluster.run_for(Duration::from_secs(5));
    assert_eq!(cluster.coordinators().len(), 0, "the others may know more");
    let took = cluster.run_until("it decides", |cluster| cluster.coordinators().len() == 1);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_job_that_comes_in_twice_in_one_round_is_kept() {
    let mut cluster = three();
    cluster.coordinator();
    let receipt = cluster.enqueue(0, "p", Some("k"), "{}").expect("accepted");
    let record = |cluster: &Cluster, index: usize| {
        let core = cluster.nodes[index].core.as_ref().expect("it runs");
        core.record(crate::id::PipelineId::of_name("p"), receipt.job).expect("it reads")
    };
    let components = record(&cluster, 0).expect("it is there").components();
    let pipeline = crate::id::PipelineId::of_name("p");
    let update = crate::message::JobUpdate { job: JobId::of_key(pipeline, "other"), components };
    // Twice before any effect is taken: the second changes nothing, and must not undo the first.
    let from = cluster.nodes[0].config.node;
    let core = cluster.nodes[1].core.as_mut().expect("it runs");
    for part in [1, 2] {
        core.on_sync_push(
            from,
            (7, part),
            (pipeline, crate::id::Term::ZERO),
            std::slice::from_ref(&update),
        )
        .expect("it reads");
    }
    assert!(core.record(pipeline, update.job).expect("it reads").is_some());
    cluster.run_for(Duration::from_millis(50));
    cluster.kill(1);
    cluster.start(1);
    let core = cluster.nodes[1].core.as_ref().expect("it runs");
    assert!(core.record(pipeline, update.job).expect("it reads").is_some(), "it is on disk");
}

#[test]
fn a_candidate_gives_up_when_it_hears_of_a_later_term() {
    let mut cluster = three();
    let coordinator = cluster.coordinator();
    let pipeline = crate::id::PipelineId::of_name("p");
    let later = crate::id::Term { counter: 9, node: cluster.nodes[0].config.node, boot: 1 };
    let core = cluster.nodes[coordinator].core.as_mut().expect("it runs");
    core.note_term(pipeline, later);
    assert_eq!(core.snapshot().groups[&pipeline].coordinates, None);
    cluster.run_until("one coordinator", |cluster| cluster.coordinators().len() == 1);
    let new = cluster.coordinators()[0];
    let core = cluster.nodes[new].core.as_ref().expect("it runs");
    let group = &core.snapshot().groups[&pipeline];
    assert!(group.coordinates.is_some_and(|term| term.counter > 9), "{group:?}");
}

#[test]
fn a_key_used_twice_beyond_a_partition_is_one_job_and_flagged() {
    let mut cluster = three();
    let coordinator = cluster.coordinator();
    let others: Vec<usize> = (0..3).filter(|index| *index != coordinator).collect();
    others.iter().for_each(|other| cluster.disconnect(coordinator, *other));
    let one = cluster.enqueue(coordinator, "p", Some("k"), "{\"x\":1}").expect("accepted");
    let two = cluster.enqueue(others[0], "p", Some("k"), "{\"x\":2}").expect("accepted");
    assert_eq!(one.job, two.job);
    cluster.run_for(Duration::from_secs(5));
    others.iter().for_each(|other| cluster.connect(coordinator, *other));
    cluster.run_for(Duration::from_secs(25));
    for index in 0..3 {
        let view = cluster.wait_for(index, one.job);
        assert_eq!((view.state, view.other_payloads), (JobState::Succeeded, 1), "{view:?}");
    }
}

#[test]
fn an_end_of_a_phase_that_a_job_does_not_have_changes_nothing() {
    let mut cluster = three();
    let receipt = cluster.enqueue(0, "p", None, "{}").expect("it is taken");
    let at = cluster.coordinator();
    let from = cluster.nodes[0].config.node;
    let core = cluster.nodes[at].core.as_mut().expect("it runs");
    let pipeline = crate::id::PipelineId::of_name("p");
    let term = crate::id::Term { counter: 1, node: from, boot: 1 };
    let token = crate::id::Token { term, sequence: 9 };
    let outcome = crate::io::Outcome::Succeeded("{}".into());
    let (job, step) = (receipt.job, 9);
    let end =
        crate::message::Completion { token, pipeline, job, step, outcome, items: 0, session: None };
    core.on_completed(from, end).expect("it reads");
    let record = core.record(pipeline, job).expect("it reads").expect("it is there");
    assert!(!record.controls.contains_key(&9), "{record:?}");
}

#[test]
fn a_phase_whose_condition_does_not_hold_is_left_out_and_the_job_goes_on() {
    let mut cluster = three();
    let when = |phase: &str, when: &str| crate::pipeline::PhaseInput {
        when: Some(when.to_owned()),
        ..crate::pipeline::PhaseInput::named(name(phase))
    };
    let first = crate::pipeline::PhaseInput::named(name("a"));
    let phases = vec![
        first.clone(),
        when("b", "results.a.a > `1`"),
        when("c", "results.a.a == `1` && instructions.x == 'y' && !(results.b)"),
    ];
    let pipeline = crate::pipeline::PipelineDef::new(name("q"), phases).expect("valid");
    cluster.apply_pipeline(0, pipeline);
    let job = cluster.enqueue(1, "q", None, "{\"x\":\"y\"}").expect("accepted").job;
    let view = cluster.wait_for(2, job);
    assert_eq!(view.state, JobState::Succeeded);
    let runs: Vec<u32> = view.invocations.iter().map(|it| it.attempt_count).collect();
    assert_eq!(runs, [1, 0, 1]);
    assert!(view.invocations[1].note.as_ref().is_some_and(|note| note.contains("left out")));
    // That is no error.
    let list = |pipeline: &str| Request::Jobs {
        pipeline: name(pipeline),
        of: None,
        state: None,
        after: None,
        limit: 10,
    };
    let Response::Jobs { jobs, .. } = cluster.request(0, list("q")) else { panic!("no list") };
    assert_eq!(jobs[0].error, None);
    // One that cannot be applied fails the job, with the reason.
    let phases = vec![first, when("b", "length(results.a.a)")];
    let pipeline = crate::pipeline::PipelineDef::new(name("r"), phases).expect("valid");
    cluster.apply_pipeline(0, pipeline);
    let job = cluster.enqueue(1, "r", None, "{}").expect("accepted").job;
    let view = cluster.wait_for(2, job);
    assert_eq!(view.state, JobState::Dead);
    assert!(view.invocations[1].note.as_ref().is_some_and(|note| note.contains("condition")));
    let Response::Jobs { jobs, .. } = cluster.request(0, list("r")) else { panic!("no list") };
    assert!(jobs[0].error.as_ref().is_some_and(|error| error.contains("condition")));
}

#[test]
fn a_coordinator_that_is_told_to_stop_hands_over_before_it_goes() {
    for strict in [false, true] {
        let mut cluster = Cluster::new(3, &PHASES);
        let phases = vec![crate::pipeline::PhaseInput::named(name("a"))];
        let quorum = if strict { Quorum::Majority } else { Quorum::Any };
        let settings = Settings { accept: quorum, execute: quorum, ..Settings::default() };
        let pipeline = PipelineDef::with(name("p"), phases, settings).expect("valid");
        cluster.apply_pipeline(0, pipeline);
        cluster.run_time = Duration::from_secs(2);
        let coordinator = cluster.coordinator();
        cluster.run_for(Duration::from_secs(5));
        let jobs = cluster.enqueue_many((coordinator + 1) % 3, "p", 12);
        cluster.run_for(Duration::from_millis(500));
        cluster.input(coordinator, Input::Draining);
        let took = cluster.run_until("another coordinates", |cluster| {
            let coordinators = cluster.coordinators();
            coordinators.len() == 1 && !coordinators.contains(&coordinator)
        });
        assert!(took < Duration::from_millis(1500), "strict {strict}: {took:?}");
        cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
        // What ran there was adopted.
        assert!(cluster.runs.values().all(|runs| *runs == 1), "{:?}", cluster.runs);
    }
}

#[test]
fn a_worker_follows_whom_the_replicas_elect_though_it_heard_of_a_later_term() {
    let mut cluster = Cluster::new(4, &PHASES);
    let (gone, worker) = (0, 3);
    for index in 0..4 {
        cluster.kill(index);
        let config = &mut cluster.nodes[index].config;
        match index == worker {
            true => config.roles = Roles { worker: true, replica: false, gateway: false },
            false => config.phases.clear(),
        }
        cluster.start(index);
    }
    cluster.run_for(Duration::from_secs(1));
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.run_for(Duration::from_secs(5));
    let cut = |cluster: &mut Cluster| {
        [1, 2].iter().for_each(|other| cluster.disconnect(gone, *other));
    };
    cut(&mut cluster);
    [1, 2].iter().for_each(|other| cluster.disconnect(worker, *other));
    for _ in 0..3 {
        // Each time it is elected in a later term.
        cluster.kill(gone);
        cluster.start(gone);
        cut(&mut cluster);
        cluster.run_until("it coordinates", |cluster| cluster.coordinators().contains(&gone));
    }
    cluster.run_for(Duration::from_secs(2));
    cluster.kill(gone);
    [1, 2].iter().for_each(|other| cluster.connect(worker, *other));
    let pipeline = PipelineId::of_name("p");
    let highest = |index: usize| {
        let core = cluster.nodes[index].core.as_ref().expect("it runs");
        core.groups[&pipeline].promise.highest
    };
    assert!(highest(worker) > highest(1), "{} {}", highest(worker), highest(1));
    let job = cluster.enqueue(1, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(1, job).state, JobState::Succeeded);
}

#[test]
fn a_job_that_comes_before_the_definition_it_follows_is_taken_up_with_it() {
    let mut cluster = three();
    let coordinator = cluster.coordinator();
    let definition = chain("p", &["b", "a"]);
    let (pipeline, revision) = (definition.id(), definition.revision());
    let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
    let changed = core.catalog[&pipeline].changed(definition);
    let spec = JobSpec {
        generation: 0,
        revision,
        phases: 2,
        created_ms: core.wall_ms(),
        term: None,
        options: JobOptions::default(),
        key: None,
        parent: None,
        compensates: None,
        instructions: "{}".into(),
    };
    let job = JobId::of_key(pipeline, "k");
    let records = vec![JobUpdate { job, components: JobRecord::new(spec).components() }];
    let push = Message::SyncPush { session: 1, part: 1, pipeline, term: Term::ZERO, records };
    let from = cluster.nodes[(coordinator + 1) % 3].config.node;
    cluster.input(coordinator, Input::Message { from, message: push });
    cluster.run_for(Duration::from_secs(3));
    assert!(!cluster.all_succeeded(&[job]));
    let message = Message::Catalog(vec![changed]);
    cluster.input(coordinator, Input::Message { from, message });
    cluster.run_until("it is done", |cluster| cluster.all_succeeded(&[job]));
}
