//! Clients' questions about jobs: answered from this node's copy where it has one, otherwise by a
//! replica; and those who wait for a job's end.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    id::{JobId, NodeId, PipelineId},
    io::{Refusal, RequestId, Response},
    message::{Answer, Message, Question, TraceOf, Which},
    mutant::Mutant,
    name::Name,
    store::ReadError,
    time::Timestamp,
    trace::TraceParent,
    view::{JobState, JobView},
};

use super::{Core, commit::Held, partitions::Wanted, timer::Timer};

/// How many of those who do not keep a pipeline's jobs are asked for one all the same.
const MOST_ASKED: usize = 10;

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
}
