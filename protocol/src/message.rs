//! What nodes say to each other over their connections.
//!
//! ```text
//! gateway ─Store─► replica          replica ─Stored─► gateway
//! coordinator ─Replicate─► replica  replica ─ReplicateAck─► coordinator
//! coordinator ─Assign─► worker      worker ─Completed─► coordinator ─CompletionAck─► worker
//!                                   worker ─Items─► coordinator ─ItemsAck─► worker
//!                                   worker ─Said─► coordinator
//! node ─Beat─► node                 node ─BeatAck─► node        (the lease, both ways)
//! candidate ─PreVote, Vote─► voter  voter ─Ballot─► candidate
//! holder ─SyncPage─► holder         ◄─SyncReply─, ─SyncPush─►, ◄─SyncPushAck─
//! ```
//! Every message may be lost, delayed, repeated or overtaken without harm to what was acknowledged.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::{
    advert::Advert,
    catalog::CatalogEntry,
    codec::{Encoded, Kind},
    event::{EventPage, EventQuery, LogsPage, Said},
    group_view::GroupView,
    handler::HandlerEntry,
    id::{DiskId, JobId, PipelineId, Term, Token},
    io::{Change, Changed, Outcome, Refusal},
    name::Name,
    pipeline::{Combine, Handling, MAX_PHASES, Revision},
    record::Component,
    secret::{PlaceId, SecretEntry},
    trace::TraceParent,
    view::{Counts, JobState, JobSummary, JobView, StepCounts},
};

/// A message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Message {
    /// First on every connection, and when something in it changes.
    Hello(Advert),
    /// Pipelines that the sender knows.
    Catalog(Vec<CatalogEntry>),
    /// The sender has these pipelines on disk, at least in this state.
    CatalogAck(Vec<(PipelineId, u64)>),
    /// The sender wants all pipelines.
    CatalogPull,
    /// A lease, renewed: every beat to every peer.
    Beat(Beat),
    /// The answer to a beat.
    BeatAck(BeatAck),
    /// Would you vote for me in that term? Changes nothing.
    PreVote {
        /// The pipeline.
        pipeline: PipelineId,
        /// The term's counter.
        counter: u64,
        /// Whether only those are asked whose disks are not admitted either.
        founding: bool,
    },
    /// Vote for me in this term.
    Vote {
        /// The pipeline.
        pipeline: PipelineId,
        /// The term.
        term: Term,
        /// As in the pre-vote.
        founding: bool,
    },
    /// The answer to either.
    Ballot(Ballot),
    /// The sender knows a later term than the receiver acts in.
    Stale {
        /// The pipeline.
        pipeline: PipelineId,
        /// The later term.
        term: Term,
    },
    /// The receiver's copy is complete: from now on it may vote and count.
    Admit {
        /// The pipeline.
        pipeline: PipelineId,
        /// Who says so.
        term: Term,
        /// Which of the receiver's disks.
        disk: DiskId,
        /// Which of the copies on it.
        copy: u64,
    },
    /// Changes of job records, from a coordinator.
    Replicate(Replicate),
    /// They are on disk.
    ReplicateAck {
        /// Which.
        batch: u64,
        /// Jobs that are not, since the sender lacks what was enqueued: whole records, in a
        /// [`SyncPush`](Self::SyncPush) of session 0, bring them there.
        missing: Vec<(PipelineId, JobId)>,
        /// Groups of which nothing was taken: strict ones of which a later term is known, and those
        /// of pipelines that the sender does not know.
        refused: Vec<PipelineId>,
        /// The sender's disk.
        disk: DiskId,
    },
    /// One page of a comparison of what two nodes hold.
    SyncPage(SyncPage),
    /// What the other holds that differs.
    SyncReply(SyncReply),
    /// What the other lacked.
    SyncPush {
        /// Whose comparison; 0 for what a [`Replicate`] was about and the receiver lacked.
        session: u64,
        /// Which part; of session 0, which batch.
        part: u64,
        /// The pipeline.
        pipeline: PipelineId,
        /// The coordinator's term in which they are sent.
        term: Term,
        /// Whole records.
        records: Vec<JobUpdate>,
    },
    /// It is on disk.
    SyncPushAck {
        /// Whose comparison.
        session: u64,
        /// Which part.
        part: u64,
        /// The sender's disk.
        disk: DiskId,
    },
    /// New jobs, from a gateway.
    Store {
        /// Chosen by the gateway.
        store: u64,
        /// The pipeline.
        pipeline: PipelineId,
        /// The definition that the jobs follow.
        revision: Revision,
        /// The jobs.
        jobs: Vec<JobUpdate>,
    },
    /// They are on disk, or why not.
    Stored {
        /// Which.
        store: u64,
        /// How many copies there are by this answer: none, if the sender's does not count.
        copies: u32,
        /// One answer per job.
        results: Vec<StoreResult>,
    },
    /// Run this.
    Assign(Box<Assignment>),
    /// The worker cannot.
    Declined(Token),
    /// It has ended.
    Completed(Completion),
    /// Its end is durable: forget it.
    CompletionAck(Token),
    /// Nobody wants it any more.
    Cancel(Token),
    /// The window that a worker opens for the receiver.
    Grant {
        /// For each phase, how many attempts it may have there at once.
        windows: Vec<(Name, u32)>,
    },
    /// A client's question, passed on.
    Query {
        /// Chosen by the sender.
        query: u64,
        /// What is asked.
        question: Question,
    },
    /// Its answer.
    Answer {
        /// Which question.
        query: u64,
        /// What is known.
        answer: Answer,
    },
    /// An attempt gives items.
    Items(Items),
    /// An attempt's items are durable; so many they are by now.
    ItemsAck {
        /// The attempt.
        token: Token,
        /// How many.
        count: u32,
    },
    /// Handlers that the sender knows.
    Handlers(Vec<HandlerEntry>),
    /// The sender has these handlers on disk, at least in this state.
    HandlersAck(Vec<(Name, u64)>),
    /// The sender has these handlers, and wants those that differ.
    HandlersPull(Vec<(Name, u64)>),
    /// An attempt says something. Nobody answers.
    Said(Box<SaidBatch>),
    /// Run this, which comes behind items of attempts that left sessions.
    AssignWith(Box<AssignedWith>),
    /// It has ended well, and left a session.
    CompletedWith(Box<CompletedWith>),
    /// What comes next is about a job that is a part of somebody's trace. Written as a version of its own,
    /// so that nodes that do not know it go on without.
    Trace {
        /// What comes.
        of: TraceOf,
        /// What the job was enqueued within.
        trace: TraceParent,
    },
    /// Values and secrets that the sender knows. These three too are written as a version of their own.
    Secrets(Vec<SecretEntry>),
    /// The sender has these values and secrets on disk, at least in this state.
    SecretsAck(Vec<(PlaceId, u64)>),
    /// The sender has these values and secrets, and wants those that differ.
    SecretsPull(Vec<(PlaceId, u64)>),
}

impl Message {
    /// An attempt, with the sessions that it may read. Its trace goes before it.
    pub fn assign(mut assignment: Box<Assignment>) -> Self {
        assignment.trace = None;
        match std::mem::take(&mut assignment.sessions) {
            sessions if sessions.is_empty() => Self::Assign(assignment),
            sessions => {
                Self::AssignWith(Box::new(AssignedWith { assignment: *assignment, sessions }))
            }
        }
    }

    /// The end of an attempt, with its session.
    pub fn completed(mut completion: Completion) -> Self {
        match completion.session.take() {
            None => Self::Completed(completion),
            Some(session) => Self::CompletedWith(Box::new(CompletedWith { completion, session })),
        }
    }

    /// The same, with sessions that came beside something put into it.
    pub fn joined(self) -> Self {
        match self {
            Self::AssignWith(with) => {
                let AssignedWith { assignment, sessions } = *with;
                Self::Assign(Box::new(Assignment { sessions, ..assignment }))
            }
            Self::CompletedWith(with) => {
                let CompletedWith { completion, session } = *with;
                Self::Completed(Completion { session: Some(session), ..completion })
            }
            other => other,
        }
    }
}

/// What the trace is of that goes before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TraceOf {
    /// This attempt, to its worker.
    Attempt(Token),
    /// The answer to this question.
    Answer(u64),
}

/// The version that traces are written as.
pub const TRACE_SCHEMA: u8 = 2;

/// The version that values and secrets are written as.
pub const SECRETS_SCHEMA: u8 = 3;

impl Encoded for Message {
    const KIND: Kind = 0x02;

    fn schema(&self) -> u8 {
        match self {
            Self::Trace { .. } => TRACE_SCHEMA,
            Self::Secrets(_) | Self::SecretsAck(_) | Self::SecretsPull(_) => SECRETS_SCHEMA,
            _ => Self::SCHEMA,
        }
    }

    fn reads(schema: u8) -> bool {
        [Self::SCHEMA, TRACE_SCHEMA, SECRETS_SCHEMA].contains(&schema)
    }
}

/// Reads the position of a phase: no pipeline has more than [`MAX_PHASES`], and tags are made of it.
fn step<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let step = u16::deserialize(deserializer)?;
    match usize::from(step) {
        ..MAX_PHASES => Ok(step),
        _ => Err(D::Error::custom(format!("no pipeline has a phase at position {step}"))),
    }
}

/// A renewed lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Beat {
    /// Counts the sender's beats.
    pub sequence: u64,
    /// A digest of the pipelines, the handlers, and the values and secrets that it knows.
    pub catalog: u64,
    /// What it coordinates.
    pub groups: Vec<BeatGroup>,
    /// Phases for which it has work waiting.
    pub demand: Vec<Name>,
    /// How many attempts run there, by phase.
    pub busy: Vec<(Name, u32)>,
}

/// One coordinated pipeline within a beat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeatGroup {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The coordinator's term.
    pub term: Term,
    /// Its unfinished jobs.
    pub live: Digest,
    /// Its finished jobs.
    pub finished: Digest,
    /// Its jobs by state.
    pub counts: Counts,
    /// Whether every node that should keep a copy has one that is complete.
    pub settled: bool,
    /// Who a strict group consists of.
    pub view: Option<GroupView>,
    /// Of jobs that were forgotten before this moment (ms since 1970), nothing is kept.
    pub horizon_ms: u64,
}

/// How many jobs, and an order-free hash of their states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many.
    pub count: u64,
    /// The exclusive or of their hashes.
    pub xor: u64,
}

impl Digest {
    /// Counts a job in.
    pub(crate) fn add(&mut self, hash: u64) {
        self.count += 1;
        self.xor ^= hash;
    }

    /// Counts a job out.
    pub(crate) fn remove(&mut self, hash: u64) {
        self.count -= 1;
        self.xor ^= hash;
    }
}

/// The answer to a [`Beat`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BeatAck {
    /// Which beat.
    pub sequence: u64,
    /// The sender's disk.
    pub disk: DiskId,
    /// Of the coordinator's pipelines, those for which that disk is not admitted, and which copy it
    /// keeps: one that was dropped and begun anew has another number.
    pub unadmitted: Vec<(PipelineId, u64)>,
    /// Of the coordinator's pipelines, those whose lease the sender does not grant.
    pub refused: Vec<PipelineId>,
    /// All attempts of the coordinator's pipelines that the sender has: running, waiting for a
    /// slot, or ended and not yet acknowledged.
    pub attempts: Vec<Held>,
}

/// An attempt that a worker has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The job.
    pub job: JobId,
    /// Which of its phases.
    #[serde(deserialize_with = "step")]
    pub step: u16,
    /// The attempt.
    pub token: Token,
}

/// A voter's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ballot {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The counter that was asked for.
    pub counter: u64,
    /// Whether it was only a pre-vote.
    pub pre: bool,
    /// Yes.
    pub granted: bool,
    /// Whether the sender may vote at all.
    pub admitted: bool,
    /// The highest term that it knows.
    pub highest: Term,
    /// The sender's disk.
    pub disk: DiskId,
    /// The view that it knows, of a strict group.
    pub view: Option<GroupView>,
}

/// Changes from a coordinator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replicate {
    /// Counts the sender's batches.
    pub batch: u64,
    /// By pipeline.
    pub groups: Arc<Vec<GroupUpdate>>,
}

/// One pipeline's part of a [`Replicate`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupUpdate {
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The coordinator's term.
    pub term: Term,
    /// What changed.
    pub updates: Vec<JobUpdate>,
    /// The group's view, if it changed.
    pub view: Option<GroupView>,
}

/// Some or all components of a job's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobUpdate {
    /// The job.
    pub job: JobId,
    /// Components.
    pub components: Vec<Component>,
}

/// What a comparison covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Scope {
    /// Unfinished jobs.
    Live,
    /// All jobs.
    All,
}

/// One page of what the initiator holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncPage {
    /// Chosen by the initiator.
    pub session: u64,
    /// The pipeline.
    pub pipeline: PipelineId,
    /// What is compared.
    pub scope: Scope,
    /// The first job of the range.
    pub from: JobId,
    /// The last job of the range, included.
    pub to: JobId,
    /// What the initiator holds in it, in order.
    pub entries: Vec<(JobId, u64)>,
    /// Whether only these are compared: the initiator should keep no copy, and wants no others.
    pub only_these: bool,
    /// The view of a strict group, as the initiator knows it.
    pub view: Option<GroupView>,
}

/// The answer to a page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncReply {
    /// Which session.
    pub session: u64,
    /// The first job of the page that this answers.
    pub from: JobId,
    /// The last job that was compared; less than the page's `to` when the answer grew too large.
    pub upto: JobId,
    /// What the sender holds that differs.
    pub records: Vec<JobUpdate>,
    /// What the sender lacks.
    pub want: Vec<JobId>,
    /// A digest of the finished jobs that the sender holds.
    pub finished: Digest,
    /// Which copy the sender keeps.
    pub copy: u64,
    /// On which disk.
    pub disk: DiskId,
    /// Of jobs that were forgotten before this moment (ms since 1970), the sender keeps nothing.
    pub horizon_ms: u64,
}

/// What became of one job of a [`Message::Store`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoreResult {
    /// It is there now.
    Stored,
    /// It was there before.
    Existed,
    /// Another payload has its id.
    Conflict,
    /// It was not taken.
    Refused(Refusal),
}

/// An attempt, from the coordinator to its worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The attempt.
    pub token: Token,
    /// The pipeline.
    pub pipeline: PipelineId,
    /// Its name.
    pub name: Name,
    /// The job.
    pub job: JobId,
    /// Which of its phases.
    #[serde(deserialize_with = "step")]
    pub step: u16,
    /// That step's name.
    pub step_name: Name,
    /// What the worker runs.
    pub phase: Name,
    /// From 1.
    pub number: u32,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// The job's idempotency key.
    pub key: Option<String>,
    /// What was enqueued, as far as the phase gets it.
    pub instructions: Bytes,
    /// What the phases before it gave, as far as it gets that.
    pub results: Vec<Bytes>,
    /// Where the phase wants these by name: their names, in the same order.
    pub names: Option<Vec<Name>>,
    /// What the items of phases right before it gave.
    pub gathered: Vec<Gathered>,
    /// Whether it is to give items.
    pub gives_items: bool,
    /// How its worker goes about it.
    pub handling: Handling,
    /// What attempts left that gave the items before it; goes in an [`AssignedWith`].
    #[serde(skip)]
    pub sessions: Vec<SessionOf>,
    /// The trace that the job is a part of; goes before it, in a [`Message::Trace`].
    #[serde(skip)]
    pub trace: Option<TraceParent>,
}

/// An [`Assignment`], with sessions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedWith {
    /// The attempt.
    pub assignment: Assignment,
    /// What it may read.
    pub sessions: Vec<SessionOf>,
}

/// What an attempt left that gave items, for the phase behind what is made of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOf {
    /// The step that gave the items.
    pub step: Name,
    /// A JSON object.
    pub entries: Bytes,
}

/// The end of an attempt, from its worker to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Completion {
    /// The attempt.
    pub token: Token,
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The job.
    pub job: JobId,
    /// Which of its phases.
    #[serde(deserialize_with = "step")]
    pub step: u16,
    /// How it ended.
    pub outcome: Outcome,
    /// How many items it gave, if it ended well; all of them are durable.
    pub items: u32,
    /// What it left in its session, a JSON object, if it ended well; goes in a [`CompletedWith`].
    #[serde(skip)]
    pub session: Option<Bytes>,
}

/// A [`Completion`], with a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompletedWith {
    /// The end.
    pub completion: Completion,
    /// A JSON object.
    pub session: Bytes,
}

/// Items that an attempt gave, from its worker to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Items {
    /// The attempt.
    pub token: Token,
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The job.
    pub job: JobId,
    /// Which of its phases.
    #[serde(deserialize_with = "step")]
    pub step: u16,
    /// How many came before these.
    pub first: u32,
    /// JSON objects, one in each line.
    pub lines: Bytes,
}

/// What an attempt said, from its worker to the coordinator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaidBatch {
    /// The attempt.
    pub token: Token,
    /// The pipeline.
    pub pipeline: PipelineId,
    /// The job.
    pub job: JobId,
    /// Which of its phases.
    #[serde(deserialize_with = "step")]
    pub step: u16,
    /// Which attempt of that phase, from 1.
    pub number: u32,
    /// In their order.
    pub lines: Vec<Said>,
}

/// What a phase's items gave, for the phase behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gathered {
    /// The phase's name.
    pub name: Name,
    /// How the results are to be put together.
    pub combine: Combine,
    /// Them, in the order of the items: a JSON array of objects.
    pub results: Bytes,
}

/// A question that only a replica can answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Question {
    /// One job; with `wait`, when it is finished or the time is over.
    Job {
        /// The pipeline.
        pipeline: PipelineId,
        /// The job.
        job: JobId,
        /// How long.
        wait: Option<Duration>,
    },
    /// A page of jobs.
    Jobs {
        /// The pipeline.
        pipeline: PipelineId,
        /// The items of this job; otherwise only jobs that are no items.
        of: Option<JobId>,
        /// Only those in this state.
        state: Option<JobState>,
        /// Only those behind this one.
        after: Option<JobId>,
        /// How many at most.
        limit: u32,
    },
    /// Not to be told something, but to have jobs changed.
    Change {
        /// The pipeline.
        pipeline: PipelineId,
        /// Which jobs.
        which: Which,
        /// How.
        change: Change,
    },
    /// Events, which only the coordinator has.
    Events {
        /// The pipeline.
        pipeline: PipelineId,
        /// Which.
        query: EventQuery,
    },
    /// What is kept of a job's logs.
    Logs {
        /// The pipeline.
        pipeline: PipelineId,
        /// The job.
        job: JobId,
    },
    /// A page of jobs that are no items, the newest first.
    Newest {
        /// The pipeline.
        pipeline: PipelineId,
        /// Only those in this state.
        state: Option<JobState>,
        /// Only those behind this one.
        after: Option<JobId>,
        /// How many at most.
        limit: u32,
    },
    /// What waits and runs at each step, which only the coordinator knows.
    Steps {
        /// The pipeline.
        pipeline: PipelineId,
    },
}

impl Question {
    /// Which pipeline it is about.
    pub fn pipeline(&self) -> PipelineId {
        match self {
            Self::Job { pipeline, .. }
            | Self::Jobs { pipeline, .. }
            | Self::Change { pipeline, .. }
            | Self::Events { pipeline, .. }
            | Self::Logs { pipeline, .. }
            | Self::Newest { pipeline, .. }
            | Self::Steps { pipeline } => *pipeline,
        }
    }
}

/// Which jobs of a pipeline are to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Which {
    /// One.
    Job(JobId),
    /// A page of those in one state.
    Jobs {
        /// In which state.
        state: JobState,
        /// Only those behind this one.
        after: Option<JobId>,
        /// How many at most.
        limit: u32,
    },
}

/// What a replica knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// The job, if it is there.
    Job(Option<Box<JobView>>),
    /// A page of jobs.
    Jobs {
        /// The jobs.
        jobs: Vec<JobSummary>,
        /// Where the next page begins.
        next: Option<JobId>,
    },
    /// This node cannot say, or do it: it does not coordinate the pipeline (any more).
    Elsewhere,
    /// What was changed, or why nothing was.
    Changed(Result<Changed, Refusal>),
    /// Events.
    Events(Box<EventPage>),
    /// What is kept of a job's logs, if there is such a job.
    Logs(Option<Box<LogsPage>>),
    /// What waits and runs at each step where anything does, in order of their names.
    Steps(Vec<StepCounts>),
}
