//! One node: its process, its clock and its disk.
//!
//! A crash loses what was not synced, but for some first part of it. A disk can also be lost whole,
//! or be put back from a copy that was made earlier: the node's shell notices both, and starts with
//! a new disk id, as it must.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use carbonmesh_protocol::{
    config::{Config, Limits, Timing},
    core::Core,
    id::{DiskId, JobId, NodeId, PipelineId},
    io::{Input, PersistId},
    record::{Component, JobRecord},
    store::{Table, Write},
    time::Timestamp,
};
use carbonmesh_storage::{MemoryStorage, Storage, StoreReader};

use super::{Event, World, name, step_name};
use crate::{Options, invariants::Fact, random::Random};

/// See the [module](self).
pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) config: Config,
    pub(super) storage: Arc<MemoryStorage>,
    /// A copy of the disk as it once was.
    pub(super) backup: Arc<MemoryStorage>,
    /// Writes that are not synced yet.
    pub(super) unsynced: VecDeque<(PersistId, Vec<Write>)>,
    /// Counts its processes.
    pub(crate) life: u64,
    pub(super) clock_offset: Duration,
    pub(super) paused_until: Timestamp,
    /// Which session it sees with each peer.
    pub(super) sessions: BTreeMap<usize, u64>,
    pub(super) sync_at: Timestamp,
}

impl Node {
    pub(super) fn new(index: usize, options: &Options, random: &mut Random) -> Self {
        let roles = options.roles[index];
        let phases = (0..options.phases).map(|at| (name(&step_name(at)), options.slots));
        let config = Config {
            node: NodeId::of_public_key(&[index as u8]),
            disk: DiskId(index as u64 + 1),
            boot: 0,
            name: format!("n{index}"),
            version: "simulated".to_owned(),
            roles,
            phases: if roles.worker { phases.collect() } else { Vec::new() },
            labels: BTreeMap::new(),
            timing: Timing::DEFAULT,
            limits: Limits::DEFAULT,
        };
        Self {
            core: None,
            config,
            storage: Arc::default(),
            backup: Arc::default(),
            unsynced: VecDeque::new(),
            life: 0,
            clock_offset: random.between(0, 1_000_000),
            paused_until: Timestamp::default(),
            sessions: BTreeMap::new(),
            sync_at: Timestamp::default(),
        }
    }

    /// What its disk holds of a job.
    pub(crate) fn on_disk(&self, pipeline: PipelineId, job: JobId) -> Option<JobRecord> {
        let mut start = pipeline.to_be_bytes().to_vec();
        start.extend_from_slice(&job.to_be_bytes());
        let mut end = start.clone();
        end.extend_from_slice(&[0xff; 3]);
        let rows = self.storage.scan(Table::Jobs, &start, &end, usize::MAX);
        let rows = rows.expect("memory can be read");
        let mut record = JobRecord::default();
        for (key, bytes) in &rows {
            let tag = u16::from_be_bytes([key[32], key[33]]);
            record.merge(&Component { tag, bytes: bytes.clone() }).expect("it reads back");
        }
        (!rows.is_empty()).then_some(record)
    }

    /// How its disk is read.
    pub(crate) fn reader(&self) -> StoreReader {
        StoreReader::new(self.storage.clone())
    }
}

impl World {
    pub(super) fn start(&mut self, at: usize) {
        self.note(at, "start");
        let (now, seed) = (self.local(at), self.random.next());
        let node = &mut self.nodes[at];
        node.life += 1;
        node.config.boot += 1;
        node.sync_at = self.now;
        let reader = Box::new(node.reader());
        let unix_ms = 1_700_000_000_000 + self.now.as_millis();
        let core = Core::new(node.config.clone(), seed, now, unix_ms, reader);
        node.core = Some(core.expect("the disk can be read"));
        #[cfg(feature = "mutants")]
        if let Some(core) = &mut node.core {
            core.mutate(self.options.mutant);
        }
        let (disk, boot) = (node.config.disk, node.config.boot);
        self.tell(Fact::Up { at, disk, boot });
        self.drain(at);
    }

    /// A process is gone; of what waited for its disk, some first part may have got there.
    pub(super) fn crash(&mut self, at: usize) {
        if self.nodes[at].core.take().is_none() {
            return;
        }
        self.note(at, "crash");
        let kept = self.random.below(self.nodes[at].unsynced.len() + 1);
        let node = &mut self.nodes[at];
        node.life += 1;
        for (_, writes) in node.unsynced.drain(..).take(kept) {
            node.storage.write(&writes, true).expect("memory takes it");
        }
        node.unsynced.clear();
        node.sessions.clear();
        node.paused_until = self.now;
        self.tell(Fact::Crashed { at });
        for peer in (0..self.nodes.len()).filter(|peer| *peer != at) {
            let notice = self.random.between(0, 100);
            self.cut(at, peer, notice);
        }
    }

    /// The disk of a node that does not run is replaced: by an empty one, or by an older copy.
    pub(super) fn replace_disk(&mut self, at: usize, restored: bool) {
        self.note(at, "disk replaced");
        let fresh = DiskId(self.random.next());
        let node = &mut self.nodes[at];
        let old = std::mem::replace(&mut node.config.disk, fresh);
        node.storage = match restored {
            true => Arc::new(node.backup.copy()),
            false => Arc::default(),
        };
        self.tell(Fact::DiskReplaced { at, old, new: fresh, restored });
    }

    pub(super) fn persist(&mut self, at: usize, id: PersistId, writes: Vec<Write>) {
        let sync = match writes.is_empty() {
            true => Duration::ZERO,
            false => self.random.between(0, self.options.sync_ms),
        };
        let node = &mut self.nodes[at];
        let done = node.sync_at.max(self.now) + sync;
        node.sync_at = done;
        node.unsynced.push_back((id, writes));
        let life = node.life;
        self.push_at(done, Event::Synced { at, life, id });
    }

    pub(super) fn synced(&mut self, at: usize, life: u64, id: PersistId) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        let Some((_, writes)) = node.unsynced.pop_front().filter(|(first, _)| *first == id) else {
            return;
        };
        node.storage.write(&writes, true).expect("memory takes it");
        self.note(at, "synced");
        self.input(at, Input::Persisted(id));
    }
}
