//! A rolling upgrade: nodes begin with an earlier release, and are stopped and started with this one, one
//! after another, while others work; and what only this one knows, as clients use it by then.
//!
//! Releases differ in the versions of messages that they read. An earlier one passes over what is of a
//! later version, as a node's connection does, and sends nothing of the kind.

use std::time::Duration;

use bytes::Bytes;
use carbonmesh_protocol::{
    codec::Encoded,
    io::{Input, NewJob, Request},
    message::{Message, SECRETS_SCHEMA, TRACE_SCHEMA},
    mutant::Mutant,
    name::Namespace,
    secret::{KeyId, Pattern, Place, SEAL_BYTES, Sealed},
    trace::TraceParent,
};

use super::{Event, World};
use crate::invariants::Fact;

/// How many names are put more than once.
const SHARED_PLACES: usize = 4;

impl World {
    /// Whether a node's release knows a message.
    pub(super) fn knows(&self, at: usize, message: &Message) -> bool {
        message.schema() <= self.nodes[at].reads
    }

    /// A node passes over a message that its release does not know.
    pub(super) fn pass_over(&mut self, at: usize, from: usize) {
        self.tell(Fact::PassedOver { at, from });
        if self.is_mutated(Mutant::UnknownEndsConnection) {
            self.cut(at, from, Duration::ZERO);
        }
    }

    pub(super) fn schedule_upgrade(&mut self) {
        let mean = self.options.upgrade_every_ms;
        if mean > 0 && !self.peace {
            let after = self.random.between(mean / 2, mean * 3 / 2);
            self.push(after, Event::Upgrade);
        }
    }

    /// The next node is told to stop. Once peace has come nobody is told any more: some clusters stay mixed.
    pub(super) fn upgrade(&mut self) {
        let old = |at: &usize| {
            let node = &self.nodes[*at];
            node.reads < u8::MAX && node.core.is_some() && !node.gone && node.replaced != node.life
        };
        if self.peace {
            return;
        }
        if let Some(at) = (0..self.nodes.len()).find(old) {
            self.tell(Fact::Upgraded { at });
            let life = self.nodes[at].life;
            self.nodes[at].replaced = life;
            let input = Input::Draining.into();
            self.push(Duration::ZERO, Event::Input { at, life, input });
            let after = self.random.between(0, 5000);
            self.push(after, Event::Replaced { at, life });
        }
        self.put_secret();
        self.schedule_upgrade();
    }

    /// It has stopped, and is started with this release; if it crashed before that, at its next turn.
    pub(super) fn replace_program(&mut self, at: usize, life: u64) {
        if self.nodes[at].life != life {
            return;
        }
        self.crash(at);
        self.nodes[at].reads = u8::MAX;
        let after = self.random.between(100, 3000);
        self.push(after, Event::Restart(at));
    }

    /// What a gateway makes of a request for jobs: an earlier release knows nothing of traces.
    pub(super) fn as_release_takes(&self, at: usize, mut request: Request) -> Request {
        if let Request::Enqueue { jobs, .. } = &mut request
            && self.nodes[at].reads < TRACE_SCHEMA
        {
            jobs.iter_mut().for_each(|job| job.trace = None);
        }
        request
    }

    /// Jobs are parts of traces, as soon as their gateway knows of these.
    pub(super) fn traced(&mut self, job: NewJob) -> NewJob {
        if self.options.upgrade_every_ms == 0 {
            return job;
        }
        let (trace, span) = (self.random.next(), self.random.next());
        let text = format!("00-{:032x}-{:016x}-01", u128::from(trace) + 1, span.max(1));
        let trace: TraceParent = text.parse().expect("a trace context");
        NewJob { trace: Some(trace), ..job }
    }

    /// A client puts a value or secret through a node that knows them.
    fn put_secret(&mut self) {
        let knows = |at: &usize| {
            let node = &self.nodes[*at];
            node.reads >= SECRETS_SCHEMA && node.core.is_some() && node.config.roles.gateway
        };
        let knowing: Vec<usize> = (0..self.nodes.len()).filter(knows).collect();
        if knowing.is_empty() {
            return;
        }
        let at = knowing[self.random.below(knowing.len())];
        let place = Place {
            namespace: Namespace::default(),
            pipeline: Pattern::default(),
            phase: Pattern::default(),
            name: match self.random.below(2) {
                0 => format!("SHARED_{}", self.random.below(SHARED_PLACES)),
                _ => format!("OWN_{}", self.now.as_millis()),
            },
        };
        let bytes = vec![self.random.next() as u8; SEAL_BYTES + 8];
        let sealed =
            Sealed { key: KeyId::from_bytes([7; 8]), hidden: true, bytes: Bytes::from(bytes) };
        let request =
            Request::PutSecret { place: Box::new(place.clone()), sealed: Box::new(sealed) };
        let id = self.request_at(at, request);
        self.clients.put(id, place);
    }
}
