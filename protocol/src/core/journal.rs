//! Changes of unfinished jobs, before each has rows of its own: most are over soon, and then only what they
//! ended as is worth a row.
//!
//! ```text
//!         ┌─ control values of unfinished jobs ─► one row for all ─the oldest─► rows of those still unfinished
//! batch ──┼─ ids of jobs that came ─────────────► one row for all ─the oldest─► Table::Live, of the same
//!         └─ all else, and jobs that are over ──► rows of their own
//! ```
//! A job of three phases takes five rows of its own in this way, and ten without it; rows are what a disk has
//! most to do for. A start joins the journal with the rows, writes what is news into rows, and begins anew. For
//! that it reads each job that came in a row that is still there; those of which all jobs have ended are not.
//!
//! Values join in any order (`record.rs`), so that an older one does no harm beside what came later, as long
//! as the job is the same. Before one may come back as another, what the journal says of it goes
//! ([`Journal::forget`]). Values of strict groups are left out: what a majority decided is read from rows alone.

use std::{
    collections::{BTreeSet, VecDeque},
    mem,
};

use bytes::Bytes;

use crate::{
    codec::{self, Pieces},
    id::{JobId, PipelineId},
    journal::{Arrivals, Changes, Content, Entry},
    message::JobUpdate,
    mutant::Mutant,
    record::{Component, FIRST_CONTROL, JobRecord},
    store::{ReadError, Table, Write, component_key, job_key, put_component_key},
};

use super::{Core, group::Job};

/// How many rows of a kind there are at most: each takes some memory, however little is in it.
const ROWS: usize = 1024;

/// What a row must not outgrow, whatever is configured: it is read as a whole.
const MOST_BYTES: usize = 16 << 20;

/// From which size on a value gets its row at once, since it would only be copied once more.
const LARGE_BYTES: usize = 4 << 10;

/// What changed of a pipeline's jobs, by pipeline in order.
type ByPipeline<T> = Vec<(PipelineId, Vec<T>)>;

/// What a batch puts into the journal.
#[derive(Default)]
pub(super) struct Page {
    changes: ByPipeline<JobUpdate>,
    arrivals: ByPipeline<JobId>,
}

/// What of a job lies in the journal alone.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Journaled {
    /// The steps that it is of, a bit each; those behind the last bit share it.
    steps: u64,
    /// In which row the first of it is, if there is any.
    since: u64,
}

impl Journaled {
    /// Whether all of the job has rows of its own.
    pub(super) fn is_none(self) -> bool {
        self.steps == 0
    }

    /// What is under this tag has a row.
    pub(super) fn leave_out(&mut self, tag: u16) {
        if tag >= FIRST_CONTROL && bit(tag) != SHARED {
            self.steps &= !bit(tag);
        }
    }

    fn note(&mut self, sequence: u64, tag: u16) {
        if self.is_none() {
            self.since = sequence;
        }
        self.steps |= bit(tag);
    }
}

/// The bit of all steps that have none of their own.
const SHARED: u64 = 1 << 63;

fn bit(tag: u16) -> u64 {
    1 << tag.saturating_sub(FIRST_CONTROL).min(63)
}

/// Whether a component of an unfinished job need not have a row of its own at once.
pub(super) fn is_for_journal(component: &Component) -> bool {
    component.tag >= FIRST_CONTROL && component.bytes.len() < LARGE_BYTES
}

/// Rows that are on disk, the oldest first.
#[derive(Clone, Debug)]
struct Rows {
    rows: VecDeque<Row>,
    size: usize,
}

#[derive(Clone, Debug)]
struct Row {
    sequence: u64,
    /// Of changes, their bytes; of arrivals, all jobs that it names.
    size: usize,
    /// How many of these jobs are not known to be over.
    left: usize,
    jobs: ByPipeline<JobId>,
}

impl Row {
    fn new(sequence: u64, size: usize, jobs: ByPipeline<JobId>) -> Self {
        let left = jobs.iter().map(|(_, jobs)| jobs.len()).sum();
        Self { sequence, size, left, jobs }
    }
}

impl Rows {
    const fn new() -> Self {
        Self { rows: VecDeque::new(), size: 0 }
    }

    fn push(&mut self, row: Row) {
        self.size += row.size;
        self.rows.push_back(row);
    }

    /// Takes the oldest off, as far as they come up to a sequence, or are more than there should be.
    fn pop(&mut self, upto: u64, most: usize) -> Option<Row> {
        let first = self.rows.front()?;
        if first.sequence > upto && self.size <= most && self.rows.len() <= ROWS {
            return None;
        }
        self.size -= first.size;
        self.rows.pop_front()
    }

    /// Whether this is its last row.
    fn ends_with(&self, sequence: u64) -> bool {
        self.rows.back().is_some_and(|row| row.sequence == sequence)
    }
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Journal {
    /// The sequence of the next rows.
    next: u64,
    /// Sized by bytes.
    changes: Rows,
    /// Sized by jobs.
    arrivals: Rows,
    /// Up to which row no change may stay in it.
    forgets: u64,
    /// Rows of arrivals that have all ended.
    ended: Vec<u64>,
}

impl Journal {
    pub(super) const fn new() -> Self {
        Self { next: 1, changes: Rows::new(), arrivals: Rows::new(), forgets: 0, ended: Vec::new() }
    }

    /// The last traces of these jobs go: what comes under their ids from now on is another. With this batch
    /// what the journal still says of them goes too.
    pub(super) fn forget(&mut self, gone: &BTreeSet<JobId>) {
        let names =
            |row: &&Row| row.jobs.iter().flat_map(|(_, jobs)| jobs).any(|job| gone.contains(job));
        let last = self.changes.rows.iter().rfind(names).map_or(0, |row| row.sequence);
        self.forgets = self.forgets.max(last);
    }

    /// The same for all jobs, and for what this batch says of them.
    pub(super) fn forget_all(&mut self) {
        self.forgets = u64::MAX;
    }

    /// A job is over.
    pub(super) fn leave(&mut self, entry: &mut Job) {
        let sequence = mem::take(&mut entry.arrived);
        let rows = &mut self.arrivals.rows;
        let Ok(at) = rows.binary_search_by_key(&sequence, |row| row.sequence) else { return };
        rows[at].left -= 1;
        if rows[at].left == 0
            && let Some(row) = rows.remove(at)
        {
            self.arrivals.size -= row.size;
            self.ended.push(sequence);
        }
    }
}

impl Page {
    /// An unfinished job has changed: of its control values are put here what is not too large.
    pub(super) fn change(
        &mut self,
        journal: &Journal,
        pipeline: PipelineId,
        job: JobId,
        entry: &mut Job,
        components: &[Component],
    ) {
        let components = components.iter().filter(|component| is_for_journal(component));
        let components: Vec<Component> = components.cloned().collect();
        if components.is_empty() {
            return;
        }
        for component in &components {
            entry.journaled.note(journal.next, component.tag);
        }
        last_of(&mut self.changes, pipeline).push(JobUpdate { job, components });
    }

    /// A job is an unfinished one from now on.
    pub(super) fn arrive(
        &mut self,
        journal: &Journal,
        pipeline: PipelineId,
        job: JobId,
        entry: &mut Job,
    ) {
        entry.arrived = journal.next;
        last_of(&mut self.arrivals, pipeline).push(job);
    }
}

/// Those of a pipeline, which is the last or comes behind it.
fn last_of<T>(all: &mut ByPipeline<T>, pipeline: PipelineId) -> &mut Vec<T> {
    if all.last().is_none_or(|(last, _)| *last != pipeline) {
        all.push((pipeline, Vec::new()));
    }
    let at = all.len() - 1;
    &mut all[at].1
}

/// Writes rows of what lies in the journal alone.
pub(super) fn write_rows(
    pipeline: PipelineId,
    job: JobId,
    entry: &mut Job,
    writes: &mut Vec<Write>,
    pieces: &mut Pieces,
) {
    let Journaled { steps, .. } = mem::take(&mut entry.journaled);
    if steps == 0 {
        return;
    }
    let tags = entry.record.tags().filter(|tag| *tag >= FIRST_CONTROL && steps & bit(*tag) != 0);
    for tag in tags.collect::<Vec<u16>>() {
        let Some(Component { bytes, .. }) = entry.record.component_in(tag, pieces) else {
            continue;
        };
        let key = pieces.take(|out| put_component_key(out, pipeline, job, tag));
        writes.push(Write::Put { table: Table::Jobs, key, value: bytes });
    }
}

fn list(pipeline: PipelineId, job: JobId) -> Write {
    Write::Put { table: Table::Live, key: job_key(pipeline, job), value: Bytes::new() }
}

impl Core {
    /// Adds a batch's page to the journal, and takes off what is too old or too much.
    pub(super) fn write_journal(
        &mut self,
        page: Page,
        writes: &mut Vec<Write>,
        pieces: &mut Pieces,
    ) {
        let Page { changes, arrivals } = page;
        let limits = &self.config.limits;
        let (most_bytes, most_jobs) = (limits.journal_bytes.min(MOST_BYTES), limits.journal_jobs);
        let sequence = self.journal.next;
        // Jobs are told by it in which row they came, be it gone or not.
        self.journal.next += u64::from(!changes.is_empty() || !arrivals.is_empty());
        let forgets = mem::take(&mut self.journal.forgets);
        let changes = Some(Changes(changes)).filter(|page| !page.0.is_empty()).map(|page| {
            let ids = |updates: &[JobUpdate]| updates.iter().map(|update| update.job).collect();
            let jobs = page.0.iter().map(|(pipeline, all)| (*pipeline, ids(all))).collect();
            let value = codec::encode(&page);
            self.journal.changes.push(Row::new(sequence, value.len(), jobs));
            value
        });
        while let Some(row) = self.journal.changes.pop(forgets, most_bytes) {
            writes.extend(delete::<Changes>(row.sequence, sequence));
            if !self.has(Mutant::ChangesDropped) {
                self.give_rows(row, writes, pieces);
            }
        }
        let arrivals = Some(Arrivals(arrivals)).filter(|page| !page.0.is_empty()).map(|page| {
            let value = codec::encode(&page);
            let size = page.0.iter().map(|(_, jobs)| jobs.len()).sum();
            self.journal.arrivals.push(Row::new(sequence, size, page.0));
            value
        });
        for ended in mem::take(&mut self.journal.ended) {
            writes.extend(delete::<Arrivals>(ended, sequence));
        }
        while let Some(row) = self.journal.arrivals.pop(0, most_jobs) {
            writes.extend(delete::<Arrivals>(row.sequence, sequence));
            if !self.has(Mutant::ArrivalsDropped) {
                self.list_arrivals(row, writes);
            }
        }
        // What has gone already was never needed.
        let changes = changes.filter(|_| self.journal.changes.ends_with(sequence));
        let arrivals = arrivals.filter(|_| self.journal.arrivals.ends_with(sequence));
        writes.extend(changes.map(|value| put::<Changes>(sequence, value)));
        writes.extend(arrivals.map(|value| put::<Arrivals>(sequence, value)));
    }

    /// A row of changes goes: jobs whose first change it has get rows.
    fn give_rows(&mut self, row: Row, writes: &mut Vec<Write>, pieces: &mut Pieces) {
        for (pipeline, jobs) in row.jobs {
            let Some(group) = self.groups.get_mut(&pipeline) else { continue };
            for job in jobs {
                let Some(entry) = group.jobs.get_mut(&job) else { continue };
                if entry.journaled.since <= row.sequence {
                    write_rows(pipeline, job, entry, writes, pieces);
                }
            }
        }
    }

    /// A row of arrivals goes: those that are still unfinished are listed by themselves.
    fn list_arrivals(&mut self, row: Row, writes: &mut Vec<Write>) {
        for (pipeline, jobs) in row.jobs {
            let Some(group) = self.groups.get_mut(&pipeline) else { continue };
            for job in jobs {
                let live = |entry: &&mut Job| entry.counted.is_some_and(|(it, _)| it.is_live());
                let resident = group.jobs.get_mut(&job).filter(live);
                let is_resident = resident.map(|entry| entry.listed = true).is_some();
                if is_resident || group.jobs.is_resting(&job) {
                    writes.push(list(pipeline, job));
                }
            }
        }
    }

    /// Reads what an earlier process left in the journal.
    pub(super) fn read_journal(&mut self) -> Result<Content, ReadError> {
        let content = Content::read(&*self.reader)?;
        self.journal.next = content.last.saturating_add(1);
        Ok(content)
    }

    /// Joins what the journal says of a job with its rows: it gets rows of what is news.
    pub(super) fn join_journal(
        &mut self,
        content: &Content,
        pipeline: PipelineId,
        job: JobId,
        record: &mut JobRecord,
    ) -> Result<(), ReadError> {
        for tag in content.join(pipeline, job, record)? {
            let Some(Component { bytes, .. }) = record.component(tag) else { continue };
            let key = component_key(pipeline, job, tag);
            self.write(Write::Put { table: Table::Jobs, key, value: bytes });
        }
        Ok(())
    }

    /// Lists a job that only the journal has as an unfinished one.
    pub(super) fn list_from_journal(&mut self, pipeline: PipelineId, job: JobId) {
        self.write(list(pipeline, job));
    }

    /// All that the journal said is in rows by now.
    pub(super) fn end_old_journal(&mut self, content: &Content) {
        if !content.is_empty() {
            let (start, end) = (Bytes::new(), Bytes::from_static(&[u8::MAX]));
            self.write(Write::DeleteRange { table: Table::Journal, start, end });
        }
    }
}

fn put<T: Entry>(sequence: u64, value: Bytes) -> Write {
    Write::Put { table: Table::Journal, key: T::key(sequence), value }
}

/// Takes a row off that is on disk: all but this batch's are.
fn delete<T: Entry>(sequence: u64, now: u64) -> Option<Write> {
    let write = || Write::Delete { table: Table::Journal, key: T::key(sequence) };
    (sequence != now).then(write)
}
