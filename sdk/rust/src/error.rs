//! What can go wrong, told apart by what a program can do about it.

use std::{fmt, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::model::{Job, JobState};

/// A request was not done, or nobody knows.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A node refused it: nothing was done.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// Nobody could be reached: nothing was done.
    #[error("no node answers: {0}")]
    NoNode(String),
    /// It was sent, and its answer was lost or did not come in time: it may have been done.
    #[error("nobody knows whether it was done, since the answer of {url} was lost: {reason}")]
    Unknown {
        /// Who was asked.
        url: String,
        /// What happened.
        reason: String,
    },
    /// An answer came and makes no sense: what was asked is no node of CarbonMesh, or one of another
    /// version.
    #[error("the answer of {url} cannot be read: {reason}")]
    Unreadable {
        /// Who was asked.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was given to the client cannot be used: nothing was sent.
    #[error("{setting}: {reason}")]
    Setting {
        /// What was given.
        setting: String,
        /// Why it cannot be used, and the way out.
        reason: String,
    },
    /// The job did not end within the time that it was waited for; it goes on.
    #[error("job {job} is still {state} after {waited:?}")]
    StillRuns {
        /// Which.
        job: String,
        /// Where it stands.
        state: JobState,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The job has ended, and not well.
    #[error("job {} is {}: {}", .0.id, .0.state, .0.error().unwrap_or("nobody said why"))]
    Failed(Box<Job>),
    /// What a job gave does not fit the type that it is to be read as.
    #[error("what job {job} gave does not fit: {reason}")]
    Output {
        /// Which.
        job: String,
        /// What does not fit.
        reason: String,
    },
}

impl Error {
    pub(crate) fn setting(setting: impl Into<String>, reason: impl fmt::Display) -> Self {
        Self::Setting { setting: setting.into(), reason: reason.to_string() }
    }

    /// The refusal, if it is one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused(problem) => Some(problem),
            _ => None,
        }
    }

    /// Of what kind the refusal is, if it is one.
    pub fn kind(&self) -> Option<ProblemKind> {
        self.problem().map(Problem::kind)
    }
}

/// A problem document (RFC 9457): how a node says no.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[non_exhaustive]
pub struct Problem {
    /// `urn:carbonmesh:problem:` and a word that does not change; see [`kind`](Self::kind).
    #[serde(rename = "type")]
    pub urn: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time, and the way out.
    pub detail: String,
    /// After how many seconds it may go better, if it may.
    #[serde(default)]
    pub retry_after_s: Option<u64>,
    /// Values that the detail names, for programs.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

impl Problem {
    /// Of what kind it is.
    pub fn kind(&self) -> ProblemKind {
        ProblemKind::of(self.urn.rsplit(':').next().unwrap_or_default())
    }

    /// Whether the same request may be taken later, or by another node.
    pub fn may_pass(&self) -> bool {
        matches!(self.status, 429 | 503)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)
    }
}

/// Kinds, each with the word by which nodes name it.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// Of what kind a refusal is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ProblemKind {
            $($(#[$doc])* $kind,)*
            /// One that this client does not know: see [`Problem::urn`].
            Other,
        }

        impl ProblemKind {
            fn of(word: &str) -> Self {
                match word {
                    $($word => Self::$kind,)*
                    _ => Self::Other,
                }
            }
        }
    };
}

kinds! {
    /// There is no such pipeline.
    UnknownPipeline = "unknown-pipeline",
    /// There is no such job, or it is forgotten.
    UnknownJob = "unknown-job",
    /// The pipeline has no such phase.
    UnknownPhase = "unknown-phase",
    /// The job, the line or the document has too many bytes.
    TooLarge = "too-large",
    /// The idempotency key is too short or too long.
    KeyLength = "key-length",
    /// Another job was enqueued under that key.
    KeyConflict = "key-conflict",
    /// Too many jobs wait.
    Busy = "busy",
    /// What waits takes too much memory.
    MemoryFull = "memory-full",
    /// The node has too many requests under way.
    TooManyRequests = "too-many-requests",
    /// The disk has no room for more jobs.
    StorageFull = "storage-full",
    /// No replica of the pipeline can be reached.
    NoReplica = "no-replica",
    /// The pipeline has no coordinator at present.
    NoCoordinator = "no-coordinator",
    /// Nobody knows whether it was done.
    Unknown = "unknown",
    /// The pipeline has unfinished jobs.
    PipelineInUse = "pipeline-in-use",
    /// There are as many pipelines as there may be.
    TooManyPipelines = "too-many-pipelines",
    /// The document is readable, and no pipeline.
    InvalidPipeline = "invalid-pipeline",
    /// The job's state does not allow it.
    WrongState = "wrong-state",
    /// The job's replicas are not up to date yet.
    Unsettled = "unsettled",
    /// The job is a part of another, and goes with it.
    PartOf = "part-of",
    /// What the job has done is being undone.
    Compensating = "compensating",
    /// What the job had done was undone.
    Compensated = "compensated",
    /// Nothing waits for the signal.
    NotAwaited = "not-awaited",
    /// The node takes no requests of clients.
    NotGateway = "not-gateway",
    /// The node stops.
    Stopping = "stopping",
    /// The instructions are no JSON object.
    NotAnObject = "not-an-object",
    /// The body is no JSON.
    BadJson = "bad-json",
    /// A parameter cannot be used.
    BadQuery = "bad-query",
    /// The job has no field with its key.
    NoKey = "no-key",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_read_with_what_it_names() {
        let text = r#"{"type": "urn:carbonmesh:problem:key-conflict", "title": "in use",
            "status": 409, "detail": "the key is in use", "job": "j1"}"#;
        let problem: Problem = serde_json::from_str(text).unwrap();
        assert_eq!((problem.kind(), problem.may_pass()), (ProblemKind::KeyConflict, false));
        assert_eq!(problem.values["job"], "j1");
        let other = text.replace("key-conflict", "something-new").replace("409", "503");
        let other: Problem = serde_json::from_str(&other).unwrap();
        assert_eq!((other.kind(), other.may_pass()), (ProblemKind::Other, true));
        assert_eq!(Error::Refused(Box::new(other)).to_string(), "the key is in use");
    }
}
