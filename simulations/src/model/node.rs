//! One node of the model: the real core, its disk, and what its shell has to do for it.
//!
//! States share nodes that no step has changed since, and the digest of each is taken once.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    sync::Arc,
};

use carbonmesh_protocol::{
    config::Config,
    core::{Core, GroupSnapshot, StoredPromise, stored_promise},
    id::{JobId, PipelineId, Token},
    io::PersistId,
    journal::changes,
    record::{Component, JobRecord},
    store::{Reader, Table, Write},
    time::Timestamp,
};
use carbonmesh_storage::{MemoryStorage, Storage, StoreReader};

use super::digest::Digest;

/// The wall clock when a node's own clock stands at zero.
const UNIX_MS: u64 = 1_700_000_000_000;

/// What is synced. A change makes another disk, so that states can share one.
#[derive(Clone, Default)]
pub(super) struct Disk {
    rows: Arc<MemoryStorage>,
    digest: u128,
}

impl Disk {
    pub(super) fn reader(&self) -> StoreReader {
        StoreReader::new(self.rows.clone())
    }

    fn with(&self, writes: &[Write]) -> Self {
        let rows = self.rows.copy();
        rows.write(writes, true).expect("memory takes it");
        let digest = Digest::of(|into| {
            Table::ALL.into_iter().try_for_each(|table| {
                let all = rows.scan(table, &[], &[0xff; 40], usize::MAX);
                write!(into, "{:?}", all.expect("memory can be read"))
            })
        });
        Self { rows: Arc::new(rows), digest }
    }

    /// What is on it of a job.
    pub(super) fn record(&self, pipeline: PipelineId, job: JobId) -> Option<JobRecord> {
        let mut start = pipeline.to_be_bytes().to_vec();
        start.extend_from_slice(&job.to_be_bytes());
        let mut end = start.clone();
        end.extend_from_slice(&[0xff; 3]);
        let rows = self.reader().scan(Table::Jobs, &start, &end, usize::MAX);
        let rows = rows.expect("memory can be read");
        let mut record = JobRecord::default();
        for (key, bytes) in &rows {
            let tag = u16::from_be_bytes([key[32], key[33]]);
            record.merge(&Component { tag, bytes: bytes.clone() }).expect("it reads back");
        }
        let journal = self.reader().scan(Table::Journal, &[], &[u8::MAX], usize::MAX);
        for (key, value) in journal.expect("memory can be read").iter().filter(|_| !rows.is_empty())
        {
            let read = changes(key, value).expect("it reads back").unwrap_or_default();
            let of = read.0.iter().filter(|(of, _)| *of == pipeline).flat_map(|(_, all)| all);
            for component in of.filter(|it| it.job == job).flat_map(|it| &it.components) {
                record.merge(component).expect("it reads back");
            }
        }
        (!rows.is_empty()).then_some(record)
    }

    /// What its node has promised.
    pub(super) fn promise(&self, pipeline: PipelineId) -> Option<StoredPromise> {
        stored_promise(&self.reader(), pipeline).expect("memory can be read")
    }
}

impl PartialEq for Disk {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// See the [module](self).
#[derive(Clone)]
pub(super) struct Node {
    pub(super) core: Core,
    pub(super) config: Config,
    pub(super) disk: Disk,
    /// Batches that are not synced, oldest first.
    pub(super) unsynced: VecDeque<(PersistId, Arc<Vec<Write>>)>,
    /// Attempts that run here, with their job and the name of its step.
    pub(super) attempts: BTreeMap<Token, (JobId, String)>,
    /// Its own clock: it stands still until a timer is made to fire.
    pub(super) clock: Timestamp,
    digest: u128,
}

impl Node {
    /// A process that starts for the first time.
    pub(super) fn new(config: Config) -> Self {
        let (disk, clock) = (Disk::default(), Timestamp::from_millis(1000));
        let core = start(&config, clock, &disk);
        let (unsynced, attempts) = (VecDeque::new(), BTreeMap::new());
        Self { core, config, disk, unsynced, attempts, clock, digest: 0 }
    }

    /// Its process is killed, after so many of the batches under way got to the disk, and is
    /// started again.
    pub(super) fn restart(&mut self, kept: usize) {
        for (_, writes) in std::mem::take(&mut self.unsynced).into_iter().take(kept) {
            self.disk = self.disk.with(&writes);
        }
        self.attempts.clear();
        self.config.boot += 1;
        self.core = start(&self.config, self.clock, &self.disk);
    }

    /// The oldest batch is on disk; its number is to be fed back.
    pub(super) fn sync(&mut self) -> Option<PersistId> {
        let (id, writes) = self.unsynced.pop_front()?;
        if !writes.is_empty() {
            self.disk = self.disk.with(&writes);
            self.core = self.core.fork(Box::new(self.disk.reader()));
        }
        Some(id)
    }

    /// What it says of the one group.
    pub(super) fn group(&self, pipeline: PipelineId) -> Option<GroupSnapshot> {
        self.core.snapshot().groups.remove(&pipeline)
    }

    /// Takes the digest, once a step is over.
    pub(super) fn seal(&mut self) {
        self.digest = Digest::of(|into| {
            self.core.write_state(into)?;
            let (disk, attempts) = (self.disk.digest, &self.attempts);
            write!(into, "{disk} {:?} {attempts:?} {:?}", self.unsynced, self.clock)
        });
    }

    pub(super) fn digest(&self) -> u128 {
        self.digest
    }
}

fn start(config: &Config, clock: Timestamp, disk: &Disk) -> Core {
    // Chance only spreads delays, and which of two nodes is faster is open here anyway.
    let seed = config.disk.0;
    let unix_ms = UNIX_MS + clock.as_millis();
    let core = Core::new(config.clone(), seed, clock, unix_ms, Box::new(disk.reader()));
    core.expect("the disk can be read")
}
