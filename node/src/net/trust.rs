//! What members tell each other of trust, on short streams of their own.
//!
//! ```text
//! opener ─Tell─► acceptor     acceptor ─Told─► opener      at each connection, and at each change
//! opener ─Renew─► acceptor    acceptor ─Renewed─► opener   when the opener's certificate runs out
//! frame: length(4, LE), envelope of the codec
//! ```
//! Whoever hears of somebody who was shut out tells all its own peers: that is how it spreads. All
//! that is told is signed, and checked by [`Trust`].
//!
//! Invariant: no member can keep the others from telling, however many streams it holds.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    codec::{self, Encoded, Kind},
    id::NodeId,
};
use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use libp2p::{PeerId, Stream, StreamProtocol};
use libp2p_stream::Control;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::{debug, warn};

use super::address::{key_of, node_id_of};
use crate::trust::{MAX_CHAIN_BYTES, MAX_REVOCATIONS, MAX_SHOWN_BYTES, Revocation, Trust};

/// The streams' protocol.
pub(super) const TRUST: StreamProtocol = StreamProtocol::new("/carbonmesh/1/trust");

/// How long a question and its answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Room for as many entries as there may be, each with its signer's certificates.
const FRAME_BYTES: usize = MAX_REVOCATIONS * (MAX_CHAIN_BYTES / 2) + MAX_SHOWN_BYTES + 4096;

/// How many peers' streams are answered at once.
const STREAMS: usize = 32;

/// How many of them one peer may have: it opens one at each change, and when it comes.
const OF_ONE: usize = 4;

/// Who is being answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Answering(Arc<Mutex<BTreeMap<PeerId, usize>>>);

/// A place among those who are answered; dropped, it is free again.
#[derive(Debug)]
pub(super) struct Place {
    answering: Answering,
    peer: PeerId,
}

impl Answering {
    /// A place for one stream more of a peer; none if there are enough.
    pub(super) fn enter(&self, peer: PeerId) -> Option<Place> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_one = streams.get(&peer).copied().unwrap_or_default();
        if of_one >= OF_ONE || streams.values().sum::<usize>() >= STREAMS {
            return None;
        }
        streams.insert(peer, of_one + 1);
        Some(Place { answering: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut streams = self.answering.0.lock().unwrap_or_else(PoisonError::into_inner);
        match streams.get_mut(&self.peer) {
            Some(of_one @ 2..) => *of_one -= 1,
            _ => drop(streams.remove(&self.peer)),
        }
    }
}

/// What is said.
#[derive(Debug, Serialize, Deserialize)]
enum Saying {
    /// What the sender knows, and what it is.
    Tell(News),
    /// The same, in answer.
    Told(News),
    /// A new certificate, please.
    Renew,
    /// Here, or not.
    Renewed(Option<Bytes>),
}

impl Encoded for Saying {
    const KIND: Kind = 0x204;
}

#[derive(Debug, Serialize, Deserialize)]
struct News {
    /// The sender's certificates, and what led to the root that they begin with.
    chain: Bytes,
    /// Whether it renews others'.
    renews: bool,
    /// Who was shut out.
    revoked: Vec<Revocation>,
}

impl News {
    fn of(trust: &Trust) -> Self {
        Self { chain: trust.chain(), renews: trust.is_issuer(), revoked: trust.revocations() }
    }

    fn take(self, trust: &Trust, peer: PeerId, node: NodeId) {
        // It may have been renewed since the peer came; and what another root has signed counts once that
        // root is known.
        if let Some(key) = key_of(&peer)
            && let Err(error) = trust.admit(key, &self.chain)
        {
            debug!(%peer, %error, "a peer's new certificate does not hold");
        }
        if let Err(error) = trust.learn(self.revoked) {
            warn!(%peer, %error, "a peer tells of somebody shut out, and that does not hold");
        }
        trust.note_renews(node, self.renews);
    }
}

/// Tells a peer all, hears the same, and has the own certificate renewed there if it is time.
pub(super) async fn converse(mut control: Control, peer: PeerId, trust: Trust) {
    let Some(node) = node_id_of(&peer) else { return };
    let talk = async {
        let tell = Saying::Tell(News::of(&trust));
        match ask(&mut control, peer, &tell).await? {
            Saying::Told(news) => news.take(&trust, peer, node),
            _ => return Err(io::Error::other("the answer does not fit")),
        }
        if trust.wants_renewal_from(node) {
            match ask(&mut control, peer, &Saying::Renew).await? {
                Saying::Renewed(Some(chain)) => {
                    trust.adopt(&chain).map_err(io::Error::other)?;
                }
                Saying::Renewed(None) => {}
                _ => return Err(io::Error::other("the answer does not fit")),
            }
        }
        Ok::<_, io::Error>(())
    };
    match timeout(PATIENCE, talk).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "could not speak of trust"),
        Err(_) => debug!(%peer, "did not speak of trust in time"),
    }
}

/// Answers a peer.
pub(super) async fn answer(mut stream: Stream, peer: PeerId, trust: Trust) {
    let Some(node) = node_id_of(&peer) else { return };
    let talk = async {
        let reply = match read(&mut stream).await? {
            Saying::Tell(news) => {
                news.take(&trust, peer, node);
                Saying::Told(News::of(&trust))
            }
            Saying::Renew => Saying::Renewed(trust.renew(node)),
            Saying::Told(_) | Saying::Renewed(_) => {
                return Err(io::Error::other("an answer to no question"));
            }
        };
        write(&mut stream, &reply).await?;
        stream.close().await
    };
    match timeout(PATIENCE, talk).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%peer, %error, "could not answer about trust"),
        Err(_) => debug!(%peer, "could not answer about trust in time"),
    }
}

async fn ask(control: &mut Control, peer: PeerId, saying: &Saying) -> io::Result<Saying> {
    let stream = control.open_stream(peer, TRUST).await;
    let mut stream = stream.map_err(io::Error::other)?;
    write(&mut stream, saying).await?;
    read(&mut stream).await
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), saying: &Saying) -> io::Result<()> {
    let bytes = codec::encode(saying);
    stream.write_all(&(bytes.len() as u32).to_le_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Saying> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    if length > FRAME_BYTES {
        return Err(io::Error::other(format!("{length} bytes are over {FRAME_BYTES}")));
    }
    let mut bytes = Vec::new();
    stream.take(length as u64).read_to_end(&mut bytes).await?;
    codec::decode(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_member_takes_the_places_of_those_who_tell_of_others() {
        let (answering, [one, other]) = (Answering::default(), [(); 2].map(|()| PeerId::random()));
        let mut held: Vec<Place> = std::iter::from_fn(|| answering.enter(one)).collect();
        assert_eq!(held.len(), OF_ONE);
        assert!(answering.enter(other).is_some());
        held.pop();
        held.extend(answering.enter(one));
        assert!(held.len() == OF_ONE && answering.enter(one).is_none(), "a place is free again");
        while let Some(place) = answering.enter(PeerId::random()) {
            held.push(place);
        }
        assert_eq!(held.len(), STREAMS);
        drop(held);
        assert!(answering.0.lock().unwrap().is_empty());
    }
}
