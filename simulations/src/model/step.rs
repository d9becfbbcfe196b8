//! Takes one step: hands an input to a core, does what it wants done, and looks at the invariants.
//!
//! What the node's shell would do at once belongs to the step: a timer that is due fires, and a batch
//! without changes is reported when its turn comes.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    id::NodeId,
    io::{Effect, Input, NewJob, Outcome, Request, RequestId},
    message::Message,
    record::JobOptions,
    time::Timestamp,
};

use super::{
    PIPELINE, Preset,
    action::{Action, Short},
    history::{ASSERTION, Scene},
    name,
    network::{Packet, Way},
    node::Node,
    pipeline,
    state::State,
};

/// More rounds than any input needs.
const ROUNDS: usize = 1000;

/// A state on its way to the next.
pub(super) struct Step {
    pub(super) state: State,
    pub(super) preset: Preset,
    /// What is told to whoever reads along, if anybody does.
    pub(super) log: Option<Vec<String>>,
    #[cfg(feature = "mutants")]
    pub(super) mutant: Option<carbonmesh_protocol::mutant::Mutant>,
}

impl Step {
    /// Does what an action says. A core that trips over its own assertions has broken them.
    pub(super) fn take(&mut self, action: Action) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.act(action))) {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&it| it.to_owned()));
            self.state.broken = Some((ASSERTION, text.unwrap_or_default()));
        }
    }

    fn act(&mut self, action: Action) {
        let left = &mut self.state.left;
        match action {
            Action::Next => self.next(),
            Action::Lose => {
                left.losses -= 1;
                let lost = self.state.network.take(&self.state.paused);
                lost.into_iter().for_each(|lost| self.state.network.stray(lost));
            }
            Action::Repeat => {
                left.repeats -= 1;
                let again = self.state.next().cloned();
                again.into_iter().for_each(|again| self.state.network.stray(again));
                self.next();
            }
            Action::Stray(at) => {
                let (way, packet) = self.state.network.take_stray(at);
                self.deliver(way, packet);
            }
            Action::Hold(way) => {
                left.holds -= 1;
                self.state.network.hold(way);
            }
            Action::Release(way) => self.state.network.release(way),
            Action::Fire(at) => {
                left.timers[at] -= 1;
                self.fire(at);
            }
            Action::Finish(at, token) => self.on_node(at, |step| {
                step.node(at).attempts.remove(&token);
                let outcome = Outcome::Succeeded(Bytes::from_static(b"{}"));
                step.input(at, Input::AttemptFinished { token, outcome });
            }),
            Action::Enqueue(at) => {
                left.jobs -= 1;
                let number = left.jobs;
                self.enqueue(at, &format!("later {number}"));
            }
            Action::Cut((a, b)) => {
                left.cuts -= 1;
                self.state.network.cut(a, b);
            }
            Action::Connect(way) => {
                left.connections -= 1;
                self.state.network.connect(way);
            }
            Action::Pause(at) => {
                left.pauses[at] -= 1;
                self.state.paused.insert(at);
            }
            Action::Resume(at, timers) => {
                self.state.paused.remove(&at);
                if timers {
                    self.on_node(at, |step| step.rounds(at));
                }
            }
            Action::Crash(at, kept) => {
                left.crashes[at] -= 1;
                self.crash(at, kept);
            }
        }
    }

    fn next(&mut self) {
        if let Some((way, packet)) = self.state.network.take(&self.state.paused) {
            self.deliver(way, packet);
        }
    }

    fn deliver(&mut self, (from, to): Way, packet: Packet) {
        let peer = self.id(from);
        let input = match packet {
            Packet::Synced => return self.on_node(to, |step| step.synced(to)),
            Packet::Up => Input::PeerUp(peer),
            Packet::Down => Input::PeerDown(peer),
            Packet::Message(_, message) => {
                Input::Message { from: peer, message: (*message).clone() }
            }
        };
        self.on_node(to, |step| step.input(to, input));
    }

    /// A node's clock goes on to its next timer.
    pub(super) fn fire(&mut self, at: usize) {
        self.on_node(at, |step| {
            let clock = step.clock(at);
            let due = step.node(at).core.poll_timeout().map_or(clock, |due| due.max(clock));
            step.node(at).clock = due;
            if step.preset == Preset::Strict {
                step.state.now = due;
            }
            step.rounds(at);
        });
    }

    /// What a node's clock shows.
    fn clock(&mut self, at: usize) -> Timestamp {
        let now = self.state.now;
        let node = self.node(at);
        node.clock = node.clock.max(now);
        node.clock
    }

    /// A client hands a job in.
    pub(super) fn enqueue(&mut self, at: usize, key: &str) {
        let instructions = Bytes::from_static(b"{}");
        let jobs = vec![NewJob {
            key: Some(key.to_owned()),
            options: JobOptions::default(),
            trace: None,
            instructions,
        }];
        let request = Request::Enqueue { pipeline: name(PIPELINE), jobs };
        self.on_node(at, |step| step.input(at, Input::Request { id: RequestId(1), request }));
    }

    pub(super) fn crash(&mut self, at: usize, kept: usize) {
        self.state.network.crash(at, self.state.nodes.len());
        let before = Arc::clone(&self.state.nodes[at]);
        self.clock(at);
        self.node(at).restart(kept);
        #[cfg(feature = "mutants")]
        {
            let mutant = self.mutant;
            self.node(at).core.mutate(mutant);
        }
        self.drain(at);
        self.rounds(at);
        self.over(at, &before, false);
    }

    /// Lets one node do something, then looks at what became of it.
    pub(super) fn on_node(&mut self, at: usize, change: impl FnOnce(&mut Self)) {
        let before = Arc::clone(&self.state.nodes[at]);
        change(self);
        self.over(at, &before, true);
    }

    fn over(&mut self, at: usize, before: &Node, same: bool) {
        self.node(at).seal();
        let scene = Scene { nodes: &self.state.nodes, pipeline: pipeline(), preset: self.preset };
        let verdict = Arc::make_mut(&mut self.state.history).stepped(&scene, at, before, same);
        self.state.broken = self.state.broken.take().or(verdict.err());
    }

    fn node(&mut self, at: usize) -> &mut Node {
        Arc::make_mut(&mut self.state.nodes[at])
    }

    fn id(&self, at: usize) -> NodeId {
        self.state.nodes[at].config.node
    }

    pub(super) fn input(&mut self, at: usize, input: Input) {
        let clock = self.clock(at);
        self.node(at).core.handle_input(clock, input).expect("the disk can be read");
        self.drain(at);
        self.rounds(at);
    }

    /// Fires what is due, until nothing is.
    fn rounds(&mut self, at: usize) {
        let clock = self.clock(at);
        for _ in 0..ROUNDS {
            let core = &mut self.node(at).core;
            if core.poll_timeout().is_none_or(|due| due > clock) {
                return;
            }
            core.handle_timeout(clock).expect("the disk can be read");
            self.drain(at);
        }
        panic!("n{at} is never done");
    }

    pub(super) fn synced(&mut self, at: usize) {
        if let Some(id) = self.node(at).sync() {
            self.input(at, Input::Persisted(id));
        }
        while self.state.nodes[at].unsynced.front().is_some_and(|(_, writes)| writes.is_empty()) {
            let Some(id) = self.node(at).sync() else { return };
            self.input(at, Input::Persisted(id));
        }
    }

    pub(super) fn drain(&mut self, at: usize) {
        while let Some(effect) = self.node(at).core.poll_effect() {
            self.effect(at, effect);
        }
    }

    fn effect(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Send { to, message } => self.send(at, to, message),
            Effect::Persist { id, writes } => {
                let node = self.node(at);
                let (idle, empty) = (node.unsynced.is_empty(), writes.is_empty());
                node.unsynced.push_back((id, Arc::new(writes)));
                match empty {
                    false => self.state.network.put((at, at), Packet::Synced),
                    true if idle => self.synced(at),
                    true => {}
                }
            }
            Effect::StartAttempt(attempt) => {
                let what = (attempt.job, attempt.step.to_string());
                self.tell(|| format!("n{at} runs {} {}", attempt.job, attempt.token));
                self.node(at).attempts.insert(attempt.token, what.clone());
                let scene =
                    Scene { nodes: &self.state.nodes, pipeline: pipeline(), preset: self.preset };
                let history = Arc::make_mut(&mut self.state.history);
                let verdict = history.started(&scene, at, attempt.token, what);
                self.state.broken = self.state.broken.take().or(verdict.err());
            }
            Effect::Reply { response, .. } => self.tell(|| format!("n{at} replies {response:?}")),
            // Gossip is a hint, and here never arrives; an attempt ends by itself, as a phase that
            // does not listen does.
            Effect::Publish(_) | Effect::CancelAttempt(_) | Effect::ItemsTaken(_) => {}
        }
    }

    fn send(&mut self, at: usize, to: NodeId, message: Message) {
        let Some(to) = self.state.nodes.iter().position(|node| node.config.node == to) else {
            return;
        };
        self.tell(|| format!("n{at} -> n{to} {}", Short(&message)));
        let scene = Scene { nodes: &self.state.nodes, pipeline: pipeline(), preset: self.preset };
        let verdict = Arc::make_mut(&mut self.state.history).sent(&scene, (at, to), &message);
        self.state.broken = self.state.broken.take().or(verdict.err());
        self.state.network.send((at, to), message);
    }

    fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(line());
        }
    }
}
