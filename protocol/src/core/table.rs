//! The jobs of a group that are not only on disk: those that something is under way with, whole, and of
//! those that merely wait, what it takes to find them and to queue them.
//!
//! ```text
//! enqueued ─► resident ─settled, and memory is short─► resting ─its turn, or somebody asks─► resident ─► disk
//! ```
//! A job that rests has all of its record on disk; in memory stays its id and some bytes, so that what
//! waits is bounded by the disk. Whoever looks for a job by its id need not know where it is:
//! `load_job` brings it back.
//!
//! Invariant: a job is resident or rests, never both.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    ops::RangeInclusive,
};

use rustc_hash::FxHashMap;

use crate::{id::JobId, pipeline::Revision};

use super::group::Job;

/// What a resting job takes in memory, about, in bytes: its place here, and in a queue.
pub(super) const RESTING_BYTES: usize = 80;

/// What stays in memory of a job that waits. There may be millions: no room is left between its parts.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed)]
struct Resting {
    /// Under which hash the digests count it.
    hash: u64,
    /// Its definition's place in the list of those.
    revision: u16,
    priority: i8,
}

/// What is known of a resting job without its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) job: JobId,
    pub(super) hash: u64,
    pub(super) revision: Revision,
    pub(super) priority: i8,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(super) struct Jobs {
    /// Looked up many times for each change: by hash, which is quicker than in order. An id is
    /// chance, or a cryptographic hash; nothing depends on the order in which they lie.
    resident: FxHashMap<JobId, Box<Job>>,
    /// The same, in order.
    order: BTreeSet<JobId>,
    resting: BTreeMap<JobId, Resting>,
    /// The definitions that resting jobs follow; there are few.
    revisions: Vec<Revision>,
}

impl Jobs {
    /// A resident job.
    pub(super) fn get(&self, job: &JobId) -> Option<&Job> {
        self.resident.get(job).map(|entry| &**entry)
    }

    /// A resident job.
    pub(super) fn get_mut(&mut self, job: &JobId) -> Option<&mut Job> {
        self.resident.get_mut(job).map(|entry| &mut **entry)
    }

    /// Whether a job is resident.
    pub(super) fn contains_key(&self, job: &JobId) -> bool {
        self.resident.contains_key(job)
    }

    /// Whether a job rests.
    pub(super) fn is_resting(&self, job: &JobId) -> bool {
        self.resting.contains_key(job)
    }

    /// A resident job; an empty one if there is none.
    pub(super) fn get_or_default(&mut self, job: JobId) -> &mut Job {
        self.resident.entry(job).or_insert_with(|| {
            self.order.insert(job);
            Box::default()
        })
    }

    /// A job is resident from now on.
    pub(super) fn insert(&mut self, job: JobId, entry: Box<Job>) {
        self.resting.remove(&job);
        self.order.insert(job);
        self.resident.insert(job, entry);
    }

    /// A job is not resident any more.
    pub(super) fn remove(&mut self, job: &JobId) -> Option<Box<Job>> {
        self.order.remove(job);
        self.resident.remove(job)
    }

    /// The resident jobs of a range, in order.
    pub(super) fn range(
        &self,
        range: RangeInclusive<JobId>,
    ) -> impl Iterator<Item = (&JobId, &Job)> {
        self.order.range(range).filter_map(|job| Some((job, self.get(job)?)))
    }

    /// All resident jobs, in order.
    pub(super) fn values(&self) -> impl Iterator<Item = &Job> {
        self.range(JobId::MIN..=JobId::MAX).map(|(_, entry)| entry)
    }

    /// The ids of all resident jobs, in order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &JobId> {
        self.order.iter()
    }

    /// The first resident job.
    pub(super) fn first(&self) -> Option<JobId> {
        self.order.first().copied()
    }

    /// How many there are, resident and resting.
    pub(super) fn len(&self) -> usize {
        self.resident.len() + self.resting.len()
    }

    /// How many rest.
    pub(super) fn resting(&self) -> usize {
        self.resting.len()
    }

    /// Lets a resident job rest that may. Gives back what it was.
    pub(super) fn rest(&mut self, waiting: Waiting) -> Option<Box<Job>> {
        let Waiting { job, hash, revision, priority } = waiting;
        let known = self.revisions.iter().rposition(|known| *known == revision);
        let at = u16::try_from(known.unwrap_or(self.revisions.len())).ok()?;
        let entry = self.remove(&job)?;
        if known.is_none() {
            self.revisions.push(revision);
        }
        let revision = at;
        self.resting.insert(job, Resting { hash, revision, priority });
        Some(entry)
    }

    /// The resting jobs from one on, in order.
    pub(super) fn resting_from(&self, from: JobId) -> impl Iterator<Item = Waiting> {
        self.resting.range(from..).map(|(job, resting)| self.waiting(*job, *resting))
    }

    /// A resting job.
    pub(super) fn find_resting(&self, job: &JobId) -> Option<Waiting> {
        self.resting.get(job).map(|resting| self.waiting(*job, *resting))
    }

    fn waiting(&self, job: JobId, resting: Resting) -> Waiting {
        let Resting { hash, revision, priority } = resting;
        Waiting { job, hash, revision: self.revisions[usize::from(revision)], priority }
    }

    /// The unfinished jobs of a range, in order, each with what `hash` says of it where it is
    /// resident, and with the hash that it counts with where it rests.
    pub(super) fn unfinished<'a>(
        &'a self,
        range: RangeInclusive<JobId>,
        hash: impl Fn(JobId, &Job) -> u64 + 'a,
    ) -> impl Iterator<Item = (JobId, u64)> + 'a {
        let resident = self.range(range.clone()).filter(|(_, entry)| !entry.record.is_over());
        let resident = resident.map(move |(job, entry)| (*job, hash(*job, entry)));
        let resting = self.resting.range(range).map(|(job, resting)| (*job, resting.hash));
        Merged { left: resident.peekable(), right: resting.peekable() }
    }

    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Two sequences in order as one.
struct Merged<L: Iterator, R: Iterator> {
    left: Peekable<L>,
    right: Peekable<R>,
}

impl<L, R> Iterator for Merged<L, R>
where
    L: Iterator<Item = (JobId, u64)>,
    R: Iterator<Item = (JobId, u64)>,
{
    type Item = (JobId, u64);

    fn next(&mut self) -> Option<Self::Item> {
        match (self.left.peek(), self.right.peek()) {
            (Some((left, _)), Some((right, _))) if left > right => self.right.next(),
            (Some(_), _) => self.left.next(),
            (None, _) => self.right.next(),
        }
    }
}
