//! Requests into a running node: what the HTTP interface and embedding programs hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use carbonmesh_protocol::{
    id::NodeId,
    io::{Request, RequestId, Response},
};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::metrics::Metrics;

/// The node has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Stopped {
    /// It did not take the request: nothing was done.
    #[error("the node has stopped")]
    Before,
    /// It had taken the request: that may have been done.
    #[error("the node has stopped before it answered")]
    Unanswered,
}

/// What the driver receives from handles.
#[derive(Debug)]
pub(crate) enum Call {
    /// A request, and where its answer goes.
    Ask { id: RequestId, request: Request, answer: oneshot::Sender<Response> },
    /// Nobody waits for this answer any more.
    Forget(RequestId),
}

/// Talks to a running node; cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    node: NodeId,
    calls: mpsc::Sender<Call>,
    next: Arc<AtomicU64>,
    metrics: Metrics,
}

impl NodeHandle {
    /// A handle that feeds `calls`.
    pub(crate) fn new(node: NodeId, calls: mpsc::Sender<Call>) -> Self {
        Self { node, calls, next: Arc::default(), metrics: Metrics::default() }
    }

    /// What the node counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The node's identity.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Asks the node; dropping the future gives the request up.
    ///
    /// # Errors
    /// The node has stopped.
    pub async fn request(&self, request: Request) -> Result<Response, Stopped> {
        let id = RequestId(self.next.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Ask { id, request, answer }).await.map_err(|_| Stopped::Before)?;
        let forget = Forget { id, calls: &self.calls, armed: true };
        let response = answered.await.map_err(|_| Stopped::Unanswered);
        forget.disarm();
        response
    }
}

/// Tells the node when a request's future is dropped.
struct Forget<'a> {
    id: RequestId,
    calls: &'a mpsc::Sender<Call>,
    armed: bool,
}

impl Forget<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        if self.armed {
            // A full queue may refuse this: the request then ends by its own time-out.
            let _ = self.calls.try_send(Call::Forget(self.id));
        }
    }
}
