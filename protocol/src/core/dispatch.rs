//! Gives ready phases to workers, within the windows that these opened.
//!
//! The queue lives in memory alone: it is derived from the records, and an entry that does not hold
//! any more is dropped when its turn comes. Of several workers the least loaded is next; of several
//! pipelines each in turn.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    id::{JobId, NodeId, PipelineId, Token},
    message::{Assignment, Gathered, Message, TraceOf},
    mutant::Mutant,
    name::Name,
    pipeline::{PhaseDef, PhaseInputMode, ancestors, gives_items},
    record::{Control, JobRecord, Progress},
    requirement::{Requirement, meets_all},
};

use super::{
    Core,
    attempts::push_attempt,
    collect::Collected,
    commit::Held,
    group::{Role, Running},
    ready::{Entry, QueueName, ReadyQueue, value_at},
    timer::Timer,
};

/// How many jobs of one queue are looked at, most of them in vain, before anybody else is heard.
const LOOKED_AT_ONCE: usize = 1000;

/// What a worker lets this node run there.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    phases: BTreeMap<Name, Slots>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slots {
    /// How many attempts at once.
    window: u32,
    /// How many there are.
    taken: u32,
    /// When one was given last, as a count of all.
    last: u64,
}

/// Whether all that a phase comes after have succeeded, as far as is known here.
///
/// The phases right before it do not suffice: an attempt that another coordinator assigned may have
/// ended here, while the ends that it built on are known only there.
pub(super) fn is_open(record: &JobRecord, phases: &[PhaseDef], step: usize) -> bool {
    let succeeded = |before: usize| {
        let control = record.controls.get(&(before as u16));
        control.is_some_and(|control| matches!(control.progress, Progress::Succeeded { .. }))
    };
    let mut at = step;
    loop {
        match phases[at].after[..] {
            [] => return true,
            [before] if succeeded(before.into()) => at = before.into(),
            [_] => return false,
            _ => return ancestors(phases, at).into_iter().all(succeeded),
        }
    }
}

impl Core {
    /// A worker opens or narrows its window.
    pub(super) fn on_grant(&mut self, worker: NodeId, windows: Vec<(Name, u32)>) {
        let mut taken: BTreeMap<Name, u32> = BTreeMap::new();
        for group in self.groups.values_mut() {
            let Some(reign) = group.reign() else { continue };
            for running in reign.running.values().filter(|running| running.worker == worker) {
                *taken.entry(running.phase.clone()).or_default() += 1;
            }
        }
        let last = |phase: &Name| {
            self.windows
                .get(&worker)
                .and_then(|known| known.phases.get(phase))
                .map_or(0, |it| it.last)
        };
        let phases = windows
            .into_iter()
            .map(|(phase, window)| {
                let (taken, last) = (taken.remove(&phase).unwrap_or(0), last(&phase));
                (phase, Slots { window, taken, last })
            })
            .collect();
        self.windows.insert(worker, Window { phases });
    }

    /// Fills the windows with what is ready.
    pub(super) fn dispatch(&mut self) {
        let mut wanted: BTreeMap<Name, VecDeque<(PipelineId, Name)>> = BTreeMap::new();
        for group in self.groups.values() {
            let Role::Coordinator(reign) = &group.role else { continue };
            if reign.ready.is_empty() || !self.may_act(group.id) {
                continue;
            }
            let Some(entry) = self.catalog.get(&group.id) else { continue };
            for ((phase, step), queue) in &reign.ready {
                if !queue.is_empty() && entry.gives_out(step) {
                    wanted.entry(phase.clone()).or_default().push_back((group.id, step.clone()));
                }
            }
        }
        for (phase, mut queues) in wanted {
            let first = self.assigned as usize % queues.len();
            queues.rotate_left(first);
            self.dispatch_phase(&phase, queues);
        }
    }

    fn dispatch_phase(&mut self, phase: &Name, mut queues: VecDeque<(PipelineId, Name)>) {
        while let Some((pipeline, step)) = queues.pop_front() {
            if !self.has_slot(phase) {
                return;
            }
            let requires = self.catalog.get(&pipeline).map(|entry| entry.requires(&step).to_vec());
            let requires = requires.unwrap_or_default();
            if !requires.is_empty() && self.least_loaded(phase, &requires, [None; 2]).is_none() {
                continue;
            }
            let name = (phase.clone(), step);
            if let Some((entry, key)) = self.next_ready(pipeline, &name) {
                let near = self.near(pipeline, entry.job, entry.step);
                let Some(worker) = self.least_loaded(phase, &requires, near) else { return };
                self.assign(pipeline, entry.job, entry.step, (&name, key), worker);
                queues.push_back((pipeline, name.1));
            }
        }
    }

    /// Who gets a phase of those that are equally loaded: whoever ran the phase before, and so may have
    /// what that left; then this node, which nothing has to be sent to, unless it has just tried.
    fn near(&self, pipeline: PipelineId, job: JobId, step: u16) -> [Option<NodeId>; 2] {
        let record = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let Some(record) = record.map(|entry| &entry.record) else { return [None; 2] };
        let last = |step: u16| Some(record.controls.get(&step)?.attempts.last()?.worker);
        let phases = self.phases_of(pipeline, record);
        let before = phases.and_then(|phases| phases.get(usize::from(step))?.after.last().copied());
        let me = Some(self.me()).filter(|me| last(step) != Some(*me));
        [before.and_then(last), me]
    }

    /// Whether any worker has a slot for a phase.
    fn has_slot(&self, phase: &Name) -> bool {
        self.windows.iter().any(|(worker, window)| {
            window.phases.get(phase).is_some_and(|slots| {
                slots.taken < slots.window
                    && self.is_reachable(*worker)
                    && self.is_trusted(*worker, slots.taken)
            })
        })
    }

    /// Of the workers that have what is required, the one with the smallest share of its window taken; of
    /// several, the first that is near; of others, who waited longest.
    fn least_loaded(
        &self,
        phase: &Name,
        requires: &[Requirement],
        near: [Option<NodeId>; 2],
    ) -> Option<NodeId> {
        let meets = |worker: &NodeId| {
            requires.is_empty()
                || self.labels_of(*worker).is_some_and(|labels| meets_all(requires, labels))
        };
        self.windows
            .iter()
            .filter_map(|(worker, window)| Some((*worker, *window.phases.get(phase)?)))
            .filter(|(worker, slots)| slots.taken < slots.window && self.is_reachable(*worker))
            .filter(|(worker, slots)| meets(worker) && self.is_trusted(*worker, slots.taken))
            .min_by_key(|(worker, slots)| {
                let share = u64::from(slots.taken) * 1_000_000 / u64::from(slots.window);
                let far = near.iter().position(|it| *it == Some(*worker)).unwrap_or(near.len());
                (share, far, slots.last)
            })
            .map(|(worker, _)| worker)
    }

    /// The next entry of a queue that still holds and may begin; where attempts are limited by key,
    /// with its key.
    fn next_ready(
        &mut self,
        pipeline: PipelineId,
        name: &QueueName,
    ) -> Option<(Entry, Option<Arc<str>>)> {
        let now = self.now;
        let phase = self.current(pipeline).and_then(|it| it.named(&name.1));
        let phase = phase.filter(|_| !self.has(Mutant::LimitsIgnored));
        let (rate, limit) = phase.map_or((None, None), |phase| (phase.rate, phase.limit.clone()));
        for at in 1..=LOOKED_AT_ONCE {
            self.note_crowded(at);
            let reign = self.groups.get_mut(&pipeline)?.reign()?;
            let queue = reign.ready.get_mut(name)?;
            if let Some(until) = queue.held_back(now, rate) {
                self.arm_at(until, Timer::Delayed(pipeline));
                return None;
            }
            let Some(entry) = queue.pop() else {
                if queue.is_idle() {
                    reign.ready.remove(name);
                }
                return None;
            };
            let job = entry.job;
            let woken = self.wake(pipeline, job);
            let ready = self.is_ready(pipeline, job, entry.step);
            if !ready || !self.is_collected(pipeline, job, entry.step) {
                if woken {
                    self.forget_if_settled(pipeline, job);
                }
                let reign = self.groups.get_mut(&pipeline)?.reign()?;
                reign.ready.get_mut(name)?.skip(&entry);
                if self.is_undo_not_due(pipeline, job) {
                    // Nothing that happens to the job itself would bring it back here.
                    self.look_once_more(pipeline, job, entry.step);
                }
                continue;
            }
            let key = limit.as_ref().and_then(|limit| self.key_of(pipeline, job, &limit.key));
            let queue = self.groups.get_mut(&pipeline)?.reign()?.ready.get_mut(name)?;
            match (key, &limit) {
                (Some(key), Some(limit)) if queue.is_full(&key, limit) => queue.park(key, entry),
                (key, _) => return Some((entry, key)),
            }
            if woken {
                self.forget_if_settled(pipeline, job);
            }
        }
        // Others are to be heard meanwhile, and beats to be sent.
        self.arm_at(now, Timer::Delayed(pipeline));
        None
    }

    /// The pipeline was changed, and with it perhaps what holds its jobs back: they are looked at
    /// anew, and what runs counts under the keys that hold now.
    pub(super) fn release_held_back(&mut self, pipeline: PipelineId) {
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return;
        };
        reign.ready.values_mut().for_each(ReadyQueue::release);
        let running: Vec<(Token, JobId, Name)> =
            reign.running.iter().map(|(token, it)| (*token, it.job, it.name.clone())).collect();
        for (token, job, step) in running {
            let key = self.limit_key(pipeline, job, &step);
            let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
            let Some(reign) = reign else { return };
            let Some(running) = reign.running.get_mut(&token) else { continue };
            running.key = key;
            if let Some(key) = &running.key {
                let name = (running.phase.clone(), step);
                reign.ready.entry(name).or_default().count(key);
            }
        }
    }

    /// What a job's instructions have at a place.
    pub(super) fn key_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        pointer: &str,
    ) -> Option<Arc<str>> {
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        value_at(&record.spec.as_ref()?.instructions, pointer)
    }

    /// Whether a phase may be given out by now.
    pub(super) fn is_ready(&self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let holds = || {
            let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
            let phases = self.phases_of(pipeline, record)?;
            phases.get(usize::from(step))?;
            let waits = match record.controls.get(&step).map(|control| &control.progress) {
                None => true,
                Some(Progress::Waiting { not_before_ms }) => {
                    // Entries come here after their backoff; those from an earlier change do not.
                    *not_before_ms <= self.wall_ms() || !self.is_delayed(pipeline, job, step)
                }
                Some(_) => false,
            };
            let turn = self.may_run(pipeline, record);
            Some(waits && turn && !record.is_over() && is_open(record, phases, usize::from(step)))
        };
        holds().unwrap_or(false)
    }

    fn is_delayed(&self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let Some(Role::Coordinator(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return false;
        };
        reign.delayed.iter().any(|delayed| (delayed.job, delayed.step) == (job, step))
    }

    /// Writes down that a worker has the phase; it is told once that is durable.
    fn assign(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        (name, key): (&QueueName, Option<Arc<str>>),
        worker: NodeId,
    ) {
        let wall_ms = self.wall_ms();
        let Some(term) = self.elected_term(pipeline) else {
            return;
        };
        match self.has_lost_what_it_undoes(pipeline, job) {
            Ok(false) => {}
            // Its phases are left out.
            Ok(true) => return self.refresh(pipeline, job),
            Err(error) => {
                self.broken = Some(error);
                return;
            }
        }
        let Collected { given, of } = self.take_collected(pipeline, job, step);
        let mut token = Token { term, sequence: 0 };
        self.update_control(pipeline, job, step, |control| {
            token.sequence = control.sequence;
            push_attempt(control, worker, token, wall_ms);
            if control.since_ms == 0 {
                control.since_ms = wall_ms;
            }
            control.progress = Progress::Running { worker, token };
        });
        let Some(assignment) = self.assignment(pipeline, job, step, token, given) else {
            return;
        };
        let overdue_at = self.overdue_at(assignment.timeout);
        let running = Running::new((job, step), name.clone(), key, worker);
        let running = Running { overdue_at, gathered: of, ..running };
        self.add_running(pipeline, token, running);
        self.note_attempt(pipeline, (job, step), worker);
        let assignment = Box::new(assignment);
        if self.has(Mutant::AssignBeforeDurable) {
            return self.hand_over(worker, assignment);
        }
        self.hold_until_durable(pipeline, Held::Assign { to: worker, assignment });
    }

    /// What a worker needs to know.
    fn assignment(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        token: Token,
        gathered: Vec<Gathered>,
    ) -> Option<Assignment> {
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        let spec = record.spec.as_ref()?;
        let definition = self.definition(pipeline, spec.revision)?;
        let phases = definition.phases_of(spec)?;
        let phase = phases.get(usize::from(step))?;
        let control = record.controls.get(&step)?;
        let replaces = phase.input == PhaseInputMode::Replace && !phase.after.is_empty();
        let (instructions, before) = match replaces {
            true => {
                (Bytes::from_static(b"{}"), phase.after.iter().map(|at| (*at).into()).collect())
            }
            false => (spec.instructions.clone(), ancestors(phases, step.into())),
        };
        let named = phase.input == PhaseInputMode::Named || phase.handling.input.is_some();
        let mut names: Vec<Name> = before.iter().map(|at| phases[*at].name.clone()).collect();
        let (mut instructions, mut results) = (instructions, results(record, &before));
        if spec.compensates.is_some() {
            let (of, first, given) = self.to_undo(pipeline, spec)?;
            instructions = of;
            names.splice(0..0, first);
            results.splice(0..0, given);
        }
        Some(Assignment {
            token,
            pipeline,
            name: definition.name.clone(),
            job,
            step,
            step_name: phase.name.clone(),
            phase: phase.phase.clone(),
            number: control.attempt_count,
            timeout: self.time_left(control, phase),
            key: spec.key.clone(),
            instructions,
            results,
            names: named.then_some(names),
            gathered,
            gives_items: gives_items(phases, step),
            handling: phase.handling.clone(),
            sessions: super::session::left_before(record, phases, step),
            trace: record.trace(),
        })
    }

    /// How long an attempt that runs may take, from now on at most.
    pub(super) fn timeout_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Option<Duration> {
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        let phase = self.phases_of(pipeline, record)?.get(usize::from(step))?;
        self.time_left(record.controls.get(&step)?, phase)
    }

    /// How long an attempt may take: no longer than the phase has left.
    fn time_left(&self, control: &Control, phase: &PhaseDef) -> Option<Duration> {
        let spent = Duration::from_millis(self.wall_ms().saturating_sub(control.since_ms));
        let left = phase.total_timeout.map(|total| total.saturating_sub(spent));
        phase.timeout.into_iter().chain(left).min()
    }

    /// The attempt is durable: its worker may begin, unless things have changed since.
    pub(super) fn hand_over(&mut self, to: NodeId, assignment: Box<Assignment>) {
        let sequence = self.beats.sequence();
        let reign = self.groups.get_mut(&assignment.pipeline).and_then(|group| group.reign());
        let Some(running) = reign.and_then(|reign| reign.running.get_mut(&assignment.token)) else {
            return;
        };
        running.after_beat = Some(sequence);
        let Assignment { pipeline, job, step, token, .. } = *assignment;
        if !self.may_act(pipeline) || !self.is_wanted(pipeline, job, step, token) {
            // Its lease ran out while this became durable, and another may have taken over; or it was
            // cancelled; or what it comes after is to be done again, or other items than those it got count.
            return self.give_back(assignment.pipeline, assignment.token);
        }
        if to == self.me() {
            self.on_assign(to, *assignment);
        } else {
            if let Some(trace) = assignment.trace {
                self.send(to, Message::Trace { of: TraceOf::Attempt(token), trace });
            }
            self.send(to, Message::assign(assignment));
        }
    }

    /// Whether an attempt is still the one that its phase waits for, all before it succeeded, and the items
    /// are those that it got what they gave of.
    pub(super) fn is_wanted(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        token: Token,
    ) -> bool {
        let open = || {
            let group = self.groups.get(&pipeline)?;
            let Role::Coordinator(reign) = &group.role else { return None };
            let gathered = &reign.running.get(&token)?.gathered;
            let record = &group.jobs.get(&job)?.record;
            let phases = self.phases_of(pipeline, record)?;
            let progress = &record.controls.get(&step)?.progress;
            let current = matches!(progress, Progress::Running { token: now, .. } if *now == token);
            let turn = self.may_run(pipeline, record);
            let open = current && turn && is_open(record, phases, step.into());
            Some(open && self.still_count(pipeline, job, gathered))
        };
        open().unwrap_or(false)
    }

    /// A worker has no room for an attempt after all.
    pub(super) fn on_declined(&mut self, from: NodeId, token: Token) {
        let pipelines: Vec<PipelineId> = self.groups.keys().copied().collect();
        for pipeline in pipelines {
            let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
                continue;
            };
            let Some(running) = reign.running.get(&token).filter(|it| it.worker == from) else {
                continue;
            };
            // Nothing more for it until it opens its window again.
            let phase = running.phase.clone();
            if let Some(slots) =
                self.windows.get_mut(&from).and_then(|window| window.phases.get_mut(&phase))
            {
                slots.window = 0;
            }
            self.give_back(pipeline, token);
        }
    }

    pub(super) fn add_running(&mut self, pipeline: PipelineId, token: Token, running: Running) {
        self.assigned += 1;
        let window = self.windows.get_mut(&running.worker);
        if let Some(slots) = window.and_then(|window| window.phases.get_mut(&running.phase)) {
            slots.taken += 1;
            slots.last = self.assigned;
        }
        let current = self.current(pipeline);
        let phase = current.and_then(|it| it.named(&running.name));
        let rate = phase.and_then(|phase| phase.rate);
        let now = self.now;
        if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
            if rate.is_some() || running.key.is_some() {
                let name = (running.phase.clone(), running.name.clone());
                let what = (running.job, running.step);
                let queue = reign.ready.entry(name).or_default();
                queue.begin(what, now, rate, running.key.as_ref());
            }
            reign.running.insert(token, running);
        }
    }

    pub(super) fn remove_running(&mut self, pipeline: PipelineId, token: Token) -> Option<Running> {
        let reign = self.groups.get_mut(&pipeline)?.reign()?;
        let running = reign.running.remove(&token)?;
        if let Some(key) = &running.key {
            let name = (running.phase.clone(), running.name.clone());
            reign.ready.entry(name).or_default().end(key);
        }
        self.free_slot(&running);
        Some(running)
    }

    fn free_slot(&mut self, running: &Running) {
        let window = self.windows.get_mut(&running.worker);
        if let Some(slots) = window.and_then(|window| window.phases.get_mut(&running.phase)) {
            slots.taken = slots.taken.saturating_sub(1);
        }
    }

    /// This node does not coordinate the pipeline any more: its attempts fill no windows here.
    pub(super) fn release_windows(&mut self, _pipeline: PipelineId) {
        let windows = std::mem::take(&mut self.windows);
        for (worker, window) in windows {
            let open = window.phases.into_iter().map(|(phase, slots)| (phase, slots.window));
            self.on_grant(worker, open.collect());
        }
    }

    /// Phases for which work waits here that a worker could do.
    pub(super) fn demand_on(&self, worker: NodeId) -> Vec<Name> {
        let mut demand = BTreeSet::new();
        let Some(labels) = self.labels_of(worker) else { return Vec::new() };
        for group in self.groups.values() {
            if let Role::Coordinator(reign) = &group.role {
                let entry = self.catalog.get(&group.id);
                let given = |step: &Name| {
                    entry.is_some_and(|entry| {
                        entry.gives_out(step) && meets_all(entry.requires(step), labels)
                    })
                };
                let waiting = reign.ready.iter();
                let waiting = waiting.filter(|((_, step), it)| !it.is_empty() && given(step));
                demand.extend(waiting.map(|((phase, _), _)| phase.clone()));
            }
        }
        demand.into_iter().collect()
    }
}

/// What the phases gave, in order.
pub(super) fn results(record: &JobRecord, phases: &BTreeSet<usize>) -> Vec<bytes::Bytes> {
    let result = |step: &usize| match &record.controls.get(&(*step as u16))?.progress {
        Progress::Succeeded { result, .. } => Some(result.clone()),
        _ => None,
    };
    phases.iter().filter_map(result).collect()
}
