//! CHANGES: once a client has heard that its job was cancelled, tried again, discarded or signalled, a disk
//! says so.

use std::{
    collections::HashMap,
    mem::{self, Discriminant},
};

use carbonmesh_protocol::{id::JobId, io::Change, record::JobRecord};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct Changes {
    signal_step: Option<u16>,
    /// Whether marks of forgotten jobs are dropped while the world lasts.
    expires: bool,
    /// How many disks were lost: what said so may have been on one.
    lost_disks: usize,
    /// The lowest generation of each job on the disk of a node that runs, and how many disks were lost, when a
    /// change was asked for first. Whoever does it may be cut off from where the job was tried again by then.
    asked: HashMap<(JobId, Discriminant<Change>), (u32, usize)>,
}

impl Changes {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            signal_step: options.signal_step(),
            expires: options.expires(),
            lost_disks: 0,
            asked: HashMap::new(),
        }
    }

    /// Whether what is on a disk comes from a change, or from something later, if the job was in a generation
    /// when that was asked for.
    fn shows(&self, record: &JobRecord, change: &Change, asked: u32) -> bool {
        if record.generation() > asked || record.is_reaped() {
            return true;
        }
        match change {
            Change::Cancel { .. } => record.is_over(),
            Change::Retry { .. } | Change::Discard => false,
            Change::Signal { .. } => {
                let control = self.signal_step.and_then(|step| record.controls.get(&step));
                record.is_over() || control.is_some_and(|control| control.is_terminal())
            }
        }
    }

    fn heard(&self, seen: &Seen<'_>, job: JobId, change: &Change) -> Verdict {
        let asked = self.asked.get(&(job, mem::discriminant(change)));
        let (asked, lost_disks) = asked.copied().unwrap_or_default();
        let mut records = (0..seen.nodes.len()).filter_map(|at| seen.on_disk(at, job)).peekable();
        let gone = self.lost_disks > lost_disks || self.expires && records.peek().is_none();
        if gone || records.any(|record| self.shows(&record, change, asked)) {
            return Ok(());
        }
        Err(format!("a client was told that job {job} was changed ({change:?}): no disk says so"))
    }
}

impl Invariant for Changes {
    fn name(&self) -> &'static str {
        "changes"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::DiskReplaced { .. } | Fact::Damaged { .. } => self.lost_disks += 1,
            Fact::Changed { job, change } => {
                let running = (0..seen.nodes.len()).filter(|at| seen.nodes[*at].core.is_some());
                let records = running.filter_map(|at| seen.on_disk(at, *job));
                let generation = records.map(|record| record.generation()).min();
                let asked = (generation.unwrap_or_default(), self.lost_disks);
                self.asked.entry((*job, mem::discriminant(*change))).or_insert(asked);
            }
            Fact::Heard { job, change } => return self.heard(seen, *job, change),
            _ => {}
        }
        Ok(())
    }
}
