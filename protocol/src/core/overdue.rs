//! Workers that answer, and do not end what they were given.
//!
//! A worker ends each attempt by its time-out itself. One that does not, whether its phase cannot be
//! stopped or it lies about what it does, would keep jobs for ever: nobody takes an attempt from a worker
//! that says that it has it. So its coordinator gives the attempt to another once that is long over, and
//! gives the worker nothing for a while; then one attempt of a phase at a time, until it has ended one: if it
//! does not, it is left out for twice as long. Source: Nygard, "Release It!", 2007 (circuit breaker).

use std::time::Duration;

use crate::{
    id::{NodeId, PipelineId, Token},
    time::Timestamp,
};

use super::Core;

/// How long a worker is avoided at first.
const AVOIDED: Duration = Duration::from_secs(10);

/// The longest that it is.
const LONGEST: Duration = Duration::from_secs(60);

/// A worker that kept attempts for too long.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avoided {
    until: Timestamp,
    times: u32,
}

impl Core {
    /// When a worker that is given an attempt now has had it for too long: it may have waited there as
    /// long again as it may run. Nothing without a time-out.
    pub(super) fn overdue_at(&self, timeout: Option<Duration>) -> Option<Timestamp> {
        let grace = self.config.timing.overdue;
        timeout.map(|timeout| self.now + timeout.saturating_mul(2).saturating_add(grace))
    }

    /// A worker says that it still has these attempts, though their time is long over.
    pub(super) fn give_up_overdue(&mut self, worker: NodeId, overdue: Vec<(PipelineId, Token)>) {
        if overdue.is_empty() {
            return;
        }
        // What it was given before it was left out says nothing new of it.
        if self.avoided_for(worker).is_none() {
            let times = self.avoided.get(&worker).map_or(0, |avoided| avoided.times) + 1;
            let pause = AVOIDED.saturating_mul(1 << (times - 1).min(16)).min(LONGEST);
            self.avoided.insert(worker, Avoided { until: self.now + pause, times });
        }
        for (pipeline, token) in overdue {
            self.lose_attempt(pipeline, token, "its worker kept it far beyond its time-out");
            self.cancel_at(worker, token);
        }
    }

    /// A worker has ended an attempt, as it should.
    pub(super) fn note_ended(&mut self, worker: NodeId) {
        if self.avoided_for(worker).is_none() {
            self.avoided.remove(&worker);
        }
    }

    /// Whether a worker may be given an attempt, which has so many of its phase.
    pub(super) fn is_trusted(&self, worker: NodeId, taken: u32) -> bool {
        self.avoided.get(&worker).is_none_or(|it| it.until <= self.now && taken == 0)
    }

    /// For how long a worker is given nothing, since it did not end what it had.
    pub(super) fn avoided_for(&self, worker: NodeId) -> Option<Duration> {
        let until = self.avoided.get(&worker)?.until;
        (until > self.now).then(|| until.since(self.now))
    }
}
