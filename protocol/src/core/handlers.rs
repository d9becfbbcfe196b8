//! The handlers that the cluster keeps: every node has all of them, joined like pipelines.
//!
//! A change goes to every peer at once. What was missed is found by the digest in each beat, which
//! stands for pipelines and handlers together; then the node says what it has, and gets what differs.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    codec,
    handler::{Handler, HandlerEntry, MAX_HANDLERS},
    id::NodeId,
    io::{Effect, Refusal, RequestId, Response},
    message::Message,
    name::Name,
    store::{ReadError, Table, Write},
};

use super::{Core, commit::Held, timer::Timer};

/// How many changes of a handler a node may have missed.
const LARGEST_STEP: u64 = 1 << 20;

/// The prefix of a handler, in [`Table::Meta`].
const HANDLER: u8 = 0x06;

/// Handlers that were removed stay as marks, so that nobody brings them back; they are bounded too.
const MAX_ENTRIES: usize = 4 * MAX_HANDLERS;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(super) struct Handlers {
    all: BTreeMap<Name, HandlerEntry>,
    /// An order-free hash of them.
    digest: u64,
    waiting: BTreeMap<RequestId, Pending>,
}

/// A change that its client waits for.
#[derive(Clone, Debug)]
struct Pending {
    phase: Name,
    digest: u64,
    waiting: BTreeSet<NodeId>,
    here: bool,
    copies: u32,
    changed: bool,
}

impl Handlers {
    /// How many clients wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody reads the answer any more.
    pub(super) fn drop_request(&mut self, request: RequestId) {
        self.waiting.remove(&request);
    }
}

impl Core {
    pub(super) fn load_handlers(&mut self) -> Result<(), ReadError> {
        for (_, value) in self.reader.scan(Table::Meta, &[HANDLER], &[HANDLER + 1], usize::MAX)? {
            let entry: HandlerEntry = codec::decode(&value).map_err(|error| ReadError {
                table: Table::Meta.name(),
                reason: format!("a handler is damaged: {error}"),
            })?;
            self.handlers.all.insert(entry.phase.clone(), entry);
        }
        self.digest_handlers();
        Ok(())
    }

    fn digest_handlers(&mut self) {
        self.handlers.digest =
            self.handlers.all.values().fold(0, |all, entry| all ^ entry.digest());
    }

    /// A digest of all that every node has.
    pub(super) fn shared_digest(&self) -> u64 {
        self.catalog_digest ^ self.handlers.digest ^ self.secrets.digest()
    }

    /// A peer has other pipelines or handlers.
    pub(super) fn pull_handlers(&mut self, from: NodeId) {
        let all = self.handlers.all.values();
        let known = all.map(|entry| (entry.phase.clone(), entry.digest())).collect();
        self.send(from, Message::HandlersPull(known));
    }

    /// A client wants a phase to have this handler.
    pub(super) fn put_handler(&mut self, request: RequestId, phase: Name, handler: Handler) {
        if let Err(reason) = handler.check() {
            return self.reply(request, Response::Refused(Refusal::InvalidHandler(reason)));
        }
        let there = self.handlers.all.values().filter(|entry| entry.handler.is_some()).count();
        let known = self.handlers.all.get(&phase);
        let entry = match known {
            Some(entry) if entry.handler.as_ref() == Some(&handler) => entry.clone(),
            Some(entry) if entry.handler.is_some() || there < MAX_HANDLERS => {
                entry.changed(Some(handler), self.wall_ms())
            }
            None if there < MAX_HANDLERS && self.handlers.all.len() < MAX_ENTRIES => {
                HandlerEntry::new(phase).changed(Some(handler), self.wall_ms())
            }
            Some(_) | None => {
                let refusal = Refusal::TooManyHandlers(there);
                return self.reply(request, Response::Refused(refusal));
            }
        };
        self.spread_handler(request, entry);
    }

    /// A client wants a phase to have no handler any more.
    pub(super) fn remove_handler(&mut self, request: RequestId, phase: &Name, force: bool) {
        let entry = self.handlers.all.get(phase).filter(|entry| entry.handler.is_some());
        let Some(entry) = entry.cloned() else {
            let there = self.handlers.all.values().filter(|entry| entry.handler.is_some());
            let known = there.take(10).map(|entry| entry.phase.to_string()).collect();
            let refusal = Refusal::UnknownHandler { phase: phase.to_string(), known };
            return self.reply(request, Response::Refused(refusal));
        };
        let uses = |definition: &crate::pipeline::PipelineDef| {
            definition.all_phases().iter().any(|one| one.phase == *phase)
        };
        let pipelines = self.catalog.values();
        let pipelines = pipelines.filter(|entry| !entry.removed && entry.partition() == 0);
        let pipelines = pipelines.filter(|pipeline| pipeline.definition().is_some_and(uses));
        let pipelines: Vec<String> = pipelines.map(|it| it.name.to_string()).take(10).collect();
        if !pipelines.is_empty() && !force {
            let refusal = Refusal::HandlerInUse { phase: phase.to_string(), pipelines };
            return self.reply(request, Response::Refused(refusal));
        }
        let entry = entry.changed(None, self.wall_ms());
        self.spread_handler(request, entry);
    }

    /// A client wants to see all of them, with their sources.
    pub(super) fn show_handlers(&mut self, request: RequestId) {
        let there = self.handlers.all.values().filter(|entry| entry.handler.is_some());
        let all = there.cloned().collect();
        self.reply(request, Response::Handlers(all));
    }

    fn spread_handler(&mut self, request: RequestId, entry: HandlerEntry) {
        let (phase, digest) = (entry.phase.clone(), entry.digest());
        let changed = self.learn_handler(&entry);
        let waiting: BTreeSet<NodeId> = self.reachable().into_iter().collect();
        for &peer in &waiting {
            self.send(peer, Message::Handlers(vec![entry.clone()]));
        }
        let pending = Pending { phase, digest, waiting, here: false, copies: 0, changed };
        self.handlers.waiting.insert(request, pending);
        self.hold_until_on_disk(Held::Applied(request));
        self.arm(self.config.timing.ack_timeout, Timer::Apply(request));
    }

    /// Takes over what an entry says. Says whether that was news.
    fn learn_handler(&mut self, entry: &HandlerEntry) -> bool {
        let full = self.handlers.all.len() >= MAX_ENTRIES;
        let changed = match self.handlers.all.get_mut(&entry.phase) {
            Some(known) => known.merge(entry),
            None if full => false,
            None => {
                self.handlers.all.insert(entry.phase.clone(), entry.clone());
                true
            }
        };
        if changed && let Some(known) = self.handlers.all.get(&entry.phase) {
            let mut key = vec![HANDLER];
            key.extend_from_slice(known.phase.as_str().as_bytes());
            let value = codec::encode(known);
            self.write(Write::Put { table: Table::Meta, key: Bytes::from(key), value });
            self.digest_handlers();
        }
        changed
    }

    /// A peer tells what it knows.
    pub(super) fn on_handlers(&mut self, from: NodeId, entries: Vec<HandlerEntry>) {
        let mut known = Vec::new();
        for entry in entries.into_iter().filter(HandlerEntry::is_valid) {
            let here = self.handlers.all.get(&entry.phase).map_or(0, |known| known.generation);
            if entry.generation > here.saturating_add(LARGEST_STEP) {
                // Nobody changes it as often: it would leave no room for a later change.
                continue;
            }
            self.learn_handler(&entry);
            if let Some(entry) = self.handlers.all.get(&entry.phase) {
                known.push((entry.phase.clone(), entry.digest()));
            }
        }
        let ack = Effect::Send { to: from, message: Message::HandlersAck(known) };
        self.hold_until_on_disk(Held::Effect(Box::new(ack)));
    }

    /// A peer says what it has, and wants what differs: one in each message, since they may be large.
    pub(super) fn on_handlers_pull(&mut self, from: NodeId, known: &[(Name, u64)]) {
        let known: BTreeMap<&Name, u64> =
            known.iter().map(|(phase, digest)| (phase, *digest)).collect();
        let all = self.handlers.all.values();
        let differ = all.filter(|entry| known.get(&entry.phase) != Some(&entry.digest()));
        let differ: Vec<HandlerEntry> = differ.cloned().collect();
        for entry in differ {
            self.send(from, Message::Handlers(vec![entry]));
        }
    }

    pub(super) fn on_handlers_ack(&mut self, from: NodeId, known: &[(Name, u64)]) {
        let mut done = Vec::new();
        for (request, pending) in &mut self.handlers.waiting {
            let has = known
                .iter()
                .any(|(phase, digest)| *phase == pending.phase && *digest == pending.digest);
            if has && pending.waiting.remove(&from) {
                pending.copies += 1;
                done.push(*request);
            }
        }
        done.into_iter().for_each(|request| self.finish_handler(request, false));
    }

    /// This node has it on disk.
    pub(super) fn on_handler_here(&mut self, request: RequestId) {
        if let Some(pending) = self.handlers.waiting.get_mut(&request) {
            pending.here = true;
            pending.copies += 1;
        }
        self.finish_handler(request, false);
    }

    /// A peer cannot be reached: it is not waited for.
    pub(super) fn handlers_lost(&mut self, peer: NodeId) {
        let waiting = &mut self.handlers.waiting;
        for pending in waiting.values_mut() {
            pending.waiting.remove(&peer);
        }
        let all: Vec<RequestId> = waiting.keys().copied().collect();
        all.into_iter().for_each(|request| self.finish_handler(request, false));
    }

    /// Answers once all have it, or, when time is up, once it is on this node's disk.
    pub(super) fn finish_handler(&mut self, request: RequestId, time_is_up: bool) {
        let Some(pending) = self.handlers.waiting.get(&request) else { return };
        if !pending.here || !(time_is_up || pending.waiting.is_empty()) {
            if time_is_up {
                self.arm(self.config.timing.ack_timeout, Timer::Apply(request));
            }
            return;
        }
        let Some(pending) = self.handlers.waiting.remove(&request) else { return };
        let entry = self.handlers.all.get(&pending.phase);
        let response =
            match entry.and_then(|entry| entry.versions.first().zip(entry.handler.as_ref())) {
                Some((version, _)) => Response::HandlerPut {
                    version: *version,
                    changed: pending.changed,
                    copies: pending.copies,
                },
                None => Response::Removed,
            };
        self.reply(request, response);
    }
}
