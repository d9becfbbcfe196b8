//! LEGAL-REAP and NO-RESURRECTION: only jobs that have come to an end are forgotten; and once one is,
//! nobody gives it away again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use carbonmesh_protocol::{
    id::{DiskId, JobId, Token},
    io::{Change, NewJob},
    message::Message,
    time::Timestamp,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

/// How long a fault may have consequences.
const AFTERMATH: Duration = Duration::from_secs(30);

pub(super) struct LegalReap {
    /// Whether anything is forgotten while the world lasts.
    reaps: bool,
    /// The step that no worker runs: it ends by itself.
    idle_step: Option<u16>,
    last_step: u16,
    attempts: BTreeMap<Token, (JobId, u16)>,
    /// Jobs that may be over: their last phase ended, or one failed, or a client had a hand in it.
    may_be_over: BTreeSet<JobId>,
    jobs: Vec<JobId>,
    /// Those that were seen to be forgotten, on which disks, by how often these were emptied, and when:
    /// whoever stood in for others drops its copy when they are back, and may begin another.
    reaped: BTreeMap<JobId, BTreeMap<(DiskId, u32), Timestamp>>,
    strict: bool,
    /// Whether marks run out, so that what an old copy brings back is set aside.
    expires: bool,
    /// How long they are kept.
    marks: Duration,
    /// Whether somebody may be away until they have.
    outlasts_marks: bool,
    /// Whether any disk was lost.
    lost_disk: bool,
    last_fault: Option<Timestamp>,
    aftermath: Duration,
    /// Those that were to be tried again: another generation may outlive the mark.
    retried: BTreeSet<JobId>,
}

impl LegalReap {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            reaps: options.forgets(),
            idle_step: options.idle_step(),
            last_step: options.phases as u16 - 1,
            attempts: BTreeMap::new(),
            may_be_over: BTreeSet::new(),
            jobs: Vec::new(),
            reaped: BTreeMap::new(),
            strict: options.is_strict(),
            expires: options.expires(),
            marks: Duration::from_millis(options.tombstones_ms),
            outlasts_marks: options.outlasts_marks(),
            lost_disk: false,
            last_fault: None,
            aftermath: options.aftermath(AFTERMATH),
            retried: BTreeSet::new(),
        }
    }

    fn is_calm(&self, seen: &Seen<'_>) -> bool {
        self.last_fault.is_none_or(|fault| seen.now.since(fault) > self.aftermath)
    }

    fn given_away(&self, seen: &Seen<'_>, at: usize, job: JobId) -> Verdict {
        if !self.reaps || self.retried.contains(&job) {
            return Ok(());
        }
        // A coordinator beyond a cut may not have heard of the end; where only one can act, it has.
        let forgotten = self.reaped.get(&job);
        let since = forgotten.and_then(|disks| disks.get(&seen.nodes[at].copy(seen.pipeline)));
        // What it has forgotten for long may be brought back from beyond a cut.
        let here = since.is_some_and(|since| {
            self.strict || !self.outlasts_marks || seen.now.since(*since) <= self.marks
        });
        // Marks may be lost with all disks that have them.
        let known = forgotten.is_some() && !self.lost_disk;
        if here || known && (self.strict || self.is_calm(seen)) {
            return Err(format!("n{at} gives job {job} away, which was forgotten"));
        }
        let calm = self.is_calm(seen);
        for (by, node) in seen.nodes.iter().enumerate().filter(|(_, it)| !it.disk.is_damaged()) {
            if !self.strict && !calm && by != at {
                continue;
            }
            if seen.on_disk(by, job).is_some_and(|record| record.is_reaped()) {
                let name = &node.config.name;
                return Err(format!("n{at} gives job {job} away, {name} has forgotten it"));
            }
        }
        Ok(())
    }
}

impl Invariant for LegalReap {
    fn name(&self) -> &'static str {
        "legal-reap"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if fact.is_fault() {
            self.last_fault = Some(seen.now);
        }
        self.lost_disk |= matches!(fact, Fact::DiskReplaced { .. } | Fact::Damaged { .. });
        match fact {
            Fact::Acknowledged { receipt, job } => {
                self.jobs.push(receipt.job);
                // All who knew of the mark are gone: the key has another job.
                if !receipt.existed {
                    self.reaped.remove(&receipt.job);
                }
                if job.options.deadline_ms.is_some() {
                    self.may_be_over.insert(receipt.job);
                }
            }
            // Also one that its client never heard of: of two with one key the earlier stays.
            Fact::Asked { job: NewJob { key: Some(key), options, .. } }
                if options.deadline_ms.is_some() =>
            {
                self.may_be_over.insert(JobId::of_key(seen.pipeline, key));
            }
            Fact::Changed { job, change } => {
                self.may_be_over.insert(*job);
                if matches!(change, Change::Retry { .. }) {
                    self.retried.insert(*job);
                }
            }
            Fact::Sent { at, message: Message::Assign(assignment), .. } => {
                return self.given_away(seen, *at, assignment.job);
            }
            Fact::Started { at, attempt } => {
                let step = super::position(attempt);
                self.attempts.insert(attempt.token, (attempt.job, step));
                if seen.gives_itself(*at, attempt) {
                    return self.given_away(seen, *at, attempt.job);
                }
            }
            Fact::Ended { token, failed } => {
                if let Some((job, step)) = self.attempts.get(token)
                    && (*failed || *step == self.last_step || self.idle_step.is_some())
                {
                    self.may_be_over.insert(*job);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        if !self.reaps || self.idle_step.is_some() {
            return Ok(());
        }
        for at in (0..seen.nodes.len()).filter(|at| !seen.nodes[*at].disk.is_damaged()) {
            for job in &self.jobs {
                let disk = seen.nodes[at].copy(seen.pipeline);
                if self.reaped.get(job).is_some_and(|disks| disks.contains_key(&disk)) {
                    continue;
                }
                let record = seen.on_disk(at, *job);
                if !record.is_some_and(|record| record.is_reaped()) {
                    continue;
                }
                // Only an old copy had it: it may have ended there after that, and been forgotten.
                let set_aside = self.expires && (self.lost_disk || self.outlasts_marks);
                if !set_aside && !self.may_be_over.contains(job) {
                    return Err(format!("n{at} has forgotten job {job}, which never ended"));
                }
                self.reaped.entry(*job).or_default().insert(disk, seen.now);
            }
        }
        Ok(())
    }
}
