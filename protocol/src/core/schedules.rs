//! The coordinator enqueues what its pipeline's schedules name.
//!
//! Each run is a job whose key is made of the schedule and the moment, so a run is one job whoever
//! enqueues it, and how often; a coordinator that takes over looks back for what its predecessor
//! left, and finds by the key what was done. It looks back no further than marks of forgotten jobs
//! are kept, since beyond that nobody can tell. A run that is left out, since one before is not finished,
//! is a job that was cancelled, so that this is decided once.

use std::time::Duration;

use crate::{
    catalog::CatalogEntry,
    id::{JobId, PipelineId},
    io::NewJob,
    mutant::Mutant,
    record::{JobOptions, JobRecord, JobSpec, Progress, SPEC},
    schedule::{Missed, Overlap, Schedule, Times},
    store::ReadError,
};

use super::{
    Core,
    group::{Role, Scheduled},
    steps::millis,
    timer::Timer,
};

/// A run that is no later than this was not missed: a coordinator was being elected, say.
const ON_TIME: Duration = Duration::from_secs(300);

/// The most missed runs that are made good.
const MOST_MISSED: usize = 100;

/// How many runs before one are looked at for any that is unfinished.
const LOOK_BACK: usize = 20;

/// How long a run may take to be on disk before it is enqueued again.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why a run was cancelled before it began.
const LEFT_OUT: &str = "left out, as the schedule says (overlap): a run before it was not finished";

/// The longest wait before the clock is looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Core {
    /// Enqueues what is due. Called each beat, and when a run is due.
    pub(super) fn run_schedules(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let entry = self.catalog.get(&pipeline).filter(|entry| !entry.removed);
        let definition = entry.and_then(CatalogEntry::definition);
        let schedules = definition.map(|definition| definition.schedules.clone());
        for schedule in schedules.unwrap_or_default() {
            // What cannot be read came from a peer that lies: nothing is run for it.
            if self.is_due(pipeline, &schedule)
                && let Ok(times) = schedule.times()
            {
                self.run_schedule(pipeline, &schedule, &times)?;
            }
        }
        Ok(())
    }

    /// Whether a schedule has to be looked at.
    fn is_due(&self, pipeline: PipelineId, schedule: &Schedule) -> bool {
        let Some(Role::Coordinator(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return false;
        };
        let now_ms = self.wall_ms();
        let due = |it: &Scheduled| it.next_ms <= now_ms || !is_current(it, schedule, now_ms);
        reign.scheduled.get(&schedule.name).is_none_or(due) && self.may_act(pipeline)
    }

    fn run_schedule(
        &mut self,
        pipeline: PipelineId,
        schedule: &Schedule,
        times: &Times,
    ) -> Result<(), ReadError> {
        let (now, now_ms) = (self.now, self.wall_ms());
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        let known = reign.scheduled.get(&schedule.name);
        let known = known.filter(|it| is_current(it, schedule, now_ms));
        let due = known.map(|it| (due_behind(times, it.behind_ms, now_ms), it.behind_ms));
        // Whatever is late and was not asked for was missed: nobody was there, or clocks were set.
        let (asked, on_time) = (&reign.asked, now_ms.saturating_sub(millis(ON_TIME)));
        let in_time = |at: u64| at >= on_time || asked.contains_key(&schedule.job(pipeline, at));
        let due = due.filter(|(due, _)| due.first().is_none_or(|at| in_time(*at)));
        let (due, mut behind_ms) = match due {
            Some(due) => due,
            None => (self.due_at_first(schedule, times, now_ms), now_ms),
        };
        let mut waits = false;
        for at_ms in due {
            let job = schedule.job(pipeline, at_ms);
            let mut done = self.has_job(pipeline, job)?;
            // One that is on its way is decided.
            if !done
                && !self.was_asked(pipeline, job)
                && self.is_left_out(pipeline, schedule, times, at_ms)?
            {
                self.leave_out_run(pipeline, schedule, at_ms);
                done = true;
            }
            if !done {
                if !waits {
                    behind_ms = behind_ms.min(at_ms - 1);
                }
                waits = true;
                let asked = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
                let Some(asked) = asked.map(|reign| &mut reign.asked) else { return Ok(()) };
                if asked.get(&job).is_none_or(|at| *at + PATIENCE <= now) {
                    asked.insert(job, now);
                    self.enqueue_run(pipeline, schedule, at_ms)?;
                }
            } else if !waits {
                behind_ms = behind_ms.max(at_ms);
            }
        }
        let next_ms = times.after(now_ms).unwrap_or(u64::MAX);
        let wait = Duration::from_millis(next_ms.saturating_sub(now_ms)).min(LONGEST_WAIT);
        if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
            let (since_ms, next_ms) = (schedule.since_ms, if waits { now_ms } else { next_ms });
            let scheduled = Scheduled { since_ms, behind_ms, next_ms };
            reign.scheduled.insert(schedule.name.clone(), scheduled);
            if !waits {
                reign.asked.clear();
            }
        }
        self.arm(wait, Timer::Schedule(pipeline));
        Ok(())
    }

    /// What a coordinator that begins has to see to: runs that are on time, and of those that were
    /// missed what the schedule says.
    fn due_at_first(&self, schedule: &Schedule, times: &Times, now_ms: u64) -> Vec<u64> {
        if self.has(Mutant::RunsMissed) {
            return Vec::new();
        }
        let known = self.config.timing.tombstones;
        let earliest = |ago: Duration| now_ms.saturating_sub(millis(ago));
        let from_ms = schedule.since_ms.max(earliest(known));
        let before = |at: &u64| times.until(at.checked_sub(1)?);
        let back = std::iter::successors(times.until(now_ms), before);
        let back = back.take_while(|at| *at > from_ms).take(MOST_MISSED);
        let on_time = earliest(ON_TIME);
        let mut due: Vec<u64> = back
            .enumerate()
            .take_while(|(nth, at)| match schedule.missed {
                _ if *at >= on_time => true,
                Missed::Skip => false,
                Missed::Last => *nth == 0,
                Missed::All => true,
            })
            .map(|(_, at)| at)
            .collect();
        due.reverse();
        due
    }

    /// Whether a run is left out, since one before is not finished.
    fn is_left_out(
        &self,
        pipeline: PipelineId,
        schedule: &Schedule,
        times: &Times,
        at_ms: u64,
    ) -> Result<bool, ReadError> {
        if schedule.overlap != Overlap::Skip {
            return Ok(false);
        }
        let before = |at: &u64| times.until(at.checked_sub(1)?);
        for at in std::iter::successors(before(&at_ms), before).take(LOOK_BACK) {
            let job = schedule.job(pipeline, at);
            let group = self.groups.get(&pipeline);
            let unfinished = match self.record_of(pipeline, job) {
                Some(record) => !record.is_over(),
                None if group.is_some_and(|group| group.jobs.is_resting(&job)) => true,
                // It may be on its way, or long over.
                None => self.was_asked(pipeline, job) && !self.has_job(pipeline, job)?,
            };
            if unfinished {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether this coordinator has enqueued a run already, as far as it knows.
    fn was_asked(&self, pipeline: PipelineId, job: JobId) -> bool {
        match self.groups.get(&pipeline).map(|group| &group.role) {
            Some(Role::Coordinator(reign)) => reign.asked.contains_key(&job),
            _ => false,
        }
    }

    /// Leaves a run out. That is written down as a job that was cancelled: whoever coordinates next does
    /// not decide it anew, though what it would have run beside may have ended meanwhile.
    fn leave_out_run(&mut self, pipeline: PipelineId, schedule: &Schedule, at_ms: u64) {
        let Some(entry) = self.catalog.get(&pipeline) else { return };
        let phases = entry.definition().map_or(0, |definition| definition.phases.len());
        let term = self.elected_term(pipeline);
        let spec = JobSpec {
            generation: 0,
            revision: entry.current,
            phases: phases as u16,
            created_ms: self.wall_ms(),
            term: term.filter(|_| self.takes_by_coordinator(pipeline)),
            options: JobOptions::default(),
            key: Some(schedule.key(at_ms)),
            parent: None,
            compensates: None,
            instructions: schedule.instructions.clone(),
        };
        let job = schedule.job(pipeline, at_ms);
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.jobs.get_or_default(job).record = JobRecord::new(spec);
            self.touch(pipeline, job, SPEC, true);
        }
        self.stop_job(pipeline, job, &Progress::Cancelled, LEFT_OUT);
    }

    fn enqueue_run(
        &mut self,
        pipeline: PipelineId,
        schedule: &Schedule,
        at_ms: u64,
    ) -> Result<(), ReadError> {
        let job = NewJob {
            key: Some(schedule.key(at_ms)),
            options: JobOptions::default(),
            trace: None,
            instructions: schedule.instructions.clone(),
        };
        self.enqueue_for(None, pipeline, vec![job])
    }
}

/// Whether what is known of a schedule still holds: it was not changed since, nor the clock set back.
fn is_current(known: &Scheduled, schedule: &Schedule, now_ms: u64) -> bool {
    known.since_ms == schedule.since_ms && known.behind_ms <= now_ms
}

/// The runs behind a moment, up to now.
fn due_behind(times: &Times, behind_ms: u64, now_ms: u64) -> Vec<u64> {
    let next = |at: &u64| times.after(*at);
    let due = std::iter::successors(times.after(behind_ms), next);
    due.take_while(|at| *at <= now_ms).take(MOST_MISSED).collect()
}
