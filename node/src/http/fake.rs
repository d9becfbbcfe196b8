//! A node for tests: a function that answers, behind the real router and a real socket.

use carbonmesh_protocol::{
    advert::{PhaseSlots, Roles},
    event::{
        About, AttemptLog, Event, EventPage, EventQuery, EventToken, EventsFrom, LogLevel,
        LogsPage, Said, What,
    },
    handler::{Handler, HandlerEntry, HandlerVersion, Language},
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    io::{Changed, Receipt, Refusal, Request, Response},
    name::Name,
    pipeline::{PhaseInput, PipelineDef},
    record::JobOptions,
    secret::{KeyId, Pattern, Place, SEAL_BYTES, Sealed, SecretEntry},
    view::{
        AttemptView, ClusterView, InvocationView, JobState, JobView, Liveness, MemberView,
        PartitionView, PipelineView, RevisionView, StepCounts,
    },
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{HttpLimits, router, serve};
use crate::handle::{Call, NodeHandle};

/// The node that answers.
pub(crate) const NODE: NodeId = NodeId::from_bytes([0xab; 16]);
const TOKEN: Token = Token { term: Term { counter: 1, node: NODE, boot: 1 }, sequence: 2 };

/// Serves what `answer` says; the address is that of the interface.
pub(crate) async fn serve_with(
    limits: HttpLimits,
    answer: impl FnMut(Request) -> Response + Send + 'static,
) -> String {
    // Clients of tests are built after this.
    crate::tls::install_provider();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let router = router(handle(answer), limits);
    tokio::spawn(serve(listener, router, CancellationToken::new()));
    format!("http://{address}")
}

/// The node itself.
pub(crate) fn handle(mut answer: impl FnMut(Request) -> Response + Send + 'static) -> NodeHandle {
    let (calls, mut called) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(call) = called.recv().await {
            match call {
                Call::Ask { request, answer: to, .. } => drop(to.send(answer(request))),
                Call::Figures(to) => drop(to.send(Box::default())),
                Call::Drain(drained) => drop(drained.send(())),
                Call::Forget(_) => {}
            }
        }
    });
    NodeHandle::new(NODE, calls)
}

/// A name.
pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

/// The receipt of a job.
pub(crate) fn receipt(job: JobId) -> Receipt {
    Receipt { job, copies: 2, target: 3, degraded: false, existed: false }
}

/// What a node would answer, whatever is asked.
pub(crate) fn answer(request: Request) -> Response {
    match request {
        Request::Apply(definition) => {
            Response::Applied { revision: definition.revision(), changed: true, copies: 1 }
        }
        Request::Pause { .. } => Response::Applied { revision: 1, changed: true, copies: 1 },
        Request::Remove(_) => Response::Removed,
        // One page; whoever waits for more is told that the stream ends.
        Request::Events { query: EventQuery { wait: Some(_), .. }, .. } => {
            Response::Refused(Refusal::Stopping)
        }
        Request::Events { query: EventQuery { from: EventsFrom::After(next), .. }, .. } => {
            Response::Events(Box::new(EventPage { events: vec![], next }))
        }
        Request::Events { .. } => Response::Events(Box::new(events())),
        Request::Handlers => Response::Handlers(vec![handler()]),
        Request::PutHandler { handler, .. } => {
            let version = HandlerVersion { generation: 1, hash: handler.hash(), put_ms: 1 };
            Response::HandlerPut { version, changed: true, copies: 1 }
        }
        Request::RemoveHandler { .. } => Response::Removed,
        Request::Secrets => Response::Secrets(vec![secret()]),
        Request::PutSecret { .. } => Response::SecretPut { changed_ms: 1, copies: 1 },
        Request::RemoveSecret(_) => Response::Removed,
        Request::Logs(_) => Response::Logs(Box::new(logs())),
        Request::Recover { lost, .. } => Response::Recovered { members: [].into(), lost },
        Request::Job { job, .. } => Response::Job(Box::new(self::job(job, JobState::Succeeded))),
        Request::Jobs { .. } => Response::Jobs { jobs: vec![], next: Some(JobId::MAX) },
        Request::Newest { .. } => Response::Jobs { jobs: vec![], next: Some(JobId::MAX) },
        Request::Steps(_) => {
            let step = StepCounts { step: name("s"), waiting: 3, running: 2 };
            Response::Steps(vec![step])
        }
        Request::Change { .. } => Response::Changed(Changed { count: 1, next: None }),
        Request::Revisions(_) => Response::Revisions(revisions()),
        Request::Cluster => Response::Cluster(Box::new(cluster())),
        enqueue => accept(&enqueue),
    }
}

/// What is kept as `KEY` for all of the namespace `team`.
pub(crate) fn secret() -> SecretEntry {
    let place = Place {
        namespace: "team".parse().expect("a valid name"),
        pipeline: Pattern::default(),
        phase: Pattern::default(),
        name: "KEY".to_owned(),
    };
    let bytes = vec![7_u8; SEAL_BYTES + 6].into();
    let sealed = Sealed { key: KeyId::from_bytes([1; 8]), hidden: true, bytes };
    SecretEntry::new(place).changed(Some(sealed), 1)
}

/// The handler of the phase `p`.
pub(crate) fn handler() -> HandlerEntry {
    let (language, source) = (Language::Shell, "cat".into());
    let handler = Handler { language, requires: [].into(), slots: 1, source };
    HandlerEntry::new(name("p")).changed(Some(handler), 1)
}

/// Two definitions of the pipeline that [`cluster`] has; the latter is the current one.
pub(crate) fn revisions() -> Vec<RevisionView> {
    let current = cluster().pipelines.remove(0).definition;
    let phases = vec![PhaseInput::named(name("old"))];
    let earlier = PipelineDef::new(current.name.clone(), phases).expect("a pipeline");
    vec![
        RevisionView { definition: current, applied: 2, current: true },
        RevisionView { definition: earlier, applied: 1, current: false },
    ]
}

/// Accepts all jobs; the key, or else the position, makes the id.
pub(crate) fn accept(request: &Request) -> Response {
    let Request::Enqueue { pipeline, jobs } = request else {
        panic!("no enqueue: {request:?}");
    };
    let pipeline = PipelineId::of_name(pipeline.as_str());
    let accepted = jobs.iter().enumerate().map(|(at, job)| {
        let key = job.key.clone().unwrap_or_else(|| at.to_string());
        Ok(receipt(JobId::of_key(pipeline, &key)))
    });
    Response::Enqueued(accepted.collect())
}

/// Some events.
pub(crate) fn events() -> EventPage {
    let token = |number| EventToken { term: TOKEN.term, number };
    let job = JobId::of_key(PipelineId::of_name("p"), "k");
    let event = |number, what| {
        let about = About { job: Some(job), phase: Some(name("s")), ..About::default() };
        Event { token: token(number), at_ms: 1, about, what }
    };
    let events = vec![
        event(1, What::AttemptStarted { worker: NODE }),
        event(2, What::PhaseFailed { error: "no\n\ndata: x".into() }),
    ];
    EventPage { events, next: token(2) }
}

/// A log of one attempt.
pub(crate) fn logs() -> LogsPage {
    let (level, text) = (LogLevel::Info, "a line".into());
    let lines = vec![Said { line: 0, at_ms: 1, level, done: None, text }];
    let job = JobId::of_key(PipelineId::of_name("p"), "k");
    let attempt = AttemptLog { job, phase: name("s"), attempt: 1, lines };
    LogsPage { pipeline: name("p"), attempts: vec![attempt], next: events().next }
}

/// A job with one attempt behind it.
pub(crate) fn job(id: JobId, state: JobState) -> JobView {
    let attempt = AttemptView {
        number: 1,
        worker: NODE,
        token: TOKEN,
        started_ms: 1_000,
        finished_ms: state.is_terminal().then_some(2_500),
        error: None,
        lost: false,
    };
    JobView {
        job: id,
        pipeline: name("p"),
        state,
        created_ms: 0,
        finished_ms: state.is_terminal().then_some(2_500),
        options: JobOptions::default(),
        generation: 0,
        key: None,
        parent: None,
        compensates: None,
        compensation: None,
        instructions: r#"{"n":1.00,"a":1}"#.into(),
        results: vec![r#"{"a": 2}"#.into()],
        invocations: vec![InvocationView {
            step: name("s"),
            phase: name("work"),
            state,
            attempt_count: 1,
            attempts: vec![attempt],
            note: None,
            result: Some(r#"{"a": 2}"#.into()),
            items: None,
        }],
        conflicts: 0,
        other_payloads: 0,
        trace: None,
    }
}

/// A cluster of the node itself and one that is down, with one pipeline.
pub(crate) fn cluster() -> ClusterView {
    let member = |node, text: &str, liveness| MemberView {
        node,
        name: text.to_owned(),
        disk: DiskId(7),
        boot: 1,
        version: "0.1.0".to_owned(),
        liveness,
        roles: Roles::ALL,
        phases: vec![PhaseSlots { phase: name("work"), slots: 4, busy: 1 }],
        labels: Default::default(),
        addresses: vec![],
        refusing: (liveness == Liveness::Down).then(|| "disk full".to_owned()),
        avoided: None,
    };
    let definition =
        PipelineDef::new(name("p"), vec![PhaseInput::named(name("s"))]).expect("a pipeline");
    let term = Term { counter: 5, node: NODE, boot: 1 };
    ClusterView {
        node: NODE,
        members: vec![
            member(NODE, "here", Liveness::Alive),
            member(NodeId::from_bytes([1; 16]), "there", Liveness::Down),
        ],
        pipelines: vec![PipelineView {
            definition,
            paused: false,
            paused_steps: vec![],
            coordinator: Some((NODE, term)),
            replicas: vec![NODE, NodeId::from_bytes([2; 16])],
            counts: None,
            unoffered: vec![name("s")],
            partitions: vec![PartitionView {
                number: 0,
                coordinator: Some((NODE, term)),
                replicas: vec![NODE, NodeId::from_bytes([2; 16])],
                counts: None,
            }],
        }],
    }
}
