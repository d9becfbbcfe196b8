//! Runs the core: inputs from the network, the disk, phases and clients; effects to all of them.
//!
//! ```text
//!  net ──► events ─┐                ┌─► lanes: one frame to each peer and round
//!  http ─► calls ──┤  core thread   ├─► disk thread: one synced write per round of its own
//!  phases ► news ──┤  (this)        ├─► phases
//!  disk ──► done ──┘                └─► answers to clients
//! ```
//! All inputs that wait are handed in before effects are taken, so that a busy node makes few large
//! writes and frames out of many small ones. This thread never waits for the disk or the network.

mod disk;

use std::{collections::BTreeMap, io, sync::Arc, thread, time::Duration};

use bytes::BytesMut;
use carbonmesh_protocol::{
    codec,
    core::Core,
    id::NodeId,
    io::{Effect, Input, PersistId, Refusal, Request, RequestId, Response},
    rights::NotAllowed,
    store::ReadError,
    time::Timestamp,
};
use carbonmesh_storage::{Storage, StorageError};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

use crate::{
    clock,
    handle::Call,
    net::{Gossip, Lane, NetEvent},
    phase::{Heard, News, OfferedPhase, PhaseRunner},
    trust::Trust,
};

/// How many inputs of one kind are handed in before effects are taken.
pub(crate) const ROUND: usize = 1024;

/// A frame to a peer is sent when it has grown to this, even within a round.
const FRAME_BYTES: usize = 4 << 20;

/// How often the wall clock is compared.
const WALL_CLOCK_EVERY: Duration = Duration::from_secs(10);

/// How often refused messages are logged.
const REFUSED_EVERY: Duration = Duration::from_secs(10);

/// The node cannot go on. What was acknowledged is on disk.
#[derive(Debug, Error)]
pub enum DriverError {
    /// The store cannot be written: nothing more is acknowledged.
    #[error("cannot write to the data folder, so nothing more can be acknowledged: {0}")]
    Write(#[source] StorageError),
    /// What the store holds is damaged.
    #[error(
        "the data folder is damaged ({0}): move it away and start with an empty one; the cluster's other replicas fill it again"
    )]
    Damaged(String),
    /// The store cannot be read.
    #[error("cannot read the data folder: {0}")]
    Read(#[from] ReadError),
    /// The system refuses a thread or a clock.
    #[error("the system refuses a clock or a thread: {0}")]
    System(#[from] io::Error),
    /// A thread of the node died.
    #[error("a thread of the node died: see the log above; this is a bug")]
    Died,
}

impl From<StorageError> for DriverError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupt(reason) => Self::Damaged(reason),
            error => Self::Write(error),
        }
    }
}

/// What the node tells its driver.
#[derive(Debug)]
pub(crate) enum Command {
    /// Whether the disk has room for more jobs; the reason if not.
    Accepting(Result<(), String>),
    /// Take no new work; the sender is answered when nothing is under way any more.
    Drain(oneshot::Sender<()>),
    /// End at once.
    Stop,
    /// A sync failed outside the driver's own writes.
    Fail(StorageError),
    /// The phases that the node offers from now on.
    Offer(Vec<OfferedPhase>),
}

/// Where inputs come from.
pub(crate) struct Inputs {
    pub(crate) net: mpsc::Receiver<NetEvent>,
    pub(crate) calls: mpsc::Receiver<Call>,
    pub(crate) phases: mpsc::Receiver<News>,
    pub(crate) said: mpsc::Receiver<Heard>,
    pub(crate) commands: mpsc::Receiver<Command>,
}

/// Where effects go.
pub(crate) struct Outputs {
    pub(crate) gossip: Gossip,
    pub(crate) runner: PhaseRunner,
    pub(crate) storage: Arc<dyn Storage>,
    /// What peers may say, where certificates decide that.
    pub(crate) trust: Option<Trust>,
}

/// Runs the core on a thread of its own; the receiver hears how it ended.
///
/// # Errors
/// The system refuses a thread.
pub(crate) fn spawn(
    core: Core,
    inputs: Inputs,
    outputs: Outputs,
) -> io::Result<oneshot::Receiver<Result<(), DriverError>>> {
    let (ended, result) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    thread::Builder::new().name("core".to_owned()).spawn(move || {
        let run = runtime.block_on(async {
            let (disk, written) = disk::spawn(outputs.storage)?;
            let mut driver = Driver {
                core,
                gossip: outputs.gossip,
                runner: outputs.runner,
                trust: outputs.trust,
                secrets: 0,
                refused_at: None,
                disk,
                lanes: BTreeMap::new(),
                answers: BTreeMap::new(),
                drained: Vec::new(),
                wall_clock_at: clock::now()?,
            };
            driver.run(inputs, written).await
        });
        // Nobody listens if the node was dropped.
        let _ = ended.send(run);
    })?;
    Ok(result)
}

struct Driver {
    core: Core,
    gossip: Gossip,
    runner: PhaseRunner,
    trust: Option<Trust>,
    /// What stands for the values and secrets that attempts get.
    secrets: u64,
    /// When a message that its sender may not send was logged last.
    refused_at: Option<Timestamp>,
    disk: disk::Queue,
    lanes: BTreeMap<NodeId, Outgoing>,
    answers: BTreeMap<RequestId, oneshot::Sender<Response>>,
    drained: Vec<oneshot::Sender<()>>,
    wall_clock_at: Timestamp,
}

/// A peer's lane, and the frame that is being gathered for it.
struct Outgoing {
    lane: Lane,
    frame: BytesMut,
    /// For how much there is room in the next: somewhat more than the last one had.
    room: usize,
}

/// Inputs that came in one round.
#[derive(Default)]
struct Round {
    written: Vec<PersistId>,
    net: Vec<NetEvent>,
    phases: Vec<News>,
    said: Vec<Heard>,
    calls: Vec<Call>,
    stop: bool,
}

impl Driver {
    async fn run(
        &mut self,
        mut inputs: Inputs,
        mut written: mpsc::UnboundedReceiver<disk::Written>,
    ) -> Result<(), DriverError> {
        let mut round = Round::default();
        loop {
            self.take_effects()?;
            self.tell_drained();
            let wake = self.sleep();
            tokio::select! {
                biased;
                command = inputs.commands.recv() => self.command(command, &mut round)?,
                batch = written.recv() => round.written = batch.ok_or(DriverError::Died)??,
                count = inputs.net.recv_many(&mut round.net, ROUND) => {
                    // The network ends after the driver, unless it died.
                    if count == 0 {
                        return Err(DriverError::Died);
                    }
                }
                _ = inputs.phases.recv_many(&mut round.phases, ROUND) => {}
                _ = inputs.said.recv_many(&mut round.said, ROUND) => {}
                _ = inputs.calls.recv_many(&mut round.calls, ROUND) => {}
                () = wake => {}
            }
            round.gather(&mut inputs, &mut written)?;
            self.hand_in(&mut round)?;
            if round.stop {
                return Ok(());
            }
        }
    }

    fn hand_in(&mut self, round: &mut Round) -> Result<(), DriverError> {
        let now = clock::now()?;
        if now.since(self.wall_clock_at) >= WALL_CLOCK_EVERY {
            self.wall_clock_at = now;
            self.core.set_wall_clock(now, clock::unix_ms());
        }
        for id in round.written.drain(..) {
            self.core.handle_input(now, Input::Persisted(id))?;
        }
        for event in round.net.drain(..) {
            self.net_event(now, event)?;
        }
        // What an attempt said comes before its end.
        for (token, said) in round.said.drain(..) {
            self.core.handle_input(now, Input::Said { token, said: vec![said] })?;
        }
        for news in round.phases.drain(..) {
            let input = match news {
                News::Ended(token, outcome) => Input::AttemptFinished { token, outcome },
                News::Items { token, lines } => Input::Items { token, lines },
                News::Session { token, entries } => Input::Session { token, entries },
            };
            self.core.handle_input(now, input)?;
        }
        for call in round.calls.drain(..) {
            let input = match call {
                Call::Ask { request, answer, .. } if !self.may_serve(&request) => {
                    // The client may have gone.
                    let _ = answer.send(Response::Refused(Refusal::NotGateway));
                    continue;
                }
                Call::Ask { id, request, answer } => {
                    self.answers.insert(id, answer);
                    Input::Request { id, request }
                }
                Call::Drain(drained) => {
                    // Bounded: whoever has lost patience waits no more.
                    self.drained.retain(|waiting| !waiting.is_closed());
                    self.drained.push(drained);
                    Input::Draining
                }
                Call::Forget(id) => {
                    self.answers.remove(&id);
                    Input::RequestDropped(id)
                }
                Call::Figures(answer) => {
                    // Whoever asked may have gone.
                    let _ = answer.send(Box::new(self.core.figures()));
                    continue;
                }
            };
            self.core.handle_input(now, input)?;
        }
        if self.core.poll_timeout().is_some_and(|at| at <= now) {
            self.core.handle_timeout(now)?;
        }
        Ok(())
    }

    fn net_event(&mut self, now: Timestamp, event: NetEvent) -> Result<(), DriverError> {
        let input = match event {
            NetEvent::PeerUp(peer, lane) => {
                self.lanes.insert(peer, Outgoing { lane, frame: BytesMut::new(), room: 0 });
                Input::PeerUp(peer)
            }
            NetEvent::PeerDown(peer) => {
                self.lanes.remove(&peer);
                Input::PeerDown(peer)
            }
            NetEvent::Expelled(node) => {
                self.lanes.remove(&node);
                Input::Expelled(node)
            }
            NetEvent::Advert(mut advert) => {
                if let Some(trust) = &self.trust {
                    // What it may claim is known once it was here: until then it is only dialled.
                    let Some(rights) = trust.rights_of(advert.node) else { return Ok(()) };
                    rights.limit(&mut advert);
                }
                Input::Advert(advert)
            }
            NetEvent::Listening(addresses) => Input::Listening(addresses),
            NetEvent::Messages { from, messages } => {
                let rights = self.trust.as_ref().map(|trust| trust.rights_of(from));
                for mut message in messages {
                    // Without certificates every member may say everything.
                    let admitted = match &rights {
                        None => Ok(()),
                        Some(None) => return Ok(()),
                        Some(Some(rights)) => rights.admit(&mut message),
                    };
                    if let Err(error) = admitted {
                        self.note_refused(now, from, &error);
                        continue;
                    }
                    self.core.handle_input(now, Input::Message { from, message })?;
                }
                return Ok(());
            }
        };
        Ok(self.core.handle_input(now, input)?)
    }

    /// Whether this node may do what its client asks for: others would not listen.
    fn may_serve(&self, request: &Request) -> bool {
        let Some(trust) = &self.trust else { return true };
        matches!(
            request,
            Request::Cluster | Request::Revisions(_) | Request::Handlers | Request::Secrets
        ) || trust.rights().serve_clients()
    }

    fn note_refused(&mut self, now: Timestamp, from: NodeId, error: &NotAllowed) {
        // A worker that is asked for the catalog answers: no harm is meant by that.
        let expected = matches!(
            error,
            NotAllowed::Kind { kind: "Catalog" | "Handlers" | "Secrets" | "Stale", .. }
        );
        let due = self.refused_at.is_none_or(|at| now.since(at) >= REFUSED_EVERY);
        if expected || !due {
            debug!(%from, %error, "refused a message");
            return;
        }
        self.refused_at = Some(now);
        warn!(%from, %error, "refused a message: its sender's certificate does not grant that");
    }

    fn command(&mut self, command: Option<Command>, round: &mut Round) -> Result<(), DriverError> {
        let now = clock::now()?;
        match command {
            Some(Command::Accepting(accepting)) => {
                self.core.handle_input(now, Input::Accepting(accepting))?;
            }
            Some(Command::Drain(drained)) => {
                self.drained.push(drained);
                self.core.handle_input(now, Input::Draining)?;
            }
            Some(Command::Fail(error)) => return Err(error.into()),
            Some(Command::Offer(phases)) => {
                let offers = phases.iter().map(|phase| (phase.name.clone(), phase.slots)).collect();
                // What begins in this round may be of a phase from before, or of a new one.
                let gone = self.runner.offer(phases);
                self.core.handle_input(now, Input::Offers(offers))?;
                self.take_effects()?;
                self.runner.withdraw(&gone);
            }
            // Nobody is left who could ask for more.
            Some(Command::Stop) | None => round.stop = true,
        }
        Ok(())
    }

    /// What begins in this round gets what the cluster keeps by now.
    fn look_at_secrets(&mut self) {
        let now = self.core.secrets_digest();
        if now != self.secrets {
            self.secrets = now;
            self.runner.look_at_secrets(self.core.secrets());
        }
    }

    fn take_effects(&mut self) -> Result<(), DriverError> {
        self.look_at_secrets();
        while let Some(effect) = self.core.poll_effect() {
            match effect {
                Effect::Send { to, message } => {
                    let Some(outgoing) = self.lanes.get_mut(&to) else { continue };
                    if outgoing.frame.is_empty() {
                        outgoing.frame.reserve(outgoing.room);
                    }
                    codec::encode_into(&message, &mut outgoing.frame);
                    if outgoing.frame.len() >= FRAME_BYTES {
                        outgoing.flush();
                    }
                }
                Effect::Publish(advert) => self.gossip.publish(advert),
                Effect::Persist { id, writes } => self.disk.write(id, writes)?,
                Effect::StartAttempt(attempt) => self.runner.start(*attempt),
                Effect::CancelAttempt(token) => self.runner.cancel(token),
                Effect::ItemsTaken(token) => self.runner.items_taken(token),
                Effect::Reply { id, response } => {
                    if let Some(answer) = self.answers.remove(&id) {
                        // The client may have gone.
                        let _ = answer.send(response);
                    }
                }
            }
        }
        self.lanes.values_mut().for_each(Outgoing::flush);
        Ok(())
    }

    fn tell_drained(&mut self) {
        if !self.drained.is_empty() && self.core.is_quiet() {
            for drained in self.drained.drain(..) {
                // Whoever asked may have lost patience.
                let _ = drained.send(());
            }
        }
    }

    /// Until the core wants to be called.
    fn sleep(&self) -> impl Future<Output = ()> + use<> {
        let at = self.core.poll_timeout();
        // Without a clock the next round ends with its error.
        let wait = at.map(|at| at.since(clock::now().unwrap_or(at)));
        async move {
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => std::future::pending().await,
            }
        }
    }
}

impl Outgoing {
    fn flush(&mut self) {
        if !self.frame.is_empty() {
            let bytes = self.frame.len().min(FRAME_BYTES);
            self.room = bytes + bytes / 8;
            self.lane.send(self.frame.split().freeze());
        }
    }
}

impl Round {
    /// Takes all else that waits, without waiting for it.
    fn gather(
        &mut self,
        inputs: &mut Inputs,
        written: &mut mpsc::UnboundedReceiver<disk::Written>,
    ) -> Result<(), DriverError> {
        while let Ok(batch) = written.try_recv() {
            self.written.extend(batch?);
        }
        take(&mut inputs.net, &mut self.net);
        take(&mut inputs.phases, &mut self.phases);
        // Later than their ends: what is in this queue now was said before any of these.
        take(&mut inputs.said, &mut self.said);
        take(&mut inputs.calls, &mut self.calls);
        Ok(())
    }
}

fn take<T>(from: &mut mpsc::Receiver<T>, into: &mut Vec<T>) {
    while into.len() < ROUND
        && let Ok(item) = from.try_recv()
    {
        into.push(item);
    }
}
