//! A job that failed for good: what its phases have done is undone, the last first.
//!
//! ```text
//! job: dead letter ─in the same batch─► a job that compensates it ─► what undoes each phase, in turn
//! ```
//! Source: Garcia-Molina and Salem, "Sagas" (1987). The job that compensates is one like others: it
//! is tried again, it may become a dead letter, and it is kept by itself. Its id is made of the failed
//! job's and its generation, so that whoever coordinates makes it once. It says only which job that
//! is: what there is to undo is read there when its turn comes, so that it holds also for what came
//! from beyond a partition. What was under way when the job failed is cancelled, and undone too: it
//! may have been done.
//!
//! Invariants: whoever has the end of a failed job on disk has the job that compensates it, or looks
//! for it when it takes over; nothing is undone of a job that is not dead.

use std::{collections::BTreeSet, mem, time::Duration};

use bytes::Bytes;

use crate::{
    catalog::CatalogEntry,
    id::{JobId, PipelineId},
    io::Refusal,
    mutant::Mutant,
    name::Name,
    pipeline::PhaseDef,
    record::{Compensated, Control, JobOptions, JobRecord, JobSpec, Progress},
    store::{ReadError, Table, ended_key, parse_ended_key},
    view::JobState,
};

use super::{Core, attempts::GIVEN_BACK, dispatch::results, group::End};

/// How long an attempt that is cancelled has to end before what it did is undone.
const CANCEL_TIME: Duration = Duration::from_secs(30);

/// How far back whoever takes over looks.
const OF_LATE: Duration = Duration::from_secs(3600);

/// How many failed jobs it looks at before other work goes on.
const AT_ONCE: usize = 50;

/// Whether a job that compensates another may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    /// The other has not failed here, or is not known here: that may change.
    Later,
    /// It did not fail after all, or was tried again.
    Never,
}

impl Core {
    /// Sees to it that what jobs have done is undone that failed since this was called last.
    pub(super) fn compensate_failed(&mut self) -> Result<(), ReadError> {
        let idle = self.has(Mutant::NeverUndone);
        for (pipeline, job) in mem::take(&mut self.failed).into_iter().filter(|_| !idle) {
            self.compensate(pipeline, job)?;
        }
        Ok(())
    }

    /// What another node held changed a job. Where nothing was known to be done when it failed, or
    /// done when it was not known to have failed, nobody has seen to it that it is undone.
    pub(super) fn note_failed_elsewhere(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(group) = self.groups.get(&pipeline).filter(|it| it.is_coordinator()) else {
            return;
        };
        let Some(record) = group.jobs.get(&job).map(|entry| &entry.record) else { return };
        // For so long there is at least a mark of the job that compensated it, if one did.
        let recent = self.config.timing.tombstones / 2;
        let recent_ms = self.wall_ms().saturating_sub(recent.as_millis() as u64);
        if record.state() == JobState::Dead && record.written_ms() >= recent_ms {
            self.failed.insert((pipeline, job));
        }
    }

    fn compensate(&mut self, pipeline: PipelineId, job: JobId) -> Result<(), ReadError> {
        // Whoever takes over looks back.
        if self.elected_term(pipeline).is_none() {
            return Ok(());
        }
        let undoes_any =
            |it: &CatalogEntry| it.revisions.values().any(|it| !it.compensations.is_empty());
        if self.catalog.get(&pipeline).is_some_and(undoes_any) && self.load_job(pipeline, job)? {
            self.compensate_loaded(pipeline, job)?;
            self.forget_if_settled(pipeline, job);
        }
        Ok(())
    }

    fn compensate_loaded(&mut self, pipeline: PipelineId, job: JobId) -> Result<(), ReadError> {
        let Some(record) = self.record_of(pipeline, job) else { return Ok(()) };
        let Some(spec) = record.spec.clone().filter(|_| record.state() == JobState::Dead) else {
            return Ok(());
        };
        let Some(definition) = self.definition(pipeline, spec.revision) else { return Ok(()) };
        let phases = definition.compensations.len() as u16;
        let (generation, trace) = (record.generation(), record.trace());
        if spec.parent.is_some() || spec.compensates.is_some() || !self.has_done(pipeline, record) {
            return Ok(());
        }
        let id = JobId::of_compensation(pipeline, job, spec.created_ms, generation);
        if self.load_job(pipeline, id)? {
            self.forget_if_settled(pipeline, id);
            return Ok(());
        }
        let under_way = self.cancel_rest(pipeline, job);
        let created_ms = self.wall_ms();
        let priority = spec.options.priority;
        let term = self.elected_term(pipeline);
        let undo = JobSpec {
            generation: 0,
            revision: spec.revision,
            phases,
            created_ms,
            term: term.filter(|_| self.takes_by_coordinator(pipeline)),
            options: JobOptions { priority, ..JobOptions::default() },
            key: None,
            parent: None,
            compensates: Some(Compensated { job, generation }),
            instructions: Bytes::from_static(b"{}"),
        };
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.jobs.get_or_default(id).record = JobRecord::new(undo).traced(trace);
            self.touch_new(pipeline, id);
        }
        for turn in under_way {
            let not_before_ms = created_ms.saturating_add(CANCEL_TIME.as_millis() as u64);
            self.update_control(pipeline, id, turn, |control| {
                control.progress = Progress::Waiting { not_before_ms };
            });
        }
        self.refresh(pipeline, id);
        Ok(())
    }

    /// What runs of a failed job is cancelled. Gives back the places, among the phases that undo
    /// others, of those that undo what was under way.
    fn cancel_rest(&mut self, pipeline: PipelineId, job: JobId) -> Vec<u16> {
        let Some(record) = self.record_of(pipeline, job) else { return Vec::new() };
        let undo = self.undo_of(pipeline, record).iter().enumerate();
        let under_way = undo.filter(|(_, undo)| {
            let control = undo.undoes.and_then(|step| record.controls.get(&step));
            control.is_some_and(|it| may_have_done(it) && it.state() != JobState::Succeeded)
        });
        let under_way = under_way.map(|(turn, _)| turn as u16).collect();
        let runs = |control: &Control| {
            matches!(control.progress, Progress::Running { .. } | Progress::Items)
        };
        let running = record.controls.iter().filter(|(_, control)| runs(control));
        let running: Vec<u16> = running.map(|(step, _)| *step).collect();
        for step in running {
            self.take_off(pipeline, job, step);
            let note = "another phase of the job has failed".to_owned();
            self.end_by_rule(pipeline, job, step, Progress::Cancelled, note);
        }
        under_way
    }

    /// What undoes the phases of a job.
    fn undo_of(&self, pipeline: PipelineId, record: &JobRecord) -> &[PhaseDef] {
        let spec = record.spec.as_ref();
        let definition = spec.and_then(|spec| self.definition(pipeline, spec.revision));
        definition.map_or(&[], |definition| &definition.compensations)
    }

    /// Whether a job has done anything that can be undone, or may have.
    fn has_done(&self, pipeline: PipelineId, record: &JobRecord) -> bool {
        let mut undone = self.undo_of(pipeline, record).iter().filter_map(|undo| undo.undoes);
        undone.any(|step| record.controls.get(&step).is_some_and(may_have_done))
    }

    /// The job that one compensates, as it is here.
    fn compensated(
        &self,
        pipeline: PipelineId,
        spec: &JobSpec,
    ) -> Result<Option<JobRecord>, ReadError> {
        let Some(Compensated { job, .. }) = spec.compensates else { return Ok(None) };
        match self.record_of(pipeline, job) {
            Some(record) => Ok(Some(record.clone())),
            None => self.read_record(pipeline, job),
        }
    }

    /// Whether a job may go on as far as it is there to undo another.
    pub(super) fn may_undo(&self, pipeline: PipelineId, spec: &JobSpec) -> Result<Due, ReadError> {
        let Some(Compensated { generation, .. }) = spec.compensates else { return Ok(Due::Now) };
        let record = self.compensated(pipeline, spec)?;
        Ok(match record {
            Some(record) if record.generation() > generation => Due::Never,
            // What is here is older than what has failed.
            Some(record) if record.generation() < generation && !record.is_reaped() => Due::Later,
            Some(record) if record.is_reaped() => Due::Now,
            Some(record) if record.state() == JobState::Dead => Due::Now,
            Some(record) if record.is_over() => Due::Never,
            None if self.is_known_by_all(pipeline) => Due::Now,
            _ => Due::Later,
        })
    }

    /// Whether a job is there to undo another that has not failed as things stand: what came from
    /// beyond a partition may have turned its end into another, or into none yet.
    pub(super) fn is_undo_not_due(&self, pipeline: PipelineId, job: JobId) -> bool {
        let record = self.record_of(pipeline, job).filter(|record| !record.is_over());
        let spec = record.and_then(|record| record.spec.as_deref());
        spec.is_some_and(|spec| !matches!(self.may_undo(pipeline, spec), Ok(Due::Now)))
    }

    /// Whether a phase that undoes another is left out: that one has done nothing.
    pub(super) fn has_nothing_to_undo(
        &self,
        pipeline: PipelineId,
        spec: &JobSpec,
        phase: &PhaseDef,
    ) -> Result<bool, ReadError> {
        let Some(step) = phase.undoes.filter(|_| spec.compensates.is_some()) else {
            return Ok(false);
        };
        let record = self.compensated(pipeline, spec)?;
        Ok(!record.is_some_and(|it| it.controls.get(&step).is_some_and(may_have_done)))
    }

    /// Whether the job that one undoes was forgotten while that one waited for its turn.
    pub(super) fn has_lost_what_it_undoes(
        &self,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<bool, ReadError> {
        let spec = self.record_of(pipeline, job).and_then(|record| record.spec.as_deref());
        let Some(spec) = spec.filter(|spec| spec.compensates.is_some()) else { return Ok(false) };
        Ok(self.compensated(pipeline, spec)?.is_none_or(|record| record.spec.is_none()))
    }

    /// What a phase that undoes another gets beside: what one behind all that succeeded would get.
    pub(super) fn to_undo(
        &self,
        pipeline: PipelineId,
        spec: &JobSpec,
    ) -> Option<(Bytes, Vec<Name>, Vec<Bytes>)> {
        let record = self.compensated(pipeline, spec).ok().flatten()?;
        let of = record.spec.as_ref()?;
        let phases = self.definition(pipeline, of.revision)?.phases_of(of)?;
        let succeeded = phases.iter().enumerate().filter(|(step, _)| {
            let control = record.controls.get(&(*step as u16));
            control.is_some_and(|control| control.state() == JobState::Succeeded)
        });
        let (steps, names): (BTreeSet<usize>, Vec<Name>) =
            succeeded.map(|(step, phase)| (step, phase.name.clone())).unzip();
        Some((of.instructions.clone(), names, results(&record, &steps)))
    }

    /// Whoever takes over looks once whether all that failed of late is compensated: the two are
    /// written at one time, but each is a record of its own where copies are compared. Says whether
    /// there is more.
    pub(super) fn check_compensations(&mut self, pipeline: PipelineId) -> Result<bool, ReadError> {
        if !self.may_change(pipeline) || self.has(Mutant::NeverUndone) {
            return Ok(false);
        }
        // For so long there is at least a mark of each job that compensated another.
        let recent = OF_LATE.min(self.config.timing.tombstones / 2);
        let recent_ms = self.wall_ms().saturating_sub(recent.as_millis() as u64);
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some((at_ms, job)) = reign.and_then(|reign| reign.uncompensated.take()) else {
            return Ok(false);
        };
        let start = ended_key(pipeline, End::Dead as u8, at_ms.max(recent_ms), job);
        let stop = ended_key(pipeline, End::Dead as u8, u64::MAX, JobId::MAX);
        let rows = self.reader.scan(Table::Ended, &start, &stop, AT_ONCE)?;
        let dead: Vec<(u64, JobId)> =
            rows.iter().filter_map(|(key, _)| parse_ended_key(key)).collect();
        for (_, job) in &dead {
            self.compensate(pipeline, *job)?;
        }
        let last = dead.last().filter(|_| dead.len() == AT_ONCE);
        let next = last.map(|(at_ms, job)| (*at_ms, job.next()));
        if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
            reign.uncompensated = next;
        }
        Ok(next.is_some())
    }

    /// The job that compensates this one as it stands, and how far that is; without a state only a
    /// mark is left of it.
    pub(super) fn compensation_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
    ) -> Result<Option<(JobId, Option<JobState>)>, ReadError> {
        let Some(spec) = &record.spec else { return Ok(None) };
        if self.undo_of(pipeline, record).is_empty() || spec.compensates.is_some() {
            return Ok(None);
        }
        let id = JobId::of_compensation(pipeline, job, spec.created_ms, record.generation());
        let state = |record: &JobRecord| (!record.is_reaped()).then(|| record.state());
        if let Some(record) = self.record_of(pipeline, id) {
            return Ok(Some((id, state(record))));
        }
        Ok(self.read_record(pipeline, id)?.map(|record| (id, state(&record))))
    }

    /// Whether what undoes a job is not at its end.
    pub(super) fn is_being_undone(
        &self,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<Option<JobId>, ReadError> {
        let Some(record) = self.record_of(pipeline, job) else { return Ok(None) };
        let by = self.compensation_of(pipeline, job, record)?;
        Ok(by.filter(|(_, state)| state.is_some_and(|it| !it.is_terminal())).map(|(by, _)| by))
    }

    /// Whether a failed job may be tried again: not before all is undone, and then from its start.
    pub(super) fn check_retry(
        &self,
        pipeline: PipelineId,
        job: JobId,
        from_start: bool,
    ) -> Result<Result<(), Refusal>, ReadError> {
        let Some(record) = self.record_of(pipeline, job) else { return Ok(Ok(())) };
        let failed = record.state() == JobState::Dead && self.has_done(pipeline, record);
        Ok(match self.compensation_of(pipeline, job, record)? {
            Some((by, Some(state))) if state != JobState::Succeeded => {
                Err(Refusal::Compensating { job, by })
            }
            _ if failed && !from_start => Err(Refusal::Compensated(job)),
            _ => Ok(()),
        })
    }
}

/// Whether a phase has done what it does, or may have: an attempt of it was under way, lost or cut
/// short, or items of it ran.
fn may_have_done(control: &Control) -> bool {
    // One that was left out has a note that says so.
    let done = control.state() == JobState::Succeeded && control.note.is_none();
    let mut attempts = control.attempts.iter();
    let lost = attempts
        .any(|it| it.lost || it.finished_ms.is_none() || it.error.as_deref() == Some(GIVEN_BACK));
    // Only those for items begin without an attempt of their own.
    let left_out = control.state() == JobState::Succeeded && !done;
    let items = control.attempts.is_empty() && control.since_ms > 0 && !left_out;
    done || lost || items || control.late_count > 0
}
