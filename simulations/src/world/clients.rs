//! Clients: they apply the pipeline, enqueue jobs, try again where they heard nothing, and sometimes
//! use a key twice, with the same payload or with another.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use carbonmesh_protocol::{
    id::JobId,
    io::{Change, Changed, Input, NewJob, Refusal, Request, RequestId, Response, Target},
    pipeline::{
        Combine, EachInput, Keep, KeyedLimit, PhaseInput, PipelineDef, Retention, Settings,
    },
    record::JobOptions,
    schedule::{Missed, Overlap, Schedule},
    secret::Place,
};

use super::{Event, PIPELINE, World, name, node::WALL_START_MS, step_name};
use crate::invariants::Fact;

/// How many idempotency keys are used more than once.
const SHARED_KEYS: usize = 5;

/// How long a client waits before it asks another node.
pub(super) const PATIENCE: Duration = Duration::from_secs(7);

/// How long attempts may take, where phases have time-outs: longer than all but those that hang.
const TIME_OUT: Duration = Duration::from_secs(3);

/// How often a client asks at most.
pub(super) const TRIES: u32 = 4;

/// How many of the jobs that were taken are asked for.
const READS_PER_MILLE: u32 = 100;

/// What the second phase waits for, where it does.
const SIGNAL: &str = "go";

/// What is done with each item.
pub(super) const ITEM_STEP: &str = "i0";

/// A job that no worker can do.
pub(super) const POISON: &[u8] = b"{\"poison\":1}";

/// A job every five seconds.
pub(crate) fn schedule() -> Schedule {
    Schedule {
        name: name("tick"),
        cron: "*/5 * * * * *".to_owned(),
        timezone: "UTC".to_owned(),
        instructions: Bytes::from_static(b"{}"),
        missed: Missed::Last,
        overlap: Overlap::Allow,
        since_ms: 0,
    }
}

/// What clients did so far.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// The jobs of each request that is not answered, and how often they were sent.
    asked: BTreeMap<RequestId, (Vec<NewJob>, u32)>,
    last_request: u64,
    last_key: u64,
    applied: bool,
    /// Whether the pipeline was to be split that was whole at first.
    split: bool,
    enqueued: usize,
    /// Values and secrets that are put, and not answered.
    put: BTreeMap<RequestId, Place>,
    /// Jobs that are to be changed, and how.
    changes: BTreeMap<RequestId, (JobId, Change)>,
}

impl Clients {
    /// A value or secret is put.
    pub(super) fn put(&mut self, id: RequestId, place: Place) {
        self.put.insert(id, place);
    }
}

impl World {
    /// A client asks some node: first to apply the pipeline, then to take jobs.
    pub(super) fn client(&mut self) {
        if self.clients.applied {
            self.clients.enqueued += 1;
            let count = [1, 1, 20][self.random.below(3)];
            let jobs: Vec<NewJob> = (0..count).map(|_| self.new_job()).collect();
            jobs.iter().for_each(|job| self.tell(Fact::Asked { job }));
            self.enqueue(jobs, 1);
        } else {
            let definition = self.definition();
            self.request(Request::Apply(Box::new(definition)));
        }
        if self.clients.enqueued < self.options.requests && !self.peace {
            let pace = 2 * self.options.faults_ms / self.options.requests as u64;
            let after = match self.clients.applied {
                true => self.random.between(0, pace),
                false => self.random.between(0, 2000),
            };
            self.push(after, Event::Client);
        }
    }

    fn definition(&self) -> PipelineDef {
        let options = &self.options;
        let step = |at: usize| {
            let mut step = PhaseInput::named(name(&step_name(at)));
            if at == 0 {
                step.rate = options.rate();
                let limit = KeyedLimit { key: "/k".to_owned(), running: 1 };
                step.limit = options.keyed.then_some(limit);
            }
            if options.items_step() == Some(at as u16) {
                step.each = Some(EachInput {
                    of: name(&step_name(0)),
                    phases: vec![PhaseInput::named(name(ITEM_STEP))],
                    tolerate_percent: 0,
                    combine: Combine::List,
                });
            }
            if options.signal_step() == Some(at as u16) {
                step.wait_for = Some(name(SIGNAL));
                step.timeout = Some(Duration::from_secs(20));
            }
            // An attempt that goes on beyond its time still runs, whatever its coordinator counts.
            if options.timed && !options.keyed {
                step.timeout = step.timeout.or(Some(TIME_OUT));
            }
            let undone = options.undone_steps().rev().position(|it| usize::from(it) == at);
            step.compensate = undone.map(|turn| {
                let undo = PhaseInput::named(name(&format!("u{turn}")));
                Box::new(PhaseInput { phase: name(&step_name(0)), ..undo })
            });
            step
        };
        let age = Duration::from_millis(options.keep_ms);
        let keep = Keep { age: Some(age), count: None };
        let retention = match options.keep_ms {
            0 => Retention::DEFAULT,
            _ => Retention { succeeded: keep, dead: keep, cancelled: keep },
        };
        let (accept, execute) = options.quorums;
        let cron = options.cron && !self.peace;
        let schedules = cron.then(schedule).into_iter().collect();
        let whole = options.split_later && !self.clients.split;
        let partitions = if whole { 1 } else { options.partitions };
        let settings =
            Settings { accept, execute, retention, schedules, partitions, ..Settings::default() };
        let steps = (0..options.phases).map(step).collect();
        PipelineDef::with(name(PIPELINE), steps, settings).expect("a valid pipeline")
    }

    fn request(&mut self, request: Request) -> RequestId {
        let gateways = (0..self.nodes.len()).filter(|at| self.nodes[*at].config.roles.gateway);
        // In peace nobody asks a node that has left for good: it would not answer.
        let here = |at: &usize| !self.peace || !self.nodes[*at].gone;
        let mut gateways: Vec<usize> = gateways.filter(here).collect();
        // A node with a new disk that has not heard of the pipeline would make it anew.
        let old = |at: &usize| self.nodes[*at].config.disk.0 == *at as u64 + 1;
        if !self.clients.applied && gateways.iter().any(old) {
            gateways.retain(old);
        }
        let at = gateways[self.random.below(gateways.len())];
        self.request_at(at, request)
    }

    pub(super) fn request_at(&mut self, at: usize, request: Request) -> RequestId {
        let request = self.as_release_takes(at, request);
        self.clients.last_request += 1;
        let id = RequestId(self.clients.last_request);
        let life = self.nodes[at].life;
        let input = Input::Request { id, request }.into();
        self.push(Duration::ZERO, Event::Input { at, life, input });
        id
    }

    fn enqueue(&mut self, jobs: Vec<NewJob>, tries: u32) {
        let id = self.request(Request::Enqueue { pipeline: name(PIPELINE), jobs: jobs.clone() });
        self.clients.asked.insert(id, (jobs, tries));
        self.push(PATIENCE, Event::Patience(id));
    }

    /// A client has waited for long enough.
    pub(super) fn lose_patience(&mut self, id: RequestId) {
        if let Some((jobs, tries)) = self.clients.asked.remove(&id) {
            self.try_again(jobs, tries);
        }
    }

    /// Only what has a key can be sent again without becoming another job.
    fn try_again(&mut self, mut jobs: Vec<NewJob>, tries: u32) {
        jobs.retain(|job| job.key.is_some());
        if !jobs.is_empty() && tries < TRIES {
            self.enqueue(jobs, tries + 1);
        }
    }

    fn new_job(&mut self) -> NewJob {
        // Once nothing is kept of a job, its key is free for another.
        let shares = !self.options.expires();
        let key = match self.random.below(10) {
            0 | 1 if shares => Some(format!("shared-{}", self.random.below(SHARED_KEYS))),
            0..6 => {
                self.clients.last_key += 1;
                Some(format!("own-{}", self.clients.last_key))
            }
            _ => None,
        };
        // A client that uses a key for something else is wrong, and must be told.
        let shared = key.as_ref().is_some_and(|key| key.starts_with("shared"));
        let wrong = shared && self.random.per_mille(100);
        let poison = !shared && self.random.per_mille(self.options.failures_per_mille);
        // The same key has the same payload.
        let owner = match shared {
            true => 0,
            false => self.random.below(4),
        };
        let instructions = match () {
            () if wrong => Bytes::from_static(b"{\"wrong\":1}"),
            () if poison => Bytes::from_static(POISON),
            () if self.options.keyed => format!("{{\"k\":{owner}}}").into(),
            () => Bytes::from_static(b"{}"),
        };
        let options = self.new_options();
        self.traced(NewJob { key, options, trace: None, instructions })
    }

    fn new_options(&mut self) -> JobOptions {
        let mut options = JobOptions::default();
        if self.random.per_mille(self.options.dated_per_mille) {
            let now_ms = WALL_START_MS + self.now.as_millis();
            match self.random.below(3) {
                0 => options.not_before_ms = now_ms + self.random.below(20_000) as u64,
                1 => options.deadline_ms = Some(now_ms + self.random.below(60_000) as u64),
                _ => options.priority = self.random.below(3) as i8 - 1,
            }
        }
        options
    }

    pub(super) fn reply(&mut self, at: usize, id: RequestId, response: Response) {
        let (jobs, tries) = self.clients.asked.remove(&id).unwrap_or_default();
        match response {
            Response::Applied { .. } => {
                if !self.clients.applied {
                    self.tell(Fact::Applied);
                }
                self.clients.applied = true;
            }
            Response::Enqueued(answers) => {
                let mut unknown = Vec::new();
                for (job, answer) in jobs.into_iter().zip(&answers) {
                    match answer {
                        Ok(receipt) => {
                            self.tell(Fact::Acknowledged { receipt, job: &job });
                            self.plan_changes(receipt.job);
                            if self.random.per_mille(READS_PER_MILLE) {
                                let after = self.random.between(0, 5000);
                                self.push(after, Event::Read(receipt.job));
                            }
                        }
                        Err(Refusal::Unknown) => unknown.push(job),
                        Err(_) => {}
                    }
                }
                self.try_again(unknown, tries);
            }
            Response::Job(view) => self.tell(Fact::Told { at, view: &view }),
            Response::SecretPut { .. } => {
                if let Some(place) = self.clients.put.remove(&id) {
                    self.tell(Fact::Put { place: &place });
                }
            }
            Response::Changed(Changed { count: 1.., .. }) => {
                if let Some((job, change)) = self.clients.changes.remove(&id) {
                    self.tell(Fact::Heard { job, change: &change });
                }
            }
            _ => {}
        }
    }

    /// What clients do to a job later.
    fn plan_changes(&mut self, job: JobId) {
        if self.options.signal_step().is_some() {
            let data = match self.random.below(10) {
                0 => Err("not approved".to_owned()),
                _ => Ok(Bytes::from_static(b"{\"s1\":1}")),
            };
            let after = self.random.between(0, 15_000);
            self.push(after, Event::Change(job, Change::Signal { name: name(SIGNAL), data }));
        }
        if self.random.per_mille(self.options.changes_per_mille) {
            let (first, then) = (self.random.between(0, 8000), self.random.between(0, 8000));
            let reason = "no longer wanted".to_owned();
            self.push(first, Event::Change(job, Change::Cancel { reason }));
            let again = match self.random.below(4) {
                0 => Change::Discard,
                of => Change::Retry { from_start: of == 1 },
            };
            self.push(first + then, Event::Change(job, again));
        }
    }

    /// In peace a schedule would go on for ever.
    pub(super) fn end_schedule(&mut self) {
        if self.options.cron {
            let request = Request::Apply(Box::new(self.definition()));
            // Whoever has a new disk and has not heard of the pipeline would make it anew.
            match (0..self.nodes.len()).find(|at| self.knows_pipeline(*at)) {
                Some(at) => self.request_at(at, request),
                None => self.request(request),
            };
        }
    }

    /// Whether clients can ask a node that has heard of the pipeline.
    fn knows_pipeline(&self, at: usize) -> bool {
        self.nodes[at].config.roles.gateway && self.groups_known(at) > 0
    }

    /// How many groups a node knows: one for each partition of the pipeline.
    fn groups_known(&self, at: usize) -> usize {
        self.nodes[at].core.as_ref().map_or(0, |core| core.snapshot().groups.len())
    }

    /// A client wants the pipeline split, until some node has heard of it that knows the pipeline.
    pub(super) fn split(&mut self) {
        if self.peace || (0..self.nodes.len()).any(|at| self.groups_known(at) > 1) {
            return;
        }
        let knowing = (0..self.nodes.len()).find(|at| self.knows_pipeline(*at));
        if let Some(at) = knowing.filter(|_| self.clients.applied) {
            self.clients.split = true;
            let request = Request::Apply(Box::new(self.definition()));
            self.clients.last_request += 1;
            let id = RequestId(self.clients.last_request);
            self.input(at, Input::Request { id, request });
        }
        self.push(Duration::from_secs(2), Event::Split);
    }

    /// A client wants a job changed.
    pub(super) fn change(&mut self, job: JobId, change: Change) {
        self.tell(Fact::Changed { job, change: &change });
        let target = Target::Job(job);
        let id = self.request(Request::Change { target, change: change.clone() });
        self.clients.changes.insert(id, (job, change));
    }

    /// A client asks for a job, or waits for its end.
    pub(super) fn read(&mut self, job: JobId) {
        let wait = self.random.per_mille(500).then_some(PATIENCE);
        self.request(Request::Job { job, wait });
    }
}
