//! Who keeps copies: places that are taken, stood in for and given back, and what is left over.

use std::time::Duration;

use crate::{
    id::{JobId, PipelineId},
    io::{Input, NewJob, Outcome, Request, Response},
    record::JobOptions,
    view::JobState,
};

use super::{
    super::sync::RECORDS,
    PHASES,
    cluster::{Cluster, chain, name},
};

/// How many jobs of pipeline `p` a node that runs keeps.
fn kept(cluster: &Cluster, index: usize) -> Option<u64> {
    let core = cluster.nodes[index].core.as_ref()?;
    let group = core.snapshot().groups.remove(&PipelineId::of_name("p"))?;
    Some(group.live.count + group.finished.count)
}

#[test]
fn a_lost_replicas_place_is_taken_and_given_back_with_all_that_was_kept() {
    let mut cluster = Cluster::new(4, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a", "b"]));
    cluster.coordinator();
    let jobs = cluster.enqueue_many(0, "p", 20);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    let spare = (0..4).find(|index| kept(&cluster, *index) == Some(0)).expect("one keeps nothing");
    let lost = (0..4).find(|index| *index != spare).expect("a replica");
    cluster.kill(lost);
    let asked = (0..4).find(|index| ![spare, lost].contains(index)).expect("another");
    let more = cluster.enqueue_many(asked, "p", 20);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&more));
    cluster.run_until("the spare keeps all", |cluster| kept(cluster, spare) == Some(40));
    // Its copies go only when the one that came back has all of them.
    cluster.start(lost);
    cluster.run_until("the spare keeps nothing", |cluster| kept(cluster, spare) == Some(0));
    assert_eq!(kept(&cluster, lost), Some(40));
}

#[test]
fn who_takes_the_place_of_another_for_good_gets_what_had_ended_before_though_there_is_work() {
    let replace_after = Duration::from_secs(20);
    let timing = crate::config::Timing { replace_after, ..crate::config::Timing::DEFAULT };
    let mut cluster = Cluster::with_timing(4, &PHASES, timing);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    let coordinator = cluster.coordinator();
    let pipeline = crate::id::PipelineId::of_name("p");
    let holds = |cluster: &Cluster, index: usize, job| {
        let core = cluster.nodes[index].core.as_ref()?;
        core.record(pipeline, job).expect("readable")
    };
    let jobs = cluster.enqueue_many(0, "p", 20);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    let spare = (0..4).find(|index| holds(&cluster, *index, jobs[0]).is_none());
    let spare = spare.expect("one keeps nothing");
    let lost = (0..4).find(|index| ![spare, coordinator].contains(index)).expect("a replica");
    // Something is always unfinished, so that nobody compares what has ended of itself.
    let options = JobOptions { not_before_ms: u64::MAX, ..Default::default() };
    let far_off = NewJob { key: None, options, trace: None, instructions: "{}".into() };
    let request = Request::Enqueue { pipeline: name("p"), jobs: vec![far_off] };
    let Response::Enqueued(kept) = cluster.request(coordinator, request) else { panic!("kept") };
    let far_off = kept[0].as_ref().expect("accepted").job;
    cluster.kill(lost);
    cluster.run_until("it stands in", |cluster| holds(cluster, spare, far_off).is_some());
    cluster.run_for(Duration::from_secs(5));
    assert_eq!(holds(&cluster, spare, jobs[0]), None, "that is not asked of a stand-in");
    // Nobody counts as provided for before that.
    let settled = |cluster: &Cluster| {
        let core = cluster.nodes[coordinator].core.as_ref().expect("it runs");
        core.is_settled(&core.groups[&pipeline])
    };
    assert!(!settled(&cluster));
    cluster.run_until("all are provided for", settled);
    for job in jobs {
        let held = holds(&cluster, spare, job);
        assert!(held.is_some() && held == holds(&cluster, coordinator, job));
    }
}

#[test]
fn a_job_that_ended_on_those_who_stood_in_for_others_is_known_as_soon_as_all_are_back() {
    let replace_after = Duration::from_secs(10);
    let timing = crate::config::Timing { replace_after, ..crate::config::Timing::DEFAULT };
    let mut cluster = Cluster::with_timing(5, &PHASES, timing);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    let first = cluster.enqueue_many(0, "p", 1)[0];
    cluster.run_until("done", |cluster| cluster.all_succeeded(&[first]));
    cluster.run_for(Duration::from_secs(5));
    let pipeline = crate::id::PipelineId::of_name("p");
    let holds = |cluster: &Cluster, index: &usize| {
        let core = cluster.nodes[*index].core.as_ref();
        let record = core.and_then(|core| core.record(pipeline, first).expect("readable"));
        record.is_some()
    };
    let keepers: Vec<usize> = (0..5).filter(|index| holds(&cluster, index)).collect();
    let spares: Vec<usize> = (0..5).filter(|index| !keepers.contains(index)).collect();
    let cut = |cluster: &mut Cluster, keeper: usize| {
        spares.iter().for_each(|spare| cluster.disconnect(keeper, *spare));
    };
    // One keeper stays with the spares until these have all, then goes.
    let (last, far) = (keepers[0], &keepers[1..]);
    far.iter().for_each(|keeper| {
        cut(&mut cluster, *keeper);
        cluster.disconnect(*keeper, last);
    });
    cluster.run_until("the spares have all", |cluster| {
        spares.iter().all(|spare| holds(cluster, spare))
    });
    cluster.run_for(Duration::from_secs(5));
    cluster.kill(last);
    cluster.run_for(Duration::from_secs(5));
    let job = cluster.enqueue(spares[0], "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(spares[0], job).state, JobState::Succeeded);
    // All are back: those who keep the jobs do not have this one yet.
    cluster.start(last);
    for keeper in far {
        cluster.connect(*keeper, last);
        spares.iter().for_each(|spare| cluster.connect(*keeper, *spare));
    }
    for asked in (0..5).cycle().take(500) {
        cluster.run_for(Duration::from_millis(20));
        assert_eq!(cluster.job(asked, job).state, JobState::Succeeded, "node {asked}");
    }
}

#[test]
fn what_a_node_has_left_over_is_brought_in_line_while_others_work_and_one_is_gone() {
    let mut cluster = Cluster::new(5, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    let pipeline = crate::id::PipelineId::of_name("p");
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| node.config.node).collect();
    let ranked = crate::placement::rank(pipeline, nodes);
    let ranked: Vec<usize> = ranked.into_iter().map(|node| cluster.index_of(node)).collect();
    let &[first, second, gone, stand_in, left_over] = &ranked[..] else { panic!("five nodes") };
    let record = |cluster: &Cluster, index: usize, job| {
        let core = cluster.nodes[index].core.as_ref().expect("it runs");
        core.record(pipeline, job).expect("readable")
    };
    let before = cluster.enqueue_many(0, "p", 30);
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&before));
    // A job that is far off, so that one is always unfinished.
    let options = JobOptions { not_before_ms: u64::MAX, ..Default::default() };
    let far_off = NewJob { key: None, options, trace: None, instructions: "{}".into() };
    let request = Request::Enqueue { pipeline: name("p"), jobs: vec![far_off] };
    assert!(matches!(cluster.request(first, request), Response::Enqueued(_)));
    cluster.run_time = Duration::from_secs(5);
    let twice = cluster.enqueue(first, "p", None, "{}").expect("accepted").job;
    cluster.run_for(Duration::from_secs(1));
    // It ends on both sides of a partition.
    let sides = [[first, left_over].to_vec(), [second, gone, stand_in].to_vec()];
    for (a, b) in sides[0].iter().flat_map(|a| sides[1].iter().map(move |b| (*a, *b))) {
        cluster.disconnect(a, b);
    }
    let ended = |cluster: &Cluster, index: usize| {
        record(cluster, index, twice).is_some_and(|it| it.state() == JobState::Succeeded)
    };
    cluster.run_until("both have it done", |cluster| {
        ended(cluster, left_over) && ended(cluster, second)
    });
    assert_ne!(record(&cluster, left_over, twice), record(&cluster, second, twice));
    cluster.kill(gone);
    for (a, b) in sides[0].iter().flat_map(|a| sides[1].iter().map(move |b| (*a, *b))) {
        cluster.connect(a, b);
    }
    cluster.run_for(Duration::from_secs(15));
    assert_eq!(record(&cluster, first, twice), record(&cluster, second, twice));
    assert_eq!(record(&cluster, left_over, twice), record(&cluster, second, twice));
    assert_eq!(record(&cluster, left_over, before[0]), None, "it should not keep that");
}

#[test]
fn who_makes_way_hands_on_what_it_took_in_the_same_round() {
    let mut cluster = Cluster::new(4, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    let pipeline = PipelineId::of_name("p");
    let jobs = cluster.enqueue_many(0, "p", 1);
    cluster.run_until("it is done", |cluster| cluster.all_succeeded(&jobs));
    let spare = (0..4).find(|index| kept(&cluster, *index) == Some(0)).expect("one keeps nothing");
    let others: Vec<usize> = (0..4).filter(|index| *index != spare).collect();
    cluster.kill(others[0]);
    cluster.run_until("it stands in", |cluster| kept(cluster, spare) == Some(1));
    cluster.run_for(Duration::from_secs(5));
    others[1..].iter().for_each(|index| cluster.kill(*index));
    cluster.run_until("it coordinates", |cluster| cluster.coordinators() == [spare]);
    cluster.automatic = false;
    let jobs = cluster.enqueue_many(spare, "p", 200);
    others.iter().for_each(|index| cluster.start(*index));
    let mut ended = 0;
    while cluster.coordinators() == [spare] {
        let now = cluster.now;
        let node = &mut cluster.nodes[spare];
        let attempt = (!node.attempts.is_empty()).then(|| node.attempts.remove(0));
        if let Some(core) = node.core.as_mut() {
            if let Some(attempt) = attempt {
                let outcome = Outcome::Succeeded("{}".into());
                let end = Input::AttemptFinished { token: attempt.token, outcome };
                core.handle_input(now, end).expect("the disk can be read");
                ended += 1;
            }
            core.maintain_replicas(pipeline);
        }
        cluster.input(spare, Input::Listening(Vec::new()));
        cluster.run_for(Duration::from_millis(1));
    }
    assert!(ended < 200, "it made way while there was work");
    assert_all_run_once(&mut cluster, &jobs);
}

/// Attempts that run end well, and all jobs with them, none of which has run twice.
fn assert_all_run_once(cluster: &mut Cluster, jobs: &[JobId]) {
    cluster.automatic = true;
    for at in 0..cluster.nodes.len() {
        for attempt in std::mem::take(&mut cluster.nodes[at].attempts) {
            cluster.finish(at, attempt.token, Outcome::Succeeded("{}".into()));
        }
    }
    cluster.run_until("all done", |cluster| cluster.all_succeeded(jobs));
    let twice: Vec<_> = cluster.runs.iter().filter(|(_, runs)| **runs > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
}

#[test]
fn who_takes_no_jobs_goes_on_until_others_know_what_it_gave_out() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    let alone = 0;
    [1, 2].iter().for_each(|index| cluster.kill(*index));
    cluster.run_until("it coordinates", |cluster| cluster.coordinators() == [alone]);
    cluster.automatic = false;
    let jobs = cluster.enqueue_many(alone, "p", 200);
    cluster.run_until("some run", |cluster| !cluster.nodes[alone].attempts.is_empty());
    [1, 2].iter().for_each(|index| cluster.start(*index));
    cluster.run_until("they are back", |cluster| {
        let core = cluster.nodes[alone].core.as_ref().expect("it runs");
        core.reachable().len() == 2
    });
    cluster.input(alone, Input::Accepting(Err("the disk is full".to_owned())));
    assert_eq!(cluster.coordinators(), [alone], "the others know nothing yet");
    cluster.run_until("another coordinates", |cluster| {
        let coordinators = cluster.coordinators();
        coordinators.len() == 1 && coordinators != [alone]
    });
    assert_all_run_once(&mut cluster, &jobs);
}

#[test]
fn whose_disk_answers_no_more_hands_on_what_it_heard_in_the_same_round() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    let coordinator = cluster.coordinator();
    cluster.run_for(Duration::from_secs(5));
    cluster.automatic = false;
    cluster.enqueue_many(coordinator, "p", 30);
    cluster.run_until("one runs there", |cluster| !cluster.nodes[coordinator].attempts.is_empty());
    // Between two beats.
    cluster.run_for(Duration::from_millis(1300));
    cluster.stalled = Some(coordinator);
    let outcome = || Outcome::Succeeded("{}".into());
    let first = cluster.nodes[coordinator].attempts.remove(0);
    cluster.finish(coordinator, first.token, outcome());
    cluster.run_for(crate::config::Timing::DEFAULT.lease + Duration::from_millis(100));
    let node = &mut cluster.nodes[coordinator];
    let second = node.attempts.remove(0);
    let core = node.core.as_mut().expect("it runs");
    assert!(core.groups[&PipelineId::of_name("p")].is_coordinator(), "no beat came since");
    let end = Input::AttemptFinished { token: second.token, outcome: outcome() };
    core.handle_input(cluster.now, end).expect("the disk can be read");
    assert!(core.is_disk_stalled());
    core.on_beat_timer().expect("the disk can be read");
    cluster.input(coordinator, Input::Listening(Vec::new()));
    cluster.run_for(Duration::from_millis(2));
    cluster.kill(coordinator);
    cluster.run_until("another coordinates", |cluster| cluster.coordinators().len() == 1);
    assert!(cluster.all_succeeded(&[first.job, second.job]), "both ends were handed on");
}

#[test]
fn copies_are_compared_in_steps_of_a_few_reads_so_that_others_are_heard_between_them() {
    let mut cluster = Cluster::new(3, &PHASES);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    cluster.run_for(Duration::from_secs(5));
    // Two sides of a cut, of which each gets what the other lacks.
    (1..3).for_each(|index| cluster.disconnect(0, index));
    let mut jobs = Vec::new();
    for index in [0, 1] {
        for _ in 0..8 {
            let some = cluster.enqueue_many(index, "p", 250);
            cluster.run_until("all done", |cluster| cluster.all_succeeded(&some));
            jobs.extend(some);
        }
    }
    cluster.most_reads = 0;
    (1..3).for_each(|index| cluster.connect(0, index));
    cluster.run_until("all have all", |cluster| {
        (0..3).all(|index| kept(cluster, index) == Some(4000))
    });
    // What came is looked up and compared, and some of it is answered.
    assert!(cluster.most_reads <= 2 * RECORDS, "{} at once", cluster.most_reads);
}

#[test]
fn many_pipelines_are_compared_in_turns() {
    let mut cluster = Cluster::new(3, &PHASES);
    let pipelines: Vec<String> = (0..200).map(|at| format!("p{at}")).collect();
    for pipeline in &pipelines {
        cluster.apply_pipeline(0, chain(pipeline, &["a"]));
    }
    cluster.run_for(Duration::from_secs(5));
    // One is away while all are done.
    (0..2).for_each(|index| cluster.disconnect(2, index));
    let jobs: Vec<JobId> = pipelines.iter().flat_map(|it| cluster.enqueue_many(0, it, 1)).collect();
    cluster.run_until("all done", |cluster| cluster.all_succeeded(&jobs));
    cluster.most_reads = 0;
    (0..2).for_each(|index| cluster.connect(2, index));
    cluster.run_until("all are back", |cluster| {
        let core = cluster.nodes[2].core.as_ref().expect("it runs");
        let finished = core.snapshot().groups.values().map(|it| it.finished.count).sum::<u64>();
        finished == jobs.len() as u64
    });
    assert!(cluster.most_reads <= 20, "{} at once", cluster.most_reads);
}
