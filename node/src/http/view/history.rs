//! Documents of what happened within the last hour or day.

use carbonmesh_protocol::name::Name;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rfc3339;
use crate::history::{Range, Step};

/// What a pipeline did, or all together, as one node has seen it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryDoc {
    /// Which pipeline; none for all together.
    pub pipeline: Option<String>,
    /// How long one point lasts, in seconds.
    pub step_s: u64,
    /// Oldest first; times of which the node knows nothing are left out.
    pub points: Vec<HistoryPointDoc>,
}

/// What happened within one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryPointDoc {
    /// When it began.
    #[schema(format = DateTime)]
    pub at: String,
    /// Jobs that were accepted.
    pub accepted: u64,
    /// Jobs that succeeded.
    pub succeeded: u64,
    /// Jobs that became dead letters.
    pub dead: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// The most jobs that waited at once, if somebody counted them.
    pub queued: Option<u64>,
    /// The most jobs that ran at once, if somebody counted them.
    pub running: Option<u64>,
    /// Within how many milliseconds half of the jobs succeeded, rounded up to a power of two; none if
    /// none did, or the node keeps none of them.
    pub p50_ms: Option<u64>,
    /// The same for 95 of 100 jobs.
    pub p95_ms: Option<u64>,
}

impl HistoryDoc {
    pub(crate) fn new(pipeline: Option<&Name>, range: Range, steps: &[Step]) -> Self {
        let point = |step: &Step| HistoryPointDoc {
            at: rfc3339(step.at.saturating_mul(range.step_s() * 1000)),
            accepted: step.accepted,
            succeeded: step.succeeded,
            dead: step.dead,
            cancelled: step.cancelled,
            queued: step.queued,
            running: step.running,
            p50_ms: step.p50_ms,
            p95_ms: step.p95_ms,
        };
        Self {
            pipeline: pipeline.map(Name::to_string),
            step_s: range.step_s(),
            points: steps.iter().map(point).collect(),
        }
    }
}
