//! What this node counts and how far it is behind, for charts and alarms. Reads alone; to be called a few
//! times a minute.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    figures::{Figures, GroupFigures, PeerLag, QueueFigures},
    id::NodeId,
    name::Name,
    record::{JobRecord, Progress},
};

use super::{
    Core,
    group::{Group, PeerSync, Reign, Role},
    ready::ReadyQueue,
};

/// How many of those who come next in a queue are looked at: with very many owners or keys the oldest
/// may not be among them.
const LOOKED_AT: usize = 1000;

impl Core {
    /// The figures at this moment.
    pub fn figures(&self) -> Figures {
        let disk_lag = self.commits.iter().find(|commit| !commit.on_disk);
        let mut groups: BTreeMap<Name, GroupFigures> = BTreeMap::new();
        for one in self.groups.values().filter_map(|group| self.group_figures(group)) {
            // A pipeline's partitions count as one.
            match groups.get_mut(&one.pipeline) {
                Some(known) => known.add(one),
                None => drop(groups.insert(one.pipeline.clone(), one)),
            }
        }
        Figures {
            counted: self.counted,
            unsettled_batches: self.commits.len() as u64,
            disk_lag: disk_lag.map_or(Duration::ZERO, |it| self.now.since(it.sealed_at)),
            lagging: self.peer_lags(),
            groups: groups.into_values().collect(),
        }
    }

    fn peer_lags(&self) -> Vec<PeerLag> {
        let mut lags: BTreeMap<NodeId, PeerLag> = BTreeMap::new();
        for commit in &self.commits {
            for &node in &commit.waiting {
                // The first is the oldest.
                let oldest = self.now.since(commit.sealed_at);
                lags.entry(node).or_insert(PeerLag { node, batches: 0, oldest }).batches += 1;
            }
        }
        lags.into_values().collect()
    }

    fn group_figures(&self, group: &Group) -> Option<GroupFigures> {
        let entry = self.catalog.get(&group.id).filter(|entry| !entry.removed)?;
        let reign = match &group.role {
            Role::Coordinator(reign) => Some(reign),
            _ => None,
        };
        let replicas = |is: fn(&PeerSync) -> bool| {
            let peers = reign.into_iter().flat_map(|reign| reign.peers.values());
            peers.filter(|sync| is(sync)).count() as u64
        };
        Some(GroupFigures {
            pipeline: entry.name.clone(),
            coordinates: reign.is_some(),
            led: group.led,
            seen: group.seen,
            queues: reign.map(|reign| self.queue_figures(group, reign)).unwrap_or_default(),
            delayed: reign.map_or(0, |reign| reign.delayed.len() as u64),
            replicas_in_step: replicas(|sync| sync.is_in_step()),
            replicas_syncing: replicas(|sync| matches!(sync, PeerSync::Syncing)),
            replicas_lagging: replicas(|sync| matches!(sync, PeerSync::Lagging(_))),
        })
    }

    fn queue_figures(&self, group: &Group, reign: &Reign) -> Vec<QueueFigures> {
        let figures = reign.ready.iter().map(|((_, step), queue)| QueueFigures {
            step: step.clone(),
            depth: queue.depth(),
            oldest: self.oldest_in(group, queue),
        });
        figures.filter(|queue| queue.depth > 0).collect()
    }

    fn oldest_in(&self, group: &Group, queue: &ReadyQueue) -> Duration {
        let since = queue.fronts().take(LOOKED_AT);
        let since = since.filter_map(|(job, step)| match group.jobs.get(&job) {
            Some(entry) => waits_since_ms(&entry.record, step),
            // It rests; a disk that fails shows when its turn comes.
            None if group.jobs.is_resting(&job) => {
                waits_since_ms(&self.read_record(group.id, job).ok()??, step)
            }
            None => None,
        });
        let since = since.min();
        since.map_or(Duration::ZERO, |ms| Duration::from_millis(self.wall_ms().saturating_sub(ms)))
    }
}

/// Since when an invocation could have begun (ms since 1970); none if it does not wait any more.
fn waits_since_ms(record: &JobRecord, step: u16) -> Option<u64> {
    let spec = record.spec.as_ref()?;
    let came_ms = spec.created_ms.max(spec.options.not_before_ms);
    // A step behind others waits since the last of these has ended.
    let before_ms = record.controls.iter().filter(|(at, control)| {
        **at != step && control.is_terminal() && control.generation == spec.generation
    });
    let before_ms = before_ms.map(|(_, control)| control.written_ms).max().unwrap_or_default();
    match record.controls.get(&step) {
        Some(control) if control.generation == spec.generation => match control.progress {
            Progress::Waiting { not_before_ms } => Some(control.written_ms.max(not_before_ms)),
            _ => None,
        },
        _ => Some(came_ms.max(before_ms)),
    }
}
