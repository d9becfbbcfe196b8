//! Which libp2p protocols run, and how they are tuned for clusters of a few nodes.

use std::{num::NonZeroU32, time::Duration};

use libp2p::{
    StreamProtocol, Swarm, SwarmBuilder, autonat, connection_limits, dcutr,
    gossipsub::{
        self, MessageAuthenticity, PeerScoreParams, PeerScoreThresholds, TopicScoreParams,
        ValidationMode, score_parameter_decay,
    },
    identify, mdns, noise, relay,
    swarm::{NetworkBehaviour, behaviour::toggle::Toggle},
    tcp, yamux,
};

use super::{
    NetConfig, NetError, address::is_loopback, crowd::Crowd, gate::Gate, penalty::Penalties,
};

/// The stream that carries frames.
pub(super) const FRAMES: StreamProtocol = StreamProtocol::new("/carbonmesh/1/frames");

/// Connections that nobody has proven to belong here yet, at once.
const PENDING_INCOMING: u32 = 128;

/// Both may dial at once, and again before the old connections are known to be dead; a member that
/// makes many more than that means harm.
pub(super) const PER_PEER: u32 = 8;

/// The largest advert: some thousand phases, labels and addresses.
const ADVERT_BYTES: usize = 256 << 10;

/// A second connection to a peer, left over from both dialling at once, is closed after this.
const IDLE: Duration = Duration::from_secs(60);

/// How long a connection may take until it has passed the gate, through a relay as well.
const HANDSHAKE: Duration = Duration::from_secs(8);

/// How often AutoNAT tries addresses that nobody has tried yet.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// How many members may listen at one relay, and on how many connections each.
const RESERVATIONS: usize = 1024;
const RESERVATIONS_PER_PEER: usize = 4;

/// How many pairs of members one relay connects, and how many of these may be one member's: all the
/// others, in clusters that are not the largest.
const CIRCUITS: usize = 2048;
const CIRCUITS_PER_PEER: usize = 512;

/// After so long both sides have to ask again. There is no limit in bytes: these are members, and
/// work is what flows.
const CIRCUIT_LASTS: Duration = Duration::from_secs(24 * 3600);

/// How many circuits a member may ask for at once, and how soon for another: it tries for whoever is
/// away, again and again.
const CIRCUIT_BURST: NonZeroU32 = NonZeroU32::new(256).unwrap();
const CIRCUIT_EVERY: Duration = Duration::from_millis(100);

/// The same for places at the relay.
const RESERVATION_BURST: NonZeroU32 = NonZeroU32::new(16).unwrap();
const RESERVATION_EVERY: Duration = Duration::from_secs(5);

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    crowd: Crowd,
    identify: identify::Behaviour,
    pub(super) gossip: gossipsub::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
    pub(super) streams: libp2p_stream::Behaviour,
    /// Listens and dials through relays.
    relayed: relay::client::Behaviour,
    /// Relays for others.
    relay: Toggle<relay::Behaviour>,
    /// Makes direct connections out of relayed ones.
    punch: Toggle<dcutr::Behaviour>,
    /// Has others dial back, to know whether they can.
    probe: Toggle<autonat::v2::client::Behaviour>,
    /// Dials back for others.
    probed: Toggle<autonat::v2::server::Behaviour>,
}

/// Whether the node has others dial back: where it listens for this machine alone, nothing is gained.
pub(super) fn probes(config: &NetConfig) -> bool {
    (config.secret.is_some() || config.trust.is_some())
        && config.listen.iter().any(|address| !is_loopback(address))
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
    let probing = autonat::v2::client::Config::default().with_probe_interval(PROBE_EVERY);
    let gossip = gossip(config).map_err(failed("gossipsub"))?;
    let probes = probes(config);
    let relay = config.relay.then(|| relaying(local));
    let behaviour = |relayed| Behaviour {
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
        gossip,
        mdns: mdns.into(),
        streams: libp2p_stream::Behaviour::new(),
        relayed,
        relay: relay.into(),
        punch: Some(dcutr::Behaviour::new(local)).into(),
        probe: probes
            .then(|| autonat::v2::client::Behaviour::new(rand::make_rng(), probing))
            .into(),
        probed: probes.then(autonat::v2::server::Behaviour::default).into(),
    };
    let tcp = tcp::Config::default().nodelay(true);
    let built = SwarmBuilder::with_existing_identity(config.keypair.clone())
        .with_tokio()
        .with_tcp(
            tcp,
            |_: &_| Ok::<_, std::convert::Infallible>(gate.clone()),
            yamux::Config::default,
        )
        .map_err(|error| failed("tcp")(error.to_string()))?
        .with_dns()
        .map_err(|error| failed("dns")(error.to_string()))?
        // The same gate once more, inside of what is relayed: the relay hears nothing but noise.
        .with_relay_client(
            |_: &_| Ok::<_, std::convert::Infallible>(gate.clone()),
            yamux::Config::default,
        )
        .map_err(|error| failed("relaying")(error.to_string()))?
        .with_behaviour(|_, relayed| behaviour(relayed))
        .map_err(|error| failed("behaviour")(error.to_string()))?
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(IDLE))
        .with_connection_timeout(HANDSHAKE)
        .build();
    Ok(built)
}

/// Serves whoever is connected, who has passed the gate.
fn relaying(local: libp2p::PeerId) -> relay::Behaviour {
    let config = relay::Config {
        max_reservations: RESERVATIONS,
        max_reservations_per_peer: RESERVATIONS_PER_PEER,
        reservation_duration: Duration::from_secs(3600),
        reservation_rate_limiters: Vec::new(),
        max_circuits: CIRCUITS,
        max_circuits_per_peer: CIRCUITS_PER_PEER,
        max_circuit_duration: CIRCUIT_LASTS,
        max_circuit_bytes: 0,
        circuit_src_rate_limiters: Vec::new(),
    };
    let config = config
        .reservation_rate_per_peer(RESERVATION_BURST, RESERVATION_EVERY)
        .circuit_src_per_peer(CIRCUIT_BURST, CIRCUIT_EVERY);
    let mut relay = relay::Behaviour::new(local, config);
    // Whether its addresses are proven or not: its operator has said that it is one.
    relay.set_status(Some(relay::Status::Enable));
    relay
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
    let (score, limits) = scores(&adverts_topic(&config.cluster).hash());
    gossip.with_peer_score(score, limits)?;
    gossip.subscribe(&adverts_topic(&config.cluster)).map_err(|error| error.to_string())?;
    Ok(gossip)
}

/// Peers are judged by invalid messages alone: all that a peer may do well or badly beside depends on
/// its network more than on itself. Three within a minute or so, and nothing of it is heard any more
/// until they are forgotten.
fn scores(topic: &gossipsub::TopicHash) -> (PeerScoreParams, PeerScoreThresholds) {
    let forgotten = score_parameter_decay(Duration::from_secs(60));
    let only_invalid = TopicScoreParams {
        topic_weight: 1.0,
        time_in_mesh_weight: 0.0,
        first_message_deliveries_weight: 0.0,
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: forgotten,
        ..TopicScoreParams::default()
    };
    let params = PeerScoreParams {
        topics: [(topic.clone(), only_invalid)].into(),
        app_specific_weight: 0.0,
        // Many nodes may share a machine, or a router.
        ip_colocation_factor_weight: 0.0,
        slow_peer_weight: 0.0,
        // Whoever keeps on knocking at a mesh that is full may be of the smallest of clusters.
        behaviour_penalty_weight: 0.0,
        retain_score: Duration::from_secs(60),
        ..PeerScoreParams::default()
    };
    let limits = PeerScoreThresholds {
        gossip_threshold: -30.0,
        publish_threshold: -30.0,
        graylist_threshold: -60.0,
        accept_px_threshold: 0.0,
        opportunistic_graft_threshold: 0.0,
    };
    (params, limits)
}

fn local_discovery(local: libp2p::PeerId) -> std::io::Result<mdns::tokio::Behaviour> {
    let config = mdns::Config { query_interval: Duration::from_secs(7), ..Default::default() };
    mdns::tokio::Behaviour::new(config, local)
}
