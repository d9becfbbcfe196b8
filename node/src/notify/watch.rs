//! Follows events of the cluster and of pipelines, and makes notices of them.
//!
//! One task follows the cluster as this node sees it, one each pipeline that somebody wants to hear of.
//! A stream outlives failovers; what it misses is counted and logged.

use std::collections::{BTreeMap, BTreeSet};

use carbonmesh_protocol::{
    event::{Event, EventKind, EventsFrom, Told, What},
    id::{NodeId, Term},
    name::Name,
    view::{ClusterView, PartitionView, PipelineView},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{Kind, Notice, Notifier};
use crate::{
    follow::{self, Stream},
    handle::NodeHandle,
    http::view::{Names, NodeRef},
    metrics::Metrics,
};

/// Begins to follow what somebody wants to hear of.
pub(super) fn start(notifier: &Notifier, handle: &NodeHandle, cancel: &CancellationToken) {
    const CLUSTER: [Kind; 5] = [
        Kind::Coordinator,
        Kind::CoordinatorLost,
        Kind::NodeDown,
        Kind::NodeRetired,
        Kind::NodeReturned,
    ];
    if CLUSTER.iter().any(|kind| notifier.wants_kind(*kind)) {
        let following = cluster(notifier.clone(), handle.clone());
        tokio::spawn(cancel.clone().run_until_cancelled_owned(following));
    }
    let kinds: Vec<EventKind> =
        [(Kind::Dead, EventKind::Dead), (Kind::AttemptFailed, EventKind::AttemptFailed)]
            .into_iter()
            .filter(|(kind, _)| notifier.wants_kind(*kind))
            .map(|(_, kind)| kind)
            .collect();
    if !kinds.is_empty() {
        let (all, wanting) = (notifier.clone(), notifier.clone());
        let metrics = handle.metrics().clone();
        let told = move |pipeline: &Name, event: &Event| {
            if let What::Gap { missed, why } = &event.what {
                missing(&metrics, Some(pipeline), *missed, why.text());
            } else if let Some(notice) = of_pipeline(pipeline, event) {
                all.tell(&notice);
            }
        };
        let wants = move |pipeline: &PipelineView, _: &PartitionView| {
            let name = pipeline.definition.name.as_str();
            wanting.targets().iter().any(|target| target.wants_pipeline(name))
        };
        let kinds = kinds.into_iter().collect();
        let following = follow::pipelines(handle.clone(), kinds, wants, told);
        tokio::spawn(cancel.clone().run_until_cancelled_owned(following));
    }
}

fn missing(metrics: &Metrics, pipeline: Option<&Name>, missed: Option<u64>, why: &str) {
    let pipeline = pipeline.map_or("", Name::as_str);
    metrics.events_missed();
    warn!(pipeline, ?missed, why, "events are missing: nobody is notified of them");
}

/// What an event of a pipeline is told as.
fn of_pipeline(pipeline: &Name, event: &Event) -> Option<Notice> {
    let about = &event.about;
    let (job, token) = (about.job?.to_string(), event.token.to_string());
    let phase = about.phase.as_ref().map(Name::to_string);
    let (kind, error, summary) = match &event.what {
        // The job whose item it is says by itself what that means for it.
        What::Dead { .. } if about.part_of.is_some() => return None,
        What::Dead { error } => (Kind::Dead, error, format!("job {job} of {pipeline} has failed")),
        What::AttemptFailed { error, .. } => {
            let at = phase.as_deref().unwrap_or_default();
            let summary = format!("an attempt of {at} has failed, for job {job} of {pipeline}");
            (Kind::AttemptFailed, error, summary)
        }
        _ => return None,
    };
    Some(Notice {
        pipeline: Some(pipeline.to_string()),
        job: Some(job),
        phase,
        attempt: about.attempt,
        error: Some(error.to_string()),
        ..Notice::new(kind, &[pipeline.as_str(), &token], event.at_ms, summary)
    })
}

/// What is known of the cluster, to tell what is new.
#[derive(Default)]
struct Known {
    coordinators: BTreeMap<Name, (NodeId, Term)>,
    /// Pipelines with partitions: what is told of them does not say of which.
    split: BTreeSet<Name>,
    names: Names,
}

impl Known {
    fn learn(&mut self, view: &ClusterView) {
        self.names = Names::of(&view.members);
        let split = view.pipelines.iter().filter(|pipeline| pipeline.partitions.len() > 1);
        self.split = split.map(|pipeline| pipeline.definition.name.clone()).collect();
    }

    /// What an event of the cluster is told as.
    fn notice(&mut self, event: &Event) -> Option<Notice> {
        let token = event.token.to_string();
        match &event.what {
            What::CoordinatorSeen { pipeline, .. } | What::CoordinatorLost { pipeline }
                if self.split.contains(pipeline) =>
            {
                None
            }
            What::CoordinatorSeen { pipeline, node, term } => {
                let before = self.coordinators.insert(pipeline.clone(), (*node, *term));
                let (before, _) = before.filter(|(_, before)| before != term)?;
                let (was, is) = (self.names.node(before), self.names.node(*node));
                let summary = match before == *node {
                    true => format!("{} coordinates {pipeline} in a new term", called(&is)),
                    false => {
                        format!(
                            "{} coordinates {pipeline} in place of {}",
                            called(&is),
                            called(&was)
                        )
                    }
                };
                // All nodes see the same term: whoever tells it, it is one notification.
                let names = [pipeline.as_str(), &term.counter.to_string(), &is.id];
                Some(Notice {
                    pipeline: Some(pipeline.to_string()),
                    node: Some(is.clone()),
                    term: Some(term.to_string()),
                    ..Notice::new(Kind::Coordinator, &names, event.at_ms, summary)
                })
            }
            What::CoordinatorLost { pipeline } => {
                let summary = format!("nobody is known to coordinate {pipeline}");
                let names = [pipeline.as_str(), &token];
                let notice = Notice::new(Kind::CoordinatorLost, &names, event.at_ms, summary);
                Some(Notice { pipeline: Some(pipeline.to_string()), ..notice })
            }
            What::NodeDown(told) => Some(of_node(Kind::NodeDown, told, event, "cannot be reached")),
            What::NodeRetired(told) => {
                let what = "was away for so long that its copies are made elsewhere";
                Some(of_node(Kind::NodeRetired, told, event, what))
            }
            What::NodeReturned(told) => {
                Some(of_node(Kind::NodeReturned, told, event, "can be reached again"))
            }
            _ => None,
        }
    }
}

fn of_node(kind: Kind, told: &Told, event: &Event, what: &str) -> Notice {
    let name = Some(told.name.to_string()).filter(|name| !name.is_empty());
    let node = NodeRef { id: format!("{:#}", told.node), name };
    let summary = format!("node {} {what}", called(&node));
    let names = [node.id.as_str(), &event.token.to_string()];
    Notice { node: Some(node.clone()), ..Notice::new(kind, &names, event.at_ms, summary) }
}

fn called(node: &NodeRef) -> &str {
    node.name.as_deref().unwrap_or(&node.id)
}

/// Follows the cluster as this node sees it.
async fn cluster(notifier: Notifier, handle: NodeHandle) {
    let kinds = [
        EventKind::CoordinatorSeen,
        EventKind::CoordinatorLost,
        EventKind::NodeDown,
        EventKind::NodeRetired,
        EventKind::NodeReturned,
    ];
    let kinds = kinds.into_iter().collect();
    let mut stream = Stream::new(handle.clone(), None, kinds, EventsFrom::Latest);
    let mut known = Known::default();
    let mut is_new = true;
    while let Ok(events) = stream.next().await {
        if (is_new || events.iter().any(|it| matches!(it.what, What::CoordinatorSeen { .. })))
            && let Some(view) = follow::view(&handle).await
        {
            known.learn(&view);
            // Behind the place from which events are read: no change falls between.
            if is_new {
                for pipeline in view.pipelines {
                    if let Some(coordinator) = pipeline.coordinator {
                        known.coordinators.insert(pipeline.definition.name, coordinator);
                    }
                }
                is_new = false;
            }
        }
        for event in &events {
            if let What::Gap { missed, why } = &event.what {
                missing(handle.metrics(), None, *missed, why.text());
            } else if let Some(notice) = known.notice(event) {
                notifier.tell(&notice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::event::{About, EventToken};

    use super::*;

    fn event(number: u64, what: What) -> Event {
        let term = Term { counter: 1, node: NodeId::from_bytes([1; 16]), boot: 1 };
        let about = About::default();
        Event { token: EventToken { term, number }, at_ms: 1, about, what }
    }

    fn seen(node: u8, counter: u64) -> What {
        let node = NodeId::from_bytes([node; 16]);
        let term = Term { counter, node, boot: 1 };
        What::CoordinatorSeen { pipeline: "p".parse().unwrap(), node, term }
    }

    #[test]
    fn only_another_term_is_a_change_and_it_is_one_whoever_tells_it() {
        let (mut here, mut there) = (Known::default(), Known::default());
        assert_eq!(here.notice(&event(1, seen(1, 1))), None, "the first that is known");
        assert_eq!(here.notice(&event(2, seen(1, 1))), None, "the same again");
        let lost = What::CoordinatorLost { pipeline: "p".parse().unwrap() };
        let lost = here.notice(&event(3, lost)).unwrap();
        assert_eq!((lost.kind, lost.pipeline.as_deref()), (Kind::CoordinatorLost, Some("p")));
        let change = here.notice(&event(4, seen(2, 2))).unwrap();
        assert_eq!((change.kind, change.node.unwrap().id), (Kind::Coordinator, "02".repeat(16)));
        assert!(change.summary.contains("in place of"), "{}", change.summary);
        there.notice(&event(70, seen(1, 1)));
        assert_eq!(there.notice(&event(71, seen(2, 2))).unwrap().id, change.id);
        let again = here.notice(&event(5, seen(2, 3))).unwrap();
        assert!(again.summary.contains("new term") && again.id != change.id);
    }

    #[test]
    fn items_are_told_by_the_job_that_they_are_parts_of() {
        let pipeline: Name = "p".parse().unwrap();
        let mut dead = event(1, What::Dead { error: "no".into() });
        assert_eq!(of_pipeline(&pipeline, &dead), None, "of no job");
        dead.about.job = Some(carbonmesh_protocol::id::JobId::MAX);
        let notice = of_pipeline(&pipeline, &dead).unwrap();
        assert_eq!((notice.kind, notice.error.as_deref()), (Kind::Dead, Some("no")));
        dead.about.part_of = dead.about.job;
        assert_eq!(of_pipeline(&pipeline, &dead), None);
    }
}
