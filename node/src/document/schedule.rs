//! What a pipeline enqueues by itself, in its document.

use carbonmesh_protocol::schedule::{Missed, Overlap, Schedule};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{DocumentError, name, schema};

/// The time zone unless one is given.
const UTC: &str = "UTC";

/// Jobs that a pipeline enqueues by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduleDocument {
    /// Its name within the pipeline.
    pub name: String,
    /// When: minute, hour, day of month, month, day of week; seconds may stand in front.
    pub cron: String,
    /// In which time zone, by its IANA name; `UTC` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// What is enqueued; `{}` unless given.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub instructions: Map<String, Value>,
    /// What becomes of runs for which nobody was there; `last` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::missed")]
    pub missed: Option<Missed>,
    /// What becomes of a run while one before is not finished; `allow` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::overlap")]
    pub overlap: Option<Overlap>,
}

impl ScheduleDocument {
    /// The schedule for the protocol; `place` begins the place in errors.
    pub(super) fn schedule(&self, place: &str) -> Result<Schedule, DocumentError> {
        Ok(Schedule {
            name: name(&self.name, || format!("{place}.name"))?,
            cron: self.cron.clone(),
            timezone: self.timezone.clone().unwrap_or_else(|| UTC.to_owned()),
            instructions: Value::Object(self.instructions.clone()).to_string().into(),
            missed: self.missed.unwrap_or_default(),
            overlap: self.overlap.unwrap_or_default(),
            // The node that applies it says since when.
            since_ms: 0,
        })
    }

    /// Says only what a reader would not assume.
    pub(super) fn of(schedule: &Schedule) -> Self {
        Self {
            name: schedule.name.to_string(),
            cron: schedule.cron.clone(),
            timezone: (schedule.timezone != UTC).then(|| schedule.timezone.clone()),
            instructions: serde_json::from_slice(&schedule.instructions).unwrap_or_default(),
            missed: Some(schedule.missed).filter(|missed| *missed != Missed::default()),
            overlap: Some(schedule.overlap).filter(|overlap| *overlap != Overlap::default()),
        }
    }
}
