//! Pipeline documents: what a person writes, in JSON or TOML, to define a pipeline.
//!
//! This owns the document's shape, its defaults and its error messages, which name the place.
//! Whether the phases form a graph that can be run is the protocol's business
//! ([`PipelineDef::with`]). A definition reads back from the document that was made of it.

pub(crate) mod diff;
mod duration;
pub(crate) mod graph;
mod instructions;
mod phase;
mod result;
mod retention;
mod schedule;
mod schema;

use carbonmesh_protocol::{
    name::Name,
    pipeline::{PipelineDef, PipelineError, Quorum, Retention, Settings},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

pub use duration::{DurationError, format_duration, parse_duration};
pub use instructions::{Instructions, InstructionsError, merge_instructions, name_results};
pub(crate) use instructions::{gathered_value, named_object, one_item};
pub use phase::{BackoffDocument, LimitDocument, PhaseDocument, PhaseItem, RateDocument};
pub use result::ResultDocument;
pub(crate) use result::{EMAIL, HTTP_POST, WRITE_FILE};
pub use retention::{KeepDocument, RetentionDocument};
pub use schedule::ScheduleDocument;
pub use schema::json_schema;

/// How many nodes keep a pipeline's jobs if its document does not say.
const DEFAULT_REPLICAS: u8 = 3;

/// The document defines no pipeline. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DocumentError {
    /// It is no JSON; the message ends in line and column.
    #[error("the document is no JSON: {0}")]
    Syntax(String),
    /// A key or a value is not what the document may have; the message ends in line and column.
    #[error("{0}")]
    Shape(String),
    /// It is no TOML, or has a key or value that it may not have; the message shows the place.
    #[error("{0}")]
    Toml(String),
    /// A value cannot be used.
    #[error("{place}: {reason}")]
    Field {
        /// Where, such as `phases[2].timeout`.
        place: String,
        /// Why not, and what would do.
        reason: String,
    },
    /// The pipeline as a whole cannot be.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
}

/// Both knobs of a pipeline at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// Go on with whoever can be reached.
    Available,
    /// Go on only with a majority.
    Strict,
}

/// A pipeline as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PipelineDocument {
    /// Its name in the cluster: `NAME`, or `NAMESPACE/NAME` if it does not live in `default`.
    pub name: String,
    /// How many nodes keep its jobs; 3 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<u8>,
    /// Stands for `accept` and `execute` together; `available` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preset: Option<Preset>,
    /// How many copies there must be before a job is acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quorum")]
    pub accept: Option<Quorum>,
    /// How many replicas must back the coordinator before it dispatches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::quorum")]
    pub execute: Option<Quorum>,
    /// How long a job may take from when it is enqueued; for ever unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// How long finished jobs are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<RetentionDocument>,
    /// Into how many parts its jobs are split, each with a coordinator of its own; 1 unless given. It can
    /// become more later, never fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<u16>,
    /// Where in the instructions it stands whose job it is, as a JSON Pointer (RFC 6901), such as
    /// `/tenant`: of what waits, each owner's jobs come in turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fair_by: Option<String>,
    /// What its jobs have to look like, as a JSON Schema: forms are made of it. The cluster does not
    /// hold jobs to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Map<String, Value>>,
    /// Jobs that it enqueues by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedules: Vec<ScheduleDocument>,
    /// Its phases; each comes after the one before unless it says otherwise.
    pub phases: Vec<PhaseItem>,
    /// Where results go beside staying with their jobs: stands for one more phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<ResultDocument>,
}

impl PipelineDocument {
    /// Reads a JSON document.
    ///
    /// # Errors
    /// It is no JSON, or has a key or value that it may not have.
    pub fn from_json(text: &[u8]) -> Result<Self, DocumentError> {
        serde_json::from_slice(text).map_err(|error| match error.is_data() {
            true => DocumentError::Shape(error.to_string()),
            false => DocumentError::Syntax(error.to_string()),
        })
    }

    /// Reads a TOML document.
    ///
    /// # Errors
    /// It is no TOML, or has a key or value that it may not have.
    pub fn from_toml(text: &str) -> Result<Self, DocumentError> {
        toml::from_str(text)
            .map_err(|error| DocumentError::Toml(error.to_string().trim_end().to_owned()))
    }

    /// Reads a document of either kind: JSON begins with a brace, TOML never does.
    ///
    /// # Errors
    /// See [`from_json`](Self::from_json) and [`from_toml`](Self::from_toml).
    pub fn from_text(text: &str) -> Result<Self, DocumentError> {
        match text.trim_start().starts_with('{') {
            true => Self::from_json(text.as_bytes()),
            false => Self::from_toml(text),
        }
    }

    /// The pipeline that it defines.
    ///
    /// # Errors
    /// Names the place that cannot be used.
    pub fn definition(&self) -> Result<PipelineDef, DocumentError> {
        let (accept, execute) = self.quorums()?;
        let timeout = self
            .timeout
            .as_deref()
            .map(|text| parse_duration(text).map_err(|error| field("timeout", error.to_string())));
        let retention = self.retention.as_ref().map(RetentionDocument::retention).transpose()?;
        let schedules = self.schedules.iter().enumerate();
        let schedules = schedules.map(|(at, it)| it.schedule(&format!("schedules[{at}]")));
        let phases = self.phases.iter().enumerate();
        let phases = phases.map(|(at, item)| item.input(&format!("phases[{at}]")));
        let mut phases = phases.collect::<Result<Vec<_>, _>>()?;
        if let Some(result) = &self.result {
            phases.extend(result.phase(&phases)?);
        }
        Ok(PipelineDef::with(
            full_name(&self.name, || "name".to_owned())?,
            phases,
            Settings {
                replicas: self.replicas.unwrap_or(DEFAULT_REPLICAS),
                accept,
                execute,
                timeout: timeout.transpose()?,
                retention: retention.unwrap_or(Retention::DEFAULT),
                fair_by: self.fair_by.clone(),
                schedules: schedules.collect::<Result<_, _>>()?,
                input_schema: self.input_schema.clone().map(|it| Value::Object(it).to_string()),
                partitions: self.partitions.unwrap_or(1),
            },
        )?)
    }

    fn quorums(&self) -> Result<(Quorum, Quorum), DocumentError> {
        match (self.preset, self.accept, self.execute) {
            (None, accept, execute) => {
                Ok((accept.unwrap_or_default(), execute.unwrap_or_default()))
            }
            (Some(Preset::Available), None, None) => Ok((Quorum::Any, Quorum::Any)),
            (Some(Preset::Strict), None, None) => Ok((Quorum::Majority, Quorum::Majority)),
            _ => Err(field(
                "preset",
                "it stands for `accept` and `execute`: give either it or these two",
            )),
        }
    }
}

impl From<&PipelineDef> for PipelineDocument {
    fn from(pipeline: &PipelineDef) -> Self {
        let available = (pipeline.accept, pipeline.execute) == (Quorum::Any, Quorum::Any);
        Self {
            name: pipeline.name.to_string(),
            replicas: Some(pipeline.replicas),
            preset: available.then_some(Preset::Available),
            accept: (!available).then_some(pipeline.accept),
            execute: (!available).then_some(pipeline.execute),
            timeout: pipeline.timeout.map(format_duration),
            retention: RetentionDocument::of(&pipeline.retention),
            fair_by: pipeline.fair_by.clone(),
            partitions: Some(pipeline.partitions).filter(|count| *count > 1),
            input_schema: pipeline
                .input_schema
                .as_deref()
                .map(|text| serde_json::from_str(text).unwrap_or_default()),
            schedules: pipeline.schedules.iter().map(ScheduleDocument::of).collect(),
            phases: (0..pipeline.phases.len())
                .map(|at| PhaseItem::of(&pipeline.phases, at, &pipeline.compensations))
                .collect(),
            // It stands among the phases.
            result: None,
        }
    }
}

fn field(place: impl Into<String>, reason: impl Into<String>) -> DocumentError {
    DocumentError::Field { place: place.into(), reason: reason.into() }
}

/// A name within a pipeline.
fn name(text: &str, place: impl FnOnce() -> String) -> Result<Name, DocumentError> {
    Name::plain(text).map_err(|error| field(place(), format!("{error}")))
}

/// A name that may say in which namespace it is.
fn full_name(text: &str, place: impl FnOnce() -> String) -> Result<Name, DocumentError> {
    text.parse().map_err(|error| field(place(), format!("{error}")))
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
