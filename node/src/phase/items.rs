//! Items that one attempt gives: sent on in parts, each once the one before is durable, so that an
//! attempt holds no more than that however many it gives.

use carbonmesh_protocol::id::Token;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::{PhaseError, runner::News};

/// How much goes on its way at once, in bytes and in number.
const PART_BYTES: usize = 256 << 10;
const PART_ITEMS: usize = 1000;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct ItemSink {
    token: Token,
    /// The largest item, in bytes.
    pub(super) item_bytes: usize,
    news: mpsc::Sender<News>,
    taken: Notify,
    part: Mutex<Part>,
}

#[derive(Debug, Default)]
struct Part {
    lines: Vec<u8>,
    items: usize,
    /// Whether the part before is not known to be durable.
    waits: bool,
    /// Whether the attempt has ended.
    closed: bool,
}

impl ItemSink {
    pub(super) fn new(token: Token, item_bytes: usize, news: mpsc::Sender<News>) -> Self {
        let (taken, part) = (Notify::new(), Mutex::default());
        Self { token, item_bytes, news, taken, part }
    }

    /// Takes one item, on one line.
    ///
    /// # Errors
    /// It is too large, the attempt has ended, or nobody wants the attempt's end any more.
    pub(super) async fn give(
        &self,
        line: &[u8],
        cancelled: &CancellationToken,
    ) -> Result<(), PhaseError> {
        if line.len() > self.item_bytes {
            let (bytes, limit) = (line.len(), self.item_bytes);
            return Err(PhaseError::Fatal(format!(
                "an item has {bytes} bytes: at most {limit} are allowed (limits.job_bytes)"
            )));
        }
        let mut part = self.part.lock().await;
        if part.closed {
            return Err(PhaseError::Fatal("an item comes after the attempt's end".to_owned()));
        }
        part.lines.extend_from_slice(line);
        part.lines.push(b'\n');
        part.items += 1;
        match part.items >= PART_ITEMS || part.lines.len() >= PART_BYTES {
            true => self.send(&mut part, cancelled).await,
            false => Ok(()),
        }
    }

    /// Waits until all items are durable.
    ///
    /// # Errors
    /// Nobody wants the attempt's end any more.
    pub(super) async fn finish(&self, cancelled: &CancellationToken) -> Result<(), PhaseError> {
        let mut part = self.part.lock().await;
        part.closed = true;
        if part.items > 0 {
            self.send(&mut part, cancelled).await?;
        }
        self.wait(&mut part, cancelled).await
    }

    /// The part on its way is durable.
    pub(super) fn taken(&self) {
        self.taken.notify_one();
    }

    async fn send(&self, part: &mut Part, cancelled: &CancellationToken) -> Result<(), PhaseError> {
        self.wait(part, cancelled).await?;
        // Whoever drops this while it waits has lost nothing.
        let permit = self.news.reserve().await;
        let permit = permit.map_err(|_| PhaseError::Retry("the node ends".to_owned()))?;
        let lines = std::mem::take(&mut part.lines).into();
        (part.items, part.waits) = (0, true);
        permit.send(News::Items { token: self.token, lines });
        Ok(())
    }

    async fn wait(&self, part: &mut Part, cancelled: &CancellationToken) -> Result<(), PhaseError> {
        if part.waits {
            tokio::select! {
                () = self.taken.notified() => part.waits = false,
                () = cancelled.cancelled() => {
                    return Err(PhaseError::Retry("the attempt was cancelled".to_owned()));
                }
            }
        }
        Ok(())
    }
}
