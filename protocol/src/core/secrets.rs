//! The values and secrets for phases that the cluster keeps: every node has all of them, sealed.
//!
//! They go the way of handlers: a change goes to every peer at once, what was missed is found by the digest
//! in each beat, and then the node says what it has, and gets what differs. While there are none, that
//! digest is what nodes say that do not know of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    codec,
    id::NodeId,
    io::{Effect, Refusal, RequestId, Response},
    message::Message,
    mutant::Mutant,
    name::Namespace,
    secret::{
        MAX_NAMESPACE_PLACES, MAX_NAMESPACE_SECRETS, MAX_SECRET_PLACES, MAX_SECRETS, Place,
        PlaceId, Sealed, SecretEntry,
    },
    store::{ReadError, Table, Write},
};

use super::{Core, commit::Held, timer::Timer};

/// How many changes of a place a node may have missed.
const LARGEST_STEP: u64 = 1 << 20;

/// The prefix of a value or secret, in [`Table::Meta`].
const SECRET: u8 = 0x07;

/// How many go into one message: one may have some KiB.
const BATCH: usize = 16;

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets {
    all: BTreeMap<PlaceId, Known>,
    /// How many of them were not removed.
    there: usize,
    /// An order-free hash of them.
    digest: u64,
    waiting: BTreeMap<RequestId, Pending>,
}

/// An entry and its digest, which is asked for more often than it changes.
#[derive(Clone, Debug)]
struct Known {
    entry: SecretEntry,
    digest: u64,
}

/// A change that its client waits for.
#[derive(Clone, Debug)]
struct Pending {
    place: PlaceId,
    digest: u64,
    waiting: BTreeSet<NodeId>,
    here: bool,
    copies: u32,
    /// When that was put; nothing if it was removed.
    put_ms: Option<u64>,
}

impl Secrets {
    /// An order-free hash of all; zero while there are none.
    pub(super) const fn digest(&self) -> u64 {
        self.digest
    }

    /// How many clients wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody reads the answer any more.
    pub(super) fn drop_request(&mut self, request: RequestId) {
        self.waiting.remove(&request);
    }

    /// Puts an entry in the place of what was known there.
    fn set(&mut self, id: PlaceId, entry: SecretEntry) {
        let digest = entry.digest();
        self.digest ^= digest;
        self.there += usize::from(entry.sealed.is_some());
        if let Some(before) = self.all.insert(id, Known { entry, digest }) {
            self.digest ^= before.digest;
            self.there -= usize::from(before.entry.sealed.is_some());
        }
    }

    /// Why no more can be kept for a namespace, if that is so; at a place that it had already, or at another.
    fn full(&self, namespace: &Namespace, known: bool) -> Option<Refusal> {
        let of = self.all.values().filter(|it| it.entry.place.namespace == *namespace);
        let (mut there, mut places) = (0, 0);
        for known in of {
            there += usize::from(known.entry.sealed.is_some());
            places += 1;
        }
        let refused =
            |whose: String, (there, most): (usize, usize), (places, most_places)| {
                (there >= most || !known && places >= most_places)
                    .then_some(Refusal::TooManySecrets { whose, there, most, places, most_places })
            };
        refused(
            format!("the namespace `{namespace}`"),
            (there, MAX_NAMESPACE_SECRETS),
            (places, MAX_NAMESPACE_PLACES),
        )
        .or_else(|| {
            let all = (self.all.len(), MAX_SECRET_PLACES);
            refused("the cluster".to_owned(), (self.there, MAX_SECRETS), all)
        })
    }

    /// Takes over what an entry says. Says whether that was news.
    fn learn(&mut self, id: PlaceId, entry: &SecretEntry) -> bool {
        let merged = match self.all.get(&id) {
            None if self.all.len() >= MAX_SECRET_PLACES => None,
            None => Some(entry.clone()),
            Some(known) => {
                let mut merged = known.entry.clone();
                merged.merge(entry).then_some(merged)
            }
        };
        let is_news = merged.is_some();
        merged.into_iter().for_each(|entry| self.set(id, entry));
        is_news
    }
}

impl Core {
    pub(super) fn load_secrets(&mut self) -> Result<(), ReadError> {
        for (_, value) in self.reader.scan(Table::Meta, &[SECRET], &[SECRET + 1], usize::MAX)? {
            let entry: SecretEntry = codec::decode(&value).map_err(|error| ReadError {
                table: Table::Meta.name(),
                reason: format!("a value or secret is damaged: {error}"),
            })?;
            self.secrets.set(entry.place.id(), entry);
        }
        Ok(())
    }

    /// Changes whenever one of [`secrets`](Self::secrets) does.
    pub fn secrets_digest(&self) -> u64 {
        self.secrets.digest
    }

    /// The values and secrets that the cluster keeps, as this node knows them, each with a digest of it.
    pub fn secrets(&self) -> impl Iterator<Item = (PlaceId, u64, &SecretEntry)> {
        let all = self.secrets.all.iter();
        let all = all.map(|(place, known)| (*place, known.digest, &known.entry));
        all.filter(|(_, _, entry)| entry.sealed.is_some())
    }

    /// A peer has others. A node that never heard of any asks too: it knows nothing of what it misses.
    pub(super) fn pull_secrets(&mut self, from: NodeId) {
        let all = self.secrets.all.iter();
        let known = all.map(|(place, known)| (*place, known.digest)).collect();
        self.send(from, Message::SecretsPull(known));
    }

    /// A client wants something to be kept at a place.
    pub(super) fn put_secret(&mut self, request: RequestId, place: Place, sealed: Sealed) {
        if let Err(reason) = place.check().and_then(|()| sealed.check()) {
            return self.reply(request, Response::Refused(Refusal::InvalidSecret(reason)));
        }
        let known = self.secrets.all.get(&place.id()).map(|known| &known.entry);
        let full = self.secrets.full(&place.namespace, known.is_some());
        let entry = match known {
            // It was sent twice.
            Some(entry) if entry.sealed.as_ref() == Some(&sealed) => entry.clone(),
            Some(entry) if entry.sealed.is_some() || full.is_none() => {
                entry.changed(Some(sealed), self.wall_ms())
            }
            None if full.is_none() => SecretEntry::new(place).changed(Some(sealed), self.wall_ms()),
            Some(_) | None => {
                return full
                    .into_iter()
                    .for_each(|refusal| self.reply(request, Response::Refused(refusal)));
            }
        };
        self.spread_secret(request, entry);
    }

    /// A client wants nothing to be kept at a place any more.
    pub(super) fn remove_secret(&mut self, request: RequestId, place: &Place) {
        let entry = self.secrets.all.get(&place.id()).map(|known| &known.entry);
        let Some(entry) = entry.filter(|entry| entry.sealed.is_some()).cloned() else {
            let refusal = Refusal::UnknownSecret(place.to_string());
            return self.reply(request, Response::Refused(refusal));
        };
        let entry = entry.changed(None, self.wall_ms());
        self.spread_secret(request, entry);
    }

    /// A client wants to see all of them.
    pub(super) fn show_secrets(&mut self, request: RequestId) {
        let mut all: Vec<SecretEntry> = self.secrets().map(|(_, _, it)| it.clone()).collect();
        all.sort_by(|a, b| a.place.cmp(&b.place));
        self.reply(request, Response::Secrets(all));
    }

    fn spread_secret(&mut self, request: RequestId, entry: SecretEntry) {
        let (place, digest) = (entry.place.id(), entry.digest());
        let put_ms = entry.sealed.is_some().then_some(entry.changed_ms);
        self.learn_secret(place, &entry);
        let waiting: BTreeSet<NodeId> = self.reachable().into_iter().collect();
        for &peer in &waiting {
            self.send(peer, Message::Secrets(vec![entry.clone()]));
        }
        let pending = Pending { place, digest, waiting, here: false, copies: 0, put_ms };
        self.secrets.waiting.insert(request, pending);
        self.hold_until_on_disk(Held::Applied(request));
        self.arm(self.config.timing.ack_timeout, Timer::Apply(request));
    }

    fn learn_secret(&mut self, place: PlaceId, entry: &SecretEntry) {
        if self.secrets.learn(place, entry)
            && !self.has(Mutant::SecretsUnwritten)
            && let Some(known) = self.secrets.all.get(&place)
        {
            let key = [&[SECRET], place.as_bytes().as_slice()].concat();
            let value = codec::encode(&known.entry);
            self.write(Write::Put { table: Table::Meta, key: Bytes::from(key), value });
        }
    }

    /// A peer tells what it knows.
    pub(super) fn on_secrets(&mut self, from: NodeId, entries: Vec<SecretEntry>) {
        let mut known = Vec::new();
        for entry in entries.into_iter().filter(SecretEntry::is_valid) {
            let place = entry.place.id();
            let here = self.secrets.all.get(&place).map_or(0, |known| known.entry.generation);
            if entry.generation > here.saturating_add(LARGEST_STEP) {
                // Nobody changes it as often: it would leave no room for a later change.
                continue;
            }
            self.learn_secret(place, &entry);
            if let Some(here) = self.secrets.all.get(&place) {
                known.push((place, here.digest));
            }
        }
        let ack = Effect::Send { to: from, message: Message::SecretsAck(known) };
        self.hold_until_on_disk(Held::Effect(Box::new(ack)));
    }

    /// A peer says what it has, and wants what differs.
    pub(super) fn on_secrets_pull(&mut self, from: NodeId, known: &[(PlaceId, u64)]) {
        let known: BTreeMap<&PlaceId, u64> = known.iter().map(|(place, it)| (place, *it)).collect();
        let all = self.secrets.all.iter();
        let differ = all.filter(|(place, here)| known.get(place) != Some(&here.digest));
        let differ: Vec<SecretEntry> = differ.map(|(_, here)| here.entry.clone()).collect();
        for entries in differ.chunks(BATCH) {
            self.send(from, Message::Secrets(entries.to_vec()));
        }
    }

    pub(super) fn on_secrets_ack(&mut self, from: NodeId, known: &[(PlaceId, u64)]) {
        let mut done = Vec::new();
        for (request, pending) in &mut self.secrets.waiting {
            if known.contains(&(pending.place, pending.digest)) && pending.waiting.remove(&from) {
                pending.copies += 1;
                done.push(*request);
            }
        }
        done.into_iter().for_each(|request| self.finish_secret(request, false));
    }

    /// This node has it on disk.
    pub(super) fn on_secret_here(&mut self, request: RequestId) {
        if let Some(pending) = self.secrets.waiting.get_mut(&request) {
            pending.here = true;
            pending.copies += 1;
        }
        self.finish_secret(request, false);
    }

    /// A peer cannot be reached: it is not waited for.
    pub(super) fn secrets_lost(&mut self, peer: NodeId) {
        let waiting = &mut self.secrets.waiting;
        for pending in waiting.values_mut() {
            pending.waiting.remove(&peer);
        }
        let all: Vec<RequestId> = waiting.keys().copied().collect();
        all.into_iter().for_each(|request| self.finish_secret(request, false));
    }

    /// Answers once all have it, or, when time is up, once it is on this node's disk.
    pub(super) fn finish_secret(&mut self, request: RequestId, time_is_up: bool) {
        let Some(pending) = self.secrets.waiting.get(&request) else { return };
        if !pending.here || !(time_is_up || pending.waiting.is_empty()) {
            if time_is_up {
                self.arm(self.config.timing.ack_timeout, Timer::Apply(request));
            }
            return;
        }
        let Some(pending) = self.secrets.waiting.remove(&request) else { return };
        let here = self.secrets.all.get(&pending.place).map(|known| known.digest);
        if here != Some(pending.digest) {
            // Another change came in beside it, or was there before and outranks it.
            return self.reply(request, Response::Refused(Refusal::Unknown));
        }
        let response = match pending.put_ms {
            Some(changed_ms) => Response::SecretPut { changed_ms, copies: pending.copies },
            None => Response::Removed,
        };
        self.reply(request, response);
    }
}
