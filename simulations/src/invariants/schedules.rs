//! SCHEDULES: every run that a schedule names while it is in force is a job, whoever coordinates; its
//! key makes it one.

use carbonmesh_protocol::{
    id::{JobId, NodeId, Term},
    time::Timestamp,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::{Options, world::WALL_START_MS};

/// How far clocks may be apart, with all that a run may be late when it is taken off.
const SLACK_MS: u64 = 30_000;

/// How often the worlds' schedule has a run.
const EVERY_MS: u64 = 5000;

/// How long a coordinator needs to see to what its predecessors left.
const BEGINS_MS: u64 = 5000;

pub(super) struct Schedules {
    /// Whether there is one, and no disk is lost with what it held.
    checked: bool,
    applied: Option<Timestamp>,
    lost_disk: bool,
    faults_ms: u64,
    /// A node that coordinates, in which term, and since when.
    reign: Option<(NodeId, Term, Timestamp)>,
    /// From when until when somebody coordinated, for long enough to see to what came before.
    led: Vec<(u64, u64)>,
}

impl Schedules {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            checked: options.cron && !options.expires() && !options.has_long_absences(),
            applied: None,
            lost_disk: false,
            faults_ms: options.faults_ms,
            reign: None,
            led: Vec::new(),
        }
    }
}

impl Invariant for Schedules {
    fn name(&self) -> &'static str {
        "schedules"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Applied => self.applied = Some(seen.now),
            Fact::DiskReplaced { .. } | Fact::Damaged { .. } => self.lost_disk = true,
            _ => {}
        }
        Ok(())
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        if !self.checked || seen.now.as_millis() > self.faults_ms {
            return Ok(());
        }
        let mut reigns = seen
            .groups()
            .filter_map(|(node, group)| Some((node.config.node, group.coordinates?)))
            .collect::<Vec<_>>();
        let known = self.reign.filter(|(node, term, _)| reigns.contains(&(*node, *term)));
        self.reign = known.or_else(|| reigns.pop().map(|(node, term)| (node, term, seen.now)));
        let Some((_, _, since)) = self.reign else { return Ok(()) };
        let (from, until) = (since.as_millis(), seen.now.as_millis().saturating_sub(BEGINS_MS));
        match self.led.last_mut() {
            Some((last, known)) if *last == from => *known = until,
            _ if until >= from => self.led.push((from, until)),
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        let Some(applied) = self.applied.filter(|_| self.checked && !self.lost_disk) else {
            return Ok(());
        };
        let first = WALL_START_MS + applied.as_millis() + 2 * EVERY_MS;
        let last = WALL_START_MS + self.faults_ms.saturating_sub(SLACK_MS);
        // Of the runs that come while nobody coordinates, the last alone is made good.
        let is_due = |at_ms: u64| {
            let at = at_ms - WALL_START_MS;
            at_ms.is_multiple_of(EVERY_MS)
                && self
                    .led
                    .iter()
                    .any(|(from, until)| from.saturating_sub(EVERY_MS) < at && at <= *until)
        };
        for at_ms in (first..last).filter(|at_ms| is_due(*at_ms)) {
            let schedule = crate::world::schedule();
            let job: JobId = schedule.job(seen.pipeline, at_ms);
            if !(0..seen.nodes.len()).any(|at| seen.has_on_disk(at, job)) {
                return Err(format!("there is no run {}", schedule.key(at_ms)));
            }
        }
        Ok(())
    }
}
