//! Routes of the cluster: nodes, phases, status, and of the node itself: drain, version, health.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Api, Problem,
    access::Access,
    extract::{NamespacePage, Page, Parameters, PathPart, bounded_wait, duration},
    openapi::schemas::InUse,
    pipelines::cluster,
    view::{DrainDoc, HealthDoc, Names, NodeDoc, NodesDoc, PhasesDoc, StatusDoc, VersionDoc, full},
};

/// The types of what Prometheus reads: what it asks for since long, and what came before.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How a node may call itself.
const SELF: &str = "self";

/// How long to wait until nothing runs.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DrainParameters {
    /// Wait until nothing runs on the node any more, at most so long, such as `30s`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = String, required = false)]
    wait: Option<Duration>,
}

/// `GET /v1/nodes`
#[utoipa::path(
    get, path = "/v1/nodes", tag = "cluster", operation_id = "listNodes",
    summary = "All members, in order of their ids",
    params(Page),
    responses((status = 200, description = "The members", body = NodesDoc))
)]
pub(super) async fn nodes(
    State(api): State<Api>,
    access: Access,
    Parameters(page): Parameters<Page>,
) -> Result<Json<NodesDoc>, Problem> {
    let cluster = access.leave(cluster(&api).await?);
    let (members, next) = page.of(&cluster.members, |one| full(one.node))?;
    Ok(Json(NodesDoc { nodes: members.into_iter().map(NodeDoc::from).collect(), next }))
}

/// `POST /v1/nodes/{id}/drain`
#[utoipa::path(
    post, path = "/v1/nodes/{id}/drain", tag = "node", operation_id = "drainNode",
    summary = "Let the node that is asked take no new work until it is started again",
    description = "It hands over what it coordinates and lets what runs end. Only the node itself does \
                   that: ask it.",
    params(
        ("id" = String, Path, description = "The node's id, or `self`", example = "self"),
        DrainParameters
    ),
    responses((status = 200, description = "It takes no new work", body = DrainDoc), InUse)
)]
pub(super) async fn drain(
    State(api): State<Api>,
    PathPart(id): PathPart<String>,
    Parameters(DrainParameters { wait }): Parameters<DrainParameters>,
) -> Result<Json<DrainDoc>, Problem> {
    let wait = bounded_wait(wait.unwrap_or_default(), &api)?;
    let cluster = cluster(&api).await?;
    let own = api.handle.node();
    if id != SELF && id != full(own) {
        let Some(other) = cluster.members.iter().find(|one| full(one.node) == id) else {
            let detail = format!("no member has the id `{id}`: GET /v1/nodes lists them");
            let status = StatusCode::NOT_FOUND;
            return Err(Problem::new(status, "unknown-node", "unknown node", detail));
        };
        let detail = format!("node `{}` is not the one that was asked: ask it itself", other.name);
        return Err(Problem::new(StatusCode::CONFLICT, "other-node", "another node", detail));
    }
    let quiet = api.handle.drain(wait).await?;
    Ok(Json(DrainDoc { node: Names::of(&cluster.members).node(own), quiet }))
}

/// `GET /v1/phases`
#[utoipa::path(
    get, path = "/v1/phases", tag = "cluster", operation_id = "listPhases",
    summary = "What workers offer, in order of the phases' names",
    params(NamespacePage),
    responses((status = 200, description = "The phases", body = PhasesDoc))
)]
pub(super) async fn phases(
    State(api): State<Api>,
    access: Access,
    Parameters(asked): Parameters<NamespacePage>,
) -> Result<Json<PhasesDoc>, Problem> {
    let mut cluster = access.leave(cluster(&api).await?);
    for member in &mut cluster.members {
        member.phases.retain(|offered| asked.has(&offered.phase));
    }
    let all = PhasesDoc::new(&cluster).phases;
    let (phases, next) = asked.page().of(&all, |one| one.phase.clone())?;
    Ok(Json(PhasesDoc { phases: phases.into_iter().cloned().collect(), next }))
}

/// `GET /v1/status`
#[utoipa::path(
    get, path = "/v1/status", tag = "cluster", operation_id = "status",
    summary = "The cluster at a glance, as the node that is asked sees it",
    responses((status = 200, description = "The cluster", body = StatusDoc))
)]
pub(super) async fn status(
    State(api): State<Api>,
    access: Access,
) -> Result<Json<StatusDoc>, Problem> {
    Ok(Json(StatusDoc::new(&access.leave(cluster(&api).await?))))
}

/// `GET /v1/version`
#[utoipa::path(
    get, path = "/v1/version", tag = "node", operation_id = "version",
    summary = "Which program answers",
    responses((status = 200, description = "Its name and version", body = VersionDoc))
)]
pub(super) async fn version() -> Json<VersionDoc> {
    Json(VersionDoc {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// `GET /metrics`, for Prometheus: OpenMetrics for whoever accepts it, or the format from before.
#[utoipa::path(
    get, path = "/metrics", tag = "node", operation_id = "metrics",
    summary = "What the node counts, for Prometheus",
    responses((status = 200, description = "OpenMetrics, or the format from before", content(
        (String = "application/openmetrics-text"), (String = "text/plain")
    )))
)]
pub(super) async fn metrics(
    State(api): State<Api>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (cluster, figures) = (cluster(&api).await?, api.handle.figures().await?);
    let metrics = api.handle.metrics().clone();
    let mut accepted = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let modern = accepted.any(|value| value.contains("application/openmetrics-text"));
    // The store is asked too, and its disk may take its time.
    let text = tokio::task::spawn_blocking(move || match modern {
        true => metrics.text(&cluster, &figures),
        false => metrics.classic_text(&cluster, &figures),
    });
    let text = text.await.unwrap_or_default();
    let kind = if modern { OPENMETRICS } else { CLASSIC };
    Ok(([(CONTENT_TYPE, kind), (VARY, "accept")], text).into_response())
}

/// `GET /healthz`: the node's loop answers.
#[utoipa::path(
    get, path = "/healthz", tag = "node", operation_id = "health",
    summary = "Whether the node's loop answers",
    responses((status = 200, description = "It does", body = HealthDoc))
)]
pub(super) async fn health(State(api): State<Api>) -> Result<Json<HealthDoc>, Problem> {
    cluster(&api).await?;
    Ok(Json(HealthDoc { status: "ok".into() }))
}
