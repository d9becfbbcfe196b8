//! What must hold, one file for each of the design's invariants.
//!
//! The world tells each of them what happens, as it happens ([`Fact`]), lets them look at all nodes
//! now and then, and once more at the end. None of them changes anything. Each partition of the
//! pipeline has all of them for itself ([`Partitions`]).

mod acked_survives;
mod adopt_first;
mod amnesia;
mod bounded;
mod bounded_rerun;
mod changes;
mod convergence;
mod durable_before_said;
mod events;
mod fact;
mod fenced;
mod items;
mod legal_reap;
mod limits;
mod merge;
mod no_lost_job;
mod one_coordinator;
mod one_vote;
mod order;
mod partitions;
mod same_key;
mod schedules;
mod secrets;
mod terminal_stays;
mod undone;

use std::{collections::BTreeSet, sync::Arc};

use carbonmesh_protocol::{
    core::{Core, GroupSnapshot},
    id::{JobId, NodeId, PipelineId},
    io::Attempt,
    message::SECRETS_SCHEMA,
    record::JobRecord,
    time::Timestamp,
};

pub(crate) use fact::Fact;
pub(crate) use partitions::{Partitions, Unfinished};

use crate::{Options, world::Node};

/// Which half of a run went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something happened that never may.
    Safety,
    /// Something did not happen although nothing was in its way.
    Liveness,
    /// The core found one of its own assertions broken.
    Assertion,
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Safety or liveness.
    pub kind: Kind,
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Which of its job's phases an attempt is for: our own names end with that.
fn position(attempt: &Attempt) -> u16 {
    attempt.step.as_str()[1..].parse().expect("our own name")
}

/// Whether an invariant holds; what was seen if not.
type Verdict = Result<(), String>;

/// One invariant. Each method does nothing unless it says otherwise.
trait Invariant {
    /// Its name in the design.
    fn name(&self) -> &'static str;

    /// Something happens.
    fn see(&mut self, _seen: &Seen<'_>, _fact: &Fact<'_>) -> Verdict {
        Ok(())
    }

    /// A look at the whole world.
    fn inspect(&mut self, _seen: &Seen<'_>) -> Verdict {
        Ok(())
    }

    /// Peace has brought everything to its end.
    fn finish(&mut self, _seen: &Seen<'_>) -> Verdict {
        Ok(())
    }
}

/// The whole world at one moment, as it is looked at for one partition of the pipeline.
pub(crate) struct Seen<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) now: Timestamp,
    pub(crate) pipeline: PipelineId,
}

impl Seen<'_> {
    /// The same, for another partition.
    fn of(&self, pipeline: PipelineId) -> Self {
        Self { pipeline, ..*self }
    }

    /// All nodes that run.
    fn cores(&self) -> impl Iterator<Item = (&Node, &Core)> {
        self.nodes.iter().filter_map(|node| Some((node, node.core.as_ref()?)))
    }

    /// All nodes that run and know values and secrets.
    fn knowing_secrets(&self) -> impl Iterator<Item = (&Node, &Core)> {
        self.cores().filter(|(node, _)| node.reads >= SECRETS_SCHEMA)
    }

    /// The pipeline's group on each node that runs.
    fn groups(&self) -> impl Iterator<Item = (&Node, GroupSnapshot)> {
        self.cores()
            .filter_map(|(node, core)| Some((node, core.snapshot().groups.remove(&self.pipeline)?)))
    }

    /// Whether a node's disk has anything of a job.
    fn has_on_disk(&self, at: usize, job: JobId) -> bool {
        self.nodes[at].disk.job(self.pipeline, job).is_some()
    }

    /// Whether an attempt that begins at a node is given by that node itself: what a coordinator gives to
    /// itself is not sent. Once it has stepped down, an attempt that waited begins as one of elsewhere.
    fn gives_itself(&self, at: usize, attempt: &Attempt) -> bool {
        let term = attempt.token.term;
        let core = self.nodes[at].core.as_ref();
        term.node == self.nodes[at].config.node
            && core.is_some_and(|core| core.coordinated_term(self.pipeline) == Some(term))
    }

    fn by_id(&self, id: NodeId) -> Option<&Node> {
        self.nodes.iter().find(|node| node.config.node == id)
    }

    /// What a node's disk holds of a job.
    fn on_disk(&self, at: usize, job: JobId) -> Option<Arc<JobRecord>> {
        self.nodes[at].disk.job(self.pipeline, job)
    }
}

/// All of them, of one partition.
struct Invariants {
    all: Vec<Box<dyn Invariant>>,
    acknowledged: BTreeSet<JobId>,
    violations: Vec<Violation>,
}

impl Invariants {
    fn new(options: &Options) -> Self {
        Self {
            all: vec![
                Box::new(durable_before_said::DurableBeforeSaid::new(options)),
                Box::new(acked_survives::AckedSurvives::new(options)),
                Box::new(merge::Merge::new(options)),
                Box::new(terminal_stays::TerminalStays::new(options)),
                Box::new(one_vote::OneVote::default()),
                Box::new(adopt_first::AdoptFirst::new(options)),
                Box::new(order::Order),
                Box::new(fenced::Fenced::new(options)),
                Box::new(bounded_rerun::BoundedRerun::new(options)),
                Box::new(same_key::SameKey::new(options)),
                Box::new(legal_reap::LegalReap::new(options)),
                Box::new(items::Items::default()),
                Box::new(undone::Undone::new(options)),
                Box::new(limits::Limits::new(options)),
                Box::new(schedules::Schedules::new(options)),
                Box::new(amnesia::Amnesia::new(options)),
                Box::new(one_coordinator::OneCoordinator::new(options)),
                Box::new(convergence::Convergence::default()),
                Box::new(bounded::Bounded),
                Box::new(events::Events::default()),
                Box::new(secrets::Secrets::default()),
                Box::new(changes::Changes::new(options)),
            ],
            acknowledged: BTreeSet::new(),
            violations: Vec::new(),
        }
    }

    /// Whether all have held so far.
    fn hold(&self) -> bool {
        self.violations.is_empty()
    }

    /// How many jobs were acknowledged.
    fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// What did not hold.
    fn into_violations(self) -> Vec<Violation> {
        self.violations
    }

    fn ask(&mut self, mut question: impl FnMut(&mut dyn Invariant) -> Verdict) {
        for invariant in &mut self.all {
            if let Err(detail) = question(&mut **invariant) {
                let invariant = invariant.name();
                self.violations.push(Violation { kind: Kind::Safety, invariant, detail });
            }
        }
    }

    /// Something happens.
    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) {
        if let Fact::Acknowledged { receipt, .. } = fact {
            self.acknowledged.insert(receipt.job);
        }
        self.ask(|invariant| invariant.see(seen, fact));
        // Disks that are gone can be looked at no more.
        if matches!(fact, Fact::DiskReplaced { .. }) {
            self.inspect(seen);
        }
    }

    /// A look at the whole world.
    fn inspect(&mut self, seen: &Seen<'_>) {
        self.ask(|invariant| invariant.inspect(seen));
    }

    /// What peace has not brought about yet.
    fn unfinished(&self, seen: &Seen<'_>) -> Option<String> {
        no_lost_job::unfinished(seen, &self.acknowledged)
    }

    /// The end of a run; `unfinished` is what peace did not bring about.
    fn finish(&mut self, seen: &Seen<'_>, unfinished: Option<String>) {
        if !self.hold() {
            return;
        }
        self.inspect(seen);
        if let Some(detail) = unfinished {
            let invariant = "no-lost-job";
            self.violations.push(Violation { kind: Kind::Liveness, invariant, detail });
            return;
        }
        self.ask(|invariant| invariant.finish(seen));
    }
}
