//! Clients: they apply the pipeline, enqueue jobs, and sometimes use a key twice, with the same
//! payload or with another.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use carbonmesh_protocol::{
    io::{Input, NewJob, Request, RequestId, Response},
    pipeline::{PhaseInput, PipelineDef},
};

use super::{Event, PIPELINE, World, name, step_name};
use crate::invariants::Fact;

/// How many idempotency keys there are.
const KEYS: usize = 5;

/// What clients did so far.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// The jobs of each request that is not answered.
    asked: BTreeMap<RequestId, Vec<NewJob>>,
    last_request: u64,
    applied: bool,
    enqueued: usize,
}

impl World {
    /// A client asks some node: first to apply the pipeline, then to take jobs.
    pub(super) fn client(&mut self) {
        let at = self.random.below(self.nodes.len());
        self.clients.last_request += 1;
        let id = RequestId(self.clients.last_request);
        let request = if self.clients.applied {
            self.clients.enqueued += 1;
            let count = [1, 1, 20][self.random.below(3)];
            let jobs: Vec<NewJob> = (0..count).map(|_| self.new_job()).collect();
            self.clients.asked.insert(id, jobs.clone());
            Request::Enqueue { pipeline: name(PIPELINE), jobs }
        } else {
            let steps = (0..self.options.phases).map(|at| PhaseInput::named(name(&step_name(at))));
            let pipeline = PipelineDef::new(name(PIPELINE), steps.collect());
            Request::Apply(pipeline.expect("a valid pipeline"))
        };
        let life = self.nodes[at].life;
        let input = Input::Request { id, request }.into();
        self.push(Duration::ZERO, Event::Input { at, life, input });
        if self.clients.enqueued < self.options.requests && !self.peace {
            let after = self.random.between(0, 1000);
            self.push(after, Event::Client);
        }
    }

    fn new_job(&mut self) -> NewJob {
        let key = self.random.per_mille(200).then(|| format!("key-{}", self.random.below(KEYS)));
        // A client that uses a key for something else is wrong, and must be told.
        let wrong = key.is_some() && self.random.per_mille(100);
        let instructions: &[u8] = if wrong { b"{\"wrong\":1}" } else { b"{}" };
        NewJob { key, instructions: Bytes::from_static(instructions) }
    }

    pub(super) fn reply(&mut self, id: RequestId, response: Response) {
        let jobs = self.clients.asked.remove(&id).unwrap_or_default();
        match response {
            Response::Applied { .. } => self.clients.applied = true,
            Response::Enqueued(answers) => {
                for (job, answer) in jobs.iter().zip(&answers) {
                    if let Ok(receipt) = answer {
                        self.tell(Fact::Acknowledged { receipt, job });
                    }
                }
            }
            _ => {}
        }
    }
}
