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

use super::{
    Api, Problem,
    extract::{Parameters, PathPart, parsed, read_body},
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
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CancelDoc {
    reason: Option<String>,
}

/// How a job is tried again.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RetryDoc {
    from_start: bool,
}

/// What a signal says.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SignalParameters {
    fail: Option<String>,
}

/// Which of a pipeline's jobs.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichParameters {
    #[serde(default, deserialize_with = "parsed")]
    state: Option<JobState>,
    #[serde(default, deserialize_with = "parsed")]
    after: Option<JobId>,
    limit: Option<u32>,
}

/// `POST /v1/jobs/{id}/cancel`
pub(super) async fn cancel(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let change = cancelling(read_optional(body).await?);
    ask(&api, Target::Job(job), change).await
}

/// `POST /v1/jobs/{id}/retry`
pub(super) async fn retry(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let RetryDoc { from_start } = read_optional(body).await?;
    ask(&api, Target::Job(job), Change::Retry { from_start }).await
}

/// `DELETE /v1/jobs/{id}`
pub(super) async fn discard(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
) -> Result<Response, Problem> {
    let _changed = ask(&api, Target::Job(job), Change::Discard).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `POST /v1/jobs/{id}/signals/{name}`: the body is what the phase gives; `?fail=why` fails the job.
pub(super) async fn signal(
    State(api): State<Api>,
    Path((job, name)): Path<(String, String)>,
    Parameters(SignalParameters { fail }): Parameters<SignalParameters>,
    body: Body,
) -> Result<Json<ChangedDoc>, Problem> {
    let wrong = |error: String| Problem::bad_request("bad-path", error);
    let job: JobId = job.parse().map_err(|error| wrong(format!("{error}")))?;
    let name: Name = name.parse().map_err(|error| wrong(format!("{error}")))?;
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
async fn read_optional<T: DeserializeOwned + Default>(body: Body) -> Result<T, Problem> {
    let json = read_body(body, DOCUMENT_BYTES).await?;
    if json.is_empty() {
        return Ok(T::default());
    }
    serde_json::from_slice(&json)
        .map_err(|error| Problem::bad_request("bad-json", error.to_string()))
}
