//! A store whose values are sealed; its keys are not, since they have to keep their order.
//!
//! Invariant: a value opens only in the table and under the key that it was written to.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use carbonmesh_protocol::store::{Row, Table, Write};
use data_encoding::HEXLOWER;

use crate::{
    seal::Sealer,
    storage::{Statistics, Storage, StorageError},
};

/// Seals what goes into another store, and opens what comes out of it.
#[derive(Debug)]
pub struct SealedStorage {
    inner: Arc<dyn Storage>,
    sealer: Sealer,
}

impl SealedStorage {
    /// On top of a store that holds nothing but what was sealed with the same key.
    pub fn new(inner: Arc<dyn Storage>, sealer: Sealer) -> Self {
        Self { inner, sealer }
    }

    fn seal(&self, write: &Write) -> Write {
        match write {
            Write::Put { table, key, value } => {
                let value = self.sealer.seal(&place(*table, key), value).into();
                Write::Put { table: *table, key: key.clone(), value }
            }
            other => other.clone(),
        }
    }

    fn open(&self, table: Table, key: &[u8], sealed: &[u8]) -> Result<Bytes, StorageError> {
        let opened = self.sealer.open(&place(table, key), sealed).map(Bytes::from);
        opened.ok_or_else(|| {
            let (key, table) = (HEXLOWER.encode(key), table.name());
            let reason = format!(
                "row {key} of {table} does not open: it was changed, or stands where it was not written"
            );
            StorageError::Corrupt(reason)
        })
    }

    fn open_all(&self, table: Table, rows: Vec<Row>) -> Result<Vec<Row>, StorageError> {
        let open = |(key, value): Row| {
            let value = self.open(table, &key, &value)?;
            Ok((key, value))
        };
        rows.into_iter().map(open).collect()
    }
}

/// Where a value stands.
fn place(table: Table, key: &[u8]) -> Vec<u8> {
    // On disk for ever: tables keep their numbers.
    let number = match table {
        Table::Meta => 0,
        Table::Jobs => 1,
        Table::Live => 2,
        Table::Ended => 3,
        Table::Journal => 4,
    };
    [&[number], key].concat()
}

impl Storage for SealedStorage {
    fn write(&self, batch: &[Write], durable: bool) -> Result<(), StorageError> {
        let sealed: Vec<Write> = batch.iter().map(|write| self.seal(write)).collect();
        self.inner.write(&sealed, durable)
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let sealed = self.inner.get(table, key)?;
        sealed.map(|sealed| self.open(table, key, &sealed)).transpose()
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StorageError> {
        self.open_all(table, self.inner.scan(table, start, end, limit)?)
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StorageError> {
        self.open_all(table, self.inner.scan_back(table, start, end, limit)?)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.inner.flush()
    }

    fn statistics(&self) -> Result<Statistics, StorageError> {
        self.inner.statistics()
    }

    fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        self.inner.copy_to(folder)
    }
}
