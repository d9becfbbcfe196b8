//! The documents that nodes answer with.
//!
//! Times are RFC 3339 in UTC. Nodes may add fields; those that are not known here are passed over.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::{Error, PipelineSpec};

/// Where a job, or one phase of it, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
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
    /// One that this client does not know.
    #[serde(other)]
    Other,
}

impl JobState {
    /// Whether it ends here.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled)
    }

    /// Its name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A job was accepted: it is on disk.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Receipt {
    /// The job.
    pub id: String,
    /// On how many nodes it was on disk when this was said.
    pub copies: u32,
    /// On how many it should be.
    pub target: u32,
    /// Whether there are fewer copies than could be expected.
    pub degraded: bool,
    /// Whether the same job was there already.
    pub existed: bool,
}

/// A job in full.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Job {
    /// The job.
    pub id: String,
    /// Its pipeline.
    pub pipeline: String,
    /// Where it stands.
    pub state: JobState,
    /// When it was enqueued.
    pub created_at: String,
    /// When it became terminal.
    pub finished_at: Option<String>,
    /// When it may begin, if that was put off.
    #[serde(default)]
    pub not_before: Option<String>,
    /// When it becomes a dead letter unless it has ended.
    #[serde(default)]
    pub deadline: Option<String>,
    /// Of what waits for the same phase, the higher goes first.
    #[serde(default)]
    pub priority: i8,
    /// How often it was tried again as a whole.
    #[serde(default)]
    pub generation: u32,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The span of whoever enqueued it, as a `traceparent` of W3C Trace Context.
    #[serde(default)]
    pub traceparent: Option<String>,
    /// The job that it is a part of, if it is made of an item.
    #[serde(default)]
    pub parent: Option<String>,
    /// Of which item of that job, from 0.
    #[serde(default)]
    pub item: Option<u32>,
    /// The failed job that this one undoes.
    #[serde(default)]
    pub compensates: Option<String>,
    /// The job that undoes what this one has done, since it failed.
    #[serde(default)]
    pub compensation: Option<String>,
    /// What was enqueued; see [`input`](Self::input).
    pub instructions: Option<Box<RawValue>>,
    /// The instructions with the results so far merged into them; see [`output`](Self::output).
    pub result: Option<Box<RawValue>>,
    /// Its phases, in the pipeline's order.
    pub invocations: Vec<Invocation>,
    /// How often a phase finished after another outcome had been accepted.
    #[serde(default)]
    pub conflicts: u32,
}

impl Job {
    /// What was enqueued, as a type.
    ///
    /// # Errors
    /// It does not fit.
    pub fn input<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.read(self.instructions.as_deref())
    }

    /// The instructions with the results of all phases merged into them, as a type.
    ///
    /// # Errors
    /// The job has not succeeded, or what it gave does not fit.
    pub fn output<T: DeserializeOwned>(&self) -> Result<T, Error> {
        match self.state {
            JobState::Succeeded => self.read(self.result.as_deref()),
            _ => Err(Error::Failed(Box::new(self.clone()))),
        }
    }

    /// What went wrong last, if anything did.
    pub fn error(&self) -> Option<&str> {
        self.invocations.iter().rev().find_map(Invocation::error)
    }

    /// One of its phases, by its name in the pipeline.
    pub fn invocation(&self, step: &str) -> Option<&Invocation> {
        self.invocations.iter().find(|one| one.step == step)
    }

    fn read<T: DeserializeOwned>(&self, json: Option<&RawValue>) -> Result<T, Error> {
        let json = json.map_or("{}", RawValue::get);
        serde_json::from_str(json)
            .map_err(|error| Error::Output { job: self.id.clone(), reason: error.to_string() })
    }
}

/// One phase of a job.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Invocation {
    /// Its name in the pipeline.
    pub step: String,
    /// What the worker must offer.
    pub phase: String,
    /// Where it stands.
    pub state: JobState,
    /// How often it was tried.
    pub attempt_count: u32,
    /// Its last attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// Why it ended, where its last attempt does not say.
    #[serde(default)]
    pub note: Option<String>,
    /// What it gave.
    pub result: Option<Box<RawValue>>,
    /// How far its items are, where it does something for each and that is under way.
    #[serde(default)]
    pub items: Option<Items>,
}

impl Invocation {
    /// What went wrong last, if anything did.
    pub fn error(&self) -> Option<&str> {
        let last = self.attempts.iter().rev().find_map(|attempt| attempt.error.as_deref());
        self.note.as_deref().or(last)
    }
}

/// One run of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Attempt {
    /// From 1.
    pub number: u32,
    /// Who ran it.
    pub worker: NodeRef,
    /// What fenced it.
    #[serde(default)]
    pub token: String,
    /// When it was assigned.
    pub started_at: String,
    /// When its end was recorded.
    pub finished_at: Option<String>,
    /// What went wrong, if anything did.
    pub error: Option<String>,
}

/// How far the items of a phase are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Items {
    /// How many there are.
    pub total: u32,
    /// How many have ended.
    pub ended: u32,
    /// How many of these failed.
    pub failed: u32,
}

/// A job in a list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct JobSummary {
    /// The job.
    pub id: String,
    /// Where it stands.
    pub state: JobState,
    /// When it was enqueued.
    pub created_at: String,
    /// Its idempotency key.
    pub key: Option<String>,
    /// The phase that runs or comes next, or the last.
    pub step: Option<String>,
    /// What went wrong last, if anything did.
    pub error: Option<String>,
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<JobSummary>,
    /// Where the next part begins, if there may be one.
    pub next: Option<String>,
}

/// A node: its identity in full, and its name if the node that was asked knows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct NodeRef {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub name: Option<String>,
}

/// Whether a member can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Liveness {
    /// Connected.
    Alive,
    /// Not connected since a moment ago.
    Suspect,
    /// Not connected for longer than a lease.
    Down,
    /// Away for so long that its copies are made elsewhere.
    Retired,
    /// One that this client does not know.
    #[serde(other)]
    Other,
}

/// A member of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Node {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Its program's version.
    pub version: String,
    /// Whether it can be reached.
    pub liveness: Liveness,
    /// What it does.
    pub roles: Vec<String>,
    /// What it runs.
    pub phases: Vec<Offer>,
    /// What it found out of its machine, and what its operator says of it.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Where it listens.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Why it takes no jobs, if so.
    #[serde(default)]
    pub refusing: Option<String>,
}

/// A phase at one member.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Offer {
    /// Which.
    pub phase: String,
    /// How many attempts may run there at once.
    pub slots: u32,
    /// How many run.
    pub busy: u32,
}

/// Jobs of a pipeline by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
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

/// A pipeline.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// What names its current definition.
    pub revision: String,
    /// Its current definition; may be applied again.
    pub definition: PipelineSpec,
    /// Whether no more of its work is given out.
    #[serde(default)]
    pub paused: bool,
    /// The phases of which no more work is given out.
    #[serde(default)]
    pub paused_phases: Vec<String>,
    /// Who coordinates it.
    pub coordinator: Option<NodeRef>,
    /// Who should keep its jobs.
    pub replicas: Vec<NodeRef>,
    /// Its jobs by state, if its coordinator counted them lately.
    pub counts: Option<Counts>,
    /// Phases that no live worker offers, or none that has what they require.
    #[serde(default)]
    pub unoffered: Vec<String>,
}

/// A pipeline was applied.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Applied {
    /// Which.
    pub name: String,
    /// What names the current definition.
    pub revision: String,
    /// Whether that is new.
    pub changed: bool,
    /// On how many nodes it is on disk.
    pub copies: u32,
}

/// The cluster at a glance.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct Status {
    /// The node that was asked.
    pub node: NodeRef,
    /// Its program's version.
    pub version: String,
    /// How many members there are.
    pub members: Members,
    /// All pipelines.
    pub pipelines: Vec<Pipeline>,
    /// Phases that no live worker offers, or none that has what they require.
    #[serde(default)]
    pub unoffered_phases: Vec<String>,
    /// Members that take no jobs at present.
    #[serde(default)]
    pub refusing: Vec<Refusing>,
}

/// How many members there are, by liveness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Members {
    /// Connected.
    pub alive: usize,
    /// Not connected since a moment ago.
    pub suspect: usize,
    /// Not connected for longer than a lease.
    pub down: usize,
    /// Away for so long that their copies are made elsewhere.
    pub retired: usize,
}

/// A member that takes no jobs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Refusing {
    /// Who.
    pub node: NodeRef,
    /// Why.
    pub reason: String,
}

/// Which program a node is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Version {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"{"id": "j1", "pipeline": "p", "state": "STATE", "created_at": "t",
        "finished_at": null, "key": null, "instructions": {"a": 1}, "result": {"a": 1, "b": "x"},
        "new": true, "invocations": [{"step": "s", "phase": "s", "state": "dead",
        "attempt_count": 1, "result": null, "attempts": [{"number": 1,
        "worker": {"id": "n", "name": null}, "started_at": "t", "finished_at": "t",
        "error": "no such file"}]}], "conflicts": 0}"#;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Output {
        a: u64,
        b: String,
    }

    #[test]
    fn what_a_job_gave_is_read_as_a_type() {
        let job: Job = serde_json::from_str(&JOB.replace("STATE", "succeeded")).unwrap();
        assert_eq!(job.output::<Output>().unwrap(), Output { a: 1, b: "x".to_owned() });
        let error = job.input::<Output>().unwrap_err().to_string();
        assert!(error.contains("j1") && error.contains("missing field `b`"), "{error}");
    }

    #[test]
    fn a_job_that_failed_says_why() {
        let job: Job = serde_json::from_str(&JOB.replace("STATE", "dead")).unwrap();
        let error = job.output::<Output>().unwrap_err();
        assert_eq!(error.to_string(), "job j1 is dead: no such file");
    }

    #[test]
    fn states_of_later_versions_are_no_errors() {
        let job: Job = serde_json::from_str(&JOB.replace("STATE", "asleep")).unwrap();
        assert_eq!((job.state, job.state.is_terminal()), (JobState::Other, false));
    }
}
