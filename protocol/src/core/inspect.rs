//! What may be seen of a core: enough to hold it to its invariants and to stop it in order, nothing
//! that could change it.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::{
    group_view::GroupView,
    id::{DiskId, JobId, NodeId, PipelineId, Term},
    journal::Content,
    message::Digest,
    record::JobRecord,
    store::{ReadError, Reader},
};

use super::{
    Core,
    commit::PROMISE,
    group::{Promise, Role, job_hash},
};

/// A node's state at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Who.
    pub node: NodeId,
    /// Its groups.
    pub groups: BTreeMap<PipelineId, GroupSnapshot>,
    /// Ends that wait for a coordinator to have them on disk.
    pub unacknowledged: usize,
    /// Batches that are not settled.
    pub commits: usize,
    /// How large the queues are that must not grow for ever.
    pub sizes: Vec<(&'static str, usize)>,
}

/// What a node has promised within a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredPromise {
    /// The highest term that it has seen.
    pub highest: Term,
    /// The last term that it has voted for.
    pub voted: Term,
    /// The disk with which it is admitted, if it is.
    pub admitted: Option<DiskId>,
}

/// What a disk says that its node has promised.
///
/// # Errors
/// The disk cannot be read, or what is on it is damaged.
pub fn stored_promise(
    reader: &dyn Reader,
    pipeline: PipelineId,
) -> Result<Option<StoredPromise>, ReadError> {
    let promise: Option<Promise> = super::replica::read_meta(reader, PROMISE, pipeline)?;
    Ok(promise.map(|Promise { highest, voted, admitted, .. }| StoredPromise {
        highest,
        voted,
        admitted,
    }))
}

/// A group's state at one moment.
#[derive(Clone, Debug)]
pub struct GroupSnapshot {
    /// The highest term that was seen.
    pub highest: Term,
    /// The last term that was voted for.
    pub voted: Term,
    /// Whether this node's copy counts.
    pub admitted: bool,
    /// The term that this node coordinates in, if it does.
    pub coordinates: Option<Term>,
    /// Those whose votes made it the coordinator, itself left out.
    pub voters: BTreeSet<NodeId>,
    /// Whom it takes for the coordinator.
    pub leader: Option<(NodeId, Term)>,
    /// Its unfinished jobs.
    pub live: Digest,
    /// Its finished jobs.
    pub finished: Digest,
    /// Attempts that it believes to be at workers.
    pub running: usize,
    /// Who a strict group consists of, as far as is known.
    pub view: GroupView,
    /// How many events it keeps as the coordinator, and what they take in bytes.
    pub events: (usize, usize),
    /// What it keeps of attempts' logs, in bytes.
    pub log_bytes: usize,
}

impl Core {
    /// How often this process began anew to keep a copy of a pipeline's jobs, or to count for one.
    pub fn copies_begun(&self, pipeline: PipelineId) -> u64 {
        self.groups.get(&pipeline).map_or(0, |group| group.copy)
    }

    /// The term in which this node coordinates a pipeline, if it does.
    pub fn coordinated_term(&self, pipeline: PipelineId) -> Option<Term> {
        let group = self.groups.get(&pipeline).filter(|group| group.is_coordinator())?;
        group.elected_term()
    }

    /// The state at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let groups = self.groups.iter().map(|(pipeline, group)| {
            let (running, voters) = match &group.role {
                Role::Coordinator(reign) => (reign.running.len(), reign.voters.clone()),
                _ => (0, BTreeSet::new()),
            };
            let (events, log_bytes) = match &group.role {
                Role::Coordinator(reign) => (reign.events.size(), reign.logs.bytes()),
                _ => ((0, 0), 0),
            };
            let coordinates = self.coordinated_term(*pipeline);
            let snapshot = GroupSnapshot {
                highest: group.promise.highest,
                voted: group.promise.voted,
                admitted: self.is_admitted(*pipeline),
                coordinates,
                voters,
                leader: group.leader.map(|leader| (leader.node, leader.term)),
                live: group.live,
                finished: group.finished.digest,
                running,
                view: self.group_view(*pipeline),
                events,
                log_bytes,
            };
            (*pipeline, snapshot)
        });
        Snapshot {
            node: self.config.node,
            groups: groups.collect(),
            unacknowledged: self.worker.held(|_| true).len(),
            commits: self.commits.len(),
            sizes: vec![
                ("commits", self.commits.len()),
                ("sessions", self.sessions.len()),
                ("timers", self.timers.len()),
                ("proposals", self.proposed.len()),
                ("requests", self.gateway.waiting() + self.queries.waiting()),
                ("attempts", self.worker.held(|_| true).len()),
                ("readers", self.readers()),
            ],
        }
    }

    /// The jobs of a pipeline that are not only on disk: all that are unfinished. Of one that rests
    /// and cannot be read, nothing is given.
    pub fn records(
        &self,
        pipeline: PipelineId,
    ) -> impl Iterator<Item = (JobId, Cow<'_, JobRecord>)> {
        let group = self.groups.get(&pipeline).into_iter();
        let resident = group.clone().flat_map(|group| group.jobs.range(JobId::MIN..=JobId::MAX));
        let resident = resident.map(|(id, job)| (*id, Cow::Borrowed(&job.record)));
        let resting = group.flat_map(|group| group.jobs.resting_from(JobId::MIN));
        let read = move |job| self.read_record(pipeline, job).ok().flatten();
        resident.chain(resting.filter_map(move |it| Some((it.job, Cow::Owned(read(it.job)?)))))
    }

    /// Whether nothing is under way here that a stop would cut off: no attempt, no end that its
    /// coordinator does not have on disk yet, no change that is not settled, no pipeline that is being
    /// left to others.
    pub fn is_quiet(&self) -> bool {
        self.worker.is_empty() && self.commits.is_empty() && !self.is_handing_over()
    }

    /// The digests of unfinished and finished jobs, counted anew from what is on disk.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn count_anew(&self, pipeline: PipelineId) -> Result<(Digest, Digest), ReadError> {
        let (mut live, mut finished) = (Digest::default(), Digest::default());
        let journal = Content::read(&*self.reader)?;
        let mut from = JobId::MIN;
        loop {
            let (jobs, upto) = self.jobs_on_disk(pipeline, from..=JobId::MAX, 1000, usize::MAX)?;
            for (job, mut record) in jobs {
                journal.join(pipeline, job, &mut record)?;
                let digest = if record.is_over() { &mut finished } else { &mut live };
                digest.add(record.digest() ^ job_hash(job));
            }
            if upto == JobId::MAX {
                return Ok((live, finished));
            }
            from = upto.next();
        }
    }

    /// A job's record as this node holds it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn record(&self, pipeline: PipelineId, job: JobId) -> Result<Option<JobRecord>, ReadError> {
        let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        match in_memory {
            Some(entry) => Ok(Some(entry.record.clone())),
            None => self.read_record(pipeline, job),
        }
    }
}
