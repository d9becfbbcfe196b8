//! Which libp2p protocols run, and how they are tuned for clusters of a few nodes.

use std::time::Duration;

use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, connection_limits,
    gossipsub::{self, MessageAuthenticity, ValidationMode},
    identify, mdns, noise,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};

use super::{NetConfig, NetError, crowd::Crowd, gate::Gate, penalty::Penalties};

/// The stream that carries frames.
pub(super) const FRAMES: StreamProtocol = StreamProtocol::new("/carbonmesh/1/frames");

/// Connections that nobody has proven to belong here yet, at once.
const PENDING_INCOMING: u32 = 128;

/// Both may dial at once, and again before the old connections are known to be dead; a member that
/// makes many more than that means harm.
const PER_PEER: u32 = 8;

/// The largest advert: some thousand phases, labels and addresses.
const ADVERT_BYTES: usize = 256 << 10;

/// A second connection to a peer, left over from both dialling at once, is closed after this.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection may take until it has passed the gate.
const HANDSHAKE: Duration = Duration::from_secs(5);

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    crowd: Crowd,
    identify: identify::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) streams: libp2p_stream::Behaviour,
}

/// The topic on which the cluster's nodes say what they are.
pub(super) fn adverts_topic(cluster: &str) -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(format!("carbonmesh/1/{cluster}/adverts"))
}

/// A swarm that listens nowhere yet.
pub(super) fn build(
    config: &NetConfig,
    penalties: Penalties,
) -> Result<Swarm<Behaviour>, NetError> {
    let failed = |part| move |reason: String| NetError::Setup { part, reason };
    let local = config.keypair.public().to_peer_id();
    let noise =
        noise::Config::new(&config.keypair).map_err(|error| failed("noise")(error.to_string()))?;
    let gate = Gate::new(noise, local, &config.cluster, config.secret.clone())
        .with_trust(config.trust.clone())
        .with_penalties(penalties);
    let mdns = match config.mdns {
        true => Some(local_discovery(local).map_err(|error| failed("mDNS")(error.to_string()))?),
        false => None,
    };
    let behaviour = Behaviour {
        limits: connection_limits::Behaviour::new(
            connection_limits::ConnectionLimits::default()
                .with_max_pending_incoming(Some(PENDING_INCOMING))
                .with_max_established_per_peer(Some(PER_PEER)),
        ),
        crowd: Crowd::default(),
        identify: identify::Behaviour::new(
            identify::Config::new("/carbonmesh/1".to_owned(), config.keypair.public())
                .with_agent_version(format!("carbonmesh/{}", env!("CARGO_PKG_VERSION"))),
        ),
        gossip: gossip(config).map_err(failed("gossipsub"))?,
        mdns: mdns.into(),
        streams: libp2p_stream::Behaviour::new(),
    };
    let tcp = tcp::Config::default().nodelay(true);
    let built = SwarmBuilder::with_existing_identity(config.keypair.clone())
        .with_tokio()
        .with_tcp(tcp, |_: &_| Ok::<_, std::convert::Infallible>(gate), yamux::Config::default)
        .map_err(|error| failed("tcp")(error.to_string()))?
        .with_dns()
        .map_err(|error| failed("dns")(error.to_string()))?
        .with_behaviour(|_| behaviour)
        .map_err(|error| failed("behaviour")(error.to_string()))?
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(IDLE))
        .with_connection_timeout(HANDSHAKE)
        .build();
    Ok(built)
}

/// Below six peers the default mesh never fills; with flood publishing it need not.
fn gossip(config: &NetConfig) -> Result<gossipsub::Behaviour, String> {
    let tuned = gossipsub::ConfigBuilder::default()
        .mesh_n_low(1)
        .mesh_n(4)
        .mesh_n_high(8)
        .mesh_outbound_min(0)
        .flood_publish(true)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .max_transmit_size(ADVERT_BYTES)
        .build()
        .map_err(|error| error.to_string())?;
    let keypair = config.keypair.clone();
    let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(keypair), tuned)
        .map_err(str::to_owned)?;
    gossip.subscribe(&adverts_topic(&config.cluster)).map_err(|error| error.to_string())?;
    Ok(gossip)
}

fn local_discovery(local: libp2p::PeerId) -> std::io::Result<mdns::tokio::Behaviour> {
    let config = mdns::Config { query_interval: Duration::from_secs(7), ..Default::default() };
    mdns::tokio::Behaviour::new(config, local)
}
