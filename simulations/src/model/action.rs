//! What may happen next.

use std::fmt;

use carbonmesh_protocol::{id::Token, message::Message};

use super::{
    Preset,
    network::{Packet, Way},
    state::State,
};

/// One step of the model; nodes are named by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// What comes next arrives.
    Next,
    /// It falls out of its stream.
    Lose,
    /// It arrives, and may once more.
    Repeat,
    /// A message that fell out of its stream, or is to come once more, arrives.
    Stray(usize),
    /// Its stream is held up.
    Hold(Way),
    /// A stream goes on.
    Release(Way),
    /// A node's clock goes on to its next timer; where clocks go together, all do.
    Fire(usize),
    /// An attempt ends well.
    Finish(usize, Token),
    /// A client hands in a job.
    Enqueue(usize),
    /// A connection is cut.
    Cut(Way),
    /// Two nodes are connected.
    Connect(Way),
    /// A process stands still: it hears nothing, and none of its timers fires.
    Pause(usize),
    /// It goes on: with what has come meanwhile, or with the timers that are due.
    Resume(usize, bool),
    /// A process is killed, with so many of its batches on disk, and is started again.
    Crash(usize, usize),
}

impl Action {
    /// All that may happen in a state, within its budget, in a fixed order.
    pub(super) fn all(state: &State, preset: Preset, actions: &mut Vec<Self>) {
        let (left, network, paused) = (&state.left, &state.network, &state.paused);
        let count = state.nodes.len();
        let within = |budget: u8, action: Self| (budget > 0).then_some(action);
        if left.cuts > 0 {
            actions.extend(network.live().map(Self::Cut));
        }
        if left.connections > 0 {
            actions.extend(network.apart(count).map(Self::Connect));
        }
        for (at, node) in state.nodes.iter().enumerate() {
            if paused.contains(&at) {
                actions.extend([false, true].map(|timers| Self::Resume(at, timers)));
                continue;
            }
            if left.crashes[at] > 0 {
                actions.extend((0..=node.unsynced.len()).map(|kept| Self::Crash(at, kept)));
            }
            actions.extend(within(left.pauses[at], Self::Pause(at)));
            actions.extend(node.attempts.keys().map(|token| Self::Finish(at, *token)));
        }
        actions.extend(state.may_fire(preset).map(Self::Fire));
        let enqueue = within(left.jobs, Self::Enqueue(count - 1));
        actions.extend(enqueue.filter(|_| !paused.contains(&(count - 1))));
        let strays = network.strays().iter().enumerate();
        let strays = strays.filter(|(_, ((_, to), _))| !paused.contains(to));
        actions.extend(strays.map(|(at, _)| Self::Stray(at)));
        actions.extend(network.held().map(Self::Release));
        let Some((way, packet)) = state.next() else { return };
        actions.extend(within(left.holds, Self::Hold(*way)));
        if matches!(packet, Packet::Message(..)) {
            actions.extend(within(left.losses, Self::Lose));
            actions.extend(within(left.repeats, Self::Repeat));
        }
        actions.push(Self::Next);
    }

    /// What happens, in words.
    pub(super) fn describe(self, state: &State) -> String {
        let arrival = |packet: Option<&(Way, Packet)>| match packet {
            Some(((at, _), Packet::Synced)) => format!("n{at} has a batch on disk"),
            Some(((from, to), packet)) => match packet {
                Packet::Message(_, message) => format!("n{to} <- n{from} {}", Short(message)),
                Packet::Up => format!("n{to} <- n{from} connected"),
                _ => format!("n{to} <- n{from} connection gone"),
            },
            None => "nothing".to_owned(),
        };
        let next = || arrival(state.next());
        let stream = |(from, to): Way| match from == to {
            true => format!("the disk of n{to}"),
            false => format!("n{from} -> n{to}"),
        };
        match self {
            Self::Next => next(),
            Self::Lose => format!("LOST OR LATE: {}", next()),
            Self::Repeat => format!("{} (TO COME TWICE)", next()),
            Self::Stray(at) => format!("{} (LATE)", arrival(state.network.strays().get(at))),
            Self::Hold(way) => format!("{} HELD UP", stream(way)),
            Self::Release(way) => format!("{} goes on", stream(way)),
            Self::Fire(at) => {
                let due = state.nodes[at].core.poll_timeout().unwrap_or_default();
                format!("n{at} TIME goes on to {due}")
            }
            Self::Finish(at, token) => format!("n{at} attempt {token} ends"),
            Self::Enqueue(at) => format!("n{at} takes a job from a client"),
            Self::Cut((a, b)) => format!("n{a} - n{b} CUT"),
            Self::Connect((a, b)) => format!("n{a} - n{b} CONNECTED again"),
            Self::Pause(at) => format!("n{at} STANDS STILL"),
            Self::Resume(at, timers) => {
                format!("n{at} goes on with {}", if timers { "what is due" } else { "what came" })
            }
            Self::Crash(at, kept) => {
                let batches = state.nodes[at].unsynced.len();
                format!("n{at} CRASHES with {kept} of {batches} batches on disk, and starts again")
            }
        }
    }
}

/// A message without what makes it long.
pub(super) struct Short<'a>(pub(super) &'a Message);

impl fmt::Display for Short<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LENGTH: usize = 140;
        let text = format!("{:?}", self.0);
        match text.char_indices().nth(LENGTH) {
            Some((end, _)) => write!(f, "{} ...", &text[..end]),
            None => f.write_str(&text),
        }
    }
}
