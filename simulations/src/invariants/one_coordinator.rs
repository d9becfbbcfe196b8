//! ONE-COORDINATOR: of a strict group, at no time do two nodes dispatch or acknowledge: once a
//! coordinator has acted in its term, none acts in an earlier one; and it acts only on what a
//! majority of the group's view has on disk.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    group_view::Holder,
    id::{JobId, Term},
    message::{Answer, Assignment, GroupUpdate, Message},
    record::JobRecord,
    view::{JobState, JobView},
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct OneCoordinator {
    strict: bool,
    by_coordinator: bool,
    /// The latest term in which anybody acted.
    latest: Option<Term>,
    /// In which term each node told others last that it coordinates: by the time that its answers
    /// leave, it may have stepped down.
    told: BTreeMap<usize, Term>,
}

impl OneCoordinator {
    pub(super) fn new(options: &Options) -> Self {
        let by_coordinator = options.quorums.0 == options.quorums.1;
        Self { strict: options.is_strict(), by_coordinator, latest: None, told: BTreeMap::new() }
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
    what: &str,
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
        false => Err(format!("n{at} {what} job {job}, which no majority has like that")),
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
                let Assignment { token, job, step, .. } = &**assignment;
                is_committed(seen, *at, *job, "gives away", |record| {
                    record.controls.get(step).is_some_and(|control| {
                        control.attempts.iter().any(|attempt| attempt.token == *token)
                    })
                })
            }
            Fact::Sent { at, message: Message::Replicate(replicate), .. } => {
                let own = |it: &&GroupUpdate| it.pipeline == seen.pipeline;
                let update = replicate.groups.iter().find(own);
                self.told.extend(update.map(|update| (*at, update.term)));
                Ok(())
            }
            Fact::Sent { at, message: Message::Stored { copies, .. }, .. }
                if self.by_coordinator && *copies > 0 =>
            {
                let core = seen.nodes[*at].core.as_ref();
                let group = core.and_then(|core| core.snapshot().groups.remove(&seen.pipeline));
                let now = group.and_then(|group| group.coordinates);
                match now.or_else(|| self.told.get(at).copied()) {
                    Some(term) => self.acts("acknowledges", term),
                    None => Err(format!("n{at} acknowledges, and coordinates nothing")),
                }
            }
            // What a coordinator tells its own clients goes no further.
            Fact::Told { at, view } if coordinates(seen, *at) => {
                are_ends_committed(seen, *at, view)
            }
            Fact::Sent {
                at,
                message: Message::Answer { answer: Answer::Job(Some(view)), .. },
                ..
            } => are_ends_committed(seen, *at, view),
            _ => Ok(()),
        }
    }
}

fn coordinates(seen: &Seen<'_>, at: usize) -> bool {
    let core = seen.nodes[at].core.as_ref();
    let group = core.and_then(|core| core.snapshot().groups.remove(&seen.pipeline));
    group.is_some_and(|group| group.coordinates.is_some())
}

/// Whether a majority has each of the ends of which somebody is told: not the same majority, since
/// each phase is decided by itself.
///
/// A disk that has a later generation of the phase counts too. What is told is let go when it is
/// committed, and one message can commit both the end and the retry that came after it, which was
/// asked for only once the end could be seen. By then no disk needs to have the end any more: whoever
/// asked is told what held when it asked, and whoever asked for the retry hears of that later. So does a
/// disk that has forgotten the job since, which only one that has ended is.
fn are_ends_committed(seen: &Seen<'_>, at: usize, view: &JobView) -> Verdict {
    for (step, invocation) in view.invocations.iter().enumerate() {
        if invocation.state != JobState::Succeeded {
            continue;
        }
        is_committed(seen, at, view.job, "tells of", |record| {
            record.controls.get(&(step as u16)).is_some_and(|control| {
                let ended = control.state() == JobState::Succeeded;
                ended || control.generation > view.generation
            }) || record.reaped.is_some_and(|mark| mark.generation >= view.generation)
        })?;
    }
    Ok(())
}
