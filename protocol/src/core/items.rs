//! Items: what a phase gives while it runs. Each becomes a job within its pipeline, and the phase
//! that they were given for is over when all of these are.
//!
//! ```text
//! worker ─Items─► coordinator: a job for each, durable ─ItemsAck─► worker, and so on ─Completed─►
//! phase that gave them: succeeded ─► its items' jobs run ─► all have ended ─► the phase for them
//! ```
//! The jobs' ids are made of the attempt and the item's number, so that sending items twice makes
//! nothing twice. They run only once the attempt that gave them counts; those of another attempt are
//! cancelled. How many have ended is counted in memory alone: whoever takes over counts anew. All
//! that goes over many items does so a thousand at a time.
//!
//! Invariants: no item's job runs before the attempt that gave it succeeded; a phase for items ends
//! well only when each of its items' jobs has ended, and no more failed than it tolerates.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    id::{JobId, MAX_ITEMS, NodeId, PipelineId, Token},
    io::{Outcome, Refusal},
    message::{Completion, Gathered, Items},
    mutant::Mutant,
    pipeline::PhaseDef,
    record::{JobOptions, JobRecord, JobSpec, Parent, Progress, REAPED, Reaped, SPEC},
    store::ReadError,
    time::Timestamp,
    view::{ItemsView, JobState},
};

use super::{
    Core,
    commit::Held,
    reign::{MAX_LOST_ATTEMPTS, has_ended},
    timer::Timer,
};

/// How many jobs are looked at before other work goes on.
const AT_ONCE: usize = 1000;

/// How many bytes of them.
const BYTES_AT_ONCE: usize = 4 << 20;

/// How soon it goes on.
const PAUSE: Duration = Duration::from_millis(1);

/// How soon it is looked again for items that are not here.
const AGAIN: Duration = Duration::from_secs(1);

/// For how many phases results are read, or wait for a worker, at once: they may be large.
const COLLECTED_AT_ONCE: usize = 4;

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

/// What items gave, as far as it was read.
#[derive(Clone, Debug)]
pub(super) struct Collecting {
    /// What is complete, of those phases that come before this one.
    done: Vec<Gathered>,
    /// The phase whose items come next.
    step: u16,
    /// Where reading goes on.
    next: Option<JobId>,
    results: BytesMut,
    found: u32,
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

/// Whether the job of an item may run.
enum Turn {
    Now,
    /// Its attempt may still come to count.
    Later,
    /// The job that it is a part of is not in memory, or went on with what came of it elsewhere.
    Unknown,
    Never,
}

impl Core {
    /// The phases that a job goes through.
    pub(super) fn phases_of(
        &self,
        pipeline: PipelineId,
        record: &JobRecord,
    ) -> Option<&[PhaseDef]> {
        let spec = record.spec.as_ref()?;
        self.definition(pipeline, spec.revision)?.body(spec.path())
    }

    /// The phases of a job that do something with items, and the phase that gives these.
    fn phases_for_items(&self, pipeline: PipelineId, record: &JobRecord) -> Vec<(u16, u16)> {
        let phases = self.phases_of(pipeline, record).unwrap_or_default().iter().enumerate();
        phases.filter_map(|(step, phase)| Some((step as u16, phase.each.as_ref()?.of))).collect()
    }

    fn record_of(&self, pipeline: PipelineId, job: JobId) -> Option<&JobRecord> {
        Some(&self.groups.get(&pipeline)?.jobs.get(&job)?.record)
    }

    /// An attempt gives items.
    pub(super) fn on_items(&mut self, from: NodeId, items: Items) -> Result<(), ReadError> {
        let Items { token, pipeline, job, step, first, lines } = items;
        if !self.may_change(pipeline) {
            return Ok(());
        }
        if !self.load_job(pipeline, job)? {
            if self.is_known_by_all(pipeline) {
                // Nobody has the job any more.
                self.cancel_at(from, token);
            }
            return Ok(());
        }
        let current = self.control(pipeline, job, step).map(|control| &control.progress);
        if !matches!(current, Some(Progress::Running { token: now, .. }) if *now == token) {
            // Whoever coordinates hears of the attempt, and has it cancelled if nobody waits for it.
            self.forget_if_settled(pipeline, job);
            return Ok(());
        }
        let lines = split_lines(&lines);
        let count = first.saturating_add(lines.len() as u32);
        match self.refusal(pipeline) {
            // Its worker asks again.
            Some(Refusal::StorageFull(_)) => return Ok(()),
            Some(refusal) => {
                return self.refuse_items(from, (pipeline, job, step), token, refusal.to_string());
            }
            None if count > MAX_ITEMS => {
                let error = format!("it gave more than {MAX_ITEMS} items");
                return self.refuse_items(from, (pipeline, job, step), token, error);
            }
            None => {}
        }
        let Some(record) = self.record_of(pipeline, job) else { return Ok(()) };
        let Some(spec) = record.spec.clone() else { return Ok(()) };
        let phases = self.phases_of(pipeline, record).unwrap_or_default().iter().enumerate();
        let each = phases.filter_map(|(at, phase)| Some((at as u16, phase.each.as_ref()?)));
        let each = each.filter(|(_, each)| each.of == step);
        let each: Vec<(u16, u16)> = each.map(|(at, each)| (at, each.phases.len() as u16)).collect();
        let term = self.groups.get(&pipeline).and_then(|group| group.elected_term());
        let term = term.filter(|_| self.takes_by_coordinator(pipeline));
        let created_ms = self.wall_ms();
        for (index, line) in (first..).zip(lines) {
            for (step, phases) in &each {
                let id = JobId::of_item(pipeline, job, *step, token, index);
                let path = [spec.path(), &[*step]].concat();
                let item = JobSpec {
                    generation: 0,
                    revision: spec.revision,
                    phases: *phases,
                    created_ms,
                    term,
                    options: JobOptions { priority: spec.options.priority, ..Default::default() },
                    key: None,
                    parent: Some(Box::new(Parent { job, step: *step, token, index, path })),
                    instructions: line.clone(),
                };
                self.make_item(pipeline, id, item)?;
            }
        }
        self.hold_until_durable(pipeline, Held::ItemsTaken { worker: from, token, count });
        Ok(())
    }

    /// An attempt may give no more items: it has failed.
    fn refuse_items(
        &mut self,
        worker: NodeId,
        (pipeline, job, step): (PipelineId, JobId, u16),
        token: Token,
        error: String,
    ) -> Result<(), ReadError> {
        let outcome = Outcome::Failed { error, retry: true, after: None };
        let end = Completion { token, pipeline, job, step, outcome, items: 0 };
        self.on_completed(worker, end)?;
        self.cancel_at(worker, token);
        Ok(())
    }

    fn make_item(
        &mut self,
        pipeline: PipelineId,
        id: JobId,
        item: JobSpec,
    ) -> Result<(), ReadError> {
        if self.load_job(pipeline, id)? {
            // It came before, and the answer was lost.
            self.forget_if_settled(pipeline, id);
            return Ok(());
        }
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.jobs.entry(id).or_default().record = JobRecord::new(item);
            self.touch(pipeline, id, SPEC, true);
        }
        Ok(())
    }

    /// Whether all items that an attempt gave are here.
    pub(super) fn has_items(
        &self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        token: Token,
        count: u32,
    ) -> bool {
        let Some(last) = count.checked_sub(1) else { return true };
        let Some(record) = self.record_of(pipeline, job) else { return false };
        let of = |at| {
            let id = |index| JobId::of_item(pipeline, job, at, token, index);
            id(0)..=id(last)
        };
        let group = self.groups.get(&pipeline);
        let here = |at| group.map_or(0, |group| group.jobs.range(of(at)).count()) == count as usize;
        let each = self.phases_for_items(pipeline, record);
        each.into_iter().filter(|(_, of)| *of == step).all(|(at, _)| here(at))
    }

    /// Whether a job may run now: one that is made of an item waits for its turn. One whose turn
    /// never comes is ended.
    pub(super) fn is_its_turn(&mut self, pipeline: PipelineId, job: JobId) -> bool {
        let record = self.record_of(pipeline, job);
        let parent = record.and_then(|record| record.spec.as_ref()?.parent.clone());
        let Some(parent) = parent else { return true };
        match self.turn_of(pipeline, &parent) {
            Turn::Now => return true,
            Turn::Later => {}
            Turn::Unknown => {
                let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
                if let Some(reign) = reign
                    && reign.orphans.insert(job)
                {
                    self.arm(PAUSE, Timer::Items(pipeline));
                }
            }
            Turn::Never => self.stop_item(pipeline, job),
        }
        false
    }

    fn turn_of(&self, pipeline: PipelineId, parent: &Parent) -> Turn {
        let Some(record) = self.record_of(pipeline, parent.job) else { return Turn::Unknown };
        if record.is_reaped() {
            return Turn::Never;
        }
        let Some(phases) = self.phases_of(pipeline, record) else { return Turn::Later };
        let each = phases.get(usize::from(parent.step)).and_then(|phase| phase.each.as_ref());
        let Some(each) = each else { return Turn::Never };
        match record.controls.get(&parent.step).map(|control| &control.progress) {
            // It has ended elsewhere: that is on its way, or lost.
            Some(Progress::Succeeded { token, .. }) if *token == parent.token => {
                return Turn::Unknown;
            }
            Some(Progress::Succeeded { .. } | Progress::Dead | Progress::Cancelled) => {
                return Turn::Never;
            }
            _ if record.is_over() => return Turn::Never,
            _ => {}
        }
        if self.has(Mutant::ItemsEarly) {
            return Turn::Now;
        }
        let Some(giver) = record.controls.get(&each.of) else { return Turn::Later };
        match giver.progress {
            Progress::Succeeded { token, .. } if token != parent.token => Turn::Never,
            Progress::Succeeded { .. } => {
                match super::dispatch::is_open(record, phases, parent.step.into()) {
                    true => Turn::Now,
                    false => Turn::Later,
                }
            }
            _ if has_ended(giver, parent.token) => Turn::Never,
            _ => Turn::Later,
        }
    }

    fn stop_item(&mut self, pipeline: PipelineId, job: JobId) {
        let note = "the job that it is a part of has ended, or went on without it";
        self.stop_job(pipeline, job, &Progress::Cancelled, note);
    }

    /// A job has ended: what is left of its items has no use.
    pub(super) fn end_items(&mut self, pipeline: PipelineId, job: JobId) {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        if let Some(reign) = reign {
            let all = (job, 0)..=(job, u16::MAX);
            let fans: Vec<_> = reign.fans.range(all.clone()).map(|(of, _)| *of).collect();
            fans.iter().for_each(|of| drop(reign.fans.remove(of)));
            reign.collecting.retain(|of, _| !all.contains(of));
            reign.collected.retain(|of, _| !all.contains(of));
        }
        let Some(record) = self.record_of(pipeline, job) else { return };
        for (step, _) in self.phases_for_items(pipeline, record) {
            self.doubt(pipeline, job, step);
        }
    }

    /// An attempt has failed: the items that it gave have no use.
    pub(super) fn doubt_items(&mut self, pipeline: PipelineId, job: JobId, giver: u16) {
        let Some(record) = self.record_of(pipeline, job) else { return };
        let each = self.phases_for_items(pipeline, record);
        for (step, _) in each.into_iter().filter(|(_, of)| *of == giver) {
            self.doubt(pipeline, job, step);
        }
    }

    /// The unfinished items of a phase are looked at again, some at a time.
    fn doubt(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let items = group.jobs.range(JobId::of_items(pipeline, job, step));
        let live = items.filter(|(_, entry)| !entry.record.is_over());
        let live: Vec<JobId> = live.map(|(id, _)| *id).collect();
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        if let Some(reign) = reign.filter(|_| !live.is_empty()) {
            reign.orphans.extend(live);
            self.arm(PAUSE, Timer::Items(pipeline));
        }
    }

    /// A phase for items may begin: theirs are looked at, and counted as they end.
    pub(super) fn tend_items(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        let Some(record) = self.record_of(pipeline, job) else { return };
        let Some(phases) = self.phases_of(pipeline, record) else { return };
        let each = phases.get(usize::from(step)).and_then(|phase| phase.each.as_ref());
        let giver = each.and_then(|each| record.controls.get(&each.of));
        let Some(giver) = giver else { return };
        let Progress::Succeeded { token, .. } = giver.progress else { return };
        let total = giver.items;
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
            return self.begin_anew(pipeline, job, step);
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

    /// Jobs of a range, on disk and in memory, as far as they are read at once; and the last.
    fn items_in(
        &self,
        pipeline: PipelineId,
        from: JobId,
        to: JobId,
    ) -> Result<(BTreeMap<JobId, JobRecord>, JobId), ReadError> {
        let (on_disk, last) = self.jobs_on_disk(pipeline, from..=to, AT_ONCE, BYTES_AT_ONCE)?;
        let mut items: BTreeMap<JobId, JobRecord> = on_disk.into_iter().collect();
        // What came just now may not be on disk yet.
        let in_memory = self.groups.get(&pipeline).into_iter();
        let mut in_memory = in_memory.flat_map(|group| group.jobs.range(from..=last)).peekable();
        let mut last = last;
        for count in 1.. {
            let Some((id, entry)) = in_memory.next() else { break };
            items.insert(*id, entry.record.clone());
            if count == AT_ONCE && in_memory.peek().is_some() {
                last = *id;
                items.retain(|id, _| *id <= last);
                break;
            }
        }
        Ok((items, last))
    }

    /// Whether some items are neither under way here nor were seen to end.
    fn lacks_items(&self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let Some(group) = self.groups.get(&pipeline) else { return false };
        let super::group::Role::Coordinator(reign) = &group.role else { return false };
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
    fn begin_anew(&mut self, pipeline: PipelineId, job: JobId, step: u16) -> Result<(), ReadError> {
        let record = self.record_of(pipeline, job);
        let generation = record.map_or(0, JobRecord::generation);
        if generation < MAX_LOST_ATTEMPTS {
            self.retry_job(pipeline, job, true, 0);
        } else {
            let note = "some of its items are lost with the disks that had them".to_owned();
            self.end_by_rule(pipeline, job, step, Progress::Dead, note);
        }
        Ok(())
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

    /// Items that may have no use: their job has ended, was never heard of here, or an attempt of
    /// it has failed.
    fn end_orphans(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let now = self.now;
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        if reign.unsure.1 <= now {
            reign.orphans.append(&mut reign.unsure.0);
        }
        let mut orphans = Vec::new();
        while orphans.len() < AT_ONCE
            && let Some(orphan) = reign.orphans.pop_first()
        {
            orphans.push(orphan);
        }
        if !reign.orphans.is_empty() {
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        let mut unsure = BTreeSet::new();
        for orphan in orphans {
            let spec = self.record_of(pipeline, orphan).and_then(|record| record.spec.clone());
            let Some(parent) = spec.and_then(|spec| spec.parent.clone()) else { continue };
            let known = self.load_job(pipeline, parent.job)?;
            if known && !matches!(self.turn_of(pipeline, &parent), Turn::Unknown) {
                self.refresh(pipeline, orphan);
            } else if self.is_known_by_all(pipeline) {
                self.stop_item(pipeline, orphan);
            } else {
                unsure.insert(orphan);
            }
            self.forget_if_settled(pipeline, parent.job);
        }
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        if let Some(reign) = reign.filter(|_| !unsure.is_empty()) {
            reign.unsure.0.append(&mut unsure);
            reign.unsure.1 = now + AGAIN;
            self.arm(AGAIN, Timer::Items(pipeline));
        }
        Ok(())
    }

    /// Whether all that anybody has is here.
    pub(super) fn is_known_by_all(&self, pipeline: PipelineId) -> bool {
        let settled = self.groups.get(&pipeline).is_some_and(|group| self.is_settled(group));
        settled && self.has_heard_all()
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
        // Whose items they were goes with it: beyond a partition those of another attempt may count.
        self.update_control(pipeline, job, step, |control| {
            control.progress = match note {
                Some(_) => Progress::Dead,
                None => Progress::Succeeded { token, result: Bytes::from_static(b"{}") },
            };
            control.note = note;
            (control.items, control.lost_count) = (total, failed);
        });
        self.refresh(pipeline, job);
    }

    /// Whether all that items gave to a phase was read; begins to, if not.
    pub(super) fn is_collected(&mut self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let Some(record) = self.record_of(pipeline, job) else { return true };
        let phases = self.phases_of(pipeline, record).unwrap_or_default();
        let Some(first) = first_for_items(phases, step, 0) else { return true };
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return true };
        if reign.collected.contains_key(&(job, step)) {
            return true;
        }
        if reign.collecting.contains_key(&(job, step)) {
            return false;
        }
        let (waiting, under_way) = (reign.collected.len(), reign.collecting.len());
        if waiting + under_way >= COLLECTED_AT_ONCE {
            self.drop_stale_results(pipeline);
            self.look_again(pipeline, job, step, AGAIN / 4);
            return false;
        }
        let (done, next, results, found) = (Vec::new(), None, BytesMut::new(), 0);
        let collecting = Collecting { done, step: first, next, results, found };
        reign.collecting.insert((job, step), collecting);
        self.arm(PAUSE, Timer::Items(pipeline));
        false
    }

    /// What was read for phases that have gone on without it has no use.
    fn drop_stale_results(&mut self, pipeline: PipelineId) {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let of: Vec<(JobId, u16)> =
            reign.into_iter().flat_map(|it| it.collected.keys()).copied().collect();
        for (job, step) in of {
            if !self.is_ready(pipeline, job, step) {
                self.take_collected(pipeline, job, step);
            }
        }
    }

    /// What was read for a phase; it is given away now.
    pub(super) fn take_collected(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Vec<Gathered> {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        reign.and_then(|reign| reign.collected.remove(&(job, step))).unwrap_or_default()
    }

    /// Reads on what items gave, for one phase that waits for it.
    fn collect_more(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        let Some((of, mut collecting)) = reign.collecting.pop_first() else { return Ok(()) };
        if !reign.collecting.is_empty() {
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        let (job, step) = of;
        if !self.is_ready(pipeline, job, step) {
            return Ok(());
        }
        let Some((token, total, failed)) = self.gathered_by(pipeline, job, collecting.step) else {
            return Ok(());
        };
        let id = |index| JobId::of_item(pipeline, job, collecting.step, token, index);
        let to = id(total.saturating_sub(1));
        let from = collecting.next.unwrap_or_else(|| id(0));
        let (items, last) = match total {
            0 => (BTreeMap::new(), to),
            _ => self.items_in(pipeline, from, to)?,
        };
        for record in items.values() {
            let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
            let its = parent.is_some_and(|parent| (parent.job, parent.token) == (job, token));
            if let Some(output) = self.output_of(pipeline, record).filter(|_| its) {
                collecting.found += 1;
                let between = if collecting.results.is_empty() { b'[' } else { b',' };
                collecting.results.put_u8(between);
                collecting.results.extend_from_slice(&output);
            }
        }
        collecting.next = Some(last.next());
        let limit = self.config.limits.job_results_bytes;
        let so_far: usize = collecting.done.iter().map(|it| it.results.len()).sum();
        if so_far + collecting.results.len() + self.result_bytes(pipeline, job) > limit {
            let note = format!(
                "what the phases and items before it gave has more than {limit} bytes together \
                 (limits.job_results_bytes)"
            );
            self.end_by_rule(pipeline, job, step, Progress::Dead, note);
            return Ok(());
        }
        if last >= to {
            if collecting.found < total - failed && !self.has(Mutant::ReduceEarly) {
                return self.wait_for_items(pipeline, job, step, collecting.step);
            }
            self.end_of_items(pipeline, job, step, &mut collecting);
        }
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        if collecting.step == u16::MAX {
            reign.collected.insert(of, collecting.done);
            self.refresh(pipeline, job);
        } else {
            reign.collecting.insert(of, collecting);
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        Ok(())
    }

    /// All that the items of one phase gave is read: those of the next come, if there is one.
    fn end_of_items(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        collecting: &mut Collecting,
    ) {
        let record = self.record_of(pipeline, job);
        let phases = record.and_then(|record| self.phases_of(pipeline, record)).unwrap_or_default();
        let mut results = std::mem::take(&mut collecting.results);
        results.extend_from_slice(if results.is_empty() { b"[]" } else { b"]" });
        let phase = phases.get(usize::from(collecting.step));
        if let Some((phase, each)) = phase.and_then(|it| Some((it, it.each.as_ref()?))) {
            let (name, combine) = (phase.name.clone(), each.combine);
            collecting.done.push(Gathered { name, combine, results: results.freeze() });
        }
        let next = first_for_items(phases, step, collecting.step + 1);
        (collecting.step, collecting.next) = (next.unwrap_or(u16::MAX), None);
        collecting.found = 0;
    }

    /// Whose items a phase was for, how many there were, and how many of them failed.
    fn gathered_by(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Option<(Token, u32, u32)> {
        let control = self.control(pipeline, job, step)?;
        match control.progress {
            Progress::Succeeded { token, .. } => Some((token, control.items, control.lost_count)),
            _ => None,
        }
    }

    /// A phase cannot begin, since not all that items gave before it is here. If nobody has it, the
    /// job begins anew.
    fn wait_for_items(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        lacking: u16,
    ) -> Result<(), ReadError> {
        if self.is_known_by_all(pipeline) {
            self.begin_anew(pipeline, job, lacking)
        } else {
            self.look_again(pipeline, job, step, AGAIN);
            Ok(())
        }
    }

    /// Whether a job is made of an item whose turn has come, or of none.
    pub(super) fn may_run(&self, pipeline: PipelineId, record: &JobRecord) -> bool {
        let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
        parent.is_none_or(|parent| matches!(self.turn_of(pipeline, parent), Turn::Now))
    }

    /// What a job that succeeded gave: the result of its last phase.
    fn output_of(&self, pipeline: PipelineId, record: &JobRecord) -> Option<Bytes> {
        if record.state() != JobState::Succeeded {
            return None;
        }
        let last = self.phases_of(pipeline, record)?.len().checked_sub(1)?;
        match &record.controls.get(&(last as u16))?.progress {
            Progress::Succeeded { result, .. } => Some(result.clone()),
            _ => None,
        }
    }

    /// Forgets the items of a job, before it is forgotten itself: at most so many, and later goes on
    /// behind them. Says whether none is left.
    pub(super) fn forget_items(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
        budget: &mut usize,
    ) -> Result<bool, ReadError> {
        let reached = self.groups.get(&pipeline).and_then(|it| it.forgetting.get(&job)).copied();
        let reached = reached.unwrap_or(JobId::MIN);
        for (first, to) in self.ranges_of_items(pipeline, job, record) {
            let mut from = first.max(reached);
            while from <= to {
                let (items, last) = self.items_in(pipeline, from, to)?;
                for (item, record) in items {
                    let spec = record.spec.as_ref();
                    let parent = spec.and_then(|spec| spec.parent.as_ref());
                    if parent.is_none_or(|parent| parent.job != job) {
                        continue;
                    }
                    if *budget == 0 || !self.forget_items(pipeline, item, &record, budget)? {
                        if let Some(group) = self.groups.get_mut(&pipeline) {
                            group.forgetting.insert(job, item);
                        }
                        return Ok(false);
                    }
                    *budget -= 1;
                    self.forget_item(pipeline, item)?;
                }
                if last >= to {
                    break;
                }
                from = last.next();
            }
        }
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.forgetting.remove(&job);
        }
        Ok(true)
    }

    fn forget_item(&mut self, pipeline: PipelineId, item: JobId) -> Result<(), ReadError> {
        let at_ms = self.wall_ms();
        if self.load_job(pipeline, item)?
            && let Some(group) = self.groups.get_mut(&pipeline)
            && let Some(entry) = group.jobs.get_mut(&item)
        {
            entry.forget(Reaped { generation: entry.record.generation(), at_ms });
            self.touch(pipeline, item, REAPED, true);
        }
        if self.batch.is_large() {
            self.seal();
        }
        Ok(())
    }

    /// How far the items of a job's phase are, as far as this node counts them.
    pub(super) fn items_view(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Option<ItemsView> {
        let group = self.groups.get(&pipeline)?;
        let super::group::Role::Coordinator(reign) = &group.role else { return None };
        let fan = reign.fans.get(&(job, step))?;
        Some(ItemsView { total: fan.total, ended: fan.ended_count, failed: fan.failed })
    }

    /// The ids among which the items of a job lie.
    pub(super) fn ranges_of_items(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
    ) -> Vec<(JobId, JobId)> {
        let steps = self.phases_for_items(pipeline, record).into_iter();
        let range = |(step, _)| JobId::of_items(pipeline, job, step).into_inner();
        let ranges: BTreeSet<(JobId, JobId)> = steps.map(range).collect();
        ranges.into_iter().collect()
    }
}

/// The first phase, from a place on, for whose items' results a phase waits.
fn first_for_items(phases: &[PhaseDef], step: u16, from: u16) -> Option<u16> {
    let after = &phases.get(usize::from(step))?.after;
    let mut after = after.iter().copied().filter(|before| *before >= from);
    after.find(|before| phases.get(usize::from(*before)).is_some_and(|it| it.each.is_some()))
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

fn split_lines(lines: &Bytes) -> Vec<Bytes> {
    let parts = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    parts.map(|line| lines.slice_ref(line)).collect()
}
