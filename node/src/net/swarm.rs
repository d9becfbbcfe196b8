//! The loop around libp2p's swarm: listens, dials, gossips, and hands streams to links.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, TcpListener},
    path::PathBuf,
    time::Instant,
};

use carbonmesh_protocol::{advert::Advert, codec, id::NodeId};
use carbonmesh_storage::Files;
use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm,
    core::transport::{ListenerId, TransportError},
    gossipsub::{self, MessageAcceptance},
    identify, mdns,
    multiaddr::Protocol,
    relay,
    swarm::{ConnectionId, DialError, SwarmEvent},
};
use libp2p_stream::{Control, IncomingStreams};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Connected, NetConfig, NetError, NetEvent, Streams,
    address::{is_dialable, is_loopback, is_relayed, node_id_of, without_peer},
    behaviour::{self, Behaviour, BehaviourEvent, FRAMES},
    book::{self, Book},
    counters::NetCounters,
    heard::{Heard, Verdict},
    link::{Dead, Fault, Link},
    links::{LinkInput, Links},
    peers::Peers,
    penalty::Penalties,
    reach::Reach,
    trust::{self, Answering, TRUST},
};
use crate::trust::{Denied, Trust};

/// How long changes of the address book are gathered before they are written.
const SAVE_AFTER: Duration = Duration::from_secs(2);

/// How often it is looked whether the own certificate is to be renewed, and peers' still hold.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// In which of these rounds a member is asked for a new certificate.
const RENEW_ROUNDS: usize = 15;

/// How often an operator is warned of a certificate that ends.
const WARN_EVERY: Duration = Duration::from_secs(3600);
const FIRST_WARNING: Duration = Duration::from_secs(60);

/// How many addresses of one advert are heard.
const TOLD: usize = 32;

/// Everything that the loop owns.
pub(super) struct Network {
    swarm: Swarm<Behaviour>,
    control: Control,
    incoming: IncomingStreams,
    topic: gossipsub::IdentTopic,
    events: mpsc::Sender<NetEvent>,
    adverts: watch::Receiver<Option<Advert>>,
    peers: Peers,
    links: Links,
    book_path: PathBuf,
    files: Files,
    advertise: Vec<Multiaddr>,
    reach: Reach,
    relays: bool,
    /// A peer has joined the gossip and does not know us yet.
    newcomers: bool,
    connected: Connected,
    /// Peers whose connections are dead, as their links find out.
    dead: (mpsc::Sender<Dead>, mpsc::Receiver<Dead>),
    penalties: Penalties,
    heard: Heard,
    counters: NetCounters,
    certified: Option<Certified>,
}

/// What there is beside, where certificates decide who is in.
struct Certified {
    trust: Trust,
    incoming: IncomingStreams,
    changes: watch::Receiver<u64>,
    answering: Answering,
    /// Nodes that were reported as shut out.
    expelled: BTreeSet<NodeId>,
    /// Whom to ask next for a certificate.
    turn: usize,
    warn_at: Instant,
}

impl Certified {
    fn new(trust: Trust, control: &mut Control) -> Result<Self, NetError> {
        let incoming = control.accept(TRUST).map_err(|error| NetError::Setup {
            part: "trust streams",
            reason: error.to_string(),
        })?;
        let changes = trust.changes();
        let (answering, expelled) = (Answering::default(), BTreeSet::new());
        // Whoever renews may have to be found first.
        let warn_at = Instant::now() + FIRST_WARNING;
        Ok(Self { trust, incoming, changes, answering, expelled, turn: 0, warn_at })
    }
}

impl Network {
    /// Sets all up and listens on every address.
    pub(super) async fn listen(
        config: NetConfig,
        events: mpsc::Sender<NetEvent>,
        adverts: watch::Receiver<Option<Advert>>,
    ) -> Result<Self, NetError> {
        let penalties = Penalties::default();
        let mut swarm = behaviour::build(&config, penalties.clone())?;
        listen_on_all(&mut swarm, &config.listen).await?;
        let book = Book::load(&config.book, &config.files).unwrap_or_else(|error| {
            warn!(path = %config.book.display(), %error, "cannot read the address book: starting an empty one");
            Book::default()
        });
        let mut control = swarm.behaviour().streams.new_control();
        let incoming = control.accept(FRAMES).map_err(|error| NetError::Setup {
            part: "frame streams",
            reason: error.to_string(),
        })?;
        let loopback_only = config.secret.is_none() && config.trust.is_none();
        let peers = Peers::new(*swarm.local_peer_id(), loopback_only, book, &config.peers);
        let settled = loopback_only || config.relay || !config.advertise.is_empty();
        let reach = Reach::new(settled, behaviour::probes(&config));
        let certified =
            config.trust.map(|trust| Certified::new(trust, &mut control)).transpose()?;
        let mut network = Self {
            swarm,
            control,
            incoming,
            topic: behaviour::adverts_topic(&config.cluster),
            events,
            adverts,
            peers,
            links: Links::default(),
            book_path: config.book,
            files: config.files,
            advertise: config.advertise,
            reach,
            relays: config.relay,
            newcomers: false,
            connected: Connected::default(),
            dead: mpsc::channel(64),
            counters: NetCounters::default(),
            penalties,
            heard: Heard::default(),
            certified,
        };
        network.tell_listening().await;
        Ok(network)
    }

    /// What it counts.
    pub(super) fn counters(&self) -> NetCounters {
        self.counters.clone()
    }

    /// Where it listens.
    pub(super) fn listening(&self) -> Vec<Multiaddr> {
        self.swarm.listeners().cloned().collect()
    }

    /// Streams beside those of frames.
    pub(super) fn streams(&self) -> Streams {
        Streams { control: self.control.clone(), connected: self.connected.clone() }
    }

    /// Runs until cancelled.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut save = tokio::time::interval(SAVE_AFTER);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.dial_due();
            let next_dial = self.peers.next_due();
            tokio::select! {
                () = cancel.cancelled() => break,
                event = self.swarm.select_next_some() => self.on_event(event).await,
                Some((peer, stream)) = self.incoming.next() => self.on_stream(peer, stream),
                changed = self.adverts.changed() => match changed {
                    Ok(()) => self.publish(),
                    Err(_) => break,
                },
                Some((peer, fault)) = self.dead.1.recv() => self.on_dead(peer, fault),
                Some(news) = trust_news(&mut self.certified) => match news {
                    TrustNews::Asked(peer, stream) => self.on_trust_stream(peer, *stream),
                    TrustNews::Changed => self.on_trust_changed().await,
                },
                _ = look.tick() => {
                    self.look_at_trust().await;
                    self.listen_at_relays();
                    self.drop_superseded();
                }
                () = until(next_dial) => {}
                _ = save.tick() => {
                    self.save_book().await;
                    if std::mem::take(&mut self.newcomers) {
                        self.publish();
                    }
                }
            }
        }
        self.save_book().await;
    }

    async fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event).await,
            SwarmEvent::NewListenAddr { .. } => self.tell_listening().await,
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                if !is_relayed(&address) {
                    self.reach.moved();
                }
                self.tell_listening().await;
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.counters.connections.inc();
                self.counters.connections_opened.inc();
                self.connected.note(peer_id, true);
                if self.peers.connected(peer_id, &endpoint, connection_id) {
                    self.on_connected(peer_id);
                }
                self.counters.relayed.set(self.peers.relayed_count() as i64);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                self.counters.connections.dec();
                debug!(peer = %peer_id, ?cause, "connection closed");
                let last = self.peers.disconnected(peer_id, connection_id);
                self.counters.relayed.set(self.peers.relayed_count() as i64);
                if !self.peers.is_direct(&peer_id) {
                    self.reach.lost(&peer_id);
                }
                if last {
                    self.connected.note(peer_id, false);
                    self.links.disconnected(&peer_id, Instant::now());
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.counters.connection_failed("outgoing");
                debug!(?peer_id, %error, "dial failed");
                match error {
                    DialError::LocalPeerId { address } => self.peers.found_self(&address),
                    DialError::WrongPeerId { obtained, address } => {
                        self.peers.wrong_peer(peer_id, obtained, &address);
                    }
                    _ => {}
                }
                self.peers.dial_failed(connection_id);
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                self.counters.connection_failed("incoming");
                debug!(address = %send_back_addr, %error, "incoming connection failed");
            }
            SwarmEvent::ListenerError { error, .. } => warn!(%error, "listening failed"),
            SwarmEvent::ListenerClosed { listener_id, reason, .. }
                if self.reach.closed(listener_id, Instant::now()) =>
            {
                debug!(?reason, "no longer listening at a relay");
                self.tell_listening().await;
            }
            SwarmEvent::ListenerClosed { addresses, reason: Err(error), .. } => {
                warn!(?addresses, %error, "a listener closed");
            }
            _ => {}
        }
    }

    async fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received {
                peer_id,
                connection_id,
                info,
            }) => {
                for address in &info.listen_addrs {
                    self.peers.hear(peer_id, address);
                }
                if info.protocols.contains(&relay::HOP_PROTOCOL_NAME) {
                    self.on_relay(peer_id, connection_id, &info.listen_addrs);
                }
            }
            BehaviourEvent::Relay(event) => match event {
                relay::Event::CircuitReqAccepted { src_peer_id, dst_peer_id } => {
                    debug!(from = %src_peer_id, to = %dst_peer_id, "relaying");
                    self.counters.circuits.inc();
                }
                relay::Event::CircuitClosed { .. } => {
                    self.counters.circuits.dec();
                }
                event => debug!(?event, "asked to relay"),
            },
            BehaviourEvent::Probe(event) => {
                let (address, by) = (event.tested_addr, event.server);
                debug!(%address, %by, result = ?event.result, "a peer has dialled back");
                match event.result {
                    Ok(()) if self.reach.proved(&address, by) => self.tell_listening().await,
                    Ok(()) => {}
                    Err(_) => self.reach.refuted(&address, by),
                }
                self.listen_at_relays();
            }
            BehaviourEvent::Punch(event) => match event.result {
                Ok(_) => {
                    info!(peer = %event.remote_peer_id, "connected directly, no longer by a relay");
                    self.counters.punched("direct");
                }
                Err(error) => {
                    debug!(peer = %event.remote_peer_id, %error, "still connected by a relay");
                    self.counters.punched("failed");
                }
            },
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                // `Expired` is left unheard: silence on the local network proves nothing.
                for (peer, address) in found {
                    if node_id_of(&peer).is_none_or(|node| !self.is_out(node)) {
                        self.peers.hear(peer, &address);
                    }
                }
            }
            BehaviourEvent::Gossip(gossipsub::Event::Subscribed { .. }) => self.newcomers = true,
            BehaviourEvent::Gossip(gossipsub::Event::Message {
                propagation_source,
                message_id,
                message,
            }) => {
                let acceptance = self.on_gossip(propagation_source, message).await;
                self.counters.advert(match acceptance {
                    MessageAcceptance::Accept => "received",
                    MessageAcceptance::Ignore => "ignored",
                    MessageAcceptance::Reject => "rejected",
                });
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                let wrong = matches!(acceptance, MessageAcceptance::Reject);
                gossip.report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    acceptance,
                );
                if wrong {
                    self.on_dead(propagation_source, Fault::Malformed);
                }
            }
            _ => {}
        }
    }

    /// A peer relays: it may be needed.
    fn on_relay(&mut self, peer: PeerId, connection: ConnectionId, found_at: &[Multiaddr]) {
        let Some(came) = self.peers.came_directly(&peer, connection) else { return };
        let known = self.peers.book.get(&peer).map(|entry| entry.addresses.as_slice());
        let addresses = known.unwrap_or_default().iter().chain(found_at).map(without_peer);
        let address = addresses.into_iter().find(|it| is_dialable(it) && !is_relayed(it));
        if let Some(address) = address {
            self.reach.met_relay(peer, address, came, Instant::now());
            self.listen_at_relays();
        }
    }

    /// Has relays take connections for this node, where others cannot dial it.
    fn listen_at_relays(&mut self) {
        let now = Instant::now();
        for (relay, address) in self.reach.due(now) {
            let at = address.with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
            info!(%relay, "nobody is known to have dialled this node: listening at a relay");
            match self.swarm.listen_on(at) {
                Ok(listener) => self.reach.listens(relay, listener),
                Err(error) => {
                    debug!(%relay, %error, "cannot listen at a relay");
                    self.reach.failed(relay, now);
                }
            }
        }
    }

    /// Closes relayed connections that direct ones have taken the place of. A session over one of
    /// them ends, and the next begins over what is left: with the same word as at any other loss.
    fn drop_superseded(&mut self) {
        for connection in self.peers.superseded(Instant::now()) {
            self.swarm.close_connection(connection);
        }
    }

    /// Whether a node was shut out.
    fn is_out(&self, node: NodeId) -> bool {
        self.certified.as_ref().is_some_and(|it| it.expelled.contains(&node))
    }

    fn on_dead(&mut self, peer: PeerId, fault: Fault) {
        match fault {
            Fault::Silent => {}
            Fault::Malformed if self.penalties.offended(peer, Instant::now()) => {
                warn!(%peer, "a peer sends again and again what no node sends: it is kept out for a while");
            }
            // Its stream has ended, which is enough for once.
            Fault::Malformed => return,
        }
        // It may be gone already.
        let _ = self.swarm.disconnect_peer_id(peer);
    }

    fn on_trust_stream(&self, peer: PeerId, stream: libp2p::Stream) {
        let Some(certified) = &self.certified else { return };
        // A stream that cannot be taken is dropped: its opener asks again at the next change.
        let Some(place) = certified.answering.enter(peer) else { return };
        let trust = certified.trust.clone();
        tokio::spawn(async move {
            trust::answer(stream, peer, trust).await;
            drop(place);
        });
    }

    /// Somebody was shut out, or the own certificate was renewed: all peers hear of it.
    async fn on_trust_changed(&mut self) {
        self.look_at_trust().await;
        let peers: Vec<PeerId> = self.peers.connected_peers().collect();
        peers.into_iter().for_each(|peer| self.speak_of_trust(peer));
    }

    fn speak_of_trust(&self, peer: PeerId) {
        let Some(certified) = &self.certified else { return };
        tokio::spawn(trust::converse(self.control.clone(), peer, certified.trust.clone()));
    }

    /// Cuts off whoever may stay no longer, and sees to the own certificate.
    async fn look_at_trust(&mut self) {
        let Some(certified) = &mut self.certified else { return };
        let trust = certified.trust.clone();
        for node in trust.expelled() {
            if certified.expelled.insert(node) {
                // Nobody listens only when the node ends.
                let _ = self.events.send(NetEvent::Expelled(node)).await;
            }
        }
        let connected: Vec<PeerId> = self.peers.connected_peers().collect();
        for &peer in &connected {
            let Some(why) = node_id_of(&peer).and_then(|node| trust.unfit(node)) else { continue };
            warn!(%peer, %why, "cutting a peer off");
            if matches!(why, Denied::Revoked(_)) {
                self.peers.forget(&peer);
            }
            // It may be gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        trust.renew_self();
        if trust.wants_renewal() && Instant::now() >= certified.warn_at {
            certified.warn_at = Instant::now() + WARN_EVERY;
            trust.warn_of_end();
        }
        let better =
            |peer: &PeerId| node_id_of(peer).is_some_and(|it| trust.wants_renewal_from(it));
        let renewers: Vec<PeerId> = connected.into_iter().filter(better).collect();
        certified.turn = certified.turn.wrapping_add(1);
        let (round, due) = (certified.turn / RENEW_ROUNDS, certified.turn % RENEW_ROUNDS == 0);
        if due && !renewers.is_empty() {
            self.speak_of_trust(renewers[round % renewers.len()]);
        }
    }

    /// Whether to pass it on, and whether who sent it is to blame.
    async fn on_gossip(&mut self, from: PeerId, message: gossipsub::Message) -> MessageAcceptance {
        let advert = match self.heard.judge(from, &message) {
            Verdict::Fresh(advert) => *advert,
            Verdict::Stale => return MessageAcceptance::Ignore,
            Verdict::Wrong => {
                warn!(peer = %from, "gossip that is no advert, or one that speaks for another node");
                return MessageAcceptance::Reject;
            }
        };
        // Who passes it on may not know yet.
        if self.is_out(advert.node) {
            return MessageAcceptance::Ignore;
        }
        if let Some(source) = message.source {
            let told = advert.addresses.iter().take(TOLD);
            told.filter_map(|text| text.parse().ok())
                .for_each(|address| self.peers.hear(source, &address));
        }
        // Nobody listens only when the node ends.
        let _ = self.events.send(NetEvent::Advert(advert)).await;
        MessageAcceptance::Accept
    }

    fn on_connected(&mut self, peer: PeerId) {
        let Some(node) = node_id_of(&peer) else {
            warn!(%peer, "a peer's key is not ed25519: disconnecting");
            // It may be gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        };
        self.speak_of_trust(peer);
        if self.links.connected(&peer) {
            return;
        }
        if !self.links.have_room(Instant::now()) {
            debug!(%peer, "too many peers: disconnecting");
            // It may be gone already.
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        info!(%peer, %node, "connected to a new peer");
        let (events, dead) = (self.events.clone(), self.dead.0.clone());
        let link = Link { peer, node, events, dead, counters: self.counters.clone() };
        let input = if *self.swarm.local_peer_id() < peer {
            let (connected, watch) = watch::channel(true);
            tokio::spawn(link.open(self.control.clone(), watch));
            LinkInput::Opener(connected)
        } else {
            let (streams, receiver) = mpsc::channel(1);
            tokio::spawn(link.accept(receiver));
            LinkInput::Acceptor(streams)
        };
        self.links.insert(peer, input);
    }

    fn on_stream(&mut self, peer: PeerId, stream: libp2p::Stream) {
        // A stream that cannot be taken is dropped: its opener hears no greeting and tries again.
        match self.links.get(&peer) {
            Some(LinkInput::Acceptor(streams)) => drop(streams.try_send(stream)),
            Some(LinkInput::Opener(_)) | None => debug!(%peer, "unexpected frame stream"),
        }
    }

    fn publish(&mut self) {
        let Some(advert) = self.adverts.borrow_and_update().clone() else { return };
        let bytes = codec::encode(&advert);
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        // Alone in the cluster, nobody is there to hear it.
        match gossip.publish(self.topic.clone(), bytes) {
            Ok(_) => self.counters.advert("sent"),
            Err(error) => debug!(%error, "advert not published"),
        }
    }

    fn dial_due(&mut self) {
        for options in self.peers.due(Instant::now()) {
            let connection = options.connection_id();
            if let Err(error) = self.swarm.dial(options) {
                debug!(%error, "not dialled");
                self.peers.dial_failed(connection);
            }
        }
    }

    async fn tell_listening(&mut self) {
        let mut told = match self.advertise.as_slice() {
            [] => self.reach.told(self.swarm.listeners().cloned()),
            advertised => advertised.to_vec(),
        };
        // To others this machine's loopback addresses are their own.
        if told.iter().any(|address| !is_loopback(address)) {
            told.retain(|address| !is_loopback(address));
        }
        // A relay says where it is found to whoever listens there.
        if self.relays {
            let own = told.iter().filter(|address| !is_relayed(address));
            own.for_each(|address| self.swarm.add_external_address(address.clone()));
        }
        let told = told.iter().map(Multiaddr::to_string).collect();
        let _ = self.events.send(NetEvent::Listening(told)).await;
    }

    async fn save_book(&mut self) {
        let Some(content) = self.peers.book.take_changes() else { return };
        let content = self.files.seal(book::NAME, content);
        let path = self.book_path.clone();
        let saved = tokio::task::spawn_blocking(move || book::save(path, &content)).await;
        if let Ok(Err(error)) = saved {
            warn!(path = %self.book_path.display(), %error, "cannot write the address book");
        }
    }
}

enum TrustNews {
    Asked(PeerId, Box<libp2p::Stream>),
    Changed,
}

/// What comes next about trust; nothing ever, where there are no certificates.
async fn trust_news(certified: &mut Option<Certified>) -> Option<TrustNews> {
    let Some(certified) = certified else { return std::future::pending().await };
    tokio::select! {
        Some((peer, stream)) = certified.incoming.next() => {
            Some(TrustNews::Asked(peer, Box::new(stream)))
        }
        Ok(()) = certified.changes.changed() => Some(TrustNews::Changed),
        else => std::future::pending().await,
    }
}

async fn listen_on_all(
    swarm: &mut Swarm<Behaviour>,
    addresses: &[Multiaddr],
) -> Result<(), NetError> {
    let mut waiting: HashMap<ListenerId, Multiaddr> = HashMap::new();
    for address in addresses {
        check_free(address)?;
        let listener = swarm.listen_on(address.clone()).map_err(|error| match error {
            TransportError::Other(source) => listen_error(address, source),
            TransportError::MultiaddrNotSupported(_) => {
                let reason = "give --listen an IP address and a port, such as 0.0.0.0:7401";
                listen_error(address, std::io::Error::other(reason))
            }
        })?;
        waiting.insert(listener, address.clone());
    }
    while !waiting.is_empty() {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { listener_id, .. } => drop(waiting.remove(&listener_id)),
            SwarmEvent::ListenerClosed { listener_id, reason: Err(source), .. } => {
                if let Some(address) = waiting.remove(&listener_id) {
                    return Err(listen_error(&address, source));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// libp2p lets several programs share a port, so that two nodes started alike would both believe
/// that they listen: asks the system in a stricter way first.
fn check_free(address: &Multiaddr) -> Result<(), NetError> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => IpAddr::from(ip),
        Some(Protocol::Ip6(ip)) => IpAddr::from(ip),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => {
            TcpListener::bind((ip, port)).map(drop).map_err(|source| listen_error(address, source))
        }
        _ => Ok(()),
    }
}

/// libp2p wraps the system's error, sometimes more than once.
fn listen_error(address: &Multiaddr, source: std::io::Error) -> NetError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    while let Some(error) = cause {
        let system = error.downcast_ref::<std::io::Error>();
        if system.is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse) {
            return NetError::AddressInUse(address.clone());
        }
        cause = error.source();
    }
    NetError::Listen { address: address.clone(), source }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
