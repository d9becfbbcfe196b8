//! The interface as a client sees it, with a node that answers by rote.

mod bulk;
mod events;
mod local;
mod manners;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use carbonmesh_protocol::{
    id::{JobId, PipelineId},
    io::{Change, Changed, Refusal, Request, Response, Target},
    view::{JobState, JobSummary},
};
use reqwest::{Body, Client, Method, RequestBuilder, header::HeaderMap};
use serde_json::{Value, json};

use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{HttpLimits, fake, router, serve};
use crate::handle::NodeHandle;

const JSON: (&str, &str) = ("content-type", "application/json");
const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

async fn node(answer: impl FnMut(Request) -> Response + Send + 'static) -> String {
    fake::serve_with(HttpLimits { job_bytes: 1000, ..HttpLimits::default() }, answer).await
}

/// A node that is never asked.
async fn silent() -> String {
    node(|request| panic!("asked for {request:?}")).await
}

fn client() -> Client {
    crate::outbound::client().no_proxy().build().expect("a client")
}

fn post(url: &str, content: (&str, &str), body: impl Into<Body>) -> RequestBuilder {
    client().post(url).header(content.0, content.1).body(body)
}

async fn json_of(request: RequestBuilder) -> (u16, HeaderMap, Value) {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.expect("a body");
    (status, headers, serde_json::from_str(&text).unwrap_or(Value::Null))
}

/// The status and the kind of a problem document that says the same as its response.
async fn problem(request: RequestBuilder) -> (u16, String, String) {
    let (status, headers, body) = json_of(request).await;
    assert_eq!(headers["content-type"], "application/problem+json", "{body}");
    assert_eq!(body["status"], status, "{body}");
    assert!(body["title"].is_string(), "{body}");
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    let kind = text("type").strip_prefix("urn:carbonmesh:problem:").map(str::to_owned);
    (status, kind.expect("our kinds"), text("detail"))
}

fn some_job() -> JobId {
    JobId::of_key(PipelineId::of_name("p"), "k")
}

#[tokio::test]
async fn routes_and_methods_that_are_not_there_are_problems() {
    let url = silent().await;
    let (status, kind, detail) = problem(client().get(format!("{url}/v2/x"))).await;
    assert_eq!((status, kind.as_str()), (404, "unknown-route"));
    assert!(detail.contains("/v2/x"));
    let (status, headers, _) = json_of(client().patch(format!("{url}/v1/pipelines/p"))).await;
    assert_eq!(status, 405);
    assert_eq!(headers["content-type"], "application/problem+json");
    let allow = headers["allow"].to_str().expect("text");
    assert!(allow.contains("PUT") && allow.contains("DELETE"), "{allow}");
}

#[tokio::test]
async fn foreign_pages_are_refused_and_local_ones_are_not() {
    let limits = HttpLimits { hosts: vec!["mesh.example".into()], ..HttpLimits::default() };
    let url = fake::serve_with(limits, |_| Response::Removed).await;
    let delete = || client().delete(format!("{url}/v1/pipelines/p"));
    for (header, value) in [
        ("host", "evil.example"),
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("origin", "http://localhost.evil.example:7400"),
    ] {
        let (status, kind, _) = problem(delete().header(header, value)).await;
        assert_eq!((status, kind.as_str()), (403, "foreign-host"), "{value}");
    }
    for (header, value) in [
        ("host", "localhost:1"),
        ("host", "mesh.example"),
        ("origin", "http://localhost:3000"),
        ("origin", "http://[::1]:7400"),
    ] {
        let response = delete().header(header, value).send().await.expect("an answer");
        assert_eq!(response.status(), 204, "{value}");
    }
}

#[tokio::test]
async fn a_pipeline_is_applied_from_its_document() {
    let url = node(|request| match request {
        Request::Apply(definition) => {
            assert_eq!(definition.phases.len(), 2);
            Response::Applied { revision: 0x1f, changed: true, copies: 2 }
        }
        other => panic!("{other:?}"),
    })
    .await;
    let document = json!({"name": "p", "phases": ["a", {"name": "b", "timeout": "30s"}]});
    for (method, path) in [(Method::PUT, "/v1/pipelines/p"), (Method::POST, "/v1/pipelines")] {
        let request = client().request(method, format!("{url}{path}")).json(&document);
        let (status, headers, body) = json_of(request).await;
        assert_eq!(
            (status, &headers["location"]),
            (200, &"/v1/pipelines/p".parse().expect("value"))
        );
        let expected =
            json!({"name": "p", "revision": "000000000000001f", "changed": true, "copies": 2});
        assert_eq!(body, expected);
    }
}

#[tokio::test]
async fn documents_that_cannot_be_are_refused_with_the_place() {
    let url = silent().await;
    let put = |body: &str| {
        let body = body.to_owned();
        client().put(format!("{url}/v1/pipelines/p")).header(JSON.0, JSON.1).body(body)
    };
    let cases = [
        ("{\n \"name\"", 400, "bad-json", "line 2"),
        (r#"{"name":"p","phases":["a"],"x":1}"#, 422, "invalid-pipeline", "unknown field `x`"),
        (r#"{"name":"q","phases":["a"]}"#, 422, "invalid-pipeline", "`q`"),
        (r#"{"name":"p","phases":["a","a"]}"#, 422, "invalid-pipeline", "phases[1].name"),
    ];
    for (body, status, kind, part) in cases {
        let found = problem(put(body)).await;
        assert_eq!((found.0, found.1.as_str()), (status, kind), "{body}");
        assert!(found.2.contains(part), "{}", found.2);
    }
    let toml = client().put(format!("{url}/v1/pipelines/p")).body("name = 'p'");
    assert_eq!(problem(toml).await.0, 415);
    let name = client().get(format!("{url}/v1/pipelines/-p"));
    assert_eq!(problem(name).await.1, "bad-path");
}

#[tokio::test]
async fn an_accepted_job_is_answered_with_its_receipt() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let url = node(move |request| {
        log.lock().expect("a lock").push(request.clone());
        fake::accept(&request)
    })
    .await;
    let request = post(&format!("{url}/v1/pipelines/p/jobs"), JSON, "{ \"a\": 1 }\n");
    let (status, headers, body) = json_of(request.header("Idempotency-Key", "k")).await;
    assert_eq!(status, 202);
    let id = some_job().to_string();
    assert_eq!(headers["location"], format!("/v1/jobs/{id}"));
    let expected = json!({"id": id, "copies": 2, "target": 3, "degraded": false, "existed": false});
    assert_eq!(body, expected);
    let seen = seen.lock().expect("a lock");
    let [Request::Enqueue { jobs, .. }] = seen.as_slice() else { panic!("{seen:?}") };
    assert_eq!(jobs[0].key.as_deref(), Some("k"));
    assert_eq!(jobs[0].instructions, r#"{"a":1}"#);
}

#[tokio::test]
async fn the_span_of_a_request_is_taken_and_a_malformed_one_is_as_if_it_were_not_there() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let url = node(move |request| {
        if let Request::Enqueue { jobs, .. } = &request {
            log.lock().expect("a lock").extend(jobs.iter().map(|job| job.trace));
        }
        fake::accept(&request)
    })
    .await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let other = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01";
    let post = |media_type| post(&format!("{url}/v1/pipelines/p/jobs"), media_type, "{}");
    let requests = [
        post(JSON),
        post(JSON).header("traceparent", parent),
        post(NDJSON).header("Traceparent", parent),
        post(JSON).header("traceparent", "00-xyz"),
        post(JSON).header("traceparent", "ä"),
        post(JSON).header("traceparent", parent).header("traceparent", other),
        post(JSON).header("traceparent", parent.replace("00f067aa0ba902b7", &"0".repeat(16))),
    ];
    for request in requests {
        let status = request.send().await.expect("an answer").status();
        assert!(status.is_success(), "{status}");
    }
    let seen = seen.lock().expect("a lock");
    let told: Vec<_> = seen.iter().map(|it| it.map(|it| it.to_string())).collect();
    let parent = || Some(parent.to_owned());
    assert_eq!(told, [None, parent(), parent(), None, None, None, None]);
}

#[tokio::test]
async fn jobs_that_cannot_be_are_refused() {
    let url = silent().await;
    let jobs = format!("{url}/v1/pipelines/p/jobs");
    let cases = [
        (post(&jobs, JSON, "{\"a\":"), 400, "bad-json"),
        (post(&jobs, JSON, "[1]"), 422, "not-an-object"),
        (post(&jobs, JSON, vec![b' '; 1001]), 413, "too-large"),
        (post(&jobs, JSON, vec![b' '; 100_000]), 413, "too-large"),
        (post(&jobs, ("content-type", "text/plain"), "{}"), 415, "wrong-media-type"),
        (post(&format!("{jobs}?wait=soon"), JSON, "{}"), 400, "bad-query"),
        (post(&format!("{jobs}?wait=11m"), JSON, "{}"), 400, "bad-query"),
        (post(&format!("{jobs}?wiat=1s"), JSON, "{}"), 400, "bad-query"),
        (post(&format!("{jobs}?key=id"), JSON, "{}"), 400, "bad-query"),
        (post(&format!("{jobs}?wait=1s"), NDJSON, "{}"), 400, "bad-query"),
        (post(&jobs, NDJSON, "{}").header("Idempotency-Key", "k"), 400, "bad-header"),
        (post(&jobs, JSON, "{}").header("Idempotency-Key", "kä"), 400, "bad-header"),
        (client().get(format!("{jobs}?limit=0")), 400, "bad-query"),
        (client().get(format!("{jobs}?state=lost")), 400, "bad-query"),
        (client().get(format!("{jobs}?after=7")), 400, "bad-query"),
        (client().get(format!("{url}/v1/jobs/7")), 400, "bad-path"),
    ];
    for (request, status, kind) in cases {
        let (found, found_kind, detail) = problem(request).await;
        assert_eq!((found, found_kind.as_str()), (status, kind), "{detail}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_node_is_a_problem_with_the_time_to_wait() {
    let url = node(|_| Response::Enqueued(vec![Err(Refusal::Busy { waiting: 9, limit: 9 })])).await;
    let request = post(&format!("{url}/v1/pipelines/p/jobs"), JSON, "{}");
    let (status, headers, body) = json_of(request).await;
    assert_eq!((status, &headers["retry-after"]), (429, &"1".parse().expect("a value")));
    assert_eq!((&body["limit"], &body["retry_after_s"]), (&json!(9), &json!(1)));

    let url = node(|_| Response::Refused(Refusal::UnknownJob(some_job()))).await;
    let request = client().get(format!("{url}/v1/jobs/{}", some_job()));
    assert_eq!(problem(request).await.1, "unknown-job");
}

#[tokio::test]
async fn waiting_gives_the_finished_job_or_else_the_receipt() {
    for (state, status) in [(JobState::Dead, 200), (JobState::Running, 202)] {
        let url = node(move |request| match request {
            Request::Job { job, wait } => {
                assert!(wait.is_some_and(|wait| wait <= Duration::from_secs(1)), "{wait:?}");
                Response::Job(Box::new(fake::job(job, state)))
            }
            Request::Cluster => Response::Cluster(Box::new(fake::cluster())),
            enqueue => fake::accept(&enqueue),
        })
        .await;
        let request = post(&format!("{url}/v1/pipelines/p/jobs?wait=1s"), JSON, "{}");
        let (found, _, body) = json_of(request).await;
        assert_eq!(found, status);
        assert_eq!(body["state"] == "dead", status == 200, "{body}");
    }
}

#[tokio::test]
async fn a_job_is_shown_with_its_result_and_its_workers() {
    let url = node(|request| match request {
        Request::Job { job, wait: None } => {
            Response::Job(Box::new(fake::job(job, JobState::Succeeded)))
        }
        _ => Response::Cluster(Box::new(fake::cluster())),
    })
    .await;
    let response = client().get(format!("{url}/v1/jobs/{}", some_job())).send().await;
    let text = response.expect("an answer").text().await.expect("a body");
    assert!(
        text.contains(r#""instructions":{"n":1.00,"a":1},"result":{"a":2,"n":1.00}"#),
        "{text}"
    );
    let body: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(body["finished_at"], "1970-01-01T00:00:02.500Z");
    let attempt = &body["invocations"][0]["attempts"][0];
    assert_eq!(attempt["worker"], json!({"id": "ab".repeat(16), "name": "here"}));
}

#[tokio::test]
async fn jobs_are_listed_by_page() {
    let url = node(|request| {
        let Request::Jobs { state, after, limit, .. } = request else { panic!("{request:?}") };
        assert_eq!((state, after, limit), (Some(JobState::Dead), Some(some_job()), 2));
        let job = JobSummary {
            job: some_job(),
            state: JobState::Dead,
            created_ms: 0,
            key: None,
            step: None,
            error: Some("no".into()),
        };
        Response::Jobs { jobs: vec![job], next: Some(some_job()) }
    })
    .await;
    let query = format!("state=dead&limit=2&after={}", some_job());
    let (status, _, body) =
        json_of(client().get(format!("{url}/v1/pipelines/p/jobs?{query}"))).await;
    assert_eq!(status, 200);
    assert_eq!(body["jobs"][0]["error"], "no");
    assert_eq!(body["next"], some_job().to_string());
}

#[tokio::test]
async fn the_newest_jobs_are_listed_if_that_is_asked_for() {
    let url = node(|request| match request {
        Request::Newest { state: Some(JobState::Dead), after: None, limit: 2, .. } => {
            Response::Jobs { jobs: vec![], next: Some(some_job()) }
        }
        Request::Jobs { of: None, limit: 100, .. } => Response::Jobs { jobs: vec![], next: None },
        other => panic!("{other:?}"),
    })
    .await;
    let list = async |query: &str| {
        json_of(client().get(format!("{url}/v1/pipelines/p/jobs?{query}"))).await
    };
    let (status, _, body) = list("order=newest&state=dead&limit=2").await;
    assert_eq!((status, &body["next"]), (200, &json!(some_job().to_string())));
    let (status, _, body) = list("order=oldest").await;
    assert_eq!((status, &body["next"]), (200, &serde_json::Value::Null));
    for query in ["order=random".to_owned(), format!("order=newest&of={}", some_job())] {
        let (status, _, body) = list(&query).await;
        assert_eq!((status, &body["type"]), (400, &json!("urn:carbonmesh:problem:bad-query")));
        assert!(body["detail"].as_str().is_some_and(|it| it.contains("order")), "{body}");
    }
}

#[tokio::test]
async fn a_pipeline_says_what_is_at_each_phase_if_its_coordinator_does() {
    let url = node(fake::answer).await;
    let (status, _, body) = json_of(client().get(format!("{url}/v1/pipelines/p"))).await;
    assert_eq!(status, 200);
    assert_eq!(body["phase_counts"], json!({"s": {"waiting": 3, "running": 2}}));
    let url = node(|request| match request {
        Request::Steps(_) => Response::Refused(Refusal::NoCoordinator("p".to_owned())),
        other => fake::answer(other),
    })
    .await;
    let (status, _, body) = json_of(client().get(format!("{url}/v1/pipelines/p"))).await;
    assert_eq!((status, body.get("phase_counts")), (200, None));
}

#[tokio::test]
async fn the_cluster_is_shown() {
    let url = node(|_| Response::Cluster(Box::new(fake::cluster()))).await;
    let get = async |path: &str| json_of(client().get(format!("{url}{path}"))).await.2;
    let phases = get("/v1/phases").await;
    let offer = json!({"id": "ab".repeat(16), "name": "here", "slots": 4, "free": 3});
    let expected = json!([{"phase": "work", "slots": 4, "free": 3, "nodes": [offer]}]);
    assert_eq!(phases["phases"], expected);
    let status = get("/v1/status").await;
    assert_eq!(status["members"], json!({"alive": 1, "suspect": 0, "down": 1, "retired": 0}));
    assert_eq!(status["unoffered_phases"], json!(["s"]));
    assert_eq!(status["refusing"][0]["reason"], "disk full");
    assert_eq!(status["pipelines"][0]["term"], 5);
    assert_eq!(get("/v1/nodes").await["nodes"][0]["liveness"], "down");
    let pipeline = get("/v1/pipelines/p").await;
    let definition = json!({"name": "p", "replicas": 3, "preset": "available", "phases": ["s"]});
    assert_eq!(pipeline["definition"], definition);
    assert_eq!(pipeline["replicas"][1], json!({"id": "02".repeat(16), "name": null}));
    assert_eq!(get("/v1/pipelines").await["pipelines"][0], pipeline);
    assert_eq!(get("/v1/version").await["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(get("/healthz").await["status"], "ok");
    let (status, kind, detail) = problem(client().get(format!("{url}/v1/pipelines/z"))).await;
    assert_eq!((status, kind.as_str()), (404, "unknown-pipeline"));
    assert!(detail.contains("known are p"), "{detail}");
}

#[tokio::test]
async fn a_node_that_has_stopped_says_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (calls, called) = mpsc::channel(1);
    drop(called);
    let router = router(NodeHandle::new(fake::NODE, calls), HttpLimits::default());
    let cancel = CancellationToken::new();
    let server = tokio::spawn(serve(listener, router, cancel.clone()));
    let (status, kind, _) = problem(client().get(format!("{url}/healthz"))).await;
    assert_eq!((status, kind.as_str()), (503, "stopping"));
    cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), server).await;
    assert!(ended.expect("in time").expect("no panic").is_ok());
}

#[tokio::test]
async fn jobs_are_changed_one_by_one_and_by_state() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let url = node(move |request| {
        log.lock().expect("no panic").push(request);
        Response::Changed(Changed { count: 1, next: Some(some_job()) })
    })
    .await;
    let job = some_job();
    let send = |path: String, body: &'static str| post(&format!("{url}{path}"), JSON, body);
    for (path, body) in [
        (format!("/v1/jobs/{job}/cancel"), r#"{"reason":"why"}"#),
        (format!("/v1/jobs/{job}/retry"), r#"{"from_start":true}"#),
        (format!("/v1/jobs/{job}/signals/go"), r#"{"by":"me"}"#),
        (format!("/v1/jobs/{job}/signals/go?fail=no"), ""),
        ("/v1/pipelines/p/retry?state=dead&limit=5".to_owned(), ""),
    ] {
        let (status, _, body) = json_of(send(path.clone(), body)).await;
        assert_eq!((status, body), (200, json!({"changed": 1, "next": job.to_string()})), "{path}");
    }
    let discarded = client().delete(format!("{url}/v1/jobs/{job}")).send().await;
    assert_eq!(discarded.expect("an answer").status(), 204);
    let name = |text: &str| fake::name(text);
    let one = |change| Request::Change { target: Target::Job(job), change };
    let (pipeline, state) = (name("p"), JobState::Dead);
    let expected = [
        one(Change::Cancel { reason: "why".into() }),
        one(Change::Retry { from_start: true }),
        one(Change::Signal { name: name("go"), data: Ok(r#"{"by":"me"}"#.into()) }),
        one(Change::Signal { name: name("go"), data: Err("no".into()) }),
        Request::Change {
            target: Target::Jobs { pipeline, state, after: None, limit: 5 },
            change: Change::Retry { from_start: false },
        },
        one(Change::Discard),
    ];
    assert_eq!(*asked.lock().expect("no panic"), expected);
}

#[tokio::test]
async fn changes_and_dates_that_cannot_be_are_refused() {
    let url = silent().await;
    let job = some_job();
    let cases = [
        ("/v1/pipelines/p/retry".to_owned(), "", "bad-query", "state: "),
        ("/v1/pipelines/p/cancel?state=old".to_owned(), "", "bad-query", "old"),
        (format!("/v1/jobs/{job}/cancel"), "{\"why\":1}", "bad-json", "unknown field `why`"),
        (format!("/v1/jobs/{job}/signals/-"), "", "bad-path", "name `-`"),
        (
            "/v1/pipelines/p/jobs?delay=1s&run_at=2030-01-01T00:00:00Z".into(),
            "{}",
            "bad-query",
            "delay",
        ),
        (
            "/v1/pipelines/p/jobs?deadline=2020-01-01T00:00:00Z".into(),
            "{}",
            "bad-query",
            "deadline",
        ),
        ("/v1/pipelines/p/jobs?run_at=tomorrow".into(), "{}", "bad-query", "run_at"),
        ("/v1/pipelines/p/jobs?priority=101".into(), "{}", "bad-query", "priority"),
    ];
    for (path, body, kind, part) in cases {
        let found = problem(post(&format!("{url}{path}"), JSON, body)).await;
        assert_eq!((found.0, found.1.as_str()), (400, kind), "{path}");
        assert!(found.2.contains(part), "{path}: {}", found.2);
    }
}

#[tokio::test]
async fn history_is_told_by_pipeline_and_range() {
    let url = node(|request| match request {
        Request::Cluster => Response::Cluster(Box::new(fake::cluster())),
        other => panic!("asked for {other:?}"),
    })
    .await;
    let (status, _, body) = json_of(client().get(format!("{url}/v1/history"))).await;
    assert_eq!((status, body), (200, json!({"pipeline": null, "step_s": 10, "points": []})));
    let day = format!("{url}/v1/history?pipeline=p&range=day");
    let (status, _, body) = json_of(client().get(day)).await;
    assert_eq!((status, body), (200, json!({"pipeline": "p", "step_s": 300, "points": []})));
    for (query, kind, part) in [
        ("pipeline=z", "unknown-pipeline", "known are p"),
        ("range=week", "bad-query", "take hour or day"),
        ("pipeline=-", "bad-query", "name `-`"),
        ("since=1", "bad-query", "since"),
    ] {
        let found = problem(client().get(format!("{url}/v1/history?{query}"))).await;
        assert_eq!(found.1, kind, "{query}");
        assert!(found.2.contains(part), "{query}: {}", found.2);
    }
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let url = node(|_| Response::Cluster(Box::new(fake::cluster()))).await;
    let get =
        |accept: &'static str| client().get(format!("{url}/metrics")).header("accept", accept);
    let modern = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    for (accept, kind, ends) in [
        (modern, "application/openmetrics-text; version=1.0.0; charset=utf-8", true),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", false),
    ] {
        let response = get(accept).send().await.expect("an answer");
        assert_eq!(response.headers()["content-type"], kind);
        let text = response.text().await.expect("a body");
        assert_eq!(text.ends_with("# EOF\n"), ends, "{text}");
        assert!(text.contains("carbonmesh_members{liveness=\"down\"} 1"), "{text}");
    }
}
