//! What a coordinator does for its pipeline as a whole: takes it over, keeps its replicas in step,
//! writes what becomes of phases.
//!
//! Invariants: nothing is dispatched before all that the voters held is merged and on disk; every
//! control value that is written here is greater than the one before.

use std::{collections::BTreeMap, mem, ops::RangeInclusive, sync::Arc};

use crate::{
    event::What,
    id::{JobId, NodeId, PipelineId, Term, Token},
    name::Name,
    pipeline::{PhaseDef, Revision},
    record::{Control, FIRST_CONTROL, Progress},
    view::JobState,
};

use super::{
    Core,
    events::Before,
    group::{Leader, PeerSync, Reign, Role, Running},
    ready::{Entry, Place, QueueName},
    sync::Purpose,
    table::Waiting,
    timer::Timer,
};

/// How many resting jobs are queued before it is looked for the next.
const QUEUED_AT_ONCE: usize = 1000;

/// How often the time is doubled for which a node coordinates in place of others: to minutes.
const MOST_DOUBLED: u32 = 6;

impl Core {
    /// All is merged and on disk: from now on this node coordinates.
    pub(super) fn on_adopted(&mut self, pipeline: PipelineId, term: Term) {
        let (me, now) = (self.me(), self.now);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.elected_term() != Some(term) || group.is_coordinator() {
            return;
        }
        if let Role::TakingOver(reign) = mem::replace(&mut group.role, Role::Follower) {
            group.role = Role::Coordinator(reign);
        }
        if let Some(reign) = group.reign() {
            reign.strict.begin(now);
        }
        group.leader = Some(Leader { node: me, term, heard: now });
        let unfinished = group.live.count;
        self.advert_changed = true;
        self.share_event_bytes();
        self.tell_of(pipeline, None, What::Coordinator { node: me, unfinished });
        self.tell_leader(pipeline, me, term);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        for job in mem::take(&mut group.doubtful) {
            self.wake(pipeline, job);
            self.set_aside_if_old(pipeline, job);
            self.rest_if_crowded(pipeline, job);
        }
        self.queue_all(pipeline);
        self.grant_to_self();
        self.tell_said_again(pipeline);
        let own = self.worker.held(|_| true);
        if let Err(error) = self.match_loaded(me, u64::MAX, &own) {
            self.broken = Some(error);
        }
        self.beat_to_all();
        if self.maintain_replicas(pipeline) {
            self.beat_to_all();
        }
    }

    /// Whoever takes over queues what waits, in order; resting jobs are not read for that, as a rule.
    fn queue_all(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let residents: Vec<JobId> = group.jobs.keys().copied().collect();
        let mut from = JobId::MIN;
        for job in residents {
            self.queue_resting(pipeline, from..=job);
            self.refresh(pipeline, job);
            from = job;
        }
        self.queue_resting(pipeline, from..=JobId::MAX);
    }

    /// Queues what rests among the jobs of a range.
    fn queue_resting(&mut self, pipeline: PipelineId, range: RangeInclusive<JobId>) {
        let (mut from, last) = range.into_inner();
        loop {
            let Some(group) = self.groups.get(&pipeline) else { return };
            let resting = group.jobs.resting_from(from).take_while(|resting| resting.job <= last);
            let resting: Vec<Waiting> = resting.take(QUEUED_AT_ONCE).collect();
            let mut starts: BTreeMap<Revision, Option<Vec<(u16, QueueName)>>> = BTreeMap::new();
            for (at, waiting) in resting.iter().enumerate() {
                let Waiting { job, revision, priority, .. } = *waiting;
                let starts =
                    starts.entry(revision).or_insert_with(|| self.starts(pipeline, revision));
                let Some(starts) = starts else {
                    self.note_crowded(at);
                    // Alone: others would rest no more when their turn to be looked at comes.
                    if let Err(error) = self.load_alone(pipeline, job) {
                        self.broken = Some(error);
                        return;
                    }
                    self.refresh(pipeline, job);
                    self.rest_if_crowded(pipeline, job);
                    continue;
                };
                let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
                let Some(reign) = reign else { return };
                for (step, name) in starts {
                    let entry = Entry { job, step: *step, priority, owner: None };
                    reign.ready.entry(name.clone()).or_default().push(entry, Place::Back);
                }
            }
            match resting.last().filter(|_| resting.len() == QUEUED_AT_ONCE) {
                Some(last) => from = last.job.next(),
                None => return,
            }
        }
    }

    /// What a new job of a definition begins with, where that is the same for all of them.
    fn starts(&self, pipeline: PipelineId, revision: Revision) -> Option<Vec<(u16, QueueName)>> {
        if self.current(pipeline)?.fair_by.is_some() {
            return None;
        }
        let phases = &self.definition(pipeline, revision)?.phases;
        let first = phases.iter().enumerate().filter(|(_, phase)| phase.after.is_empty());
        let queue = |(step, phase): (usize, &PhaseDef)| {
            let plain = phase.has_worker() && phase.when.is_none();
            plain.then(|| (step as u16, (phase.phase.clone(), phase.name.clone())))
        };
        first.map(queue).collect()
    }

    /// Attempts that another coordinator assigned, be it in an earlier term or beyond a partition:
    /// their workers may claim them for a while.
    pub(super) fn adopt_running(&mut self, pipeline: PipelineId, job: JobId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let Some(entry) = group.jobs.get(&job) else { return };
        let Some(Role::Coordinator(reign) | Role::TakingOver(reign)) = Some(&group.role) else {
            return;
        };
        if entry.record.is_over() {
            return;
        }
        let running: Vec<(u16, NodeId, Token)> = entry
            .record
            .controls
            .iter()
            .filter_map(|(step, control)| match control.progress {
                Progress::Running { worker, token } if !reign.running.contains_key(&token) => {
                    Some((*step, worker, token))
                }
                _ => None,
            })
            .collect();
        for (step, worker, token) in running {
            let Some(queue) = self.queue_of(pipeline, job, step) else { continue };
            let key = self.limit_key(pipeline, job, &queue.1);
            // A worker that was lost before has had part of its time already.
            let known = self.members.get(&worker).is_some_and(|member| {
                !member.reachable && self.now.since(member.heard) < self.config.timing.lease
            });
            let timing = &self.config.timing;
            let wait = if known { timing.reconnect_grace } else { timing.lease };
            let deadline = Some(self.now + wait);
            self.arm(wait, Timer::Claim(pipeline));
            let after_beat = Some(self.beats.sequence());
            let given = Running::new((job, step), queue, key, worker);
            let overdue_at = self.overdue_at(self.timeout_of(pipeline, job, step));
            let running = Running { after_beat, claimed: false, deadline, overdue_at, ..given };
            self.add_running(pipeline, token, running);
        }
    }

    /// The term in which this node was elected, if it was.
    pub(super) fn elected_term(&self, pipeline: PipelineId) -> Option<Term> {
        self.groups.get(&pipeline)?.elected_term()
    }

    /// The queue in which a phase of a job waits.
    pub(super) fn queue_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Option<QueueName> {
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        let phase = self.phases_of(pipeline, record)?.get(usize::from(step))?;
        Some((phase.phase.clone(), phase.name.clone()))
    }

    /// What a job's attempts at a step are limited by.
    pub(super) fn limit_key(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: &Name,
    ) -> Option<Arc<str>> {
        let limit = self.current(pipeline)?.named(step)?.limit.as_ref()?;
        self.key_of(pipeline, job, &limit.key)
    }

    /// Keeps those who should hold copies in step; called each beat and when somebody comes back.
    pub(super) fn maintain_all(&mut self) {
        let coordinated = self.groups.values().filter(|group| group.is_coordinator());
        let coordinated: Vec<PipelineId> = coordinated.map(|group| group.id).collect();
        let made_way = coordinated.into_iter().filter(|it| self.maintain_replicas(*it)).count();
        if made_way > 0 {
            // Who hears it at once need not wait for the next beat, or for a lease.
            self.beat_to_all();
        }
    }

    /// The same, of one pipeline. Says whether this node leaves it to others instead.
    pub(super) fn maintain_replicas(&mut self, pipeline: PipelineId) -> bool {
        let now = self.now;
        let mut keepers = self.keepers(pipeline);
        if self.should_make_way(pipeline, &keepers) {
            if let Some(group) = self.groups.get_mut(&pipeline) {
                group.made_way = (group.made_way.0 + 1, self.now);
            }
            // What it took until now is still for the replicas: whoever is next may not ask this node.
            self.end_batch();
            self.step_down(pipeline);
            return true;
        }
        keepers.retain(|node| *node != self.me());
        let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
            return false;
        };
        let term = reign.term;
        let gone: Vec<NodeId> =
            reign.peers.keys().filter(|peer| !keepers.contains(peer)).copied().collect();
        for peer in &gone {
            reign.peers.remove(peer);
        }
        let stand_ins =
            reign.peers.iter().filter(|(_, sync)| sync.is_complete() && !sync.has_all());
        let stand_ins: Vec<NodeId> = stand_ins.map(|(peer, _)| *peer).collect();
        let mut start = Vec::new();
        for peer in keepers {
            let due = match reign.peers.get(&peer) {
                None => true,
                Some(PeerSync::Lagging(until)) => *until <= now,
                Some(_) => false,
            };
            if due {
                reign.peers.insert(peer, PeerSync::Syncing);
                start.push(peer);
            }
        }
        // What was compared with somebody who was no replica meanwhile counts for nothing.
        for peer in gone.iter().chain(&start) {
            self.drop_sessions_of(*peer, pipeline);
        }
        for peer in start {
            self.start_live_sync(peer, pipeline, Purpose::Reign(term));
        }
        // Who has another's place by now needs what had ended before it came, too.
        let view = if stand_ins.is_empty() { Vec::new() } else { self.view(pipeline) };
        for peer in stand_ins {
            if view.contains(&peer) && !self.is_syncing(peer, pipeline) {
                self.start_full_sync(peer, pipeline, Purpose::Reign(term));
            }
        }
        false
    }

    /// Whether others can coordinate in place of this node, and should: that of those whose task it is,
    /// or one that takes jobs where this one does not, and so would not hear of those that others take.
    /// If it was elected again when it made way, it gives them longer each time: their links may be too slow for an election, and
    /// meanwhile jobs have to go on.
    fn should_make_way(&self, pipeline: PipelineId, keepers: &[NodeId]) -> bool {
        let Some(group) = self.groups.get(&pipeline) else { return false };
        let Role::Coordinator(reign) = &group.role else { return false };
        let times = (1u32 << group.made_way.0.min(MOST_DOUBLED)) - 1;
        let stayed = self.now.since(reign.since) >= self.config.timing.lease * times;
        // It was elected for want of anybody else, perhaps; by now, those whose task it is can do it.
        let passed_over = || !keepers.contains(&self.me()) && self.is_replaceable(pipeline);
        let unwilling = || self.refusing.is_some() && self.has_heir(pipeline, reign);
        stayed && (passed_over() || unwilling())
    }

    /// Whether somebody who takes jobs can be elected, and whoever is elected will know of all that is
    /// under way, even without this node's vote.
    fn has_heir(&self, pipeline: PipelineId, reign: &Reign) -> bool {
        let sync = |node: &NodeId| reign.peers.get(node);
        let can_coordinate = |node: &NodeId| {
            let complete = sync(node).is_some_and(|sync| sync.is_complete());
            complete && self.accepts(*node) && self.says_admitted(*node, pipeline)
        };
        // Who cannot be reached may be so for good: nobody waits for it.
        let mut lacking = self.view(pipeline);
        lacking.retain(|node| {
            let knows = *node == self.me() || sync(node).is_some_and(|sync| sync.is_in_step());
            !knows && self.is_reachable(*node)
        });
        // In a strict group each majority knows it in any case.
        let known = self.is_strict(pipeline) || lacking.len() <= self.view(pipeline).len() / 2;
        known && self.keepers(pipeline).iter().any(can_coordinate)
    }

    /// Whether this node only waits for others to know what it knows, to leave a pipeline to them.
    pub(super) fn is_handing_over(&self) -> bool {
        let mut coordinated = self.groups.values().filter(|group| group.is_coordinator());
        self.refusing.is_some() && coordinated.any(|group| self.others_accept(group.id))
    }

    /// Whether a peer says that its copy of a pipeline is admitted.
    fn says_admitted(&self, node: NodeId, pipeline: PipelineId) -> bool {
        let said = self.members.get(&node).and_then(|member| member.unadmitted.as_ref());
        said.is_some_and(|unadmitted| !unadmitted.contains(&pipeline))
    }

    /// Whether this node coordinates, and all who should keep a copy have one that is complete and
    /// admitted.
    fn is_replaceable(&self, pipeline: PipelineId) -> bool {
        let admitted = |node: &NodeId| self.says_admitted(*node, pipeline);
        let settled = self.groups.get(&pipeline).is_some_and(|group| self.is_settled(group));
        settled && self.view(pipeline).iter().all(admitted)
    }

    /// A peer can be reached again.
    pub(super) fn followers_found(&mut self, _peer: NodeId) {
        self.maintain_all();
        let waiting: Vec<PipelineId> = self.groups.keys().copied().collect();
        waiting.into_iter().for_each(|pipeline| self.consider_election(pipeline));
    }

    /// A peer cannot be reached: it is no replica for now, and no voter.
    pub(super) fn reigns_lost(&mut self, peer: NodeId) {
        let mut unfounded = Vec::new();
        for group in self.groups.values_mut() {
            let Some(reign) = group.elected() else { continue };
            reign.peers.remove(&peer);
            if reign.unmerged.contains(&peer) {
                unfounded.push(group.id);
            }
        }
        // What the voter held cannot be merged any more: the election is held again without it.
        unfounded.into_iter().for_each(|pipeline| self.step_down(pipeline));
    }

    /// A replica keeps the others waiting: it is put out, and brought up to date later.
    pub(super) fn put_out(&mut self, peer: NodeId) {
        self.counted.replicas_put_out += 1;
        let until = self.now + self.config.timing.beat;
        let mut unfounded = Vec::new();
        for group in self.groups.values_mut() {
            let Some(reign) = group.elected() else { continue };
            if let Some(sync) = reign.peers.get_mut(&peer) {
                *sync = PeerSync::Lagging(until);
            }
            if reign.unmerged.contains(&peer) {
                unfounded.push(group.id);
            }
        }
        unfounded.into_iter().for_each(|pipeline| self.step_down(pipeline));
        self.drop_sessions_with(peer);
        self.stop_waiting_for(peer);
    }

    pub(super) fn control(&self, pipeline: PipelineId, job: JobId, step: u16) -> Option<&Control> {
        self.groups.get(&pipeline)?.jobs.get(&job)?.record.controls.get(&step)
    }

    /// Writes the next control value of a phase, in this node's term. Gives back its token.
    pub(super) fn update_control(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        change: impl FnOnce(&mut Control),
    ) -> Option<Token> {
        let issued = self.issued;
        let group = self.groups.get_mut(&pipeline)?;
        let reign = group.reign()?;
        // Terms of two pipelines may be equal: what tells their attempts apart is the sequence.
        reign.sequence = reign.sequence.max(issued);
        let (term, sequence) = (reign.term, reign.next_sequence());
        self.issued = sequence;
        let (strict, written_ms) = (self.is_strict(pipeline), self.wall_ms());
        let group = self.groups.get_mut(&pipeline)?;
        let record = &mut group.jobs.get_mut(&job)?.record;
        record.make_room();
        let control = record.controls.entry(step).or_insert_with(|| Control {
            generation: record.spec.as_ref().map_or(0, |spec| spec.generation),
            term,
            sequence,
            strict,
            progress: Progress::Waiting { not_before_ms: 0 },
            attempt_count: 0,
            lost_count: 0,
            late_count: 0,
            items: 0,
            written_ms,
            since_ms: 0,
            note: None,
            attempts: Vec::new(),
            session: None,
        });
        let (before, stood) = (control.rank(), Before::of(control));
        let was = control.state();
        (control.term, control.sequence) = (term, sequence);
        // Two clusters that meet may have defined one name differently: what was agreed on by a
        // majority stays above what was not.
        control.strict |= strict;
        control.written_ms = written_ms;
        change(control);
        debug_assert!(before <= control.rank(), "a local step moves up");
        let ended = control.is_terminal() && control.state() != was;
        let (attempt, phase) = (stood.attempt_end(control), stood.phase_end(control));
        // Also where it had failed before: what this phase did was not known then.
        if ended && record.state() == JobState::Dead {
            self.failed.insert((pipeline, job));
        }
        self.touch(pipeline, job, FIRST_CONTROL + step, true);
        if let Some((number, what)) = attempt {
            self.note(pipeline, (job, Some(step)), Some(number), what);
        }
        if let Some((number, what)) = phase {
            self.note(pipeline, (job, Some(step)), number, what);
        }
        Some(Token { term, sequence })
    }
}
