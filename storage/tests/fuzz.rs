//! Files of a data folder that hold something else: the folder is refused, or opened as a disk that
//! may have forgotten what it promised; never is damage taken for a promise.

use std::fs;

use carbonmesh_fuzz::{Corpus, Script, target};
use carbonmesh_storage::{DataDir, OpenError};

const ID: u64 = 7;

#[test]
fn folders_are_opened_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    let open = || DataDir::open(&path, || ID);
    drop(open().unwrap());
    let (format, mark) = (path.join("FORMAT"), path.join("mark"));
    let good = (fs::read(&format).unwrap(), fs::read(&mark).unwrap());
    // The length of the first, the first, the second.
    let seed = [&[good.0.len() as u8], &good.0[..], &good.1].concat();
    let words = ["carbonmesh data", " ", "1", "2", "99999999999", "-1", "\n", "\0"];
    target!(Corpus::of("folder", vec![seed]).words(words), |input: &[u8]| {
        let mut script = Script::new(input);
        let length = usize::from(script.byte());
        let (format_now, mark_now) = (script.take(length), script.take(usize::MAX));
        let mark_before = fs::read(&mark).unwrap();
        fs::write(&format, format_now).unwrap();
        fs::write(&mark, mark_now).unwrap();
        match open() {
            Ok(data) => assert!(
                data.amnesia.is_some() || mark_now == mark_before || mark_now == good.1,
                "a foreign mark went unnoticed"
            ),
            Err(OpenError::Foreign { .. } | OpenError::Newer { .. } | OpenError::Io { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        // For the next one, a folder in order.
        fs::write(&format, &good.0).unwrap();
        fs::write(&mark, mark_before).unwrap();
    });
}

#[test]
fn a_planted_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("FORMAT"), "carbonmesh data 3\n").unwrap();
    let refused = DataDir::open(folder.path(), || ID).map(|_| ());
    assert!(matches!(refused, Err(OpenError::Newer { found: 3, .. })), "{refused:?}");
}
