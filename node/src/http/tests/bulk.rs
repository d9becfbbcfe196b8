//! Many jobs in one request.

use bytes::Bytes;

use super::*;

#[tokio::test]
async fn bulk_answers_every_line_in_order() {
    let url = node(|request| fake::accept(&request)).await;
    let body = format!(
        "{}\n\nnope\n[]\n{}\n{}\n{}",
        r#"{"id":"a"}"#,
        r#"{"id":7}"#,
        format_args!("{{\"id\":\"{}\"}}", "x".repeat(1000)),
        r#"{"id":"k"}"#
    );
    let request = post(&format!("{url}/v1/pipelines/p/jobs?key=id"), NDJSON, body);
    let response = request.send().await.expect("an answer");
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let text = response.text().await.expect("a body");
    let answers: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let lines: Vec<_> = answers.iter().map(|answer| answer["line"].as_u64()).collect();
    assert_eq!(lines, [1, 3, 4, 5, 6, 7].map(Some));
    let kinds: Vec<_> =
        answers.iter().map(|answer| answer["error"]["status"].as_u64().unwrap_or(202)).collect();
    assert_eq!(kinds, [202, 400, 422, 422, 413, 202]);
    assert_eq!(answers[5]["id"], some_job().to_string());
}

#[tokio::test]
async fn bulk_of_many_batches_keeps_its_order_and_its_bounds() {
    let url = node(|request| {
        let Request::Enqueue { jobs, .. } = &request else { panic!("{request:?}") };
        assert!(jobs.len() <= 1000);
        fake::accept(&request)
    })
    .await;
    let body: String = (0..5500).map(|n| format!("{{\"id\":\"{n}\"}}\n")).collect();
    let request = post(&format!("{url}/v1/pipelines/p/jobs?key=id"), NDJSON, body);
    let text = request.send().await.expect("an answer").text().await.expect("a body");
    let ids: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].to_string())
        .collect();
    let pipeline = PipelineId::of_name("p");
    let expected: Vec<String> =
        (0..5500).map(|n| format!("\"{}\"", JobId::of_key(pipeline, &n.to_string()))).collect();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn bulk_answers_a_slow_sender_before_it_has_sent_all() {
    let url = node(|request| fake::accept(&request)).await;
    let (lines, body) = futures::channel::mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    lines.unbounded_send(Ok("{}\n{}\n".into())).expect("open");
    let request = post(&format!("{url}/v1/pipelines/p/jobs"), NDJSON, Body::wrap_stream(body));
    let mut response = request.send().await.expect("an answer");
    let chunk = response.chunk().await.expect("a chunk").expect("some");
    assert_eq!(chunk.iter().filter(|&&byte| byte == b'\n').count(), 2);
    lines.unbounded_send(Ok("{}".into())).expect("open");
    drop(lines);
    let rest = response.text().await.expect("the rest");
    assert!(rest.contains("\"line\":3"), "{rest}");
}

#[tokio::test]
async fn bulk_for_an_unknown_pipeline_is_refused_as_a_whole() {
    let refusal = || Refusal::UnknownPipeline { name: "p".into(), known: vec![] };
    let url = node(move |_| Response::Refused(refusal())).await;
    let request = post(&format!("{url}/v1/pipelines/p/jobs"), NDJSON, "{}\n".repeat(3000));
    assert_eq!(problem(request).await.1, "unknown-pipeline");
    let empty = post(&format!("{url}/v1/pipelines/p/jobs"), NDJSON, "\n");
    assert_eq!(empty.send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn bulk_lines_that_the_node_is_too_busy_for_say_so() {
    let mut asked = 0;
    let url = node(move |request| {
        asked += 1;
        match asked {
            1 => fake::accept(&request),
            _ => Response::Refused(Refusal::TooManyRequests(9)),
        }
    })
    .await;
    let request = post(&format!("{url}/v1/pipelines/p/jobs"), NDJSON, "{}\n".repeat(1001));
    let text = request.send().await.expect("an answer").text().await.expect("a body");
    let last: Value = serde_json::from_str(text.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["line"], 1001);
    assert_eq!(
        (&last["error"]["status"], &last["error"]["retry_after_s"]),
        (&json!(429), &json!(1))
    );
}
