//! ONE-VOTE: one vote for each group, disk and counter, through any crash; the highest term that a
//! disk has seen never falls; nobody acts in a term below the highest that it knows.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    core::stored_promise,
    id::{DiskId, Term},
    message::Message,
};

use super::{Fact, Invariant, Seen, Verdict};

#[derive(Default)]
pub(super) struct OneVote {
    votes: BTreeMap<(DiskId, u64), Term>,
    highest: BTreeMap<DiskId, Term>,
}

impl Invariant for OneVote {
    fn name(&self) -> &'static str {
        "one-vote"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        let Fact::Sent { at, message, .. } = fact else { return Ok(()) };
        let term = match message {
            Message::Ballot(ballot) if ballot.granted && !ballot.pre => ballot.highest,
            // Whoever asks for votes has given its own.
            Message::Vote { term, .. } => *term,
            _ => return Ok(()),
        };
        let disk = seen.nodes[*at].config.disk;
        let first = *self.votes.entry((disk, term.counter)).or_insert(term);
        if first == term {
            return Ok(());
        }
        Err(format!("disk {} voted for {first:?} and {term:?}", disk.0))
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, group) in seen.groups() {
            if let Some(mine) = group.coordinates.filter(|mine| *mine < group.highest) {
                let (name, highest) = (&node.config.name, group.highest);
                return Err(format!("{name} coordinates in {mine:?} and knows of {highest:?}"));
            }
        }
        for node in seen.nodes.iter().filter(|node| !node.disk.is_damaged()) {
            let promise = stored_promise(&node.disk.reader(), seen.pipeline);
            let Some(promise) = promise.expect("memory can be read") else { continue };
            let highest = self.highest.entry(node.config.disk).or_insert(promise.highest);
            if promise.highest < *highest {
                let (disk, now) = (node.config.disk.0, promise.highest);
                return Err(format!(
                    "disk {disk}: the highest term fell from {highest:?} to {now:?}"
                ));
            }
            *highest = promise.highest;
        }
        Ok(())
    }
}
