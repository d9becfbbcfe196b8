//! The replica's side: keeps job records on disk, joins what it is sent, and says when it is synced.
//!
//! Unfinished jobs are in memory too, for as long as there is room (`table`); finished ones are read
//! from disk when somebody asks.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;

use crate::{
    codec,
    id::{JobId, NodeId, PipelineId, Term},
    io::{Effect, Refusal},
    journal::Content,
    message::{JobUpdate, Message, Replicate, StoreResult},
    mutant::Mutant,
    pipeline::{MAX_PHASES, Revision},
    record::{Component, FIRST_CONTROL, JobRecord, JobSpec, PAYLOADS, REAPED, SPEC},
    store::{ReadError, Reader, Table, component_key, job_key, parse_key},
};

use super::{
    Core,
    catalog::meta_key,
    commit::{FINISHED, Held, PROMISE},
    group::{Group, Role, job_hash},
    strict::VIEW,
};

/// The most components that one update of a job may have.
const MAX_COMPONENTS: usize = 2 * MAX_PHASES;

/// How many rows of [`Table::Live`] are read at once.
const ROWS: usize = 10_000;

/// How many components are read at once: each may have some MiB.
const CHUNK_ROWS: usize = 64;

/// How many jobs that rest are read together, and about how many bytes of them.
const NEIGHBOURS: usize = 63;
const NEIGHBOUR_BYTES: usize = 256 << 10;

/// What a disk keeps of a pipeline beside its jobs.
pub(super) fn read_meta<T: codec::Encoded>(
    reader: &dyn Reader,
    prefix: u8,
    pipeline: PipelineId,
) -> Result<Option<T>, ReadError> {
    let value = reader.get(Table::Meta, &meta_key(prefix, pipeline))?;
    value.map(|value| codec::decode(&value)).transpose().map_err(|error| ReadError {
        table: Table::Meta.name(),
        reason: format!("what pipeline {pipeline} keeps under {prefix:#x} is damaged: {error}"),
    })
}

impl Core {
    /// Reads what this node promised and which jobs it holds.
    pub(super) fn load_groups(&mut self) -> Result<(), ReadError> {
        let now = self.now;
        let pipelines: Vec<PipelineId> = self.catalog.keys().copied().collect();
        let held = self.reader.scan(Table::Meta, &[PROMISE], &[PROMISE + 1], usize::MAX)?;
        let held = held.iter().filter_map(|(key, _)| key.get(1..17)?.try_into().ok());
        let journal = self.read_journal()?;
        let held = held.map(PipelineId::from_be_bytes).chain(pipelines);
        for pipeline in held.chain(journal.pipelines()) {
            self.groups.entry(pipeline).or_insert_with(|| Group::new(pipeline, now));
        }
        let ids: Vec<PipelineId> = self.groups.keys().copied().collect();
        for id in ids {
            let promise = read_meta(&*self.reader, PROMISE, id)?;
            let finished = read_meta(&*self.reader, FINISHED, id)?;
            let view = read_meta(&*self.reader, VIEW, id)?;
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.promise = promise.unwrap_or(group.promise);
            group.horizon_ms = group.promise.horizon_ms;
            group.finished = finished.unwrap_or_default();
            group.view = view;
            self.load_jobs(id, &journal)?;
            self.consider_election(id);
        }
        self.end_old_journal(&journal);
        Ok(())
    }

    /// Reads the unfinished jobs: those on the list, and the latest.
    fn load_jobs(&mut self, pipeline: PipelineId, journal: &Content) -> Result<(), ReadError> {
        self.load_listed(pipeline, journal)?;
        let mut loaded = 0;
        for job in journal.arrivals(pipeline) {
            let group = self.groups.get(&pipeline);
            if group.is_some_and(|it| it.jobs.contains_key(&job) || it.jobs.is_resting(&job)) {
                continue;
            }
            let Some(mut record) = self.read_record(pipeline, job)? else { continue };
            // By its rows alone a job that was begun anew may seem to be over.
            self.join_journal(journal, pipeline, job, &mut record)?;
            if let Some(group) = self.groups.get_mut(&pipeline).filter(|_| !record.is_over()) {
                group.load(job, record);
                self.list_from_journal(pipeline, job);
                self.note_crowded(loaded);
                self.rest_if_crowded(pipeline, job);
                loaded += 1;
            }
        }
        Ok(())
    }

    fn load_listed(&mut self, pipeline: PipelineId, journal: &Content) -> Result<(), ReadError> {
        let mut from = JobId::MIN;
        loop {
            let (start, end) =
                (job_key(pipeline, from), component_key(pipeline, JobId::MAX, u16::MAX));
            let rows = self.reader.scan(Table::Live, &start, &end, ROWS)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            let Some((_, last, _)) = parse_key(last) else { return Ok(()) };
            for (at, (key, _)) in rows.iter().enumerate() {
                let Some((_, job, _)) = parse_key(key) else { continue };
                if let Some(mut record) = self.read_record(pipeline, job)? {
                    self.join_journal(journal, pipeline, job, &mut record)?;
                    let Some(group) = self.groups.get_mut(&pipeline) else { continue };
                    group.load(job, record);
                    self.note_crowded(at);
                    self.rest_if_crowded(pipeline, job);
                }
            }
            if rows.len() < ROWS || last == JobId::MAX {
                return Ok(());
            }
            from = last.next();
        }
    }

    /// A job's record as it is on disk.
    pub(super) fn read_record(
        &self,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<Option<JobRecord>, ReadError> {
        // What was dropped is still to be read until the batch that drops it is on disk. Nothing
        // that came since can be on disk alone: it is in memory until its own batch is.
        let group = self.groups.get(&pipeline);
        if group.is_some_and(|group| group.dropping > 0 || group.expiring.contains(&job)) {
            return Ok(None);
        }
        // Most jobs that are asked for are new: that is quickly seen.
        let reaps = group.is_none_or(|group| group.finished.reaped > 0);
        let has = |tag| self.reader.get(Table::Jobs, &component_key(pipeline, job, tag));
        if has(SPEC)?.is_none() && (!reaps || has(REAPED)?.is_none()) {
            return Ok(None);
        }
        let (start, end) = (job_key(pipeline, job), component_key(pipeline, job, u16::MAX));
        let rows = self.reader.scan(Table::Jobs, &start, &end, usize::MAX)?;
        let mut record = JobRecord::default();
        for (key, bytes) in &rows {
            let Some((_, _, tag)) = parse_key(key) else { continue };
            join(&mut record, job, Component { tag, bytes: bytes.clone() })?;
        }
        Ok((!rows.is_empty()).then_some(record))
    }

    /// Jobs as they are on disk, in their order, and the last one that was looked at: about `most`
    /// of them, or as many as have `bytes`. What cannot be read is left out of a record.
    pub(super) fn jobs_on_disk(
        &self,
        pipeline: PipelineId,
        range: RangeInclusive<JobId>,
        most: usize,
        bytes: usize,
    ) -> Result<(Vec<(JobId, JobRecord)>, JobId), ReadError> {
        self.read_jobs(pipeline, range, (most, bytes), false)
    }

    /// The same, from the end of the range on.
    pub(super) fn last_jobs_on_disk(
        &self,
        pipeline: PipelineId,
        range: RangeInclusive<JobId>,
        most: usize,
        bytes: usize,
    ) -> Result<(Vec<(JobId, JobRecord)>, JobId), ReadError> {
        self.read_jobs(pipeline, range, (most, bytes), true)
    }

    fn read_jobs(
        &self,
        pipeline: PipelineId,
        range: RangeInclusive<JobId>,
        (most, bytes): (usize, usize),
        backwards: bool,
    ) -> Result<(Vec<(JobId, JobRecord)>, JobId), ReadError> {
        let (first, last) = range.into_inner();
        let to = if backwards { first } else { last };
        let mut jobs: Vec<(JobId, JobRecord)> = Vec::new();
        let Some(group) = self.groups.get(&pipeline).filter(|group| group.dropping == 0) else {
            return Ok((jobs, to));
        };
        let mut start = job_key(pipeline, first);
        let mut end = component_key(pipeline, last, u16::MAX).to_vec();
        end.push(0);
        let mut end = Bytes::from(end);
        let mut read = 0;
        loop {
            let rows = match backwards {
                false => self.reader.scan(Table::Jobs, &start, &end, CHUNK_ROWS)?,
                true => self.reader.scan_back(Table::Jobs, &start, &end, CHUNK_ROWS)?,
            };
            let last = rows.last().map(|(key, _)| key.clone());
            let more = rows.len() == CHUNK_ROWS;
            for (key, bytes_of) in rows {
                let Some((_, job, tag)) = parse_key(&key) else { continue };
                if group.expiring.contains(&job) {
                    continue;
                }
                let begins = jobs.last().is_none_or(|(last, _)| *last != job);
                if begins
                    && let Some((last, _)) =
                        jobs.last().filter(|_| jobs.len() >= most || read >= bytes)
                {
                    let last = *last;
                    return Ok((jobs, last));
                }
                if begins {
                    jobs.push((job, JobRecord::default()));
                }
                read += bytes_of.len();
                if let Some((_, record)) = jobs.last_mut() {
                    join(record, job, Component { tag, bytes: bytes_of })?;
                }
            }
            match last {
                Some(last) if more && backwards => end = last,
                Some(last) if more => start = [&last[..], &[0]].concat().into(),
                _ => return Ok((jobs, to)),
            }
        }
    }

    /// Brings a job into memory, and those behind it that rest as well. Says whether there is one.
    pub(super) fn load_job(&mut self, pipeline: PipelineId, job: JobId) -> Result<bool, ReadError> {
        let Some(group) = self.groups.get(&pipeline) else { return Ok(false) };
        if group.jobs.contains_key(&job) {
            return Ok(true);
        }
        let waited = group.jobs.is_resting(&job);
        let known = self.load_alone(pipeline, job)?;
        if waited && job.is_time_ordered() {
            self.wake_neighbours(pipeline, job)?;
        }
        Ok(known)
    }

    /// Brings a job into memory, and no other. Says whether there is one.
    pub(super) fn load_alone(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<bool, ReadError> {
        if self.groups.get(&pipeline).is_some_and(|group| group.jobs.contains_key(&job)) {
            return Ok(true);
        }
        let record = self.read_record(pipeline, job)?;
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(false) };
        let Some(record) = record else {
            return match group.jobs.is_resting(&job) {
                false => Ok(false),
                true => Err(ReadError {
                    table: Table::Jobs.name(),
                    reason: format!("job {job} waits here, and is not there"),
                }),
            };
        };
        group.insert_counted(job, record);
        Ok(true)
    }

    /// Those that were enqueued right behind a job come right behind it, as a rule: reading them
    /// together costs little more than reading one.
    fn wake_neighbours(&mut self, pipeline: PipelineId, job: JobId) -> Result<(), ReadError> {
        let room = self.config.limits.resident_bytes.saturating_sub(self.resident_bytes());
        if room == 0 || job == JobId::MAX {
            return Ok(());
        }
        let (range, bytes) = (job.next()..=JobId::MAX, room.min(NEIGHBOUR_BYTES));
        let (records, _) = self.jobs_on_disk(pipeline, range, NEIGHBOURS, bytes)?;
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(()) };
        for (job, record) in records {
            let hash = record.digest() ^ job_hash(job);
            // What is damaged stays where it is: whoever needs it reads it by itself, and is told.
            if group.jobs.find_resting(&job).is_some_and(|resting| resting.hash == hash) {
                group.insert_counted(job, record);
            }
        }
        Ok(())
    }

    /// Brings a job back that rests; others stay where they are. Says whether it did.
    pub(super) fn wake(&mut self, pipeline: PipelineId, job: JobId) -> bool {
        if !self.groups.get(&pipeline).is_some_and(|group| group.jobs.is_resting(&job)) {
            return false;
        }
        match self.load_job(pipeline, job) {
            Ok(_) => true,
            Err(error) => {
                self.broken = Some(error);
                false
            }
        }
    }

    /// Looks now and then whether memory is full, while many jobs are read: `at` says which this is.
    pub(super) fn note_crowded(&mut self, at: usize) {
        if at.is_multiple_of(NEIGHBOURS) {
            self.crowded = self.is_crowded();
        }
    }

    /// Whether the resident jobs of this node take as much memory as they should.
    pub(super) fn is_crowded(&self) -> bool {
        self.resident_bytes() > self.config.limits.resident_bytes
    }

    fn resident_bytes(&self) -> usize {
        self.groups.values().map(|group| group.bytes).sum()
    }

    /// Lets a job rest if it can, and memory is short.
    pub(super) fn rest_if_crowded(&mut self, pipeline: PipelineId, job: JobId) {
        // What a strict group agrees on is decided in memory.
        if self.crowded
            && !self.is_dirty(pipeline, job)
            && !self.is_strict(pipeline)
            && let Some(group) = self.groups.get_mut(&pipeline)
        {
            group.rest_if_idle(job);
        }
    }

    /// Joins what somebody else holds of a job. Says whether anything was new here.
    pub(super) fn absorb(
        &mut self,
        pipeline: PipelineId,
        update: &JobUpdate,
        origin: Origin,
    ) -> Result<bool, ReadError> {
        let before = self.may_be_parted(pipeline, update);
        let changed = self.absorb_update(pipeline, update, origin)?;
        if let Some(before) = before {
            if changed {
                self.doubt_parts(pipeline, update.job, &before);
            }
            self.rest_if_crowded(pipeline, update.job);
        }
        Ok(changed)
    }

    /// What a job was enqueued as, if it may be forgotten now, or follow another definition: then it does not
    /// say any more what it had items for.
    fn may_be_parted(&mut self, pipeline: PipelineId, update: &JobUpdate) -> Option<Arc<JobSpec>> {
        let group = self.groups.get(&pipeline)?;
        let tells = |component: &Component| [SPEC, REAPED].contains(&component.tag);
        if !group.has_live_items()
            || !group.is_coordinator()
            || !update.components.iter().any(tells)
        {
            return None;
        }
        self.wake(pipeline, update.job);
        self.record_of(pipeline, update.job)?.spec.clone()
    }

    fn absorb_update(
        &mut self,
        pipeline: PipelineId,
        update: &JobUpdate,
        origin: Origin,
    ) -> Result<bool, ReadError> {
        let replicate = matches!(origin, Origin::Copy { .. });
        let doubted = origin == Origin::Copy { current: false };
        if self.is_strict(pipeline) {
            match self.groups.get(&pipeline).map(|group| &group.role) {
                Some(Role::Coordinator(_)) => {
                    return self.absorb_as_coordinator(pipeline, update, doubted);
                }
                // What its voters hold is joined first.
                Some(Role::TakingOver(_)) => return Ok(false),
                _ => {}
            }
        }
        if update.components.len() > MAX_COMPONENTS {
            // No release writes that many: looking for doubles among them would take long.
            return Ok(false);
        }
        let Some(update) = self.still_counting(pipeline, update) else { return Ok(false) };
        let update = &*update;
        let unknown = origin == Origin::New || !self.load_job(pipeline, update.job)?;
        debug_assert!(
            origin != Origin::New
                || self.groups.get(&pipeline).is_none_or(|group| {
                    !group.jobs.contains_key(&update.job) && !group.jobs.is_resting(&update.job)
                }),
            "a job that is new is not here"
        );
        if !unknown {
            self.make_way(pipeline, update);
        }
        let (now, dirty) = (self.now, self.is_dirty(pipeline, update.job));
        let dirty = dirty && !self.has(Mutant::SecondCopyDrops);
        let newer_dropped = self.has(Mutant::NewerDropped);
        let last_stays = self.has(Mutant::LastComesStays);
        let group = self.groups.entry(pipeline).or_insert_with(|| Group::new(pipeline, now));
        let entry = group.jobs.get_or_default(update.job);
        if last_stays {
            let steps = update.components.iter().filter_map(|it| it.tag.checked_sub(FIRST_CONTROL));
            steps.for_each(|step| drop(entry.record.controls.remove(&step)));
        }
        // Bytes that were damaged on the way change nothing; the comparison of digests finds it.
        let conflicts = entry.record.payload_conflicts();
        let mut changed: Vec<u16> = update
            .components
            .iter()
            .filter(|component| {
                let newer = component.tag > REAPED && component.tag < FIRST_CONTROL;
                !newer || !newer_dropped
            })
            .filter(|component| entry.merge(component))
            .map(|component| component.tag)
            .collect();
        if entry.record.payload_conflicts() != conflicts {
            changed.push(PAYLOADS);
        }
        let record = &entry.record;
        let known =
            record.spec.is_some() || record.reaped.is_some() || record.unknown.contains_key(&SPEC);
        // One that came in earlier in this batch is not counted yet, and stays. What is known of a
        // job without what was enqueued would not be found again.
        if entry.counted.is_none() && (changed.is_empty() || !known) && !dirty {
            group.jobs.remove(&update.job);
            return Ok(false);
        }
        let steps = changed.iter().filter_map(|tag| tag.checked_sub(FIRST_CONTROL));
        let terms = steps.filter_map(|step| Some(entry.record.controls.get(&step)?.term));
        if let Some(term) = terms.max() {
            // Whoever wrote that may be obeyed by others: what is written here must outrank it.
            self.note_term(pipeline, term);
        }
        for tag in &changed {
            // A phase's value wins as a whole: what came is what is kept.
            let whole = (*tag >= FIRST_CONTROL).then(|| whole_of(update, *tag)).flatten();
            match whole {
                Some(component) => self.touch_as(pipeline, update.job, component, replicate),
                None => self.touch(pipeline, update.job, *tag, replicate),
            }
        }
        if changed.is_empty() {
            self.forget_if_settled(pipeline, update.job);
        } else {
            // Before anything else is made of it: its time may be over, which would look like an end.
            if doubted && unknown {
                if self.may_change(pipeline) {
                    self.set_aside_if_old(pipeline, update.job);
                } else if let Some(group) = self.groups.get_mut(&pipeline)
                    && group.elected_term().is_some()
                {
                    // Nothing is decided before all voters' records are merged.
                    group.doubtful.insert(update.job);
                }
            }
            self.note_failed_elsewhere(pipeline, update.job);
            self.refresh(pipeline, update.job);
        }
        Ok(!changed.is_empty())
    }

    /// Drops a finished job from memory if nothing is under way with it; lets one rest that only waits.
    pub(super) fn forget_if_settled(&mut self, pipeline: PipelineId, job: JobId) {
        let dirty = self.is_dirty(pipeline, job);
        if let Some(group) = self.groups.get_mut(&pipeline)
            && !dirty
        {
            group.evict_if_settled(job);
        }
        self.rest_if_crowded(pipeline, job);
    }

    /// A coordinator's changes.
    pub(super) fn on_replicate(
        &mut self,
        from: NodeId,
        replicate: Replicate,
    ) -> Result<(), ReadError> {
        let (mut missing, mut refused) = (Vec::new(), Vec::new());
        for update in replicate.groups.iter() {
            let pipeline = update.pipeline;
            let known = self.catalog.contains_key(&pipeline);
            if !known {
                // It may be strict: nothing is kept here without its rules.
                self.send(from, Message::CatalogPull);
                refused.push(pipeline);
                continue;
            }
            self.note_term(pipeline, update.term);
            let highest = self.groups.get(&pipeline).map(|group| group.promise.highest);
            if let Some(term) = highest.filter(|highest| *highest > update.term) {
                self.send(from, Message::Stale { pipeline, term });
                if self.is_strict(pipeline) {
                    refused.push(pipeline);
                    continue;
                }
            }
            if let Some(view) = &update.view {
                self.learn_view(pipeline, view);
            }
            let mut outranked = false;
            for job in &update.updates {
                // What is known of a job without what was enqueued is of no use, and could not even
                // be brought to an end: the coordinator sends all of it first.
                if self.knows_spec(pipeline, job)? {
                    // A join does no harm, whoever sends it.
                    self.absorb(pipeline, job, Origin::Change)?;
                    outranked |= self.is_outranked(pipeline, job, update.term)?;
                } else {
                    missing.push((pipeline, job.job));
                }
            }
            if outranked {
                // What stands here was never committed. The coordinator hears of it when the two are
                // compared, and writes what outranks it; until then this disk does not count.
                refused.push(pipeline);
            }
        }
        let (batch, disk) = (replicate.batch, self.config.disk);
        let ack = Message::ReplicateAck { batch, missing, refused, disk };
        if self.has(Mutant::ReplicateBeforeSync) {
            self.send(from, ack);
            return Ok(());
        }
        self.hold_until_on_disk(Held::Effect(Box::new(Effect::Send { to: from, message: ack })));
        Ok(())
    }

    /// Whether this strict group's disk holds a part of a job that a coordinator's change does not
    /// replace, though that coordinator did not write it.
    fn is_outranked(
        &mut self,
        pipeline: PipelineId,
        update: &JobUpdate,
        term: Term,
    ) -> Result<bool, ReadError> {
        if !self.is_strict(pipeline) || !self.load_job(pipeline, update.job)? {
            return Ok(false);
        }
        let mut theirs = JobRecord::default();
        for component in &update.components {
            // What cannot be read counts as missing there.
            let _ = theirs.merge(component);
        }
        let group = self.groups.get(&pipeline);
        let outranked = group.and_then(|group| group.jobs.get(&update.job)).is_some_and(|entry| {
            let mine = &entry.record;
            theirs.controls.iter().any(|(step, control)| {
                let stands = mine.controls.get(step);
                stands.is_some_and(|stands| stands > control && stands.term != term)
            })
        });
        self.forget_if_settled(pipeline, update.job);
        Ok(outranked)
    }

    /// Whether what was enqueued is known here, or comes with an update.
    fn knows_spec(&mut self, pipeline: PipelineId, update: &JobUpdate) -> Result<bool, ReadError> {
        if update.components.iter().any(|component| [SPEC, REAPED].contains(&component.tag)) {
            return Ok(true);
        }
        let loaded = self.load_job(pipeline, update.job)?;
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&update.job));
        let known = entry.is_some_and(|entry| {
            let record = &entry.record;
            let gone = record.is_reaped() && !self.is_as_good_as_unknown(pipeline, record);
            record.spec.is_some() || gone || record.unknown.contains_key(&SPEC)
        });
        if loaded && !known {
            self.forget_if_settled(pipeline, update.job);
        }
        Ok(known)
    }

    /// New jobs from a gateway, which may be this node.
    pub(super) fn on_store(
        &mut self,
        from: NodeId,
        store: u64,
        pipeline: PipelineId,
        revision: Revision,
        jobs: &[JobUpdate],
    ) -> Result<(), ReadError> {
        let removed = self.catalog.get(&pipeline).is_some_and(|entry| entry.removed);
        if removed || self.definition(pipeline, revision).is_none() {
            // The gateway asks again, and by then this node knows.
            if from != self.me() {
                self.send(from, Message::CatalogPull);
            }
            return Ok(());
        }
        let takes = self.takes_by_coordinator(pipeline);
        if takes && !self.may_act(pipeline) || self.is_taking_over(pipeline) {
            // The gateway asks again, and by then somebody coordinates.
            return Ok(());
        }
        let mut results = Vec::with_capacity(jobs.len());
        let elsewhere = self.memory_elsewhere(pipeline);
        for job in jobs {
            results.push(self.store_job(pipeline, job, elsewhere)?);
        }
        let nothing_done = results.iter().all(|result| matches!(result, StoreResult::Refused(_)));
        if from == self.me() && nothing_done {
            // Nothing waits for the disk, which may be why the jobs were refused.
            self.on_stored_here(store, results);
        } else if takes && !nothing_done {
            let taken = Held::Taken { gateway: from, store, pipeline, results };
            self.hold_until_durable(pipeline, taken);
        } else if from == self.me() {
            self.answer_when_on_disk(pipeline, Held::Stored { store, results });
        } else {
            let copies = u32::from(self.is_admitted(pipeline));
            let message = Message::Stored { store, copies, results };
            if nothing_done || self.has(Mutant::StoreBeforeSync) {
                self.send(from, message);
                return Ok(());
            }
            let stored = Held::Effect(Box::new(Effect::Send { to: from, message }));
            self.answer_when_on_disk(pipeline, stored);
        }
        Ok(())
    }

    /// Jobs from a gateway are committed.
    pub(super) fn on_taken(
        &mut self,
        gateway: NodeId,
        store: u64,
        pipeline: PipelineId,
        results: Vec<StoreResult>,
    ) {
        if !self.may_act(pipeline) {
            return;
        }
        let copies = self.least_copies(pipeline) as u32;
        match gateway == self.me() {
            true => self.on_stored(gateway, store, copies, results),
            false => self.send(gateway, Message::Stored { store, copies, results }),
        }
    }

    fn store_job(
        &mut self,
        pipeline: PipelineId,
        update: &JobUpdate,
        elsewhere: usize,
    ) -> Result<StoreResult, ReadError> {
        let job = update.job;
        let mut incoming = JobRecord::default();
        for component in update.components.iter().filter(|component| component.tag == SPEC) {
            // What cannot be read is not there, and the next line says so.
            let _ = incoming.merge(component);
        }
        let Some(mut spec) = incoming.spec else {
            return Ok(StoreResult::Refused(Refusal::Unknown));
        };
        let known_here = self.load_job(pipeline, job)?;
        if known_here {
            let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
            let known = entry.and_then(|entry| entry.record.spec.clone());
            if entry.is_some_and(|entry| {
                entry.record.is_reaped() && !self.is_as_good_as_unknown(pipeline, &entry.record)
            }) {
                // The key has had its job, of which nothing more is kept.
                self.forget_if_settled(pipeline, job);
                return Ok(StoreResult::Existed);
            }
            if let Some(known) = known {
                let same = Arc::make_mut(&mut spec);
                (same.term, same.generation) = (known.term, known.generation);
                if known == spec {
                    // The coordinator's copy of this very request was faster. A newer release may
                    // have put more into the request than that.
                    self.absorb(pipeline, update, Origin::Change)?;
                    return Ok(StoreResult::Stored);
                }
                self.forget_if_settled(pipeline, job);
                return Ok(match () {
                    () if known.instructions == spec.instructions => StoreResult::Existed,
                    () => StoreResult::Conflict,
                });
            }
        } else if let Some(refusal) = self.refusal(pipeline, elsewhere) {
            return Ok(StoreResult::Refused(refusal));
        }
        let origin = if known_here { Origin::Change } else { Origin::New };
        self.absorb(pipeline, update, origin)?;
        Ok(StoreResult::Stored)
    }

    /// What the jobs of all other pipelines take of this node's memory, in bytes.
    pub(super) fn memory_elsewhere(&self, pipeline: PipelineId) -> usize {
        let others = self.groups.values().filter(|group| group.id != pipeline);
        others.map(Group::memory).sum()
    }

    /// Why this node takes no more jobs of a pipeline, if so. `elsewhere` is what the others' take: of
    /// many jobs that come together it is the same.
    pub(super) fn refusal(&self, pipeline: PipelineId, elsewhere: usize) -> Option<Refusal> {
        if let Some(reason) = &self.refusing {
            return Some(Refusal::StorageFull(format!("{}: {reason}", self.config.name)));
        }
        if self.is_disk_stalled() {
            let reason = format!("{}: its disk does not answer", self.config.name);
            return Some(Refusal::StorageFull(reason));
        }
        let limits = &self.config.limits;
        let group = self.groups.get(&pipeline);
        let waiting = group.map_or(0, |group| group.jobs.len() as u64);
        let bytes = elsewhere + group.map_or(0, Group::memory);
        if waiting >= limits.waiting_jobs {
            return Some(Refusal::Busy { waiting, limit: limits.waiting_jobs });
        }
        (bytes >= limits.waiting_bytes)
            .then_some(Refusal::MemoryFull { bytes, limit: limits.waiting_bytes })
    }
}

/// Joins a component from the disk.
fn join(record: &mut JobRecord, job: JobId, component: Component) -> Result<(), ReadError> {
    record.merge(&component).map(drop).map_err(|error| ReadError {
        table: Table::Jobs.name(),
        reason: format!("component {:#x} of job {job} is damaged: {error}", component.tag),
    })
}

/// Where records come from that are joined with what is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A gateway's job that is not here, as was just looked up. Whoever else is to have it gets it from there.
    New,
    /// A coordinator's change, or a gateway's job that is here in part: others get it from there too.
    Change,
    /// Another's copy, of which others may not know.
    Copy {
        /// Whether that copy was in step late enough to have heard of all that was forgotten so long
        /// ago that no mark of it is left here.
        current: bool,
    },
}

/// The one component that an update has under a tag.
fn whole_of(update: &JobUpdate, tag: u16) -> Option<&Component> {
    let mut all = update.components.iter().filter(|component| component.tag == tag);
    all.next().filter(|_| all.next().is_none())
}
