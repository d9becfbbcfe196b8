//! A client of CarbonMesh for programs in Rust: it speaks with the HTTP interface of nodes, and has
//! neither a node's store nor its network in its tree.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use carbonmesh_client::{Client, PipelineSpec};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize)]
//! struct Hello { name: String }
//!
//! #[derive(Deserialize)]
//! struct Greeted { greeting: String }
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), carbonmesh_client::Error> {
//! // One of them is enough; when it goes, the next is asked.
//! let client = Client::builder()
//!     .url("http://10.0.0.1:7400")
//!     .url("http://10.0.0.2:7400")
//!     .build()?;
//! client.apply(&PipelineSpec::new("hello").phase("greet")).await?;
//!
//! let receipt = client.enqueue("hello", &Hello { name: "Ada".to_owned() }).key("order-7").await?;
//! let job = client.wait(&receipt.id, Duration::from_secs(30)).await?;
//! let greeted: Greeted = job.output()?;
//! println!("{} ({} copies)", greeted.greeting, receipt.copies);
//! # Ok(())
//! # }
//! ```
//!
//! # What is tried again
//!
//! A node that is busy or has nobody to turn to says so, and when to come back (`Retry-After`): the
//! client does, with the next of its URLs, for as long as its [patience](ClientBuilder::patience)
//! lasts. Where a connection is lost after a request was sent, nobody knows whether it was done: only
//! what may be done twice is sent again. A job that is enqueued has an idempotency key, one of its own
//! if none was given, so that it may: however often it is sent, it is one job.

mod bulk;
mod cluster;
mod enqueue;
mod error;
mod jobs;
mod model;
mod pipelines;
mod send;
mod spec;

use std::{sync::Arc, time::Duration};

pub use bulk::{Bulk, BulkAnswer};
pub use enqueue::Enqueue;
pub use error::{Error, Problem, ProblemKind};
pub use jobs::JobList;
pub use model::{
    Applied, Attempt, Counts, Invocation, Items, Job, JobState, JobSummary, Liveness, Members,
    Node, NodeRef, Offer, Page, Pipeline, Receipt, Refusing, Status, Version,
};
pub use spec::{PhaseSpec, PipelineSpec};

use send::Sender;

/// Where a node of this machine serves HTTP unless it was told otherwise.
const USUAL: &str = "http://127.0.0.1:7400";

/// A client; cheap to clone, and its clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    send: Arc<Sender>,
}

/// Says how a [`Client`] behaves.
#[derive(Clone, Debug)]
#[must_use = "a client is made by `build`"]
pub struct ClientBuilder {
    urls: Vec<String>,
    token: Option<String>,
    patience: Duration,
    answer_timeout: Duration,
}

impl Client {
    /// A client of one node, such as `http://127.0.0.1:7400`.
    ///
    /// # Errors
    /// That is no URL of a node.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::builder().url(url).build()
    }

    /// Says more of it.
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            urls: Vec::new(),
            token: None,
            patience: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(30),
        }
    }
}

impl ClientBuilder {
    /// One more node that may be asked: the first is, for as long as it answers.
    /// `http://127.0.0.1:7400` unless one is given.
    pub fn url(mut self, url: &str) -> Self {
        self.urls.push(url.to_owned());
        self
    }

    /// Several nodes that may be asked.
    pub fn urls<T: AsRef<str>>(mut self, urls: impl IntoIterator<Item = T>) -> Self {
        self.urls.extend(urls.into_iter().map(|url| url.as_ref().to_owned()));
        self
    }

    /// Sent with each request as `Authorization: Bearer`, for interfaces that ask who it is.
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// For how long what may be tried again is. Default 30 s; zero for never.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long one answer may take, beside the time that a node is asked to wait. Default 30 s:
    /// longer than a node tries to do what it was asked.
    pub fn answer_timeout(mut self, timeout: Duration) -> Self {
        self.answer_timeout = timeout;
        self
    }

    /// The client. It speaks with nobody before it is asked to do something.
    ///
    /// # Errors
    /// Something that was given cannot be used; the error names it.
    pub fn build(mut self) -> Result<Client, Error> {
        if self.urls.is_empty() {
            self.urls.push(USUAL.to_owned());
        }
        let Self { urls, token, patience, answer_timeout } = self;
        let send = Sender::new(&urls, token.as_deref(), patience, answer_timeout)?;
        Ok(Client { send: Arc::new(send) })
    }
}
