//! AMNESIA: a disk that came in place of another neither votes nor counts before a coordinator has
//! admitted it.

use std::collections::BTreeSet;

use carbonmesh_protocol::{core::stored_promise, id::DiskId, message::Message};

use super::{Fact, Invariant, Seen, Verdict};
use crate::{Options, world::Node};

pub(super) struct Amnesia {
    /// Whether who counts is said by the group's view.
    strict: bool,
    fresh: BTreeSet<DiskId>,
    /// Whether there was anything yet that a disk could forget.
    founded: bool,
}

impl Amnesia {
    pub(super) fn new(options: &Options) -> Self {
        Self { strict: options.is_strict(), fresh: BTreeSet::new(), founded: false }
    }
}

impl Invariant for Amnesia {
    fn name(&self) -> &'static str {
        "amnesia"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::DiskReplaced { new, .. } if self.founded => {
                self.fresh.insert(*new);
            }
            Fact::Delivered { message: Message::Admit { disk, .. }, .. } => {
                self.fresh.remove(disk);
            }
            // Whoever is alone for long founds the group anew, and has nobody to tell of that: its next
            // process finds it on disk.
            Fact::Up { at, disk, .. } => {
                let node = &seen.nodes[*at];
                let promise = stored_promise(&node.disk.reader(), seen.pipeline);
                let founded = promise.ok().flatten().is_some_and(|promise| {
                    promise.admitted == Some(*disk) && promise.voted.node == node.config.node
                });
                if founded {
                    self.fresh.remove(disk);
                }
            }
            // Where nobody else can be reached or is known, a group is founded anew.
            Fact::Sent { at, message: Message::Beat(beat), .. }
                if beat.groups.iter().any(|group| group.pipeline == seen.pipeline) =>
            {
                self.fresh.remove(&seen.nodes[*at].config.disk);
            }
            // Whoever is asked to make the pipeline, and has not heard of it, founds it.
            Fact::Sent { message: Message::Catalog(entries), .. } => {
                let own = entries.iter().filter(|entry| entry.id() == seen.pipeline);
                for (_, disk) in own.flat_map(|entry| &entry.founders) {
                    self.fresh.remove(disk);
                }
            }
            Fact::Sent { message: Message::Replicate(replicate), .. } => {
                let own = replicate.groups.iter().filter(|it| it.pipeline == seen.pipeline);
                let views = own.filter_map(|group| group.view.as_ref());
                for (_, disk) in views.flat_map(|view| view.holders()) {
                    self.fresh.remove(&disk);
                }
            }
            Fact::Sent { at, message: Message::Admit { .. }, .. } => {
                // Whoever admits others is the founder, or was admitted before.
                self.fresh.remove(&seen.nodes[*at].config.disk);
            }
            Fact::Sent { at, message, .. } => {
                let disk = seen.nodes[*at].config.disk;
                self.founded |= matches!(message, Message::Ballot(_) | Message::Stored { .. });
                let counts = match message {
                    // Those who found a group anew say that they are not admitted.
                    Message::Ballot(ballot) => ballot.granted && ballot.admitted,
                    // It is among the candidate's questions whether its disk is in the view.
                    Message::Vote { founding, .. } => !founding && !self.strict,
                    Message::Stored { copies, .. } => *copies > 0,
                    _ => false,
                };
                // Should all disks be such, they found the group anew.
                let old = |node: &Node| {
                    node.config.roles.replica
                        && !node.gone
                        && node.life > 0
                        && !self.fresh.contains(&node.config.disk)
                };
                if counts && self.fresh.contains(&disk) && seen.nodes.iter().any(old) {
                    return Err(format!(
                        "n{at} counts with a disk that nobody admitted: {message:?}"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
