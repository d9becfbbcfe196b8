//! Finished jobs are kept for as long as their pipeline says, then forgotten.
//!
//! ```text
//! ended ─retention─► a mark that it is gone (all replicas) ─horizon─► nothing
//! ```
//! The mark outranks whatever a copy that comes back still says of the job, up to the generation
//! that was forgotten; it also keeps the job's idempotency key taken. Its coordinator tells with each
//! beat up to which moment marks are dropped, so that all drop the same: the horizon.
//!
//! Who was away for longer than marks are kept cannot know what was forgotten meanwhile. Such a copy
//! lapses: it has no vote until it was compared anew, gives way where a key has got another job, and
//! what only it knows of is not run. So is what comes back from beyond a cut that lasted longer: both sides
//! may have had a coordinator that forgot. Cassandra calls that time `gc_grace_seconds`, and leaves it to
//! its operators.
//!
//! Invariants: only what has ended, on every replica that should keep it, is forgotten; a mark is
//! dropped only behind the horizon.

use std::{borrow::Cow, collections::BTreeSet, time::Duration};

use crate::{
    id::{JobId, NodeId, PipelineId},
    message::JobUpdate,
    mutant::Mutant,
    pipeline::{Keep, Retention},
    record::{Component, JobRecord, Progress, REAPED, Reaped, SPEC},
    store::{ReadError, Table, Write, component_key, ended_key, parse_ended_key},
};

use super::{
    Core,
    commit::Held,
    group::{End, Group, job_hash},
    timer::Timer,
};

/// How many jobs are forgotten at once: work goes first.
const AT_ONCE: usize = 500;

/// How soon it goes on where there is more.
const PAUSE: Duration = Duration::from_millis(20);

impl Core {
    /// Forgets what is due, unless that is under way. Called each beat.
    pub(super) fn tidy_if_idle(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let busy = self.groups.get(&pipeline).is_some_and(|group| group.tidying);
        if busy { Ok(()) } else { self.tidy(pipeline) }
    }

    /// Forgets what is due, and drops the marks of what was forgotten long ago.
    pub(super) fn tidy(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let mut more = self.reap(pipeline)?;
        more |= self.expire(pipeline)?;
        more |= self.check_compensations(pipeline)?;
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.tidying = more;
        }
        if more {
            self.arm(PAUSE, Timer::Tidy(pipeline));
        }
        Ok(())
    }

    pub(super) fn marks_kept_ms(&self) -> u64 {
        self.config.timing.tombstones.as_millis() as u64
    }

    /// The moment (ms since 1970) before which nothing is kept of what was forgotten; 0 for none.
    /// Whatever a clock that was wrong made of it, it is no later than this node's own allows.
    pub(super) fn horizon_ms(&self, pipeline: PipelineId) -> u64 {
        let horizon_ms = self.groups.get(&pipeline).map_or(0, |group| group.horizon_ms);
        horizon_ms.min(self.wall_ms().saturating_sub(self.marks_kept_ms()))
    }

    /// Moves the horizon. It is written down now and then: what is on disk may lag somewhat, and
    /// is brought in line before anything is dropped by it.
    pub(super) fn advance_horizon(&mut self, pipeline: PipelineId, to_ms: u64) {
        let kept = self.marks_kept_ms();
        let to_ms = to_ms.min(self.wall_ms().saturating_sub(kept));
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        group.horizon_ms = group.horizon_ms.max(to_ms);
        if group.horizon_ms >= group.promise.horizon_ms + kept / 16 {
            self.store_horizon(pipeline);
        }
    }

    fn store_horizon(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.promise.horizon_ms < group.horizon_ms {
            group.promise.horizon_ms = group.horizon_ms;
            self.write_promise(pipeline);
        }
    }

    /// This node has made the pipeline, or founded it anew: before that, nothing was forgotten that
    /// anybody knows of. In a strict group, whoever is admitted is in step as of now.
    pub(super) fn note_made(&mut self, pipeline: PipelineId) {
        self.advance_horizon(pipeline, u64::MAX);
        self.store_horizon(pipeline);
    }

    /// Whether this node may forget jobs of a pipeline: it coordinates, and every node that should
    /// keep a copy has heard of all ends.
    pub(super) fn may_reap(&self, pipeline: PipelineId) -> bool {
        let settled = self.groups.get(&pipeline).is_some_and(|group| self.is_settled(group));
        settled && self.may_act(pipeline)
    }

    /// Says whether there is more.
    fn reap(&mut self, pipeline: PipelineId) -> Result<bool, ReadError> {
        if !self.may_reap(pipeline) {
            return Ok(false);
        }
        self.advance_horizon(pipeline, u64::MAX);
        let now_ms = self.wall_ms();
        let retention = self.current(pipeline).map(|definition| definition.retention);
        let (Some(group), Some(retention)) = (self.groups.get(&pipeline), retention) else {
            return Ok(false);
        };
        let Retention { succeeded, dead, cancelled } = retention;
        let ends = [
            (End::Succeeded, succeeded, group.finished.succeeded),
            (End::Dead, dead, group.finished.dead),
            (End::Cancelled, cancelled, group.finished.cancelled),
        ];
        if self.has(Mutant::UnfinishedReaped) {
            let group = self.groups.get_mut(&pipeline);
            let live = group.and_then(|group| {
                let job = group.jobs.first()?;
                Some((job, group.jobs.get_mut(&job)?))
            });
            if let Some((job, entry)) = live {
                let generation = entry.record.generation();
                entry.forget(Reaped { generation, at_ms: now_ms });
                self.touch(pipeline, job, REAPED, true);
            }
        }
        let mut more = false;
        for (end, keep, count) in ends {
            let due = self.due(pipeline, end, keep, count)?;
            let full = due.len() == AT_ONCE;
            let (mut budget, mut forgot) = (2 * AT_ONCE, false);
            for job in due {
                forgot |= self.forget(pipeline, job, &mut budget)?;
                if budget == 0 {
                    break;
                }
            }
            // What cannot be forgotten yet has time until the next beat.
            more |= full && forgot || budget == 0;
        }
        Ok(more)
    }

    /// Jobs whose time is over, and those that are too many, the oldest first.
    fn due(
        &self,
        pipeline: PipelineId,
        end: End,
        keep: Keep,
        count: u64,
    ) -> Result<Vec<JobId>, ReadError> {
        let surplus = keep.count.map_or(0, |most| count.saturating_sub(most));
        let surplus = usize::try_from(surplus).unwrap_or(AT_ONCE).min(AT_ONCE);
        let age = keep.age.map(|age| age.as_millis() as u64);
        let before_ms = age.map_or(0, |age| self.wall_ms().saturating_sub(age));
        if surplus == 0 && before_ms == 0 {
            return Ok(Vec::new());
        }
        let ended = self.ended(pipeline, end, u64::MAX, AT_ONCE)?;
        let due = ended.into_iter().enumerate();
        let due = due.take_while(|(at, (ms, _))| *at < surplus || *ms < before_ms);
        Ok(due.map(|(_, (_, job))| job).collect())
    }

    /// Jobs that have ended in a way, and when; the oldest first. Those that are under way here are
    /// among them.
    fn ended(
        &self,
        pipeline: PipelineId,
        end: End,
        before_ms: u64,
        most: usize,
    ) -> Result<Vec<(u64, JobId)>, ReadError> {
        if self.groups.get(&pipeline).is_none_or(|group| group.dropping > 0) {
            return Ok(Vec::new());
        }
        let start = ended_key(pipeline, end as u8, 0, JobId::MIN);
        let stop = ended_key(pipeline, end as u8, before_ms, JobId::MIN);
        let rows = self.reader.scan(Table::Ended, &start, &stop, most)?;
        Ok(rows.iter().filter_map(|(key, _)| parse_ended_key(key)).collect())
    }

    /// Puts the mark in a finished job's place. Says whether that could be done: not while anything
    /// is under way with it, or more of its items are left than may be forgotten at once.
    pub(super) fn forget(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        budget: &mut usize,
    ) -> Result<bool, ReadError> {
        if self.groups.get(&pipeline).is_some_and(|group| group.jobs.contains_key(&job))
            || !self.load_job(pipeline, job)?
        {
            return Ok(false);
        }
        let at_ms = self.wall_ms();
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(false) };
        let Some(entry) = group.jobs.get_mut(&job) else { return Ok(false) };
        if entry.record.is_reaped() || !entry.record.state().is_terminal() {
            self.forget_if_settled(pipeline, job);
            return Ok(false);
        }
        let record = entry.record.clone();
        // What undoes it reads what there is to undo.
        if self.is_being_undone(pipeline, job)?.is_some()
            || !self.forget_items(pipeline, job, &record, budget)?
        {
            self.forget_if_settled(pipeline, job);
            return Ok(false);
        }
        // Its items may have made the batch so large that it was sealed.
        self.load_job(pipeline, job)?;
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(false) };
        let Some(entry) = group.jobs.get_mut(&job) else { return Ok(false) };
        entry.forget(Reaped { generation: entry.record.generation(), at_ms });
        self.touch(pipeline, job, REAPED, true);
        Ok(true)
    }

    /// Drops marks behind the horizon. Says whether there is more.
    fn expire(&mut self, pipeline: PipelineId) -> Result<bool, ReadError> {
        let Some(group) = self.groups.get(&pipeline) else { return Ok(false) };
        let horizon_ms = self.horizon_ms(pipeline);
        if group.finished.reaped == 0 || horizon_ms == 0 || !group.expiring.is_empty() {
            return Ok(false);
        }
        let horizon_ms = if self.has(Mutant::MarksDropped) { u64::MAX } else { horizon_ms };
        let old = self.ended(pipeline, End::Reaped, horizon_ms, AT_ONCE)?;
        let more = old.len() == AT_ONCE;
        let mut gone = BTreeSet::new();
        for (at_ms, job) in old {
            if self.groups.get(&pipeline).is_some_and(|group| group.jobs.contains_key(&job)) {
                continue;
            }
            let record = self.read_record(pipeline, job)?.filter(|record| record.is_reaped());
            let Some(record) = record else { continue };
            let Some(group) = self.groups.get_mut(&pipeline) else { continue };
            group.finished.remove(End::Reaped, record.digest() ^ job_hash(job));
            group.finished_dirty = true;
            gone.insert(job);
            for tag in record.tags() {
                let key = component_key(pipeline, job, tag);
                self.write(Write::Delete { table: Table::Jobs, key });
            }
            let key = ended_key(pipeline, End::Reaped as u8, at_ms, job);
            self.write(Write::Delete { table: Table::Ended, key });
        }
        if gone.is_empty() {
            return Ok(false);
        }
        self.journal.forget(&gone);
        self.store_horizon(pipeline);
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.expiring = gone;
        }
        self.hold_until_on_disk(Held::Expired(pipeline));
        Ok(more)
    }

    /// A coordinator says up to when marks are dropped. `continuous` if it was heard all the time: then
    /// this copy has not missed anything since it was in step, whatever became of the clocks. `in_step` if
    /// the coordinator has said since that it is complete: only then has it heard of all that was forgotten.
    pub(super) fn learn_horizon(
        &mut self,
        pipeline: PipelineId,
        horizon_ms: u64,
        (continuous, in_step): (bool, bool),
    ) {
        if !continuous {
            self.lapse_if_stale(pipeline, horizon_ms);
        }
        if in_step {
            return self.advance_horizon(pipeline, horizon_ms);
        }
        if self.is_admitted(pipeline) || self.is_strict(pipeline) {
            return;
        }
        // A copy that does not count yet becomes what its coordinator's is, and knows no more than that.
        let horizon_ms = horizon_ms.min(self.wall_ms().saturating_sub(self.marks_kept_ms()));
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.horizon_ms = horizon_ms;
            group.promise.horizon_ms = group.promise.horizon_ms.min(horizon_ms);
        }
    }

    /// Somebody who was in step later than this copy says up to when marks are dropped. Says whether
    /// this copy counts no more until it was compared anew.
    pub(super) fn lapse_if_stale(&mut self, pipeline: PipelineId, horizon_ms: u64) -> bool {
        let kept = self.marks_kept_ms();
        // A clock that is wrong, there or here, says nothing of this copy.
        let horizon_ms = horizon_ms.min(self.wall_ms().saturating_sub(kept));
        let Some(group) = self.groups.get_mut(&pipeline) else { return false };
        let known = group.horizon_ms > 0 && group.promise.admitted.is_some();
        let stale = known && horizon_ms > group.horizon_ms.saturating_add(kept);
        if !stale || self.is_strict(pipeline) || self.has(Mutant::StaleCounts) {
            return false;
        }
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.promise.admitted = None;
            // What was compared with it so far, as one that counts, counts for nothing.
            group.copy += 1;
            self.write_promise(pipeline);
        }
        true
    }

    /// Whether a node and this one heard nothing of each other for longer than marks are kept. Both sides
    /// may have coordinated meanwhile, and forgotten what the other still has, whatever their horizons say.
    pub(super) fn were_apart(&self, node: NodeId) -> bool {
        let kept = Duration::from_millis(self.marks_kept_ms());
        let member = self.members.get(&node).filter(|_| !self.has(Mutant::StaleCounts));
        member.is_some_and(|member| member.was_away > kept)
    }

    /// Whether a copy that was last in step when marks were dropped up to a moment has heard of all that
    /// was forgotten so long ago that no mark of it is left here.
    pub(super) fn is_current(&self, pipeline: PipelineId, horizon_ms: u64) -> bool {
        self.horizon_ms(pipeline) <= horizon_ms.saturating_add(self.marks_kept_ms())
            || self.has(Mutant::StaleCounts)
    }

    /// The moment (ms since 1970) before which whoever decides here keeps no marks: its coordinator says so, also
    /// while this copy is brought up to date.
    fn unmarked_ms(&self, pipeline: PipelineId) -> u64 {
        let beat = self.groups.get(&pipeline).and_then(|group| group.beat.as_ref());
        let told_ms = beat.map_or(0, |beat| beat.horizon_ms);
        let allowed_ms = self.wall_ms().saturating_sub(self.marks_kept_ms());
        self.horizon_ms(pipeline).max(told_ms.min(allowed_ms))
    }

    /// What still counts of what somebody holds of a job: not a mark that all others have dropped.
    /// None if that is all.
    pub(super) fn still_counting<'a>(
        &self,
        pipeline: PipelineId,
        update: &'a JobUpdate,
    ) -> Option<Cow<'a, JobUpdate>> {
        let mut marks = update.components.iter().filter(|component| component.tag == REAPED);
        if marks.clone().next().is_none() {
            return Some(Cow::Borrowed(update));
        }
        let horizon_ms = self.unmarked_ms(pipeline);
        let is_old = |mark: &Component| {
            let mut record = JobRecord::default();
            let _ = record.merge(mark);
            record.reaped.is_some_and(|reaped| reaped.at_ms < horizon_ms)
        };
        if !marks.any(is_old) {
            return Some(Cow::Borrowed(update));
        }
        let counts = |component: &&Component| component.tag != REAPED || !is_old(component);
        let components: Vec<Component> = update.components.iter().filter(counts).cloned().collect();
        (!components.is_empty()).then(|| Cow::Owned(JobUpdate { job: update.job, components }))
    }

    /// Whether no more is known here of a job than a mark that all others have dropped.
    pub(super) fn is_as_good_as_unknown(&self, pipeline: PipelineId, record: &JobRecord) -> bool {
        let mark = record.reaped.filter(|_| record.is_reaped());
        mark.is_some_and(|mark| mark.at_ms < self.unmarked_ms(pipeline))
    }

    /// Drops what is held of a job where that is of one that was forgotten long ago, and the key has
    /// got another since.
    pub(super) fn make_way(&mut self, pipeline: PipelineId, update: &JobUpdate) {
        if !update.components.iter().any(|component| component.tag == SPEC) {
            return;
        }
        let horizon_ms = self.unmarked_ms(pipeline);
        let group = self.groups.get(&pipeline);
        let Some(entry) = group.and_then(|group| group.jobs.get(&update.job)) else { return };
        if horizon_ms == 0 {
            return;
        }
        let gone = self.is_as_good_as_unknown(pipeline, &entry.record);
        if !gone && self.is_admitted(pipeline) {
            return;
        }
        let theirs = enqueued_as(update);
        // What this node decides by stays, unless all copies are so old that none counts.
        let recent = theirs.spec.as_ref().is_some_and(|spec| spec.created_ms >= horizon_ms);
        let founds = recent && !self.is_strict(pipeline);
        let decides = group.is_some_and(|group| group.elected_term().is_some());
        let times = (horizon_ms, self.marks_kept_ms());
        let another = (!decides || founds) && is_outlived_by(&entry.record, &theirs, times);
        if (gone || another)
            && let Some(entry) =
                self.groups.get_mut(&pipeline).and_then(|group| group.jobs.get_mut(&update.job))
        {
            entry.clear();
            self.journal.forget_all();
        }
    }

    /// Whether a copy that was away for too long brings back a job that was forgotten meanwhile, though its key
    /// has got another since: whoever decides takes nothing of that one.
    pub(super) fn is_outlived(
        &self,
        pipeline: PipelineId,
        update: &JobUpdate,
    ) -> Result<bool, ReadError> {
        let horizon_ms = self.horizon_ms(pipeline);
        let theirs = enqueued_as(update);
        let old = theirs.spec.as_ref().is_some_and(|spec| spec.created_ms < horizon_ms);
        if !old || self.elected_term(pipeline).is_none() {
            return Ok(false);
        }
        let times = (horizon_ms, self.marks_kept_ms());
        Ok(match self.record_of(pipeline, update.job) {
            Some(mine) => is_outlived_by(&theirs, mine, times),
            None => {
                let mine = self.read_record(pipeline, update.job)?;
                mine.is_some_and(|mine| is_outlived_by(&theirs, &mine, times))
            }
        })
    }

    /// Whether this copy's word of a job counts for less than that of the coordinator that compares
    /// with it.
    pub(super) fn yields(&self, pipeline: PipelineId, to: NodeId, update: &JobUpdate) -> bool {
        let horizon_ms = self.horizon_ms(pipeline);
        let founds = |group: &Group| {
            let term = group.founded.filter(|term| *term == group.promise.highest);
            term.is_some_and(|term| term.node == to)
        };
        let founds = self.groups.get(&pipeline).is_some_and(founds);
        if founds || horizon_ms == 0 || self.is_admitted(pipeline) || self.is_strict(pipeline) {
            return false;
        }
        enqueued_as(update).spec.is_some_and(|spec| spec.created_ms < horizon_ms)
    }

    /// Does not run a job that somebody brought back, if it may have ended and been forgotten so
    /// long ago that even the mark is gone: an operator decides.
    pub(super) fn set_aside_if_old(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let Some(entry) = group.jobs.get(&job).filter(|entry| !entry.record.is_over()) else {
            return;
        };
        let created_ms = entry.record.spec.as_ref().map(|spec| spec.created_ms);
        if created_ms.is_none_or(|created_ms| created_ms >= self.horizon_ms(pipeline)) {
            return;
        }
        let note = "a node that was away for long brought it back: it may have ended and been \
                    forgotten meanwhile; `job retry` runs it";
        self.stop_job(pipeline, job, &Progress::Cancelled, note);
    }
}

/// What an update says of what was enqueued.
fn enqueued_as(update: &JobUpdate) -> JobRecord {
    let mut record = JobRecord::default();
    for component in update.components.iter().filter(|it| it.tag == SPEC) {
        // What cannot be read counts as missing there.
        let _ = record.merge(component);
    }
    record
}

/// Whether the first may have been forgotten before the second was enqueued: that is, it was enqueued before
/// the horizon, and longer before the second than what is made on both sides of a cut lies apart.
fn is_outlived_by(
    first: &JobRecord,
    second: &JobRecord,
    (horizon_ms, kept_ms): (u64, u64),
) -> bool {
    let created_ms = |record: &JobRecord| record.spec.as_ref().map(|spec| spec.created_ms);
    let (Some(first), Some(second)) = (created_ms(first), created_ms(second)) else { return false };
    // A mark is kept for the whole time; half of it leaves room for clocks that differ.
    first < horizon_ms && second >= first.saturating_add(kept_ms / 2)
}
