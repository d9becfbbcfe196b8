//! Routes of pipelines: apply, list, show, remove.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ETAG, LOCATION},
    },
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{
    io::{Refusal, Request, Response as Answer},
    name::Name,
    pipeline::PipelineDef,
    view::ClusterView,
};

use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{
    Api, Problem,
    access::{Access, scope::Verb},
    conditional::{Precondition, Revision},
    extract::{
        NamespacePage, Parameters, PathPart, media_type, parsed, read_body, wrong_media_type,
    },
    openapi::schemas::{self, InUse, Missing, PipelinePath},
    view::{
        AppliedDoc, Names, PhaseCountsDoc, PipelineDoc, PipelinesDoc, RevisionDoc, RevisionsDoc,
        ScheduleRunsDoc,
    },
};
use crate::{clock, document::PipelineDocument};

/// How long a coordinator is waited for that is asked for counts.
const COUNTS_TIMEOUT: Duration = Duration::from_secs(1);

/// How many pipelines a refusal names.
const NAMED: usize = 10;

/// `POST /v1/pipelines`
#[utoipa::path(
    post, path = "/v1/pipelines", tag = "pipelines", operation_id = "createPipeline",
    summary = "Make a pipeline known, or change it for jobs to come",
    request_body(content = ref("#/components/schemas/PipelineDocument"), content_type = "application/json"),
    responses(
        (status = 200, description = "It is on disk", body = AppliedDoc,
         headers(("Location" = String, description = "The pipeline"))),
        schemas::Document
    )
)]
pub(super) async fn create(
    State(api): State<Api>,
    access: Access,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let definition = read_definition(&api, &headers, body, None).await?;
    access.check(Verb::Pipelines, definition.name.as_str())?;
    apply_if(&api, &headers, definition).await
}

/// `PUT /v1/pipelines/{name}`
#[utoipa::path(
    put, path = "/v1/pipelines/{name}", tag = "pipelines", operation_id = "applyPipeline",
    summary = "Make a pipeline known, or change it for jobs to come",
    params(
        PipelinePath,
        ("If-Match" = Option<String>, Header,
         description = "The revision that it has to have, in quotes, or an ETag of it; `*`: it must be known"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: it must not be known yet")
    ),
    request_body(content = ref("#/components/schemas/PipelineDocument"), content_type = "application/json"),
    responses(
        (status = 200, description = "It is on disk", body = AppliedDoc,
         headers(("Location" = String, description = "The pipeline"),
                 ("ETag" = String, description = "Its revision, for If-Match"))),
        schemas::Document
    )
)]
pub(super) async fn apply(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let definition = read_definition(&api, &headers, body, Some(&name)).await?;
    apply_if(&api, &headers, definition).await
}

/// `GET /v1/pipelines`
#[utoipa::path(
    get, path = "/v1/pipelines", tag = "pipelines", operation_id = "listPipelines",
    summary = "All pipelines, or those of one namespace, in order of their names",
    params(NamespacePage),
    responses((status = 200, description = "The pipelines", body = PipelinesDoc))
)]
pub(super) async fn list(
    State(api): State<Api>,
    access: Access,
    Parameters(asked): Parameters<NamespacePage>,
) -> Result<Json<PipelinesDoc>, Problem> {
    let mut cluster = access.leave(cluster(&api).await?);
    cluster.pipelines.retain(|one| asked.has(&one.definition.name));
    let names = Names::of(&cluster.members);
    let page = asked.page();
    let (pipelines, next) = page.of(&cluster.pipelines, |one| one.definition.name.to_string())?;
    let pipelines = pipelines.into_iter().map(|one| PipelineDoc::new(one, &names)).collect();
    Ok(Json(PipelinesDoc { pipelines, next }))
}

/// `GET /v1/pipelines/{name}`
#[utoipa::path(
    get, path = "/v1/pipelines/{name}", tag = "pipelines", operation_id = "showPipeline",
    summary = "One pipeline",
    params(PipelinePath),
    responses((status = 200, description = "The pipeline", body = PipelineDoc), Missing)
)]
pub(super) async fn show(
    State(api): State<Api>,
    access: Access,
    PathPart(name): PathPart<Name>,
) -> Result<Response, Problem> {
    let cluster = access.leave(cluster(&api).await?);
    let Some(found) = cluster.pipelines.iter().find(|one| one.definition.name == name) else {
        return Err(unknown_among(&cluster, &name));
    };
    let mut document = PipelineDoc::new(found, &Names::of(&cluster.members));
    document.phase_counts = phase_counts(&api, name).await;
    let (id, now_ms) = (found.definition.id(), clock::unix_ms());
    let schedules = found.definition.schedules.iter();
    document.schedule_runs =
        schedules.filter_map(|it| ScheduleRunsDoc::new(it, id, now_ms)).collect();
    // What its tag begins with.
    let revision = Extension(Revision(document.revision.clone()));
    Ok((revision, Json(document)).into_response())
}

/// What waits and runs at each phase, as the coordinator has it in memory; nothing if nobody
/// coordinates, or does not answer at once.
async fn phase_counts(api: &Api, name: Name) -> Option<BTreeMap<String, PhaseCountsDoc>> {
    match timeout(COUNTS_TIMEOUT, api.ask(Request::Steps(name))).await {
        Ok(Ok(Answer::Steps(steps))) => {
            Some(steps.iter().map(|it| (it.step.to_string(), it.into())).collect())
        }
        _ => None,
    }
}

/// The refusal of a pipeline that is not known.
pub(super) async fn unknown(api: &Api, name: &Name) -> Problem {
    match cluster(api).await {
        Ok(cluster) => unknown_among(&cluster, name),
        Err(problem) => problem,
    }
}

fn unknown_among(cluster: &ClusterView, name: &Name) -> Problem {
    let known = cluster.pipelines.iter().take(NAMED);
    let known = known.map(|one| one.definition.name.to_string()).collect();
    Refusal::UnknownPipeline { name: name.to_string(), known }.into()
}

/// A pipeline's current definition.
pub(super) async fn current(api: &Api, name: &Name) -> Result<Option<PipelineDef>, Problem> {
    let pipelines = cluster(api).await?.pipelines.into_iter().map(|one| one.definition);
    Ok(pipelines.into_iter().find(|one| one.name == *name))
}

/// What names a definition.
pub(super) fn revision_text(definition: &PipelineDef) -> String {
    format!("{:016x}", definition.revision())
}

/// `GET /v1/pipelines/{name}/revisions`
#[utoipa::path(
    get, path = "/v1/pipelines/{name}/revisions", tag = "pipelines", operation_id = "listRevisions",
    summary = "The definitions that a pipeline has and had, as far as they are kept",
    params(PipelinePath),
    responses((status = 200, description = "The latest first", body = RevisionsDoc), Missing)
)]
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
#[utoipa::path(
    delete, path = "/v1/pipelines/{name}", tag = "pipelines", operation_id = "removePipeline",
    summary = "Forget a pipeline that has no unfinished jobs",
    params(PipelinePath),
    responses((status = 204, description = "It is gone"), InUse)
)]
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
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PauseParameters {
    /// Only this of its phases.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, pattern = "^[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$")]
    phase: Option<Name>,
}

/// `POST /v1/pipelines/{name}/pause?phase=`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/pause", tag = "pipelines", operation_id = "pausePipeline",
    summary = "Give out no more work of a pipeline, or of one of its phases",
    params(PipelinePath, PauseParameters),
    responses((status = 200, description = "It is on disk", body = AppliedDoc), Missing)
)]
pub(super) async fn pause(
    state: State<Api>,
    name: PathPart<Name>,
    parameters: Parameters<PauseParameters>,
) -> Result<Json<AppliedDoc>, Problem> {
    set_paused(state, name, parameters, true).await
}

/// `POST /v1/pipelines/{name}/resume?phase=`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/resume", tag = "pipelines", operation_id = "resumePipeline",
    summary = "Go on with what was paused",
    params(PipelinePath, PauseParameters),
    responses((status = 200, description = "It is on disk", body = AppliedDoc), Missing)
)]
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

/// Reads a document; one that defines another pipeline than the path names is none.
pub(super) async fn read_definition(
    api: &Api,
    headers: &HeaderMap,
    body: Body,
    name: Option<&Name>,
) -> Result<PipelineDef, Problem> {
    let definition = match media_type(headers).as_str() {
        "application/json" => {
            let text = read_body(body, api.limits.document_bytes).await?;
            PipelineDocument::from_json(&text)?.definition()?
        }
        other => return Err(wrong_media_type(other, "application/json")),
    };
    match name {
        Some(name) if definition.name != *name => {
            let detail = format!(
                "name: the document defines `{}`, the path names `{name}`: they must be the same",
                definition.name
            );
            Err(Problem::invalid_pipeline(detail))
        }
        _ => Ok(definition),
    }
}

/// Applies a definition if what the client asks of the current one holds. This node does one after
/// the other; two that come to two nodes at one moment may both find what they ask for.
async fn apply_if(
    api: &Api,
    headers: &HeaderMap,
    definition: PipelineDef,
) -> Result<Response, Problem> {
    let asked = Precondition::of(headers);
    if !asked.is_some() {
        return apply_definition(api, definition).await;
    }
    let _one_by_one = api.applying.lock().await;
    let current = current(api, &definition.name).await?;
    asked.check(current.as_ref().map(revision_text).as_deref())?;
    apply_definition(api, definition).await
}

/// Applies a definition.
pub(super) async fn apply_definition(
    api: &Api,
    definition: PipelineDef,
) -> Result<Response, Problem> {
    let name = definition.name.clone();
    match api.ask(Request::Apply(Box::new(definition))).await? {
        Answer::Applied { revision, changed, copies } => {
            let headers = [
                (LOCATION, format!("/v1/pipelines/{}", name.as_str().replace('/', "%2F"))),
                (ETAG, format!("\"{revision:016x}\"")),
            ];
            let applied = AppliedDoc {
                name: name.to_string(),
                revision: format!("{revision:016x}"),
                changed,
                copies,
            };
            Ok((headers, Json(applied)).into_response())
        }
        other => Err(Problem::unexpected(&other)),
    }
}
