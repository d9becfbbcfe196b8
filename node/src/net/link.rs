//! One peer's link: sessions over its frame stream, one after the other.
//!
//! ```text
//! stream:  magic(4) | length(4, LE) frame | length frame | ...      in both directions
//! frame:   envelopes of the protocol's codec, one behind the other
//! ```
//! The peer with the lower id opens the stream, the other accepts it; so two connections, made by
//! both dialling at once, still carry one stream. A new stream ends the session before it, and a
//! session's end is always told before the next one's begin.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use carbonmesh_protocol::{
    codec::{self, DecodeError},
    id::NodeId,
    message::Message,
};
use futures::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt,
    io::{BufReader, BufWriter},
};
use libp2p::{PeerId, Stream};
use libp2p_stream::Control;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::{
    NetEvent,
    behaviour::FRAMES,
    counters::NetCounters,
    lane::{Outbox, lane},
};

/// The largest frame; a sender makes frames of some MiB and a largest job beyond.
pub(super) const FRAME_BYTES: usize = 160 << 20;

/// How many messages are decoded at once: the smallest have 15 bytes and take many times as much in
/// memory.
const BATCH_MESSAGES: usize = 1024;

/// Beats come every second: a peer that says nothing for so long is gone, whatever TCP believes.
const SILENCE: Duration = Duration::from_secs(8);

/// How long a new stream may take to be greeted.
const GREETING: Duration = Duration::from_secs(5);

/// How long to wait before opening the stream again on a connection that stands.
const REOPEN: Duration = Duration::from_millis(200);

const MAGIC: [u8; 4] = *b"CMF1";
pub(super) const BUFFER_BYTES: usize = 64 << 10;

/// A link to one peer.
pub(super) struct Link {
    pub(super) peer: PeerId,
    pub(super) node: NodeId,
    pub(super) events: mpsc::Sender<NetEvent>,
    /// Told of peers whose connection is dead, though nobody has closed it.
    pub(super) dead: mpsc::Sender<Dead>,
    pub(super) counters: NetCounters,
}

/// How many messages that are not understood are passed over in [`STRANGE_IN`]: a peer of a later release
/// says something new now and then, and others nonsense all the time.
const STRANGE_MESSAGES: u32 = 200;

/// See [`STRANGE_MESSAGES`].
const STRANGE_IN: Duration = Duration::from_secs(60);

/// For how much of a frame there is room before it comes. Most fit.
const FIRST_BYTES: usize = 256 << 10;

/// Whose connection has to end, and why.
pub(super) type Dead = (PeerId, Fault);

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing comes over it.
    Silent,
    /// What comes over it is no frame of ours.
    Malformed,
}

impl Link {
    /// Opens a stream whenever the peer is connected. Ends when the network does.
    pub(super) async fn open(self, mut control: Control, mut connected: watch::Receiver<bool>) {
        while connected.wait_for(|connected| *connected).await.is_ok() {
            match timeout(GREETING, control.open_stream(self.peer, FRAMES)).await {
                Ok(Ok(stream)) => {
                    let lost = async { drop(connected.wait_for(|connected| !connected).await) };
                    self.session(stream, lost).await;
                }
                Ok(Err(error)) => debug!(peer = %self.peer, %error, "no frame stream"),
                Err(_) => {
                    debug!(peer = %self.peer, "the frame stream was not opened in time");
                    self.give_up(Fault::Silent).await;
                }
            }
            sleep(REOPEN).await;
        }
    }

    /// Runs a session on each stream that the peer opens. Ends when the network does.
    pub(super) async fn accept(self, mut streams: mpsc::Receiver<Stream>) {
        let mut newer = None;
        loop {
            let next = match newer.take() {
                Some(stream) => Some(stream),
                None => streams.recv().await,
            };
            let Some(stream) = next else { return };
            self.session(stream, async { newer = streams.recv().await }).await;
        }
    }

    async fn session(&self, mut stream: Stream, interrupted: impl Future<Output = ()>) {
        match timeout(GREETING, greet(&mut stream)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(peer = %self.peer, %error, "no greeting"),
            Err(_) => {
                debug!(peer = %self.peer, "no greeting in time");
                return self.give_up(Fault::Silent).await;
            }
        }
        let (lane, outbox) = lane();
        if self.events.send(NetEvent::PeerUp(self.node, lane)).await.is_err() {
            return;
        }
        self.counters.session_opened();
        let overflow = outbox.overflow.clone();
        let (reader, writer) = stream.split();
        let ended = tokio::select! {
            ended = self.read(reader) => ended,
            ended = write(writer, outbox, &self.counters) => ended,
            () = overflow.cancelled() => Err(io::Error::other("the peer reads too slowly")),
            () = interrupted => Ok(()),
        };
        self.counters.session_ended(match &ended {
            Ok(()) => "closed",
            _ if overflow.is_cancelled() => "slow",
            Err(error) if error.kind() == io::ErrorKind::TimedOut => "silent",
            Err(_) => "failed",
        });
        // Nobody listens only when the node ends.
        let _ = self.events.send(NetEvent::PeerDown(self.node)).await;
        if let Err(error) = ended {
            debug!(peer = %self.peer, node = %self.node, %error, "frame stream ended");
            match error.kind() {
                io::ErrorKind::TimedOut => self.give_up(Fault::Silent).await,
                io::ErrorKind::InvalidData => self.give_up(Fault::Malformed).await,
                _ => {}
            }
        }
    }

    /// The connection is of no use: whatever TCP believes, another one has to be made.
    async fn give_up(&self, fault: Fault) {
        // Nobody listens only when the node ends.
        let _ = self.dead.send((self.peer, fault)).await;
    }

    pub(super) async fn read(&self, reader: impl AsyncRead + Unpin) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
        let mut strange = Strange::default();
        loop {
            let mut frame = read_frame(&mut reader).await?;
            self.counters.received(frame.len());
            while !frame.is_empty() {
                let messages = self.decode(&mut frame, &mut strange)?;
                self.counters.messages_received.inc_by(messages.len() as u64);
                let event = NetEvent::Messages { from: self.node, messages };
                // Waiting here lets TCP hold the sender back.
                if self.events.send(event).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// The next messages of a frame.
    fn decode(&self, frame: &mut Bytes, strange: &mut Strange) -> io::Result<Vec<Message>> {
        let damaged = |error: DecodeError| {
            warn!(peer = %self.peer, node = %self.node, %error, "unreadable frame");
            io::Error::new(io::ErrorKind::InvalidData, error)
        };
        let mut messages = Vec::new();
        while !frame.is_empty() && messages.len() < BATCH_MESSAGES {
            let envelope = codec::split_envelope(frame).map_err(damaged)?;
            match codec::open(&envelope) {
                Ok(message) => messages.push(message),
                // A later release says something new: what we know of it still works.
                Err(DecodeError::Unknown { kind, schema }) => {
                    debug!(peer = %self.peer, kind, schema, "skipped an unknown message");
                }
                // The same within a kind that is known. Its checksum holds: it came as it was sent.
                Err(error @ DecodeError::Body { .. }) if strange.note(Instant::now()) => {
                    warn!(peer = %self.peer, node = %self.node, %error, "skipped a message that is not understood");
                }
                Err(error) => return Err(damaged(error)),
            }
        }
        Ok(messages)
    }
}

/// Counts messages of a session that are not understood.
#[derive(Debug, Default)]
struct Strange {
    since: Option<Instant>,
    count: u32,
}

impl Strange {
    /// Notes one. Says whether a later release would send so many.
    fn note(&mut self, now: Instant) -> bool {
        if self.since.is_none_or(|since| now - since > STRANGE_IN) {
            (self.since, self.count) = (Some(now), 0);
        }
        self.count += 1;
        self.count <= STRANGE_MESSAGES
    }
}

/// Both sides say the same first, so that neither speaks into a stream that nobody took.
async fn greet(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(&MAGIC).await?;
    stream.flush().await?;
    let mut theirs = [0; MAGIC.len()];
    stream.read_exact(&mut theirs).await?;
    if theirs == MAGIC { Ok(()) } else { Err(io::Error::other("it speaks another protocol")) }
}

pub(super) async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    let mut length = [0; 4];
    within_silence(reader.read_exact(&mut length)).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES {
        let reason = format!("a frame of {length} bytes is over {FRAME_BYTES}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    // Room for more than that is made as bytes come: who only says that many will, takes little memory here.
    let mut frame = BytesMut::with_capacity(length.min(FIRST_BYTES));
    while frame.len() < length {
        let have = frame.len();
        frame.resize(length.min(have + BUFFER_BYTES), 0);
        // A large frame may take its time on a slow link, as long as it goes on.
        within_silence(reader.read_exact(&mut frame[have..])).await?;
    }
    Ok(frame.freeze())
}

async fn within_silence(read: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(SILENCE, read)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the peer is silent"))?
}

async fn write(
    writer: impl AsyncWrite + Unpin,
    mut outbox: Outbox,
    counters: &NetCounters,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
    while let Some(frame) = outbox.frames.recv().await {
        write_frame(&mut writer, &frame).await?;
        outbox.taken(frame.len());
        counters.sent(frame.len());
        // What has come meanwhile goes out with it.
        while let Ok(frame) = outbox.frames.try_recv() {
            write_frame(&mut writer, &frame).await?;
            outbox.taken(frame.len());
            counters.sent(frame.len());
        }
        writer.flush().await?;
    }
    Ok(())
}

async fn write_frame(writer: &mut (impl AsyncWrite + Unpin), frame: &[u8]) -> io::Result<()> {
    writer.write_all(&(frame.len() as u32).to_le_bytes()).await?;
    writer.write_all(frame).await
}
