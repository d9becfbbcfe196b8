//! Requests into a running node: what the HTTP interface and embedding programs hold.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use carbonmesh_protocol::{
    figures::Figures,
    id::NodeId,
    io::{Request, RequestId, Response},
};
use thiserror::Error;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{history::History, local::Local, metrics::Metrics, otlp::Tells, trust::Trust};

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
    /// What the core counts.
    Figures(oneshot::Sender<Box<Figures>>),
    /// Take no new work; answered when nothing is under way any more.
    Drain(oneshot::Sender<()>),
}

/// Talks to a running node; cheap to clone.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    node: NodeId,
    calls: mpsc::Sender<Call>,
    next: Arc<AtomicU64>,
    metrics: Metrics,
    history: History,
    local: Arc<Local>,
    trust: Option<Trust>,
    /// Who is told of jobs that are taken, if anybody.
    taken: Arc<OnceLock<Tells>>,
}

impl NodeHandle {
    /// A handle that feeds `calls`.
    pub(crate) fn new(node: NodeId, calls: mpsc::Sender<Call>) -> Self {
        let (metrics, history) = (Metrics::default(), History::default());
        let (next, local, taken) = (Arc::default(), Arc::default(), Arc::default());
        Self { node, calls, next, metrics, history, local, trust: None, taken }
    }

    /// The same, of a node that can do and tell this by itself.
    pub(crate) fn with_local(self, local: Local) -> Self {
        Self { local: Arc::new(local), ..self }
    }

    /// What the node can do and tell by itself.
    pub(crate) fn local(&self) -> &Arc<Local> {
        &self.local
    }

    /// The same, for a node with certificates.
    pub(crate) fn with_trust(self, trust: Option<Trust>) -> Self {
        Self { trust, ..self }
    }

    /// The node's certificates, if its cluster has any.
    pub(crate) fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// Jobs that are taken from now on are told of. Only the first who asks for that is told.
    pub(crate) fn tell_taken(&self, tells: Tells) {
        self.taken.get_or_init(|| tells);
    }

    /// What the node counts.
    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What the node has seen within the last day.
    pub(crate) fn history(&self) -> &History {
        &self.history
    }

    /// What the node's core counts, and how far it is behind.
    ///
    /// # Errors
    /// The node has stopped.
    pub async fn figures(&self) -> Result<Box<Figures>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Figures(answer)).await.map_err(|_| Stopped::Before)?;
        answered.await.map_err(|_| Stopped::Unanswered)
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
        let taking = self.taken.get().and_then(|tells| tells.begin(&request));
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Ask { id, request, answer }).await.map_err(|_| Stopped::Before)?;
        let forget = Forget { id, calls: &self.calls, armed: true };
        let response = answered.await.map_err(|_| Stopped::Unanswered);
        forget.disarm();
        if let (Some(taking), Ok(response)) = (taking, &response) {
            taking.end(response);
        }
        response
    }
}

impl NodeHandle {
    /// Lets the node take no new work, and waits until nothing is under way; tells whether that came
    /// within `wait`. It holds until the node is started again.
    ///
    /// # Errors
    /// The node has stopped.
    pub async fn drain(&self, wait: Duration) -> Result<bool, Stopped> {
        let (drained, quiet) = oneshot::channel();
        self.calls.send(Call::Drain(drained)).await.map_err(|_| Stopped::Before)?;
        match timeout(wait, quiet).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(_)) => Err(Stopped::Unanswered),
            Err(_) => Ok(false),
        }
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
