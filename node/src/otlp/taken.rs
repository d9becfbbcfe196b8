//! What the node that takes jobs tells of them: how long it was until their copies were durable. It alone
//! knows that, and only at that moment.

use carbonmesh_protocol::{
    id::JobId,
    io::{Request, Response},
    name::Name,
    trace::TraceParent,
};
use tokio::sync::mpsc;

use super::export::{Told, WAITING};
use crate::{clock, metrics::Metrics};

/// A job that was taken, and acknowledged.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(super) job: JobId,
    pub(super) pipeline: Name,
    pub(super) trace: Option<TraceParent>,
    /// When it came and when it was acknowledged, in ms since 1970.
    pub(super) from_ms: u64,
    pub(super) to_ms: u64,
    /// How many nodes had synced it by then, and how many should.
    pub(super) copies: u32,
    pub(super) target: u32,
}

/// Tells of what is taken.
#[derive(Clone, Debug)]
pub(crate) struct Tells {
    waiting: mpsc::Sender<Told>,
    metrics: Metrics,
}

/// Jobs that have come, and are not acknowledged yet.
pub(crate) struct Taking<'a> {
    tells: &'a Tells,
    pipeline: Name,
    traces: Vec<Option<TraceParent>>,
    from_ms: u64,
}

impl Tells {
    pub(super) fn new(waiting: mpsc::Sender<Told>, metrics: Metrics) -> Self {
        Self { waiting, metrics }
    }

    /// Notes when jobs come, if that is what is asked.
    pub(crate) fn begin(&self, request: &Request) -> Option<Taking<'_>> {
        let Request::Enqueue { pipeline, jobs } = request else { return None };
        let traces = jobs.iter().map(|job| job.trace).collect();
        Some(Taking { tells: self, pipeline: pipeline.clone(), traces, from_ms: clock::unix_ms() })
    }
}

impl Taking<'_> {
    /// Tells of those that were acknowledged now, and were not there before.
    pub(crate) fn end(self, response: &Response) {
        let Response::Enqueued(receipts) = response else { return };
        let to_ms = clock::unix_ms();
        let taken = receipts.iter().zip(self.traces).filter_map(|(receipt, trace)| {
            let receipt = receipt.as_ref().ok().filter(|receipt| !receipt.existed)?;
            (trace.is_none_or(|it| it.is_sampled())).then(|| Taken {
                job: receipt.job,
                pipeline: self.pipeline.clone(),
                trace,
                from_ms: self.from_ms,
                to_ms,
                copies: receipt.copies,
                target: receipt.target,
            })
        });
        for taken in taken {
            // Half of the queue is for jobs that end, whatever comes.
            let room = self.tells.waiting.capacity() > WAITING / 2;
            if !room || self.tells.waiting.try_send(Told::Taken(taken.into())).is_err() {
                self.tells.metrics.traced("dropped", 1);
            }
        }
    }
}
