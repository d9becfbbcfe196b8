//! Valid inputs, made here rather than kept in files, so that they always are what nodes send.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::OnceLock,
    time::Duration,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    advert::{Advert, PhaseSlots, Roles},
    catalog::CatalogEntry,
    codec::{self, Encoded},
    event::{
        About, AttemptLog, Event, EventPage, EventQuery, EventToken, EventsFrom, LogLevel,
        LogsPage, Said, What,
    },
    handler::{Handler, HandlerEntry, Language},
    id::{DiskId, JobId, Term, Token},
    io::{Change, Changed, Outcome, Refusal},
    message::{
        Answer, Assignment, Completion, Message, Question, SaidBatch, SessionOf, StoreResult, Which,
    },
    pipeline::Handling,
    record::{Control, JobOptions, JobRecord, JobSpec, Progress},
    secret::{KeyId, Pattern, Place, SEAL_BYTES, Sealed, SecretEntry},
    trace::TraceParent,
    view::{AttemptView, JobState, JobSummary, StepCounts},
};

use crate::world::{World, name, node, pipeline};

/// The most messages of one kind: a few differ in more than their numbers.
const OF_A_KIND: usize = 8;

/// Messages of every kind, as they lie in frames: those that a cluster sends, and some more.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    static MESSAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MESSAGES.get_or_init(collect).clone()
}

/// How many kinds of messages there are: what cannot be one says so.
pub(crate) fn kinds() -> u8 {
    let error = codec::decode::<Message>(&carbonmesh_fuzz::seal(Message::KIND, 1, &[250]));
    let error = error.expect_err("no message has that number").to_string();
    let count = error.rsplit("i < ").next().unwrap_or_default();
    let digits = count.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("it says how many there are: {error}"))
}

fn collect() -> Vec<Vec<u8>> {
    let mut kept: BTreeMap<u8, BTreeSet<Bytes>> = BTreeMap::new();
    let rare = rare().into_iter().map(|message| codec::encode(&message));
    for sealed in rare.chain(World::eventful().sent) {
        let kind = kept.entry(sealed[codec::ENVELOPE_BYTES]).or_default();
        if kind.len() < OF_A_KIND {
            kind.insert(sealed);
        }
    }
    kept.into_values().flatten().map(|sealed| sealed.to_vec()).collect()
}

/// What a healthy cluster seldom says.
fn rare() -> Vec<Message> {
    let (pipeline, token) = (pipeline().id(), token());
    let job = JobId::of_key(pipeline, "k");
    let summary = JobSummary {
        job,
        state: JobState::Dead,
        created_ms: 1,
        key: Some("k".to_owned()),
        step: Some(name("one")),
        error: Some("no".to_owned()),
    };
    let refusal = Refusal::Busy { waiting: 9, limit: 9 };
    let handler = Handler {
        language: Language::Python,
        requires: BTreeSet::new(),
        slots: 1,
        source: Bytes::from_static(b"pass"),
    };
    let source = Bytes::from_static(b"\0asm\x01\0\0\0");
    let module = Handler { language: Language::Wasm, source, ..handler.clone() };
    let module = HandlerEntry::new(name("two")).changed(Some(module), 1);
    let place = Place {
        namespace: "team".parse().expect("a name"),
        pipeline: Pattern::new("p-*").expect("a pattern"),
        phase: Pattern::default(),
        name: "KEY".to_owned(),
    };
    let bytes = Bytes::from_static(&[9; SEAL_BYTES + 6]);
    let sealed = Sealed { key: KeyId::from_bytes([1; 8]), hidden: true, bytes };
    let secret = SecretEntry::new(place).changed(Some(sealed), 1);
    let handler = HandlerEntry::new(name("one")).changed(Some(handler), 1);
    vec![
        Message::CatalogPull,
        Message::HandlersAck(vec![(name("one"), handler.digest())]),
        Message::HandlersPull(vec![(name("one"), 7)]),
        Message::Handlers(vec![handler, module]),
        Message::SecretsAck(vec![(secret.place.id(), secret.digest())]),
        Message::SecretsPull(vec![(secret.place.id(), 7)]),
        Message::Secrets(vec![secret.changed(None, 2), secret]),
        Message::Stale { pipeline, term: token.term },
        Message::Admit { pipeline, term: token.term, disk: DiskId(1), copy: 1 },
        Message::Vote { pipeline, term: token.term, founding: true },
        Message::SyncPush { session: 1, part: 1, pipeline, term: token.term, records: Vec::new() },
        Message::SyncPushAck { session: 1, part: 1, disk: DiskId(1) },
        Message::Stored {
            store: 1,
            copies: 1,
            results: vec![
                StoreResult::Stored,
                StoreResult::Conflict,
                StoreResult::Refused(refusal),
            ],
        },
        assigned_with_session(),
        Message::Declined(token),
        Message::Cancel(token),
        Message::Query {
            query: 1,
            question: Question::Job { pipeline, job, wait: Some(Duration::from_secs(1)) },
        },
        Message::Query {
            query: 2,
            question: Question::Change {
                pipeline,
                which: Which::Jobs { state: JobState::Dead, after: Some(job), limit: 10 },
                change: Change::Signal { name: name("go"), data: Err("no".to_owned()) },
            },
        },
        Message::Query {
            query: 3,
            question: Question::Events {
                pipeline,
                query: EventQuery::all(
                    EventsFrom::After(EventToken { term: token.term, number: 1 }),
                    Duration::from_secs(1),
                ),
            },
        },
        Message::Query { query: 4, question: Question::Logs { pipeline, job } },
        Message::Query {
            query: 5,
            question: Question::Newest {
                pipeline,
                state: Some(JobState::Dead),
                after: Some(job),
                limit: 10,
            },
        },
        Message::Query { query: 6, question: Question::Steps { pipeline } },
        Message::Answer {
            query: 6,
            answer: Answer::Steps(vec![StepCounts { step: name("one"), waiting: 1, running: 2 }]),
        },
        Message::Said(Box::new(SaidBatch {
            token,
            pipeline,
            job,
            step: 0,
            number: 1,
            lines: vec![said()],
        })),
        Message::completed(Completion {
            token,
            pipeline,
            job,
            step: 0,
            outcome: Outcome::Succeeded("{}".into()),
            items: 1,
            session: Some("{\"k\":1}".into()),
        }),
        Message::Answer {
            query: 3,
            answer: Answer::Events(Box::new(EventPage {
                events: vec![Event {
                    token: EventToken { term: token.term, number: 2 },
                    at_ms: 1,
                    about: About { job: Some(job), phase: Some(name("one")), ..About::default() },
                    what: What::AttemptFailed { error: "no".into(), again_ms: Some(2) },
                }],
                next: EventToken { term: token.term, number: 2 },
            })),
        },
        Message::Answer {
            query: 4,
            answer: Answer::Logs(Some(Box::new(LogsPage {
                pipeline: name("p"),
                attempts: vec![AttemptLog {
                    job,
                    phase: name("one"),
                    attempt: 1,
                    lines: vec![said()],
                }],
                next: EventToken { term: token.term, number: 2 },
            }))),
        },
        Message::Answer { query: 2, answer: Answer::Changed(Ok(Changed { count: 1, next: None })) },
        Message::Answer { query: 1, answer: Answer::Job(None) },
        Message::Answer { query: 1, answer: Answer::Elsewhere },
        Message::Answer { query: 1, answer: Answer::Jobs { jobs: vec![summary], next: Some(job) } },
    ]
}

fn said() -> Said {
    Said { line: 1, at_ms: 2, level: LogLevel::Info, done: Some(5000), text: "half".into() }
}

/// Adverts and pipelines.
pub(crate) fn others() -> Vec<Vec<u8>> {
    let advert = Advert {
        node: node(1),
        disk: DiskId(2),
        boot: 2,
        sequence: 4,
        name: "n1".to_owned(),
        version: "0.1.0".to_owned(),
        roles: Roles::ALL,
        phases: vec![PhaseSlots { phase: name("one"), slots: 4, busy: 1 }],
        labels: BTreeMap::from([("zone".to_owned(), "b".to_owned())]),
        addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
        coordinates: vec![(pipeline().id(), token().term)],
        catalog: 5,
        refusing: Some("disk full".to_owned()),
    };
    let entry = CatalogEntry::new(pipeline(), BTreeSet::from([(node(1), DiskId(2))]));
    let mut definition = pipeline();
    definition.replicas = 5;
    let changed = entry.changed(definition);
    vec![
        codec::encode(&advert).to_vec(),
        codec::encode(&entry).to_vec(),
        codec::encode(&changed).to_vec(),
    ]
}

/// An attempt behind items of attempts that left sessions.
fn assigned_with_session() -> Message {
    let pipeline = pipeline().id();
    let session = SessionOf { step: name("one"), entries: Bytes::from_static(b"{\"open\":1}") };
    Message::assign(Box::new(Assignment {
        token: token(),
        pipeline,
        name: name("p"),
        job: JobId::of_key(pipeline, "k"),
        step: 1,
        step_name: name("two"),
        phase: name("two"),
        number: 1,
        timeout: Some(Duration::from_secs(1)),
        key: Some("k".to_owned()),
        instructions: Bytes::from_static(b"{}"),
        results: vec![Bytes::from_static(b"{}")],
        names: Some(vec![name("one")]),
        gathered: Vec::new(),
        gives_items: false,
        handling: Handling::default(),
        sessions: vec![session],
        trace: None,
    }))
}

fn token() -> Token {
    Token { term: Term { counter: 3, node: node(1), boot: 2 }, sequence: 300 }
}

pub(crate) fn traced() -> TraceParent {
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("valid")
}

/// Within which trace.
pub(crate) fn trace() -> Vec<u8> {
    codec::encode(&traced()).to_vec()
}

/// What was enqueued.
pub(crate) fn spec() -> Vec<u8> {
    let spec = JobSpec {
        generation: 0,
        options: JobOptions::default(),
        revision: pipeline().revision(),
        phases: 3,
        created_ms: 1_700_000_000_000,
        term: None,
        key: Some("k".to_owned()),
        parent: None,
        compensates: None,
        instructions: Bytes::from_static(b"{}"),
    };
    codec::encode(&spec).to_vec()
}

/// Phases that ended, run and wait.
pub(crate) fn controls() -> Vec<Vec<u8>> {
    let attempt = AttemptView {
        number: 1,
        worker: node(2),
        token: token(),
        started_ms: 1,
        finished_ms: Some(2),
        error: Some("no".to_owned()),
        lost: false,
    };
    let progress = [
        Progress::Succeeded { token: token(), result: Bytes::from_static(b"{}") },
        Progress::Running { worker: node(2), token: token() },
        Progress::Waiting { not_before_ms: 5 },
    ];
    let control = |progress| Control {
        generation: 0,
        term: token().term,
        sequence: 300,
        strict: false,
        progress,
        attempt_count: 1,
        lost_count: 0,
        late_count: 0,
        items: 0,
        written_ms: 7,
        since_ms: 5,
        note: None,
        attempts: vec![attempt.clone()],
        session: None,
    };
    let with = Control { session: Some(Box::new("{}".into())), ..control(progress[0].clone()) };
    let mut record = JobRecord::default();
    record.controls.insert(0, with);
    let with = record.components().into_iter().map(|component| component.bytes.to_vec());
    let plain = progress.into_iter().map(|progress| codec::encode(&control(progress)).to_vec());
    plain.chain(with).collect()
}
