//! The HTTP interface that every node serves to clients: JSON over HTTP/1.1 below `/v1`.
//!
//! This owns routes, documents and status codes; every decision is the node's, asked through its
//! [`NodeHandle`]. Whatever is refused is refused as a problem document (RFC 9457).
//!
//! Invariant: no request makes the node hold more than its limits allow; bulk bodies are streamed.

pub mod access;
mod bulk;
mod changes;
mod cluster;
mod conditional;
mod definitions;
mod encoding;
mod events;
mod extract;
#[cfg(test)]
pub(crate) mod fake;
mod fields;
mod guard;
mod handlers;
mod history;
mod jobs;
mod kinds;
mod lines;
mod listener;
pub mod local;
pub mod notify;
mod openapi;
mod page;
mod pipelines;
mod problem;
mod reader;
mod request_id;
mod secrets;
mod sources;
pub mod trust;
pub mod view;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

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
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
    service::TowerToHyperService,
};
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::{Mutex, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::access::{Peer, Security};
use crate::{handle::NodeHandle, tls::ServerTls};

pub use openapi::json as openapi_json;
pub use problem::Problem;
pub(crate) use sources::Place;

/// How long requests that are under way may go on once the server is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long a client may take to send a request's head, or keep a connection without one.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may take to agree on TLS.
const HANDSHAKE_TIMEOUT: Duration =
    if cfg!(test) { Duration::from_millis(500) } else { Duration::from_secs(5) };

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
    /// How many streams of events may be open at once. Default 256.
    pub streams: usize,
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
            streams: 256,
            hosts: Vec::new(),
        }
    }
}

/// What every handler gets.
#[derive(Clone)]
struct Api {
    handle: NodeHandle,
    limits: Arc<HttpLimits>,
    security: Arc<Security>,
    /// Held while a pipeline is applied under a condition.
    applying: Arc<Mutex<()>>,
    /// Room for streams of events.
    streams: Arc<Semaphore>,
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

/// The whole interface to the node behind `handle`, for everybody who reaches it.
pub fn router(handle: NodeHandle, limits: HttpLimits) -> Router {
    secured_router(handle, limits, Arc::default())
}

/// The whole interface to the node behind `handle`, for those whom `security` lets in.
pub fn secured_router(handle: NodeHandle, limits: HttpLimits, security: Arc<Security>) -> Router {
    let streams = Arc::new(Semaphore::new(limits.streams));
    let (limits, applying) = (Arc::new(limits), Arc::default());
    let api = Api { handle, limits, security, applying, streams };
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
        .route("/v1/jobs/{id}/logs", get(events::logs))
        .route("/v1/jobs/{id}/cancel", post(changes::cancel))
        .route("/v1/jobs/{id}/retry", post(changes::retry))
        .route("/v1/jobs/{id}/signals/{name}", post(changes::signal))
        .route("/v1/pipelines/{name}/diff", get(definitions::diff).post(definitions::compare))
        .route("/v1/pipelines/{name}/graph", get(definitions::graph))
        .route("/v1/pipelines/{name}/rollback", post(definitions::roll_back))
        .route("/v1/pipelines/{name}/recover", post(local::recover))
        .route("/v1/pipeline.schema.json", get(definitions::schema))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/v1/handlers", get(handlers::list))
        .route(
            "/v1/handlers/{phase}",
            get(handlers::show).put(handlers::put).delete(handlers::remove),
        )
        .route("/v1/secrets", get(secrets::list))
        .route(
            "/v1/secrets/{namespace}/{secret}",
            get(secrets::show).put(secrets::put).delete(secrets::remove),
        )
        .route("/v1/pipelines/{name}/events", get(events::of_pipeline))
        .route("/v1/events", get(events::of_cluster))
        .route("/v1/nodes", get(cluster::nodes))
        .route("/v1/nodes/{id}/drain", post(cluster::drain))
        .route("/v1/phases", get(cluster::phases))
        .route("/v1/status", get(cluster::status))
        .route("/v1/history", get(history::history))
        .route("/v1/backups", post(local::back_up))
        .route("/v1/facts", get(local::facts))
        .route("/v1/node/log-levels", get(local::levels).put(local::set_levels))
        .route("/v1/notify", get(notify::list))
        .route("/v1/notify/{name}/test", post(notify::test))
        .route("/v1/version", get(cluster::version))
        .route("/v1/trust", get(trust::show))
        .route("/v1/trust/revocations", post(trust::revoke))
        .route("/v1/trust/successions", post(trust::succeed))
        .route("/healthz", get(cluster::health))
        .route("/metrics", get(cluster::metrics))
        .merge(page::routes())
        .merge(reader::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn(fields::layer))
        .layer(middleware::from_fn(conditional::layer))
        .layer(middleware::from_fn(encoding::bound))
        .layer(encoding::unpack())
        .layer(middleware::from_fn(encoding::accept))
        .layer(guard)
        .layer(middleware::from_fn(request_id::layer))
        .layer(encoding::pack())
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
    serve_with(listener, None, router, cancel).await
}

/// The same, by TLS if there is any.
pub(crate) async fn serve_with(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
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
        let one = Serving { http: http.clone(), router: router.clone(), watcher: open.watcher() };
        let (tls, cancel) = (tls.clone(), cancel.clone());
        tokio::spawn(async move {
            match tls {
                None => one.run(connection, Peer { address, certificate: None }).await,
                Some(tls) => tokio::select! {
                    // Nothing was asked yet.
                    () = cancel.cancelled() => {}
                    secured = handshake(&tls, connection, address) => {
                        if let Some((connection, peer)) = secured {
                            one.run(connection, peer).await;
                        }
                    }
                },
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(STOP_GRACE, open.shutdown()).await.is_err() {
        tracing::warn!("requests were still under way when the interface ended");
    }
    Ok(())
}

/// How one connection is served.
struct Serving {
    http: http1::Builder,
    router: Router,
    watcher: Watcher,
}

impl Serving {
    async fn run(self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let address = peer.address;
        let service = TowerToHyperService::new(self.router);
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            service.call(request)
        });
        let serving = self.watcher.watch(self.http.serve_connection(TokioIo::new(io), service));
        if let Err(error) = serving.await {
            tracing::debug!(%address, %error, "a connection ended");
        }
    }
}

/// Agrees on TLS with a client, and learns who it is.
async fn handshake<C: AsyncRead + AsyncWrite + Unpin>(
    tls: &ServerTls,
    connection: C,
    address: SocketAddr,
) -> Option<(tokio_rustls::server::TlsStream<C>, Peer)> {
    let accept = TlsAcceptor::from(tls.config()).accept(connection);
    let secured = match timeout(HANDSHAKE_TIMEOUT, accept).await {
        Ok(Ok(secured)) => secured,
        Ok(Err(error)) => {
            tracing::debug!(%address, %error, "a client and this node did not agree on TLS");
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "a client was too slow with TLS");
            return None;
        }
    };
    let shown = secured.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let certificate = shown.cloned().map(CertificateDer::into_owned);
    Some((secured, Peer { address, certificate }))
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
