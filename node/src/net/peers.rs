//! Whom to dial, and when: endlessly, with growing pauses, one attempt at a time.
//!
//! A peer that is connected through a relay alone is dialled on, at its own addresses: a direct
//! connection takes the place of the relayed one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::ConnectedPoint,
    multiaddr::Protocol,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{
    address::{is_dialable, is_loopback, is_relayed, named_peer, relay_of, without_peer},
    book::Book,
};

const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Short enough that a cluster which comes back is whole again within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// After so many failures a peer that was never connected is forgotten.
const STRANGER_FAILURES: u32 = 8;

/// When a peer is dialled again that is connected through a relay: soon after it was, as its first
/// addresses may have been slower than the relay, then now and then.
const FIRST_DIRECT: Duration = Duration::from_secs(5);
const NEXT_DIRECT: Duration = Duration::from_secs(60);

/// How long a direct connection stands until the relayed one goes: by then the peer has it as well.
const SETTLED: Duration = Duration::from_secs(1);

/// What is dialled: a known peer, or an address from the settings.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Peer(PeerId),
    Seed(Multiaddr),
}

#[derive(Debug)]
struct Attempts {
    failures: u32,
    next: Instant,
    dialling: Option<ConnectionId>,
}

/// A connection to a peer.
#[derive(Clone, Copy, Debug)]
struct Way {
    relayed: bool,
    /// Whether the peer has dialled.
    came: bool,
    since: Instant,
}

/// Peers, connected or to be dialled.
pub(super) struct Peers {
    local: PeerId,
    /// Without a secret, nobody off this machine is dialled.
    loopback_only: bool,
    pub(super) book: Book,
    connections: BTreeMap<PeerId, BTreeMap<ConnectionId, Way>>,
    /// Who answered at an address from the settings.
    seeds: BTreeMap<Multiaddr, Option<PeerId>>,
    attempts: BTreeMap<Target, Attempts>,
}

impl Peers {
    pub(super) fn new(local: PeerId, loopback_only: bool, book: Book, seeds: &[Multiaddr]) -> Self {
        let mut peers = Self {
            local,
            loopback_only,
            book,
            connections: BTreeMap::new(),
            seeds: BTreeMap::new(),
            attempts: BTreeMap::new(),
        };
        let now = Instant::now();
        let known: Vec<PeerId> = peers.book.peers().copied().collect();
        known.into_iter().for_each(|peer| peers.try_soon(Target::Peer(peer), now));
        for seed in seeds {
            let address = without_peer(seed);
            peers.seeds.insert(address.clone(), named_peer(seed));
            peers.try_soon(Target::Seed(address), now);
        }
        peers
    }

    /// Somebody says that the peer may be found there.
    pub(super) fn hear(&mut self, peer: PeerId, address: &Multiaddr) {
        let address = without_peer(address);
        // Nobody is found through oneself: who listens here is connected.
        let usable = is_dialable(&address)
            && (!self.loopback_only || is_loopback(&address))
            && relay_of(&address) != Some(self.local);
        if peer != self.local && usable && self.book.hear(peer, address) {
            self.try_soon(Target::Peer(peer), Instant::now());
        }
    }

    /// A connection stands. Whether it is the first to this peer.
    pub(super) fn connected(
        &mut self,
        peer: PeerId,
        endpoint: &ConnectedPoint,
        connection: ConnectionId,
    ) -> bool {
        let dialled = endpoint.is_dialer().then(|| endpoint.get_remote_address());
        let address = dialled.map(without_peer);
        if let Some(answered) = address.as_ref().and_then(|address| self.seeds.get_mut(address)) {
            *answered = Some(peer);
        }
        self.book.prove(peer, address);
        self.dial_ended(connection);
        let now = Instant::now();
        let way = Way { relayed: endpoint.is_relayed(), came: endpoint.is_listener(), since: now };
        let ways = self.connections.entry(peer).or_default();
        ways.insert(connection, way);
        let first = ways.len() == 1;
        if first && way.relayed {
            self.try_soon(Target::Peer(peer), now + FIRST_DIRECT);
        }
        first
    }

    /// A connection ended. Whether it was the last to this peer.
    pub(super) fn disconnected(&mut self, peer: PeerId, connection: ConnectionId) -> bool {
        let Some(ways) = self.connections.get_mut(&peer) else { return false };
        ways.remove(&connection);
        let now = Instant::now();
        if !ways.is_empty() {
            if ways.values().all(|way| way.relayed) {
                self.try_soon(Target::Peer(peer), now);
            }
            return false;
        }
        self.connections.remove(&peer);
        self.try_soon(Target::Peer(peer), now);
        let seeds: Vec<Multiaddr> = self.seeds_of(peer).cloned().collect();
        seeds.into_iter().for_each(|seed| self.try_soon(Target::Seed(seed), now));
        true
    }

    /// Whether the peer itself has made this connection, without a relay; none if it has a relay or
    /// is gone.
    pub(super) fn came_directly(&self, peer: &PeerId, connection: ConnectionId) -> Option<bool> {
        let way = self.connections.get(peer)?.get(&connection)?;
        (!way.relayed).then_some(way.came)
    }

    /// Whether there is a connection to the peer without a relay.
    pub(super) fn is_direct(&self, peer: &PeerId) -> bool {
        let ways = self.connections.get(peer);
        ways.is_some_and(|ways| ways.values().any(|way| !way.relayed))
    }

    /// How many peers are connected through relays alone.
    pub(super) fn relayed_count(&self) -> usize {
        self.connections.values().filter(|ways| ways.values().all(|way| way.relayed)).count()
    }

    /// Relayed connections to peers that have a direct one by now.
    pub(super) fn superseded(&self, now: Instant) -> Vec<ConnectionId> {
        let settled =
            |way: &Way| !way.relayed && now.saturating_duration_since(way.since) >= SETTLED;
        let both = self.connections.values().filter(|ways| ways.values().any(settled));
        both.flatten().filter(|(_, way)| way.relayed).map(|(connection, _)| *connection).collect()
    }

    /// An attempt failed.
    pub(super) fn dial_failed(&mut self, connection: ConnectionId) {
        let Some(target) = self.dial_ended(connection) else { return };
        let Some(attempts) = self.attempts.get_mut(&target) else { return };
        if let Target::Peer(peer) = &target
            && self.connections.contains_key(peer)
        {
            attempts.next = Instant::now() + spread(NEXT_DIRECT);
            return;
        }
        attempts.failures += 1;
        let pause = FIRST_PAUSE * 2_u32.pow(attempts.failures.min(8));
        attempts.next = Instant::now() + spread(pause.min(LONGEST_PAUSE));
        let given_up = attempts.failures >= STRANGER_FAILURES;
        if let Target::Peer(peer) = target
            && given_up
            && self.book.forget_unproven(&peer)
        {
            self.attempts.remove(&target);
        }
    }

    /// Another peer answered at the address than the one we looked for.
    pub(super) fn wrong_peer(&mut self, sought: Option<PeerId>, found: PeerId, at: &Multiaddr) {
        let address = without_peer(at);
        if let Some(sought) = sought {
            self.book.disprove(&sought, &address);
        }
        self.hear(found, &address);
    }

    /// The address is our own.
    pub(super) fn found_self(&mut self, at: &Multiaddr) {
        let address = without_peer(at);
        self.seeds.remove(&address);
        self.attempts.remove(&Target::Seed(address));
    }

    /// What to dial now; call [`dialling`](Self::dialling) or
    /// [`dial_failed`](Self::dial_failed) for each.
    pub(super) fn due(&mut self, now: Instant) -> Vec<DialOpts> {
        let due: Vec<Target> = self
            .attempts
            .iter()
            .filter(|(target, attempts)| {
                attempts.dialling.is_none() && attempts.next <= now && self.is_wanted(target)
            })
            .map(|(target, _)| target.clone())
            .collect();
        due.into_iter().filter_map(|target| self.dial(target)).collect()
    }

    /// When [`due`](Self::due) will have something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.attempts
            .iter()
            .filter(|(target, attempts)| attempts.dialling.is_none() && self.is_wanted(target))
            .map(|(_, attempts)| attempts.next)
            .min()
    }

    fn dial(&mut self, target: Target) -> Option<DialOpts> {
        // Each dial takes a new port: two nodes that dial each other from the ports they listen on
        // would otherwise meet in one TCP connection that both believe to have begun.
        let options = match &target {
            Target::Seed(address) => {
                let named = self.seeds.get(address).copied().flatten();
                let address = match named {
                    // A relay has to be told whom to reach.
                    Some(peer) if is_relayed(address) => address.clone().with(Protocol::P2p(peer)),
                    _ => address.clone(),
                };
                DialOpts::unknown_peer_id().address(address).allocate_new_port().build()
            }
            Target::Peer(peer) => {
                let known = self.book.get(peer);
                let mut addresses = known.map(|it| it.addresses.clone()).unwrap_or_default();
                addresses.retain(|address| !self.loopback_only || is_loopback(address));
                let relayed = self.connections.contains_key(peer);
                if relayed {
                    addresses.retain(|address| !is_relayed(address));
                }
                if addresses.is_empty() {
                    // Another address may be heard of, which sets it going again.
                    self.attempts.remove(&target);
                    return None;
                }
                let condition = match relayed {
                    true => PeerCondition::Always,
                    false => PeerCondition::Disconnected,
                };
                DialOpts::peer_id(*peer)
                    .addresses(addresses)
                    .condition(condition)
                    .allocate_new_port()
                    .build()
            }
        };
        if let Some(attempts) = self.attempts.get_mut(&target) {
            attempts.dialling = Some(options.connection_id());
        }
        Some(options)
    }

    fn dial_ended(&mut self, connection: ConnectionId) -> Option<Target> {
        let (target, attempts) =
            self.attempts.iter_mut().find(|(_, attempts)| attempts.dialling == Some(connection))?;
        attempts.dialling = None;
        Some(target.clone())
    }

    fn try_soon(&mut self, target: Target, next: Instant) {
        let attempts =
            self.attempts.entry(target).or_insert(Attempts { failures: 0, next, dialling: None });
        (attempts.failures, attempts.next) = (0, next);
    }

    /// All peers to which a connection stands.
    pub(super) fn connected_peers(&self) -> impl Iterator<Item = PeerId> {
        self.connections.keys().copied()
    }

    /// A peer is not to be dialled any more.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.book.remove(peer);
        self.attempts.remove(&Target::Peer(*peer));
    }

    /// Whether it is to be dialled: it is not connected, or through a relay only.
    fn is_wanted(&self, target: &Target) -> bool {
        match target {
            Target::Peer(peer) => !self.is_direct(peer),
            Target::Seed(address) => {
                let answered = self.seeds.get(address).copied().flatten();
                !answered.is_some_and(|peer| self.connections.contains_key(&peer))
            }
        }
    }

    fn seeds_of(&self, peer: PeerId) -> impl Iterator<Item = &Multiaddr> {
        let answered = self.seeds.iter().filter(move |(_, answered)| **answered == Some(peer));
        answered.map(|(address, _)| address)
    }
}

/// The pause, or a little less or more: nodes that lost each other shall not dial in step.
fn spread(pause: Duration) -> Duration {
    pause.mul_f64(0.75 + rand::random::<f64>() / 2.0)
}
