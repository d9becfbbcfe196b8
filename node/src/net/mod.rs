//! The network: who is connected, and one ordered stream of frames to each.
//!
//! ```text
//! TCP ─ Noise ─ gate (cluster secret) ─ yamux ┬ frames: jobs, leases, replication
//!                                             ├ gossipsub: adverts, hints only
//!                                             └ identify; mDNS and an address book find peers
//! ```
//! Within one [`NetEvent::PeerUp`] to [`NetEvent::PeerDown`], what is sent on the [`Lane`] arrives in
//! order and whole, or the connection ends. What the messages mean is left to the core.

mod address;
mod behaviour;
mod book;
mod gate;
mod lane;
mod link;
mod peers;
mod swarm;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use carbonmesh_protocol::{advert::Advert, id::NodeId, message::Message};
use libp2p::{Multiaddr, identity::Keypair};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

pub use address::{NotAnAddress, is_loopback, node_id_of, parse_address};
pub use gate::Secret;
pub use lane::Lane;

/// How a node takes part in the network.
#[derive(Debug)]
pub struct NetConfig {
    /// Its identity: an ed25519 key.
    pub keypair: Keypair,
    /// The cluster's name: nodes of another are refused.
    pub cluster: String,
    /// What admits to the cluster; without one, only this machine's nodes can.
    pub secret: Option<Secret>,
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// Where other nodes may be found first.
    pub peers: Vec<Multiaddr>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// The file in which known peers' addresses are kept.
    pub book: PathBuf,
    /// What to tell others instead of the addresses listened on, for nodes behind a translated
    /// address.
    pub advertise: Vec<Multiaddr>,
}

/// What happens on the network.
#[derive(Debug)]
pub enum NetEvent {
    /// A connection stands; the lane reaches the peer until [`PeerDown`](Self::PeerDown).
    PeerUp(NodeId, Lane),
    /// The connection is gone.
    PeerDown(NodeId),
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
        "without a cluster secret a node keeps to this machine, and {0} is not on it: give all nodes the same --secret-file, or use 127.0.0.1"
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

/// A running network.
#[derive(Debug)]
pub struct Net {
    node: NodeId,
    listening: Vec<Multiaddr>,
    gossip: Gossip,
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

    /// Where the node listens.
    pub fn listening(&self) -> &[Multiaddr] {
        &self.listening
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
    if config.secret.is_none() {
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
    let swarm = swarm::Network::listen(config, events, latest).await?;
    let listening = swarm.listening();
    let task = tokio::spawn(swarm.run(cancel));
    Ok(Net { node, listening, gossip: Gossip(adverts), task })
}
