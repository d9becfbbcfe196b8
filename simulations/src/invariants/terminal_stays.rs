//! TERMINAL-STAYS: within a generation nothing terminal becomes unfinished on any disk, through any
//! crash. In a strict group an end counts once a majority has it, or a client is told of it: then the
//! phase never begins again, and in the end all have that very end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use carbonmesh_protocol::{
    id::{DiskId, JobId, Token},
    io::Change,
    message::Message,
    record::{Control, Progress},
    time::Timestamp,
    view::{JobState, JobView},
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct TerminalStays {
    /// Whether only what a majority holds is an end.
    strict: bool,
    /// Whether a copy can have been away for longer than marks are kept.
    gives_way: bool,
    /// How long these are kept. Of what ended before that nothing may be left, and whoever was cut off for so
    /// long may run it once more.
    marks: Option<Duration>,
    /// What each attempt is for.
    attempts: BTreeMap<Token, (JobId, u16)>,
    /// Phases whose end was committed.
    committed: BTreeMap<(JobId, u16), Token>,
    /// Phases of whose end a client was told.
    told: BTreeSet<(JobId, u16)>,
    /// Phases that had ended on a disk, by how often it was emptied: whoever stood in for others
    /// drops its copy when they are back, and may begin another.
    ended: BTreeMap<(DiskId, u32, JobId, u16), Ended>,
    /// Jobs that were to be tried again, from the start perhaps: what ended may begin again.
    retried: BTreeSet<JobId>,
    /// Jobs that were taken: those whose disks are looked at.
    jobs: Vec<JobId>,
    /// Which of these are looked at next: some at a time, since disks are read slowly.
    next: usize,
}

/// An end that was seen on a disk.
#[derive(Clone, Copy)]
struct Ended {
    generation: u32,
    /// When the job was enqueued, that is: which of those that had its key in turn.
    created_ms: u64,
    /// When it was first seen.
    at: Timestamp,
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
            Fact::Changed { job, change: Change::Retry { .. } } => {
                self.retried.insert(*job);
            }
            // What was given out before may begin late: it counts for nothing then.
            Fact::Sent { message: Message::Assign(assignment), .. } if self.strict => {
                return self.dispatched(assignment.token, assignment.job, assignment.step);
            }
            Fact::Started { at, attempt } if self.strict => {
                let step = super::position(attempt);
                self.attempts.insert(attempt.token, (attempt.job, step));
                if seen.gives_itself(*at, attempt) {
                    return self.dispatched(attempt.token, attempt.job, step);
                }
            }
            Fact::Sent { at, message: Message::CompletionAck(token), .. } if self.strict => {
                self.note_committed(seen, *at, *token);
            }
            Fact::Told { view, .. } if self.strict => self.note_told(view),
            // What is on disk when a process ends is what the next one begins with.
            Fact::Crashed { at } | Fact::Up { at, .. } if !self.strict => {
                for job in self.jobs.clone() {
                    self.look(seen, *at, job)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for _ in 0..AT_ONCE.min(self.jobs.len()).min(if self.strict { 0 } else { AT_ONCE }) {
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
                match self.strict {
                    true => self.kept(seen, at, job)?,
                    false => self.look(seen, at, job)?,
                }
            }
        }
        Ok(())
    }
}

impl TerminalStays {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            strict: options.is_strict(),
            gives_way: options.has_short_marks(),
            marks: options.outlasts_in_any().then(|| Duration::from_millis(options.tombstones_ms)),
            attempts: BTreeMap::new(),
            committed: BTreeMap::new(),
            told: BTreeSet::new(),
            ended: BTreeMap::new(),
            retried: BTreeSet::new(),
            jobs: Vec::new(),
            next: 0,
        }
    }

    fn dispatched(&mut self, token: Token, job: JobId, step: u16) -> Verdict {
        self.attempts.insert(token, (job, step));
        if self.retried.contains(&job) {
            return Ok(());
        }
        match self.committed.get(&(job, step)) {
            None if self.told.contains(&(job, step)) => {
                Err(format!("{job} step {step} is given out again, a client was told of its end"))
            }
            Some(by) => Err(format!("{job} step {step} is given out again, {by} had ended it")),
            None => Ok(()),
        }
    }

    /// A worker is told that its end is durable: if it is the one that was accepted, it stays so.
    fn note_committed(&mut self, seen: &Seen<'_>, at: usize, token: Token) {
        let Some(&(job, step)) = self.attempts.get(&token) else { return };
        let core = seen.nodes[at].core.as_ref();
        let record = core.and_then(|core| core.record(seen.pipeline, job).ok().flatten());
        let progress = record.and_then(|record| Some(record.controls.get(&step)?.progress.clone()));
        if matches!(progress, Some(Progress::Succeeded { token: accepted, .. }) if accepted == token)
        {
            self.committed.insert((job, step), token);
        }
    }

    /// A client is told of ends: they stay.
    fn note_told(&mut self, view: &JobView) {
        let ended = view.invocations.iter().enumerate();
        let ended = ended.filter(|(_, invocation)| invocation.state == JobState::Succeeded);
        self.told.extend(ended.map(|(step, _)| (view.job, step as u16)));
    }

    /// In the end, all who hold a job hold the ends that were committed.
    fn kept(&self, seen: &Seen<'_>, at: usize, job: JobId) -> Verdict {
        let Some(record) = seen.on_disk(at, job).filter(|_| !seen.nodes[at].disk.is_damaged())
        else {
            return Ok(());
        };
        if record.reaped.is_some() || self.retried.contains(&job) {
            return Ok(());
        }
        // It was forgotten, and brought back by a copy that was away until no mark was left: it is set aside.
        if self.gives_way && record.state() == JobState::Cancelled {
            return Ok(());
        }
        for ((_, step), token) in self.committed.range((job, 0)..=(job, u16::MAX)) {
            let control = record.controls.get(step);
            let kept = control.is_some_and(
                |it| matches!(it.progress, Progress::Succeeded { token: now, .. } if now == *token),
            );
            if !kept {
                return Err(format!(
                    "job {job} step {step}: {token} was committed, there is {control:?}"
                ));
            }
        }
        for (_, step) in self.told.range((job, 0)..=(job, u16::MAX)) {
            let state = record.controls.get(step).map(Control::state);
            if state != Some(JobState::Succeeded) {
                return Err(format!("job {job} step {step}: a client was told of its end"));
            }
        }
        Ok(())
    }

    fn look(&mut self, seen: &Seen<'_>, at: usize, job: JobId) -> Verdict {
        let node = &seen.nodes[at];
        let Some(record) = seen.on_disk(at, job) else { return Ok(()) };
        let disk = node.copy(seen.pipeline);
        let created_ms = record.spec.as_ref().map_or(0, |spec| spec.created_ms);
        for (step, control) in &record.controls {
            self.stays(disk, (job, *step), control, created_ms, seen.now)?;
        }
        Ok(())
    }

    fn stays(
        &mut self,
        (disk, emptied): (DiskId, u32),
        (job, step): (JobId, u16),
        control: &Control,
        created_ms: u64,
        now: Timestamp,
    ) -> Verdict {
        let key = (disk, emptied, job, step);
        // A copy that was away for longer than marks are kept gives way to the job that the key has got
        // since. Of two that meet otherwise, the earlier stays.
        let same = |ended: &&Ended| {
            let recent = self.marks.is_none_or(|marks| now.since(ended.at) <= marks);
            !self.gives_way || ended.created_ms >= created_ms && recent
        };
        let seen = self.ended.get(&key);
        let ended = seen.filter(same).copied();
        let generation = control.generation;
        if control.is_terminal() {
            let again =
                seen.filter(|it| (it.generation, it.created_ms) == (generation, created_ms));
            let at = again.map_or(now, |ended| ended.at);
            self.ended.insert(key, Ended { generation, created_ms, at });
        } else if ended.is_some_and(|ended| generation <= ended.generation) {
            return Err(format!("disk {}: job {job} step {step} is unfinished again", disk.0));
        } else {
            self.ended.remove(&key);
        }
        Ok(())
    }
}
