//! UNDONE: what a job that failed has done is undone, in a job of its own that comes to its end; and
//! where a majority decides, nothing is undone of a job that succeeds.

use std::collections::BTreeSet;

use carbonmesh_protocol::{
    id::JobId,
    record::{Control, JobRecord},
    view::JobState,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::options::Options;

pub(super) struct Undone {
    /// The phases that can be undone; none where that cannot be told.
    steps: BTreeSet<u16>,
    jobs: BTreeSet<JobId>,
    /// Those that some worker began to undo, in which generation.
    undone: BTreeSet<(JobId, u32)>,
    /// Whether a job that has failed for one coordinator has failed.
    strict: bool,
    /// Whether whoever takes over looks back for as long as a world lasts.
    looks_far: bool,
    /// Whether the job that undoes another may have gone with a disk.
    lost_disk: bool,
}

impl Undone {
    pub(super) fn new(options: &Options) -> Self {
        // Where it is forgotten soon that a job was, nobody can tell whether it was made; where clocks
        // jump, whoever takes over looks back too short a time.
        let told = !options.expires() && options.jump_every_ms == 0;
        let steps = options.undone_steps().filter(|_| told).collect();
        Self {
            steps,
            jobs: BTreeSet::new(),
            undone: BTreeSet::new(),
            strict: options.is_strict(),
            looks_far: !options.has_short_marks(),
            lost_disk: false,
        }
    }
}

impl Invariant for Undone {
    fn name(&self) -> &'static str {
        "undone"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        self.lost_disk |= matches!(fact, Fact::DiskReplaced { .. } | Fact::Damaged { .. });
        match fact {
            Fact::Acknowledged { receipt, .. } => drop(self.jobs.insert(receipt.job)),
            Fact::Started { attempt, .. } if attempt.step.as_str().starts_with('u') => {
                let compensates = |at: usize| {
                    let spec = seen.on_disk(at, attempt.job)?.spec.clone()?;
                    spec.compensates
                };
                let Some(of) = (0..seen.nodes.len()).find_map(compensates) else { return Ok(()) };
                self.undone.insert((of.job, of.generation));
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        let sound = || (0..seen.nodes.len()).filter(|at| !seen.nodes[*at].disk.is_damaged());
        let records = |job: JobId| sound().filter_map(move |at| seen.on_disk(at, job));
        for &(job, generation) in self.undone.iter().filter(|_| self.strict) {
            let wrong = |record: &JobRecord| {
                record.generation() == generation && record.state() == JobState::Succeeded
            };
            if records(job).any(|record| wrong(&record)) {
                return Err(format!("job {job} has succeeded, and was undone"));
            }
        }
        if self.lost_disk && !self.looks_far {
            return Ok(());
        }
        for &job in &self.jobs {
            let Some(record) = records(job).find(|record| record.state() == JobState::Dead) else {
                continue;
            };
            if !self.steps.iter().any(|step| has_done(&record, *step)) {
                continue;
            }
            let created_ms = record.spec.as_ref().map_or(0, |spec| spec.created_ms);
            let generation = record.generation();
            let by = JobId::of_compensation(seen.pipeline, job, created_ms, generation);
            let states: Vec<_> = records(by).map(|it| (it.is_over(), it.state())).collect();
            if states.is_empty() || states.iter().any(|(over, _)| !over) {
                return Err(format!("job {job} has failed, what undoes it is {states:?}"));
            }
        }
        Ok(())
    }
}

fn has_done(record: &JobRecord, step: u16) -> bool {
    let done = |control: &Control| control.state() == JobState::Succeeded && control.note.is_none();
    record.controls.get(&step).is_some_and(done)
}
