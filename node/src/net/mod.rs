//! The network: who is connected, and one ordered stream of frames to each.
//!
//! ```text
//! TCP ─ Noise ─ gate (secret, or certificates) ─ yamux ┬ frames: jobs, leases, replication
//!                                                      ├ gossipsub: adverts, hints only
//!                                                      ├ trust: who was shut out, renewals
//!                                                      ├ identify; mDNS and a book find peers
//!                                                      └ relaying, AutoNAT, DCUtR: far networks
//! relay ─ the same from Noise on, for nodes that cannot dial each other
//! ```
//! Within one [`NetEvent::PeerUp`] to [`NetEvent::PeerDown`], what is sent on the [`Lane`] arrives in
//! order and whole, or the connection ends. What the messages mean is left to the core.

mod address;
mod behaviour;
mod book;
mod counters;
mod crowd;
mod gate;
mod heard;
mod lane;
mod link;
mod links;
mod peers;
mod penalty;
mod reach;
mod swarm;
mod trust;

#[cfg(test)]
mod cost;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use carbonmesh_protocol::{advert::Advert, id::NodeId, message::Message};
use carbonmesh_storage::Files;
use libp2p::{Multiaddr, PeerId, StreamProtocol, identity::Keypair};
use libp2p_stream::{Control, IncomingStreams, OpenStreamError};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::trust::Trust;

pub use address::{NotAnAddress, is_loopback, node_id_of, parse_address};
pub use gate::Secret;
pub use lane::Lane;

pub(crate) use counters::NetCounters;

/// How a node takes part in the network.
#[derive(Debug)]
pub struct NetConfig {
    /// Its identity: an ed25519 key.
    pub keypair: Keypair,
    /// The cluster's name: nodes of another are refused.
    pub cluster: String,
    /// What admits to the cluster; without one, only this machine's nodes can.
    pub secret: Option<Secret>,
    /// The node's certificates, where the cluster goes by these; there is no secret then.
    pub trust: Option<Trust>,
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// Where other nodes may be found first.
    pub peers: Vec<Multiaddr>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// The file in which known peers' addresses are kept.
    pub book: PathBuf,
    /// How that file is written.
    pub files: Files,
    /// What to tell others instead of the addresses listened on, for nodes behind a translated
    /// address.
    pub advertise: Vec<Multiaddr>,
    /// Whether it relays for nodes that cannot dial each other.
    pub relay: bool,
}

/// What happens on the network.
#[derive(Debug)]
pub enum NetEvent {
    /// A connection stands; the lane reaches the peer until [`PeerDown`](Self::PeerDown).
    PeerUp(NodeId, Lane),
    /// The connection is gone.
    PeerDown(NodeId),
    /// The node was shut out of the cluster.
    Expelled(NodeId),
    /// What came in one frame.
    Messages {
        /// From whom.
        from: NodeId,
        /// What.
        messages: Vec<Message>,
    },
    /// An advert came by gossip; its signature was checked.
    Advert(Advert),
    /// Where the node can be reached.
    Listening(Vec<String>),
}

/// The network could not be started. Nothing runs.
#[derive(Debug, Error)]
pub enum NetError {
    /// Another program has the port.
    #[error("address {0} is in use: stop what listens there, or choose another with --listen")]
    AddressInUse(Multiaddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: Multiaddr,
        /// Why not.
        source: io::Error,
    },
    /// Listening there would let strangers in.
    #[error(
        "without a cluster secret or an invitation a node keeps to this machine, and {0} is not on it: give all nodes the same --secret-file, join with --join, or use 127.0.0.1"
    )]
    Exposed(Multiaddr),
    /// Noise, gossipsub or mDNS could not be set up.
    #[error("cannot set up {part}: {reason}")]
    Setup {
        /// What.
        part: &'static str,
        /// Why not.
        reason: String,
    },
}

/// Where a node says what it is.
#[derive(Clone, Debug)]
pub struct Gossip(watch::Sender<Option<Advert>>);

impl Gossip {
    /// Gossips what the node says of itself; only the latest is kept.
    pub fn publish(&self, advert: Advert) {
        self.0.send_replace(Some(advert));
    }
}

/// Streams beside those of frames, to the peers that are connected.
#[derive(Clone)]
pub(crate) struct Streams {
    control: Control,
    connected: Connected,
}

impl Streams {
    /// Who is connected now.
    pub(crate) fn peers(&self) -> BTreeSet<PeerId> {
        self.connected.peers()
    }

    /// Opens a stream.
    pub(crate) async fn open(
        &self,
        peer: PeerId,
        protocol: StreamProtocol,
    ) -> Result<libp2p::Stream, OpenStreamError> {
        self.control.clone().open_stream(peer, protocol).await
    }

    /// The streams that peers open; none if somebody takes these already.
    pub(crate) fn accept(&self, protocol: StreamProtocol) -> Option<IncomingStreams> {
        self.control.clone().accept(protocol).ok()
    }
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("connected", &self.connected).finish_non_exhaustive()
    }
}

/// The peers that are connected.
#[derive(Clone, Debug, Default)]
struct Connected(Arc<Mutex<BTreeSet<PeerId>>>);

impl Connected {
    fn peers(&self) -> BTreeSet<PeerId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, peer: PeerId, connected: bool) {
        let mut peers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match connected {
            true => peers.insert(peer),
            false => peers.remove(&peer),
        };
    }
}

/// A running network.
#[derive(Debug)]
pub struct Net {
    node: NodeId,
    listening: Vec<Multiaddr>,
    gossip: Gossip,
    counters: NetCounters,
    streams: Streams,
    task: JoinHandle<()>,
}

impl Net {
    /// Who the node is.
    pub fn node_id(&self) -> NodeId {
        self.node
    }

    /// Where the node says what it is.
    pub fn gossip(&self) -> Gossip {
        self.gossip.clone()
    }

    /// What is counted.
    pub(crate) fn counters(&self) -> NetCounters {
        self.counters.clone()
    }

    /// Where the node listens.
    pub fn listening(&self) -> &[Multiaddr] {
        &self.listening
    }

    /// Streams beside those of frames.
    pub(crate) fn streams(&self) -> Streams {
        self.streams.clone()
    }

    /// Waits for the end, after the token given to [`start`] was cancelled.
    pub async fn stopped(self) {
        // An error here is a panic in the task, which has been reported already.
        let _ = self.task.await;
    }
}

/// Starts the network: returns when all addresses are listened on.
///
/// # Errors
/// An address cannot be listened on, or is open to strangers although there is no secret.
pub async fn start(
    config: NetConfig,
    events: mpsc::Sender<NetEvent>,
    cancel: CancellationToken,
) -> Result<Net, NetError> {
    if config.secret.is_none() && config.trust.is_none() {
        let mut addresses = config.listen.iter().chain(&config.peers);
        if let Some(exposed) = addresses.find(|address| !is_loopback(address)) {
            return Err(NetError::Exposed(exposed.clone()));
        }
    }
    let local = config.keypair.public().to_peer_id();
    let node = node_id_of(&local).ok_or_else(|| NetError::Setup {
        part: "the node's identity",
        reason: "its key is not ed25519".to_owned(),
    })?;
    let (adverts, latest) = watch::channel(None);
    let swarm = Box::pin(swarm::Network::listen(config, events, latest)).await?;
    let (listening, counters) = (swarm.listening(), swarm.counters());
    let streams = swarm.streams();
    let task = tokio::spawn(swarm.run(cancel));
    Ok(Net { node, listening, gossip: Gossip(adverts), counters, streams, task })
}
