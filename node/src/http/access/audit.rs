//! The audit log: who did what to the cluster through this node, from where, and what came of it.
//!
//! ```text
//! request ─► room for its entry ─► handler ─► entry ──► writer ──► data folder/audit.ndjson
//!              none: refused (503)          (bounded queue)       (a chain of hashes)
//! ```
//! A change is not let through unless there is room for its entry and the last write went well; what
//! is under way when writing fails is kept and written once that works again, and told in the node's
//! log meanwhile. The core never waits for any of this.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use thiserror::Error;
use tokio::{
    sync::{
        mpsc::{self, OwnedPermit, error::TrySendError},
        oneshot,
    },
    task::spawn_blocking,
    time::timeout_at,
};
use tracing::{error, info, warn};

use super::chain::{Event, Head, Line, hash};

/// The current file; older ones have the number of their first entry in their names.
pub const FILE: &str = "audit.ndjson";

/// How large a file becomes, in bytes, and how many old ones are kept: 136 MiB in all.
const FILE_BYTES: u64 = 8 << 20;
const KEPT: usize = 16;

/// How many entries may wait to be written.
const WAITING: usize = 1024;

/// How many go to the file in one write.
const BATCH: usize = 256;

/// How long an entry may lie in the system's cache: a machine that loses its power loses no more.
const SYNC_EVERY: Duration = Duration::from_secs(1);

/// How much is read to find the last line.
const TAIL: u64 = 128 << 10;

/// What is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    #[default]
    Off,
    /// Changes and failed logins.
    Changes,
    /// Whatever is asked with a token, a certificate or locally.
    All,
}

/// The log cannot be used. Nothing was started.
#[derive(Debug, Error)]
pub enum AuditError {
    /// The file cannot be read or written.
    #[error("cannot use the audit log {}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The last line is none of ours.
    #[error(
        "the last line of the audit log {} is none that this program wrote: run `carbonmesh audit \
         verify` on it, then move it away",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

enum Message {
    Entry(Box<Event>),
    Flush(oneshot::Sender<()>),
}

/// Why a change cannot be written down, and so is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Too many entries wait.
    Busy,
    /// The last write failed.
    Failing,
}

/// Where entries go; cheap to clone.
#[derive(Clone, Debug)]
pub struct Audit {
    to: mpsc::Sender<Message>,
    healthy: Arc<AtomicBool>,
}

/// Room for one entry.
#[derive(Debug)]
pub(super) struct Room(OwnedPermit<Message>);

impl Room {
    pub(super) fn write(self, event: Event) {
        self.0.send(Message::Entry(Box::new(event)));
    }
}

impl Audit {
    /// Goes on with the log in a folder, or begins it; within a runtime.
    ///
    /// # Errors
    /// It cannot be written, or ends with what is no entry.
    pub fn open(folder: &Path) -> Result<Self, AuditError> {
        let log = Log::open(folder, FILE_BYTES)?;
        let Head { seq, hash } = &log.head;
        info!(entries = seq, head = hash, "the audit log goes on");
        let (to, from) = mpsc::channel(WAITING);
        let healthy = Arc::new(AtomicBool::new(true));
        let writer = Writer { log: Some(log), healthy: healthy.clone(), told: None };
        tokio::spawn(writer.run(from));
        Ok(Self { to, healthy })
    }

    /// Room for the entry of a change that is about to be made.
    pub(super) fn room(&self) -> Result<Room, NoRoom> {
        if !self.healthy.load(Ordering::Acquire) {
            return Err(NoRoom::Failing);
        }
        match self.to.clone().try_reserve_owned() {
            Ok(permit) => Ok(Room(permit)),
            Err(TrySendError::Full(_)) => Err(NoRoom::Busy),
            Err(TrySendError::Closed(_)) => Err(NoRoom::Failing),
        }
    }

    /// Waits until all that was said before is on disk.
    pub async fn flush(&self) {
        let (done, written) = oneshot::channel();
        if self.to.send(Message::Flush(done)).await.is_ok() {
            let _ = written.await;
        }
    }
}

/// Writes what comes.
struct Writer {
    /// None while a blocking thread has it.
    log: Option<Log>,
    healthy: Arc<AtomicBool>,
    told: Option<Instant>,
}

/// How long a failing write rests before it is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// How often it is said that writing fails.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// The thread that had the file is gone with it.
struct Gone;

impl Writer {
    async fn run(mut self, mut from: mpsc::Receiver<Message>) {
        let mut messages = Vec::with_capacity(BATCH);
        let mut sync_at = None;
        loop {
            let received = match sync_at {
                None => from.recv_many(&mut messages, BATCH).await,
                Some(at) => match timeout_at(at, from.recv_many(&mut messages, BATCH)).await {
                    Ok(received) => received,
                    Err(_) => {
                        sync_at = None;
                        match self.until_done(&mut from, Log::sync).await {
                            Ok(()) => continue,
                            Err(Gone) => return,
                        }
                    }
                },
            };
            if received == 0 {
                let _ = self.until_done(&mut from, Log::sync).await;
                return;
            }
            let (mut events, mut flushed) = (Vec::new(), Vec::new());
            for message in messages.drain(..) {
                match message {
                    Message::Entry(event) => events.push(*event),
                    Message::Flush(done) => flushed.push(done),
                }
            }
            let events = Arc::new(events);
            let again = events.clone();
            let append = move |log: &mut Log| log.append(&again);
            if self.until_done(&mut from, append).await.is_err() {
                return;
            }
            if flushed.is_empty() {
                sync_at.get_or_insert_with(|| tokio::time::Instant::now() + SYNC_EVERY);
                continue;
            }
            sync_at = None;
            if self.until_done(&mut from, Log::sync).await.is_err() {
                return;
            }
            for done in flushed {
                let _ = done.send(());
            }
        }
    }

    /// Does something with the file until it works, or the node has ended.
    async fn until_done(
        &mut self,
        from: &mut mpsc::Receiver<Message>,
        what: impl Fn(&mut Log) -> io::Result<()> + Clone + Send + 'static,
    ) -> Result<(), Gone> {
        loop {
            let mut log = self.log.take().ok_or(Gone)?;
            let what = what.clone();
            let done = spawn_blocking(move || (what(&mut log), log)).await;
            let (done, log) = done.map_err(|_| Gone)?;
            let path = log.path.clone();
            self.log = Some(log);
            match done {
                Ok(()) => {
                    if !self.healthy.swap(true, Ordering::AcqRel) {
                        info!("the audit log is written again");
                    }
                    return Ok(());
                }
                Err(problem) => self.failing(&path, &problem),
            }
            if from.is_closed() {
                return Err(Gone);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn failing(&mut self, path: &Path, problem: &io::Error) {
        self.healthy.store(false, Ordering::Release);
        if self.told.is_none_or(|at| at.elapsed() >= TELL_EVERY) {
            self.told = Some(Instant::now());
            let path = path.display();
            error!(%path, %problem, "the audit log cannot be written: no change is let through");
        }
    }
}

/// The file.
struct Log {
    folder: PathBuf,
    path: PathBuf,
    limit: u64,
    file: File,
    /// How much of the file is whole lines.
    bytes: u64,
    /// The number of the file's first entry.
    first: u64,
    head: Head,
}

impl Log {
    fn open(folder: &Path, limit: u64) -> Result<Self, AuditError> {
        let path = folder.join(FILE);
        let failed = |source| AuditError::Io { path: path.clone(), source };
        let mut file = open(&path).map_err(failed)?;
        let (bytes, last) = last_line(&mut file).map_err(failed)?;
        let head = match last {
            Some(line) => head_of(&line),
            // Between the end of one file and the first line of the next.
            None => match newest(folder).map_err(failed)? {
                Some(older) => {
                    let mut older = File::open(older).map_err(failed)?;
                    last_line(&mut older)
                        .map_err(failed)?
                        .1
                        .map_or(Some(Head::default()), |line| head_of(&line))
                }
                None => Some(Head::default()),
            },
        };
        let head = head.ok_or_else(|| AuditError::Damaged { path: path.clone() })?;
        let size = file.metadata().map_err(failed)?.len();
        if size > bytes {
            warn!(path = %path.display(), bytes = size - bytes, "the last entry was not written to its end: taking it away");
            file.set_len(bytes).map_err(failed)?;
        }
        let first = first_of(&mut file, &head).map_err(failed)?;
        file.seek(SeekFrom::Start(bytes)).map_err(failed)?;
        let folder = folder.to_owned();
        Ok(Self { folder, path, limit, file, bytes, first, head })
    }

    /// Appends all of these, or none.
    fn append(&mut self, events: &[Event]) -> io::Result<()> {
        if self.bytes >= self.limit {
            self.rotate()?;
        }
        let (mut text, mut head) = (Vec::new(), self.head.clone());
        for event in events {
            let (line, next) = head.append(event.clone()).map_err(io::Error::other)?;
            text.extend_from_slice(&line);
            head = next;
        }
        if let Err(error) = self.file.write_all(&text) {
            // Half a line must not stay before what comes next.
            self.file.set_len(self.bytes)?;
            self.file.seek(SeekFrom::Start(self.bytes))?;
            return Err(error);
        }
        self.bytes += text.len() as u64;
        self.head = head;
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        match fs::rename(&self.path, self.folder.join(old_name(self.first))) {
            // It was moved, and what comes then went wrong.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        self.file = open(&self.path)?;
        File::open(&self.folder)?.sync_all()?;
        (self.bytes, self.first) = (0, self.head.seq + 1);
        let Head { seq, hash } = &self.head;
        info!(entries = seq, head = hash, "the audit log goes on in a new file");
        let mut old = old_files(&self.folder)?;
        old.sort();
        for path in old.iter().rev().skip(KEPT) {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

fn old_name(first: u64) -> String {
    // As many digits as sort by themselves.
    format!("audit-{first:012}.ndjson")
}

fn old_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let number = name.strip_prefix("audit-").and_then(|name| name.strip_suffix(".ndjson"));
        if number.is_some_and(|it| it.len() == 12 && it.bytes().all(|one| one.is_ascii_digit())) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn newest(folder: &Path) -> io::Result<Option<PathBuf>> {
    Ok(old_files(folder)?.into_iter().max())
}

/// How much of a file is whole lines, and the last of them.
fn last_line(file: &mut File) -> io::Result<(u64, Option<Vec<u8>>)> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let Some(end) = tail.iter().rposition(|byte| *byte == b'\n') else { return Ok((from, None)) };
    let begin = tail[..end].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    Ok((from + end as u64 + 1, Some(tail[begin..end].to_vec())))
}

fn head_of(line: &[u8]) -> Option<Head> {
    let parsed: Line = serde_json::from_slice(line).ok()?;
    Some(Head { seq: parsed.seq, hash: hash(line) })
}

/// The number of a file's first entry, or of the next one if there is none.
fn first_of(file: &mut File, head: &Head) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut begin = Vec::new();
    io::Read::take(&mut *file, TAIL).read_to_end(&mut begin)?;
    let line = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice::<Line>(line).map_or(head.seq + 1, |line| line.seq))
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use super::*;
    use crate::http::access::chain::Checked;

    fn event(who: &str) -> Event {
        Event { who: who.to_owned(), ..Event::default() }
    }

    fn check(folder: &Path) -> Checked {
        let mut files = old_files(folder).unwrap();
        files.sort();
        files.push(folder.join(FILE));
        let mut checked = Checked::default();
        for path in files {
            let name = path.display().to_string();
            checked.file(&name, BufReader::new(File::open(path).unwrap())).unwrap();
        }
        checked
    }

    #[test]
    fn the_chain_goes_on_over_restarts_and_files() {
        let folder = tempfile::tempdir().unwrap();
        for start in 0..4 {
            let mut log = Log::open(folder.path(), 1000).unwrap();
            for entry in 0..10 {
                log.append(&[event(&format!("{start} {entry}"))]).unwrap();
            }
        }
        let checked = check(folder.path());
        assert_eq!((checked.lines, checked.first, checked.faults), (40, Some(1), vec![]));
        assert!(old_files(folder.path()).unwrap().len() > 3);
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &fs::metadata(folder.path().join(FILE)).unwrap().permissions(),
        );
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn only_so_many_files_are_kept_and_the_rest_still_fits() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), 1).unwrap();
        for entry in 0..KEPT + 5 {
            log.append(&[event(&entry.to_string())]).unwrap();
        }
        assert_eq!(old_files(folder.path()).unwrap().len(), KEPT);
        let checked = check(folder.path());
        assert_eq!((checked.first, checked.faults), (Some(5), vec![]));
    }

    #[test]
    fn half_an_entry_goes_and_a_foreign_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Log::open(folder.path(), 1000).unwrap().append(&[event("a"), event("b")]).unwrap();
        let path = folder.path().join(FILE);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, [&whole[..], b"{\"seq\":3,\"pr"].concat()).unwrap();
        let mut log = Log::open(folder.path(), 1000).unwrap();
        assert_eq!((log.head.seq, log.first), (2, 1));
        log.append(&[event("c")]).unwrap();
        let checked = check(folder.path());
        assert_eq!((checked.lines, checked.faults), (3, vec![]));
        fs::write(&path, "something else\n").unwrap();
        assert!(matches!(Log::open(folder.path(), 1000), Err(AuditError::Damaged { .. })));
    }

    #[test]
    fn a_new_file_goes_on_from_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), 1).unwrap();
        log.append(&[event("a")]).unwrap();
        // As after a crash in the middle of the change to the next.
        log.rotate().unwrap();
        drop(log);
        let mut log = Log::open(folder.path(), 1000).unwrap();
        assert_eq!((log.head.seq, log.first), (1, 2));
        log.append(&[event("b")]).unwrap();
        assert_eq!(check(folder.path()).faults, vec![]);
    }

    #[tokio::test]
    async fn entries_are_on_disk_once_flushed_and_the_queue_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let audit = Audit::open(folder.path()).unwrap();
        for entry in 0..500 {
            audit.room().unwrap().write(event(&entry.to_string()));
        }
        audit.flush().await;
        let checked = check(folder.path());
        assert_eq!((checked.lines, checked.faults), (500, vec![]));
        let rooms: Vec<_> = (0..WAITING).map(|_| audit.room().unwrap()).collect();
        assert_eq!(audit.room().unwrap_err(), NoRoom::Busy);
        drop(rooms);
        assert!(audit.room().is_ok());
    }

    #[tokio::test]
    async fn while_it_cannot_be_written_no_change_gets_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = Log::open(folder.path(), 1000).unwrap();
        let path = log.path.clone();
        // A file that is open for reading only refuses each write, as a broken disk does.
        log.file = File::open(&path).unwrap();
        let (to, from) = mpsc::channel(WAITING);
        let healthy = Arc::new(AtomicBool::new(true));
        let audit = Audit { to, healthy: healthy.clone() };
        let writer = Writer { log: Some(log), healthy: healthy.clone(), told: None };
        let writing = tokio::spawn(writer.run(from));
        audit.room().unwrap().write(event("a"));
        while healthy.load(Ordering::Acquire) {
            tokio::task::yield_now().await;
        }
        assert_eq!(audit.room().unwrap_err(), NoRoom::Failing);
        drop(audit);
        writing.await.unwrap();
    }
}
