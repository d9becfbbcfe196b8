//! ONE-COORDINATOR: of a strict group, at no time do two nodes dispatch or acknowledge: once a
//! coordinator has acted in its term, none acts in an earlier one.

use carbonmesh_protocol::{id::Term, message::Message};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct OneCoordinator {
    strict: bool,
    by_coordinator: bool,
    /// The latest term in which anybody acted.
    latest: Option<Term>,
}

impl OneCoordinator {
    pub(super) fn new(options: &Options) -> Self {
        let by_coordinator = options.quorums.0 == options.quorums.1;
        Self { strict: options.is_strict(), by_coordinator, latest: None }
    }

    fn acts(&mut self, what: &str, term: Term) -> Verdict {
        match self.latest {
            Some(latest) if latest > term => {
                Err(format!("{term:?} {what} after {latest:?} has acted"))
            }
            _ => {
                self.latest = Some(term);
                Ok(())
            }
        }
    }
}

impl Invariant for OneCoordinator {
    fn name(&self) -> &'static str {
        "one-coordinator"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if !self.strict {
            return Ok(());
        }
        match fact {
            Fact::Sent { message: Message::Assign(assignment), .. } => {
                self.acts("dispatches", assignment.token.term)
            }
            Fact::Sent { at, message: Message::Stored { copies, .. }, .. }
                if self.by_coordinator && *copies > 0 =>
            {
                let core = seen.nodes[*at].core.as_ref();
                let group = core.and_then(|core| core.snapshot().groups.remove(&seen.pipeline));
                match group.and_then(|group| group.coordinates) {
                    Some(term) => self.acts("acknowledges", term),
                    None => Err(format!("n{at} acknowledges, and coordinates nothing")),
                }
            }
            _ => Ok(()),
        }
    }
}
