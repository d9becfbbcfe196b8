//! Queues that are too old. Each node knows those of the pipelines that it coordinates; a node that has
//! to tell of them asks the others over a stream of its own.
//!
//! ```text
//! asking node ── one byte ──► other node
//!             ◄── a line of JSON: its queues, the oldest first
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use carbonmesh_protocol::{
    id::NodeId,
    io::{Request, Response},
};
use futures::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, StreamExt, io::BufReader};
use libp2p::{PeerId, StreamProtocol};
use libp2p_stream::IncomingStreams;
use serde::{Deserialize, Serialize};
use tokio::{
    sync::Semaphore,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Kind, Notice, Notifier, Target};
use crate::{
    clock,
    document::format_duration,
    handle::NodeHandle,
    net::{Streams, node_id_of},
    trust::Trust,
};

/// The stream on which a node is asked for its queues.
pub(crate) const AGES: StreamProtocol = StreamProtocol::new("/carbonmesh/1/queue-ages");

/// How often queues are looked at; more often if a limit is shorter than four times that.
const EVERY: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(100);

/// How long a peer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer that is read, in bytes, and how many queues are told.
const ANSWER_BYTES: u64 = 1 << 20;
const QUEUES: usize = 2000;

/// How many are asked, and how many answers are given, at once.
const AT_ONCE: usize = 16;

/// A queue that is not empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct QueueAge {
    pipeline: String,
    step: String,
    depth: u64,
    oldest_ms: u64,
}

/// The queues of the pipelines that this node coordinates, the oldest first.
async fn here(handle: &NodeHandle) -> Vec<QueueAge> {
    let Ok(figures) = handle.figures().await else { return Vec::new() };
    let led = figures.groups.iter().filter(|group| group.coordinates);
    let queues = led.flat_map(|group| {
        group.queues.iter().filter(|queue| queue.depth > 0).map(|queue| QueueAge {
            pipeline: group.pipeline.to_string(),
            step: queue.step.to_string(),
            depth: queue.depth,
            oldest_ms: u64::try_from(queue.oldest.as_millis()).unwrap_or(u64::MAX),
        })
    });
    let mut queues: Vec<QueueAge> = queues.collect();
    queues.sort_by_key(|queue| std::cmp::Reverse(queue.oldest_ms));
    queues.truncate(QUEUES);
    queues
}

/// Answers whoever of the cluster asks, until cancelled. With certificates, only those who serve
/// clients are told.
pub(crate) async fn answer(
    handle: NodeHandle,
    trust: Option<Trust>,
    mut asked: IncomingStreams,
    cancel: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let (peer, stream) = tokio::select! {
            () = cancel.cancelled() => return,
            next = asked.next() => match next {
                Some(next) => next,
                None => return,
            },
        };
        let may_know = trust.as_ref().is_none_or(|trust| {
            let rights = node_id_of(&peer).and_then(|node| trust.rights_of(node));
            rights.is_some_and(|rights| rights.serve_clients())
        });
        if !may_know {
            debug!(%peer, "a peer asked for queues that are not for it");
            continue;
        }
        // Those for whom there is no place wait with their streams open; libp2p bounds these.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let handle = handle.clone();
        tokio::spawn(async move {
            let _place = place;
            if !matches!(timeout(ANSWER_TIMEOUT, answer_one(&handle, stream)).await, Ok(Ok(()))) {
                debug!(%peer, "a peer was not told of queues");
            }
        });
    }
}

async fn answer_one(handle: &NodeHandle, mut stream: libp2p::Stream) -> std::io::Result<()> {
    let mut word = [0; 1];
    stream.read_exact(&mut word).await?;
    let line = serde_json::to_string(&here(handle).await)?;
    stream.write_all(line.as_bytes()).await?;
    stream.write_all(b"\n").await?;
    stream.close().await
}

async fn ask(others: &Streams, peer: PeerId) -> Vec<QueueAge> {
    let asked = async {
        // Older releases do not tell.
        let mut stream = others.open(peer, AGES).await.ok()?;
        stream.write_all(b"?").await.ok()?;
        stream.flush().await.ok()?;
        let (mut lines, mut line) = (BufReader::new(stream.take(ANSWER_BYTES)), String::new());
        lines.read_line(&mut line).await.ok()?;
        serde_json::from_str::<Vec<QueueAge>>(&line).ok()
    };
    timeout(ANSWER_TIMEOUT, asked).await.ok().flatten().unwrap_or_default()
}

/// Who coordinates something, but this node.
async fn coordinators(handle: &NodeHandle) -> BTreeSet<NodeId> {
    let Ok(Response::Cluster(view)) = handle.request(Request::Cluster).await else {
        return BTreeSet::new();
    };
    let own = view.node;
    let partitions = view.pipelines.iter().flat_map(|pipeline| &pipeline.partitions);
    let others = partitions.filter_map(|partition| Some(partition.coordinator?.0));
    others.filter(|node| *node != own).collect()
}

/// All queues of the cluster that can be heard of.
async fn everywhere(handle: &NodeHandle, others: Option<&Streams>) -> Vec<QueueAge> {
    let mut queues = here(handle).await;
    if let Some(others) = others {
        let asked = coordinators(handle).await;
        let peers = others.peers().into_iter();
        let peers = peers.filter(|peer| node_id_of(peer).is_some_and(|it| asked.contains(&it)));
        let answers = futures::stream::iter(peers).map(|peer| ask(others, peer));
        let answers: Vec<_> = answers.buffer_unordered(AT_ONCE).collect().await;
        queues.extend(answers.into_iter().flatten());
    }
    queues
}

/// Begins to look, if a target has a limit.
pub(super) fn start(
    notifier: &Notifier,
    handle: &NodeHandle,
    others: Option<Streams>,
    cancel: &CancellationToken,
) {
    let limit = |target: &Arc<Target>| Some((target.settings().queue_age?, target.clone()));
    let mut limits: Vec<Limit> = notifier
        .targets()
        .iter()
        .filter_map(limit)
        .map(|(limit, target)| Limit { limit, target, over: BTreeMap::new() })
        .collect();
    let Some(shortest) = limits.iter().map(|limit| limit.limit).min() else { return };
    let mut every = interval((shortest / 4).clamp(OFTEN, EVERY));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let handle = handle.clone();
    let looking = async move {
        loop {
            every.tick().await;
            let queues = everywhere(&handle, others.as_ref()).await;
            for limit in &mut limits {
                for notice in limit.look(&queues, clock::unix_ms()) {
                    limit.target.tell(notice);
                }
            }
        }
    };
    tokio::spawn(cancel.clone().run_until_cancelled_owned(looking));
}

/// What one target wants to hear of.
struct Limit {
    limit: Duration,
    target: Arc<Target>,
    /// Queues that were told of, and since when they are too old (ms since 1970).
    over: BTreeMap<(String, String), u64>,
}

impl Limit {
    /// What is new: queues that became too old, and those that are so no more.
    fn look(&mut self, queues: &[QueueAge], now_ms: u64) -> Vec<Notice> {
        let mut notices = Vec::new();
        let limit_ms = u64::try_from(self.limit.as_millis()).unwrap_or(u64::MAX);
        let mine = queues.iter().filter(|queue| self.target.wants_pipeline(&queue.pipeline));
        let old: Vec<&QueueAge> = mine.filter(|queue| queue.oldest_ms > limit_ms).collect();
        for queue in &old {
            let key = (queue.pipeline.clone(), queue.step.clone());
            if self.over.contains_key(&key) {
                continue;
            }
            self.over.insert(key, now_ms);
            let age = format_duration(Duration::from_secs(queue.oldest_ms / 1000));
            let QueueAge { pipeline, step, depth, .. } = queue;
            let summary = format!("{depth} wait for {step} of {pipeline}, the oldest for {age}");
            notices.push(self.notice(Kind::QueueAge, pipeline, step, now_ms, summary, Some(queue)));
        }
        let is_old = |key: &(String, String)| {
            old.iter().any(|queue| queue.pipeline == key.0 && queue.step == key.1)
        };
        let over: Vec<_> = self.over.keys().filter(|key| !is_old(key)).cloned().collect();
        for key in over {
            self.over.remove(&key);
            let (pipeline, step) = key;
            let summary = format!("the queue of {step} of {pipeline} is not too old any more");
            notices.push(self.notice(
                Kind::QueueRecovered,
                &pipeline,
                &step,
                now_ms,
                summary,
                None,
            ));
        }
        notices.retain(|notice| self.target.wants(notice));
        notices
    }

    fn notice(
        &self,
        kind: Kind,
        pipeline: &str,
        step: &str,
        now_ms: u64,
        summary: String,
        queue: Option<&QueueAge>,
    ) -> Notice {
        let names = [self.target.name(), pipeline, step, &now_ms.to_string()];
        Notice {
            pipeline: Some(pipeline.to_owned()),
            phase: Some(step.to_owned()),
            age_s: queue.map(|queue| queue.oldest_ms / 1000),
            limit_s: Some(self.limit.as_secs()),
            depth: queue.map(|queue| queue.depth),
            ..Notice::new(kind, &names, now_ms, summary)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{metrics::Metrics, notify::tests};

    #[tokio::test]
    async fn a_queue_is_told_once_when_it_is_too_old_and_once_when_it_is_not() {
        let settings = tests::webhook("http://127.0.0.1:1/", |it| {
            it.level = super::super::Level::Info;
            it.pipelines = vec!["p*".parse().unwrap()];
        });
        let target = Arc::new(Target::new(settings, Metrics::default()).unwrap().0);
        let mut limit = Limit { limit: Duration::from_secs(60), target, over: BTreeMap::new() };
        let queue = |pipeline: &str, oldest_ms| QueueAge {
            pipeline: pipeline.to_owned(),
            step: "s".to_owned(),
            depth: 3,
            oldest_ms,
        };
        assert!(limit.look(&[queue("p", 60_000), queue("q", 90_000)], 1).is_empty());
        let told = limit.look(&[queue("p", 61_000)], 2);
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].kind, told[0].age_s, told[0].limit_s),
            (Kind::QueueAge, Some(61), Some(60))
        );
        assert!(limit.look(&[queue("p", 70_000)], 3).is_empty());
        let told = limit.look(&[], 4);
        assert_eq!((told.len(), told[0].kind), (1, Kind::QueueRecovered));
        assert!(limit.look(&[], 5).is_empty());
    }
}
