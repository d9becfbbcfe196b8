//! Follows events from within the node, as its clients do over HTTP.
//!
//! A stream outlives failovers: while nobody coordinates it waits, and what it misses meanwhile comes as
//! a gap.

use std::{collections::BTreeSet, time::Duration};

use carbonmesh_protocol::{
    event::{Event, EventKinds, EventPage, EventQuery, EventsFrom},
    io::{Refusal, Request, Response},
    name::Name,
    view::{ClusterView, PipelineView},
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
    query: EventQuery,
}

/// There will be nothing more: the pipeline is gone, or the node stops.
#[derive(Debug)]
pub(crate) struct Over;

impl Stream {
    /// Of a pipeline, or of the cluster.
    pub(crate) fn new(
        handle: NodeHandle,
        pipeline: Option<Name>,
        kinds: EventKinds,
        from: EventsFrom,
    ) -> Self {
        let query = EventQuery { from, job: None, kinds, limit: 500, wait: None };
        Self { handle, pipeline, query }
    }

    /// The next events. The first answer comes at once: from then on none is missed in silence.
    pub(crate) async fn next(&mut self) -> Result<Vec<Event>, Over> {
        loop {
            let asked = Instant::now();
            let request = Request::Events { pipeline: self.pipeline.clone(), query: self.query };
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
                Ok(Response::Refused(Refusal::UnknownPipeline { .. })) | Err(_) => {
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

/// Follows pipelines for as long as it is polled, those that come later too: a pipeline from when
/// `wants` first says so, until it is gone. What was before the first look is left out.
pub(crate) async fn pipelines(
    handle: NodeHandle,
    kinds: EventKinds,
    wants: impl Fn(&ClusterView, &PipelineView) -> bool,
    told: impl Fn(&Name, &Event) + Clone + Send + Sync + 'static,
) {
    let (mut followed, mut followers) = (BTreeSet::new(), JoinSet::new());
    let mut from = EventsFrom::Latest;
    loop {
        if let Some(view) = view(&handle).await {
            for pipeline in &view.pipelines {
                let name = &pipeline.definition.name;
                if followed.contains(name) || !wants(&view, pipeline) {
                    continue;
                }
                followed.insert(name.clone());
                let stream = Stream::new(handle.clone(), Some(name.clone()), kinds, from);
                followers.spawn(one(stream, name.clone(), told.clone()));
            }
            from = EventsFrom::Oldest;
        }
        let look = Instant::now() + LOOK_EVERY;
        loop {
            tokio::select! {
                () = sleep_until(look) => break,
                Some(ended) = followers.join_next(), if !followers.is_empty() => {
                    // It may come again under its name.
                    if let Ok(name) = ended {
                        followed.remove(&name);
                    }
                }
            }
        }
    }
}

async fn one(mut stream: Stream, name: Name, told: impl Fn(&Name, &Event)) -> Name {
    while let Ok(events) = stream.next().await {
        events.iter().for_each(|event| told(&name, event));
    }
    name
}
