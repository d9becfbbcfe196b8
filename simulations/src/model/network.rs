//! Everything that is on its way: messages, news of connections, batches that wait for a disk.
//!
//! It lies in one list, in the order in which it was caused, and comes out in that order, unless a
//! stream is held up: one direction of a connection, or a disk. What is in it then waits, however
//! long, while all else goes on; with enough of that, every order is one of these.
//!
//! A message can also fall out of its stream, and come late or never; or come in its turn and once
//! more. No link does that, but the core is to bear it.
//!
//! What an end has not heard when a connection is cut is lost: since the rest may have been heard
//! before, that covers every part that could have got through.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    hash::{Hash, Hasher},
    sync::Arc,
};

use carbonmesh_protocol::message::Message;

use super::digest::Digest;

/// What comes out of a stream.
#[derive(Clone, Debug)]
pub(super) enum Packet {
    /// The connection stands.
    Up,
    /// It is gone.
    Down,
    /// A message, with its digest.
    Message(u128, Arc<Message>),
    /// The disk has taken a batch.
    Synced,
}

impl Packet {
    fn digest(&self) -> u128 {
        match self {
            Self::Up => 1,
            Self::Down => 2,
            Self::Synced => 3,
            Self::Message(digest, _) => *digest,
        }
    }
}

/// A stream: from whom to whom; from a node to itself, its disk.
pub(super) type Way = (usize, usize);

/// See the [module](self).
#[derive(Clone, Default)]
pub(super) struct Network {
    /// Oldest first.
    waiting: Vec<(Way, Packet)>,
    held: BTreeSet<Way>,
    /// Messages that fell out of their streams, or are to come once more.
    strays: Vec<(Way, Packet)>,
    /// Pairs whose connection stands, though its ends may not know yet.
    live: BTreeSet<Way>,
    /// Who takes itself for connected with whom.
    up: BTreeSet<Way>,
}

fn pair(a: usize, b: usize) -> Way {
    (a.min(b), a.max(b))
}

impl Network {
    fn first(&self, paused: &BTreeSet<usize>) -> Option<usize> {
        let comes = |(from, to): &Way| !self.held.contains(&(*from, *to)) && !paused.contains(to);
        self.waiting.iter().position(|(way, _)| comes(way))
    }

    /// What comes next: the oldest that is neither held up nor for somebody who stands still.
    pub(super) fn next(&self, paused: &BTreeSet<usize>) -> Option<&(Way, Packet)> {
        self.first(paused).map(|at| &self.waiting[at])
    }

    /// Takes out what comes next; notes whether its receiver is connected from now on.
    pub(super) fn take(&mut self, paused: &BTreeSet<usize>) -> Option<(Way, Packet)> {
        let at = self.first(paused)?;
        let (way, packet) = self.waiting.remove(at);
        let (from, to) = way;
        match packet {
            Packet::Up => self.up.insert((to, from)),
            Packet::Down => self.up.remove(&(to, from)),
            Packet::Message(..) | Packet::Synced => false,
        };
        Some((way, packet))
    }

    /// Puts something behind all that waits.
    pub(super) fn put(&mut self, way: Way, packet: Packet) {
        self.waiting.push((way, packet));
    }

    /// A node sends. Without a connection it is lost.
    pub(super) fn send(&mut self, way: Way, message: Message) {
        if self.up.contains(&way) && self.is_live(way) {
            let digest = Digest::of(|into| write!(into, "{message:?}"));
            self.put(way, Packet::Message(digest, Arc::new(message)));
        }
    }

    /// A message is to come at another time, if at all.
    pub(super) fn stray(&mut self, message: (Way, Packet)) {
        self.strays.push(message);
    }

    /// Messages that may come at any time.
    pub(super) fn strays(&self) -> &[(Way, Packet)] {
        &self.strays
    }

    /// One of them comes.
    pub(super) fn take_stray(&mut self, at: usize) -> (Way, Packet) {
        self.strays.remove(at)
    }

    /// Holds a stream up.
    pub(super) fn hold(&mut self, way: Way) {
        self.held.insert(way);
    }

    /// Lets a stream go on.
    pub(super) fn release(&mut self, way: Way) {
        self.held.remove(&way);
    }

    /// Streams that are held up.
    pub(super) fn held(&self) -> impl Iterator<Item = Way> {
        self.held.iter().copied()
    }

    /// Pairs whose connection stands.
    pub(super) fn live(&self) -> impl Iterator<Item = Way> {
        self.live.iter().copied()
    }

    fn is_live(&self, (a, b): Way) -> bool {
        self.live.contains(&pair(a, b))
    }

    /// Throws away what waits in a stream.
    fn clear(&mut self, way: Way) {
        self.waiting.retain(|(of, _)| *of != way);
        self.strays.retain(|(of, _)| *of != way);
        self.held.remove(&way);
    }

    /// All that is on its way is gone.
    pub(super) fn lose_all(&mut self) {
        self.waiting.clear();
    }

    /// Ends a connection.
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.live.remove(&pair(a, b));
        for (from, to) in [(a, b), (b, a)] {
            self.clear((from, to));
            if self.up.contains(&(to, from)) {
                self.put((from, to), Packet::Down);
            }
        }
    }

    /// A process is gone: all its connections end, and itself hears of nothing any more.
    pub(super) fn crash(&mut self, at: usize, nodes: usize) {
        for peer in (0..nodes).filter(|peer| *peer != at) {
            self.up.remove(&(at, peer));
            self.cut(at, peer);
        }
        self.clear((at, at));
    }

    /// Pairs that could be connected: both ends know that they are not.
    pub(super) fn apart(&self, nodes: usize) -> impl Iterator<Item = Way> {
        let pairs = (0..nodes).flat_map(move |a| (a + 1..nodes).map(move |b| (a, b)));
        let known = |way: Way| !self.up.contains(&way);
        pairs.filter(move |&(a, b)| !self.is_live((a, b)) && known((a, b)) && known((b, a)))
    }

    /// Connects two nodes.
    pub(super) fn connect(&mut self, (a, b): Way) {
        self.live.insert(pair(a, b));
        self.put((a, b), Packet::Up);
        self.put((b, a), Packet::Up);
    }
}

impl Hash for Network {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.waiting.len().hash(state);
        for (way, packet) in self.waiting.iter().chain(&self.strays) {
            (way, packet.digest()).hash(state);
        }
        (&self.held, &self.live, &self.up).hash(state);
    }
}
