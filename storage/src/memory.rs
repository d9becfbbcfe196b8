//! A store in memory, with crashes: what was not made durable can be lost.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use carbonmesh_protocol::store::{Row, Table, Write};

use crate::storage::{Statistics, Storage, StorageError};

type Rows = BTreeMap<Bytes, Bytes>;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct MemoryStorage(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    tables: [Rows; Table::ALL.len()],
    /// What undoes each change that is not durable, oldest first.
    undo: Vec<(Table, Bytes, Option<Bytes>)>,
    sequence: u64,
}

impl MemoryStorage {
    /// Loses everything that was not made durable, as a power cut does.
    pub fn crash(&self) {
        let mut state = self.state();
        while let Some((table, key, old)) = state.undo.pop() {
            let rows = &mut state.tables[table as usize];
            match old {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }

    /// Another disk with the same content, all of it durable.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.state();
        let (tables, sequence) = (state.tables.clone(), state.sequence);
        Self(Mutex::new(State { tables, undo: Vec::new(), sequence }))
    }

    /// Flips a bit of some value, as a bad disk does. `pick` says which; says whether there was one.
    pub fn damage(&self, pick: u64) -> bool {
        let mut state = self.state();
        let values = || Table::ALL.into_iter().map(|table| table as usize);
        let full: Vec<(usize, Bytes)> = values()
            .flat_map(|table| state.tables[table].iter().map(move |row| (table, row)))
            .filter(|(_, (_, value))| !value.is_empty())
            .map(|(table, (key, _))| (table, key.clone()))
            .collect();
        let Some((table, key)) = full.get(pick as usize % full.len().max(1)) else { return false };
        let Some(value) = state.tables[*table].get_mut(key) else { return false };
        let mut bytes = value.to_vec();
        let at = (pick >> 32) as usize % bytes.len();
        bytes[at] ^= 1 << (pick >> 61);
        *value = bytes.into();
        true
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn set(&mut self, table: Table, key: &Bytes, value: Option<&Bytes>) {
        let rows = &mut self.tables[table as usize];
        let old = match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
        self.undo.push((table, key.clone(), old));
        self.sequence += 1;
    }
}

impl Storage for MemoryStorage {
    fn write(&self, batch: &[Write], durable: bool) -> Result<(), StorageError> {
        let mut state = self.state();
        for write in batch {
            match write {
                Write::Put { table, key, value } => state.set(*table, key, Some(value)),
                Write::Delete { table, key } => state.set(*table, key, None),
                Write::DeleteRange { table, start, end } => {
                    if start >= end {
                        continue;
                    }
                    let rows = &state.tables[*table as usize];
                    let keys: Vec<Bytes> = rows
                        .range(start.clone()..end.clone())
                        .map(|(key, _)| key.clone())
                        .collect();
                    keys.iter().for_each(|key| state.set(*table, key, None));
                }
            }
        }
        if durable {
            state.undo.clear();
        }
        Ok(())
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.state().tables[table as usize].get(key).cloned())
    }

    fn scan(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StorageError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let state = self.state();
        let rows = state.tables[table as usize]
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn scan_back(
        &self,
        table: Table,
        start: &[u8],
        end: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, StorageError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let state = self.state();
        let rows = state.tables[table as usize]
            .range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)))
            .rev()
            .take(limit);
        Ok(rows.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.state().undo.clear();
        Ok(())
    }

    fn statistics(&self) -> Result<Statistics, StorageError> {
        let state = self.state();
        let rows = state.tables.iter().flatten();
        let bytes = rows.map(|(key, value)| (key.len() + value.len()) as u64).sum();
        Ok(Statistics {
            table_bytes: bytes,
            live_bytes: bytes,
            sequence: state.sequence,
            keys: Table::ALL
                .into_iter()
                .map(|table| (table.name(), state.tables[table as usize].len() as u64))
                .collect(),
            ..Statistics::default()
        })
    }
}
