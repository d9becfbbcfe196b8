//! How long finished jobs are kept, in a pipeline document.

use carbonmesh_protocol::pipeline::{Keep, Retention};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DocumentError, field, format_duration, parse_duration};

/// What stands for an age without end.
const FOREVER: &str = "forever";

/// How long finished jobs are kept, by how they ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RetentionDocument {
    /// Those that succeeded; `7d` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<KeepDocument>,
    /// Dead letters; `30d` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead: Option<KeepDocument>,
    /// Those that were cancelled; `7d` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled: Option<KeepDocument>,
}

/// How long, and how many at most: what is over either goes, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KeepDocument {
    /// For how long after their end, such as `7d`, or `forever`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age: Option<String>,
    /// How many; any number unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
}

impl RetentionDocument {
    pub(super) fn retention(&self) -> Result<Retention, DocumentError> {
        let keep = |name: &str, keep: &Option<KeepDocument>, usual: Keep| {
            let Some(keep) = keep else { return Ok(usual) };
            let place = || format!("retention.{name}.age");
            let age = match keep.age.as_deref() {
                None => usual.age,
                Some(FOREVER) => None,
                Some(text) => Some(
                    parse_duration(text)
                        .map_err(|error| field(place(), format!("{error}, or {FOREVER}")))?,
                ),
            };
            Ok::<_, DocumentError>(Keep { age, count: keep.count })
        };
        let usual = Retention::DEFAULT;
        Ok(Retention {
            succeeded: keep("succeeded", &self.succeeded, usual.succeeded)?,
            dead: keep("dead", &self.dead, usual.dead)?,
            cancelled: keep("cancelled", &self.cancelled, usual.cancelled)?,
        })
    }

    /// Says only what a reader would not assume.
    pub(super) fn of(retention: &Retention) -> Option<Self> {
        let keep = |keep: Keep, usual: Keep| {
            let age = keep.age.map_or_else(|| FOREVER.to_owned(), format_duration);
            let age = (keep.age != usual.age).then_some(age);
            (keep != usual).then_some(KeepDocument { age, count: keep.count })
        };
        let usual = Retention::DEFAULT;
        (*retention != usual).then(|| Self {
            succeeded: keep(retention.succeeded, usual.succeeded),
            dead: keep(retention.dead, usual.dead),
            cancelled: keep(retention.cancelled, usual.cancelled),
        })
    }
}
