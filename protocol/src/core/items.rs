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

use bytes::Bytes;

use crate::{
    id::{JobId, MAX_ITEMS, NodeId, PipelineId, Token},
    io::{Outcome, Refusal},
    message::{Completion, Items},
    mutant::Mutant,
    pipeline::PhaseDef,
    record::{JobOptions, JobRecord, JobSpec, Parent, Progress, REAPED, Reaped},
    store::ReadError,
    trace::TraceParent,
    view::JobState,
};

use super::{Core, attempts::has_ended, commit::Held, compensate::Due, timer::Timer};

/// How many jobs are looked at before other work goes on.
const AT_ONCE: usize = 1000;

/// How many bytes of them.
const BYTES_AT_ONCE: usize = 4 << 20;

/// How soon it goes on.
pub(super) const PAUSE: Duration = Duration::from_millis(1);

/// How soon it is looked again for items that are not here.
pub(super) const AGAIN: Duration = Duration::from_secs(1);

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
        self.definition(pipeline, spec.revision)?.phases_of(spec)
    }

    /// The phases of a job that do something with items, and the phase that gives these.
    pub(super) fn phases_for_items(
        &self,
        pipeline: PipelineId,
        record: &JobRecord,
    ) -> Vec<(u16, u16)> {
        record.spec.as_ref().map_or_else(Vec::new, |spec| self.steps_for_items(pipeline, spec))
    }

    fn steps_for_items(&self, pipeline: PipelineId, spec: &JobSpec) -> Vec<(u16, u16)> {
        let phases = self.definition(pipeline, spec.revision).and_then(|it| it.phases_of(spec));
        let phases = phases.unwrap_or_default().iter().enumerate();
        phases.filter_map(|(step, phase)| Some((step as u16, phase.each.as_ref()?.of))).collect()
    }

    pub(super) fn record_of(&self, pipeline: PipelineId, job: JobId) -> Option<&JobRecord> {
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
        let running = Progress::Running { worker: from, token };
        if current != Some(&running) {
            // Whoever coordinates hears of the attempt, and has it cancelled if nobody waits for it.
            self.forget_if_settled(pipeline, job);
            return Ok(());
        }
        let lines = split_lines(&lines);
        let count = first.saturating_add(lines.len() as u32);
        match self.refusal(pipeline, self.memory_elsewhere(pipeline)) {
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
        let trace = record.trace();
        let phases = self.phases_of(pipeline, record).unwrap_or_default().iter().enumerate();
        let each = phases.filter_map(|(at, phase)| Some((at as u16, phase.each.as_ref()?)));
        let each = each.filter(|(_, each)| each.of == step);
        let each: Vec<(u16, u16)> = each.map(|(at, each)| (at, each.phases.len() as u16)).collect();
        let term = self.elected_term(pipeline);
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
                    compensates: None,
                    instructions: line.clone(),
                };
                self.make_item(pipeline, id, item, trace)?;
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
        let end = Completion { token, pipeline, job, step, outcome, items: 0, session: None };
        self.on_completed(worker, end)?;
        self.cancel_at(worker, token);
        Ok(())
    }

    fn make_item(
        &mut self,
        pipeline: PipelineId,
        id: JobId,
        item: JobSpec,
        trace: Option<TraceParent>,
    ) -> Result<(), ReadError> {
        if self.load_job(pipeline, id)? {
            // It came before, and the answer was lost.
            self.forget_if_settled(pipeline, id);
            return Ok(());
        }
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.jobs.get_or_default(id).record = JobRecord::new(item).traced(trace);
            self.touch_new(pipeline, id);
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

    /// What a job was is forgotten, or replaced: its unfinished items are looked at again.
    pub(super) fn doubt_parts(&mut self, pipeline: PipelineId, job: JobId, before: &JobSpec) {
        let spec = self.record_of(pipeline, job).and_then(|record| record.spec.as_ref());
        if spec.is_some_and(|spec| spec.revision == before.revision) {
            return;
        }
        if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
            reign.forgetting.remove(&job);
        }
        for (step, _) in self.steps_for_items(pipeline, before) {
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

    /// Jobs of a range, on disk and in memory, as far as they are read at once; and the last.
    pub(super) fn items_in(
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
        for (id, record) in &items {
            // What is unfinished is in memory: if it looks so on disk alone, a part of it cannot be
            // read, and others have it.
            let known = self.groups.get(&pipeline).is_some_and(|it| it.jobs.contains_key(id));
            if !known && !record.is_over() {
                self.read_record(pipeline, *id)?;
            }
        }
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

    /// Items that may have no use: their job has ended, was never heard of here, or an attempt of
    /// it has failed.
    pub(super) fn end_orphans(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
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

    /// Whether a job's turn has come, if it is made of an item or compensates another.
    pub(super) fn may_run(&self, pipeline: PipelineId, record: &JobRecord) -> bool {
        let due = |spec: &JobSpec| matches!(self.may_undo(pipeline, spec), Ok(Due::Now));
        if record.spec.as_deref().is_some_and(|spec| spec.compensates.is_some() && !due(spec)) {
            return false;
        }
        let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
        parent.is_none_or(|parent| matches!(self.turn_of(pipeline, parent), Turn::Now))
    }

    /// What a job that succeeded gave: the result of its last phase.
    pub(super) fn output_of(&self, pipeline: PipelineId, record: &JobRecord) -> Option<Bytes> {
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
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let reached = reign.and_then(|reign| reign.forgetting.get(&job).copied());
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
                        let group = self.groups.get_mut(&pipeline);
                        if let Some(reign) = group.and_then(|group| group.reign()) {
                            reign.forgetting.insert(job, item);
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
        if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
            reign.forgetting.remove(&job);
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

fn split_lines(lines: &Bytes) -> Vec<Bytes> {
    let parts = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    parts.map(|line| lines.slice_ref(line)).collect()
}
