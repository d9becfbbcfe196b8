//! CONVERGENCE: when faults are over, all who hold a job's record hold the same.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    id::JobId,
    record::{JobRecord, Reaped},
};

use super::{Fact, Invariant, Seen, Verdict};

#[derive(Default)]
pub(super) struct Convergence {
    jobs: Vec<JobId>,
}

/// The digest of a job's record; where it was forgotten, of that alone: on both sides of a cut that may have
/// been done, and nobody compares when, since marks go by themselves.
fn apart_from_when_forgotten(record: &JobRecord) -> u64 {
    match record.reaped.filter(|_| record.is_reaped()) {
        Some(Reaped { generation, .. }) => u64::from(generation),
        None => record.digest(),
    }
}

impl Invariant for Convergence {
    fn name(&self) -> &'static str {
        "convergence"
    }

    fn see(&mut self, _: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if let Fact::Acknowledged { receipt, .. } = fact {
            self.jobs.push(receipt.job);
        }
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        let mut first: BTreeMap<JobId, u64> = BTreeMap::new();
        // A damaged copy is for its node to find, when it reads it.
        let sound = seen.nodes.iter().enumerate().filter(|(_, node)| !node.disk.is_damaged());
        for (at, node) in sound {
            for job in &self.jobs {
                let Some(record) = seen.on_disk(at, *job) else { continue };
                let digest = apart_from_when_forgotten(&record);
                if *first.entry(*job).or_insert(digest) != digest {
                    let name = &node.config.name;
                    return Err(format!("job {job} on {name} is not as on others: {record:?}"));
                }
            }
        }
        for (node, core) in seen.cores().filter(|(node, _)| !node.disk.is_damaged()) {
            let Some(group) = core.snapshot().groups.remove(&seen.pipeline) else { continue };
            let counted = core.count_anew(seen.pipeline).map_err(|error| error.to_string())?;
            if counted != (group.live, group.finished) {
                let (name, told) = (&node.config.name, (group.live, group.finished));
                return Err(format!("{name} counts {told:?}, its disk has {counted:?}"));
            }
        }
        Ok(())
    }
}
