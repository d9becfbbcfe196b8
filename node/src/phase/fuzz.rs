//! What commands print: a result or an error, both within their bounds.

use carbonmesh_fuzz::{Corpus, target};
use carbonmesh_protocol::io::Outcome;
use futures::executor::block_on;

use super::{
    PhaseError,
    exec::{LogBudget, TAIL_BYTES, parse, read_log, read_output},
    runner::{ERROR_BYTES, concluded},
};

const MAX_OUTPUT: usize = 300;
const RESULT_BYTES: usize = 200;

fn check(input: &[u8]) {
    let read = block_on(read_output(input, MAX_OUTPUT));
    assert_eq!(read.is_ok(), input.len() <= MAX_OUTPUT);
    for result in [read.and_then(|output| parse(&output)), parse(input)] {
        match concluded(result, RESULT_BYTES) {
            Outcome::Succeeded(json) => {
                assert!(json.len() <= RESULT_BYTES);
                assert!(parse(&json).is_ok(), "a result is a JSON object");
            }
            Outcome::Failed { error, retry, .. } => {
                assert!(!retry && !error.is_empty() && error.len() < ERROR_BYTES + 8);
            }
            Outcome::Cancelled => panic!("nobody has cancelled it"),
        }
    }
}

fn check_log(input: &[u8]) {
    let tail = block_on(read_log(input, LogBudget::once(), || (), |_| ()));
    // A byte that is no text becomes a character of three.
    assert!(tail.len() <= 3 * TAIL_BYTES);
    if let Ok(text) = std::str::from_utf8(input) {
        let whole = input.len() <= TAIL_BYTES;
        assert!(!whole || tail == text, "a short log is kept as it is");
    }
    let failed = concluded(Err(PhaseError::Retry(tail)), RESULT_BYTES);
    assert!(matches!(failed, Outcome::Failed { retry: true, .. }));
}

#[test]
fn output_is_a_result_or_an_error() {
    let words = ["{", "}", "[", "\"a\"", ":", ",", "1e999", "\\ud800", "\u{fffd}", "\0", " "];
    target!(Corpus::load("output").words(words), check);
}

#[test]
fn logs_are_cut_to_their_end() {
    let long = "wörter ".repeat(1000).into_bytes();
    target!(Corpus::load("output").and([long]), check_log);
}

#[test]
fn planted_output_is_refused() {
    for bad in ["[1]", "{} {}", "{\"a\":", "\u{feff}{}", "{\"a\":1e999}"] {
        assert!(matches!(parse(bad.as_bytes()), Err(PhaseError::Fatal(_))), "{bad}");
    }
    let deep = ["{\"a\":".repeat(200), "1".to_owned(), "}".repeat(200)].concat();
    assert!(parse(deep.as_bytes()).is_err());
    assert_eq!(parse(b" \n").ok(), Some(super::Fields::new()));
}
