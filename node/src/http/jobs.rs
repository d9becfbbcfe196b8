//! Routes of jobs: enqueue one, show one, list.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{
    id::JobId,
    io::{NewJob, Receipt, Request, Response as Answer},
    name::Name,
    record::JobOptions,
    view::{JobState, JobView},
};
use jiff::Timestamp;
use serde::Deserialize;

use super::{
    Api, Problem, bulk,
    extract::{Parameters, PathPart, duration, media_type, parsed, read_body, wrong_media_type},
    pipelines::cluster,
    view::{ExplainDoc, JobDoc, JobSummaryDoc, JobsDoc, Names, ReceiptDoc},
};
use crate::{
    clock,
    document::{Instructions, format_duration},
};

/// Where a client puts the idempotency key of a single job.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The priorities that a job may have; 0 unless given.
const PRIORITIES: std::ops::RangeInclusive<i8> = -100..=100;

/// How many jobs a page has unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// The parameters of an enqueue.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EnqueueParameters {
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
    key: Option<String>,
    #[serde(default, deserialize_with = "duration")]
    delay: Option<Duration>,
    #[serde(default, deserialize_with = "parsed")]
    run_at: Option<Timestamp>,
    #[serde(default, deserialize_with = "duration")]
    timeout: Option<Duration>,
    #[serde(default, deserialize_with = "parsed")]
    deadline: Option<Timestamp>,
    priority: Option<i8>,
}

impl EnqueueParameters {
    /// When the jobs may begin, and how soon.
    fn options(&self) -> Result<JobOptions, Problem> {
        let both = |one: &str, other: &str| {
            let detail = format!("{one}, {other}: they say the same thing: give one of them");
            Err(Problem::bad_request("bad-query", detail))
        };
        let now_ms = clock::unix_ms();
        let later =
            |by: Duration| now_ms.saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        let moment = |at: Timestamp| u64::try_from(at.as_millisecond()).unwrap_or_default();
        let not_before_ms = match (self.delay, self.run_at) {
            (Some(_), Some(_)) => return both("delay", "run_at"),
            (delay, run_at) => delay.map(later).or(run_at.map(moment)).unwrap_or_default(),
        };
        let deadline_ms = match (self.timeout, self.deadline) {
            (Some(_), Some(_)) => return both("timeout", "deadline"),
            (timeout, deadline) => timeout.map(later).or(deadline.map(moment)),
        };
        if deadline_ms.is_some_and(|at| at <= not_before_ms.max(now_ms)) {
            let detail = "deadline: it comes before the job may begin: give a later one";
            return Err(Problem::bad_request("bad-query", detail));
        }
        let priority = self.priority.unwrap_or_default();
        if !PRIORITIES.contains(&priority) {
            let detail = format!("priority: {priority} is out of range: -100 to 100 are allowed");
            return Err(Problem::bad_request("bad-query", detail));
        }
        Ok(JobOptions { not_before_ms, deadline_ms, priority })
    }
}

/// The parameters of one job's page.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowParameters {
    #[serde(default, deserialize_with = "duration")]
    wait: Option<Duration>,
}

/// The parameters of a list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListParameters {
    #[serde(default, deserialize_with = "parsed")]
    state: Option<JobState>,
    #[serde(default, deserialize_with = "parsed")]
    after: Option<JobId>,
    limit: Option<u32>,
    #[serde(default, deserialize_with = "parsed")]
    of: Option<JobId>,
}

/// `POST /v1/pipelines/{name}/jobs`: one job as JSON, or many as NDJSON.
pub(super) async fn enqueue(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(parameters): Parameters<EnqueueParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let options = parameters.options()?;
    let EnqueueParameters { wait, key: key_field, .. } = parameters;
    match (media_type(&headers).as_str(), wait, key_field) {
        ("application/json", wait, None) => {
            let wait = wait.map(|wait| bounded(wait, &api)).transpose()?;
            let key = idempotency_key(&headers)?;
            let json = read_body(body, api.limits.job_bytes).await?;
            let instructions = Instructions::parse(&json)?.into_bytes();
            let job = NewJob { key, options, instructions };
            enqueue_one(&api, pipeline, job, wait).await
        }
        ("application/json", _, Some(_)) => Err(Problem::bad_request(
            "bad-query",
            "key: this parameter is for NDJSON; send the key of a single job in the \
             Idempotency-Key header",
        )),
        ("application/x-ndjson", Some(_), _) => Err(Problem::bad_request(
            "bad-query",
            "wait: many jobs at once are not waited for; ask for each with GET /v1/jobs/{id}?wait=",
        )),
        ("application/x-ndjson", None, _) if headers.contains_key(IDEMPOTENCY_KEY) => {
            Err(Problem::bad_request(
                "bad-header",
                "Idempotency-Key: one key is for one job; name the field that holds each job's key \
                 with ?key=FIELD",
            ))
        }
        ("application/x-ndjson", None, key_field) => {
            bulk::enqueue(api, pipeline, (key_field, options), body).await
        }
        (other, ..) => Err(wrong_media_type(other, "application/json or application/x-ndjson")),
    }
}

/// `GET /v1/jobs/{id}`
pub(super) async fn show(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
    Parameters(parameters): Parameters<ShowParameters>,
) -> Result<Json<JobDoc>, Problem> {
    let wait = parameters.wait.map(|wait| bounded(wait, &api)).transpose()?;
    let view = find(&api, job, wait).await?;
    document(&api, &view).await
}

/// `GET /v1/jobs/{id}/explain`
pub(super) async fn explain(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
) -> Result<Json<ExplainDoc>, Problem> {
    let view = find(&api, job, None).await?;
    let cluster = cluster(&api).await?;
    Ok(Json(ExplainDoc::new(&view, &cluster, clock::unix_ms())))
}

/// `GET /v1/pipelines/{name}/jobs`
pub(super) async fn list(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<JobsDoc>, Problem> {
    let ListParameters { state, after, limit, of } = parameters;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let detail = format!("limit: {limit} is out of range: 1 to {MAX_PAGE} are allowed");
        return Err(Problem::bad_request("bad-query", detail));
    }
    match api.ask(Request::Jobs { pipeline, of, state, after, limit }).await? {
        Answer::Jobs { jobs, next } => Ok(Json(JobsDoc {
            jobs: jobs.iter().map(JobSummaryDoc::from).collect(),
            next: next.map(|job| job.to_string()),
        })),
        other => Err(Problem::unexpected(&other)),
    }
}

async fn enqueue_one(
    api: &Api,
    pipeline: Name,
    job: NewJob,
    wait: Option<Duration>,
) -> Result<Response, Problem> {
    let receipt = match api.ask(Request::Enqueue { pipeline, jobs: vec![job] }).await? {
        Answer::Enqueued(mut answers) if answers.len() == 1 => answers.remove(0)?,
        other => return Err(Problem::unexpected(&other)),
    };
    if let Some(wait) = wait
        && let Some(finished) = finished(api, &receipt, wait).await
    {
        return Ok(finished.into_response());
    }
    let location = [(LOCATION, format!("/v1/jobs/{}", receipt.job))];
    Ok((StatusCode::ACCEPTED, location, Json(ReceiptDoc::from(&receipt))).into_response())
}

/// The job if it ends in time. Whatever goes wrong here does not undo that it was accepted: the
/// client then gets the receipt, with which it can ask again.
async fn finished(api: &Api, receipt: &Receipt, wait: Duration) -> Option<Json<JobDoc>> {
    let view = find(api, receipt.job, Some(wait)).await.ok()?;
    if !view.state.is_terminal() {
        return None;
    }
    document(api, &view).await.ok()
}

async fn find(api: &Api, job: JobId, wait: Option<Duration>) -> Result<Box<JobView>, Problem> {
    match api.ask(Request::Job { job, wait }).await? {
        Answer::Job(view) => Ok(view),
        other => Err(Problem::unexpected(&other)),
    }
}

async fn document(api: &Api, view: &JobView) -> Result<Json<JobDoc>, Problem> {
    // Workers' names cost a second question, so a job that nobody has touched does without.
    let touched = view.invocations.iter().any(|one| !one.attempts.is_empty());
    let names = if touched { Names::of(&cluster(api).await?.members) } else { Names::default() };
    Ok(Json(JobDoc::new(view, &names)))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    value.to_str().map(|key| Some(key.to_owned())).map_err(|_| {
        Problem::bad_request("bad-header", "Idempotency-Key: only visible ASCII is allowed")
    })
}

fn bounded(wait: Duration, api: &Api) -> Result<Duration, Problem> {
    let max = api.limits.max_wait;
    if wait <= max {
        return Ok(wait);
    }
    let detail = format!(
        "wait: {} is longer than {}, which is the limit: ask again when it is over",
        format_duration(wait),
        format_duration(max)
    );
    Err(Problem::bad_request("bad-query", detail))
}
