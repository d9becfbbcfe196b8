//! Counts how far the items of a phase are, and ends the phase when all have ended.
//!
//! It is counted in memory, from what is on disk: a thousand items at a time, each phase in its turn.

use bytes::Bytes;

use crate::{
    id::{JobId, MAX_ITEMS, PipelineId, Token},
    mutant::Mutant,
    record::{JobRecord, Progress},
    store::ReadError,
    time::Timestamp,
    view::{ItemsView, JobState},
};

use super::{
    Core,
    attempts::MAX_LOST_ATTEMPTS,
    group::Role,
    items::{AGAIN, PAUSE},
    timer::Timer,
};

/// How far the items of one phase of a job are.
#[derive(Clone, Debug)]
pub(super) struct Fan {
    /// The attempt that gave them.
    token: Token,
    /// How many it gave.
    total: u32,
    /// Which of them have ended, one bit each.
    ended: Vec<u64>,
    ended_count: u32,
    failed: u32,
    /// What they gave, in bytes.
    bytes: usize,
    /// The first that failed, and why.
    error: Option<String>,
    /// Where counting goes on; none once all were looked at.
    next: Option<JobId>,
    /// When.
    not_before: Timestamp,
}

impl Fan {
    fn new(token: Token, total: u32, next: JobId) -> Self {
        let ended = vec![0; total.div_ceil(64) as usize];
        Self {
            token,
            total,
            ended,
            ended_count: 0,
            failed: 0,
            bytes: 0,
            error: None,
            next: Some(next),
            not_before: Timestamp::default(),
        }
    }

    fn has(&self, index: u32) -> bool {
        let bits = self.ended.get(index as usize / 64);
        bits.is_some_and(|bits| bits & (1 << (index % 64)) != 0)
    }

    /// Counts an end, once. Says whether that is news.
    fn note(&mut self, index: u32) -> bool {
        if index >= self.total || self.has(index) {
            return false;
        }
        self.ended[index as usize / 64] |= 1 << (index % 64);
        self.ended_count += 1;
        true
    }
}

impl Core {
    /// A phase for items may begin: theirs are looked at, and counted as they end.
    pub(super) fn tend_items(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let Some(record) = self.record_of(pipeline, job) else { return };
        let Some(phases) = self.phases_of(pipeline, record) else { return };
        let each = phases.get(usize::from(step)).and_then(|phase| phase.each.as_ref());
        let giver = each.and_then(|each| record.controls.get(&each.of));
        let Some(giver) = giver else { return };
        let Progress::Succeeded { token, .. } = giver.progress else { return };
        // A record may come from a peer that lies.
        let total = giver.items.min(MAX_ITEMS);
        let begun = record.controls.get(&step).is_some_and(|it| it.progress == Progress::Items);
        if !begun {
            let wall_ms = self.wall_ms();
            self.update_control(pipeline, job, step, |control| {
                control.progress = Progress::Items;
                control.since_ms = wall_ms;
            });
        }
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return };
        if reign.fans.get(&(job, step)).is_none_or(|fan| fan.token != token || !begun) {
            let first = *JobId::of_items(pipeline, job, step).start();
            reign.fans.insert((job, step), Fan::new(token, total, first));
            self.arm(PAUSE, Timer::Items(pipeline));
        }
    }

    /// Goes on to look at items.
    pub(super) fn on_items_timer(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        self.end_orphans(pipeline)?;
        self.collect_more(pipeline)?;
        let now = self.now;
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        let open =
            || reign.fans.iter().filter_map(|(of, fan)| Some((*of, fan.next?, fan.not_before)));
        // Each in turn: one that waits for what others have holds up none.
        let due = || open().filter(|(.., not_before)| *not_before <= now);
        let behind = due().find(|(of, ..)| Some(*of) > reign.last_fan);
        let next = behind.or_else(|| due().next());
        let soonest = open().map(|(.., not_before)| not_before).min();
        if let Some(soonest) = soonest {
            self.arm_at(soonest.max(now + PAUSE), Timer::Items(pipeline));
        }
        match next {
            Some((of, from, _)) => self.look_at_items(pipeline, of, from),
            None => Ok(()),
        }
    }

    /// Looks at some items of one phase.
    fn look_at_items(
        &mut self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        from: JobId,
    ) -> Result<(), ReadError> {
        let to = *JobId::of_items(pipeline, job, step).end();
        let (items, last) = self.items_in(pipeline, from, to)?;
        for (id, record) in &items {
            let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
            if parent.is_some_and(|parent| (parent.job, parent.step) == (job, step)) {
                self.look_at_item(pipeline, *id, job, record)?;
            }
        }
        let again = self.now + AGAIN;
        let lacks = last >= to && self.lacks_items(pipeline, job, step);
        if lacks && self.is_known_by_all(pipeline) {
            self.begin_anew(pipeline, job, step);
            return Ok(());
        }
        let group = self.groups.get_mut(&pipeline);
        let Some(reign) = group.and_then(|group| group.reign()) else { return Ok(()) };
        reign.last_fan = Some((job, step));
        if let Some(fan) = reign.fans.get_mut(&(job, step)) {
            fan.next = (last < to).then(|| last.next());
            if lacks {
                fan.next = Some(*JobId::of_items(pipeline, job, step).start());
                fan.not_before = again;
                self.arm_at(again, Timer::Items(pipeline));
            }
        }
        self.conclude_items(pipeline, job, step);
        Ok(())
    }

    /// Whether some items are neither under way here nor were seen to end.
    fn lacks_items(&self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let Some(group) = self.groups.get(&pipeline) else { return false };
        let Role::Coordinator(reign) = &group.role else { return false };
        let Some(fan) = reign.fans.get(&(job, step)) else { return false };
        let control = self.control(pipeline, job, step);
        if control.is_none_or(|control| control.progress != Progress::Items) {
            return false;
        }
        let id = |index| JobId::of_item(pipeline, job, step, fan.token, index);
        let items = group.jobs.range(id(0)..=id(MAX_ITEMS - 1));
        let open = items.filter(|(_, entry)| {
            let parent = entry.record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
            parent.is_some_and(|parent| parent.token == fan.token && !fan.has(parent.index))
        });
        (fan.ended_count as usize) + open.count() < fan.total as usize
    }

    /// Some items are lost, with the disks that had them: the job begins anew, unless that has been
    /// so too often.
    pub(super) fn begin_anew(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let record = self.record_of(pipeline, job);
        let generation = record.map_or(0, JobRecord::generation);
        if generation < MAX_LOST_ATTEMPTS {
            self.retry_job(pipeline, job, true, 0);
        } else {
            let note = "some of its items are lost with the disks that had them".to_owned();
            self.end_by_rule(pipeline, job, step, Progress::Dead, note);
        }
    }

    fn look_at_item(
        &mut self,
        pipeline: PipelineId,
        item: JobId,
        parent: JobId,
        record: &JobRecord,
    ) -> Result<(), ReadError> {
        let generation = self.record_of(pipeline, parent).map_or(0, JobRecord::generation);
        let failed = matches!(record.state(), JobState::Dead | JobState::Cancelled);
        if failed && record.generation() < generation && self.may_run(pipeline, record) {
            // The job is tried again, and so is what failed of it.
            self.load_job(pipeline, item)?;
            self.retry_job(pipeline, item, false, generation);
        } else if record.is_over() {
            self.note_item_end(pipeline, record);
        } else {
            self.refresh(pipeline, item);
        }
        Ok(())
    }

    /// The job of an item has ended.
    pub(super) fn note_item_end(&mut self, pipeline: PipelineId, record: &JobRecord) {
        let Some(parent) = record.spec.as_ref().and_then(|spec| spec.parent.as_ref()) else {
            return;
        };
        let (of, index, token) = ((parent.job, parent.step), parent.index, parent.token);
        let bytes = self.output_of(pipeline, record).map_or(0, |output| output.len() + 1);
        let state = record.state();
        let group = self.groups.get_mut(&pipeline);
        let fan = group.and_then(|group| group.reign()?.fans.get_mut(&of));
        let Some(fan) = fan.filter(|fan| fan.token == token) else { return };
        if !fan.note(index) {
            return;
        }
        if state == JobState::Succeeded {
            fan.bytes += bytes;
        } else {
            fan.failed += 1;
            fan.error.get_or_insert_with(|| format!("item {index}: {}", why(record)));
        }
        self.conclude_items(pipeline, of.0, of.1);
    }

    /// Ends a phase for items if all have ended, or too many have failed.
    fn conclude_items(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let early = self.has(Mutant::ReduceEarly);
        let limit = self.config.limits.job_results_bytes;
        let Some(record) = self.record_of(pipeline, job) else { return };
        let phases = self.phases_of(pipeline, record).unwrap_or_default();
        let each = phases.get(usize::from(step)).and_then(|phase| phase.each.as_ref());
        let Some(tolerated) = each.map(|each| u64::from(each.tolerate_percent)) else { return };
        let left = each.and_then(|each| super::session::left_by(record, each.of));
        let waits = record.controls.get(&step).is_some_and(|it| it.progress == Progress::Items);
        let group = self.groups.get_mut(&pipeline);
        let Some(reign) = group.and_then(|group| group.reign()) else { return };
        let Some(fan) = reign.fans.get(&(job, step)) else { return };
        let (failed, total, token) = (fan.failed, fan.total, fan.token);
        let too_many = u64::from(failed) * 100 > tolerated * u64::from(total);
        let all = fan.next.is_none() && (fan.ended_count == total || early);
        let note = if too_many {
            let error = fan.error.as_deref().unwrap_or_default();
            Some(format!("{failed} of {total} items failed; the first that did was {error}"))
        } else if fan.bytes > limit {
            Some(format!(
                "the results of its items have more than {limit} bytes together \
                 (limits.job_results_bytes)"
            ))
        } else if all {
            None
        } else {
            return;
        };
        reign.fans.remove(&(job, step));
        if !waits {
            return;
        }
        if note.is_none() && left.as_ref().is_none_or(|(of, _)| *of != token) {
            // Meanwhile another attempt has come to count: its items do.
            return self.tend_items(pipeline, job, step);
        }
        let session = left.and_then(|(_, session)| session);
        // Whose items they were goes with it, and what that attempt left: beyond a partition those of
        // another attempt may count.
        self.update_control(pipeline, job, step, |control| {
            control.progress = match note {
                Some(_) => Progress::Dead,
                None => Progress::Succeeded { token, result: Bytes::from_static(b"{}") },
            };
            control.session = session.filter(|_| note.is_none());
            control.note = note;
            (control.items, control.lost_count) = (total, failed);
        });
        self.refresh(pipeline, job);
    }

    /// How far the items of a job's phase are, as far as this node counts them.
    pub(super) fn items_view(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Option<ItemsView> {
        let group = self.groups.get(&pipeline)?;
        let Role::Coordinator(reign) = &group.role else { return None };
        let fan = reign.fans.get(&(job, step))?;
        Some(ItemsView { total: fan.total, ended: fan.ended_count, failed: fan.failed })
    }
}

/// Why a job did not succeed, in short.
fn why(record: &JobRecord) -> String {
    let note = record.controls.values().find_map(|control| control.note.clone());
    let errors = record.controls.values().filter_map(|control| control.attempts.last());
    let error = || errors.filter_map(|attempt| attempt.error.clone()).next_back();
    let mut why = note.or_else(error).unwrap_or_else(|| record.state().to_string());
    why.truncate(why.floor_char_boundary(500));
    why
}
