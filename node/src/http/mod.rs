//! The HTTP interface that every node serves to clients: JSON over HTTP/1.1 below `/v1`.
//!
//! This owns routes, documents and status codes; every decision is the node's, asked through its
//! [`NodeHandle`]. Whatever is refused is refused as a problem document (RFC 9457).
//!
//! Invariant: no request makes the node hold more than its limits allow; bulk bodies are streamed.

mod bulk;
mod changes;
mod cluster;
mod extract;
#[cfg(test)]
pub(crate) mod fake;
mod guard;
mod jobs;
mod lines;
mod listener;
mod page;
mod pipelines;
mod problem;
pub mod view;

use std::{io, sync::Arc, time::Duration};

use axum::serve::Listener as _;
use axum::{
    Router,
    http::{Method, StatusCode, Uri},
    middleware,
    routing::{get, post},
};
use carbonmesh_protocol::{
    config::Limits,
    io::{Request, Response},
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::handle::NodeHandle;

pub use problem::Problem;

/// How long requests that are under way may go on once the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to send a request's head, or keep a connection without one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How much the HTTP interface takes, and from whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLimits {
    /// The largest job, in bytes as sent; should be the node's own `limits.job_bytes`, which is
    /// the default.
    pub job_bytes: usize,
    /// The largest pipeline document, in bytes. Default 1 MiB: hundreds of phases in full.
    pub document_bytes: usize,
    /// The longest that one request may wait for a job's end. Default 10 min.
    pub max_wait: Duration,
    /// Hosts, without port, by which browsers and clients may call this node, beside `localhost`,
    /// `127.0.0.1` and `[::1]`. Default none.
    pub hosts: Vec<String>,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            job_bytes: Limits::DEFAULT.job_bytes,
            document_bytes: 1 << 20,
            max_wait: Duration::from_secs(600),
            hosts: Vec::new(),
        }
    }
}

/// What every handler gets.
#[derive(Clone)]
struct Api {
    handle: NodeHandle,
    limits: Arc<HttpLimits>,
}

impl Api {
    /// Asks the node; its refusals come back as problems.
    async fn ask(&self, request: Request) -> Result<Response, Problem> {
        match self.handle.request(request).await? {
            Response::Refused(refusal) => Err(refusal.into()),
            response => Ok(response),
        }
    }
}

/// The whole interface to the node behind `handle`.
pub fn router(handle: NodeHandle, limits: HttpLimits) -> Router {
    let api = Api { handle, limits: Arc::new(limits) };
    let guard = middleware::from_fn_with_state(api.clone(), guard::guard);
    Router::new()
        .route("/v1/pipelines", get(pipelines::list).post(pipelines::create))
        .route(
            "/v1/pipelines/{name}",
            get(pipelines::show).put(pipelines::apply).delete(pipelines::remove),
        )
        .route("/v1/pipelines/{name}/jobs", post(jobs::enqueue).get(jobs::list))
        .route("/v1/pipelines/{name}/revisions", get(pipelines::revisions))
        .route("/v1/pipelines/{name}/cancel", post(changes::cancel_many))
        .route("/v1/pipelines/{name}/retry", post(changes::retry_many))
        .route("/v1/pipelines/{name}/discard", post(changes::discard_many))
        .route("/v1/pipelines/{name}/pause", post(pipelines::pause))
        .route("/v1/pipelines/{name}/resume", post(pipelines::resume))
        .route("/v1/jobs/{id}", get(jobs::show).delete(changes::discard))
        .route("/v1/jobs/{id}/explain", get(jobs::explain))
        .route("/v1/jobs/{id}/cancel", post(changes::cancel))
        .route("/v1/jobs/{id}/retry", post(changes::retry))
        .route("/v1/jobs/{id}/signals/{name}", post(changes::signal))
        .route("/v1/nodes", get(cluster::nodes))
        .route("/v1/phases", get(cluster::phases))
        .route("/v1/status", get(cluster::status))
        .route("/v1/version", get(cluster::version))
        .route("/healthz", get(cluster::health))
        .route("/metrics", get(cluster::metrics))
        .merge(page::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(guard)
        .with_state(api)
}

/// Serves until `cancel`; requests under way then have a few seconds to end.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
) -> io::Result<()> {
    let mut listener = listener::Bounded::new(listener, listener::MAX_CONNECTIONS);
    let mut http = http1::Builder::new();
    // A client that keeps its connection and says nothing gives its place to another.
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let open = GracefulShutdown::new();
    loop {
        let (connection, address) = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let service = TowerToHyperService::new(router.clone());
        let serving = open.watch(http.serve_connection(TokioIo::new(connection), service));
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::debug!(%address, %error, "a connection ended");
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(STOP_GRACE, open.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the interface ended");
    }
    Ok(())
}

async fn unknown_route(uri: Uri) -> Problem {
    let detail = format!("there is nothing at {}: the routes begin with /v1/", uri.path());
    Problem::new(StatusCode::NOT_FOUND, "unknown-route", "no such route", detail)
}

async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}: see the Allow header", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "wrong-method", "method not allowed", detail)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
