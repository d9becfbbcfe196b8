//! Data folders that are new, used, damaged, restored, foreign.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use carbonmesh_protocol::store::{Table, Write};
use carbonmesh_storage::{CopyError, DataDir, OpenError};
use tempfile::TempDir;

struct Folder {
    _parent: TempDir,
    path: PathBuf,
    next: u64,
}

impl Folder {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        Self { _parent: parent, path, next: 0 }
    }

    fn open(&mut self) -> Result<DataDir, OpenError> {
        let next = &mut self.next;
        DataDir::open(&self.path, || {
            *next += 1;
            *next
        })
    }

    fn opened(&mut self) -> DataDir {
        self.open().unwrap()
    }

    fn error(&mut self) -> OpenError {
        self.open().map(|_| ()).unwrap_err()
    }
}

fn fill(data: &DataDir, count: u32) {
    for number in 0..count {
        let key = Bytes::copy_from_slice(&number.to_be_bytes());
        let put = Write::Put { table: Table::Jobs, key, value: Bytes::from_static(&[7; 100]) };
        data.storage.write(&[put], true).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_folder_keeps_its_disk_and_counts_its_starts() {
    let mut folder = Folder::new();
    let (disk, boot) = {
        let data = folder.opened();
        (data.disk_id, data.boot)
    };
    let again = folder.opened();
    assert_eq!((again.disk_id, again.boot, &again.amnesia), (disk, boot + 1, &None));
    let mode = fs::metadata(&folder.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

#[test]
fn a_copy_has_all_that_was_durable_and_is_another_disk() {
    let mut folder = Folder::new();
    let data = folder.opened();
    fill(&data, 10);
    let (disk, boot) = (data.disk_id, data.boot);
    // As a backup is made, even while the node runs.
    let mut copied = Folder { next: 100, ..Folder::new() };
    copy(&folder.path, &copied.path);
    copy(&folder.path.join("store"), &copied.path.join("store"));
    let data = copied.opened();
    assert_eq!(data.storage.scan(Table::Jobs, &[0], &[9], 99).unwrap().len(), 10);
    // What the original promises after this, the copy does not know.
    assert!(data.amnesia.as_ref().is_some_and(|why| why.contains("copy")), "{:?}", data.amnesia);
    assert_ne!(data.disk_id, disk);
    assert!(data.boot > boot);
}

#[test]
fn a_folder_in_use_is_refused() {
    let mut folder = Folder::new();
    let _first = folder.opened();
    let error = folder.error();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("--data-dir"));
}

#[test]
fn an_older_copy_of_the_store_is_another_disk() {
    let mut folder = Folder::new();
    let disk = folder.opened().disk_id;
    let older = folder.path.with_file_name("older");
    copy(&folder.path.join("store"), &older);
    {
        let data = folder.opened();
        fill(&data, 10);
        data.mark().unwrap();
    }
    fs::remove_dir_all(folder.path.join("store")).unwrap();
    copy(&older, &folder.path.join("store"));
    let data = folder.opened();
    assert!(data.amnesia.is_some());
    assert_ne!(data.disk_id, disk);
    assert!(data.boot > 2, "{}", data.boot);
}

#[test]
fn a_store_that_lost_the_end_of_its_log_is_another_disk() {
    let mut folder = Folder::new();
    let disk = {
        let data = folder.opened();
        fill(&data, 50);
        data.mark().unwrap();
        data.disk_id
    };
    let log = newest_log(&folder.path);
    let length = fs::metadata(&log).unwrap().len();
    fs::File::options().write(true).open(log).unwrap().set_len(length - 1000).unwrap();
    let data = folder.opened();
    assert!(data.amnesia.is_some());
    assert_ne!(data.disk_id, disk);
}

#[test]
fn a_log_that_was_torn_behind_the_mark_is_no_harm() {
    let mut folder = Folder::new();
    let disk = {
        let data = folder.opened();
        data.mark().unwrap();
        fill(&data, 1);
        data.disk_id
    };
    let log = newest_log(&folder.path);
    let length = fs::metadata(&log).unwrap().len();
    fs::File::options().write(true).open(log).unwrap().set_len(length - 3).unwrap();
    let data = folder.opened();
    assert_eq!((data.disk_id, &data.amnesia), (disk, &None));
}

#[test]
fn a_folder_is_copied_while_it_is_written_to_and_the_copy_is_another_disk() {
    let mut folder = Folder::new();
    let data = folder.opened();
    fill(&data, 500);
    data.mark().unwrap();
    let target = folder.path.with_file_name("copy");
    let sequence = std::thread::scope(|scope| {
        let copied = scope.spawn(|| data.copy_to(&target).unwrap());
        // The same keys again: the copy has one value or the other, and each key.
        fill(&data, 500);
        copied.join().unwrap()
    });
    assert!(sequence >= 500, "{sequence}");
    let (disk, boot) = (data.disk_id, data.boot);
    let copy = DataDir::open(&target, || 99).unwrap();
    assert!(copy.amnesia.is_some());
    assert_ne!(copy.disk_id, disk);
    assert!(copy.boot > boot && !copy.is_new);
    let rows = copy.storage.scan(Table::Jobs, &[], &[0xff; 8], usize::MAX).unwrap();
    assert_eq!(rows.len(), 500);
    assert!(matches!(data.copy_to(&target), Err(CopyError::File(_))), "a folder that is there");
}

fn newest_log(path: &Path) -> PathBuf {
    let files = fs::read_dir(path.join("store")).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|end| end == "log")).max().unwrap()
}

#[test]
fn a_damaged_store_is_said_to_be() {
    let mut folder = Folder::new();
    fill(&folder.opened(), 10);
    fs::write(folder.path.join("store/CURRENT"), "nonsense\n").unwrap();
    let error = folder.error();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

#[test]
fn a_store_from_a_newer_release_is_left_alone() {
    let mut folder = Folder::new();
    drop(folder.opened());
    fs::write(folder.path.join("FORMAT"), "carbonmesh data 3\n").unwrap();
    let error = folder.error();
    assert!(matches!(error, OpenError::Newer { found: 3, .. }), "{error}");
}

#[test]
fn a_store_of_an_earlier_release_goes_on_as_ours() {
    let mut folder = Folder::new();
    let disk = {
        let opened = folder.opened();
        fill(&opened, 10);
        opened.disk_id
    };
    let format = folder.path.join("FORMAT");
    let ours = fs::read_to_string(&format).unwrap();
    fs::write(&format, "carbonmesh data 1\n").unwrap();
    let opened = folder.opened();
    assert_eq!((opened.disk_id, &opened.amnesia), (disk, &None));
    assert_eq!(
        fs::read_to_string(&format).unwrap(),
        ours,
        "an earlier release is to refuse it now"
    );
}

#[test]
fn a_foreign_folder_is_left_alone() {
    let mut folder = Folder::new();
    fs::create_dir(&folder.path).unwrap();
    fs::write(folder.path.join("letter.txt"), "Dear").unwrap();
    let error = folder.error();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");
    assert_eq!(fs::read_dir(&folder.path).unwrap().count(), 1);
}
