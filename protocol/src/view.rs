//! What clients see: snapshots of jobs and of the cluster.
//!
//! Times are milliseconds since 1970 by the clock of the node that recorded them.

use std::{collections::BTreeMap, fmt, iter::Sum, ops::Add, str::FromStr, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    advert::{PhaseSlots, Roles},
    id::{DiskId, JobId, NodeId, PipelineId, Term, Token},
    name::Name,
    pipeline::PipelineDef,
    record::JobOptions,
    trace::TraceParent,
};

/// Where a job, or one invocation of it, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits: for a slot, for the phases before, or for its backoff.
    Queued,
    /// A worker has it.
    Running,
    /// It is done.
    Succeeded,
    /// Its attempts are spent: a dead letter.
    Dead,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 5] =
        [Self::Queued, Self::Running, Self::Succeeded, Self::Dead, Self::Cancelled];

    /// Whether it ends here.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled)
    }

    /// Its name in documents and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for JobState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is no job state: the states are {names}")
        })
    }
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSummary {
    /// Its id.
    pub job: JobId,
    /// Where it stands.
    pub state: JobState,
    /// When it was enqueued.
    pub created_ms: u64,
    /// The idempotency key that it was enqueued with.
    pub key: Option<String>,
    /// The step that runs or comes next, or the last.
    pub step: Option<Name>,
    /// What went wrong last, if anything did.
    pub error: Option<String>,
}

/// A job in full.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// Its id.
    pub job: JobId,
    /// Its pipeline.
    pub pipeline: Name,
    /// Where it stands.
    pub state: JobState,
    /// When it was enqueued.
    pub created_ms: u64,
    /// When it became terminal.
    pub finished_ms: Option<u64>,
    /// What its client said of it beside.
    pub options: JobOptions,
    /// How often an operator has had it tried again.
    pub generation: u32,
    /// The idempotency key that it was enqueued with.
    pub key: Option<String>,
    /// The job of which it is a part, and of which item it is made.
    pub parent: Option<(JobId, u32)>,
    /// The failed job that this one undoes.
    pub compensates: Option<JobId>,
    /// The job that undoes what this one has done, since it failed.
    pub compensation: Option<JobId>,
    /// What was enqueued.
    pub instructions: Bytes,
    /// What its phases made of it: their results, in order, to be merged into the instructions.
    pub results: Vec<Bytes>,
    /// Its phases, in the pipeline's order.
    pub invocations: Vec<InvocationView>,
    /// Outcomes that came after another had been accepted: how often a phase finished in vain.
    pub conflicts: u32,
    /// How many other payloads were enqueued under the job's key beyond a partition; they do not run.
    pub other_payloads: u32,
    /// The trace that it was enqueued within; goes beside the view between nodes.
    #[serde(skip)]
    pub trace: Option<TraceParent>,
}

/// One phase of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvocationView {
    /// The step's name in the pipeline.
    pub step: Name,
    /// What the worker must offer.
    pub phase: Name,
    /// Where it stands.
    pub state: JobState,
    /// How often it was tried; the last few in detail.
    pub attempt_count: u32,
    /// Its last attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Why it ended, where its last attempt does not say.
    pub note: Option<String>,
    /// What it gave.
    pub result: Option<Bytes>,
    /// How far its items are, where it is for items and under way.
    pub items: Option<ItemsView>,
}

/// How far the items of a phase are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemsView {
    /// How many there are.
    pub total: u32,
    /// How many have ended.
    pub ended: u32,
    /// How many of these failed.
    pub failed: u32,
}

/// One run of a phase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptView {
    /// From 1.
    pub number: u32,
    /// Who ran it.
    pub worker: NodeId,
    /// What fenced it.
    pub token: Token,
    /// When it was assigned.
    pub started_ms: u64,
    /// When its end was recorded.
    pub finished_ms: Option<u64>,
    /// What went wrong, if anything did.
    pub error: Option<String>,
    /// Whether it was given up because its worker was lost, and may still go on there.
    pub lost: bool,
}

/// How a member looks from the node that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Liveness {
    /// Connected.
    Alive,
    /// Not connected since a moment ago.
    Suspect,
    /// Not connected for longer than a lease.
    Down,
    /// Away for so long that its copies are made elsewhere.
    Retired,
}

impl fmt::Display for Liveness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Retired => "retired",
        })
    }
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberView {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its data folder.
    pub disk: DiskId,
    /// How often that was started.
    pub boot: u64,
    /// Its program's version.
    pub version: String,
    /// Whether it can be reached.
    pub liveness: Liveness,
    /// What it does.
    pub roles: Roles,
    /// What it runs.
    pub phases: Vec<PhaseSlots>,
    /// What its operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Why it takes no jobs, if so.
    pub refusing: Option<String>,
    /// For how long the node that was asked gives it nothing, since it kept attempts far beyond their
    /// time-outs.
    pub avoided: Option<Duration>,
}

/// A pipeline as the node that was asked sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PipelineView {
    /// Its current definition.
    pub definition: PipelineDef,
    /// Whether no more of its work is given out, or of which of its phases.
    pub paused: bool,
    /// The phases that are paused by themselves.
    pub paused_steps: Vec<Name>,
    /// Who coordinates it, and since which term.
    pub coordinator: Option<(NodeId, Term)>,
    /// Who should keep its jobs.
    pub replicas: Vec<NodeId>,
    /// Its jobs, as its coordinator counted them within the last seconds.
    pub counts: Option<Counts>,
    /// Phases that no live worker offers, or none that has what they require.
    pub unoffered: Vec<Name>,
    /// Its partitions in their order; only itself if it is not split.
    pub partitions: Vec<PartitionView>,
}

/// One of the parts that a pipeline's jobs are split into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionView {
    /// Which, from 0.
    pub number: u16,
    /// Who coordinates it, and since which term.
    pub coordinator: Option<(NodeId, Term)>,
    /// Who should keep its jobs.
    pub replicas: Vec<NodeId>,
    /// Its jobs, as its coordinator counted them within the last seconds.
    pub counts: Option<Counts>,
}

impl PipelineView {
    /// Whether somebody coordinates it, all of its partitions.
    pub fn is_led(&self) -> bool {
        self.partitions.iter().all(|partition| partition.coordinator.is_some())
    }

    /// Whether somebody coordinates that part of it which a job is in.
    pub fn is_led_for(&self, job: JobId) -> bool {
        let name = self.definition.name.as_str();
        let holds = |number| job.may_belong_to(PipelineId::of_partition(name, number));
        let found = self.partitions.iter().find(|partition| holds(partition.number));
        found.is_none_or(|partition| partition.coordinator.is_some())
    }
}

/// One definition that a pipeline has or had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionView {
    /// It.
    pub definition: PipelineDef,
    /// With which of the pipeline's changes it was applied last, counted from 1.
    pub applied: u64,
    /// Whether new jobs follow it.
    pub current: bool,
}

/// Jobs of a pipeline by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Waiting.
    pub queued: u64,
    /// With at least one phase at a worker.
    pub running: u64,
    /// Unfinished parts of these: what is made of the items that they gave.
    pub items: u64,
    /// Done.
    pub succeeded: u64,
    /// Dead letters.
    pub dead: u64,
    /// Cancelled.
    pub cancelled: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            queued: self.queued.saturating_add(other.queued),
            running: self.running.saturating_add(other.running),
            items: self.items.saturating_add(other.items),
            succeeded: self.succeeded.saturating_add(other.succeeded),
            dead: self.dead.saturating_add(other.dead),
            cancelled: self.cancelled.saturating_add(other.cancelled),
        }
    }
}

impl Sum for Counts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Add::add)
    }
}

/// What of a pipeline's jobs is at one of its steps, items and what undoes others included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCounts {
    /// The step's name; those within others and those that undo others have names of their own.
    pub step: Name,
    /// How many invocations wait for a worker.
    pub waiting: u64,
    /// How many attempts are at workers.
    pub running: u64,
}

/// The cluster as one node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterView {
    /// The node that was asked.
    pub node: NodeId,
    /// All members, itself among them.
    pub members: Vec<MemberView>,
    /// All pipelines.
    pub pipelines: Vec<PipelineView>,
}
