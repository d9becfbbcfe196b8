//! The codec: round trips, damage, and the very bytes of this release.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::{Bytes, BytesMut};
use carbonmesh_protocol::{
    advert::{Advert, PhaseSlots, Roles},
    catalog::CatalogEntry,
    codec::{self, DecodeError},
    event::{About, Event, EventPage, EventQuery, EventToken, EventsFrom, LogLevel, Said, What},
    group_view::GroupView,
    handler::{Handler, HandlerEntry, Language},
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    io::Outcome,
    journal::{Arrivals, Changes},
    message::{
        Answer, AssignedWith, Assignment, BeatAck, CompletedWith, Completion, Gathered,
        GroupUpdate, Held, Items, JobUpdate, Message, Question, Replicate, SaidBatch, SessionOf,
        TraceOf,
    },
    name::Name,
    pipeline::{Combine, Each, Handling, PhaseInput, PipelineDef, Settings},
    record::{
        Compensated, Component, Control, FIRST_CONTROL, JobOptions, JobRecord, JobSpec, Parent,
        Progress, Reaped, SPEC, TRACE,
    },
    secret::{KeyId, Pattern, Place, SEAL_BYTES, Sealed, SecretEntry},
    trace::TraceParent,
};
use proptest::prelude::*;

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn node() -> NodeId {
    NodeId::from_bytes(*b"0123456789abcdef")
}

fn token() -> Token {
    Token { term: Term { counter: 3, node: node(), boot: 2 }, sequence: 300 }
}

fn pipeline() -> PipelineId {
    PipelineId::from_be_bytes([1; 16])
}

fn job() -> JobId {
    JobId::from_be_bytes([2; 16])
}

fn spec() -> JobSpec {
    JobSpec {
        generation: 0,
        options: JobOptions::default(),
        revision: 77,
        phases: 3,
        created_ms: 1_700_000_000_000,
        term: None,
        key: Some("k".to_owned()),
        parent: Some(Box::new(Parent {
            job: job(),
            step: 1,
            token: token(),
            index: 7,
            path: vec![1],
        })),
        compensates: Some(Compensated { job: job(), generation: 2 }),
        instructions: Bytes::from_static(b"{}"),
    }
}

fn control() -> Control {
    Control {
        generation: 0,
        term: token().term,
        sequence: 300,
        strict: false,
        progress: Progress::Succeeded { token: token(), result: Bytes::from_static(b"{\"a\":1}") },
        attempt_count: 1,
        lost_count: 0,
        late_count: 0,
        items: 9,
        written_ms: 7,
        since_ms: 5,
        note: None,
        attempts: Vec::new(),
        session: None,
    }
}

fn assignment() -> Assignment {
    Assignment {
        token: token(),
        pipeline: pipeline(),
        name: name("p"),
        job: job(),
        step: 1,
        step_name: name("a"),
        phase: name("a"),
        number: 1,
        timeout: Some(std::time::Duration::from_secs(30)),
        key: None,
        instructions: Bytes::from_static(b"{}"),
        results: vec![Bytes::from_static(b"{}")],
        names: Some(vec![name("a")]),
        gathered: vec![Gathered {
            name: name("b"),
            combine: Combine::Group,
            results: Bytes::from_static(b"[{}]"),
        }],
        gives_items: true,
        handling: Handling { output: Some("{a: b}".to_owned()), ..Handling::default() },
        sessions: vec![],
        trace: None,
    }
}

fn trace() -> TraceParent {
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("valid")
}

fn completion() -> Completion {
    Completion {
        token: token(),
        pipeline: pipeline(),
        job: job(),
        step: 1,
        outcome: Outcome::Failed { error: "no".to_owned(), retry: true, after: None },
        items: 9,
        session: None,
    }
}

fn secret() -> SecretEntry {
    let place = Place {
        namespace: "team".parse().expect("a valid name"),
        pipeline: Pattern::new("p-*").expect("a pattern"),
        phase: Pattern::default(),
        name: "KEY".to_owned(),
    };
    let bytes = Bytes::from_static(&[9; SEAL_BYTES + 1]);
    let sealed = Sealed { key: KeyId::from_bytes([8; 8]), hidden: true, bytes };
    SecretEntry::new(place).changed(Some(sealed), 1_700_000_000_000)
}

fn handler() -> HandlerEntry {
    let handler = Handler {
        language: Language::Shell,
        requires: BTreeSet::from(["gpu".parse().expect("a requirement")]),
        slots: 2,
        source: Bytes::from_static(b"true"),
    };
    HandlerEntry::new(name("a")).changed(Some(handler), 1_700_000_000_000)
}

fn messages() -> Vec<Message> {
    let advert = Advert {
        node: node(),
        disk: DiskId(9),
        boot: 2,
        sequence: 4,
        name: "n1".to_owned(),
        version: "0.1.0".to_owned(),
        roles: Roles::ALL,
        phases: vec![PhaseSlots { phase: name("a"), slots: 4, busy: 1 }],
        labels: BTreeMap::from([("zone".to_owned(), "b".to_owned())]),
        addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
        coordinates: vec![(pipeline(), token().term)],
        catalog: 5,
        refusing: None,
    };
    let update = JobUpdate {
        job: job(),
        components: vec![Component { tag: 0, bytes: codec::encode(&spec()) }],
    };
    let held = Held { pipeline: pipeline(), job: job(), step: 1, token: token() };
    vec![
        Message::Hello(advert),
        Message::CatalogPull,
        Message::Replicate(Replicate {
            batch: 8,
            groups: Arc::new(vec![GroupUpdate {
                pipeline: pipeline(),
                term: token().term,
                updates: vec![update],
                view: Some(GroupView::founding(BTreeSet::from([(node(), DiskId(9))]))),
            }]),
        }),
        Message::ReplicateAck {
            batch: 8,
            missing: vec![(pipeline(), job())],
            refused: vec![pipeline()],
            disk: DiskId(9),
        },
        Message::BeatAck(BeatAck {
            sequence: 3,
            disk: DiskId(9),
            unadmitted: vec![(pipeline(), 1)],
            refused: vec![],
            attempts: vec![held],
        }),
        Message::Assign(Box::new(assignment())),
        Message::Completed(completion()),
        Message::Items(Items {
            token: token(),
            pipeline: pipeline(),
            job: job(),
            step: 1,
            first: 8,
            lines: Bytes::from_static(b"{}"),
        }),
        Message::ItemsAck { token: token(), count: 9 },
        Message::Handlers(vec![handler()]),
        Message::HandlersAck(vec![(name("a"), 7)]),
        Message::HandlersPull(vec![(name("a"), 7)]),
        Message::Said(Box::new(SaidBatch {
            token: token(),
            pipeline: pipeline(),
            job: job(),
            step: 1,
            number: 2,
            lines: vec![Said {
                line: 3,
                at_ms: 7,
                level: LogLevel::Warning,
                done: Some(5000),
                text: "half".into(),
            }],
        })),
        Message::Query {
            query: 5,
            question: Question::Events {
                pipeline: pipeline(),
                query: EventQuery::all(EventsFrom::Oldest, std::time::Duration::from_secs(1)),
            },
        },
        Message::Answer {
            query: 5,
            answer: Answer::Events(Box::new(EventPage {
                events: vec![Event {
                    token: EventToken { term: token().term, number: 4 },
                    at_ms: 7,
                    about: About { job: Some(job()), ..About::default() },
                    what: What::Dead { error: "no".into() },
                }],
                next: EventToken { term: token().term, number: 4 },
            })),
        },
        Message::AssignWith(Box::new(AssignedWith {
            assignment: assignment(),
            sessions: vec![SessionOf { step: name("a"), entries: Bytes::from_static(b"{}") }],
        })),
        Message::CompletedWith(Box::new(CompletedWith {
            completion: completion(),
            session: Bytes::from_static(b"{}"),
        })),
        Message::Trace { of: TraceOf::Attempt(token()), trace: trace() },
        Message::Trace { of: TraceOf::Answer(6), trace: trace() },
        Message::Secrets(vec![secret(), secret().changed(None, 1_700_000_000_001)]),
        Message::SecretsAck(vec![(secret().place.id(), 7)]),
        Message::SecretsPull(vec![(secret().place.id(), 7)]),
    ]
}

#[test]
fn messages_read_back_alone_and_behind_each_other() {
    let mut frame = BytesMut::new();
    for message in messages() {
        assert_eq!(codec::decode::<Message>(&codec::encode(&message)), Ok(message.clone()));
        codec::encode_into(&message, &mut frame);
    }
    let mut frame = frame.freeze();
    for message in messages() {
        let envelope = codec::split_envelope(&mut frame).expect("an envelope");
        assert_eq!(codec::open::<Message>(&envelope), Ok(message));
    }
    assert!(frame.is_empty());
}

#[test]
fn a_pipeline_reads_back() {
    let phases = ["a", "b"].map(|phase| PhaseInput::named(name(phase))).to_vec();
    let definition = PipelineDef::new(name("p"), phases).expect("valid");
    let entry = CatalogEntry::new(definition, BTreeSet::from([(node(), DiskId(1))]));
    assert_eq!(codec::decode::<CatalogEntry>(&codec::encode(&entry)), Ok(entry));
}

#[test]
fn extra_bytes_and_other_kinds_are_refused() {
    let mut bytes = codec::encode(&spec()).to_vec();
    assert!(matches!(codec::decode::<Control>(&bytes), Err(DecodeError::Unknown { .. })));
    bytes.push(0);
    assert!(matches!(codec::decode::<JobSpec>(&bytes), Err(DecodeError::Body { .. })));
}

proptest! {
    #[test]
    fn damage_is_noticed_and_never_panics(at in 0usize..64, bit in 0u8..8) {
        let mut bytes = codec::encode(&control()).to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(codec::decode::<Control>(&bytes).is_err());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(codec::decode::<Message>(&bytes).is_err());
        let mut sealed = b"CM\x02\x00\x01\x00".to_vec();
        sealed.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&sealed), &bytes);
        sealed.extend_from_slice(&crc.to_le_bytes());
        sealed.extend_from_slice(&bytes);
        // Whatever is read back must be what was meant: it encodes to something that reads back.
        if let Ok(message) = codec::decode::<Message>(&sealed) {
            prop_assert_eq!(codec::decode::<Message>(&codec::encode(&message)), Ok(message));
        }
    }
}

/// What lies on disks and goes between nodes of different releases. A change here needs a new
/// schema number, with the old struct kept beside the new one.
#[test]
fn the_bytes_of_this_release() {
    let hex = |bytes: Bytes| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let golden = include_str!("golden.txt");
    let mut current = vec![
        format!("spec {}", hex(codec::encode(&spec()))),
        format!("control {}", hex(codec::encode(&control()))),
        format!("reaped {}", hex(codec::encode(&Reaped { generation: 1, at_ms: 300 }))),
    ];
    let messages = messages();
    current
        .extend(messages.iter().map(|message| format!("message {}", hex(codec::encode(message)))));
    let mut with = JobRecord::new(spec());
    with.controls.insert(1, Control { session: Some(Box::new("{}".into())), ..control() });
    let with = with.component(FIRST_CONTROL + 1).expect("it is there");
    current.push(format!("control-with-session {}", hex(with.bytes.clone())));
    let traced = JobRecord::new(spec()).traced(Some(trace()));
    current.push(format!("trace {}", hex(traced.component(TRACE).expect("it is there").bytes)));
    let module = Handler {
        language: Language::Wasm,
        requires: BTreeSet::new(),
        slots: 2,
        source: Bytes::from_static(b"\0asm\x01\0\0\0"),
    };
    let module = HandlerEntry::new(name("a")).changed(Some(module), 1_700_000_000_000);
    current.push(format!("handler-in-wasm {}", hex(codec::encode(&module))));
    current.push(format!("secret {}", hex(codec::encode(&secret()))));
    // What is authenticated with sealed bytes is as frozen as they are.
    let associated = secret().place.associated(KeyId::from_bytes([8; 8]), true);
    current.push(format!("secret-associated {}", hex(associated.into())));
    let settings = Settings { partitions: 3, ..Settings::default() };
    let split = PipelineDef::with(name("p"), vec![PhaseInput::named(name("a"))], settings);
    let split = split.expect("valid").of_partition(2);
    let entry = CatalogEntry::new(split, BTreeSet::from([(node(), DiskId(1))]));
    current.push(format!("pipeline-in-partitions {}", hex(codec::encode(&entry))));
    let update = JobUpdate { job: job(), components: vec![with] };
    let changes = Changes(vec![(pipeline(), vec![update])]);
    current.push(format!("journal-changes {}", hex(codec::encode(&changes))));
    let arrivals = Arrivals(vec![(pipeline(), vec![job()])]);
    current.push(format!("journal-arrivals {}", hex(codec::encode(&arrivals))));
    let current = current.join("\n") + "\n";
    assert_eq!(current, golden, "the encoding has changed");
}

#[test]
fn phases_that_lie_too_deep_within_each_other_are_refused_before_the_stack_ends() {
    let pipeline = |depth: usize| {
        let plain = vec![PhaseInput::named(name("a")), PhaseInput::named(name("b"))];
        let mut definition = PipelineDef::new(name("p"), plain).expect("valid");
        for _ in 0..depth {
            let phases = definition.phases.clone();
            let (of, tolerate_percent, combine) = (0, 0, Combine::List);
            let each = Each { of, phases, tolerate_percent, combine };
            definition.phases[1].each = Some(Box::new(each));
        }
        CatalogEntry::new(definition, BTreeSet::new())
    };
    let read = |depth| codec::decode::<CatalogEntry>(&codec::encode(&pipeline(depth)));
    assert!(read(3).is_ok());
    assert!(read(100).is_err());
}

#[test]
fn a_session_is_a_part_of_its_control_value() {
    let session = || Some(Box::new(Bytes::from_static(b"{\"k\":1}")));
    let left = Control { session: session(), ..control() };
    let record = JobRecord::new(spec());
    let mut mine = record.clone();
    mine.controls.insert(1, left.clone());
    let mut read = record.clone();
    for component in mine.components() {
        assert_eq!(read.merge(&component), Ok(true).map(|_| component.tag != SPEC));
    }
    assert_eq!(read, mine);
    // A later value without one takes its place as a whole.
    let later = Control { sequence: left.sequence + 1, session: None, ..left };
    assert!(read.merge_control(1, later));
    assert_eq!(read.controls[&1].session, None);
}

#[test]
fn a_trace_is_kept_beside_what_was_enqueued_as_by_nodes_that_do_not_know_it() {
    let plain = JobRecord::new(spec());
    let traced = plain.clone().traced(Some(trace()));
    assert_eq!((plain.trace(), traced.trace()), (None, Some(trace())));
    assert_eq!(plain.component(SPEC), traced.component(SPEC));
    let mut read = JobRecord::default();
    for component in traced.components() {
        assert_eq!(read.merge(&component), Ok(true));
    }
    assert_eq!((&read, read.digest()), (&traced, traced.digest()));
    // What no client can have sent is none.
    let zero = codec::encode(&trace());
    let mut body = zero.to_vec();
    let end = body.len();
    body[end - 25..end - 1].fill(0);
    let component = Component { tag: TRACE, bytes: resealed(&body) };
    let mut odd = JobRecord::new(spec());
    assert_eq!(odd.merge(&component), Ok(true));
    assert_eq!(odd.trace(), None);
    // What is forgotten takes it along.
    assert!(read.merge_reaped(Reaped { generation: 0, at_ms: 1 }));
    assert_eq!(read.trace(), None);
    assert_eq!(read.components().len(), 1);
}

/// The envelope of these bytes, with the checksum that they need after a change.
fn resealed(bytes: &[u8]) -> Bytes {
    let (head, body) = (&bytes[..10], &bytes[14..]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), body);
    [head, &crc.to_le_bytes(), body].concat().into()
}

/// Schemas of their own: an old node passes over an envelope of a version that it does not know, and lives on; it could not do
/// so with a message that it does not know within one that it does.
#[test]
fn what_came_later_is_of_versions_that_older_nodes_pass_over() {
    let schema = |message: &Message| {
        codec::split_envelope(&mut codec::encode(message)).expect("an envelope").schema
    };
    for message in messages() {
        let expected = match message {
            Message::Trace { .. } => 2,
            Message::Secrets(_) | Message::SecretsAck(_) | Message::SecretsPull(_) => 3,
            _ => 1,
        };
        assert_eq!(schema(&message), expected, "{message:?}");
    }
}
