//! Attempts at workers, as their coordinator sees them: claimed, lost, given back, ended; and what
//! their ends mean.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    id::{JobId, NodeId, PipelineId, Token},
    io::Outcome,
    message::{Completion, Held as HeldAttempt, Message},
    mutant::Mutant,
    record::{Control, MAX_ATTEMPTS_KEPT, Progress},
    store::ReadError,
    view::AttemptView,
};

use super::{
    Core,
    commit::Held,
    group::{Role, Running},
    ready::Place,
    steps::millis,
};

/// A phase that took this many workers down with it is poison: the job becomes a dead letter.
pub(super) const MAX_LOST_ATTEMPTS: u32 = 10;

/// The longest wait that a handler may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// How an attempt ended that was cut short.
pub(super) const GIVEN_BACK: &str = "its worker gave it back";

impl Core {
    /// Compares what a worker says it has with what it was given. `sequence` is the beat that it
    /// answers: what was given after that it need not know.
    pub(super) fn match_attempts(
        &mut self,
        worker: NodeId,
        sequence: u64,
        attempts: &[HeldAttempt],
    ) {
        for held in attempts {
            if self.is_anothers(held.pipeline, (held.job, held.step), held.token, worker) {
                // Its end would not count from here.
                self.cancel_at(worker, held.token);
                continue;
            }
            let Some(reign) = self.groups.get_mut(&held.pipeline).and_then(|group| group.reign())
            else {
                continue;
            };
            match reign.running.get_mut(&held.token) {
                Some(running) => {
                    running.claimed = true;
                    running.missed = false;
                    running.deadline = None;
                    let (job, step) = (running.job, running.step);
                    self.cancel_if_over(held.pipeline, (job, step), worker, held.token);
                }
                None => self.claim_unknown(worker, *held),
            }
        }
        let has: std::collections::BTreeSet<Token> =
            attempts.iter().map(|held| held.token).collect();
        let (mut lost, mut overdue, now) = (Vec::new(), Vec::new(), self.now);
        let hasty = self.has(Mutant::OnItsWayLost);
        for group in self.groups.values_mut() {
            let pipeline = group.id;
            let Some(reign) = group.reign() else { continue };
            for (token, running) in &mut reign.running {
                let given = hasty || running.after_beat.is_some_and(|beat| beat < sequence);
                if running.worker == worker && given && !has.contains(token) {
                    // Once may be chance: the attempt may still be on its way.
                    if running.missed || hasty {
                        lost.push((pipeline, *token));
                    }
                    running.missed = true;
                } else if running.worker == worker && running.overdue_at.is_some_and(|at| at <= now)
                {
                    overdue.push((pipeline, *token));
                }
            }
        }
        self.give_up_overdue(worker, overdue);
        for (pipeline, token) in lost {
            self.lose_attempt(pipeline, token, "its worker does not have it");
            self.cancel_at(worker, token);
        }
    }

    /// A worker has an attempt that this coordinator did not know of.
    fn claim_unknown(&mut self, worker: NodeId, held: HeldAttempt) {
        let HeldAttempt { pipeline, job, step, token } = held;
        let Some(group) = self.groups.get(&pipeline) else { return };
        let control =
            group.jobs.get(&job).and_then(|entry| entry.record.controls.get(&step).cloned());
        let entry = group.jobs.get(&job);
        match control {
            _ if entry.is_none() => {}
            _ if entry.is_some_and(|entry| entry.record.is_reaped()) => {
                self.cancel_at(worker, token);
            }
            Some(control) if control.is_terminal() => self.cancel_at(worker, token),
            Some(Control { progress: Progress::Running { token: other, .. }, .. }) => {
                let claimed = group.elected_term().is_some()
                    && matches!(&group.role, Role::Coordinator(reign)
                        if reign.running.get(&other).is_some_and(|running| running.claimed));
                if claimed {
                    self.cancel_at(worker, token);
                }
            }
            // Its end is written down: the worker listed it before it heard of that, or it belongs to
            // a generation before.
            Some(control) if has_ended(&control, token) => self.cancel_at(worker, token),
            _ if self.is_strict(pipeline) => self.cancel_at(worker, token),
            _ => {
                let Some(queue) = self.queue_of(pipeline, job, step) else { return };
                let key = self.limit_key(pipeline, job, &queue.1);
                let wall_ms = self.wall_ms();
                let mut unknown = false;
                self.update_control(pipeline, job, step, |control| {
                    match control.attempts.iter_mut().find(|attempt| attempt.token == token) {
                        // It was given up too early.
                        Some(attempt) => {
                            (attempt.lost, attempt.finished_ms, attempt.error) =
                                (false, None, None);
                            control.lost_count = control.lost_count.saturating_sub(1);
                        }
                        None => {
                            unknown = true;
                            push_attempt(control, worker, token, wall_ms);
                        }
                    }
                    control.progress = Progress::Running { worker, token };
                });
                let after_beat = Some(self.beats.sequence());
                let given = Running::new((job, step), queue, key, worker);
                let overdue_at = self.overdue_at(self.timeout_of(pipeline, job, step));
                let running = Running { after_beat, overdue_at, ..given };
                self.add_running(pipeline, token, running);
                if unknown {
                    self.note_attempt(pipeline, (job, step), worker);
                }
            }
        }
    }

    /// Tells a worker once more that nobody waits for an attempt: it may not have heard.
    fn cancel_if_over(
        &mut self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        worker: NodeId,
        token: Token,
    ) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let durable = group.jobs.get(&job).is_none_or(|entry| entry.pending == 0);
        let current = self.control(pipeline, job, step).map(|control| &control.progress);
        let waits = matches!(current, Some(Progress::Running { token: now, .. }) if *now == token);
        if durable && !waits && !self.is_dirty(pipeline, job) {
            self.cancel_at(worker, token);
        }
    }

    pub(super) fn cancel_at(&mut self, worker: NodeId, token: Token) {
        if worker == self.me() {
            self.worker_cancel(token);
        } else if self.is_reachable(worker) {
            self.send(worker, Message::Cancel(token));
        }
    }

    /// Attempts that nobody claimed in time are given to others.
    pub(super) fn on_claims_over(&mut self, pipeline: PipelineId) {
        let now = self.now;
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return;
        };
        let unclaimed = reign.running.iter().filter(|(_, running)| {
            !running.claimed && running.deadline.is_some_and(|deadline| deadline <= now)
        });
        let lost: Vec<Token> = unclaimed.map(|(token, _)| *token).collect();
        for token in lost {
            self.lose_attempt(pipeline, token, "its worker did not come back");
        }
    }

    /// All attempts at a worker are given to others.
    pub(super) fn requeue_attempts_at(&mut self, worker: NodeId) {
        let mut lost = Vec::new();
        for group in self.groups.values_mut() {
            let pipeline = group.id;
            let Some(reign) = group.reign() else { continue };
            // What waits to be claimed has a deadline of its own.
            let there = reign.running.iter().filter(|(_, running)| {
                running.worker == worker && (running.claimed || running.deadline.is_none())
            });
            lost.extend(there.map(|(token, _)| (pipeline, *token)));
        }
        for (pipeline, token) in lost {
            self.lose_attempt(pipeline, token, "its worker was lost");
        }
    }

    /// An attempt will not end: the phase waits for another worker.
    pub(super) fn lose_attempt(&mut self, pipeline: PipelineId, token: Token, why: &str) {
        self.counted.attempts_lost += 1;
        let wall_ms = self.wall_ms();
        self.requeue(pipeline, token, |control| {
            control.lost_count = control.lost_count.saturating_add(1);
            end_attempt(control, token, wall_ms, Some(why.to_owned()), true);
            control.progress = if control.lost_count >= MAX_LOST_ATTEMPTS {
                Progress::Dead
            } else {
                Progress::Waiting { not_before_ms: 0 }
            };
        });
    }

    /// An attempt succeeded, but not all of its items are here: it is as good as lost.
    fn lose_lacking(&mut self, pipeline: PipelineId, job: JobId, step: u16, token: Token) {
        let wall_ms = self.wall_ms();
        self.update_control(pipeline, job, step, |control| {
            control.lost_count = control.lost_count.saturating_add(1);
            let error = "some of its items are lost".to_owned();
            end_attempt(control, token, wall_ms, Some(error), false);
            control.progress = match control.lost_count >= MAX_LOST_ATTEMPTS {
                true => Progress::Dead,
                false => Progress::Waiting { not_before_ms: 0 },
            };
        });
    }

    /// An attempt never began: it does not count.
    pub(super) fn give_back(&mut self, pipeline: PipelineId, token: Token) {
        self.requeue(pipeline, token, |control| {
            control.attempt_count = control.attempt_count.saturating_sub(1);
            control.attempts.retain(|attempt| attempt.token != token);
            control.progress = Progress::Waiting { not_before_ms: 0 };
            if control.attempt_count == 0 {
                // Nor has its phase begun: none of its time is spent, and its condition is asked again.
                control.since_ms = 0;
            }
        });
    }

    /// Takes an attempt off its worker, and writes down what that means for its phase, unless the
    /// phase has gone on without it.
    fn requeue(&mut self, pipeline: PipelineId, token: Token, change: impl FnOnce(&mut Control)) {
        let Some(running) = self.remove_running(pipeline, token) else { return };
        let current = self.control(pipeline, running.job, running.step);
        if !matches!(current, Some(Control { progress: Progress::Running { token: now, .. }, .. }) if *now == token)
        {
            return;
        }
        self.update_control(pipeline, running.job, running.step, change);
        self.refresh_at(pipeline, running.job, Place::Front);
    }

    /// A worker says how an attempt ended.
    pub(super) fn on_completed(
        &mut self,
        from: NodeId,
        completion: Completion,
    ) -> Result<(), ReadError> {
        let Completion { token, pipeline, job, step, outcome, items, session } = completion;
        if !self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator()) {
            return Ok(());
        }
        if self.is_anothers(pipeline, (job, step), token, from) {
            return Ok(());
        }
        let ended = Held::Completed { worker: from, token, of: (pipeline, job, step) };
        if self.remove_running(pipeline, token).is_some() {
            self.note_ended(from);
        }
        let resident =
            self.groups.get(&pipeline).is_some_and(|group| group.jobs.contains_key(&job));
        // Without the job nothing can be said of it: the worker keeps the outcome and asks again.
        if !self.load_job(pipeline, job)? {
            let settled = self.groups.get(&pipeline).is_some_and(|group| self.is_settled(group));
            if settled && self.has_heard_all() {
                // Nobody has it any more: it was dropped with its pipeline, or is lost.
                self.hold_until_durable(pipeline, ended);
            }
            return Ok(());
        }
        if self.is_beyond(pipeline, job, step) {
            // No phase of the job: nothing that a worker of this cluster was given.
            return Ok(());
        }
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        if entry.is_some_and(|entry| entry.record.is_reaped()) {
            self.hold_until_durable(pipeline, ended);
            self.forget_if_settled(pipeline, job);
            return Ok(());
        }
        // It may have been on disk only until now.
        if !resident && self.is_anothers(pipeline, (job, step), token, from) {
            self.forget_if_settled(pipeline, job);
            return Ok(());
        }
        let wall_ms = self.wall_ms();
        let control = self.control(pipeline, job, step);
        let knows = |control: &Control| control.attempts.iter().any(|it| it.token == token);
        let known = control.is_some_and(knows);
        let over = control.is_some_and(|control| has_ended(control, token));
        let succeeded = matches!(outcome, Outcome::Succeeded(_));
        let lacks = succeeded && !self.has_items(pipeline, (job, step), token, items);
        let state = control.map(|control| control.progress.clone());
        let mut recorded = true;
        let left = (items, session);
        match state {
            // The worker asks again about an end that was recorded.
            Some(Progress::Succeeded { token: accepted, .. }) if accepted == token => {}
            Some(Progress::Succeeded { .. } | Progress::Dead | Progress::Cancelled) => {
                self.note_late_end(pipeline, job, step, token, outcome);
            }
            // Where another coordinator had it, its items may be on their way.
            None | Some(Progress::Waiting { .. } | Progress::Running { .. })
                if lacks && !over && !self.is_known_by_all(pipeline) =>
            {
                recorded = false;
            }
            Some(Progress::Running { token: current, .. }) if current == token && lacks => {
                self.lose_lacking(pipeline, job, step, token);
            }
            Some(Progress::Running { token: current, .. }) if current == token => {
                recorded = self.record_end(pipeline, (job, step), token, outcome, left);
            }
            // Only the attempt that was given out last counts; and none whose end is written down:
            // it belongs to a generation before.
            _ if self.is_strict(pipeline) || over || lacks => {
                self.note_late_end(pipeline, job, step, token, outcome);
            }
            other => {
                // In this preset the first end that is durable wins: it is real work, and done.
                let waits = matches!(other, None | Some(Progress::Waiting { .. }));
                if !matches!(outcome, Outcome::Succeeded(_)) && waits && !known {
                    // Whoever assigned it is gone, and nobody told that it began.
                    self.update_control(pipeline, job, step, |control| {
                        push_attempt(control, from, token, wall_ms);
                    });
                    recorded = self.record_end(pipeline, (job, step), token, outcome, left);
                } else if !matches!(outcome, Outcome::Succeeded(_)) {
                    self.note_late_end(pipeline, job, step, token, outcome);
                } else {
                    if let Some(Progress::Running { worker, token: current }) = other {
                        self.remove_running(pipeline, current);
                        self.cancel_at(worker, current);
                    }
                    recorded = self.record_end(pipeline, (job, step), token, outcome, left);
                }
            }
        }
        self.refresh(pipeline, job);
        if recorded && self.has(Mutant::CompletionBeforeSync) && from != self.me() {
            self.send(from, Message::CompletionAck(token));
        } else if recorded {
            self.hold_until_durable(pipeline, ended);
        }
        self.forget_if_settled(pipeline, job);
        Ok(())
    }

    /// Whether an attempt is the one that a phase waits for.
    pub(super) fn is_running_as(
        &self,
        (pipeline, job, step): (PipelineId, JobId, u16),
        token: Token,
    ) -> bool {
        self.control(pipeline, job, step).is_some_and(|control| {
            matches!(control.progress, Progress::Running { token: current, .. } if current == token)
        })
    }

    /// Whether an attempt is known to have been given to another worker: nobody else tells its end.
    fn is_anothers(
        &self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        token: Token,
        from: NodeId,
    ) -> bool {
        let role = self.groups.get(&pipeline).map(|group| &group.role);
        let running = match role {
            Some(Role::Coordinator(reign)) => reign.running.get(&token),
            _ => None,
        };
        let mut attempts = self
            .control(pipeline, job, step)
            .into_iter()
            .flat_map(|control| &control.attempts)
            .filter(|attempt| attempt.token == token);
        running.is_some_and(|running| running.worker != from)
            || attempts.any(|attempt| attempt.worker != from)
    }

    /// Whether a job is known to have fewer phases than that.
    fn is_beyond(&self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let spec = entry.and_then(|entry| entry.record.spec.as_ref());
        spec.is_some_and(|spec| step >= spec.phases)
    }

    /// An attempt ended that does not count any more: it is noted once, for people to see, and so
    /// that nobody takes it for running.
    fn note_late_end(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        token: Token,
        outcome: Outcome,
    ) {
        let wall_ms = self.wall_ms();
        let control = self.control(pipeline, job, step);
        let attempts = control.map_or(&[][..], |control| &control.attempts);
        let Some(attempt) = attempts.iter().find(|attempt| attempt.token == token) else { return };
        let lost = attempt.lost;
        let written_ms = control.map_or(0, |control| control.written_ms);
        if attempt.finished_ms.is_some() && !lost {
            return;
        }
        self.update_control(pipeline, job, step, |control| {
            // How long a phase waits, and when a job ended, counts from when that was decided.
            control.written_ms = written_ms;
            // One that was given back has failed at nothing: it stays among those that were lost.
            match (&outcome, lost) {
                (Outcome::Cancelled, false) => {
                    control.lost_count = control.lost_count.saturating_add(1)
                }
                (Outcome::Cancelled, true) | (_, false) => {}
                (_, true) => control.lost_count = control.lost_count.saturating_sub(1),
            }
            let error = match outcome {
                Outcome::Succeeded(_) => {
                    control.late_count = control.late_count.saturating_add(1);
                    None
                }
                Outcome::Failed { error, .. } => Some(error),
                Outcome::Cancelled => Some(GIVEN_BACK.to_owned()),
            };
            end_attempt(control, token, wall_ms, error, false);
        });
    }

    /// How large the results of a job's phases are so far.
    pub(super) fn result_bytes(&self, pipeline: PipelineId, job: JobId) -> usize {
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let controls = entry.into_iter().flat_map(|entry| entry.record.controls.values());
        controls.map(Control::result_bytes).sum()
    }

    /// Writes down how an attempt ended. Says whether that could be done.
    fn record_end(
        &mut self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        token: Token,
        outcome: Outcome,
        (items, session): (u32, Option<Bytes>),
    ) -> bool {
        let wall_ms = self.wall_ms();
        let limit = self.config.limits.result_bytes;
        let job_limit = self.config.limits.job_results_bytes;
        let session_bytes = session.as_ref().map_or(0, Bytes::len);
        let so_far = self.result_bytes(pipeline, job) + session_bytes;
        let fault = session.as_ref().and_then(|session| self.session_fault(session));
        let outcome = match outcome {
            Outcome::Succeeded(_) if let Some(error) = fault => {
                Outcome::Failed { error, retry: false, after: None }
            }
            Outcome::Succeeded(result) if so_far + result.len() > job_limit => Outcome::Failed {
                error: format!(
                    "the results of this job have {} bytes together: at most {job_limit} are \
                     allowed (limits.job_results_bytes)",
                    so_far + result.len()
                ),
                retry: false,
                after: None,
            },
            Outcome::Succeeded(result) if result.len() > limit => Outcome::Failed {
                error: format!(
                    "the result has {} bytes: at most {limit} are allowed (limits.result_bytes)",
                    result.len()
                ),
                retry: false,
                after: None,
            },
            other => other,
        };
        let (max_attempts, backoff, total) = {
            let Some(group) = self.groups.get(&pipeline) else { return false };
            let Some(entry) = group.jobs.get(&job) else { return false };
            let phases = self.phases_of(pipeline, &entry.record);
            let phase = phases.and_then(|phases| phases.get(usize::from(step)));
            // Without its definition, or what was enqueued, nothing can be said of the job yet.
            let Some(phase) = phase else { return false };
            (phase.max_attempts, phase.backoff, phase.total_timeout)
        };
        if !matches!(outcome, Outcome::Succeeded(_)) {
            self.doubt_items(pipeline, job, step);
        }
        let uncounted = self.has(Mutant::AttemptsUncounted);
        let kept = self.has(Mutant::SessionKept);
        let chance = self.random_u64();
        self.update_control(pipeline, job, step, |control| match outcome {
            Outcome::Succeeded(result) => {
                end_attempt(control, token, wall_ms, None, false);
                control.progress = Progress::Succeeded { token, result };
                control.items = items;
                let before = control.session.take().filter(|_| kept);
                control.session = session.map(Box::new).or(before);
            }
            Outcome::Failed { error, retry, after } => {
                control.session = session.filter(|_| kept).map(Box::new);
                end_attempt(control, token, wall_ms, Some(error), false);
                let failed = control.attempt_count.saturating_sub(control.lost_count);
                let failed = if uncounted { 1 } else { failed };
                let wait = match after {
                    Some(after) => after.min(LONGEST_PAUSE),
                    None => backoff.wait(failed, chance),
                };
                let again_ms = wall_ms.saturating_add(millis(wait));
                let ends_ms = total.map(|total| control.since_ms.saturating_add(millis(total)));
                let late = ends_ms.is_some_and(|ends_ms| again_ms >= ends_ms);
                if retry && failed < max_attempts && late {
                    control.note = Some(
                        "the phase's total_timeout leaves no time for another attempt".to_owned(),
                    );
                }
                control.progress = match retry && failed < max_attempts && !late {
                    true => Progress::Waiting { not_before_ms: again_ms },
                    false => Progress::Dead,
                };
            }
            Outcome::Cancelled => {
                end_attempt(control, token, wall_ms, Some(GIVEN_BACK.to_owned()), false);
                control.lost_count = control.lost_count.saturating_add(1);
                control.progress = Progress::Waiting { not_before_ms: 0 };
            }
        })
        .is_some()
    }

    /// A job's end is durable: what it is a part of may go on, and its own parts have no use.
    fn after_end(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(entry) = self.groups.get(&pipeline).and_then(|it| it.jobs.get(&job)) else {
            return;
        };
        if entry.record.spec.as_ref().is_some_and(|spec| spec.parent.is_some()) {
            let record = entry.record.clone();
            self.note_item_end(pipeline, &record);
        }
        self.end_items(pipeline, job);
    }

    /// A batch that touched this job is durable.
    pub(super) fn on_job_settled(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Some(entry) = group.jobs.get_mut(&job) else { return };
        // The job may have been dropped meanwhile, and have come again.
        entry.pending = entry.pending.saturating_sub(1);
        let ended = entry.counted.is_some_and(|(standing, _)| !standing.is_live());
        if entry.pending == 0 && ended {
            if let Some(reign) = group.reign() {
                reign.forget_deadline(job);
                self.after_end(pipeline, job);
            }
            self.answer_watchers(pipeline, job);
            self.forget_if_settled(pipeline, job);
        } else if entry.pending == 0 {
            self.rest_if_crowded(pipeline, job);
        }
    }
}

/// Notes that an attempt begins.
pub(super) fn push_attempt(control: &mut Control, worker: NodeId, token: Token, wall_ms: u64) {
    if control.attempts.len() == MAX_ATTEMPTS_KEPT {
        control.attempts.remove(0);
    }
    control.attempt_count = control.attempt_count.saturating_add(1);
    if control.attempts.is_empty() {
        // Most have no second one.
        control.attempts.reserve_exact(1);
    }
    control.attempts.push(AttemptView {
        number: control.attempt_count,
        worker,
        token,
        started_ms: wall_ms,
        finished_ms: None,
        error: None,
        lost: false,
    });
}

fn end_attempt(
    control: &mut Control,
    token: Token,
    wall_ms: u64,
    error: Option<String>,
    lost: bool,
) {
    if let Some(attempt) = control.attempts.iter_mut().find(|attempt| attempt.token == token) {
        attempt.finished_ms = Some(wall_ms);
        attempt.error = error;
        attempt.lost = lost;
    }
}

/// Whether an attempt's own end was recorded.
pub(super) fn has_ended(control: &Control, token: Token) -> bool {
    let attempt = control.attempts.iter().find(|attempt| attempt.token == token);
    attempt.is_some_and(|attempt| attempt.finished_ms.is_some() && !attempt.lost)
}
