//! Traces on their way from a real node to a real HTTP server on this machine.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use super::*;
use crate::{
    node::Node,
    phase::{Context, Failure, Fields, PhaseRegistry, phase_fn},
};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Collector {
    /// How many requests are refused first.
    refuse: Arc<Mutex<u32>>,
    got: mpsc::UnboundedSender<Value>,
}

async fn take(State(to): State<Collector>, body: String) -> StatusCode {
    let mut refuse = to.refuse.lock().expect("not poisoned");
    if *refuse > 0 {
        *refuse -= 1;
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    to.got.send(serde_json::from_str(&body).expect("JSON")).expect("somebody looks");
    StatusCode::OK
}

async fn collector(refuse: u32) -> (String, mpsc::UnboundedReceiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (got, received) = mpsc::unbounded_channel();
    let collector = Collector { refuse: Arc::new(Mutex::new(refuse)), got };
    let router = Router::new().route("/v1/traces", post(take)).with_state(collector);
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, received)
}

/// A span's attributes by key.
fn attributes(of: &Value) -> BTreeMap<&str, &str> {
    let all = of["attributes"].as_array().into_iter().flatten();
    all.map(|one| {
        let value = &one["value"];
        let text = value["stringValue"].as_str().or(value["intValue"].as_str());
        (one["key"].as_str().expect("a key"), text.expect("a text or a number"))
    })
    .collect()
}

/// What a collector was told, until there was a span of each of these names: all spans, and who told them.
async fn told_of(
    received: &mut mpsc::UnboundedReceiver<Value>,
    names: &[&str],
) -> (Value, Vec<Value>) {
    let (mut resource, mut spans) = (Value::Null, Vec::<Value>::new());
    while !names.iter().all(|name| spans.iter().any(|span| span["name"] == *name)) {
        let told = timeout(PATIENCE, received.recv()).await.expect("in time").expect("a request");
        resource = told["resourceSpans"][0]["resource"].clone();
        let more = told["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().cloned();
        spans.extend(more.expect("spans"));
    }
    (resource, spans)
}

/// When it began and ended, in ns since 1970.
fn times(span: &Value) -> (u128, u128) {
    let read = |key: &str| span[key].as_str().and_then(|text| text.parse().ok()).expect("a number");
    (read("startTimeUnixNano"), read("endTimeUnixNano"))
}

#[test]
fn an_endpoint_is_a_collector_or_its_whole_address() {
    let read = |text: &str| endpoint(text).map(String::from);
    assert_eq!(read("http://127.0.0.1:4318").unwrap(), "http://127.0.0.1:4318/v1/traces");
    assert_eq!(read("https://c.example/otlp/").unwrap(), "https://c.example/otlp/v1/traces");
    assert_eq!(read("http://c:1/v1/traces").unwrap(), "http://c:1/v1/traces");
    for bad in ["", "c:4318", "ftp://c/", "grpc://c:4317"] {
        assert!(read(bad).unwrap_err().contains("no http or https URL"), "{bad}");
    }
    let error = read("http://user:hunter2@c:1/").unwrap_err();
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn a_job_that_ended_is_told_with_its_attempts_below_it() {
    let (url, mut received) = collector(1).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    let command =
        r#"command = ["sh", "-c", "cat > /dev/null; printf '{\"said\":\"%s\"}' $TRACEPARENT"]"#;
    let text = format!("otlp_endpoint = \"{url}\"\n[phases.command]\n{command}\n");
    std::fs::write(&config, text).unwrap();
    let given = Arc::new(Mutex::new(Vec::new()));
    let seen = given.clone();
    let twice = phase_fn("twice", move |context: Context, _: Fields| {
        let mut seen = seen.lock().expect("not poisoned");
        seen.push(context.traceparent());
        let is_first = seen.len() == 1;
        async move { if is_first { Err(Failure::retry("no room")) } else { Ok(json!({})) } }
    });
    let node = Node::builder(folder.path().join("data"))
        .http("127.0.0.1:0")
        .listen("127.0.0.1:0")
        .config(&config)
        .phases(PhaseRegistry::default().with_phase(twice.slots(1)))
        .pipeline(
            r#"{"name": "traced", "phases": [
                {"name": "first", "phase": "twice", "backoff": {"initial": "10ms"}}, "command"]}"#,
        )
        .start()
        .await
        .unwrap();
    let http = format!("http://{}", node.http_address());
    let client = crate::outbound::client().no_proxy().build().unwrap();
    let jobs = format!("{http}/v1/pipelines/traced/jobs?wait=20s");
    let began = tokio::time::Instant::now();
    let job: Value = loop {
        let answer = client.post(&jobs).json(&json!({ "n": 1 })).send().await.unwrap();
        let is_done = answer.status().is_success();
        let answer: Value = answer.json().await.unwrap();
        if is_done {
            break answer;
        }
        assert!(began.elapsed() < PATIENCE, "{answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let id = job["id"].as_str().expect("an id").to_owned();
    let job: Value =
        client.get(format!("{http}/v1/jobs/{id}")).send().await.unwrap().json().await.unwrap();
    assert_eq!(job["state"], "succeeded", "{job}");
    let (resource, spans) = told_of(&mut received, &["replicate", "job traced"]).await;
    let of_node = attributes(&resource);
    assert_eq!(of_node["service.name"], "carbonmesh");
    assert_eq!(of_node["service.instance.id"], format!("{:#}", node.handle().node()));
    let named = |name: &str| spans.iter().filter(|it| it["name"] == name).collect::<Vec<_>>();
    let [root] = named("job traced")[..] else { panic!("{spans:?}") };
    let (trace, top) = (id.replace('-', ""), root["spanId"].clone());
    assert!(root.get("parentSpanId").is_none(), "{root}");
    assert_eq!((&root["status"]["code"], &root["kind"]), (&1.into(), &1.into()));
    assert_eq!(attributes(root)["carbonmesh.job"], id);
    for span in &spans {
        assert_eq!(span["traceId"], trace.as_str(), "{span}");
        assert!(span["spanId"].as_str().is_some_and(|it| it.len() == 16), "{span}");
        assert!(span == root || span["parentSpanId"] == top, "{span}");
        let ((begin, end), (first, last)) = (times(span), times(root));
        // It may have ended before whoever enqueued it was told that it is durable.
        let within = span["name"] == "replicate" || first <= begin && end <= last;
        assert!(within && begin <= end, "{span} {root}");
    }
    let [failed, done] = named("first")[..] else { panic!("{spans:?}") };
    assert_eq!(
        (&failed["status"]["code"], &failed["status"]["message"]),
        (&2.into(), &"no room".into())
    );
    assert_eq!((&done["status"]["code"], attributes(done)["carbonmesh.attempt"]), (&1.into(), "2"));
    assert!(times(failed).1 <= times(done).0);
    let ms = |at: &Value| {
        let at: jiff::Timestamp = at.as_str().expect("a time").parse().expect("a time");
        u128::try_from(at.as_millisecond()).expect("after 1970") * 1_000_000
    };
    let attempt = &job["invocations"][0]["attempts"][1];
    assert_eq!(times(done), (ms(&attempt["started_at"]), ms(&attempt["finished_at"])));
    let [copied] = named("replicate")[..] else { panic!("{spans:?}") };
    let of_copies = attributes(copied);
    assert_eq!(
        (&of_copies["carbonmesh.copies"], &of_copies["carbonmesh.copies.target"]),
        (&"1", &"1")
    );
    assert_eq!((named("enqueue").len(), named("wait").len(), spans.len()), (1, 1, 7));
    // What phases were given is what is told.
    let parent =
        |span: &Value| format!("00-{trace}-{}-01", span["spanId"].as_str().expect("an id"));
    assert_eq!(*given.lock().unwrap(), [parent(failed), parent(done)]);
    let [command] = named("command")[..] else { panic!("{spans:?}") };
    assert_eq!(job["result"]["said"], parent(command).as_str(), "{job}");
    let began = tokio::time::Instant::now();
    loop {
        let text =
            client.get(format!("{http}/metrics")).send().await.unwrap().text().await.unwrap();
        if text.contains(r#"carbonmesh_traces_total{outcome="exported"} 1"#) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.stop().await.unwrap();
}

#[tokio::test]
async fn a_job_belongs_to_the_trace_of_whoever_enqueued_it() {
    let (url, mut received) = collector(0).await;
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("node.toml");
    std::fs::write(&config, format!("otlp_endpoint = \"{url}\"\n")).unwrap();
    let tell = phase_fn("tell", move |context: Context, _: Fields| async move {
        Ok(json!({ "within": context.traceparent() }))
    });
    let node = Node::builder(folder.path().join("data"))
        .http("127.0.0.1:0")
        .listen("127.0.0.1:0")
        .config(&config)
        .phases(PhaseRegistry::default().with_phase(tell.slots(1)))
        .pipeline(r#"{"name": "traced", "phases": ["tell"]}"#)
        .start()
        .await
        .unwrap();
    let http = format!("http://{}", node.http_address());
    let client = crate::outbound::client().no_proxy().build().unwrap();
    let run = async |parent: &str| {
        let began = tokio::time::Instant::now();
        loop {
            let request = client.post(format!("{http}/v1/pipelines/traced/jobs?wait=20s"));
            let request = request.header("traceparent", parent).json(&json!({}));
            let answer = request.send().await.unwrap();
            let is_done = answer.status().is_success();
            let answer: Value = answer.json().await.unwrap();
            if is_done {
                let id = answer["id"].as_str().expect("an id");
                let job = client.get(format!("{http}/v1/jobs/{id}?wait=20s"));
                break job.send().await.unwrap().json::<Value>().await.unwrap();
            }
            assert!(began.elapsed() < PATIENCE, "{answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let client_span = "00f067aa0ba902b7";
    // One that nobody keeps: phases are told, the collector is not.
    let parent = format!("00-{trace}-{client_span}-00");
    let job = run(&parent).await;
    let within = job["result"]["within"].as_str().expect("a text").to_owned();
    assert!(within.starts_with(&format!("00-{trace}-")) && within.ends_with("-00"), "{within}");
    let parent = format!("00-{trace}-{client_span}-01");
    let job = run(&parent).await;
    assert_eq!(job["traceparent"], parent.as_str(), "{job}");
    let (_, spans) = told_of(&mut received, &["replicate", "job traced"]).await;
    assert!(spans.iter().all(|span| span["traceId"] == trace), "{spans:?}");
    let named = |name: &str| spans.iter().filter(|it| it["name"] == name).collect::<Vec<_>>();
    let ([root], [attempt]) = (&named("job traced")[..], &named("tell")[..]) else {
        panic!("{spans:?}")
    };
    assert_eq!(root["parentSpanId"], client_span);
    assert_eq!(attributes(root)["carbonmesh.job"], job["id"].as_str().expect("an id"));
    assert_eq!(attempt["parentSpanId"], root["spanId"]);
    let span = attempt["spanId"].as_str().expect("an id");
    assert_eq!(job["result"]["within"], format!("00-{trace}-{span}-01"), "{job}");
    // What is malformed is as if it were not there.
    let job = run("00-4bf9-00f0-01").await;
    assert!(job.get("traceparent").is_none(), "{job}");
    let own = job["id"].as_str().expect("an id").replace('-', "");
    assert!(job["result"]["within"].as_str().is_some_and(|it| it.contains(&own)), "{job}");
    let text = client.get(format!("{http}/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(text.contains(r#"carbonmesh_traces_total{outcome="unsampled"} 1"#), "{text}");
    node.stop().await.unwrap();
}
