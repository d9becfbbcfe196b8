//! CHANGES: once a client has heard that its job was cancelled, tried again, discarded or signalled, a disk
//! says so.

use carbonmesh_protocol::{id::JobId, io::Change, record::JobRecord};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct Changes {
    signal_step: Option<u16>,
    /// Whether marks of forgotten jobs are dropped while the world lasts.
    expires: bool,
    /// Whether what said so may be gone.
    lost_disk: bool,
}

impl Changes {
    pub(super) fn new(options: &Options) -> Self {
        Self { signal_step: options.signal_step(), expires: options.expires(), lost_disk: false }
    }

    /// Whether what is on a disk comes from a change, or from something later.
    fn shows(&self, record: &JobRecord, change: &Change) -> bool {
        if record.generation() > 0 || record.is_reaped() {
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
        let mut records = (0..seen.nodes.len()).filter_map(|at| seen.on_disk(at, job)).peekable();
        let forgotten = self.expires && records.peek().is_none();
        if self.lost_disk || forgotten || records.any(|record| self.shows(&record, change)) {
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
            Fact::DiskReplaced { .. } | Fact::Damaged { .. } => self.lost_disk = true,
            Fact::Heard { job, change } => return self.heard(seen, *job, change),
            _ => {}
        }
        Ok(())
    }
}
