//! How others reach this node: at addresses of its own, or at relays where nobody can dial it.
//!
//! ```text
//! a relay is met ─► AutoNAT has it dial back ┬ it can: nothing more is needed
//!                                            └ it cannot, or does not answer: listen there
//! ```
//! A relay is a member that offers it. It carries what is encrypted and proven from end to end: the
//! gate stands inside of what is relayed. Where to listen is decided here, the swarm does it.
//!
//! A place at a relay is never given up by this node, since that costs nothing; it is told of as long
//! as no better way in is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, core::transport::ListenerId};

use super::address::{is_private, is_relayed, without_peer};

/// At how many relays a node listens: one may go.
const RELAYS: usize = 2;

/// More relays than that are not kept in mind, nor more who proved something.
const KNOWN: usize = 64;

/// How many addresses that were proven are kept.
const PROVEN: usize = 8;

/// How long AutoNAT has, from meeting a relay on.
const PATIENCE: Duration = Duration::from_secs(6);

/// How long after a refusal a relay is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// What is known of how this node is reached.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// Somebody said what to tell others, or it is a relay itself.
    settled: bool,
    /// Whether others are asked to dial back.
    asks: bool,
    relays: BTreeMap<PeerId, Relay>,
    /// Where somebody has reached this node.
    proven: Vec<Multiaddr>,
    proven_by: BTreeSet<PeerId>,
    /// A relay has tried, and could not.
    refuted: bool,
}

/// A relay that is connected.
#[derive(Debug)]
struct Relay {
    address: Multiaddr,
    /// Not before then.
    next: Instant,
    listener: Option<ListenerId>,
}

impl Reach {
    /// Nothing is known; `settled` if the node needs no relay, `asks` if AutoNAT runs.
    pub(super) fn new(settled: bool, asks: bool) -> Self {
        Self { settled, asks, ..Self::default() }
    }

    /// A peer that is connected directly relays, and is found there. `came` if it dialled us.
    pub(super) fn met_relay(&mut self, peer: PeerId, address: Multiaddr, came: bool, now: Instant) {
        if came {
            self.note_prover(peer);
        }
        if self.relays.len() < KNOWN && !self.relays.contains_key(&peer) {
            let next = if self.asks { now + PATIENCE } else { now };
            self.relays.insert(peer, Relay { address, next, listener: None });
        }
    }

    /// A peer is connected directly no more.
    pub(super) fn lost(&mut self, peer: &PeerId) {
        self.relays.remove(peer);
    }

    /// A peer has dialled back; whether there is something new to tell.
    pub(super) fn proved(&mut self, address: &Multiaddr, by: PeerId) -> bool {
        if is_relayed(address) {
            return false;
        }
        self.note_prover(by);
        let address = without_peer(address);
        if self.proven.contains(&address) || self.proven.len() >= PROVEN {
            return false;
        }
        self.proven.push(address);
        true
    }

    /// A peer could not dial back.
    pub(super) fn refuted(&mut self, address: &Multiaddr, by: PeerId) {
        self.refuted |= !is_relayed(address) && self.relays.contains_key(&by);
    }

    /// The node's own addresses are others than they were: nothing holds that was proven.
    pub(super) fn moved(&mut self) {
        self.proven.clear();
        self.proven_by.clear();
        self.refuted = false;
    }

    fn note_prover(&mut self, peer: PeerId) {
        if self.proven_by.len() < KNOWN {
            self.proven_by.insert(peer);
        }
    }

    /// Whether others can dial this node, as far as is known: whoever reached it at an address that
    /// is the same everywhere, or is a relay, which is where it can be seen from.
    pub(super) fn is_open(&self) -> bool {
        self.settled
            || self.proven.iter().any(|address| !is_private(address))
            || self.relays.keys().any(|relay| self.proven_by.contains(relay))
    }

    /// Where to listen now; call [`listens`](Self::listens) or [`failed`](Self::failed) for each.
    pub(super) fn due(&self, now: Instant) -> Vec<(PeerId, Multiaddr)> {
        let held = self.relays.values().filter(|relay| relay.listener.is_some()).count();
        if self.is_open() || held >= RELAYS {
            return Vec::new();
        }
        let free = self.relays.iter().filter(|(_, relay)| relay.listener.is_none());
        let due = free.filter(|(_, relay)| self.refuted || relay.next <= now);
        due.take(RELAYS - held).map(|(peer, relay)| (*peer, relay.address.clone())).collect()
    }

    /// The node listens at the relay, or is about to.
    pub(super) fn listens(&mut self, peer: PeerId, listener: ListenerId) {
        if let Some(relay) = self.relays.get_mut(&peer) {
            relay.listener = Some(listener);
        }
    }

    /// The relay was not asked, or a listener is gone: it is tried again later.
    pub(super) fn failed(&mut self, peer: PeerId, now: Instant) {
        // Whoever refuses shall not be asked at once for another's having failed.
        self.refuted = false;
        if let Some(relay) = self.relays.get_mut(&peer) {
            (relay.listener, relay.next) = (None, now + AGAIN);
        }
    }

    /// A listener is gone; whether it was one at a relay.
    pub(super) fn closed(&mut self, listener: ListenerId, now: Instant) -> bool {
        let relay = self.relays.iter().find(|(_, relay)| relay.listener == Some(listener));
        let Some(peer) = relay.map(|(peer, _)| *peer) else { return false };
        self.failed(peer, now);
        true
    }

    /// What to tell others, of all that is listened on.
    pub(super) fn told(&self, listening: impl Iterator<Item = Multiaddr>) -> Vec<Multiaddr> {
        let open = self.is_open();
        let mut told: Vec<Multiaddr> =
            listening.filter(|address| !open || !is_relayed(address)).collect();
        let proven = self.proven.iter().filter(|address| !told.contains(address));
        let proven: Vec<Multiaddr> = proven.cloned().collect();
        told.extend(proven);
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELAY_AT: &str = "/ip4/203.0.113.1/tcp/7401";

    fn of(text: &str) -> Multiaddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_node_that_a_relay_cannot_dial_listens_there_at_once() {
        let (now, relay) = (Instant::now(), PeerId::random());
        let mut reach = Reach::new(false, true);
        reach.met_relay(relay, of(RELAY_AT), false, now);
        assert!(reach.due(now).is_empty(), "AutoNAT has a while");
        assert_eq!(reach.due(now + PATIENCE), [(relay, of(RELAY_AT))], "or says nothing");
        reach.refuted(&of("/ip4/198.51.100.9/tcp/7401"), PeerId::random());
        assert!(reach.due(now).is_empty(), "who is no relay may stand behind a wall itself");
        reach.refuted(&of("/ip4/198.51.100.9/tcp/7401"), relay);
        assert_eq!(reach.due(now), [(relay, of(RELAY_AT))]);
        let listener = ListenerId::next();
        reach.listens(relay, listener);
        assert!(reach.due(now + PATIENCE).is_empty());
        assert!(!reach.closed(ListenerId::next(), now) && reach.closed(listener, now));
        assert!(reach.due(now).is_empty());
        assert_eq!(reach.due(now + AGAIN), [(relay, of(RELAY_AT))]);
    }

    #[test]
    fn a_node_that_others_can_dial_listens_nowhere_else() {
        let (now, relay) = (Instant::now(), PeerId::random());
        let later = now + PATIENCE;
        let with_relay = |came| {
            let mut reach = Reach::new(false, true);
            reach.met_relay(relay, of(RELAY_AT), came, now);
            reach
        };
        assert!(with_relay(true).due(later).is_empty(), "the relay came by itself");
        let mut reach = with_relay(false);
        assert!(reach.proved(&of("/ip4/10.0.0.1/tcp/7401"), PeerId::random()));
        assert_eq!(reach.due(later).len(), 1, "a neighbour says nothing of the world");
        assert!(reach.proved(&of("/ip4/10.0.0.2/tcp/7401"), relay));
        assert!(reach.due(later).is_empty(), "the relay is in the same network");
        reach.moved();
        assert_eq!(reach.due(later).len(), 1);
        assert!(reach.proved(&of("/ip4/198.51.100.9/tcp/7401"), PeerId::random()));
        assert!(reach.due(later).is_empty(), "the address is the same everywhere");
        assert!(Reach::new(true, true).due(later).is_empty());
    }

    #[test]
    fn two_relays_are_enough_and_told_of_while_they_are_needed() {
        let now = Instant::now();
        let mut reach = Reach::new(false, false);
        for number in 1..5 {
            let address = of(&format!("/ip4/203.0.113.{number}/tcp/7401"));
            reach.met_relay(PeerId::random(), address, false, now);
        }
        let due = reach.due(now);
        assert_eq!(due.len(), RELAYS);
        for (peer, _) in &due {
            reach.listens(*peer, ListenerId::next());
        }
        assert!(reach.due(now + AGAIN).is_empty());
        reach.lost(&due[0].0);
        assert_eq!(reach.due(now).len(), 1);

        let (own, way) = (of("/ip4/10.0.0.1/tcp/7401"), of("/ip4/203.0.113.1/tcp/7401"));
        let way = way
            .with(libp2p::multiaddr::Protocol::P2p(PeerId::random()))
            .with(libp2p::multiaddr::Protocol::P2pCircuit);
        let listening = || [own.clone(), way.clone()].into_iter();
        assert_eq!(reach.told(listening()), [own.clone(), way.clone()]);
        let outside = of("/ip4/198.51.100.9/tcp/7401");
        reach.proved(&outside, PeerId::random());
        assert_eq!(reach.told(listening()), [own.clone(), outside]);
    }
}
