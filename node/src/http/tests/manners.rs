//! How requests and answers go about: ids, tags, conditions, selections, packed bodies, patience.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
};

use flate2::{Compression, write::GzEncoder};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const ID: &str = "x-request-id";

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

async fn full_node() -> String {
    node(fake::answer).await
}

#[tokio::test]
async fn a_request_keeps_its_id_or_gets_one() {
    let url = full_node().await;
    let get = |path: &str| client().get(format!("{url}{path}"));
    let (_, headers, _) = json_of(get("/v1/version").header(ID, "mine-7")).await;
    assert_eq!(headers[ID], "mine-7");
    let (status, headers, body) = json_of(get("/v1/nothing").header(ID, "mine-8")).await;
    assert_eq!(
        (status, &headers[ID], &body["request_id"]),
        (404, &"mine-8".parse().unwrap(), &json!("mine-8"))
    );
    let long = "x".repeat(200);
    for unfit in ["", "with blank", long.as_str()] {
        let (_, headers, _) = json_of(get("/v1/version").header(ID, unfit)).await;
        assert_eq!(headers[ID].len(), 32, "{unfit}");
    }
    // What a layer refuses has an id too.
    let (status, headers, body) = json_of(get("/v1/version").header("host", "evil.example")).await;
    assert_eq!(
        (status, headers[ID].to_str().unwrap()),
        (403, body["request_id"].as_str().unwrap())
    );
    let (status, headers, body) = json_of(client().patch(format!("{url}/v1/nodes"))).await;
    assert_eq!((status, body["status"].as_u64()), (405, Some(405)));
    assert!(headers.contains_key("allow"));
}

#[tokio::test]
async fn a_document_that_the_client_has_is_not_sent_again() {
    let url = full_node().await;
    let get =
        |known: &str| client().get(format!("{url}/v1/pipelines/p")).header("if-none-match", known);
    let (status, headers, body) = json_of(get("\"other\"")).await;
    assert_eq!(status, 200);
    let tag = headers["etag"].to_str().unwrap().to_owned();
    let revision = body["revision"].as_str().unwrap();
    assert!(tag.starts_with(&format!("W/\"{revision}.")), "{tag}");
    for known in [tag.as_str(), tag.trim_start_matches("W/"), "*"] {
        let answer = get(known).send().await.expect("an answer");
        assert_eq!(
            (answer.status().as_u16(), answer.headers()["etag"].to_str().unwrap()),
            (304, tag.as_str())
        );
        assert!(answer.bytes().await.expect("a body").is_empty());
    }
    // A selection is another document.
    let (_, headers, _) = json_of(client().get(format!("{url}/v1/pipelines/p?fields=name"))).await;
    assert_ne!(headers["etag"], tag.as_str());
}

#[tokio::test]
async fn a_pipeline_is_put_on_a_condition() {
    let url = full_node().await;
    let put = |name: &str| {
        let document = json!({ "name": name, "phases": ["a"] });
        client().put(format!("{url}/v1/pipelines/{name}")).json(&document)
    };
    let (_, headers, body) = json_of(client().get(format!("{url}/v1/pipelines/p"))).await;
    let (tag, revision) = (headers["etag"].to_str().unwrap(), body["revision"].as_str().unwrap());
    for good in [tag, "*", &format!("\"{revision}\"")] {
        let (status, headers, body) = json_of(put("p").header("if-match", good)).await;
        assert_eq!(status, 200, "{good}");
        assert_eq!(headers["etag"], format!("\"{}\"", body["revision"].as_str().unwrap()));
    }
    let (status, kind, detail) = problem(put("p").header("if-match", "\"0\"")).await;
    assert_eq!((status, kind.as_str()), (412, "precondition-failed"));
    assert!(detail.contains(revision), "{detail}");
    assert_eq!(problem(put("new").header("if-match", "*")).await.0, 412);
    assert_eq!(problem(put("p").header("if-none-match", "*")).await.0, 412);
    assert_eq!(json_of(put("new").header("if-none-match", "*")).await.0, 200);
}

#[tokio::test]
async fn fields_are_selected_and_unfit_names_refused() {
    let url = full_node().await;
    let get = |path: &str| client().get(format!("{url}{path}"));
    let (_, _, body) = json_of(get("/v1/nodes?fields=nodes.name")).await;
    assert_eq!(body, json!({ "nodes": [{ "name": "there" }, { "name": "here" }] }));
    let text = get(&format!("/v1/jobs/{}?fields=result,state", some_job())).send().await;
    let text = text.expect("an answer").text().await.expect("a body");
    assert_eq!(text, r#"{"state":"succeeded","result":{"a":2,"n":1.00}}"#);
    let (status, kind, detail) = problem(get("/v1/nodes?fields=nodes..name")).await;
    assert_eq!((status, kind.as_str()), (400, "bad-query"));
    assert!(detail.contains("nodes..name"), "{detail}");
    // What is refused is refused in full.
    assert_eq!(problem(get("/v1/pipelines/z?fields=name")).await.1, "unknown-pipeline");
}

#[tokio::test]
async fn lists_are_read_in_pages() {
    let url = full_node().await;
    let get = |path: &str| json_of(client().get(format!("{url}{path}")));
    let (_, _, first) = get("/v1/nodes?limit=1").await;
    assert_eq!(first["nodes"][0]["name"], "there");
    let next = first["next"].as_str().expect("more");
    let (_, _, second) = get(&format!("/v1/nodes?limit=1&after={next}")).await;
    assert_eq!((&second["nodes"][0]["name"], second.get("next")), (&json!("here"), None));
    assert_eq!(get("/v1/phases?limit=1").await.2["phases"][0]["phase"], "work");
    assert_eq!(get("/v1/pipelines?after=p").await.2, json!({ "pipelines": [] }));
    assert_eq!(get("/v1/pipelines?limit=0").await.0, 400);
}

#[tokio::test]
async fn answers_are_packed_for_whoever_takes_that() {
    let url = full_node().await;
    let get = |path: &str| client().get(format!("{url}{path}")).header("accept-encoding", "gzip");
    let answer = get("/v1/openapi.json").send().await.expect("an answer");
    assert_eq!(answer.headers()["content-encoding"], "gzip");
    let body = answer.bytes().await.expect("a body");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*body), &mut text).unwrap();
    assert_eq!(text, crate::http::openapi_json());
    // Readers of many answers need each line at once.
    let many = post(&format!("{url}/v1/pipelines/p/jobs"), NDJSON, "{}\n{}\n{}\n");
    let many = many.header("accept-encoding", "gzip").send().await.expect("an answer");
    assert!(!many.headers().contains_key("content-encoding"));
    assert_eq!(many.text().await.expect("a body").lines().count(), 3);
}

#[tokio::test]
async fn packed_bodies_are_unpacked_and_bombs_refused() {
    let url = full_node().await;
    let jobs = format!("{url}/v1/pipelines/p/jobs");
    let send = |kind, body: Vec<u8>| post(&jobs, kind, body).header("content-encoding", "gzip");
    assert_eq!(json_of(send(JSON, packed(b"{\"a\":1}"))).await.0, 202);
    let many = send(NDJSON, packed(b"{}\n{}\n")).send().await.expect("an answer");
    assert_eq!(many.text().await.expect("a body").lines().count(), 2);
    // 1000 bytes are the limit, packed or not.
    let blanks = vec![b' '; 64 << 20];
    assert_eq!(problem(send(JSON, packed(&blanks))).await.1, "too-large");
    // Empty lines are no jobs, however many: the ratio ends them.
    let lines = vec![b'\n'; 64 << 20];
    let text = send(NDJSON, packed(&lines)).send().await.expect("an answer").text().await;
    let text = text.expect("a body");
    assert!(text.contains("broken-body") && text.contains("200 times"), "{text}");
    let broken = problem(send(JSON, b"no gzip at all".to_vec())).await;
    assert_eq!((broken.0, broken.1.as_str()), (400, "broken-body"));
    let other = post(&jobs, JSON, "{}").header("content-encoding", "br");
    assert_eq!(problem(other).await.1, "wrong-encoding");
    let plain = post(&jobs, JSON, "{}").header("content-encoding", "identity");
    assert_eq!(json_of(plain).await.0, 202);
}

async fn zstd(bytes: &[u8], window_log: u32) -> Vec<u8> {
    use async_compression::{Level, tokio::write::ZstdEncoder, zstd::CParameter};
    let window = [CParameter::window_log(window_log)];
    let mut encoder = ZstdEncoder::with_quality_and_params(Vec::new(), Level::Default, &window);
    encoder.write_all(bytes).await.expect("memory");
    encoder.shutdown().await.expect("memory");
    encoder.into_inner()
}

#[tokio::test]
async fn zstd_is_packed_and_unpacked_too() {
    let url = full_node().await;
    let get = client().get(format!("{url}/v1/openapi.json")).header("accept-encoding", "zstd");
    let answer = get.send().await.expect("an answer");
    assert_eq!(answer.headers()["content-encoding"], "zstd");
    let body = answer.bytes().await.expect("a body");
    let mut text = String::new();
    let mut decoder = async_compression::tokio::bufread::ZstdDecoder::new(&*body);
    decoder.read_to_string(&mut text).await.expect("zstd");
    assert_eq!(text, crate::http::openapi_json());

    let jobs = format!("{url}/v1/pipelines/p/jobs");
    let send = |kind, body: Vec<u8>| post(&jobs, kind, body).header("content-encoding", "zstd");
    assert_eq!(json_of(send(JSON, zstd(b"{\"a\":1}", 20).await)).await.0, 202);
    let many = send(NDJSON, zstd(b"{}\n{}\n", 20).await).send().await.expect("an answer");
    assert_eq!(many.text().await.expect("a body").lines().count(), 2);
    let blanks = vec![b' '; 64 << 20];
    assert_eq!(problem(send(JSON, zstd(&blanks, 20).await)).await.1, "too-large");
    let lines = zstd(&vec![b'\n'; 64 << 20], 20).await;
    let text = send(NDJSON, lines).send().await.expect("an answer").text().await;
    let text = text.expect("a body");
    assert!(text.contains("broken-body") && text.contains("200 times"), "{text}");
    // A reader would have to hold 64 MiB of it.
    let wide = zstd(&blanks, 26).await;
    let broken = problem(send(JSON, wide)).await;
    assert_eq!((broken.0, broken.1.as_str()), (400, "broken-body"));
    let broken = problem(send(JSON, b"no zstd at all".to_vec())).await;
    assert_eq!((broken.0, broken.1.as_str()), (400, "broken-body"));
}

#[tokio::test]
async fn a_client_that_waits_does_not_hear_of_a_lost_coordinator() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let url = node(move |request| match (request, count.fetch_add(1, Ordering::SeqCst)) {
        (Request::Enqueue { .. }, 0) => Response::Refused(Refusal::NoCoordinator("p".into())),
        (Request::Enqueue { pipeline, jobs }, _) => {
            fake::accept(&Request::Enqueue { pipeline, jobs })
        }
        (Request::Job { .. }, 2) => Response::Refused(Refusal::Unknown),
        (Request::Job { job, .. }, 3) => Response::Refused(Refusal::UnknownJob(job)),
        (Request::Job { job, .. }, 4) => Response::Job(Box::new(fake::job(job, JobState::Running))),
        (Request::Job { job, .. }, _) => {
            Response::Job(Box::new(fake::job(job, JobState::Succeeded)))
        }
        _ => Response::Cluster(Box::new(fake::cluster())),
    })
    .await;
    let jobs = format!("{url}/v1/pipelines/p/jobs");
    let (status, _, body) = json_of(post(&format!("{jobs}?wait=20s"), JSON, "{}")).await;
    assert_eq!((status, &body["state"]), (200, &json!("succeeded")), "{body}");
    assert_eq!(asked.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn what_may_have_been_done_is_tried_again_with_a_key_alone() {
    for (key, status, times) in [(None, 504, 1), (Some("k"), 202, 2)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let url = node(move |request| match (&request, count.fetch_add(1, Ordering::SeqCst)) {
            (Request::Enqueue { .. }, 0) => Response::Refused(Refusal::Unknown),
            (Request::Enqueue { .. }, _) => fake::accept(&request),
            _ => Response::Refused(Refusal::NoReplica),
        })
        .await;
        let request = post(&format!("{url}/v1/pipelines/p/jobs?wait=600ms"), JSON, "{}");
        let request = match key {
            Some(key) => request.header("idempotency-key", key),
            None => request,
        };
        assert_eq!(json_of(request).await.0, status, "{key:?}");
        assert!(asked.load(Ordering::SeqCst) >= times, "{key:?}");
    }
}

#[tokio::test]
async fn definitions_are_compared_taken_up_again_and_drawn() {
    let url = full_node().await;
    let pipeline = format!("{url}/v1/pipelines/p");
    let (status, _, body) = json_of(client().get(format!("{pipeline}/diff"))).await;
    assert_eq!((status, &body["changed"], &body["left_out"]), (200, &json!(true), &json!(["old"])));
    let diff = body["diff"].as_str().expect("text");
    assert!(diff.contains("-name = \"old\"") && diff.contains("+name = \"s\""), "{diff}");
    let (from, to) = (body["from"].as_str().unwrap(), body["to"].as_str().unwrap());
    let same = json_of(client().get(format!("{pipeline}/diff?from={to}&to={to}"))).await.2;
    assert_eq!((&same["changed"], &same["diff"]), (&json!(false), &json!("")));
    let missing = problem(client().get(format!("{pipeline}/diff?from=0"))).await;
    assert_eq!((missing.0, missing.1.as_str()), (404, "unknown-revision"));
    assert!(missing.2.contains(from), "{}", missing.2);

    let document = json!({ "name": "p", "phases": ["s", "t"] });
    let compare = client().post(format!("{pipeline}/diff")).json(&document);
    let (_, _, body) = json_of(compare).await;
    assert_eq!((&body["from"], &body["changed"]), (&json!(to), &json!(true)));

    let back = client().post(format!("{pipeline}/rollback"));
    let (status, _, body) = json_of(back).await;
    assert_eq!((status, &body["revision"]), (200, &json!(from)));

    for (format, kind, part) in [
        ("", "image/svg+xml", "<svg"),
        ("?format=dot", "text/vnd.graphviz; charset=utf-8", "digraph"),
        ("?format=text", "text/plain; charset=utf-8", "p\n"),
    ] {
        let answer = client().get(format!("{pipeline}/graph{format}")).send().await;
        let answer = answer.expect("an answer");
        assert_eq!(answer.headers()["content-type"], kind);
        let text = answer.text().await.expect("a body");
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(problem(client().get(format!("{pipeline}/graph?format=png"))).await.0, 400);
    let schema = json_of(client().get(format!("{url}/v1/pipeline.schema.json"))).await.2;
    assert_eq!(schema["title"], "PipelineDocument");
}

#[tokio::test]
async fn a_node_drains_itself_alone() {
    let url = full_node().await;
    let drain = |id: &str| client().post(format!("{url}/v1/nodes/{id}/drain?wait=1s"));
    for own in ["self", &"ab".repeat(16)] {
        let (status, _, body) = json_of(drain(own)).await;
        assert_eq!(
            (status, &body["quiet"], &body["node"]["name"]),
            (200, &json!(true), &json!("here"))
        );
    }
    let (status, kind, detail) = problem(drain(&"01".repeat(16))).await;
    assert_eq!((status, kind.as_str()), (409, "other-node"));
    assert!(detail.contains("there"), "{detail}");
    assert_eq!(problem(drain("0")).await.1, "unknown-node");
}

#[tokio::test]
async fn the_reader_is_served_with_the_pages_policy() {
    let url = full_node().await;
    for (path, part) in [("/docs", "docs/reader.js"), ("/docs/reader.js", "v1/openapi.json")] {
        let answer = client().get(format!("{url}{path}")).send().await.expect("an answer");
        assert_eq!(answer.status(), 200, "{path}");
        let policy = answer.headers()["content-security-policy"].to_str().unwrap();
        assert!(policy.starts_with("default-src 'none'"), "{policy}");
        assert!(answer.text().await.expect("a body").contains(part), "{path}");
    }
}
