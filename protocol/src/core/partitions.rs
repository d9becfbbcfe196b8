//! Pipelines that are split: each partition is a group of its own, with a coordinator of its own, and an
//! entry of its own in the catalog.
//!
//! ```text
//! request for a name ─┬─► partition 0 ─┬─► one answer
//!                     ├─► partition 1 ─┤
//!                     └─► …            ┘
//! ```
//! What is asked of the pipeline as a whole is asked of those partitions that it takes, as requests of
//! this node's own, and what they answer is put together. Pages of jobs go through one partition after the
//! other; the newest come from all of them.

use std::{cmp::Reverse, collections::BTreeMap, mem};

use crate::{
    id::{JobId, PipelineId},
    io::{Changed, NewJob, Receipt, Refusal, RequestId, Response},
    name::Name,
    schedule::RUN_KEY,
    store::ReadError,
    view::{JobSummary, StepCounts},
};

use super::{Core, pages::MAX_PAGE};

/// Requests of this node's own are told from clients' by their highest bit.
const OWN: u64 = 1 << 63;

/// Requests that were split.
#[derive(Clone, Debug, Default)]
pub(super) struct Splits {
    /// By the client's request.
    open: BTreeMap<RequestId, Split>,
    /// Whose part a request is, and which.
    parts: BTreeMap<RequestId, (RequestId, usize)>,
    last: u64,
}

#[derive(Clone, Debug)]
struct Split {
    wanted: Wanted,
    /// What each part was answered, once it was.
    answers: Vec<Option<Response>>,
}

/// How answers are put together.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// Receipts: for each part, the positions of its jobs in the client's request.
    Enqueued(Vec<Vec<usize>>),
    /// A page, or how many jobs of one changed; the partition that comes next begins there.
    Page(Option<JobId>),
    /// The newest of all, at most so many.
    Newest(u32),
    /// What waits and runs.
    Steps,
}

impl Splits {
    pub(super) fn waiting(&self) -> usize {
        self.open.len()
    }

    /// Takes note of a request's parts; their own requests.
    fn split(&mut self, request: RequestId, wanted: Wanted, count: usize) -> Vec<RequestId> {
        self.open.insert(request, Split { wanted, answers: vec![None; count] });
        let parts = (0..count).map(|part| {
            self.last += 1;
            let own = RequestId(OWN | self.last);
            self.parts.insert(own, (request, part));
            own
        });
        parts.collect()
    }

    /// A part was answered: the whole, if it was the last one.
    fn answered(&mut self, own: RequestId, response: Response) -> Option<(RequestId, Split)> {
        let (request, part) = self.parts.remove(&own)?;
        let split = self.open.get_mut(&request)?;
        *split.answers.get_mut(part)? = Some(response);
        let whole = split.answers.iter().all(Option::is_some);
        whole.then(|| self.open.remove(&request)).flatten().map(|split| (request, split))
    }

    /// Nobody waits for a request any more: those of its parts that are open.
    fn dropped(&mut self, request: RequestId) -> Vec<RequestId> {
        if self.open.remove(&request).is_none() {
            return Vec::new();
        }
        self.parts.extract_if(.., |_, (of, _)| *of == request).map(|(own, _)| own).collect()
    }
}

impl Core {
    /// The partitions of a pipeline, itself the first; only itself if it is not split.
    pub(super) fn partitions_of(&self, first: PipelineId) -> Vec<PipelineId> {
        self.partitions.get(&first).cloned().unwrap_or_else(|| vec![first])
    }

    /// Looks which pipelines are split.
    pub(super) fn find_partitions(&mut self) {
        let mut found: BTreeMap<PipelineId, Vec<(u16, PipelineId)>> = BTreeMap::new();
        for (id, entry) in self.catalog.iter().filter(|(_, entry)| !entry.removed) {
            if entry.partition() > 0 {
                let first = PipelineId::of_name(entry.name.as_str());
                found.entry(first).or_default().push((entry.partition(), *id));
            }
        }
        self.partitions = found
            .into_iter()
            .map(|(first, mut others)| {
                others.sort_unstable();
                (first, [first].into_iter().chain(others.into_iter().map(|(_, id)| id)).collect())
            })
            .collect();
    }

    /// Asks for a client what takes some of a pipeline's partitions, each with a request of its own.
    pub(super) fn split(
        &mut self,
        request: RequestId,
        wanted: Wanted,
        count: usize,
    ) -> Vec<RequestId> {
        self.splits.split(request, wanted, count)
    }

    /// The partitions of a named pipeline.
    ///
    /// # Errors
    /// There is no such pipeline, or not all of its partitions are known here yet.
    pub(super) fn partitions_named(&self, name: &Name) -> Result<Vec<PipelineId>, Refusal> {
        let first = self.pipeline_named(name)?;
        let parts = self.partitions_of(first.id());
        let wanted = first.definition().map_or(1, |it| usize::from(it.partitions));
        match parts.len() < wanted {
            true => Err(self.part_unknown(first.id())),
            false => Ok(parts),
        }
    }

    /// Which partition of a named pipeline a page of jobs lies in, and the request for that page.
    ///
    /// `at` is a job of it, or what a page before said to go on with.
    pub(super) fn ask_partition(
        &mut self,
        request: RequestId,
        name: &Name,
        at: Option<JobId>,
        is_list: bool,
    ) -> Result<(RequestId, PipelineId), Refusal> {
        let parts = self.partitions_named(name)?;
        let holds = |at: JobId| parts.iter().position(|part| at.may_belong_to(*part));
        let part = at.and_then(holds).unwrap_or(0);
        let next = parts.get(part + 1).filter(|_| is_list);
        let next = next.map(|next| JobId::before_all_of(*next));
        let own = match next {
            Some(next) => self.split(request, Wanted::Page(Some(next)), 1)[0],
            None => request,
        };
        Ok((own, parts[part]))
    }

    /// Hands jobs to the partitions that they belong to: with a key always the same one, without one to
    /// all in turn.
    pub(super) fn enqueue_split(
        &mut self,
        request: RequestId,
        first: PipelineId,
        jobs: Vec<NewJob>,
    ) -> Result<(), ReadError> {
        let parts = self.partitions_of(first);
        let keyed = self.current(first).map_or(1, |it| u64::from(it.keyed_partitions.max(1)));
        if jobs.is_empty() || parts.len() == 1 && keyed == 1 {
            return self.enqueue_for(Some(request), first, jobs);
        }
        let turn = parts[self.gateway.next_turn(parts.len())];
        let number = |part: &PipelineId| Some((self.catalog.get(part)?.partition(), *part));
        let known: BTreeMap<u16, PipelineId> = parts.iter().filter_map(number).collect();
        let mut split: BTreeMap<Option<PipelineId>, (Vec<usize>, Vec<NewJob>)> = BTreeMap::new();
        for (at, job) in jobs.into_iter().enumerate() {
            let hash = |key: &String| xxhash_rust::xxh3::xxh3_64(key.as_bytes());
            let of_key = |key: &String| match key.starts_with(RUN_KEY) {
                // Schedules are the first one's.
                true => Some(first),
                false => known.get(&((hash(key) % keyed) as u16)).copied(),
            };
            let part = job.key.as_ref().map_or(Some(turn), of_key);
            let (positions, jobs) = split.entry(part).or_default();
            positions.push(at);
            jobs.push(job);
        }
        if split.len() == 1
            && let Some((Some(part), (_, jobs))) = split.first_entry().map(|it| it.remove_entry())
        {
            return self.enqueue_for(Some(request), part, jobs);
        }
        let (mut positions, mut each) = (Vec::new(), Vec::new());
        for (part, (at, jobs)) in split {
            positions.push(at);
            each.push((part, jobs));
        }
        let requests = self.split(request, Wanted::Enqueued(positions), each.len());
        for (own, (part, jobs)) in requests.into_iter().zip(each) {
            match part {
                Some(part) => self.enqueue_for(Some(own), part, jobs)?,
                None => self.reply(own, Response::Refused(self.part_unknown(first))),
            }
        }
        Ok(())
    }

    /// One of its partitions is not known here yet. In another than its own, a key would be another job.
    pub(super) fn part_unknown(&self, first: PipelineId) -> Refusal {
        let entry = self.catalog.get(&first);
        Refusal::NoCoordinator(entry.map_or_else(String::new, |entry| entry.name.to_string()))
    }

    /// An answer: to a client, or to a part of what one asked, which may be the last.
    pub(super) fn take_answer(
        &mut self,
        id: RequestId,
        response: Response,
    ) -> Option<(RequestId, Response)> {
        if id.0 & OWN == 0 {
            return Some((id, response));
        }
        let (request, split) = self.splits.answered(id, response)?;
        let answers = split.answers.into_iter().flatten().collect();
        Some((request, self.put_together(split.wanted, answers)))
    }

    /// Nobody waits for a request any more.
    pub(super) fn drop_parts(&mut self, request: RequestId) {
        for own in self.splits.dropped(request) {
            self.on_request_dropped(own);
        }
    }

    fn put_together(&self, wanted: Wanted, mut answers: Vec<Response>) -> Response {
        if let Wanted::Enqueued(positions) = wanted {
            return receipts(positions, answers);
        }
        if let Some(refused) =
            answers.iter_mut().find(|answer| matches!(answer, Response::Refused(_)))
        {
            return mem::replace(refused, Response::Removed);
        }
        match wanted {
            Wanted::Newest(limit) => self.newest_of(answers, limit),
            Wanted::Steps => steps(answers),
            Wanted::Page(begins) => match answers.pop() {
                Some(Response::Jobs { jobs, next }) => {
                    Response::Jobs { jobs, next: next.or(begins) }
                }
                Some(Response::Changed(Changed { count, next })) => {
                    Response::Changed(Changed { count, next: next.or(begins) })
                }
                other => other.unwrap_or(Response::Refused(Refusal::Unknown)),
            },
            Wanted::Enqueued(_) => Response::Refused(Refusal::Unknown),
        }
    }

    /// Of the newest of each partition those that are the newest of all. What lies behind the end of a
    /// partition's page may be newer than what others gave, so the page ends there.
    fn newest_of(&self, answers: Vec<Response>, limit: u32) -> Response {
        let turn = self.newest_turn();
        // In the order of `newest`: from the turn downwards, then what lies above it.
        let place = |job: JobId| (job > turn, Reverse(job));
        let (mut all, mut end): (Vec<JobSummary>, Option<JobId>) = (Vec::new(), None);
        for answer in answers {
            let Response::Jobs { jobs, next } = answer else { continue };
            all.extend(jobs);
            end = end.into_iter().chain(next).min_by_key(|job| place(*job));
        }
        all.sort_by_key(|summary| place(summary.job));
        if let Some(end) = end {
            all.retain(|summary| place(summary.job) <= place(end));
        }
        let limit = limit.clamp(1, MAX_PAGE) as usize;
        let full = all.get(limit - 1).map(|summary| summary.job).filter(|_| all.len() > limit);
        all.truncate(limit);
        Response::Jobs { jobs: all, next: full.or(end) }
    }
}

/// Each job's receipt at its place; a part that was refused as a whole has one refusal for all its jobs.
fn receipts(positions: Vec<Vec<usize>>, answers: Vec<Response>) -> Response {
    let count = positions.iter().map(Vec::len).sum();
    let mut all: Vec<Result<Receipt, Refusal>> = vec![Err(Refusal::Unknown); count];
    for (places, answer) in positions.into_iter().zip(answers) {
        match answer {
            Response::Enqueued(receipts) => {
                for (at, receipt) in places.into_iter().zip(receipts) {
                    all[at] = receipt;
                }
            }
            Response::Refused(refusal) => {
                places.into_iter().for_each(|at| all[at] = Err(refusal.clone()));
            }
            _ => {}
        }
    }
    Response::Enqueued(all)
}

fn steps(answers: Vec<Response>) -> Response {
    let mut sums: BTreeMap<Name, (u64, u64)> = BTreeMap::new();
    for answer in answers {
        let Response::Steps(steps) = answer else { continue };
        for one in steps {
            let (waiting, running) = sums.entry(one.step).or_default();
            *waiting = waiting.saturating_add(one.waiting);
            *running = running.saturating_add(one.running);
        }
    }
    let counts = sums.into_iter();
    let counts = counts.map(|(step, (waiting, running))| StepCounts { step, waiting, running });
    Response::Steps(counts.collect())
}
