//! How far an exploration goes: what may go wrong, and how often time may pass.
//!
//! Each step takes what it uses off the budget, which is part of the state: two states that differ in
//! what may still happen are two.

use std::fmt;

/// The most nodes that a scenario has.
pub(super) const NODES: usize = 4;

/// See the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// How often each node's next timer may fire; a node whose timers do not fire stands for one
    /// that is slow, or whose clock is.
    pub timers: [u8; NODES],
    /// How often each node may be killed and started again.
    pub crashes: [u8; NODES],
    /// How often each node may stand still for a while.
    pub pauses: [u8; NODES],
    /// How often a stream may be held up: one direction of a connection, or a disk.
    pub holds: u8,
    /// How many connections may be cut.
    pub cuts: u8,
    /// How many may be made again, after a cut or a crash.
    pub connections: u8,
    /// How many messages may fall out of their streams, and come at any later time or never.
    pub losses: u8,
    /// How many may come twice, the second time at any later time.
    pub repeats: u8,
    /// How many jobs clients enqueue on the way, at the last node.
    pub jobs: u8,
}

impl Bounds {
    /// Nothing may happen but what is on its way.
    pub(super) const NOTHING: Self = Self {
        timers: [0; NODES],
        crashes: [0; NODES],
        pauses: [0; NODES],
        holds: 0,
        cuts: 0,
        connections: 0,
        losses: 0,
        repeats: 0,
        jobs: 0,
    };

    /// For the way to where an exploration starts.
    pub(super) const NONE: Self = Self {
        timers: [u8::MAX; NODES],
        crashes: [u8::MAX; NODES],
        pauses: [u8::MAX; NODES],
        holds: u8::MAX,
        cuts: u8::MAX,
        connections: u8::MAX,
        losses: u8::MAX,
        repeats: u8::MAX,
        jobs: u8::MAX,
    };
}

impl fmt::Display for Bounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "timers {:?} and crashes {:?} by node", self.timers, self.crashes)?;
        if self.pauses != [0; NODES] {
            write!(f, ", pauses {:?}", self.pauses)?;
        }
        let others = [
            (self.holds, "streams held up"),
            (self.cuts, "connections cut"),
            (self.connections, "made again"),
            (self.losses, "messages lost or late"),
            (self.repeats, "twice"),
            (self.jobs, "jobs enqueued"),
        ];
        let given = others.iter().filter(|(count, _)| *count > 0);
        given.copied().try_for_each(|(count, what)| write!(f, ", {count} {what}"))
    }
}
