//! Enqueues one job.

use std::{future::IntoFuture, pin::Pin, time::Duration};

use bytes::Bytes;
use reqwest::Method;
use serde::Serialize;

use crate::{
    Client, Error, Job, Receipt,
    send::{Again, Call},
};

/// A job that is about to be enqueued; `.await` does it.
#[derive(Clone, Debug)]
#[must_use = "a job is enqueued by `.await`"]
pub struct Enqueue {
    client: Client,
    pipeline: String,
    instructions: Result<Bytes, String>,
    key: Option<String>,
    traceparent: Option<String>,
    options: Options,
}

/// What may be said of jobs beside their instructions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options(Vec<(&'static str, String)>);

impl Options {
    pub(crate) fn set(&mut self, name: &'static str, value: String) {
        self.0.retain(|(known, _)| *known != name);
        self.0.push((name, value));
    }

    /// As parameters of a query.
    pub(crate) fn query<'a>(&self) -> Vec<(&'a str, String)> {
        self.0.iter().map(|(name, value)| (*name, value.clone())).collect()
    }
}

/// As nodes read it.
pub(crate) fn milliseconds(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

impl Client {
    /// Enqueues a job; its instructions have to be a struct or a map.
    ///
    /// ```no_run
    /// # async fn f(client: carbonmesh_client::Client) -> Result<(), carbonmesh_client::Error> {
    /// use serde_json::json;
    ///
    /// let receipt = client
    ///     .enqueue("images", &json!({ "path": "a.png" }))
    ///     .key("a.png")
    ///     .priority(5)
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn enqueue<T: Serialize + ?Sized>(&self, pipeline: &str, instructions: &T) -> Enqueue {
        Enqueue {
            client: self.clone(),
            pipeline: pipeline.to_owned(),
            instructions: serde_json::to_vec(instructions)
                .map(Bytes::from)
                .map_err(|error| error.to_string()),
            key: None,
            traceparent: None,
            options: Options::default(),
        }
    }
}

impl Enqueue {
    /// Jobs of one pipeline that have one key are one job. One is made up unless given, so that a job
    /// whose receipt was lost can be sent again.
    pub fn key(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// The span that it is enqueued within: a `traceparent` of W3C Trace Context. What nodes and phases
    /// trace of the job belongs to it; nodes ignore one that is malformed.
    pub fn traceparent(mut self, traceparent: &str) -> Self {
        self.traceparent = Some(traceparent.to_owned());
        self
    }

    /// Of what waits for the same phase, the higher goes first: -100 to 100.
    pub fn priority(mut self, priority: i8) -> Self {
        self.options.set("priority", priority.to_string());
        self
    }

    /// It does not begin before this is over.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.options.set("delay", milliseconds(delay));
        self
    }

    /// It does not begin before this moment (RFC 3339).
    pub fn run_at(mut self, moment: &str) -> Self {
        self.options.set("run_at", moment.to_owned());
        self
    }

    /// If it has not ended by then, it is a dead letter.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.set("timeout", milliseconds(timeout));
        self
    }

    /// If it has not ended at this moment (RFC 3339), it is a dead letter.
    pub fn deadline(mut self, moment: &str) -> Self {
        self.options.set("deadline", moment.to_owned());
        self
    }

    /// Enqueues it, and waits until it has ended.
    ///
    /// # Errors
    /// It was not accepted, or has not ended in time; it goes on then.
    pub async fn wait(self, timeout: Duration) -> Result<Job, Error> {
        let client = self.client.clone();
        let receipt = self.await?;
        client.wait(&receipt.id, timeout).await
    }

    async fn send(self) -> Result<Receipt, Error> {
        let Self { client, pipeline, instructions, key, traceparent, options } = self;
        let json = instructions.map_err(|reason| Error::setting("instructions", reason))?;
        let path = ["pipelines", pipeline.as_str(), "jobs"];
        let mut call = Call::new(Method::POST, path, Again::Always).json(json);
        call.query.extend(options.query());
        call.key = Some(key.unwrap_or_else(random_key));
        call.traceparent = traceparent;
        client.send.document(&call).await
    }
}

fn random_key() -> String {
    format!("{:032x}", rand::random::<u128>())
}

impl IntoFuture for Enqueue {
    type Output = Result<Receipt, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}
