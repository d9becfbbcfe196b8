//! Where a node's state lies: tables, keys, writes, and how the core reads.
//!
//! Keys sort so that one pipeline's jobs lie together, and one job's components behind each other:
//! `Jobs: pipeline(16) job(16) tag(2)`, `Live: pipeline(16) job(16)`, `Meta: kind(1) rest`,
//! `Ended: pipeline(16) end(1) ms(8) job(16)`, `Journal: kind(1) sequence(8)`.

use std::fmt;

use bytes::{Bytes, BytesMut};
use thiserror::Error;

use crate::id::{JobId, PipelineId};

/// A table; on disk, a column family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// The node's identity, votes, catalog, members, counters.
    Meta,
    /// Components of job records.
    Jobs,
    /// Which jobs are unfinished, so that a start reads only those; the latest are in the journal.
    Live,
    /// Which jobs have ended, by how and when, so that the oldest are found.
    Ended,
    /// What changed last of unfinished jobs, many in a row.
    Journal,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Meta, Self::Jobs, Self::Live, Self::Ended, Self::Journal];

    /// Its name on disk.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Jobs => "jobs",
            Self::Live => "live",
            Self::Ended => "ended",
            Self::Journal => "journal",
        }
    }
}

/// One change; a batch of them is applied as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets a key.
    Put {
        /// Where.
        table: Table,
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// Removes a key.
    Delete {
        /// Where.
        table: Table,
        /// The key.
        key: Bytes,
    },
    /// Removes all keys from `start` up to, not including, `end`.
    DeleteRange {
        /// Where.
        table: Table,
        /// The first key.
        start: Bytes,
        /// The key behind the last.
        end: Bytes,
    },
}

/// The store could not be read. Nothing was changed; the node cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("reading {table} failed: {reason}")]
pub struct ReadError {
    /// What was read.
    pub table: &'static str,
    /// Why not.
    pub reason: String,
}

/// A key and its value.
pub type Row = (Bytes, Bytes);

/// How the core reads what it once asked to persist.
///
/// A read sees every write that was reported as persisted, and may see later ones.
pub trait Reader: Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// The disk fails or its content is damaged.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadError>;

    /// The rows from `start` up to, not including, `end`, in order, at most `limit`.
    ///
    /// # Errors
    /// The disk fails or its content is damaged.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError>;

    /// The rows of the same range, the last first, at most `limit`.
    ///
    /// # Errors
    /// The disk fails or its content is damaged.
    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError>;
}

impl fmt::Debug for dyn Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

/// The key of one component of a job's record.
pub(crate) fn component_key(pipeline: PipelineId, job: JobId, tag: u16) -> Bytes {
    let mut key = BytesMut::with_capacity(34);
    put_component_key(&mut key, pipeline, job, tag);
    key.freeze()
}

/// Appends the key of one component of a job's record.
pub(crate) fn put_component_key(out: &mut BytesMut, pipeline: PipelineId, job: JobId, tag: u16) {
    let mut key = [0; 34];
    key[..16].copy_from_slice(&pipeline.to_be_bytes());
    key[16..32].copy_from_slice(&job.to_be_bytes());
    key[32..].copy_from_slice(&tag.to_be_bytes());
    out.extend_from_slice(&key);
}

/// The key of a job in [`Table::Live`], and the start of its components in [`Table::Jobs`].
pub(crate) fn job_key(pipeline: PipelineId, job: JobId) -> Bytes {
    let mut key = [0; 32];
    key[..16].copy_from_slice(&pipeline.to_be_bytes());
    key[16..].copy_from_slice(&job.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

/// The key of a job in [`Table::Ended`].
pub(crate) fn ended_key(pipeline: PipelineId, end: u8, at_ms: u64, job: JobId) -> Bytes {
    let mut key = [0; 41];
    key[..16].copy_from_slice(&pipeline.to_be_bytes());
    key[16] = end;
    key[17..25].copy_from_slice(&at_ms.to_be_bytes());
    key[25..].copy_from_slice(&job.to_be_bytes());
    Bytes::copy_from_slice(&key)
}

/// The job that a key of [`Table::Ended`] names, and when it ended.
pub(crate) fn parse_ended_key(key: &[u8]) -> Option<(u64, JobId)> {
    let at_ms = u64::from_be_bytes(key.get(17..25)?.try_into().ok()?);
    Some((at_ms, JobId::from_be_bytes(key.get(25..41)?.try_into().ok()?)))
}

/// Reads a key of [`Table::Live`] or [`Table::Jobs`]; the tag is 0 where there is none.
pub(crate) fn parse_key(key: &[u8]) -> Option<(PipelineId, JobId, u16)> {
    let pipeline = PipelineId::from_be_bytes(key.get(..16)?.try_into().ok()?);
    let job = JobId::from_be_bytes(key.get(16..32)?.try_into().ok()?);
    let tag = match key.get(32..)? {
        [] => 0,
        [high, low] => u16::from_be_bytes([*high, *low]),
        _ => return None,
    };
    Some((pipeline, job, tag))
}
