//! BOUNDED: no queue or map of a node grows without a limit.

use super::{Invariant, Seen, Verdict};

/// What a node may have under way at once in worlds with as little work as ours; and for each node.
const LIMIT: usize = 2000;
const LIMIT_PER_NODE: usize = 4;

pub(super) struct Bounded;

impl Invariant for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, core) in seen.cores() {
            for (what, size) in core.snapshot().sizes {
                if size > LIMIT + LIMIT_PER_NODE * seen.nodes.len() {
                    return Err(format!("{}: {size} {what}", node.config.name));
                }
            }
        }
        Ok(())
    }
}
