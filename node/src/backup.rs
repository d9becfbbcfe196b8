//! Backups: a node's data folder copied while the node runs, and brought back.
//!
//! ```text
//! NAME/MANIFEST.json   what the backup holds, each file with its size and sum; written last
//! NAME/data/FORMAT     \
//! NAME/data/store/     | a data folder without a mark
//! NAME/data/key        / the node's identity: whoever has it can pretend to be this node
//! ```
//! A backup that is being made has another name, and no manifest. What is restored has no mark, so it
//! counts as a new disk (see `storage/src/data_dir.rs`): it may have forgotten what the node promised
//! after the backup, and takes part only once the others have admitted it, or all are such.
//!
//! Invariant: what [`verify`] finds whole was written to its end, and is as it was written.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use carbonmesh_storage::{CopyError, DataDir, FORMAT_VERSION, OpenError, OperatorKey};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::{key, trust};

/// What a manifest is, and in which version.
const FORMAT_NAME: &str = "carbonmesh backup";
const BACKUP_VERSION: u32 = 1;

const MANIFEST: &str = "MANIFEST.json";
const DATA: &str = "data";
const KEY: &str = "key";
/// What an encrypted data folder has.
const ENCRYPTION: &str = "encryption";

/// A manifest is some hundred bytes for each file of the store: more is none of ours.
const MANIFEST_BYTES: u64 = 64 << 20;

/// The longest name of a backup, in bytes.
const NAME_BYTES: usize = 128;

/// The backup was not made. The node is as before.
#[derive(Debug, Error)]
pub(crate) enum BackupError {
    /// The name cannot be one of a folder.
    #[error(
        "`{0}` is no name of a backup: take letters, digits, `.`, `_` and `-`, not `.` first, at most {NAME_BYTES} of them"
    )]
    Name(String),
    /// There is something of that name.
    #[error("{} is there already: choose another name", .0.display())]
    Exists(PathBuf),
    /// The folder cannot be copied.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A file of the backup cannot be written or read back.
    #[error("cannot write the backup to {}: {source}", path.display())]
    Write {
        /// Which file or folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// The backup cannot be used. Nothing was restored.
#[derive(Debug, Error)]
pub(crate) enum RestoreError {
    /// There is no manifest.
    #[error(
        "{} is no whole backup: it has no {MANIFEST}, which is written last", .0.display()
    )]
    NoManifest(PathBuf),
    /// The manifest is something else, or damaged.
    #[error("{}: {reason}", path.display())]
    Manifest {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A later release wrote it.
    #[error(
        "the backup has {what} {found}, this release knows up to {known}: restore it with a release at least as new as {program}, which made it"
    )]
    Newer {
        /// What of it.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The latest that is known here.
        known: u32,
        /// Which release made it.
        program: String,
    },
    /// A file is not as it was written.
    #[error("{} is damaged ({reason}): take another backup", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In what way.
        reason: String,
    },
    /// It cannot be encrypted.
    #[error(transparent)]
    Encrypt(#[from] OpenError),
    /// The folder for what is restored is not free.
    #[error("{} is there already: name a folder that is not", .0.display())]
    Exists(PathBuf),
    /// The system refuses.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Whose data folder it is; what only the node knows.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    /// 32 hexadecimal digits.
    pub(crate) node: String,
    /// Its name for people.
    pub(crate) name: String,
    /// The cluster's name.
    pub(crate) cluster: String,
}

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// `carbonmesh backup`.
    pub format: String,
    /// The version of the backup's own format.
    pub version: u32,
    /// Which release made it.
    pub program: String,
    /// The version of the data folder's format.
    pub data_format: u32,
    /// Whose data it is: the node's identity.
    pub node: String,
    /// The node's name for people.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// The disk that was copied, as 16 hexadecimal digits; what is restored is another.
    pub disk: String,
    /// How often that was started.
    pub boot: u64,
    /// The store's last change when the copy began: all up to it are in the backup.
    pub sequence: u64,
    /// When the copy began: what was acknowledged before is in it.
    pub began_at: String,
    /// When it was whole.
    pub ended_at: String,
    /// The sum of the files' sizes.
    pub bytes: u64,
    /// The files.
    pub files: Vec<BackedUp>,
}

/// A file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BackedUp {
    /// Where, below the backup's `data` folder.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Its SHA-256, as hexadecimal digits.
    pub sha256: String,
}

/// The manifest as it lies in its file: beside its own sum.
#[derive(Serialize, Deserialize)]
struct Sealed {
    sha256: String,
    manifest: Box<RawValue>,
}

/// The name of a backup, as a folder can have it.
pub(crate) fn check_name(name: &str) -> Result<(), BackupError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let good = (1..=NAME_BYTES).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(allowed);
    if good { Ok(()) } else { Err(BackupError::Name(name.to_owned())) }
}

/// The name of a backup that nobody named: who, and when.
pub(crate) fn usual_name(owner: &Owner) -> String {
    let plain = |one: char| if one.is_ascii_alphanumeric() || one == '-' { one } else { '_' };
    let name: String = owner.name.chars().map(plain).take(NAME_BYTES / 2).collect();
    format!("{name}-{}", jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S%3fZ"))
}

/// Copies the node's folder into a new one below `root`, synced, with its manifest last.
///
/// # Errors
/// It cannot be made; what there is of it is removed.
pub(crate) fn make(
    data: &DataDir,
    root: &Path,
    name: &str,
    owner: &Owner,
) -> Result<(PathBuf, Manifest), BackupError> {
    check_name(name)?;
    let target = root.join(name);
    if target.exists() {
        return Err(BackupError::Exists(target));
    }
    DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(|it| write(root, it))?;
    // The node's name in it: several may have the same folder for their backups.
    let fresh = root.join(format!(".{name}.{}.partial", owner.node));
    if fresh.exists() {
        // Of one that a crash ended: a node makes one at a time.
        fs::remove_dir_all(&fresh).map_err(|it| write(&fresh, it))?;
    }
    let made = fill(data, &fresh, owner).and_then(|manifest| {
        fs::rename(&fresh, &target).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                BackupError::Exists(target.clone())
            }
            _ => write(&target, error),
        })?;
        sync(root).map_err(|it| write(root, it))?;
        Ok(manifest)
    });
    if made.is_err() {
        // What cannot be removed has neither the name nor the manifest of a backup.
        let _ = fs::remove_dir_all(&fresh);
    }
    made.map(|manifest| (target, manifest))
}

fn fill(data: &DataDir, folder: &Path, owner: &Owner) -> Result<Manifest, BackupError> {
    let began_at = now();
    let mut private = DirBuilder::new();
    private.mode(0o700).create(folder).map_err(|it| write(folder, it))?;
    let copy = folder.join(DATA);
    let sequence = data.copy_to(&copy)?;
    let key = copy.join(KEY);
    copy_private(&data.path().join(KEY), &key).map_err(|it| write(&key, it))?;
    // Without its certificate a restored node would take itself for one of a cluster that has none.
    let trust = data.path().join(trust::FOLDER);
    for file in trust::KEPT.map(|file| trust.join(file)).iter().filter(|file| file.exists()) {
        let folder = copy.join(trust::FOLDER);
        private.recursive(true).create(&folder).map_err(|it| write(&folder, it))?;
        let target = folder.join(file.file_name().unwrap_or_default());
        copy_private(file, &target).map_err(|it| write(&target, it))?;
    }
    let mut files = Vec::new();
    list(&copy, Path::new(""), &mut files).map_err(|it| write(&copy, it))?;
    let mut summed = Vec::new();
    for file in files {
        let path = copy.join(&file);
        let (bytes, sha256) = sum(&path, true).map_err(|it| write(&path, it))?;
        summed.push(BackedUp { path: file, bytes, sha256 });
    }
    let manifest = Manifest {
        format: FORMAT_NAME.to_owned(),
        version: BACKUP_VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        data_format: FORMAT_VERSION,
        node: owner.node.clone(),
        name: owner.name.clone(),
        cluster: owner.cluster.clone(),
        disk: format!("{:016x}", data.disk_id.0),
        boot: data.boot,
        sequence,
        began_at,
        ended_at: now(),
        bytes: summed.iter().map(|file| file.bytes).sum(),
        files: summed,
    };
    let path = folder.join(MANIFEST);
    seal(&manifest, folder, &path).map_err(|it| write(&path, it))?;
    Ok(manifest)
}

/// Writes the manifest in one step, once all that it names is on disk.
fn seal(manifest: &Manifest, folder: &Path, path: &Path) -> io::Result<()> {
    let (data, trust) = (folder.join(DATA), folder.join(DATA).join(trust::FOLDER));
    for inner in [trust, data.join("store"), data] {
        if inner.exists() {
            sync(&inner)?;
        }
    }
    let manifest = serde_json::value::to_raw_value(manifest)?;
    let sha256 = HEXLOWER.encode(&Sha256::digest(manifest.get()));
    let text = serde_json::to_string(&Sealed { sha256, manifest })?;
    let fresh = folder.join("MANIFEST.new");
    let mut file = private_file(&fresh)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    sync(folder)
}

/// Reads a backup's manifest, and each file that it names.
///
/// # Errors
/// It is not whole, or not as it was written, or of a later release.
pub(crate) fn verify(folder: &Path) -> Result<Manifest, RestoreError> {
    let manifest = read_manifest(folder)?;
    for file in &manifest.files {
        let path = folder.join(DATA).join(&file.path);
        let damaged = |reason: &str| {
            let (path, reason) = (path.clone(), reason.to_owned());
            Err(RestoreError::Damaged { path, reason })
        };
        match sum(&path, false) {
            Ok((bytes, _)) if bytes != file.bytes => {
                return damaged(&format!("it has {bytes} bytes, not {}", file.bytes));
            }
            Ok((_, sha256)) if sha256 != file.sha256 => return damaged("its sum is another"),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged("it is gone"),
            Err(source) => return Err(RestoreError::Io { path, source }),
        }
    }
    Ok(manifest)
}

fn read_manifest(folder: &Path) -> Result<Manifest, RestoreError> {
    let path = folder.join(MANIFEST);
    let wrong = |reason: String| RestoreError::Manifest { path: path.clone(), reason };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(RestoreError::NoManifest(folder.to_owned()));
        }
        Err(source) => return Err(RestoreError::Io { path, source }),
    };
    let mut text = Vec::new();
    let read = file.take(MANIFEST_BYTES).read_to_end(&mut text);
    read.map_err(|source| RestoreError::Io { path: path.clone(), source })?;
    let sealed: Sealed = serde_json::from_slice(&text)
        .map_err(|error| wrong(format!("it is no manifest of a backup: {error}")))?;
    if HEXLOWER.encode(&Sha256::digest(sealed.manifest.get())) != sealed.sha256 {
        return Err(wrong("it is damaged: its sum is another".to_owned()));
    }
    let manifest: Manifest = serde_json::from_str(sealed.manifest.get())
        .map_err(|error| wrong(format!("it is no manifest of a backup: {error}")))?;
    if manifest.format != FORMAT_NAME {
        return Err(wrong(format!("it is of a `{}`, not of a `{FORMAT_NAME}`", manifest.format)));
    }
    for (what, found, known) in [
        ("version", manifest.version, BACKUP_VERSION),
        ("data format", manifest.data_format, FORMAT_VERSION),
    ] {
        if found > known {
            let program = manifest.program.clone();
            return Err(RestoreError::Newer { what, found, known, program });
        }
    }
    // A manifest is not to write elsewhere than it was told.
    let plain = |path: &str| {
        let mut parts = Path::new(path).components();
        !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if let Some(file) = manifest.files.iter().find(|file| !plain(&file.path)) {
        return Err(wrong(format!("`{}` leaves the backup", file.path)));
    }
    Ok(manifest)
}

/// Verifies a backup, and makes a data folder of it that does not exist yet. With a key, what is not
/// encrypted in the backup is so in the folder.
///
/// # Errors
/// The backup cannot be used, or the folder cannot be written; there is none then.
pub(crate) fn restore(
    folder: &Path,
    data_dir: &Path,
    encryption: Option<&OperatorKey>,
) -> Result<Manifest, RestoreError> {
    if data_dir.symlink_metadata().is_ok() {
        return Err(RestoreError::Exists(data_dir.to_owned()));
    }
    let manifest = verify(folder)?;
    let io = |path: &Path, source| RestoreError::Io { path: path.to_owned(), source };
    let mut name = data_dir.file_name().unwrap_or_default().to_owned();
    name.push(".restoring");
    let fresh = data_dir.with_file_name(name);
    if fresh.symlink_metadata().is_ok() {
        return Err(RestoreError::Exists(fresh));
    }
    let unpacked = unpack(&manifest, &folder.join(DATA), &fresh);
    let unpacked = unpacked.and_then(|()| match encryption {
        Some(key) if !fresh.join(ENCRYPTION).exists() => encrypt(&fresh, key),
        Some(_) | None => Ok(()),
    });
    let written = unpacked.and_then(|()| {
        fs::rename(&fresh, data_dir).map_err(|source| io(data_dir, source))?;
        let parent = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        sync(parent).map_err(|source| io(parent, source))
    });
    if written.is_err() {
        // It is no data folder under that name.
        let _ = fs::remove_dir_all(&fresh);
    }
    written.map(|()| manifest)
}

fn unpack(manifest: &Manifest, from: &Path, to: &Path) -> Result<(), RestoreError> {
    let io = |path: &Path, source| RestoreError::Io { path: path.to_owned(), source };
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700);
    private.create(to).map_err(|source| io(to, source))?;
    for file in &manifest.files {
        let path = to.join(&file.path);
        let parent = path.parent().unwrap_or(to);
        private.create(parent).map_err(|source| io(parent, source))?;
        copy_private(&from.join(&file.path), &path).map_err(|source| io(&path, source))?;
        let (_, sha256) = sum(&path, true).map_err(|source| io(&path, source))?;
        if sha256 != file.sha256 {
            let reason = "what was written has another sum: the disk, or the memory, fails";
            return Err(RestoreError::Damaged { path, reason: reason.to_owned() });
        }
    }
    for inner in [to.join(trust::FOLDER), to.join("store"), to.to_owned()] {
        if !inner.exists() {
            continue;
        }
        sync(&inner).map_err(|source| io(&inner, source))?;
    }
    Ok(())
}

/// Encrypts what was restored.
fn encrypt(folder: &Path, encryption: &OperatorKey) -> Result<(), RestoreError> {
    let files = carbonmesh_storage::encrypt(folder, encryption)?;
    let path = folder.join(KEY);
    let sealed = fs::read(&path).and_then(|plain| {
        fs::remove_file(&path)?;
        let mut file = private_file(&path)?;
        file.write_all(&files.seal(key::NAME, plain))?;
        file.sync_all()?;
        sync(folder)
    });
    sealed.map_err(|source| RestoreError::Io { path, source })
}

fn write(path: &Path, source: io::Error) -> BackupError {
    BackupError::Write { path: path.to_owned(), source }
}

/// All files below a folder, in order, as paths below it.
fn list(root: &Path, below: &Path, found: &mut Vec<String>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(root.join(below))?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = below.join(entry.file_name());
        match entry.file_type()?.is_dir() {
            true => list(root, &path, found)?,
            false => found.push(path.to_string_lossy().into_owned()),
        }
    }
    Ok(())
}

/// A file's size and SHA-256; synced first if it was just written.
fn sum(path: &Path, synced: bool) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    if synced {
        file.sync_all()?;
    }
    let (mut sum, mut bytes, mut chunk) = (Sha256::new(), 0, vec![0; 1 << 20]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok((bytes, HEXLOWER.encode(&sum.finalize()))),
            read => {
                bytes += read as u64;
                sum.update(&chunk[..read]);
            }
        }
    }
}

/// Copies a file into a new one that nobody else may read.
fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    let mut target = private_file(to)?;
    io::copy(&mut File::open(from)?, &mut target)?;
    target.sync_all()
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn now() -> String {
    format!("{:.3}", jiff::Timestamp::now())
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use carbonmesh_protocol::store::{Table, Write as Put};
    use tempfile::TempDir;

    use super::*;

    fn owner() -> Owner {
        let (node, name) = ("ab".repeat(16), "oak tree".to_owned());
        Owner { node, name, cluster: "carbonmesh".to_owned() }
    }

    struct World {
        folder: TempDir,
        data: DataDir,
    }

    impl World {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let data = DataDir::open(&folder.path().join("data"), || 7).unwrap();
            fs::write(folder.path().join("data/key"), "the key").unwrap();
            let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
            data.storage.write(&[Put::Put { table: Table::Jobs, key, value }], true).unwrap();
            Self { folder, data }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn backup(&self) -> PathBuf {
            make(&self.data, &self.at("backups"), "one", &owner()).unwrap().0
        }
    }

    #[test]
    fn what_is_restored_holds_all_of_it_and_is_another_disk() {
        let world = World::new();
        let backup = world.backup();
        let manifest = restore(&backup, &world.at("new"), None).unwrap();
        assert_eq!((manifest.name.as_str(), manifest.boot), ("oak tree", world.data.boot));
        let restored = DataDir::open(&world.at("new"), || 8).unwrap();
        assert!(restored.amnesia.is_some(), "it may have forgotten promises");
        assert_ne!(restored.disk_id, world.data.disk_id);
        let value = restored.storage.get(Table::Jobs, b"k").unwrap();
        assert_eq!(value.as_deref(), Some(b"v".as_slice()));
        assert_eq!(fs::read(world.at("new/key")).unwrap(), b"the key");
    }

    #[test]
    fn what_was_plain_can_be_restored_encrypted_and_what_was_encrypted_stays_so() {
        let world = World::new();
        let backup = world.backup();
        let key = OperatorKey::new(&[7; 32]).unwrap();
        restore(&backup, &world.at("new"), Some(&key)).unwrap();
        let written = fs::read(world.at("new/key")).unwrap();
        assert!(!written.ends_with(b"the key"));
        let restored = DataDir::open_with(&world.at("new"), Some(&key), || 8).unwrap();
        assert_eq!(restored.files().open(key::NAME, written).unwrap(), b"the key");
        let value = restored.storage.get(Table::Jobs, b"k").unwrap();
        assert_eq!(value.as_deref(), Some(b"v".as_slice()));
        let (again, _) = make(&restored, &world.at("backups"), "two", &owner()).unwrap();
        drop(restored);
        restore(&again, &world.at("newer"), None).unwrap();
        DataDir::open(&world.at("newer"), || 9).unwrap_err();
        let restored = DataDir::open_with(&world.at("newer"), Some(&key), || 9).unwrap();
        let value = restored.storage.get(Table::Jobs, b"k").unwrap();
        assert_eq!(value.as_deref(), Some(b"v".as_slice()));
    }

    #[test]
    fn a_half_made_backup_is_none() {
        let world = World::new();
        let backup = world.backup();
        let names: Vec<_> = fs::read_dir(world.at("backups")).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
        fs::remove_file(backup.join(MANIFEST)).unwrap();
        let error = restore(&backup, &world.at("new"), None).unwrap_err();
        assert!(matches!(error, RestoreError::NoManifest(_)), "{error}");
        assert!(!world.at("new").exists());
    }

    #[test]
    fn whatever_is_damaged_is_noticed() {
        for file in ["data/FORMAT", "data/key", "data/store/CURRENT", MANIFEST] {
            let world = World::new();
            let path = world.backup().join(file);
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = restore(&world.at("backups/one"), &world.at("new"), None).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            bytes.pop();
            fs::write(&path, &bytes).unwrap();
            restore(&world.at("backups/one"), &world.at("new"), None).unwrap_err();
            fs::remove_file(&path).unwrap();
            restore(&world.at("backups/one"), &world.at("new"), None).unwrap_err();
            assert!(!world.at("new").exists());
        }
    }

    #[test]
    fn neither_a_backup_nor_a_folder_is_overwritten() {
        let world = World::new();
        let backup = world.backup();
        let again = make(&world.data, &world.at("backups"), "one", &owner()).unwrap_err();
        assert!(matches!(again, BackupError::Exists(_)), "{again}");
        fs::create_dir(world.at("new")).unwrap();
        let error = restore(&backup, &world.at("new"), None).unwrap_err();
        assert!(matches!(error, RestoreError::Exists(_)), "{error}");
    }

    #[test]
    fn names_stay_below_the_folder() {
        for bad in ["", ".", "..", "a/b", "../a", ".hidden", "a b", &"x".repeat(200)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        check_name(&usual_name(&owner())).unwrap();
    }

    #[test]
    fn a_manifest_does_not_write_elsewhere() {
        let world = World::new();
        let backup = world.backup();
        let mut manifest = verify(&backup).unwrap();
        manifest.files[0].path = "../../escaped".to_owned();
        fs::remove_file(backup.join(MANIFEST)).unwrap();
        seal(&manifest, &backup, &backup.join(MANIFEST)).unwrap();
        let error = restore(&backup, &world.at("new"), None).unwrap_err();
        assert!(error.to_string().contains("../../escaped"), "{error}");
    }

    #[test]
    fn a_later_releases_backup_is_left_alone() {
        let world = World::new();
        let backup = world.backup();
        let mut manifest = verify(&backup).unwrap();
        manifest.data_format += 1;
        fs::remove_file(backup.join(MANIFEST)).unwrap();
        seal(&manifest, &backup, &backup.join(MANIFEST)).unwrap();
        let error = restore(&backup, &world.at("new"), None).unwrap_err();
        assert!(error.to_string().contains("data format"), "{error}");
    }
}
