//! The pipelines that the cluster knows: kept by every node, joined like job records.
//!
//! A change goes to every peer at once; a digest in each beat finds what was missed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    catalog::CatalogEntry,
    codec,
    id::{DiskId, JobId, NodeId, PipelineId},
    io::{Effect, Refusal, RequestId, Response},
    message::Message,
    name::Name,
    pipeline::{PipelineDef, Quorum, Revision},
    record::JobRecord,
    store::{ReadError, Table, Write},
};

use super::{
    Core,
    commit::Held,
    group::{Group, Promise},
    timer::Timer,
};

/// The prefix of a pipeline's definition, in [`Table::Meta`].
const CATALOG: u8 = 0x01;

/// The key of something about a pipeline, in [`Table::Meta`].
pub(super) fn meta_key(prefix: u8, pipeline: PipelineId) -> Bytes {
    let mut key = vec![prefix];
    key.extend_from_slice(&pipeline.to_be_bytes());
    key.into()
}

/// What a pipeline keeps for as long as it lives.
fn modes(definition: &PipelineDef) -> (Quorum, Quorum) {
    (definition.accept, definition.execute)
}

/// A change of the catalog that its client waits for.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// The entries by their digests, the pipeline's own first.
    entries: Vec<(PipelineId, u64)>,
    waiting: BTreeSet<NodeId>,
    here: bool,
    copies: u32,
    changed: bool,
}

impl Pending {
    /// A peer cannot be reached: it is not waited for.
    pub(super) fn lost(&mut self, peer: NodeId) {
        self.waiting.remove(&peer);
    }
}

impl Core {
    pub(super) fn load_catalog(&mut self) -> Result<(), ReadError> {
        let most = usize::MAX;
        for (_, value) in self.reader.scan(Table::Meta, &[CATALOG], &[CATALOG + 1], most)? {
            let entry: CatalogEntry = codec::decode(&value).map_err(|error| ReadError {
                table: Table::Meta.name(),
                reason: format!("a pipeline's definition is damaged: {error}"),
            })?;
            self.catalog.insert(entry.id(), entry);
        }
        self.digest_catalog();
        Ok(())
    }

    fn digest_catalog(&mut self) {
        self.catalog_digest = self.catalog.values().fold(0, |all, entry| all ^ entry.digest());
        self.advert_changed = true;
        self.find_partitions();
    }

    /// The definition that a job follows.
    pub(super) fn definition(
        &self,
        pipeline: PipelineId,
        revision: Revision,
    ) -> Option<&PipelineDef> {
        self.catalog.get(&pipeline)?.revisions.get(&revision)
    }

    /// How many nodes should keep a pipeline's jobs.
    pub(super) fn replicas_of(&self, pipeline: PipelineId) -> usize {
        let definition = self.catalog.get(&pipeline).and_then(CatalogEntry::definition);
        definition.map_or(0, |definition| definition.replicas.into())
    }

    /// The pipeline of that name, unless it was removed.
    pub(super) fn pipeline_named(&self, name: &Name) -> Result<&CatalogEntry, Refusal> {
        let entry = self.catalog.get(&PipelineId::of_name(name.as_str()));
        entry.filter(|entry| !entry.removed).ok_or_else(|| Refusal::UnknownPipeline {
            name: name.to_string(),
            known: self
                .catalog
                .values()
                .filter(|entry| !entry.removed && entry.partition() == 0)
                .take(10)
                .map(|entry| entry.name.to_string())
                .collect(),
        })
    }

    /// A client wants a pipeline made or changed.
    pub(super) fn apply(&mut self, request: RequestId, mut definition: PipelineDef) {
        self.date_schedules(&mut definition);
        match self.entries_of(definition) {
            Ok(entries) => self.spread(request, entries),
            Err(refusal) => self.reply(request, Response::Refused(refusal)),
        }
    }

    /// The entries of a definition's partitions, as they are to be.
    fn entries_of(&self, mut definition: PipelineDef) -> Result<Vec<CatalogEntry>, Refusal> {
        let first = self.catalog.get(&definition.id()).filter(|entry| !entry.removed);
        // Not all that there are may be known here yet, nor all that lived on when others were removed.
        let parts = self.partitions_of(definition.id()).into_iter();
        let known = parts.filter_map(|part| self.catalog.get(&part).map(CatalogEntry::partition));
        let told = first.and_then(CatalogEntry::definition).map_or(1, |it| it.partitions);
        let now = known.map(|number| number + 1).max().unwrap_or(1).max(told);
        let wanted = definition.partitions;
        if wanted < now {
            return Err(Refusal::InvalidPipeline(format!(
                "pipeline `{}` has {now} partitions, and they cannot become {wanted}: those that \
                 went would leave their jobs behind; give partitions = {now} or more, or another \
                 name",
                definition.name
            )));
        }
        if let Some(current) = first.and_then(CatalogEntry::definition) {
            definition.keyed_partitions = current.keyed_partitions;
        }
        let most = self.config.limits.pipelines;
        let mut room = most.saturating_sub(self.known_pipelines());
        room = room.min((4 * most).saturating_sub(self.catalog.len()));
        let mut entries = Vec::with_capacity(definition.partitions.into());
        for partition in 0..definition.partitions {
            let mut entry = self.entry_of(definition.of_partition(partition), &mut room)?;
            if let Some(first) = entries.first() {
                let CatalogEntry { paused, paused_steps, .. } = first;
                (entry.paused, entry.paused_steps) = (*paused, paused_steps.clone());
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    fn known_pipelines(&self) -> usize {
        self.catalog.values().filter(|entry| !entry.removed).count()
    }

    /// The entry of a definition; one that is new takes some of the room that there is.
    fn entry_of(&self, definition: PipelineDef, room: &mut usize) -> Result<CatalogEntry, Refusal> {
        let (id, revision) = (definition.id(), definition.revision());
        let entry = match self.catalog.get(&id) {
            Some(entry) if !entry.removed && entry.current == revision => entry.clone(),
            Some(entry) if entry.definition().is_some_and(|it| modes(it) != modes(&definition)) => {
                return Err(Refusal::InvalidPipeline(format!(
                    "pipeline `{}` cannot change between the presets: `accept` and `execute` stay \
                     as they were when it was made; give the new one another name",
                    definition.name
                )));
            }
            Some(entry) => entry.changed(definition),
            None if *room == 0 => {
                return Err(Refusal::TooManyPipelines(self.known_pipelines()));
            }
            None => {
                *room -= 1;
                let founders = self.founders(id, definition.replicas.into());
                if founders.is_empty() {
                    return Err(Refusal::NoReplica);
                }
                let known = self.replica_nodes();
                let here = known.iter().filter(|node| self.is_reachable(**node)).count();
                let wanted = known.len().max(definition.replicas.into());
                if definition.execute == Quorum::Majority && here <= wanted / 2 {
                    // Those beyond a partition might found it too.
                    return Err(Refusal::InvalidPipeline(format!(
                        "execute = \"majority\" needs a majority of all replicas to begin with: \
                         {here} of {wanted} can be reached; start the others first, or ask for \
                         fewer `replicas`"
                    )));
                }
                CatalogEntry::new(definition, founders)
            }
        };
        Ok(entry)
    }

    /// A schedule is in force from now on, unless it was before.
    fn date_schedules(&self, definition: &mut PipelineDef) {
        let now_ms = self.wall_ms();
        let entry = self.catalog.get(&definition.id()).filter(|entry| !entry.removed);
        let current = entry.and_then(CatalogEntry::definition);
        for schedule in &mut definition.schedules {
            let known = current.into_iter().flat_map(|current| &current.schedules);
            let same = known.filter(|known| known.is_alike(schedule)).last();
            schedule.since_ms = same.map_or(now_ms, |same| same.since_ms);
        }
    }

    /// Those who keep a new pipeline's jobs: their copies are complete, since there are none yet.
    fn founders(&self, pipeline: PipelineId, replicas: usize) -> BTreeSet<(NodeId, DiskId)> {
        let reachable = self.replica_nodes().into_iter().filter(|node| self.is_reachable(*node));
        let disk = |node: NodeId| match self.members.get(&node) {
            Some(member) => member.advert.disk,
            None => self.config.disk,
        };
        let ranked = crate::placement::rank(pipeline, reachable);
        ranked.into_iter().take(replicas).map(|node| (node, disk(node))).collect()
    }

    /// A client wants a pipeline gone.
    pub(super) fn remove(&mut self, request: RequestId, name: &Name) {
        let entries = match self.entries_named(name) {
            Ok(entries) => entries,
            Err(refusal) => return self.reply(request, Response::Refused(refusal)),
        };
        let counted = |group: &Group| group.elected_term().is_some() || group.beat.is_some();
        let known = |entry: &CatalogEntry| {
            let group = self.groups.get(&entry.id());
            group.is_some_and(|group| self.hears_leader(group) && counted(group))
        };
        if !entries.iter().all(known) {
            // Only its coordinator can say that nothing is unfinished.
            let refusal = Refusal::NoCoordinator(name.to_string());
            return self.reply(request, Response::Refused(refusal));
        }
        let unfinished = entries.iter().map(|entry| self.unfinished(entry.id()));
        let unfinished = unfinished.fold(0, u64::saturating_add);
        if unfinished > 0 {
            let refusal = Refusal::PipelineInUse { name: name.to_string(), unfinished };
            return self.reply(request, Response::Refused(refusal));
        }
        let removed = |entry: CatalogEntry| {
            let generation = entry.generation + 1;
            CatalogEntry { generation, removed: true, ..entry }
        };
        self.spread(request, entries.into_iter().map(removed).collect());
    }

    /// The entries of a pipeline's partitions.
    fn entries_named(&self, name: &Name) -> Result<Vec<CatalogEntry>, Refusal> {
        let parts = self.partitions_named(name)?;
        Ok(parts.iter().filter_map(|part| self.catalog.get(part).cloned()).collect())
    }

    /// A client wants no more work of a pipeline given out, or again.
    pub(super) fn pause(
        &mut self,
        request: RequestId,
        name: &Name,
        step: Option<&Name>,
        paused: bool,
    ) {
        let entries = match self.entries_named(name) {
            Ok(entries) => entries,
            Err(refusal) => return self.reply(request, Response::Refused(refusal)),
        };
        let revisions = entries.iter().flat_map(|entry| entry.revisions.values());
        let steps = revisions.flat_map(PipelineDef::all_phases);
        let known: BTreeSet<&Name> = steps.map(|phase| &phase.name).collect();
        if let Some(step) = step.filter(|step| !known.contains(step)) {
            let known = known.into_iter().map(ToString::to_string).collect();
            let refusal = Refusal::UnknownStep { step: step.to_string(), known };
            return self.reply(request, Response::Refused(refusal));
        }
        let pausing = entries.iter().map(|entry| entry.pausing(step, paused));
        let pausing = pausing.collect();
        self.spread(request, pausing);
    }

    /// How many jobs of a pipeline are not finished, as far as this node knows.
    fn unfinished(&self, pipeline: PipelineId) -> u64 {
        let Some(group) = self.groups.get(&pipeline) else { return 0 };
        let told = group.beat.as_ref().map_or(0, |beat| beat.live.count);
        group.live.count.max(told)
    }

    fn spread(&mut self, request: RequestId, entries: Vec<CatalogEntry>) {
        let mut changed = false;
        for entry in &entries {
            changed |= self.learn(entry);
        }
        let waiting: BTreeSet<NodeId> = self.reachable().into_iter().collect();
        for &peer in &waiting {
            self.send(peer, Message::Catalog(entries.clone()));
        }
        let entries = entries.iter().map(|entry| (entry.id(), entry.digest())).collect();
        let pending = Pending { entries, waiting, here: false, copies: 0, changed };
        self.gateway.applying.insert(request, pending);
        self.hold_until_on_disk(Held::Applied(request));
        self.arm(self.config.timing.ack_timeout, Timer::Apply(request));
    }

    /// Entries of removed pipelines stay, so that nobody brings these back; they are bounded too.
    fn is_catalog_full(&self) -> bool {
        self.catalog.len() >= 4 * self.config.limits.pipelines
    }

    /// Takes over what an entry says. Says whether that was news.
    fn learn(&mut self, entry: &CatalogEntry) -> bool {
        let (id, full) = (entry.id(), self.is_catalog_full());
        let coordinates = self.groups.get(&id).is_some_and(Group::is_coordinator);
        let before = self.catalog.get(&id).filter(|_| coordinates).cloned();
        let changed = match self.catalog.get_mut(&id) {
            Some(known) => known.merge(entry),
            None if full => false,
            None => {
                self.catalog.insert(id, entry.clone());
                true
            }
        };
        if changed && let Some(known) = self.catalog.get(&id) {
            let (key, value) = (meta_key(CATALOG, id), codec::encode(known));
            let now = before.is_some().then(|| known.clone());
            self.write(Write::Put { table: Table::Meta, key, value });
            if let (Some(before), Some(now)) = (&before, now) {
                self.tell_entry(before, &now);
            }
            self.digest_catalog();
            self.found_group(id);
            self.grant_to_coordinators();
            self.release_held_back(id);
            if let Some(before) = before {
                self.take_up_followers(id, &before);
            }
        }
        changed
    }

    /// A job may come from elsewhere before the definition that it follows does. Until then its
    /// coordinator could do nothing about it, and nothing else would bring it back to it.
    fn take_up_followers(&mut self, pipeline: PipelineId, before: &CatalogEntry) {
        let (Some(entry), Some(group)) =
            (self.catalog.get(&pipeline), self.groups.get_mut(&pipeline))
        else {
            return;
        };
        let is_news =
            |at: &Revision| !before.revisions.contains_key(at) && entry.revisions.contains_key(at);
        if !entry.revisions.keys().any(is_news) {
            return;
        }
        let followed = |record: &JobRecord| record.spec.as_ref().map(|spec| spec.revision);
        let jobs = group.jobs.range(JobId::MIN..=JobId::MAX);
        let jobs = jobs.filter(|(_, entry)| followed(&entry.record).as_ref().is_some_and(is_news));
        let resting = group.jobs.resting_from(JobId::MIN).filter(|it| is_news(&it.revision));
        let resting: Vec<JobId> = resting.map(|it| it.job).collect();
        let jobs: Vec<JobId> = jobs.map(|(job, _)| *job).chain(resting).collect();
        if let Some(reign) = group.reign() {
            // Nor could it see what those that have failed had done.
            reign.uncompensated = Some((0, JobId::MIN));
        }
        for job in jobs {
            self.wake(pipeline, job);
            self.refresh(pipeline, job);
            self.rest_if_crowded(pipeline, job);
        }
    }

    /// Makes a group for a pipeline; a founder's copy counts from the start, and only then.
    fn found_group(&mut self, pipeline: PipelineId) {
        let now = self.now;
        let (me, disk) = (self.me(), self.config.disk);
        let founder =
            self.catalog.get(&pipeline).is_some_and(|entry| entry.founders.contains(&(me, disk)));
        let group = self.groups.entry(pipeline).or_insert_with(|| Group::new(pipeline, now));
        if founder && group.promise == Promise::NONE {
            group.promise.admitted = Some(disk);
            self.write_promise(pipeline);
            self.note_made(pipeline);
        }
        self.consider_election(pipeline);
    }

    /// A peer tells what it knows.
    pub(super) fn on_catalog(&mut self, from: NodeId, entries: Vec<CatalogEntry>) {
        let mut known = Vec::new();
        for entry in entries {
            if entry.is_valid() {
                self.learn(&entry);
            }
            if self.catalog.contains_key(&entry.id()) {
                known.push((entry.id(), entry.digest()));
            }
        }
        let ack = Effect::Send { to: from, message: Message::CatalogAck(known) };
        self.hold_until_on_disk(Held::Effect(Box::new(ack)));
    }

    pub(super) fn send_catalog(&mut self, to: NodeId) {
        let entries: Vec<CatalogEntry> = self.catalog.values().cloned().collect();
        for entries in entries.chunks(64) {
            self.send(to, Message::Catalog(entries.to_vec()));
        }
    }

    pub(super) fn on_catalog_ack(&mut self, from: NodeId, known: &[(PipelineId, u64)]) {
        let mut done = Vec::new();
        for (request, pending) in &mut self.gateway.applying {
            let all = pending.entries.iter().all(|entry| known.contains(entry));
            if all && pending.waiting.remove(&from) {
                pending.copies += 1;
                done.push(*request);
            }
        }
        done.into_iter().for_each(|request| self.finish_applying(request, false));
    }

    pub(super) fn on_applied_here(&mut self, request: RequestId) {
        if let Some(pending) = self.gateway.applying.get_mut(&request) {
            pending.here = true;
            pending.copies += 1;
        }
        self.finish_applying(request, false);
        self.on_handler_here(request);
        self.on_secret_here(request);
    }

    pub(super) fn on_apply_timer(&mut self, request: RequestId) {
        self.finish_applying(request, true);
        self.finish_handler(request, true);
        self.finish_secret(request, true);
    }

    /// Answers once all have it, or, when time is up, once it is on this node's disk.
    pub(super) fn finish_applying(&mut self, request: RequestId, time_is_up: bool) {
        let Some(pending) = self.gateway.applying.get(&request) else { return };
        if !pending.here || !(time_is_up || pending.waiting.is_empty()) {
            if time_is_up {
                self.arm(self.config.timing.ack_timeout, Timer::Apply(request));
            }
            return;
        }
        let Some(pending) = self.gateway.applying.remove(&request) else { return };
        let first = pending.entries.first().and_then(|(first, _)| self.catalog.get(first));
        let there = pending.entries.iter().all(|(id, _)| self.catalog.contains_key(id));
        let Some(entry) = first.filter(|_| there) else {
            // Others filled the catalog up meanwhile.
            let refusal = Refusal::TooManyPipelines(self.catalog.len());
            return self.reply(request, Response::Refused(refusal));
        };
        let response = if entry.removed {
            Response::Removed
        } else {
            let (changed, copies) = (pending.changed, pending.copies);
            Response::Applied { revision: entry.current, changed, copies }
        };
        self.reply(request, response);
    }

    /// Definitions by pipeline, for those who only look.
    pub(super) fn pipelines(&self) -> &BTreeMap<PipelineId, CatalogEntry> {
        &self.catalog
    }
}
