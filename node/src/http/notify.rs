//! Routes of notifications: how each target of the node that is asked is doing, and a try of one.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Problem,
    extract::PathPart,
    openapi::schemas::Missing,
    view::{full, rfc3339},
};
use crate::notify::{Dead, Kind, Target, Tried};

/// The targets of one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotifyDoc {
    /// The node: 32 hexadecimal digits.
    pub node: String,
    /// By name.
    pub targets: Vec<NotifyTargetDoc>,
}

/// One target, and how it has gone since the node started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotifyTargetDoc {
    /// Its name.
    pub name: String,
    /// Where it leads, without what may be a secret.
    pub to: String,
    /// Of which kinds it is told.
    pub events: Vec<String>,
    /// Of which pipelines; of all, if there are none.
    pub pipelines: Vec<String>,
    /// Of which level at least.
    pub level: String,
    /// How many wait for their turn or for another try.
    pub waiting: usize,
    /// How many were delivered.
    pub delivered: u64,
    /// How many tries have failed.
    pub failed: u64,
    /// How many were given up.
    pub dead: u64,
    /// How many were dropped, since too many waited.
    pub dropped: u64,
    /// When the last was delivered.
    #[schema(format = DateTime)]
    pub delivered_at: Option<String>,
    /// What went wrong last.
    pub error: Option<String>,
    /// When that was.
    #[schema(format = DateTime)]
    pub error_at: Option<String>,
    /// Those that were given up last, at most 100, the latest last.
    pub given_up: Vec<NotifyDeadDoc>,
}

/// A notification that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotifyDeadDoc {
    /// Its `webhook-id`.
    pub id: String,
    /// What had happened.
    pub kind: String,
    /// The same in a line.
    pub summary: String,
    /// When it was given up.
    #[schema(format = DateTime)]
    pub at: String,
    /// After how many tries.
    pub attempts: u32,
    /// What went wrong last.
    pub error: String,
}

/// What a try came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NotifyTestDoc {
    /// The target.
    pub target: String,
    /// Where it leads, without what may be a secret.
    pub to: String,
    /// Whether the receiver took it.
    pub delivered: bool,
    /// What the receiver said, or what went wrong.
    pub detail: String,
    /// How long it took.
    pub took_ms: u64,
}

/// A target's name in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is read by the derive alone")]
pub(super) struct TargetPath {
    /// The target.
    #[param(pattern = "^[-_a-zA-Z0-9]{1,64}$", example = "ops")]
    name: String,
}

/// `GET /v1/notify`
#[utoipa::path(
    get, path = "/v1/notify", tag = "node", operation_id = "notifyTargets",
    summary = "Whom the node that is asked notifies, and how that has gone since it started",
    responses((status = 200, description = "Its targets", body = NotifyDoc))
)]
pub(super) async fn list(State(api): State<Api>) -> Json<NotifyDoc> {
    let notifier = api.handle.local().notifier();
    let targets = notifier.targets().iter().map(document).collect();
    Json(NotifyDoc { node: full(api.handle.node()), targets })
}

/// `POST /v1/notify/{name}/test`
#[utoipa::path(
    post, path = "/v1/notify/{name}/test", tag = "node", operation_id = "testNotifyTarget",
    summary = "Send a notification of kind `test` to a target of the node that is asked, at once and once",
    description = "Whatever the target wants to be told. The answer says what the receiver made of it.",
    params(TargetPath),
    responses(
        (status = 200, description = "What it came to, delivered or not", body = NotifyTestDoc),
        Missing
    )
)]
pub(super) async fn test(
    State(api): State<Api>,
    PathPart(name): PathPart<String>,
) -> Result<Json<NotifyTestDoc>, Problem> {
    let notifier = api.handle.local().notifier();
    let Some(target) = notifier.target(&name) else {
        let known: Vec<&str> = notifier.targets().iter().map(|target| target.name()).collect();
        let there = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let detail = format!(
            "this node has no target `{name}` (it has: {there}): name it in its configuration file as \
             [notify.{name}], or ask the node that has it"
        );
        let status = StatusCode::NOT_FOUND;
        return Err(Problem::new(status, "unknown-target", "unknown target", detail));
    };
    let Tried { delivered, detail, took } = target.test(&api.handle.node().to_string()).await;
    Ok(Json(NotifyTestDoc {
        target: target.name().to_owned(),
        to: target.shown(),
        delivered,
        detail,
        took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
    }))
}

fn document(target: &Arc<Target>) -> NotifyTargetDoc {
    let (settings, tally) = (target.settings(), target.tally());
    let told = |kind: &&Kind| **kind != Kind::Test && target.wants_kind(**kind);
    let (error_at, error) = tally.error.unzip();
    NotifyTargetDoc {
        name: target.name().to_owned(),
        to: target.shown(),
        events: Kind::ALL.iter().filter(told).map(Kind::to_string).collect(),
        pipelines: settings.pipelines.iter().map(|it| it.as_str().to_owned()).collect(),
        level: settings.level.to_string(),
        waiting: target.waiting(),
        delivered: tally.delivered,
        failed: tally.failed,
        dead: tally.dead,
        dropped: tally.dropped,
        delivered_at: tally.delivered_ms.map(rfc3339),
        error,
        error_at: error_at.map(rfc3339),
        given_up: tally.given_up.iter().map(given_up).collect(),
    }
}

fn given_up(dead: &Dead) -> NotifyDeadDoc {
    NotifyDeadDoc {
        id: dead.id.clone(),
        kind: dead.kind.to_string(),
        summary: dead.summary.clone(),
        at: rfc3339(dead.at_ms),
        attempts: dead.attempts,
        error: dead.error.clone(),
    }
}
