//! The worker's side: attempts that run here, and ends that no coordinator has on disk yet.
//!
//! An attempt goes on whatever happens to its coordinator; its end is kept and offered to whoever
//! coordinates, until one says that it is durable.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::{
    id::{NodeId, PipelineId, Token},
    io::{Attempt, Effect, Outcome},
    message::{Assignment, Completion, Held, Items, Message},
    mutant::Mutant,
    name::Name,
    store::ReadError,
    trace::TraceParent,
};

use super::{Core, said::Tails};

/// No more attempts are taken while this many ends wait for a coordinator.
const MAX_UNACKNOWLEDGED: usize = 10_000;

/// What runs here.
#[derive(Clone, Debug)]
pub(super) struct Worker {
    phases: BTreeMap<Name, Host>,
    attempts: BTreeMap<Token, Running>,
    /// Ends that are not acknowledged.
    ended: BTreeMap<Token, Completion>,
    /// What coordinators say they have work for.
    demand: BTreeMap<NodeId, Vec<Name>>,
    /// The windows that each was told last.
    told: BTreeMap<NodeId, Vec<(Name, u32)>>,
    /// The last attempt of a pipeline that each gave: one that is no later is a repetition.
    given: BTreeMap<(NodeId, PipelineId), Token>,
    /// How many attempts began.
    began: u64,
    /// What attempts said.
    pub(super) tails: Tails,
    /// The trace of the attempt that is to come next, and from whom.
    traced: Option<(NodeId, Token, TraceParent)>,
}

#[derive(Clone, Debug, Default)]
struct Host {
    slots: u32,
    busy: u32,
    /// Attempts that wait for a slot.
    queue: VecDeque<Token>,
    /// When one began last, as a count of all.
    last: u64,
}

#[derive(Clone, Debug)]
struct Running {
    held: Held,
    /// Which attempt of its phase, from 1.
    number: u32,
    phase: Name,
    /// What is to be run, until a slot is free.
    waiting: Option<Box<Attempt>>,
    /// How many of its items are durable.
    items: u32,
    /// Those that are on their way.
    given: Option<Bytes>,
    /// What it leaves in its session, so far.
    session: Option<Bytes>,
}

impl Worker {
    pub(super) fn new(phases: &[(Name, u32)]) -> Self {
        let host = |slots| Host { slots, ..Host::default() };
        Self {
            phases: phases.iter().map(|(phase, slots)| (phase.clone(), host(*slots))).collect(),
            attempts: BTreeMap::new(),
            ended: BTreeMap::new(),
            demand: BTreeMap::new(),
            told: BTreeMap::new(),
            given: BTreeMap::new(),
            began: 0,
            tails: Tails::default(),
            traced: None,
        }
    }

    /// Each phase with its slots, and how many are taken.
    pub(super) fn phases(&self) -> impl Iterator<Item = (&Name, u32, u32)> {
        self.offered().map(|(phase, host)| (phase, host.slots, host.busy))
    }

    /// Without those that only end what runs.
    fn offered(&self) -> impl Iterator<Item = (&Name, &Host)> {
        self.phases.iter().filter(|(_, host)| host.slots > 0)
    }

    /// Of the phases of one name, in whichever namespaces, the one of which an attempt may begin.
    ///
    /// They share their slots, the most that one of them has: whoever began longest ago is next, so
    /// that what waits in one namespace holds up no other.
    fn next_of(&self, local: &str) -> Option<Name> {
        // Names are taken apart only where something waits.
        if self.phases.values().all(|host| host.queue.is_empty()) {
            return None;
        }
        let (mut slots, mut busy, mut next) = (0, 0, None::<(&Name, &Host)>);
        for (phase, host) in self.phases.iter().filter(|(phase, _)| phase.local() == local) {
            (slots, busy) = (host.slots.max(slots), busy + host.busy);
            let may = host.busy < host.slots && !host.queue.is_empty();
            if may && next.is_none_or(|(_, earlier)| host.last < earlier.last) {
                next = Some((phase, host));
            }
        }
        next.filter(|_| busy < slots).map(|(phase, _)| phase.clone())
    }

    /// An attempt that has not ended, and its number.
    pub(super) fn attempt(&self, token: Token) -> Option<(Held, u32)> {
        self.attempts.get(&token).map(|running| (running.held, running.number))
    }

    /// What was said by attempts that are no more is forgotten with them.
    fn forget_tails(&mut self) {
        let (attempts, ended) = (&self.attempts, &self.ended);
        self.tails.retain(|token| attempts.contains_key(token) || ended.contains_key(token));
    }

    /// Whether nothing runs, waits or is unacknowledged.
    pub(super) fn is_empty(&self) -> bool {
        self.attempts.is_empty() && self.ended.is_empty()
    }

    /// A coordinator says of which trace the attempt is a part that it gives next.
    pub(super) fn expect_traced(&mut self, from: NodeId, token: Token, trace: TraceParent) {
        self.traced = Some((from, token, trace));
    }

    /// The trace that was told of an attempt.
    fn trace_of(&mut self, from: NodeId, token: Token) -> Option<TraceParent> {
        let told = self.traced.take_if(|(by, of, _)| (*by, *of) == (from, token));
        told.map(|(.., trace)| trace)
    }

    /// All attempts of some pipelines: running, waiting or not acknowledged.
    pub(super) fn held(&self, of: impl Fn(PipelineId) -> bool) -> Vec<Held> {
        let running = self.attempts.values().map(|running| running.held);
        let ended = self.ended.values().map(|end| Held {
            pipeline: end.pipeline,
            job: end.job,
            step: end.step,
            token: end.token,
        });
        running.chain(ended).filter(|held| of(held.pipeline)).collect()
    }
}

impl Core {
    /// A coordinator gives an attempt.
    pub(super) fn on_assign(&mut self, from: NodeId, assignment: Assignment) {
        let token = assignment.token;
        let trace = assignment.trace.or_else(|| self.worker.trace_of(from, token));
        if let Some(end) = self.worker.ended.get(&token) {
            let end = end.clone();
            return self.tell_end(end);
        }
        if self.worker.attempts.contains_key(&token) {
            return;
        }
        // A coordinator gives tokens in their order. One that ended, and was forgotten, must not
        // begin again because its message came twice.
        let given = self.worker.given.insert((from, assignment.pipeline), token);
        let repeats = !self.has(Mutant::AssignTwice);
        if let Some(later) = given.filter(|given| repeats && *given >= token) {
            self.worker.given.insert((from, assignment.pipeline), later);
            return self.decline(from, token);
        }
        let group = self.groups.get(&assignment.pipeline);
        let least = group.map(|group| self.least_term(assignment.pipeline, group));
        if let Some(term) = least.filter(|least| *least > token.term) {
            // Another coordinates by now, and may have given the phase to somebody.
            let pipeline = assignment.pipeline;
            if from != self.me() {
                self.send(from, Message::Stale { pipeline, term });
            }
            return self.decline(from, token);
        }
        let host = self.worker.phases.get_mut(&assignment.phase);
        let Some(host) = host.filter(|host| host.slots > 0) else {
            return self.decline(from, token);
        };
        // Several coordinators may fill their windows at once; more than that is a fault.
        let room = 4 * host.slots as usize + 16;
        if self.draining || host.queue.len() >= room {
            return self.decline(from, token);
        }
        let Assignment { pipeline, job, step, number, .. } = assignment;
        let phase = assignment.phase.clone();
        let attempt = Box::new(Attempt {
            token,
            job,
            pipeline: assignment.name,
            step: assignment.step_name,
            phase: assignment.phase,
            number: assignment.number,
            timeout: assignment.timeout,
            key: assignment.key,
            instructions: assignment.instructions,
            results: assignment.results,
            names: assignment.names,
            gathered: assignment.gathered,
            gives_items: assignment.gives_items,
            handling: assignment.handling,
            sessions: assignment.sessions,
            trace,
        });
        host.queue.push_back(token);
        let held = Held { pipeline, job, step, token };
        let waiting = Some(attempt);
        let phase_of = phase.clone();
        let (items, given, session) = (0, None, None);
        let running = Running { held, number, phase: phase_of, waiting, items, given, session };
        self.worker.attempts.insert(token, running);
        self.start_queued(&phase);
    }

    fn decline(&mut self, coordinator: NodeId, token: Token) {
        if coordinator == self.me() {
            self.on_declined(coordinator, token);
        } else {
            self.send(coordinator, Message::Declined(token));
        }
    }

    fn start_queued(&mut self, phase: &Name) {
        while let Some(next) = self.worker.next_of(phase.local()) {
            let Some(host) = self.worker.phases.get_mut(&next) else { return };
            let Some(token) = host.queue.pop_front() else { return };
            let Some(held) = self.worker.attempts.get(&token).map(|running| running.held) else {
                continue;
            };
            match self.is_given_in_vain(held) {
                Ok(false) => {}
                Ok(true) => {
                    self.worker_cancel(token);
                    self.give_back(held.pipeline, token);
                    self.forget_if_settled(held.pipeline, held.job);
                    continue;
                }
                Err(error) => {
                    self.broken = Some(error);
                    return;
                }
            }
            let running = self.worker.attempts.get_mut(&token);
            let attempt = running.and_then(|running| running.waiting.take());
            if let Some((attempt, host)) = attempt.zip(self.worker.phases.get_mut(&next)) {
                host.busy += 1;
                self.worker.began += 1;
                host.last = self.worker.began;
                self.effects.push_back(Effect::StartAttempt(attempt));
            }
        }
    }

    /// Whether an attempt that this node coordinates was given in vain: while the attempt waited for a
    /// slot, its job may have come to its end elsewhere, what it comes after may have to be done again,
    /// or this node's lease may have run out.
    fn is_given_in_vain(&mut self, held: Held) -> Result<bool, ReadError> {
        let Held { pipeline, job, step, token } = held;
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        if !reign.is_some_and(|reign| reign.running.contains_key(&token)) {
            return Ok(false);
        }
        // A job that is over may be on disk alone, and may yet wait for this end.
        self.load_job(pipeline, job)?;
        Ok(!self.may_act(pipeline) || !self.is_wanted(pipeline, job, step, token))
    }

    /// An attempt has ended here.
    pub(super) fn on_attempt_finished(
        &mut self,
        token: Token,
        outcome: Outcome,
    ) -> Result<(), ReadError> {
        // What it said comes before its end.
        self.tell_said(token);
        let Some(running) = self.worker.attempts.remove(&token) else { return Ok(()) };
        if let Some(host) = self.worker.phases.get_mut(&running.phase) {
            host.busy -= 1;
            if host.slots == 0 && host.busy == 0 {
                self.worker.phases.remove(&running.phase);
            }
        }
        self.start_queued(&running.phase);
        let Held { pipeline, job, step, token } = running.held;
        let counts = matches!(outcome, Outcome::Succeeded(_)) || self.has(Mutant::SessionKept);
        let session = running.session.filter(|_| counts);
        let items = running.items;
        let end = Completion { token, pipeline, job, step, outcome, items, session };
        self.worker.ended.insert(token, end.clone());
        if self.worker.ended.len() == MAX_UNACKNOWLEDGED {
            self.grant_to_coordinators();
        }
        if self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator()) {
            return self.on_completed(self.me(), end);
        }
        self.tell_end(end);
        Ok(())
    }

    fn tell_end(&mut self, end: Completion) {
        let leader = self.groups.get(&end.pipeline).and_then(|group| group.leader);
        if let Some(leader) = leader.filter(|leader| leader.node != self.me()) {
            self.send(leader.node, Message::completed(end));
        }
    }

    /// An attempt that runs here gives items.
    pub(super) fn on_items_given(&mut self, token: Token, lines: Bytes) -> Result<(), ReadError> {
        let Some(running) = self.worker.attempts.get_mut(&token) else { return Ok(()) };
        running.given = Some(lines);
        self.tell_items(token)
    }

    /// An attempt that runs here leaves something in its session.
    pub(super) fn on_session_left(&mut self, token: Token, entries: Bytes) {
        if let Some(running) = self.worker.attempts.get_mut(&token) {
            running.session = Some(entries);
        }
    }

    fn tell_items(&mut self, token: Token) -> Result<(), ReadError> {
        let Some(running) = self.worker.attempts.get(&token) else { return Ok(()) };
        let Held { pipeline, job, step, token } = running.held;
        let Some(lines) = running.given.clone() else { return Ok(()) };
        let items = Items { token, pipeline, job, step, first: running.items, lines };
        if self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator()) {
            return self.on_items(self.me(), items);
        }
        let leader = self.groups.get(&pipeline).and_then(|group| group.leader);
        if let Some(leader) = leader.filter(|leader| leader.node != self.me()) {
            self.send(leader.node, Message::Items(items));
        }
        Ok(())
    }

    /// Items are durable: the attempt may give more, or end.
    pub(super) fn on_items_taken(&mut self, token: Token, count: u32) {
        if let Some(running) = self.worker.attempts.get_mut(&token)
            && running.given.is_some()
            && count > running.items
        {
            (running.items, running.given) = (count, None);
            self.effects.push_back(Effect::ItemsTaken(token));
        }
    }

    /// Sends once more what attempts gave and nobody has acknowledged.
    pub(super) fn resend_items(&mut self) -> Result<(), ReadError> {
        let given = self.worker.attempts.iter().filter(|(_, running)| running.given.is_some());
        let given: Vec<Token> = given.map(|(token, _)| *token).collect();
        given.into_iter().try_for_each(|token| self.tell_items(token))
    }

    /// Offers all ends of a pipeline to its coordinator again.
    pub(super) fn resend_completions(&mut self, pipeline: PipelineId) {
        if self.has(Mutant::EndsOnce) {
            return;
        }
        let ended = self.worker.ended.values().filter(|end| end.pipeline == pipeline);
        let ended: Vec<Completion> = ended.cloned().collect();
        ended.into_iter().for_each(|end| self.tell_end(end));
    }

    /// Offers this node's own ends to itself, when it coordinates.
    pub(super) fn complete_own(&mut self) -> Result<(), ReadError> {
        let me = self.me();
        let coordinated = |pipeline: &PipelineId| {
            self.groups.get(pipeline).is_some_and(|group| group.is_coordinator())
        };
        let ended = self.worker.ended.values().filter(|end| coordinated(&end.pipeline));
        let ended: Vec<Completion> = ended.cloned().collect();
        ended.into_iter().try_for_each(|end| self.on_completed(me, end))
    }

    /// Nobody will ask for ends of pipelines that were removed.
    pub(super) fn drop_removed_ends(&mut self) {
        let catalog = &self.catalog;
        self.worker
            .ended
            .retain(|_, end| catalog.get(&end.pipeline).is_none_or(|entry| !entry.removed));
        self.worker.forget_tails();
    }

    /// An end is durable at its coordinator.
    pub(super) fn worker_forget(&mut self, token: Token) {
        let full = self.worker.ended.len() >= MAX_UNACKNOWLEDGED;
        self.worker.ended.remove(&token);
        self.worker.tails.forget(token);
        if full {
            self.grant_to_coordinators();
        }
    }

    /// Nobody wants an attempt any more.
    pub(super) fn worker_cancel(&mut self, token: Token) {
        let Some(running) = self.worker.attempts.get(&token) else { return };
        if running.waiting.is_none() {
            self.effects.push_back(Effect::CancelAttempt(token));
            return;
        }
        let phase = running.phase.clone();
        self.worker.attempts.remove(&token);
        self.worker.tails.forget(token);
        if let Some(host) = self.worker.phases.get_mut(&phase) {
            host.queue.retain(|queued| *queued != token);
        }
    }

    /// The node offers other phases than before. Attempts that run go on, whatever becomes of theirs.
    pub(super) fn on_offers(&mut self, phases: Vec<(Name, u32)>) {
        let offered: BTreeMap<Name, u32> = phases.into_iter().collect();
        let gone: Vec<Name> = self.worker.offered().map(|(phase, _)| phase.clone()).collect();
        for phase in gone.into_iter().filter(|phase| !offered.contains_key(phase)) {
            self.decline_waiting(|waits| *waits == phase);
            if let Some(host) = self.worker.phases.get_mut(&phase) {
                host.slots = 0;
                if host.busy == 0 {
                    self.worker.phases.remove(&phase);
                }
            }
        }
        for (phase, slots) in offered {
            self.worker.phases.entry(phase.clone()).or_default().slots = slots;
            self.start_queued(&phase);
        }
        self.advert_changed = true;
        self.grant_to_coordinators();
    }

    /// Gives back what has not begun, since the node is about to stop.
    pub(super) fn worker_decline_queued(&mut self) {
        self.decline_waiting(|_| true);
    }

    fn decline_waiting(&mut self, of: impl Fn(&Name) -> bool) {
        let waiting: Vec<(Token, PipelineId)> = self
            .worker
            .attempts
            .iter()
            .filter(|(_, running)| running.waiting.is_some() && of(&running.phase))
            .map(|(token, running)| (*token, running.held.pipeline))
            .collect();
        for (token, pipeline) in waiting {
            self.worker_cancel(token);
            let leader = self.groups.get(&pipeline).and_then(|group| group.leader);
            if let Some(leader) = leader {
                self.decline(leader.node, token);
            }
        }
    }

    /// What a coordinator says it has work for.
    pub(super) fn note_demand(&mut self, coordinator: NodeId, demand: Vec<Name>) {
        if demand.is_empty() {
            self.worker.demand.remove(&coordinator);
        } else {
            self.worker.demand.insert(coordinator, demand);
        }
    }

    /// A coordinator cannot be reached: what it was told it may have forgotten.
    pub(super) fn worker_lost_coordinator(&mut self, coordinator: NodeId) {
        self.worker.told.remove(&coordinator);
        // What the connection still carried is gone with it.
        self.worker.given.retain(|(from, _), _| *from != coordinator);
        self.worker.demand.remove(&coordinator);
    }

    /// The window for one coordinator: all slots, or its share when several have work, or when there is
    /// work for phases of that name in several namespaces.
    fn window_for(&self, coordinator: NodeId, phase: &Name, slots: u32) -> u32 {
        if self.draining || self.worker.ended.len() >= MAX_UNACKNOWLEDGED {
            return 0;
        }
        let reachable = self.worker.demand.iter().filter(|(node, _)| self.is_reachable(**node));
        let (mut others, mut rivals) = (0, BTreeSet::new());
        for (node, demand) in reachable {
            others += u32::from(*node != coordinator && demand.contains(phase));
            let alike = demand.iter().filter(|it| *it != phase && it.local() == phase.local());
            rivals.extend(alike.filter(|it| self.worker.phases.contains_key(it)));
        }
        (slots / (1 + rivals.len() as u32) / (1 + others)).max(1)
    }

    /// Tells each coordinator how much it may run here, where that changed.
    pub(super) fn grant_to_coordinators(&mut self) {
        if self.worker.phases.is_empty() && self.worker.told.is_empty() {
            // A node that never offered anything.
            return self.grant_to_self();
        }
        self.grant_to_self();
        let me = self.me();
        let leaders: std::collections::BTreeSet<NodeId> = self
            .groups
            .values()
            .filter_map(|group| group.leader.map(|leader| leader.node))
            .filter(|node| *node != me && self.is_reachable(*node))
            .collect();
        for leader in leaders {
            self.grant_to(leader, false);
        }
    }

    /// Tells one coordinator how much it may run here; `always` repeats what it should know.
    pub(super) fn grant_to(&mut self, coordinator: NodeId, always: bool) {
        let windows = self.windows_for(coordinator);
        if always || self.worker.told.get(&coordinator) != Some(&windows) {
            self.worker.told.insert(coordinator, windows.clone());
            self.send(coordinator, Message::Grant { windows });
        }
    }

    /// Opens this node's own window, as a worker, for itself.
    pub(super) fn grant_to_self(&mut self) {
        let me = self.me();
        let windows = self.windows_for(me);
        self.on_grant(me, windows);
    }

    fn windows_for(&self, coordinator: NodeId) -> Vec<(Name, u32)> {
        let phases = self.worker.offered();
        phases
            .map(|(phase, host)| (phase.clone(), self.window_for(coordinator, phase, host.slots)))
            .collect()
    }
}
