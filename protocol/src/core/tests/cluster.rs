//! A few cores on virtual time, with a perfect network and disks that sync in a millisecond.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;

use crate::{
    advert::Roles,
    config::{Config, Limits, Timing},
    core::Core,
    id::{DiskId, JobId, NodeId, Token},
    io::{
        Attempt, Effect, Input, NewJob, Outcome, PersistId, Receipt, Refusal, Request, RequestId,
        Response,
    },
    message::{Gathered, Message, SessionOf},
    name::Name,
    pipeline::{PhaseInput, PipelineDef},
    store::{ReadError, Reader, Row, Table, Write},
    time::Timestamp,
    trace::TraceParent,
    view::{ClusterView, JobState, JobView},
};

const LATENCY: Duration = Duration::from_millis(1);

/// A disk that survives its node. It counts how often records of jobs were read.
#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<Rows>>, Arc<AtomicUsize>);

type Rows = BTreeMap<(Table, Bytes), Bytes>;

impl Disk {
    /// All that is on it.
    pub(super) fn rows(&self) -> Rows {
        self.0.lock().expect("not poisoned").clone()
    }

    /// Puts a copy back.
    pub(super) fn set_rows(&self, rows: Rows) {
        *self.0.lock().expect("not poisoned") = rows;
    }

    pub(super) fn apply(&self, writes: Vec<Write>) {
        let mut rows = self.0.lock().expect("not poisoned");
        for write in writes {
            match write {
                Write::Put { table, key, value } => {
                    rows.insert((table, key), value);
                }
                Write::Delete { table, key } => {
                    rows.remove(&(table, key));
                }
                Write::DeleteRange { table, start, end } => {
                    rows.retain(|(of, key), _| *of != table || *key < start || *key >= end);
                }
            }
        }
    }
}

impl Reader for Disk {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let rows = self.0.lock().expect("not poisoned");
        Ok(rows.get(&(table, Bytes::copy_from_slice(key))).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        self.1.fetch_add(usize::from(table == Table::Jobs), Ordering::Relaxed);
        let rows = self.0.lock().expect("not poisoned");
        let range = (table, Bytes::copy_from_slice(start))..(table, Bytes::copy_from_slice(end));
        Ok(rows
            .range(range)
            .take(limit)
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .collect())
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        let rows = self.0.lock().expect("not poisoned");
        let range = (table, Bytes::copy_from_slice(start))..(table, Bytes::copy_from_slice(end));
        let rows = rows.range(range).rev().take(limit);
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

enum Event {
    Input(usize, Box<Input>),
    Persist(usize, PersistId, Vec<Write>),
}

pub(super) struct Node {
    pub(super) core: Option<Core>,
    pub(super) config: Config,
    pub(super) disk: Disk,
    pub(super) attempts: Vec<Attempt>,
    pub(super) started: u32,
}

pub(super) struct Cluster {
    pub(super) nodes: Vec<Node>,
    pub(super) now: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Event>,
    order: u64,
    replies: BTreeMap<RequestId, Response>,
    next_request: u64,
    connected: BTreeSet<(usize, usize)>,
    /// Whose disk answers no more.
    pub(super) stalled: Option<usize>,
    /// How many records were read for one input or time-out, at most.
    pub(super) most_reads: usize,
    /// Whether workers finish attempts by themselves.
    pub(super) automatic: bool,
    /// How long an automatic attempt takes.
    pub(super) run_time: Duration,
    pub(super) runs: BTreeMap<(JobId, Name), u32>,
    /// How many items an attempt gives that is to give some.
    pub(super) items: u32,
    /// How many of them are still to be given.
    giving: BTreeMap<Token, u32>,
    /// Whether attempts that give items leave a session.
    pub(super) sessions: bool,
    /// What attempts may read of those, by step, where there is some.
    pub(super) left: Vec<(Name, Vec<SessionOf>)>,
    /// What attempts got of items.
    pub(super) gathered: Vec<Gathered>,
    /// Instructions with which attempts fail.
    pub(super) failing: BTreeSet<Bytes>,
    /// Steps that fail.
    pub(super) failing_steps: BTreeSet<Name>,
    /// Where alone they fail, if not everywhere.
    pub(super) failing_at: Option<usize>,
    /// Attempts, as they began, with what they got.
    pub(super) began: Vec<(JobId, Name, Vec<Bytes>)>,
    /// The trace that each attempt is a part of.
    pub(super) traces: Vec<(Name, Option<TraceParent>)>,
}

pub(super) fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

pub(super) fn chain(pipeline: &str, phases: &[&str]) -> PipelineDef {
    let phases = phases.iter().map(|phase| PhaseInput::named(name(phase))).collect();
    PipelineDef::new(name(pipeline), phases).expect("a valid pipeline")
}

impl Cluster {
    /// Nodes that play all parts and offer these phases, all connected.
    pub(super) fn new(count: usize, phases: &[(&str, u32)]) -> Self {
        Self::with_timing(count, phases, Timing::DEFAULT)
    }

    pub(super) fn with_timing(count: usize, phases: &[(&str, u32)], timing: Timing) -> Self {
        let node = |index: usize| Node {
            core: None,
            config: Config {
                node: NodeId::of_public_key(&[index as u8]),
                disk: DiskId(index as u64 + 1),
                boot: 0,
                name: format!("n{index}"),
                version: "test".to_owned(),
                roles: Roles::ALL,
                phases: phases.iter().map(|(phase, slots)| (name(phase), *slots)).collect(),
                labels: BTreeMap::new(),
                timing,
                limits: Limits::DEFAULT,
            },
            disk: Disk::default(),
            attempts: Vec::new(),
            started: 0,
        };
        let mut cluster = Self {
            nodes: (0..count).map(node).collect(),
            now: Timestamp::from_millis(1_000_000),
            queue: BTreeMap::new(),
            order: 0,
            replies: BTreeMap::new(),
            next_request: 0,
            connected: BTreeSet::new(),
            stalled: None,
            most_reads: 0,
            automatic: true,
            run_time: LATENCY,
            runs: BTreeMap::new(),
            items: 0,
            giving: BTreeMap::new(),
            sessions: false,
            left: Vec::new(),
            gathered: Vec::new(),
            failing: BTreeSet::new(),
            failing_steps: BTreeSet::new(),
            failing_at: None,
            began: Vec::new(),
            traces: Vec::new(),
        };
        (0..count).for_each(|index| cluster.start(index));
        cluster.run_for(Duration::from_millis(20));
        cluster
    }

    /// Starts a node, or starts it again.
    pub(super) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.config.boot += 1;
        let (config, disk) = (node.config.clone(), node.disk.clone());
        let unix_ms = 1_700_000_000_000 + self.now.as_millis();
        let core = Core::new(config, index as u64, self.now, unix_ms, Box::new(disk));
        self.nodes[index].core = Some(core.expect("the disk can be read"));
        self.drain(index);
        for other in 0..self.nodes.len() {
            if other != index && self.nodes[other].core.is_some() {
                self.connect(index, other);
            }
        }
    }

    /// Kills a node; what was on its way to the disk is lost.
    pub(super) fn kill(&mut self, index: usize) {
        self.nodes[index].core = None;
        self.nodes[index].attempts.clear();
        self.queue.retain(|_, event| match event {
            Event::Input(at, _) | Event::Persist(at, _, _) => *at != index,
        });
        for other in 0..self.nodes.len() {
            if other != index {
                self.disconnect(index, other);
            }
        }
    }

    /// Removes all that a disk has of a job.
    pub(super) fn lose_record(&mut self, index: usize, job: JobId) {
        let mut rows = self.nodes[index].disk.0.lock().expect("not poisoned");
        let of_job = job.to_be_bytes();
        rows.retain(|(_, key), _| !key.windows(of_job.len()).any(|part| part == of_job));
    }

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        if self.connected.insert((a.min(b), a.max(b))) {
            for (at, peer) in [(a, b), (b, a)] {
                let peer = self.nodes[peer].config.node;
                self.push(LATENCY, Event::Input(at, Input::PeerUp(peer).into()));
            }
        }
    }

    pub(super) fn disconnect(&mut self, a: usize, b: usize) {
        if self.connected.remove(&(a.min(b), a.max(b))) {
            for (at, peer) in [(a, b), (b, a)] {
                let peer = self.nodes[peer].config.node;
                self.queue.retain(|_, event| {
                    !matches!(event, Event::Input(to, input) if *to == at
                        && matches!(**input, Input::Message { from, .. } if from == peer))
                });
                if self.nodes[at].core.is_some() {
                    self.push(LATENCY, Event::Input(at, Input::PeerDown(peer).into()));
                }
            }
        }
    }

    fn push(&mut self, after: Duration, event: Event) {
        self.order += 1;
        self.queue.insert((self.now + after, self.order), event);
    }

    pub(super) fn index_of(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|known| known.config.node == node).expect("a node")
    }

    pub(super) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.step(until) {}
        self.now = until;
    }

    /// Goes on until something holds, for at most a minute.
    pub(super) fn run_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let began = self.now;
        while !holds(self) {
            let until = self.now + Duration::from_millis(1);
            while self.step(until) {}
            self.now = until;
            assert!(self.now.since(began) < Duration::from_secs(60), "waited a minute for: {what}");
        }
        self.now.since(began)
    }

    /// The next event until a moment; false if there is none.
    fn step(&mut self, until: Timestamp) -> bool {
        let timeouts = self
            .nodes
            .iter()
            .enumerate()
            .filter_map(|(index, node)| Some((node.core.as_ref()?.poll_timeout()?, index)));
        let timeout = timeouts.min();
        let event = self.queue.keys().next().copied();
        let timeout_first = match (timeout, event) {
            (Some((at, _)), Some((event_at, _))) => at < event_at,
            (timeout, _) => timeout.is_some(),
        };
        if let Some((at, index)) = timeout.filter(|_| timeout_first) {
            if at > until {
                return false;
            }
            self.now = self.now.max(at);
            let now = self.now;
            self.nodes[index].disk.1.store(0, Ordering::Relaxed);
            let core = self.nodes[index].core.as_mut().expect("it has a time-out");
            core.handle_timeout(now).expect("the disk can be read");
            self.drain(index);
            return true;
        }
        let Some((at, order)) = event.filter(|(at, _)| *at <= until) else { return false };
        self.now = self.now.max(at);
        match self.queue.remove(&(at, order)).expect("it is there") {
            Event::Input(index, input) => self.input(index, *input),
            Event::Persist(index, id, writes) => {
                self.nodes[index].disk.apply(writes);
                self.input(index, Input::Persisted(id));
            }
        }
        true
    }

    pub(super) fn input(&mut self, index: usize, input: Input) {
        let now = self.now;
        self.nodes[index].disk.1.store(0, Ordering::Relaxed);
        if let Some(core) = self.nodes[index].core.as_mut() {
            core.handle_input(now, input).expect("the disk can be read");
            self.drain(index);
        }
    }

    fn drain(&mut self, index: usize) {
        let reads = self.nodes[index].disk.1.swap(0, Ordering::Relaxed);
        self.most_reads = self.most_reads.max(reads);
        let mut effects = VecDeque::new();
        if let Some(core) = self.nodes[index].core.as_mut() {
            effects.extend(std::iter::from_fn(|| core.poll_effect()));
        }
        for effect in effects {
            self.apply(index, effect);
        }
    }

    fn apply(&mut self, index: usize, effect: Effect) {
        let from = self.nodes[index].config.node;
        match effect {
            Effect::Send { to, message } => {
                let to = self.index_of(to);
                if !message.senders().include(self.nodes[index].config.roles) {
                    // Nobody would listen.
                    return;
                }
                if self.connected.contains(&(index.min(to), index.max(to))) {
                    let message = reencoded(&message);
                    self.push(LATENCY, Event::Input(to, Input::Message { from, message }.into()));
                }
            }
            Effect::Publish(advert) => {
                for other in (0..self.nodes.len()).filter(|other| *other != index) {
                    self.push(LATENCY, Event::Input(other, Input::Advert(advert.clone()).into()));
                }
            }
            Effect::Persist { .. } if self.stalled == Some(index) => {}
            Effect::Persist { id, writes } => {
                self.push(LATENCY, Event::Persist(index, id, writes));
            }
            Effect::StartAttempt(attempt) => {
                *self.runs.entry((attempt.job, attempt.step.clone())).or_default() += 1;
                self.nodes[index].started += 1;
                let got = [attempt.instructions.clone()].into_iter().chain(attempt.results.clone());
                self.began.push((attempt.job, attempt.step.clone(), got.collect()));
                self.traces.push((attempt.step.clone(), attempt.trace));
                self.gathered.extend(attempt.gathered.iter().cloned());
                if !attempt.sessions.is_empty() {
                    self.left.push((attempt.step.clone(), attempt.sessions.clone()));
                }
                if attempt.gives_items && self.sessions {
                    self.leave(index, attempt.token, &format!("{{\"by\":\"{}\"}}", attempt.token));
                }
                if attempt.gives_items && self.items > 0 {
                    // In two parts, as far as there are two.
                    let first = self.items.div_ceil(2);
                    self.giving.insert(attempt.token, self.items - first);
                    self.give(index, attempt.token, 0..first);
                } else if self.failing.contains(&attempt.instructions)
                    || self.failing_steps.contains(&attempt.step)
                        && self.failing_at.is_none_or(|at| at == index)
                {
                    let (error, retry, after) = ("it fails".to_owned(), false, None);
                    let outcome = Outcome::Failed { error, retry, after };
                    let input = Input::AttemptFinished { token: attempt.token, outcome };
                    self.push(self.run_time, Event::Input(index, input.into()));
                } else if self.automatic {
                    let result = format!("{{\"{}\":1}}", attempt.step);
                    let outcome = Outcome::Succeeded(result.into());
                    let token = attempt.token;
                    let input = Input::AttemptFinished { token, outcome };
                    self.push(self.run_time, Event::Input(index, input.into()));
                } else {
                    self.nodes[index].attempts.push(*attempt);
                }
            }
            Effect::ItemsTaken(token) => match self.giving.remove(&token) {
                Some(more @ 1..) => {
                    self.giving.insert(token, 0);
                    self.give(index, token, self.items - more..self.items);
                }
                None => {}
                Some(_) => {
                    let outcome = Outcome::Succeeded("{}".into());
                    let input = Input::AttemptFinished { token, outcome };
                    self.push(self.run_time, Event::Input(index, input.into()));
                }
            },
            Effect::CancelAttempt(token) => self.finish(index, token, Outcome::Cancelled),
            Effect::Reply { id, response } => {
                self.replies.insert(id, response);
            }
        }
    }

    fn give(&mut self, index: usize, token: Token, items: std::ops::Range<u32>) {
        let lines = items.map(|item| format!("{{\"item\":{item}}}\n"));
        let lines = lines.collect::<String>().into();
        self.push(LATENCY, Event::Input(index, Input::Items { token, lines }.into()));
    }

    /// An attempt leaves a session.
    pub(super) fn leave(&mut self, index: usize, token: Token, entries: &str) {
        let entries = Bytes::copy_from_slice(entries.as_bytes());
        self.push(LATENCY, Event::Input(index, Input::Session { token, entries }.into()));
    }

    /// Ends an attempt that waits for it.
    pub(super) fn finish(&mut self, index: usize, token: Token, outcome: Outcome) {
        self.nodes[index].attempts.retain(|attempt| attempt.token != token);
        self.push(LATENCY, Event::Input(index, Input::AttemptFinished { token, outcome }.into()));
    }

    pub(super) fn ask(&mut self, index: usize, request: Request) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.input(index, Input::Request { id, request });
        id
    }

    pub(super) fn answered(&mut self, id: RequestId) -> Response {
        self.run_until("an answer", |cluster| cluster.replies.contains_key(&id));
        self.replies.remove(&id).expect("it is there")
    }

    pub(super) fn request(&mut self, index: usize, request: Request) -> Response {
        let id = self.ask(index, request);
        self.answered(id)
    }

    pub(super) fn apply_pipeline(&mut self, index: usize, definition: PipelineDef) {
        let response = self.request(index, Request::Apply(Box::new(definition)));
        assert!(matches!(response, Response::Applied { .. }), "{response:?}");
    }

    pub(super) fn enqueue(
        &mut self,
        index: usize,
        pipeline: &str,
        key: Option<&str>,
        instructions: &str,
    ) -> Result<Receipt, Refusal> {
        let job = NewJob {
            options: Default::default(),
            key: key.map(str::to_owned),
            trace: None,
            instructions: Bytes::copy_from_slice(instructions.as_bytes()),
        };
        let request = Request::Enqueue { pipeline: name(pipeline), jobs: vec![job] };
        match self.request(index, request) {
            Response::Enqueued(mut answers) => answers.remove(0),
            Response::Refused(refusal) => Err(refusal),
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn enqueue_many(
        &mut self,
        index: usize,
        pipeline: &str,
        count: usize,
    ) -> Vec<JobId> {
        let job = NewJob {
            key: None,
            options: Default::default(),
            trace: None,
            instructions: Bytes::from_static(b"{}"),
        };
        let request = Request::Enqueue { pipeline: name(pipeline), jobs: vec![job; count] };
        match self.request(index, request) {
            Response::Enqueued(answers) => {
                answers.into_iter().map(|answer| answer.expect("accepted").job).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn job(&mut self, index: usize, job: JobId) -> JobView {
        match self.request(index, Request::Job { job, wait: None }) {
            Response::Job(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn wait_for(&mut self, index: usize, job: JobId) -> JobView {
        let wait = Some(Duration::from_secs(30));
        match self.request(index, Request::Job { job, wait }) {
            Response::Job(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn view(&mut self, index: usize) -> ClusterView {
        match self.request(index, Request::Cluster) {
            Response::Cluster(view) => *view,
            other => panic!("{other:?}"),
        }
    }

    /// Who coordinates the pipeline, by its own word.
    pub(super) fn coordinators(&self) -> Vec<usize> {
        let coordinates = |node: &Node| {
            let snapshot = node.core.as_ref().map(Core::snapshot);
            snapshot.is_some_and(|it| it.groups.values().any(|group| group.coordinates.is_some()))
        };
        (0..self.nodes.len()).filter(|index| coordinates(&self.nodes[*index])).collect()
    }

    pub(super) fn coordinator(&mut self) -> usize {
        self.run_until("one coordinator", |cluster| cluster.coordinators().len() == 1);
        self.coordinators()[0]
    }

    pub(super) fn all_succeeded(&self, jobs: &[JobId]) -> bool {
        let live = self.nodes.iter().filter_map(|node| node.core.as_ref());
        let live: Vec<_> = live.map(|core| (core, core.snapshot().groups)).collect();
        !live.is_empty()
            && jobs.iter().all(|job| {
                live.iter().any(|(core, groups)| {
                    groups.keys().any(|pipeline| {
                        core.record(*pipeline, *job)
                            .expect("the disk can be read")
                            .is_some_and(|record| record.state() == JobState::Succeeded)
                    })
                })
            })
    }
}

/// Every message goes through the codec, as on a wire.
fn reencoded(message: &Message) -> Message {
    crate::codec::decode(&crate::codec::encode(message)).expect("it reads back")
}
