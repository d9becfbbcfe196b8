//! Jobs that fan out: items, what is made of them, and what comes behind.

use std::{sync::Arc, time::Duration};

use crate::{
    codec,
    id::{JobId, PipelineId, Term},
    io::{Change, Input, Outcome, Refusal, Request, Response, Target},
    message::{JobUpdate, Message},
    pipeline::{Combine, EachInput, Keep, PhaseInput, PipelineDef, Retention, Settings},
    record::{Component, FIRST_CONTROL, Progress, REAPED, Reaped, SPEC},
    view::{JobState, JobSummary},
};

use super::cluster::{Cluster, chain, name};

const PHASES: [(&str, u32); 3] = [("split", 4), ("count", 8), ("sum", 4)];

/// `split` gives items, `count` runs for each, `sum` gets what they gave.
fn definition(tolerate_percent: u8, retention: Retention) -> PipelineDef {
    let each = EachInput {
        of: name("split"),
        phases: vec![PhaseInput::named(name("count"))],
        tolerate_percent,
        combine: Combine::List,
    };
    let count = PhaseInput { each: Some(each), ..PhaseInput::named(name("count")) };
    let phases = vec![PhaseInput::named(name("split")), count, PhaseInput::named(name("sum"))];
    let settings = Settings { retention, ..Settings::default() };
    PipelineDef::with(name("p"), phases, settings).expect("a valid pipeline")
}

fn fanning(items: u32, tolerate_percent: u8) -> Cluster {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.items = items;
    cluster.apply_pipeline(0, definition(tolerate_percent, Retention::DEFAULT));
    cluster.coordinator();
    cluster
}

fn items_of(cluster: &mut Cluster, job: JobId) -> Vec<JobSummary> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let (pipeline, limit) = (name("p"), 100);
        let request = Request::Jobs { pipeline, of: Some(job), state: None, after, limit };
        match cluster.request(1, request) {
            Response::Jobs { jobs, next } => {
                all.extend(jobs);
                match next {
                    Some(_) => after = next,
                    None => return all,
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

fn gathered(cluster: &Cluster) -> Vec<usize> {
    let count = |results: &[u8]| {
        serde_json::from_slice::<Vec<serde_json::Value>>(results).expect("a list").len()
    };
    cluster.gathered.iter().map(|gathered| count(&gathered.results)).collect()
}

fn runs_of(cluster: &Cluster, step: &str) -> u32 {
    cluster.runs.iter().filter(|((_, at), _)| at.as_str() == step).map(|(_, runs)| *runs).sum()
}

#[test]
fn each_item_runs_once_and_all_results_go_to_the_phase_behind() {
    let mut cluster = fanning(3000, 0);
    // Long enough for a coordinator to know that it has heard of everything.
    cluster.run_for(Duration::from_secs(60));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let view = cluster.wait_for(2, job);
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    assert_eq!((runs_of(&cluster, "count"), runs_of(&cluster, "sum")), (3000, 1));
    assert_eq!((runs_of(&cluster, "split"), view.generation), (1, 0));
    assert_eq!(gathered(&cluster), [3000]);
    let items = items_of(&mut cluster, job);
    assert_eq!(items.len(), 3000);
    assert!(items.iter().all(|item| item.state == JobState::Succeeded));
    // They are parts of a job, and no jobs of their own.
    let request = Request::Jobs {
        pipeline: name("p"),
        of: None,
        state: Some(JobState::Succeeded),
        after: None,
        limit: 100,
    };
    match cluster.request(0, request) {
        Response::Jobs { jobs, .. } => assert_eq!(jobs.len(), 1),
        other => panic!("{other:?}"),
    }
    cluster.run_for(Duration::from_secs(2));
    let view = cluster.view(0);
    let counts = view.pipelines[0].counts.expect("counted");
    assert_eq!((counts.succeeded, counts.queued, counts.items), (1, 0, 0));
}

#[test]
fn no_items_are_no_work() {
    let mut cluster = fanning(0, 0);
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(gathered(&cluster), [0]);
}

#[test]
fn a_failed_item_fails_its_job_and_a_retry_runs_that_one_alone() {
    let mut cluster = fanning(20, 0);
    cluster.failing.insert("{\"item\":7}".into());
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let view = cluster.wait_for(0, job);
    assert_eq!(view.state, JobState::Dead);
    let note = view.invocations[1].note.clone().expect("a reason");
    assert!(note.contains("1 of 20 items failed") && note.contains("item 7"), "{note}");
    cluster.run_for(Duration::from_secs(2));
    let succeeded = items_of(&mut cluster, job);
    let succeeded = succeeded.iter().filter(|it| it.state == JobState::Succeeded).count();
    let ran = runs_of(&cluster, "count");
    cluster.failing.clear();
    let (target, change) = (Target::Job(job), Change::Retry { from_start: false });
    cluster.request(2, Request::Change { target, change });
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(gathered(&cluster), [20]);
    // What succeeded is not done again.
    assert_eq!(runs_of(&cluster, "count") - ran, 20 - succeeded as u32);
    assert_eq!(runs_of(&cluster, "split"), 1);
}

#[test]
fn so_many_items_may_fail_as_the_pipeline_says() {
    let mut cluster = fanning(20, 10);
    cluster.failing.extend(["{\"item\":7}".into(), "{\"item\":8}".into()]);
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(gathered(&cluster), [18]);
}

#[test]
fn what_was_read_before_a_retry_does_not_go_to_the_phase_behind() {
    let mut cluster = Cluster::new(1, &[("split", 4), ("count", 8), ("sum", 1)]);
    cluster.apply_pipeline(0, definition(0, Retention::DEFAULT));
    cluster.coordinator();
    cluster.run_for(Duration::from_secs(1));
    cluster.run_time = Duration::from_secs(1);
    let jobs = cluster.enqueue_many(0, "p", 2);
    // What both gave is read, and one waits for the worker that the other has.
    cluster.run_until("one has all it needs", |cluster| runs_of(cluster, "sum") == 1);
    cluster.run_for(Duration::from_millis(100));
    let ran = |job: &&JobId| cluster.runs.contains_key(&(**job, name("sum")));
    let job = *jobs.iter().find(|job| !ran(job)).expect("one waits");
    cluster.items = 3;
    // The second change comes before the first is on disk.
    for change in [Change::Cancel { reason: "no".to_owned() }, Change::Retry { from_start: true }] {
        cluster.ask(0, Request::Change { target: Target::Job(job), change });
    }
    cluster.run_until("done", |cluster| cluster.all_succeeded(&jobs));
    assert_eq!(gathered(&cluster), [0, 3]);
}

#[test]
fn what_was_read_of_other_items_does_not_go_to_the_phase_behind() {
    let mut cluster = fanning(2, 0);
    let (pipeline, coordinator) = (PipelineId::of_name("p"), cluster.coordinator());
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let record = |cluster: &Cluster| {
        let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
        core.record(pipeline, job).expect("readable").expect("known")
    };
    cluster.run_until("the phase behind is given out", |cluster| {
        let controls = record(cluster).controls;
        controls.get(&2).is_some_and(|it| it.state() == JobState::Running)
    });
    assert_eq!(runs_of(&cluster, "sum"), 0, "not before that is durable");
    // Beyond a cut another attempt gave no items.
    let mut records = record(&cluster);
    let components = [0, 1].map(|step| {
        let control = records.controls.get_mut(&step).expect("it ended");
        let Progress::Succeeded { token, .. } = &mut control.progress else {
            panic!("{control:?}")
        };
        token.sequence += 1000;
        (control.sequence, control.items) = (control.sequence + 1000, 0);
        Component { tag: FIRST_CONTROL + step, bytes: codec::encode(control) }
    });
    let records = vec![JobUpdate { job, components: components.into() }];
    let message = Message::SyncPush { session: 1, part: 1, pipeline, term: Term::ZERO, records };
    let from = cluster.nodes[(coordinator + 1) % 3].config.node;
    cluster.input(coordinator, Input::Message { from, message });
    cluster.run_until("it is given back, as if it had never begun", |cluster| {
        let controls = record(cluster).controls;
        let given_back = controls.get(&2).filter(|it| it.state() == JobState::Queued);
        given_back.is_some_and(|it| (it.attempt_count, it.since_ms) == (0, 0))
    });
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    assert_eq!(gathered(&cluster), [0]);
}

#[test]
fn a_lost_coordinator_costs_no_item() {
    let mut cluster = fanning(300, 0);
    cluster.run_time = Duration::from_millis(50);
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.run_until("some items ran", |cluster| runs_of(cluster, "count") > 100);
    let coordinator = cluster.coordinator();
    cluster.kill(coordinator);
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    assert_eq!(gathered(&cluster), [300]);
}

#[test]
fn a_cancelled_job_takes_its_items_along() {
    let mut cluster = fanning(100, 0);
    cluster.run_time = Duration::from_secs(1);
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.run_until("some items run", |cluster| runs_of(cluster, "count") > 10);
    let (target, change) = (Target::Job(job), Change::Cancel { reason: "no".to_owned() });
    cluster.request(0, Request::Change { target, change });
    cluster.run_for(Duration::from_secs(3));
    assert!(runs_of(&cluster, "count") < 100);
    let items = items_of(&mut cluster, job);
    assert!(items.iter().all(|item| item.state.is_terminal()), "{items:?}");
}

/// The job's mark comes to its coordinator from another side of a cut.
fn mark_comes(cluster: &mut Cluster, job: JobId) {
    let (pipeline, coordinator) = (PipelineId::of_name("p"), cluster.coordinator());
    let at_ms = cluster.nodes[coordinator].core.as_ref().expect("it runs").wall_ms();
    let bytes = codec::encode(&Reaped { generation: 0, at_ms });
    let records = vec![JobUpdate { job, components: vec![Component { tag: REAPED, bytes }] }];
    let message = Message::SyncPush { session: 1, part: 1, pipeline, term: Term::ZERO, records };
    let from = cluster.nodes[(coordinator + 1) % 3].config.node;
    cluster.input(coordinator, Input::Message { from, message });
}

#[test]
fn items_end_when_their_job_was_forgotten_elsewhere() {
    let unfinished = |cluster: &Cluster| {
        let items = cluster.nodes.iter().filter_map(|node| node.core.as_ref());
        let items = items.map(|core| core.snapshot().groups[&PipelineId::of_name("p")].live.count);
        items.max().unwrap_or_default()
    };
    for early in [true, false] {
        let mut cluster = fanning(100, 0);
        cluster.run_time = Duration::from_secs(1);
        let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
        // At first its first phase still gives them.
        let ran = |cluster: &Cluster| early || runs_of(cluster, "count") > 10;
        cluster.run_until("there are items", |cluster| unfinished(cluster) > 50 && ran(cluster));
        mark_comes(&mut cluster, job);
        cluster.run_until("all have ended", |cluster| unfinished(cluster) == 0);
        assert!(runs_of(&cluster, "count") < 100);
    }
}

#[test]
fn items_end_when_their_job_follows_another_definition_elsewhere() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.items = 100;
    let first = chain("p", &["sum"]);
    cluster.apply_pipeline(0, first.clone());
    cluster.apply_pipeline(0, definition(0, Retention::DEFAULT));
    cluster.run_time = Duration::from_secs(1);
    let (pipeline, coordinator) = (PipelineId::of_name("p"), cluster.coordinator());
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let unfinished = |cluster: &Cluster| {
        let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
        core.snapshot().groups[&pipeline].live.count
    };
    cluster.run_until("some items ran", |cluster| runs_of(cluster, "count") > 10);
    // Beyond a cut it was enqueued before the definition had come there, and earlier.
    let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
    let mut spec =
        core.record(pipeline, job).expect("readable").expect("known").spec.expect("known");
    let earlier = Arc::make_mut(&mut spec);
    (earlier.revision, earlier.phases, earlier.created_ms) = (first.revision(), 1, 1);
    let bytes = codec::encode(&*spec);
    let records = vec![JobUpdate { job, components: vec![Component { tag: SPEC, bytes }] }];
    let message = Message::SyncPush { session: 1, part: 1, pipeline, term: Term::ZERO, records };
    let from = cluster.nodes[(coordinator + 1) % 3].config.node;
    cluster.input(coordinator, Input::Message { from, message });
    cluster.run_until("all have ended", |cluster| unfinished(cluster) == 0);
    assert!(runs_of(&cluster, "count") < 100);
    assert_eq!(cluster.job(0, job).state, JobState::Succeeded);
}

#[test]
fn items_are_forgotten_with_their_job() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.items = 2500;
    let keep = Keep { age: Some(Duration::from_secs(3)), count: None };
    let retention = Retention { succeeded: keep, ..Retention::DEFAULT };
    cluster.apply_pipeline(0, definition(0, retention));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[job]));
    let pipeline = PipelineId::of_name("p");
    let forgotten = |cluster: &Cluster, job: JobId| {
        cluster.nodes.iter().all(|node| {
            let record = node.core.as_ref().map(|core| core.record(pipeline, job));
            let record = record.and_then(|it| it.expect("the disk can be read"));
            record.is_some_and(|record| record.is_reaped())
        })
    };
    let items = items_of(&mut cluster, job);
    assert_eq!(items.len(), 2500);
    cluster.run_until("forgotten", |cluster| forgotten(cluster, job));
    assert!(items.iter().all(|item| forgotten(&cluster, item.job)));
}

#[test]
fn items_whose_condition_does_not_hold_give_nothing_and_end() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.items = 1500;
    let mut pipeline = definition(0, Retention::DEFAULT);
    let each = pipeline.phases[1].each.as_mut().expect("for items");
    each.phases[0].when = Some("instructions.item > `1400`".to_owned());
    cluster.apply_pipeline(0, pipeline);
    cluster.run_for(Duration::from_secs(60));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let view = cluster.wait_for(0, job);
    assert_eq!((view.state, view.generation), (JobState::Succeeded, 0));
    assert_eq!((runs_of(&cluster, "split"), runs_of(&cluster, "count")), (1, 99));
    assert_eq!(gathered(&cluster), [1500]);
}

#[test]
fn an_item_is_changed_with_its_job_only() {
    let mut cluster = fanning(3, 0);
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.wait_for(0, job);
    let item = items_of(&mut cluster, job)[0].job;
    let (target, change) = (Target::Job(item), Change::Discard);
    let refused = cluster.request(2, Request::Change { target, change });
    let expected = Refusal::PartOf { job: item, parent: job };
    assert_eq!(refused, Response::Refused(expected));
}

#[test]
fn an_attempt_that_fails_leaves_no_items_behind() {
    let mut cluster = fanning(0, 0);
    // It gives items by hand, then fails for good.
    cluster.automatic = false;
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster
        .run_until("it runs", |cluster| cluster.nodes.iter().any(|node| !node.attempts.is_empty()));
    let index = (0..3).find(|at| !cluster.nodes[*at].attempts.is_empty()).expect("one");
    let token = cluster.nodes[index].attempts[0].token;
    let lines = "{\"item\":1}\n{\"item\":2}\n".into();
    cluster.input(index, Input::Items { token, lines });
    cluster.run_for(Duration::from_secs(1));
    let (error, retry, after) = ("no".to_owned(), false, None);
    cluster.finish(index, token, Outcome::Failed { error, retry, after });
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    cluster.run_for(Duration::from_secs(3));
    let items = items_of(&mut cluster, job);
    assert_eq!(items.len(), 2);
    assert!(items.iter().all(|item| item.state == JobState::Cancelled), "{items:?}");
}
