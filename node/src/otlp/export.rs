//! Sends the traces of jobs that have ended, and of those that were taken here, in batches; what the collector
//! does not take is dropped and counted, and nothing waits for it.

use std::time::Duration;

use carbonmesh_protocol::{
    event::{Event, EventKind},
    id::JobId,
    io::{Request, Response},
    name::Name,
    view::JobView,
};
use reqwest::{Client, Url, header::CONTENT_TYPE};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    spans,
    taken::{Taken, Tells},
};
use crate::{
    follow,
    handle::NodeHandle,
    results::post::{self, Unsent},
};

/// How many jobs may wait to be told.
pub(super) const WAITING: usize = 2048;

/// How many jobs one request tells, and for how long more are waited for.
const BATCH: usize = 64;
const GATHER: Duration = Duration::from_millis(500);

/// How long a collector may take to answer, and how often a batch is tried.
const TIMEOUT: Duration = Duration::from_secs(10);
const TRIES: u32 = 4;
const BACKOFF: Duration = Duration::from_millis(500);

/// The longest wait between two tries.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What a collector is to be told of.
#[derive(Debug)]
pub(super) enum Told {
    /// A job that has ended.
    Ended(JobId),
    /// One that was taken here.
    Taken(Box<Taken>),
}

/// Begins to tell a collector of the jobs that end while this node coordinates their pipelines, and of those
/// that come through it.
///
/// # Errors
/// There is no HTTP client to be had.
pub(crate) fn start(
    endpoint: Url,
    handle: &NodeHandle,
    cancel: &CancellationToken,
) -> Result<(), String> {
    let (ended, waiting) = mpsc::channel(WAITING);
    for outcome in ["exported", "dropped", "unsampled"] {
        handle.metrics().traced(outcome, 0);
    }
    let exporter =
        Exporter { http: post::client(TIMEOUT)?, endpoint, handle: handle.clone(), failing: false };
    tokio::spawn(cancel.clone().run_until_cancelled_owned(exporter.run(waiting)));
    handle.tell_taken(Tells::new(ended.clone(), handle.metrics().clone()));
    let kinds = [EventKind::Succeeded, EventKind::Dead, EventKind::Cancelled];
    let (node, metrics) = (handle.node(), handle.metrics().clone());
    let told = move |_: &Name, event: &Event| {
        // Each job is told once: by the node that coordinated its end.
        let Some(job) = event.about.job.filter(|_| event.token.term.node == node) else { return };
        if ended.try_send(Told::Ended(job)).is_err() {
            metrics.traced("dropped", 1);
        }
    };
    let following = follow::pipelines(
        handle.clone(),
        kinds.into_iter().collect(),
        move |_, partition| partition.coordinator.is_some_and(|(it, _)| it == node),
        told,
    );
    tokio::spawn(cancel.clone().run_until_cancelled_owned(following));
    Ok(())
}

struct Exporter {
    http: Client,
    endpoint: Url,
    handle: NodeHandle,
    /// Whether the last batch was not taken: it is logged when that changes.
    failing: bool,
}

impl Exporter {
    async fn run(mut self, mut waiting: mpsc::Receiver<Told>) {
        while let Some(first) = waiting.recv().await {
            let mut told = vec![first];
            let gather = async {
                while told.len() < BATCH
                    && let Some(next) = waiting.recv().await
                {
                    told.push(next);
                }
            };
            // Whether the time is over or the batch is full: it goes.
            let _ = timeout(GATHER, gather).await;
            let (mut views, mut taken) = (Vec::new(), Vec::new());
            for one in told {
                let job = match one {
                    Told::Taken(one) => {
                        taken.push(one);
                        continue;
                    }
                    Told::Ended(job) => job,
                };
                match self.handle.request(Request::Job { job, wait: None }).await {
                    // Whoever began the trace does not keep it: parts of it alone are of no use.
                    Ok(Response::Job(view)) if view.trace.is_some_and(|it| !it.is_sampled()) => {
                        self.handle.metrics().traced("unsampled", 1);
                    }
                    Ok(Response::Job(view)) => views.push(view),
                    Ok(_) => self.handle.metrics().traced("dropped", 1),
                    Err(_) => return,
                }
            }
            if !views.is_empty() || !taken.is_empty() {
                self.send(&views, &taken).await;
            }
        }
    }

    async fn send(&mut self, jobs: &[Box<JobView>], taken: &[Box<Taken>]) {
        let node = format!("{:#}", self.handle.node());
        let body = spans::request(&node, jobs, taken).to_string();
        let mut tries = 1;
        let failed = loop {
            let request = self.http.post(self.endpoint.clone());
            let request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
            match post::judged(self.endpoint.as_str(), request.send().await) {
                Ok(_) => break None,
                Err(Unsent::Later(_, after)) if tries < TRIES => {
                    let wait = BACKOFF.saturating_mul(1 << (tries - 1));
                    sleep(wait.max(after.unwrap_or_default()).min(LONGEST_WAIT)).await;
                    tries += 1;
                }
                Err(Unsent::Later(error, _) | Unsent::Never(error)) => break Some(error),
            }
        };
        let outcome = if failed.is_none() { "exported" } else { "dropped" };
        self.handle.metrics().traced(outcome, jobs.len() as u64);
        if let Some(error) = &failed
            && !self.failing
        {
            warn!(error, "traces are not taken: they are dropped until they are");
        }
        self.failing = failed.is_some();
    }
}
