//! A job as spans, in OTLP's JSON encoding: numbers of 64 bits are text, ids are hexadecimal.
//!
//! ```text
//! (the span of whoever enqueued it)
//! └─ job PIPELINE ─┬─ enqueue            its moment
//!                  ├─ replicate          until its copies were durable; told by the node that took it
//!                  ├─ wait               until the first attempt was given out
//!                  └─ STEP (each attempt that has ended; parent of what the phase itself tells)
//! ```
//! What is made of an item, or undoes another job, is linked to the other job: in the same trace if that
//! is somebody's, else one of its own.

use carbonmesh_protocol::{
    id::JobId,
    view::{AttemptView, InvocationView, JobState, JobView},
};
use serde_json::{Value, json};

use super::{
    context::{attempt_span, job_span, span_id, trace_id},
    taken::Taken,
};

/// The longest text that is told of an error, in bytes.
const TEXT_BYTES: usize = 1024;

/// Kinds of spans, as OTLP numbers them.
const INTERNAL: u8 = 1;
const PRODUCER: u8 = 4;
const CONSUMER: u8 = 5;

/// States, as OTLP numbers them.
const OK: u8 = 1;
const ERROR: u8 = 2;

/// A request's body with the spans of these jobs, told by one node.
pub(super) fn request(node: &str, jobs: &[Box<JobView>], taken: &[Box<Taken>]) -> Value {
    let ended = jobs.iter().flat_map(|job| of_job(job));
    let spans: Vec<Value> = ended.chain(taken.iter().map(|job| of_taken(job))).collect();
    let version = env!("CARGO_PKG_VERSION");
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            text("service.name", "carbonmesh"),
            text("service.version", version),
            text("service.instance.id", node),
        ] },
        "scopeSpans": [{ "scope": { "name": "carbonmesh", "version": version }, "spans": spans }],
    }] })
}

fn text(key: &str, value: &str) -> Value {
    json!({ "key": key, "value": { "stringValue": value } })
}

fn number(key: &str, value: u64) -> Value {
    json!({ "key": key, "value": { "intValue": value.to_string() } })
}

fn nanos(unix_ms: u64) -> String {
    (u128::from(unix_ms) * 1_000_000).to_string()
}

fn status(code: u8, message: Option<&str>) -> Value {
    match message {
        Some(message) => {
            let end = message.floor_char_boundary(TEXT_BYTES);
            json!({ "code": code, "message": &message[..end] })
        }
        None => json!({ "code": code }),
    }
}

/// The spans of one job that has ended.
fn of_job(job: &JobView) -> Vec<Value> {
    let id = job.job;
    let (begin, end) = (job.created_ms, job.finished_ms.unwrap_or(job.created_ms));
    let state = match job.state {
        JobState::Succeeded => status(OK, None),
        JobState::Dead => status(ERROR, last_error(job)),
        // Somebody wanted it so.
        _ => json!({}),
    };
    let mut attributes = vec![
        text("carbonmesh.job", &id.to_string()),
        text("carbonmesh.pipeline", job.pipeline.as_str()),
        text("carbonmesh.state", job.state.name()),
        number("carbonmesh.instructions.bytes", job.instructions.len() as u64),
    ];
    attributes.extend(job.key.as_deref().map(|key| text("carbonmesh.key", key)));
    let mut links = Vec::new();
    if let Some((parent, item)) = job.parent {
        attributes.push(number("carbonmesh.item", item.into()));
        links.push(link(parent, job));
    }
    links.extend(job.compensates.map(|other| link(other, job)));
    let trace = trace_id(id, job.trace);
    let root = job_span(id);
    let mut whole = json!({
        "traceId": trace, "spanId": root, "name": format!("job {}", job.pipeline),
        "kind": INTERNAL, "startTimeUnixNano": nanos(begin), "endTimeUnixNano": nanos(end.max(begin)),
        "attributes": attributes, "links": links, "status": state,
    });
    if let Some(parent) = job.trace {
        whole["parentSpanId"] = parent.span_id().into();
    }
    let mut spans = vec![whole];
    let below = |name: &str, span: String, kind: u8, from: u64, to: u64| {
        json!({
            "traceId": trace, "spanId": span, "parentSpanId": root, "name": name, "kind": kind,
            "startTimeUnixNano": nanos(from), "endTimeUnixNano": nanos(to.max(from)),
        })
    };
    spans.push(below("enqueue", span_id(id, &["enqueue"]), PRODUCER, begin, begin));
    let attempts =
        || job.invocations.iter().flat_map(|one| one.attempts.iter().map(move |it| (one, it)));
    if let Some(first) = attempts().map(|(_, attempt)| attempt.started_ms).min() {
        let from = begin.max(job.options.not_before_ms);
        spans.push(below("wait", span_id(id, &["wait"]), INTERNAL, from, first));
    }
    for (phase, attempt) in attempts() {
        // One that has not ended was given up with its worker: nobody knows how long it took.
        let Some(finished) = attempt.finished_ms else { continue };
        let span = attempt_span(id, &attempt.token.to_string());
        let mut told = below(phase.step.as_str(), span, CONSUMER, attempt.started_ms, finished);
        told["attributes"] = of_attempt(job, phase, attempt).into();
        told["status"] = match &attempt.error {
            Some(error) => status(ERROR, Some(error)),
            None => status(OK, None),
        };
        spans.push(told);
    }
    spans
}

/// From when a job came to when it was durable on as many disks as its pipeline asks for.
fn of_taken(taken: &Taken) -> Value {
    let (id, from_ms) = (taken.job, taken.from_ms);
    json!({
        "traceId": trace_id(id, taken.trace), "spanId": span_id(id, &["replicate"]),
        "parentSpanId": job_span(id), "name": "replicate", "kind": INTERNAL,
        "startTimeUnixNano": nanos(from_ms), "endTimeUnixNano": nanos(taken.to_ms.max(from_ms)),
        "attributes": [
            text("carbonmesh.job", &id.to_string()),
            text("carbonmesh.pipeline", taken.pipeline.as_str()),
            number("carbonmesh.copies", taken.copies.into()),
            number("carbonmesh.copies.target", taken.target.into()),
        ],
    })
}

fn of_attempt(job: &JobView, phase: &InvocationView, attempt: &AttemptView) -> Vec<Value> {
    vec![
        text("carbonmesh.job", &job.job.to_string()),
        text("carbonmesh.pipeline", job.pipeline.as_str()),
        text("carbonmesh.step", phase.step.as_str()),
        text("carbonmesh.phase", phase.phase.as_str()),
        number("carbonmesh.attempt", attempt.number.into()),
        text("carbonmesh.worker", &format!("{:#}", attempt.worker)),
    ]
}

/// A link to a job from one that was made for it, and has its trace.
fn link(job: JobId, from: &JobView) -> Value {
    json!({ "traceId": trace_id(job, from.trace), "spanId": job_span(job) })
}

/// Why a job has failed: what its last attempt that failed says, or what a phase says of itself.
fn last_error(job: &JobView) -> Option<&str> {
    let dead = job.invocations.iter().rev().filter(|one| one.state == JobState::Dead);
    let mut errors = dead.filter_map(|one| {
        let attempt = one.attempts.last().and_then(|attempt| attempt.error.as_deref());
        one.note.as_deref().or(attempt)
    });
    errors.next()
}
