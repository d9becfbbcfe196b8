//! A lane: the way to one peer, for as long as one connection to it lasts.
//!
//! Its queue is bounded in bytes. A peer that reads too slowly loses the connection rather than
//! single frames, since whoever sends counts on order and wholeness.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many bytes may wait for a peer: what a local network takes in about a second.
pub(super) const QUEUE_BYTES: usize = 128 << 20;

/// Where frames for one peer go. When all clones are dropped, the connection's stream ends.
#[derive(Clone, Debug)]
pub struct Lane {
    frames: mpsc::UnboundedSender<Bytes>,
    queued: Arc<AtomicUsize>,
    overflow: CancellationToken,
}

/// The other end of a [`Lane`].
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) frames: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
    /// Cancelled when the queue is over its bound: the connection has to end.
    pub(super) overflow: CancellationToken,
}

/// A lane and its other end.
pub(super) fn lane() -> (Lane, Outbox) {
    let (sender, frames) = mpsc::unbounded_channel();
    let queued = Arc::new(AtomicUsize::new(0));
    let overflow = CancellationToken::new();
    let outbox = Outbox { frames, queued: queued.clone(), overflow: overflow.clone() };
    (Lane { frames: sender, queued, overflow }, outbox)
}

impl Lane {
    /// Queues a frame: envelopes, one behind the other. Never waits; dropped if the connection is
    /// gone.
    pub fn send(&self, frame: Bytes) {
        let waiting = self.queued.fetch_add(frame.len(), Ordering::Relaxed);
        if waiting > QUEUE_BYTES {
            self.overflow.cancel();
        } else {
            let _ = self.frames.send(frame);
        }
    }
}

impl Outbox {
    /// A frame was written.
    pub(super) fn taken(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }
}
