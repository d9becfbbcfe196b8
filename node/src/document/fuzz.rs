//! Pipeline documents, durations, instructions: what is accepted means the same when written again.

use bytes::Bytes;
use carbonmesh_fuzz::{Corpus, target};

use super::*;

const WORDS: [&str; 24] = [
    "\"name\"",
    "phases",
    "after",
    "timeout",
    "backoff",
    "initial",
    "max",
    "replicas",
    "preset",
    "strict",
    "1h",
    "0s",
    "-1s",
    "1ns",
    "9223372036854775807s",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ":",
    "1e999",
    "\\u0000",
    "\u{fffd}",
];

fn check_pipeline(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let read = [PipelineDocument::from_json(input), PipelineDocument::from_text(&text)];
    for document in read.into_iter().flatten() {
        let Ok(definition) = document.definition() else { continue };
        assert!(definition.is_valid(), "{definition:?}");
        let written = PipelineDocument::from(&definition);
        assert_eq!(written.definition().as_ref(), Ok(&definition));
        let json = serde_json::to_vec(&written).expect("JSON");
        assert_eq!(PipelineDocument::from_json(&json).as_ref(), Ok(&written));
    }
}

fn check_duration(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration), "{text}");
    }
}

fn check_instructions(input: &[u8]) {
    let Ok(parsed) = Instructions::parse(input) else { return };
    let bytes = parsed.into_bytes();
    assert!(!bytes.contains(&b'\n') && bytes.len() <= input.len());
    let again = Instructions::parse(&bytes).expect("what was accepted is accepted again");
    assert_eq!(again.into_bytes(), bytes);
    let merged = merge_instructions(&bytes, &[Bytes::from_static(b"{}"), bytes.clone()]);
    Instructions::parse(&merged.expect("objects")).expect("objects make an object");
}

#[test]
fn pipelines_are_read_or_refused() {
    target!(Corpus::load("pipeline").words(WORDS), check_pipeline);
}

#[test]
fn durations_are_read_or_refused() {
    let inputs = ["1h 30m", "500ms", "1.5s", "PT1H", "1y"].map(|text| text.as_bytes().to_vec());
    target!(Corpus::of("durations", inputs.to_vec()).words(WORDS), check_duration);
}

#[test]
fn instructions_are_read_or_refused() {
    target!(Corpus::load("job").words(WORDS), check_instructions);
}

#[test]
fn results_are_merged_or_refused() {
    // What a phase gets may come from a peer, and be anything.
    target!(Corpus::load("job").words(WORDS), |input: &[u8]| {
        let (first, second) = input.split_at(input.len() / 2);
        let results = [Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)];
        let _ = merge_instructions(second, &results);
        let _ = merge_instructions(input, &results);
    });
}

#[test]
fn the_seeds_are_accepted() {
    let accepted = |input: &&Vec<u8>| {
        let text = String::from_utf8_lossy(input);
        PipelineDocument::from_text(&text).is_ok_and(|document| document.definition().is_ok())
    };
    for input in Corpus::load("job").inputs() {
        assert!(Instructions::parse(input).is_ok(), "{}", String::from_utf8_lossy(input));
    }
    assert!(Corpus::load("pipeline").inputs().iter().filter(accepted).count() >= 2);
}
