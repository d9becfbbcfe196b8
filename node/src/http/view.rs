//! The documents that this interface answers with, for servers to write and clients to read.
//!
//! Times are RFC 3339 in UTC with milliseconds, identifiers are text, and what clients and phases
//! wrote as JSON stays as they wrote it. Fields may be added later: clients skip what they do not
//! know.

mod cluster;
mod event;
mod explain;
mod handler;
mod history;
mod job;
mod secret;

use std::collections::BTreeMap;

use carbonmesh_protocol::{id::NodeId, view::MemberView};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

pub use cluster::{
    AppliedDoc, DiffDoc, DrainDoc, HealthDoc, MembersDoc, NodeDoc, NodePhaseDoc, NodesDoc,
    OfferDoc, PhaseCountsDoc, PhaseDoc, PhasesDoc, PipelineDoc, PipelinesDoc, RefusingDoc,
    RevisionDoc, RevisionsDoc, ScheduleRunsDoc, StatusDoc, VersionDoc,
};
pub(crate) use event::node_of;
pub use event::{AttemptLogDoc, EndDoc, EventDoc, LineOfLogDoc, LogsDoc};
pub use explain::{ExplainDoc, ExplainNodeDoc, ExplainPhaseDoc};
pub(crate) use handler::source_text;
pub use handler::{HandlerDoc, HandlerPutDoc, HandlerVersionDoc, HandlersDoc};
pub use history::{HistoryDoc, HistoryPointDoc};
pub use job::{
    AttemptDoc, ChangedDoc, InvocationDoc, JobDoc, JobSummaryDoc, JobsDoc, LineDoc, ReceiptDoc,
};
pub use secret::{SecretDoc, SecretPutDoc, SecretsDoc};

/// A node: its identity in full, and its name if the node that was asked knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeRef {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub name: Option<String>,
}

/// The names of nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(BTreeMap<NodeId, String>);

impl Names {
    /// The names of these members.
    pub(crate) fn of(members: &[MemberView]) -> Self {
        Self(members.iter().map(|member| (member.node, member.name.clone())).collect())
    }

    /// Whether a node's name is known.
    pub(crate) fn has(&self, node: NodeId) -> bool {
        self.0.contains_key(&node)
    }

    /// A node, with its name if that is known.
    pub(crate) fn node(&self, node: NodeId) -> NodeRef {
        NodeRef { id: full(node), name: self.0.get(&node).cloned() }
    }
}

/// All digits of an identity.
pub(crate) fn full(node: NodeId) -> String {
    format!("{node:#}")
}

/// Milliseconds since 1970 as RFC 3339 in UTC.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    let timestamp = jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX);
    format!("{timestamp:.3}")
}

/// Bytes that should be JSON, embedded as such; what is none becomes a string, to be seen at all.
fn raw(json: &[u8]) -> Option<Box<RawValue>> {
    let text = String::from_utf8_lossy(json);
    serde_json::from_str(&text).ok().or_else(|| serde_json::value::to_raw_value(text.as_ref()).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds_and_end_in_z() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-30T22:00:00.999Z");
    }

    #[test]
    fn json_is_embedded_as_it_was_written() {
        let text = |bytes: &[u8]| raw(bytes).map(|raw| raw.get().to_owned());
        assert_eq!(text(b"{\"n\":1.00}").as_deref(), Some("{\"n\":1.00}"));
        assert_eq!(text(b"no json").as_deref(), Some("\"no json\""));
    }
}
