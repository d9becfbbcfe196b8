//! Components of job records: what can be read merges, in any order, to the same record.

use carbonmesh_fuzz::{Corpus, Script, body, seal, target};
use carbonmesh_protocol::{
    catalog::CatalogEntry,
    codec::{self, Encoded},
    record::{Component, Control, FIRST_CONTROL, JobRecord, JobSpec, PAYLOADS, SPEC, TRACE},
    trace::TraceParent,
};

use crate::samples;

/// Tags and kinds, those included that this release does not know.
const TAGS: [(u16, u16); 7] = [
    (SPEC, JobSpec::KIND),
    (PAYLOADS, 0x102),
    (FIRST_CONTROL, Control::KIND),
    (FIRST_CONTROL + 1, Control::KIND),
    (u16::MAX, Control::KIND),
    (7, 0x700),
    (TRACE, TraceParent::KIND),
];

/// Components, each `tag, schema, length, body`; sealed, so that the bodies are what is tried.
fn components(input: &[u8]) -> Vec<Component> {
    let mut script = Script::new(input);
    let mut found = Vec::new();
    while !script.is_over() && found.len() < 16 {
        let (tag, kind) = TAGS[script.below(TAGS.len())];
        let schema = if script.below(8) == 7 { 2 } else { 1 };
        let length = usize::from(script.byte());
        let bytes = seal(kind, schema, script.take(length));
        found.push(Component { tag, bytes: bytes.into() });
    }
    found
}

/// The inverse of [`components`].
fn input(parts: &[(u8, &[u8])]) -> Vec<u8> {
    let part = |(tag, sealed): &(u8, &[u8])| {
        let body = body(sealed);
        [&[*tag, 0, body.len() as u8], body].concat()
    };
    parts.iter().flat_map(part).collect()
}

fn join<'a>(components: impl IntoIterator<Item = &'a Component>) -> JobRecord {
    let mut record = JobRecord::default();
    for component in components {
        let before = record.clone();
        if record.merge(component).is_err() {
            assert_eq!(record, before, "a refused component changed the record");
        }
    }
    record
}

fn check(input: &[u8]) {
    let components = components(input);
    let record = join(&components);
    assert_eq!(record, join(components.iter().rev()), "the order matters");
    assert_eq!(record, join(components.iter().chain(&components)), "repetition matters");
    let read_back = join(&record.components());
    assert_eq!(record, read_back, "it does not read back");
    assert_eq!(record.digest(), read_back.digest());
    // What else the core asks of a record that came from elsewhere.
    let _ = (record.state(), record.size(), record.payload_conflicts(), record.trace());
    for tag in [SPEC, PAYLOADS, TRACE, FIRST_CONTROL, u16::MAX] {
        let _ = record.component(tag);
    }
}

#[test]
fn components_merge_or_are_refused() {
    let (spec, control) = (samples::spec(), samples::controls());
    let inputs = vec![
        input(&[(0, &spec), (2, &control[0]), (3, &control[1])]),
        input(&[(2, &control[1]), (2, &control[2]), (5, &control[0]), (0, &spec), (0, &spec)]),
        input(&[(1, &[0; 18]), (4, &control[2])]),
        input(&[(0, &spec), (6, &samples::trace()), (2, &control[1])]),
    ];
    for input in &inputs {
        assert!(!join(&components(input)).controls.is_empty(), "the seed is no record");
    }
    target!(Corpus::of("records", inputs), check);
}

#[test]
fn catalog_entries_merge_or_are_refused() {
    let bodies: Vec<_> =
        samples::others().into_iter().map(|sealed| body(&sealed).to_vec()).collect();
    // The generation stands behind the name `p`: the greatest that there is can have no successor.
    let tired = [&bodies[1][..2], &[0xfd], &[0xff; 8], &bodies[1][3..]].concat();
    let read = codec::decode::<CatalogEntry>(&seal(CatalogEntry::KIND, 1, &tired));
    assert_eq!(read.map(|entry| (entry.generation, entry.is_valid())), Ok((u64::MAX, false)));
    target!(Corpus::of("catalog", bodies).and([tired]), |input: &[u8]| {
        // Two entries: an input, and the same with its second half turned over.
        let mut other = input.to_vec();
        other.iter_mut().skip(input.len() / 2).take(4).for_each(|byte| *byte ^= 1);
        let decode =
            |body: &[u8]| codec::decode::<CatalogEntry>(&seal(CatalogEntry::KIND, 1, body)).ok();
        let (Some(one), two) = (decode(input), decode(&other)) else { return };
        let _ = (one.id(), one.definition());
        if !one.is_valid() {
            return;
        }
        let mut merged = one.clone();
        assert!(!merged.merge(&one), "an entry changes when it meets itself");
        if let Some(two) = two.filter(|two| two.is_valid() && two.name == one.name) {
            let (mut left, mut right) = (one.clone(), two.clone());
            left.merge(&two);
            right.merge(&one);
            assert_eq!(left, right, "the order matters");
            assert!(left.is_valid(), "two valid entries make one that is not");
        }
        if let Some(definition) = one.definition() {
            let changed = one.changed(definition.clone());
            assert!(changed.generation > one.generation);
        }
    });
}

#[test]
#[should_panic(expected = "the order matters")]
fn a_merge_that_minds_the_order_is_found_out() {
    // Two values of one writer under one key, of which a broken merge keeps the first.
    let keep_first = |parts: &[Vec<u8>]| parts.first().cloned();
    let controls = samples::controls();
    let (forth, back): (Vec<_>, Vec<_>) =
        (controls.clone(), controls.iter().rev().cloned().collect());
    assert_eq!(keep_first(&forth), keep_first(&back), "the order matters");
}
