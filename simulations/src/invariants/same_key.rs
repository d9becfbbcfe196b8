//! SAME-KEY: one idempotency key is one job; another payload is flagged, never silent.

use std::{collections::BTreeMap, time::Duration};

use carbonmesh_protocol::{id::JobId, time::Timestamp};

use super::{Fact, Invariant, Seen, Verdict};
use crate::{Options, world::Node};

/// How long after it was enqueued a job may be acknowledged.
const TAKEN_WITHIN: Duration = Duration::from_secs(15);

#[derive(Default)]
pub(super) struct SameKey {
    /// How far apart two jobs with one key may be taken, where somebody may be cut off for longer than
    /// marks are kept: of the earlier one nothing counts then, as if it had been forgotten.
    apart: Option<Duration>,
    jobs: BTreeMap<String, JobId>,
    /// The payloads that were taken under each job's id, each with the last time.
    payloads: BTreeMap<JobId, BTreeMap<Vec<u8>, Timestamp>>,
    /// Jobs of which it must not go unnoticed that there were two.
    doubles: BTreeMap<JobId, usize>,
}

impl SameKey {
    pub(super) fn new(options: &Options) -> Self {
        let marks = Duration::from_millis(options.tombstones_ms).saturating_sub(TAKEN_WITHIN);
        Self { apart: options.outlasts_marks().then_some(marks), ..Self::default() }
    }

    /// A payload was taken.
    fn taken(&mut self, job: JobId, payload: &[u8], now: Timestamp) {
        let payloads = self.payloads.entry(job).or_default();
        payloads.insert(payload.to_vec(), now);
        let close = |at: &Timestamp| self.apart.is_none_or(|apart| now.since(*at) <= apart);
        let count = payloads.values().filter(|at| close(at)).count();
        if count > 1 {
            self.doubles.insert(job, count);
        }
    }
}

impl Invariant for SameKey {
    fn name(&self) -> &'static str {
        "same-key"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        let Fact::Acknowledged { receipt, job } = fact else { return Ok(()) };
        let Some(key) = &job.key else { return Ok(()) };
        let first = *self.jobs.entry(key.clone()).or_insert(receipt.job);
        if first != receipt.job {
            return Err(format!("key {key} is job {first} and job {}", receipt.job));
        }
        self.taken(receipt.job, &job.instructions, seen.now);
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        // What was on a disk that is gone nobody can tell.
        let first = |(at, node): (usize, &Node)| node.config.disk.0 == at as u64 + 1;
        if !seen.nodes.iter().enumerate().all(first) {
            return Ok(());
        }
        for (job, count) in &self.doubles {
            for at in 0..seen.nodes.len() {
                let Some(record) =
                    seen.on_disk(at, *job).filter(|_| !seen.nodes[at].disk.is_damaged())
                else {
                    continue;
                };
                if record.payload_conflicts() == 0 && record.reaped.is_none() {
                    return Err(format!("job {job} was taken with {count} payloads, unnoticed"));
                }
            }
        }
        Ok(())
    }
}
