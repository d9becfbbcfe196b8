//! Items: what a phase gives while it runs. Each becomes a job within its pipeline, and the phase
//! that they were given for is over when all of these are.
//!
//! ```text
//! worker ─Items─► coordinator: a job for each, durable ─ItemsAck─► worker, and so on ─Completed─►
//! phase that gave them: succeeded ─► its items' jobs run ─► all have ended ─► the phase for them
//! ```
//! The jobs' ids are made of the attempt and the item's number, so that sending items twice makes
//! nothing twice. They run only once the attempt that gave them counts; those of another attempt are
//! cancelled. How many have ended is counted in memory alone: whoever takes over counts anew.
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
    io::Outcome,
    message::{Completion, Gathered, Items},
    mutant::Mutant,
    pipeline::PhaseDef,
    record::{JobOptions, JobRecord, JobSpec, Parent, Progress, REAPED, Reaped, SPEC},
    store::ReadError,
    view::{ItemsView, JobState},
};

use super::{Core, commit::Held, timer::Timer};

/// How many jobs are looked at before other work goes on.
const AT_ONCE: usize = 1000;

/// How many bytes of them.
const BYTES_AT_ONCE: usize = 4 << 20;

/// How soon it goes on.
const PAUSE: Duration = Duration::from_millis(1);

/// How soon it is looked again for items that are not here.
const AGAIN: Duration = Duration::from_secs(1);

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
}

impl Fan {
    fn new(token: Token, total: u32, next: JobId) -> Self {
        let ended = vec![0; total.div_ceil(64) as usize];
        let (ended_count, failed, bytes, error) = (0, 0, 0, None);
        Self { token, total, ended, ended_count, failed, bytes, error, next: Some(next) }
    }

    /// Counts an end, once. Says whether that is news.
    fn note(&mut self, index: u32) -> bool {
        let Some(bits) = self.ended.get_mut(index as usize / 64) else { return false };
        let bit = 1 << (index % 64);
        if index >= self.total || *bits & bit != 0 {
            return false;
        }
        *bits |= bit;
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
        if !self.may_change(pipeline) || !self.load_job(pipeline, job)? {
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
        if let Some(error) = self.too_many(pipeline, count, lines.len()) {
            let outcome = Outcome::Failed { error, retry: false, after: None };
            self.on_completed(from, Completion { token, pipeline, job, step, outcome, items: 0 })?;
            self.cancel_at(from, token);
            return Ok(());
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

    /// Why an attempt may not give more items, if so.
    fn too_many(&self, pipeline: PipelineId, count: u32, more: usize) -> Option<String> {
        let limit = self.config.limits.waiting_jobs;
        let waiting = self.groups.get(&pipeline).map_or(0, |group| group.jobs.len()) + more;
        if count > MAX_ITEMS {
            return Some(format!("it gave more than {MAX_ITEMS} items"));
        }
        (waiting as u64 > limit).then(|| {
            format!(
                "with its items, {waiting} jobs of this pipeline would wait: at most {limit} may \
                 (limits.waiting_jobs)"
            )
        })
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
        match record.controls.get(&each.of).map(|control| &control.progress) {
            Some(Progress::Succeeded { token, .. }) if *token != parent.token => Turn::Never,
            Some(Progress::Succeeded { .. }) => {
                match super::dispatch::is_open(record, phases, parent.step.into()) {
                    true => Turn::Now,
                    false => Turn::Later,
                }
            }
            _ => Turn::Later,
        }
    }

    fn stop_item(&mut self, pipeline: PipelineId, job: JobId) {
        let note = "the job that it is a part of has ended, or went on without it";
        self.stop_job(pipeline, job, &Progress::Cancelled, note);
    }

    /// A job has ended: what is left of its items has no use.
    pub(super) fn stop_items(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(record) = self.record_of(pipeline, job) else { return };
        for (step, _) in self.phases_for_items(pipeline, record) {
            let Some(group) = self.groups.get(&pipeline) else { return };
            let items = group.jobs.range(JobId::of_items(pipeline, job, step));
            let of = |record: &JobRecord| {
                record.spec.as_ref().and_then(|it| Some(it.parent.as_ref()?.job == job))
            };
            let live = items.filter(|(_, entry)| !entry.record.is_over());
            let live = live.filter(|(_, entry)| of(&entry.record) == Some(true));
            let live: Vec<JobId> = live.map(|(id, _)| *id).collect();
            for item in live {
                self.stop_item(pipeline, item);
            }
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
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        let mut open = reign.fans.iter().filter_map(|(of, fan)| Some((*of, fan.next?)));
        let Some(((job, step), from)) = open.next() else { return Ok(()) };
        let more = open.next().is_some();
        let to = *JobId::of_items(pipeline, job, step).end();
        let (on_disk, last) = self.jobs_on_disk(pipeline, from..=to, AT_ONCE, BYTES_AT_ONCE)?;
        let mut items: BTreeMap<JobId, JobRecord> = on_disk.into_iter().collect();
        // What came just now may not be on disk yet.
        let in_memory = self.groups.get(&pipeline).into_iter();
        let in_memory = in_memory.flat_map(|group| group.jobs.range(from..=last));
        items.extend(in_memory.map(|(id, entry)| (*id, entry.record.clone())));
        for (id, record) in &items {
            let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
            if parent.is_some_and(|parent| (parent.job, parent.step) == (job, step)) {
                self.look_at_item(pipeline, *id, job, record)?;
            }
        }
        let group = self.groups.get_mut(&pipeline);
        let fan = group.and_then(|group| group.reign()?.fans.get_mut(&(job, step)));
        let goes_on = last < to;
        if let Some(fan) = fan {
            fan.next = goes_on.then(|| last.next());
        }
        if goes_on || more {
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        if !goes_on && self.lacks_items(pipeline, job, step) {
            if self.is_known_by_all(pipeline) {
                // They are lost with the disks that had them.
                self.retry_job(pipeline, job, true, 0);
                return Ok(());
            }
            let group = self.groups.get_mut(&pipeline);
            let fan = group.and_then(|group| group.reign()?.fans.get_mut(&(job, step)));
            fan.into_iter().for_each(|fan| {
                fan.next = Some(*JobId::of_items(pipeline, job, step).start());
            });
            self.arm(AGAIN, Timer::Items(pipeline));
        }
        self.conclude_items(pipeline, job, step);
        Ok(())
    }

    /// Whether some items are neither under way here nor have ended.
    fn lacks_items(&self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let Some(group) = self.groups.get(&pipeline) else { return false };
        let super::group::Role::Coordinator(reign) = &group.role else { return false };
        let Some(fan) = reign.fans.get(&(job, step)) else { return false };
        let id = |index| JobId::of_item(pipeline, job, step, fan.token, index);
        let items = group.jobs.range(id(0)..=id(MAX_ITEMS - 1));
        let live = items.filter(|(_, entry)| !entry.record.is_over()).count();
        fan.ended_count as usize + live < fan.total as usize
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

    /// Items whose job is not in memory: it has ended, or was never heard of here.
    fn end_orphans(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        let orphans: Vec<JobId> = reign.orphans.iter().take(AT_ONCE).copied().collect();
        reign.orphans.retain(|orphan| !orphans.contains(orphan));
        if !reign.orphans.is_empty() {
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        let mut unknown = Vec::new();
        for orphan in orphans {
            let spec = self.record_of(pipeline, orphan).and_then(|record| record.spec.clone());
            let Some(parent) = spec.and_then(|spec| spec.parent.clone()) else { continue };
            let known = self.load_job(pipeline, parent.job)?;
            if known && !matches!(self.turn_of(pipeline, &parent), Turn::Unknown) {
                self.refresh(pipeline, orphan);
            } else if self.is_known_by_all(pipeline) {
                self.stop_item(pipeline, orphan);
            } else {
                unknown.push(orphan);
            }
            self.forget_if_settled(pipeline, parent.job);
        }
        if !unknown.is_empty() {
            let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
            reign.into_iter().for_each(|reign| reign.orphans.extend(unknown.iter().copied()));
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
            control.items = total - failed;
        });
        self.refresh(pipeline, job);
    }

    /// What the items of a job's phases gave, for the phase behind them; none while not all of these
    /// are here: they may have ended at another coordinator, and still be on their way.
    pub(super) fn gather(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Result<Option<Vec<Gathered>>, ReadError> {
        let mut all = Vec::new();
        let Some(record) = self.record_of(pipeline, job) else { return Ok(None) };
        let Some(phases) = self.phases_of(pipeline, record) else { return Ok(None) };
        let Some(phase) = phases.get(usize::from(step)) else { return Ok(None) };
        for &before in &phase.after {
            let phase = &phases[usize::from(before)];
            let Some(each) = &phase.each else { continue };
            let control = record.controls.get(&before);
            let results = match control.map(|control| (&control.progress, control.items)) {
                Some((Progress::Succeeded { token, .. }, count)) => {
                    self.gather_of(pipeline, (job, before), *token, count)?
                }
                _ => None,
            };
            let Some(results) = results else { return Ok(None) };
            let (name, combine) = (phase.name.clone(), each.combine);
            all.push(Gathered { name, combine, results });
        }
        Ok(Some(all))
    }

    fn gather_of(
        &self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        token: Token,
        count: u32,
    ) -> Result<Option<Bytes>, ReadError> {
        let mut results = BytesMut::from(&b"["[..]);
        let id = |index| JobId::of_item(pipeline, job, step, token, index);
        let (mut from, to, mut found) = (id(0), id(MAX_ITEMS - 1), 0);
        while found < count {
            let (items, last) = self.jobs_on_disk(pipeline, from..=to, AT_ONCE, BYTES_AT_ONCE)?;
            for (item, on_disk) in &items {
                let record = self.record_of(pipeline, *item).unwrap_or(on_disk);
                let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
                let its = parent.is_some_and(|parent| (parent.job, parent.token) == (job, token));
                if its && let Some(output) = self.output_of(pipeline, record) {
                    found += 1;
                    if results.len() > 1 {
                        results.put_u8(b',');
                    }
                    results.extend_from_slice(&output);
                }
            }
            if last >= to {
                break;
            }
            from = last.next();
        }
        results.put_u8(b']');
        let all = found >= count || self.has(Mutant::ReduceEarly);
        Ok(all.then(|| results.freeze()))
    }

    /// A phase cannot begin, since not all that items gave before it is here. If nobody has it, the
    /// job begins anew.
    pub(super) fn wait_for_items(&mut self, pipeline: PipelineId, job: JobId, step: u16) {
        if self.is_known_by_all(pipeline) {
            self.retry_job(pipeline, job, true, 0);
        } else {
            self.look_again(pipeline, job, step, AGAIN);
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

    /// Forgets the items of a job, before it is forgotten itself: at most so many. Says whether
    /// none is left.
    pub(super) fn forget_items(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
        budget: &mut usize,
    ) -> Result<bool, ReadError> {
        for (step, _) in self.phases_for_items(pipeline, record) {
            let (mut from, to) = JobId::of_items(pipeline, job, step).into_inner();
            loop {
                let (items, last) =
                    self.jobs_on_disk(pipeline, from..=to, AT_ONCE, BYTES_AT_ONCE)?;
                for (item, on_disk) in items {
                    let record = self.record_of(pipeline, item).cloned().unwrap_or(on_disk);
                    let spec = record.spec.as_ref();
                    let parent = spec.and_then(|spec| spec.parent.as_ref());
                    if parent.is_none_or(|parent| parent.job != job) {
                        continue;
                    }
                    if *budget == 0 || !self.forget_items(pipeline, item, &record, budget)? {
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
