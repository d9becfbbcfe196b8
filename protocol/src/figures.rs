//! What a core counts and how far it is behind: figures for people and their charts, which nothing in
//! the protocol depends on.
//!
//! Counters begin at zero with each start. What a pipeline does is counted twice: as its coordinator,
//! so that sums over all nodes are right, and as anybody who keeps a copy, so that each node can draw
//! charts by itself.

use std::{fmt, time::Duration};

use crate::{id::NodeId, name::Name, view::JobState};

/// How many spans of time [`Tally::durations`] tells apart: the last is all beyond two hours.
pub const SPANS: usize = 24;

/// A node's figures at one moment.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// What was counted since the start.
    pub counted: Counted,
    /// Batches that are not on the disks of all replicas that are in step, or not on this one's.
    pub unsettled_batches: u64,
    /// For how long the oldest batch has waited for this node's own disk.
    pub disk_lag: Duration,
    /// Replicas that this node waits for.
    pub lagging: Vec<PeerLag>,
    /// Its pipelines.
    pub groups: Vec<GroupFigures>,
}

/// How far a replica is behind this node, which coordinates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerLag {
    /// Who.
    pub node: NodeId,
    /// Batches that it has not acknowledged.
    pub batches: u64,
    /// For how long the oldest of these has waited.
    pub oldest: Duration,
}

/// One pipeline on one node.
#[derive(Clone, Debug)]
pub struct GroupFigures {
    /// Its name.
    pub pipeline: Name,
    /// Whether this node coordinates it. If not, there are no queues and no replicas.
    pub coordinates: bool,
    /// What this node counted while it coordinated.
    pub led: Tally,
    /// What this node saw, whoever coordinated.
    pub seen: Tally,
    /// What waits for workers.
    pub queues: Vec<QueueFigures>,
    /// Invocations that wait for a moment: for their backoff, their delay or a deadline.
    pub delayed: u64,
    /// Replicas that have all unfinished jobs and get each change.
    pub replicas_in_step: u64,
    /// Replicas that are being brought up to date.
    pub replicas_syncing: u64,
    /// Replicas that were put out, since they kept the others waiting.
    pub replicas_lagging: u64,
}

impl GroupFigures {
    /// Counts another of the pipeline's partitions too: of replicas, those of the one that is worst off.
    pub fn add(&mut self, other: Self) {
        self.replicas_in_step = match (self.coordinates, other.coordinates) {
            (true, true) => self.replicas_in_step.min(other.replicas_in_step),
            _ => self.replicas_in_step.max(other.replicas_in_step),
        };
        self.replicas_syncing = self.replicas_syncing.max(other.replicas_syncing);
        self.replicas_lagging = self.replicas_lagging.max(other.replicas_lagging);
        self.coordinates |= other.coordinates;
        self.led.add(&other.led);
        self.seen.add(&other.seen);
        self.delayed += other.delayed;
        for queue in other.queues {
            match self.queues.iter_mut().find(|known| known.step == queue.step) {
                Some(known) => {
                    known.depth += queue.depth;
                    known.oldest = known.oldest.max(queue.oldest);
                }
                None => self.queues.push(queue),
            }
        }
    }
}

/// One queue: what waits for workers at one step of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueFigures {
    /// The step.
    pub step: Name,
    /// How many invocations wait, those that are held back by a limit included.
    pub depth: u64,
    /// For how long the oldest has waited, as far as it stands at the front of its turn.
    pub oldest: Duration,
}

/// What a node has counted. It is written down nowhere, and prints as nothing: states that differ in
/// it alone are the same to whoever compares them.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Elections in which this node stood.
    pub elections: u64,
    /// Elections that it won.
    pub elections_won: u64,
    /// How often it stopped to coordinate since somebody else did, or since it had lost its voters.
    pub terms_lost: u64,
    /// Attempts that it gave to others since their worker was lost, or did not come back in time.
    pub attempts_lost: u64,
    /// How often it stopped to wait for a replica.
    pub replicas_put_out: u64,
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

/// What a pipeline's jobs did; their items are not counted. Prints as nothing, as [`Counted`] does.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Jobs that came.
    pub accepted: u64,
    /// Jobs that succeeded.
    pub succeeded: u64,
    /// Jobs that became dead letters.
    pub dead: u64,
    /// Jobs that were cancelled.
    pub cancelled: u64,
    /// How long all that succeeded took, from when they were enqueued to their end, in ms.
    pub duration_ms: u64,
    /// How many of these took less than 1, 2, 4, 8 … ms, each counted once; the last took longer.
    pub durations: [u64; SPANS],
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tally")
    }
}

impl Tally {
    /// A job has ended, so long after it was enqueued.
    pub fn ended(&mut self, state: JobState, took_ms: u64) {
        match state {
            JobState::Succeeded => {
                self.succeeded += 1;
                self.duration_ms = self.duration_ms.saturating_add(took_ms);
                let span = (u64::BITS - took_ms.leading_zeros()) as usize;
                self.durations[span.min(SPANS - 1)] += 1;
            }
            JobState::Dead => self.dead += 1,
            JobState::Cancelled => self.cancelled += 1,
            JobState::Queued | JobState::Running => {}
        }
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut durations = [0; SPANS];
        for (at, span) in durations.iter_mut().enumerate() {
            *span = self.durations[at].saturating_sub(before.durations[at]);
        }
        Self {
            accepted: self.accepted.saturating_sub(before.accepted),
            succeeded: self.succeeded.saturating_sub(before.succeeded),
            dead: self.dead.saturating_sub(before.dead),
            cancelled: self.cancelled.saturating_sub(before.cancelled),
            duration_ms: self.duration_ms.saturating_sub(before.duration_ms),
            durations,
        }
    }

    /// Counts what another has counted too.
    pub fn add(&mut self, other: &Self) {
        for (at, span) in self.durations.iter_mut().enumerate() {
            *span += other.durations[at];
        }
        self.accepted += other.accepted;
        self.succeeded += other.succeeded;
        self.dead += other.dead;
        self.cancelled += other.cancelled;
        self.duration_ms = self.duration_ms.saturating_add(other.duration_ms);
    }

    /// Within how many ms such a part of the jobs that succeeded did so, at most twice too much; none
    /// if none has.
    pub fn quantile_ms(&self, part: f64) -> Option<u64> {
        let all: u64 = self.durations.iter().sum();
        let wanted = (all as f64 * part).ceil().max(1.0) as u64;
        let mut sum = 0;
        let span = self.durations.iter().position(|count| {
            sum += count;
            sum >= wanted
        })?;
        Some(1 << span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_told_by_powers_of_two() {
        let mut tally = Tally::default();
        assert_eq!(tally.quantile_ms(0.5), None);
        for took in [0, 1, 3, 3, 3, 3, 3, 3, 900, u64::MAX] {
            tally.ended(JobState::Succeeded, took);
        }
        tally.ended(JobState::Dead, 5);
        tally.ended(JobState::Queued, 5);
        assert_eq!((tally.succeeded, tally.dead, tally.cancelled), (10, 1, 0));
        assert_eq!(tally.quantile_ms(0.1), Some(1));
        assert_eq!(tally.quantile_ms(0.5), Some(4));
        assert_eq!(tally.quantile_ms(0.9), Some(1024));
        assert_eq!(tally.quantile_ms(1.0), Some(1 << (SPANS - 1)));
    }

    #[test]
    fn a_difference_is_what_came_between() {
        let mut tally = Tally { accepted: 7, ..Tally::default() };
        tally.ended(JobState::Succeeded, 100);
        let before = tally;
        tally.accepted += 2;
        tally.ended(JobState::Succeeded, 10);
        tally.ended(JobState::Cancelled, 10);
        let since = tally.since(&before);
        assert_eq!((since.accepted, since.succeeded, since.cancelled), (2, 1, 1));
        assert_eq!((since.duration_ms, since.quantile_ms(1.0)), (10, Some(16)));
        let mut sum = before;
        sum.add(&since);
        assert_eq!(sum, tally);
        // After a start all begins anew.
        assert_eq!(Tally::default().since(&tally), Tally::default());
    }
}
