//! Every message with every role, against the table that operators read.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    advert::{Advert, PhaseSlots, Roles},
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    io::Outcome,
    message::{
        Answer, AssignedWith, Assignment, Ballot, Beat, BeatAck, BeatGroup, CompletedWith,
        Completion, Digest, Items, Message, Question, Replicate, SaidBatch, Scope, SyncPage,
        SyncReply, TraceOf,
    },
    name::Name,
    pipeline::Handling,
    rights::{NotAllowed, Rights},
    view::Counts,
};

const NONE: Roles = Roles { worker: false, replica: false, gateway: false };
const WORKER: Roles = Roles { worker: true, ..NONE };
const REPLICA: Roles = Roles { replica: true, ..NONE };
const GATEWAY: Roles = Roles { gateway: true, ..NONE };

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn advert() -> Advert {
    let slots = |phase| PhaseSlots { phase: name(phase), slots: 4, busy: 0 };
    Advert {
        node: NodeId::from_bytes([1; 16]),
        disk: DiskId(1),
        boot: 1,
        sequence: 1,
        name: "n".to_owned(),
        version: "0".to_owned(),
        roles: Roles::ALL,
        phases: vec![slots("a"), slots("b")],
        labels: BTreeMap::new(),
        addresses: vec![],
        coordinates: vec![(PipelineId::of_name("p"), Term::ZERO)],
        catalog: 0,
        refusing: None,
    }
}

fn beat(groups: Vec<BeatGroup>) -> Message {
    Message::Beat(Beat { sequence: 1, catalog: 0, groups, demand: vec![], busy: vec![] })
}

/// One message of every kind.
fn messages() -> Vec<Message> {
    let pipeline = PipelineId::of_name("p");
    let term = Term::ZERO;
    let token = Token { term, sequence: 1 };
    let job = JobId::of_key(pipeline, "k");
    let disk = DiskId(1);
    vec![
        Message::Hello(advert()),
        Message::Catalog(vec![]),
        Message::CatalogAck(vec![]),
        Message::CatalogPull,
        beat(vec![]),
        Message::BeatAck(BeatAck {
            sequence: 1,
            disk,
            unadmitted: vec![],
            refused: vec![],
            attempts: vec![],
        }),
        Message::PreVote { pipeline, counter: 1, founding: false },
        Message::Vote { pipeline, term, founding: false },
        Message::Ballot(Ballot {
            pipeline,
            counter: 1,
            pre: false,
            granted: true,
            admitted: true,
            highest: term,
            disk,
            view: None,
        }),
        Message::Stale { pipeline, term },
        Message::Admit { pipeline, term, disk, copy: 1 },
        Message::Replicate(Replicate { batch: 1, groups: Arc::new(vec![]) }),
        Message::ReplicateAck { batch: 1, missing: vec![], refused: vec![], disk },
        Message::SyncPage(SyncPage {
            session: 1,
            pipeline,
            scope: Scope::All,
            from: job,
            to: job,
            entries: vec![],
            only_these: false,
            view: None,
        }),
        Message::SyncReply(SyncReply {
            session: 1,
            from: job,
            upto: job,
            records: vec![],
            want: vec![],
            finished: Digest::default(),
            copy: 1,
            disk,
            horizon_ms: 0,
        }),
        Message::SyncPush { session: 1, part: 1, pipeline, term, records: vec![] },
        Message::SyncPushAck { session: 1, part: 1, disk },
        Message::Store { store: 1, pipeline, revision: 1, jobs: vec![] },
        Message::Stored { store: 1, copies: 1, results: vec![] },
        Message::Assign(Box::new(assignment(token, pipeline, job))),
        Message::Declined(token),
        Message::Completed(completion(token, pipeline, job)),
        Message::CompletionAck(token),
        Message::Cancel(token),
        Message::Grant { windows: vec![(name("a"), 4), (name("b"), 4)] },
        Message::Query { query: 1, question: Question::Job { pipeline, job, wait: None } },
        Message::Answer { query: 1, answer: Answer::Elsewhere },
        Message::Items(Items { token, pipeline, job, step: 0, first: 0, lines: Bytes::new() }),
        Message::ItemsAck { token, count: 1 },
        Message::Handlers(vec![]),
        Message::HandlersAck(vec![]),
        Message::HandlersPull(vec![]),
        Message::Said(Box::new(SaidBatch {
            token,
            pipeline,
            job,
            step: 0,
            number: 1,
            lines: vec![],
        })),
        Message::AssignWith(Box::new(AssignedWith {
            assignment: assignment(token, pipeline, job),
            sessions: vec![],
        })),
        Message::CompletedWith(Box::new(CompletedWith {
            completion: completion(token, pipeline, job),
            session: Bytes::from_static(b"{}"),
        })),
        Message::Secrets(vec![]),
        Message::SecretsAck(vec![]),
        Message::SecretsPull(vec![]),
        Message::Trace { of: TraceOf::Attempt(token), trace: TRACE.parse().expect("valid") },
    ]
}

/// Of a client.
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn assignment(token: Token, pipeline: PipelineId, job: JobId) -> Assignment {
    Assignment {
        token,
        pipeline,
        name: name("p"),
        job,
        step: 0,
        step_name: name("a"),
        phase: name("a"),
        number: 1,
        timeout: None,
        key: None,
        instructions: Bytes::from_static(b"{}"),
        results: vec![],
        names: None,
        gathered: vec![],
        gives_items: false,
        handling: Handling::default(),
        sessions: vec![],
        trace: None,
    }
}

fn completion(token: Token, pipeline: PipelineId, job: JobId) -> Completion {
    Completion {
        token,
        pipeline,
        job,
        step: 0,
        outcome: Outcome::Cancelled,
        items: 0,
        session: None,
    }
}

/// The rows `| `Kind` | worker | replica | gateway |` of the document.
fn documented() -> BTreeMap<String, [bool; 3]> {
    let text = include_str!("../../docs/security.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
    let messages = rows.filter(|cells| cells.len() == 7 && matches!(cells[2], "yes" | "no"));
    messages
        .map(|cells| {
            let may = [cells[2], cells[3], cells[4]].map(|cell| match cell {
                "yes" => true,
                "no" => false,
                other => panic!("{other} in {cells:?}"),
            });
            (cells[1].trim_matches('`').to_owned(), may)
        })
        .collect()
}

#[test]
fn the_documented_table_is_the_one_that_is_kept() {
    let mut kept = BTreeMap::new();
    for message in messages() {
        let may = [WORKER, REPLICA, GATEWAY].map(|roles| {
            let rights = Rights { roles, phases: None };
            let admitted = rights.admit(&mut message.clone());
            assert_eq!(admitted.is_ok(), message.senders().include(roles));
            admitted.is_ok()
        });
        kept.insert(message.kind().to_owned(), may);
    }
    assert_eq!(kept.len(), messages().len(), "one message of each kind");
    assert_eq!(documented(), kept);
}

#[test]
fn a_member_without_roles_says_nothing_and_one_with_all_says_everything() {
    for mut message in messages() {
        let kind = message.kind();
        let none = Rights { roles: NONE, phases: None };
        assert_eq!(none.admit(&mut message), Err(NotAllowed::Kind { kind, roles: NONE }));
        let before = message.clone();
        assert_eq!(Rights::ALL.admit(&mut message), Ok(()));
        assert_eq!(message, before);
    }
}

#[test]
fn what_a_worker_claims_is_cut_down_to_what_it_was_granted() {
    let rights = Rights { roles: WORKER, phases: Some(BTreeSet::from(["a".parse().unwrap()])) };
    let mut hello = Message::Hello(advert());
    rights.admit(&mut hello).unwrap();
    let Message::Hello(advert) = hello else { panic!() };
    assert_eq!(advert.roles, WORKER);
    assert_eq!(advert.phases.iter().map(|it| it.phase.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(advert.coordinates.is_empty());
    let mut grant = Message::Grant { windows: vec![(name("a"), 4), (name("b"), 4)] };
    rights.admit(&mut grant).unwrap();
    assert_eq!(grant, Message::Grant { windows: vec![(name("a"), 4)] });
}

#[test]
fn a_worker_of_one_namespace_offers_nothing_of_another_and_reaches_no_jobs() {
    let rights =
        Rights { roles: WORKER, phases: Some(BTreeSet::from(["team/*".parse().unwrap()])) };
    let windows = ["a", "team/a", "other/a", "team2/a", "team/b"].map(|text| (name(text), 1));
    let mut grant = Message::Grant { windows: windows.to_vec() };
    rights.admit(&mut grant).unwrap();
    let own = vec![(name("team/a"), 1), (name("team/b"), 1)];
    assert_eq!(grant, Message::Grant { windows: own });
    for message in messages() {
        let reaches_jobs = matches!(
            message.kind(),
            "Store"
                | "Query"
                | "Catalog"
                | "Handlers"
                | "Secrets"
                | "Replicate"
                | "SyncPage"
                | "Vote"
        );
        let refused = rights.admit(&mut message.clone()).is_err();
        assert!(refused || !reaches_jobs, "{}", message.kind());
    }
    // What is granted is passed on no wider.
    let of = |text: &str| Rights {
        roles: WORKER,
        phases: Some(BTreeSet::from([text.parse().unwrap()])),
    };
    assert!(rights.cover(&of("team/a")) && rights.cover(&of("team/*")));
    for wider in ["a", "default/*", "other/a", "other/*"] {
        assert!(!rights.cover(&of(wider)), "{wider}");
    }
    assert!(!of("team/a").cover(&rights) && of("default/*").cover(&of("a")));
}

#[test]
fn only_replicas_hold_leases() {
    let group = BeatGroup {
        pipeline: PipelineId::of_name("p"),
        term: Term::ZERO,
        live: Digest::default(),
        finished: Digest::default(),
        counts: Counts::default(),
        settled: false,
        view: None,
        horizon_ms: 0,
    };
    let worker = Rights { roles: Roles { gateway: true, ..WORKER }, phases: None };
    let refused = worker.admit(&mut beat(vec![group.clone()]));
    assert_eq!(refused, Err(NotAllowed::Coordinates(1)));
    let replica = Rights { roles: REPLICA, phases: None };
    assert_eq!(replica.admit(&mut beat(vec![group])), Ok(()));
}

#[test]
fn rights_cover_what_is_no_wider() {
    let some = |roles, phases: Option<&[&str]>| Rights {
        roles,
        phases: phases.map(|names| names.iter().map(|text| text.parse().unwrap()).collect()),
    };
    let wide = some(WORKER, Some(&["a", "b"]));
    assert!(Rights::ALL.cover(&wide) && wide.cover(&wide));
    assert!(wide.cover(&some(WORKER, Some(&["a"]))) && wide.cover(&some(NONE, Some(&[]))));
    for wider in [some(WORKER, None), some(WORKER, Some(&["a", "c"])), some(REPLICA, Some(&["a"]))]
    {
        assert!(!wide.cover(&wider), "{wider:?}");
    }
}
