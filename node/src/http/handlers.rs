//! Routes of handlers that the cluster keeps: put, list, show, remove.

use std::collections::BTreeSet;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
};
use carbonmesh_protocol::{
    handler::{Handler, HandlerEntry, Language, MAX_SOURCE_BYTES},
    io::{Refusal, Request, Response as Answer},
    name::Name,
    requirement::Requirement,
};
use data_encoding::BASE64;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Problem,
    extract::{Parameters, PathPart, media_type, read_body, wrong_media_type},
    openapi::schemas::{self, InUse, Missing, PhasePath},
    view::{HandlerDoc, HandlerPutDoc, HandlersDoc},
};

/// The largest document: a source whose characters are all written as `\u0001`, and what is beside it.
const DOCUMENT_BYTES: usize = 6 * MAX_SOURCE_BYTES + (64 << 10);

/// A handler as a client hands it in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PutDoc {
    /// In what it is written.
    #[schema(schema_with = schemas::language)]
    language: Language,
    /// It, of at most 256 KiB: text, or a module in Base64.
    source: String,
    /// What a node must have to offer it.
    #[serde(default)]
    requires: Vec<String>,
    /// How many attempts of it a node runs at once; 1 unless given.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 10000)]
    slots: u32,
}

fn one() -> u32 {
    1
}

/// How a handler is removed.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveParameters {
    /// Although pipelines have the phase.
    #[serde(default)]
    #[param(required = false)]
    force: bool,
}

/// `GET /v1/handlers`
#[utoipa::path(
    get, path = "/v1/handlers", tag = "cluster", operation_id = "listHandlers",
    summary = "The handlers that the cluster keeps, without their sources",
    responses((status = 200, description = "In order of their phases", body = HandlersDoc))
)]
pub(super) async fn list(State(api): State<Api>) -> Result<Json<HandlersDoc>, Problem> {
    let all = all(&api).await?;
    Ok(Json(HandlersDoc { handlers: all.iter().filter_map(HandlerDoc::without_source).collect() }))
}

/// `GET /v1/handlers/{phase}`
#[utoipa::path(
    get, path = "/v1/handlers/{phase}", tag = "cluster", operation_id = "showHandler",
    summary = "The handler of one phase, with its source",
    params(PhasePath),
    responses((status = 200, description = "The handler", body = HandlerDoc), Missing)
)]
pub(super) async fn show(
    State(api): State<Api>,
    PathPart(phase): PathPart<Name>,
) -> Result<Json<HandlerDoc>, Problem> {
    let all = all(&api).await?;
    let found = all.iter().find(|entry| entry.phase == phase).and_then(HandlerDoc::with_source);
    found.map(Json).ok_or_else(|| {
        let known = all.iter().take(10).map(|entry| entry.phase.to_string()).collect();
        Refusal::UnknownHandler { phase: phase.to_string(), known }.into()
    })
}

/// `PUT /v1/handlers/{phase}`
#[utoipa::path(
    put, path = "/v1/handlers/{phase}", tag = "cluster", operation_id = "putHandler",
    summary = "Give the cluster the source that runs a phase",
    description = "Every node keeps it. Those run it whose operators allow its language.",
    params(PhasePath),
    request_body(content = PutDoc, content_type = "application/json"),
    responses((status = 200, description = "It is on disk", body = HandlerPutDoc), schemas::Handler)
)]
pub(super) async fn put(
    State(api): State<Api>,
    PathPart(phase): PathPart<Name>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<HandlerPutDoc>, Problem> {
    match media_type(&headers).as_str() {
        "application/json" => {}
        other => return Err(wrong_media_type(other, "application/json")),
    }
    let json = read_body(body, DOCUMENT_BYTES).await?;
    let PutDoc { language, source, requires, slots } = serde_json::from_slice(&json)
        .map_err(|error| Problem::bad_request("bad-json", error.to_string()))?;
    let requires = requires.iter().map(|text| text.parse());
    let requires = requires
        .collect::<Result<BTreeSet<Requirement>, _>>()
        .map_err(|error| Refusal::InvalidHandler(format!("requires: {error}")))?;
    let source = match language.is_text() {
        true => source.into_bytes(),
        false => BASE64.decode(source.as_bytes()).map_err(|error| {
            Refusal::InvalidHandler(format!("source: it is no Base64, as a module is: {error}"))
        })?,
    };
    let handler = Box::new(Handler { language, requires, slots, source: source.into() });
    match api.ask(Request::PutHandler { phase: phase.clone(), handler }).await? {
        Answer::HandlerPut { version, changed, copies } => {
            let (phase, sha256) = (phase.to_string(), version.hash.to_string());
            Ok(Json(HandlerPutDoc { phase, sha256, changed, copies }))
        }
        other => Err(Problem::unexpected(&other)),
    }
}

/// `DELETE /v1/handlers/{phase}?force=`
#[utoipa::path(
    delete, path = "/v1/handlers/{phase}", tag = "cluster", operation_id = "removeHandler",
    summary = "Forget the handler of a phase that no pipeline has",
    params(PhasePath, RemoveParameters),
    responses((status = 204, description = "It is gone"), InUse)
)]
pub(super) async fn remove(
    State(api): State<Api>,
    PathPart(phase): PathPart<Name>,
    Parameters(RemoveParameters { force }): Parameters<RemoveParameters>,
) -> Result<StatusCode, Problem> {
    match api.ask(Request::RemoveHandler { phase, force }).await? {
        Answer::Removed => Ok(StatusCode::NO_CONTENT),
        other => Err(Problem::unexpected(&other)),
    }
}

async fn all(api: &Api) -> Result<Vec<HandlerEntry>, Problem> {
    match api.ask(Request::Handlers).await? {
        Answer::Handlers(all) => Ok(all),
        other => Err(Problem::unexpected(&other)),
    }
}
