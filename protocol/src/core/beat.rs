//! The beat: renews leases with every peer, and looks after all that is done now and then.
//!
//! A beat says what its sender coordinates; the answer says which of its attempts the receiver has.
//! Both show that the connection lives. A node that was stopped itself for a while does not blame
//! the others for the silence: they get a lease's time to be heard again.

use std::collections::VecDeque;

use crate::{
    id::{NodeId, PipelineId},
    message::{Beat, BeatAck, BeatGroup, Held, Message},
    store::ReadError,
    time::Timestamp,
};

use super::{
    Core,
    group::{Group, Role},
    timer::Timer,
};

/// What is known of beats.
#[derive(Clone, Debug)]
pub(super) struct Beats {
    /// The last beat that was sent.
    sequence: u64,
    /// When the timer fired last.
    fired: Timestamp,
    /// When each of the last beats was sent.
    sent: VecDeque<(u64, Timestamp)>,
}

impl Beats {
    pub(super) fn new(now: Timestamp) -> Self {
        Self { sequence: 0, fired: now, sent: VecDeque::new() }
    }

    /// Counts a beat that is sent now; those that are older than a lease are forgotten.
    fn count(&mut self, now: Timestamp, lease: std::time::Duration) -> u64 {
        self.sequence += 1;
        while self.sent.front().is_some_and(|(_, at)| now.since(*at) > lease) {
            self.sent.pop_front();
        }
        self.sent.push_back((self.sequence, now));
        self.sequence
    }

    /// When a beat was sent, if that is not long ago.
    fn sent_at(&self, sequence: u64) -> Option<Timestamp> {
        let at = self.sent.binary_search_by_key(&sequence, |(sent, _)| *sent).ok()?;
        Some(self.sent[at].1)
    }

    /// The number of the last beat that was sent to anybody.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }
}

impl Core {
    pub(super) fn on_beat_timer(&mut self) -> Result<(), ReadError> {
        let late = self.now.since(self.beats.fired) > self.config.timing.beat * 2;
        self.beats.fired = self.now;
        if late {
            let now = self.now;
            self.members.values_mut().for_each(|member| member.heard = now);
        }
        self.drop_silent_peers();
        self.tell_liveness();
        self.share_event_bytes();
        if self.is_disk_stalled() {
            self.abdicate();
        }
        self.beat_to_all();
        self.maintain_all();
        let pipelines: Vec<PipelineId> = self.groups.keys().copied().collect();
        for pipeline in pipelines {
            self.maintain_view(pipeline);
            self.expire_leader(pipeline);
            self.consider_election(pipeline);
            self.drop_if_removed(pipeline);
            self.run_schedules(pipeline)?;
            self.tidy_if_idle(pipeline)?;
        }
        self.complete_own()?;
        self.resend_items()?;
        self.anti_entropy();
        // No beat goes to this node itself; what its own worker has must be compared all the same,
        // since an attempt that ran here may have ended at another coordinator.
        let own = self.worker.held(|_| true);
        self.drop_removed_ends();
        self.match_loaded(self.me(), u64::MAX, &own)?;
        let demand = self.demand_on(self.me());
        self.note_demand(self.me(), demand);
        self.grant_to_coordinators();
        self.publish_advert();
        self.arm(self.config.timing.beat, Timer::Beat);
        Ok(())
    }

    fn drop_silent_peers(&mut self) {
        let silent: Vec<NodeId> = self
            .members
            .iter()
            .filter(|(_, member)| {
                member.reachable && self.now.since(member.heard) > self.config.timing.lease
            })
            .map(|(node, _)| *node)
            .collect();
        silent.into_iter().for_each(|peer| self.lose(peer));
    }

    /// A coordinator that lives but does not say so any more.
    fn expire_leader(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        if group.leader.is_some() && !self.hears_leader(group) {
            self.leader_lost(pipeline);
        }
    }

    /// The jobs of a removed pipeline go.
    fn drop_if_removed(&mut self, pipeline: PipelineId) {
        let removed = self.catalog.get(&pipeline).is_some_and(|entry| entry.removed);
        let Some(group) = self.groups.get(&pipeline) else { return };
        let idle = group.live.count == 0 && group.jobs.values().all(|job| job.pending == 0);
        let idle = idle && !self.is_any_dirty(pipeline);
        if removed && idle && group.finished.digest.count > 0 {
            let elected = group.elected_term().is_some();
            self.drop_group_data(pipeline);
            // Who decides knows all that there is: nothing, also when it is applied again.
            if elected && !self.is_strict(pipeline) {
                self.admit_self(pipeline);
            }
        }
    }

    pub(super) fn beat_to_all(&mut self) {
        self.connections.clone().into_iter().for_each(|peer| self.send_beat_to(peer));
    }

    pub(super) fn send_beat_to(&mut self, peer: NodeId) {
        let sequence = self.beats.count(self.now, self.config.timing.lease);
        let beat = Beat {
            sequence,
            catalog: self.shared_digest(),
            groups: self.coordinated(),
            demand: self.demand_on(peer),
            busy: self.worker.phases().map(|(phase, _, busy)| (phase.clone(), busy)).collect(),
        };
        self.send(peer, Message::Beat(beat));
    }

    /// What this node coordinates, as it tells others.
    fn coordinated(&self) -> Vec<BeatGroup> {
        let groups = self.groups.values().filter_map(|group| match &group.role {
            Role::Coordinator(reign) => Some((group, reign)),
            _ => None,
        });
        groups
            .map(|(group, reign)| BeatGroup {
                pipeline: group.id,
                term: reign.term,
                live: group.live,
                finished: group.finished.digest,
                counts: group.counts(),
                settled: self.is_settled(group),
                view: group.view.clone().filter(|_| self.is_strict(group.id)),
                horizon_ms: self.horizon_ms(group.id),
            })
            .collect()
    }

    /// A node whose disk does not answer can do nothing for the pipelines that it coordinates.
    fn abdicate(&mut self) {
        let coordinated = self.groups.values().filter(|group| group.elected_term().is_some());
        let coordinated: Vec<PipelineId> = coordinated.map(|group| group.id).collect();
        // What was taken until now is still for the replicas.
        self.end_batch();
        coordinated.into_iter().for_each(|pipeline| self.step_down(pipeline));
    }

    /// Whether this node coordinates, and all who should keep a copy have one of all that there is.
    pub(super) fn is_settled(&self, group: &Group) -> bool {
        let Role::Coordinator(reign) = &group.role else { return false };
        let has_all = |node: &NodeId| {
            *node == self.me() || reign.peers.get(node).is_some_and(|sync| sync.has_all())
        };
        self.view(group.id).iter().all(has_all)
    }

    /// A peer renews its leases.
    pub(super) fn on_beat(&mut self, from: NodeId, beat: Beat) {
        if let Some(member) = self.members.get_mut(&from) {
            if beat.sequence <= member.last_beat {
                // It was overtaken by a later one, or came twice.
                return;
            }
            member.last_beat = beat.sequence;
            member.busy = beat.busy;
        }
        if beat.catalog != self.shared_digest() {
            self.send(from, Message::CatalogPull);
            self.pull_handlers(from);
            self.pull_secrets(from);
        }
        self.note_demand(from, beat.demand);
        let led: Vec<PipelineId> = beat.groups.iter().map(|group| group.pipeline).collect();
        let mut refused = Vec::new();
        for group in beat.groups {
            let pipeline = group.pipeline;
            if !self.on_beat_group(from, group) {
                refused.push(pipeline);
            }
        }
        self.note_abdications(from, &led);
        let attempts = self.worker.held(|pipeline| led.contains(&pipeline));
        let unadmitted = led.iter().filter(|pipeline| !self.is_admitted(**pipeline));
        let copy = |pipeline: &PipelineId| self.groups.get(pipeline).map_or(0, |group| group.copy);
        let unadmitted = unadmitted.map(|pipeline| (*pipeline, copy(pipeline))).collect();
        let (sequence, disk) = (beat.sequence, self.config.disk);
        let ack = BeatAck { sequence, disk, unadmitted, refused, attempts };
        self.send(from, Message::BeatAck(ack));
        if !led.is_empty() && self.worker.phases().next().is_some() {
            self.grant_to(from, true);
        }
        led.into_iter().for_each(|pipeline| self.resend_completions(pipeline));
    }

    /// Says whether the lease is granted.
    fn on_beat_group(&mut self, from: NodeId, beat: BeatGroup) -> bool {
        let (pipeline, term) = (beat.pipeline, beat.term);
        let known = self.catalog.contains_key(&pipeline);
        let Some(group) = self.groups.get(&pipeline).filter(|_| known) else {
            self.send(from, Message::CatalogPull);
            return false;
        };
        let least = self.least_term(pipeline, group);
        let least = least.max(group.elected_term().unwrap_or(term));
        if term < least {
            self.send(from, Message::Stale { pipeline, term: least });
            return false;
        }
        let lease = self.config.timing.lease;
        let continuous = group.leader.is_some_and(|leader| {
            let same = (leader.node, leader.term) == (from, term);
            same && group.beat.is_some() && self.now.since(leader.heard) < lease
        });
        self.set_leader(pipeline, from, term);
        self.pledge(pipeline, from);
        if let Some(view) = &beat.view {
            self.learn_view(pipeline, view);
        }
        if let Some(group) = self.groups.get_mut(&pipeline).filter(|_| !continuous) {
            group.in_step = None;
        }
        let group = self.groups.get(&pipeline);
        let told = group.is_some_and(|group| group.in_step == Some(term));
        // Who stands in for another knows nothing of what had been forgotten before it came.
        let whole = self.view(pipeline).contains(&self.me());
        let in_step = told && self.is_admitted(pipeline) && whole;
        self.learn_horizon(pipeline, beat.horizon_ms, (continuous, in_step));
        if let Some(group) = self.groups.get_mut(&pipeline)
            && group.leader.is_some_and(|leader| (leader.node, leader.term) == (from, term))
        {
            group.beat = Some(beat);
        }
        true
    }

    /// A peer that coordinated a pipeline does not say so any more.
    fn note_abdications(&mut self, from: NodeId, led: &[PipelineId]) {
        let left: Vec<PipelineId> = self
            .groups
            .values()
            .filter(|group| group.leader.is_some_and(|leader| leader.node == from))
            .map(|group| group.id)
            .filter(|pipeline| !led.contains(pipeline))
            .collect();
        for pipeline in left {
            if let Some(group) = self.groups.get_mut(&pipeline) {
                group.pledge = group.pledge.filter(|(to, _)| *to != from);
            }
            self.leader_lost(pipeline);
        }
    }

    /// A peer heard a beat, and says what it runs for this node.
    pub(super) fn on_beat_ack(&mut self, from: NodeId, ack: BeatAck) -> Result<(), ReadError> {
        if let Some(sent) = self.beats.sent_at(ack.sequence) {
            self.note_leases((from, ack.disk), sent, &ack.refused);
        }
        self.match_loaded(from, ack.sequence, &ack.attempts)?;
        self.admit(from, ack.disk, &ack.unadmitted);
        Ok(())
    }

    /// Compares what a worker has with what it was given, also where the job has ended meanwhile.
    pub(super) fn match_loaded(
        &mut self,
        worker: NodeId,
        sequence: u64,
        attempts: &[Held],
    ) -> Result<(), ReadError> {
        for held in attempts {
            self.load_job(held.pipeline, held.job)?;
        }
        self.match_attempts(worker, sequence, attempts);
        for held in attempts {
            self.forget_if_settled(held.pipeline, held.job);
        }
        Ok(())
    }
}
