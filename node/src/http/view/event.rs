//! Documents of events and of attempts' logs.

use carbonmesh_protocol::{
    event::{AttemptLog, Event, LogsPage, Said, What},
    id::NodeId,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Names, NodeRef, full, rfc3339};
use crate::http::openapi::schemas::{event_kind, log_level};

/// One event. Fields that its kind does not have are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EventDoc {
    /// Its place in its stream: what comes behind it is read with it as `after`.
    pub token: String,
    /// When it happened.
    #[schema(format = DateTime)]
    pub at: String,
    /// What happened.
    #[schema(schema_with = event_kind)]
    pub kind: String,
    /// To which pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// To which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The job of which that is a part, if it is made of an item.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_of: Option<String>,
    /// To which phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// In which attempt, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Which node did it, or to which it happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeRef>,
    /// A coordinator's term.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<String>,
    /// How many unfinished jobs a new coordinator found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfinished: Option<u64>,
    /// What went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Why it happened, where nothing went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When there is another attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub again_at: Option<String>,
    /// How often the job was tried again as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u32>,
    /// How many events are missing, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
    /// The number of a line within its attempt, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// How many lines were left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// How much a line matters: debug, info, warning or error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// How far an attempt is: a part of 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<f64>,
    /// A line, or what an attempt does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// Ten-thousandths as a part of 1.
fn part(done: u16) -> f64 {
    f64::from(done) / 10_000.0
}

/// The node that an event names.
pub(crate) fn node_of(what: &What) -> Option<NodeId> {
    match what {
        What::Coordinator { node, .. } | What::CoordinatorSeen { node, .. } => Some(*node),
        What::AttemptStarted { worker } => Some(*worker),
        _ => None,
    }
}

impl EventDoc {
    /// The document of an event of a pipeline, or of the cluster.
    pub(crate) fn new(event: &Event, pipeline: Option<&str>, names: &Names) -> Self {
        let about = &event.about;
        let mut doc = Self {
            token: event.token.to_string(),
            at: rfc3339(event.at_ms),
            kind: event.what.kind().name().to_owned(),
            pipeline: pipeline.map(str::to_owned),
            job: about.job.map(|job| job.to_string()),
            part_of: about.part_of.map(|job| job.to_string()),
            phase: about.phase.as_ref().map(ToString::to_string),
            attempt: about.attempt,
            node: node_of(&event.what).map(|node| names.node(node)),
            term: None,
            unfinished: None,
            error: None,
            reason: None,
            again_at: None,
            generation: None,
            missed: None,
            line: None,
            count: None,
            level: None,
            done: None,
            text: None,
        };
        doc.fill(&event.what, event);
        doc
    }

    fn fill(&mut self, what: &What, event: &Event) {
        match what {
            What::Enqueued
            | What::Started
            | What::AttemptStarted { .. }
            | What::PhaseSucceeded
            | What::Signalled
            | What::Succeeded
            | What::Paused
            | What::Resumed
            | What::Revised => {}
            What::Gap { missed, why } => {
                self.missed = *missed;
                self.reason = Some(why.text().to_owned());
            }
            What::Coordinator { unfinished, .. } => {
                self.term = Some(event.token.term.to_string());
                self.unfinished = Some(*unfinished);
            }
            What::AttemptFailed { error, again_ms } => {
                self.error = Some(error.to_string());
                self.again_at = again_ms.map(rfc3339);
            }
            What::AttemptLost { error } | What::PhaseFailed { error } | What::Dead { error } => {
                self.error = Some(error.to_string());
            }
            What::PhaseSkipped { reason }
            | What::PhaseCancelled { reason }
            | What::Cancelled { reason } => self.reason = Some(reason.to_string()),
            What::Retried { generation } => self.generation = Some(*generation),
            What::Log { line, level, text } => {
                self.line = Some(*line);
                self.level = Some(level.name().to_owned());
                self.text = Some(text.to_string());
            }
            What::Progress { line, done, text } => {
                (self.line, self.done) = (Some(*line), Some(part(*done)));
                self.text = Some(text.to_string());
            }
            What::LogDropped { line, count } => {
                (self.line, self.count) = (Some(*line), Some(*count));
            }
            What::NodeJoined(told)
            | What::NodeReturned(told)
            | What::NodeSuspected(told)
            | What::NodeDown(told)
            | What::NodeRetired(told)
            | What::PhaseAvailable(told)
            | What::PhaseGone(told) => {
                let name = Some(told.name.to_string()).filter(|name| !name.is_empty());
                self.node = Some(NodeRef { id: full(told.node), name });
            }
            What::CoordinatorSeen { pipeline, term, .. } => {
                self.pipeline = Some(pipeline.to_string());
                self.term = Some(term.to_string());
            }
            What::CoordinatorLost { pipeline } => self.pipeline = Some(pipeline.to_string()),
        }
    }
}

/// The last word of a stream of events that is not ended by its reader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndDoc {
    /// `end`.
    pub kind: String,
    /// Why.
    pub reason: String,
}

/// What is kept of a job's logs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LogsDoc {
    /// The job's pipeline.
    pub pipeline: String,
    /// By attempt.
    pub attempts: Vec<AttemptLogDoc>,
    /// What comes next is in the pipeline's events behind this one.
    pub next: String,
}

/// The last lines of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AttemptLogDoc {
    /// The job, or a part of it.
    pub job: String,
    /// The step's name in the pipeline.
    pub phase: String,
    /// From 1.
    pub attempt: u32,
    /// How many lines are missing: before the first that is kept, and between.
    pub missing: u64,
    /// Its last lines.
    pub lines: Vec<LineOfLogDoc>,
}

/// A line of a log, or how far an attempt was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LineOfLogDoc {
    /// Its number within the attempt, from 0.
    pub line: u64,
    /// When it was said, by its worker's clock.
    #[schema(format = DateTime)]
    pub at: String,
    /// How much it matters: debug, info, warning or error.
    #[schema(schema_with = log_level)]
    pub level: String,
    /// How far the attempt was, a part of 1, if it said that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub done: Option<f64>,
    /// It.
    pub text: String,
}

impl From<&LogsPage> for LogsDoc {
    fn from(page: &LogsPage) -> Self {
        Self {
            pipeline: page.pipeline.to_string(),
            attempts: page.attempts.iter().map(AttemptLogDoc::from).collect(),
            next: page.next.to_string(),
        }
    }
}

impl From<&AttemptLog> for AttemptLogDoc {
    fn from(log: &AttemptLog) -> Self {
        let said = log.lines.last().map_or(0, |last| last.line.saturating_add(1));
        Self {
            job: log.job.to_string(),
            phase: log.phase.to_string(),
            attempt: log.attempt,
            missing: said.saturating_sub(log.lines.len() as u64),
            lines: log.lines.iter().map(LineOfLogDoc::from).collect(),
        }
    }
}

impl From<&Said> for LineOfLogDoc {
    fn from(said: &Said) -> Self {
        Self {
            line: said.line,
            at: rfc3339(said.at_ms),
            level: said.level.name().to_owned(),
            done: said.done.map(part),
            text: said.text.to_string(),
        }
    }
}
