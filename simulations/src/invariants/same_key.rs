//! SAME-KEY: one idempotency key is one job; another payload is flagged, never silent.

use std::collections::{BTreeMap, BTreeSet};

use carbonmesh_protocol::id::JobId;

use super::{Fact, Invariant, Seen, Verdict};
use crate::world::Node;

#[derive(Default)]
pub(super) struct SameKey {
    jobs: BTreeMap<String, JobId>,
    /// The payloads that were taken under each job's id.
    payloads: BTreeMap<JobId, BTreeSet<Vec<u8>>>,
}

impl Invariant for SameKey {
    fn name(&self) -> &'static str {
        "same-key"
    }

    fn see(&mut self, _: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        let Fact::Acknowledged { receipt, job } = fact else { return Ok(()) };
        let Some(key) = &job.key else { return Ok(()) };
        let first = *self.jobs.entry(key.clone()).or_insert(receipt.job);
        if first != receipt.job {
            return Err(format!("key {key} is job {first} and job {}", receipt.job));
        }
        self.payloads.entry(receipt.job).or_default().insert(job.instructions.to_vec());
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        // What was on a disk that is gone nobody can tell.
        let first = |(at, node): (usize, &Node)| node.config.disk.0 == at as u64 + 1;
        if !seen.nodes.iter().enumerate().all(first) {
            return Ok(());
        }
        for (job, payloads) in self.payloads.iter().filter(|(_, payloads)| payloads.len() > 1) {
            for at in 0..seen.nodes.len() {
                let Some(record) =
                    seen.on_disk(at, *job).filter(|_| !seen.nodes[at].disk.is_damaged())
                else {
                    continue;
                };
                if record.payload_conflicts() == 0 && record.reaped.is_none() {
                    let count = payloads.len();
                    return Err(format!("job {job} was taken with {count} payloads, unnoticed"));
                }
            }
        }
        Ok(())
    }
}
