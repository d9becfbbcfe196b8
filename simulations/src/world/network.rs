//! Connections and what goes over them.
//!
//! A connection gives what TCP gives: messages in order, until it is cut; then a part of what was on
//! its way is lost, and each side hears of it in its own time. On top of that single messages can be
//! lost, repeated, overtaken or held up: no link does that, but the protocol is to bear it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use carbonmesh_protocol::time::Timestamp;
use carbonmesh_protocol::{advert::Advert, codec, id::NodeId, io::Input, message::Message};

use super::{Event, World};
use crate::invariants::Fact;

/// A silent peer is given up after this, as the node's network does.
const SILENCE: Duration = Duration::from_secs(8);

const DIAL_EVERY: Duration = Duration::from_millis(200);

/// Who is connected with whom.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Sessions that carry messages; others are cut, though their ends may not know yet.
    links: BTreeMap<(usize, usize), u64>,
    /// When the last message from one to another arrives: the next one comes after it.
    arrivals: BTreeMap<(usize, usize), Timestamp>,
    /// Nodes that the others cannot reach.
    apart: BTreeSet<usize>,
}

impl Network {
    /// No partition any more.
    pub(super) fn heal(&mut self) {
        self.apart.clear();
    }

    fn splits(&self, a: usize, b: usize) -> bool {
        self.apart.contains(&a) != self.apart.contains(&b)
    }

    /// All pairs that are connected.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        self.links.keys().copied().collect()
    }
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

impl World {
    pub(super) fn send(&mut self, at: usize, to: NodeId, message: &Message) {
        let Some(to) = self.nodes.iter().position(|node| node.config.node == to) else { return };
        self.tell(Fact::Sent { at, to, message });
        let Some(&session) = self.nodes[at].sessions.get(&to) else { return };
        if self.network.links.get(&pair(at, to)) != Some(&session) {
            return;
        }
        let mut copies = 1;
        if !self.peace && self.random.per_mille(self.options.lost_per_mille) {
            self.tell(Fact::Lost { at, to });
            copies = 0;
        } else if !self.peace && self.random.per_mille(self.options.repeated_per_mille) {
            self.tell(Fact::Repeated { at, to });
            copies = 2;
        }
        // Through the codec, as on a wire.
        let bytes = codec::encode(message);
        for _ in 0..copies {
            let arrives = self.arrival(at, to);
            let message = Box::new(codec::decode(&bytes).expect("it reads back"));
            self.push_at(arrives, Event::Deliver { at: to, from: at, session, message });
        }
    }

    /// When a message that is sent now arrives: behind the one before it, as a rule.
    fn arrival(&mut self, at: usize, to: usize) -> Timestamp {
        let mut way = self.random.between(1, self.options.delay_ms);
        if !self.peace && self.random.per_mille(self.options.stuck_per_mille) {
            way += self.random.between(0, 4000);
        }
        let arrives = self.now + way;
        let overtaken = !self.peace && self.random.per_mille(self.options.overtaken_per_mille);
        let last = self.network.arrivals.entry((at, to)).or_default();
        *last = arrives.max(*last);
        let last = *last;
        if overtaken {
            self.tell(Fact::Overtaken { at, to });
            return last + self.random.between(0, 300);
        }
        last
    }

    pub(super) fn deliver(&mut self, at: usize, from: usize, session: u64, message: Message) {
        if self.nodes[at].sessions.get(&from) == Some(&session) {
            self.note(at, "message");
            self.tell(Fact::Delivered { at, from, message: &message });
            let from = self.nodes[from].config.node;
            self.input(at, Input::Message { from, message });
        }
    }

    /// Gossip: not to everybody, and not in time.
    pub(super) fn gossip(&mut self, at: usize, advert: &Advert) {
        for peer in self.nodes[at].sessions.keys().copied().collect::<Vec<_>>() {
            let linked = self.network.links.contains_key(&pair(at, peer));
            if linked && !self.random.per_mille(100) {
                let after = self.random.between(1, 500);
                let life = self.nodes[peer].life;
                let input = Input::Advert(advert.clone()).into();
                self.push(after, Event::Input { at: peer, life, input });
            }
        }
    }

    pub(super) fn come_up(&mut self, at: usize, peer: usize, session: u64) {
        let live = self.nodes[at].core.is_some() && self.nodes[peer].core.is_some();
        if live && self.network.links.get(&pair(at, peer)) == Some(&session) {
            self.note(at, "up");
            self.nodes[at].sessions.insert(peer, session);
            let node = self.nodes[peer].config.node;
            self.input(at, Input::PeerUp(node));
        }
    }

    pub(super) fn go_down(&mut self, at: usize, peer: usize, session: u64) {
        if self.nodes[at].sessions.get(&peer) == Some(&session) {
            self.note(at, "down");
            self.tell(Fact::Disconnected { at, peer });
            self.nodes[at].sessions.remove(&peer);
            let node = self.nodes[peer].config.node;
            self.input(at, Input::PeerDown(node));
        }
    }

    /// Ends a connection: of what is on its way, each direction loses what comes after some moment;
    /// both ends hear of it within `notice`, or a little later.
    pub(super) fn cut(&mut self, a: usize, b: usize, notice: Duration) {
        let Some(session) = self.network.links.remove(&pair(a, b)) else { return };
        self.tell(Fact::Cut { a, b });
        for (at, peer) in [(a, b), (b, a)] {
            let last = self.now + self.random.between(0, self.options.delay_ms);
            self.queue.retain(|(when, _), event| {
                !matches!(event, Event::Deliver { at: to, from, session: of, .. }
                    if (*to, *from, *of) == (at, peer, session) && *when > last)
            });
            let spread = self.random.between(0, 50);
            let told = (self.now + notice + spread).max(last);
            self.push_at(told, Event::Down { at, peer, session });
        }
    }

    /// Sets some nodes apart from the others, for a while.
    pub(super) fn set_apart(&mut self) {
        let size = 1 + self.random.below(self.nodes.len() - 1);
        self.network.apart = (0..size).map(|_| self.random.below(self.nodes.len())).collect();
        let silent = self.random.per_mille(500);
        for (a, b) in self.network.pairs() {
            if self.network.splits(a, b) {
                self.cut(a, b, if silent { SILENCE } else { Duration::ZERO });
            }
        }
    }

    /// Connects whoever can be and is not.
    pub(super) fn dial(&mut self) {
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                let live = self.nodes[a].core.is_some() && self.nodes[b].core.is_some();
                let known = self.nodes[a].sessions.contains_key(&b)
                    || self.nodes[b].sessions.contains_key(&a);
                let linked = self.network.links.contains_key(&(a, b));
                if live && !self.network.splits(a, b) && !known && !linked {
                    self.order += 1;
                    let session = self.order;
                    self.network.links.insert((a, b), session);
                    for (at, peer) in [(a, b), (b, a)] {
                        let up = self.now + self.random.between(1, 20);
                        self.network.arrivals.insert((peer, at), up);
                        self.push_at(up, Event::Up { at, peer, session });
                    }
                }
            }
        }
        self.push(DIAL_EVERY, Event::Dial);
    }
}
