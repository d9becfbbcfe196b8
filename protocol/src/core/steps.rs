//! Which phases of a job are ready, which wait, for what and for how long, and which are left out.
//!
//! Invariant: a phase becomes ready only when all that it comes after have succeeded.

use std::{collections::btree_map::Entry, mem, time::Duration};

use bytes::Bytes;

use crate::{
    condition,
    id::{JobId, PipelineId, Token},
    pipeline::{PhaseDef, ancestors},
    record::{JobRecord, Progress},
};

use super::{
    Core,
    compensate::Due,
    group::Delayed,
    items::AGAIN,
    ready::{self, Place},
    timer::Timer,
};

/// The longest wait before a moment is compared with the clock again, which may have been set.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

impl Core {
    /// Looks which phases of a job are ready, after it changed.
    pub(super) fn refresh(&mut self, pipeline: PipelineId, job: JobId) {
        self.refresh_at(pipeline, job, Place::Back);
    }

    pub(super) fn refresh_at(&mut self, pipeline: PipelineId, job: JobId, place: Place) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        if !group.is_coordinator() || !group.jobs.contains_key(&job) {
            return;
        }
        self.adopt_running(pipeline, job);
        let Some(entry) = self.groups.get(&pipeline).and_then(|it| it.jobs.get(&job)) else {
            return;
        };
        let Some(spec) = &entry.record.spec else { return };
        if entry.record.is_over() {
            return;
        }
        let (steps, deadline_ms) = (spec.phases, spec.options.deadline_ms);
        if spec.parent.is_some() && !self.is_its_turn(pipeline, job) {
            return;
        }
        if let Some(deadline_ms) = deadline_ms {
            self.note_deadline(pipeline, job, deadline_ms);
        }
        for step in 0..steps {
            self.refresh_step(pipeline, job, step, (place, false));
        }
    }

    /// Queues a phase if its time has come, or it has waited for as long as it should, else sees to
    /// it that it is looked at again.
    fn refresh_step(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        (place, waited): (Place, bool),
    ) {
        let wall_ms = self.wall_ms();
        let Some(entry) = self.groups.get(&pipeline).and_then(|it| it.jobs.get(&job)) else {
            return;
        };
        let Some(spec) = &entry.record.spec else { return };
        let Some(phases) = self.phases_of(pipeline, &entry.record) else { return };
        let Some(phase) = phases.get(usize::from(step)) else { return };
        let control = entry.record.controls.get(&step);
        let open = super::dispatch::is_open(&entry.record, phases, usize::from(step));
        if !open || control.is_some_and(|control| control.is_terminal()) {
            return;
        }
        let due = self.may_undo(pipeline, spec);
        let nothing = self.has_nothing_to_undo(pipeline, spec, phase);
        let (due, nothing) = match (due, nothing) {
            (Ok(due), Ok(nothing)) => (due, nothing),
            (Err(error), _) | (_, Err(error)) => {
                self.broken = Some(error);
                return;
            }
        };
        match due {
            Due::Now => {}
            Due::Later => return self.look_once_more(pipeline, job, step),
            Due::Never => {
                let note = "the job that it undoes did not fail after all, or was tried again";
                return self.stop_job(pipeline, job, &Progress::Cancelled, note);
            }
        }
        if nothing {
            let note = "left out: the phase that it undoes had done nothing";
            return self.leave_out(pipeline, job, step, note);
        }
        // What has begun goes on.
        let fresh = control.is_none_or(|control| control.since_ms == 0);
        if let Some(when) = phase.when.as_ref().filter(|_| fresh) {
            match condition_holds(&entry.record, phases, step, when) {
                Ok(true) => {}
                Ok(false) => {
                    let note = "left out: its condition does not hold";
                    return self.leave_out(pipeline, job, step, note);
                }
                Err(error) => {
                    let note = format!("its condition cannot be applied: {error}");
                    return self.end_by_rule(pipeline, job, step, Progress::Dead, note);
                }
            }
        }
        if phase.each.is_some() {
            return self.tend_items(pipeline, job, step);
        }
        let mut not_before_ms = spec.options.not_before_ms;
        if let Some(control) = control {
            let Progress::Waiting { not_before_ms: again_ms } = control.progress else { return };
            // Another node's clock may be wrong by any amount: how long the wait was to be, by one
            // and the same clock, is what counts.
            let wait_ms = again_ms.saturating_sub(control.written_ms);
            not_before_ms = not_before_ms.max(again_ms.min(wall_ms.saturating_add(wait_ms)));
        }
        let wait = Duration::from_millis(not_before_ms.saturating_sub(wall_ms));
        if !wait.is_zero() && !waited {
            return self.look_again(pipeline, job, step, wait);
        }
        if phase.wait_for.is_some() {
            return self.await_signal(pipeline, job, step, waited);
        }
        let name = (phase.phase.clone(), phase.name.clone());
        let priority = spec.options.priority;
        let pointer = self.current(pipeline).and_then(|current| current.fair_by.as_deref());
        let owner = pointer.and_then(|pointer| self.key_of(pipeline, job, pointer));
        if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
            let entry = ready::Entry { job, step, priority, owner };
            reign.ready.entry(name).or_default().push(entry, place);
        }
    }

    /// A phase is not run: the job goes on as if it had given nothing.
    fn leave_out(&mut self, pipeline: PipelineId, job: JobId, step: u16, note: &str) {
        let Some(term) = self.elected_term(pipeline) else {
            return;
        };
        let token = Token { term, sequence: 0 };
        let progress = Progress::Succeeded { token, result: Bytes::from_static(b"{}") };
        self.end_by_rule(pipeline, job, step, progress, note.to_owned());
        self.refresh(pipeline, job);
    }

    /// A phase ends without an attempt.
    pub(super) fn end_by_rule(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        progress: Progress,
        note: String,
    ) {
        self.update_control(pipeline, job, step, |control| {
            control.progress = match progress {
                Progress::Succeeded { result, .. } => {
                    let token = Token { term: control.term, sequence: control.sequence };
                    Progress::Succeeded { token, result }
                }
                other => other,
            };
            control.note = Some(note);
        });
    }

    /// Looks at a phase again soon; that it waited until then counts for nothing.
    pub(super) fn look_once_more(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let at = self.now + AGAIN;
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let generation = group.jobs.get(&job).map_or(0, |entry| entry.record.generation());
        if let Some(reign) = group.reign() {
            reign.delayed.insert(Delayed { at, job, step, generation, enough: false });
            self.arm_at(at, Timer::Delayed(pipeline));
        }
    }

    /// Looks at a phase again after a while; not too late where clocks are set meanwhile.
    pub(super) fn look_again(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        wait: Duration,
    ) {
        let (at, enough) = (self.now + wait.min(LONGEST_WAIT), wait <= LONGEST_WAIT);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let generation = group.jobs.get(&job).map_or(0, |entry| entry.record.generation());
        if let Some(reign) = group.reign() {
            reign.delayed.insert(Delayed { at, job, step, generation, enough });
            self.arm_at(at, Timer::Delayed(pipeline));
        }
    }

    /// A phase waits for a signal: for as long as it may.
    fn await_signal(&mut self, pipeline: PipelineId, job: JobId, step: u16, waited: bool) {
        let wall_ms = self.wall_ms();
        let Some(group) = self.groups.get(&pipeline) else { return };
        let Some(record) = group.jobs.get(&job).map(|entry| &entry.record) else { return };
        let phases = self.phases_of(pipeline, record);
        let phase = phases.and_then(|phases| phases.get(usize::from(step)));
        let Some(PhaseDef { timeout: Some(timeout), wait_for: Some(signal), .. }) = phase else {
            return;
        };
        let (timeout, signal) = (*timeout, signal.clone());
        let mut since_ms = record.controls.get(&step).map_or(0, |control| control.since_ms);
        let mut waited = waited;
        if since_ms == 0 {
            // What it has waited for was the moment from which on it may begin.
            (since_ms, waited) = (wall_ms, false);
            self.update_control(pipeline, job, step, |control| control.since_ms = wall_ms);
        }
        let left = since_ms.saturating_add(millis(timeout)).saturating_sub(wall_ms);
        // Whatever became of the clock, it does not wait for longer than that from now on.
        let left = left.min(millis(timeout));
        if left > 0 && !waited {
            return self.look_again(pipeline, job, step, Duration::from_millis(left));
        }
        self.update_control(pipeline, job, step, |control| {
            control.progress = Progress::Dead;
            control.note = Some(format!("signal `{signal}` did not come within {timeout:?}"));
        });
    }

    /// A wait is over.
    pub(super) fn on_delay_over(&mut self, pipeline: PipelineId) {
        let now = self.now;
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return;
        };
        let at = now + Duration::from_millis(1);
        let first = Delayed { at, job: JobId::MIN, step: 0, generation: 0, enough: false };
        let later = reign.delayed.split_off(&first);
        let due = mem::replace(&mut reign.delayed, later);
        for Delayed { job, step, generation, enough, .. } in due {
            let group = self.groups.get(&pipeline);
            let entry = group.and_then(|group| group.jobs.get(&job));
            let same = |record: &JobRecord| record.generation() == generation;
            if let Some(entry) = entry.filter(|entry| !entry.record.is_over()) {
                let enough = enough && same(&entry.record);
                self.refresh_step(pipeline, job, step, (Place::Back, enough));
            }
        }
    }

    /// Sees to it that a job ends by its deadline.
    fn note_deadline(&mut self, pipeline: PipelineId, job: JobId, deadline_ms: u64) {
        let left = Duration::from_millis(deadline_ms.saturating_sub(self.wall_ms()));
        let at = self.now + left.min(LONGEST_WAIT);
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return;
        };
        if let Entry::Vacant(vacant) = reign.dated.entry(job) {
            vacant.insert(at);
            reign.deadlines.insert((at, job));
            self.arm_at(at, Timer::Deadline(pipeline));
        }
    }

    /// Some jobs' deadlines may have come.
    pub(super) fn on_deadline(&mut self, pipeline: PipelineId) {
        let (now, wall_ms) = (self.now, self.wall_ms());
        loop {
            let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
            let Some(reign) = reign else { return };
            let Some((_, job)) = reign.deadlines.first().copied().filter(|it| it.0 <= now) else {
                return;
            };
            reign.forget_deadline(job);
            let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
            let Some(record) = entry.map(|entry| &entry.record).filter(|it| !it.is_over()) else {
                continue;
            };
            match record.spec.as_ref().and_then(|spec| spec.options.deadline_ms) {
                Some(at) if at > wall_ms => self.note_deadline(pipeline, job, at),
                Some(_) => self.stop_job(pipeline, job, &Progress::Dead, "its deadline has passed"),
                None => {}
            }
        }
    }
}

/// Whether a phase's condition holds for what is known of its job.
fn condition_holds(
    record: &JobRecord,
    phases: &[PhaseDef],
    step: u16,
    when: &str,
) -> Result<bool, String> {
    let instructions = record.spec.as_ref().map_or(&b"{}"[..], |spec| &spec.instructions);
    let before = ancestors(phases, step.into());
    let results =
        before.iter().filter_map(|at| match &record.controls.get(&(*at as u16))?.progress {
            Progress::Succeeded { result, .. } => Some((phases[*at].name.as_str(), &result[..])),
            _ => None,
        });
    condition::holds(when, instructions, results)
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
