//! Routes of pipelines' definitions: compared, taken up again, drawn, described.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    },
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{
    io::{Refusal, Request, Response as Answer},
    name::Name,
    pipeline::PipelineDef,
    view::RevisionView,
};
use clap::ValueEnum;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Api, Problem,
    extract::{Parameters, PathPart},
    openapi::schemas::{Document, Looked, Missing, PipelinePath},
    pipelines::{apply_definition, current, read_definition, revision_text},
    view::{AppliedDoc, DiffDoc},
};
use crate::document::{PipelineDocument, diff as differ, graph as drawing, json_schema};

/// Which definitions are compared.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DiffParameters {
    /// Since which revision; the one before the current if not given.
    #[param(value_type = String, required = false)]
    from: Option<String>,
    /// Up to which; the current one if not given.
    #[param(value_type = String, required = false)]
    to: Option<String>,
}

/// Which definition is taken up again.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RollBackParameters {
    /// Which revision; the one before the current if not given.
    #[param(value_type = String, required = false)]
    to: Option<String>,
}

/// As what a pipeline is drawn.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct GraphParameters {
    /// `svg`, `dot` (for Graphviz) or `text`; `svg` unless given.
    #[param(value_type = String, required = false, pattern = "^(svg|dot|text)$")]
    format: Option<String>,
}

/// `GET /v1/pipelines/{name}/diff`
#[utoipa::path(
    get, path = "/v1/pipelines/{name}/diff", tag = "pipelines", operation_id = "diffPipeline",
    summary = "What has changed between two definitions",
    params(PipelinePath, DiffParameters),
    responses((status = 200, description = "The difference", body = DiffDoc), Missing)
)]
pub(super) async fn diff(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
    Parameters(DiffParameters { from, to }): Parameters<DiffParameters>,
) -> Result<Json<DiffDoc>, Problem> {
    let all = revisions(&api, &name).await?;
    let new = match &to {
        Some(to) => kept(&all, &name, to)?,
        None => all.iter().find(|one| one.current).ok_or_else(|| no_other(&name))?,
    };
    let old = match &from {
        Some(from) => kept(&all, &name, from)?,
        None => all.iter().find(|one| !one.current).ok_or_else(|| no_other(&name))?,
    };
    Ok(Json(difference(Some(&old.definition), &new.definition)))
}

/// `POST /v1/pipelines/{name}/diff`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/diff", tag = "pipelines", operation_id = "comparePipeline",
    summary = "What applying a document would change; nothing is changed",
    params(PipelinePath),
    request_body(content = ref("#/components/schemas/PipelineDocument"), content_type = "application/json"),
    responses((status = 200, description = "The difference", body = DiffDoc), Looked)
)]
pub(super) async fn compare(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<DiffDoc>, Problem> {
    let new = read_definition(&api, &headers, body, Some(&name)).await?;
    let old = current(&api, &name).await?;
    Ok(Json(difference(old.as_ref(), &new)))
}

/// `POST /v1/pipelines/{name}/rollback`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/rollback", tag = "pipelines", operation_id = "rollBackPipeline",
    summary = "Make an earlier definition the current one again, for jobs to come",
    params(PipelinePath, RollBackParameters),
    responses((status = 200, description = "It is on disk", body = AppliedDoc), Missing, Document)
)]
pub(super) async fn roll_back(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
    Parameters(RollBackParameters { to }): Parameters<RollBackParameters>,
) -> Result<Response, Problem> {
    let all = revisions(&api, &name).await?;
    let found = match &to {
        Some(to) => kept(&all, &name, to)?,
        None => all.iter().find(|one| !one.current).ok_or_else(|| no_other(&name))?,
    };
    let mut definition = found.definition.clone();
    // What was split meanwhile stays so.
    let split = all.iter().find(|one| one.current).map_or(1, |one| one.definition.partitions);
    definition.partitions = definition.partitions.max(split);
    if !definition.is_valid() {
        return Err(Refusal::InvalidPipeline(format!(
            "pipeline `{name}` has {split} partitions by now, and that definition has what takes one \
             coordinator for all of its jobs, a `rate` or a `limit`: apply one without"
        ))
        .into());
    }
    apply_definition(&api, definition).await
}

/// `GET /v1/pipelines/{name}/graph`
#[utoipa::path(
    get, path = "/v1/pipelines/{name}/graph", tag = "pipelines", operation_id = "drawPipeline",
    summary = "The phases as a drawing",
    params(PipelinePath, GraphParameters),
    responses(
        (status = 200, description = "The drawing", content(
            (String = "image/svg+xml"), (String = "text/vnd.graphviz"), (String = "text/plain")
        )),
        Missing
    )
)]
pub(super) async fn graph(
    State(api): State<Api>,
    PathPart(name): PathPart<Name>,
    Parameters(GraphParameters { format }): Parameters<GraphParameters>,
) -> Result<Response, Problem> {
    use drawing::Format;
    let format = format.map_or(Ok(Format::Svg), |text| {
        <Format as ValueEnum>::from_str(&text, false).map_err(|_| {
            let detail = format!("format: `{text}` is none: svg, dot and text are");
            Problem::bad_request("bad-query", detail)
        })
    })?;
    let definition = current(&api, &name).await?;
    let Some(definition) = definition else {
        return Err(super::pipelines::unknown(&api, &name).await);
    };
    let kind = match format {
        Format::Svg => "image/svg+xml",
        Format::Dot => "text/vnd.graphviz; charset=utf-8",
        Format::Text => "text/plain; charset=utf-8",
    };
    // Opened by itself, the picture may do nothing but be one.
    let headers: [(HeaderName, HeaderValue); 3] = [
        (CONTENT_TYPE, HeaderValue::from_static(kind)),
        (
            CONTENT_SECURITY_POLICY,
            HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; sandbox"),
        ),
        (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, drawing::draw(&definition, format)).into_response())
}

/// `GET /v1/pipeline.schema.json`
#[utoipa::path(
    get, path = "/v1/pipeline.schema.json", tag = "pipelines", operation_id = "pipelineSchema",
    summary = "The JSON Schema of pipeline documents, for editors",
    responses((status = 200, description = "A JSON Schema", body = Object))
)]
pub(super) async fn schema() -> Response {
    ([(CONTENT_TYPE, "application/json")], json_schema()).into_response()
}

async fn revisions(api: &Api, name: &Name) -> Result<Vec<RevisionView>, Problem> {
    match api.ask(Request::Revisions(name.clone())).await? {
        Answer::Revisions(revisions) => Ok(revisions),
        other => Err(Problem::unexpected(&other)),
    }
}

fn kept<'a>(
    all: &'a [RevisionView],
    name: &Name,
    revision: &str,
) -> Result<&'a RevisionView, Problem> {
    all.iter().find(|one| revision_text(&one.definition) == revision).ok_or_else(|| {
        let known: Vec<String> = all.iter().map(|one| revision_text(&one.definition)).collect();
        let detail = format!(
            "pipeline `{name}` has no revision {revision}: those that are kept are {}",
            known.join(", ")
        );
        unknown_revision(detail).with("known", known)
    })
}

fn no_other(name: &Name) -> Problem {
    unknown_revision(format!("pipeline `{name}` has had no other definition that is kept"))
}

fn unknown_revision(detail: String) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "unknown-revision", "unknown revision", detail)
}

fn difference(old: Option<&PipelineDef>, new: &PipelineDef) -> DiffDoc {
    let before = old.map(PipelineDocument::from);
    let diff = differ::unified_diff(before.as_ref(), &PipelineDocument::from(new));
    DiffDoc {
        name: new.name.to_string(),
        from: old.map(revision_text),
        to: revision_text(new),
        changed: diff.is_some(),
        diff: diff.unwrap_or_default(),
        left_out: old.map(|old| differ::left_out(old, new)).unwrap_or_default(),
    }
}
