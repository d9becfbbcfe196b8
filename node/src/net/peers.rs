//! Whom to dial, and when: endlessly, with growing pauses, one attempt at a time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    swarm::{
        ConnectionId,
        dial_opts::{DialOpts, PeerCondition},
    },
};

use super::{
    address::{is_dialable, is_loopback, named_peer, without_peer},
    book::Book,
};

const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Short enough that a cluster which comes back is whole again within seconds.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// After so many failures a peer that was never connected is forgotten.
const STRANGER_FAILURES: u32 = 8;

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

/// Peers, connected or to be dialled.
pub(super) struct Peers {
    local: PeerId,
    /// Without a secret, nobody off this machine is dialled.
    loopback_only: bool,
    pub(super) book: Book,
    connections: BTreeMap<PeerId, u32>,
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
        let usable = is_dialable(&address) && (!self.loopback_only || is_loopback(&address));
        if peer != self.local && usable && self.book.hear(peer, address) {
            self.try_soon(Target::Peer(peer), Instant::now());
        }
    }

    /// A connection stands; `dialled` where we dialled it. Whether it is the first to this peer.
    pub(super) fn connected(
        &mut self,
        peer: PeerId,
        dialled: Option<&Multiaddr>,
        connection: ConnectionId,
    ) -> bool {
        let address = dialled.map(without_peer);
        if let Some(answered) = address.as_ref().and_then(|address| self.seeds.get_mut(address)) {
            *answered = Some(peer);
        }
        self.book.prove(peer, address);
        self.dial_ended(connection);
        let count = self.connections.entry(peer).or_default();
        *count += 1;
        *count == 1
    }

    /// A connection ended. Whether it was the last to this peer.
    pub(super) fn disconnected(&mut self, peer: PeerId) -> bool {
        let Some(count) = self.connections.get_mut(&peer) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.connections.remove(&peer);
        let now = Instant::now();
        self.try_soon(Target::Peer(peer), now);
        let seeds: Vec<Multiaddr> = self.seeds_of(peer).cloned().collect();
        seeds.into_iter().for_each(|seed| self.try_soon(Target::Seed(seed), now));
        true
    }

    /// An attempt failed.
    pub(super) fn dial_failed(&mut self, connection: ConnectionId) {
        let Some(target) = self.dial_ended(connection) else { return };
        let Some(attempts) = self.attempts.get_mut(&target) else { return };
        attempts.failures += 1;
        let pause = FIRST_PAUSE * 2_u32.pow(attempts.failures.min(8));
        let spread = 0.75 + rand::random::<f64>() / 2.0;
        attempts.next = Instant::now() + pause.min(LONGEST_PAUSE).mul_f64(spread);
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
                attempts.dialling.is_none() && attempts.next <= now && !self.is_connected(target)
            })
            .map(|(target, _)| target.clone())
            .collect();
        due.into_iter().filter_map(|target| self.dial(target)).collect()
    }

    /// When [`due`](Self::due) will have something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.attempts
            .iter()
            .filter(|(target, attempts)| attempts.dialling.is_none() && !self.is_connected(target))
            .map(|(_, attempts)| attempts.next)
            .min()
    }

    fn dial(&mut self, target: Target) -> Option<DialOpts> {
        // Each dial takes a new port: two nodes that dial each other from the ports they listen on
        // would otherwise meet in one TCP connection that both believe to have begun.
        let options = match &target {
            Target::Seed(address) => {
                DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port().build()
            }
            Target::Peer(peer) => {
                let known = self.book.get(peer);
                let mut addresses = known.map(|it| it.addresses.clone()).unwrap_or_default();
                addresses.retain(|address| !self.loopback_only || is_loopback(address));
                if addresses.is_empty() {
                    self.attempts.remove(&target);
                    return None;
                }
                DialOpts::peer_id(*peer)
                    .addresses(addresses)
                    .condition(PeerCondition::Disconnected)
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

    fn try_soon(&mut self, target: Target, now: Instant) {
        let attempts = self.attempts.entry(target).or_insert(Attempts {
            failures: 0,
            next: now,
            dialling: None,
        });
        (attempts.failures, attempts.next) = (0, now);
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

    fn is_connected(&self, target: &Target) -> bool {
        match target {
            Target::Peer(peer) => self.connections.contains_key(peer),
            Target::Seed(address) => {
                let answered = self.seeds.get(address).copied().flatten();
                answered.is_some_and(|peer| self.connections.contains_key(&peer))
            }
        }
    }

    fn seeds_of(&self, peer: PeerId) -> impl Iterator<Item = &Multiaddr> {
        let answered = self.seeds.iter().filter(move |(_, answered)| **answered == Some(peer));
        answered.map(|(address, _)| address)
    }
}
