//! Routes for those who operate nodes: backups, facts for `doctor`, levels of logs, and the recovery
//! of a group that has lost its majority.

use std::collections::BTreeSet;

use axum::{Json, body::Body, extract::State, http::StatusCode};
use carbonmesh_protocol::{
    id::NodeId,
    io::{Request, Response as Answer},
    name::Name,
};
use data_encoding::HEXLOWER_PERMISSIVE;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api, Problem,
    changes::read_optional,
    extract::PathPart,
    openapi::schemas::{Backup, Change, LogLevels, Logs, PipelinePath},
};
use crate::{
    backup::{BackupError, Manifest},
    facts::{Facts, FactsOf},
    local::NoBackup,
    logs::{self, LevelError},
};

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackupDoc {
    /// Its name.
    pub name: String,
    /// Where it is, on the node's machine.
    pub path: String,
    /// Whose it is: 32 hexadecimal digits.
    pub node: String,
    /// When it began: all that was acknowledged with a copy on this node before is in it.
    #[schema(format = DateTime)]
    pub began_at: String,
    /// When it was whole.
    #[schema(format = DateTime)]
    pub ended_at: String,
    /// How large it is.
    pub bytes: u64,
    /// How many files it has.
    pub files: usize,
}

impl BackupDoc {
    fn new(path: &std::path::Path, manifest: &Manifest) -> Self {
        Self {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            path: path.display().to_string(),
            node: manifest.node.clone(),
            began_at: manifest.began_at.clone(),
            ended_at: manifest.ended_at.clone(),
            bytes: manifest.bytes,
            files: manifest.files.len(),
        }
    }
}

/// The facts of a node and of those that it is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FactsDoc {
    /// The clock of the node that was asked, in ms since 1970.
    pub unix_ms: u64,
    /// That node.
    pub asked: Facts,
    /// The others.
    pub others: Vec<FactsOf>,
}

/// Which logs are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLevelsDoc {
    /// Levels by target, as in `warn,carbonmesh=info`.
    pub levels: String,
}

/// A group that was recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveredDoc {
    /// The pipeline.
    pub name: String,
    /// Who goes on with it: identities of 32 hexadecimal digits.
    pub members: Vec<String>,
    /// Who was given up.
    pub lost: Vec<String>,
}

/// How a pipeline goes on without those that are lost.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RecoverRequest {
    /// Who is given up: identities of 32 hexadecimal digits.
    lost: Vec<String>,
    /// Go on although jobs that were accepted may be lost with them.
    accept_loss: bool,
}

/// How a backup is made.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BackupRequest {
    /// Its name; made of the node's name and the time unless given.
    name: Option<String>,
}

/// Which logs are to be written.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LevelRequest {
    /// `LEVEL` or `TARGET=LEVEL`.
    set: Vec<String>,
    /// Back to how it was at the start first.
    reset: bool,
}

/// `POST /v1/backups`
#[utoipa::path(
    post, path = "/v1/backups", tag = "node", operation_id = "backUp",
    summary = "Back up the folder of the node that is asked, where its operator allows it",
    description = "It goes on working meanwhile. The answer comes when the backup is whole.",
    request_body(content = Option<BackupRequest>, content_type = "application/json"),
    responses((status = 201, description = "It is on disk", body = BackupDoc), Backup)
)]
pub(super) async fn back_up(
    State(api): State<Api>,
    body: Body,
) -> Result<(StatusCode, Json<BackupDoc>), Problem> {
    let BackupRequest { name } = read_optional(body).await?;
    let local = api.handle.local().clone();
    // Goes on if the client goes away: what was begun is ended or removed.
    let made = tokio::task::spawn_blocking(move || local.back_up(name.as_deref())).await;
    match made {
        Ok(Ok((path, manifest))) => {
            tracing::info!(path = %path.display(), bytes = manifest.bytes, "a backup is made");
            Ok((StatusCode::CREATED, Json(BackupDoc::new(&path, &manifest))))
        }
        Ok(Err(error)) => Err(no_backup(&error)),
        Err(error) => {
            tracing::error!(%error, "the thread that made a backup has died");
            let detail = "the backup was not made: this is a defect, see the node's log";
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            Err(Problem::new(status, "internal", "internal error", detail))
        }
    }
}

fn no_backup(error: &NoBackup) -> Problem {
    let detail = error.to_string();
    let problem = |status, slug| Problem::new(status, slug, "no backup", detail);
    match error {
        NoBackup::NotAllowed => problem(StatusCode::FORBIDDEN, "no-backup-folder"),
        NoBackup::Busy => problem(StatusCode::CONFLICT, "backup-under-way"),
        NoBackup::Stopped => problem(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        NoBackup::Failed(BackupError::Name(_)) => {
            problem(StatusCode::BAD_REQUEST, "bad-backup-name")
        }
        NoBackup::Failed(BackupError::Exists(_)) => problem(StatusCode::CONFLICT, "backup-exists"),
        NoBackup::Failed(BackupError::Copy(_) | BackupError::Write { .. }) => {
            problem(StatusCode::INSUFFICIENT_STORAGE, "backup-failed")
        }
    }
}

/// `POST /v1/pipelines/{name}/recover`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/recover", tag = "pipelines", operation_id = "recoverPipeline",
    summary = "Go on without replicas that are lost for good, when too few are left to agree",
    params(PipelinePath),
    request_body(content = Option<RecoverRequest>, content_type = "application/json"),
    responses(
        (status = 200, description = "Who goes on, and who was given up", body = RecoveredDoc),
        Change
    )
)]
pub(super) async fn recover(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    body: Body,
) -> Result<Json<RecoveredDoc>, Problem> {
    let RecoverRequest { lost, accept_loss } = read_optional(body).await?;
    let lost = lost.iter().map(|text| node_id(text)).collect::<Result<BTreeSet<_>, _>>()?;
    let name = pipeline.to_string();
    match api.ask(Request::Recover { pipeline, lost, accept_loss }).await? {
        Answer::Recovered { members, lost } => {
            let full = |nodes: BTreeSet<NodeId>| nodes.iter().map(|it| format!("{it:#}")).collect();
            let (members, lost): (Vec<String>, Vec<String>) = (full(members), full(lost));
            tracing::warn!(
                pipeline = name,
                members = members.join(" "),
                lost = lost.join(" "),
                "an operator has given up replicas: those that are left go on"
            );
            Ok(Json(RecoveredDoc { name, members, lost }))
        }
        other => Err(Problem::unexpected(&other)),
    }
}

fn node_id(text: &str) -> Result<NodeId, Problem> {
    let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    bytes.map(NodeId::from_bytes).ok_or_else(|| {
        let detail = format!("lost: `{text}` is no node's identity: it has 32 hexadecimal digits");
        Problem::bad_request("bad-node-id", detail)
    })
}

/// `GET /v1/facts`
#[utoipa::path(
    get, path = "/v1/facts", tag = "node", operation_id = "facts",
    summary = "What nodes find out about their clocks, disks, limits and ways to each other",
    responses((
        status = 200, description = "Of the node that is asked, and of those that it is connected to",
        body = FactsDoc
    ))
)]
pub(super) async fn facts(State(api): State<Api>) -> Result<Json<FactsDoc>, Problem> {
    let local = api.handle.local();
    let (Some(here), Some(others)) = (local.here(), local.others()) else {
        let detail = "the node is still starting: ask again";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(Problem::new(status, "starting", "the node is starting", detail));
    };
    let (asked, others) = tokio::join!(here.facts(), others.ask_all());
    Ok(Json(FactsDoc { unix_ms: crate::clock::unix_ms(), asked, others }))
}

/// `GET /v1/node/log-levels`
#[utoipa::path(
    get, path = "/v1/node/log-levels", tag = "node", operation_id = "logLevels",
    summary = "Which logs the node writes",
    responses((status = 200, description = "Levels by target", body = LogLevelsDoc), Logs)
)]
pub(super) async fn levels() -> Result<Json<LogLevelsDoc>, Problem> {
    let levels = logs::levels().ok_or_else(|| bad_level(&LevelError::NotOurs))?;
    Ok(Json(LogLevelsDoc { levels }))
}

/// `PUT /v1/node/log-levels`
#[utoipa::path(
    put, path = "/v1/node/log-levels", tag = "node", operation_id = "setLogLevels",
    summary = "Change which logs the node writes, until it is started again",
    request_body(content = Option<LevelRequest>, content_type = "application/json"),
    responses((status = 200, description = "As they are now", body = LogLevelsDoc), LogLevels)
)]
pub(super) async fn set_levels(body: Body) -> Result<Json<LogLevelsDoc>, Problem> {
    let LevelRequest { set, reset } = read_optional(body).await?;
    let mut levels = match reset {
        true => logs::reset(),
        false => logs::levels().ok_or(LevelError::NotOurs),
    }
    .map_err(|error| bad_level(&error))?;
    for change in set {
        levels = logs::set(&change).map_err(|error| bad_level(&error))?;
    }
    tracing::info!(levels, "the levels of logs were changed");
    Ok(Json(LogLevelsDoc { levels }))
}

fn bad_level(error: &LevelError) -> Problem {
    let detail = error.to_string();
    match error {
        LevelError::NotOurs => {
            Problem::new(StatusCode::CONFLICT, "foreign-logs", "logs are not the node's", detail)
        }
        LevelError::Malformed(_) | LevelError::TooMany => {
            Problem::bad_request("bad-log-level", detail)
        }
    }
}
