//! Where a node keeps its state: RocksDB on disk, or memory for simulations.
//!
//! This knows keys, values and batches, and nothing of what they mean. [`DataDir`] owns the folder
//! as a whole: whose it is, which disk it is, and whether it has lost something.

#[cfg(feature = "rocksdb")]
mod data_dir;
#[cfg(feature = "rocksdb")]
mod mark;
mod memory;
#[cfg(feature = "rocksdb")]
mod rocks;
#[cfg(feature = "rocksdb")]
mod seal;
#[cfg(feature = "rocksdb")]
mod sealed;
mod storage;

#[cfg(feature = "rocksdb")]
pub use data_dir::{CopyError, DataDir, FORMAT_VERSION, MarkError, OpenError, encrypt, free_bytes};
pub use memory::MemoryStorage;
#[cfg(feature = "rocksdb")]
pub use rocks::RocksStorage;
#[cfg(feature = "rocksdb")]
pub use seal::{Files, OperatorKey, SEALED_BYTES, SHORTEST_KEY, SealError, Sealer, rekey};
#[cfg(feature = "rocksdb")]
pub use sealed::SealedStorage;
pub use storage::{Statistics, Storage, StorageError, StoreReader};
