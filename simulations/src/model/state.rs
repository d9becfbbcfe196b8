//! One state of the model, and what tells two of them apart.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use super::{bounds::Bounds, history::History, network::Network, node::Node};

/// An invariant that does not hold: its name, and what was seen.
pub(super) type Broken = (&'static str, String);

/// See the [module](self). Parts that a step leaves alone are shared between states.
#[derive(Clone)]
pub(super) struct State {
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) network: Network,
    /// What was said and done so far, as far as an invariant asks for it.
    pub(super) history: Arc<History>,
    /// What may still go wrong.
    pub(super) left: Bounds,
    /// The first invariant that was broken; nothing happens after that.
    pub(super) broken: Option<Broken>,
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.nodes.iter().for_each(|node| node.digest().hash(state));
        self.network.hash(state);
        self.history.hash(state);
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
