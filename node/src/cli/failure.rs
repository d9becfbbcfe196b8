//! How a command fails: message, hint and exit code, in one place.

use std::{io, process::ExitCode, time::Duration};

use carbonmesh_protocol::view::JobState;
use reqwest::Url;
use thiserror::Error;

use super::{client::Problem, output::clean, unanswered::Unanswered};
use crate::document::format_duration;

/// Why a command was not done.
#[derive(Debug, Error)]
pub(super) enum Failure {
    /// The node said no.
    #[error("{}", clean(&.0.detail))]
    Refused(Box<Problem>),
    /// Something that the command line names cannot be used.
    #[error("{0}")]
    Usage(String),
    /// There is nothing of that name.
    #[error("{0}")]
    NotFound(String),
    /// Nobody listens there.
    #[error(
        "no node answers at {0}: start one with `carbonmesh up`, or give another address with --api"
    )]
    NoNode(Url),
    /// What answers there cannot show that it is the node that is meant, or does not know us.
    #[error("{url} is not trusted, or does not trust this program: {reason}")]
    Untrusted {
        /// Where.
        url: Url,
        /// Why not.
        reason: String,
    },
    /// The connection broke; what was asked may have been done.
    #[error("the connection to {url} broke before the answer came: {reason}")]
    Lost {
        /// Which node.
        url: Url,
        /// How.
        reason: String,
    },
    /// Something answers, but not a node of ours.
    #[error("{url} gave an answer that this program cannot read: {reason}")]
    Unreadable {
        /// Who.
        url: Url,
        /// Why not.
        reason: String,
    },
    /// The job that was waited for did not succeed.
    #[error("job {job} is {state}")]
    Ended {
        /// Which.
        job: String,
        /// How it ended.
        state: JobState,
    },
    /// The wait is over before the job is.
    #[error("job {job} is still {state} after {}", format_duration(*.waited))]
    StillUnfinished {
        /// Which.
        job: String,
        /// Where it stands.
        state: JobState,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// The node did not answer in time; what was asked may have been done.
    #[error("{url} gave no answer within {}", format_duration(*.waited))]
    NoAnswer {
        /// Which node.
        url: Url,
        /// For how long it was waited for.
        waited: Duration,
    },
    /// Some of many jobs were refused; each was reported.
    #[error("{0} jobs were refused")]
    SomeRefused(u64),
    /// An upload stopped before its end.
    #[error("{reason}\n{unanswered}")]
    Stopped {
        /// What happened.
        reason: Box<Failure>,
        /// What is known of the jobs.
        unanswered: Unanswered,
    },
    /// The job was accepted, but not seen to its end.
    #[error("job {job} was accepted; waiting for it failed: {reason}")]
    Unseen {
        /// Which.
        job: String,
        /// What happened.
        reason: Box<Failure>,
    },
    /// Whoever read our output has seen enough.
    #[error("stdout is closed")]
    OutputClosed,
    /// Our output cannot be written.
    #[error("cannot write to stdout: {0}")]
    Output(io::Error),
    /// The program cannot start.
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    /// The node that was run has failed.
    #[error("{0}")]
    Node(String),
    /// An audit log is not as it was written.
    #[error("the audit log is not as it was written")]
    Tampered,
    /// A phase host does not keep the protocol.
    #[error("the host breaks {0} of these rules: see docs/phase-hosts.md")]
    HostBreaks(usize),
    /// A target did not take the notification that was to try it.
    #[error("not delivered: {}", clean(.0))]
    Undelivered(String),
    /// A backup cannot be restored; nothing was.
    #[error("{0}")]
    Restore(String),
    /// `doctor` found something.
    #[error("{broken} things are broken, {warnings} need a look")]
    Unwell {
        /// How much works, but needs a look.
        warnings: usize,
        /// How much does not work.
        broken: usize,
    },
}

impl Failure {
    /// A node that was run has failed.
    pub(super) fn from_node(error: crate::node::RunError) -> Self {
        if let crate::node::RunError::Config(error) = error {
            return Self::Usage(error.to_string());
        }
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            let text = inner.to_string();
            // Many errors repeat what is below them.
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = inner.source();
        }
        Self::Node(message)
    }

    /// The same failure, when it came after the job had been accepted.
    pub(super) fn after_accepted(self, job: &str) -> Self {
        match self {
            Self::NoNode(_)
            | Self::Untrusted { .. }
            | Self::Lost { .. }
            | Self::Unreadable { .. }
            | Self::NoAnswer { .. }
            | Self::Refused(_) => Self::Unseen { job: job.to_owned(), reason: Box::new(self) },
            // These name the job, or have nothing to do with it.
            other => other,
        }
    }

    /// Whether there is nothing to say.
    pub(super) fn is_silent(&self) -> bool {
        matches!(self, Self::OutputClosed)
    }

    /// The way out, if there is a general one.
    pub(super) fn hint(&self) -> Option<String> {
        match self {
            Self::Refused(problem) => refused_hint(problem),
            Self::Lost { .. } | Self::NoAnswer { .. } => {
                Some("what was asked may have been done: look before you ask again".to_owned())
            }
            Self::Unreadable { .. } => {
                Some("check that --api names a CarbonMesh node of this version".to_owned())
            }
            Self::Untrusted { .. } => Some(
                "give its certificate's fingerprint with --tls-fingerprint, as it prints it when it is \
                 ready, or who has signed it with --ca-file"
                    .to_owned(),
            ),
            Self::Ended { job, .. } => Some(format!("see `carbonmesh job show {job}`")),
            Self::StillUnfinished { job, .. } => {
                Some(format!("go on waiting with `carbonmesh job show {job} --wait`"))
            }
            Self::Stopped { unanswered, .. } => Some(unanswered.way_on()),
            _ => None,
        }
    }

    /// What the process ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        self.code().into()
    }

    fn code(&self) -> u8 {
        match self {
            Self::OutputClosed => 0,
            Self::Refused(problem) if problem.status < 500 => 1,
            Self::SomeRefused(_) | Self::HostBreaks(_) | Self::NotFound(_) | Self::Tampered => 1,
            Self::Usage(_) | Self::Restore(_) | Self::Untrusted { .. } => 2,
            Self::NoNode(_) => 3,
            Self::Ended { .. } => 4,
            Self::StillUnfinished { .. } | Self::NoAnswer { .. } => 6,
            Self::Unwell { broken: 0, .. } => 7,
            Self::Unwell { .. } => 8,
            Self::Stopped { reason, .. } | Self::Unseen { reason, .. } => reason.code(),
            Self::Refused(_)
            | Self::Lost { .. }
            | Self::Unreadable { .. }
            | Self::Output(_)
            | Self::Undelivered(_)
            | Self::Runtime(_)
            | Self::Node(_) => 5,
        }
    }
}

fn refused_hint(problem: &Problem) -> Option<String> {
    let slug = problem.kind.rsplit(':').next().unwrap_or_default();
    match slug {
        "unknown-pipeline" => Some("see `carbonmesh pipeline ls`, or apply it first".to_owned()),
        "foreign-host" => Some("call the node by localhost or 127.0.0.1".to_owned()),
        "not-recoverable" => Some("see `carbonmesh pipeline recover --help`".to_owned()),
        "no-backup-folder" => Some("only the node's own operator can allow one".to_owned()),
        "unauthorized" => Some("give a token with --token-file or in CARBONMESH_TOKEN".to_owned()),
        "bad-json" => Some("quote the JSON for your shell, or give it as @FILE".to_owned()),
        _ => problem.retry_after_s.map(|seconds| format!("try again in {seconds}s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_tell_refusals_from_trouble() {
        let refused = |status| {
            let problem: Problem = serde_json::from_value(serde_json::json!({
                "type": "urn:carbonmesh:problem:x", "title": "", "status": status, "detail": "d"
            }))
            .expect("a problem");
            Failure::Refused(Box::new(problem)).code()
        };
        assert_eq!((refused(404), refused(429), refused(503)), (1, 1, 5));
        let url: Url = "http://127.0.0.1:1".parse().expect("a URL");
        let nobody = Failure::NoNode(url);
        assert_eq!(nobody.code(), 3);
        assert!(nobody.to_string().contains("start one with `carbonmesh up`"));
    }
}
