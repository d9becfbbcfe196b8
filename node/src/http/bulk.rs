//! Many jobs in one request: NDJSON in, NDJSON out, one answer per line in their order.
//!
//! ```text
//! body ──lines──► batch ──► node ──► answers ──► response body
//! ```
//! A batch is whatever has arrived when the one before is on its way, up to its limits, so a slow
//! sender is answered at once and a fast one gets large batches. The next batch is read only while
//! there is room for it in flight: a slow node slows its sender down.
//!
//! Clients must read the answers while they send, as the response begins with the first batch.

use std::convert::Infallible;

use axum::{
    body::{Body, BodyDataStream},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use carbonmesh_protocol::{
    io::{NewJob, Receipt, Refusal, Request, Response as Answer},
    name::Name,
    record::JobOptions,
    trace::TraceParent,
};
use futures::{FutureExt, StreamExt, stream};

use super::{
    Api, Problem,
    extract::{broken_body, next_chunk},
    lines::{Line, Lines},
    view::{LineDoc, ReceiptDoc},
};
use crate::document::Instructions;

/// The most jobs and bytes of one request to the node: enough to share one sync of the disk among
/// many jobs, few enough to leave the node responsive to others.
const BATCH_JOBS: usize = 1000;
const BATCH_BYTES: usize = 4 << 20;

/// How many batches of one client may be under way.
const IN_FLIGHT: usize = 4;

/// Many jobs as the document of the interface describes them: one JSON object in each line.
#[derive(utoipa::ToSchema)]
#[schema(value_type = String, example = "{\"n\": 1}\n{\"n\": 2}\n")]
pub(super) struct JobsBody(#[expect(dead_code, reason = "it is read by the derive alone")] String);

/// Accepts a body's jobs; `key_field` names the field that holds each one's idempotency key.
pub(super) async fn enqueue(
    api: Api,
    pipeline: Name,
    (key_field, options, trace): (Option<String>, JobOptions, Option<TraceParent>),
    body: Body,
) -> Result<Response, Problem> {
    let lines = Lines::new(api.limits.job_bytes);
    let chunks = body.into_data_stream();
    let job_bytes = api.limits.job_bytes;
    let reader = Reader { chunks, lines, job_bytes, key_field, options, trace, ended: false };
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    let Some((batch, reader)) = reader.read().await else {
        return Ok((headers, Body::empty()).into_response());
    };
    // Alone, before anything else is sent: if the node refuses it as a whole, say because there is
    // no such pipeline, then nothing was done and the response can still say so by its status.
    let answers = submit(&api, &pipeline, batch.jobs).await?;
    let first = render(batch.lines, Ok(answers));
    let rest = stream::unfold(reader, Reader::read)
        .map(move |batch| {
            let (api, pipeline) = (api.clone(), pipeline.clone());
            async move { render(batch.lines, submit(&api, &pipeline, batch.jobs).await) }
        })
        .buffered(IN_FLIGHT);
    let answers = stream::once(async { first }).chain(rest).map(Ok::<Bytes, Infallible>);
    Ok((headers, Body::from_stream(answers)).into_response())
}

/// Lines that are answered together.
#[derive(Default)]
struct Batch {
    /// What the node is asked to accept.
    jobs: Vec<NewJob>,
    bytes: usize,
    /// Every line; those without a problem are the jobs, in their order.
    lines: Vec<(u64, Option<Problem>)>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.lines.len() >= BATCH_JOBS || self.bytes >= BATCH_BYTES
    }

    fn push(&mut self, number: u64, job: Result<NewJob, Problem>) {
        let problem = match job {
            Ok(job) => {
                self.bytes += job.instructions.len();
                self.jobs.push(job);
                None
            }
            Err(problem) => Some(problem),
        };
        self.lines.push((number, problem));
    }
}

/// Makes batches of a body.
struct Reader {
    chunks: BodyDataStream,
    lines: Lines,
    job_bytes: usize,
    key_field: Option<String>,
    options: JobOptions,
    trace: Option<TraceParent>,
    ended: bool,
}

impl Reader {
    /// The next batch: waits for its first line, then takes what is there already.
    async fn read(mut self) -> Option<(Batch, Self)> {
        let mut batch = Batch::default();
        loop {
            while !batch.is_full()
                && let Some(line) = self.lines.next()
            {
                batch.push(line.number, self.job(line));
            }
            let waiting = batch.lines.is_empty();
            if batch.is_full() || self.ended {
                return (!waiting).then_some((batch, self));
            }
            let chunk = match self.chunks.next().now_or_never() {
                Some(chunk) => chunk.map(|chunk| chunk.map_err(|error| broken_body(&error))),
                None if waiting => next_chunk(&mut self.chunks).await,
                None => return Some((batch, self)),
            };
            match chunk {
                Some(Ok(bytes)) => self.lines.push(&bytes),
                Some(Err(problem)) => {
                    self.ended = true;
                    batch.push(self.lines.number() + 1, Err(problem));
                }
                None => {
                    self.ended = true;
                    if let Some(line) = self.lines.finish() {
                        batch.push(line.number, self.job(line));
                    }
                }
            }
        }
    }

    fn job(&self, line: Line) -> Result<NewJob, Problem> {
        let text = line.text.ok_or_else(|| Problem::too_large("the line", self.job_bytes))?;
        let instructions = Instructions::parse(&text)?;
        let key = match &self.key_field {
            None => None,
            Some(field) => {
                let key = instructions.text_field(field).ok_or_else(|| no_key(field))?;
                Some(key.to_owned())
            }
        };
        let (options, trace) = (self.options, self.trace);
        Ok(NewJob { key, options, trace, instructions: instructions.into_bytes() })
    }
}

fn no_key(field: &str) -> Problem {
    let detail = format!("the job has no string field `{field}`, which ?key= names as its key");
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "no-key", "no idempotency key", detail)
}

/// Asks the node to accept the jobs: one answer for each, or a problem that concerns all.
async fn submit(
    api: &Api,
    pipeline: &Name,
    jobs: Vec<NewJob>,
) -> Result<Vec<Result<Receipt, Refusal>>, Problem> {
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    let count = jobs.len();
    match api.ask(Request::Enqueue { pipeline: pipeline.clone(), jobs }).await? {
        Answer::Enqueued(answers) if answers.len() == count => Ok(answers),
        other => Err(Problem::unexpected(&other)),
    }
}

/// One line of NDJSON for each line of the batch.
fn render(
    lines: Vec<(u64, Option<Problem>)>,
    answers: Result<Vec<Result<Receipt, Refusal>>, Problem>,
) -> Bytes {
    let (answers, all) = match answers {
        Ok(answers) => (answers, None),
        Err(problem) => (Vec::new(), Some(problem)),
    };
    let mut answers = answers.into_iter();
    let mut out = Vec::new();
    for (line, problem) in lines {
        let answer = match problem.or_else(|| all.clone()) {
            Some(problem) => Err(problem),
            None => match answers.next() {
                Some(answer) => answer.map_err(Problem::from),
                // `submit` has counted them.
                None => continue,
            },
        };
        let (receipt, error) = match answer {
            Ok(receipt) => (Some(ReceiptDoc::from(&receipt)), None),
            Err(problem) => (None, Some(problem)),
        };
        match serde_json::to_writer(&mut out, &LineDoc { line, receipt, error }) {
            Ok(()) => out.push(b'\n'),
            Err(error) => tracing::error!(line, %error, "an answer cannot be written"),
        }
    }
    out.into()
}
