//! BOUNDED: no queue or map of a node grows without a limit.

use super::{Invariant, Seen, Verdict};

/// What a node may have under way at once in worlds as small as ours.
const LIMIT: usize = 2000;

pub(super) struct Bounded;

impl Invariant for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, core) in seen.cores() {
            for (what, size) in core.snapshot().sizes {
                if size > LIMIT {
                    return Err(format!("{}: {size} {what}", node.config.name));
                }
            }
        }
        Ok(())
    }
}
