//! Routes of the cluster: nodes, phases, status, and of the node itself: version, health.

use axum::{
    Json,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};

use super::{
    Api, Problem,
    pipelines::cluster,
    view::{HealthDoc, NodesDoc, PhasesDoc, StatusDoc, VersionDoc},
};

/// The type of what Prometheus reads.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /v1/nodes`
pub(super) async fn nodes(State(api): State<Api>) -> Result<Json<NodesDoc>, Problem> {
    Ok(Json(NodesDoc::new(&*cluster(&api).await?)))
}

/// `GET /v1/phases`
pub(super) async fn phases(State(api): State<Api>) -> Result<Json<PhasesDoc>, Problem> {
    Ok(Json(PhasesDoc::new(&*cluster(&api).await?)))
}

/// `GET /v1/status`
pub(super) async fn status(State(api): State<Api>) -> Result<Json<StatusDoc>, Problem> {
    Ok(Json(StatusDoc::new(&*cluster(&api).await?)))
}

/// `GET /v1/version`
pub(super) async fn version() -> Json<VersionDoc> {
    Json(VersionDoc {
        name: env!("CARGO_PKG_NAME").into(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

/// `GET /metrics`, for Prometheus
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let text = api.handle.metrics().text(&*cluster(&api).await?);
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text).into_response())
}

/// `GET /healthz`: the node's loop answers.
pub(super) async fn health(State(api): State<Api>) -> Result<Json<HealthDoc>, Problem> {
    cluster(&api).await?;
    Ok(Json(HealthDoc { status: "ok".into() }))
}
