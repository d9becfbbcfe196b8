//! TERMINAL-STAYS: within a generation nothing terminal becomes unfinished on any disk; and MERGE's
//! part that can be seen from outside: a node's view of a phase only moves up.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    id::{DiskId, JobId},
    record::Control,
};

use super::{Invariant, Seen, Verdict};

#[derive(Default)]
pub(super) struct TerminalStays {
    /// The last value of each phase that a process held, by disk and life.
    last: BTreeMap<(DiskId, u64, JobId, u16), Control>,
    /// Phases that had ended on a disk.
    ended: BTreeMap<(DiskId, JobId, u16), u32>,
}

impl Invariant for TerminalStays {
    fn name(&self) -> &'static str {
        "terminal-stays"
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, core) in seen.cores() {
            let (disk, life) = (node.config.disk, node.life);
            for (job, record) in core.records(seen.pipeline) {
                for (step, control) in &record.controls {
                    let before = self.last.get(&(disk, life, job, *step));
                    if let Some(before) = before.filter(|before| *before > control) {
                        return Err(format!(
                            "{}: job {job} step {step} fell from {before:?} to {control:?}",
                            node.config.name
                        ));
                    }
                    self.last.insert((disk, life, job, *step), control.clone());
                    self.stays(disk, job, *step, control)?;
                }
            }
        }
        Ok(())
    }
}

impl TerminalStays {
    /// What a process holds in memory may be lost by a crash; only what is on disk binds.
    fn stays(&mut self, disk: DiskId, job: JobId, step: u16, control: &Control) -> Verdict {
        if let Some(generation) = self.ended.get(&(disk, job, step))
            && !control.is_terminal()
            && control.generation <= *generation
        {
            return Err(format!("disk {}: job {job} step {step} is unfinished again", disk.0));
        }
        Ok(())
    }
}
