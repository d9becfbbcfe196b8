//! Connections and what goes over them.
//!
//! A connection gives what TCP gives: messages in order, until it is cut; then a part of what was on
//! its way is lost, and each side hears of it in its own time. On top of that single messages can be
//! lost, repeated, overtaken or held up: no link does that, but the protocol is to bear it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use carbonmesh_protocol::{
    advert::Advert,
    codec::{self, Encoded, Kind},
    id::{JobId, NodeId},
    io::Input,
    message::Message,
    record::Component,
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{Event, World};
use crate::{invariants::Fact, random::mix};

/// A silent peer is given up after this, as the node's network does.
const SILENCE: Duration = Duration::from_secs(8);

const DIAL_EVERY: Duration = Duration::from_millis(200);

/// In worlds with more nodes than this, those that keep no jobs do not connect with each other.
const FULL_MESH: usize = 50;

/// The tag of a component that no release knows yet.
const NEWER_TAG: u16 = 0x40;

/// What is in that component.
#[derive(Serialize, Deserialize)]
struct Newer(u64);

impl Encoded for Newer {
    const KIND: Kind = 0x7f00;
}

/// Who is connected with whom.
#[derive(Debug, Default)]
pub(super) struct Network {
    /// Sessions that carry messages; others are cut, though their ends may not know yet.
    links: BTreeMap<(usize, usize), u64>,
    /// When the last message from one to another arrives: the next one comes after it.
    arrivals: BTreeMap<(usize, usize), Timestamp>,
    /// What arrives at a node over a session that was cut, and arrives later, is lost.
    ends: BTreeMap<(u64, usize), Timestamp>,
    /// Nodes that the others cannot reach.
    apart: BTreeSet<usize>,
    /// From whom nothing gets to whom.
    deaf: BTreeSet<(usize, usize)>,
}

impl Network {
    /// No partition any more.
    pub(super) fn heal(&mut self) {
        self.apart.clear();
    }

    /// Every link carries both ways.
    pub(super) fn heal_one_way(&mut self) {
        self.deaf.clear();
    }

    fn splits(&self, a: usize, b: usize) -> bool {
        self.apart.contains(&a) != self.apart.contains(&b)
            || self.deaf.contains(&(a, b))
            || self.deaf.contains(&(b, a))
    }

    /// All pairs that are connected.
    pub(super) fn pairs(&self) -> Vec<(usize, usize)> {
        self.links.keys().copied().collect()
    }

    /// All who are connected with a node.
    pub(super) fn peers_of(&self, at: usize) -> Vec<usize> {
        let links = self.links.keys().filter(|(a, b)| *a == at || *b == at);
        links.map(|(a, b)| if *a == at { *b } else { *a }).collect()
    }
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

/// The component that a newer release would give to some jobs.
pub(crate) fn newer_component(job: JobId, per_mille: u32) -> Option<Component> {
    let chance = mix(&job.to_be_bytes());
    (chance % 1000 < u64::from(per_mille))
        .then(|| Component { tag: NEWER_TAG, bytes: codec::encode(&Newer(chance)) })
}

/// A message as invariants know it, with what travels beside it.
fn whole(message: &Message) -> Cow<'_, Message> {
    match message {
        Message::AssignWith(_) | Message::CompletedWith(_) => Cow::Owned(message.clone().joined()),
        plain => Cow::Borrowed(plain),
    }
}

impl World {
    pub(super) fn send(&mut self, at: usize, to: NodeId, message: Message) {
        let Some(&to) = self.by_id.get(&to) else { return };
        let message = self.as_newer_release(message);
        if !self.knows(at, &message) {
            return;
        }
        self.tell(Fact::Sent { at, to, message: &whole(&message) });
        let Some(&session) = self.nodes[at].sessions.get(&to) else { return };
        if self.network.links.get(&pair(at, to)) != Some(&session)
            || self.network.deaf.contains(&(at, to))
        {
            return;
        }
        if !self.peace && self.random.per_mille(self.options.lost_per_mille) {
            return self.tell(Fact::Lost { at, to });
        }
        if !self.peace && self.random.per_mille(self.options.repeated_per_mille) {
            self.tell(Fact::Repeated { at, to });
            self.carry(at, to, session, message.clone());
        }
        self.carry(at, to, session, message);
    }

    fn carry(&mut self, at: usize, to: usize, session: u64, message: Message) {
        let arrives = self.arrival(at, to);
        let message = match self.options.wire {
            true => codec::decode(&codec::encode(&message)).expect("it reads back"),
            false => message,
        };
        let message = Box::new(message);
        self.push_at(arrives, Event::Deliver { at: to, from: at, session, arrives, message });
    }

    /// Gateways of a newer release give jobs a component that the others do not know.
    fn as_newer_release(&self, mut message: Message) -> Message {
        if let Message::Store { jobs, .. } = &mut message {
            for update in jobs {
                let newer = newer_component(update.job, self.options.newer_per_mille);
                update.components.extend(newer);
            }
        }
        message
    }

    /// When a message that is sent now arrives: behind the one before it, as a rule.
    fn arrival(&mut self, at: usize, to: usize) -> Timestamp {
        let (a, b) = pair(at, to);
        let luck = mix(&[self.options.seed, a as u64, b as u64].map(u64::to_le_bytes).concat());
        let slow = luck % 1000 < u64::from(self.options.slow_links_per_mille);
        let mut way = self.random.between(1, self.options.delay_ms * if slow { 10 } else { 1 });
        if !self.peace && self.random.per_mille(self.options.stuck_per_mille) {
            // A heavy tail: the longer, the rarer.
            let most = 8 << self.random.below(10);
            way += self.random.between(0, most);
            self.tell(Fact::HeldUp { at, to });
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

    pub(super) fn deliver(
        &mut self,
        (at, from): (usize, usize),
        session: u64,
        arrives: Timestamp,
        message: Message,
    ) {
        let lost = self.network.ends.get(&(session, at)).is_some_and(|last| arrives > *last);
        if !lost && self.nodes[at].sessions.get(&from) == Some(&session) {
            self.note(at, "message");
            if !self.knows(at, &message) {
                return self.pass_over(at, from);
            }
            self.tell(Fact::Delivered { at, from, message: &whole(&message) });
            let from = self.nodes[from].config.node;
            self.input(at, Input::Message { from, message });
        }
    }

    /// Gossip: not to everybody, and not in time.
    pub(super) fn gossip(&mut self, at: usize, advert: &Advert) {
        for peer in self.nodes[at].sessions.keys().copied().collect::<Vec<_>>() {
            let linked = self.network.links.contains_key(&pair(at, peer))
                && !self.network.deaf.contains(&(at, peer));
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
        self.network.ends.remove(&(session, at));
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
            self.network.ends.insert((session, at), last);
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

    /// Sets every second node apart.
    pub(super) fn split_in_half(&mut self) {
        self.network.apart = (0..self.nodes.len()).filter(|at| at % 2 == 1).collect();
        for (a, b) in self.network.pairs() {
            if self.network.splits(a, b) {
                self.cut(a, b, Duration::ZERO);
            }
        }
    }

    /// Lets a link carry one way only. Its ends give it up after a while of silence.
    pub(super) fn deafen(&mut self, from: usize, to: usize) {
        self.network.deaf.insert((from, to));
        self.tell(Fact::Deaf { from, to });
        if let Some(&session) = self.network.links.get(&pair(from, to)) {
            self.push(SILENCE, Event::Silence { a: from, b: to, session });
        }
    }

    pub(super) fn on_silence(&mut self, a: usize, b: usize, session: u64) {
        let same = self.network.links.get(&pair(a, b)) == Some(&session);
        if same && self.network.splits(a, b) {
            self.cut(a, b, Duration::ZERO);
        }
    }

    /// Connects whoever can be and is not.
    pub(super) fn dial(&mut self) {
        let keeps = |at: usize| self.nodes[at].config.roles.replica;
        let all = self.nodes.len() <= FULL_MESH;
        let hubs: Vec<usize> = (0..self.nodes.len()).filter(|at| all || keeps(*at)).collect();
        for a in hubs {
            for b in 0..self.nodes.len() {
                // Hubs see each other twice; the first time is enough.
                if a != b && (a < b || !all && !self.nodes[b].config.roles.replica) {
                    self.connect(a.min(b), a.max(b));
                }
            }
        }
        self.push(DIAL_EVERY, Event::Dial);
    }

    fn connect(&mut self, a: usize, b: usize) {
        let live = self.nodes[a].core.is_some() && self.nodes[b].core.is_some();
        if !live || self.network.links.contains_key(&(a, b)) || self.network.splits(a, b) {
            return;
        }
        let known =
            self.nodes[a].sessions.contains_key(&b) || self.nodes[b].sessions.contains_key(&a);
        if known {
            return;
        }
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
