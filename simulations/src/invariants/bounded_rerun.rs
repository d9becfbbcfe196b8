//! BOUNDED-RERUN: without a fault each phase runs once; else every further run comes after the one
//! before has failed, or after something went wrong since that began.

use std::{collections::BTreeMap, time::Duration};

use carbonmesh_protocol::{
    id::{JobId, Token},
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
    last: BTreeMap<(JobId, String), (Token, Timestamp)>,
    failed: BTreeMap<Token, bool>,
    last_fault: Option<Timestamp>,
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
            failed: BTreeMap::new(),
            last_fault: None,
            aftermath: options.aftermath(AFTERMATH),
            timed: options.timed,
            slow: options.slow_links_per_mille > 0 && 2 * SLOWEST * options.delay_ms >= LEASE_MS,
        }
    }

    /// Whether something that went wrong may still have its consequences.
    fn blames_fault(&self, since: Timestamp) -> bool {
        // A connection that is cut is given up seconds later, and leases run out after that.
        !self.faultless && self.last_fault.is_some_and(|fault| fault + self.aftermath >= since)
    }
}

impl Invariant for BoundedRerun {
    fn name(&self) -> &'static str {
        "bounded-rerun"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if fact.is_fault() {
            self.last_fault = Some(seen.now);
        }
        match fact {
            Fact::Ended { token, failed } => {
                self.failed.insert(*token, *failed);
            }
            Fact::Started { attempt, .. } => {
                let what = (attempt.job, attempt.step.to_string());
                let before = self.last.insert(what.clone(), (attempt.token, seen.now));
                let Some((token, since)) = before else { return Ok(()) };
                let failed = self.failed.get(&token) == Some(&true);
                let deposed = self.slow && attempt.token.term != token.term;
                // Where phases have time-outs, its worker may have kept it for too long.
                if !failed && !self.timed && !deposed && !self.blames_fault(since) {
                    return Err(format!("{what:?} ran again without a reason, after {token}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
