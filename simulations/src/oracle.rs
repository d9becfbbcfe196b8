//! What was promised, and what must hold of it. Names are those of the design's invariants.

use std::collections::{BTreeMap, BTreeSet};

use carbonmesh_protocol::{
    id::{DiskId, JobId, PipelineId, Term, Token},
    io::Attempt,
    name::Name,
};

/// Which half of a run went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something happened that never may.
    Safety,
    /// Something did not happen although nothing was in its way.
    Liveness,
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

/// Remembers all that was promised and seen.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) acknowledged: BTreeSet<JobId>,
    started: BTreeMap<Token, (JobId, Name)>,
    runs: BTreeMap<(JobId, Name), usize>,
    votes: BTreeMap<(PipelineId, DiskId, u64), Term>,
    pub(crate) violations: Vec<Violation>,
}

impl Oracle {
    fn unsafe_because(&mut self, invariant: &'static str, detail: String) {
        self.violations.push(Violation { kind: Kind::Safety, invariant, detail });
    }

    /// A client was told that its job is on `said` disks; on so many it is.
    pub(crate) fn acknowledge(&mut self, job: JobId, said: u32, found: usize) {
        self.acknowledged.insert(job);
        if said == 0 || found < said as usize {
            let detail = format!("job {job}: {said} copies were promised, {found} are on disk");
            self.unsafe_because("durable-before-said", detail);
        }
    }

    /// A worker starts an attempt of the step at `position` of its chain.
    pub(crate) fn start(&mut self, attempt: &Attempt, position: usize) {
        let what = (attempt.job, attempt.step.clone());
        *self.runs.entry(what.clone()).or_default() += 1;
        if let Some(other) = self.started.insert(attempt.token, what.clone()) {
            let detail = format!("token {} started {what:?} after {other:?}", attempt.token);
            self.unsafe_because("fenced", detail);
        }
        if attempt.results.len() != position {
            let detail = format!("{what:?} began with {} results", attempt.results.len());
            self.unsafe_because("order", detail);
        }
    }

    /// A disk's last vote for a pipeline.
    pub(crate) fn vote(&mut self, pipeline: PipelineId, disk: DiskId, voted: Term) {
        if voted == Term::ZERO {
            return;
        }
        let first = *self.votes.entry((pipeline, disk, voted.counter)).or_insert(voted);
        if first != voted {
            let detail = format!("disk {} voted for {first} and {voted}", disk.0);
            self.unsafe_because("one-vote", detail);
        }
    }

    /// After a run without any fault: each phase ran once.
    pub(crate) fn no_reruns(&mut self) {
        let again = self.runs.iter().find(|(_, runs)| **runs > 1);
        if let Some((what, runs)) = again {
            let detail = format!("{what:?} ran {runs} times without a fault");
            self.unsafe_because("bounded-rerun", detail);
        }
    }

    /// Peace has lasted long enough, and something is still not done.
    pub(crate) fn never(&mut self, invariant: &'static str, detail: String) {
        self.violations.push(Violation { kind: Kind::Liveness, invariant, detail });
    }

    pub(crate) fn attempts(&self) -> usize {
        self.started.len()
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::id::NodeId;

    use super::*;

    fn term(node: u8) -> Term {
        Term { counter: 1, node: NodeId::from_bytes([node; 16]), boot: 1 }
    }

    fn attempt(sequence: u64) -> Attempt {
        let job = JobId::time_ordered(PipelineId::of_name("p"), 1, [0; 10]);
        Attempt {
            token: Token { term: term(1), sequence },
            job,
            pipeline: "p".parse().unwrap(),
            step: "s".parse().unwrap(),
            phase: "s".parse().unwrap(),
            number: 1,
            timeout: None,
            key: None,
            instructions: Default::default(),
            results: vec![],
        }
    }

    fn broken(oracle: &Oracle) -> Vec<&str> {
        oracle.violations.iter().map(|violation| violation.invariant).collect()
    }

    #[test]
    fn a_promise_without_disks_is_seen() {
        let mut oracle = Oracle::default();
        oracle.acknowledge(attempt(1).job, 2, 2);
        assert!(broken(&oracle).is_empty());
        oracle.acknowledge(attempt(1).job, 2, 1);
        assert_eq!(broken(&oracle), ["durable-before-said"]);
    }

    #[test]
    fn a_token_that_starts_twice_is_seen() {
        let mut oracle = Oracle::default();
        oracle.start(&attempt(1), 0);
        oracle.start(&attempt(2), 0);
        assert!(broken(&oracle).is_empty());
        oracle.start(&attempt(1), 0);
        assert_eq!(broken(&oracle), ["fenced"]);
        oracle.no_reruns();
        assert_eq!(broken(&oracle), ["fenced", "bounded-rerun"]);
    }

    #[test]
    fn a_step_before_its_turn_is_seen() {
        let mut oracle = Oracle::default();
        oracle.start(&attempt(1), 1);
        assert_eq!(broken(&oracle), ["order"]);
    }

    #[test]
    fn a_second_vote_is_seen() {
        let mut oracle = Oracle::default();
        let pipeline = PipelineId::of_name("p");
        oracle.vote(pipeline, DiskId(1), term(1));
        oracle.vote(pipeline, DiskId(2), term(2));
        assert!(broken(&oracle).is_empty());
        oracle.vote(pipeline, DiskId(1), term(2));
        assert_eq!(broken(&oracle), ["one-vote"]);
    }
}
