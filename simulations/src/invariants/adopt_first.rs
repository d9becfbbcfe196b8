//! ADOPT-FIRST: nothing is dispatched in a term before all that its voters held when they voted is
//! merged and on the coordinator's disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use carbonmesh_protocol::{
    id::{JobId, NodeId, Term},
    message::Message,
    record::JobRecord,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct AdoptFirst {
    /// Whether only what a majority holds is an end.
    strict: bool,
    /// What each voter held on disk when its vote for a term left, for the first time if it was asked twice:
    /// the candidate counts the first that comes.
    held: BTreeMap<(Term, NodeId), BTreeMap<JobId, Arc<JobRecord>>>,
    /// Terms that have dispatched.
    checked: BTreeSet<Term>,
}

impl Invariant for AdoptFirst {
    fn name(&self) -> &'static str {
        "adopt-first"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Sent { at, message: Message::Ballot(ballot), .. }
                if ballot.granted && !ballot.pre =>
            {
                let node = &seen.nodes[*at];
                let Some(core) = &node.core else { return Ok(()) };
                // Finished jobs are not dispatched: what the live ones need is what counts.
                let jobs = core.records(seen.pipeline).map(|(job, _)| job);
                let held = jobs.filter_map(|job| Some((job, seen.on_disk(*at, job)?)));
                let vote = (ballot.highest, node.config.node);
                self.held.entry(vote).or_insert_with(|| held.collect());
                Ok(())
            }
            Fact::Started { attempt, .. } => self.check(seen, attempt.token.term),
            _ => Ok(()),
        }
    }
}

impl AdoptFirst {
    pub(super) fn new(options: &Options) -> Self {
        Self { strict: options.is_strict(), held: BTreeMap::new(), checked: BTreeSet::new() }
    }

    /// The first attempt of a term begins.
    fn check(&mut self, seen: &Seen<'_>, term: Term) -> Verdict {
        if self.checked.contains(&term) {
            return Ok(());
        }
        let coordinator = seen.by_id(term.node).filter(|node| !node.disk.is_damaged());
        let Some(coordinator) = coordinator else { return Ok(()) };
        // Who counted is known only while it coordinates.
        let Some(core) = &coordinator.core else { return Ok(()) };
        let snapshot = core.snapshot();
        let Some(group) = snapshot.groups.get(&seen.pipeline) else { return Ok(()) };
        if group.coordinates != Some(term) {
            return Ok(());
        }
        self.checked.insert(term);
        for voter in &group.voters {
            let held = self.held.get(&(term, *voter)).into_iter().flatten();
            for (job, theirs) in held {
                let mine = coordinator.disk.job(seen.pipeline, *job);
                // It may have ended at the voter before both compared what lives there.
                if !self.strict && mine.is_none() && has_ended(seen, *voter, *job) {
                    continue;
                }
                let mut mine = Arc::unwrap_or_clone(mine.unwrap_or_default());
                let mut news = false;
                for component in theirs.components() {
                    news |= mine.merge(&component).expect("it reads back");
                }
                // What has ended all the same is compared later.
                if news && !mine.is_over() {
                    let name = &coordinator.config.name;
                    return Err(format!("{name} dispatches in {term:?} without {job} of {voter}"));
                }
            }
        }
        Ok(())
    }
}

fn has_ended(seen: &Seen<'_>, node: NodeId, job: JobId) -> bool {
    let record = seen.by_id(node).and_then(|node| node.disk.job(seen.pipeline, job));
    record.is_some_and(|record| record.is_over())
}
