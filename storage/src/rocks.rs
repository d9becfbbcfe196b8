//! RocksDB: one column family for each table, a synced log, little memory.

use std::path::Path;

use bytes::Bytes;
use carbonmesh_protocol::store::{Row, Table, Write};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBRecoveryMode, ErrorKind, IteratorMode, LogLevel, Options, ReadOptions,
    WriteBatch, WriteOptions, checkpoint::Checkpoint,
};

use crate::storage::{Statistics, Storage, StorageError};

/// An idle node shall fit into 80 MiB: these two are most of what RocksDB takes.
const CACHE_BYTES: usize = 16 << 20;
const WRITE_BUFFER_BYTES: usize = 16 << 20;

/// Among how many rows in a row those that are gone are counted.
const DELETION_WINDOW: usize = 10_000;

/// How large the files of the first two levels below the newest are; those of each further level are four
/// times as large.
const FILE_BYTES: u64 = 8 << 20;

/// How much is read again at a start, at most.
const LOG_BYTES: u64 = 128 << 20;

/// A store in a folder.
#[derive(Debug)]
pub struct RocksStorage {
    db: DB,
}

impl RocksStorage {
    /// Opens the store, or makes it.
    ///
    /// # Errors
    /// Another process has it open, it is damaged, or the system refuses. Nothing was changed.
    pub fn open(path: &Path) -> Result<Self, rocksdb::Error> {
        let cache = Cache::new_lru_cache(CACHE_BYTES);
        let tables = Table::ALL
            .map(|table| ColumnFamilyDescriptor::new(table.name(), table_options(&cache)));
        let db = DB::open_cf_descriptors(&database_options(), path, tables)?;
        Ok(Self { db })
    }

    fn family(&self, table: Table) -> Result<&ColumnFamily, StorageError> {
        let missing = || StorageError::Corrupt(format!("table {} is missing", table.name()));
        self.db.cf_handle(table.name()).ok_or_else(missing)
    }
}

fn database_options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    // A torn end of the log is what a power cut leaves; the mark tells whether more is missing.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_total_wal_size(LOG_BYTES);
    options.set_db_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(3);
    options.set_max_log_file_size(1 << 20);
    options.set_log_level(LogLevel::Warn);
    options.set_stats_dump_period_sec(0);
    options
}

fn table_options(cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_bloom_filter(10.0, false);
    // Indexes and filters in parts: whole ones of large files push each other out of so small a cache, and
    // each look-up of a record would read and unpack some of them.
    blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    blocks.set_partition_filters(true);
    blocks.set_metadata_block_size(4096);
    blocks.set_pin_top_level_index_and_filter(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES / 2);
    // Rows are written near two places that move on: where jobs come in, and where they run. What lies
    // between is not to be written again with them, so the files of the first levels are small.
    options.set_target_file_size_base(FILE_BYTES);
    options.set_target_file_size_multiplier(4);
    // A file in which this many rows of a window are gone is compacted soon, not only when its level
    // is full: else what was forgotten keeps its room, and scans walk over it.
    options.add_compact_on_deletion_collector_factory(DELETION_WINDOW, DELETION_WINDOW / 2, 0.5);
    options
}

impl Storage for RocksStorage {
    fn write(&self, batch: &[Write], durable: bool) -> Result<(), StorageError> {
        // What grows step by step is copied at each.
        let bytes = BATCH_BYTES + batch.iter().map(size).sum::<usize>();
        let mut rows = WriteBatch::with_capacity_bytes(bytes);
        for write in batch {
            match write {
                Write::Put { table, key, value } => rows.put_cf(self.family(*table)?, key, value),
                Write::Delete { table, key } => rows.delete_cf(self.family(*table)?, key),
                Write::DeleteRange { table, start, end } => {
                    if start < end {
                        rows.delete_range_cf(self.family(*table)?, start, end);
                    }
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(durable);
        self.db.write_opt(rows, &options).map_err(|error| {
            // Nothing is written after that. RocksDB would try to recover in a thread of its own,
            // which ends the process by a signal if that is about to end.
            self.db.cancel_all_background_work(true);
            failed(error)
        })
    }

    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let value = self.db.get_cf(self.family(table)?, key).map_err(failed)?;
        Ok(value.map(Bytes::from))
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
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let from = IteratorMode::From(start, rocksdb::Direction::Forward);
        let rows = self.db.iterator_cf_opt(self.family(table)?, options, from);
        rows.take(limit)
            .map(|row| row.map(|(key, value)| (key.into(), value.into())).map_err(failed))
            .collect()
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
        // Backwards, the bound above is where it begins, and the one below is checked as it goes.
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let rows = self.db.iterator_cf_opt(self.family(table)?, options, IteratorMode::End);
        rows.take(limit)
            .map(|row| row.map(|(key, value)| (key.into(), value.into())).map_err(failed))
            .collect()
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.db.flush_wal(true).map_err(failed)
    }

    fn statistics(&self) -> Result<Statistics, StorageError> {
        let mut statistics =
            Statistics { sequence: self.db.latest_sequence_number(), ..Statistics::default() };
        for table in Table::ALL {
            let family = self.family(table)?;
            let property = |name: &str| {
                self.db.property_int_value_cf(family, name).map(Option::unwrap_or_default)
            };
            statistics.table_bytes += property("rocksdb.total-sst-files-size").map_err(failed)?;
            statistics.live_bytes += property("rocksdb.estimate-live-data-size").map_err(failed)?;
            let keys = property("rocksdb.estimate-num-keys").map_err(failed)?;
            statistics.keys.insert(table.name(), keys);
            statistics.memtable_bytes +=
                property("rocksdb.cur-size-all-mem-tables").map_err(failed)?;
            statistics.pending_compaction_bytes +=
                property("rocksdb.estimate-pending-compaction-bytes").map_err(failed)?;
        }
        // These are of the store as a whole, whichever table is asked.
        let whole = |name: &str| {
            let value = self.db.property_int_value(name).map_err(failed);
            value.map(Option::unwrap_or_default)
        };
        statistics.compactions = whole("rocksdb.num-running-compactions")?;
        statistics.flushes = whole("rocksdb.num-running-flushes")?;
        statistics.background_errors = whole("rocksdb.background-errors")?;
        statistics.delayed_write_rate = whole("rocksdb.actual-delayed-write-rate")?;
        statistics.is_write_stopped = whole("rocksdb.is-write-stopped")? > 0;
        // All tables share one cache.
        let family = self.family(Table::Jobs)?;
        let cache = self.db.property_int_value_cf(family, "rocksdb.block-cache-usage");
        statistics.cache_bytes = cache.map_err(failed)?.unwrap_or_default();
        Ok(statistics)
    }

    fn copy_to(&self, folder: &Path) -> Result<(), StorageError> {
        // Tables are linked where the folder is on the same disk, else copied; they never change.
        let checkpoint = Checkpoint::new(&self.db).map_err(failed)?;
        checkpoint.create_checkpoint(folder).map_err(failed)
    }
}

/// What a batch takes by itself.
const BATCH_BYTES: usize = 12;

/// What a change takes in a batch, at most.
fn size(write: &Write) -> usize {
    const HEAD_BYTES: usize = 16;
    HEAD_BYTES
        + match write {
            Write::Put { key, value, .. } => key.len() + value.len(),
            Write::Delete { key, .. } => key.len(),
            Write::DeleteRange { start, end, .. } => start.len() + end.len(),
        }
}

/// RocksDB tells the system's errors apart in its messages alone.
pub(crate) fn failed(error: rocksdb::Error) -> StorageError {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::Corruption => StorageError::Corrupt(message),
        _ if message.contains("No space left on device") => StorageError::Full(message),
        _ => StorageError::Io(message),
    }
}
