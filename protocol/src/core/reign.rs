//! What a coordinator does: keeps its replicas in step, takes up work, records how attempts end.
//!
//! Invariants: nothing is dispatched before all that the voters held is merged and on disk; a phase
//! becomes ready only when all that it comes after have succeeded; every control value that is
//! written here is greater than the one before.

use std::{collections::btree_map::Entry, mem, sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{
    condition,
    id::{JobId, NodeId, PipelineId, Term, Token},
    io::Outcome,
    message::{Completion, Held as HeldAttempt, Message},
    mutant::Mutant,
    name::Name,
    pipeline::{PhaseDef, ancestors},
    record::{Control, FIRST_CONTROL, JobRecord, MAX_ATTEMPTS_KEPT, Progress},
    store::ReadError,
    view::AttemptView,
};

use super::{
    Core,
    commit::Held,
    compensate::Due,
    group::{Delayed, Leader, PeerSync, Role, Running},
    items::AGAIN,
    ready::{self, Place, QueueName},
    sync::Purpose,
    timer::Timer,
};

/// A phase that took this many workers down with it is poison: the job becomes a dead letter.
pub(super) const MAX_LOST_ATTEMPTS: u32 = 10;

/// The longest wait before a moment is compared with the clock again, which may have been set.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The longest wait that a handler may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// How an attempt ended that was cut short.
pub(super) const GIVEN_BACK: &str = "its worker gave it back";

impl Core {
    /// All is merged and on disk: from now on this node coordinates.
    pub(super) fn on_adopted(&mut self, pipeline: PipelineId, term: Term) {
        let (me, now) = (self.me(), self.now);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.elected_term() != Some(term) || group.is_coordinator() {
            return;
        }
        if let Role::TakingOver(reign) = mem::replace(&mut group.role, Role::Follower) {
            group.role = Role::Coordinator(reign);
        }
        if let Some(reign) = group.reign() {
            reign.strict.begin(now);
        }
        group.leader = Some(Leader { node: me, term, heard: now });
        self.advert_changed = true;
        let doubtful = group.reign().map(|reign| mem::take(&mut reign.doubtful));
        let jobs: Vec<JobId> = group.jobs.keys().copied().collect();
        for job in doubtful.unwrap_or_default() {
            self.set_aside_if_old(pipeline, job);
        }
        for job in jobs {
            self.refresh(pipeline, job);
        }
        self.grant_to_self();
        let own = self.worker.held(|held| held == pipeline);
        self.match_attempts(me, u64::MAX, &own);
        for peer in self.reachable() {
            self.send_beat_to(peer);
        }
        self.maintain_replicas(pipeline);
    }

    /// Attempts that another coordinator assigned, be it in an earlier term or beyond a partition:
    /// their workers may claim them for a while.
    fn adopt_running(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let Some(entry) = group.jobs.get(&job) else { return };
        let Some(Role::Coordinator(reign) | Role::TakingOver(reign)) = Some(&group.role) else {
            return;
        };
        if entry.record.is_over() {
            return;
        }
        let running: Vec<(u16, NodeId, Token)> = entry
            .record
            .controls
            .iter()
            .filter_map(|(step, control)| match control.progress {
                Progress::Running { worker, token } if !reign.running.contains_key(&token) => {
                    Some((*step, worker, token))
                }
                _ => None,
            })
            .collect();
        for (step, worker, token) in running {
            let Some((phase, name)) = self.queue_of(pipeline, job, step) else { continue };
            let key = self.limit_key(pipeline, job, &name);
            // A worker that was lost before has had part of its time already.
            let known = self.members.get(&worker).is_some_and(|member| {
                !member.reachable && self.now.since(member.heard) < self.config.timing.lease
            });
            let timing = &self.config.timing;
            let wait = if known { timing.reconnect_grace } else { timing.lease };
            let deadline = Some(self.now + wait);
            self.arm(wait, Timer::Claim(pipeline));
            let after_beat = Some(self.beats.sequence());
            let running = Running {
                job,
                step,
                phase,
                name,
                key,
                worker,
                after_beat,
                claimed: false,
                missed: false,
                deadline,
            };
            self.add_running(pipeline, token, running);
        }
    }

    /// The queue in which a phase of a job waits.
    fn queue_of(&self, pipeline: PipelineId, job: JobId, step: u16) -> Option<QueueName> {
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        let phase = self.phases_of(pipeline, record)?.get(usize::from(step))?;
        Some((phase.phase.clone(), phase.name.clone()))
    }

    /// What a job's attempts at a step are limited by.
    pub(super) fn limit_key(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: &Name,
    ) -> Option<Arc<str>> {
        let limit = self.current(pipeline)?.named(step)?.limit.as_ref()?;
        self.key_of(pipeline, job, &limit.key)
    }

    /// Keeps those who should hold copies in step; called each beat and when somebody comes back.
    pub(super) fn maintain_replicas(&mut self, pipeline: PipelineId) {
        let now = self.now;
        let mut keepers = self.keepers(pipeline);
        if !keepers.contains(&self.me()) && self.is_replaceable(pipeline) {
            // It was elected for want of anybody else; by now, those whose task it is can do it.
            return self.step_down(pipeline);
        }
        keepers.retain(|node| *node != self.me());
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return;
        };
        let term = reign.term;
        let gone: Vec<NodeId> =
            reign.peers.keys().filter(|peer| !keepers.contains(peer)).copied().collect();
        for peer in &gone {
            reign.peers.remove(peer);
        }
        let mut start = Vec::new();
        for peer in keepers {
            let due = match reign.peers.get(&peer) {
                None => true,
                Some(PeerSync::Lagging(until)) => *until <= now,
                Some(_) => false,
            };
            if due {
                reign.peers.insert(peer, PeerSync::Syncing);
                start.push(peer);
            }
        }
        for peer in start {
            self.start_live_sync(peer, pipeline, Purpose::Reign(term));
        }
    }

    /// Whether this node coordinates, and all who should keep a copy have one that is complete and
    /// admitted.
    fn is_replaceable(&self, pipeline: PipelineId) -> bool {
        let admitted = |node: &NodeId| {
            let said = self.members.get(node).and_then(|member| member.unadmitted.as_ref());
            said.is_some_and(|unadmitted| !unadmitted.contains(&pipeline))
        };
        let settled = self.groups.get(&pipeline).is_some_and(|group| self.is_settled(group));
        settled && self.view(pipeline).iter().all(admitted)
    }

    /// A peer can be reached again.
    pub(super) fn followers_found(&mut self, _peer: NodeId) {
        let coordinated: Vec<PipelineId> = self
            .groups
            .values()
            .filter(|group| group.is_coordinator())
            .map(|group| group.id)
            .collect();
        for pipeline in coordinated {
            self.maintain_replicas(pipeline);
        }
        let waiting: Vec<PipelineId> = self.groups.keys().copied().collect();
        waiting.into_iter().for_each(|pipeline| self.consider_election(pipeline));
    }

    /// A peer cannot be reached: it is no replica for now, and no voter.
    pub(super) fn reigns_lost(&mut self, peer: NodeId) {
        let mut unfounded = Vec::new();
        for group in self.groups.values_mut() {
            let Some(reign) = group.elected() else { continue };
            reign.peers.remove(&peer);
            if reign.unmerged.contains(&peer) {
                unfounded.push(group.id);
            }
        }
        // What the voter held cannot be merged any more: the election is held again without it.
        unfounded.into_iter().for_each(|pipeline| self.step_down(pipeline));
    }

    /// A replica keeps the others waiting: it is put out, and brought up to date later.
    pub(super) fn put_out(&mut self, peer: NodeId) {
        let until = self.now + self.config.timing.beat;
        let mut unfounded = Vec::new();
        for group in self.groups.values_mut() {
            let Some(reign) = group.elected() else { continue };
            if let Some(sync) = reign.peers.get_mut(&peer) {
                *sync = PeerSync::Lagging(until);
            }
            if reign.unmerged.contains(&peer) {
                unfounded.push(group.id);
            }
        }
        unfounded.into_iter().for_each(|pipeline| self.step_down(pipeline));
        self.drop_sessions_with(peer);
        self.stop_waiting_for(peer);
    }

    /// Looks which phases of a job are ready, after it changed.
    pub(super) fn refresh(&mut self, pipeline: PipelineId, job: JobId) {
        self.refresh_at(pipeline, job, Place::Back);
    }

    fn refresh_at(&mut self, pipeline: PipelineId, job: JobId, place: Place) {
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
        let Some(term) = self.groups.get(&pipeline).and_then(|group| group.elected_term()) else {
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
    fn look_once_more(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
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

    /// Compares what a worker says it has with what it was given. `sequence` is the beat that it
    /// answers: what was given after that it need not know.
    pub(super) fn match_attempts(
        &mut self,
        worker: NodeId,
        sequence: u64,
        attempts: &[HeldAttempt],
    ) {
        for held in attempts {
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
        let (mut lost, hasty) = (Vec::new(), self.has(Mutant::OnItsWayLost));
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
                }
            }
        }
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
                let Some((phase, name)) = self.queue_of(pipeline, job, step) else { return };
                let key = self.limit_key(pipeline, job, &name);
                let wall_ms = self.wall_ms();
                self.update_control(pipeline, job, step, |control| {
                    match control.attempts.iter_mut().find(|attempt| attempt.token == token) {
                        // It was given up too early.
                        Some(attempt) => {
                            (attempt.lost, attempt.finished_ms, attempt.error) =
                                (false, None, None);
                            control.lost_count = control.lost_count.saturating_sub(1);
                        }
                        None => push_attempt(control, worker, token, wall_ms),
                    }
                    control.progress = Progress::Running { worker, token };
                });
                let after_beat = Some(self.beats.sequence());
                let running = Running {
                    job,
                    step,
                    phase,
                    name,
                    key,
                    worker,
                    after_beat,
                    claimed: true,
                    missed: false,
                    deadline: None,
                };
                self.add_running(pipeline, token, running);
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
            control.attempts.pop();
            control.progress = Progress::Waiting { not_before_ms: 0 };
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

    pub(super) fn control(&self, pipeline: PipelineId, job: JobId, step: u16) -> Option<&Control> {
        self.groups.get(&pipeline)?.jobs.get(&job)?.record.controls.get(&step)
    }

    /// Writes the next control value of a phase, in this node's term. Gives back its token.
    pub(super) fn update_control(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        change: impl FnOnce(&mut Control),
    ) -> Option<Token> {
        let group = self.groups.get_mut(&pipeline)?;
        let reign = group.reign()?;
        let (term, sequence) = (reign.term, reign.next_sequence());
        let (strict, written_ms) = (self.is_strict(pipeline), self.wall_ms());
        let group = self.groups.get_mut(&pipeline)?;
        let record = &mut group.jobs.get_mut(&job)?.record;
        let control = record.controls.entry(step).or_insert_with(|| Control {
            generation: record.spec.as_ref().map_or(0, |spec| spec.generation),
            term,
            sequence,
            strict,
            progress: Progress::Waiting { not_before_ms: 0 },
            attempt_count: 0,
            lost_count: 0,
            late_count: 0,
            items: 0,
            written_ms,
            since_ms: 0,
            note: None,
            attempts: Vec::new(),
        });
        let before = cfg!(debug_assertions).then(|| control.clone());
        let was_dead = control.progress == Progress::Dead;
        (control.term, control.sequence, control.strict) = (term, sequence, strict);
        control.written_ms = written_ms;
        change(control);
        debug_assert!(before.is_none_or(|before| before <= *control), "a local step moves up");
        if control.progress == Progress::Dead && !was_dead {
            self.failed.insert((pipeline, job));
        }
        self.touch(pipeline, job, FIRST_CONTROL + step, true);
        Some(Token { term, sequence })
    }

    /// A worker says how an attempt ended.
    pub(super) fn on_completed(
        &mut self,
        from: NodeId,
        completion: Completion,
    ) -> Result<(), ReadError> {
        let Completion { token, pipeline, job, step, outcome, items } = completion;
        if !self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator()) {
            return Ok(());
        }
        self.remove_running(pipeline, token);
        // Without the job nothing can be said of it: the worker keeps the outcome and asks again.
        if !self.load_job(pipeline, job)? {
            let settled = self.groups.get(&pipeline).is_some_and(|group| self.is_settled(group));
            if settled && self.has_heard_all() {
                // Nobody has it any more: it was dropped with its pipeline, or is lost.
                self.hold_until_durable(pipeline, Held::Completed { worker: from, token });
            }
            return Ok(());
        }
        if self.is_beyond(pipeline, job, step) {
            // No phase of the job: nothing that a worker of this cluster was given.
            return Ok(());
        }
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        if entry.is_some_and(|entry| entry.record.is_reaped()) {
            self.hold_until_durable(pipeline, Held::Completed { worker: from, token });
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
                recorded = self.record_end(pipeline, (job, step), token, outcome, items);
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
                    recorded = self.record_end(pipeline, (job, step), token, outcome, items);
                } else if !matches!(outcome, Outcome::Succeeded(_)) {
                    self.note_late_end(pipeline, job, step, token, outcome);
                } else {
                    if let Some(Progress::Running { worker, token: current }) = other {
                        self.remove_running(pipeline, current);
                        self.cancel_at(worker, current);
                    }
                    recorded = self.record_end(pipeline, (job, step), token, outcome, items);
                }
            }
        }
        self.refresh(pipeline, job);
        if recorded && self.has(Mutant::CompletionBeforeSync) && from != self.me() {
            self.send(from, Message::CompletionAck(token));
        } else if recorded {
            self.hold_until_durable(pipeline, Held::Completed { worker: from, token });
        }
        self.forget_if_settled(pipeline, job);
        Ok(())
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
            // How long a phase waits counts from when that was decided.
            if !control.is_terminal() {
                control.written_ms = written_ms;
            }
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
        items: u32,
    ) -> bool {
        let wall_ms = self.wall_ms();
        let limit = self.config.limits.result_bytes;
        let job_limit = self.config.limits.job_results_bytes;
        let so_far = self.result_bytes(pipeline, job);
        let outcome = match outcome {
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
        let chance = self.random_u64();
        self.update_control(pipeline, job, step, |control| match outcome {
            Outcome::Succeeded(result) => {
                end_attempt(control, token, wall_ms, None, false);
                control.progress = Progress::Succeeded { token, result };
                control.items = items;
            }
            Outcome::Failed { error, retry, after } => {
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

/// Notes that an attempt begins.
pub(super) fn push_attempt(control: &mut Control, worker: NodeId, token: Token, wall_ms: u64) {
    if control.attempts.len() == MAX_ATTEMPTS_KEPT {
        control.attempts.remove(0);
    }
    control.attempt_count = control.attempt_count.saturating_add(1);
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
