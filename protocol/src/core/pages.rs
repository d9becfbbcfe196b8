//! Lists of jobs, a page at a time: in the order of their ids, the newest first, or the items of a job.

use crate::{
    id::{JobId, PipelineId},
    record::{Control, JobRecord},
    store::ReadError,
    view::{JobState, JobSummary},
};

use super::Core;

/// The most jobs in one page.
pub(super) const MAX_PAGE: u32 = 1000;

/// How many bytes of records one page may cost: it is read while everything else waits.
const PAGE_BYTES: usize = 8 << 20;

/// How many jobs one page may cost.
const PAGE_COST: usize = 5_000;

/// Where lists of the newest jobs begin is moved in steps of this (about two years), so that it stays
/// while a client reads one page after the other; by then so few ids that were made of keys lie
/// between it and the present that they do no harm.
const TURN_MS: u64 = 1 << 36;

impl Core {
    fn summary_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
    ) -> Option<JobSummary> {
        let spec = record.spec.as_ref()?;
        let phases = self.phases_of(pipeline, record)?;
        let open = (0..phases.len()).find(|step| {
            let control = record.controls.get(&(*step as u16));
            control.is_none_or(|control| control.state() != JobState::Succeeded)
        });
        let step = open.and_then(|step| phases.get(step)).or(phases.last());
        // What went well in the end, or was left out, is no error.
        let failed = record.controls.values().filter(|it| it.state() != JobState::Succeeded);
        let why = |control: &Control| {
            control.note.clone().or_else(|| control.attempts.last()?.error.clone())
        };
        // Why it is dead comes before what became of other phases for that.
        let dead = failed.clone().find(|it| it.state() == JobState::Dead).and_then(why);
        Some(JobSummary {
            job,
            state: record.state(),
            created_ms: spec.created_ms,
            key: spec.key.clone(),
            step: step.map(|phase| phase.name.clone()),
            error: dead.or_else(|| failed.filter_map(why).next_back()),
        })
    }

    /// The items of a job: a page of them, and where the next begins.
    fn page_of_items(
        &self,
        pipeline: PipelineId,
        of: JobId,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<(Vec<JobSummary>, Option<JobId>), ReadError> {
        let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&of));
        let record = match in_memory {
            Some(entry) => Some(entry.record.clone()),
            None => self.read_record(pipeline, of)?,
        };
        let Some(record) = record else { return Ok((Vec::new(), None)) };
        for (first, last) in self.ranges_of_items(pipeline, of, &record) {
            let from = after.map_or(first, |after| first.max(after.next()));
            if from > last {
                continue;
            }
            let (jobs, next) = self.page_in(pipeline, from..=last, Some(of), state, limit)?;
            if !jobs.is_empty() || next.is_some() {
                // Those behind the last of this range lie in the next.
                let next = next.or_else(|| jobs.last().map(|_| last));
                return Ok((jobs, next));
            }
        }
        Ok((Vec::new(), None))
    }

    /// A page of jobs in the order of their ids, and where the next begins. What is a part of another
    /// job is left out, or only what is a part of one.
    pub(super) fn page(
        &self,
        pipeline: PipelineId,
        of: Option<JobId>,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<(Vec<JobSummary>, Option<JobId>), ReadError> {
        if let Some(of) = of {
            return self.page_of_items(pipeline, of, state, after, limit);
        }
        let from = after.map_or(JobId::MIN, JobId::next);
        self.page_in(pipeline, from..=JobId::MAX, None, state, limit)
    }

    /// A page of jobs that are no items, the newest first, and where the next begins.
    ///
    /// Ids that were made of keys lie anywhere, nearly all of them above those of the present time. So
    /// it begins a little above these, and what is above that comes behind all else.
    pub(super) fn newest(
        &self,
        pipeline: PipelineId,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<(Vec<JobSummary>, Option<JobId>), ReadError> {
        let turn = self.newest_turn();
        let mut jobs = Vec::new();
        if after.is_none_or(|after| after <= turn) {
            let to = after.map_or(turn, JobId::before);
            let next;
            (jobs, next) = self.page_back(pipeline, JobId::MIN..=to, state, limit)?;
            if next.is_some() {
                return Ok((jobs, next));
            }
        }
        let to = after.filter(|after| *after > turn).map_or(JobId::MAX, JobId::before);
        if to <= turn {
            return Ok((jobs, None));
        }
        let room = limit.clamp(1, MAX_PAGE).saturating_sub(jobs.len() as u32);
        let (more, next) = self.page_back(pipeline, turn.next()..=to, state, room)?;
        jobs.extend(more);
        Ok((jobs, next))
    }

    /// Where lists of the newest jobs begin.
    pub(super) fn newest_turn(&self) -> JobId {
        JobId::last_before((self.wall_ms() / TURN_MS + 2).saturating_mul(TURN_MS))
    }

    fn page_back(
        &self,
        pipeline: PipelineId,
        range: std::ops::RangeInclusive<JobId>,
        state: Option<JobState>,
        limit: u32,
    ) -> Result<(Vec<JobSummary>, Option<JobId>), ReadError> {
        let (first, few) = (*range.start(), self.few(pipeline, state, limit));
        let (records, end) = self.last_jobs_on_disk(pipeline, range, few, PAGE_BYTES)?;
        let (jobs, full) = self.summaries(pipeline, &records, None, state, limit);
        Ok((jobs, full.or((end > first).then_some(end))))
    }

    fn page_in(
        &self,
        pipeline: PipelineId,
        range: std::ops::RangeInclusive<JobId>,
        of: Option<JobId>,
        state: Option<JobState>,
        limit: u32,
    ) -> Result<(Vec<JobSummary>, Option<JobId>), ReadError> {
        let (last, few) = (*range.end(), self.few(pipeline, state, limit));
        let (records, end) = self.jobs_on_disk(pipeline, range, few, PAGE_BYTES)?;
        let (jobs, full) = self.summaries(pipeline, &records, of, state, limit);
        Ok((jobs, full.or((end < last).then_some(end))))
    }

    /// How many records one page may read.
    fn few(&self, pipeline: PipelineId, state: Option<JobState>, limit: u32) -> usize {
        let limit = limit.clamp(1, MAX_PAGE) as usize;
        let items = self.groups.get(&pipeline).is_some_and(|group| group.has_items());
        let few = if state.is_none() && !items { limit } else { PAGE_COST };
        few.min(PAGE_COST)
    }

    /// Those of the records that are asked for; and the last one, if that made the page full.
    fn summaries(
        &self,
        pipeline: PipelineId,
        records: &[(JobId, JobRecord)],
        of: Option<JobId>,
        state: Option<JobState>,
        limit: u32,
    ) -> (Vec<JobSummary>, Option<JobId>) {
        let limit = limit.clamp(1, MAX_PAGE) as usize;
        let mut jobs = Vec::new();
        for (job, record) in records {
            let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(job));
            let record = in_memory.map_or(record, |entry| &entry.record);
            let parent = record.spec.as_ref().and_then(|spec| Some(spec.parent.as_ref()?.job));
            if parent != of || state.is_some_and(|state| state != record.state()) {
                continue;
            }
            jobs.extend(self.summary_of(pipeline, *job, record));
            if jobs.len() == limit {
                return (jobs, Some(*job));
            }
        }
        (jobs, None)
    }
}
