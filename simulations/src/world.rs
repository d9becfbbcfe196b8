//! Nodes, connections, disks and clients on virtual time.
//!
//! A connection is as TCP gives it: ordered, until it is cut; then a part of what was on its way is
//! lost, and each side hears of it in its own time. A disk loses what was not synced.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    codec,
    config::{Config, Limits, Timing},
    core::Core,
    id::{DiskId, JobId, NodeId, PipelineId},
    io::{Effect, Input, NewJob, Outcome, PersistId, Request, RequestId, Response},
    message::Message,
    name::Name,
    pipeline::{PhaseInput, PipelineDef},
    store::{Table, Write},
    time::Timestamp,
};
use carbonmesh_storage::{MemoryStorage, Storage, StoreReader};

use crate::{Options, Report, oracle::Oracle, random::Random};

const PIPELINE: &str = "p";

/// How long nothing may begin in peace while something is not at its end.
const PEACE: Duration = Duration::from_secs(120);

/// A silent peer is given up after this, as the node's network does.
const SILENCE: Duration = Duration::from_secs(8);

const DIAL_EVERY: Duration = Duration::from_millis(200);

enum Event {
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
    Dial,
    Restart(usize),
    Heal,
    Crash,
    Cut,
    Partition,
    Pause,
    Client,
}

struct Node {
    core: Option<Core>,
    config: Config,
    storage: Arc<MemoryStorage>,
    /// Writes that are not synced yet.
    unsynced: VecDeque<(PersistId, Vec<Write>)>,
    life: u64,
    clock_offset: Duration,
    paused_until: Timestamp,
    /// Which session it sees with each peer.
    sessions: BTreeMap<usize, u64>,
    sync_at: Timestamp,
}

pub(crate) struct World {
    options: Options,
    random: Random,
    oracle: Oracle,
    nodes: Vec<Node>,
    now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Event>,
    order: u64,
    events: u64,
    trace: DefaultHasher,
    /// Sessions that carry messages; others are cut, though their ends may not know yet.
    links: BTreeMap<(usize, usize), u64>,
    /// When the last message from one to another arrives: the next one comes after it.
    arrivals: BTreeMap<(usize, usize), Timestamp>,
    /// Nodes that the others cannot reach.
    apart: BTreeSet<usize>,
    peace: bool,
    requests: BTreeMap<RequestId, usize>,
    next_request: u64,
    applied: bool,
    clients_done: usize,
}

fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

fn step_name(position: usize) -> String {
    format!("s{position}")
}

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let mut random = Random::new(options.seed ^ 0x5eed);
        let nodes = options.roles.iter().enumerate().map(|(index, roles)| {
            let phases = (0..options.phases).map(|at| (name(&step_name(at)), options.slots));
            let config = Config {
                node: NodeId::of_public_key(&[index as u8]),
                disk: DiskId(index as u64 + 1),
                boot: 0,
                name: format!("n{index}"),
                version: "simulated".to_owned(),
                roles: *roles,
                phases: if roles.worker { phases.collect() } else { Vec::new() },
                labels: BTreeMap::new(),
                timing: Timing::DEFAULT,
                limits: Limits::DEFAULT,
            };
            Node {
                core: None,
                config,
                storage: Arc::default(),
                unsynced: VecDeque::new(),
                life: 0,
                clock_offset: random.between(0, 1_000_000),
                paused_until: Timestamp::default(),
                sessions: BTreeMap::new(),
                sync_at: Timestamp::default(),
            }
        });
        let nodes = nodes.collect();
        Self {
            nodes,
            random,
            oracle: Oracle::default(),
            now: Timestamp::from_millis(1000),
            queue: BTreeMap::new(),
            order: 0,
            events: 0,
            trace: DefaultHasher::new(),
            links: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            apart: BTreeSet::new(),
            peace: false,
            requests: BTreeMap::new(),
            next_request: 0,
            applied: false,
            clients_done: 0,
            options,
        }
    }

    pub(crate) fn run(mut self) -> Report {
        (0..self.nodes.len()).for_each(|at| self.start(at));
        self.push(Duration::ZERO, Event::Dial);
        self.push(Duration::from_millis(500), Event::Client);
        self.schedule(self.options.crash_every_ms, Event::Crash);
        self.schedule(self.options.cut_every_ms, Event::Cut);
        self.schedule(self.options.partition_every_ms, Event::Partition);
        self.schedule(self.options.pause_every_ms, Event::Pause);
        let end = self.now + Duration::from_millis(self.options.faults_ms);
        while self.step(end) && self.oracle.violations.is_empty() {}
        self.make_peace();
        let mut unfinished = self.unfinished();
        let (mut progress, mut progress_at) = (self.oracle.attempts(), self.now);
        while self.oracle.violations.is_empty()
            && unfinished.is_some()
            && self.now.since(progress_at) < PEACE
        {
            let until = self.now + Duration::from_millis(500);
            while self.step(until) && self.oracle.violations.is_empty() {}
            unfinished = self.unfinished();
            if self.oracle.attempts() > progress {
                (progress, progress_at) = (self.oracle.attempts(), self.now);
            }
        }
        if let Some(detail) = unfinished.filter(|_| self.oracle.violations.is_empty()) {
            self.oracle.never("no-lost-job", detail);
        }
        if self.options.is_faultless() {
            self.oracle.no_reruns();
        }
        Report {
            events: self.events,
            trace: self.trace.finish(),
            acknowledged: self.oracle.acknowledged.len(),
            attempts: self.oracle.attempts(),
            violations: self.oracle.violations,
        }
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.push_at(self.now + after, event);
    }

    fn push_at(&mut self, at: Timestamp, event: Event) {
        self.order += 1;
        self.queue.insert((at, self.order), event);
    }

    /// A fault that comes about every `mean` ms, unless that is zero.
    fn schedule(&mut self, mean: u64, event: Event) {
        if mean > 0 && !self.peace {
            let after = self.random.between(mean / 2, mean * 3 / 2);
            self.push(after, event);
        }
    }

    /// The next thing that happens until a moment; false if there is none.
    fn step(&mut self, until: Timestamp) -> bool {
        let due = self.nodes.iter().enumerate().filter_map(|(at, node)| {
            let local = node.core.as_ref()?.poll_timeout()?;
            let due = (local - node.clock_offset).max(node.paused_until);
            Some((due.max(self.now), at))
        });
        let timeout = due.min();
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
            self.note("timeout", at);
            let now = self.local(at);
            if let Some(core) = self.nodes[at].core.as_mut() {
                core.handle_timeout(now).expect("the disk can be read");
            }
            self.drain(at);
        } else if let Some((key, event)) = self.queue.pop_first() {
            self.handle(key.1, event);
        }
        true
    }

    fn note(&mut self, what: &str, at: usize) {
        (self.now.as_millis(), what, at).hash(&mut self.trace);
    }

    fn local(&self, at: usize) -> Timestamp {
        self.now + self.nodes[at].clock_offset
    }

    fn handle(&mut self, order: u64, event: Event) {
        let target = match &event {
            Event::Input { at, .. }
            | Event::Deliver { at, .. }
            | Event::Up { at, .. }
            | Event::Down { at, .. }
            | Event::Synced { at, .. } => Some(*at),
            _ => None,
        };
        if let Some(at) = target {
            let wakes = self.nodes[at].paused_until;
            if wakes > self.now {
                self.queue.insert((wakes, order), event);
                return;
            }
        }
        match event {
            Event::Input { at, life, input } => {
                if self.nodes[at].life == life {
                    self.note("input", at);
                    self.input(at, *input);
                }
            }
            Event::Deliver { at, from, session, message } => {
                if self.nodes[at].sessions.get(&from) == Some(&session) {
                    self.note("message", at);
                    let from = self.nodes[from].config.node;
                    self.input(at, Input::Message { from, message: *message });
                }
            }
            Event::Up { at, peer, session } => {
                let live = self.nodes[at].core.is_some() && self.nodes[peer].core.is_some();
                if live && self.links.get(&pair(at, peer)) == Some(&session) {
                    self.note("up", at);
                    self.nodes[at].sessions.insert(peer, session);
                    let node = self.nodes[peer].config.node;
                    self.input(at, Input::PeerUp(node));
                }
            }
            Event::Down { at, peer, session } => {
                if self.nodes[at].sessions.get(&peer) == Some(&session) {
                    self.note("down", at);
                    self.nodes[at].sessions.remove(&peer);
                    let node = self.nodes[peer].config.node;
                    self.input(at, Input::PeerDown(node));
                }
            }
            Event::Synced { at, life, id } => self.synced(at, life, id),
            Event::Dial => self.dial(),
            Event::Restart(at) => {
                if self.nodes[at].core.is_none() {
                    self.start(at);
                }
            }
            Event::Heal => self.apart.clear(),
            Event::Crash => {
                let at = self.random.below(self.nodes.len());
                self.crash(at);
                let after = self.random.between(100, 6000);
                self.push(after, Event::Restart(at));
                self.schedule(self.options.crash_every_ms, Event::Crash);
            }
            Event::Cut => {
                let links: Vec<_> = self.links.keys().copied().collect();
                if !links.is_empty() {
                    let (a, b) = links[self.random.below(links.len())];
                    let silence = self.random.between(0, 200);
                    self.cut(a, b, silence);
                }
                self.schedule(self.options.cut_every_ms, Event::Cut);
            }
            Event::Partition => self.partition(),
            Event::Pause => {
                let at = self.random.below(self.nodes.len());
                let pause = self.random.between(50, 6000);
                // A pause is never cut short: what waits for its end keeps its order.
                let until = self.nodes[at].paused_until.max(self.now + pause);
                self.nodes[at].paused_until = until;
                self.schedule(self.options.pause_every_ms, Event::Pause);
            }
            Event::Client => self.client(),
        }
    }

    fn start(&mut self, at: usize) {
        self.note("start", at);
        let (now, seed) = (self.local(at), self.random.next());
        let node = &mut self.nodes[at];
        node.life += 1;
        node.config.boot += 1;
        node.sync_at = self.now;
        let reader = Box::new(StoreReader::new(node.storage.clone()));
        let unix_ms = 1_700_000_000_000 + self.now.as_millis();
        let core = Core::new(node.config.clone(), seed, now, unix_ms, reader);
        node.core = Some(core.expect("the disk can be read"));
        self.drain(at);
    }

    /// A process is gone; of what waited for its disk, some first part may have got there.
    fn crash(&mut self, at: usize) {
        if self.nodes[at].core.take().is_none() {
            return;
        }
        self.note("crash", at);
        let kept = self.random.below(self.nodes[at].unsynced.len() + 1);
        let node = &mut self.nodes[at];
        node.life += 1;
        for (_, writes) in node.unsynced.drain(..).take(kept) {
            node.storage.write(&writes, true).expect("memory takes it");
        }
        node.unsynced.clear();
        node.sessions.clear();
        node.paused_until = self.now;
        for peer in (0..self.nodes.len()).filter(|peer| *peer != at) {
            let notice = self.random.between(0, 100);
            self.cut(at, peer, notice);
        }
    }

    /// Ends a connection: of what is on its way, each direction loses what comes after some moment;
    /// both ends hear of it within `notice`, or a little later.
    fn cut(&mut self, a: usize, b: usize, notice: Duration) {
        let Some(session) = self.links.remove(&pair(a, b)) else { return };
        for (at, peer) in [(a, b), (b, a)] {
            let last = self.now + self.random.between(0, self.options.delay_ms);
            self.queue.retain(|(when, _), event| {
                !matches!(event, Event::Deliver { at: to, from, session: of, .. }
                    if (*to, *from, *of) == (at, peer, session) && *when > last)
            });
            let spread = self.random.between(0, 50);
            let told = (self.now + notice + spread).max(last);
            self.push_at(told, Event::Down { at, peer, session });
        }
    }

    fn partition(&mut self) {
        let size = 1 + self.random.below(self.nodes.len() - 1);
        self.apart = (0..size).map(|_| self.random.below(self.nodes.len())).collect();
        let silent = self.random.per_mille(500);
        for (a, b) in self.links.keys().copied().collect::<Vec<_>>() {
            if self.apart.contains(&a) != self.apart.contains(&b) {
                self.cut(a, b, if silent { SILENCE } else { Duration::ZERO });
            }
        }
        let after = self.random.between(500, 10_000);
        self.push(after, Event::Heal);
        self.schedule(self.options.partition_every_ms, Event::Partition);
    }

    /// Connects whoever can be and is not.
    fn dial(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                let live = self.nodes[a].core.is_some() && self.nodes[b].core.is_some();
                let apart = self.apart.contains(&a) != self.apart.contains(&b);
                let known = self.nodes[a].sessions.contains_key(&b)
                    || self.nodes[b].sessions.contains_key(&a);
                if live && !apart && !known && !self.links.contains_key(&(a, b)) {
                    self.order += 1;
                    let session = self.order;
                    self.links.insert((a, b), session);
                    for (at, peer) in [(a, b), (b, a)] {
                        let up = self.now + self.random.between(1, 20);
                        self.arrivals.insert((peer, at), up);
                        self.push_at(up, Event::Up { at, peer, session });
                    }
                }
            }
        }
        self.push(DIAL_EVERY, Event::Dial);
    }

    fn synced(&mut self, at: usize, life: u64, id: PersistId) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        let Some((_, writes)) = node.unsynced.pop_front().filter(|(first, _)| *first == id) else {
            return;
        };
        node.storage.write(&writes, true).expect("memory takes it");
        self.note("synced", at);
        self.input(at, Input::Persisted(id));
    }

    fn input(&mut self, at: usize, input: Input) {
        let now = self.local(at);
        if let Some(core) = self.nodes[at].core.as_mut() {
            core.handle_input(now, input).expect("the disk can be read");
            self.drain(at);
        }
    }

    fn drain(&mut self, at: usize) {
        while let Some(effect) = self.nodes[at].core.as_mut().and_then(Core::poll_effect) {
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        let life = self.nodes[at].life;
        match effect {
            Effect::Send { to, message } => self.send(at, to, &message),
            Effect::Publish(advert) => {
                for peer in self.nodes[at].sessions.keys().copied().collect::<Vec<_>>() {
                    // Gossip is lost at times.
                    if self.links.contains_key(&pair(at, peer)) && !self.random.per_mille(100) {
                        let after = self.random.between(1, 500);
                        let life = self.nodes[peer].life;
                        let input = Input::Advert(advert.clone()).into();
                        self.push(after, Event::Input { at: peer, life, input });
                    }
                }
            }
            Effect::Persist { id, writes } => {
                let sync = match writes.is_empty() {
                    true => Duration::ZERO,
                    false => self.random.between(0, self.options.sync_ms),
                };
                let done = self.nodes[at].sync_at.max(self.now) + sync;
                self.nodes[at].sync_at = done;
                self.nodes[at].unsynced.push_back((id, writes));
                self.push_at(done, Event::Synced { at, life, id });
            }
            Effect::StartAttempt(attempt) => {
                let position = attempt.step.as_str()[1..].parse().expect("our own name");
                self.oracle.start(&attempt, position);
                let after = self.random.between(0, self.options.attempt_ms);
                let outcome = match self.random.per_mille(self.options.failures_per_mille) {
                    true => Outcome::Failed { error: "by chance".to_owned(), retry: true },
                    false => Outcome::Succeeded(format!("{{\"{}\":1}}", attempt.step).into()),
                };
                let input = Input::AttemptFinished { token: attempt.token, outcome }.into();
                self.push(after, Event::Input { at, life, input });
            }
            // The attempt ends by itself, as a phase that does not listen does.
            Effect::CancelAttempt(_) => {}
            Effect::Reply { id, response } => self.reply(id, response),
        }
    }

    fn send(&mut self, at: usize, to: NodeId, message: &Message) {
        let Some(to) = self.nodes.iter().position(|node| node.config.node == to) else { return };
        let Some(&session) = self.nodes[at].sessions.get(&to) else { return };
        if self.links.get(&pair(at, to)) != Some(&session) {
            return;
        }
        self.check_ballot(at, message);
        let mut copies = 1;
        if !self.peace && self.random.per_mille(self.options.lost_per_mille) {
            copies = 0;
        } else if !self.peace && self.random.per_mille(self.options.repeated_per_mille) {
            copies = 2;
        }
        // Through the codec, as on a wire.
        let bytes = codec::encode(message);
        for _ in 0..copies {
            let arrives = self.arrival(at, to);
            let message = Box::new(codec::decode(&bytes).expect("it reads back"));
            self.push_at(arrives, Event::Deliver { at: to, from: at, session, message });
        }
    }

    /// When a message that is sent now arrives: behind the one before it, as a rule.
    fn arrival(&mut self, at: usize, to: usize) -> Timestamp {
        let mut way = self.random.between(1, self.options.delay_ms);
        if !self.peace && self.random.per_mille(self.options.stuck_per_mille) {
            way += self.random.between(0, 4000);
        }
        let arrives = self.now + way;
        let last = self.arrivals.entry((at, to)).or_default();
        if !self.peace && self.random.per_mille(self.options.overtaken_per_mille) {
            return arrives.max(*last) + self.random.between(0, 300);
        }
        *last = arrives.max(*last);
        *last
    }

    /// What a node says of its votes binds its disk.
    fn check_ballot(&mut self, at: usize, message: &Message) {
        let node = &self.nodes[at].config;
        let vote = match message {
            Message::Ballot(ballot) if ballot.granted && !ballot.pre => {
                Some((ballot.pipeline, ballot.highest))
            }
            // Whoever asks for votes has given its own.
            Message::Vote { pipeline, term } => Some((*pipeline, *term)),
            _ => None,
        };
        if let Some((pipeline, term)) = vote {
            self.oracle.vote(pipeline, node.disk, term);
        }
    }

    /// A client asks some node: first to apply the pipeline, then to take jobs.
    fn client(&mut self) {
        let at = self.random.below(self.nodes.len());
        let request = if self.applied {
            self.clients_done += 1;
            let count = [1, 1, 20][self.random.below(3)];
            let jobs = (0..count).map(|_| NewJob {
                key: self.random.per_mille(200).then(|| format!("key-{}", self.random.below(5))),
                instructions: Bytes::from_static(b"{}"),
            });
            Request::Enqueue { pipeline: name(PIPELINE), jobs: jobs.collect() }
        } else {
            let steps = (0..self.options.phases).map(|at| PhaseInput::named(name(&step_name(at))));
            let pipeline = PipelineDef::new(name(PIPELINE), steps.collect());
            Request::Apply(pipeline.expect("a valid pipeline"))
        };
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.requests.insert(id, at);
        let life = self.nodes[at].life;
        let input = Input::Request { id, request }.into();
        self.push(Duration::ZERO, Event::Input { at, life, input });
        if self.clients_done < self.options.requests && !self.peace {
            let after = self.random.between(0, 1000);
            self.push(after, Event::Client);
        }
    }

    fn reply(&mut self, id: RequestId, response: Response) {
        self.requests.remove(&id);
        match response {
            Response::Applied { .. } => self.applied = true,
            Response::Enqueued(answers) => {
                for receipt in answers.into_iter().flatten() {
                    let found = self.disks_with(receipt.job);
                    self.oracle.acknowledge(receipt.job, receipt.copies, found);
                }
            }
            _ => {}
        }
    }

    /// On how many disks something of the job is.
    fn disks_with(&self, job: JobId) -> usize {
        let mut start = PipelineId::of_name(PIPELINE).to_be_bytes().to_vec();
        start.extend_from_slice(&job.to_be_bytes());
        let mut end = start.clone();
        end.extend_from_slice(&[0xff; 3]);
        let has = |node: &&Node| {
            let rows = node.storage.scan(Table::Jobs, &start, &end, 1);
            !rows.expect("memory can be read").is_empty()
        };
        self.nodes.iter().filter(has).count()
    }

    /// No more faults: everybody is there and connected.
    fn make_peace(&mut self) {
        self.peace = true;
        self.apart.clear();
        for at in 0..self.nodes.len() {
            if self.nodes[at].core.is_none() {
                self.start(at);
            }
        }
    }

    /// What peace has not brought about yet.
    fn unfinished(&self) -> Option<String> {
        let pipeline = PipelineId::of_name(PIPELINE);
        let cores = || self.nodes.iter().filter_map(|node| node.core.as_ref());
        let groups = || cores().filter_map(|core| core.snapshot().groups.get(&pipeline).cloned());
        let coordinators = groups().filter(|group| group.coordinates.is_some()).count();
        if coordinators != 1 && !self.oracle.acknowledged.is_empty() {
            return Some(format!("{coordinators} nodes coordinate"));
        }
        let running: usize = groups().map(|group| group.running).sum();
        if running > 0 {
            return Some(format!("{running} attempts run"));
        }
        for job in &self.oracle.acknowledged {
            let records = cores()
                .filter_map(|core| core.record(pipeline, *job).expect("the disk can be read"));
            let states: Vec<_> = records.map(|record| record.state()).collect();
            if states.is_empty() || !states.iter().all(|state| state.is_terminal()) {
                return Some(format!("job {job} is {states:?}"));
            }
        }
        None
    }
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}
