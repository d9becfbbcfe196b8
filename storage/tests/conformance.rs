//! One suite that every store passes.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use bytes::Bytes;
use carbonmesh_protocol::store::{Reader, Table, Write};
use carbonmesh_storage::{
    MemoryStorage, RocksStorage, SealedStorage, Sealer, Storage, StoreReader,
};

fn put(table: Table, key: &str, value: &str) -> Write {
    Write::Put { table, key: bytes(key), value: bytes(value) }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn keys(storage: &dyn Storage, table: Table, start: &str, end: &str, limit: usize) -> Vec<Bytes> {
    let rows = storage.scan(table, start.as_bytes(), end.as_bytes(), limit).unwrap();
    rows.into_iter().map(|(key, _)| key).collect()
}

/// Runs the whole suite on each kind of store.
fn on_each(check: impl Fn(Arc<dyn Storage>)) {
    check(Arc::new(MemoryStorage::default()));
    let sealed = SealedStorage::new(Arc::new(MemoryStorage::default()), Sealer::new(&[7; 32]));
    check(Arc::new(sealed));
    let folder = tempfile::tempdir().unwrap();
    check(Arc::new(RocksStorage::open(&folder.path().join("store")).unwrap()));
}

#[test]
fn what_is_put_is_got_and_tables_are_apart() {
    on_each(|storage| {
        storage.write(&[put(Table::Jobs, "k", "1"), put(Table::Jobs, "k", "2")], true).unwrap();
        assert_eq!(storage.get(Table::Jobs, b"k").unwrap(), Some(bytes("2")));
        assert_eq!(storage.get(Table::Live, b"k").unwrap(), None);
        let delete = Write::Delete { table: Table::Jobs, key: bytes("k") };
        storage.write(&[delete.clone(), delete], false).unwrap();
        assert_eq!(storage.get(Table::Jobs, b"k").unwrap(), None);
    });
}

#[test]
fn scans_are_ordered_bounded_and_limited() {
    on_each(|storage| {
        let all = ["b", "a", "d", "c", "aa"].map(|key| put(Table::Live, key, key));
        storage.write(&all, true).unwrap();
        assert_eq!(keys(&*storage, Table::Live, "a", "c", 9), ["a", "aa", "b"]);
        assert_eq!(keys(&*storage, Table::Live, "a", "z", 2), ["a", "aa"]);
        assert!(keys(&*storage, Table::Live, "c", "a", 9).is_empty());
        assert!(keys(&*storage, Table::Live, "c", "c", 9).is_empty());
    });
}

#[test]
fn scans_go_back_from_the_end_of_the_same_range() {
    let back = |storage: &dyn Storage, start: &str, end: &str, limit| -> Vec<Bytes> {
        let rows = storage.scan_back(Table::Live, start.as_bytes(), end.as_bytes(), limit);
        rows.unwrap().into_iter().map(|(key, _)| key).collect()
    };
    on_each(|storage| {
        let all = ["b", "a", "d", "c", "aa"].map(|key| put(Table::Live, key, key));
        storage.write(&all, true).unwrap();
        storage.write(&[put(Table::Jobs, "bb", "another table")], true).unwrap();
        assert_eq!(back(&*storage, "a", "c", 9), ["b", "aa", "a"]);
        assert_eq!(back(&*storage, "aa", "z", 9), ["d", "c", "b", "aa"]);
        assert_eq!(back(&*storage, "a", "z", 2), ["d", "c"]);
        assert!(back(&*storage, "c", "a", 9).is_empty());
        assert!(back(&*storage, "c", "c", 9).is_empty());
    });
}

#[test]
fn a_range_goes_as_a_whole_in_the_order_of_its_batch() {
    on_each(|storage| {
        storage.write(&["a", "b", "c"].map(|key| put(Table::Jobs, key, "old")), true).unwrap();
        let range = |start, end| Write::DeleteRange {
            table: Table::Jobs,
            start: bytes(start),
            end: bytes(end),
        };
        let batch = [range("a", "c"), put(Table::Jobs, "b", "new"), range("z", "a")];
        storage.write(&batch, true).unwrap();
        assert_eq!(keys(&*storage, Table::Jobs, "a", "z", 9), ["b", "c"]);
    });
}

#[test]
fn statistics_count_changes() {
    on_each(|storage| {
        let before = storage.statistics().unwrap().sequence;
        storage.write(&[put(Table::Meta, "k", "1")], false).unwrap();
        storage.flush().unwrap();
        assert!(storage.statistics().unwrap().sequence > before);
    });
}

#[test]
fn the_core_reads_the_same() {
    on_each(|storage| {
        storage.write(&[put(Table::Jobs, "k", "1")], true).unwrap();
        let reader = StoreReader::new(storage);
        assert_eq!(reader.get(Table::Jobs, b"k").unwrap(), Some(bytes("1")));
        assert_eq!(reader.scan(Table::Jobs, b"a", b"z", 9).unwrap().len(), 1);
    });
}

#[test]
fn a_crash_of_the_memory_store_loses_what_was_not_durable() {
    let storage = MemoryStorage::default();
    storage.write(&[put(Table::Jobs, "kept", "1")], false).unwrap();
    storage.write(&[put(Table::Jobs, "synced", "1")], true).unwrap();
    storage.write(&[put(Table::Jobs, "kept", "2"), put(Table::Jobs, "lost", "1")], false).unwrap();
    storage.write(&[Write::Delete { table: Table::Jobs, key: bytes("synced") }], false).unwrap();
    storage.crash();
    assert_eq!(storage.get(Table::Jobs, b"kept").unwrap(), Some(bytes("1")));
    assert_eq!(keys(&storage, Table::Jobs, "a", "z", 9), ["kept", "synced"]);
}
