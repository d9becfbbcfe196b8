//! BOUNDED-RERUN: without a fault each phase runs once. Else every further run comes after the one before has
//! failed, after a client changed the job or what it is a part of, or after something went wrong since that
//! run began: with or between its worker, the next one and its coordinator; or, where another term gives it
//! out, or gave it out before, with one of these: of two that coordinate beyond a cut, each may end at a
//! worker what the other has given it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use carbonmesh_protocol::{
    id::{JobId, Term, Token},
    time::Timestamp,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

/// For how long after a fault an attempt may be given out that it makes run again.
const AFTERMATH: Duration = Duration::from_secs(15);

/// How much longer than others a slow link takes.
const SLOWEST: u64 = 10;

/// How long a coordinator may go without an answer, less what nodes need for one.
const LEASE_MS: u64 = 2_500;

pub(super) struct BoundedRerun {
    faultless: bool,
    last: BTreeMap<(JobId, String), (Token, usize, Timestamp)>,
    /// In which terms each phase of a job ran.
    terms: BTreeMap<(JobId, String), BTreeSet<Term>>,
    failed: BTreeMap<Token, bool>,
    /// When each node, or link, last had a fault.
    faults: BTreeMap<(usize, usize), Timestamp>,
    /// When each job was last to be changed.
    changed: BTreeMap<JobId, Timestamp>,
    aftermath: Duration,
    timed: bool,
    /// Whether some links take about as long as a lease, there and back: then coordinators lose theirs
    /// without a fault.
    slow: bool,
}

impl BoundedRerun {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            faultless: options.is_faultless(),
            last: BTreeMap::new(),
            terms: BTreeMap::new(),
            failed: BTreeMap::new(),
            faults: BTreeMap::new(),
            changed: BTreeMap::new(),
            aftermath: options.aftermath(AFTERMATH),
            timed: options.timed,
            slow: options.slow_links_per_mille > 0 && 2 * SLOWEST * options.delay_ms >= LEASE_MS,
        }
    }

    /// Whether something that went wrong may still have its consequences.
    fn blames(&self, since: Timestamp, mut faults: impl Iterator<Item = Timestamp>) -> bool {
        // A connection that is cut is given up seconds later, and leases run out after that.
        !self.faultless && faults.any(|fault| fault + self.aftermath >= since)
    }
}

/// A job, and what it is a part of.
fn whole(seen: &Seen<'_>, job: JobId) -> impl Iterator<Item = JobId> {
    let of = |job: &JobId| {
        let mut records = (0..seen.nodes.len()).filter_map(|at| seen.on_disk(at, *job));
        records.find_map(|record| Some(record.spec.as_ref()?.parent.as_ref()?.job))
    };
    std::iter::successors(Some(job), of)
}

impl Invariant for BoundedRerun {
    fn name(&self) -> &'static str {
        "bounded-rerun"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if fact.is_fault() {
            self.faults.extend(fact.hits().map(|hit| (hit, seen.now)));
        }
        match fact {
            Fact::Changed { job, .. } => drop(self.changed.insert(*job, seen.now)),
            Fact::Ended { token, failed } => {
                self.failed.insert(*token, *failed);
            }
            Fact::Started { at, attempt } => {
                let what = (attempt.job, attempt.step.to_string());
                let before = self.last.insert(what.clone(), (attempt.token, *at, seen.now));
                self.terms.entry(what.clone()).or_default().insert(attempt.token.term);
                let terms = &self.terms[&what];
                let Some((token, worker, since)) = before else { return Ok(()) };
                let failed = self.failed.get(&token) == Some(&true);
                let deposed = self.slow && attempt.token.term != token.term;
                // Where phases have time-outs, its worker may have kept it for too long.
                if failed || deposed || self.timed {
                    return Ok(());
                }
                let of = |term: Term| seen.nodes.iter().position(|it| it.config.node == term.node);
                let coordinators: Vec<usize> = terms.iter().copied().filter_map(of).collect();
                let takes_part =
                    |it: usize| [worker, *at].contains(&it) || coordinators.contains(&it);
                let concerned = |(a, b): (usize, usize)| match terms.len() {
                    1 => takes_part(a) && takes_part(b),
                    // Others elect.
                    _ => takes_part(a) || takes_part(b),
                };
                let faults = self.faults.iter().filter(|(hit, _)| concerned(**hit));
                let changed =
                    whole(seen, attempt.job).filter_map(|job| self.changed.get(&job).copied());
                if !self.blames(since, faults.map(|(_, at)| *at).chain(changed)) {
                    return Err(format!("{what:?} ran again without a reason, after {token}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
