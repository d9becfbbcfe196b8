//! All that enters the core and all that leaves it.
//!
//! Inputs are facts, effects are orders; both are plain values, so that a run can be written down
//! and replayed.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use thiserror::Error;

use crate::{
    advert::Advert,
    event::{EventPage, EventQuery, LogsPage, Said},
    handler::{Handler, HandlerEntry, HandlerVersion, MAX_HANDLERS},
    id::{JobId, NodeId, Token},
    message::{Gathered, Message, SessionOf},
    name::Name,
    pipeline::{Handling, MAX_PHASES, PipelineDef, Revision},
    record::JobOptions,
    secret::{Place, Sealed, SecretEntry},
    store::Write,
    trace::TraceParent,
    view::{ClusterView, JobState, JobSummary, JobView, RevisionView, StepCounts},
};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A connection to `peer` stands: what is sent now reaches it, in order, until
    /// [`PeerDown`](Self::PeerDown).
    PeerUp(NodeId),
    /// The connection is gone; what was on the way may be lost.
    PeerDown(NodeId),
    /// The node was shut out of the cluster, for good: it is no member, no replica and no worker any
    /// more. Not written down here: the shell says it again at each start.
    Expelled(NodeId),
    /// A message came over a connection.
    Message {
        /// From whom; the shell has checked that it is.
        from: NodeId,
        /// What.
        message: Message,
    },
    /// An advert came by gossip; the shell has checked its signature.
    Advert(Advert),
    /// Where this node can be reached has changed.
    Listening(Vec<String>),
    /// A client asks. Answered by one [`Effect::Reply`] with the same id.
    Request {
        /// Chosen by the shell.
        id: RequestId,
        /// What.
        request: Request,
    },
    /// The client of a request has gone: no reply is needed.
    RequestDropped(RequestId),
    /// All writes of this [`Effect::Persist`] are on disk, and all before it.
    Persisted(PersistId),
    /// An attempt that [`Effect::StartAttempt`] began has ended.
    AttemptFinished {
        /// Which.
        token: Token,
        /// How.
        outcome: Outcome,
    },
    /// A running attempt gives items: JSON objects, one in each line. Those that it gives next must
    /// wait for [`Effect::ItemsTaken`].
    Items {
        /// Which.
        token: Token,
        /// What.
        lines: Bytes,
    },
    /// A running attempt says something. Nothing waits for it.
    Said {
        /// Which.
        token: Token,
        /// What, in its order.
        said: Vec<Said>,
    },
    /// What a running attempt that gives items leaves for the phase behind these: a JSON object. What it
    /// left before is replaced; it counts if the attempt ends well, and only where that counts.
    Session {
        /// Which.
        token: Token,
        /// What.
        entries: Bytes,
    },
    /// Whether the disk has room for more jobs; the reason if not.
    Accepting(Result<(), String>),
    /// The operator wants the node to stop: it takes no new work and hands over what it can.
    Draining,
    /// The phases that this node offers from now on, each with its slots. What runs goes on.
    Offers(Vec<(Name, u32)>),
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Send to a connected peer, in order; dropped if the connection is gone.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        message: Message,
    },
    /// Gossip.
    Publish(Advert),
    /// Write as one batch and sync; then feed back [`Input::Persisted`]. Batches are applied in
    /// the order in which they are given; one without changes needs no sync of its own, but is
    /// reported in its turn. A store that cannot is fatal: the shell ends the node.
    Persist {
        /// Names the batch.
        id: PersistId,
        /// Its changes.
        writes: Vec<Write>,
    },
    /// Run a phase; then feed back [`Input::AttemptFinished`].
    StartAttempt(Box<Attempt>),
    /// Nobody wants the attempt's outcome any more: end it. It still feeds back its end.
    CancelAttempt(Token),
    /// The items that the attempt gave are durable: it may give more, or end.
    ItemsTaken(Token),
    /// Answer a client.
    Reply {
        /// Which request.
        id: RequestId,
        /// The answer.
        response: Response,
    },
}

/// Names a client's request within a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Names a batch of writes within a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PersistId(pub u64);

/// One run of one phase of one job, as its worker gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What fences it.
    pub token: Token,
    /// The job.
    pub job: JobId,
    /// The job's pipeline.
    pub pipeline: Name,
    /// The step's name in the pipeline.
    pub step: Name,
    /// Which phase the worker runs.
    pub phase: Name,
    /// From 1.
    pub number: u32,
    /// How long it may take.
    pub timeout: Option<Duration>,
    /// The idempotency key that the job was enqueued with.
    pub key: Option<String>,
    /// What was enqueued: a JSON object.
    pub instructions: Bytes,
    /// What the phases before it gave, in order, to be merged into the instructions.
    pub results: Vec<Bytes>,
    /// Where they are not to be merged: the phases' names, in the same order.
    pub names: Option<Vec<Name>>,
    /// What the items of phases right before it gave.
    pub gathered: Vec<Gathered>,
    /// Whether it is to give items.
    pub gives_items: bool,
    /// How its worker goes about it.
    pub handling: Handling,
    /// What attempts left that gave the items before it.
    pub sessions: Vec<SessionOf>,
    /// The trace that the job was enqueued within.
    pub trace: Option<TraceParent>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Outcome {
    /// With a JSON object.
    Succeeded(Bytes),
    /// With an error.
    Failed {
        /// For people.
        error: String,
        /// Whether another attempt may do better.
        retry: bool,
        /// How long that should wait; without it, the pipeline says.
        after: Option<Duration>,
    },
    /// It was cancelled before it ended.
    Cancelled,
}

/// What a client may ask of any node.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Make the pipeline known, or change it for jobs to come.
    Apply(Box<PipelineDef>),
    /// Forget a pipeline that has no unfinished jobs.
    Remove(Name),
    /// Accept jobs; each is answered on its own.
    Enqueue {
        /// For which pipeline.
        pipeline: Name,
        /// The jobs.
        jobs: Vec<NewJob>,
    },
    /// One job; with `wait`, as soon as it is finished or that time is over.
    Job {
        /// Which.
        job: JobId,
        /// How long to wait for its end.
        wait: Option<Duration>,
    },
    /// Change jobs.
    Change {
        /// Which.
        target: Target,
        /// How.
        change: Change,
    },
    /// Give out no more work of a pipeline, or of one of its phases; or go on.
    Pause {
        /// The pipeline.
        pipeline: Name,
        /// Only this of its phases.
        step: Option<Name>,
        /// Whether to pause.
        paused: bool,
    },
    /// Give up members of a strict pipeline's group whose majority is lost for good, so that the
    /// others may go on. Asked of one that is left.
    Recover {
        /// The pipeline.
        pipeline: Name,
        /// Those that are given up: all that cannot be reached.
        lost: BTreeSet<NodeId>,
        /// Whether the operator knows what may be lost; it is only told otherwise.
        accept_loss: bool,
    },
    /// A page of jobs, newest key last.
    Jobs {
        /// Of which pipeline.
        pipeline: Name,
        /// The items of this job; otherwise only jobs that are no items.
        of: Option<JobId>,
        /// Only those in this state.
        state: Option<JobState>,
        /// Only those behind this one.
        after: Option<JobId>,
        /// How many at most.
        limit: u32,
    },
    /// What this node knows of the cluster.
    Cluster,
    /// The definitions that a pipeline has and had, as far as they are kept.
    Revisions(Name),
    /// Keep a handler for a phase, in place of the one before.
    PutHandler {
        /// The phase.
        phase: Name,
        /// What runs it.
        handler: Box<Handler>,
    },
    /// Forget the handler of a phase.
    RemoveHandler {
        /// The phase.
        phase: Name,
        /// Even if a pipeline uses it.
        force: bool,
    },
    /// All handlers.
    Handlers,
    /// Keep a value or secret for phases, in place of the one before.
    PutSecret {
        /// Whose.
        place: Box<Place>,
        /// It.
        sealed: Box<Sealed>,
    },
    /// Forget a value or secret.
    RemoveSecret(Box<Place>),
    /// All values and secrets, sealed as they are.
    Secrets,
    /// What happens; with `wait` in the query, as soon as something does or that time is over.
    Events {
        /// To which pipeline and its jobs; otherwise in the cluster, as this node sees it.
        pipeline: Option<Name>,
        /// In which of its partitions; without it, in that of the query's job, or in the only one.
        partition: Option<u16>,
        /// Which.
        query: EventQuery,
    },
    /// What is kept of a job's logs.
    Logs(JobId),
    /// A page of jobs that are no items, the newest first: in the reverse order of their ids, but those
    /// ids that were made of idempotency keys, and say nothing of time, come behind almost all others.
    Newest {
        /// Of which pipeline.
        pipeline: Name,
        /// Only those in this state.
        state: Option<JobState>,
        /// Only those behind this one.
        after: Option<JobId>,
        /// How many at most.
        limit: u32,
    },
    /// What waits and runs at each of a pipeline's steps.
    Steps(Name),
}

/// Which jobs a request changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// One.
    Job(JobId),
    /// A page of a pipeline's jobs in one state; those that the change does not fit stay as they are.
    Jobs {
        /// The pipeline.
        pipeline: Name,
        /// In which state.
        state: JobState,
        /// Only those behind this one.
        after: Option<JobId>,
        /// How many at most.
        limit: u32,
    },
}

/// What is done to a job.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Change {
    /// Ends it. What runs is asked to stop, and made to after a while.
    Cancel {
        /// Why, for people.
        reason: String,
    },
    /// Runs a dead or cancelled one again.
    Retry {
        /// All of it, not only what did not succeed.
        from_start: bool,
    },
    /// Forgets a finished one.
    Discard,
    /// Ends the phase that waits for a signal, be it now or later.
    Signal {
        /// Which signal.
        name: Name,
        /// What the phase gives (a JSON object), or why the job is to fail.
        data: Result<Bytes, String>,
    },
}

/// What was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Changed {
    /// How many jobs.
    pub count: u64,
    /// Where the next page begins (as `after`), if there may be one.
    pub next: Option<JobId>,
}

/// A job as its client hands it in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// The idempotency key: the same key is the same job.
    pub key: Option<String>,
    /// When it may begin, and how soon.
    pub options: JobOptions,
    /// The trace that it is a part of, if its client has one.
    pub trace: Option<TraceParent>,
    /// A JSON object; the core takes it as bytes.
    pub instructions: Bytes,
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// A pipeline's definitions, the latest first.
    Revisions(Vec<RevisionView>),
    /// The pipeline is on disk.
    Applied {
        /// Which definition is current.
        revision: Revision,
        /// Whether that is new.
        changed: bool,
        /// On how many nodes it is on disk.
        copies: u32,
    },
    /// The pipeline is gone.
    Removed,
    /// A group goes on with those that are left, as soon as they have elected a coordinator.
    Recovered {
        /// They.
        members: BTreeSet<NodeId>,
        /// Those that were given up.
        lost: BTreeSet<NodeId>,
    },
    /// One answer per job, in their order.
    Enqueued(Vec<Result<Receipt, Refusal>>),
    /// The job.
    Job(Box<JobView>),
    /// A page of jobs.
    Jobs {
        /// The jobs.
        jobs: Vec<JobSummary>,
        /// Where the next page begins (as `after`), if there may be one.
        next: Option<JobId>,
    },
    /// Jobs were changed.
    Changed(Changed),
    /// The cluster.
    Cluster(Box<ClusterView>),
    /// The handler is on disk.
    HandlerPut {
        /// Which source it has.
        version: HandlerVersion,
        /// Whether that is new.
        changed: bool,
        /// On how many nodes it is on disk.
        copies: u32,
    },
    /// All handlers, in order of their phases.
    Handlers(Vec<HandlerEntry>),
    /// The value or secret is on disk.
    SecretPut {
        /// When it was put (ms since 1970).
        changed_ms: u64,
        /// On how many nodes it is on disk.
        copies: u32,
    },
    /// All values and secrets, in order of their places.
    Secrets(Vec<SecretEntry>),
    /// Events.
    Events(Box<EventPage>),
    /// What is kept of a job's logs.
    Logs(Box<LogsPage>),
    /// What waits and runs at each step where anything does, in order of their names.
    Steps(Vec<StepCounts>),
    /// It was not done.
    Refused(Refusal),
}

/// A job is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Its id.
    pub job: JobId,
    /// How many nodes had synced it when this was said.
    pub copies: u32,
    /// How many should.
    pub target: u32,
    /// Whether there are fewer copies than the cluster could be expected to hold.
    pub degraded: bool,
    /// Whether the same job was there already.
    pub existed: bool,
}

/// Why a request was not done. Unless it says otherwise, nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error, serde::Serialize, serde::Deserialize)]
pub enum Refusal {
    /// No such pipeline.
    #[error("no pipeline is named `{name}`{}", known_pipelines(.known))]
    UnknownPipeline {
        /// What was asked for.
        name: String,
        /// What there is, some of it.
        known: Vec<String>,
    },
    /// No such job.
    #[error("no job {0} is known: its id is wrong, or its retention is over")]
    UnknownJob(JobId),
    /// The payload is over the limit.
    #[error("the job has {bytes} bytes: at most {limit} are allowed (limits.job_bytes)")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The key is over the limit.
    #[error("the idempotency key has {bytes} bytes: 1 to {limit} are allowed")]
    KeyLength {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The key names a job with another payload.
    #[error(
        "idempotency key `{key}` belongs to job {job}, which was enqueued with another payload"
    )]
    KeyConflict {
        /// The key.
        key: String,
        /// The job that has it.
        job: JobId,
    },
    /// Too many jobs wait.
    #[error(
        "{waiting} jobs of this pipeline wait, the limit is {limit} (limits.waiting_jobs): try again later"
    )]
    Busy {
        /// How many.
        waiting: u64,
        /// The limit.
        limit: u64,
    },
    /// Too much is waiting.
    #[error(
        "unfinished jobs take {bytes} bytes of memory, the limit is {limit} (limits.waiting_bytes): try again later"
    )]
    MemoryFull {
        /// How much.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The disks take no more.
    #[error("no replica takes jobs at present: {0}")]
    StorageFull(String),
    /// Nobody who could keep the job answers.
    #[error(
        "no replica of the pipeline can be reached: start one, or connect this node to one with --peer"
    )]
    NoReplica,
    /// It may or may not have been done.
    #[error(
        "no replica answered in time: it is not known whether it was done; send it again with the same idempotency key"
    )]
    Unknown,
    /// Pipelines with unfinished jobs stay.
    #[error("pipeline `{name}` has {unfinished} unfinished jobs: wait for them, then remove it")]
    PipelineInUse {
        /// The pipeline.
        name: String,
        /// How many.
        unfinished: u64,
    },
    /// Nobody can say whether the pipeline has unfinished jobs.
    #[error("nobody coordinates pipeline `{0}` at present: try again in a few seconds")]
    NoCoordinator(String),
    /// The job's state does not allow it.
    #[error("job {job} is {state}: it cannot be {needs}")]
    WrongState {
        /// The job.
        job: JobId,
        /// Its state.
        state: JobState,
        /// What was to be done.
        needs: ChangeName,
    },
    /// Not every copy is up to date, so what is forgotten here might come back.
    #[error(
        "job {0} cannot be discarded at once: not all replicas are up to date, or it has very many items; try again in a few seconds"
    )]
    Unsettled(JobId),
    /// It goes with the job that it is a part of.
    #[error("job {job} is made of an item of job {parent}: change that one")]
    PartOf {
        /// The job.
        job: JobId,
        /// What it is a part of.
        parent: JobId,
    },
    /// What it has done is not undone.
    #[error("what job {job} has done is not undone yet: job {by} has to succeed first")]
    Compensating {
        /// The job.
        job: JobId,
        /// The job that undoes it.
        by: JobId,
    },
    /// Its phases that had succeeded were undone.
    #[error("what job {0} had done was undone: retry it from its start")]
    Compensated(JobId),
    /// Nothing waits for the signal.
    #[error("no phase of job {job} waits for signal `{signal}`, or none does any more")]
    NotAwaited {
        /// The job.
        job: JobId,
        /// The signal.
        signal: String,
    },
    /// The pipeline has no such phase.
    #[error("the pipeline has no phase `{step}`: its phases are {}", .known.join(", "))]
    UnknownStep {
        /// What was asked for.
        step: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Too many pipelines.
    #[error("there are {0} pipelines already: remove one first (limits.pipelines)")]
    TooManyPipelines(usize),
    /// The definition cannot be used. At most [`MAX_PHASES`] phases are allowed.
    #[error("{0}")]
    InvalidPipeline(String),
    /// The node does not play the part.
    #[error("this node is no gateway: ask another, or start it with --role gateway")]
    NotGateway,
    /// Too many requests wait in this node.
    #[error("{0} requests wait in this node: try again later (limits.requests)")]
    TooManyRequests(usize),
    /// The node is about to stop.
    #[error("this node is stopping: ask another")]
    Stopping,
    /// A group is not to be recovered, or not so.
    #[error("{0}")]
    NotRecoverable(String),
    /// The handler cannot be kept.
    #[error("{0}")]
    InvalidHandler(String),
    /// No such handler.
    #[error("phase `{phase}` has no handler in the cluster{}", known_handlers(.known))]
    UnknownHandler {
        /// The phase.
        phase: String,
        /// What there is, some of it.
        known: Vec<String>,
    },
    /// Pipelines need it.
    #[error(
        "phase `{phase}` is used by {}: change these first, or use --force",
        .pipelines.join(", ")
    )]
    HandlerInUse {
        /// The phase.
        phase: String,
        /// The pipelines, some of them.
        pipelines: Vec<String>,
    },
    /// Too many handlers.
    #[error(
        "there are {0} handlers already, at most {MAX_HANDLERS} are possible: remove one first"
    )]
    TooManyHandlers(usize),
    /// The value or secret cannot be kept.
    #[error("{0}")]
    InvalidSecret(String),
    /// No such value or secret.
    #[error("nothing is kept for {0}: `carbonmesh secret ls` shows what is")]
    UnknownSecret(String),
    /// Too many values and secrets.
    #[error(
        "{whose} has {there} values and secrets of at most {most}, at {places} places of at most {most_places}, \
         those with removed ones included: remove some first, or take a place that had one"
    )]
    TooManySecrets {
        /// The cluster, or one namespace.
        whose: String,
        /// How many there are.
        there: usize,
        /// How many there may be.
        most: usize,
        /// At how many places something is or was.
        places: usize,
        /// At how many it may be.
        most_places: usize,
    },
    /// Each partition has a stream of events of its own.
    #[error(
        "pipeline `{name}` has {count} partitions, each with events of its own: say which, from 0 to {}",
        .count.saturating_sub(1)
    )]
    WhichPartition {
        /// The pipeline.
        name: String,
        /// How many it has.
        count: usize,
    },
}

/// What was to be done to a job, as its refusal says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum ChangeName {
    /// See [`Change::Cancel`].
    Cancelled,
    /// See [`Change::Retry`].
    Retried,
    /// See [`Change::Discard`].
    Discarded,
    /// See [`Change::Signal`].
    Signalled,
}

impl std::fmt::Display for ChangeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cancelled => "cancelled, since it has ended",
            Self::Retried => "tried again: only dead and cancelled jobs can",
            Self::Discarded => "discarded: only finished jobs can; cancel it first",
            Self::Signalled => "signalled, since it has ended",
        })
    }
}

const _: () = assert!(MAX_PHASES <= u16::MAX as usize);

fn known_handlers(known: &[String]) -> String {
    match known {
        [] => ": no phase has one".to_owned(),
        names => format!(": these have one: {}", names.join(", ")),
    }
}

fn known_pipelines(known: &[String]) -> String {
    match known {
        [] => ": none is known yet; apply one first".to_owned(),
        names => format!(": known are {}", names.join(", ")),
    }
}
