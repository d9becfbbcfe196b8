//! Routes that change jobs: cancel, try again, discard, signal; one, or all in a state.

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{
    id::JobId,
    io::{Change, Request, Response as Answer, Target},
    name::Name,
    view::JobState,
};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Problem,
    extract::{Parameters, PathPart, parsed, read_body},
    openapi::schemas::{Change as Changes, JobPath, JobStateName, PipelinePath, Signal},
    view::ChangedDoc,
};
use crate::document::Instructions;

/// The largest document that says how to change jobs, in bytes.
const DOCUMENT_BYTES: usize = 64 << 10;

/// How many jobs one request changes unless asked otherwise, and at most.
const AT_ONCE: u32 = 1000;

/// Why a job is cancelled if nobody says.
const NO_REASON: &str = "cancelled by a client";

/// How a job is cancelled.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CancelDoc {
    /// Why, for people.
    reason: Option<String>,
}

/// How a job is tried again.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RetryDoc {
    /// All of it, not only what did not succeed.
    from_start: bool,
}

/// What a signal says.
#[derive(Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct SignalParameters {
    /// Fail the job instead, for this reason.
    #[param(value_type = String, required = false)]
    fail: Option<String>,
}

/// Which of a pipeline's jobs.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WhichParameters {
    /// In which state.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = JobStateName, required = true)]
    state: Option<JobState>,
    /// Only those behind this one: `next` of the request before.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, format = "uuid")]
    after: Option<JobId>,
    /// How many at most, 1 to 1000.
    #[param(value_type = u32, required = false, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// `POST /v1/jobs/{id}/cancel`
#[utoipa::path(
    post, path = "/v1/jobs/{id}/cancel", tag = "jobs", operation_id = "cancelJob",
    summary = "End a job; what runs is asked to stop, and made to after a while",
    params(JobPath),
    request_body(content = Option<CancelDoc>, content_type = "application/json"),
    responses((status = 200, description = "It is on disk", body = ChangedDoc), Changes)
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let change = cancelling(read_optional(body).await?);
    ask(&api, Target::Job(job), change).await
}

/// `POST /v1/jobs/{id}/retry`
#[utoipa::path(
    post, path = "/v1/jobs/{id}/retry", tag = "jobs", operation_id = "retryJob",
    summary = "Run a dead or cancelled job again",
    params(JobPath),
    request_body(content = Option<RetryDoc>, content_type = "application/json"),
    responses((status = 200, description = "It is on disk", body = ChangedDoc), Changes)
)]
pub(super) async fn retry(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let RetryDoc { from_start } = read_optional(body).await?;
    ask(&api, Target::Job(job), Change::Retry { from_start }).await
}

/// `DELETE /v1/jobs/{id}`
#[utoipa::path(
    delete, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "discardJob",
    summary = "Forget a finished job",
    params(JobPath),
    responses((status = 204, description = "It is gone"), Changes)
)]
pub(super) async fn discard(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
) -> Result<Response, Problem> {
    let _changed = ask(&api, Target::Job(job), Change::Discard).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /v1/jobs/{id}/signals/{name}`: the body is what the phase gives; `?fail=why` fails the job.
#[utoipa::path(
    post, path = "/v1/jobs/{id}/signals/{name}", tag = "jobs", operation_id = "signalJob",
    summary = "Give a job the signal that a phase of it waits for",
    params(
        ("id" = String, Path, description = "The job.", format = "uuid"),
        ("name" = String, Path, description = "The signal", pattern = "^[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$"),
        SignalParameters
    ),
    request_body(content = Option<Object>, description = "What the phase gives; `{}` unless given",
                 content_type = "application/json"),
    responses((status = 200, description = "It is on disk", body = ChangedDoc), Signal)
)]
pub(super) async fn signal(
    State(api): State<Api>,
    Path((job, name)): Path<(String, String)>,
    Parameters(SignalParameters { fail }): Parameters<SignalParameters>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let wrong = |error: String| Problem::bad_request("bad-path", error);
    let job: JobId = job.parse().map_err(|error| wrong(format!("{error}")))?;
    let name = Name::plain(&name).map_err(|error| wrong(format!("{error}")))?;
    let data = match fail {
        Some(why) => Err(why),
        None => {
            let json = read_body(body, api.limits.job_bytes).await?;
            let json = if json.is_empty() { "{}".into() } else { json };
            Ok(Instructions::parse(&json)?.into_bytes())
        }
    };
    ask(&api, Target::Job(job), Change::Signal { name, data }).await
}

/// `POST /v1/pipelines/{name}/cancel?state=`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/cancel", tag = "jobs", operation_id = "cancelJobs",
    summary = "End jobs: a page of a pipeline's jobs in one state",
    params(PipelinePath, WhichParameters),
    request_body(content = Option<CancelDoc>, content_type = "application/json"),
    responses((status = 200, description = "How many, and where to go on", body = ChangedDoc), Changes)
)]
pub(super) async fn cancel_many(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(which): Parameters<WhichParameters>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let change = cancelling(read_optional(body).await?);
    ask(&api, target(pipeline, which)?, change).await
}

/// `POST /v1/pipelines/{name}/retry?state=`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/retry", tag = "jobs", operation_id = "retryJobs",
    summary = "Run dead or cancelled jobs again: a page of a pipeline's jobs in one state",
    params(PipelinePath, WhichParameters),
    request_body(content = Option<RetryDoc>, content_type = "application/json"),
    responses((status = 200, description = "How many, and where to go on", body = ChangedDoc), Changes)
)]
pub(super) async fn retry_many(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(which): Parameters<WhichParameters>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let RetryDoc { from_start } = read_optional(body).await?;
    ask(&api, target(pipeline, which)?, Change::Retry { from_start }).await
}

/// `POST /v1/pipelines/{name}/discard?state=`
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/discard", tag = "jobs", operation_id = "discardJobs",
    summary = "Forget finished jobs: a page of a pipeline's jobs in one state",
    params(PipelinePath, WhichParameters),
    responses((status = 200, description = "How many, and where to go on", body = ChangedDoc), Changes)
)]
pub(super) async fn discard_many(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(which): Parameters<WhichParameters>,
) -> Result<Json<ChangedDoc>, Problem> {
    ask(&api, target(pipeline, which)?, Change::Discard).await
}

fn cancelling(document: CancelDoc) -> Change {
    Change::Cancel { reason: document.reason.unwrap_or_else(|| NO_REASON.to_owned()) }
}

fn target(pipeline: Name, which: WhichParameters) -> Result<Target, Problem> {
    let WhichParameters { state, after, limit } = which;
    let state = state.ok_or_else(|| {
        let names = JobState::ALL.map(JobState::name).join(", ");
        let detail = format!("state: say which jobs are meant: those that are {names}");
        Problem::bad_request("bad-query", detail)
    })?;
    let limit = limit.unwrap_or(AT_ONCE);
    if !(1..=AT_ONCE).contains(&limit) {
        let detail = format!("limit: {limit} is out of range: 1 to {AT_ONCE} are allowed");
        return Err(Problem::bad_request("bad-query", detail));
    }
    Ok(Target::Jobs { pipeline, state, after, limit })
}

async fn ask(api: &Api, target: Target, change: Change) -> Result<Json<ChangedDoc>, Problem> {
    match api.ask(Request::Change { target, change }).await? {
        Answer::Changed(changed) => Ok(Json(ChangedDoc {
            changed: changed.count,
            next: changed.next.map(|job| job.to_string()),
        })),
        other => Err(Problem::unexpected(&other)),
    }
}

/// Reads a small document that may be left out.
pub(super) async fn read_optional<T: DeserializeOwned + Default>(body: Body) -> Result<T, Problem> {
    let json = read_body(body, DOCUMENT_BYTES).await?;
    if json.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&json)
        .map_err(|error| Problem::bad_request("bad-json", error.to_string()))
}
