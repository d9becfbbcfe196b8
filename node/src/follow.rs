//! Follows events from within the node, as its clients do over HTTP.
//!
//! A stream outlives failovers: while nobody coordinates it waits, and what it misses meanwhile comes as
//! a gap.

use std::{collections::BTreeSet, time::Duration};

use carbonmesh_protocol::{
    event::{Event, EventKinds, EventPage, EventQuery, EventsFrom},
    io::{Refusal, Request, Response},
    name::Name,
    view::{ClusterView, PartitionView, PipelineView},
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::handle::NodeHandle;

/// How long one question waits.
const WAIT: Duration = Duration::from_secs(10);

/// How long to wait before the node is asked again that could not say.
const AGAIN: Duration = Duration::from_millis(500);

/// How often it is looked for new pipelines.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Reads one stream.
pub(crate) struct Stream {
    handle: NodeHandle,
    pipeline: Option<Name>,
    partition: Option<u16>,
    query: EventQuery,
}

/// There will be nothing more: the pipeline is gone, or the node stops.
#[derive(Debug)]
pub(crate) struct Over;

impl Stream {
    /// Of a pipeline's partition, or of the cluster.
    pub(crate) fn new(
        handle: NodeHandle,
        source: Option<(Name, u16)>,
        kinds: EventKinds,
        from: EventsFrom,
    ) -> Self {
        let query = EventQuery { from, job: None, kinds, limit: 500, wait: None };
        let (pipeline, partition) = source.unzip();
        Self { handle, pipeline, partition, query }
    }

    /// The next events. The first answer comes at once: from then on none is missed in silence.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, Over> {
        loop {
            let asked = Instant::now();
            let (pipeline, partition) = (self.pipeline.clone(), self.partition);
            let request = Request::Events { pipeline, partition, query: self.query };
            match self.handle.request(request).await {
                Ok(Response::Events(page)) => {
                    let EventPage { events, next } = *page;
                    let waited = self.query.wait.replace(WAIT).is_some();
                    self.query.from = EventsFrom::After(next);
                    if !events.is_empty() || !waited {
                        return Ok(events);
                    }
                    // A node that stops answers at once that there is nothing.
                    if asked.elapsed() < WAIT / 2 {
                        sleep(AGAIN).await;
                    }
                }
                Ok(Response::Refused(
                    Refusal::UnknownPipeline { .. } | Refusal::WhichPartition { .. },
                ))
                | Err(_) => {
                    return Err(Over);
                }
                Ok(_) => sleep(AGAIN).await,
            }
        }
    }
}

/// The cluster as the node sees it.
pub(crate) async fn view(handle: &NodeHandle) -> Option<Box<ClusterView>> {
    match handle.request(Request::Cluster).await {
        Ok(Response::Cluster(view)) => Some(view),
        _ => None,
    }
}

/// Follows pipelines for as long as it is polled, those that come later too: each partition from when
/// `wants` first says so, until it is gone. What was before the first look is left out.
pub(crate) async fn pipelines(
    handle: NodeHandle,
    kinds: EventKinds,
    wants: impl Fn(&PipelineView, &PartitionView) -> bool,
    told: impl Fn(&Name, &Event) + Clone + Send + Sync + 'static,
) {
    let (mut followed, mut followers) = (BTreeSet::new(), JoinSet::new());
    let mut from = EventsFrom::Latest;
    loop {
        if let Some(view) = view(&handle).await {
            for pipeline in &view.pipelines {
                for partition in &pipeline.partitions {
                    let source = (pipeline.definition.name.clone(), partition.number);
                    if followed.contains(&source) || !wants(pipeline, partition) {
                        continue;
                    }
                    followed.insert(source.clone());
                    let stream = Stream::new(handle.clone(), Some(source.clone()), kinds, from);
                    followers.spawn(one(stream, source, told.clone()));
                }
            }
            from = EventsFrom::Oldest;
        }
        let look = Instant::now() + LOOK_EVERY;
        loop {
            tokio::select! {
                () = sleep_until(look) => break,
                Some(ended) = followers.join_next(), if !followers.is_empty() => {
                    // It may come again under its name.
                    if let Ok(source) = ended {
                        followed.remove(&source);
                    }
                }
            }
        }
    }
}

async fn one(mut stream: Stream, source: (Name, u16), told: impl Fn(&Name, &Event)) -> (Name, u16) {
    while let Ok(events) = stream.next().await {
        events.iter().for_each(|event| told(&source.0, event));
    }
    source
}
