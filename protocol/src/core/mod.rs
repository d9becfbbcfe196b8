//! One node's protocol brain: inputs and time in, effects out.
//!
//! ```text
//!            handle_input(now, Input)      poll_effect() -> Effect
//!  driver ─► handle_timeout(now)      Core ─────────────────────────► driver
//!            ◄───────────────────────────── poll_timeout() -> when to call again
//! ```
//! The driver hands in all inputs that wait, then takes all effects, then sleeps until the next
//! input or the time-out; a time-out that comes too early does no harm. All changes between two
//! rounds of effects form one batch: one write with one sync, one frame to each replica. Whatever
//! says that something is durable waits in that batch until it is.
//!
//! Each concern has a module; they share this struct and nothing else.

mod attempts;
mod beat;
mod catalog;
mod change;
mod collect;
mod commit;
mod compensate;
mod dispatch;
mod election;
mod events;
mod fan;
mod figures;
mod fork;
mod gateway;
mod group;
mod handlers;
mod inspect;
mod items;
mod journal;
mod members;
mod offer;
mod overdue;
mod pages;
mod partitions;
mod query;
mod ready;
mod recover;
mod reign;
mod replica;
mod retention;
mod said;
mod schedules;
mod secrets;
mod session;
mod steps;
mod strict;
mod sync;
mod table;
mod timer;
mod views;
mod worker;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

use crate::{
    catalog::CatalogEntry,
    config::Config,
    figures::Counted,
    id::{JobId, NodeId, PipelineId},
    io::{Effect, Input, PersistId},
    message::Message,
    mutant::Mutant,
    store::{ReadError, Reader},
    time::Timestamp,
};

pub use inspect::{GroupSnapshot, Snapshot, StoredPromise, stored_promise};

use beat::Beats;
use commit::{Batch, Commit};
use dispatch::Window;
use events::ClusterEvents;
use gateway::Gateway;
use group::Group;
use handlers::Handlers;
use journal::Journal;
use members::Member;
use overdue::Avoided;
use partitions::Splits;
use query::Queries;
use secrets::Secrets;
use sync::Session;
use timer::Timer;
use worker::Worker;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct Core {
    config: Config,
    rng: ChaCha8Rng,
    reader: Arc<dyn Reader>,
    now: Timestamp,
    started: Timestamp,
    /// The wall clock at timestamp zero, in ms since 1970.
    wall_base_ms: u64,
    effects: VecDeque<Effect>,
    timers: BTreeSet<(Timestamp, Timer)>,

    members: BTreeMap<NodeId, Member>,
    connections: BTreeSet<NodeId>,
    /// Nodes that were shut out.
    expelled: BTreeSet<NodeId>,
    addresses: Vec<String>,
    /// The highest sequence of a token given out since this boot, in whichever pipeline.
    issued: u64,
    advert_sequence: u64,
    advert_changed: bool,
    advert_sent: Timestamp,
    /// Why this node takes no jobs.
    refusing: Option<String>,
    draining: bool,

    catalog: BTreeMap<PipelineId, CatalogEntry>,
    catalog_digest: u64,
    /// The partitions of those pipelines that are split, by the first of them.
    partitions: BTreeMap<PipelineId, Vec<PipelineId>>,
    handlers: Handlers,
    secrets: Secrets,
    groups: BTreeMap<PipelineId, Group>,

    batch: Batch,
    journal: Journal,
    commits: VecDeque<Commit>,
    next_persist: u64,
    /// Batches that wait for a majority of some strict groups.
    proposed: BTreeMap<PersistId, BTreeSet<PipelineId>>,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    /// When jobs were listed or read for comparisons last, and how many then.
    compared: (Timestamp, usize),

    beats: Beats,
    windows: BTreeMap<NodeId, Window>,
    /// Workers that kept attempts for too long.
    avoided: BTreeMap<NodeId, Avoided>,
    assigned: u64,
    worker: Worker,
    gateway: Gateway,
    queries: Queries,
    splits: Splits,
    cluster_events: ClusterEvents,
    /// Why the store could not be read, where that is not told at once.
    broken: Option<ReadError>,
    /// Whether resident jobs took more memory than they should when that was looked at last.
    crowded: bool,
    /// Jobs that failed since it was last looked whether they are compensated.
    failed: BTreeSet<(PipelineId, JobId)>,
    counted: Counted,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

impl Core {
    /// A node that starts: reads what it has on disk. `seed` should differ at each start; `unix_ms`
    /// is the wall clock at `now`.
    ///
    /// # Errors
    /// The store cannot be read, or what it holds is damaged.
    pub fn new(
        config: Config,
        seed: u64,
        now: Timestamp,
        unix_ms: u64,
        reader: Box<dyn Reader>,
    ) -> Result<Self, ReadError> {
        let worker = Worker::new(&config.phases);
        // Numbers that others answer by differ between two starts: an answer to what an earlier
        // process asked must not pass for one to what this one asks.
        let first = config.boot << 32;
        let event_bytes = config.limits.event_bytes / 2;
        let mut core = Self {
            config,
            rng: ChaCha8Rng::seed_from_u64(seed),
            reader: reader.into(),
            now,
            started: now,
            wall_base_ms: unix_ms.saturating_sub(now.as_millis()),
            effects: VecDeque::new(),
            timers: BTreeSet::new(),
            members: BTreeMap::new(),
            connections: BTreeSet::new(),
            expelled: BTreeSet::new(),
            addresses: Vec::new(),
            issued: 0,
            advert_sequence: 0,
            advert_changed: true,
            advert_sent: now,
            refusing: None,
            draining: false,
            catalog: BTreeMap::new(),
            catalog_digest: 0,
            partitions: BTreeMap::new(),
            handlers: Handlers::default(),
            secrets: Secrets::default(),
            groups: BTreeMap::new(),
            batch: Batch::default(),
            journal: Journal::new(),
            commits: VecDeque::new(),
            next_persist: first,
            proposed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            next_session: first,
            compared: (now, 0),
            beats: Beats::new(now),
            windows: BTreeMap::new(),
            avoided: BTreeMap::new(),
            assigned: 0,
            worker,
            gateway: Gateway::new(first),
            queries: Queries::new(first),
            splits: Splits::default(),
            cluster_events: ClusterEvents::new(event_bytes),
            broken: None,
            crowded: false,
            failed: BTreeSet::new(),
            counted: Counted::default(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        core.load_members()?;
        core.load_catalog()?;
        core.load_handlers()?;
        core.load_secrets()?;
        core.load_groups()?;
        core.grant_to_self();
        core.arm(Duration::ZERO, Timer::Beat);
        Ok(core)
    }

    /// Something happened.
    ///
    /// # Errors
    /// The store cannot be read: the node must stop.
    pub fn handle_input(&mut self, now: Timestamp, input: Input) -> Result<(), ReadError> {
        self.advance(now);
        match input {
            Input::PeerUp(peer) => self.on_peer_up(peer),
            Input::PeerDown(peer) => self.on_peer_down(peer),
            Input::Expelled(node) => self.on_expelled(node),
            Input::Message { from, message } => self.on_message(from, message)?,
            Input::Advert(advert) => self.on_advert(advert),
            Input::Listening(addresses) => self.on_listening(addresses),
            Input::Request { id, request } => self.on_request(id, request)?,
            Input::RequestDropped(id) => self.on_request_dropped(id),
            Input::Persisted(id) => self.on_persisted(id),
            Input::AttemptFinished { token, outcome } => {
                self.on_attempt_finished(token, outcome)?
            }
            Input::Items { token, lines } => self.on_items_given(token, lines)?,
            Input::Said { token, said } => self.on_said_here(token, said),
            Input::Session { token, entries } => self.on_session_left(token, entries),
            Input::Accepting(accepting) => self.on_accepting(accepting),
            Input::Draining => self.on_draining(),
            Input::Offers(phases) => self.on_offers(phases),
        }
        self.compensate_failed()?;
        if self.batch.is_large() {
            self.seal();
        }
        self.broken.take().map_or(Ok(()), Err)
    }

    /// The moment that [`poll_timeout`](Self::poll_timeout) named has come.
    ///
    /// # Errors
    /// The store cannot be read: the node must stop.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Result<(), ReadError> {
        self.advance(now);
        self.drop_lagging_replicas();
        while let Some(timer) = self.next_due() {
            self.on_timer(timer)?;
            self.compensate_failed()?;
        }
        self.broken.take().map_or(Ok(()), Err)
    }

    /// When [`handle_timeout`](Self::handle_timeout) should be called.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let timer = self.timers.first().map(|(at, _)| *at);
        timer.into_iter().chain(self.lagging_at()).min()
    }

    /// The next thing to do; to be called until it gives nothing more.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.effects.is_empty() {
            self.seal();
        }
        self.effects.pop_front()
    }

    /// The wall clock was set, or is told again because clocks drift.
    pub fn set_wall_clock(&mut self, now: Timestamp, unix_ms: u64) {
        self.wall_base_ms = unix_ms.saturating_sub(now.as_millis());
    }

    /// Switches a bug on.
    #[cfg(feature = "mutants")]
    pub fn mutate(&mut self, mutant: Option<Mutant>) {
        self.mutant = mutant;
        if self.has(Mutant::OrphansDropped) {
            let groups: Vec<PipelineId> = self.groups.keys().copied().collect();
            groups.into_iter().for_each(|pipeline| self.drop_group_data(pipeline));
        }
    }

    /// Whether a bug is switched on.
    #[cfg(feature = "mutants")]
    fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    /// Whether a bug is switched on: none can be.
    #[cfg(not(feature = "mutants"))]
    fn has(&self, _: Mutant) -> bool {
        false
    }

    fn advance(&mut self, now: Timestamp) {
        // A clock that went back would fire timers twice; time stands still instead.
        self.now = self.now.max(now);
    }

    fn on_message(&mut self, from: NodeId, message: Message) -> Result<(), ReadError> {
        if self.expelled.contains(&from) {
            // It came over the connection that is being cut.
            return Ok(());
        }
        self.heard_from(from);
        if self.has(Mutant::TimersPile) {
            let another = Timer::Query(u64::MAX - self.timers.len() as u64);
            self.arm(Duration::from_secs(3600), another);
        }
        match message.joined() {
            Message::Hello(advert) => self.on_hello(from, advert),
            Message::Catalog(entries) => self.on_catalog(from, entries),
            Message::CatalogAck(known) => self.on_catalog_ack(from, &known),
            Message::CatalogPull => self.send_catalog(from),
            Message::Beat(beat) => self.on_beat(from, beat),
            Message::BeatAck(ack) => self.on_beat_ack(from, ack)?,
            Message::PreVote { pipeline, counter, founding } => {
                self.on_pre_vote(from, pipeline, counter, founding);
            }
            Message::Vote { pipeline, term, founding } => {
                self.on_vote(from, pipeline, term, founding);
            }
            Message::Ballot(ballot) => self.on_ballot(from, ballot),
            Message::Stale { pipeline, term } => self.note_term(pipeline, term),
            Message::Admit { pipeline, term, disk, copy } => {
                self.on_admit(pipeline, term, disk, copy);
            }
            Message::Replicate(replicate) => self.on_replicate(from, replicate)?,
            Message::ReplicateAck { batch, missing, refused, disk } => {
                self.on_replicate_ack((from, disk), batch, &missing, &refused)?;
            }
            Message::SyncPage(page) => self.on_sync_page(from, page)?,
            Message::SyncReply(reply) => self.on_sync_reply(from, reply)?,
            Message::SyncPush { session, part, pipeline, term, records } => {
                self.on_sync_push(from, (session, part), (pipeline, term), &records)?;
            }
            Message::SyncPushAck { session, part, disk } => {
                self.on_sync_push_ack((from, disk), session, part)?;
            }
            Message::Store { store, pipeline, revision, jobs } => {
                self.on_store(from, store, pipeline, revision, &jobs)?;
            }
            Message::Stored { store, copies, results } => {
                self.on_stored(from, store, copies, results);
            }
            Message::Assign(assignment) => self.on_assign(from, *assignment),
            Message::Declined(token) => self.on_declined(from, token),
            Message::Completed(completion) => self.on_completed(from, completion)?,
            Message::Items(items) => self.on_items(from, items)?,
            Message::ItemsAck { token, count } => self.on_items_taken(token, count),
            Message::Said(batch) => self.on_said(from, *batch),
            Message::CompletionAck(token) => self.worker_forget(token),
            Message::Cancel(token) => self.worker_cancel(token),
            Message::Grant { windows } => self.on_grant(from, windows),
            Message::Query { query, question } => self.on_query(from, query, question)?,
            Message::Answer { query, answer } => self.on_answer(from, query, answer),
            Message::Handlers(entries) => self.on_handlers(from, entries),
            Message::HandlersAck(known) => self.on_handlers_ack(from, &known),
            Message::HandlersPull(known) => self.on_handlers_pull(from, &known),
            Message::Secrets(entries) => self.on_secrets(from, entries),
            Message::SecretsAck(known) => self.on_secrets_ack(from, &known),
            Message::SecretsPull(known) => self.on_secrets_pull(from, &known),
            // They were joined with what they carry.
            Message::AssignWith(_) | Message::CompletedWith(_) => {}
            Message::Trace { of, trace } => self.on_trace(from, of, trace),
        }
        Ok(())
    }

    fn on_timer(&mut self, timer: Timer) -> Result<(), ReadError> {
        match timer {
            Timer::Beat => self.on_beat_timer()?,
            Timer::Election(pipeline) => self.on_election_timer(pipeline),
            Timer::Grace(peer) => self.on_grace_over(peer),
            Timer::Claim(pipeline) => self.on_claims_over(pipeline),
            Timer::Delayed(pipeline) => self.on_delay_over(pipeline),
            Timer::Deadline(pipeline) => self.on_deadline(pipeline),
            Timer::Schedule(pipeline) => self.run_schedules(pipeline)?,
            Timer::Tidy(pipeline) => self.tidy(pipeline)?,
            Timer::Items(pipeline) => self.on_items_timer(pipeline)?,
            Timer::Store(store) => self.on_store_timer(store)?,
            Timer::Apply(request) => self.on_apply_timer(request),
            Timer::Query(query) => self.on_query_timer(query),
            Timer::Watch(pipeline) => self.on_watch_timer(pipeline)?,
            Timer::Sync(session) => self.on_sync_timer(session)?,
            Timer::Adopt(pipeline) => self.on_adopt_timer(pipeline)?,
            Timer::Events(stream) => self.on_events_timer(stream),
            Timer::Said => self.on_said_timer(),
        }
        Ok(())
    }

    fn me(&self) -> NodeId {
        self.config.node
    }

    /// The wall clock, in ms since 1970.
    fn wall_ms(&self) -> u64 {
        self.wall_base_ms + self.now.as_millis()
    }

    fn send(&mut self, to: NodeId, message: Message) {
        debug_assert_ne!(to, self.me());
        self.effects.push_back(Effect::Send { to, message });
    }

    /// A wait between zero and `most`.
    fn jitter(&mut self, most: Duration) -> Duration {
        let most = most.as_millis() as u64;
        Duration::from_millis(self.rng.next_u64() % (most + 1))
    }

    fn random_u64(&mut self) -> u64 {
        self.rng.next_u64()
    }

    fn next_persist_id(&mut self) -> PersistId {
        self.next_persist += 1;
        PersistId(self.next_persist)
    }
}
