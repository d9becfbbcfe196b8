//! What operators and clients do to jobs: cancel, try again, discard, signal. The pipeline's
//! coordinator does it, and answers once it is durable.

use bytes::Bytes;

use crate::{
    event::What,
    id::{JobId, PipelineId, Token},
    io::{Change, ChangeName, Changed, Refusal, RequestId, Response, Target},
    message::{Answer, Question, Which},
    mutant::Mutant,
    pipeline::MAX_PHASES,
    record::{Progress, SPEC},
    store::ReadError,
    view::JobState,
};

use super::{Core, commit::Held, query::Asker};

/// The most jobs that one request changes.
const MAX_AT_ONCE: u32 = 1000;

/// The most items of one job that are forgotten before other work goes on.
const ITEMS_AT_ONCE: usize = 20_000;

/// The longest reason that is kept, in bytes.
const MAX_REASON_BYTES: usize = 4096;

impl Core {
    /// A client wants jobs changed.
    pub(super) fn ask_change(
        &mut self,
        mut request: RequestId,
        target: Target,
        change: Change,
    ) -> Result<(), ReadError> {
        if let Err(refusal) = self.check(&change) {
            self.reply(request, Response::Refused(refusal));
            return Ok(());
        }
        let (pipelines, which) = match target {
            Target::Job(job) => {
                let pipelines = self.catalog.keys().copied();
                let pipelines = pipelines.filter(|pipeline| job.may_belong_to(*pipeline));
                (pipelines.collect(), Which::Job(job))
            }
            Target::Jobs { pipeline, state, after, limit } => {
                match self.ask_partition(request, &pipeline, after, true) {
                    Ok((own, part)) => {
                        request = own;
                        (vec![part], Which::Jobs { state, after, limit })
                    }
                    Err(refusal) => {
                        self.reply(request, Response::Refused(refusal));
                        return Ok(());
                    }
                }
            }
        };
        let (mut whom, mut without) = (Vec::new(), None);
        for pipeline in pipelines {
            if self.may_change(pipeline) {
                let here = match which {
                    Which::Job(job) => self.has_job(pipeline, job)?,
                    Which::Jobs { .. } => true,
                };
                if here {
                    let asker = Asker::Client(request);
                    return self.change(asker, pipeline, which, &change);
                }
                continue;
            }
            let leader = self.groups.get(&pipeline).and_then(|group| group.leader);
            let leader = leader.map(|leader| leader.node);
            match leader.filter(|node| *node != self.me() && self.is_reachable(*node)) {
                Some(node) => whom.push((pipeline, node)),
                None => without = Some(pipeline),
            }
        }
        if !whom.is_empty() {
            let question = |pipeline| Question::Change { pipeline, which, change: change.clone() };
            self.pass_on(request, (whom, without.is_some()), question);
            return Ok(());
        }
        let name = without.and_then(|pipeline| Some(self.catalog.get(&pipeline)?.name.to_string()));
        let refusal = match (name, which) {
            (Some(name), _) => Refusal::NoCoordinator(name),
            (None, Which::Job(job)) => Refusal::UnknownJob(job),
            (None, Which::Jobs { .. }) => Refusal::Unknown,
        };
        self.reply(request, Response::Refused(refusal));
        Ok(())
    }

    /// Whether a change can be what a client may ask for.
    fn check(&self, change: &Change) -> Result<(), Refusal> {
        let limit = self.config.limits.result_bytes;
        match change {
            Change::Signal { data: Ok(data), .. } if data.len() > limit => {
                Err(Refusal::TooLarge { bytes: data.len(), limit })
            }
            Change::Cancel { reason } | Change::Signal { data: Err(reason), .. }
                if reason.len() > MAX_REASON_BYTES =>
            {
                Err(Refusal::TooLarge { bytes: reason.len(), limit: MAX_REASON_BYTES })
            }
            _ => Ok(()),
        }
    }

    /// Whether this node decides what becomes of a pipeline's jobs.
    pub(super) fn may_change(&self, pipeline: PipelineId) -> bool {
        let coordinates = self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator());
        coordinates && self.may_act(pipeline)
    }

    /// Changes jobs, and answers once that is durable.
    pub(super) fn change(
        &mut self,
        asker: Asker,
        pipeline: PipelineId,
        which: Which,
        change: &Change,
    ) -> Result<(), ReadError> {
        let result = match which {
            Which::Job(job) => {
                let changed = self.change_job(pipeline, job, change)?;
                changed.map(|changed| Changed { count: changed.into(), next: None })
            }
            Which::Jobs { state, after, limit } => {
                self.change_jobs(pipeline, state, after, limit, change)?
            }
        };
        if self.has(Mutant::ChangeBeforeSync) {
            self.answer(asker, Answer::Changed(result));
            return Ok(());
        }
        self.answer_when_durable(asker, pipeline, Answer::Changed(result));
        Ok(())
    }

    /// Changes one page of jobs; what a change does not fit is left as it is.
    fn change_jobs(
        &mut self,
        pipeline: PipelineId,
        state: JobState,
        after: Option<JobId>,
        limit: u32,
        change: &Change,
    ) -> Result<Result<Changed, Refusal>, ReadError> {
        let limit = limit.clamp(1, MAX_AT_ONCE);
        let (jobs, next) = self.page(pipeline, None, Some(state), after, limit)?;
        let mut count = 0;
        for summary in jobs {
            match self.change_job(pipeline, summary.job, change)? {
                Ok(changed) => count += u64::from(changed),
                // That holds for all of them.
                Err(Refusal::Unsettled(job)) if !self.may_reap(pipeline) => {
                    return Ok(Err(Refusal::Unsettled(job)));
                }
                Err(_) => {}
            }
        }
        Ok(Ok(Changed { count, next }))
    }

    /// Says whether anything changed, or why it cannot be.
    fn change_job(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        change: &Change,
    ) -> Result<Result<bool, Refusal>, ReadError> {
        if !self.load_job(pipeline, job)? {
            return Ok(Err(Refusal::UnknownJob(job)));
        }
        let record = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let record = record.map(|entry| &entry.record);
        let Some(record) = record.filter(|record| record.spec.is_some()) else {
            self.forget_if_settled(pipeline, job);
            return Ok(Err(Refusal::UnknownJob(job)));
        };
        let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
        if let (Some(parent), false) = (parent, matches!(change, Change::Signal { .. })) {
            let parent = parent.job;
            self.forget_if_settled(pipeline, job);
            return Ok(Err(Refusal::PartOf { job, parent }));
        }
        let state = record.state();
        let wrong = |needs| Err(Refusal::WrongState { job, state, needs });
        let result = match change {
            Change::Cancel { .. } if state == JobState::Cancelled => Ok(false),
            Change::Cancel { .. } if state.is_terminal() => wrong(ChangeName::Cancelled),
            Change::Cancel { reason } => {
                self.stop_job(pipeline, job, &Progress::Cancelled, reason);
                Ok(true)
            }
            Change::Retry { from_start } => match state {
                JobState::Dead | JobState::Cancelled => {
                    let checked = self.check_retry(pipeline, job, *from_start)?;
                    if checked.is_ok() {
                        self.retry_job(pipeline, job, *from_start, 0);
                    }
                    checked.map(|()| true)
                }
                _ => wrong(ChangeName::Retried),
            },
            Change::Discard if !state.is_terminal() => wrong(ChangeName::Discarded),
            Change::Discard if !self.may_reap(pipeline) => Err(Refusal::Unsettled(job)),
            Change::Discard if self.is_being_undone(pipeline, job)?.is_some() => {
                let by = self.is_being_undone(pipeline, job)?.unwrap_or(job);
                Err(Refusal::Compensating { job, by })
            }
            Change::Discard => {
                self.forget_if_settled(pipeline, job);
                let mut budget = ITEMS_AT_ONCE;
                let done = self.forget(pipeline, job, &mut budget);
                return done.map(|done| match done {
                    true => Ok(true),
                    false => Err(Refusal::Unsettled(job)),
                });
            }
            Change::Signal { .. } if state.is_terminal() => wrong(ChangeName::Signalled),
            Change::Signal { data: Ok(data), .. } if self.exceeds(pipeline, job, data.len()) => {
                let (bytes, limit) = (data.len(), self.config.limits.job_results_bytes);
                Err(Refusal::TooLarge { bytes, limit })
            }
            Change::Signal { name, data } => match self.waits_for(pipeline, job, name) {
                Some(step) => {
                    self.signal_job(pipeline, job, step, data);
                    Ok(true)
                }
                None => Err(Refusal::NotAwaited { job, signal: name.to_string() }),
            },
        };
        self.forget_if_settled(pipeline, job);
        Ok(result)
    }

    /// Whether the results of a job are too large with so many bytes more.
    fn exceeds(&self, pipeline: PipelineId, job: JobId, bytes: usize) -> bool {
        self.result_bytes(pipeline, job) + bytes > self.config.limits.job_results_bytes
    }

    /// Ends whatever of a job has not ended; attempts are cancelled once that is durable.
    pub(super) fn stop_job(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        progress: &Progress,
        note: &str,
    ) {
        for step in self.steps(pipeline, job) {
            let control = self.control(pipeline, job, step);
            if control.is_some_and(|control| control.is_terminal()) {
                continue;
            }
            self.take_off(pipeline, job, step);
            self.update_control(pipeline, job, step, |control| {
                control.progress = progress.clone();
                control.note = Some(note.to_owned());
            });
        }
    }

    /// Takes a phase off the worker that has it, whose slot, and place within a limit, is free once
    /// the attempt has ended there.
    pub(super) fn take_off(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let control = self.control(pipeline, job, step);
        if let Some(Progress::Running { worker, token }) = control.map(|it| it.progress.clone()) {
            self.hold_until_durable(pipeline, Held::Cancel { worker, token });
        }
    }

    /// The positions of a job's phases.
    fn steps(&self, pipeline: PipelineId, job: JobId) -> std::ops::Range<u16> {
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let phases = entry.and_then(|entry| entry.record.spec.as_ref()).map_or(0, |it| it.phases);
        0..phases.min(MAX_PHASES as u16)
    }

    /// Begins a job's next generation: all its parts are raised, those that did not succeed begin
    /// anew, or all. It is a generation's at least.
    pub(super) fn retry_job(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        from_start: bool,
        generation: u32,
    ) {
        let wall_ms = self.wall_ms();
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        // Whoever had begun to forget it would pass over items that come now.
        if let Some(reign) = group.reign() {
            reign.forgetting.remove(&job);
        }
        let Some(entry) = group.jobs.get_mut(&job) else { return };
        let generation = entry.record.generation().saturating_add(1).max(generation);
        let Some(spec) = entry.record.spec.as_mut() else { return };
        let spec = std::sync::Arc::make_mut(spec);
        spec.generation = generation;
        // One that has passed would end it again at once.
        spec.options.deadline_ms = spec.options.deadline_ms.filter(|at| *at > wall_ms);
        self.touch(pipeline, job, SPEC, true);
        for step in self.steps(pipeline, job) {
            let control = self.control(pipeline, job, step);
            let succeeded = control.is_some_and(|it| it.state() == JobState::Succeeded);
            let again = from_start || !succeeded;
            if control.is_none() && !from_start {
                continue;
            }
            if again {
                self.take_off(pipeline, job, step);
            }
            self.update_control(pipeline, job, step, |control| {
                control.generation = generation;
                if again {
                    for attempt in &mut control.attempts {
                        attempt.finished_ms.get_or_insert(wall_ms);
                        attempt.lost = false;
                    }
                    control.progress = Progress::Waiting { not_before_ms: 0 };
                    (control.attempt_count, control.lost_count) = (0, 0);
                    (control.since_ms, control.note, control.items) = (0, None, 0);
                    control.session = None;
                }
            });
        }
        self.refresh(pipeline, job);
    }

    /// The phase of a job that waits for a signal, or will.
    fn waits_for(&self, pipeline: PipelineId, job: JobId, name: &crate::name::Name) -> Option<u16> {
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        let waits = self.phases_of(pipeline, record)?.iter().enumerate();
        let mut waits = waits.filter(|(_, phase)| phase.wait_for.as_ref() == Some(name));
        let open = |step: u16| record.controls.get(&step).is_none_or(|it| !it.is_terminal());
        waits.find_map(|(step, _)| Some(step as u16).filter(|step| open(*step)))
    }

    fn signal_job(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        data: &Result<Bytes, String>,
    ) {
        self.note(pipeline, (job, Some(step)), None, What::Signalled);
        match data {
            Ok(data) => {
                self.update_control(pipeline, job, step, |control| {
                    let token = Token { term: control.term, sequence: control.sequence };
                    control.progress = Progress::Succeeded { token, result: data.clone() };
                });
            }
            Err(reason) => {
                self.update_control(pipeline, job, step, |control| {
                    control.progress = Progress::Dead;
                    control.note = Some(reason.clone());
                });
            }
        }
        self.refresh(pipeline, job);
    }
}
