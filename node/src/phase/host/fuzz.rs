//! Frames of phase hosts: a frame, or a reason that its author can use.

use carbonmesh_fuzz::{Corpus, target};

use super::frame::FromHost;
use crate::{document::one_item, phase::PhaseError};

/// The longest reason: it goes into logs, and into what a client is told.
const REASON_BYTES: usize = 1500;

const SEEDS: [&str; 10] = [
    r#"{"type":"hello","protocol":1,"phases":[{"name":"resize"}],"concurrency":4,"pipelines":[{"name":"p"}]}"#,
    r#"{"type":"log","id":7,"level":"warning","message":"w\u00f6rter"}"#,
    r#"{"type":"heartbeat","id":7}"#,
    r#"{"type":"progress","id":7,"done":0.5,"message":"half"}"#,
    r#"{"type":"item","id":7,"item":{"a":[1,null]}}"#,
    r#"{"type":"session","id":7,"key":"k","value":1}"#,
    r#"{"type":"session","id":7,"key":"k"}"#,
    r#"{"type":"result","id":7,"result":{"a":1}}"#,
    r#"{"type":"error","id":7,"message":"m","retry":false,"traceback":"t"}"#,
    r#"{"type":"error","id":7,"message":"m","retry_after":"10s"}"#,
];

const WORDS: [&str; 16] = [
    "\"type\":",
    "\"id\":",
    "\"item\":",
    "\"done\":",
    "null",
    "1e999",
    "-1",
    "18446744073709551616",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\\ud800",
    "\"0s\"",
    "\0",
];

fn check(input: &[u8]) {
    match FromHost::parse(input) {
        Ok(FromHost::Hello(hello)) => {
            assert!(!hello.phases.is_empty() || !hello.pipelines.is_empty());
            assert!((1..=10_000).contains(&hello.concurrency));
        }
        // What is no value ends its attempt, not the host.
        Ok(FromHost::Item { item, .. }) => {
            let line = one_item(item.get().as_bytes());
            assert_eq!(line.is_ok(), is_value(item.get()));
            assert!(line.is_ok_and(|line| !line.contains(&b'\n')) || !is_value(item.get()));
        }
        Ok(FromHost::Ended { end: Err(error), .. }) => {
            let (PhaseError::Fatal(text)
            | PhaseError::Retry(text)
            | PhaseError::RetryAfter(text, _)) = error;
            assert!(text.len() <= 2 * input.len() + REASON_BYTES);
        }
        Ok(_) => {}
        Err(reason) => assert!(!reason.is_empty() && reason.len() < REASON_BYTES, "{reason}"),
    }
}

fn is_value(text: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(text).is_ok()
}

#[test]
fn what_a_host_writes_is_a_frame_or_a_reason() {
    let seeds = SEEDS.map(|seed| seed.as_bytes().to_vec());
    for seed in &seeds {
        FromHost::parse(seed).unwrap();
    }
    target!(Corpus::of("host", seeds.to_vec()).words(WORDS), check);
}
