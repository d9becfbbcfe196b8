//! DURABLE-BEFORE-SAID: acknowledgements, votes and completion answers leave only after what they
//! speak of is on the sender's disk.

use std::{collections::BTreeMap, sync::Arc};

use carbonmesh_protocol::{
    core::stored_promise,
    id::{JobId, Token},
    io::Outcome,
    message::{JobUpdate, Message, StoreResult},
    pipeline::Quorum,
    record::{Component, JobRecord, Progress, REAPED},
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::{Options, world::WALL_START_MS};

/// What a node was asked to keep: by whom, in which life of the asker, and under which numbers.
type Asked<T> = BTreeMap<(usize, usize, u64, u64, u64), Vec<T>>;

#[derive(Default)]
pub(super) struct DurableBeforeSaid {
    /// Whether an acknowledgement needs a majority of the copies that there should be.
    majority: bool,
    stores: Asked<JobId>,
    batches: Asked<JobUpdate>,
    pushes: Asked<JobUpdate>,
    ends: BTreeMap<(usize, Token), (JobId, u16)>,
    /// Disks that were replaced, and with them what was on them when it was said.
    lost_disks: usize,
}

impl Invariant for DurableBeforeSaid {
    fn name(&self) -> &'static str {
        "durable-before-said"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Delivered { at, from, message } => self.note(seen, *at, *from, message),
            Fact::Sent { at, to, message } => return self.check(seen, *at, *to, message),
            Fact::DiskReplaced { .. } => self.lost_disks += 1,
            Fact::Acknowledged { receipt, .. } => {
                let disks = (0..seen.nodes.len()).filter(|at| seen.has_on_disk(*at, receipt.job));
                let (found, said) = (disks.count(), receipt.copies as usize);
                let target = receipt.target as usize;
                if self.majority && said * 2 <= target || said < target.min(2) && !receipt.degraded
                {
                    return Err(format!("{receipt:?} is too few copies"));
                }
                if said == 0 || found + self.lost_disks < said {
                    let job = receipt.job;
                    return Err(format!("job {job}: {said} copies were told, {found} are there"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl DurableBeforeSaid {
    pub(super) fn new(options: &Options) -> Self {
        Self { majority: options.quorums.0 == Quorum::Majority, ..Self::default() }
    }

    fn note(&mut self, seen: &Seen<'_>, at: usize, from: usize, message: &Message) {
        let life = seen.nodes[from].life;
        match message {
            Message::Store { store, jobs, .. } => {
                let jobs = jobs.iter().map(|update| update.job).collect();
                self.stores.insert((at, from, life, *store, 0), jobs);
            }
            Message::Replicate(replicate) => {
                let own = replicate.groups.iter().filter(|it| it.pipeline == seen.pipeline);
                let updates = own.flat_map(|group| group.updates.clone());
                self.batches.insert((at, from, life, replicate.batch, 0), updates.collect());
            }
            Message::SyncPush { session, part, records, .. } => {
                // What is sent again under the same numbers may say more by then.
                let key = (at, from, life, *session, *part);
                self.pushes.entry(key).or_insert_with(|| records.clone());
            }
            // What a node thought that it gave to nobody, and cancelled, may be forgotten.
            Message::Completed(end) if matches!(end.outcome, Outcome::Succeeded(_)) => {
                self.ends.insert((at, end.token), (end.job, end.step));
            }
            _ => {}
        }
    }

    fn check(&mut self, seen: &Seen<'_>, at: usize, to: usize, message: &Message) -> Verdict {
        let life = seen.nodes[to].life;
        match message {
            Message::Stored { store, results, .. } => {
                let asked = self.stores.get(&(at, to, life, *store, 0)).into_iter().flatten();
                for (job, result) in asked.zip(results) {
                    let there = matches!(result, StoreResult::Stored | StoreResult::Existed);
                    if there && !seen.has_on_disk(at, *job) {
                        return Err(format!("n{at} says that it stored {job}"));
                    }
                }
            }
            Message::ReplicateAck { batch, missing, refused, .. } => {
                let asked = self.batches.remove(&(at, to, life, *batch, 0));
                let mut kept =
                    asked.filter(|_| !refused.contains(&seen.pipeline)).unwrap_or_default();
                kept.retain(|update| !missing.iter().any(|(_, job)| *job == update.job));
                return all_on_disk(seen, at, &kept);
            }
            Message::SyncPushAck { session, part, .. } => {
                let asked = self.pushes.remove(&(at, to, life, *session, *part));
                return all_on_disk(seen, at, &asked.unwrap_or_default());
            }
            Message::CompletionAck(token) if !seen.nodes[at].disk.is_damaged() => {
                let Some((job, step)) = self.ends.get(&(at, *token)) else { return Ok(()) };
                let record = seen.on_disk(at, *job).unwrap_or_default();
                let still = record.controls.get(step).is_some_and(|control| {
                    matches!(control.progress, Progress::Running { token: now, .. } if now == *token)
                });
                if still {
                    return Err(format!(
                        "n{at} acknowledged the end of {token}, which runs on disk"
                    ));
                }
            }
            Message::Vote { pipeline, term, .. } => return voted(seen, at, *pipeline, *term),
            Message::Ballot(ballot) if ballot.granted && !ballot.pre => {
                return voted(seen, at, ballot.pipeline, ballot.highest);
            }
            _ => {}
        }
        Ok(())
    }
}

fn voted(
    seen: &Seen<'_>,
    at: usize,
    pipeline: carbonmesh_protocol::id::PipelineId,
    term: carbonmesh_protocol::id::Term,
) -> Verdict {
    if seen.nodes[at].disk.is_damaged() {
        return Ok(());
    }
    let promise =
        stored_promise(&seen.nodes[at].disk.reader(), pipeline).expect("memory can be read");
    match promise {
        Some(promise) if promise.voted >= term => Ok(()),
        found => Err(format!("n{at} says that it voted for {term}, on disk is {found:?}")),
    }
}

/// Whether a mark is from so long ago that whoever is sent it may throw it away: all others have.
fn is_old(seen: &Seen<'_>, at: usize, update: &JobUpdate) -> bool {
    said(update).reaped.is_some_and(|mark| no_mark_is_left(seen, at, mark.at_ms))
}

/// Whether a job was enqueued so long ago, and before the one that a node has under its key now, that it may
/// have been forgotten in between: nothing of it is taken then.
fn is_outlived(seen: &Seen<'_>, at: usize, update: &JobUpdate) -> bool {
    let own = seen.on_disk(at, update.job).and_then(|record| record.spec.clone());
    own.zip(said(update).spec).is_some_and(|(own, theirs)| {
        theirs.created_ms < own.created_ms && no_mark_is_left(seen, at, theirs.created_ms)
    })
}

/// What an update says of a job by itself.
fn said(update: &JobUpdate) -> JobRecord {
    let mut record = JobRecord::default();
    for component in &update.components {
        record.merge(component).expect("it reads back");
    }
    record
}

/// Whether a mark that was made at some time would be dropped by now.
fn no_mark_is_left(seen: &Seen<'_>, at: usize, at_ms: u64) -> bool {
    let kept_ms = seen.nodes[at].config.timing.tombstones.as_millis() as u64;
    at_ms + kept_ms <= WALL_START_MS + seen.now.as_millis()
}

/// Whether a node's disk has all that these updates say.
fn all_on_disk(seen: &Seen<'_>, at: usize, updates: &[JobUpdate]) -> Verdict {
    let node = &seen.nodes[at];
    for update in updates.iter().filter(|_| !node.disk.is_damaged()) {
        let equal = |it: &Component| node.disk.has(seen.pipeline, update.job, it);
        if update.components.iter().all(equal) {
            continue;
        }
        // That a job was forgotten is not kept for ever.
        let old_mark = is_old(seen, at, update);
        let said = update.components.iter().filter(|it| it.tag != REAPED || !old_mark);
        let mark = said.clone().all(|component| component.tag == REAPED);
        if mark && !seen.has_on_disk(at, update.job) || is_outlived(seen, at, update) {
            continue;
        }
        let mut record = Arc::unwrap_or_clone(seen.on_disk(at, update.job).unwrap_or_default());
        for component in said {
            if record.merge(component).expect("it reads back") {
                let (job, tag) = (update.job, component.tag);
                return Err(format!(
                    "n{at} acknowledged a change of job {job} that is not on disk: component {tag}"
                ));
            }
        }
    }
    Ok(())
}
