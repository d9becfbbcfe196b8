//! SECRETS: what was kept of values and secrets is on every node whose release knows them, however nodes
//! that do not know them stand between. That it is the same on all is looked at by `no_lost_job.rs`.

use std::collections::BTreeSet;

use carbonmesh_protocol::secret::PlaceId;

use super::{Fact, Invariant, Seen, Verdict};

#[derive(Default)]
pub(super) struct Secrets {
    kept: BTreeSet<PlaceId>,
    /// Whether all that knew of one may be gone.
    lost_disk: bool,
}

impl Invariant for Secrets {
    fn name(&self) -> &'static str {
        "secrets"
    }

    fn see(&mut self, _: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Put { place } => drop(self.kept.insert(place.id())),
            Fact::DiskReplaced { .. } | Fact::Damaged { .. } => self.lost_disk = true,
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, core) in seen.knowing_secrets() {
            let there: BTreeSet<PlaceId> = core.secrets().map(|(place, ..)| place).collect();
            let lacks = self.kept.difference(&there).count();
            if lacks > 0 && !self.lost_disk {
                return Err(format!("{} lacks {lacks} that were kept", node.config.name));
            }
        }
        Ok(())
    }
}
