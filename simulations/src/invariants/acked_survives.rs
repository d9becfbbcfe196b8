//! ACKED-SURVIVES: an acknowledged job is on some disk, unless all disks that held it last are gone.

use std::collections::{BTreeMap, BTreeSet};

use carbonmesh_protocol::id::{DiskId, JobId};

use super::{Fact, Invariant, Seen, Verdict};
use crate::{Options, world::Node};

pub(super) struct AckedSurvives {
    /// Whether what was forgotten leaves no trace by and by.
    expires: bool,
    /// Jobs of which some disk had only that they were forgotten.
    forgotten: BTreeSet<JobId>,
    /// The disks that held each job when it was looked at last.
    holders: BTreeMap<JobId, BTreeSet<DiskId>>,
    /// Disks that were replaced.
    gone: BTreeSet<DiskId>,
    /// Whether the holders of all jobs have to be found anew.
    anew: bool,
}

impl AckedSurvives {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            expires: options.forgets(),
            forgotten: BTreeSet::new(),
            holders: BTreeMap::new(),
            gone: BTreeSet::new(),
            anew: false,
        }
    }

    /// Notes which jobs are being forgotten.
    fn note_forgotten(&mut self, seen: &Seen<'_>) {
        let reaped = |job: &JobId| {
            let record = |node: &Node| node.disk.job(seen.pipeline, *job);
            seen.nodes.iter().any(|node| record(node).is_some_and(|record| record.is_reaped()))
        };
        let new: Vec<JobId> = self.holders.keys().filter(|job| reaped(job)).copied().collect();
        self.forgotten.extend(new);
    }
}

impl Invariant for AckedSurvives {
    fn name(&self) -> &'static str {
        "acked-survives"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Acknowledged { receipt, .. } => {
                self.holders.insert(receipt.job, holders(seen, receipt.job));
            }
            Fact::DiskReplaced { old: disk, .. } | Fact::Damaged { disk, .. } => {
                self.gone.insert(*disk);
                self.anew = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        let anew = std::mem::take(&mut self.anew);
        if self.expires {
            self.note_forgotten(seen);
            self.holders.retain(|job, _| !self.forgotten.contains(job));
        }
        for (job, before) in &mut self.holders {
            let has = |node: &Node| node.disk.job(seen.pipeline, *job).is_some();
            // Mostly it still is where it was: that is quickly seen.
            if !anew
                && seen.nodes.iter().any(|node| before.contains(&node.config.disk) && has(node))
            {
                continue;
            }
            let now = holders(seen, *job);
            if now.is_empty() && !before.is_subset(&self.gone) {
                let disks: Vec<u64> = before.difference(&self.gone).map(|disk| disk.0).collect();
                return Err(format!("job {job} is on no disk any more; it was on {disks:?}"));
            }
            // Once legally lost it stays so, even if a copy comes back from a backup.
            if !now.is_empty() {
                *before = now;
            }
        }
        Ok(())
    }
}

fn holders(seen: &Seen<'_>, job: JobId) -> BTreeSet<DiskId> {
    let holds = |at: &usize| seen.has_on_disk(*at, job);
    (0..seen.nodes.len()).filter(holds).map(|at| seen.nodes[at].config.disk).collect()
}
