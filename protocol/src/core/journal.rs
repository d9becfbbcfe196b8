//! Changes of unfinished jobs, before each has rows of its own: most are over soon, and then only what they
//! ended as is worth a row.
//!
//! ```text
//!         ┌─ control values of unfinished jobs ─► one row for all ─the oldest─► rows of those still unfinished
//! batch ──┼─ ids of jobs that came ─────────────► one row for all ─the oldest─► Table::Live, of the same
//!         └─ all else, and jobs that are over ──► rows of their own
//! ```
//! A job of three phases takes five rows of its own in this way, and ten without it; rows are what a disk has
//! most to do for. A start reads the journal, gives each job that it tells of its rows, and begins anew.
//!
//! Values join in any order (`record.rs`), so that an older one does no harm beside what came later, as long
//! as the job is the same. Before one may come back as another, no change stays in the journal
//! ([`Journal::forget`]). Strict groups are left out: their disks take what comes in the highest term,
//! whatever it is.

use std::{collections::VecDeque, mem};

use bytes::Bytes;

use crate::{
    codec::Pieces,
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
    /// In which row the first of it is, if there is any.
    since: u64,
    /// The steps that it is of, a bit each; those behind the last bit share it.
    steps: u64,
}

impl Journaled {
    /// Whether all of the job has rows of its own.
    pub(super) fn is_none(self) -> bool {
        self.since == 0
    }

    /// Those under these tags have rows.
    pub(super) fn leave_out(&mut self, tags: impl Iterator<Item = u16>) {
        let shared = bit(u16::MAX);
        let gone = tags.filter(|tag| *tag >= FIRST_CONTROL).fold(0, |all, tag| all | bit(tag));
        self.steps &= !gone | shared;
    }

    fn note(&mut self, sequence: u64, tag: u16) {
        self.steps |= bit(tag);
        if self.since == 0 {
            self.since = sequence;
        }
    }
}

fn bit(tag: u16) -> u64 {
    1 << tag.saturating_sub(FIRST_CONTROL).min(63)
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
    size: usize,
    jobs: ByPipeline<JobId>,
}

impl Rows {
    const fn new() -> Self {
        Self { rows: VecDeque::new(), size: 0 }
    }

    fn push(&mut self, row: Row) {
        self.size += row.size;
        self.rows.push_back(row);
    }

    /// Takes the oldest off while there are more than there should be.
    fn pop(&mut self, most: usize) -> Option<Row> {
        if self.size <= most && self.rows.len() <= ROWS {
            return None;
        }
        let row = self.rows.pop_front()?;
        self.size -= row.size;
        Some(row)
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
    /// Whether no change may stay in it.
    forgets: bool,
}

impl Journal {
    pub(super) const fn new() -> Self {
        Self { next: 1, changes: Rows::new(), arrivals: Rows::new(), forgets: false }
    }

    /// A job's last traces go: what comes under its id from now on is another. With this batch all that the
    /// journal still says goes into rows.
    pub(super) fn forget(&mut self) {
        self.forgets = true;
    }
}

impl Page {
    /// An unfinished job has changed: its control values are put here.
    pub(super) fn change(
        &mut self,
        journal: &Journal,
        pipeline: PipelineId,
        job: JobId,
        entry: &mut Job,
        components: &[Component],
    ) {
        let controls = components.iter().filter(|component| component.tag >= FIRST_CONTROL);
        let components: Vec<Component> = controls.cloned().collect();
        if components.is_empty() {
            return;
        }
        for component in &components {
            entry.journaled.note(journal.next, component.tag);
        }
        last_of(&mut self.changes, pipeline).push(JobUpdate { job, components });
    }

    /// A job is an unfinished one from now on.
    pub(super) fn arrive(&mut self, pipeline: PipelineId, job: JobId) {
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
        let (most_bytes, most_jobs) = (limits.journal_bytes, limits.journal_jobs);
        let sequence = self.journal.next;
        self.journal.next += u64::from(!changes.is_empty() || !arrivals.is_empty());
        let forgets = mem::take(&mut self.journal.forgets) && !self.has(Mutant::ChangesStay);
        if !changes.is_empty() {
            let ids = |updates: &[JobUpdate]| updates.iter().map(|update| update.job).collect();
            let jobs = changes.iter().map(|(pipeline, all)| (*pipeline, ids(all))).collect();
            let size = put(sequence, &Changes(changes), writes);
            self.journal.changes.push(Row { sequence, size, jobs });
        }
        while let Some(row) = self.journal.changes.pop(if forgets { 0 } else { most_bytes }) {
            writes.push(delete::<Changes>(row.sequence));
            if self.has(Mutant::ChangesDropped) {
                continue;
            }
            self.give_rows(row, writes, pieces);
        }
        if !arrivals.is_empty() {
            let arrivals = Arrivals(arrivals);
            put(sequence, &arrivals, writes);
            let Arrivals(jobs) = arrivals;
            let size = jobs.iter().map(|(_, jobs)| jobs.len()).sum();
            self.journal.arrivals.push(Row { sequence, size, jobs });
        }
        while let Some(row) = self.journal.arrivals.pop(most_jobs) {
            writes.push(delete::<Arrivals>(row.sequence));
            if self.has(Mutant::ArrivalsDropped) {
                continue;
            }
            self.list_arrivals(row, writes);
        }
    }

    /// A row of changes goes: whose first change it has, and who is unfinished, gets rows.
    fn give_rows(&mut self, row: Row, writes: &mut Vec<Write>, pieces: &mut Pieces) {
        for (pipeline, jobs) in row.jobs {
            let Some(group) = self.groups.get_mut(&pipeline) else { continue };
            for job in jobs {
                let entry = group.jobs.get_mut(&job);
                let entry = entry
                    .filter(|it| !it.journaled.is_none() && it.journaled.since <= row.sequence);
                if let Some(entry) = entry {
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
        self.journal.next = content.last + 1;
        Ok(content)
    }

    /// What the journal says of a job that is unfinished by its rows: it gets rows of that too, and is listed.
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

fn put<T: Entry>(sequence: u64, entry: &T, writes: &mut Vec<Write>) -> usize {
    let value = crate::codec::encode(entry);
    let size = value.len();
    writes.push(Write::Put { table: Table::Journal, key: T::key(sequence), value });
    size
}

fn delete<T: Entry>(sequence: u64) -> Write {
    Write::Delete { table: Table::Journal, key: T::key(sequence) }
}
