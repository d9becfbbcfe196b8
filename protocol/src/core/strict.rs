//! Strict groups: only a coordinator that a majority of the group's view backs may act.
//!
//! ```text
//! change ─seal─► Proposal ─acknowledged by a majority of the view─► committed: held is let go
//! ```
//! Three rules make a job's record a register that a majority agrees on:
//! - A disk takes records from a coordinator only while it knows of no later term.
//! - Whoever takes over reads what a majority holds before it writes. What differs among these is
//!   decided anew: joined, and written in the new term. What is equal on all is decided already.
//! - Nothing leaves before it is committed: no attempt, no acknowledgement, no end.
//!
//! The lease keeps a coordinator that was deposed without noticing from acting beside its
//! successor: it counts from before each beat was sent, its voters from when they heard it, and it
//! ends earlier than they count. Clocks may so run a tenth too fast or too slow.
//! Sources: Lamport, "The Part-Time Parliament", 1998; Gray and Cheriton, "Leases", 1989.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    catalog::CatalogEntry,
    codec,
    group_view::{GroupView, Holder},
    id::{DiskId, JobId, NodeId, PipelineId, Term},
    io::{PersistId, RequestId},
    message::JobUpdate,
    mutant::Mutant,
    pipeline::{PipelineDef, Quorum},
    placement,
    record::{FIRST_CONTROL, JobRecord, PAYLOADS, SPEC},
    store::{ReadError, Table, Write},
    time::Timestamp,
};

use super::{
    Core,
    catalog::meta_key,
    commit::Held,
    group::{Group, PeerSync, Role},
    query::Asker,
};

/// The prefix of a group's view, in [`Table::Meta`].
pub(super) const VIEW: u8 = 0x05;

/// What a strict group's coordinator keeps beside what every coordinator does.
#[derive(Clone, Debug, Default)]
pub(super) struct StrictReign {
    /// With which disks its voters voted.
    pub(super) voter_disks: BTreeMap<NodeId, DiskId>,
    /// What its voters hold that differs from what it holds, joined.
    merged: BTreeMap<JobId, JobRecord>,
    proposals: VecDeque<Proposal>,
    /// Who granted the lease last: with which disk, and when the beat was sent that it answers.
    leases: BTreeMap<NodeId, (DiskId, Timestamp)>,
    /// Whether the view is committed in this term.
    view_committed: bool,
    /// Since when it coordinates.
    since: Timestamp,
}

impl StrictReign {
    /// Leases are asked for from now on.
    pub(super) fn begin(&mut self, now: Timestamp) {
        self.since = now;
    }
}

/// Changes that are not committed yet.
#[derive(Clone, Debug)]
struct Proposal {
    batch: PersistId,
    since: Timestamp,
    acked: BTreeSet<Holder>,
    held: Vec<Held>,
    touched: Vec<JobId>,
}

impl Core {
    /// The definition that new jobs follow.
    pub(super) fn current(&self, pipeline: PipelineId) -> Option<&PipelineDef> {
        self.catalog.get(&pipeline).and_then(CatalogEntry::definition)
    }

    /// Whether a majority has to back whoever dispatches.
    pub(super) fn is_strict(&self, pipeline: PipelineId) -> bool {
        self.current(pipeline).is_some_and(|definition| definition.execute == Quorum::Majority)
    }

    /// Whether jobs are taken by the coordinator alone.
    pub(super) fn takes_by_coordinator(&self, pipeline: PipelineId) -> bool {
        self.current(pipeline).is_some_and(PipelineDef::is_strict)
    }

    /// How many copies an acknowledgement needs at least.
    pub(super) fn least_copies(&self, pipeline: PipelineId) -> usize {
        let Some(entry) = self.catalog.get(&pipeline) else { return 1 };
        if self.has(Mutant::AcceptsAlone) {
            return 1;
        }
        let replicas = entry.definition().map_or(1, |definition| definition.replicas.into());
        let members = self.replica_nodes().len().max(entry.founders.len());
        match entry.definition().map(|definition| definition.accept) {
            Some(Quorum::Majority) if self.is_strict(pipeline) => {
                self.group_view(pipeline).members.len() / 2 + 1
            }
            Some(Quorum::Majority) => replicas.min(members) / 2 + 1,
            _ => 1,
        }
    }

    /// The view of a strict group, as this node knows it.
    pub(super) fn group_view(&self, pipeline: PipelineId) -> GroupView {
        let written = self.groups.get(&pipeline).and_then(|group| group.view.clone());
        let founders = || self.catalog.get(&pipeline).map(|entry| entry.founders.clone());
        written.unwrap_or_else(|| GroupView::founding(founders().unwrap_or_default()))
    }

    fn myself(&self) -> Holder {
        (self.config.node, self.config.disk)
    }

    /// Whether this node's disk is one of those that decide.
    pub(super) fn is_in_group_view(&self, pipeline: PipelineId) -> bool {
        self.group_view(pipeline).has(self.myself())
    }

    /// A later view is known: it counts from now on.
    pub(super) fn learn_view(&mut self, pipeline: PipelineId, view: &GroupView) {
        if !self.is_strict(pipeline) || !view.is_later_than(&self.group_view(pipeline)) {
            return;
        }
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.view = Some(view.clone());
            self.store_view(pipeline);
        }
    }

    pub(super) fn store_view(&mut self, pipeline: PipelineId) {
        let Some(view) = self.groups.get(&pipeline).and_then(|group| group.view.as_ref()) else {
            return;
        };
        let (key, value) = (meta_key(VIEW, pipeline), codec::encode(view));
        self.write(Write::Put { table: Table::Meta, key, value });
    }

    /// Whether this node may not vote yet: it has granted a lease, or may have before it started.
    pub(super) fn is_pledged(&self, pipeline: PipelineId, group: &Group, asker: NodeId) -> bool {
        let lease = self.config.timing.lease;
        let granted = group.pledge.is_some_and(|(to, until)| to != asker && self.now < until);
        let fresh = self.now.since(self.started) < lease && group.promise.highest > Term::ZERO;
        self.is_strict(pipeline) && (granted || fresh)
    }

    /// A coordinator's lease is renewed.
    pub(super) fn pledge(&mut self, pipeline: PipelineId, to: NodeId) {
        let until = self.now + self.config.timing.lease;
        if self.is_strict(pipeline)
            && let Some(group) = self.groups.get_mut(&pipeline)
        {
            group.pledge = Some((to, until));
        }
    }

    /// Peers have answered a beat that was sent at `sent`.
    pub(super) fn note_leases(&mut self, from: Holder, sent: Timestamp, refused: &[PipelineId]) {
        for group in self.groups.values_mut() {
            let id = group.id;
            // What was sent before it coordinated did not ask for its lease.
            let reign = group.reign().filter(|reign| sent >= reign.strict.since);
            if let Some(reign) = reign.filter(|_| !refused.contains(&id)) {
                reign.strict.leases.insert(from.0, (from.1, sent));
            }
        }
    }

    /// Whether a coordinator may act: in a strict group, while a majority grants it the lease.
    pub(super) fn may_act(&self, pipeline: PipelineId) -> bool {
        if !self.is_strict(pipeline) || self.has(Mutant::LeaseIgnored) {
            return true;
        }
        let Some(Role::Coordinator(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return false;
        };
        let mine = self.config.timing.lease * 4 / 5;
        let (now, me, leases) = (self.now, self.myself(), &reign.strict.leases);
        self.group_view(pipeline).has_quorum(|holder| {
            let granted = leases.get(&holder.0);
            *holder == me
                || granted.is_some_and(|(disk, at)| *disk == holder.1 && now.since(*at) < mine)
        })
    }

    /// Does something once this batch is durable: for a strict group's coordinator, on a majority's
    /// disks.
    pub(super) fn hold_until_durable(&mut self, pipeline: PipelineId, held: Held) {
        let elected =
            self.groups.get(&pipeline).is_some_and(|group| group.elected_term().is_some());
        if elected && self.is_strict(pipeline) {
            self.batch.strict.entry(pipeline).or_default().push(held);
        } else {
            self.hold_until_settled(held);
        }
    }

    /// A batch was sealed that changes a strict group, or on which something of it waits.
    pub(super) fn propose(
        &mut self,
        pipeline: PipelineId,
        batch: PersistId,
        held: Vec<Held>,
        touched: Vec<JobId>,
    ) {
        let now = self.now;
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.elected());
        let Some(reign) = reign else {
            // It was deposed in this very round: nothing of it is committed.
            return self.give_up_held(pipeline, held);
        };
        let (since, acked) = (now, BTreeSet::new());
        let proposal = Proposal { batch, since, acked, held, touched: touched.clone() };
        reign.strict.proposals.push_back(proposal);
        for job in touched {
            // It stays in memory until both this node's disk and a majority have it.
            if let Some(entry) = self.groups.get_mut(&pipeline).and_then(|it| it.jobs.get_mut(&job))
            {
                entry.pending += 1;
            }
        }
        self.proposed.entry(batch).or_default().insert(pipeline);
    }

    /// A disk has all of a batch, but for some groups.
    pub(super) fn on_kept(&mut self, holder: Holder, batch: PersistId, refused: &[PipelineId]) {
        let Some(pipelines) = self.proposed.get(&batch) else { return };
        let kept: Vec<PipelineId> =
            pipelines.iter().copied().filter(|pipeline| !refused.contains(pipeline)).collect();
        for pipeline in kept {
            self.acknowledge(pipeline, holder, |proposal| proposal == batch);
        }
    }

    /// A replica was brought up to date: it has all that was proposed before that began.
    pub(super) fn on_caught_up(&mut self, pipeline: PipelineId, holder: Holder, upto: PersistId) {
        self.acknowledge(pipeline, holder, |batch| batch <= upto);
    }

    /// This node has all batches up to one on its own disk.
    pub(super) fn on_kept_here(&mut self, upto: PersistId) {
        let (me, pipelines) = (self.myself(), self.proposed.range(..=upto));
        let pipelines: BTreeSet<PipelineId> =
            pipelines.flat_map(|(_, pipelines)| pipelines.iter().copied()).collect();
        for pipeline in pipelines {
            self.acknowledge(pipeline, me, |batch| batch <= upto);
        }
    }

    fn acknowledge(
        &mut self,
        pipeline: PipelineId,
        holder: Holder,
        which: impl Fn(PersistId) -> bool,
    ) {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.elected());
        let Some(reign) = reign else { return };
        for proposal in &mut reign.strict.proposals {
            if which(proposal.batch) {
                proposal.acked.insert(holder);
            }
        }
        self.commit(pipeline);
    }

    /// Lets go what waits for proposals that a majority has, in their order.
    fn commit(&mut self, pipeline: PipelineId) {
        loop {
            let (view, me) = (self.group_view(pipeline), self.myself());
            let anybody = self.has(Mutant::HintsCounted);
            let reign = self.groups.get_mut(&pipeline).and_then(|group| group.elected());
            let Some(reign) = reign else { return };
            let Some(first) = reign.strict.proposals.front() else { return };
            let enough = view.has_quorum(|holder| first.acked.contains(holder))
                || anybody && first.acked.len() > view.members.len() / 2;
            // Its own disk is among them, so that a coordinator that comes back knows what it did.
            if !enough || !first.acked.contains(&me) {
                return;
            }
            let Some(proposal) = reign.strict.proposals.pop_front() else { return };
            self.forget_proposed(pipeline, proposal.batch);
            for job in proposal.touched {
                self.on_job_settled(pipeline, job);
            }
            proposal.held.into_iter().for_each(|held| self.let_go(held));
        }
    }

    fn forget_proposed(&mut self, pipeline: PipelineId, batch: PersistId) {
        if let Some(pipelines) = self.proposed.get_mut(&batch) {
            pipelines.remove(&pipeline);
            if pipelines.is_empty() {
                self.proposed.remove(&batch);
            }
        }
    }

    /// What was proposed by a coordinator that is none any more is its successor's to decide.
    pub(super) fn give_up_proposals(&mut self, pipeline: PipelineId) {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.elected());
        let Some(reign) = reign else { return };
        for proposal in std::mem::take(&mut reign.strict.proposals) {
            self.forget_proposed(pipeline, proposal.batch);
            self.give_up_touched(pipeline, proposal.touched);
            self.give_up_held(pipeline, proposal.held);
        }
        if self.is_strict(pipeline) {
            self.drop_watchers_of(pipeline);
        }
    }

    /// What waited for a commit never happens; whoever asked is told where it stands.
    fn give_up_held(&mut self, pipeline: PipelineId, held: Vec<Held>) {
        for held in held {
            if let Held::Answer { asker, answer } = held {
                self.let_answer_fall(pipeline, asker, &answer);
            }
        }
    }

    /// Whether this node can say what holds of a pipeline: of a strict one only a coordinator can
    /// that a majority backs.
    pub(super) fn may_answer(&self, pipeline: PipelineId) -> bool {
        let coordinates = self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator());
        !self.is_strict(pipeline) || coordinates && self.may_act(pipeline)
    }

    /// Whether nothing of a job, or of any, may still be undone.
    pub(super) fn is_committed(&self, pipeline: PipelineId, job: Option<JobId>) -> bool {
        let Some(group) = self.groups.get(&pipeline).filter(|_| self.is_strict(pipeline)) else {
            return true;
        };
        match (job, &group.role) {
            (Some(job), _) => {
                let pending = group.jobs.get(&job).is_some_and(|entry| entry.pending > 0);
                !pending && !self.is_dirty(pipeline, job)
            }
            (None, Role::Coordinator(reign)) => {
                reign.strict.proposals.is_empty() && !self.is_any_dirty(pipeline)
            }
            (None, _) => false,
        }
    }

    fn give_up_touched(&mut self, pipeline: PipelineId, touched: Vec<JobId>) {
        for job in touched {
            let group = self.groups.get_mut(&pipeline);
            if let Some(entry) = group.and_then(|group| group.jobs.get_mut(&job)) {
                entry.pending = entry.pending.saturating_sub(1);
            }
            self.forget_if_settled(pipeline, job);
        }
    }

    /// A voter shows where it differs: nothing is written before all have.
    pub(super) fn note_difference(
        &mut self,
        pipeline: PipelineId,
        records: &[JobUpdate],
        lacks: &[JobId],
        later_ms: u64,
    ) -> Result<(), ReadError> {
        let jobs = records.iter().map(|update| update.job).chain(lacks.iter().copied());
        let (mut mine, mut doubtful) = (Vec::new(), Vec::new());
        let current = self.is_current(pipeline, later_ms);
        for job in jobs {
            match self.whole(pipeline, job)? {
                Some(known) => mine.push(known),
                // It may have been forgotten since the other heard of it.
                None if !current => doubtful.push(job),
                None => {}
            }
        }
        if later_ms > self.horizon_ms(pipeline) + self.marks_kept_ms() {
            // Others have been in step since this copy was: what they lack may have been forgotten.
            self.advance_horizon(pipeline, later_ms);
            doubtful.extend(lacks);
        }
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(()) };
        group.doubtful.extend(doubtful);
        let Some(reign) = group.elected() else { return Ok(()) };
        for update in records.iter().chain(&mine) {
            let joined = reign.strict.merged.entry(update.job).or_default();
            for component in &update.components {
                // What cannot be read counts as missing there.
                let _ = joined.merge(component);
            }
        }
        Ok(())
    }

    /// All voters have shown what they hold: what differs is decided anew, in this term.
    pub(super) fn on_adopt_timer(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let (view, me) = (self.group_view(pipeline), self.myself());
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(()) };
        let Role::TakingOver(reign) = &mut group.role else { return Ok(()) };
        if !reign.unmerged.is_empty() {
            return Ok(());
        }
        let disks = &reign.strict.voter_disks;
        if !view.has_quorum(|holder| *holder == me || disks.get(&holder.0) == Some(&holder.1)) {
            // A voter knew of a later view: its members have to be asked.
            self.step_down(pipeline);
            return Ok(());
        }
        let term = reign.term;
        for (job, joined) in std::mem::take(&mut reign.strict.merged) {
            self.decide_anew(pipeline, job, joined)?;
            if self.batch.is_large() {
                self.seal();
            }
        }
        self.write_view(pipeline, view.members, view.next);
        self.hold_until_durable(pipeline, Held::Adopted { pipeline, term });
        Ok(())
    }

    fn decide_anew(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        joined: JobRecord,
    ) -> Result<(), ReadError> {
        self.load_job(pipeline, job)?;
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(()) };
        let entry = group.jobs.get_or_default(job);
        for component in joined.components() {
            entry.merge(&component);
        }
        let steps: Vec<u16> = entry.record.controls.keys().copied().collect();
        let other: Vec<u16> = entry.record.components().iter().map(|it| it.tag).collect();
        for tag in other.into_iter().filter(|tag| *tag < FIRST_CONTROL) {
            self.touch(pipeline, job, tag, true);
        }
        if !self.has(Mutant::NotDecidedAnew) {
            self.rewrite(pipeline, job, &steps, true);
        }
        Ok(())
    }

    /// Writes parts of a job in this node's term, as they are.
    fn rewrite(&mut self, pipeline: PipelineId, job: JobId, steps: &[u16], spec: bool) {
        let by_coordinator = self.takes_by_coordinator(pipeline);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Some(reign) = group.elected() else { return };
        let term = reign.term;
        let sequences: Vec<u64> = steps.iter().map(|_| reign.next_sequence()).collect();
        let Some(entry) = group.jobs.get_mut(&job) else { return };
        for (step, sequence) in steps.iter().zip(sequences) {
            if let Some(control) = entry.record.controls.get_mut(step) {
                (control.term, control.sequence, control.strict) = (term, sequence, true);
            }
        }
        let spec = entry.record.spec.as_mut().filter(|_| spec && by_coordinator);
        let rewritten = spec.is_some();
        if let Some(spec) = spec {
            std::sync::Arc::make_mut(spec).term = Some(term);
        }
        steps.iter().for_each(|step| self.touch(pipeline, job, FIRST_CONTROL + step, true));
        if rewritten {
            self.touch(pipeline, job, SPEC, true);
        }
    }

    /// A coordinator hears of records that were not committed: what it has itself stands, and is
    /// written again where the other would outrank it; what it does not have it takes. Says what
    /// changed, or nothing while it is not this node's to say.
    pub(super) fn absorb_as_coordinator(
        &mut self,
        pipeline: PipelineId,
        update: &JobUpdate,
        doubted: bool,
    ) -> Result<bool, ReadError> {
        let by_coordinator = self.takes_by_coordinator(pipeline);
        let Some(update) = self.still_counting(pipeline, update) else { return Ok(false) };
        let unknown = !self.load_job(pipeline, update.job)?;
        if !unknown {
            self.make_way(pipeline, &update);
        }
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(false) };
        let Some(term) = group.elected_term() else { return Ok(false) };
        let entry = group.jobs.get_or_default(update.job);
        let is_new = entry.counted.is_none();
        let mut theirs = JobRecord::default();
        for component in &update.components {
            let _ = theirs.merge(component);
        }
        if let Some(reaped) = entry.record.reaped {
            theirs.merge_reaped(reaped);
        }
        let mut steps = Vec::new();
        // Another attempt at a finished job, of which nobody was told: what stands here outranks it,
        // part by part. Some of its parts may have come here before, so that not all of them are below.
        let generation = theirs.generation();
        let mut outranked = false;
        for (step, control) in &mut entry.record.controls {
            if control.generation < generation {
                control.generation = generation;
                steps.push(*step);
                outranked = true;
            }
        }
        if let Some(spec) = entry.record.spec.as_mut().filter(|it| it.generation < generation) {
            std::sync::Arc::make_mut(spec).generation = generation;
            outranked = true;
        }
        for (step, control) in std::mem::take(&mut theirs.controls) {
            match entry.record.controls.get(&step) {
                Some(mine) if *mine >= control => continue,
                Some(_) => {}
                None => drop(entry.record.controls.insert(step, control)),
            }
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        let (spec, conflicts) = (theirs.spec.clone(), entry.record.payload_conflicts());
        let (mut spec_changed, mut tags) = (outranked, BTreeSet::new());
        if outranked {
            tags.insert(SPEC);
        }
        match (&entry.record.spec, spec) {
            (None, Some(spec)) => {
                entry.record.spec = Some(spec);
                (spec_changed, _) = (true, tags.insert(SPEC));
            }
            (Some(mine), Some(spec)) if by_coordinator && spec.term > mine.term => {
                spec_changed = true
            }
            _ => {}
        }
        if let Some(mine) = entry.record.spec.as_mut().filter(|_| spec_changed && by_coordinator) {
            std::sync::Arc::make_mut(mine).term = Some(term);
        }
        for component in theirs.components() {
            if entry.merge(&component) {
                tags.insert(component.tag);
            }
        }
        if entry.record.payload_conflicts() != conflicts {
            tags.insert(PAYLOADS);
        }
        if is_new && entry.record.spec.is_none() && entry.record.unknown.is_empty() {
            group.jobs.remove(&update.job);
            return Ok(false);
        }
        let changed = spec_changed || !tags.is_empty() || !steps.is_empty();
        tags.into_iter().for_each(|tag| self.touch(pipeline, update.job, tag, true));
        self.rewrite(pipeline, update.job, &steps, spec_changed);
        if changed {
            if doubted && unknown {
                self.set_aside_if_old(pipeline, update.job);
            }
            self.note_failed_elsewhere(pipeline, update.job);
            self.refresh(pipeline, update.job);
        } else {
            self.forget_if_settled(pipeline, update.job);
        }
        Ok(changed)
    }

    /// Writes the view in this node's term.
    fn write_view(
        &mut self,
        pipeline: PipelineId,
        members: BTreeSet<Holder>,
        next: Option<BTreeSet<Holder>>,
    ) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Some(reign) = group.elected() else { return };
        let (term, sequence) = (reign.term, reign.next_sequence());
        reign.strict.view_committed = false;
        group.view = Some(GroupView { term, sequence, members, next });
        self.store_view(pipeline);
        self.batch.views.insert(pipeline);
        self.hold_until_durable(pipeline, Held::View { pipeline, sequence });
    }

    /// A view is committed.
    pub(super) fn on_view_committed(&mut self, pipeline: PipelineId, sequence: u64) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let latest = group.view.as_ref().is_some_and(|view| view.sequence == sequence);
        if let Some(reign) = group.elected().filter(|_| latest) {
            reign.strict.view_committed = true;
        }
    }

    /// Brings the view in line with who is there, one change at a time; and gives up a group that
    /// no majority has backed for long. Called each beat.
    pub(super) fn maintain_view(&mut self, pipeline: PipelineId) {
        let lease = self.config.timing.lease;
        if !self.is_strict(pipeline) {
            return;
        }
        if self.is_adoption_stuck(pipeline) {
            return self.step_down(pipeline);
        }
        self.give_up_late_answers(pipeline);
        self.retry_proposals(pipeline);
        let Some(Role::Coordinator(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return;
        };
        let committed = reign.strict.view_committed;
        if self.now.since(reign.strict.since) > lease * 2 && !self.may_act(pipeline) {
            return self.step_down(pipeline);
        }
        if !committed {
            return;
        }
        let view = self.group_view(pipeline);
        if let Some(next) = view.next {
            return self.write_view(pipeline, next, None);
        }
        if !view.has(self.myself()) {
            return self.step_down(pipeline);
        }
        let desired = self.desired_members(pipeline, &view);
        // Fewer members are a majority of less: all of them have to be complete then.
        let shrinks = desired.len() < view.members.len();
        let others = desired.iter().filter(|it| shrinks || !view.members.contains(it));
        if desired != view.members && self.are_complete(pipeline, others) {
            self.write_view(pipeline, view.members, Some(desired));
        }
    }

    /// Whether what this node took over with is not committed for longer than a lease.
    fn is_adoption_stuck(&self, pipeline: PipelineId) -> bool {
        let Some(Role::TakingOver(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return false;
        };
        let first = reign.strict.proposals.front();
        first.is_some_and(|first| self.now.since(first.since) > self.config.timing.lease)
    }

    /// A client has gone that waited for what is not committed yet.
    pub(super) fn drop_held_answers(&mut self, request: RequestId) {
        if !self.are_answers_held() {
            return;
        }
        let mut dropped = 0;
        for group in self.groups.values_mut() {
            let Some(reign) = group.elected() else { continue };
            for proposal in &mut reign.strict.proposals {
                let before = proposal.held.len();
                proposal.held.retain(|held| match held {
                    Held::Answer { asker, .. } => *asker != Asker::Client(request),
                    _ => true,
                });
                dropped += before - proposal.held.len();
            }
        }
        self.answers_dropped(dropped);
    }

    /// Nobody waits for ever for what no majority takes.
    fn give_up_late_answers(&mut self, pipeline: PipelineId) {
        let (now, patience) = (self.now, self.config.timing.request_timeout);
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.elected());
        let Some(reign) = reign else { return };
        let mut late = Vec::new();
        for proposal in &mut reign.strict.proposals {
            if now.since(proposal.since) > patience {
                let asked = |held: &mut Held| matches!(held, Held::Answer { .. });
                late.extend(proposal.held.extract_if(.., asked));
            }
        }
        self.give_up_held(pipeline, late);
    }

    /// Replicas that have had a proposal for long, and do not say so, are brought up to date anew.
    fn retry_proposals(&mut self, pipeline: PipelineId) {
        let (now, patience) = (self.now, self.config.timing.beat * 2);
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return;
        };
        let first = reign.strict.proposals.front();
        let Some(first) = first.filter(|first| now.since(first.since) > patience) else { return };
        let acked: BTreeSet<NodeId> = first.acked.iter().map(|(node, _)| *node).collect();
        let late =
            reign.peers.iter().filter(|(peer, sync)| sync.is_in_step() && !acked.contains(peer));
        let mut late: Vec<NodeId> = late.map(|(peer, _)| *peer).collect();
        // Finished jobs take their time, and bring it all.
        late.retain(|peer| !self.is_syncing(*peer, pipeline));
        for peer in late {
            if let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) {
                reign.peers.insert(peer, PeerSync::Lagging(now));
            }
        }
    }

    /// Who should be in the view: those who are, with the disks that they have now; in place of
    /// those who have been away for long, the best of the others.
    fn desired_members(&self, pipeline: PipelineId, view: &GroupView) -> BTreeSet<Holder> {
        let replicas = self.replicas_of(pipeline).max(1);
        let here: Vec<NodeId> =
            self.replica_nodes().into_iter().filter(|node| self.is_reachable(*node)).collect();
        let mut members = view.members.clone();
        for (node, disk) in &view.members {
            let now = self.disk_of(*node).filter(|_| here.contains(node));
            if let Some(now) = now.filter(|now| now != disk) {
                members.remove(&(*node, *disk));
                members.insert((*node, now));
            }
        }
        let spare = |members: &BTreeSet<Holder>| {
            let ranked = placement::rank(pipeline, here.iter().copied());
            let mut others =
                ranked.into_iter().filter(|node| members.iter().all(|it| it.0 != *node));
            others.find_map(|node| Some((node, self.disk_of(node)?)))
        };
        let gone = members.iter().copied().find(|(node, _)| self.is_long_gone(*node));
        if let (Some(gone), Some(spare)) = (gone, spare(&members)) {
            members.remove(&gone);
            members.insert(spare);
        }
        while members.len() < replicas
            && let Some(spare) = spare(&members)
        {
            members.insert(spare);
        }
        let ranked = placement::rank(pipeline, members.iter().map(|(node, _)| *node));
        for node in ranked.into_iter().skip(replicas) {
            members.retain(|holder| holder.0 != node);
        }
        members
    }

    /// The disk that a node has now.
    pub(super) fn disk_of(&self, node: NodeId) -> Option<DiskId> {
        match node == self.me() {
            true => Some(self.config.disk),
            false => self.members.get(&node).map(|member| member.advert.disk),
        }
    }

    /// Whether these have all that there is, on the disks that they say they have: an advert may be an old one.
    fn are_complete<'a>(
        &self,
        pipeline: PipelineId,
        mut holders: impl Iterator<Item = &'a Holder>,
    ) -> bool {
        let Some(Role::Coordinator(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return false;
        };
        holders.all(|holder| {
            let (node, disk) = holder;
            let said = reign.strict.leases.get(node);
            let has_all = reign.peers.get(node).is_some_and(|sync| sync.has_all());
            *holder == self.myself() || has_all && said.is_some_and(|(said, _)| said == disk)
        })
    }

    /// Whom a strict group's coordinator keeps in step: its view, and those who may come into it.
    pub(super) fn strict_keepers(&self, pipeline: PipelineId) -> Vec<NodeId> {
        let view = self.group_view(pipeline);
        let mut nodes: BTreeSet<NodeId> = view.holders().iter().map(|(node, _)| *node).collect();
        nodes.extend(self.desired_members(pipeline, &view).iter().map(|(node, _)| *node));
        nodes.retain(|node| self.is_reachable(*node));
        placement::rank(pipeline, nodes)
    }
}
