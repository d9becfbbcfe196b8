//! One pipeline's group on one node: its vote, its jobs, and the part that the node plays in it.
//!
//! Owns the table of unfinished jobs and its digest. What is written and replicated, and when, is
//! [`commit`](super::commit)'s business.
//!
//! Invariants: the highest term never falls; a vote is given once a counter; `live` and `finished`
//! are the digests of exactly the jobs that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{Encoded, Kind},
    figures::Tally,
    group_view::GroupView,
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    io::PersistId,
    message::{BeatGroup, Digest},
    name::Name,
    record::{Component, JobRecord, REAPED, Reaped},
    time::Timestamp,
    view::{Counts, JobState},
};

use super::{
    collect::{Collected, Collecting},
    events::{Readers, Ring},
    fan::Fan,
    journal::Journaled,
    query::Watcher,
    ready::{QueueName, ReadyQueue},
    said::Logs,
    strict::StrictReign,
    table::{Jobs, RESTING_BYTES, Waiting},
};

/// What a node has promised within a group; on disk before any promise is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promise {
    /// The highest term that was seen.
    pub(super) highest: Term,
    /// The last term that was voted for.
    pub(super) voted: Term,
    /// Which disk's copy is complete, and so may vote and count.
    pub(super) admitted: Option<DiskId>,
    /// The group's horizon (ms since 1970), as it stood when it was written down last.
    pub(super) horizon_ms: u64,
}

impl Encoded for Promise {
    const KIND: Kind = 0x120;
}

impl Promise {
    pub(super) const NONE: Self =
        Self { highest: Term::ZERO, voted: Term::ZERO, admitted: None, horizon_ms: 0 };
}

/// What a node holds of finished jobs; on disk with every change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Finished {
    pub(super) digest: Digest,
    pub(super) succeeded: u64,
    pub(super) dead: u64,
    pub(super) cancelled: u64,
    pub(super) reaped: u64,
    pub(super) items: u64,
}

impl Encoded for Finished {
    const KIND: Kind = 0x121;
}

impl Finished {
    fn of(&mut self, end: End) -> &mut u64 {
        match end {
            End::Succeeded => &mut self.succeeded,
            End::Dead => &mut self.dead,
            End::Cancelled => &mut self.cancelled,
            End::Reaped => &mut self.reaped,
            End::Item => &mut self.items,
        }
    }

    fn add(&mut self, end: End, hash: u64) {
        self.digest.add(hash);
        *self.of(end) += 1;
    }

    pub(super) fn remove(&mut self, end: End, hash: u64) {
        self.digest.remove(hash);
        *self.of(end) -= 1;
    }
}

/// How a job has ended, as [`Table::Ended`](crate::store::Table::Ended) sorts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum End {
    Succeeded,
    Dead,
    Cancelled,
    /// Only that it was is kept.
    Reaped,
    /// However it ended, it is a part of another.
    Item,
}

/// Where a job stands, as the digests count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is unfinished.
    Live { running: bool, item: bool },
    /// It has ended, at that moment (ms since 1970).
    Ended(End, u64),
}

impl Standing {
    pub(super) fn of(record: &JobRecord) -> Self {
        if let Some(reaped) = record.reaped.filter(|_| record.is_reaped()) {
            return Self::Ended(End::Reaped, reaped.at_ms);
        }
        let item = record.spec.as_ref().is_some_and(|spec| spec.parent.is_some());
        let end = match record.state() {
            state if !state.is_terminal() => {
                return Self::Live { running: state == JobState::Running && !item, item };
            }
            _ if item => End::Item,
            JobState::Succeeded => End::Succeeded,
            JobState::Dead => End::Dead,
            _ => End::Cancelled,
        };
        Self::Ended(end, record.written_ms())
    }

    pub(super) fn is_live(self) -> bool {
        matches!(self, Self::Live { .. })
    }
}

/// A job in memory: unfinished, or finished and not yet settled on disk.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    pub(super) record: JobRecord,
    /// Under which hash the digests count it, and as what.
    pub(super) counted: Option<(Standing, u64)>,
    /// Components that may have gone when it was forgotten, and lie on disk.
    dropped: BTreeSet<u16>,
    /// How many batches that are not settled touch it.
    pub(super) pending: u32,
    /// What of it has no rows of its own.
    pub(super) journaled: Journaled,
    /// In which row of the journal it came, if it did in one.
    pub(super) arrived: u64,
    /// Whether it may be on the list of unfinished jobs.
    pub(super) listed: bool,
    size: usize,
}

impl Job {
    /// Joins one component. Says whether anything changed; what cannot be read changes nothing.
    pub(super) fn merge(&mut self, component: &Component) -> bool {
        if component.tag == REAPED {
            self.dropped.extend(self.record.tags());
        }
        self.record.merge(component).unwrap_or(false)
    }

    /// Puts a mark in its place.
    pub(super) fn forget(&mut self, reaped: Reaped) {
        self.dropped.extend(self.record.tags());
        self.record.merge_reaped(reaped);
    }

    /// Forgets all of it, and leaves no mark.
    pub(super) fn clear(&mut self) {
        self.dropped.extend(self.record.tags());
        self.record = JobRecord::default();
    }

    /// Components that are on disk, and gone.
    pub(super) fn take_dropped(&mut self) -> Vec<u16> {
        let kept: BTreeSet<u16> = match self.dropped.is_empty() {
            true => return Vec::new(),
            false => self.record.tags().collect(),
        };
        let dropped = std::mem::take(&mut self.dropped);
        dropped.into_iter().filter(|tag| !kept.contains(tag)).collect()
    }
}

/// Who coordinates, as this node heard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leader {
    pub(super) node: NodeId,
    pub(super) term: Term,
    pub(super) heard: Timestamp,
}

/// The part that this node plays.
#[derive(Clone, Debug)]
pub(super) enum Role {
    /// It follows, or only looks on.
    Follower,
    /// It asks whether it would be elected.
    PreCandidate(Candidacy),
    /// It stands for election; its own vote counts once it is on disk.
    Candidate(Candidacy),
    /// It is elected and merges what its voters hold.
    TakingOver(Reign),
    /// It coordinates.
    Coordinator(Reign),
}

/// An election under way.
#[derive(Clone, Debug)]
pub(super) struct Candidacy {
    pub(super) term: Term,
    /// Whether the group is founded anew, by disks of which none is admitted.
    pub(super) founding: bool,
    pub(super) granted: BTreeSet<NodeId>,
    /// With which disks.
    pub(super) disks: BTreeMap<NodeId, DiskId>,
    /// Those who said that they may not vote.
    pub(super) excluded: BTreeSet<NodeId>,
}

/// A term of this node's as the group's coordinator.
#[derive(Clone, Debug)]
pub(super) struct Reign {
    pub(super) term: Term,
    /// When it was elected.
    pub(super) since: Timestamp,
    /// The last sequence used in this term; those of attempts are no other pipeline's either.
    pub(super) sequence: u64,
    /// Those whose votes elected it, itself left out.
    pub(super) voters: BTreeSet<NodeId>,
    /// Voters whose records have not been merged yet.
    pub(super) unmerged: BTreeSet<NodeId>,
    /// Replicas that receive each change.
    pub(super) peers: BTreeMap<NodeId, PeerSync>,
    /// When those whose copies are complete were told so last.
    pub(super) told: BTreeMap<NodeId, Timestamp>,
    /// Invocations that want a worker.
    pub(super) ready: BTreeMap<QueueName, ReadyQueue>,
    /// Attempts at workers.
    pub(super) running: BTreeMap<Token, Running>,
    /// Invocations that are looked at again at a moment.
    pub(super) delayed: BTreeSet<Delayed>,
    /// When jobs are looked at whose deadline comes.
    pub(super) deadlines: BTreeSet<(Timestamp, JobId)>,
    /// The jobs in there.
    pub(super) dated: BTreeMap<JobId, Timestamp>,
    /// How far each schedule is.
    pub(super) scheduled: BTreeMap<Name, Scheduled>,
    /// Runs that were enqueued and are not on disk yet, and when.
    pub(super) asked: BTreeMap<JobId, Timestamp>,
    /// How far the items of jobs' phases are.
    pub(super) fans: BTreeMap<(JobId, u16), Fan>,
    /// Which of these was looked at last.
    pub(super) last_fan: Option<(JobId, u16)>,
    /// Items that may have no use any more.
    pub(super) orphans: BTreeSet<JobId>,
    /// Those of which nobody could say yet, and when that is asked again.
    pub(super) unsure: (BTreeSet<JobId>, Timestamp),
    /// Jobs that are being forgotten, and which of their items come next.
    pub(super) forgetting: BTreeMap<JobId, JobId>,
    /// What items gave, as it is read for phases that come next.
    pub(super) collecting: BTreeMap<(JobId, u16), Collecting>,
    /// The same, all of it.
    pub(super) collected: BTreeMap<(JobId, u16), Collected>,
    /// From which on failed jobs are looked at that may not be compensated.
    pub(super) uncompensated: Option<(u64, JobId)>,
    /// What a strict group needs beside.
    pub(super) strict: StrictReign,
    /// What happened in this term.
    pub(super) events: Ring,
    /// What attempts said.
    pub(super) logs: Logs,
}

/// An invocation that is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Delayed {
    /// When.
    pub(super) at: Timestamp,
    pub(super) job: JobId,
    pub(super) step: u16,
    /// For which generation of the job: in another it waits anew.
    pub(super) generation: u32,
    /// Whether it has waited for long enough by then.
    pub(super) enough: bool,
}

/// How far a schedule is, in ms since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scheduled {
    /// Which one: one that was changed is another.
    pub(super) since_ms: u64,
    /// The moment up to which all its runs are seen to.
    pub(super) behind_ms: u64,
    /// When it is looked at again.
    pub(super) next_ms: u64,
}

/// How far a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerSync {
    /// It is being brought up to date.
    Syncing,
    /// It has all unfinished jobs, and each change since.
    InSync {
        /// Which copy: one that was dropped since has another number.
        copy: u64,
    },
    /// It has what is needed of finished jobs too.
    Complete {
        /// Which copy.
        copy: u64,
        /// Whether that is all of them: who stands in for another needs none of those that had
        /// ended before it came.
        all: bool,
    },
    /// It kept the others waiting; it is tried again from this moment on.
    Lagging(Timestamp),
}

/// An attempt at a worker, as its coordinator sees it.
#[derive(Clone, Debug)]
pub(super) struct Running {
    pub(super) job: JobId,
    pub(super) step: u16,
    pub(super) phase: Name,
    /// The step's name.
    pub(super) name: Name,
    /// Where attempts are limited by key: this one's.
    pub(super) key: Option<Arc<str>>,
    pub(super) worker: NodeId,
    /// The last beat that was sent before its worker had it; none while it is still held here.
    pub(super) after_beat: Option<u64>,
    /// Whether its worker has confirmed it to this coordinator.
    pub(super) claimed: bool,
    /// Whether its worker's last word did not mention it.
    pub(super) missed: bool,
    /// When it is given to another unless its worker claims it.
    pub(super) deadline: Option<Timestamp>,
    /// When its worker has had it for too long, if it has a time-out.
    pub(super) overdue_at: Option<Timestamp>,
    /// Of which phases it got what items gave, and whose items these were for; empty if another
    /// coordinator gave it out.
    pub(super) gathered: Vec<(u16, Token)>,
}

impl Running {
    /// One that is on its way to its worker.
    pub(super) fn new(
        (job, step): (JobId, u16),
        (phase, name): QueueName,
        key: Option<Arc<str>>,
        worker: NodeId,
    ) -> Self {
        Self {
            job,
            step,
            phase,
            name,
            key,
            worker,
            after_beat: None,
            claimed: true,
            missed: false,
            deadline: None,
            overdue_at: None,
            gathered: Vec::new(),
        }
    }
}

impl Reign {
    pub(super) fn new(term: Term, voters: BTreeSet<NodeId>, since: Timestamp) -> Self {
        Self {
            term,
            since,
            sequence: 0,
            unmerged: voters.clone(),
            peers: voters.iter().map(|voter| (*voter, PeerSync::Syncing)).collect(),
            told: BTreeMap::new(),
            voters,
            ready: BTreeMap::new(),
            running: BTreeMap::new(),
            delayed: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            dated: BTreeMap::new(),
            scheduled: BTreeMap::new(),
            asked: BTreeMap::new(),
            fans: BTreeMap::new(),
            last_fan: None,
            orphans: BTreeSet::new(),
            unsure: (BTreeSet::new(), Timestamp::default()),
            forgetting: BTreeMap::new(),
            collecting: BTreeMap::new(),
            collected: BTreeMap::new(),
            uncompensated: Some((0, JobId::MIN)),
            strict: StrictReign::default(),
            events: Ring::default(),
            logs: Logs::default(),
        }
    }

    /// A job has ended: its deadline does not matter any more.
    pub(super) fn forget_deadline(&mut self, job: JobId) {
        if let Some(at) = self.dated.remove(&job) {
            self.deadlines.remove(&(at, job));
        }
    }

    /// The next sequence of this term.
    pub(super) fn next_sequence(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

/// A pipeline's group.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) id: PipelineId,
    pub(super) promise: Promise,
    pub(super) role: Role,
    pub(super) leader: Option<Leader>,
    /// Since when nobody is known to coordinate.
    pub(super) leaderless_since: Timestamp,
    /// When this node stands for election, if it means to.
    pub(super) election_at: Option<Timestamp>,
    /// How often it stood since somebody coordinated last.
    pub(super) stood: u32,
    /// How often it coordinated in place of those whose task it is, and made way; and when it did so last.
    pub(super) made_way: (u32, Timestamp),
    /// Jobs that voters brought while this node took over, and that may have been forgotten: it decides
    /// once all voters are heard, even if it has to begin again before that.
    pub(super) doubtful: BTreeSet<JobId>,
    pub(super) jobs: Jobs,
    pub(super) live: Digest,
    pub(super) finished: Finished,
    pub(super) finished_dirty: bool,
    /// What the coordinator said of the group last.
    pub(super) beat: Option<BeatGroup>,
    /// The term in which its coordinator has said that this copy is complete, since it is heard.
    pub(super) in_step: Option<Term>,
    /// Who takes over with this node's vote, and when it was last heard to be at it.
    pub(super) successor: Option<(NodeId, Timestamp)>,
    pub(super) last_anti_entropy: Timestamp,
    /// What was finished here when the coordinator of a term had seen all of it.
    pub(super) handed_on: Option<(Term, Digest)>,
    pub(super) watchers: BTreeMap<JobId, Vec<Watcher>>,
    /// Those who wait for events.
    pub(super) readers: Readers,
    /// Bytes of the resident jobs.
    pub(super) bytes: usize,
    running: u64,
    /// Unfinished jobs that are parts of others.
    items: u64,
    /// Batches that drop all jobs and are not on disk yet.
    pub(super) dropping: u32,
    /// The last batch on which an answer waits that says of jobs that they are here.
    pub(super) answered_in: PersistId,
    /// The latest view of a strict group that is known here, if one was ever written.
    pub(super) view: Option<GroupView>,
    /// To whom a strict group's lease was granted, and until when nobody else gets it.
    pub(super) pledge: Option<(NodeId, Timestamp)>,
    /// The term that this node voted for when nobody's copy counted, until its own does: whoever
    /// coordinates in it knows no better.
    pub(super) founded: Option<Term>,
    /// Counts how often this node began anew to keep a copy, or to count for one, since it started.
    pub(super) copy: u64,
    /// Of jobs that were forgotten before this moment (ms since 1970), nothing is kept at all.
    pub(super) horizon_ms: u64,
    /// Forgotten jobs whose last traces are on their way off the disk.
    pub(super) expiring: BTreeSet<JobId>,
    /// Whether there is more to forget, and a timer for that.
    pub(super) tidying: bool,
    /// What its jobs did while this node coordinated.
    pub(super) led: Tally,
    /// What its jobs did, as far as this node saw.
    pub(super) seen: Tally,
}

impl PeerSync {
    /// Whether it has all jobs that it needs in its place, so that it may be elected.
    pub(super) fn is_complete(self) -> bool {
        matches!(self, Self::Complete { .. })
    }

    /// Whether it has all jobs that there are, however long ago they ended.
    pub(super) fn has_all(self) -> bool {
        matches!(self, Self::Complete { all: true, .. })
    }

    /// Whether each change has to be on its disk before anything builds on it.
    pub(super) fn is_in_step(self) -> bool {
        matches!(self, Self::InSync { .. } | Self::Complete { .. })
    }
}

impl Group {
    pub(super) fn new(id: PipelineId, now: Timestamp) -> Self {
        Self {
            id,
            promise: Promise::NONE,
            role: Role::Follower,
            leader: None,
            leaderless_since: now,
            election_at: None,
            stood: 0,
            made_way: (0, now),
            doubtful: BTreeSet::new(),
            jobs: Jobs::default(),
            live: Digest::default(),
            finished: Finished::default(),
            finished_dirty: false,
            beat: None,
            in_step: None,
            successor: None,
            last_anti_entropy: now,
            handed_on: None,
            watchers: BTreeMap::new(),
            readers: Readers::default(),
            bytes: 0,
            running: 0,
            items: 0,
            dropping: 0,
            answered_in: PersistId(0),
            view: None,
            pledge: None,
            founded: None,
            copy: 0,
            horizon_ms: 0,
            expiring: BTreeSet::new(),
            tidying: false,
            led: Tally::default(),
            seen: Tally::default(),
        }
    }

    /// The reign, if this node coordinates and may dispatch.
    pub(super) fn reign(&mut self) -> Option<&mut Reign> {
        match &mut self.role {
            Role::Coordinator(reign) => Some(reign),
            _ => None,
        }
    }

    /// The reign, if this node was elected, whether or not it has merged all yet.
    pub(super) fn elected(&mut self) -> Option<&mut Reign> {
        match &mut self.role {
            Role::Coordinator(reign) | Role::TakingOver(reign) => Some(reign),
            _ => None,
        }
    }

    /// The term in which this node was elected, if it was.
    pub(super) fn elected_term(&self) -> Option<Term> {
        match &self.role {
            Role::Coordinator(reign) | Role::TakingOver(reign) => Some(reign.term),
            _ => None,
        }
    }

    /// Whether this node coordinates and may dispatch.
    pub(super) fn is_coordinator(&self) -> bool {
        matches!(self.role, Role::Coordinator(_))
    }

    /// Brings digests and counts in line with a job that changed. Says as what it counted before,
    /// and does now.
    pub(super) fn recount(&mut self, id: JobId) -> Option<(Option<Standing>, Standing)> {
        let job = self.jobs.get_mut(&id)?;
        let (standing, hash) = (Standing::of(&job.record), job.record.digest() ^ job_hash(id));
        let size = job.record.size();
        self.bytes = self.bytes + size - job.size;
        job.size = size;
        let before = job.counted.replace((standing, hash));
        match before {
            Some((Standing::Live { running, item }, hash)) => {
                self.live.remove(hash);
                self.running -= u64::from(running);
                self.items -= u64::from(item);
            }
            Some((Standing::Ended(end, _), hash)) => {
                self.finished.remove(end, hash);
                self.finished_dirty = true;
            }
            None => {}
        }
        match standing {
            Standing::Live { running, item } => {
                self.live.add(hash);
                self.running += u64::from(running);
                self.items += u64::from(item);
            }
            Standing::Ended(end, _) => {
                self.finished.add(end, hash);
                self.finished_dirty = true;
            }
        }
        let before = before.map(|(standing, _)| standing);
        self.tally(id, before, standing);
        Some((before, standing))
    }

    /// Counts what a change of a job means for charts.
    fn tally(&mut self, id: JobId, before: Option<Standing>, now: Standing) {
        let spec = self.jobs.get(&id).and_then(|job| job.record.spec.as_ref());
        let created_ms = spec.map_or(0, |spec| spec.created_ms);
        let leads = self.is_coordinator();
        let mut count = |change: &dyn Fn(&mut Tally)| {
            change(&mut self.seen);
            if leads {
                change(&mut self.led);
            }
        };
        match (before, now) {
            (None, Standing::Live { item: false, .. }) => count(&|tally| tally.accepted += 1),
            (Some(Standing::Live { item: false, .. }), Standing::Ended(end, at_ms)) => {
                let state = match end {
                    End::Succeeded => JobState::Succeeded,
                    End::Dead => JobState::Dead,
                    End::Cancelled => JobState::Cancelled,
                    End::Reaped | End::Item => return,
                };
                count(&|tally| tally.ended(state, at_ms.saturating_sub(created_ms)));
            }
            _ => {}
        }
    }

    /// Puts a job that was read from disk, and is counted there, into memory.
    pub(super) fn insert_counted(&mut self, id: JobId, record: JobRecord) {
        let counted = Some((Standing::of(&record), record.digest() ^ job_hash(id)));
        let size = record.size();
        let listed = counted.is_some_and(|(standing, _)| standing.is_live());
        self.bytes += size;
        debug_assert!(
            self.jobs.find_resting(&id).map(|it| it.hash).is_none_or(
                |hash| counted.is_some_and(|(standing, now)| standing.is_live() && now == hash)
            ),
            "a job that rests lies on disk as it is counted"
        );
        self.jobs.insert(id, Box::new(Job { record, counted, size, listed, ..Job::default() }));
    }

    /// Puts an unfinished job that was read at the start into memory.
    pub(super) fn load(&mut self, id: JobId, record: JobRecord) {
        self.insert_counted(id, record);
        let counted = self.jobs.get(&id).and_then(|job| job.counted);
        debug_assert!(counted.is_some_and(|(standing, _)| standing.is_live()));
        let Some((Standing::Live { running, item }, hash)) = counted else { return };
        self.live.add(hash);
        self.running += u64::from(running);
        self.items += u64::from(item);
    }

    /// Takes a job out of memory if it is finished and all of it is on disk.
    pub(super) fn evict_if_settled(&mut self, id: JobId) {
        let settled = self.jobs.get(&id).is_some_and(|job| {
            job.pending == 0 && job.counted.is_some_and(|(standing, _)| !standing.is_live())
        });
        if settled && let Some(job) = self.jobs.remove(&id) {
            self.bytes -= job.size;
        }
    }

    /// Lets a job rest that does nothing but wait, and that is whole on disk. Says whether it does.
    pub(super) fn rest_if_idle(&mut self, id: JobId) -> bool {
        let idle = self.jobs.get(&id).and_then(|job| {
            let (_, hash) = job.counted.filter(|(standing, _)| standing.is_live())?;
            let spec = job.record.spec.as_ref().filter(|_| job.pending == 0)?;
            let (revision, priority) = (spec.revision, spec.options.priority);
            let waits = job.record.is_untouched() && job.dropped.is_empty();
            debug_assert!(!waits || job.journaled.is_none(), "what waits has no control value");
            waits.then_some(Waiting { job: id, hash, revision, priority })
        });
        let Some(job) = idle.and_then(|waiting| self.jobs.rest(waiting)) else { return false };
        self.bytes -= job.size;
        true
    }

    /// What unfinished jobs take in memory, about, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.bytes + self.jobs.resting() * RESTING_BYTES
    }

    /// Forgets all jobs, in memory and in the counts.
    pub(super) fn forget_jobs(&mut self) {
        self.copy += 1;
        self.jobs.clear();
        self.live = Digest::default();
        self.finished = Finished::default();
        self.finished_dirty = true;
        self.bytes = 0;
        (self.running, self.items) = (0, 0);
    }

    /// Whether any of its jobs is unfinished that is a part of another.
    pub(super) fn has_live_items(&self) -> bool {
        self.items > 0
    }

    /// Whether it has any parts of other jobs.
    pub(super) fn has_items(&self) -> bool {
        self.items + self.finished.items > 0
    }

    /// Jobs by state.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            queued: self.live.count - self.running - self.items,
            running: self.running,
            items: self.items,
            succeeded: self.finished.succeeded,
            dead: self.finished.dead,
            cancelled: self.finished.cancelled,
        }
    }
}

/// Makes the hash of a record one of the job, so that two jobs alike do not cancel each other out.
pub(super) fn job_hash(job: JobId) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&job.to_be_bytes())
}
