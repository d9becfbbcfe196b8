//! Events: their order, readers that fall behind, another coordinator, logs.

use std::time::Duration;

use crate::{
    event::{
        AttemptLog, Event, EventKind, EventKinds, EventPage, EventQuery, EventToken, EventsFrom,
        LogLevel, LogsPage, Said, What,
    },
    id::{JobId, Token},
    io::{Change, Input, Outcome, Refusal, Request, Response, Target},
    pipeline::{PhaseInput, PipelineDef, Quorum, Settings},
    view::JobState,
};

use super::{
    PHASES,
    cluster::{Cluster, chain, name},
    three,
};

const WAIT: Duration = Duration::from_secs(20);

fn query(from: EventsFrom, wait: Option<Duration>) -> EventQuery {
    EventQuery { wait, ..EventQuery::all(from, WAIT) }
}

fn ask(cluster: &mut Cluster, index: usize, query: EventQuery) -> EventPage {
    let request = Request::Events { pipeline: Some(name("p")), partition: None, query };
    match cluster.request(index, request) {
        Response::Events(page) => *page,
        other => panic!("{other:?}"),
    }
}

fn all(cluster: &mut Cluster, index: usize) -> Vec<Event> {
    ask(cluster, index, query(EventsFrom::Oldest, None)).events
}

fn of_job(events: &[Event], job: JobId) -> Vec<(&'static str, Option<String>, Option<u32>)> {
    let of_job = events.iter().filter(|event| event.about.job == Some(job));
    of_job
        .map(|event| {
            let phase = event.about.phase.as_ref().map(ToString::to_string);
            (event.what.kind().name(), phase, event.about.attempt)
        })
        .collect()
}

fn kinds(events: &[Event], job: JobId) -> Vec<&'static str> {
    of_job(events, job).into_iter().map(|(kind, ..)| kind).collect()
}

fn logs(cluster: &mut Cluster, index: usize, job: JobId) -> LogsPage {
    match cluster.request(index, Request::Logs(job)) {
        Response::Logs(page) => *page,
        other => panic!("{other:?}"),
    }
}

fn texts(log: &AttemptLog) -> Vec<&str> {
    log.lines.iter().map(|said| &*said.text).collect()
}

fn say(cluster: &mut Cluster, index: usize, token: Token, line: u64, text: &str) {
    let (level, text) = (LogLevel::Info, text.into());
    let said = vec![Said { line, at_ms: 7, level, done: None, text }];
    cluster.input(index, Input::Said { token, said });
}

/// A cluster whose nodes all know who coordinates.
fn led() -> Cluster {
    let mut cluster = three();
    cluster.coordinator();
    cluster.run_for(Duration::from_millis(100));
    cluster
}

/// A cluster in which an attempt of a job runs beside the coordinator: where, which job, and what
/// fences it.
fn with_one_running() -> (Cluster, usize, JobId, Token) {
    let mut cluster = led();
    cluster.automatic = false;
    let coordinator = cluster.coordinator();
    for _ in 0..3 {
        let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
        cluster.run_for(Duration::from_millis(50));
        let mut others = (0..3).filter(|at| *at != coordinator);
        let of_job = |at: usize| {
            let attempt = cluster.nodes[at].attempts.iter().find(|attempt| attempt.job == job)?;
            Some((at, attempt.token))
        };
        if let Some((at, token)) = others.find_map(of_job) {
            return (cluster, at, job, token);
        }
    }
    panic!("the coordinator runs all attempts itself");
}

#[test]
fn all_that_happens_to_a_job_is_told_in_its_order_by_every_node() {
    for quorum in [Quorum::Any, Quorum::Majority] {
        let mut cluster = Cluster::new(3, &PHASES);
        let phases = ["a", "b"].map(|phase| PhaseInput::named(name(phase))).to_vec();
        let settings = Settings { accept: quorum, execute: quorum, ..Settings::default() };
        let definition = PipelineDef::with(name("p"), phases, settings).expect("a pipeline");
        cluster.apply_pipeline(0, definition);
        cluster.coordinator();
        cluster.run_for(Duration::from_millis(100));
        let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
        cluster.wait_for(0, job);
        cluster.run_for(Duration::from_millis(50));
        let first = all(&mut cluster, 0);
        assert_eq!(first[0].what.kind(), EventKind::Coordinator, "{first:?}");
        let (a, b) = (Some("a".to_owned()), Some("b".to_owned()));
        assert_eq!(
            of_job(&first, job),
            [
                ("enqueued", None, None),
                ("started", None, None),
                ("attempt_started", a.clone(), Some(1)),
                ("phase_succeeded", a, Some(1)),
                ("attempt_started", b.clone(), Some(1)),
                ("phase_succeeded", b, Some(1)),
                ("succeeded", None, None),
            ]
        );
        assert!(first.windows(2).all(|two| two[0].token < two[1].token));
        for index in 1..3 {
            assert_eq!(all(&mut cluster, index), first, "node {index}");
        }
    }
}

#[test]
fn a_job_that_fails_is_told_with_its_errors_and_one_that_is_retried_and_cancelled_too() {
    let mut cluster = led();
    cluster.failing_steps.insert(name("b"));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    assert_eq!(cluster.wait_for(0, job).state, JobState::Dead);
    cluster.automatic = false;
    cluster.failing_steps.clear();
    let change = |change| Request::Change { target: Target::Job(job), change };
    cluster.request(0, change(Change::Retry { from_start: false }));
    cluster.run_for(Duration::from_millis(50));
    cluster.request(0, change(Change::Cancel { reason: "enough".to_owned() }));
    cluster.run_for(Duration::from_millis(50));
    let events = all(&mut cluster, 1);
    assert_eq!(
        kinds(&events, job)[4..],
        [
            "attempt_started",
            "attempt_failed",
            "phase_failed",
            "dead",
            "retried",
            "attempt_started",
            "phase_cancelled",
            "phase_cancelled",
            "cancelled"
        ]
    );
    let dead = events.iter().find(|event| event.what.kind() == EventKind::Dead);
    assert_eq!(dead.map(|it| &it.what), Some(&What::Dead { error: "it fails".into() }));
    let last = events.last().map(|event| &event.what);
    assert_eq!(last, Some(&What::Cancelled { reason: "enough".into() }));
}

#[test]
fn who_waits_is_told_soon_and_hears_nothing_twice() {
    let mut cluster = led();
    let follower = (cluster.coordinator() + 1) % 3;
    let latest = ask(&mut cluster, follower, query(EventsFrom::Latest, None));
    assert!(latest.events.is_empty());
    let wait = query(EventsFrom::After(latest.next), Some(WAIT));
    let request = Request::Events { pipeline: Some(name("p")), partition: None, query: wait };
    let asked = cluster.ask(follower, request);
    cluster.run_for(Duration::from_millis(100));
    let began = cluster.now;
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    let Response::Events(page) = cluster.answered(asked) else { panic!("events") };
    assert!(cluster.now.since(began) < Duration::from_millis(200));
    let (mut seen, mut next) = (page.events, page.next);
    cluster.wait_for(0, job);
    cluster.run_for(Duration::from_millis(50));
    loop {
        let page = ask(&mut cluster, follower, query(EventsFrom::After(next), None));
        if page.events.is_empty() {
            break;
        }
        (next, seen) = (page.next, [seen, page.events].concat());
    }
    assert_eq!(kinds(&seen, job).len(), 9, "{seen:?}");
    assert!(seen.windows(2).all(|two| two[0].token < two[1].token));
    // Nothing more comes: the answer does, when the time is over.
    let began = cluster.now;
    let wait = query(EventsFrom::After(next), Some(Duration::from_secs(2)));
    assert_eq!(ask(&mut cluster, follower, wait), EventPage { events: vec![], next });
    assert!(cluster.now.since(began) >= Duration::from_secs(2));
}

#[test]
fn only_what_is_asked_for_is_told() {
    let mut cluster = led();
    let jobs = cluster.enqueue_many(0, "p", 3);
    jobs.iter().for_each(|job| drop(cluster.wait_for(0, *job)));
    cluster.run_for(Duration::from_millis(50));
    let kinds: EventKinds = [EventKind::Enqueued, EventKind::Succeeded].into_iter().collect();
    let query = EventQuery { job: Some(jobs[1]), kinds, ..query(EventsFrom::Oldest, None) };
    let page = ask(&mut cluster, 1, query);
    assert_eq!(self::kinds(&page.events, jobs[1]), ["enqueued", "succeeded"]);
    assert_eq!(page.events.len(), 2);
    // The next page begins behind all that was looked at.
    let again = EventQuery { from: EventsFrom::After(page.next), ..query };
    assert!(ask(&mut cluster, 1, again).events.is_empty());
}

#[test]
fn a_reader_that_falls_behind_is_told_how_much_it_missed_and_the_ring_stays_small() {
    let mut cluster = Cluster::new(1, &PHASES);
    cluster.nodes[0].config.limits.events = 50;
    cluster.kill(0);
    cluster.start(0);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    cluster.coordinator();
    let before = ask(&mut cluster, 0, query(EventsFrom::Latest, None)).next;
    let jobs = cluster.enqueue_many(0, "p", 100);
    cluster.run_until("all are done", |cluster| cluster.all_succeeded(&jobs));
    cluster.run_for(Duration::from_millis(50));
    let page = ask(&mut cluster, 0, query(EventsFrom::After(before), None));
    // Five for each job: enqueued, started, attempt started, phase succeeded, succeeded.
    let What::Gap { missed: Some(450), .. } = page.events[0].what else {
        panic!("{:?}", page.events[0])
    };
    assert_eq!(page.events.len(), 51);
    assert_eq!(page.next.number, before.number + 500);
    assert_eq!(page.events[0].token.number + 1, page.events[1].token.number);
    // Who goes on from the gap misses nothing more.
    let from = EventsFrom::After(page.events[0].token);
    assert_eq!(ask(&mut cluster, 0, query(from, None)).events, page.events[1..]);
}

#[test]
fn bytes_bound_what_is_kept_as_well() {
    let mut cluster = Cluster::new(1, &PHASES);
    cluster.nodes[0].config.limits.event_bytes = 40_000;
    cluster.kill(0);
    cluster.start(0);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    let jobs = cluster.enqueue_many(0, "p", 200);
    cluster.run_until("all are done", |cluster| cluster.all_succeeded(&jobs));
    cluster.run_for(Duration::from_millis(50));
    let snapshot = cluster.nodes[0].core.as_ref().expect("it runs").snapshot();
    let group = snapshot.groups.into_values().next().expect("a group");
    let (events, bytes) = group.events;
    assert!(events > 10 && bytes <= 20_000, "{events} events of {bytes} bytes");
}

#[test]
fn another_coordinator_begins_anew_and_says_that_something_is_missing() {
    let mut cluster = led();
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.wait_for(0, job);
    let old = cluster.coordinator();
    let asked = (old + 1) % 3;
    let before = ask(&mut cluster, asked, query(EventsFrom::Latest, None)).next;
    // Whoever waits at that moment is sent away, and asks again.
    let wait = query(EventsFrom::After(before), Some(WAIT));
    let waiting = cluster
        .ask(asked, Request::Events { pipeline: Some(name("p")), partition: None, query: wait });
    cluster.run_for(Duration::from_millis(20));
    cluster.kill(old);
    let refused = cluster.answered(waiting);
    assert!(matches!(refused, Response::Refused(Refusal::NoCoordinator(_))), "{refused:?}");
    let new = cluster.coordinator();
    let later = cluster.enqueue(new, "p", None, "{}").expect("accepted").job;
    cluster.wait_for(new, later);
    cluster.run_for(Duration::from_millis(50));
    let page = ask(&mut cluster, asked, query(EventsFrom::After(before), None));
    let begin: Vec<EventKind> = page.events.iter().map(|event| event.what.kind()).take(2).collect();
    assert_eq!(begin, [EventKind::Gap, EventKind::Coordinator]);
    assert!(page.events[1].token > before, "a later term is greater");
    assert_eq!(kinds(&page.events, later).first(), Some(&"enqueued"));
    assert_eq!(kinds(&page.events, later).last(), Some(&"succeeded"));
    assert!(kinds(&page.events, job).is_empty());
}

#[test]
fn what_attempts_say_comes_before_their_end_and_is_kept() {
    let (mut cluster, at, job, token) = with_one_running();
    for line in 0..3 {
        say(&mut cluster, at, token, line, &format!("line {line}"));
    }
    // Lines 3 and 4 were left out.
    say(&mut cluster, at, token, 5, "last");
    cluster.automatic = true;
    cluster.finish(at, token, Outcome::Succeeded("{}".into()));
    cluster.wait_for(0, job);
    cluster.run_for(Duration::from_millis(200));
    let events = all(&mut cluster, 1);
    assert_eq!(
        kinds(&events, job)[..9],
        [
            "enqueued",
            "started",
            "attempt_started",
            "log",
            "log",
            "log",
            "log_dropped",
            "log",
            "phase_succeeded"
        ]
    );
    let dropped = events.iter().find(|event| event.what.kind() == EventKind::LogDropped);
    assert_eq!(dropped.map(|it| &it.what), Some(&What::LogDropped { line: 3, count: 2 }));
    let page = logs(&mut cluster, 2, job);
    assert_eq!(page.attempts.len(), 1);
    assert_eq!((page.attempts[0].phase.as_str(), page.attempts[0].attempt), ("a", 1));
    assert_eq!(texts(&page.attempts[0]), ["line 0", "line 1", "line 2", "last"]);
    // What comes next is told behind that.
    let behind = ask(&mut cluster, 1, query(EventsFrom::After(page.next), None));
    assert!(behind.events.is_empty());
    let unknown = JobId::time_ordered(crate::id::PipelineId::of_name("p"), 1, [3; 10]);
    let refused = cluster.request(1, Request::Logs(unknown));
    assert_eq!(refused, Response::Refused(Refusal::UnknownJob(unknown)));
}

#[test]
fn what_a_running_attempt_said_is_told_to_the_next_coordinator_too() {
    let (mut cluster, at, job, token) = with_one_running();
    let old = cluster.coordinator();
    say(&mut cluster, at, token, 0, "before");
    cluster.run_for(Duration::from_millis(200));
    cluster.kill(old);
    say(&mut cluster, at, token, 1, "meanwhile");
    cluster.coordinator();
    say(&mut cluster, at, token, 2, "after");
    cluster.run_for(Duration::from_millis(500));
    let page = logs(&mut cluster, at, job);
    assert_eq!(texts(&page.attempts[0]), ["before", "meanwhile", "after"]);
    let events = all(&mut cluster, at);
    assert_eq!(kinds(&events, job), ["log", "log", "log"], "{events:?}");
}

#[test]
fn an_attempt_that_shouts_is_kept_in_part_and_slows_nothing() {
    let (mut cluster, at, job, token) = with_one_running();
    let text = "x".repeat(1000);
    for line in 0..5000 {
        say(&mut cluster, at, token, line, &text);
    }
    cluster.automatic = true;
    cluster.finish(at, token, Outcome::Succeeded("{}".into()));
    assert_eq!(cluster.wait_for(0, job).state, JobState::Succeeded);
    let page = logs(&mut cluster, 0, job);
    let lines = &page.attempts[0].lines;
    let last = lines.last().expect("some lines").line;
    assert!(last == 4999 && lines.len() < 200, "{} lines up to {last}", lines.len());
}

#[test]
fn what_nobody_gave_out_may_not_speak() {
    let (mut cluster, at, job, token) = with_one_running();
    let coordinator = cluster.coordinator();
    let from = cluster.nodes[(at + 1) % 3].config.node;
    let said =
        vec![Said { line: 0, at_ms: 7, level: LogLevel::Info, done: None, text: "lie".into() }];
    let pipeline = crate::id::PipelineId::of_name("p");
    let batch = crate::message::SaidBatch { token, pipeline, job, step: 0, number: 1, lines: said };
    let message = crate::message::Message::Said(Box::new(batch));
    cluster.input(coordinator, Input::Message { from, message });
    assert!(logs(&mut cluster, 0, job).attempts.is_empty());
}

#[test]
fn a_pause_and_another_definition_are_told() {
    let mut cluster = led();
    cluster.coordinator();
    let pause = |step: Option<&str>, paused| Request::Pause {
        pipeline: name("p"),
        step: step.map(name),
        paused,
    };
    for request in [pause(None, true), pause(Some("b"), true), pause(None, false)] {
        cluster.request(1, request);
        cluster.run_for(Duration::from_millis(20));
    }
    cluster.apply_pipeline(2, chain("p", &["a", "b"]));
    cluster.run_for(Duration::from_millis(20));
    let events = all(&mut cluster, 0);
    let told = events.iter().skip(1).map(|event| {
        (event.what.kind().name(), event.about.phase.as_ref().map(|phase| phase.as_str()))
    });
    let told: Vec<_> = told.collect();
    assert_eq!(
        told,
        [("paused", None), ("paused", Some("b")), ("resumed", None), ("revised", None)]
    );
}

#[test]
fn a_node_tells_what_it_sees_of_the_others() {
    let mut cluster = led();
    let old = cluster.coordinator();
    let asked = (old + 1) % 3;
    let cluster_events = |cluster: &mut Cluster, from| {
        let query = query(from, None);
        match cluster.request(asked, Request::Events { pipeline: None, partition: None, query }) {
            Response::Events(page) => *page,
            other => panic!("{other:?}"),
        }
    };
    let first = cluster_events(&mut cluster, EventsFrom::Oldest);
    let count = |page: &EventPage, kind| {
        page.events.iter().filter(|event| event.what.kind() == kind).count()
    };
    assert_eq!(count(&first, EventKind::NodeJoined), 2, "{first:?}");
    assert_eq!(count(&first, EventKind::PhaseAvailable), 6);
    assert_eq!(count(&first, EventKind::CoordinatorSeen), 1);
    cluster.kill(old);
    cluster.run_for(Duration::from_secs(10));
    cluster.start(old);
    cluster.run_for(Duration::from_secs(3));
    let page = cluster_events(&mut cluster, EventsFrom::After(first.next));
    let kinds: Vec<EventKind> = page.events.iter().map(|event| event.what.kind()).collect();
    let at = |kind| kinds.iter().position(|it| *it == kind);
    let order =
        [at(EventKind::NodeSuspected), at(EventKind::NodeDown), at(EventKind::NodeReturned)];
    assert!(order.iter().all(Option::is_some) && order.is_sorted(), "{kinds:?}");
    assert!(at(EventKind::CoordinatorLost) < at(EventKind::CoordinatorSeen), "{kinds:?}");
    // A token of another node is none of this one.
    let node = cluster.nodes[old].config.node;
    let other = EventToken { term: crate::id::Term { node, ..first.next.term }, number: 1 };
    let page = cluster_events(&mut cluster, EventsFrom::After(other));
    assert_eq!(page.events[0].what.kind(), EventKind::Gap);
}

#[test]
fn a_node_that_stops_lets_its_readers_go() {
    let mut cluster = led();
    let query = query(EventsFrom::Latest, Some(WAIT));
    let coordinator = cluster.coordinator();
    let of_pipeline = Request::Events { pipeline: Some(name("p")), partition: None, query };
    let waiting = [
        cluster.ask(coordinator, Request::Events { pipeline: None, partition: None, query }),
        cluster.ask(coordinator, of_pipeline),
    ];
    let began = cluster.now;
    cluster.input(coordinator, Input::Draining);
    for asked in waiting {
        let answer = cluster.answered(asked);
        assert!(matches!(&answer, Response::Events(page) if page.events.is_empty()), "{answer:?}");
    }
    assert!(cluster.now.since(began) < Duration::from_secs(1));
}

#[test]
fn where_none_are_to_be_kept_none_are() {
    let mut cluster = Cluster::new(1, &PHASES);
    cluster.nodes[0].config.limits.events = 0;
    cluster.kill(0);
    cluster.start(0);
    cluster.apply_pipeline(0, chain("p", &["a"]));
    let job = cluster.enqueue(0, "p", None, "{}").expect("accepted").job;
    cluster.wait_for(0, job);
    assert!(all(&mut cluster, 0).is_empty());
}
