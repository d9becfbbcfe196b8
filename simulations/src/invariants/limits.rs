//! LIMITS: within one coordinator's term no more attempts of a limited phase begin in a time, or are
//! there at once for one key, than the pipeline says.

use std::{collections::BTreeMap, time::Duration};

use carbonmesh_protocol::{
    id::{JobId, Term, Token},
    io::Attempt,
    message::Message,
    time::Timestamp,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

/// After a fault, a coordinator may have given up attempts that go on.
const AFTERMATH: Duration = Duration::from_secs(45);

pub(super) struct Limits {
    rate: Option<(usize, Duration)>,
    keyed: bool,
    /// By term and sequence: when each attempt was given out, by its coordinator's clock.
    begun: BTreeMap<Term, BTreeMap<u64, u64>>,
    /// By attempt: where it runs, for which job, under which key.
    running: BTreeMap<Token, (usize, JobId, String)>,
    last_fault: Option<Timestamp>,
    aftermath: Duration,
}

impl Limits {
    pub(super) fn new(options: &Options) -> Self {
        // A clock that is set says nothing of how long it took.
        let rate = options.rate().filter(|_| options.jump_every_ms == 0);
        let rate = rate.map(|rate| (rate.count as usize, rate.per));
        Self {
            rate,
            keyed: options.keyed,
            begun: BTreeMap::new(),
            running: BTreeMap::new(),
            last_fault: None,
            aftermath: options.aftermath(AFTERMATH),
        }
    }

    /// An attempt was given away: when it was decided is what counts, which its record says.
    fn begins(&mut self, seen: &Seen<'_>, at: usize, job: JobId, token: Token) -> Verdict {
        let Some((count, per)) = self.rate else { return Ok(()) };
        let core = seen.nodes[at].core.as_ref();
        let record = core.and_then(|core| core.record(seen.pipeline, job).ok().flatten());
        let control = record.as_ref().and_then(|record| record.controls.get(&0));
        let attempt = control.and_then(|it| it.attempts.iter().find(|it| it.token == token));
        let Some(attempt) = attempt else { return Ok(()) };
        let begun = self.begun.entry(token.term).or_default();
        begun.insert(token.sequence, attempt.started_ms);
        let times: Vec<u64> = begun.values().copied().collect();
        for times in times.windows(count + 1) {
            let took = Duration::from_millis(times[count].saturating_sub(times[0]));
            if took < per {
                let term = token.term;
                return Err(format!("{term:?}: {} attempts of s0 began in {took:?}", count + 1));
            }
        }
        Ok(())
    }

    fn runs(&mut self, now: Timestamp, at: usize, attempt: &Attempt) -> Verdict {
        let (token, job) = (attempt.token, attempt.job);
        let key = String::from_utf8_lossy(&attempt.instructions).into_owned();
        let calm = self.last_fault.is_none_or(|at| now.since(at) > self.aftermath);
        let same = |(other, (_, _, of)): &(&Token, &(usize, JobId, String))| {
            other.term == token.term && *of == key
        };
        let beside = self.running.iter().find(same).map(|(_, (_, other, _))| *other);
        self.running.insert(token, (at, job, key));
        match beside {
            Some(other) if calm => Err(format!("{job} runs beside {other}, which has its key")),
            _ => Ok(()),
        }
    }
}

impl Invariant for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if fact.is_fault() {
            self.last_fault = Some(seen.now);
        }
        match fact {
            Fact::Sent { at, message: Message::Assign(assignment), .. }
                if assignment.step_name.as_str() == "s0" =>
            {
                return self.begins(seen, *at, assignment.job, assignment.token);
            }
            Fact::Started { at, attempt } if attempt.step.as_str() == "s0" => {
                if attempt.token.term.node == seen.nodes[*at].config.node {
                    self.begins(seen, *at, attempt.job, attempt.token)?;
                }
                if self.keyed && attempt.instructions.starts_with(b"{\"k\"") {
                    return self.runs(seen.now, *at, attempt);
                }
            }
            Fact::Crashed { at } => self.running.retain(|_, (of, ..)| of != at),
            Fact::Ended { token, .. } => drop(self.running.remove(token)),
            _ => {}
        }
        Ok(())
    }
}
