//! What nodes tell others by themselves, over the loss of a coordinator: notifications, and traces.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use carbonmesh_examples::api::http_client;
use carbonmesh_tests::{NAMES, PATIENCE, World, text};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// What was sent to a path.
type Got = (String, Value);

/// Takes whatever is sent to it.
#[derive(Clone)]
struct Receiver {
    url: String,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Receiver {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let receiver = Self { url, got: Arc::default() };
        let of = receiver.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(of.clone().take(stream));
            }
        });
        receiver
    }

    /// Requests of one connection, until it ends.
    async fn take(self, stream: TcpStream) {
        let mut stream = BufReader::new(stream);
        loop {
            let (mut path, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                match stream.read_line(&mut line).await {
                    Ok(1..) => {}
                    _ => return,
                }
                let line = line.trim_end();
                if line.is_empty() {
                    break;
                }
                if path.is_empty() {
                    path = line.split(' ').nth(1).expect("a path").to_owned();
                } else if let Some((name, value)) = line.split_once(':')
                    && name.eq_ignore_ascii_case("content-length")
                {
                    length = value.trim().parse().expect("a length");
                }
            }
            let mut body = vec![0; length];
            stream.read_exact(&mut body).await.expect("a body");
            let body = serde_json::from_slice(&body).expect("JSON");
            self.got.lock().expect("not poisoned").push((path, body));
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }

    /// All that a node told of this kind.
    fn notices(&self, node: &str, kind: &str) -> Vec<Value> {
        let got = self.got.lock().expect("not poisoned");
        let told = got.iter().filter(|(path, _)| path[1..] == *node).map(|(_, it)| &it["data"]);
        told.filter(|notice| notice["kind"] == kind).cloned().collect()
    }

    /// All spans that name a job, with who told them.
    fn spans(&self, job: &str) -> Vec<(String, Value)> {
        let got = self.got.lock().expect("not poisoned");
        let mut found = Vec::new();
        for (_, told) in got.iter().filter(|(path, _)| path.ends_with("/v1/traces")) {
            let resource = &told["resourceSpans"][0];
            let by = attribute(&resource["resource"], "service.instance.id");
            let spans = resource["scopeSpans"][0]["spans"].as_array().expect("spans");
            let of_job = spans.iter().filter(|span| attribute(span, "carbonmesh.job") == job);
            found.extend(of_job.map(|span| (by.clone(), span.clone())));
        }
        found
    }
}

fn attribute(of: &Value, key: &str) -> String {
    let mut all = of["attributes"].as_array().into_iter().flatten();
    all.find(|one| one["key"] == key)
        .map_or_else(String::new, |it| text(&it["value"]["stringValue"]))
}

async fn until(what: &str, receiver: &Receiver, holds: impl Fn(&Receiver) -> bool) {
    let began = Instant::now();
    while !holds(receiver) {
        let got = || receiver.got.lock().expect("not poisoned").clone();
        assert!(began.elapsed() < PATIENCE, "waited for: {what}\n{:#?}", got());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How often these nodes told that a job is dead, by the notification's id and the node.
fn dead(receiver: &Receiver, nodes: &[&str], job: &str) -> BTreeMap<(String, String), usize> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        for notice in receiver.notices(node, "dead").iter().filter(|it| it["job"] == job) {
            *counts.entry((text(&notice["id"]), (*node).to_owned())).or_default() += 1;
        }
    }
    counts
}

#[tokio::test]
async fn survivors_tell_of_a_failed_job_and_of_who_coordinates_now() {
    let receiver = Receiver::start().await;
    let mut world = World::default();
    for name in NAMES {
        let phase = world.phase(name, "step", "sleep 1; exit 1");
        let url = &receiver.url;
        let config = format!(
            "otlp_endpoint = \"{url}/{name}\"\n{phase}\n[notify.ops]\nurl = \"{url}/{name}\"\n\
             events = [\"dead\", \"coordinator\"]\n"
        );
        world.start(name, "", config);
    }
    world.await_members("a", 3).await;
    let pipeline =
        json!({ "name": "p", "phases": [{ "name": "s", "phase": "step", "max_attempts": 1 }] });
    world.api("a").apply(&pipeline).await.expect("it is applied");
    let lost = world.coordinator("a").await;
    // Once all have told of one job, all follow the pipeline.
    let first = world.enqueue("a", 1).await.remove(0);
    until("the first job, from all", &receiver, |it| dead(it, &NAMES, &first).len() == 3).await;
    let ids: BTreeSet<String> =
        dead(&receiver, &NAMES, &first).into_keys().map(|(id, _)| id).collect();
    assert_eq!(ids.len(), 1, "whoever tells it, it is one notification");

    let survivors: Vec<&str> = NAMES.into_iter().filter(|name| *name != lost).collect();
    let asked = survivors[0];
    let jobs = format!("{}/v1/pipelines/p/jobs", world.cluster.http(asked).expect("it runs"));
    let request = http_client()
        .build()
        .expect("a client")
        .post(jobs)
        .header("content-type", "application/json");
    let traceparent = format!("00-{TRACE}-00f067aa0ba902b7-01");
    let answer = request.header("traceparent", &traceparent).body("{}").send().await.expect("sent");
    let receipt: Value =
        serde_json::from_slice(&answer.bytes().await.expect("an answer")).expect("JSON");
    let second = text(&receipt["id"]);
    world.await_runs(2).await;
    world.cluster.kill(&lost).expect("it ran");
    until("the second job, from both", &receiver, |it| dead(it, &survivors, &second).len() == 2)
        .await;
    let now = world.coordinator(asked).await;
    assert_ne!(now, lost);
    let seen = |it: &Receiver, node: &str| {
        let of = it.notices(node, "coordinator").into_iter();
        let of = of.filter(|it| it["pipeline"] == "p" && it["node"]["name"] == now.as_str());
        of.map(|it| text(&it["id"])).collect::<Vec<_>>()
    };
    until("who coordinates now, from both", &receiver, |it| {
        survivors.iter().all(|node| !seen(it, node).is_empty())
    })
    .await;
    // What comes behind the next job's notification is behind all that belongs to the one before.
    let third = world.enqueue(asked, 1).await.remove(0);
    until("the third job, from both", &receiver, |it| dead(it, &survivors, &third).len() == 2)
        .await;
    for job in [&second, &third] {
        let told = dead(&receiver, &NAMES, job);
        assert!(told.values().all(|count| *count == 1), "each once: {told:?}");
        let by: BTreeSet<&str> = told.keys().map(|(_, node)| node.as_str()).collect();
        assert_eq!(by, survivors.iter().copied().collect(), "{told:?}");
        let ids: BTreeSet<&String> = told.keys().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), 1, "{told:?}");
    }
    let [one, other] = [seen(&receiver, survivors[0]), seen(&receiver, survivors[1])];
    assert!(one.iter().any(|id| other.contains(id)), "{one:?} {other:?}");
    for ids in [&one, &other] {
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each once: {ids:?}");
    }

    // The trace outlived its coordinator, and is told by the one that it ended under, once.
    let whole = |it: &Receiver, job: &str| {
        let spans = it.spans(job).into_iter();
        spans.filter(|(_, span)| span["name"] == "job p").collect::<Vec<_>>()
    };
    until("the traces", &receiver, |it| {
        [&second, &third].iter().all(|job| !whole(it, job).is_empty())
    })
    .await;
    let told = whole(&receiver, &second);
    let [(by, span)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(span["traceId"], TRACE);
    assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
    let nodes = world.api(asked).get("/v1/nodes").await.expect("an answer").body;
    let all = nodes["nodes"].as_array().expect("nodes");
    let name = all.iter().find(|node| node["id"] == by.as_str()).map(|node| text(&node["name"]));
    assert!(name.is_some_and(|name| survivors.contains(&name.as_str())), "{by}: {nodes}");
    let job = world.api(asked).get(&format!("/v1/jobs/{second}")).await.expect("an answer").body;
    assert_eq!(job["traceparent"], traceparent.as_str(), "{job}");
}
