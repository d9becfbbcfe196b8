//! Three real cores with jobs in every state, on virtual time and disks that never wait: what
//! hostile messages are sent into.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    advert::Roles,
    codec,
    config::{Config, Limits, Timing},
    core::Core,
    id::{DiskId, JobId, NodeId},
    io::{Effect, Input, NewJob, Outcome, Request, RequestId, Response},
    message::Message,
    name::Name,
    pipeline::{Combine, EachInput, PhaseInput, PipelineDef},
    store::{ReadError, Reader, Row, Table, Write},
    time::Timestamp,
};

/// How many nodes there are.
pub(crate) const NODES: usize = 3;

type Rows = BTreeMap<(Table, Bytes), Bytes>;

#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Rows>>);

impl Disk {
    fn apply(&self, writes: Vec<Write>) {
        let mut rows = self.0.lock().expect("not poisoned");
        for write in writes {
            match write {
                Write::Put { table, key, value } => drop(rows.insert((table, key), value)),
                Write::Delete { table, key } => drop(rows.remove(&(table, key))),
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
        if start >= end {
            return Ok(Vec::new());
        }
        let rows = self.0.lock().expect("not poisoned");
        let range = (table, Bytes::copy_from_slice(start))..(table, Bytes::copy_from_slice(end));
        let rows = rows.range(range).take(limit);
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        let mut rows = self.scan(table, start, end, usize::MAX)?;
        rows.reverse();
        rows.truncate(limit);
        Ok(rows)
    }
}

pub(crate) struct World {
    cores: Vec<Core>,
    disks: Vec<Disk>,
    boots: u64,
    now: Timestamp,
    inputs: VecDeque<(usize, Input)>,
    requests: u64,
    /// Whether no message arrives.
    parted: bool,
    /// Every message that was sent, as it went over the wire.
    pub(crate) sent: Vec<Bytes>,
    pub(crate) jobs: Vec<JobId>,
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

pub(crate) fn node(index: usize) -> NodeId {
    NodeId::of_public_key(&[index as u8])
}

/// Its first phase gives items, its third runs until somebody ends it.
pub(crate) fn pipeline() -> PipelineDef {
    let mut phases = ["one", "two", "hang"].map(|phase| PhaseInput::named(name(phase))).to_vec();
    let within = vec![PhaseInput::named(name("two"))];
    let (of, tolerate_percent, combine) = (name("one"), 50, Combine::Group);
    phases[1].each = Some(EachInput { of, phases: within, tolerate_percent, combine });
    PipelineDef::new(name("p"), phases).expect("a valid pipeline")
}

impl World {
    /// A cluster that has settled, with jobs that wait, run, have failed and have a key.
    pub(crate) fn new() -> Self {
        let mut world = Self {
            cores: Vec::new(),
            disks: (0..NODES).map(|_| Disk::default()).collect(),
            boots: 0,
            now: Timestamp::from_millis(1_000_000),
            inputs: VecDeque::new(),
            requests: 0,
            parted: false,
            sent: Vec::new(),
            jobs: Vec::new(),
        };
        for index in 0..NODES {
            let core = world.core(index);
            world.cores.push(core);
        }
        (0..NODES).for_each(|index| world.connect(index));
        world.run(Duration::from_millis(500));
        world.ask(0, Request::Apply(Box::new(pipeline())));
        world.run(Duration::from_secs(2));
        let job = |text: &str, key: Option<&str>| NewJob {
            options: Default::default(),
            key: key.map(str::to_owned),
            trace: key.map(|_| crate::samples::traced()),
            instructions: Bytes::copy_from_slice(text.as_bytes()),
        };
        let jobs = vec![job("{}", None), job(r#"{"n":1}"#, Some("k")), job(r#"{"fail":1}"#, None)];
        world.ask(1, Request::Enqueue { pipeline: name("p"), jobs });
        world.run(Duration::from_secs(2));
        world
    }

    /// The same, with a node that was away and asks for what it has missed, and clients that ask.
    pub(crate) fn eventful() -> Self {
        let mut world = Self::new();
        for index in 0..NODES {
            world.restart(index);
            world.run(Duration::from_secs(11));
            let job = world.jobs[index % world.jobs.len()];
            world.ask(index, Request::Job { job, wait: Some(Duration::from_secs(1)) });
            let pipeline = name("p");
            world.ask(
                index,
                Request::Jobs { pipeline, of: None, state: None, after: None, limit: 9 },
            );
        }
        world.run(Duration::from_secs(12));
        world
    }

    fn core(&mut self, index: usize) -> Core {
        self.boots += 1;
        let config = Config {
            node: node(index),
            disk: DiskId(index as u64 + 1),
            boot: self.boots,
            name: format!("n{index}"),
            version: "test".to_owned(),
            roles: Roles::ALL,
            phases: ["one", "two", "hang"].map(|phase| (name(phase), 1)).to_vec(),
            labels: BTreeMap::new(),
            timing: Timing::DEFAULT,
            limits: Limits { job_bytes: 1000, result_bytes: 1000, ..Limits::DEFAULT },
        };
        let disk = Box::new(self.disks[index].clone());
        let core = Core::new(config, index as u64, self.now, 1_700_000_000_000, disk);
        core.expect("what a node has on its disk can be read")
    }

    fn connect(&mut self, index: usize) {
        for other in (0..NODES).filter(|other| *other != index) {
            self.inputs.push_back((index, Input::PeerUp(node(other))));
        }
    }

    /// Ends a node and starts it again with what is on its disk.
    pub(crate) fn restart(&mut self, index: usize) {
        self.inputs.retain(|(to, _)| *to != index);
        self.cores[index] = self.core(index);
        for other in (0..NODES).filter(|other| *other != index) {
            self.inputs.push_back((other, Input::PeerDown(node(index))));
            self.inputs.push_back((other, Input::PeerUp(node(index))));
        }
        self.connect(index);
        self.settle();
    }

    /// Cuts every node off from the others for a while, so that each has to decide alone.
    pub(crate) fn part(&mut self, time: Duration) {
        let pairs =
            || (0..NODES).flat_map(|a| (0..NODES).map(move |b| (a, b))).filter(|(a, b)| a != b);
        self.inputs.extend(pairs().map(|(at, peer)| (at, Input::PeerDown(node(peer)))));
        self.parted = true;
        self.run(time);
        self.parted = false;
        self.inputs.extend(pairs().map(|(at, peer)| (at, Input::PeerUp(node(peer)))));
        self.settle();
    }

    /// Clients use the pipeline: what hostile messages have left behind meets their requests.
    pub(crate) fn clients(&mut self) {
        let mut changed = pipeline();
        changed.replicas = 1 + (self.requests % 3) as u8;
        self.ask(0, Request::Apply(Box::new(changed)));
        self.ask(1, Request::Remove(name("p")));
        let jobs = vec![NewJob {
            key: None,
            options: Default::default(),
            trace: None,
            instructions: Bytes::from_static(b"{}"),
        }];
        self.ask(2, Request::Enqueue { pipeline: name("p"), jobs });
        for index in 0..NODES {
            self.ask(index, Request::Cluster);
            for job in self.jobs.clone() {
                self.ask(index, Request::Job { job, wait: Some(Duration::from_secs(1)) });
            }
            let pipeline = name("p");
            self.ask(
                index,
                Request::Jobs { pipeline, of: None, state: None, after: None, limit: 9 },
            );
        }
        self.run(Duration::from_secs(2));
    }

    pub(crate) fn ask(&mut self, index: usize, request: Request) {
        self.requests += 1;
        self.input(index, Input::Request { id: RequestId(self.requests), request });
    }

    pub(crate) fn input(&mut self, index: usize, input: Input) {
        self.inputs.push_back((index, input));
        self.settle();
    }

    /// Lets virtual time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while let Some((at, index)) = self.next_timeout().filter(|(at, _)| *at <= until) {
            self.now = self.now.max(at);
            let handled = self.cores[index].handle_timeout(self.now);
            handled.expect("the disk can be read");
            self.drain(index);
            self.settle();
        }
        self.now = until;
    }

    fn next_timeout(&self) -> Option<(Timestamp, usize)> {
        let timeouts = self.cores.iter().enumerate();
        timeouts.filter_map(|(index, core)| Some((core.poll_timeout()?, index))).min()
    }

    fn settle(&mut self) {
        let mut steps = 0u32;
        while let Some((index, input)) = self.inputs.pop_front() {
            steps += 1;
            assert!(steps < 100_000, "messages beget messages without end: {input:?}");
            let handled = self.cores[index].handle_input(self.now, input);
            handled.expect("the disk can be read");
            self.drain(index);
        }
    }

    fn drain(&mut self, index: usize) {
        while let Some(effect) = self.cores[index].poll_effect() {
            self.apply(index, effect);
        }
    }

    fn apply(&mut self, index: usize, effect: Effect) {
        let from = node(index);
        match effect {
            Effect::Send { to, message } => {
                let bytes = codec::encode(&message);
                let message = codec::decode::<Message>(&bytes).expect("what is sent can be read");
                self.sent.push(bytes);
                // A node that is told of strangers may write to them; the shell drops that.
                let Some(to) = (0..NODES).find(|other| node(*other) == to) else { return };
                if !self.parted {
                    self.inputs.push_back((to, Input::Message { from, message }));
                }
            }
            Effect::Publish(advert) => {
                for other in (0..NODES).filter(|other| *other != index) {
                    self.inputs.push_back((other, Input::Advert(advert.clone())));
                }
            }
            Effect::Persist { id, writes } => {
                self.disks[index].apply(writes);
                self.inputs.push_back((index, Input::Persisted(id)));
            }
            Effect::StartAttempt(attempt) if attempt.phase == name("hang") => {}
            Effect::StartAttempt(attempt)
                if attempt.gives_items && attempt.instructions.as_ref() != br#"{"fail":1}"# =>
            {
                let lines = Bytes::from_static(b"{\"n\":1}\n{\"n\":2}\n");
                self.inputs.push_back((index, Input::Items { token: attempt.token, lines }));
            }
            Effect::StartAttempt(attempt) => {
                let outcome = match attempt.instructions.as_ref() {
                    br#"{"fail":1}"# => {
                        Outcome::Failed { error: "no".to_owned(), retry: true, after: None }
                    }
                    _ => Outcome::Succeeded(Bytes::from_static(br#"{"a":1}"#)),
                };
                let finished = Input::AttemptFinished { token: attempt.token, outcome };
                self.inputs.push_back((index, finished));
            }
            Effect::ItemsTaken(token) => {
                let outcome = Outcome::Succeeded(Bytes::from_static(b"{}"));
                self.inputs.push_back((index, Input::AttemptFinished { token, outcome }));
            }
            Effect::CancelAttempt(token) => {
                let finished = Input::AttemptFinished { token, outcome: Outcome::Cancelled };
                self.inputs.push_back((index, finished));
            }
            Effect::Reply { response: Response::Enqueued(answers), .. } => {
                self.jobs.extend(answers.into_iter().flatten().map(|receipt| receipt.job));
            }
            Effect::Reply { .. } => {}
        }
    }
}
