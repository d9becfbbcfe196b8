//! What rows of [`Table::Journal`](crate::store::Table::Journal) hold: what changed in a batch, before each
//! job has rows of its own.
//!
//! A key is a kind and a sequence: `kind(1) sequence(8)`. Rows of one kind are written in the order of their
//! sequences.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, DecodeError, Encoded, Kind},
    id::{JobId, PipelineId},
    message::JobUpdate,
    record::{Component, JobRecord},
    store::{ReadError, Reader, Table},
};

/// The kind of rows with [`Changes`].
const CHANGES: u8 = 1;

/// The kind of rows with [`Arrivals`].
const ARRIVALS: u8 = 2;

/// Control values of unfinished jobs, as a batch left them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes(pub Vec<(PipelineId, Vec<JobUpdate>)>);

impl Encoded for Changes {
    const KIND: Kind = 0x130;
}

/// Jobs that a batch made unfinished ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrivals(pub Vec<(PipelineId, Vec<JobId>)>);

impl Encoded for Arrivals {
    const KIND: Kind = 0x131;
}

/// A row's value.
pub(crate) trait Entry: Encoded {
    /// The first byte of its key.
    const PREFIX: u8;

    /// The key of the row that has this sequence.
    fn key(sequence: u64) -> Bytes {
        let mut key = [Self::PREFIX; 9];
        key[1..].copy_from_slice(&sequence.to_be_bytes());
        Bytes::copy_from_slice(&key)
    }
}

impl Entry for Changes {
    const PREFIX: u8 = CHANGES;
}

impl Entry for Arrivals {
    const PREFIX: u8 = ARRIVALS;
}

/// The changes in a row; none if it holds something else.
///
/// # Errors
/// It is damaged.
pub fn changes(key: &[u8], value: &[u8]) -> Result<Option<Changes>, DecodeError> {
    match key.first() {
        Some(&CHANGES) => codec::decode(value).map(Some),
        _ => Ok(None),
    }
}

/// All that a journal says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Content {
    changes: FxHashMap<(PipelineId, JobId), Vec<Component>>,
    arrivals: BTreeMap<PipelineId, BTreeSet<JobId>>,
    /// The last sequence.
    pub(crate) last: u64,
}

impl Content {
    /// Reads all of it.
    pub(crate) fn read(reader: &dyn Reader) -> Result<Self, ReadError> {
        let mut content = Self::default();
        for (key, value) in reader.scan(Table::Journal, &[], &[u8::MAX], usize::MAX)? {
            let damaged = |error: DecodeError| ReadError {
                table: Table::Journal.name(),
                reason: format!("row {key:02x?} is damaged: {error}"),
            };
            let sequence =
                key.get(1..).and_then(|rest| rest.try_into().ok()).map(u64::from_be_bytes);
            content.last = content.last.max(sequence.unwrap_or_default());
            if let Some(Changes(changes)) = changes(&key, &value).map_err(damaged)? {
                for (pipeline, updates) in changes {
                    for JobUpdate { job, components } in updates {
                        content.changes.entry((pipeline, job)).or_default().extend(components);
                    }
                }
            } else if key.first() == Some(&ARRIVALS) {
                let Arrivals(arrivals) = codec::decode(&value).map_err(damaged)?;
                for (pipeline, jobs) in arrivals {
                    content.arrivals.entry(pipeline).or_default().extend(jobs);
                }
            }
        }
        Ok(content)
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Whose jobs it tells of.
    pub(crate) fn pipelines(&self) -> BTreeSet<PipelineId> {
        let changed = self.changes.keys().map(|(pipeline, _)| *pipeline);
        changed.chain(self.arrivals.keys().copied()).collect()
    }

    /// The jobs of a pipeline that became unfinished ones.
    pub(crate) fn arrivals(&self, pipeline: PipelineId) -> impl Iterator<Item = JobId> {
        self.arrivals.get(&pipeline).into_iter().flatten().copied()
    }

    /// Joins what it says of a job with what rows of its own do. Gives back the tags of what was news.
    pub(crate) fn join(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &mut JobRecord,
    ) -> Result<BTreeSet<u16>, ReadError> {
        let mut news = BTreeSet::new();
        for component in self.changes.get(&(pipeline, job)).into_iter().flatten() {
            let joined = record.merge(component).map_err(|error| ReadError {
                table: Table::Journal.name(),
                reason: format!("what it says of job {job} is damaged: {error}"),
            });
            news.extend(joined?.then_some(component.tag));
        }
        Ok(news)
    }
}
