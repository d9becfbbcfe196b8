//! All that was seen of one run, from outside: what the checker judges.
//!
//! Nothing in here comes from inside a node, so that the check holds for any program behind the same
//! HTTP interface.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{fault::Kind, journal::Record};

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct History {
    /// How the run was started.
    pub(crate) seed: u64,
    pub(crate) nodes: Vec<String>,
    /// On how many disks a job should be.
    pub(crate) replicas: u32,
    /// What clients asked for and heard, in the order in which it happened.
    pub(crate) ops: Vec<Op>,
    /// What workers wrote down.
    pub(crate) runs: Vec<Record>,
    /// Ends that clients saw while the run went on.
    pub(crate) seen: Vec<Seen>,
    /// What was done to the cluster.
    pub(crate) faults: Vec<Fault>,
    /// What the healed cluster says of every job that it knows.
    pub(crate) finals: BTreeMap<String, JobState>,
    /// What every node holds by itself.
    pub(crate) copies: Vec<Copy>,
    /// What nobody may do, whatever the faults: panics, damage that went unnoticed.
    pub(crate) offences: Vec<String>,
    pub(crate) began_ms: u64,
    /// From then on there were no faults.
    pub(crate) healed_ms: u64,
    /// From then on nothing was left to do.
    pub(crate) drained_ms: u64,
}

/// Something that a client did, or heard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Op {
    pub(crate) at_ms: u64,
    /// The job's number; each try of one job has the same.
    pub(crate) number: u64,
    pub(crate) node: String,
    /// Whether it has an idempotency key, which makes all tries one job.
    pub(crate) keyed: bool,
    pub(crate) outcome: Outcome,
}

/// In Jepsen's words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Invoked,
    /// Acknowledged, with this id, on so many disks.
    Ok {
        id: String,
        copies: u32,
    },
    /// It may have happened, or may still happen.
    Unknown(String),
    /// It did not happen.
    Failed(String),
}

/// A client saw a job's end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) at_ms: u64,
    pub(crate) id: String,
    pub(crate) node: String,
    pub(crate) state: String,
}

/// One fault, from its first effect to the end of its heal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    /// Those whom it hit.
    pub(crate) nodes: Vec<String>,
    /// Whether the first of them coordinated.
    #[serde(default)]
    pub(crate) of_coordinator: bool,
    pub(crate) from_ms: u64,
    /// When it was taken back.
    pub(crate) until_ms: u64,
    /// Whether a disk lost what it held.
    pub(crate) destroyed: bool,
    /// When all copies were there again; nothing else is destroyed before.
    pub(crate) converged_ms: Option<u64>,
    pub(crate) note: String,
}

/// A job as a node shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobState {
    pub(crate) state: String,
    pub(crate) number: Option<u64>,
    /// What each step gave: output and token, by step. Empty if only the state was asked for.
    pub(crate) results: BTreeMap<String, (String, String)>,
}

/// What one node holds, asked while it could ask nobody else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Copy {
    pub(crate) node: String,
    /// Whether it should hold all jobs.
    pub(crate) is_replica: bool,
    pub(crate) jobs: BTreeMap<String, JobState>,
}

impl JobState {
    pub(crate) fn is_terminal(&self) -> bool {
        is_terminal(&self.state)
    }
}

/// Whether a state ends a job.
pub(crate) fn is_terminal(state: &str) -> bool {
    matches!(state, "succeeded" | "dead" | "cancelled")
}
