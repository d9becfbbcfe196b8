//! A node's disk, and what can be read from it.
//!
//! Invariants ask for the same records again and again: what was read is kept until it is written
//! anew.

use std::{cell::RefCell, collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use carbonmesh_protocol::{
    id::{JobId, PipelineId},
    journal::{Changes, changes},
    message::JobUpdate,
    record::{Component, JobRecord},
    store::{Table, Write},
};
use carbonmesh_storage::{MemoryStorage, Storage, StoreReader};
use rustc_hash::FxHashMap;

type Records = FxHashMap<(PipelineId, JobId), Option<Arc<JobRecord>>>;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Disk {
    storage: Arc<MemoryStorage>,
    /// Whether something on it cannot be read.
    damaged: bool,
    /// How often all jobs of a pipeline were taken off it, since others hold them.
    emptied: BTreeMap<PipelineId, u32>,
    /// What its journal says of jobs, by row.
    journal: BTreeMap<Bytes, Vec<(PipelineId, JobUpdate)>>,
    /// Jobs that were read; those that are not there as well.
    read: RefCell<Records>,
}

impl Disk {
    /// Another disk with the same content.
    pub(crate) fn copy(&self) -> Self {
        Self {
            storage: self.storage.copy().into(),
            damaged: self.damaged,
            emptied: self.emptied.clone(),
            journal: self.journal.clone(),
            read: RefCell::default(),
        }
    }

    /// How it is read by a core.
    pub(crate) fn reader(&self) -> StoreReader {
        StoreReader::new(self.storage.clone())
    }

    /// Whether something on it cannot be read.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged
    }

    /// How often all jobs of a pipeline were taken off it.
    pub(crate) fn emptied(&self, pipeline: PipelineId) -> u32 {
        self.emptied.get(&pipeline).copied().unwrap_or_default()
    }

    /// Makes writes durable.
    pub(crate) fn write(&mut self, writes: &[Write]) {
        let read = self.read.get_mut();
        for write in writes {
            match write {
                Write::Put { table: Table::Jobs, key, .. }
                | Write::Delete { table: Table::Jobs, key } => drop(read.remove(&job_of(key))),
                Write::DeleteRange { table: Table::Jobs, start, .. } => {
                    let (pipeline, _) = job_of(start);
                    read.retain(|(of, _), _| *of != pipeline);
                    *self.emptied.entry(pipeline).or_default() += 1;
                }
                Write::Put { table: Table::Journal, key, value } => {
                    let Some(Changes(changes)) = changes(key, value).expect("it reads back") else {
                        continue;
                    };
                    let each = changes.into_iter().flat_map(|(pipeline, updates)| {
                        updates.into_iter().map(move |update| (pipeline, update))
                    });
                    let updates: Vec<(PipelineId, JobUpdate)> = each.collect();
                    for (pipeline, update) in &updates {
                        read.remove(&(*pipeline, update.job));
                    }
                    self.journal.insert(key.clone(), updates);
                }
                Write::Delete { table: Table::Journal, key } => {
                    for (pipeline, update) in self.journal.remove(key).into_iter().flatten() {
                        read.remove(&(pipeline, update.job));
                    }
                }
                Write::DeleteRange { table: Table::Journal, .. } => {
                    self.journal.clear();
                    read.clear();
                }
                _ => {}
            }
        }
        self.storage.write(writes, true).expect("memory takes it");
    }

    /// Flips a bit; says whether there was one.
    pub(crate) fn damage(&mut self, pick: u64) -> bool {
        let damaged = self.storage.damage(pick);
        self.damaged |= damaged;
        self.read.get_mut().clear();
        damaged
    }

    /// What it holds of a job, as far as that can be read.
    pub(crate) fn job(&self, pipeline: PipelineId, job: JobId) -> Option<Arc<JobRecord>> {
        let mut read = self.read.borrow_mut();
        read.entry((pipeline, job)).or_insert_with(|| self.read_job(pipeline, job)).clone()
    }

    fn read_job(&self, pipeline: PipelineId, job: JobId) -> Option<Arc<JobRecord>> {
        let start = key(pipeline, job, 0);
        let end = [&key(pipeline, job, u16::MAX)[..], &[0]].concat();
        let rows = self.storage.scan(Table::Jobs, &start, &end, usize::MAX).expect("memory reads");
        let mut record = JobRecord::default();
        let mut readable = !rows.is_empty();
        for (key, bytes) in &rows {
            let tag = u16::from_be_bytes([key[32], key[33]]);
            let merged = record.merge(&Component { tag, bytes: bytes.clone() });
            assert!(merged.is_ok() || self.damaged, "it reads back");
            readable &= merged.is_ok();
        }
        // What lies in a row that cannot be read came later, as a rule.
        for component in self.journaled(pipeline, job).filter(|_| readable) {
            record.merge(component).expect("it reads back");
        }
        (!rows.is_empty()).then(|| Arc::new(record))
    }

    /// Whether it has exactly this component of a job.
    pub(crate) fn has(&self, pipeline: PipelineId, job: JobId, component: &Component) -> bool {
        let key = key(pipeline, job, component.tag);
        let value = self.storage.get(Table::Jobs, &key).expect("memory reads");
        let journaled = || self.journaled(pipeline, job).any(|it| it == component);
        value.is_some_and(|value| value == component.bytes) || journaled()
    }

    /// What its journal says of a job.
    fn journaled(&self, pipeline: PipelineId, job: JobId) -> impl Iterator<Item = &Component> {
        let all = self.journal.values().flatten();
        let of = all.filter(move |(of, update)| (*of, update.job) == (pipeline, job));
        of.flat_map(|(_, update)| &update.components)
    }
}

/// The key of a component: its pipeline, its job and its tag.
fn key(pipeline: PipelineId, job: JobId, tag: u16) -> [u8; 34] {
    let mut key = [0; 34];
    key[..16].copy_from_slice(&pipeline.to_be_bytes());
    key[16..32].copy_from_slice(&job.to_be_bytes());
    key[32..].copy_from_slice(&tag.to_be_bytes());
    key
}

fn job_of(key: &[u8]) -> (PipelineId, JobId) {
    let part = |at: usize| key[at..at + 16].try_into().expect("16 bytes");
    (PipelineId::from_be_bytes(part(0)), JobId::from_be_bytes(part(16)))
}
