//! Documents of jobs.

use carbonmesh_protocol::{
    io::Receipt,
    view::{AttemptView, InvocationView, ItemsView, JobState, JobSummary, JobView},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{Names, NodeRef, raw, rfc3339};
use crate::{
    document::merge_instructions,
    http::{
        Problem,
        openapi::schemas::{items, job_state, problem_document},
    },
};

/// A job was accepted: it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReceiptDoc {
    /// The job.
    pub id: String,
    /// On how many nodes it was on disk when this was said.
    pub copies: u32,
    /// On how many it should be.
    pub target: u32,
    /// Whether there are fewer copies than could be expected.
    pub degraded: bool,
    /// Whether the same job was there already.
    pub existed: bool,
}

impl From<&Receipt> for ReceiptDoc {
    fn from(receipt: &Receipt) -> Self {
        Self {
            id: receipt.job.to_string(),
            copies: receipt.copies,
            target: receipt.target,
            degraded: receipt.degraded,
            existed: receipt.existed,
        }
    }
}

/// The answer to one line of many: a receipt's fields, or an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LineDoc {
    /// Which line of the request, from 1.
    pub line: u64,
    /// What was accepted.
    #[serde(flatten)]
    pub receipt: Option<ReceiptDoc>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = problem_document)]
    pub error: Option<Problem>,
}

/// A job in full.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct JobDoc {
    /// The job.
    pub id: String,
    /// Its pipeline.
    pub pipeline: String,
    /// Where it stands.
    #[schema(schema_with = job_state)]
    pub state: JobState,
    /// When it was enqueued.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it became terminal.
    #[schema(format = DateTime)]
    pub finished_at: Option<String>,
    /// When it may begin, if that was put off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub not_before: Option<String>,
    /// When it becomes a dead letter unless it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub deadline: Option<String>,
    /// Of what waits for the same phase, the higher goes first.
    #[serde(default)]
    pub priority: i8,
    /// How often it was tried again as a whole.
    #[serde(default)]
    pub generation: u32,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The job that it is a part of, if it is made of an item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Of which item of that job, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<u32>,
    /// The failed job that this one undoes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensates: Option<String>,
    /// The job that undoes what this one has done, since it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compensation: Option<String>,
    /// The span of whoever enqueued it, as a `traceparent` of W3C Trace Context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// What was enqueued.
    #[schema(value_type = Option<Object>)]
    pub instructions: Option<Box<RawValue>>,
    /// The instructions with the results so far merged into them; none before the first result.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Box<RawValue>>,
    /// Its phases, in the pipeline's order.
    pub invocations: Vec<InvocationDoc>,
    /// How often a phase finished after another outcome had been accepted.
    pub conflicts: u32,
    /// How many other payloads were enqueued under its key beyond a partition; they do not run.
    #[serde(default)]
    pub other_payloads: u32,
}

impl JobDoc {
    /// The document of a job.
    pub(crate) fn new(job: &JobView, names: &Names) -> Self {
        // Results that are no objects cannot be merged; each still stands at its invocation.
        let result = match job.results.as_slice() {
            [] => None,
            results => merge_instructions(&job.instructions, results).ok(),
        };
        Self {
            id: job.job.to_string(),
            pipeline: job.pipeline.to_string(),
            state: job.state,
            created_at: rfc3339(job.created_ms),
            finished_at: job.finished_ms.map(rfc3339),
            not_before: Some(job.options.not_before_ms).filter(|ms| *ms > 0).map(rfc3339),
            deadline: job.options.deadline_ms.map(rfc3339),
            priority: job.options.priority,
            generation: job.generation,
            key: job.key.clone(),
            traceparent: job.trace.map(|trace| trace.to_string()),
            parent: job.parent.map(|(parent, _)| parent.to_string()),
            item: job.parent.map(|(_, item)| item),
            compensates: job.compensates.map(|job| job.to_string()),
            compensation: job.compensation.map(|job| job.to_string()),
            instructions: raw(&job.instructions),
            result: result.and_then(|json| raw(&json)),
            invocations: job.invocations.iter().map(|one| InvocationDoc::new(one, names)).collect(),
            conflicts: job.conflicts,
            other_payloads: job.other_payloads,
        }
    }
}

/// One phase of a job.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct InvocationDoc {
    /// Its name in the pipeline.
    pub step: String,
    /// What the worker must offer.
    pub phase: String,
    /// Where it stands.
    #[schema(schema_with = job_state)]
    pub state: JobState,
    /// How often it was tried.
    pub attempt_count: u32,
    /// Its last attempts, oldest first.
    pub attempts: Vec<AttemptDoc>,
    /// Why it ended, where its last attempt does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What it gave.
    #[schema(value_type = Value)]
    pub result: Option<Box<RawValue>>,
    /// How far its items are, where it does something for each and that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = items)]
    pub items: Option<ItemsView>,
}

impl InvocationDoc {
    fn new(invocation: &InvocationView, names: &Names) -> Self {
        let attempts = invocation.attempts.iter();
        Self {
            step: invocation.step.to_string(),
            phase: invocation.phase.to_string(),
            state: invocation.state,
            attempt_count: invocation.attempt_count,
            attempts: attempts.map(|one| AttemptDoc::new(one, names)).collect(),
            note: invocation.note.clone(),
            result: invocation.result.as_deref().and_then(raw),
            items: invocation.items,
        }
    }
}

/// One run of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttemptDoc {
    /// From 1.
    pub number: u32,
    /// Who ran it.
    pub worker: NodeRef,
    /// What fenced it.
    #[serde(default)]
    pub token: String,
    /// When it was assigned.
    #[schema(format = DateTime)]
    pub started_at: String,
    /// When its end was recorded.
    #[schema(format = DateTime)]
    pub finished_at: Option<String>,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

impl AttemptDoc {
    fn new(attempt: &AttemptView, names: &Names) -> Self {
        Self {
            number: attempt.number,
            worker: names.node(attempt.worker),
            token: attempt.token.to_string(),
            started_at: rfc3339(attempt.started_ms),
            finished_at: attempt.finished_ms.map(rfc3339),
            error: attempt.error.clone(),
        }
    }
}

/// Jobs were changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChangedDoc {
    /// How many.
    pub changed: u64,
    /// Where the next page begins (as `after`), if there may be one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A page of jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobsDoc {
    /// The jobs.
    pub jobs: Vec<JobSummaryDoc>,
    /// Where the next page begins (as `after`), if there may be one.
    pub next: Option<String>,
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobSummaryDoc {
    /// The job.
    pub id: String,
    /// Where it stands.
    #[schema(schema_with = job_state)]
    pub state: JobState,
    /// When it was enqueued.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The step that runs or comes next, or the last.
    pub step: Option<String>,
    /// What went wrong last, if anything did.
    pub error: Option<String>,
}

impl From<&JobSummary> for JobSummaryDoc {
    fn from(job: &JobSummary) -> Self {
        Self {
            id: job.job.to_string(),
            state: job.state,
            created_at: rfc3339(job.created_ms),
            key: job.key.clone(),
            step: job.step.as_ref().map(ToString::to_string),
            error: job.error.clone(),
        }
    }
}
