//! What is told: one thing that happened, in words and in fields.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::http::view::NodeRef;

/// How much a notification matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Good to know.
    Info,
    /// Worth a look.
    Warning,
    /// Something is lost or has failed for good.
    Error,
}

impl Level {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Info, Self::Warning, Self::Error];

    /// Its name in settings and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|level| level.name() == text);
        found.ok_or_else(|| format!("`{text}` is no level: take info, warning or error"))
    }
}

macro_rules! kinds {
    ($($(#[$about:meta])* $kind:ident $name:literal $level:ident,)*) => {
        /// What may be told.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$about])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name in settings and documents.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// How much it matters.
            pub const fn level(self) -> Level {
                match self {
                    $(Self::$kind => Level::$level,)*
                }
            }
        }
    };
}

kinds! {
    /// A job has failed for good: it is a dead letter.
    Dead "dead" Error,
    /// An attempt has failed; there may be another.
    AttemptFailed "attempt_failed" Info,
    /// Another node, or the same in a new term, coordinates a pipeline.
    Coordinator "coordinator" Warning,
    /// Nobody is known to coordinate a pipeline.
    CoordinatorLost "coordinator_lost" Warning,
    /// A node cannot be reached for longer than a lease.
    NodeDown "node_down" Error,
    /// A node was away for so long that its copies are made elsewhere.
    NodeRetired "node_retired" Error,
    /// A node can be reached again.
    NodeReturned "node_returned" Info,
    /// The oldest of what waits for a worker waits for longer than the target's limit.
    QueueAge "queue_age" Warning,
    /// It does not any more.
    QueueRecovered "queue_recovered" Info,
    /// Somebody tries a target.
    Test "test" Info,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = || Self::ALL.iter().copied().filter(|kind| *kind != Self::Test);
        all().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<&str> = all().map(Self::name).collect();
            format!("`{text}` is nothing that is told: take {}", names.join(", "))
        })
    }
}

/// One notification, before it is written for a target. Templates see exactly these fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Notice {
    /// The same for each repetition and on each node that tells it, where that is possible.
    pub(crate) id: String,
    /// What happened.
    #[serde(serialize_with = "kind_name")]
    pub(crate) kind: Kind,
    /// How much it matters.
    pub(crate) level: Level,
    /// When (RFC 3339).
    pub(crate) at: String,
    /// It, in a line.
    pub(crate) summary: String,
    /// The cluster's name.
    pub(crate) cluster: String,
    /// To which pipeline.
    pub(crate) pipeline: Option<String>,
    /// To which job.
    pub(crate) job: Option<String>,
    /// At which step.
    pub(crate) phase: Option<String>,
    /// In which attempt, from 1.
    pub(crate) attempt: Option<u32>,
    /// Which node did it, or to which it happened.
    pub(crate) node: Option<NodeRef>,
    /// A coordinator's term.
    pub(crate) term: Option<String>,
    /// What went wrong.
    pub(crate) error: Option<String>,
    /// For how long the oldest has waited, in seconds.
    pub(crate) age_s: Option<u64>,
    /// For how long it may.
    pub(crate) limit_s: Option<u64>,
    /// How many wait.
    pub(crate) depth: Option<u64>,
}

fn kind_name<S: serde::Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(kind.name())
}

impl Notice {
    /// A notice of that kind; what `names` have in common is one notification, whoever sends it.
    pub(crate) fn new(kind: Kind, names: &[&str], at_ms: u64, summary: String) -> Self {
        Self {
            id: id(kind, names),
            kind,
            level: kind.level(),
            at: crate::http::view::rfc3339(at_ms),
            summary,
            cluster: String::new(),
            pipeline: None,
            job: None,
            phase: None,
            attempt: None,
            node: None,
            term: None,
            error: None,
            age_s: None,
            limit_s: None,
            depth: None,
        }
    }

    /// What stands in a webhook's body: `{"type", "timestamp", "data"}`, without what is not said.
    pub(crate) fn payload(&self) -> String {
        let mut data = match serde_json::to_value(self) {
            Ok(Value::Object(fields)) => fields,
            _ => Map::new(),
        };
        data.retain(|_, value| !value.is_null());
        json!({ "type": self.kind.name(), "timestamp": self.at, "data": data }).to_string()
    }

    /// One of each kind with all of its fields, to try templates on.
    pub(crate) fn samples() -> impl Iterator<Item = Self> {
        Kind::ALL.iter().map(|kind| {
            let plain = Self::new(*kind, &["sample"], 0, "a sample".to_owned());
            let text = |text: &str| Some(text.to_owned());
            let node = NodeRef { id: "0".repeat(32), name: text("node") };
            let of_job = matches!(kind, Kind::Dead | Kind::AttemptFailed);
            let of_queue = matches!(kind, Kind::QueueAge | Kind::QueueRecovered);
            let of_node = matches!(
                kind,
                Kind::NodeDown | Kind::NodeRetired | Kind::NodeReturned | Kind::Coordinator
            );
            let number = of_queue.then_some(1);
            Self {
                pipeline: (of_job || of_queue).then(|| "pipeline".to_owned()),
                job: of_job.then(|| "0198c2f2-0000-7000-8000-000000000000".to_owned()),
                phase: (of_job || of_queue).then(|| "phase".to_owned()),
                attempt: of_job.then_some(1),
                error: of_job.then(|| "an error".to_owned()),
                node: of_node.then_some(node),
                term: (*kind == Kind::Coordinator).then(|| "1".to_owned()),
                age_s: number,
                limit_s: number,
                depth: number,
                ..plain
            }
        })
    }
}

/// `msg_` and 32 hexadecimal digits made of the names.
fn id(kind: Kind, names: &[&str]) -> String {
    let mut hash = Sha256::new();
    for name in [kind.name()].iter().chain(names) {
        hash.update(name.len().to_le_bytes());
        hash.update(name.as_bytes());
    }
    format!("msg_{}", HEXLOWER.encode(&hash.finalize()[..16]))
}
