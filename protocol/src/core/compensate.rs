//! A job that failed for good: what its phases have done is undone, the last first.
//!
//! ```text
//! job: dead letter ─in the same batch─► a job that compensates it ─► what undoes each phase, in turn
//! ```
//! Source: Garcia-Molina and Salem, "Sagas" (1987). The job that compensates is one like others: it
//! is tried again, it may become a dead letter, and it is kept by itself. Its id is made of the failed
//! job's and its generation, so that whoever coordinates makes it once. What was under way when the
//! job failed is cancelled, and undone too: it may have been done.
//!
//! Invariants: whoever has the end of a failed job on disk has the job that compensates it; nothing is
//! undone that was never begun.

use std::{collections::BTreeMap, mem, time::Duration};

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::{
    catalog::CatalogEntry,
    id::{JobId, PipelineId},
    io::Refusal,
    mutant::Mutant,
    pipeline::PhaseDef,
    record::{Compensated, Control, JobOptions, JobRecord, JobSpec, Progress, SPEC},
    store::{ReadError, Table, ended_key, parse_ended_key},
    view::JobState,
};

use super::{Core, dispatch::results, group::End};

/// How long an attempt that is cancelled has to end before what it did is undone.
const CANCEL_TIME: Duration = Duration::from_secs(30);

/// How far back whoever takes over looks.
const OF_LATE: Duration = Duration::from_secs(3600);

/// How many failed jobs it looks at before other work goes on.
const AT_ONCE: usize = 500;

impl Core {
    /// Sees to it that what jobs have done is undone that failed since this was called last.
    pub(super) fn compensate_failed(&mut self) -> Result<(), ReadError> {
        let idle = self.has(Mutant::NeverUndone);
        for (pipeline, job) in mem::take(&mut self.failed).into_iter().filter(|_| !idle) {
            self.compensate(pipeline, job)?;
        }
        Ok(())
    }

    fn compensate(&mut self, pipeline: PipelineId, job: JobId) -> Result<(), ReadError> {
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
        let done = |step: &u16| record.controls.get(step).is_some_and(may_have_done);
        let steps = definition.compensations.iter().filter_map(|undo| undo.undoes).filter(done);
        let steps: Vec<u16> = steps.collect();
        if spec.parent.is_some() || spec.compensates.is_some() || steps.is_empty() {
            return Ok(());
        }
        let phases = definition.compensations.len() as u16;
        let instructions = all_together(record, &definition.phases);
        let id = JobId::of_compensation(pipeline, job, record.generation());
        if self.load_job(pipeline, id)? {
            self.forget_if_settled(pipeline, id);
            return Ok(());
        }
        let under_way = self.cancel_rest(pipeline, job);
        let created_ms = self.wall_ms();
        let priority = spec.options.priority;
        let term = self.groups.get(&pipeline).and_then(|group| group.elected_term());
        let undo = JobSpec {
            generation: 0,
            revision: spec.revision,
            phases,
            created_ms,
            term: term.filter(|_| self.takes_by_coordinator(pipeline)),
            options: JobOptions { priority, ..JobOptions::default() },
            key: None,
            parent: None,
            compensates: Some(Box::new(Compensated { job, steps })),
            instructions,
        };
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.jobs.entry(id).or_default().record = JobRecord::new(undo);
            self.touch(pipeline, id, SPEC, true);
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
        let spec = record.spec.as_ref();
        let definition = spec.and_then(|spec| self.definition(pipeline, spec.revision));
        let undo = definition.into_iter().flat_map(|it| &it.compensations).enumerate();
        let under_way = undo.filter(|(_, undo)| {
            let control = undo.undoes.and_then(|step| record.controls.get(&step));
            control.is_some_and(is_under_way)
        });
        let under_way = under_way.map(|(turn, _)| turn as u16).collect();
        let runs = |control: &Control| matches!(control.progress, Progress::Running { .. });
        let running = record.controls.iter().filter(|(_, control)| runs(control));
        let running: Vec<u16> = running.map(|(step, _)| *step).collect();
        for step in running {
            self.take_off(pipeline, job, step);
            let note = "another phase of the job has failed".to_owned();
            self.end_by_rule(pipeline, job, step, Progress::Cancelled, note);
        }
        under_way
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

    /// Whether a phase that undoes another is left out: that one has done nothing.
    pub(super) fn has_nothing_to_undo(spec: &JobSpec, phase: &PhaseDef) -> bool {
        let steps = spec.compensates.as_ref().map(|compensated| &compensated.steps);
        let undoes = phase.undoes.zip(steps);
        undoes.is_some_and(|(step, steps)| !steps.contains(&step))
    }

    /// The job that compensates this one as it stands, if there is one.
    pub(super) fn compensation_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
    ) -> Result<Option<(JobId, JobState)>, ReadError> {
        let spec = record.spec.as_ref();
        let definition = spec.and_then(|spec| self.definition(pipeline, spec.revision));
        if definition.is_none_or(|definition| definition.compensations.is_empty()) {
            return Ok(None);
        }
        let id = JobId::of_compensation(pipeline, job, record.generation());
        if let Some(record) = self.record_of(pipeline, id) {
            return Ok(Some((id, record.state())));
        }
        Ok(self.read_record(pipeline, id)?.map(|record| (id, record.state())))
    }

    /// Whether a failed job may be tried again: not before what undoes it has ended, and then from
    /// its start.
    pub(super) fn check_retry(
        &self,
        pipeline: PipelineId,
        job: JobId,
        from_start: bool,
    ) -> Result<Result<(), Refusal>, ReadError> {
        let Some(record) = self.record_of(pipeline, job) else { return Ok(Ok(())) };
        Ok(match self.compensation_of(pipeline, job, record)? {
            Some((by, state)) if !state.is_terminal() => Err(Refusal::Compensating { job, by }),
            Some((by, _)) if !from_start => Err(Refusal::Compensated { job, by }),
            _ => Ok(()),
        })
    }
}

/// Whether a phase has done what it does, or may have: an attempt of it was under way.
fn may_have_done(control: &Control) -> bool {
    // One that was left out has a note that says so.
    let done = control.state() == JobState::Succeeded && control.note.is_none();
    done || is_under_way(control)
}

fn is_under_way(control: &Control) -> bool {
    let open = control.attempts.last().is_some_and(|attempt| attempt.finished_ms.is_none());
    open && control.state() != JobState::Succeeded
}

/// What a phase behind all that succeeded would get: the instructions with all results, the later
/// ones before the earlier.
fn all_together(record: &JobRecord, phases: &[PhaseDef]) -> Bytes {
    let instructions = record.spec.as_ref().map(|spec| spec.instructions.clone());
    let results = results(record, &(0..phases.len()).collect());
    let mut merged: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
    for part in instructions.iter().chain(&results) {
        // What is no object has no keys.
        merged.extend(serde_json::from_slice::<BTreeMap<_, _>>(part).unwrap_or_default());
    }
    serde_json::to_vec(&merged).map_or_else(|_| Bytes::from_static(b"{}"), Bytes::from)
}
