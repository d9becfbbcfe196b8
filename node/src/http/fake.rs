//! A node for tests: a function that answers, behind the real router and a real socket.

use carbonmesh_protocol::{
    advert::{PhaseSlots, Roles},
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    io::{Receipt, Request, Response},
    name::Name,
    pipeline::{PhaseInput, PipelineDef},
    record::JobOptions,
    view::{
        AttemptView, ClusterView, InvocationView, JobState, JobView, Liveness, MemberView,
        PipelineView,
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
            if let Call::Ask { request, answer: to, .. } = call {
                let _ = to.send(answer(request));
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
        }],
    }
}
