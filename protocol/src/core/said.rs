//! What attempts say: lines of their logs, and how far they are.
//!
//! ```text
//! attempt ─► Input::Said ─► the worker's tails ─Message::Said─► coordinator ─► its ring of events, and
//!                                                                              the last lines of each attempt
//! ```
//! Nothing waits for any of it. A worker keeps a bounded end of what each of its attempts said, until the
//! attempt's end is durable, and tells it once more to whoever coordinates next; the coordinator knows
//! by their numbers which lines it has, and which were left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    event::{About, AttemptLog, LogsPage, Said, What},
    id::{JobId, NodeId, PipelineId, Token},
    io::{Refusal, RequestId, Response},
    message::{Answer, Held as HeldAttempt, Message, Question, SaidBatch},
    name::Name,
    store::ReadError,
};

use super::{Core, events::Kept, group::Role, query::Asker, timer::Timer};

/// How much is kept of what one attempt said.
const ATTEMPT_BYTES: usize = 128 << 10;

/// How much a worker keeps for all of its attempts.
const WORKER_BYTES: usize = 16 << 20;

/// How much is told to coordinators at a time, and how much of it in one message.
const TOLD_BYTES: usize = 512 << 10;
const MESSAGE_BYTES: usize = 128 << 10;

/// How long lines are gathered before they are told.
const GATHER: std::time::Duration = std::time::Duration::from_millis(50);

/// The end of what one attempt said.
#[derive(Clone, Debug)]
struct Tail {
    held: HeldAttempt,
    number: u32,
    said: VecDeque<Said>,
    bytes: usize,
    /// How many of these were told to the coordinator.
    told: usize,
}

impl Tail {
    fn forget_oldest(&mut self) -> usize {
        let Some(oldest) = self.said.pop_front() else { return 0 };
        self.bytes -= oldest.size();
        self.told = self.told.saturating_sub(1);
        oldest.size()
    }

    /// What comes next, as far as it fits into one message.
    fn take(&mut self) -> Option<SaidBatch> {
        let (mut lines, mut bytes) = (Vec::new(), 0);
        for said in self.said.iter().skip(self.told) {
            if bytes > 0 && bytes + said.size() > MESSAGE_BYTES {
                break;
            }
            bytes += said.size();
            lines.push(said.clone());
        }
        self.told += lines.len();
        let HeldAttempt { pipeline, job, step, token } = self.held;
        let number = self.number;
        Some(SaidBatch { token, pipeline, job, step, number, lines })
            .filter(|batch| !batch.lines.is_empty())
    }
}

/// What a worker's attempts said.
#[derive(Clone, Debug, Default)]
pub(super) struct Tails {
    tails: BTreeMap<Token, Tail>,
    bytes: usize,
    /// Attempts with lines that were not told.
    untold: BTreeSet<Token>,
    /// Whether they are in a moment.
    telling: bool,
}

impl Tails {
    pub(super) fn forget(&mut self, token: Token) {
        self.untold.remove(&token);
        if let Some(tail) = self.tails.remove(&token) {
            self.bytes -= tail.bytes;
        }
    }

    /// Forgets those of all attempts but these.
    pub(super) fn retain(&mut self, known: impl Fn(&Token) -> bool) {
        let gone: Vec<Token> = self.tails.keys().filter(|token| !known(token)).copied().collect();
        gone.into_iter().for_each(|token| self.forget(token));
    }

    fn add(&mut self, held: HeldAttempt, number: u32, said: Said) {
        let tail = self.tails.entry(held.token).or_insert_with(|| Tail {
            held,
            number,
            said: VecDeque::new(),
            bytes: 0,
            told: 0,
        });
        let size = said.size();
        tail.said.push_back(said);
        tail.bytes += size;
        self.bytes += size;
        while tail.bytes > ATTEMPT_BYTES {
            self.bytes -= tail.forget_oldest();
        }
        self.untold.insert(held.token);
        while self.bytes > WORKER_BYTES {
            let Some((token, _)) = self.tails.first_key_value() else { return };
            let token = *token;
            self.forget(token);
        }
    }
}

/// The last lines of attempts, as their coordinator has them.
#[derive(Clone, Debug, Default)]
pub(super) struct Logs {
    attempts: BTreeMap<(JobId, u16, Token), Lines>,
    /// In which order they came.
    order: VecDeque<(JobId, u16, Token)>,
    bytes: usize,
}

#[derive(Clone, Debug)]
struct Lines {
    about: About,
    /// The number of the next.
    next: u64,
    said: VecDeque<Said>,
    bytes: usize,
}

impl Logs {
    /// Keeps a line; says how many before it were left out, or none if it is known already.
    fn add(
        &mut self,
        of: (JobId, u16, Token),
        about: &About,
        said: &Said,
        most: usize,
    ) -> Option<u64> {
        let order = &mut self.order;
        let lines = self.attempts.entry(of).or_insert_with(|| {
            order.push_back(of);
            Lines { about: about.clone(), next: 0, said: VecDeque::new(), bytes: 0 }
        });
        let dropped = said.line.checked_sub(lines.next)?;
        lines.next = said.line.saturating_add(1);
        let size = said.size();
        lines.said.push_back(said.clone());
        lines.bytes += size;
        self.bytes += size;
        while lines.bytes > ATTEMPT_BYTES {
            let Some(oldest) = lines.said.pop_front() else { break };
            lines.bytes -= oldest.size();
            self.bytes -= oldest.size();
        }
        while self.bytes > most || self.order.len() > MAX_ATTEMPTS {
            let Some(oldest) = self.order.pop_front() else { break };
            self.bytes -= self.attempts.remove(&oldest).map_or(0, |lines| lines.bytes);
        }
        Some(dropped)
    }

    fn of(&self, job: JobId) -> Vec<AttemptLog> {
        let mut bytes = 0;
        let of_job = self
            .attempts
            .iter()
            .filter(|((of, ..), lines)| *of == job || lines.about.part_of == Some(job));
        let mut logs: Vec<AttemptLog> = Vec::new();
        for ((of, ..), lines) in of_job {
            bytes += lines.bytes;
            if bytes > PAGE_BYTES && !logs.is_empty() {
                break;
            }
            logs.extend(lines.about.phase.clone().map(|phase| AttemptLog {
                job: *of,
                phase,
                attempt: lines.about.attempt.unwrap_or_default(),
                lines: lines.said.iter().cloned().collect(),
            }));
        }
        logs
    }

    /// What they take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Of how many attempts lines are kept.
const MAX_ATTEMPTS: usize = 20_000;

/// The most of what is kept of a job that goes into one answer.
const PAGE_BYTES: usize = 4 << 20;

impl Core {
    /// An attempt that runs here says something.
    pub(super) fn on_said_here(&mut self, token: Token, said: Vec<Said>) {
        let Some((held, number)) = self.worker.attempt(token) else { return };
        for said in said {
            self.worker.tails.add(held, number, said);
        }
        self.tell_said_soon();
    }

    fn tell_said_soon(&mut self) {
        if !self.worker.tails.telling && !self.worker.tails.untold.is_empty() {
            self.worker.tails.telling = true;
            self.arm(GATHER, Timer::Said);
        }
    }

    /// Lines were gathered for long enough.
    pub(super) fn on_said_timer(&mut self) {
        self.worker.tails.telling = false;
        let untold: Vec<Token> = self.worker.tails.untold.iter().copied().collect();
        let (mut bytes, mut waits) = (0, false);
        for token in untold {
            if bytes > TOLD_BYTES {
                waits = true;
                break;
            }
            bytes += self.tell_said(token);
        }
        if waits {
            self.tell_said_soon();
        }
    }

    /// Tells a coordinator what an attempt said, if there is one; gives back how much that was.
    pub(super) fn tell_said(&mut self, token: Token) -> usize {
        let Some(tail) = self.worker.tails.tails.get(&token) else { return 0 };
        let (pipeline, me) = (tail.held.pipeline, self.me());
        let Some(group) = self.groups.get(&pipeline) else { return 0 };
        let leader = match group.is_coordinator() {
            true => Some(me),
            false => group.leader.map(|leader| leader.node).filter(|node| *node != me),
        };
        // It is told to whoever comes.
        let Some(leader) = leader.filter(|node| self.is_reachable(*node)) else { return 0 };
        let mut bytes = 0;
        self.worker.tails.untold.remove(&token);
        while let Some(tail) = self.worker.tails.tails.get_mut(&token)
            && let Some(batch) = tail.take()
        {
            bytes += batch.lines.iter().map(Said::size).sum::<usize>();
            match leader == me {
                true => self.on_said(me, batch),
                false => self.send(leader, Message::Said(Box::new(batch))),
            }
        }
        bytes
    }

    /// Another coordinates: it is told all of it.
    pub(super) fn tell_said_again(&mut self, pipeline: PipelineId) {
        let tails = &mut self.worker.tails;
        for (token, tail) in &mut tails.tails {
            if tail.held.pipeline == pipeline {
                tail.told = 0;
                tails.untold.insert(*token);
            }
        }
        self.tell_said_soon();
    }

    /// An attempt at a worker says something.
    pub(super) fn on_said(&mut self, from: NodeId, batch: SaidBatch) {
        let SaidBatch { token, pipeline, job, step, number, lines } = batch;
        let most = self.cluster_events.each;
        let about = || {
            let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
            let attempts = &record.controls.get(&step)?.attempts;
            let given = attempts.iter().any(|it| it.token == token && it.worker == from);
            let phase = self.phases_of(pipeline, record)?.get(usize::from(step))?;
            let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
            given.then(|| About {
                job: Some(job),
                part_of: parent.map(|parent| parent.job),
                phase: Some(phase.name.clone()),
                attempt: Some(number),
            })
        };
        let Some(about) = about().filter(|_| self.config.limits.events > 0) else { return };
        for said in lines {
            let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
                return;
            };
            let Some(dropped) = reign.logs.add((job, step, token), &about, &said, most) else {
                continue;
            };
            let at_ms = said.at_ms;
            if dropped > 0 {
                let what = What::LogDropped { line: said.line - dropped, count: dropped };
                self.tell(pipeline, Kept { at_ms, about: about.clone(), what });
            }
            self.tell(pipeline, Kept { at_ms, about: about.clone(), what: said.what() });
        }
    }

    /// A client wants what is kept of a job's logs.
    pub(super) fn ask_logs(&mut self, request: RequestId, job: JobId) -> Result<(), ReadError> {
        let pipelines: Vec<PipelineId> =
            self.catalog.keys().copied().filter(|pipeline| job.may_belong_to(*pipeline)).collect();
        let (mut whom, mut without): (Vec<(PipelineId, NodeId)>, Option<Name>) = (Vec::new(), None);
        for pipeline in pipelines {
            let Some(group) = self.groups.get(&pipeline) else { continue };
            let leader = group.leader.map(|leader| leader.node);
            if group.is_coordinator() {
                if self.has_job(pipeline, job)? {
                    return self.answer_logs(Asker::Client(request), pipeline, job);
                }
                continue;
            }
            match leader.filter(|node| *node != self.me() && self.is_reachable(*node)) {
                Some(node) => whom.push((pipeline, node)),
                None => without = self.catalog.get(&pipeline).map(|entry| entry.name.clone()),
            }
        }
        if !whom.is_empty() {
            let question = |pipeline| Question::Logs { pipeline, job };
            self.pass_on(request, (whom, without.is_some()), question);
            return Ok(());
        }
        let refusal = match without {
            Some(name) => Refusal::NoCoordinator(name.to_string()),
            None => Refusal::UnknownJob(job),
        };
        self.reply(request, Response::Refused(refusal));
        Ok(())
    }

    /// Answers with what is kept of a job's logs, if this node coordinates and has the job.
    pub(super) fn answer_logs(
        &mut self,
        asker: Asker,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<(), ReadError> {
        let here = self.has_job(pipeline, job)?;
        let entry = self.catalog.get(&pipeline).map(|entry| entry.name.clone());
        let group = self.groups.get(&pipeline);
        let page = match (group.map(|group| &group.role), self.last_event(pipeline), entry) {
            (Some(Role::Coordinator(reign)), Some(next), Some(name)) => {
                LogsPage { pipeline: name, attempts: reign.logs.of(job), next }
            }
            _ => {
                self.answer(asker, Answer::Elsewhere);
                return Ok(());
            }
        };
        self.answer(asker, Answer::Logs(here.then(|| Box::new(page))));
        Ok(())
    }
}
