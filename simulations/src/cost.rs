//! What a job costs in the core: three of them and nothing else, no network, no disk, no faults.
//!
//! All that waits is handed in before effects are taken, and messages go through the codec, as in a
//! node. Measured by `benches/jobs.rs`, and held to a number of allocations by `tests/cost.rs`.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use carbonmesh_protocol::{
    advert::Roles,
    codec,
    config::{Config, Limits, Timing},
    core::Core,
    id::{DiskId, NodeId},
    io::{Effect, Input, NewJob, Outcome, Request, RequestId, Response},
    message::Message,
    name::Name,
    pipeline::{PhaseInput, PipelineDef},
    record::JobOptions,
    time::Timestamp,
};
use carbonmesh_storage::{MemoryStorage, Storage, StoreReader};

const NODES: usize = 3;

/// How many attempts a node runs at once.
const SLOTS: u32 = 256;

/// How many jobs are enqueued by one request, as the interface does.
const REQUEST_JOBS: usize = 1000;

/// A cluster of cores on one clock.
pub struct Cluster {
    nodes: Vec<Node>,
    now: Timestamp,
    requests: u64,
    phases: usize,
}

struct Node {
    id: NodeId,
    core: Core,
    disk: Arc<MemoryStorage>,
    inbox: Vec<Input>,
    frames: BTreeMap<NodeId, BytesMut>,
    done: usize,
    accepted: usize,
    rows: usize,
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

impl Cluster {
    /// Three nodes that do everything, with a pipeline `p` of so many phases, coordinated by one.
    pub fn new(phases: usize) -> Self {
        let nodes = (0..NODES).map(node).collect();
        let mut cluster = Self { nodes, now: Timestamp::from_millis(1000), requests: 0, phases };
        let ids: Vec<NodeId> = cluster.nodes.iter().map(|node| node.id).collect();
        for node in &mut cluster.nodes {
            let others = ids.iter().filter(|id| **id != node.id);
            node.inbox.extend(others.map(|id| Input::PeerUp(*id)));
        }
        cluster.run_for(Duration::from_secs(2));
        let steps = (0..phases).map(|at| PhaseInput::named(name(&format!("s{at}")))).collect();
        let pipeline = PipelineDef::new(name("p"), steps);
        cluster.ask(0, Request::Apply(Box::new(pipeline.expect("a pipeline"))));
        cluster.run_for(Duration::from_secs(15));
        cluster
    }

    /// Enqueues jobs through one node, and runs until all are done.
    ///
    /// # Panics
    /// They are not done after a virtual minute.
    pub fn run_jobs(&mut self, count: usize) {
        let before = self.done();
        let job = || NewJob {
            key: None,
            options: JobOptions::default(),
            trace: None,
            instructions: Bytes::from_static(b"{\"at\":1}"),
        };
        for from in (0..count).step_by(REQUEST_JOBS) {
            let jobs = (from..count.min(from + REQUEST_JOBS)).map(|_| job()).collect();
            self.ask(1, Request::Enqueue { pipeline: name("p"), jobs });
        }
        for _ in 0..60_000 {
            if self.done() - before == count * self.phases {
                return;
            }
            self.run_for(Duration::from_millis(1));
        }
        panic!("{} of {} phases are done", self.done() - before, count * self.phases);
    }

    /// How many rows were put on all disks, or taken off them.
    pub fn rows_written(&self) -> usize {
        self.nodes.iter().map(|node| node.rows).sum()
    }

    fn done(&self) -> usize {
        self.nodes.iter().map(|node| node.done).sum()
    }

    fn ask(&mut self, at: usize, request: Request) {
        self.requests += 1;
        let id = RequestId(self.requests);
        self.nodes[at].inbox.push(Input::Request { id, request });
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let busy = (0..NODES).any(|at| self.round(at));
            if busy {
                continue;
            }
            let due = self.nodes.iter().filter_map(|node| node.core.poll_timeout()).min();
            match due.filter(|due| *due <= end) {
                Some(due) => self.now = self.now.max(due),
                None => break,
            }
        }
        self.now = end;
    }

    /// One round of one node; says whether there was anything to do.
    fn round(&mut self, at: usize) -> bool {
        let now = self.now;
        let node = &mut self.nodes[at];
        let inbox = mem::take(&mut node.inbox);
        let due = node.core.poll_timeout().is_some_and(|due| due <= now);
        if inbox.is_empty() && !due {
            return false;
        }
        for input in inbox {
            node.core.handle_input(now, input).expect("memory can be read");
        }
        if due {
            node.core.handle_timeout(now).expect("memory can be read");
        }
        node.take_effects();
        let from = node.id;
        for (to, frame) in mem::take(&mut node.frames) {
            let mut frame = frame.freeze();
            let to = self.nodes.iter_mut().find(|node| node.id == to).expect("a node");
            while !frame.is_empty() {
                let envelope = codec::split_envelope(&mut frame).expect("an envelope");
                let message: Message = codec::open(&envelope).expect("a message");
                to.inbox.push(Input::Message { from, message });
            }
        }
        true
    }
}

impl Node {
    fn take_effects(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Send { to, message } => {
                    codec::encode_into(&message, self.frames.entry(to).or_default());
                }
                Effect::Persist { id, writes } => {
                    self.rows += writes.len();
                    self.disk.write(&writes, true).expect("memory takes it");
                    self.inbox.push(Input::Persisted(id));
                }
                Effect::StartAttempt(attempt) => {
                    self.done += 1;
                    let outcome = Outcome::Succeeded(Bytes::from_static(b"{\"ok\":true}"));
                    let token = attempt.token;
                    self.inbox.push(Input::AttemptFinished { token, outcome });
                }
                Effect::Reply { response: Response::Enqueued(answers), .. } => {
                    self.accepted += answers.iter().filter(|answer| answer.is_ok()).count();
                }
                Effect::Publish(_)
                | Effect::CancelAttempt(_)
                | Effect::ItemsTaken(_)
                | Effect::Reply { .. } => {}
            }
        }
    }
}

fn node(index: usize) -> Node {
    let disk: Arc<MemoryStorage> = Arc::default();
    let id = NodeId::of_public_key(&[index as u8]);
    let config = Config {
        node: id,
        disk: DiskId(index as u64 + 1),
        boot: 1,
        name: format!("n{index}"),
        version: "measured".to_owned(),
        roles: Roles::ALL,
        phases: (0..3).map(|at| (name(&format!("s{at}")), SLOTS)).collect(),
        labels: BTreeMap::new(),
        timing: Timing::DEFAULT,
        limits: Limits::DEFAULT,
    };
    let (start, unix_ms) = (Timestamp::from_millis(1000), 1_700_000_000_000);
    let reader = Box::new(StoreReader::new(disk.clone()));
    let core = Core::new(config, index as u64, start, unix_ms, reader).expect("an empty disk");
    let (inbox, frames) = (Vec::new(), BTreeMap::new());
    Node { id, core, disk, inbox, frames, done: 0, accepted: 0, rows: 0 }
}
