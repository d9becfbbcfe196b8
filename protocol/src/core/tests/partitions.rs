//! Pipelines that are split.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    catalog::CatalogEntry,
    id::{JobId, PipelineId},
    io::{Change, Input, NewJob, Receipt, Refusal, Request, Response, Target},
    message::Message,
    pipeline::{PhaseInput, PipelineDef, Quorum, Rate, Settings},
    view::{JobState, PipelineView},
};

use super::cluster::{Cluster, name};

const PHASES: [(&str, u32); 2] = [("a", 4), ("b", 4)];

fn split(partitions: u16) -> PipelineDef {
    let phases = ["a", "b"].map(|phase| PhaseInput::named(name(phase))).to_vec();
    let settings = Settings { partitions, ..Settings::default() };
    PipelineDef::with(name("p"), phases, settings).expect("valid")
}

/// Three nodes and a pipeline of so many partitions, each with a coordinator.
fn three(partitions: u16) -> Cluster {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, split(partitions));
    cluster.run_for(Duration::from_secs(3));
    cluster
}

fn view(cluster: &mut Cluster, index: usize) -> PipelineView {
    let pipelines = cluster.view(index).pipelines;
    assert_eq!(pipelines.len(), 1, "partitions are no pipelines of their own");
    pipelines.into_iter().next().expect("one")
}

fn enqueue(cluster: &mut Cluster, index: usize, keys: &[Option<&str>]) -> Vec<Receipt> {
    let job = |key: &Option<&str>| NewJob {
        key: key.map(str::to_owned),
        options: Default::default(),
        trace: None,
        instructions: "{}".into(),
    };
    let request = Request::Enqueue { pipeline: name("p"), jobs: keys.iter().map(job).collect() };
    match cluster.request(index, request) {
        Response::Enqueued(answers) => {
            answers.into_iter().map(|answer| answer.expect("accepted")).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn partition_of(job: JobId) -> u16 {
    let is_in = |at: &u16| job.may_belong_to(PipelineId::of_partition("p", *at));
    (0..64).find(is_in).expect("a partition")
}

/// All that pages of two list.
fn list(cluster: &mut Cluster, newest: bool) -> Vec<JobId> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (pipeline, state, limit) = (name("p"), None, 2);
        let request = match newest {
            true => Request::Newest { pipeline, state, after, limit },
            false => Request::Jobs { pipeline, of: None, state, after, limit },
        };
        let Response::Jobs { jobs, next } = cluster.request(1, request) else { panic!("no page") };
        assert!(jobs.len() <= 2, "{jobs:?}");
        all.extend(jobs.into_iter().map(|summary| summary.job));
        if next.is_none() {
            return all;
        }
        after = next;
    }
}

#[test]
fn each_partition_has_a_coordinator_of_its_own_and_jobs_go_to_all() {
    let mut cluster = three(6);
    let shown = view(&mut cluster, 1);
    assert_eq!((shown.partitions.len(), shown.definition.partitions), (6, 6));
    let by: BTreeSet<_> =
        shown.partitions.iter().map(|part| part.coordinator.expect("one").0).collect();
    assert_eq!(by.len(), 3, "six partitions are spread over three nodes");
    let jobs: Vec<JobId> = (0..12).map(|_| enqueue(&mut cluster, 1, &[None])[0].job).collect();
    let used: BTreeSet<u16> = jobs.iter().map(|job| partition_of(*job)).collect();
    assert_eq!(used.len(), 6);
    for &job in &jobs {
        let done = cluster.wait_for(2, job);
        assert_eq!((done.state, done.pipeline.as_str()), (JobState::Succeeded, "p"));
    }
    assert!(cluster.runs.values().all(|runs| *runs == 1), "{:?}", cluster.runs);
    cluster.run_for(Duration::from_secs(3));
    for index in 0..3 {
        assert_eq!(view(&mut cluster, index).counts.map(|counts| counts.succeeded), Some(12));
    }
}

#[test]
fn receipts_stand_where_their_jobs_stood_and_a_key_is_one_job() {
    let mut cluster = three(4);
    let names: Vec<String> = (0..20).map(|at| format!("k{at}")).collect();
    let keys: Vec<Option<&str>> = names.iter().map(|key| Some(key.as_str())).collect();
    let first = enqueue(&mut cluster, 0, &keys);
    for (key, receipt) in names.iter().zip(&first) {
        let of = PipelineId::of_partition("p", partition_of(receipt.job));
        assert_eq!(receipt.job, JobId::of_key(of, key));
    }
    let used: BTreeSet<u16> = first.iter().map(|it| partition_of(it.job)).collect();
    assert!(used.len() > 1, "{used:?}");
    let again = enqueue(&mut cluster, 2, &keys);
    assert!(again.iter().zip(&first).all(|(it, first)| it.existed && it.job == first.job));
}

#[test]
fn a_pipeline_that_is_split_later_keeps_its_keys_and_its_jobs() {
    let mut cluster = three(1);
    let first = enqueue(&mut cluster, 0, &[Some("x"), Some("y"), Some("z")]);
    cluster.apply_pipeline(1, split(4));
    cluster.run_for(Duration::from_secs(3));
    let again = enqueue(&mut cluster, 2, &[Some("x"), Some("y"), Some("z"), None]);
    assert!(again[..3].iter().zip(&first).all(|(it, first)| it.existed && it.job == first.job));
    let more: Vec<u16> =
        (0..4).map(|_| partition_of(enqueue(&mut cluster, 0, &[None])[0].job)).collect();
    assert_eq!(more.iter().collect::<BTreeSet<_>>().len(), 4, "{more:?}");
    // A node that starts anew knows all of them.
    cluster.kill(2);
    cluster.start(2);
    cluster.run_for(Duration::from_secs(5));
    assert_eq!(view(&mut cluster, 2).partitions.len(), 4);
    let fewer = cluster.request(0, Request::Apply(Box::new(split(2))));
    let Response::Refused(Refusal::InvalidPipeline(why)) = fewer else { panic!("{fewer:?}") };
    assert!(why.contains("has 4 partitions") && why.contains("or more"), "{why}");
}

/// Catalogs come in several messages where there are many pipelines: for a while a node may know some
/// partitions of one and not the others.
#[test]
fn a_key_waits_for_its_partition() {
    let mut cluster = Cluster::new(2, &PHASES);
    let founders = cluster.nodes.iter().map(|node| (node.config.node, node.config.disk));
    let founders: BTreeSet<_> = founders.collect();
    let entry = |at| CatalogEntry::new(split(3).of_partition(at), founders.clone());
    let from = cluster.nodes[1].config.node;
    let learn = |cluster: &mut Cluster, at: &[u16]| {
        let message = Message::Catalog(at.iter().map(|at| entry(*at)).collect());
        cluster.input(0, Input::Message { from, message });
        cluster.run_for(Duration::from_secs(3));
    };
    let keys: Vec<String> = (0..20).map(|at| format!("k{at}")).collect();
    let ask = |cluster: &mut Cluster| {
        let job = |key: &String| NewJob {
            key: Some(key.clone()),
            options: Default::default(),
            trace: None,
            instructions: "{}".into(),
        };
        let jobs = keys.iter().map(job).collect();
        match cluster.request(0, Request::Enqueue { pipeline: name("p"), jobs }) {
            Response::Enqueued(answers) => answers,
            other => panic!("{other:?}"),
        }
    };
    for known in [vec![0], vec![2]] {
        learn(&mut cluster, &known);
        let answers = ask(&mut cluster);
        let refused = answers.iter().filter(|answer| answer.is_err()).count();
        assert!((1..20).contains(&refused), "{refused} of 20 keys wait");
        for (key, answer) in keys.iter().zip(answers) {
            match answer {
                Ok(receipt) => {
                    let of = PipelineId::of_partition("p", partition_of(receipt.job));
                    assert_eq!(receipt.job, JobId::of_key(of, key));
                    assert_ne!(partition_of(receipt.job), 1);
                }
                Err(refusal) => assert_eq!(refusal, Refusal::NoCoordinator("p".to_owned())),
            }
        }
        let removed = cluster.request(0, Request::Remove(name("p")));
        assert!(matches!(removed, Response::Refused(Refusal::NoCoordinator(_))), "{removed:?}");
    }
    let before: Vec<_> = ask(&mut cluster).into_iter().map(Result::ok).collect();
    learn(&mut cluster, &[1]);
    for (before, now) in before.into_iter().zip(ask(&mut cluster)) {
        let now = now.expect("all partitions are known");
        assert_eq!(now.existed, before.is_some());
        assert!(before.is_none_or(|before| before.job == now.job));
    }
}

#[test]
fn lists_have_each_job_once_and_the_newest_first() {
    let mut cluster = three(3);
    let mut jobs = Vec::new();
    for at in 0..11 {
        let key = format!("k{at}");
        jobs.push(enqueue(&mut cluster, 0, &[Some(key.as_str()).filter(|_| at % 4 == 0)])[0].job);
        cluster.run_for(Duration::from_millis(5));
    }
    let listed = list(&mut cluster, false);
    assert_eq!(listed.len(), jobs.len());
    assert_eq!(listed.iter().collect::<BTreeSet<_>>(), jobs.iter().collect());
    let newest = list(&mut cluster, true);
    assert_eq!(newest.len(), jobs.len());
    assert_eq!(newest.iter().collect::<BTreeSet<_>>(), jobs.iter().collect());
    let ordered = |all: &[JobId]| -> Vec<JobId> {
        all.iter().copied().filter(|job| job.is_time_ordered()).collect()
    };
    let mut expected = ordered(&jobs);
    expected.reverse();
    assert_eq!(ordered(&newest), expected);
}

#[test]
fn a_change_of_many_jobs_goes_through_all_partitions() {
    let mut cluster = three(3);
    cluster.automatic = false;
    for _ in 0..9 {
        enqueue(&mut cluster, 0, &[None]);
    }
    let paused = Request::Pause { pipeline: name("p"), step: None, paused: true };
    assert!(matches!(cluster.request(1, paused), Response::Applied { .. }));
    for _ in 0..9 {
        enqueue(&mut cluster, 0, &[None]);
    }
    cluster.run_for(Duration::from_secs(2));
    let steps = cluster.request(2, Request::Steps(name("p")));
    let Response::Steps(steps) = steps else { panic!("{steps:?}") };
    assert_eq!(steps.iter().map(|step| step.waiting + step.running).sum::<u64>(), 18);
    let (mut changed, mut after) = (0, None);
    for state in [JobState::Queued, JobState::Running] {
        loop {
            let target = Target::Jobs { pipeline: name("p"), state, after, limit: 2 };
            let change = Change::Cancel { reason: "enough".to_owned() };
            match cluster.request(1, Request::Change { target, change }) {
                Response::Changed(page) => {
                    changed += page.count;
                    after = page.next;
                }
                other => panic!("{other:?}"),
            }
            if after.is_none() {
                break;
            }
        }
    }
    assert_eq!(changed, 18);
    cluster.run_for(Duration::from_secs(3));
    let counts = view(&mut cluster, 0).counts.expect("all are known");
    assert_eq!((counts.cancelled, counts.queued + counts.running), (18, 0));
    assert!(matches!(cluster.request(2, Request::Remove(name("p"))), Response::Removed));
    assert!(cluster.view(0).pipelines.is_empty());
}

#[test]
fn a_lost_node_costs_no_job_of_any_partition() {
    let mut cluster = three(6);
    let jobs: Vec<JobId> =
        (0..30).map(|at| enqueue(&mut cluster, at % 2, &[None])[0].job).collect();
    cluster.kill(2);
    let more: Vec<JobId> =
        (0..30).map(|at| enqueue(&mut cluster, at % 2, &[None])[0].job).collect();
    for job in jobs.into_iter().chain(more) {
        assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    }
    let shown = view(&mut cluster, 0);
    assert!(shown.partitions.iter().all(|part| part.coordinator.is_some()), "{shown:?}");
}

#[test]
fn what_takes_one_coordinator_cannot_be_split() {
    let with = |change: fn(&mut PhaseInput, &mut Settings)| {
        let mut phase = PhaseInput::named(name("a"));
        let mut settings = Settings { partitions: 2, ..Settings::default() };
        change(&mut phase, &mut settings);
        PipelineDef::with(name("p"), vec![phase], settings).map_err(|error| error.to_string())
    };
    assert!(with(|_, _| {}).is_ok());
    let refused = with(|phase, _| {
        phase.rate = Some(Rate { count: 1, per: Duration::from_secs(1) });
    });
    assert!(
        refused.expect_err("a rate").contains("partitions is 2, and it has a phase with a `rate`")
    );
    let refused = with(|_, settings| settings.execute = Quorum::Majority);
    assert!(refused.expect_err("strict").contains("execute = \"majority\""));
    let refused = with(|_, settings| settings.partitions = 65);
    assert!(refused.expect_err("too many").contains("partitions is 65"));
}

#[test]
fn of_two_definitions_applied_at_once_all_partitions_take_the_same() {
    let with = |hours: u64| {
        let timeout = Some(Duration::from_secs(3600 * hours));
        PipelineDef { timeout, ..split(4) }
    };
    for hours in 1..20 {
        let taken: BTreeSet<_> = (0..4)
            .map(|at| {
                let before = CatalogEntry::new(split(4).of_partition(at), BTreeSet::new());
                let mut here = before.changed(with(hours).of_partition(at));
                here.merge(&before.changed(with(hours + 20).of_partition(at)));
                here.definition().and_then(|definition| definition.timeout)
            })
            .collect();
        assert_eq!(taken.len(), 1, "{taken:?}");
    }
}

#[test]
fn a_node_that_knows_few_partitions_makes_them_no_fewer() {
    let mut cluster = Cluster::new(2, &PHASES);
    let (node, from) = (&cluster.nodes[0].config, cluster.nodes[1].config.node);
    let founders = BTreeSet::from([(node.node, node.disk)]);
    let known = CatalogEntry::new(split(6).of_partition(0), founders);
    cluster.input(0, Input::Message { from, message: Message::Catalog(vec![known]) });
    let fewer = cluster.request(0, Request::Apply(Box::new(split(3))));
    let Response::Refused(Refusal::InvalidPipeline(why)) = fewer else { panic!("{fewer:?}") };
    assert!(why.contains("has 6 partitions"), "{why}");
}

#[test]
fn nothing_enqueued_is_answered_too() {
    let mut cluster = three(3);
    assert_eq!(enqueue(&mut cluster, 0, &[]).len(), 0);
}

#[test]
fn a_run_of_a_schedule_is_one_job_whoever_enqueues_it() {
    let mut cluster = three(6);
    for run in 0..10 {
        let key = format!("schedule/nightly/2026-03-29T01:0{run}:00Z");
        assert_eq!(partition_of(enqueue(&mut cluster, 0, &[Some(key.as_str())])[0].job), 0);
    }
}
