//! Requests through the real router: whatever a client sends, and whatever peers have said of a
//! job, the answer is no failure of the server.

use std::sync::{Arc, Mutex};

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request as HttpRequest, Uri, header::CONTENT_TYPE},
};
use carbonmesh_fuzz::{Corpus, body, seal, target};
use carbonmesh_protocol::{
    codec::{self, Encoded},
    id::{JobId, PipelineId},
    io::{Request, Response},
    message::{Answer, Message},
    view::JobState,
};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::runtime::Runtime;

use super::{HttpLimits, Router, fake, router};

const WORDS: [&str; 32] = [
    "GET ",
    "POST ",
    "PUT ",
    "DELETE ",
    "/v1/pipelines/p",
    "/jobs",
    "/v1/jobs/",
    "/v1/events",
    "/events",
    "/logs",
    "kinds=dead,log",
    "follow=false",
    "accept: ",
    "last-event-id: ",
    "?",
    "wait=1s",
    "&key=id",
    "limit=0",
    "state=dead",
    "after=",
    "%00",
    "%ff",
    "..",
    "content-type: ",
    "application/x-ndjson",
    "application/json",
    "idempotency-key: ",
    "traceparent: ",
    "\n",
    "\n\n",
    "{\"id\":\"a\"}",
    "null",
];

/// The request that a text says: `METHOD target`, headers, an empty line, a body. None if it could
/// not come over HTTP/1.1.
fn request(input: &[u8]) -> Option<HttpRequest<Body>> {
    let at = input.windows(2).position(|two| two == b"\n\n").unwrap_or(input.len());
    let (head, body) = (&input[..at], input.get(at + 2..).unwrap_or_default());
    let mut lines = head.split(|byte| *byte == b'\n');
    let first = lines.next()?;
    let space = first.iter().position(|byte| *byte == b' ')?;
    let method = Method::from_bytes(&first[..space]).ok()?;
    let target: Uri = first[space + 1..].try_into().ok()?;
    let mut request = HttpRequest::builder().method(method).uri(target).header("host", "localhost");
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    // In pieces, so that lines are cut in the middle.
    let pieces: Vec<_> =
        body.chunks(11).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
    request.body(Body::from_stream(futures::stream::iter(pieces))).ok()
}

/// The status, after all else that must hold of an answer was checked.
fn ask(runtime: &Runtime, router: &Router, request: HttpRequest<Body>) -> u16 {
    runtime.block_on(async {
        let service = TowerToHyperService::new(router.clone());
        let response = service.call(request).await.expect("a router never fails");
        let status = response.status().as_u16();
        let kind = response.headers().get(CONTENT_TYPE).cloned();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("a whole body");
        let json = |text: &[u8]| serde_json::from_slice::<Value>(text).expect("JSON");
        match kind.as_ref().map(|kind| kind.as_bytes()) {
            Some(b"application/problem+json") => assert_eq!(json(&body)["status"], status),
            Some(b"application/json") => drop(json(&body)),
            Some(b"application/x-ndjson") => body
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .for_each(|line| drop(json(line))),
            Some(b"text/event-stream") => {
                let text = String::from_utf8(body.to_vec()).expect("text");
                text.lines()
                    .filter_map(|line| line.strip_prefix("data: "))
                    .for_each(|data| drop(json(data.as_bytes())));
            }
            // The page and the metrics; they depend on nothing that a request says.
            Some(kind) if is_text(kind) => assert_eq!(status, 200),
            _ => assert!(body.is_empty(), "{kind:?} {body:?}"),
        }
        status
    })
}

fn is_text(kind: &[u8]) -> bool {
    [&b"text/"[..], b"image/svg", b"application/openmetrics"].iter().any(|it| kind.starts_with(it))
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn limits() -> HttpLimits {
    HttpLimits { job_bytes: 200, document_bytes: 2000, ..HttpLimits::default() }
}

#[test]
fn requests_are_done_or_refused() {
    let runtime = runtime();
    let router = runtime.block_on(async { router(fake::handle(fake::answer), limits()) });
    let corpus = Corpus::load("http").words(WORDS);
    for input in corpus.inputs() {
        request(input).expect("the corpus holds requests");
    }
    target!(corpus, |input: &[u8]| {
        let Some(request) = request(input) else { return };
        let status = ask(&runtime, &router, request);
        assert!((200..500).contains(&status), "{status}");
    });
}

#[test]
fn whatever_peers_say_of_a_job_can_be_shown() {
    let runtime = runtime();
    let said = Arc::new(Mutex::new(None));
    let tell = said.clone();
    let router = runtime.block_on(async {
        let answer = move |request| match (request, tell.lock().expect("not poisoned").clone()) {
            (Request::Job { .. }, Some(Answer::Job(Some(view)))) => Response::Job(view),
            (Request::Jobs { .. }, Some(Answer::Jobs { jobs, next })) => {
                Response::Jobs { jobs, next }
            }
            (other, _) => fake::answer(other),
        };
        router(fake::handle(answer), limits())
    });
    let job = JobId::of_key(PipelineId::of_name("p"), "k");
    let view = Answer::Job(Some(Box::new(fake::job(job, JobState::Dead))));
    let seed = codec::encode(&Message::Answer { query: 1, answer: view });
    let corpus = Corpus::of("job-view", vec![body(&seed).to_vec()]);
    target!(corpus, |input: &[u8]| {
        let sealed = seal(Message::KIND, 1, input);
        let Ok(Message::Answer { answer, .. }) = codec::decode(&sealed) else { return };
        *said.lock().expect("not poisoned") = Some(answer);
        for target in [format!("GET /v1/jobs/{job}"), "GET /v1/pipelines/p/jobs".to_owned()] {
            let request = request(target.as_bytes()).expect("a request");
            assert_eq!(ask(&runtime, &router, request), 200);
        }
    });
}

#[test]
fn an_answer_that_does_not_fit_is_found_out() {
    let runtime = runtime();
    let broken = |_| Response::Removed;
    let router = runtime.block_on(async { router(fake::handle(broken), limits()) });
    let status = ask(&runtime, &router, request(b"GET /v1/nodes").expect("a request"));
    assert_eq!(status, 500);
    let huge = [b"POST /v1/pipelines/p/jobs\ncontent-type: application/json\n\n", &[b' '; 201][..]];
    assert_eq!(ask(&runtime, &router, request(&huge.concat()).expect("a request")), 413);
}
