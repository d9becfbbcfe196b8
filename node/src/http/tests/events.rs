//! Streams of events, and logs.

use std::sync::atomic::{AtomicUsize, Ordering};

use carbonmesh_protocol::{
    event::{
        About, AttemptLog, Event, EventKind, EventPage, EventQuery, EventToken, EventsFrom,
        GapReason, LogLevel, LogsPage, Said, What,
    },
    id::Term,
    name::Name,
};

use super::*;

fn token(number: u64) -> EventToken {
    EventToken { term: Term { counter: 3, node: fake::NODE, boot: 1 }, number }
}

fn event(number: u64, what: What) -> Event {
    let about = About { job: Some(some_job()), ..About::default() };
    Event { token: token(number), at_ms: 1_700_000_000_000, about, what }
}

/// A node with these events, which answers so often and then stops.
fn with(
    events: Vec<Event>,
    answers: usize,
) -> (impl FnMut(Request) -> Response + Send + 'static, Arc<Mutex<Vec<EventQuery>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let told = asked.clone();
    let answer = move |request| match request {
        Request::Events { query, .. } => {
            let mut asked = told.lock().expect("not poisoned");
            asked.push(query);
            if asked.len() > answers {
                return Response::Refused(Refusal::Stopping);
            }
            let after = match query.from {
                EventsFrom::After(after) => after.number,
                EventsFrom::Latest => events.len() as u64,
                EventsFrom::Oldest => 0,
            };
            let events: Vec<Event> =
                events.iter().filter(|event| event.token.number > after).cloned().collect();
            let next = events.last().map_or(token(after), |event| event.token);
            Response::Events(Box::new(EventPage { events, next }))
        }
        Request::Cluster => Response::Cluster(Box::new(fake::cluster())),
        other => panic!("{other:?}"),
    };
    (answer, asked)
}

fn three() -> Vec<Event> {
    vec![
        event(1, What::Gap { missed: Some(7), why: GapReason::Behind }),
        event(2, What::AttemptStarted { worker: fake::NODE }),
        event(3, What::AttemptFailed { error: "no\nroom".into(), again_ms: Some(1) }),
    ]
}

#[tokio::test]
async fn events_come_as_server_sent_events_whose_ids_are_tokens() {
    let (answer, asked) = with(three(), 1);
    let url = node(answer).await;
    let response = client().get(format!("{url}/v1/pipelines/p/events")).send().await.expect("sent");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    let text = response.text().await.expect("a body");
    let blocks: Vec<&str> = text.split("\n\n").filter(|block| !block.is_empty()).collect();
    assert_eq!(blocks.len(), 4, "{text}");
    let (id, data) = blocks[1].split_once("\ndata: ").expect("an id and data");
    assert_eq!(id, format!("id: {}", token(2)));
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(data["kind"], "attempt_started");
    assert_eq!(data["node"]["name"], "here");
    assert_eq!((&data["pipeline"], &data["job"]), (&json!("p"), &json!(some_job().to_string())));
    assert!(data.get("error").is_none());
    assert!(
        blocks[3].starts_with("event: end\ndata: ") && blocks[3].contains("stopping"),
        "{text}"
    );
    assert!(matches!(asked.lock().expect("not poisoned")[0].from, EventsFrom::Oldest));
}

#[tokio::test]
async fn events_come_as_lines_of_json_to_who_wants_them_so() {
    let (answer, _) = with(three(), 1);
    let url = node(answer).await;
    let request = client().get(format!("{url}/v1/pipelines/p/events"));
    let response = request.header("accept", "application/x-ndjson").send().await.expect("sent");
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.expect("a body");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds: Vec<&str> = lines.iter().filter_map(|line| line["kind"].as_str()).collect();
    assert_eq!(kinds, ["gap", "attempt_started", "attempt_failed", "end"]);
    assert_eq!((&lines[0]["missed"], &lines[2]["error"]), (&json!(7), &json!("no\nroom")));
    assert_eq!(lines[2]["again_at"], "1970-01-01T00:00:00.001Z");
}

#[tokio::test]
async fn a_reader_says_from_where_on_it_wants_what() {
    let (answer, asked) = with(three(), 100);
    let url = node(answer).await;
    let get = |query: &str| client().get(format!("{url}/v1/pipelines/p/events?{query}"));
    let job = some_job();
    let once = get(&format!("follow=false&after={}&job={job}&kinds=dead,log", token(2)));
    let text = once.send().await.expect("sent").text().await.expect("a body");
    assert_eq!(text.matches("data: ").count(), 1, "{text}");
    let query = asked.lock().expect("not poisoned")[0];
    assert_eq!((query.from, query.job), (EventsFrom::After(token(2)), Some(job)));
    assert!(query.kinds.has(EventKind::Log) && !query.kinds.has(EventKind::Succeeded));
    // What a browser read last counts more than where it began.
    let resumed = get("follow=false&after=oldest").header("last-event-id", token(1).to_string());
    let text = resumed.send().await.expect("sent").text().await.expect("a body");
    assert_eq!(text.matches("data: ").count(), 2, "{text}");
    let latest = get("follow=false&after=latest").send().await.expect("sent");
    let text = latest.text().await.expect("a body");
    assert_eq!(text, format!(": alive\nid: {}\n\n", token(3)));
}

#[tokio::test]
async fn bad_requests_for_events_say_what_is_wrong() {
    let url = silent().await;
    let get = |path: &str| client().get(format!("{url}/v1/{path}"));
    for (path, kind, words) in [
        ("pipelines/p/events?after=7", "bad-query", "oldest"),
        ("pipelines/p/events?kinds=lost", "bad-query", "attempt_failed"),
        ("pipelines/p/events?follow=maybe", "bad-query", "true"),
        ("pipelines/p/events?of=x", "bad-query", "of"),
        ("pipelines/p%2Fq%2Fr/events", "bad-path", "/"),
        ("jobs/7/logs", "bad-path", "UUID"),
        (&format!("events?job={}", some_job()), "bad-query", "/v1/pipelines/"),
    ] {
        let (status, found, detail) = problem(get(path)).await;
        assert_eq!((status, found.as_str()), (400, kind), "{path}");
        assert!(detail.contains(words), "{path}: {detail}");
    }
    let odd = get("events").header("accept", "image/png");
    assert_eq!(problem(odd).await.0, 406);
    let odd = get("events").header("last-event-id", "7");
    assert_eq!(problem(odd).await.1, "bad-header");
}

#[tokio::test]
async fn what_is_wrong_from_the_start_has_a_status() {
    let unknown = || Refusal::UnknownPipeline { name: "p".into(), known: vec![] };
    let url = node(move |_| Response::Refused(unknown())).await;
    let (status, kind, _) = problem(client().get(format!("{url}/v1/pipelines/p/events"))).await;
    assert_eq!((status, kind.as_str()), (404, "unknown-pipeline"));
}

#[tokio::test]
async fn a_stream_outlives_an_election_and_names_its_place() {
    let asked = AtomicUsize::new(0);
    let url = node(move |request| match (request, asked.fetch_add(1, Ordering::Relaxed)) {
        (Request::Events { .. }, 0..2) => Response::Refused(Refusal::NoCoordinator("p".into())),
        (Request::Events { .. }, 2) => {
            let events = vec![event(1, What::Succeeded)];
            Response::Events(Box::new(EventPage { events, next: token(1) }))
        }
        (Request::Events { query, .. }, _) => {
            assert_eq!(query.from, EventsFrom::After(token(1)));
            Response::Refused(Refusal::Stopping)
        }
        (other, _) => panic!("{other:?}"),
    })
    .await;
    let response = client().get(format!("{url}/v1/pipelines/p/events")).send().await.expect("sent");
    let text = response.text().await.expect("a body");
    assert!(text.starts_with(": alive\n\n") && text.contains("\"kind\":\"succeeded\""), "{text}");
}

#[tokio::test]
async fn no_more_streams_are_served_than_there_is_room_for() {
    // A node that never answers again keeps its streams open.
    let limits = HttpLimits { streams: 3, ..HttpLimits::default() };
    let url = fake::serve_with(limits, |request| match request {
        Request::Events { query: EventQuery { wait: None, .. }, .. } => {
            Response::Events(Box::new(EventPage { events: vec![], next: token(1) }))
        }
        _ => Response::Refused(Refusal::NoCoordinator("p".into())),
    })
    .await;
    let client = client();
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(client.get(format!("{url}/v1/events")).send().await.expect("sent"));
    }
    let (status, kind, _) = problem(client.get(format!("{url}/v1/events"))).await;
    assert_eq!((status, kind.as_str()), (503, "too-many-streams"));
    drop(open);
    let began = std::time::Instant::now();
    while !client.get(format!("{url}/v1/events")).send().await.expect("sent").status().is_success()
    {
        assert!(began.elapsed() < Duration::from_secs(20), "the room is not given back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_node_that_stops_is_not_held_up_by_its_streams() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let stopping = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stops = stopping.clone();
    let handle = fake::handle(move |request| match request {
        Request::Events { .. } if stops.load(Ordering::Relaxed) => {
            Response::Refused(Refusal::Stopping)
        }
        Request::Events { .. } => {
            Response::Events(Box::new(EventPage { events: vec![], next: token(1) }))
        }
        other => panic!("{other:?}"),
    });
    let cancel = CancellationToken::new();
    let served =
        tokio::spawn(serve(listener, router(handle, HttpLimits::default()), cancel.clone()));
    let stream = client().get(format!("{url}/v1/events")).send().await.expect("sent");
    let read = tokio::spawn(stream.text());
    stopping.store(true, Ordering::Relaxed);
    cancel.cancel();
    let began = std::time::Instant::now();
    served.await.expect("no panic").expect("served");
    assert!(began.elapsed() < Duration::from_secs(8));
    let text = read.await.expect("no panic").expect("a body");
    assert!(text.contains("event: end"), "{text}");
}

#[tokio::test]
async fn what_is_kept_of_a_jobs_logs_is_shown_with_what_is_missing() {
    let said = |line, text: &str| Said {
        line,
        at_ms: 0,
        level: LogLevel::Warning,
        done: (line == 5).then_some(2500),
        text: text.into(),
    };
    let name = |text: &str| text.parse::<Name>().expect("a name");
    let attempt = AttemptLog {
        job: some_job(),
        phase: name("s"),
        attempt: 2,
        lines: vec![said(3, "a"), said(5, "b")],
    };
    let page = LogsPage { pipeline: name("p"), attempts: vec![attempt], next: token(9) };
    let url = node(move |request| match request {
        Request::Logs(job) if job == some_job() => Response::Logs(Box::new(page.clone())),
        Request::Logs(job) => Response::Refused(Refusal::UnknownJob(job)),
        other => panic!("{other:?}"),
    })
    .await;
    let (status, _, logs) =
        json_of(client().get(format!("{url}/v1/jobs/{}/logs", some_job()))).await;
    assert_eq!((status, &logs["next"]), (200, &json!(token(9).to_string())));
    assert_eq!(
        logs["attempts"][0],
        json!({
            "job": some_job().to_string(), "phase": "s", "attempt": 2, "missing": 4,
            "lines": [
                { "line": 3, "at": "1970-01-01T00:00:00.000Z", "level": "warning", "text": "a" },
                { "line": 5, "at": "1970-01-01T00:00:00.000Z", "level": "warning", "done": 0.25,
                  "text": "b" },
            ],
        })
    );
    let other = JobId::of_key(PipelineId::of_name("p"), "other");
    assert_eq!(problem(client().get(format!("{url}/v1/jobs/{other}/logs"))).await.0, 404);
}
