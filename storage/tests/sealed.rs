//! Data folders that are encrypted: what opens them, what does not, and what their bytes tell.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use carbonmesh_protocol::store::{Table, Write};
use carbonmesh_storage::{
    DataDir, MemoryStorage, OpenError, OperatorKey, SealError, SealedStorage, Sealer, Storage,
    StorageError, encrypt, rekey,
};
use tempfile::TempDir;

/// What no file may show: long enough never to come about by chance.
const PAYLOAD: &[u8] = b"account 4711 owes 1000000 to nobody";

struct Folder {
    parent: TempDir,
    path: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        Self { parent, path }
    }

    fn open(&self, key: Option<&OperatorKey>) -> Result<DataDir, OpenError> {
        DataDir::open_with(&self.path, key, || 7)
    }

    fn refused(&self, key: Option<&OperatorKey>) -> SealError {
        match self.open(key).map(|_| ()).unwrap_err() {
            OpenError::Encryption { source, .. } => source,
            other => panic!("{other}"),
        }
    }
}

fn key(letter: &str) -> OperatorKey {
    OperatorKey::new(letter.repeat(32).as_bytes()).unwrap()
}

fn put(table: Table, key: &[u8], value: &[u8]) -> Write {
    let (key, value) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(value));
    Write::Put { table, key, value }
}

fn fill(data: &DataDir, jobs: u32) {
    for number in 0..jobs {
        let row = put(Table::Jobs, &number.to_be_bytes(), &[PAYLOAD, &[b'.'; 500]].concat());
        data.storage.write(&[row], number % 100 == 0).unwrap();
    }
    data.storage.flush().unwrap();
}

/// Files below a folder that hold these bytes, and how many bytes all have.
fn showing(folder: &Path, what: &[u8]) -> (Vec<PathBuf>, usize) {
    let (mut found, mut size) = (Vec::new(), 0);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let (more, bytes) = showing(&path, what);
            found.extend(more);
            size += bytes;
        } else {
            let bytes = fs::read(&path).unwrap();
            size += bytes.len();
            if bytes.windows(what.len()).any(|window| window == what) {
                found.push(path);
            }
        }
    }
    (found, size)
}

#[test]
fn nothing_in_the_folder_shows_what_was_written_to_it() {
    let (plain, sealed) = (Folder::new(), Folder::new());
    for (folder, key) in [(&plain, None), (&sealed, Some(&key("a")))] {
        let data = folder.open(key).unwrap();
        fill(&data, 1000);
        data.mark().unwrap();
        assert_eq!(data.files().are_sealed(), key.is_some());
        let read = data.storage.get(Table::Jobs, &999_u32.to_be_bytes()).unwrap().unwrap();
        assert!(read.starts_with(PAYLOAD));
    }
    let (found, bytes) = showing(&sealed.path, PAYLOAD);
    assert!(found.is_empty(), "{found:?}");
    assert!(bytes > 500_000, "all of it is there: {bytes} bytes");
    assert!(!showing(&plain.path, PAYLOAD).0.is_empty(), "the search finds what is there");
}

#[test]
fn a_folder_opens_with_its_own_key_alone() {
    let folder = Folder::new();
    let data = folder.open(Some(&key("a"))).unwrap();
    fill(&data, 10);
    let boot = data.boot;
    drop(data);
    assert!(matches!(folder.refused(None), SealError::Locked));
    let error = folder.refused(Some(&key("b")));
    let SealError::WrongKey { needed, given } = &error else { panic!("{error}") };
    assert_eq!((needed, given), (&key("a").id(), &key("b").id()));
    let data = folder.open(Some(&key("a"))).unwrap();
    let found = (data.amnesia.as_deref(), data.boot);
    assert_eq!(found, (None, boot + 1), "whoever failed changed nothing");
    assert!(data.storage.get(Table::Jobs, &9_u32.to_be_bytes()).unwrap().is_some());
}

#[test]
fn a_plain_folder_is_left_as_it_is() {
    let folder = Folder::new();
    fill(&folder.open(None).unwrap(), 10);
    let error = folder.refused(Some(&key("a")));
    assert!(matches!(error, SealError::Plain) && error.to_string().contains("restore"), "{error}");
    folder.open(None).unwrap();
}

#[test]
fn another_key_takes_over_without_a_row_being_written() {
    let folder = Folder::new();
    let data = folder.open(Some(&key("a"))).unwrap();
    fill(&data, 10);
    let before = data.storage.statistics().unwrap().sequence;
    assert!(matches!(
        rekey(&folder.path, &key("b"), &key("c")).unwrap_err(),
        SealError::WrongKey { .. }
    ));
    rekey(&folder.path, &key("a"), &key("b")).unwrap();
    assert_eq!(data.storage.statistics().unwrap().sequence, before);
    drop(data);
    assert!(matches!(folder.refused(Some(&key("a"))), SealError::WrongKey { .. }));
    let data = folder.open(Some(&key("b"))).unwrap();
    assert_eq!(data.amnesia, None);
    assert!(data.storage.get(Table::Jobs, &9_u32.to_be_bytes()).unwrap().is_some());
}

#[test]
fn a_copy_takes_its_key_along_and_a_plain_one_can_be_encrypted() {
    let folder = Folder::new();
    let data = folder.open(Some(&key("a"))).unwrap();
    fill(&data, 10);
    let copy = Folder { path: folder.parent.path().join("copy"), parent: Folder::new().parent };
    data.copy_to(&copy.path).unwrap();
    let copied = copy.open(Some(&key("a"))).unwrap();
    assert!(copied.amnesia.is_some());
    assert!(copied.storage.get(Table::Jobs, &9_u32.to_be_bytes()).unwrap().is_some());

    let plain = Folder::new();
    fill(&plain.open(None).unwrap(), 1000);
    let files = encrypt(&plain.path, &key("a")).unwrap();
    assert!(files.are_sealed());
    assert!(matches!(plain.refused(None), SealError::Locked));
    let data = plain.open(Some(&key("a"))).unwrap();
    let rows = data.storage.scan(Table::Jobs, &[], &[u8::MAX; 8], 2000).unwrap();
    assert_eq!(rows.len(), 1000);
    let (found, _) = showing(&plain.path, PAYLOAD);
    assert!(found.is_empty(), "{found:?}");
    assert!(encrypt(&plain.path, &key("a")).is_err(), "once is enough");
}

/// A store in memory, and the same through its seal.
fn pair() -> (Arc<MemoryStorage>, SealedStorage) {
    let inner = Arc::new(MemoryStorage::default());
    let sealed = SealedStorage::new(inner.clone(), Sealer::new(&[7; 32]));
    (inner, sealed)
}

fn damaged(result: Result<impl std::fmt::Debug, StorageError>) {
    let error = result.unwrap_err();
    assert!(matches!(error, StorageError::Corrupt(_)), "{error}");
}

#[test]
fn rows_that_change_places_do_not_open() {
    let (inner, sealed) = pair();
    let rows = [put(Table::Jobs, b"a", b"1"), put(Table::Jobs, b"b", b"2")];
    sealed.write(&rows, true).unwrap();
    let value = |key: &[u8]| inner.get(Table::Jobs, key).unwrap().unwrap();
    let (a, b) = (value(b"a"), value(b"b"));
    let swapped = [
        put(Table::Jobs, b"a", &b),
        put(Table::Jobs, b"b", &a),
        put(Table::Live, b"a", &a),
        put(Table::Jobs, b"c", &a),
    ];
    inner.write(&swapped, true).unwrap();
    damaged(sealed.get(Table::Jobs, b"a"));
    damaged(sealed.get(Table::Jobs, b"b"));
    damaged(sealed.get(Table::Live, b"a"));
    damaged(sealed.scan(Table::Jobs, b"c", b"d", 9));
    damaged(sealed.scan_back(Table::Jobs, b"a", b"d", 9));
}

#[test]
fn a_flipped_bit_anywhere_is_noticed() {
    let (inner, sealed) = pair();
    sealed.write(&[put(Table::Meta, b"k", b"value")], true).unwrap();
    let good = inner.get(Table::Meta, b"k").unwrap().unwrap();
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        inner.write(&[put(Table::Meta, b"k", &bad)], true).unwrap();
        damaged(sealed.get(Table::Meta, b"k"));
    }
    for length in 0..good.len() {
        inner.write(&[put(Table::Meta, b"k", &good[..length])], true).unwrap();
        damaged(sealed.get(Table::Meta, b"k"));
    }
}

#[test]
fn no_two_values_have_one_nonce() {
    let (inner, sealed) = pair();
    let again = SealedStorage::new(inner.clone(), Sealer::new(&[7; 32]));
    let mut nonces = std::collections::BTreeSet::new();
    for store in [&sealed, &again] {
        for _ in 0..100 {
            store.write(&[put(Table::Meta, b"k", b"value")], true).unwrap();
            let written = inner.get(Table::Meta, b"k").unwrap().unwrap();
            assert!(nonces.insert(written[..24].to_vec()), "after {}", nonces.len());
        }
    }
}

#[test]
fn a_damaged_key_file_and_a_short_key_are_told() {
    let folder = Folder::new();
    drop(folder.open(Some(&key("a"))).unwrap());
    let path = folder.path.join("encryption");
    let good = fs::read_to_string(&path).unwrap();
    let last = good.trim_end().len() - 1;
    let flip = if good.as_bytes()[last] == b'0' { "1" } else { "0" };
    for bad in ["", "something else\n", &good[..last - 4], &format!("{}{flip}\n", &good[..last])] {
        fs::write(&path, bad).unwrap();
        assert!(matches!(folder.refused(Some(&key("a"))), SealError::Damaged), "{bad}");
    }
    assert!(matches!(OperatorKey::new(b"too short\n").unwrap_err(), SealError::Short(9)));
    let with_end = [&b"a".repeat(32)[..], b"\r\n"].concat();
    assert_eq!(OperatorKey::new(&with_end).unwrap().id(), key("a").id());
}

#[test]
fn files_are_sealed_by_name() {
    let folder = Folder::new();
    let data = folder.open(Some(&key("a"))).unwrap();
    let files = data.files();
    let written = files.seal("key", b"secret".to_vec());
    assert!(!written.windows(6).any(|window| window == b"secret"));
    assert_eq!(files.open("key", written.clone()).unwrap(), b"secret");
    assert!(matches!(files.open("other", written.clone()), Err(SealError::Changed(_))));
    assert!(matches!(files.open("key", b"secret".to_vec()), Err(SealError::NotSealed(_))));
    let plain = carbonmesh_storage::Files::default();
    assert!(matches!(plain.open("key", written), Err(SealError::Locked)));
    assert_eq!(plain.seal("key", b"secret".to_vec()), b"secret");
}
