//! TERMINAL-STAYS: within a generation nothing terminal becomes unfinished on any disk, through any
//! crash; and of two ends the higher stays.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    id::{DiskId, JobId},
    record::Control,
};

use super::{Fact, Invariant, Seen, Verdict};

#[derive(Default)]
pub(super) struct TerminalStays {
    /// Phases that had ended on a disk.
    ended: BTreeMap<(DiskId, JobId, u16), u32>,
    /// Jobs that were taken: those whose disks are looked at.
    jobs: Vec<JobId>,
    /// Which of these are looked at next: some at a time, since disks are read slowly.
    next: usize,
}

/// How many jobs are looked at at once.
const AT_ONCE: usize = 8;

impl Invariant for TerminalStays {
    fn name(&self) -> &'static str {
        "terminal-stays"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Acknowledged { receipt, .. } => self.jobs.push(receipt.job),
            // What is on disk when a process ends is what the next one begins with.
            Fact::Crashed { at } | Fact::Up { at, .. } => {
                for job in self.jobs.clone() {
                    self.look(seen, *at, job)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for _ in 0..AT_ONCE.min(self.jobs.len()) {
            self.next = (self.next + 1) % self.jobs.len();
            let job = self.jobs[self.next];
            for at in 0..seen.nodes.len() {
                self.look(seen, at, job)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        for job in self.jobs.clone() {
            for at in 0..seen.nodes.len() {
                self.look(seen, at, job)?;
            }
        }
        Ok(())
    }
}

impl TerminalStays {
    fn look(&mut self, seen: &Seen<'_>, at: usize, job: JobId) -> Verdict {
        let node = &seen.nodes[at];
        let Some(record) = seen.on_disk(at, job) else { return Ok(()) };
        for (step, control) in &record.controls {
            self.stays(node.config.disk, job, *step, control)?;
        }
        Ok(())
    }

    fn stays(&mut self, disk: DiskId, job: JobId, step: u16, control: &Control) -> Verdict {
        let ended = self.ended.get(&(disk, job, step)).copied();
        if control.is_terminal() {
            self.ended.insert((disk, job, step), control.generation);
        } else if ended.is_some_and(|generation| control.generation <= generation) {
            return Err(format!("disk {}: job {job} step {step} is unfinished again", disk.0));
        }
        Ok(())
    }
}
