//! What a store can do, whichever it is.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use bytes::Bytes;
use carbonmesh_protocol::store::{ReadError, Reader, Row, Table, Write};
use thiserror::Error;

/// The store failed. A batch that was being written is there as a whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StorageError {
    /// There is no room.
    #[error("the disk is full: free some space and start the node again ({0})")]
    Full(String),
    /// What is stored is damaged.
    #[error("the store is damaged: {0}")]
    Corrupt(String),
    /// The system refused.
    #[error("{0}")]
    Io(String),
}

/// How much a store holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Bytes that its tables take on disk; the log is not counted.
    pub table_bytes: u64,
    /// About how many of them hold what is still there: the others wait to be given back.
    pub live_bytes: u64,
    /// The number of the last change.
    pub sequence: u64,
    /// About how many keys each table has.
    pub keys: BTreeMap<&'static str, u64>,
    /// Bytes of changes in memory that are in no table yet.
    pub memtable_bytes: u64,
    /// Bytes that have to be written again to bring the tables in order.
    pub pending_compaction_bytes: u64,
    /// Bytes of tables that are kept in memory.
    pub cache_bytes: u64,
    /// How many compactions are under way.
    pub compactions: u64,
    /// How many flushes of memory to tables are under way.
    pub flushes: u64,
    /// Errors in the background since the store was opened.
    pub background_errors: u64,
    /// Bytes a second to which writes are slowed down; 0 while they are not.
    pub delayed_write_rate: u64,
    /// Whether writes wait until the tables are in order.
    pub is_write_stopped: bool,
}

/// An ordered key-value store with atomic batches.
pub trait Storage: Send + Sync + std::fmt::Debug {
    /// Applies a batch as a whole. If `durable`, it and all before it survive a power cut once this
    /// returns.
    ///
    /// # Errors
    /// The disk fails or is full. The store must not be written to any more: whether the batch is
    /// on disk is not known.
    fn write(&self, batch: &[Write], durable: bool) -> Result<(), StorageError>;

    /// The value of a key.
    ///
    /// # Errors
    /// The disk fails, or what is stored is damaged.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// The rows from `start` up to, not including, `end`, in order, at most `limit`.
    ///
    /// # Errors
    /// The disk fails, or what is stored is damaged.
    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StorageError>;

    /// The rows of the same range, the last first, at most `limit`.
    ///
    /// # Errors
    /// The disk fails, or what is stored is damaged.
    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StorageError>;

    /// Makes all writes so far durable.
    ///
    /// # Errors
    /// The disk fails or is full.
    fn flush(&self) -> Result<(), StorageError>;

    /// How much it holds.
    ///
    /// # Errors
    /// The disk fails.
    fn statistics(&self) -> Result<Statistics, StorageError>;

    /// Copies the whole store, as it is at one moment, into a folder that does not exist yet, and
    /// goes on being written to meanwhile. What was written before the call is in the copy.
    ///
    /// # Errors
    /// The disk fails or is full, or this kind of store lies in no folder. The copy may be there in
    /// part; the store itself is as before.
    fn copy_to(&self, _folder: &Path) -> Result<(), StorageError> {
        Err(StorageError::Io("this kind of store cannot be copied into a folder".to_owned()))
    }
}

/// A store as the core reads it.
#[derive(Clone, Debug)]
pub struct StoreReader(Arc<dyn Storage>);

impl StoreReader {
    /// Reads from `storage`.
    pub fn new(storage: Arc<dyn Storage>) -> Self {
        Self(storage)
    }
}

impl Reader for StoreReader {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.0.get(table, key).map_err(|error| failed(table, &error))
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        self.0.scan(table, start, end, limit).map_err(|error| failed(table, &error))
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, ReadError> {
        self.0.scan_back(table, start, end, limit).map_err(|error| failed(table, &error))
    }
}

fn failed(table: Table, error: &StorageError) -> ReadError {
    ReadError { table: table.name(), reason: error.to_string() }
}
