//! Group commit: what changed since the last round becomes one write and one message per replica,
//! and all that depends on it waits until it is durable.
//!
//! ```text
//! touch, hold ─► Batch ─seal─► Persist + Replicate ─Persisted, ReplicateAck─► settled: held is let go
//! ```
//! A batch is settled when this node has synced it and every replica that is being kept in step has,
//! or has been put out for keeping the others waiting. Batches settle in the order in which they
//! were sealed, so what is let go never rests on an earlier batch that is not settled.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use bytes::Bytes;
use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;

use crate::{
    codec::{self, Pieces},
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    io::{Effect, PersistId},
    message::{
        Answer, Assignment, Digest, GroupUpdate, JobUpdate, Message, Replicate, StoreResult,
    },
    record::{Component, FIRST_CONTROL},
    store::{ReadError, Table, Write, ended_key, job_key, put_component_key},
    time::Timestamp,
};

use super::{
    Core,
    catalog::meta_key,
    events::Kept,
    group::{End, Job, PeerSync, Standing},
    journal::{Journal, Page, is_for_journal, write_rows},
    query::Asker,
    sync::update_bytes,
};

/// A batch is sealed early when it has grown to this, so that no message nears the codec's limit.
const LARGE_BATCH_BYTES: usize = 8 << 20;

/// For how many of what waits for durability there is room before it comes, at most.
const ROOM: usize = 4096;

/// What a component's key takes, about.
const KEY_BYTES: usize = 40;

/// The prefix of what a group promised, in [`Table::Meta`].
pub(super) const PROMISE: u8 = 0x02;

/// The prefix of a group's finished jobs, in [`Table::Meta`].
pub(super) const FINISHED: u8 = 0x04;

/// What waits for durability.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// All jobs of a pipeline, of this digest of live and of finished ones, may go: this coordinator has them.
    Drop { pipeline: PipelineId, to: (NodeId, Term), live: Digest, finished: Digest },
    /// The pipeline's jobs are gone from the disk.
    Dropped(PipelineId),
    /// An effect: in a box, since all else that waits is smaller, and comes far more often.
    Effect(Box<Effect>),
    /// An attempt to be given to a worker.
    Assign { to: NodeId, assignment: Box<Assignment> },
    /// This node's vote for itself.
    OwnVote { pipeline: PipelineId, term: Term },
    /// All that the voters hold is merged.
    Adopted { pipeline: PipelineId, term: Term },
    /// This node's own copies of jobs that came through it.
    Stored { store: u64, results: Vec<StoreResult> },
    /// This node's own copy of the catalog.
    Applied(crate::io::RequestId),
    /// An end of a phase's attempt that was accepted: its worker may forget it.
    Completed { worker: NodeId, token: Token, of: (PipelineId, JobId, u16) },
    /// Jobs that a strict group's coordinator took from a gateway.
    Taken { gateway: NodeId, store: u64, pipeline: PipelineId, results: Vec<StoreResult> },
    /// A strict group's view.
    View { pipeline: PipelineId, sequence: u64 },
    /// Some of the last traces of forgotten jobs are gone.
    Expired(PipelineId),
    /// Items that an attempt gave: so many by now.
    ItemsTaken { worker: NodeId, token: Token, count: u32 },
    /// An attempt that nobody wants any more.
    Cancel { worker: NodeId, token: Token },
    /// Something happened to a job, in a term: another's stream begins anew.
    Event { pipeline: PipelineId, term: Option<Term>, kept: Kept },
    /// What somebody asked, or asked to be done.
    Answer { asker: Asker, answer: Box<Answer> },
}

#[derive(Clone, Debug, Default)]
struct Dirty {
    /// The components, with their bytes where these are known already.
    tags: Vec<(u16, Option<Bytes>)>,
    replicate: bool,
}

impl Dirty {
    /// Notes a component. Says whether it was not noted before.
    fn note(&mut self, tag: u16, bytes: Option<Bytes>) -> bool {
        match self.tags.iter_mut().find(|(known, _)| *known == tag) {
            Some((_, known)) => {
                *known = bytes;
                false
            }
            None => {
                self.tags.push((tag, bytes));
                true
            }
        }
    }
}

/// What was written of a job: in which term, if this node was elected; for the replicas; and as what it
/// counted before, and does now.
type Written = (Option<Term>, JobUpdate, (Option<Standing>, Standing));

/// What changed since the last round.
#[derive(Clone, Debug, Default)]
pub(super) struct Batch {
    /// What of which jobs, in the order in which they were touched first.
    dirty: BTreeMap<PipelineId, IndexMap<JobId, Dirty, FxBuildHasher>>,
    writes: Vec<Write>,
    on_disk: Vec<Held>,
    settled: Vec<Held>,
    /// What waits for a majority, by strict group.
    pub(super) strict: BTreeMap<PipelineId, Vec<Held>>,
    /// Strict groups whose view was written.
    pub(super) views: BTreeSet<PipelineId>,
    bytes: usize,
}

impl Batch {
    pub(super) fn is_large(&self) -> bool {
        self.bytes > LARGE_BATCH_BYTES
    }

    fn is_empty(&self) -> bool {
        self.dirty.is_empty()
            && self.writes.is_empty()
            && self.on_disk.is_empty()
            && self.settled.is_empty()
            && self.strict.is_empty()
            && self.views.is_empty()
    }
}

/// A batch under way.
#[derive(Clone, Debug)]
pub(super) struct Commit {
    id: PersistId,
    pub(super) sealed_at: Timestamp,
    pub(super) on_disk: bool,
    pub(super) waiting: BTreeSet<NodeId>,
    touched: Vec<(PipelineId, JobId)>,
    when_on_disk: Vec<Held>,
    when_settled: Vec<Held>,
}

impl Core {
    /// A component of a job's record changed. `replicate` unless the others get it from elsewhere.
    pub(super) fn touch(&mut self, pipeline: PipelineId, job: JobId, tag: u16, replicate: bool) {
        let dirty = self.batch.dirty.entry(pipeline).or_default().entry(job).or_default();
        dirty.replicate |= replicate;
        if dirty.note(tag, None) {
            let record = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
            self.batch.bytes += record.map_or(0, |job| tag_bytes(&job.record, tag));
        }
    }

    /// A job that this node makes is new: all of it is.
    pub(super) fn touch_new(&mut self, pipeline: PipelineId, job: JobId) {
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let tags: Vec<u16> = entry.into_iter().flat_map(|entry| entry.record.tags()).collect();
        tags.into_iter().for_each(|tag| self.touch(pipeline, job, tag, true));
    }

    /// A component of a job's record is now this one, as it came from another node.
    pub(super) fn touch_as(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        component: &Component,
        replicate: bool,
    ) {
        let dirty = self.batch.dirty.entry(pipeline).or_default().entry(job).or_default();
        dirty.replicate |= replicate;
        self.batch.bytes += component.bytes.len();
        dirty.note(component.tag, Some(component.bytes.clone()));
    }

    /// Whether this batch changes a job.
    pub(super) fn is_dirty(&self, pipeline: PipelineId, job: JobId) -> bool {
        self.batch.dirty.get(&pipeline).is_some_and(|jobs| jobs.contains_key(&job))
    }

    /// Whether this batch changes any job of a pipeline.
    pub(super) fn is_any_dirty(&self, pipeline: PipelineId) -> bool {
        self.batch.dirty.contains_key(&pipeline)
    }

    /// Says of a pipeline's jobs that they are here, once this batch is on disk.
    pub(super) fn answer_when_on_disk(&mut self, pipeline: PipelineId, held: Held) {
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.answered_in = PersistId(self.next_persist + 1);
        }
        self.hold_until_on_disk(held);
    }

    /// Whether such an answer is still to be given.
    pub(super) fn is_answering(&self, pipeline: PipelineId) -> bool {
        let Some(group) = self.groups.get(&pipeline) else { return false };
        let mut writing = self.commits.iter().filter(|commit| !commit.on_disk);
        group.answered_in.0 > self.next_persist || writing.any(|it| it.id <= group.answered_in)
    }

    /// Something outside the job records changed.
    pub(super) fn write(&mut self, write: Write) {
        self.batch.writes.push(write);
    }

    /// Does something once this batch is on this node's disk.
    pub(super) fn hold_until_on_disk(&mut self, held: Held) {
        self.batch.on_disk.push(held);
    }

    /// Does something once this batch is on the disks of all replicas that are in step.
    pub(super) fn hold_until_settled(&mut self, held: Held) {
        self.batch.settled.push(held);
    }

    /// Writes down what this node promised within a group.
    pub(super) fn write_promise(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let value = codec::encode(&group.promise);
        self.write(Write::Put { table: Table::Meta, key: meta_key(PROMISE, pipeline), value });
    }

    /// Gives out what can be, and ends the batch.
    pub(super) fn seal(&mut self) {
        self.dispatch();
        self.end_batch();
    }

    /// Ends the batch: one write, one message to each replica.
    pub(super) fn end_batch(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let batch = mem::take(&mut self.batch);
        let id = self.next_persist_id();
        let mut writes = batch.writes;
        // A job comes on a list and goes from another beside what is written of it.
        let dirty = batch.dirty.values().flat_map(IndexMap::values);
        writes.reserve(dirty.map(|dirty| dirty.tags.len() + 2).sum());
        let jobs = batch.dirty.values().map(IndexMap::len).sum();
        let mut groups: Vec<GroupUpdate> = Vec::new();
        let mut touched = Vec::with_capacity(jobs);
        let mut pieces = Pieces::with_room(batch.bytes + jobs * KEY_BYTES);
        let mut proposed: BTreeMap<PipelineId, Vec<JobId>> = BTreeMap::new();
        let mut turns = Vec::new();
        let mut page = Page::default();
        let each = |(pipeline, jobs): (PipelineId, IndexMap<_, _, _>)| {
            jobs.into_iter().map(move |(job, dirty)| (pipeline, job, dirty))
        };
        for (pipeline, job, dirty) in batch.dirty.into_iter().flat_map(each) {
            let replicate = dirty.replicate;
            let out = (&mut page, &mut writes, &mut pieces);
            let written = self.write_job(pipeline, job, dirty, out);
            let Some((term, update, turned)) = written else { continue };
            let turn = self.turn(pipeline, job, turned);
            turns.extend(turn.map(|(first, kept)| (pipeline, first, kept)));
            touched.push((pipeline, job));
            let Some(term) = term.filter(|_| replicate) else { continue };
            if self.is_strict(pipeline) {
                proposed.entry(pipeline).or_default().push(job);
            }
            match groups.last_mut() {
                Some(last) if last.pipeline == pipeline => last.updates.push(update),
                _ => {
                    let updates = vec![update];
                    groups.push(GroupUpdate { pipeline, term, updates, view: None });
                }
            }
        }
        self.write_journal(page, &mut writes, &mut pieces);
        self.write_finished(&mut writes);
        let (mut held, mut settled) = (batch.strict, batch.settled);
        self.hold_turns(turns, &mut held, &mut settled);
        // The next is about as large: what grows step by step is copied at each.
        self.batch.settled.reserve(settled.len().min(ROOM));
        let strict: BTreeSet<PipelineId> =
            proposed.keys().chain(held.keys()).chain(&batch.views).copied().collect();
        for &pipeline in &strict {
            self.add_proposal(&mut groups, pipeline, batch.views.contains(&pipeline));
        }
        let waiting = self.replicate(id, groups);
        self.effects.push_back(Effect::Persist { id, writes });
        self.commits.push_back(Commit {
            id,
            sealed_at: self.now,
            on_disk: false,
            waiting,
            touched,
            when_on_disk: batch.on_disk,
            when_settled: settled,
        });
        for pipeline in strict {
            let held = held.remove(&pipeline).unwrap_or_default();
            let touched = proposed.remove(&pipeline).unwrap_or_default();
            self.propose(pipeline, id, held, touched);
        }
    }

    /// Whatever waits for a strict group's replicas has to be sent to them, if only to be answered.
    fn add_proposal(
        &mut self,
        groups: &mut Vec<GroupUpdate>,
        pipeline: PipelineId,
        with_view: bool,
    ) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let Some(term) = group.elected_term() else { return };
        let view = group.view.clone().filter(|_| with_view);
        match groups.iter_mut().find(|update| update.pipeline == pipeline) {
            Some(update) => update.view = view,
            None => groups.push(GroupUpdate { pipeline, term, updates: Vec::new(), view }),
        }
    }

    /// Holds what it means that jobs came and ended, around all else that happened to them.
    fn hold_turns(
        &self,
        turns: Vec<(PipelineId, bool, Kept)>,
        strict: &mut BTreeMap<PipelineId, Vec<Held>>,
        settled: &mut Vec<Held>,
    ) {
        let (mut came, mut came_strict) = (Vec::new(), BTreeMap::<PipelineId, Vec<Held>>::new());
        for (pipeline, first, kept) in turns {
            let term = self.elected_term(pipeline);
            let event = Held::Event { pipeline, term, kept };
            match (self.is_strict(pipeline), first) {
                (true, true) => came_strict.entry(pipeline).or_default().push(event),
                (true, false) => strict.entry(pipeline).or_default().push(event),
                (false, true) => came.push(event),
                (false, false) => settled.push(event),
            }
        }
        settled.splice(0..0, came);
        for (pipeline, came) in came_strict {
            strict.entry(pipeline).or_default().splice(0..0, came);
        }
    }

    /// Turns a job's changed components into writes; gives them back for the replicas, with the
    /// term if this node was elected.
    fn write_job(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        dirty: Dirty,
        (page, writes, pieces): (&mut Page, &mut Vec<Write>, &mut Pieces),
    ) -> Option<Written> {
        let strict = self.is_strict(pipeline);
        let group = self.groups.get_mut(&pipeline)?;
        debug_assert!(group.jobs.contains_key(&job), "a job that changed is in memory");
        let (before, now) = group.recount(job)?;
        let entry = group.jobs.get_mut(&job)?;
        entry.pending += 1;
        // What came earlier in this batch may have been forgotten since.
        let forgotten = entry.record.reaped.is_some();
        let kept = |tag: u16| !forgotten || entry.record.tags().any(|kept| kept == tag);
        let components: Vec<Component> = dirty
            .tags
            .into_iter()
            .filter(|(tag, _)| kept(*tag))
            .filter_map(|(tag, bytes)| match bytes {
                Some(bytes) => Some(Component { tag, bytes }),
                None => entry.record.component_in(tag, pieces),
            })
            .collect();
        // What is not known as a job yet is not found by what the journal says of it.
        let journals = now.is_live() && !strict && entry.record.spec.is_some();
        let is_row = |component: &&Component| !journals || !is_for_journal(component);
        for Component { tag, bytes } in components.iter().filter(is_row) {
            let key = pieces.take(|out| put_component_key(out, pipeline, job, *tag));
            writes.push(Write::Put { table: Table::Jobs, key, value: bytes.clone() });
            entry.journaled.leave_out(*tag);
        }
        writes.extend(entry.take_dropped().into_iter().map(|tag| {
            let key = pieces.take(|out| put_component_key(out, pipeline, job, tag));
            Write::Delete { table: Table::Jobs, key }
        }));
        if journals {
            page.change(&self.journal, pipeline, job, entry, &components);
        } else {
            write_rows(pipeline, job, entry, writes, pieces);
        }
        list((pipeline, job), before, now, entry, (&mut self.journal, page), writes);
        Some((group.elected_term(), JobUpdate { job, components }, (before, now)))
    }

    fn write_finished(&mut self, writes: &mut Vec<Write>) {
        for (id, group) in &mut self.groups {
            if mem::take(&mut group.finished_dirty) {
                let value = codec::encode(&group.finished);
                writes.push(Write::Put { table: Table::Meta, key: meta_key(FINISHED, *id), value });
            }
        }
    }

    /// Sends changes to the replicas that are kept in step; gives back whom to wait for.
    fn replicate(&mut self, id: PersistId, groups: Vec<GroupUpdate>) -> BTreeSet<NodeId> {
        let mut frames: BTreeMap<NodeId, Vec<usize>> = BTreeMap::new();
        let mut waiting = BTreeSet::new();
        for (at, update) in groups.iter().enumerate() {
            let Some(reign) =
                self.groups.get_mut(&update.pipeline).and_then(|group| group.elected())
            else {
                continue;
            };
            for (peer, sync) in &reign.peers {
                if !matches!(sync, PeerSync::Lagging(_)) {
                    frames.entry(*peer).or_default().push(at);
                }
                // Who is being brought up to date is no safe place yet, and may take its time.
                if sync.is_in_step() {
                    waiting.insert(*peer);
                }
            }
        }
        let all = Arc::new(groups);
        for (to, parts) in frames {
            let groups = match parts.len() == all.len() {
                true => Arc::clone(&all),
                false => Arc::new(parts.into_iter().map(|at| all[at].clone()).collect()),
            };
            self.send(to, Message::Replicate(Replicate { batch: id.0, groups }));
        }
        waiting
    }

    /// All batches up to `id` are on disk.
    pub(super) fn on_persisted(&mut self, id: PersistId) {
        let mut held = Vec::new();
        for commit in self.commits.iter_mut().take_while(|commit| commit.id <= id) {
            commit.on_disk = true;
            held.append(&mut commit.when_on_disk);
        }
        held.into_iter().for_each(|held| self.let_go(held));
        self.on_kept_here(id);
        self.settle();
    }

    /// A replica has a batch on disk.
    pub(super) fn on_replicate_ack(
        &mut self,
        (from, disk): (NodeId, DiskId),
        batch: u64,
        missing: &[(PipelineId, JobId)],
        refused: &[PipelineId],
    ) -> Result<(), ReadError> {
        if refused.iter().any(|pipeline| !self.is_strict(*pipeline)) {
            // It did not know the pipeline, and kept nothing of it.
            self.put_out(from);
        }
        for pipeline in refused {
            self.compare_again(*pipeline, from);
        }
        let Some(&(pipeline, _)) = missing.first() else {
            self.on_batch_kept((from, disk), batch, refused);
            return Ok(());
        };
        let (mut records, mut bytes) = (Vec::new(), 0);
        for &(of, job) in missing {
            let record = self.whole(of, job)?.filter(|_| of == pipeline);
            bytes += record.as_ref().map_or(0, update_bytes);
            records.extend(record);
        }
        if records.len() < missing.len() || bytes > LARGE_BATCH_BYTES || !refused.is_empty() {
            // It lacks more than one answer can make good: all of it is compared.
            self.put_out(from);
            return Ok(());
        }
        // Its acknowledgement stands for that of the batch.
        let term = self.elected_term(pipeline);
        let term = term.unwrap_or(Term::ZERO);
        self.send(from, Message::SyncPush { session: 0, part: batch, pipeline, term, records });
        Ok(())
    }

    /// A replica has all of a batch on disk.
    pub(super) fn on_batch_kept(
        &mut self,
        (from, disk): (NodeId, DiskId),
        batch: u64,
        refused: &[PipelineId],
    ) {
        self.on_kept((from, disk), PersistId(batch), refused);
        if let Ok(at) = self.commits.binary_search_by_key(&PersistId(batch), |commit| commit.id) {
            self.commits[at].waiting.remove(&from);
        }
        self.settle();
    }

    /// Waits no longer for a peer that cannot answer.
    pub(super) fn stop_waiting_for(&mut self, peer: NodeId) {
        for commit in &mut self.commits {
            commit.waiting.remove(&peer);
        }
        self.settle();
    }

    /// Whether this node's own disk has kept a batch for longer than a lease: whoever waits for what
    /// is in it, waits in vain.
    pub(super) fn is_disk_stalled(&self) -> bool {
        let oldest = self.commits.iter().find(|commit| !commit.on_disk);
        oldest.is_some_and(|it| self.now.since(it.sealed_at) > self.config.timing.lease)
    }

    /// Whether more of a job is being written than what has settled. Strict groups take no other's
    /// word, so what they have committed stays as it is.
    fn is_being_written(&self, pipeline: PipelineId, job: JobId) -> bool {
        let Some(group) = self.groups.get(&pipeline) else { return false };
        let pending = group.jobs.get(&job).is_some_and(|entry| entry.pending > 0);
        (pending || self.is_dirty(pipeline, job)) && !self.is_strict(pipeline)
    }

    /// When the oldest batch will have waited too long.
    pub(super) fn lagging_at(&self) -> Option<Timestamp> {
        let oldest = self.commits.iter().find(|commit| !commit.waiting.is_empty())?;
        Some(oldest.sealed_at + self.config.timing.ack_timeout)
    }

    /// Puts replicas out that keep the others waiting; they are brought up to date later.
    pub(super) fn drop_lagging_replicas(&mut self) {
        if self.lagging_at().is_none_or(|at| at > self.now) {
            return;
        }
        let late = self.now - self.config.timing.ack_timeout;
        let lagging: BTreeSet<NodeId> = self
            .commits
            .iter()
            .filter(|commit| commit.sealed_at <= late)
            .flat_map(|commit| commit.waiting.iter().copied())
            .collect();
        for peer in lagging {
            self.put_out(peer);
        }
    }

    fn settle(&mut self) {
        self.crowded = self.is_crowded();
        while let Some(first) = self.commits.front() {
            if !first.on_disk || !first.waiting.is_empty() {
                return;
            }
            let Some(commit) = self.commits.pop_front() else { return };
            for (pipeline, job) in commit.touched {
                self.on_job_settled(pipeline, job);
            }
            commit.when_settled.into_iter().for_each(|held| self.let_go(held));
        }
    }

    pub(super) fn let_go(&mut self, held: Held) {
        match held {
            Held::Effect(effect) => self.effects.push_back(*effect),
            Held::Assign { to, assignment } => self.hand_over(to, assignment),
            Held::OwnVote { pipeline, term } => self.on_own_vote(pipeline, term),
            Held::Adopted { pipeline, term } => self.on_adopted(pipeline, term),
            Held::Stored { store, results } => self.on_stored_here(store, results),
            Held::Taken { gateway, store, pipeline, results } => {
                self.on_taken(gateway, store, pipeline, results);
            }
            Held::View { pipeline, sequence } => self.on_view_committed(pipeline, sequence),
            Held::Answer { asker, answer } => self.let_answer_go(asker, *answer),
            Held::Expired(pipeline) => {
                if let Some(group) = self.groups.get_mut(&pipeline) {
                    group.expiring.clear();
                }
            }
            Held::Cancel { worker, token } => self.cancel_at(worker, token),
            Held::ItemsTaken { worker, token, count } => {
                if worker == self.me() {
                    self.on_items_taken(token, count);
                } else {
                    self.send(worker, Message::ItemsAck { token, count });
                }
            }
            Held::Drop { pipeline, to, live, finished } => {
                self.drop_handed_on(pipeline, to, live, finished);
            }
            Held::Dropped(pipeline) => {
                if let Some(group) = self.groups.get_mut(&pipeline) {
                    group.dropping = group.dropping.saturating_sub(1);
                }
            }
            Held::Applied(request) => self.on_applied_here(request),
            Held::Event { pipeline, term, kept } if term == self.elected_term(pipeline) => {
                self.tell(pipeline, kept);
            }
            Held::Event { .. } => {}
            // A retry that came in beside it may make it the attempt that counts: its worker tells the
            // end again, to that generation.
            Held::Completed { token, of, .. } if self.is_running_as(of, token) => {}
            // What came in beside it may still have the attempt running on disk, though it is over by
            // what is being written now.
            Held::Completed { of: (pipeline, job, _), .. }
                if self.is_being_written(pipeline, job) =>
            {
                self.hold_until_durable(pipeline, held);
            }
            Held::Completed { worker, token, .. } => {
                if worker == self.me() {
                    self.worker_forget(token);
                } else {
                    self.send(worker, Message::CompletionAck(token));
                }
            }
        }
    }
}

/// Keeps a job on the list where it belongs.
fn list(
    (pipeline, job): (PipelineId, JobId),
    before: Option<Standing>,
    now: Standing,
    entry: &mut Job,
    (journal, page): (&mut Journal, &mut Page),
    writes: &mut Vec<Write>,
) {
    match (before.is_some_and(Standing::is_live), now.is_live()) {
        (false, true) => page.arrive(journal, pipeline, job, entry),
        (true, false) => {
            journal.leave(entry);
            if mem::take(&mut entry.listed) {
                writes.push(Write::Delete { table: Table::Live, key: job_key(pipeline, job) });
            }
        }
        _ => {}
    }
    let key = |standing: Standing| match standing {
        // Items go with the job that they are a part of.
        Standing::Live { .. } | Standing::Ended(End::Item, _) => None,
        Standing::Ended(end, at_ms) => Some(ended_key(pipeline, end as u8, at_ms, job)),
    };
    let (before, now) = (before.and_then(key), key(now));
    if before == now {
        return;
    }
    let table = Table::Ended;
    writes.extend(before.map(|key| Write::Delete { table, key }));
    writes.extend(now.map(|key| Write::Put { table, key, value: Bytes::new() }));
}

fn tag_bytes(record: &crate::record::JobRecord, tag: u16) -> usize {
    let spec = || record.spec.as_ref().map_or(0, |spec| spec.instructions.len());
    let control =
        |step: u16| record.controls.get(&step).map_or(0, |control| control.result_bytes());
    128 + tag.checked_sub(FIRST_CONTROL).map_or_else(spec, control)
}
