//! Who is in the cluster, and who can be reached.
//!
//! An advert is a hint. What counts for leases is the connection: a member is reachable while one
//! stands and something came over it within a lease. A member that stays away for long is retired:
//! its place among the replicas goes to another, until it comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use bytes::Bytes;

use crate::{
    advert::{Advert, PhaseSlots},
    codec,
    id::{NodeId, PipelineId},
    io::Effect,
    message::Message,
    placement,
    store::{ReadError, Table, Write},
    time::Timestamp,
    view::Liveness,
};

use super::{Core, timer::Timer};

/// The prefix of what is known of a member, in [`Table::Meta`].
const MEMBER: u8 = 0x03;

/// How many members are remembered.
const MAX_MEMBERS: usize = 10_000;

/// How many nodes may be shut out: more than a shell keeps of such.
const MAX_EXPELLED: usize = 10_000;

/// Where a member's advert lies.
fn member_key(node: NodeId) -> Bytes {
    [&[MEMBER], &node.as_bytes()[..]].concat().into()
}

/// Another node.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) advert: Advert,
    /// Whether a connection stands and it is heard over it.
    pub(super) reachable: bool,
    /// When something came from it last.
    pub(super) heard: Timestamp,
    /// Whether it could be reached at any time since this node started.
    pub(super) met: bool,
    /// Since when it cannot be reached.
    pub(super) away_since: Timestamp,
    /// Since when it can be.
    pub(super) here_since: Timestamp,
    /// For how long it could not be, before that, as far as this node was there to see: until it could be
    /// for long enough to be compared.
    pub(super) was_away: Duration,
    /// The number of its last beat on this connection.
    pub(super) last_beat: u64,
    /// Which of the pipelines that this node coordinates it has no admitted copy of, as it said
    /// last on this connection.
    pub(super) unadmitted: Option<BTreeSet<PipelineId>>,
    /// How many attempts run there, by phase, as it said last.
    pub(super) busy: Vec<(crate::name::Name, u32)>,
    /// How it looked when that was told last.
    pub(super) told: Option<Liveness>,
}

impl Core {
    pub(super) fn load_members(&mut self) -> Result<(), ReadError> {
        let rows = self.reader.scan(Table::Meta, &[MEMBER], &[MEMBER + 1], MAX_MEMBERS)?;
        for (_, value) in rows {
            match codec::decode::<Advert>(&value) {
                Ok(advert) => self.add_member(advert),
                // An advert is only a hint: the member will tell us again.
                Err(_) => continue,
            }
        }
        Ok(())
    }

    fn add_member(&mut self, advert: Advert) {
        let (heard, away_since) = (self.now, self.now);
        let member = Member {
            advert,
            reachable: false,
            met: false,
            heard,
            away_since,
            here_since: heard,
            was_away: Duration::ZERO,
            last_beat: 0,
            unadmitted: None,
            busy: Vec::new(),
            told: None,
        };
        self.members.insert(member.advert.node, member);
    }

    /// An advert came by gossip.
    pub(super) fn on_advert(&mut self, advert: Advert) {
        let node = advert.node;
        if node == self.me() || self.expelled.contains(&node) {
            return;
        }
        let newest = self.members.get(&node).map(|member| &member.advert);
        if newest.is_some_and(|known| {
            (known.boot, known.sequence) >= (advert.boot, advert.sequence)
                && known.disk == advert.disk
        }) {
            return;
        }
        // Only what matters after a restart is worth a write.
        let known = newest.is_some_and(|known| {
            known.disk == advert.disk && known.roles == advert.roles && known.name == advert.name
        });
        if !known {
            let value = codec::encode(&advert);
            self.write(Write::Put { table: Table::Meta, key: member_key(node), value });
        }
        let full = self.members.len() >= MAX_MEMBERS;
        self.tell_phases(&advert);
        match self.members.get_mut(&node) {
            Some(member) => member.advert = advert,
            None if full => return,
            None => self.add_member(advert),
        }
        self.grant_to_coordinators();
    }

    /// The first message on a connection.
    pub(super) fn on_hello(&mut self, from: NodeId, advert: Advert) {
        if advert.node != from {
            return;
        }
        self.on_advert(advert);
        self.heard_from(from);
    }

    pub(super) fn on_peer_up(&mut self, peer: NodeId) {
        if self.expelled.contains(&peer) {
            return;
        }
        self.connections.insert(peer);
        if let Some(member) = self.members.get_mut(&peer) {
            member.last_beat = 0;
            member.unadmitted = None;
        }
        let advert = self.advert();
        self.send(peer, Message::Hello(advert));
        self.send_beat_to(peer);
        self.heard_from(peer);
    }

    pub(super) fn on_peer_down(&mut self, peer: NodeId) {
        self.connections.remove(&peer);
        self.lose(peer);
    }

    /// A node was shut out: whatever it held or promised counts no more, and its place goes to
    /// another at once.
    pub(super) fn on_expelled(&mut self, node: NodeId) {
        if node == self.me() || self.expelled.len() >= MAX_EXPELLED || !self.expelled.insert(node) {
            return;
        }
        self.on_peer_down(node);
        self.windows.remove(&node);
        self.avoided.remove(&node);
        self.requeue_attempts_at(node);
        if self.members.remove(&node).is_some() {
            self.write(Write::Delete { table: Table::Meta, key: member_key(node) });
        }
    }

    /// Something came from a peer.
    pub(super) fn heard_from(&mut self, peer: NodeId) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        member.heard = self.now;
        if !member.reachable && self.connections.contains(&peer) {
            member.reachable = true;
            member.here_since = self.now;
            member.was_away = member.was_away.max(self.now.since(member.away_since));
            member.met = true;
            self.tell_liveness();
            self.on_reachable(peer);
        }
    }

    /// A peer cannot be reached any more, or is silent for longer than a lease.
    pub(super) fn lose(&mut self, peer: NodeId) {
        let Some(member) = self.members.get_mut(&peer) else { return };
        if !member.reachable {
            return;
        }
        if self.now.since(member.here_since) > 2 * self.config.timing.anti_entropy {
            member.was_away = Duration::ZERO;
        }
        member.reachable = false;
        member.away_since = self.now;
        self.tell_liveness();
        self.arm(self.config.timing.reconnect_grace, Timer::Grace(peer));
        self.worker_lost_coordinator(peer);
        self.stop_waiting_for(peer);
        self.drop_sessions_with(peer);
        self.gateway_lost(peer);
        self.handlers_lost(peer);
        self.secrets_lost(peer);
        self.queries_lost(peer);
        self.reigns_lost(peer);
        self.leaders_lost(peer);
    }

    fn on_reachable(&mut self, peer: NodeId) {
        self.windows.remove(&peer);
        self.grant_to_coordinators();
        self.followers_found(peer);
    }

    /// A peer that was lost has had its time to come back.
    pub(super) fn on_grace_over(&mut self, peer: NodeId) {
        if self.is_reachable(peer) {
            return;
        }
        let away = self.members.get(&peer).map(|member| self.now.since(member.away_since));
        if away.is_some_and(|away| away >= self.config.timing.reconnect_grace) {
            self.requeue_attempts_at(peer);
        }
    }

    /// Whether a node, or this one itself, can be reached.
    pub(super) fn is_reachable(&self, node: NodeId) -> bool {
        node == self.me() || self.members.get(&node).is_some_and(|member| member.reachable)
    }

    /// Whether a node, or this one itself, could be reached since this one started.
    pub(super) fn has_met(&self, node: NodeId) -> bool {
        node == self.me() || self.members.get(&node).is_some_and(|member| member.met)
    }

    /// All peers that can be reached.
    pub(super) fn reachable(&self) -> Vec<NodeId> {
        let reachable = self.members.iter().filter(|(_, member)| member.reachable);
        reachable.map(|(node, _)| *node).collect()
    }

    /// Whether a member has been away for so long that its place is given to another.
    fn is_retired(&self, member: &Member) -> bool {
        !member.reachable
            && self.now.since(member.away_since.max(member.heard))
                > self.config.timing.replace_after
    }

    /// Whether a node has not been heard of for as long as it takes to give its place to another.
    pub(super) fn is_long_gone(&self, node: NodeId) -> bool {
        match self.members.get(&node) {
            Some(member) => self.is_retired(member),
            None if node == self.me() => false,
            None if self.expelled.contains(&node) => true,
            None => self.now.since(self.started) > self.config.timing.replace_after,
        }
    }

    /// The nodes that may keep jobs: members with the role that are not retired.
    pub(super) fn replica_nodes(&self) -> Vec<NodeId> {
        let others = self
            .members
            .iter()
            .filter(|(_, member)| member.advert.roles.replica && !self.is_retired(member));
        let me = self.config.roles.replica.then(|| self.me());
        me.into_iter().chain(others.map(|(node, _)| *node)).collect()
    }

    /// Who should keep a pipeline's jobs, best first, whether or not they can be reached.
    pub(super) fn view(&self, pipeline: PipelineId) -> Vec<NodeId> {
        if self.is_strict(pipeline) {
            let holders = self.group_view(pipeline).holders();
            let nodes: BTreeSet<NodeId> = holders.into_iter().map(|(node, _)| node).collect();
            return placement::rank(pipeline, nodes);
        }
        let mut ranked = placement::rank(pipeline, self.replica_nodes());
        ranked.truncate(self.replicas_of(pipeline));
        ranked
    }

    /// Who keeps a pipeline's jobs now: while one of the view is away, the next by rank stands in.
    pub(super) fn keepers(&self, pipeline: PipelineId) -> Vec<NodeId> {
        if self.is_strict(pipeline) {
            return self.strict_keepers(pipeline);
        }
        let reachable = self.replica_nodes().into_iter().filter(|node| self.is_reachable(*node));
        let mut ranked = placement::rank(pipeline, reachable);
        ranked.truncate(self.replicas_of(pipeline));
        ranked
    }

    /// Whether everybody who may hold jobs has been here for long enough to have offered them.
    pub(super) fn has_heard_all(&self) -> bool {
        let long = self.config.timing.anti_entropy * 2;
        let heard = |member: &Member| {
            self.is_retired(member) || member.reachable && self.now.since(member.here_since) > long
        };
        let holders = self.members.values().filter(|member| member.advert.roles.replica);
        self.now.since(self.started) > long && holders.into_iter().all(heard)
    }

    /// How a member looks from here.
    pub(super) fn liveness(&self, member: &Member) -> Liveness {
        let away = self.now.since(member.away_since);
        match () {
            () if member.reachable => Liveness::Alive,
            () if self.is_retired(member) => Liveness::Retired,
            () if away < self.config.timing.lease => Liveness::Suspect,
            () => Liveness::Down,
        }
    }

    pub(super) fn on_listening(&mut self, addresses: Vec<String>) {
        self.addresses = addresses;
        self.advert_changed = true;
    }

    pub(super) fn on_accepting(&mut self, accepting: Result<(), String>) {
        if self.draining {
            return;
        }
        let refusing = accepting.err();
        self.advert_changed |= refusing != self.refusing;
        self.refusing = refusing;
        if self.refusing.is_some() {
            self.resign();
        }
    }

    /// Whether somebody else who keeps a pipeline's jobs takes new ones.
    pub(super) fn others_accept(&self, pipeline: PipelineId) -> bool {
        self.keepers(pipeline).into_iter().any(|node| self.accepts(node))
    }

    /// Whether a peer takes jobs.
    pub(super) fn accepts(&self, node: NodeId) -> bool {
        self.members.get(&node).is_some_and(|member| member.advert.refusing.is_none())
    }

    /// The operator wants the node to stop.
    pub(super) fn on_draining(&mut self) {
        let again = mem::replace(&mut self.draining, true);
        self.refusing = Some("the node is stopping".to_owned());
        self.advert_changed = true;
        self.grant_to_coordinators();
        self.let_readers_go();
        self.worker_decline_queued();
        if !again {
            // Others take over while what runs here ends.
            self.resign();
        }
    }

    /// This node takes no jobs any more: it leaves it to others to coordinate, as soon as they can.
    fn resign(&mut self) {
        // Others that do not either leave nothing to this node.
        self.publish_advert();
        for group in self.groups.values_mut() {
            group.election_at = None;
        }
        self.maintain_all();
    }

    /// What a node says that it has.
    pub(super) fn labels_of(&self, node: NodeId) -> Option<&BTreeMap<String, String>> {
        match node == self.me() {
            true => Some(&self.config.labels),
            false => self.members.get(&node).map(|member| &member.advert.labels),
        }
    }

    /// What this node says of itself.
    pub(super) fn advert(&self) -> Advert {
        let phases = self.worker.phases().map(|(phase, slots, busy)| PhaseSlots {
            phase: phase.clone(),
            slots,
            busy,
        });
        let coordinates = self.groups.values().filter(|group| group.is_coordinator());
        Advert {
            node: self.me(),
            disk: self.config.disk,
            boot: self.config.boot,
            sequence: self.advert_sequence,
            name: self.config.name.clone(),
            version: self.config.version.clone(),
            roles: self.config.roles,
            phases: phases.collect(),
            labels: self.config.labels.clone(),
            addresses: self.addresses.clone(),
            coordinates: coordinates
                .filter_map(|group| Some((group.id, group.elected_term()?)))
                .collect(),
            catalog: self.catalog_digest,
            refusing: self.refusing.clone(),
        }
    }

    /// Tells the cluster about this node, if there is news or the last time is long ago.
    pub(super) fn publish_advert(&mut self) {
        let due = self.now.since(self.advert_sent) >= self.config.timing.anti_entropy;
        if !self.advert_changed && !due {
            return;
        }
        self.advert_sequence += 1;
        let advert = self.advert();
        if self.advert_changed {
            for peer in self.reachable() {
                self.send(peer, Message::Hello(advert.clone()));
            }
        }
        self.advert_changed = false;
        self.advert_sent = self.now;
        self.effects.push_back(Effect::Publish(advert));
    }
}
