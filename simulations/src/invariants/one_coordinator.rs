//! ONE-COORDINATOR: of a strict group, at no time do two nodes dispatch or acknowledge: once a
//! coordinator has acted in its term, none acts in an earlier one; and it acts only on what a
//! majority of the group's view has on disk.

use carbonmesh_protocol::{
    group_view::Holder,
    id::{JobId, Term},
    message::{Assignment, Message},
    record::JobRecord,
};

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

/// Whether a majority of the view, as a coordinator sees it, has something of a job on disk.
fn is_committed(
    seen: &Seen<'_>,
    at: usize,
    job: JobId,
    has: impl Fn(&JobRecord) -> bool,
) -> Verdict {
    let core = seen.nodes[at].core.as_ref();
    let group = core.and_then(|core| core.snapshot().groups.remove(&seen.pipeline));
    let Some(group) = group else { return Ok(()) };
    let holds = |(node, disk): &Holder| {
        // What cannot be read any more, or went with its disk, may have been there.
        seen.by_id(*node).is_some_and(|node| {
            let gone = node.disk.is_damaged() || node.config.disk != *disk;
            gone || node.disk.job(seen.pipeline, job).is_some_and(|record| has(&record))
        })
    };
    match group.view.has_quorum(holds) {
        true => Ok(()),
        false => Err(format!("n{at} gives job {job} away, which no majority has")),
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
            Fact::Sent { at, message: Message::Assign(assignment), .. } => {
                self.acts("dispatches", assignment.token.term)?;
                let Assignment { token, job, step, .. } = assignment;
                is_committed(seen, *at, *job, |record| {
                    record.controls.get(step).is_some_and(|control| {
                        control.attempts.iter().any(|attempt| attempt.token == *token)
                    })
                })
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
