//! The tools themselves: a target that never fails would find nothing.

use std::cell::Cell;

use crate::{Corpus, Script, body, seal};

#[test]
fn the_same_script_makes_the_same_input_and_another_script_another() {
    let corpus = Corpus::of("tools", vec![b"{\"a\": 1}".to_vec(), b"[]".to_vec()]);
    let make = |script: &[u8]| corpus.mutate(&mut Script::new(script));
    assert_eq!(make(&[7; 40]), make(&[7; 40]));
    let made: std::collections::BTreeSet<_> = (0..=255).map(|n| make(&[n; 40])).collect();
    assert!(made.len() > 100, "{}", made.len());
}

#[test]
#[should_panic(expected = "found it")]
fn a_decoder_that_cannot_take_a_byte_is_found_out() {
    let corpus = Corpus::of("tools-broken", vec![b"harmless".to_vec()]);
    let check = |input: &[u8]| assert!(!input.contains(&0xff), "found it");
    corpus.inputs().iter().for_each(|input| check(input));
    let random = Cell::new(0u32);
    for _ in 0..100_000 {
        random.set(random.get().wrapping_add(0x9e37_79b9));
        let script: Vec<u8> = (0..8)
            .flat_map(|n| (random.get() ^ n).wrapping_mul(0x85eb_ca6b).to_le_bytes())
            .collect();
        check(&corpus.mutate(&mut Script::new(&script)));
    }
}

#[test]
fn a_sealed_body_opens_again() {
    assert_eq!(body(&seal(2, 1, b"x")), b"x");
}
