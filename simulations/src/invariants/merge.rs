//! MERGE, as far as it can be seen from outside: a node's view of a phase only moves up, and what a
//! newer release wrote is kept byte for byte. The laws themselves are tested in `protocol/tests`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use carbonmesh_protocol::{
    id::{DiskId, JobId},
    message::{Message, StoreResult},
    record::{Control, Progress},
    time::Timestamp,
};
use rustc_hash::FxHashMap;

use super::{Fact, Invariant, Seen, Verdict};
use crate::{
    Options,
    world::{Node, newer_component},
};

/// What a process held of a phase.
struct Held {
    /// When the job was enqueued, that is: which of those that had its key in turn.
    created_ms: u64,
    control: Control,
    /// Since when.
    since: Timestamp,
}

pub(super) struct Merge {
    newer_per_mille: u32,
    /// Whether marks are dropped while the world lasts: then what was forgotten may be enqueued anew, or be
    /// brought back and set aside.
    expires: bool,
    /// How long marks are kept. Of what ended before that nothing may be left, and whoever was cut off for
    /// so long may run it once more.
    marks: Option<Duration>,
    /// The last value of each phase that a process held, by disk, life and copy: whoever stood in for
    /// others drops its copy when they are back, and may begin another.
    last: FxHashMap<(DiskId, u64, u64, JobId, u16), Held>,
    /// What each store was about.
    stores: BTreeMap<(usize, usize, u64), Vec<JobId>>,
    /// Jobs that some disk took together with a component that it does not know.
    newer: BTreeSet<JobId>,
}

impl Merge {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            // What was forgotten, and comes back when nobody knows that any more, has lost it.
            newer_per_mille: if options.expires() { 0 } else { options.newer_per_mille },
            expires: options.expires(),
            marks: options.outlasts_in_any().then(|| Duration::from_millis(options.tombstones_ms)),
            last: FxHashMap::default(),
            stores: BTreeMap::new(),
            newer: BTreeSet::new(),
        }
    }
}

impl Invariant for Merge {
    fn name(&self) -> &'static str {
        "merge"
    }

    fn see(&mut self, _: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        if self.newer_per_mille == 0 {
            return Ok(());
        }
        match fact {
            Fact::Delivered { at, from, message: Message::Store { store, jobs, .. } } => {
                let jobs = jobs.iter().map(|update| update.job).collect();
                self.stores.insert((*at, *from, *store), jobs);
            }
            Fact::Sent { at, to, message: Message::Stored { store, results, .. } } => {
                let jobs = self.stores.get(&(*at, *to, *store)).into_iter().flatten();
                let stored = jobs.zip(results).filter(|(_, it)| **it == StoreResult::Stored);
                self.newer.extend(stored.map(|(job, _)| *job));
            }
            _ => {}
        }
        Ok(())
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, core) in seen.cores() {
            let (disk, life) = (node.config.disk, node.life);
            let copy = core.copies_begun(seen.pipeline);
            for (job, record) in core.records(seen.pipeline) {
                let created_ms = record.spec.as_ref().map_or(0, |spec| spec.created_ms);
                for (step, control) in &record.controls {
                    let key = (disk, life, copy, job, *step);
                    let before = self.last.get(&key);
                    if before.is_some_and(|before| before.control == *control) {
                        continue;
                    }
                    let anew = |before: &&Held| {
                        created_ms > before.created_ms
                            || control.progress == Progress::Cancelled
                            || self.marks.is_some_and(|marks| seen.now.since(before.since) > marks)
                    };
                    let before = before.filter(|before| !self.expires || !anew(before));
                    if let Some(before) = before.filter(|before| before.control > *control) {
                        let (name, before) = (&node.config.name, &before.control);
                        return Err(format!(
                            "{name}: job {job} step {step} fell from {before:?} to {control:?}"
                        ));
                    }
                    self.last.insert(
                        key,
                        Held { created_ms, control: control.clone(), since: seen.now },
                    );
                }
            }
        }
        Ok(())
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        for job in &self.newer {
            let Some(newer) = newer_component(*job, self.newer_per_mille) else { continue };
            let holders: Vec<_> = seen
                .nodes
                .iter()
                .filter(|it| !it.disk.is_damaged())
                .filter(|it| {
                    let record = it.disk.job(seen.pipeline, *job);
                    record.is_some_and(|record| record.reaped.is_none())
                })
                .collect();
            let keep = |it: &&&Node| it.disk.has(seen.pipeline, *job, &newer);
            // Disks that had it may all be gone; but whoever has it has given it to the others.
            let kept = holders.iter().filter(|it| keep(it)).count();
            if kept > 0 && kept < holders.len()
                || kept == 0 && !holders.is_empty() && self.calm(seen)
            {
                return Err(format!("job {job} lost what a newer release wrote"));
            }
        }
        Ok(())
    }
}

impl Merge {
    /// Whether every disk is still the one that it was at first.
    fn calm(&self, seen: &Seen<'_>) -> bool {
        let first = |(at, node): (usize, &Node)| node.config.disk.0 == at as u64 + 1;
        seen.nodes.iter().enumerate().all(first)
    }
}
