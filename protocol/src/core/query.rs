//! Clients' questions about jobs: answered from this node's copy where it has one, otherwise by a
//! replica; and those who wait for a job's end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    advert::Advert,
    catalog::CatalogEntry,
    id::{JobId, NodeId, PipelineId},
    io::{Refusal, RequestId, Response},
    message::{Answer, Message, Question, TraceOf, Which},
    mutant::Mutant,
    name::Name,
    pipeline::PhaseDef,
    record::{Control, JobRecord, Progress},
    requirement::meets_all,
    store::ReadError,
    time::Timestamp,
    trace::TraceParent,
    view::{
        ClusterView, Counts, InvocationView, JobState, JobSummary, JobView, Liveness, MemberView,
        PartitionView, PipelineView, StepCounts,
    },
};

use super::{Core, commit::Held, dispatch::results, group::Role, partitions::Wanted, timer::Timer};

/// The most jobs in one page.
pub(super) const MAX_PAGE: u32 = 1000;

/// How many bytes of records one page may cost: it is read while everything else waits.
const PAGE_BYTES: usize = 8 << 20;

/// How many jobs one page may cost.
const PAGE_COST: usize = 5_000;

/// How many of those who do not keep a pipeline's jobs are asked for one all the same.
const MOST_ASKED: usize = 10;

/// Where lists of the newest jobs begin is moved in steps of this (about two years), so that it stays
/// while a client reads one page after the other; by then so few ids that were made of keys lie
/// between it and the present that they do no harm.
const TURN_MS: u64 = 1 << 36;

/// How many clients may wait for jobs of one pipeline, on one node.
const MAX_WATCHERS: usize = 10_000;

/// Whoever asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Client(RequestId),
    Peer(NodeId, u64),
}

/// Somebody who waits for a job's end.
#[derive(Clone, Debug)]
pub(super) struct Watcher {
    asker: Asker,
    until: Timestamp,
}

/// Questions that were passed on.
#[derive(Clone, Debug, Default)]
pub(super) struct Queries {
    pending: BTreeMap<u64, Pending>,
    last: u64,
    /// How many answers wait until what they tell is durable.
    held: usize,
}

#[derive(Clone, Debug)]
struct Pending {
    request: RequestId,
    question: Question,
    asked: NodeId,
    /// Others to ask, should this one not answer.
    others: Vec<(PipelineId, NodeId)>,
    /// Whether one of those who were asked has no such job.
    denied: bool,
    /// Whether somebody who might have it could not say, or could not be asked.
    unsure: bool,
    /// Whether somebody who was asked was lost before the answer: it may have been done.
    risked: bool,
    deadline: Timestamp,
    /// The trace of the job that is answered with, once it has come.
    trace: Option<TraceParent>,
}

impl Queries {
    /// Nothing was asked yet; numbers begin behind `first`.
    pub(super) fn new(first: u64) -> Self {
        Self { last: first, ..Self::default() }
    }

    pub(super) fn waiting(&self) -> usize {
        self.pending.len() + self.held
    }

    pub(super) fn drop_request(&mut self, id: RequestId) {
        self.pending.retain(|_, pending| pending.request != id);
    }
}

/// Somebody has gone.
pub(super) fn drop_watchers(
    watchers: &mut BTreeMap<JobId, Vec<Watcher>>,
    gone: impl Fn(&Asker) -> bool,
) {
    watchers.retain(|_, waiting| {
        waiting.retain(|watcher| !gone(&watcher.asker));
        !waiting.is_empty()
    });
}

impl Core {
    /// A client asks for a job.
    pub(super) fn ask_job(
        &mut self,
        request: RequestId,
        job: JobId,
        wait: Option<Duration>,
    ) -> Result<(), ReadError> {
        let pipelines: Vec<PipelineId> =
            self.catalog.keys().copied().filter(|pipeline| job.may_belong_to(*pipeline)).collect();
        for &pipeline in &pipelines {
            if self.knows_best(pipeline) && self.has_job(pipeline, job)? {
                return self.answer_job(Asker::Client(request), pipeline, job, wait);
            }
        }
        let mut whom = Vec::new();
        for &pipeline in &pipelines {
            whom.extend(self.who_may_know(pipeline).into_iter().map(|node| (pipeline, node)));
        }
        if whom.is_empty() && pipelines.iter().all(|pipeline| self.knows_best(*pipeline)) {
            self.reply(request, Response::Refused(Refusal::UnknownJob(job)));
            return Ok(());
        }
        if whom.is_empty() {
            let strict = pipelines.iter().find(|pipeline| self.is_strict(**pipeline));
            self.refuse_question(request, strict.copied());
            return Ok(());
        }
        let silent = |pipeline: &PipelineId| {
            !self.knows_best(*pipeline) && whom.iter().all(|(of, _)| of != pipeline)
        };
        let unsure = pipelines.iter().any(silent);
        self.pass_on(request, (whom, unsure), |pipeline| Question::Job { pipeline, job, wait });
        Ok(())
    }

    /// A client asks for a page of jobs.
    pub(super) fn ask_jobs(
        &mut self,
        request: RequestId,
        name: &Name,
        of: Option<JobId>,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<(), ReadError> {
        let (request, pipeline) =
            match self.ask_partition(request, name, of.or(after), of.is_none()) {
                Ok(part) => part,
                Err(refusal) => {
                    self.reply(request, Response::Refused(refusal));
                    return Ok(());
                }
            };
        if self.knows_best(pipeline) {
            let (jobs, next) = self.page(pipeline, of, state, after, limit)?;
            let answer = Answer::Jobs { jobs, next };
            self.answer_committed(Asker::Client(request), pipeline, None, answer);
            return Ok(());
        }
        self.ask_who_knows(request, pipeline, |pipeline| Question::Jobs {
            pipeline,
            of,
            state,
            after,
            limit,
        });
        Ok(())
    }

    /// Passes a question on to those who know best of a pipeline, or says that there is nobody.
    fn ask_who_knows(
        &mut self,
        request: RequestId,
        pipeline: PipelineId,
        question: impl Fn(PipelineId) -> Question,
    ) {
        let whom = self.who_knows(pipeline).into_iter().map(|node| (pipeline, node));
        let whom: Vec<(PipelineId, NodeId)> = whom.collect();
        match whom.is_empty() {
            true => self.refuse_question(request, Some(pipeline)),
            false => self.pass_on(request, (whom, false), question),
        }
    }

    /// A client asks for a page of jobs, the newest first.
    pub(super) fn ask_newest(
        &mut self,
        request: RequestId,
        name: &Name,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<(), ReadError> {
        let parts = match self.partitions_named(name) {
            Ok(parts) => parts,
            Err(refusal) => {
                self.reply(request, Response::Refused(refusal));
                return Ok(());
            }
        };
        let requests = match parts.len() {
            1 => vec![request],
            count => self.split(request, Wanted::Newest(limit), count),
        };
        for (request, pipeline) in requests.into_iter().zip(parts) {
            self.ask_newest_in(request, pipeline, state, after, limit)?;
        }
        Ok(())
    }

    fn ask_newest_in(
        &mut self,
        request: RequestId,
        pipeline: PipelineId,
        state: Option<JobState>,
        after: Option<JobId>,
        limit: u32,
    ) -> Result<(), ReadError> {
        if self.knows_best(pipeline) {
            let (jobs, next) = self.newest(pipeline, state, after, limit)?;
            let answer = Answer::Jobs { jobs, next };
            self.answer_committed(Asker::Client(request), pipeline, None, answer);
            return Ok(());
        }
        self.ask_who_knows(request, pipeline, |pipeline| Question::Newest {
            pipeline,
            state,
            after,
            limit,
        });
        Ok(())
    }

    /// A client asks what waits and runs at each step of a pipeline.
    pub(super) fn ask_steps(&mut self, request: RequestId, name: &Name) {
        let parts = match self.partitions_named(name) {
            Ok(parts) => parts,
            Err(refusal) => return self.reply(request, Response::Refused(refusal)),
        };
        let requests = match parts.len() {
            1 => vec![request],
            count => self.split(request, Wanted::Steps, count),
        };
        for (request, pipeline) in requests.into_iter().zip(parts) {
            self.ask_steps_in(request, pipeline, name);
        }
    }

    fn ask_steps_in(&mut self, request: RequestId, pipeline: PipelineId, name: &Name) {
        if let Some(steps) = self.step_counts(pipeline) {
            return self.reply(request, Response::Steps(steps));
        }
        let leader = self.groups.get(&pipeline).and_then(|group| group.leader);
        let leader = leader.map(|leader| leader.node);
        match leader.filter(|node| *node != self.me() && self.is_reachable(*node)) {
            Some(node) => {
                let whom = (vec![(pipeline, node)], false);
                self.pass_on(request, whom, |pipeline| Question::Steps { pipeline });
            }
            None => {
                let refusal = Refusal::NoCoordinator(name.to_string());
                self.reply(request, Response::Refused(refusal));
            }
        }
    }

    /// Whether this node's copy is as good as any: it coordinates, or keeps one and nobody else can
    /// be asked.
    fn knows_best(&self, pipeline: PipelineId) -> bool {
        if self.is_strict(pipeline) {
            return self.may_answer(pipeline);
        }
        let coordinates = self.groups.get(&pipeline).is_some_and(|group| group.is_coordinator());
        coordinates || self.config.roles.replica && self.who_knows(pipeline).is_empty()
    }

    /// Others who have copies: the coordinator first. Where only coordinators take jobs, nobody else
    /// can know better; of another strict pipeline replicas can say that there is such a job.
    fn who_knows(&self, pipeline: PipelineId) -> Vec<NodeId> {
        let leader = self.groups.get(&pipeline).and_then(|group| group.leader);
        let leader = leader.map(|leader| leader.node);
        let mut nodes: Vec<NodeId> = leader.into_iter().collect();
        if !self.takes_by_coordinator(pipeline) {
            nodes.extend(self.keepers(pipeline).into_iter().filter(|node| Some(*node) != leader));
        }
        nodes.retain(|node| *node != self.me() && self.is_reachable(*node));
        nodes
    }

    /// The same, and whoever else may have stood in for one of them: until what ended there has come
    /// to the coordinator, only they know of it.
    fn who_may_know(&self, pipeline: PipelineId) -> Vec<NodeId> {
        let mut nodes = self.who_knows(pipeline);
        if !self.takes_by_coordinator(pipeline) {
            let others = self.replica_nodes().into_iter();
            let others = others.filter(|node| *node != self.me() && self.is_reachable(*node));
            let others: Vec<NodeId> = others.filter(|node| !nodes.contains(node)).collect();
            nodes.extend(others.into_iter().take(MOST_ASKED));
        }
        nodes
    }

    pub(super) fn pass_on(
        &mut self,
        request: RequestId,
        (mut whom, unsure): (Vec<(PipelineId, NodeId)>, bool),
        question: impl Fn(PipelineId) -> Question,
    ) {
        whom.reverse();
        let Some((pipeline, node)) = whom.pop() else { return };
        let question = question(pipeline);
        let wait = match &question {
            Question::Job { wait, .. } => wait.unwrap_or_default(),
            Question::Events { query, .. } => query.wait.unwrap_or_default(),
            Question::Jobs { .. }
            | Question::Change { .. }
            | Question::Logs { .. }
            | Question::Newest { .. }
            | Question::Steps { .. } => Duration::ZERO,
        };
        let deadline = self.now + wait + self.config.timing.request_timeout;
        let (asked, others, denied, risked) = (node, whom, false, false);
        let pending = Pending {
            request,
            question,
            asked,
            others,
            denied,
            unsure,
            risked,
            deadline,
            trace: None,
        };
        self.ask_node(pending);
    }

    /// Nobody can be asked.
    fn refuse_question(&mut self, request: RequestId, pipeline: Option<PipelineId>) {
        let strict = pipeline.filter(|pipeline| self.is_strict(*pipeline));
        let name = strict.and_then(|pipeline| Some(self.catalog.get(&pipeline)?.name.to_string()));
        let refusal = name.map_or(Refusal::NoReplica, Refusal::NoCoordinator);
        self.reply(request, Response::Refused(refusal));
    }

    fn ask_node(&mut self, pending: Pending) {
        self.queries.last += 1;
        let query = self.queries.last;
        let question = pending.question.clone();
        self.send(pending.asked, Message::Query { query, question });
        self.arm_at(pending.deadline, Timer::Query(query));
        self.queries.pending.insert(query, pending);
    }

    /// Asks the next who may know.
    fn ask_next(&mut self, mut pending: Pending) {
        let now = self.now;
        while let Some((pipeline, node)) = pending.others.pop() {
            if node == self.me() || !self.is_reachable(node) {
                continue;
            }
            pending.asked = node;
            match &mut pending.question {
                Question::Job { pipeline: of, wait, .. } => {
                    *of = pipeline;
                    let left = pending.deadline.since(now);
                    *wait = wait.map(|_| left.saturating_sub(self.config.timing.request_timeout));
                }
                Question::Jobs { pipeline: of, .. }
                | Question::Change { pipeline: of, .. }
                | Question::Events { pipeline: of, .. }
                | Question::Logs { pipeline: of, .. }
                | Question::Newest { pipeline: of, .. }
                | Question::Steps { pipeline: of } => {
                    *of = pipeline;
                }
            }
            return self.ask_node(pending);
        }
        match pending.question {
            Question::Job { pipeline, job, .. } if self.has_own_copy(pipeline, job) => {
                let asker = Asker::Client(pending.request);
                if let Err(error) = self.answer_job(asker, pipeline, job, None) {
                    self.broken = Some(error);
                }
            }
            Question::Job { job, .. } if pending.denied && !pending.unsure => {
                self.reply(pending.request, Response::Refused(Refusal::UnknownJob(job)));
            }
            Question::Change { which: Which::Job(job), .. }
                if pending.denied && !pending.unsure =>
            {
                self.reply(pending.request, Response::Refused(Refusal::UnknownJob(job)));
            }
            Question::Change { pipeline, .. } => {
                let entry = self.catalog.get(&pipeline).filter(|_| !pending.risked);
                let nobody = entry.map(|entry| Refusal::NoCoordinator(entry.name.to_string()));
                let refusal = nobody.unwrap_or(Refusal::Unknown);
                self.reply(pending.request, Response::Refused(refusal));
            }
            Question::Logs { job, .. } if pending.denied && !pending.unsure => {
                self.reply(pending.request, Response::Refused(Refusal::UnknownJob(job)));
            }
            Question::Events { pipeline, .. }
            | Question::Logs { pipeline, .. }
            | Question::Steps { pipeline } => {
                // It changes nothing: it can be asked again.
                let entry = self.catalog.get(&pipeline);
                let nobody = entry.map(|entry| Refusal::NoCoordinator(entry.name.to_string()));
                let refusal = nobody.unwrap_or(Refusal::Unknown);
                self.reply(pending.request, Response::Refused(refusal));
            }
            Question::Job { pipeline, .. }
            | Question::Jobs { pipeline, .. }
            | Question::Newest { pipeline, .. } => {
                self.refuse_question(pending.request, Some(pipeline));
            }
        }
    }

    /// Whether this node itself has a job of which nobody else could tell, and may tell of it.
    fn has_own_copy(&mut self, pipeline: PipelineId, job: JobId) -> bool {
        if self.is_strict(pipeline) {
            return false;
        }
        self.has_job(pipeline, job).unwrap_or_else(|error| {
            // The node is about to stop.
            self.broken = Some(error);
            false
        })
    }

    pub(super) fn on_query_timer(&mut self, query: u64) {
        if let Some(pending) = self.queries.pending.remove(&query) {
            self.reply(pending.request, Response::Refused(Refusal::Unknown));
        }
    }

    pub(super) fn queries_lost(&mut self, peer: NodeId) {
        self.drop_readers(|asker| matches!(asker, Asker::Peer(node, _) if *node == peer));
        for group in self.groups.values_mut() {
            drop_watchers(
                &mut group.watchers,
                |asker| matches!(asker, Asker::Peer(node, _) if *node == peer),
            );
        }
        let lost: Vec<u64> = self
            .queries
            .pending
            .iter()
            .filter(|(_, pending)| pending.asked == peer)
            .map(|(query, _)| *query)
            .collect();
        for query in lost {
            if let Some(pending) = self.queries.pending.remove(&query) {
                self.ask_next(Pending { risked: true, ..pending });
            }
        }
    }

    /// A peer asks.
    pub(super) fn on_query(
        &mut self,
        from: NodeId,
        query: u64,
        question: Question,
    ) -> Result<(), ReadError> {
        let asker = Asker::Peer(from, query);
        let pipeline = question.pipeline();
        let may = match question {
            Question::Change { .. } => self.may_change(pipeline),
            Question::Job { .. } | Question::Jobs { .. } | Question::Newest { .. } => {
                self.may_answer(pipeline)
            }
            // Whoever does not coordinate says so.
            Question::Events { .. } | Question::Logs { .. } | Question::Steps { .. } => true,
        };
        if !may {
            let answer = match question {
                Question::Job { job, .. } if !self.has_job(pipeline, job)? => Answer::Job(None),
                _ => Answer::Elsewhere,
            };
            self.answer(asker, answer);
            return Ok(());
        }
        match question {
            Question::Job { job, wait, .. } => self.answer_job(asker, pipeline, job, wait),
            Question::Jobs { of, state, after, limit, .. } => {
                let (jobs, next) = self.page(pipeline, of, state, after, limit)?;
                self.answer_committed(asker, pipeline, None, Answer::Jobs { jobs, next });
                Ok(())
            }
            Question::Change { which, change, .. } => self.change(asker, pipeline, which, &change),
            Question::Events { query, .. } => {
                self.read_events(asker, Some(pipeline), query);
                Ok(())
            }
            Question::Logs { job, .. } => self.answer_logs(asker, pipeline, job),
            Question::Newest { state, after, limit, .. } => {
                let (jobs, next) = self.newest(pipeline, state, after, limit)?;
                self.answer_committed(asker, pipeline, None, Answer::Jobs { jobs, next });
                Ok(())
            }
            Question::Steps { .. } => {
                let answer = self.step_counts(pipeline).map_or(Answer::Elsewhere, Answer::Steps);
                self.answer(asker, answer);
                Ok(())
            }
        }
    }

    /// The trace of what comes next.
    pub(super) fn on_trace(&mut self, from: NodeId, of: TraceOf, trace: TraceParent) {
        if !trace.is_valid() {
            return;
        }
        match of {
            TraceOf::Attempt(token) => self.worker.expect_traced(from, token, trace),
            TraceOf::Answer(query) => {
                let pending = self.queries.pending.get_mut(&query);
                if let Some(pending) = pending.filter(|pending| pending.asked == from) {
                    pending.trace = Some(trace);
                }
            }
        }
    }

    pub(super) fn on_answer(&mut self, from: NodeId, query: u64, answer: Answer) {
        if self.queries.pending.get(&query).is_none_or(|pending| pending.asked != from) {
            return;
        }
        let Some(pending) = self.queries.pending.remove(&query) else { return };
        let response = match answer {
            Answer::Job(None) => return self.ask_next(Pending { denied: true, ..pending }),
            Answer::Job(Some(view)) => {
                Response::Job(Box::new(JobView { trace: pending.trace, ..*view }))
            }
            Answer::Jobs { jobs, next } => Response::Jobs { jobs, next },
            Answer::Elsewhere => return self.ask_next(Pending { unsure: true, ..pending }),
            Answer::Changed(Err(Refusal::UnknownJob(_))) => {
                return self.ask_next(Pending { denied: true, ..pending });
            }
            Answer::Logs(None) => return self.ask_next(Pending { denied: true, ..pending }),
            Answer::Logs(Some(page)) => Response::Logs(page),
            Answer::Events(page) => Response::Events(page),
            Answer::Steps(steps) => Response::Steps(steps),
            Answer::Changed(Ok(changed)) => Response::Changed(changed),
            Answer::Changed(Err(refusal)) => Response::Refused(refusal),
        };
        self.reply(pending.request, response);
    }

    pub(super) fn has_job(&self, pipeline: PipelineId, job: JobId) -> Result<bool, ReadError> {
        let in_memory =
            self.groups.get(&pipeline).is_some_and(|group| group.jobs.contains_key(&job));
        Ok(in_memory || self.read_record(pipeline, job)?.is_some())
    }

    /// Answers now, or puts the asker among those who wait.
    fn answer_job(
        &mut self,
        asker: Asker,
        pipeline: PipelineId,
        job: JobId,
        wait: Option<Duration>,
    ) -> Result<(), ReadError> {
        let view = self.job_view(pipeline, job)?;
        let unsettled = self
            .groups
            .get(&pipeline)
            .is_some_and(|group| group.jobs.contains_key(&job) || group.jobs.is_resting(&job));
        if let (Some(wait), Some(_), true) = (wait, &view, unsettled) {
            let until = self.now + wait;
            if let Some(group) = self.groups.get_mut(&pipeline)
                && group.watchers.len() < MAX_WATCHERS
            {
                group.watchers.entry(job).or_default().push(Watcher { asker, until });
                self.arm_at(until, Timer::Watch(pipeline));
                return Ok(());
            }
        }
        self.answer_view(asker, pipeline, job, view);
        Ok(())
    }

    fn answer_view(
        &mut self,
        asker: Asker,
        pipeline: PipelineId,
        job: JobId,
        view: Option<JobView>,
    ) {
        match (asker, view) {
            (Asker::Client(request), None) => {
                self.reply(request, Response::Refused(Refusal::UnknownJob(job)));
            }
            (_, view) => {
                let answer = Answer::Job(view.map(Box::new));
                self.answer_committed(asker, pipeline, Some(job), answer);
            }
        }
    }

    /// Answers once what is told of a job, or of many, is committed.
    fn answer_committed(
        &mut self,
        asker: Asker,
        pipeline: PipelineId,
        job: Option<JobId>,
        answer: Answer,
    ) {
        if self.is_committed(pipeline, job) || self.has(Mutant::ReadUncommitted) {
            self.answer(asker, answer);
        } else {
            self.answer_when_durable(asker, pipeline, answer);
        }
    }

    /// Answers once this batch is durable; not more askers than requests may wait are kept waiting.
    pub(super) fn answer_when_durable(
        &mut self,
        asker: Asker,
        pipeline: PipelineId,
        answer: Answer,
    ) {
        if self.queries.held >= self.config.limits.requests {
            return self.give_up_answer(pipeline, asker, &answer);
        }
        self.queries.held += 1;
        let answer = Box::new(answer);
        self.hold_until_durable(pipeline, Held::Answer { asker, answer });
    }

    /// What was to be told is durable.
    pub(super) fn let_answer_go(&mut self, asker: Asker, answer: Answer) {
        self.queries.held = self.queries.held.saturating_sub(1);
        self.answer(asker, answer);
    }

    /// Whether anybody waits for what is not durable yet.
    pub(super) fn are_answers_held(&self) -> bool {
        self.queries.held > 0
    }

    /// Nobody waits for some answers any more.
    pub(super) fn answers_dropped(&mut self, count: usize) {
        self.queries.held = self.queries.held.saturating_sub(count);
    }

    /// What was to be told cannot be.
    pub(super) fn let_answer_fall(&mut self, pipeline: PipelineId, asker: Asker, answer: &Answer) {
        self.queries.held = self.queries.held.saturating_sub(1);
        self.give_up_answer(pipeline, asker, answer);
    }

    fn give_up_answer(&mut self, pipeline: PipelineId, asker: Asker, answer: &Answer) {
        match answer {
            // It may be done all the same.
            Answer::Changed(_) => self.answer(asker, Answer::Changed(Err(Refusal::Unknown))),
            _ => self.answer_elsewhere(pipeline, asker),
        }
    }

    pub(super) fn answer(&mut self, asker: Asker, answer: Answer) {
        let request = match asker {
            Asker::Peer(node, query) => {
                if self.is_reachable(node) {
                    if let Answer::Job(Some(view)) = &answer
                        && let Some(trace) = view.trace
                    {
                        self.send(node, Message::Trace { of: TraceOf::Answer(query), trace });
                    }
                    self.send(node, Message::Answer { query, answer });
                }
                return;
            }
            Asker::Client(request) => request,
        };
        let response = match answer {
            Answer::Job(Some(view)) => Response::Job(view),
            Answer::Jobs { jobs, next } => Response::Jobs { jobs, next },
            Answer::Changed(Ok(changed)) => Response::Changed(changed),
            Answer::Changed(Err(refusal)) => Response::Refused(refusal),
            Answer::Events(page) => Response::Events(page),
            Answer::Steps(steps) => Response::Steps(steps),
            Answer::Logs(Some(page)) => Response::Logs(page),
            Answer::Job(None) | Answer::Logs(None) | Answer::Elsewhere => {
                Response::Refused(Refusal::Unknown)
            }
        };
        self.reply(request, response);
    }

    /// This node coordinates a strict pipeline no longer: others have to be asked.
    pub(super) fn answer_elsewhere(&mut self, pipeline: PipelineId, asker: Asker) {
        match asker {
            Asker::Peer(..) => self.answer(asker, Answer::Elsewhere),
            Asker::Client(request) => self.refuse_question(request, Some(pipeline)),
        }
    }

    /// Nobody hears of the ends of a strict pipeline's jobs from this node any more.
    pub(super) fn drop_watchers_of(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let watchers = std::mem::take(&mut group.watchers);
        for watcher in watchers.into_values().flatten() {
            self.answer_elsewhere(pipeline, watcher.asker);
        }
    }

    /// A job's end is durable: whoever waited is told.
    pub(super) fn answer_watchers(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Some(waiting) = group.watchers.remove(&job) else { return };
        let Some(record) = group.jobs.get(&job).map(|entry| entry.record.clone()) else { return };
        let view = match self.view_of(pipeline, job, &record) {
            Ok(view) => view,
            Err(error) => {
                self.broken = Some(error);
                return;
            }
        };
        for watcher in waiting {
            self.answer_view(watcher.asker, pipeline, job, view.clone());
        }
    }

    /// Some have waited long enough: they get the job as it is.
    pub(super) fn on_watch_timer(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&pipeline) else { return Ok(()) };
        let mut over = Vec::new();
        group.watchers.retain(|job, waiting| {
            let due = waiting.extract_if(.., |watcher| watcher.until <= now);
            over.extend(due.map(|watcher| (*job, watcher.asker)));
            !waiting.is_empty()
        });
        for (job, asker) in over {
            if !self.may_answer(pipeline) {
                self.answer_elsewhere(pipeline, asker);
                continue;
            }
            let view = self.job_view(pipeline, job)?;
            self.answer_view(asker, pipeline, job, view);
        }
        Ok(())
    }

    fn job_view(&self, pipeline: PipelineId, job: JobId) -> Result<Option<JobView>, ReadError> {
        let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        if let Some(entry) = in_memory {
            return self.view_of(pipeline, job, &entry.record);
        }
        match self.read_record(pipeline, job)? {
            Some(record) => self.view_of(pipeline, job, &record),
            None => Ok(None),
        }
    }

    fn view_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
    ) -> Result<Option<JobView>, ReadError> {
        let Some(spec) = record.spec.as_ref() else { return Ok(None) };
        let definition = self.definition(pipeline, spec.revision);
        let phases = definition.and_then(|it| Some((it, it.phases_of(spec)?)));
        let Some((definition, phases)) = phases else { return Ok(None) };
        let state = record.state();
        let compensation = match state.is_terminal() {
            true => self.compensation_of(pipeline, job, record)?,
            false => None,
        };
        let invocations: Vec<InvocationView> = phases
            .iter()
            .enumerate()
            .map(|(step, phase)| {
                let control = record.controls.get(&(step as u16));
                InvocationView {
                    step: phase.name.clone(),
                    phase: phase.phase.clone(),
                    state: control.map_or(JobState::Queued, |control| control.state()),
                    attempt_count: control.map_or(0, |control| control.attempt_count),
                    attempts: control.map_or_else(Vec::new, |control| control.attempts.clone()),
                    note: control.and_then(|control| control.note.clone()),
                    result: control.and_then(|control| match &control.progress {
                        Progress::Succeeded { result, .. } => Some(result.clone()),
                        _ => None,
                    }),
                    items: self.items_view(pipeline, job, step as u16),
                }
            })
            .collect();
        let all: BTreeSet<usize> = (0..phases.len()).collect();
        Ok(Some(JobView {
            job,
            pipeline: definition.name.clone(),
            state,
            created_ms: spec.created_ms,
            finished_ms: state.is_terminal().then(|| record.written_ms()),
            options: spec.options,
            generation: spec.generation,
            key: spec.key.clone(),
            parent: spec.parent.as_ref().map(|parent| (parent.job, parent.index)),
            compensates: spec.compensates.as_ref().map(|compensated| compensated.job),
            compensation: compensation.map(|(job, _)| job),
            instructions: spec.instructions.clone(),
            results: results(record, &all),
            invocations,
            conflicts: record.controls.values().map(|control| control.late_count).sum(),
            other_payloads: record.payload_conflicts() as u32,
            trace: record.trace(),
        }))
    }

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
    fn newest(
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

    /// What waits and runs at each step, if this node coordinates: as it has it in memory.
    fn step_counts(&self, pipeline: PipelineId) -> Option<Vec<StepCounts>> {
        let group = self.groups.get(&pipeline)?;
        let Role::Coordinator(reign) = &group.role else { return None };
        let mut steps: BTreeMap<&Name, (u64, u64)> = BTreeMap::new();
        for ((_, step), queue) in &reign.ready {
            steps.entry(step).or_default().0 += queue.depth();
        }
        for running in reign.running.values() {
            steps.entry(&running.name).or_default().1 += 1;
        }
        let counts = steps.into_iter().map(|(step, (waiting, running))| StepCounts {
            step: step.clone(),
            waiting,
            running,
        });
        Some(counts.filter(|it| it.waiting + it.running > 0).collect())
    }

    /// The cluster as this node sees it.
    pub(super) fn cluster_view(&self) -> ClusterView {
        let mut members: Vec<MemberView> =
            vec![member_view(&self.advert(), Liveness::Alive, self.avoided_for(self.me()))];
        members.extend(self.members.values().map(|member| {
            let avoided = self.avoided_for(member.advert.node);
            let mut view = member_view(&member.advert, self.liveness(member), avoided);
            for slots in &mut view.phases {
                let busy = member.busy.iter().find(|(phase, _)| *phase == slots.phase);
                slots.busy = busy.map_or(slots.busy, |(_, busy)| *busy);
            }
            view
        }));
        let pipelines = self.pipelines().iter();
        let pipelines = pipelines.filter(|(_, entry)| !entry.removed && entry.partition() == 0);
        let pipelines = pipelines.filter_map(|(id, _)| self.pipeline_view(*id)).collect();
        ClusterView { node: self.me(), members, pipelines }
    }

    /// Whether somebody who can be reached runs such a phase, and has what it requires.
    fn is_offered(&self, phase: &PhaseDef) -> bool {
        let meets = |labels| meets_all(&phase.requires, labels);
        let here = self.worker.phases().any(|(offered, _, _)| *offered == phase.phase);
        let offers = |advert: &Advert| advert.phases.iter().any(|slots| slots.phase == phase.phase);
        let mut others = self.members.values().filter(|member| member.reachable);
        here && meets(&self.config.labels)
            || others.any(|member| offers(&member.advert) && meets(&member.advert.labels))
    }

    fn pipeline_view(&self, pipeline: PipelineId) -> Option<PipelineView> {
        let entry = self.catalog.get(&pipeline)?;
        let definition = entry.definition()?;
        let partitions = self.partitions_of(pipeline).into_iter();
        let partitions: Vec<_> = partitions.map(|part| self.partition_view(part)).collect();
        let first = partitions.first()?;
        let (coordinator, replicas) = (first.coordinator, first.replicas.clone());
        let counts = partitions.iter().map(|part| part.counts);
        // Of one whose counts are not known, nothing can be said of the whole.
        let counts = counts.sum::<Option<Counts>>();
        let phases = definition.all_phases().into_iter().filter(|phase| phase.has_worker());
        let unoffered = phases.filter(|phase| !self.is_offered(phase));
        let unoffered: BTreeSet<&Name> = unoffered.map(|phase| &phase.phase).collect();
        Some(PipelineView {
            definition: definition.clone(),
            paused: entry.paused,
            paused_steps: entry.paused_steps.iter().cloned().collect(),
            coordinator,
            replicas,
            counts,
            unoffered: unoffered.into_iter().cloned().collect(),
            partitions,
        })
    }

    fn partition_view(&self, pipeline: PipelineId) -> PartitionView {
        let group = self.groups.get(&pipeline);
        let counts = group.and_then(|group| {
            let told = group.beat.as_ref().filter(|_| group.leader.is_some());
            let own = group.is_coordinator().then(|| group.counts());
            own.or(told.map(|beat| beat.counts))
        });
        let leader = group.and_then(|group| group.leader);
        PartitionView {
            number: self.catalog.get(&pipeline).map_or(0, CatalogEntry::partition),
            coordinator: leader.map(|leader| (leader.node, leader.term)),
            replicas: self.view(pipeline),
            counts,
        }
    }
}

fn member_view(advert: &Advert, liveness: Liveness, avoided: Option<Duration>) -> MemberView {
    let advert = advert.clone();
    MemberView {
        node: advert.node,
        name: advert.name,
        disk: advert.disk,
        boot: advert.boot,
        version: advert.version,
        liveness,
        roles: advert.roles,
        phases: advert.phases,
        labels: advert.labels,
        addresses: advert.addresses,
        refusing: advert.refusing,
        avoided,
    }
}
