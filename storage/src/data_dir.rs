//! A node's data folder: whose it is, which disk it is, how often it was started.
//!
//! ```text
//! FORMAT      what this folder is, and in which version: read before anything else is touched
//! encryption  the data key, sealed by the operator's, if the folder is encrypted
//! store/      RocksDB
//! mark        how far the store had come
//! ```
//! Other files of the node may lie beside them.

use std::{
    fs::{self, DirBuilder, File, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use carbonmesh_protocol::{
    id::DiskId,
    store::{Table, Write},
};
use thiserror::Error;

use crate::{
    mark::Mark,
    rocks::{self, RocksStorage},
    seal::{self, Files, OperatorKey, SealError, Sealer},
    sealed::SealedStorage,
    storage::{Storage, StorageError},
};

const FORMAT_FILE: &str = "FORMAT";
const FORMAT_NAME: &str = "carbonmesh data";
/// The version of a data folder's format that this release writes, and the latest that it reads.
///
/// 2: rows that many jobs share, in a table of their own.
pub const FORMAT_VERSION: u32 = 2;
const STORE: &str = "store";

/// Where the store keeps who it is; the protocol's own keys begin with 1 and above.
const IDENTITY_KEY: &[u8] = b"\0identity";

/// The data folder cannot be used. Nothing in it was changed, but perhaps what says of which format it is.
#[derive(Debug, Error)]
pub enum OpenError {
    /// A node runs on it.
    #[error(
        "data folder {} is in use by another process: stop it, or choose another folder with --data-dir",
        path.display()
    )]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// It is something else.
    #[error(
        "{} is not empty and no data folder of CarbonMesh: choose another with --data-dir",
        path.display()
    )]
    Foreign {
        /// Which.
        path: PathBuf,
    },
    /// A later release wrote it.
    #[error(
        "data folder {} has format {found}, this release knows up to {FORMAT_VERSION}: start a release at least as new as the one that wrote it",
        path.display()
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its format's version.
        found: u32,
    },
    /// What is stored is damaged.
    #[error(
        "data folder {} is damaged ({reason}): move it away and start with an empty one; the cluster's other replicas fill it again",
        path.display()
    )]
    Corrupt {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There is no room.
    #[error("the disk of data folder {} is full: free some space first", path.display())]
    Full {
        /// Which.
        path: PathBuf,
    },
    /// The system refuses access.
    #[error(
        "no access to data folder {}: run as the user who owns it, or choose another with --data-dir",
        path.display()
    )]
    Denied {
        /// Which.
        path: PathBuf,
    },
    /// Folder and key do not go together.
    #[error("cannot open data folder {}: {source}", path.display())]
    Encryption {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: SealError,
    },
    /// The system refuses something else.
    #[error("cannot use data folder {}: {reason}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

/// The mark could not be written; it is the old one.
#[derive(Debug, Error)]
pub enum MarkError {
    /// The store could not be synced: it must not be written to any more.
    #[error("syncing the store failed: {0}")]
    Sync(StorageError),
    /// Only the mark's own file could not be written.
    #[error("writing the mark failed: {0}")]
    File(io::Error),
}

/// A folder was not copied. It is as before; the copy may be there in part.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The store cannot be copied.
    #[error("copying the store failed: {0}")]
    Store(StorageError),
    /// Another file cannot be written.
    #[error("cannot write the copy: {0}")]
    File(io::Error),
}

/// An open data folder; closed when dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Which disk this is: another after it may have lost something.
    pub disk_id: DiskId,
    /// Counts its starts, this one included; on disk. A new disk does not begin at one, but beyond
    /// what an earlier one under the same name can have reached.
    pub boot: u64,
    /// Whether nothing was ever kept in it: it was made just now, or by a start that got no further.
    pub is_new: bool,
    /// Why the folder may have forgotten what it promised, if so; `disk_id` is new then.
    pub amnesia: Option<String>,
    /// What it holds.
    pub storage: Arc<dyn Storage>,
    marked: Mutex<Mark>,
    files: Files,
    /// Keeps others out for as long as it is open.
    _lock: File,
}

impl DataDir {
    /// Opens the folder, or makes it; counts the start. `random` gives ids for new disks.
    ///
    /// # Errors
    /// It cannot be used; each cause has its own error.
    pub fn open(path: &Path, random: impl FnMut() -> u64) -> Result<Self, OpenError> {
        Self::open_with(path, None, random)
    }

    /// The same; with a key, a new folder is encrypted, and another has to be so with this key.
    ///
    /// # Errors
    /// It cannot be used; each cause has its own error.
    pub fn open_with(
        path: &Path,
        key: Option<&OperatorKey>,
        mut random: impl FnMut() -> u64,
    ) -> Result<Self, OpenError> {
        prepare(path)?;
        let lock = lock(path)?;
        let place = place(&lock).map_err(|error| io_failed(path, &error))?;
        let store = path.join(STORE);
        let sealer = seal::open(path, key, !store.exists());
        let sealer = sealer.map_err(|source| seal_failed(path, source))?;
        // From here on an earlier release would not find all that is in it, whatever comes of it.
        raise_format(&path.join(FORMAT_FILE)).map_err(|error| io_failed(path, &error))?;
        let rocks = RocksStorage::open(&store).map_err(|error| open_failed(path, &error))?;
        let rocks = within(rocks, sealer.as_ref());
        let stored = |error| store_failed(path, error);
        let sequence = rocks.statistics().map_err(stored)?.sequence;
        let identity = rocks.get(Table::Meta, IDENTITY_KEY).map_err(stored)?;
        let identity = match identity {
            Some(bytes) => Some(Mark::from_bytes(&bytes).ok_or_else(|| OpenError::Corrupt {
                path: path.to_owned(),
                reason: "its identity is unreadable".to_owned(),
            })?),
            None => None,
        };
        let mark = Mark::read(path).map_err(|error| io_failed(path, &error))?;
        let amnesia = amnesia(identity, sequence, mark, place);

        let is_new = identity.is_none() || holds_nothing(&*rocks).map_err(stored)?;
        let known = identity.filter(|_| amnesia.is_none());
        let disk = known.map_or_else(|| DiskId(random()), |identity| identity.disk);
        // Above what was ever promised under this node's name.
        let boots = identity.into_iter().chain(mark).map(|mark| mark.boot);
        let boot = boots.max().unwrap_or_default() + 1;
        let boot = if known.is_some() { boot } else { boot.max(unix_s()) };
        let identity = Mark { disk, boot, sequence: 0, place };
        let put = Write::Put {
            table: Table::Meta,
            key: IDENTITY_KEY.into(),
            value: identity.to_bytes().to_vec().into(),
        };
        rocks.write(&[put], true).map_err(stored)?;
        let opened = Self {
            path: path.to_owned(),
            disk_id: disk,
            boot,
            is_new,
            amnesia,
            storage: rocks,
            marked: Mutex::new(identity),
            files: Files::new(sealer),
            _lock: lock,
        };
        opened.mark().map_err(|error| match error {
            MarkError::Sync(error) => store_failed(path, error),
            MarkError::File(error) => io_failed(path, &error),
        })?;
        Ok(opened)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How other files in it are written: sealed if it is encrypted.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Writes down how far the store has come; to be called every second or so, and at the end.
    ///
    /// # Errors
    /// The disk fails or is full; the mark is then the old one.
    pub fn mark(&self) -> Result<(), MarkError> {
        let mut marked = self.marked.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = self.storage.statistics().map_err(MarkError::Sync)?.sequence;
        if sequence == marked.sequence {
            return Ok(());
        }
        // The mark must not promise what a power cut could still take.
        self.storage.flush().map_err(MarkError::Sync)?;
        let fresh = Mark { sequence, ..*marked };
        fresh.save(&self.path).map_err(MarkError::File)?;
        *marked = fresh;
        Ok(())
    }

    /// Copies the folder's format and store, as they are now, into a folder that does not exist yet;
    /// says at which change the copy ends at least. The copy gets no mark: it may forget what is
    /// promised here from now on, so whoever opens it opens another disk.
    ///
    /// # Errors
    /// The disk fails or is full.
    pub fn copy_to(&self, folder: &Path) -> Result<u64, CopyError> {
        let sequence = self.storage.statistics().map_err(CopyError::Store)?.sequence;
        DirBuilder::new().mode(0o700).create(folder).map_err(CopyError::File)?;
        write_format(folder, &folder.join(FORMAT_FILE)).map_err(CopyError::File)?;
        if self.files.are_sealed() {
            let copied = copy_private(&self.path.join(seal::FILE), &folder.join(seal::FILE));
            copied.map_err(CopyError::File)?;
        }
        self.storage.copy_to(&folder.join(STORE)).map_err(CopyError::Store)?;
        Ok(sequence)
    }
}

/// A store as it is, or sealed.
fn within(rocks: RocksStorage, sealer: Option<&Sealer>) -> Arc<dyn Storage> {
    let rocks = Arc::new(rocks);
    match sealer {
        None => rocks,
        Some(sealer) => Arc::new(SealedStorage::new(rocks, sealer.clone())),
    }
}

/// How many rows are sealed at once when a folder is.
const SEALED_AT_ONCE: usize = 256;

/// Encrypts a folder that no node has run on since it was copied from another: its store is written anew,
/// and the old one removed. How its other files are to be written from then on.
///
/// # Errors
/// It is encrypted already, or cannot be read or written; it may be half done then, and must not be used.
pub fn encrypt(path: &Path, key: &OperatorKey) -> Result<Files, OpenError> {
    let io = |error: io::Error| io_failed(path, &error);
    let stored = |error| store_failed(path, error);
    let _lock = lock(path)?;
    let sealer = seal::create(path, key).map_err(|source| seal_failed(path, source))?;
    let (plain, sealed) = (path.join(STORE), path.join("store.sealed"));
    let open = |path: &Path| RocksStorage::open(path).map_err(|error| open_failed(path, &error));
    {
        let (from, to) = (open(&plain)?, within(open(&sealed)?, Some(&sealer)));
        // No key has that many bytes.
        let end = [u8::MAX; 64];
        for table in Table::ALL {
            let mut start = Vec::new();
            loop {
                let rows = from.scan(table, &start, &end, SEALED_AT_ONCE).map_err(stored)?;
                let Some((last, _)) = rows.last() else { break };
                start = [last, &[0][..]].concat();
                let put = |(key, value)| Write::Put { table, key, value };
                let batch: Vec<Write> = rows.into_iter().map(put).collect();
                to.write(&batch, false).map_err(stored)?;
            }
        }
        to.flush().map_err(stored)?;
    }
    fs::remove_dir_all(&plain).map_err(io)?;
    fs::rename(&sealed, &plain).map_err(io)?;
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io)?;
    Ok(Files::new(Some(sealer)))
}

/// Copies a small file, for its owner's eyes only.
fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(to)?;
    file.write_all(&fs::read(from)?)?;
    file.sync_all()
}

/// Why the store may have forgotten something.
fn amnesia(
    identity: Option<Mark>,
    sequence: u64,
    mark: Option<Mark>,
    place: u64,
) -> Option<String> {
    match (identity, mark) {
        (Some(identity), _) if identity.place != place => {
            Some("the folder is a copy, was restored from one, or was moved".to_owned())
        }
        (None, None) => None,
        (None, Some(_)) => Some("the store is empty, but was not".to_owned()),
        (Some(_), None) => Some("the mark is missing".to_owned()),
        (Some(identity), Some(mark)) if identity.disk != mark.disk => {
            Some("store and mark belong to different disks".to_owned())
        }
        (Some(identity), Some(mark)) if identity.boot < mark.boot => Some(format!(
            "the store was last started {} times, the mark says {}",
            identity.boot, mark.boot
        )),
        (Some(_), Some(mark)) if sequence < mark.sequence => {
            Some(format!("the store ends at change {sequence}, it once reached {}", mark.sequence))
        }
        _ => None,
    }
}

/// Whether the store has nothing but its identity.
fn holds_nothing(store: &dyn Storage) -> Result<bool, StorageError> {
    let (after_identity, end) = ([IDENTITY_KEY, &[0]].concat(), [u8::MAX; 32]);
    for (table, start) in
        [(Table::Meta, after_identity.as_slice()), (Table::Jobs, &[]), (Table::Live, &[])]
    {
        if !store.scan(table, start, &end, 1)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Makes sure that no other process has the folder, before anything in it is touched.
fn lock(path: &Path) -> Result<File, OpenError> {
    let file = File::open(path.join(FORMAT_FILE)).map_err(|error| io_failed(path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(io_failed(path, &error)),
    }
}

/// What tells a folder from a copy of it: files that are copied get other inodes and other times of
/// birth. The machine's id says less: a container gets a new one whenever its image is built.
fn place(format: &File) -> io::Result<u64> {
    let about = format.metadata()?;
    let born = about.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let born = born.unwrap_or_default().as_nanos();
    let parts = [&about.ino().to_le_bytes()[..], &born.to_le_bytes()].concat();
    // Two sums of 32 bits: this guards against mistakes, not against malice.
    let (low, high) = (crc32c::crc32c(&parts), crc32c::crc32c_append(!0, &parts));
    Ok(u64::from(low) | u64::from(high) << 32)
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Makes the folder, or checks that it is ours.
fn prepare(path: &Path) -> Result<(), OpenError> {
    let failed = |error: io::Error| io_failed(path, &error);
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let format = path.join(FORMAT_FILE);
    match fs::read_to_string(&format) {
        Ok(text) => check_format(path, &text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::read_dir(path).map_err(failed)?.next().is_some() {
                return Err(OpenError::Foreign { path: path.to_owned() });
            }
            write_format(path, &format).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Written in one step, so that a crash leaves an empty folder or one of ours.
fn write_format(path: &Path, format: &Path) -> io::Result<()> {
    let mut file = File::create_new(format)?;
    file.write_all(format!("{FORMAT_NAME} {FORMAT_VERSION}\n").as_bytes())?;
    file.sync_all()?;
    File::open(path)?.sync_all()
}

/// Says that the folder is of this release's format. Within the file that is there: another would make it
/// another folder.
fn raise_format(format: &Path) -> io::Result<()> {
    let text = format!("{FORMAT_NAME} {FORMAT_VERSION}\n");
    if fs::read_to_string(format)? == text {
        return Ok(());
    }
    let mut file = File::options().write(true).open(format)?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    file.sync_all()
}

fn check_format(path: &Path, text: &str) -> Result<(), OpenError> {
    // A power cut in the very first moment leaves an empty file, and nothing to lose beside it.
    if text.is_empty() {
        return write_empty_format(path);
    }
    let version = text.strip_prefix(FORMAT_NAME).and_then(|rest| rest.trim().parse::<u32>().ok());
    match version {
        None => Err(OpenError::Foreign { path: path.to_owned() }),
        Some(found) if found > FORMAT_VERSION => {
            Err(OpenError::Newer { path: path.to_owned(), found })
        }
        Some(_) => Ok(()),
    }
}

fn write_empty_format(path: &Path) -> Result<(), OpenError> {
    let format = path.join(FORMAT_FILE);
    let again = fs::remove_file(&format).and_then(|()| write_format(path, &format));
    again.map_err(|error| io_failed(path, &error))
}

fn open_failed(path: &Path, error: &rocksdb::Error) -> OpenError {
    let message = error.to_string();
    // RocksDB has no kind for this; both of its wordings name the file.
    if message.contains("/LOCK") && !message.contains("Permission denied") {
        return OpenError::InUse { path: path.to_owned() };
    }
    if message.contains("Permission denied") {
        return OpenError::Denied { path: path.to_owned() };
    }
    match rocks::failed(error.clone()) {
        // A file that the store's own list names and that is gone is damage too.
        StorageError::Io(reason) if reason.contains("No such file or directory") => {
            OpenError::Corrupt { path: path.to_owned(), reason }
        }
        error => store_failed(path, error),
    }
}

fn store_failed(path: &Path, error: StorageError) -> OpenError {
    let path = path.to_owned();
    match error {
        StorageError::Full(_) => OpenError::Full { path },
        StorageError::Corrupt(reason) => OpenError::Corrupt { path, reason },
        StorageError::Io(reason) => OpenError::Io { path, reason },
    }
}

fn seal_failed(path: &Path, source: SealError) -> OpenError {
    OpenError::Encryption { path: path.to_owned(), source }
}

fn io_failed(path: &Path, error: &io::Error) -> OpenError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::PermissionDenied => OpenError::Denied { path },
        io::ErrorKind::StorageFull => OpenError::Full { path },
        _ => OpenError::Io { path, reason: error.to_string() },
    }
}

/// How many bytes are free for this user on the folder's disk.
///
/// # Errors
/// The folder is not there.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = nix::sys::statvfs::statvfs(path)?;
    Ok(found.blocks_available() * found.fragment_size())
}
