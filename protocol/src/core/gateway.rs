//! The gateway's side: takes jobs from clients and answers once they are durable.
//!
//! The gateway sends to the replicas itself, so jobs are taken while a coordinator is being elected.
//! The answer comes when every replica that can be reached has synced; one that lags is not waited
//! for once there are enough copies. A time-out means that the outcome is not known: whoever sends
//! the job again with the same key gets the same job.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    catalog::CatalogEntry,
    id::{JobId, NodeId, PipelineId},
    io::{NewJob, Receipt, Refusal, Request, RequestId, Response},
    message::{JobUpdate, Message, StoreResult},
    mutant::Mutant,
    name::Name,
    pipeline::Revision,
    record::{JobRecord, JobSpec},
    store::ReadError,
    time::Timestamp,
};

use super::{Core, catalog, query::Asker, timer::Timer};

/// The longest idempotency key, in bytes.
const MAX_KEY_BYTES: usize = 256;

/// Fewer copies than this are called degraded, unless the cluster has no more nodes.
const FEWEST_COPIES: usize = 2;

/// Clients that wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Gateway {
    stores: BTreeMap<u64, Store>,
    last_store: u64,
    /// Whose turn it was last to get jobs without keys, of a pipeline with partitions.
    turn: usize,
    pub(super) applying: BTreeMap<RequestId, catalog::Pending>,
}

impl Gateway {
    /// Nobody waits yet; numbers begin behind `first`.
    pub(super) fn new(first: u64) -> Self {
        Self { last_store: first, ..Self::default() }
    }

    /// Which of so many partitions is the next to get jobs.
    pub(super) fn next_turn(&mut self, partitions: usize) -> usize {
        self.turn = self.turn.wrapping_add(1);
        self.turn % partitions.max(1)
    }

    /// How many clients wait.
    pub(super) fn waiting(&self) -> usize {
        self.stores.len() + self.applying.len()
    }
}

/// Jobs on their way to the replicas.
#[derive(Clone, Debug)]
struct Store {
    /// Who waits; nobody where a schedule enqueues.
    request: Option<RequestId>,
    pipeline: PipelineId,
    revision: Revision,
    updates: Vec<JobUpdate>,
    /// What is known of each job of the request, in its order.
    answers: Vec<Progress>,
    waiting: BTreeSet<NodeId>,
    /// How many were asked.
    asked: usize,
    /// Whether only the pipeline's coordinator is asked.
    by_coordinator: bool,
    since: Timestamp,
}

#[derive(Clone, Debug)]
enum Progress {
    /// Refused before it was sent.
    Refused(Refusal),
    /// Sent, as the update at this position.
    Sent {
        at: usize,
        copies: u32,
        existed: bool,
        refused: usize,
        refusal: Option<Refusal>,
        conflict: bool,
    },
}

impl Core {
    /// A client asks.
    pub(super) fn on_request(&mut self, id: RequestId, request: Request) -> Result<(), ReadError> {
        let waiting = self.gateway.waiting()
            + self.queries.waiting()
            + self.splits.waiting()
            + self.handlers.waiting()
            + self.secrets.waiting();
        if waiting >= self.config.limits.requests {
            self.reply(id, Response::Refused(Refusal::TooManyRequests(waiting)));
            return Ok(());
        }
        match request {
            Request::Apply(definition) => self.apply(id, *definition),
            Request::Remove(name) => self.remove(id, &name),
            Request::Enqueue { pipeline, jobs } => return self.enqueue(id, &pipeline, jobs),
            Request::Job { job, wait } => return self.ask_job(id, job, wait),
            Request::Change { target, change } => return self.ask_change(id, target, change),
            Request::Pause { pipeline, step, paused } => {
                self.pause(id, &pipeline, step.as_ref(), paused);
            }
            Request::Recover { pipeline, lost, accept_loss } => {
                self.recover(id, &pipeline, &lost, accept_loss);
            }
            Request::Jobs { pipeline, of, state, after, limit } => {
                return self.ask_jobs(id, &pipeline, of, state, after, limit);
            }
            Request::Revisions(name) => {
                let response = match self.pipeline_named(&name) {
                    Ok(entry) => Response::Revisions(entry.history()),
                    Err(refusal) => Response::Refused(refusal),
                };
                self.reply(id, response);
            }
            Request::Events { pipeline, partition, query } => {
                self.ask_events(id, pipeline.as_ref(), partition, query);
            }
            Request::Logs(job) => return self.ask_logs(id, job),
            Request::Newest { pipeline, state, after, limit } => {
                return self.ask_newest(id, &pipeline, state, after, limit);
            }
            Request::Steps(pipeline) => self.ask_steps(id, &pipeline),
            Request::Cluster => {
                let view = self.cluster_view();
                self.reply(id, Response::Cluster(Box::new(view)));
            }
            Request::PutHandler { phase, handler } => self.put_handler(id, phase, *handler),
            Request::RemoveHandler { phase, force } => self.remove_handler(id, &phase, force),
            Request::Handlers => self.show_handlers(id),
            Request::PutSecret { place, sealed } => self.put_secret(id, *place, *sealed),
            Request::RemoveSecret(place) => self.remove_secret(id, &place),
            Request::Secrets => self.show_secrets(id),
        }
        Ok(())
    }

    pub(super) fn on_request_dropped(&mut self, id: RequestId) {
        self.drop_parts(id);
        // Jobs that were sent are stored all the same; only the answer has no reader.
        self.gateway.applying.remove(&id);
        self.handlers.drop_request(id);
        self.secrets.drop_request(id);
        self.queries.drop_request(id);
        self.drop_held_answers(id);
        self.drop_readers(|asker| *asker == Asker::Client(id));
        for group in self.groups.values_mut() {
            super::query::drop_watchers(&mut group.watchers, |asker| *asker == Asker::Client(id));
        }
    }

    pub(super) fn reply(&mut self, id: RequestId, response: Response) {
        if let Some((id, response)) = self.take_answer(id, response) {
            self.effects.push_back(crate::io::Effect::Reply { id, response });
        }
    }

    fn enqueue(
        &mut self,
        request: RequestId,
        name: &Name,
        jobs: Vec<NewJob>,
    ) -> Result<(), ReadError> {
        let refused = |refusal| Response::Refused(refusal);
        if !self.config.roles.gateway {
            self.reply(request, refused(Refusal::NotGateway));
            return Ok(());
        }
        if self.draining {
            self.reply(request, refused(Refusal::Stopping));
            return Ok(());
        }
        match self.pipeline_named(name).map(CatalogEntry::id) {
            Ok(pipeline) => self.enqueue_split(request, pipeline, jobs),
            Err(refusal) => {
                self.reply(request, refused(refusal));
                Ok(())
            }
        }
    }

    /// Takes jobs from a client, or from the pipeline's own schedules.
    pub(super) fn enqueue_for(
        &mut self,
        request: Option<RequestId>,
        pipeline: PipelineId,
        jobs: Vec<NewJob>,
    ) -> Result<(), ReadError> {
        let Some(entry) = self.catalog.get(&pipeline) else { return Ok(()) };
        let revision = entry.current;
        let phases = entry.definition().map_or(0, |definition| definition.phases.len()) as u16;
        let keepers = self.keepers(pipeline);
        if keepers.is_empty() {
            if let Some(request) = request {
                self.reply(request, Response::Refused(Refusal::NoReplica));
            }
            return Ok(());
        }
        let mut updates = Vec::with_capacity(jobs.len());
        let mut answers = Vec::with_capacity(jobs.len());
        for job in jobs {
            match self.new_record(pipeline, revision, phases, job) {
                Ok(update) => {
                    let at = updates.len();
                    updates.push(update);
                    answers.push(Progress::Sent {
                        at,
                        copies: 0,
                        existed: false,
                        refused: 0,
                        refusal: None,
                        conflict: false,
                    });
                }
                Err(refusal) => answers.push(Progress::Refused(refusal)),
            }
        }
        self.gateway.last_store += 1;
        let id = self.gateway.last_store;
        let mut waiting: BTreeSet<NodeId> = keepers.into_iter().collect();
        // Whoever coordinates without being a keeper has to know of the jobs too.
        let leader = self.groups.get(&pipeline).and_then(|group| group.leader);
        waiting.extend(leader.map(|leader| leader.node).filter(|node| self.is_reachable(*node)));
        let by_coordinator = self.takes_by_coordinator(pipeline);
        if by_coordinator {
            waiting = self.coordinator_of(pipeline).into_iter().collect();
        }
        let (asked, since) = (waiting.len(), self.now);
        self.gateway.stores.insert(
            id,
            Store {
                request,
                pipeline,
                revision,
                updates,
                answers,
                waiting,
                asked,
                by_coordinator,
                since,
            },
        );
        self.arm(self.config.timing.ack_timeout, Timer::Store(id));
        self.send_store(id)
    }

    fn new_record(
        &mut self,
        pipeline: PipelineId,
        revision: Revision,
        phases: u16,
        job: NewJob,
    ) -> Result<JobUpdate, Refusal> {
        let (bytes, limit) = (job.instructions.len(), self.config.limits.job_bytes);
        if bytes > limit {
            return Err(Refusal::TooLarge { bytes, limit });
        }
        let key_bytes = job.key.as_ref().map(String::len);
        if let Some(bytes) = key_bytes.filter(|bytes| !(1..=MAX_KEY_BYTES).contains(bytes)) {
            return Err(Refusal::KeyLength { bytes, limit: MAX_KEY_BYTES });
        }
        let created_ms = self.wall_ms();
        let id = match &job.key {
            Some(key) if !self.has(Mutant::KeyIgnored) => JobId::of_key(pipeline, key),
            _ => {
                let mut random = [0; 10];
                random[..8].copy_from_slice(&self.random_u64().to_le_bytes());
                random[8..].copy_from_slice(&self.random_u64().to_le_bytes()[..2]);
                JobId::time_ordered(pipeline, created_ms, random)
            }
        };
        let NewJob { key, mut options, trace, instructions } = job;
        let timeout = self.current(pipeline).and_then(|definition| definition.timeout);
        let over = timeout.map(|timeout| {
            let begins = created_ms.max(options.not_before_ms);
            begins.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
        });
        options.deadline_ms = options.deadline_ms.into_iter().chain(over).min();
        let (generation, term) = (0, None);
        let (parent, compensates) = (None, None);
        let spec = JobSpec {
            generation,
            revision,
            phases,
            created_ms,
            term,
            options,
            key,
            parent,
            compensates,
            instructions,
        };
        let record = JobRecord::new(spec).traced(trace);
        Ok(JobUpdate { job: id, components: record.components() })
    }

    /// Sends jobs to every replica that has not answered.
    fn send_store(&mut self, id: u64) -> Result<(), ReadError> {
        let Some(store) = self.gateway.stores.get(&id) else { return Ok(()) };
        let (pipeline, revision) = (store.pipeline, store.revision);
        let jobs = store.updates.clone();
        for peer in store.waiting.clone() {
            if peer == self.me() {
                self.on_store(peer, id, pipeline, revision, &jobs)?;
            } else {
                let jobs = jobs.clone();
                self.send(peer, Message::Store { store: id, pipeline, revision, jobs });
            }
        }
        Ok(())
    }

    /// Who coordinates a pipeline, as far as this node knows and can reach it.
    fn coordinator_of(&self, pipeline: PipelineId) -> Option<NodeId> {
        let group = self.groups.get(&pipeline)?;
        match group.is_coordinator() {
            true => Some(self.me()),
            false => group.leader.map(|leader| leader.node).filter(|node| self.is_reachable(*node)),
        }
    }

    pub(super) fn on_stored_here(&mut self, store: u64, results: Vec<StoreResult>) {
        let pipeline = self.gateway.stores.get(&store).map(|store| store.pipeline);
        let admitted = pipeline.is_some_and(|pipeline| self.is_admitted(pipeline));
        self.on_stored(self.me(), store, admitted.into(), results);
    }

    /// A replica has jobs on disk, or does not take them.
    pub(super) fn on_stored(
        &mut self,
        from: NodeId,
        id: u64,
        told: u32,
        results: Vec<StoreResult>,
    ) {
        let Some(pipeline) = self.gateway.stores.get(&id).map(|store| store.pipeline) else {
            return;
        };
        // Whoever stands in for a member does not count where a majority of these is needed.
        let counts = self.least_copies(pipeline) <= 1 || self.view(pipeline).contains(&from);
        let told = if counts || self.takes_by_coordinator(pipeline) { told } else { 0 };
        let Some(store) = self.gateway.stores.get_mut(&id) else { return };
        if results.len() != store.updates.len() || !store.waiting.remove(&from) {
            return;
        }
        for answer in &mut store.answers {
            let Progress::Sent { at, copies, existed, refused, refusal, conflict } = answer else {
                continue;
            };
            match &results[*at] {
                StoreResult::Stored => *copies += told,
                StoreResult::Existed => {
                    *copies += told;
                    *existed = true;
                }
                StoreResult::Conflict => *conflict = true,
                StoreResult::Refused(why) => {
                    *refused += 1;
                    *refusal = Some(why.clone());
                }
            }
        }
        if store.waiting.is_empty() {
            self.finish_store(id);
        }
    }

    /// A replica cannot be reached: its answer is not waited for.
    pub(super) fn gateway_lost(&mut self, peer: NodeId) {
        let mut done = Vec::new();
        for (id, store) in &mut self.gateway.stores {
            let last = store.waiting.remove(&peer) && store.waiting.is_empty();
            // A coordinator has a successor.
            if last && !store.by_coordinator {
                done.push(*id);
            }
        }
        done.into_iter().for_each(|id| self.finish_store(id));
        let mut done = Vec::new();
        for (request, pending) in &mut self.gateway.applying {
            pending.lost(peer);
            done.push(*request);
        }
        done.into_iter().for_each(|request| self.finish_applying(request, false));
    }

    /// Not all replicas have answered.
    pub(super) fn on_store_timer(&mut self, id: u64) -> Result<(), ReadError> {
        let timing = self.config.timing;
        let Some(store) = self.gateway.stores.get(&id) else { return Ok(()) };
        let enough = self.fewest_copies(store.pipeline) as u32;
        // One replica that refuses says nothing of those that have not answered.
        let safe = store.answers.iter().all(|answer| match answer {
            Progress::Sent { copies, conflict, .. } => *copies >= enough || *conflict,
            Progress::Refused(_) => true,
        });
        if safe || self.now.since(store.since) >= timing.request_timeout {
            self.finish_store(id);
            return Ok(());
        }
        let coordinator = self.coordinator_of(store.pipeline);
        self.arm(timing.ack_timeout, Timer::Store(id));
        let store = self.gateway.stores.get_mut(&id).filter(|store| store.by_coordinator);
        if let (Some(coordinator), Some(store)) = (coordinator, store) {
            let whom = BTreeSet::from([coordinator]);
            // What one coordinator refuses, an earlier one may have taken.
            store.asked += usize::from(store.waiting != whom);
            store.waiting = whom;
        }
        self.send_store(id)
    }

    /// How many copies there must be for an answer without reservation.
    fn fewest_copies(&self, pipeline: PipelineId) -> usize {
        let few = self.replica_nodes().len().min(self.replicas_of(pipeline)).min(FEWEST_COPIES);
        few.max(self.least_copies(pipeline))
    }

    fn finish_store(&mut self, id: u64) {
        let Some(store) = self.gateway.stores.remove(&id) else { return };
        let fewest = self.fewest_copies(store.pipeline) as u32;
        let target = self.replicas_of(store.pipeline).min(self.replica_nodes().len()) as u32;
        let least = self.least_copies(store.pipeline) as u32;
        let name = self.catalog.get(&store.pipeline).map(|entry| entry.name.to_string());
        let answers = store.answers.into_iter().map(|answer| match answer {
            Progress::Refused(refusal) => Err(refusal),
            Progress::Sent { at, conflict: true, .. } => {
                let job = store.updates[at].job;
                let key = key_of(&store.updates[at]);
                Err(Refusal::KeyConflict { key, job })
            }
            // Nobody was there to be asked.
            Progress::Sent { .. } if store.asked == 0 => {
                Err(Refusal::NoCoordinator(name.clone().unwrap_or_default()))
            }
            // Only if all have refused is it known that nothing was done.
            Progress::Sent { copies: 0, refused, refusal, .. } if refused == store.asked => {
                Err(refusal.unwrap_or(Refusal::Unknown))
            }
            Progress::Sent { copies, .. } if copies < least => Err(Refusal::Unknown),
            Progress::Sent { at, copies, existed, .. } => {
                let (job, degraded) = (store.updates[at].job, copies < fewest);
                Ok(Receipt { job, copies, target, degraded, existed })
            }
        });
        let answers = answers.collect();
        if let Some(request) = store.request {
            self.reply(request, Response::Enqueued(answers));
        }
    }
}

fn key_of(update: &JobUpdate) -> String {
    let mut record = JobRecord::default();
    for component in &update.components {
        // This node encoded it; an error would only cost the message its key.
        let _ = record.merge(component);
    }
    record.spec.and_then(|spec| spec.key.clone()).unwrap_or_default()
}
