//! Clients: they apply the pipeline, enqueue jobs, try again where they heard nothing, and sometimes
//! use a key twice, with the same payload or with another.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use carbonmesh_protocol::{
    id::JobId,
    io::{Input, NewJob, Refusal, Request, RequestId, Response},
    pipeline::{PhaseInput, PipelineDef},
};

use super::{Event, PIPELINE, World, name, step_name};
use crate::invariants::Fact;

/// How many idempotency keys are used more than once.
const SHARED_KEYS: usize = 5;

/// How long a client waits before it asks another node.
const PATIENCE: Duration = Duration::from_secs(7);

/// How often a client asks at most.
const TRIES: u32 = 4;

/// How many of the jobs that were taken are asked for.
const READS_PER_MILLE: u32 = 100;

/// A job that no worker can do.
pub(super) const POISON: &[u8] = b"{\"poison\":1}";

/// What clients did so far.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// The jobs of each request that is not answered, and how often they were sent.
    asked: BTreeMap<RequestId, (Vec<NewJob>, u32)>,
    last_request: u64,
    last_key: u64,
    applied: bool,
    enqueued: usize,
}

impl World {
    /// A client asks some node: first to apply the pipeline, then to take jobs.
    pub(super) fn client(&mut self) {
        if self.clients.applied {
            self.clients.enqueued += 1;
            let count = [1, 1, 20][self.random.below(3)];
            let jobs: Vec<NewJob> = (0..count).map(|_| self.new_job()).collect();
            self.enqueue(jobs, 1);
        } else {
            let steps = (0..self.options.phases).map(|at| PhaseInput::named(name(&step_name(at))));
            let (accept, execute) = self.options.quorums;
            let pipeline = PipelineDef::with(name(PIPELINE), steps.collect(), 3, accept, execute);
            self.request(Request::Apply(pipeline.expect("a valid pipeline")));
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

    fn request(&mut self, request: Request) -> RequestId {
        let gateways = (0..self.nodes.len()).filter(|at| self.nodes[*at].config.roles.gateway);
        let mut gateways: Vec<usize> = gateways.collect();
        // A node with a new disk that has not heard of the pipeline would make it anew.
        let old = |at: &usize| self.nodes[*at].config.disk.0 == *at as u64 + 1;
        if !self.clients.applied && gateways.iter().any(old) {
            gateways.retain(old);
        }
        let at = gateways[self.random.below(gateways.len())];
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
        let key = match self.random.below(10) {
            0 | 1 => Some(format!("shared-{}", self.random.below(SHARED_KEYS))),
            2..6 => {
                self.clients.last_key += 1;
                Some(format!("own-{}", self.clients.last_key))
            }
            _ => None,
        };
        // A client that uses a key for something else is wrong, and must be told.
        let shared = key.as_ref().is_some_and(|key| key.starts_with("shared"));
        let wrong = shared && self.random.per_mille(100);
        let poison = !shared && self.random.per_mille(self.options.failures_per_mille);
        let instructions: &[u8] = match () {
            () if wrong => b"{\"wrong\":1}",
            () if poison => POISON,
            () => b"{}",
        };
        NewJob { key, instructions: Bytes::from_static(instructions) }
    }

    pub(super) fn reply(&mut self, at: usize, id: RequestId, response: Response) {
        let (jobs, tries) = self.clients.asked.remove(&id).unwrap_or_default();
        match response {
            Response::Applied { .. } => self.clients.applied = true,
            Response::Enqueued(answers) => {
                let mut unknown = Vec::new();
                for (job, answer) in jobs.into_iter().zip(&answers) {
                    match answer {
                        Ok(receipt) => {
                            self.tell(Fact::Acknowledged { receipt, job: &job });
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
            _ => {}
        }
    }

    /// A client asks for a job, or waits for its end.
    pub(super) fn read(&mut self, job: JobId) {
        let wait = self.random.per_mille(500).then_some(PATIENCE);
        self.request(Request::Job { job, wait });
    }
}
