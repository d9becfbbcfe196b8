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
    trace::TraceParent,
    view::{JobState, JobView},
};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::{Instant, sleep};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Problem,
    access::{Access, scope::Verb},
    bulk,
    extract::{
        Parameters, PathPart, bounded_wait, duration, media_type, parsed, read_body,
        wrong_media_type,
    },
    openapi::schemas::{Enqueue, JobPath, JobStateName, Missing, PipelinePath},
    pipelines::cluster,
    view::{ExplainDoc, JobDoc, JobSummaryDoc, JobsDoc, Names, ReceiptDoc},
};
use crate::{clock, document::Instructions};

/// Where a client puts the idempotency key of a single job.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Where a client puts the span that it enqueues within (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// The priorities that a job may have; 0 unless given.
const PRIORITIES: std::ops::RangeInclusive<i8> = -100..=100;

/// How soon a client that waits is asked for again, where an answer came too early.
const PAUSE: Duration = Duration::from_millis(250);

/// How many jobs a page has unless asked otherwise, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1000;

/// The parameters of an enqueue.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct EnqueueParameters {
    /// Wait for the job's end, at most so long, such as `30s`. Not with many jobs at once.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = String, required = false)]
    wait: Option<Duration>,
    /// With many jobs at once: the field of each that is its idempotency key.
    #[param(value_type = String, required = false)]
    key: Option<String>,
    /// They may begin when this time is over, such as `5m`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = String, required = false)]
    delay: Option<Duration>,
    /// They may begin at this moment; instead of `delay`.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, format = DateTime)]
    run_at: Option<Timestamp>,
    /// They become dead letters unless they have ended when this time is over, such as `1h`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = String, required = false)]
    timeout: Option<Duration>,
    /// The same as a moment; instead of `timeout`.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, format = DateTime)]
    deadline: Option<Timestamp>,
    /// Of what waits for the same phase, the higher goes first; 0 unless given.
    #[param(value_type = i8, required = false, minimum = -100, maximum = 100)]
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
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ShowParameters {
    /// Wait for the job's end, at most so long, such as `30s`.
    #[serde(default, deserialize_with = "duration")]
    #[param(value_type = String, required = false)]
    wait: Option<Duration>,
}

/// The parameters of a list.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParameters {
    /// Only those in this state.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = JobStateName, required = false)]
    state: Option<JobState>,
    /// Which come first: `oldest` unless given, or `newest`, which does not go with `of`.
    #[serde(default)]
    #[param(inline, required = false)]
    order: Order,
    /// Only those behind this one: `next` of the page before, in the same order.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, format = "uuid")]
    after: Option<JobId>,
    /// How many at most, 1 to 1000; 100 unless given. A page may hold fewer and not be the last.
    #[param(value_type = u32, required = false, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// What is made of the items of this job, instead.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, format = "uuid")]
    of: Option<JobId>,
}

/// Which jobs come first in a list.
#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Order {
    /// Those that were enqueued first.
    #[default]
    Oldest,
    /// Those that were enqueued last.
    Newest,
}

/// `POST /v1/pipelines/{name}/jobs`: one job as JSON, or many as NDJSON.
#[utoipa::path(
    post, path = "/v1/pipelines/{name}/jobs", tag = "jobs", operation_id = "enqueue",
    summary = "Enqueue one job, or many",
    description = "One job is a JSON object. Many are one such object in each line (NDJSON), each \
                   answered by a line of its own, in their order, while they are sent. What is answered \
                   is on disk. With `wait`, the answer is the finished job, or the receipt if it has not \
                   ended in time; that the pipeline changes its coordinator meanwhile does no harm.",
    params(
        PipelinePath,
        EnqueueParameters,
        ("Idempotency-Key" = Option<String>, Header,
         description = "The same key is the same job, however often it is sent; 1 to 255 bytes",
         min_length = 1, max_length = 255, pattern = "^[!-~]+$"),
        ("traceparent" = Option<String>, Header,
         description = "The span that the job is enqueued within (W3C Trace Context), also for many at \
                        once: spans and phases of the job belong to its trace. What is malformed is ignored")
    ),
    request_body(content(
        (Object = "application/json"), (bulk::JobsBody = "application/x-ndjson")
    )),
    responses(
        (status = 200, description = "The job has ended; or one line for each of many", content(
            (JobDoc = "application/json"), (String = "application/x-ndjson")
        )),
        (status = 202, description = "The job is on disk", body = ReceiptDoc,
         headers(("Location" = String, description = "The job"))),
        Enqueue
    )
)]
pub(super) async fn enqueue(
    State(api): State<Api>,
    access: Access,
    PathPart(pipeline): PathPart<Name>,
    Parameters(parameters): Parameters<EnqueueParameters>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let options = parameters.options()?;
    if parameters.wait.is_some() {
        // Its end has its results.
        access.check(Verb::Read, pipeline.as_str())?;
    }
    let EnqueueParameters { wait, key: key_field, .. } = parameters;
    let trace = traceparent(&headers);
    match (media_type(&headers).as_str(), wait, key_field) {
        ("application/json", wait, None) => {
            let wait = wait.map(|wait| bounded_wait(wait, &api)).transpose()?;
            let key = idempotency_key(&headers)?;
            let json = read_body(body, api.limits.job_bytes).await?;
            let instructions = Instructions::parse(&json)?.into_bytes();
            let job = NewJob { key, options, trace, instructions };
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
            bulk::enqueue(api, pipeline, (key_field, options, trace), body).await
        }
        (other, ..) => Err(wrong_media_type(other, "application/json or application/x-ndjson")),
    }
}

/// `GET /v1/jobs/{id}`
#[utoipa::path(
    get, path = "/v1/jobs/{id}", tag = "jobs", operation_id = "showJob",
    summary = "One job, in full",
    params(JobPath, ShowParameters),
    responses((status = 200, description = "The job", body = JobDoc), Missing)
)]
pub(super) async fn show(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
    Parameters(parameters): Parameters<ShowParameters>,
) -> Result<Json<JobDoc>, Problem> {
    let wait = parameters.wait.map(|wait| bounded_wait(wait, &api)).transpose()?;
    let view = find(&api, job, wait).await?;
    document(&api, &view).await
}

/// `GET /v1/jobs/{id}/explain`
#[utoipa::path(
    get, path = "/v1/jobs/{id}/explain", tag = "jobs", operation_id = "explainJob",
    summary = "What a job waits for, and what each node lacks to run it",
    params(JobPath),
    responses((status = 200, description = "Why it waits", body = ExplainDoc), Missing)
)]
pub(super) async fn explain(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
) -> Result<Json<ExplainDoc>, Problem> {
    let view = find(&api, job, None).await?;
    let cluster = cluster(&api).await?;
    Ok(Json(ExplainDoc::new(&view, &cluster, clock::unix_ms())))
}

/// `GET /v1/pipelines/{name}/jobs`
#[utoipa::path(
    get, path = "/v1/pipelines/{name}/jobs", tag = "jobs", operation_id = "listJobs",
    summary = "A page of a pipeline's jobs, in order of their ids",
    description = "Ids of jobs without an idempotency key are in the order in which these were enqueued. Ids \
                   that were made of keys are in no order of time: nearly all of them come last, whichever \
                   order is asked for.",
    params(PipelinePath, ListParameters),
    responses((status = 200, description = "The page", body = JobsDoc), Missing)
)]
pub(super) async fn list(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(parameters): Parameters<ListParameters>,
) -> Result<Json<JobsDoc>, Problem> {
    let ListParameters { state, order, after, limit, of } = parameters;
    let limit = limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        let detail = format!("limit: {limit} is out of range: 1 to {MAX_PAGE} are allowed");
        return Err(Problem::bad_request("bad-query", detail));
    }
    let request = match (order, of) {
        (Order::Oldest, of) => Request::Jobs { pipeline, of, state, after, limit },
        (Order::Newest, None) => Request::Newest { pipeline, state, after, limit },
        (Order::Newest, Some(_)) => {
            let detail =
                "order: what is made of a job's items is in the order of these: leave `order` out";
            return Err(Problem::bad_request("bad-query", detail));
        }
    };
    match api.ask(request).await? {
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
    let until = Instant::now() + wait.unwrap_or_default();
    let receipt = accept(api, &pipeline, &job, until).await?;
    if wait.is_some()
        && let Some(finished) = finished(api, &receipt, until).await
    {
        return Ok(finished.into_response());
    }
    let location = [(LOCATION, format!("/v1/jobs/{}", receipt.job))];
    Ok((StatusCode::ACCEPTED, location, Json(ReceiptDoc::from(&receipt))).into_response())
}

/// Hands a job in. A client that waits for its end anyhow is not troubled with a coordinator that is
/// just lost: until its time is over, what was refused for that is tried again; and what may have
/// been done, where a key makes that the same job.
async fn accept(
    api: &Api,
    pipeline: &Name,
    job: &NewJob,
    until: Instant,
) -> Result<Receipt, Problem> {
    loop {
        let request = Request::Enqueue { pipeline: pipeline.clone(), jobs: vec![job.clone()] };
        let answer = match api.ask(request).await {
            Ok(Answer::Enqueued(mut answers)) if answers.len() == 1 => {
                answers.remove(0).map_err(Problem::from)
            }
            Ok(other) => return Err(Problem::unexpected(&other)),
            Err(problem) => Err(problem),
        };
        match answer {
            Err(problem) if may_pass(&problem, job.key.is_some()) && later(until).await => {}
            answer => return answer,
        }
    }
}

/// Whether it was refused for what passes within seconds, such as a coordinator's loss.
fn may_pass(problem: &Problem, repeatable: bool) -> bool {
    match problem.slug() {
        "no-replica" | "no-coordinator" | "too-many-requests" => true,
        "unknown" => repeatable,
        _ => false,
    }
}

/// Waits a little; tells whether there was the time for it.
async fn later(until: Instant) -> bool {
    let fits = Instant::now() + PAUSE < until;
    if fits {
        sleep(PAUSE).await;
    }
    fits
}

/// The job if it ends in time. Whatever goes wrong here does not undo that it was accepted: the
/// client then gets the receipt, with which it can ask again.
async fn finished(api: &Api, receipt: &Receipt, until: Instant) -> Option<Json<JobDoc>> {
    loop {
        match find(api, receipt.job, Some(until.saturating_duration_since(Instant::now()))).await {
            Ok(view) if view.state.is_terminal() => return document(api, &view).await.ok(),
            Ok(_) => return None,
            // It was there a moment ago: whoever is asked now has not heard of it yet.
            Err(problem) if problem.slug() == "unknown-job" && later(until).await => {}
            Err(_) => return None,
        }
    }
}

/// A job; with `wait`, as soon as it has ended or that time is over. Whoever answers may be lost
/// meanwhile: another is asked then.
async fn find(api: &Api, job: JobId, wait: Option<Duration>) -> Result<Box<JobView>, Problem> {
    let until = Instant::now() + wait.unwrap_or_default();
    let mut left = wait;
    loop {
        match api.ask(Request::Job { job, wait: left }).await {
            // Too many wait where it was asked for, or its coordinator has changed.
            Ok(Answer::Job(view)) if !view.state.is_terminal() && later(until).await => {}
            Ok(Answer::Job(view)) => return Ok(view),
            Ok(other) => return Err(Problem::unexpected(&other)),
            Err(problem) if may_pass(&problem, true) && later(until).await => {}
            Err(problem) => return Err(problem),
        }
        left = wait.map(|_| until.saturating_duration_since(Instant::now()));
    }
}

async fn document(api: &Api, view: &JobView) -> Result<Json<JobDoc>, Problem> {
    // Workers' names cost a second question, so a job that nobody has touched does without.
    let touched = view.invocations.iter().any(|one| !one.attempts.is_empty());
    let names = if touched { Names::of(&cluster(api).await?.members) } else { Names::default() };
    Ok(Json(JobDoc::new(view, &names)))
}

/// The span that a request was sent within. As the standard wants it, what is malformed or given twice is
/// as if it were not there.
fn traceparent(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(TRACEPARENT).iter();
    match (given.next(), given.next()) {
        (Some(one), None) => one.to_str().ok()?.parse().ok(),
        _ => None,
    }
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    value.to_str().map(|key| Some(key.to_owned())).map_err(|_| {
        Problem::bad_request("bad-header", "Idempotency-Key: only visible ASCII is allowed")
    })
}
