//! Nodes, connections, disks and clients on virtual time.
//!
//! Owns the queue of events and the order of things; how a disk, a connection or a client behaves
//! is in the modules below. All that happens is told to the [`invariants`](crate::invariants) as
//! facts.

mod clients;
mod disk;
mod faults;
mod network;
mod node;
mod upgrade;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
    time::Duration,
};

use carbonmesh_protocol::{
    core::Core,
    id::{JobId, NodeId, PipelineId, Token},
    io::{Change, Effect, Input, Outcome, PersistId, Request, RequestId},
    message::{Digest, Message},
    name::Name,
    time::Timestamp,
};

use crate::{
    Options, Report,
    invariants::{Fact, Partitions, Seen, Unfinished},
    random::Random,
};

use clients::Clients;
pub(crate) use clients::schedule;
use disk::Disk;
use faults::Fault;
use network::Network;
pub(crate) use network::newer_component;
pub(crate) use node::{Node, WALL_START_MS};

/// The one pipeline's name.
pub(crate) const PIPELINE: &str = "p";

/// How long nothing may begin in peace while something is not at its end.
const PEACE: Duration = Duration::from_secs(120);

/// How many events pass between two looks at the whole world, for each node.
const INSPECT_EVERY: u64 = 64;

pub(crate) enum Event {
    /// For a node; void if it was started again since.
    Input {
        at: usize,
        life: u64,
        input: Box<Input>,
    },
    /// A message of one session of a connection.
    Deliver {
        at: usize,
        from: usize,
        session: u64,
        arrives: Timestamp,
        message: Box<Message>,
    },
    Up {
        at: usize,
        peer: usize,
        session: u64,
    },
    Down {
        at: usize,
        peer: usize,
        session: u64,
    },
    Synced {
        at: usize,
        life: u64,
        id: PersistId,
    },
    /// A round is over: what the core wants done is done.
    Drain {
        at: usize,
        life: u64,
    },
    /// An attempt has ended, unless it was cancelled or its process is gone.
    Ended {
        at: usize,
        life: u64,
        token: Token,
        outcome: Outcome,
    },
    /// A connection over which nothing came for long.
    Silence {
        a: usize,
        b: usize,
        session: u64,
    },
    /// A node crashes, and its disk has lost what came since this copy.
    Tear {
        at: usize,
        life: u64,
        torn: Box<Disk>,
    },
    Dial,
    Restart(usize),
    /// Partitions are over.
    Heal,
    /// Links carry both ways again.
    Hear,
    /// A disk is not full any more.
    Room(usize),
    Fault(Fault),
    Backup,
    /// The one that leaves for good begins to.
    Leave,
    Gone(usize),
    Client,
    /// A client asks for a job.
    Read(JobId),
    /// A client wants a job changed.
    Change(JobId, Change),
    /// The pipeline's schedule ends.
    EndSchedule,
    /// The pipeline is split.
    Split,
    /// The next node gets another release.
    Upgrade,
    /// One that was told to stop has stopped, and its program is another.
    Replaced {
        at: usize,
        life: u64,
    },
    /// A client has waited long enough for an answer.
    Patience(RequestId),
    /// An attempt gives items, or has given all.
    Give {
        at: usize,
        life: u64,
        token: Token,
    },
}

/// What an attempt leaves in its session, if anything.
pub(crate) fn session_of(token: Token) -> String {
    format!("{{\"by\":\"{token}\"}}")
}

/// An attempt that gives items.
#[derive(Debug)]
struct Giving {
    /// How many times more.
    rounds: u32,
    given: u32,
    outcome: Outcome,
}

/// See the [module](self).
pub(crate) struct World {
    options: Options,
    random: Random,
    invariants: Partitions,
    nodes: Vec<Node>,
    by_id: BTreeMap<NodeId, usize>,
    /// When each core wants to be called.
    due: BTreeSet<(Timestamp, usize)>,
    /// Attempts at workers that have not ended.
    running: BTreeSet<Token>,
    giving: BTreeMap<Token, Giving>,
    network: Network,
    clients: Clients,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Event>,
    order: u64,
    events: u64,
    attempts: usize,
    trace: DefaultHasher,
    narrated: bool,
    peace: bool,
}

/// A name that we made ourselves.
fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn step_name(position: usize) -> String {
    format!("s{position}")
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let mut random = Random::new(options.seed ^ 0x5eed);
        let nodes = (0..options.roles.len()).map(|index| Node::new(index, &options, &mut random));
        let nodes: Vec<Node> = nodes.collect();
        let ids = nodes.iter().enumerate().map(|(at, node)| (node.config.node, at));
        Self {
            by_id: ids.collect(),
            due: BTreeSet::new(),
            running: BTreeSet::new(),
            giving: BTreeMap::new(),
            nodes,
            random,
            invariants: Partitions::new(&options),
            network: Network::default(),
            clients: Clients::default(),
            now: Timestamp::from_millis(1000),
            queue: BTreeMap::new(),
            order: 0,
            events: 0,
            attempts: 0,
            trace: DefaultHasher::new(),
            narrated: false,
            peace: false,
            options,
        }
    }

    /// Prints what happens from now on.
    pub(crate) fn narrate(&mut self) {
        self.narrated = true;
    }

    pub(crate) fn run(mut self) -> Report {
        let first = self.nodes.len() - self.options.joiners;
        (0..first).for_each(|at| self.start(at));
        for at in first..self.nodes.len() {
            let after = self.random.between(1000, self.options.faults_ms / 2);
            self.push(after, Event::Restart(at));
        }
        self.push(Duration::ZERO, Event::Dial);
        self.push(Duration::from_millis(500), Event::Client);
        if self.options.split_later {
            self.push(Duration::from_millis(self.options.faults_ms / 3), Event::Split);
        }
        self.schedule_faults();
        self.schedule_upgrade();
        let end = self.now + Duration::from_millis(self.options.faults_ms);
        while self.step(end) && self.invariants.hold() {}
        let peace_began = self.now;
        self.make_peace();
        let mut unfinished = self.unfinished();
        let (mut progress, mut progress_at) = (self.progress(), self.now);
        let latest = self.now + PEACE * 30;
        while self.invariants.hold()
            && unfinished.is_some()
            && self.now.since(progress_at) < PEACE
            && self.now < latest
        {
            let until = self.now + Duration::from_millis(500);
            while self.step(until) && self.invariants.hold() {}
            unfinished = self.unfinished();
            let now = self.progress();
            if now != progress {
                (progress, progress_at) = (now, self.now);
            }
        }
        self.with_seen(|invariants, seen| invariants.finish(seen, unfinished));
        Report {
            events: self.events,
            trace: self.trace.finish(),
            virtual_ms: self.now.as_millis(),
            peace_ms: self.now.since(peace_began).as_millis() as u64,
            node_ms: self.now.as_millis() * self.nodes.len() as u64,
            acknowledged: self.invariants.acknowledged(),
            attempts: self.attempts,
            violations: self.invariants.into_violations(),
        }
    }

    /// What changes while anything goes on: where clocks are wrong, jobs are forgotten minutes after their end.
    fn progress(&self) -> (usize, Vec<Digest>) {
        let cores = self.nodes.iter().filter_map(|node| node.core.as_ref());
        let digests = cores.flat_map(|core| core.snapshot().groups.into_values());
        (self.attempts, digests.flat_map(|group| [group.live, group.finished]).collect())
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.push_at(self.now + after, event);
    }

    fn push_at(&mut self, at: Timestamp, event: Event) {
        self.order += 1;
        self.queue.insert((at, self.order), event);
    }

    /// The next thing that happens until a moment; false if there is none.
    fn step(&mut self, until: Timestamp) -> bool {
        let timeout = self.due.first().copied();
        let event = self.queue.keys().next().copied();
        let timeout_first = match (timeout, event) {
            (Some((due, _)), Some((at, _))) => due < at,
            (timeout, _) => timeout.is_some(),
        };
        let next = if timeout_first { timeout.map(|(due, _)| due) } else { event.map(|e| e.0) };
        let Some(next) = next.filter(|next| *next <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(next);
        self.events += 1;
        if let Some((_, at)) = timeout.filter(|_| timeout_first) {
            self.note(at, "timeout");
            let now = self.local(at);
            let timed_out = self.nodes[at].core.as_mut().map(|core| core.handle_timeout(now));
            match timed_out {
                Some(Err(error)) => self.on_read_error(at, &error),
                _ => self.end_round(at),
            }
        } else if let Some((key, event)) = self.queue.pop_first() {
            self.handle(key.1, event);
        }
        if self.events.is_multiple_of(INSPECT_EVERY * self.nodes.len().max(4) as u64) {
            self.with_seen(Partitions::inspect);
        }
        true
    }

    /// Whether a job would be handed in by a process that stood still for so long that the marks of a job
    /// with its key may be gone, which another gateway took meanwhile: then it is another job. What clients
    /// ask for is not kept for days, as marks are in earnest.
    fn is_too_late(&self, at: Timestamp, event: &Event) -> bool {
        let Event::Input { input, .. } = event else { return false };
        let enqueues =
            |it: &Input| matches!(it, Input::Request { request: Request::Enqueue { .. }, .. });
        let tries = clients::PATIENCE * clients::TRIES;
        let kept = Duration::from_millis(self.options.tombstones_ms);
        enqueues(input) && at.since(self.now) + tries > kept
    }

    fn handle(&mut self, order: u64, event: Event) {
        let target = match &event {
            Event::Input { at, .. }
            | Event::Deliver { at, .. }
            | Event::Up { at, .. }
            | Event::Down { at, .. }
            | Event::Drain { at, .. }
            | Event::Ended { at, .. }
            | Event::Give { at, .. }
            | Event::Synced { at, .. } => Some(*at),
            _ => None,
        };
        if let Some(at) = target {
            let wakes = self.nodes[at].paused_until;
            if wakes > self.now {
                if self.is_too_late(wakes, &event) {
                    return;
                }
                self.queue.insert((wakes, order), event);
                return;
            }
        }
        match event {
            Event::Input { at, life, input } => {
                if self.nodes[at].life == life {
                    self.note(at, "input");
                    self.input(at, *input);
                }
            }
            Event::Ended { at, life, token, outcome } => {
                if self.nodes[at].life == life && self.running.remove(&token) {
                    self.giving.remove(&token);
                    self.note(at, "ended");
                    let failed = !matches!(outcome, Outcome::Succeeded(_));
                    self.tell(Fact::Ended { token, failed });
                    self.input(at, Input::AttemptFinished { token, outcome });
                }
            }
            Event::Give { at, life, token } => {
                if self.nodes[at].life == life {
                    self.give(at, token);
                }
            }
            Event::Deliver { at, from, session, arrives, message } => {
                self.deliver((at, from), session, arrives, *message);
            }
            Event::Silence { a, b, session } => self.on_silence(a, b, session),
            Event::Tear { at, life, torn } => self.tear(at, life, *torn),
            Event::Up { at, peer, session } => self.come_up(at, peer, session),
            Event::Down { at, peer, session } => self.go_down(at, peer, session),
            Event::Synced { at, life, id } => self.synced(at, life, id),
            Event::Drain { at, life } => {
                if self.nodes[at].life == life {
                    self.drain(at);
                    self.reschedule(at);
                }
            }
            Event::Dial => self.dial(),
            Event::Restart(at) => {
                if self.nodes[at].core.is_none() && !self.nodes[at].gone {
                    self.start(at);
                }
            }
            Event::Heal => self.network.heal(),
            Event::Hear => self.network.heal_one_way(),
            Event::Room(at) => self.set_full(at, false),
            Event::Fault(fault) => self.on_fault(fault),
            Event::Backup => self.backup(),
            Event::Read(job) => self.read(job),
            Event::EndSchedule => self.end_schedule(),
            Event::Split => self.split(),
            Event::Upgrade => self.upgrade(),
            Event::Replaced { at, life } => self.replace_program(at, life),
            Event::Change(job, change) => self.change(job, change),
            Event::Leave => self.leave(),
            Event::Gone(at) => self.be_gone(at),
            Event::Client => self.client(),
            Event::Patience(id) => self.lose_patience(id),
        }
    }

    fn input(&mut self, at: usize, input: Input) {
        let now = self.local(at);
        let Some(core) = self.nodes[at].core.as_mut() else { return };
        match core.handle_input(now, input) {
            Ok(()) => self.end_round(at),
            Err(error) => self.on_read_error(at, &error),
        }
    }

    /// Notes when a core wants to be called, after it may have changed.
    pub(super) fn reschedule(&mut self, at: usize) {
        let (before, now) = (self.nodes[at].due, self.nodes[at].next_due());
        if before != now {
            self.nodes[at].due = now;
            before.map(|due| self.due.remove(&(due, at)));
            self.due.extend(now.map(|due| (due, at)));
        }
    }

    /// A busy node takes more inputs in before it takes effects out.
    fn end_round(&mut self, at: usize) {
        if self.random.per_mille(self.options.rounds_per_mille) {
            let after = self.random.between(0, 3);
            let life = self.nodes[at].life;
            self.push(after, Event::Drain { at, life });
        } else {
            self.drain(at);
        }
        self.reschedule(at);
    }

    pub(super) fn drain(&mut self, at: usize) {
        while let Some(effect) = self.nodes[at].core.as_mut().and_then(Core::poll_effect) {
            if self.options.traced {
                format!("{effect:?}").hash(&mut self.trace);
            }
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.send(at, to, message),
            Effect::Publish(advert) => self.gossip(at, &advert),
            Effect::Persist { id, writes } => self.persist(at, id, writes),
            Effect::StartAttempt(attempt) => {
                self.attempts += 1;
                self.tell(Fact::Started { at, attempt: &attempt });
                let mut after = self.random.between(0, self.options.attempt_ms);
                if self.random.per_mille(self.options.hangs_per_mille) {
                    after += self.random.between(10_000, 30_000);
                }
                let fails = self.random.per_mille(self.options.failures_per_mille)
                    || attempt.instructions.starts_with(clients::POISON);
                let outcome = match fails {
                    true => {
                        Outcome::Failed { error: "by chance".to_owned(), retry: true, after: None }
                    }
                    false => Outcome::Succeeded(format!("{{\"{}\":1}}", attempt.step).into()),
                };
                let (token, life) = (attempt.token, self.nodes[at].life);
                self.running.insert(token);
                if attempt.gives_items {
                    let rounds = self.random.below(3) as u32;
                    self.giving.insert(token, Giving { rounds, given: 0, outcome });
                    self.push(after, Event::Give { at, life, token });
                } else {
                    self.push(after, Event::Ended { at, life, token, outcome });
                }
            }
            Effect::ItemsTaken(token) => {
                let (after, life) = (self.random.between(0, 200), self.nodes[at].life);
                self.push(after, Event::Give { at, life, token });
            }
            Effect::CancelAttempt(token) => {
                // A phase that does not listen ends by itself, unless it waits to give items.
                let waits = self.giving.contains_key(&token);
                if waits || self.random.per_mille(self.options.cancels_per_mille) {
                    let (after, life) = (self.random.between(0, 500), self.nodes[at].life);
                    let outcome = Outcome::Cancelled;
                    self.push(after, Event::Ended { at, life, token, outcome });
                }
            }
            Effect::Reply { id, response } => self.reply(at, id, response),
        }
    }

    /// An attempt gives a few items, or ends.
    fn give(&mut self, at: usize, token: Token) {
        let count = 1 + self.random.below(3) as u32;
        let Some(giving) = self.giving.get_mut(&token) else { return };
        if giving.rounds == 0 {
            let (life, outcome, count) =
                (self.nodes[at].life, giving.outcome.clone(), giving.given);
            // Some leave nothing in their session: what others left must not come in its place.
            let leaves = !token.sequence.is_multiple_of(3);
            self.tell(Fact::Gave { token, count, leaves });
            if leaves {
                let entries = session_of(token).into();
                self.input(at, Input::Session { token, entries });
            }
            return self.push(Duration::ZERO, Event::Ended { at, life, token, outcome });
        }
        giving.rounds -= 1;
        let first = giving.given;
        giving.given += count;
        let lines = (first..first + count).map(|index| format!("{{\"item\":{index}}}\n"));
        let lines = lines.collect::<String>().into();
        self.note(at, "items");
        self.input(at, Input::Items { token, lines });
    }

    fn local(&self, at: usize) -> Timestamp {
        self.nodes[at].local(self.now)
    }

    /// One line of the trace that tells two runs apart.
    fn note(&mut self, at: usize, what: &str) {
        (self.now.as_millis(), what, at).hash(&mut self.trace);
    }

    /// Tells the invariants, and whoever reads along.
    fn tell(&mut self, fact: Fact<'_>) {
        if self.narrated {
            println!("{:>8} {fact}", self.now.as_millis());
        }
        let seen = Seen { nodes: &self.nodes, now: self.now, pipeline: pipeline() };
        self.invariants.see(&seen, &fact);
    }

    fn with_seen(&mut self, look: impl FnOnce(&mut Partitions, &Seen<'_>)) {
        let seen = Seen { nodes: &self.nodes, now: self.now, pipeline: pipeline() };
        look(&mut self.invariants, &seen);
    }

    /// What peace has not brought about yet.
    fn unfinished(&mut self) -> Option<Unfinished> {
        let seen = Seen { nodes: &self.nodes, now: self.now, pipeline: pipeline() };
        self.invariants.unfinished(&seen)
    }
}

/// The pipeline, which is the first of its partitions.
fn pipeline() -> PipelineId {
    /// Its hash is asked for with every fact.
    static ID: LazyLock<PipelineId> = LazyLock::new(|| PipelineId::of_name(PIPELINE));
    *ID
}
