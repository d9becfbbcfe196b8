//! Routes of events and of logs: streams of server-sent events or of lines of JSON, and what is kept of
//! a job's log.
//!
//! ```text
//! node ◄─asks with a token─ feed (a task) ──few chunks──► body ──► reader
//! ```
//! A reader that takes nothing for a while is cut: its feed ends, and what it reads last says why. A
//! stream outlives failovers: while nobody coordinates it only shows that it lives, and what it misses
//! meanwhile is told as a gap.

use std::{
    collections::BTreeSet,
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE},
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use carbonmesh_protocol::{
    event::{Event, EventKind, EventKinds, EventQuery, EventsFrom},
    id::{JobId, NodeId},
    io::{Request, Response as Answer},
    name::Name,
};
use futures::{StreamExt, stream};
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, sleep, timeout},
};
use utoipa::IntoParams;

use super::{
    Api, Problem,
    extract::{Parameters, PathPart, parsed},
    openapi::schemas::{Form as Forms, JobPath, Missing, PipelinePath, Stream},
    pipelines::cluster,
    sources::{Heard, Place, Sources},
    view::{EndDoc, EventDoc, LogsDoc, Names, node_of},
};

/// How long one question to the node waits, and so how often a silent stream shows that it lives.
const WAIT: Duration = Duration::from_secs(10);

/// How long to wait before the node is asked again that could not say.
const AGAIN: Duration = Duration::from_millis(250);

/// How long a reader may take nothing.
const SLOW: Duration = Duration::from_secs(30);

/// How many chunks may wait for the reader.
const WAITING_CHUNKS: usize = 2;

/// The parameters of a stream.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamParameters {
    /// Only those behind this one, a token; or `oldest` (unless given) or `latest`.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false)]
    after: Option<Place>,
    /// Only those of this job and of its parts.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, format = "uuid")]
    job: Option<JobId>,
    /// Only these kinds, with commas between them; a gap is always told.
    #[param(value_type = String, required = false, pattern = "^[a-z_]+(,[a-z_]+)*$")]
    kinds: Option<String>,
    /// Whether to wait for more at the end; true unless given.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = bool, required = false)]
    follow: Option<bool>,
}

/// `GET /v1/pipelines/{name}/events`
#[utoipa::path(
    get, path = "/v1/pipelines/{name}/events", tag = "pipelines", operation_id = "pipelineEvents",
    summary = "What happens to a pipeline and its jobs, as it happens",
    description = "A stream: server-sent events, or one EventDoc in each line for those who accept \
                   `application/x-ndjson`. It outlives failovers; what it misses is told as a `gap`. If \
                   the node ends it, the last word is an EndDoc.",
    params(
        PipelinePath,
        StreamParameters,
        ("Last-Event-ID" = Option<String>, Header,
         description = "Only those behind this one, as browsers say it; counts more than `after`")
    ),
    responses(
        (status = 200, description = "The events", content(
            (String = "text/event-stream"), (String = "application/x-ndjson")
        )),
        Stream
    )
)]
pub(super) async fn of_pipeline(
    State(api): State<Api>,
    PathPart(pipeline): PathPart<Name>,
    Parameters(parameters): Parameters<StreamParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    open(api, Some(pipeline), parameters, &headers).await
}

/// `GET /v1/events`
#[utoipa::path(
    get, path = "/v1/events", tag = "cluster", operation_id = "clusterEvents",
    summary = "What happens to nodes, phases and coordinators, as it happens",
    description = "A stream, as that of a pipeline is, of what the node that is asked sees.",
    params(
        ("after" = Option<String>, Query,
         description = "Only those behind this one, a token; or `oldest` (unless given) or `latest`"),
        ("kinds" = Option<String>, Query, pattern = "^[a-z_]+(,[a-z_]+)*$",
         description = "Only these kinds, with commas between them; a gap is always told"),
        ("follow" = Option<bool>, Query,
         description = "Whether to wait for more at the end; true unless given"),
        ("Last-Event-ID" = Option<String>, Header,
         description = "Only those behind this one, as browsers say it; counts more than `after`")
    ),
    responses(
        (status = 200, description = "The events", content(
            (String = "text/event-stream"), (String = "application/x-ndjson")
        )),
        Forms
    )
)]
pub(super) async fn of_cluster(
    State(api): State<Api>,
    Parameters(parameters): Parameters<StreamParameters>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if parameters.job.is_some() {
        let detail = "job: these are events of the cluster; a job's are at \
                      /v1/pipelines/{name}/events?job=";
        return Err(Problem::bad_request("bad-query", detail));
    }
    open(api, None, parameters, &headers).await
}

/// `GET /v1/jobs/{id}/logs`
#[utoipa::path(
    get, path = "/v1/jobs/{id}/logs", tag = "jobs", operation_id = "jobLogs",
    summary = "What attempts of a job have said, as far as it is kept",
    params(JobPath),
    responses((status = 200, description = "By attempt", body = LogsDoc), Missing)
)]
pub(super) async fn logs(
    State(api): State<Api>,
    PathPart(job): PathPart<JobId>,
) -> Result<Json<LogsDoc>, Problem> {
    match api.ask(Request::Logs(job)).await? {
        Answer::Logs(page) => Ok(Json(LogsDoc::from(&*page))),
        other => Err(Problem::unexpected(&other)),
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Server-sent events.
    Sse,
    /// A JSON object in each line.
    Ndjson,
}

impl Form {
    /// What the reader wants: server-sent events unless it says otherwise.
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        let wanted = accept.split(',').map(|part| part.split(';').next().unwrap_or("").trim());
        for kind in wanted {
            match kind {
                "application/x-ndjson" => return Ok(Self::Ndjson),
                "text/event-stream" | "text/*" | "*/*" => return Ok(Self::Sse),
                _ => {}
            }
        }
        let detail = "Accept: events come as text/event-stream or as application/x-ndjson";
        Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "not-acceptable", "not acceptable", detail))
    }

    fn content_type(self) -> &'static str {
        match self {
            Self::Sse => "text/event-stream",
            Self::Ndjson => "application/x-ndjson",
        }
    }

    /// One document; with its token as the id.
    fn write(self, out: &mut Vec<u8>, token: Option<&str>, document: &impl serde::Serialize) {
        // Texts and numbers: nothing in it can fail to be JSON.
        let json = serde_json::to_string(document).unwrap_or_default();
        match (self, token) {
            (Self::Ndjson, _) => out.extend_from_slice(format!("{json}\n").as_bytes()),
            (Self::Sse, Some(token)) => {
                out.extend_from_slice(format!("id: {token}\ndata: {json}\n\n").as_bytes());
            }
            (Self::Sse, None) => {
                out.extend_from_slice(format!("event: end\ndata: {json}\n\n").as_bytes());
            }
        }
    }

    /// That the stream lives, and how far it is.
    fn alive(self, next: Option<String>) -> Bytes {
        match (self, next) {
            (Self::Sse, None) => Bytes::from_static(b": alive\n\n"),
            (Self::Sse, Some(token)) => format!(": alive\nid: {token}\n\n").into(),
            (Self::Ndjson, None) => Bytes::from_static(b"{\"kind\":\"alive\"}\n"),
            (Self::Ndjson, Some(token)) => {
                format!("{{\"kind\":\"alive\",\"token\":\"{token}\"}}\n").into()
            }
        }
    }

    fn end(self, reason: &str) -> Bytes {
        let mut out = Vec::new();
        let end = EndDoc { kind: "end".to_owned(), reason: reason.to_owned() };
        self.write(&mut out, None, &end);
        out.into()
    }
}

async fn open(
    api: Api,
    pipeline: Option<Name>,
    parameters: StreamParameters,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let form = Form::of(headers)?;
    let StreamParameters { after, job, kinds, follow } = parameters;
    let resumed = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let resumed = resumed
        .map(|token| token.parse::<Place>())
        .transpose()
        .map_err(|error| Problem::bad_request("bad-header", format!("Last-Event-ID: {error}")))?;
    let place = resumed.or(after).unwrap_or_else(|| Place(vec![EventsFrom::Oldest]));
    let kinds = kinds.as_deref().map_or(Ok(EventKinds::ALL), |text| {
        let kinds = text.split(',').map(|kind| kind.trim().parse::<EventKind>());
        let kinds = kinds.collect::<Result<EventKinds, String>>();
        kinds.map_err(|error| Problem::bad_request("bad-query", format!("kinds: {error}")))
    })?;
    // From where on, and for how long it waits, each question says by itself.
    let query = EventQuery { from: EventsFrom::Oldest, job, kinds, limit: 500, wait: None };
    let Ok(permit) = api.streams.clone().try_acquire_owned() else {
        let detail = format!(
            "{} streams of events are open here: close one, or ask another node",
            api.limits.streams
        );
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return Err(Problem::new(status, "too-many-streams", "too many streams", detail));
    };
    let sources = Sources::new(api.handle.clone(), pipeline.clone(), query, place);
    let feed = Feed {
        api,
        pipeline,
        sources,
        form,
        follow: follow.unwrap_or(true),
        names: Names::default(),
        unnamed: BTreeSet::new(),
        _permit: permit,
    };
    feed.serve().await
}

/// Reads events from the node for one reader.
struct Feed {
    api: Api,
    pipeline: Option<Name>,
    sources: Sources,
    form: Form,
    /// Whether to go on when there are no more.
    follow: bool,
    names: Names,
    /// Nodes whose names nobody knows.
    unnamed: BTreeSet<NodeId>,
    _permit: OwnedSemaphorePermit,
}

/// Why a feed ends.
struct Ended(String);

impl Feed {
    async fn serve(mut self) -> Result<Response, Problem> {
        // What is wrong from the start is told by the status.
        let first = match self.sources.next(None).await {
            Ok(heard) => Some(heard),
            Err(problem) if may_pass(&problem) && self.follow => None,
            Err(problem) => return Err(problem),
        };
        let (form, why) = (self.form, Arc::new(OnceLock::new()));
        let (chunks, body) = mpsc::channel::<Bytes>(WAITING_CHUNKS);
        let (told, cut) = (why.clone(), why);
        tokio::spawn(async move {
            if let Err(Ended(reason)) = self.run(first, &chunks).await {
                // Set once, before the channel ends.
                let _ = told.set(reason);
            }
        });
        let body = stream::unfold(body, |mut body| async { Some((body.recv().await?, body)) });
        let last = stream::once(async move { cut.get().map(|reason| form.end(reason)) });
        let body = body.chain(last.filter_map(|end| async { end })).map(Ok::<_, Infallible>);
        let headers = [(CONTENT_TYPE, form.content_type()), (CACHE_CONTROL, "no-store")];
        Ok((headers, Body::from_stream(body)).into_response())
    }

    async fn run(
        mut self,
        first: Option<Vec<Heard>>,
        chunks: &mpsc::Sender<Bytes>,
    ) -> Result<(), Ended> {
        let mut heard = first;
        // It shows at once that it is open, and where.
        let mut silent_since: Option<Instant> = None;
        loop {
            let none = heard.as_ref().is_none_or(Vec::is_empty);
            let silent = silent_since.is_none_or(|since| since.elapsed() >= WAIT);
            let chunk = match heard.take() {
                Some(heard) if !none => Some(self.write(&heard).await),
                _ => silent.then(|| self.form.alive(self.sources.place())),
            };
            if let Some(chunk) = chunk {
                if !give(chunks, chunk).await? {
                    return Ok(());
                }
                silent_since = Some(Instant::now());
            }
            if none && !self.follow {
                return Ok(());
            }
            let (asked, wait) = (Instant::now(), self.follow.then_some(WAIT));
            let answered = tokio::select! {
                answered = self.sources.next(wait) => answered,
                // Its reader has gone.
                () = chunks.closed() => return Ok(()),
            };
            match answered {
                Ok(next) => {
                    // A node that stops answers at once that there is nothing.
                    if next.is_empty() && self.follow && asked.elapsed() < WAIT / 2 {
                        sleep(AGAIN).await;
                    }
                    heard = Some(next);
                }
                Err(problem) if may_pass(&problem) && self.follow => sleep(AGAIN).await,
                Err(problem) => return Err(Ended(problem.detail)),
            }
        }
    }

    async fn write(&mut self, heard: &[Heard]) -> Bytes {
        let mut out = Vec::new();
        for heard in heard {
            self.learn_names(&heard.events).await;
            let pipeline = self.pipeline.as_ref().map(Name::as_str);
            for event in &heard.events {
                let token = self.sources.told(heard, event.token);
                let document = EventDoc { token, ..EventDoc::new(event, pipeline, &self.names) };
                self.form.write(&mut out, Some(&document.token), &document);
            }
            self.sources.done(heard);
        }
        out.into()
    }

    /// Asks for nodes' names if one comes up that is not known.
    async fn learn_names(&mut self, events: &[Event]) {
        let nodes = events.iter().filter_map(|event| node_of(&event.what));
        let nodes: BTreeSet<NodeId> =
            nodes.filter(|node| !self.names.has(*node) && !self.unnamed.contains(node)).collect();
        if !nodes.is_empty()
            && let Ok(cluster) = cluster(&self.api).await
        {
            self.names = Names::of(&cluster.members);
            self.unnamed.extend(nodes.into_iter().filter(|node| !self.names.has(*node)));
        }
    }
}

/// Gives a chunk to the reader; false if it has gone.
async fn give(chunks: &mpsc::Sender<Bytes>, chunk: Bytes) -> Result<bool, Ended> {
    match timeout(SLOW, chunks.send(chunk)).await {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => Err(Ended(format!(
            "nothing was read for {} s: read faster, or ask for fewer kinds; go on with the last \
             token",
            SLOW.as_secs()
        ))),
    }
}

/// Whether it may go better in a moment: nobody coordinates, or an answer was lost.
pub(super) fn may_pass(problem: &Problem) -> bool {
    const PASSING: [&str; 4] = ["no-coordinator", "no-replica", "unknown", "too-many-requests"];
    PASSING.iter().any(|slug| problem.kind.ends_with(&format!(":{slug}")))
}
