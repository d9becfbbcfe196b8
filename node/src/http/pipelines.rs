//! Routes of pipelines: apply, list, show, remove.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{
    io::{Refusal, Request, Response as Answer},
    name::Name,
    pipeline::PipelineDef,
    view::ClusterView,
};

use serde::Deserialize;

use super::{
    Api, Problem,
    extract::{Parameters, PathPart, media_type, parsed, read_body, wrong_media_type},
    view::{AppliedDoc, Names, PipelineDoc, PipelinesDoc, RevisionDoc, RevisionsDoc},
};
use crate::document::PipelineDocument;

/// How many pipelines a refusal names.
const NAMED: usize = 10;

/// `POST /v1/pipelines`
pub(super) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let definition = read_definition(&api, &headers, body).await?;
    apply_definition(&api, definition).await
}

/// `PUT /v1/pipelines/{name}`
pub(super) async fn apply(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let definition = read_definition(&api, &headers, body).await?;
    if definition.name != name {
        let detail = format!(
            "name: the document defines `{}`, the path names `{name}`: they must be the same",
            definition.name
        );
        return Err(Problem::invalid_pipeline(detail));
    }
    apply_definition(&api, definition).await
}

/// `GET /v1/pipelines`
pub(super) async fn list(State(api): State<Api>) -> Result<Json<PipelinesDoc>, Problem> {
    let cluster = cluster(&api).await?;
    let names = Names::of(&cluster.members);
    let pipelines = cluster.pipelines.iter().map(|one| PipelineDoc::new(one, &names)).collect();
    Ok(Json(PipelinesDoc { pipelines }))
}

/// `GET /v1/pipelines/{name}`
pub(super) async fn show(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
) -> Result<Json<PipelineDoc>, Problem> {
    let cluster = cluster(&api).await?;
    match cluster.pipelines.iter().find(|one| one.definition.name == name) {
        Some(found) => Ok(Json(PipelineDoc::new(found, &Names::of(&cluster.members)))),
        None => {
            let known = cluster.pipelines.iter().take(NAMED);
            let known = known.map(|one| one.definition.name.to_string()).collect();
            Err(Refusal::UnknownPipeline { name: name.to_string(), known }.into())
        }
    }
}

/// `GET /v1/pipelines/{name}/revisions`
pub(super) async fn revisions(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
) -> Result<Json<RevisionsDoc>, Problem> {
    match api.ask(Request::Revisions(name)).await? {
        Answer::Revisions(revisions) => {
            Ok(Json(RevisionsDoc { revisions: revisions.iter().map(RevisionDoc::from).collect() }))
        }
        other => Err(Problem::unexpected(&other)),
    }
}

/// `DELETE /v1/pipelines/{name}`
pub(super) async fn remove(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
) -> Result<StatusCode, Problem> {
    match api.ask(Request::Remove(name)).await? {
        Answer::Removed => Ok(StatusCode::NO_CONTENT),
        other => Err(Problem::unexpected(&other)),
    }
}

/// What is paused.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseParameters {
    #[serde(default, deserialize_with = "parsed")]
    phase: Option<Name>,
}

/// `POST /v1/pipelines/{name}/pause?phase=`
pub(super) async fn pause(
    state: State<Api>,
    name: PathPart<Name>,
    parameters: Parameters<PauseParameters>,
) -> Result<Json<AppliedDoc>, Problem> {
    set_paused(state, name, parameters, true).await
}

/// `POST /v1/pipelines/{name}/resume?phase=`
pub(super) async fn resume(
    state: State<Api>,
    name: PathPart<Name>,
    parameters: Parameters<PauseParameters>,
) -> Result<Json<AppliedDoc>, Problem> {
    set_paused(state, name, parameters, false).await
}

async fn set_paused(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(PauseParameters { phase: step }): Parameters<PauseParameters>,
    paused: bool,
) -> Result<Json<AppliedDoc>, Problem> {
    let name = pipeline.to_string();
    match api.ask(Request::Pause { pipeline, step, paused }).await? {
        Answer::Applied { revision, changed, copies } => {
            Ok(Json(AppliedDoc { name, revision: format!("{revision:016x}"), changed, copies }))
        }
        other => Err(Problem::unexpected(&other)),
    }
}

/// The cluster as the node sees it.
pub(super) async fn cluster(api: &Api) -> Result<Box<ClusterView>, Problem> {
    match api.ask(Request::Cluster).await? {
        Answer::Cluster(view) => Ok(view),
        other => Err(Problem::unexpected(&other)),
    }
}

async fn read_definition(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
) -> Result<PipelineDef, Problem> {
    match media_type(headers).as_str() {
        "application/json" => {
            let text = read_body(body, api.limits.document_bytes).await?;
            Ok(PipelineDocument::from_json(&text)?.definition()?)
        }
        other => Err(wrong_media_type(other, "application/json")),
    }
}

async fn apply_definition(api: &Api, definition: PipelineDef) -> Result<Response, Problem> {
    let name = definition.name.clone();
    match api.ask(Request::Apply(Box::new(definition))).await? {
        Answer::Applied { revision, changed, copies } => {
            let location = [(LOCATION, format!("/v1/pipelines/{name}"))];
            let applied = AppliedDoc {
                name: name.to_string(),
                revision: format!("{revision:016x}"),
                changed,
                copies,
            };
            Ok((location, Json(applied)).into_response())
        }
        other => Err(Problem::unexpected(&other)),
    }
}
