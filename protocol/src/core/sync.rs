//! Two nodes compare what they hold of a pipeline, and each gets what it lacks.
//!
//! ```text
//! initiator ─SyncPage(range, ids and hashes)─► other
//!           ◄─SyncReply(records that differ, ids that it lacks)─
//!           ─SyncPush(records)─►   ◄─SyncPushAck─      then the next range
//! ```
//! One mechanism serves a takeover, a replica that comes back, a node that was deposed, and one that
//! hands its copies on. Since records are joined, it may run at any time, in both directions at once.
//!
//! All of it is read on the core's thread: each step is so small, and many pipelines take such turns, that
//! beats go out in between.

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use crate::{
    id::{DiskId, JobId, NodeId, PipelineId, Term},
    io::{Effect, PersistId},
    message::{Digest, JobUpdate, Message, Scope, SyncPage, SyncReply},
    mutant::Mutant,
    record::JobRecord,
    store::ReadError,
    time::Timestamp,
};

use super::{
    Core,
    commit::Held,
    group::{Job, PeerSync, Role, job_hash},
    replica::Origin,
    timer::Timer,
};

/// How many jobs a page lists.
const PAGE: usize = 2048;

/// What even an empty page counts as: whoever gets it may list and read as many.
const LEAST_OF_A_PAGE: usize = RECORDS;

/// How long a comparison pauses for each job that it lists next.
const PAUSE: Duration = Duration::from_micros(10);

/// How long a comparison waits for its turn behind others.
const TURN: Duration = Duration::from_millis(1);

/// How many bytes of records go into one message, about.
const RECORDS_BYTES: usize = 4 << 20;

/// How many records one answer or push has at most. A disk that has none of them at hand may take some
/// milliseconds for each, here and where they arrive, and beats have to go out meanwhile.
pub(super) const RECORDS: usize = 512;

/// How many pushes of a comparison are under way at once, and how many bytes of records each has, about.
const PUSHES: usize = 8;
const PUSH_BYTES: usize = RECORDS_BYTES / PUSHES;

/// How often a comparison that stands still is begun again before its peer is put out.
const MAX_RESTARTS: u32 = 2;

/// A digest of every job in a range, in order, and the last job that it covers.
type Listing = (Vec<(JobId, u64)>, JobId);

/// Why two nodes compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// This node coordinates, or is about to, and brings a replica up to date.
    Reign(Term),
    /// This node offers what it holds to the coordinator of a term.
    Offer(Term),
    /// This node should hold nothing any more: what it holds is handed on, then dropped as soon as
    /// all who should hold it do.
    HandOff {
        /// What it held when it began; if that changed since, nothing is dropped.
        live: Digest,
        /// The same, for finished jobs.
        finished: Digest,
        /// In which term of the coordinator's.
        term: Term,
    },
}

impl Purpose {
    /// The coordinator's term to which it belongs.
    fn term(self) -> Term {
        match self {
            Self::Reign(term) | Self::Offer(term) | Self::HandOff { term, .. } => term,
        }
    }
}

/// A comparison that this node began.
#[derive(Clone, Debug)]
pub(super) struct Session {
    peer: NodeId,
    pub(super) pipeline: PipelineId,
    scope: Scope,
    pub(super) purpose: Purpose,
    /// The range that was sent and is not answered.
    page: Option<(JobId, JobId)>,
    /// Where the next page begins, while there is one.
    next: Option<JobId>,
    /// How many jobs it lists: fewer where no more than that are read for the answer.
    size: usize,
    unacknowledged: BTreeSet<u64>,
    last_part: u64,
    /// What the other held of finished jobs, as it said last.
    theirs: Digest,
    /// Which copy the other compares: should it drop that one, all begins again.
    copy: Option<u64>,
    /// How often it stood still and was begun again.
    restarts: u32,
    /// Whether the other's copy may have been away for too long, and knows of finished jobs: none of
    /// these may count before they were compared.
    stale: bool,
    /// Whether the other refused a change since it began: all is compared again.
    refused: bool,
    /// The other's disk.
    disk: Option<DiskId>,
    /// The last batch that was sealed before it began.
    sealed: PersistId,
    /// Jobs whose records are to be pushed: those that did not fit into the message under way.
    owed: VecDeque<JobId>,
    /// When it counts as standing still.
    deadline: Timestamp,
}

impl Session {
    /// Whether records are owed, and there is room for them on the way.
    fn owes_more(&self) -> bool {
        !self.owed.is_empty() && self.unacknowledged.len() < PUSHES
    }
}

impl Core {
    pub(super) fn start_live_sync(&mut self, peer: NodeId, pipeline: PipelineId, purpose: Purpose) {
        self.start_sync(peer, pipeline, Scope::Live, purpose);
    }

    pub(super) fn start_full_sync(&mut self, peer: NodeId, pipeline: PipelineId, purpose: Purpose) {
        self.start_sync(peer, pipeline, Scope::All, purpose);
    }

    pub(super) fn start_sync(
        &mut self,
        peer: NodeId,
        pipeline: PipelineId,
        scope: Scope,
        purpose: Purpose,
    ) -> u64 {
        // Ids never repeat, so that a late answer to an earlier session is known as such.
        self.next_session += 1;
        let id = self.next_session;
        let session = Session {
            peer,
            pipeline,
            scope,
            purpose,
            page: None,
            next: Some(JobId::MIN),
            size: if matches!(purpose, Purpose::HandOff { .. }) { RECORDS } else { PAGE },
            unacknowledged: BTreeSet::new(),
            last_part: 0,
            theirs: Digest::default(),
            copy: None,
            restarts: 0,
            stale: false,
            refused: false,
            disk: None,
            sealed: PersistId(self.next_persist),
            owed: VecDeque::new(),
            deadline: self.now + self.config.timing.lease,
        };
        self.sessions.insert(id, session);
        // Pages are made by the timer, so that errors of the disk surface there.
        self.arm(Duration::ZERO, Timer::Sync(id));
        id
    }

    pub(super) fn drop_sessions_with(&mut self, peer: NodeId) {
        self.sessions.retain(|_, session| session.peer != peer);
    }

    /// Whether a replica is being brought up to date.
    pub(super) fn is_syncing(&self, peer: NodeId, pipeline: PipelineId) -> bool {
        let of = |session: &Session| session.peer == peer && session.pipeline == pipeline;
        self.sessions.values().any(of)
    }

    /// What was compared with a replica counts for nothing: all begins again.
    pub(super) fn drop_sessions_of(&mut self, peer: NodeId, pipeline: PipelineId) {
        self.sessions.retain(|_, it| (it.peer, it.pipeline) != (peer, pipeline));
    }

    pub(super) fn drop_sessions_for(&mut self, pipeline: PipelineId) {
        self.sessions.retain(|_, session| session.pipeline != pipeline);
    }

    /// What was offered to somebody who does not coordinate any more is offered to nobody.
    pub(super) fn drop_offers(&mut self, pipeline: PipelineId) {
        self.sessions.retain(|_, session| {
            session.pipeline != pipeline || matches!(session.purpose, Purpose::Reign(_))
        });
    }

    /// The next page is due, or nothing has moved for long.
    pub(super) fn on_sync_timer(&mut self, id: u64) -> Result<(), ReadError> {
        let now = self.now;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let page_due = session.page.is_none() && session.next.is_some() && session.owed.is_empty();
        if page_due || session.owes_more() {
            if self.has_turn(id) {
                match page_due {
                    true => self.send_page(id)?,
                    false => {
                        self.push_records(id)?;
                        self.note_step(id);
                        self.go_on(id)?;
                    }
                }
            } else {
                self.arm(TURN, Timer::Sync(id));
            }
            return Ok(());
        }
        if session.deadline > now {
            return Ok(());
        }
        let Some(session) = self.sessions.remove(&id) else { return Ok(()) };
        let restarts = session.restarts + 1;
        match session.purpose {
            // Anti-entropy offers again when it is due.
            Purpose::Offer(_) | Purpose::HandOff { .. } => {}
            // It is heard, and yet does not answer: its disk hangs, and all would wait for it.
            Purpose::Reign(_) if restarts > MAX_RESTARTS => self.put_out(session.peer),
            Purpose::Reign(_) => {
                self.restart(session, restarts);
            }
        }
        Ok(())
    }

    /// Whether a comparison may go on at once: many pipelines may be compared at a time, and others are to
    /// be heard between them.
    fn has_turn(&self, id: u64) -> bool {
        let Some(session) = self.sessions.get(&id) else { return true };
        let role = self.groups.get(&session.pipeline).map(|group| &group.role);
        let urgent = session.scope == Scope::Live || matches!(role, Some(Role::TakingOver(_)));
        let (at, jobs) = self.compared;
        urgent || at != self.now || jobs < PAGE
    }

    /// Counts jobs that are listed or read for a comparison.
    fn note_compared(&mut self, scope: Scope, jobs: usize) {
        if scope == Scope::All {
            let before = if self.compared.0 == self.now { self.compared.1 } else { 0 };
            self.compared = (self.now, before + jobs);
        }
    }

    /// A strict group's replica refused a change, since something of its own outranks that: it has to
    /// be heard, and what it refused has to be counted anew.
    pub(super) fn compare_again(&mut self, pipeline: PipelineId, peer: NodeId) {
        let mut under_way = false;
        for session in self.sessions.values_mut() {
            if (session.peer, session.pipeline) == (peer, pipeline) {
                (session.refused, under_way) = (true, true);
            }
        }
        let group = self.groups.get_mut(&pipeline);
        let elected = group.is_some_and(|group| group.elected().is_some());
        if !under_way && elected && self.is_strict(pipeline) {
            self.put_out(peer);
        }
    }

    fn restart(&mut self, session: Session, restarts: u32) {
        let Session { peer, pipeline, scope, purpose, .. } = session;
        let id = self.start_sync(peer, pipeline, scope, purpose);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.restarts = restarts;
        }
    }

    fn send_page(&mut self, id: u64) -> Result<(), ReadError> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        let Some(from) = session.next else { return Ok(()) };
        let (peer, pipeline, scope) = (session.peer, session.pipeline, session.scope);
        let only_these = matches!(session.purpose, Purpose::HandOff { .. });
        let (entries, to) = self.listing(pipeline, scope, (from, JobId::MAX), session.size)?;
        self.note_compared(scope, entries.len() + LEAST_OF_A_PAGE);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.page = Some((from, to));
            session.next = None;
        }
        let view = self.groups.get(&pipeline).and_then(|group| group.view.clone());
        let view = view.filter(|_| self.is_strict(pipeline));
        let page = SyncPage { session: id, pipeline, scope, from, to, entries, only_these, view };
        self.send(peer, Message::SyncPage(page));
        self.note_step(id);
        Ok(())
    }

    /// A comparison has moved: it has a lease's time for the next step.
    fn note_step(&mut self, id: u64) {
        let deadline = self.now + self.config.timing.lease;
        if let Some(session) = self.sessions.get_mut(&id) {
            session.deadline = deadline;
            self.arm_at(deadline, Timer::Sync(id));
        }
    }

    /// What this node holds in a range, at most `most` of it.
    fn listing(
        &self,
        pipeline: PipelineId,
        scope: Scope,
        (from, to): (JobId, JobId),
        most: usize,
    ) -> Result<Listing, ReadError> {
        let Some(group) = self.groups.get(&pipeline) else { return Ok((Vec::new(), to)) };
        let hash = |id: JobId, job: &Job| self.hash_in_memory(pipeline, id, job);
        let mut entries: Vec<(JobId, u64)> = match scope {
            Scope::Live => group.jobs.unfinished(from..=to, hash).take(most).collect(),
            Scope::All => {
                let in_memory = group.jobs.range(from..=to).map(|(id, job)| (*id, hash(*id, job)));
                in_memory.take(most).collect()
            }
        };
        let mut covered = if entries.len() == most { entries[most - 1].0 } else { to };
        if scope == Scope::All {
            let (on_disk, upto) = self.listing_on_disk(pipeline, (from, covered), most)?;
            covered = upto;
            let known: BTreeSet<JobId> = entries.iter().map(|(job, _)| *job).collect();
            entries.extend(on_disk.into_iter().filter(|(job, _)| !known.contains(job)));
            entries.retain(|(job, _)| *job <= covered);
            entries.sort_unstable();
        }
        Ok((entries, covered))
    }

    fn hash_in_memory(&self, pipeline: PipelineId, id: JobId, job: &Job) -> u64 {
        let counted = job.counted.filter(|_| !self.is_dirty(pipeline, id));
        let hash = counted.map(|(_, hash)| hash);
        hash.unwrap_or_else(|| job.record.digest() ^ job_hash(id))
    }

    /// What this node holds of some jobs, wherever they lie.
    fn listing_of(
        &self,
        pipeline: PipelineId,
        jobs: &[(JobId, u64)],
    ) -> Result<Vec<(JobId, u64)>, ReadError> {
        let Some(group) = self.groups.get(&pipeline) else { return Ok(Vec::new()) };
        let mut held = Vec::with_capacity(jobs.len());
        for &(id, _) in jobs {
            let hash = match group.jobs.get(&id) {
                Some(job) => Some(self.hash_in_memory(pipeline, id, job)),
                None => {
                    let record = self.read_record(pipeline, id)?;
                    record.map(|record| record.digest() ^ job_hash(id))
                }
            };
            held.extend(hash.map(|hash| (id, hash)));
        }
        Ok(held)
    }

    fn listing_on_disk(
        &self,
        pipeline: PipelineId,
        (from, to): (JobId, JobId),
        most: usize,
    ) -> Result<Listing, ReadError> {
        let (jobs, upto) = self.jobs_on_disk(pipeline, from..=to, most, RECORDS_BYTES)?;
        let hashed = jobs.iter().map(|(job, record)| (*job, record.digest() ^ job_hash(*job)));
        Ok((hashed.collect(), upto))
    }

    /// The whole record of a job, wherever it lies.
    pub(super) fn whole(
        &self,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<Option<JobUpdate>, ReadError> {
        let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let components = match in_memory {
            Some(entry) => Some(entry.record.components()),
            None => self.read_record(pipeline, job)?.map(|record| record.components()),
        };
        Ok(components.map(|components| JobUpdate { job, components }))
    }

    /// Another node shows what it holds.
    pub(super) fn on_sync_page(&mut self, from: NodeId, page: SyncPage) -> Result<(), ReadError> {
        let SyncPage { session, pipeline, scope, from: first, to, mut entries, only_these, view } =
            page;
        if first > to {
            return Ok(());
        }
        if !self.catalog.contains_key(&pipeline) {
            self.send(from, Message::CatalogPull);
            return Ok(());
        }
        self.note_takeover(from, pipeline);
        if let Some(view) = &view {
            self.learn_view(pipeline, view);
        }
        if let Some(group) = self.groups.get_mut(&pipeline)
            && group.leader.is_some_and(|leader| leader.node == from)
        {
            // Its coordinator brings this copy up to date: until it says so again, it is not.
            group.in_step = None;
        }
        let copy = self.groups.get(&pipeline).map_or(0, |group| group.copy);
        let (own, covered) = if only_these {
            // They are read one by one.
            let covered = if entries.len() > RECORDS { entries[RECORDS - 1].0 } else { to };
            entries.truncate(RECORDS);
            (self.listing_of(pipeline, &entries)?, covered)
        } else {
            // No more of them can be of any use for the answer.
            self.listing(pipeline, scope, (first, to), entries.len().min(PAGE) + RECORDS)?
        };
        let theirs: std::collections::BTreeMap<JobId, u64> =
            entries.into_iter().take_while(|(job, _)| *job <= covered).collect();
        let mine: std::collections::BTreeMap<JobId, u64> = own.into_iter().collect();
        let all: BTreeSet<JobId> = theirs.keys().chain(mine.keys()).copied().collect();
        let (mut records, mut want, mut bytes, mut upto) = (Vec::new(), Vec::new(), 0, covered);
        // Whether what is not listed is not here.
        let complete = only_these || scope == Scope::All;
        let mut looked_up = 0;
        for job in all {
            let both = theirs.contains_key(&job) && mine.contains_key(&job);
            if theirs.get(&job) == mine.get(&job) || both && self.has(Mutant::ContentIgnored) {
                continue;
            }
            if complete && !mine.contains_key(&job) {
                want.push(job);
                continue;
            }
            match self.whole(pipeline, job)? {
                Some(record)
                    if theirs.contains_key(&job) && self.yields(pipeline, from, &record) =>
                {
                    want.push(job);
                }
                Some(record) => {
                    bytes += update_bytes(&record);
                    records.push(record);
                }
                // That is quickly seen.
                None => {
                    want.push(job);
                    continue;
                }
            }
            looked_up += 1;
            if bytes > RECORDS_BYTES || looked_up == RECORDS {
                upto = job;
                break;
            }
        }
        let finished =
            self.groups.get(&pipeline).map_or(Digest::default(), |group| group.finished.digest);
        let disk = self.config.disk;
        // A copy that is not in step may have heard how far the others are, and still lack that.
        let horizon_ms = if self.is_admitted(pipeline) { self.horizon_ms(pipeline) } else { 0 };
        let from_job = first;
        let reply = SyncReply {
            session,
            from: from_job,
            upto,
            records,
            want,
            finished,
            copy,
            disk,
            horizon_ms,
        };
        // The other may drop what is said to be here: it has to be durable by then.
        let answer = Effect::Send { to: from, message: Message::SyncReply(reply) };
        self.hold_until_durable(pipeline, Held::Effect(Box::new(answer)));
        Ok(())
    }

    /// The other's answer to a page.
    pub(super) fn on_sync_reply(
        &mut self,
        from: NodeId,
        reply: SyncReply,
    ) -> Result<(), ReadError> {
        let id = reply.session;
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Some((first, to)) = session.page else { return Ok(()) };
        let fits = first == reply.from && (first..=to).contains(&reply.upto);
        if session.peer != from || !fits {
            return Ok(());
        }
        let other = session.copy.is_some_and(|copy| copy != reply.copy)
            || session.disk.is_some_and(|disk| disk != reply.disk);
        if other {
            if let Some(session) = self.sessions.remove(&id) {
                let restarts = session.restarts;
                self.restart(session, restarts);
            }
            return Ok(());
        }
        session.page = None;
        // Later on it has what ended meanwhile, too.
        let first = session.copy.is_none();
        session.stale |= first && reply.horizon_ms == 0 && reply.finished.count > 0;
        session.copy = Some(reply.copy);
        session.disk = Some(reply.disk);
        session.theirs = reply.finished;
        session.next = (reply.upto < JobId::MAX).then(|| reply.upto.next());
        let hands_off = matches!(session.purpose, Purpose::HandOff { .. });
        session.size = match hands_off || reply.upto < to {
            true => RECORDS,
            false => PAGE.min(session.size * 2),
        };
        let (pipeline, purpose) = (session.pipeline, session.purpose);
        let elected = self.groups.get(&pipeline).is_some_and(|it| it.elected_term().is_some());
        if elected && self.lapse_if_stale(pipeline, reply.horizon_ms) {
            // It is for the others to coordinate: they know what was forgotten.
            self.step_down(pipeline);
            return Ok(());
        }
        if self.is_taking_over(pipeline) {
            self.note_difference(pipeline, &reply.records, &reply.want, reply.horizon_ms)?;
            self.note_step(id);
            return self.go_on(id);
        }
        if !self.is_in_order(pipeline, purpose.term()) {
            self.sessions.remove(&id);
            return Ok(());
        }
        let mut push = reply.want;
        let apart = !self.is_strict(pipeline) && self.were_apart(from);
        let in_step = self.is_current(pipeline, reply.horizon_ms);
        let current = in_step && !apart;
        for update in &reply.records {
            if !in_step && self.is_outlived(pipeline, update)? {
                push.push(update.job);
                continue;
            }
            self.absorb(pipeline, update, Origin::Copy { current })?;
            if self.differs(pipeline, update)? {
                push.push(update.job);
            }
        }
        if let Some(session) = self.sessions.get_mut(&id) {
            session.owed.extend(push);
        }
        self.note_step(id);
        self.push_records(id)?;
        self.go_on(id)
    }

    /// Whether this node was elected for a strict group, and only looks at what its voters hold.
    pub(super) fn is_taking_over(&self, pipeline: PipelineId) -> bool {
        let role = self.groups.get(&pipeline).map(|group| &group.role);
        matches!(role, Some(Role::TakingOver(_))) && self.is_strict(pipeline)
    }

    /// Whether records that go with a coordinator's term may be taken: in a strict group only while
    /// no later term is known.
    fn is_in_order(&self, pipeline: PipelineId, term: Term) -> bool {
        let highest = self.groups.get(&pipeline).map_or(Term::ZERO, |group| group.promise.highest);
        !self.is_strict(pipeline) || term >= highest
    }

    /// Compares the next page, once all that the last one showed is on its way.
    fn go_on(&mut self, id: u64) -> Result<(), ReadError> {
        let Some(session) = self.sessions.get(&id) else { return Ok(()) };
        if session.page.is_some() || !session.owed.is_empty() {
            return Ok(());
        }
        match (session.next, session.scope) {
            (None, _) => self.finish_if_done(id),
            (Some(_), Scope::Live) => self.send_page(id)?,
            // A comparison of all that ever was is not urgent: work goes first.
            (Some(_), Scope::All) => {
                let listed = session.size as u32;
                self.arm(PAUSE * listed, Timer::Sync(id));
            }
        }
        Ok(())
    }

    /// Whether this node knows more of a job than it was sent.
    fn differs(&self, pipeline: PipelineId, update: &JobUpdate) -> Result<bool, ReadError> {
        let mut theirs = JobRecord::default();
        for component in &update.components {
            // What cannot be read counts as missing there.
            let _ = theirs.merge(component);
        }
        let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&update.job));
        let mine = match in_memory {
            Some(entry) => Some(entry.record.digest()),
            None => self.read_record(pipeline, update.job)?.map(|record| record.digest()),
        };
        Ok(mine.is_some_and(|mine| mine != theirs.digest()))
    }

    /// Sends one message of the records that are owed. A few may be under way, so that a peer that is far
    /// away does not take long, and little waits for a slow one.
    fn push_records(&mut self, id: u64) -> Result<(), ReadError> {
        let Some(session) = self.sessions.get(&id).filter(|session| session.owes_more()) else {
            return Ok(());
        };
        let (peer, pipeline, term) = (session.peer, session.pipeline, session.purpose.term());
        let (mut records, mut bytes) = (Vec::new(), 0);
        while bytes < PUSH_BYTES
            && records.len() < RECORDS
            && let Some(job) = self.sessions.get_mut(&id).and_then(|it| it.owed.pop_front())
        {
            if let Some(record) = self.whole(pipeline, job)? {
                bytes += update_bytes(&record);
                records.push(record);
            }
        }
        let Some(session) = self.sessions.get_mut(&id).filter(|_| !records.is_empty()) else {
            return Ok(());
        };
        session.last_part += 1;
        session.unacknowledged.insert(session.last_part);
        let (part, scope, more) = (session.last_part, session.scope, session.owes_more());
        self.note_compared(scope, records.len());
        self.send(peer, Message::SyncPush { session: id, part, pipeline, term, records });
        if more {
            self.arm(TURN, Timer::Sync(id));
        }
        Ok(())
    }

    /// What this node lacked. It is acknowledged once it is settled: the other may then drop it.
    pub(super) fn on_sync_push(
        &mut self,
        from: NodeId,
        (session, part): (u64, u64),
        (pipeline, term): (PipelineId, Term),
        records: &[JobUpdate],
    ) -> Result<(), ReadError> {
        if !self.catalog.contains_key(&pipeline) {
            // It may be strict: what is kept without its rules must not count.
            self.send(from, Message::CatalogPull);
            return Ok(());
        }
        if !self.is_in_order(pipeline, term) || self.is_taking_over(pipeline) {
            let highest = self.groups.get(&pipeline).map(|group| group.promise.highest);
            if let Some(term) = highest.filter(|highest| *highest > term) {
                self.send(from, Message::Stale { pipeline, term });
            }
            return Ok(());
        }
        if session > 0 {
            self.note_takeover(from, pipeline);
        }
        let group = self.groups.get_mut(&pipeline);
        let peer = group.and_then(|group| group.reign()).and_then(|reign| reign.peers.get(&from));
        let current = peer.is_some_and(|sync| sync.is_in_step());
        // Of two sides that both decided for that long, neither is behind the other.
        let behind = !current && !self.were_apart(from);
        for record in records {
            if !behind || !self.is_outlived(pipeline, record)? {
                self.absorb(pipeline, record, Origin::Copy { current })?;
            }
        }
        let disk = self.config.disk;
        let message = Message::SyncPushAck { session, part, disk };
        self.hold_until_durable(
            pipeline,
            Held::Effect(Box::new(Effect::Send { to: from, message })),
        );
        Ok(())
    }

    pub(super) fn on_sync_push_ack(
        &mut self,
        (from, disk): (NodeId, DiskId),
        id: u64,
        part: u64,
    ) -> Result<(), ReadError> {
        if id == 0 {
            // What a batch was about, and this replica lacked.
            self.on_batch_kept((from, disk), part, &[]);
            return Ok(());
        }
        let session = self.sessions.get_mut(&id).filter(|session| {
            session.peer == from && session.disk.is_none_or(|known| known == disk)
        });
        let Some(session) = session else { return Ok(()) };
        session.unacknowledged.remove(&part);
        self.note_step(id);
        self.push_records(id)?;
        self.go_on(id)
    }

    /// Ends a session whose pages are all answered and whose records are all on the other's disk.
    fn finish_if_done(&mut self, id: u64) {
        let done = self.sessions.get_mut(&id).is_some_and(|session| {
            session.next.is_none()
                && session.page.is_none()
                && session.owed.is_empty()
                && session.unacknowledged.is_empty()
        });
        if !done {
            return;
        }
        let Some(session) = self.sessions.remove(&id) else { return };
        if session.refused && matches!(session.purpose, Purpose::Reign(_)) {
            let restarts = session.restarts;
            return self.restart(session, restarts);
        }
        let Session { peer, pipeline, purpose, disk, sealed, .. } = session;
        match purpose {
            Purpose::Reign(term) => {
                let taking_over = self.is_taking_over(pipeline);
                self.on_replica_synced(&session, term);
                // Unfinished jobs alone do not tell of those that have ended meanwhile.
                let group = self.groups.get_mut(&pipeline);
                let reign = group.and_then(|group| group.elected());
                let complete =
                    reign.is_some_and(|it| it.peers.get(&peer).is_some_and(|it| it.is_complete()));
                if let Some(disk) = disk.filter(|_| complete && !taking_over) {
                    self.on_caught_up(pipeline, (peer, disk), sealed);
                }
            }
            Purpose::Offer(_) => self.note_anti_entropy(pipeline),
            Purpose::HandOff { live, finished, term } => {
                self.drop_copies(pipeline, (peer, term), live, finished);
            }
        }
    }

    /// A replica has all that this coordinator has.
    fn on_replica_synced(&mut self, session: &Session, term: Term) {
        let Session { peer, pipeline, scope, theirs, stale, .. } = *session;
        let copy = session.copy.unwrap_or_default();
        let in_view = self.view(pipeline).contains(&peer);
        let (strict, taking_over) = (self.is_strict(pipeline), self.is_taking_over(pipeline));
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.elected_term() != Some(term) {
            return;
        }
        let all = scope == Scope::All || group.finished.digest == theirs;
        // Whoever is to come into a strict group's view needs all that ever was.
        let lacks = !all && (in_view || strict || stale);
        let Some(reign) = group.elected() else { return };
        if taking_over && lacks {
            // Whoever coordinates a strict group knows all that ever was: a key whose job is
            // finished must not begin another.
            self.start_sync(peer, pipeline, Scope::All, Purpose::Reign(term));
            return;
        }
        let merged = reign.unmerged.remove(&peer);
        match reign.peers.get_mut(&peer) {
            Some(sync) if lacks => *sync = PeerSync::InSync { copy },
            Some(sync) => *sync = PeerSync::Complete { copy, all },
            None => return,
        }
        if lacks {
            self.start_sync(peer, pipeline, Scope::All, Purpose::Reign(term));
        }
        if merged {
            self.adopt_if_merged(pipeline);
        }
    }
}

pub(super) fn update_bytes(update: &JobUpdate) -> usize {
    update.components.iter().map(|component| component.bytes.len() + 32).sum()
}
