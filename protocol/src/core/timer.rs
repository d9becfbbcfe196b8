//! What the core waits for: values in order of their deadlines. One that fires looks again whether
//! its reason still holds, so none needs to be taken back.

use std::time::Duration;

use crate::{
    id::{NodeId, PipelineId},
    io::RequestId,
    time::Timestamp,
};

use super::Core;

/// What a deadline is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Renew leases, exchange views.
    Beat,
    /// Stand for election, or try again.
    Election(PipelineId),
    /// A peer that was lost has had time to come back.
    Grace(NodeId),
    /// Attempts of an earlier term that no worker claimed are given to others.
    Claim(PipelineId),
    /// The backoff of a job is over.
    Delayed(PipelineId),
    /// A job's deadline has come.
    Deadline(PipelineId),
    /// A schedule names a moment.
    Schedule(PipelineId),
    /// There are more finished jobs to forget.
    Tidy(PipelineId),
    /// There are more items to look at.
    Items(PipelineId),
    /// Jobs that were sent to replicas are not all acknowledged.
    Store(u64),
    /// A pipeline that was applied is not acknowledged by all.
    Apply(RequestId),
    /// A question to a replica has no answer.
    Query(u64),
    /// Somebody has waited for a job long enough.
    Watch(PipelineId),
    /// A comparison has not moved, or its next page is due.
    Sync(u64),
    /// A strict group's voters have shown what they hold.
    Adopt(PipelineId),
    /// There are events of a pipeline, or of the cluster, or somebody has waited for some long enough.
    Events(Option<PipelineId>),
    /// Attempts that run here have said something.
    Said,
}

impl Core {
    /// Fires `timer` after `delay`.
    pub(super) fn arm(&mut self, delay: Duration, timer: Timer) {
        self.timers.insert((self.now + delay, timer));
    }

    /// Fires `timer` at a moment.
    pub(super) fn arm_at(&mut self, at: Timestamp, timer: Timer) {
        self.timers.insert((at, timer));
    }

    /// Takes the next timer whose time has come.
    pub(super) fn next_due(&mut self) -> Option<Timer> {
        let (at, _) = self.timers.first()?;
        if *at > self.now {
            return None;
        }
        self.timers.pop_first().map(|(_, timer)| timer)
    }
}
