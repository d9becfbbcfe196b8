//! One state of the model, and what tells two of them apart.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use carbonmesh_protocol::time::Timestamp;

use super::{
    Preset,
    bounds::Bounds,
    history::History,
    network::{Network, Packet, Way},
    node::Node,
};

/// An invariant that does not hold: its name, and what was seen.
pub(super) type Broken = (&'static str, String);

/// See the [module](self). Parts that a step leaves alone are shared between states.
#[derive(Clone)]
pub(super) struct State {
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) network: Network,
    /// What was said and done so far, as far as an invariant asks for it.
    pub(super) history: Arc<History>,
    /// What time it is, where clocks go together.
    pub(super) now: Timestamp,
    /// Whose process stands still.
    pub(super) paused: BTreeSet<usize>,
    /// What may still go wrong.
    pub(super) left: Bounds,
    /// The first invariant that was broken; nothing happens after that.
    pub(super) broken: Option<Broken>,
}

impl State {
    /// What comes next: the oldest that is neither held up nor for a process that stands still.
    pub(super) fn next(&self) -> Option<&(Way, Packet)> {
        self.network.next(&self.paused)
    }

    /// When a node's next timer fires, if it may.
    fn due(&self, at: usize) -> Option<Timestamp> {
        let may = self.left.timers[at] > 0 && !self.paused.contains(&at);
        self.nodes[at].core.poll_timeout().filter(|_| may)
    }

    /// Whose timer may be the next to fire. Where clocks go together that is the earliest one, once all has
    /// arrived that is on its way.
    pub(super) fn may_fire(&self, preset: Preset) -> impl Iterator<Item = usize> {
        let all = 0..self.nodes.len();
        let earliest = all.clone().filter_map(|at| self.due(at)).min();
        let in_turn = move |at: usize| match preset {
            Preset::Available => true,
            Preset::Strict => self.next().is_none() && self.due(at) == earliest,
        };
        all.filter(move |at| self.due(*at).is_some() && in_turn(*at))
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nodes.iter().for_each(|node| node.digest().hash(state));
        self.network.hash(state);
        self.history.hash(state);
        (self.now.as_millis(), &self.paused).hash(state);
        self.left.hash(state);
        self.broken.hash(state);
    }
}

/// As for [`Hash`]: what is shared or hashed needs no second look.
impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let whole = |state: &Self| {
            let mut hasher = DefaultHasher::new();
            state.hash(&mut hasher);
            hasher.finish()
        };
        whole(self) == whole(other)
    }
}
