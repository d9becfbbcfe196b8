//! The disk's thread: writes what waits as one batch with one sync, in the order in which it came.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use carbonmesh_protocol::{io::PersistId, store::Write};
use carbonmesh_storage::{Storage, StorageError};
use tokio::sync::mpsc;

use super::DriverError;

/// How many batches may wait: a disk that falls back further holds the core up.
const WAITING: usize = 1024;

/// How many changes are joined to one write, and how many bytes, about.
const JOINED: usize = 16_384;
const JOINED_BYTES: usize = 16 << 20;

/// Batches that are on disk, in their order; or why they are not.
pub(super) type Written = Result<Vec<PersistId>, StorageError>;

/// Where the core's batches go.
pub(super) struct Queue(SyncSender<(PersistId, Vec<Write>)>);

impl Queue {
    /// Queues a batch.
    pub(super) fn write(&self, id: PersistId, writes: Vec<Write>) -> Result<(), DriverError> {
        self.0.send((id, writes)).map_err(|_| DriverError::Died)
    }
}

/// Starts the thread. It ends when the queue is dropped and empty, or a write fails.
pub(super) fn spawn(
    storage: Arc<dyn Storage>,
) -> io::Result<(Queue, mpsc::UnboundedReceiver<Written>)> {
    let (queue, waiting) = sync_channel(WAITING);
    // Unbounded, or a core that waits for room in the queue and a disk that waits for the core
    // would wait for each other; it holds no more than the queue has let through.
    let (written, done) = mpsc::unbounded_channel();
    thread::Builder::new()
        .name("disk".to_owned())
        .spawn(move || run(&*storage, &waiting, &written))?;
    Ok((Queue(queue), done))
}

fn run(
    storage: &dyn Storage,
    waiting: &Receiver<(PersistId, Vec<Write>)>,
    written: &mpsc::UnboundedSender<Written>,
) {
    while let Ok((first, mut writes)) = waiting.recv() {
        let (mut ids, mut bytes) = (vec![first], size(&writes));
        while writes.len() < JOINED
            && bytes < JOINED_BYTES
            && let Ok((id, more)) = waiting.try_recv()
        {
            ids.push(id);
            bytes += size(&more);
            writes.extend(more);
        }
        let result = match writes.is_empty() {
            true => Ok(()),
            false => storage.write(&writes, true),
        };
        let failed = result.is_err();
        if written.send(result.map(|()| ids)).is_err() || failed {
            return;
        }
    }
}

fn size(writes: &[Write]) -> usize {
    let value = |write: &Write| match write {
        Write::Put { value, .. } => value.len(),
        Write::Delete { .. } | Write::DeleteRange { .. } => 0,
    };
    writes.iter().map(value).sum()
}
