//! What a store can do, whichever it is.

use std::{collections::BTreeMap, sync::Arc};

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
    /// The number of the last change.
    pub sequence: u64,
    /// About how many keys each table has.
    pub keys: BTreeMap<&'static str, u64>,
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
}

fn failed(table: Table, error: &StorageError) -> ReadError {
    ReadError { table: table.name(), reason: error.to_string() }
}
