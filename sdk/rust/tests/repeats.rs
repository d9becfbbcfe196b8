//! What the client sends again, when and where: against servers that answer by a script.

#![expect(clippy::unwrap_used, reason = "a test may panic, and says what it does")]

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use carbonmesh_client::{Client, Error, ProblemKind};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What a server does with one request.
#[derive(Clone)]
enum Act {
    /// It answers: status, more headers, body.
    Answer(u16, &'static str, String),
    /// It takes the request, and closes the connection.
    Close,
}

/// A request as it came.
#[derive(Clone, Debug)]
struct Seen {
    at: Instant,
    head: String,
    body: String,
}

impl Seen {
    fn header(&self, name: &str) -> Option<String> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut found = lines.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map(|(_, value)| value.to_owned())
    }
}

/// A server that does what its script says, one act for each request, the last one for ever.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    async fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        tokio::spawn(async move {
            let mut number = 0;
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let Some(request) = read(&mut stream).await else { continue };
                notes.lock().unwrap().push(request);
                let act = script.get(number).or(script.last()).unwrap().clone();
                number += 1;
                if let Act::Answer(status, headers, body) = act {
                    let answer = format!(
                        "HTTP/1.1 {status} x\r\n{headers}content-length: {}\r\n\
                         connection: close\r\n\r\n{body}",
                        body.len()
                    );
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let (mut text, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let count = stream.read(&mut buffer).await.ok().filter(|count| *count > 0)?;
        text.extend_from_slice(&buffer[..count]);
        let whole = String::from_utf8_lossy(&text);
        let Some((head, body)) = whole.split_once("\r\n\r\n") else { continue };
        let seen = Seen { at: Instant::now(), head: head.to_owned(), body: body.to_owned() };
        let length = seen.header("content-length").map_or(0, |text| text.parse().unwrap());
        if body.len() >= length {
            return Some(seen);
        }
    }
}

fn receipt(id: &str, existed: bool) -> Value {
    json!({ "id": id, "copies": 2, "target": 2, "degraded": false, "existed": existed })
}

fn accepted() -> Act {
    Act::Answer(202, "", receipt("j1", false).to_string())
}

fn problem(status: u16, slug: &str) -> Value {
    let kind = format!("urn:carbonmesh:problem:{slug}");
    json!({ "type": kind, "title": slug, "status": status, "detail": format!("it is {slug}") })
}

fn refused(status: u16, slug: &str) -> Act {
    Act::Answer(status, "", problem(status, slug).to_string())
}

fn client(urls: &[&str], patience: Duration) -> Client {
    Client::builder().urls(urls).patience(patience).build().unwrap()
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_busy_node_is_asked_again_when_it_says() {
    let busy = Act::Answer(429, "retry-after: 1\r\n", problem(429, "busy").to_string());
    let server = Server::start(vec![busy, accepted()]).await;
    let receipt = client(&[&server.url], PATIENCE).enqueue("p", &json!({})).await.unwrap();
    let seen = server.seen();
    assert_eq!((receipt.id.as_str(), seen.len()), ("j1", 2));
    assert!(seen[1].at - seen[0].at >= Duration::from_secs(1), "it came back too soon");
}

#[tokio::test]
async fn a_job_whose_receipt_was_lost_is_sent_again_under_the_same_key() {
    let server = Server::start(vec![Act::Close, refused(504, "unknown"), accepted()]).await;
    client(&[&server.url], PATIENCE).enqueue("p", &json!({ "a": 1 })).await.unwrap();
    let seen = server.seen();
    assert_eq!(seen.len(), 3);
    let key = seen[0].header("idempotency-key").unwrap();
    assert_eq!(key.len(), 32);
    for one in &seen {
        assert_eq!(one.header("idempotency-key").unwrap(), key);
        assert_eq!(one.body, r#"{"a":1}"#);
    }
}

#[tokio::test]
async fn what_may_not_be_done_twice_is_not_sent_again_once_its_answer_was_lost() {
    let server = Server::start(vec![Act::Close]).await;
    let error = client(&[&server.url], PATIENCE).cancel("j1", "why").await.unwrap_err();
    assert!(matches!(error, Error::Unknown { .. }), "{error}");
    assert_eq!(server.seen().len(), 1);
    // One that was refused was not done.
    let server = Server::start(vec![refused(503, "no-coordinator"), refused(200, "")]).await;
    client(&[&server.url], PATIENCE).cancel("j1", "why").await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn the_next_url_takes_over_and_stays() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}", gone.local_addr().unwrap());
    drop(gone);
    let leaving = Server::start(vec![refused(503, "stopping")]).await;
    let well = Server::start(vec![accepted()]).await;
    let client = client(&[&dead, &leaving.url, &well.url], PATIENCE);
    let began = Instant::now();
    client.enqueue("p", &json!({})).key("k").await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "it waited though another node was there");
    client.enqueue("p", &json!({})).await.unwrap();
    assert_eq!((leaving.seen().len(), well.seen().len()), (1, 2));
}

#[tokio::test]
async fn refusals_come_at_once_and_typed() {
    let server = Server::start(vec![refused(404, "unknown-pipeline")]).await;
    let error = client(&[&server.url], PATIENCE).enqueue("p", &json!({})).await.unwrap_err();
    assert_eq!(error.kind(), Some(ProblemKind::UnknownPipeline));
    assert_eq!(error.to_string(), "it is unknown-pipeline");
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn patience_ends() {
    let server = Server::start(vec![refused(429, "busy")]).await;
    let impatient = client(&[&server.url], Duration::ZERO);
    let error = impatient.enqueue("p", &json!({})).await.unwrap_err();
    assert_eq!((error.kind(), server.seen().len()), (Some(ProblemKind::Busy), 1));
}

#[tokio::test]
async fn a_token_goes_with_each_request() {
    let server = Server::start(vec![accepted()]).await;
    let client = Client::builder().url(&server.url).token("s3cret").build().unwrap();
    client.enqueue("p", &json!({})).await.unwrap();
    assert_eq!(server.seen()[0].header("authorization").unwrap(), "Bearer s3cret");
    assert!(!format!("{client:?}").contains("s3cret"));
}

#[tokio::test]
async fn of_many_jobs_only_those_without_an_answer_are_sent_again() {
    let line = |line: u64, mut answer: Value| {
        answer["line"] = line.into();
        answer.to_string()
    };
    let first = [
        line(1, receipt("a", false)),
        line(2, json!({ "error": problem(429, "busy") })),
        line(3, json!({ "error": problem(422, "no-key") })),
    ];
    let second = [line(1, receipt("b", false))];
    let answers = |lines: &[String]| Act::Answer(200, "", lines.join("\n") + "\n");
    let server = Server::start(vec![Act::Close, answers(&first), answers(&second)]).await;
    let jobs = [json!({ "id": "a" }), json!({ "id": "b" }), json!({ "x": "c" })];
    let client = client(&[&server.url], PATIENCE);
    let bulk = client.enqueue_many("p").key_field("id").send(&jobs);
    let mut answers: Vec<_> = bulk.map(Result::unwrap).collect().await;
    answers.sort_by_key(|answer| answer.index);
    let ids: Vec<_> = answers.iter().map(|it| it.result.as_ref().map(|it| it.id.clone())).collect();
    assert_eq!(ids[..2], [Ok("a".to_owned()), Ok("b".to_owned())]);
    assert_eq!(ids[2].as_ref().unwrap_err().kind(), ProblemKind::NoKey);
    let seen = server.seen();
    let bodies: Vec<&str> = seen.iter().map(|one| one.body.as_str()).collect();
    let all = "{\"id\":\"a\"}\n{\"id\":\"b\"}\n{\"x\":\"c\"}\n";
    assert_eq!(bodies, [all, all, "{\"id\":\"b\"}\n"]);
    assert!(seen[0].head.starts_with("POST /v1/pipelines/p/jobs?key=id "));
}

#[tokio::test]
async fn many_jobs_without_keys_are_not_sent_again_once_an_answer_was_lost() {
    let server = Server::start(vec![Act::Close, accepted()]).await;
    let client = client(&[&server.url], PATIENCE);
    let answers: Vec<_> = client.enqueue_many("p").send([json!({}), json!({})]).collect().await;
    assert_eq!(answers.len(), 1);
    assert!(matches!(answers[0], Err(Error::Unknown { .. })), "{answers:?}");
    assert_eq!(server.seen().len(), 1);
}
