//! Who coordinates a pipeline: votes that are on disk before they are told.
//!
//! ```text
//! Follower ─nobody heard─► PreCandidate ─quorum─► Candidate ─quorum─► TakingOver ─merged─► Coordinator
//!     ▲                          │                    │                   │                    │
//!     └──────────── a later term is seen, or a voter is lost ────────────┴────────────────────┘
//! ```
//! A pre-vote changes nothing, so a node that merely lost its own link disturbs nobody. A vote is
//! given once a counter and synced before it is told. Better ranks stand earlier.
//!
//! With `execute = any` those who can be reached may decide alone after a wait; no safety property
//! then rests on there being one coordinator.
//!
//! A disk that nobody admitted has no vote. Should all disks of a group be such, because the others
//! are lost, nobody could ever admit one: then, when every member of the view is there and none of
//! them is admitted, they found the group anew with what they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use crate::{
    config::Timing,
    id::{DiskId, NodeId, PipelineId, Term},
    io::Effect,
    message::{Ballot, Message},
    mutant::Mutant,
    time::Timestamp,
};

use super::{
    Core,
    commit::Held,
    group::{Candidacy, Group, Leader, PeerSync, Reign, Role},
    sync::Purpose,
    timer::Timer,
};

/// No election gets here in the life of a cluster: a greater counter is nonsense from a peer.
pub(super) const LAST_COUNTER: u64 = 1 << 48;

/// After how long it is forgotten that a node made way, and was elected again.
const FORGIVEN: Duration = Duration::from_secs(600);

impl Core {
    /// Whether this node's copy of a group counts.
    pub(super) fn is_admitted(&self, pipeline: PipelineId) -> bool {
        if self.has(Mutant::AmnesiaCounts) {
            return self.groups.contains_key(&pipeline);
        }
        if self.is_strict(pipeline) {
            return self.is_in_group_view(pipeline);
        }
        let disk = Some(self.config.disk);
        self.groups.get(&pipeline).is_some_and(|group| group.promise.admitted == disk)
    }

    /// Whether this node may answer a candidate with yes. In a strict group any disk may promise:
    /// whether that counts is for the candidate to see, who knows the view.
    fn may_vote(&self, pipeline: PipelineId, founding: bool) -> bool {
        match self.is_strict(pipeline) {
            true => !founding,
            false => self.is_admitted(pipeline) != founding,
        }
    }

    /// Whether this node coordinates, or hears who does or is about to.
    pub(super) fn hears_leader(&self, group: &Group) -> bool {
        self.hears_other_leader(group, self.me())
    }

    /// The same, but for one node: whoever asks to be elected does not coordinate.
    fn hears_other_leader(&self, group: &Group, than: NodeId) -> bool {
        let heard = |node: NodeId, at: Timestamp| {
            node != self.me()
                && node != than
                && self.is_reachable(node)
                && self.now.since(at) < self.config.timing.lease
        };
        group.elected_term().is_some()
            || group.leader.is_some_and(|leader| heard(leader.node, leader.heard))
            || group.successor.is_some_and(|(node, at)| heard(node, at))
    }

    /// A node compares what it holds with this one: if that is whom this one voted for, it has been
    /// elected and takes over, however long that may last.
    pub(super) fn note_takeover(&mut self, from: NodeId, pipeline: PipelineId) {
        let now = self.now;
        if let Some(group) = self.groups.get_mut(&pipeline)
            && group.promise.voted.node == from
        {
            group.successor = Some((from, now));
        }
    }

    /// Whether those who are here may decide without a majority: nobody has coordinated for a
    /// while, and this node has been up for long enough to have found the others.
    fn may_decide_alone(&self, pipeline: PipelineId, group: &Group) -> bool {
        if self.is_strict(pipeline) {
            return false;
        }
        let timing = &self.config.timing;
        let settled_in = self.now.since(self.started) >= timing.start_wait
            || self.view(pipeline).into_iter().all(|node| self.has_met(node));
        settled_in && self.now.since(group.leaderless_since) >= timing.minority_wait
    }

    /// Whether this node could found the group anew: all of the view are there, and all who founded
    /// it, unless they have been away for so long that others have their places. That none of them
    /// is admitted shows when they are asked.
    fn may_found(&self, pipeline: PipelineId, group: &Group) -> bool {
        let founders = self.catalog.get(&pipeline).map(|entry| &entry.founders);
        let mut founders = founders.into_iter().flatten().map(|(node, _)| *node);
        self.may_decide_alone(pipeline, group)
            && self.view(pipeline).into_iter().all(|node| self.is_reachable(node))
            && founders.all(|node| self.is_reachable(node) || self.is_long_gone(node))
    }

    /// Those who are asked for their vote.
    fn electorate(&self, pipeline: PipelineId) -> BTreeSet<NodeId> {
        let mut nodes = self.view(pipeline);
        if !self.is_strict(pipeline) {
            nodes.append(&mut self.keepers(pipeline));
        }
        if !nodes.contains(&self.me()) {
            // Those who should keep the jobs are all new: whoever else there is may know of some.
            nodes = self.replica_nodes();
        }
        nodes.into_iter().filter(|node| self.is_reachable(*node)).collect()
    }

    /// Stands for election soon, unless somebody coordinates or this node may not.
    pub(super) fn consider_election(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let removed = self.catalog.get(&pipeline).is_none_or(|entry| entry.removed);
        if removed && group.live.count == 0
            || self.is_disk_stalled()
            || group.election_at.is_some()
            || self.hears_leader(group)
            || !(self.is_admitted(pipeline) || self.may_found(pipeline, group))
        {
            return;
        }
        let (step, patience) = (self.config.timing.election_step, self.config.timing.minority_wait);
        let rank = self.keepers(pipeline).iter().position(|node| *node == self.me());
        let willing = self.refusing.is_none() || !self.others_accept(pipeline);
        let delay = match rank.filter(|_| willing) {
            Some(rank) => step * rank as u32 + self.jitter(step / 2),
            // Should none of those who keep the jobs be admitted yet, only this node can admit them;
            // and one that takes no jobs lets the others go first.
            None if self.is_admitted(pipeline) => patience + step * 3 + self.jitter(patience),
            None => return,
        };
        self.stand_after(pipeline, delay);
    }

    fn stand_after(&mut self, pipeline: PipelineId, delay: Duration) {
        let at = self.now + delay;
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.election_at = Some(at);
            self.arm_at(at, Timer::Election(pipeline));
        }
    }

    pub(super) fn on_election_timer(&mut self, pipeline: PipelineId) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.election_at.is_none_or(|at| at > now) {
            return;
        }
        group.election_at = None;
        let Some(group) = self.groups.get(&pipeline) else { return };
        let founding = !self.is_admitted(pipeline);
        let may = (!founding || self.may_found(pipeline, group))
            && !self.hears_leader(group)
            && !self.is_pledged(pipeline, group, self.me())
            && (!founding || self.keepers(pipeline).contains(&self.me()));
        let counter = group.promise.highest.counter.max(group.promise.voted.counter) + 1;
        let role = if may {
            let term = Term { counter, node: self.me(), boot: self.config.boot };
            let (granted, excluded) = (BTreeSet::from([self.me()]), BTreeSet::new());
            let disks = BTreeMap::from([(self.me(), self.config.disk)]);
            Role::PreCandidate(Candidacy { term, founding, granted, disks, excluded })
        } else {
            Role::Follower
        };
        self.set_role(pipeline, role);
        if may {
            let retry = self.retry_after(pipeline);
            self.stand_after(pipeline, retry);
            self.ask(pipeline, &Message::PreVote { pipeline, counter, founding });
            self.count_votes(pipeline);
        }
    }

    /// How long a candidate waits for its votes before it stands again: longer each time, since a
    /// slow link may need more than was granted so far; but no longer than until those who are here
    /// may decide alone.
    fn retry_after(&mut self, pipeline: PipelineId) -> Duration {
        let Timing { election_step: step, lease, minority_wait, .. } = self.config.timing;
        let (now, strict) = (self.now, self.is_strict(pipeline));
        let Some(group) = self.groups.get_mut(&pipeline) else { return step };
        let doubled = 1u32 << group.stood.min(10);
        group.stood += 1;
        let alone = (group.leaderless_since + minority_wait).since(now);
        let wait = (step * 3).saturating_mul(doubled).min(lease);
        let wait = wait + self.jitter(wait / 2);
        match alone.is_zero() || strict {
            true => wait,
            false => wait.min(alone + self.jitter(step)),
        }
    }

    /// Changes the part that this node plays while it is not elected.
    fn set_role(&mut self, pipeline: PipelineId, role: Role) {
        if let Some(group) = self.groups.get_mut(&pipeline)
            && group.elected_term().is_none()
        {
            group.role = role;
        }
    }

    fn ask(&mut self, pipeline: PipelineId, question: &Message) {
        for node in self.electorate(pipeline) {
            if node != self.me() {
                self.send(node, question.clone());
            }
        }
    }

    /// Goes on to the next stage if enough have said yes.
    fn count_votes(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get(&pipeline) else { return };
        let (Role::PreCandidate(candidacy) | Role::Candidate(candidacy)) = &group.role else {
            return;
        };
        let view = self.view(pipeline);
        let for_us = view.iter().filter(|node| candidacy.granted.contains(node)).count();
        let alone = self.may_decide_alone(pipeline, group);
        let all_here = || {
            let mut electorate = self.electorate(pipeline);
            electorate.retain(|node| !candidacy.excluded.contains(node));
            electorate.is_subset(&candidacy.granted)
        };
        let strict = self.is_strict(pipeline);
        let backed = || {
            let granted = |node: &NodeId| candidacy.granted.contains(node);
            self.group_view(pipeline)
                .has_quorum(|(node, disk)| granted(node) && candidacy.disks.get(node) == Some(disk))
        };
        let elected = match candidacy.founding {
            _ if strict => backed(),
            true => self.may_found(pipeline, group) && all_here(),
            false => for_us > view.len() / 2 || alone && all_here(),
        };
        if !elected || !candidacy.granted.contains(&self.me()) {
            return;
        }
        match &group.role {
            Role::PreCandidate(_) => self.stand(pipeline),
            _ => self.take_over(pipeline),
        }
    }

    /// Votes for itself; the others are asked once that is on disk.
    fn stand(&mut self, pipeline: PipelineId) {
        let pledged = |group| self.is_pledged(pipeline, group, self.me());
        if self.groups.get(&pipeline).is_some_and(pledged) {
            return self.set_role(pipeline, Role::Follower);
        }
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Role::PreCandidate(candidacy) = &group.role else { return };
        self.counted.elections += 1;
        let (term, founding) = (candidacy.term, candidacy.founding);
        group.promise.voted = term;
        group.promise.highest = group.promise.highest.max(term);
        let (granted, excluded) = (BTreeSet::new(), candidacy.excluded.clone());
        let disks = BTreeMap::new();
        group.role = Role::Candidate(Candidacy { term, founding, granted, disks, excluded });
        self.write_promise(pipeline);
        self.hold_until_on_disk(Held::OwnVote { pipeline, term });
    }

    pub(super) fn on_own_vote(&mut self, pipeline: PipelineId, term: Term) {
        let (me, disk) = (self.me(), self.config.disk);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Role::Candidate(candidacy) = &mut group.role else { return };
        if candidacy.term != term {
            return;
        }
        candidacy.granted.insert(me);
        candidacy.disks.insert(me, disk);
        let founding = candidacy.founding;
        self.ask(pipeline, &Message::Vote { pipeline, term, founding });
        self.count_votes(pipeline);
    }

    pub(super) fn on_pre_vote(
        &mut self,
        from: NodeId,
        pipeline: PipelineId,
        counter: u64,
        founding: bool,
    ) {
        let admitted = self.is_admitted(pipeline);
        let group = self.groups.get(&pipeline);
        let granted = self.may_vote(pipeline, founding)
            && group.is_some_and(|group| {
                !self.hears_other_leader(group, from)
                    && !self.is_pledged(pipeline, group, from)
                    && counter > group.promise.voted.counter
            });
        let highest = group.map_or(Term::ZERO, |group| group.promise.highest);
        let (disk, view) = (self.config.disk, group.and_then(|group| group.view.clone()));
        let pre = true;
        let ballot = Ballot { pipeline, counter, pre, granted, admitted, highest, disk, view };
        self.send(from, Message::Ballot(ballot));
    }

    pub(super) fn on_vote(
        &mut self,
        from: NodeId,
        pipeline: PipelineId,
        term: Term,
        founding: bool,
    ) {
        let admitted = self.is_admitted(pipeline);
        let Some(group) = self.groups.get(&pipeline) else { return };
        let promise = group.promise;
        let fresh = term.counter > promise.voted.counter && term >= promise.highest;
        let view = group.view.clone();
        let granted = self.may_vote(pipeline, founding)
            && term.node == from
            && !self.hears_other_leader(group, from)
            && !self.is_pledged(pipeline, group, from)
            && (fresh || term == promise.voted);
        if granted {
            self.set_role(pipeline, Role::Follower);
            if let Some(group) = self.groups.get_mut(&pipeline) {
                group.promise.voted = term;
                group.promise.highest = promise.highest.max(term);
                group.founded = founding.then_some(term);
            }
            self.write_promise(pipeline);
            // The candidate gets time to merge what its voters hold before anybody stands again.
            self.stand_after(pipeline, self.config.timing.lease);
        }
        let highest = promise.highest.max(if granted { term } else { Term::ZERO });
        let (counter, disk, pre) = (term.counter, self.config.disk, false);
        let ballot = Ballot { pipeline, counter, pre, granted, admitted, highest, disk, view };
        let answer = Effect::Send { to: from, message: Message::Ballot(ballot) };
        if self.has(Mutant::VoteBeforeSync) {
            return self.effects.push_back(answer);
        }
        self.hold_until_on_disk(Held::Effect(Box::new(answer)));
    }

    pub(super) fn on_ballot(&mut self, from: NodeId, ballot: Ballot) {
        let Some(group) = self.groups.get_mut(&ballot.pipeline) else { return };
        let candidacy = match (&mut group.role, ballot.pre) {
            (Role::PreCandidate(candidacy), true) | (Role::Candidate(candidacy), false) => {
                candidacy
            }
            _ => return,
        };
        if candidacy.term.counter != ballot.counter {
            return;
        }
        if ballot.granted {
            candidacy.granted.insert(from);
            candidacy.disks.insert(from, ballot.disk);
        } else if candidacy.founding && ballot.admitted {
            // There is somebody who knows more: it is for them to coordinate, and to admit others.
            group.role = Role::Follower;
        } else if !candidacy.founding && !ballot.admitted {
            candidacy.excluded.insert(from);
        }
        if let Some(view) = &ballot.view {
            self.learn_view(ballot.pipeline, view);
        }
        self.note_term(ballot.pipeline, ballot.highest);
        self.count_votes(ballot.pipeline);
    }

    /// Elected: merges what each voter holds before anything else.
    fn take_over(&mut self, pipeline: PipelineId) {
        let (me, now) = (self.me(), self.now);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Role::Candidate(candidacy) = mem::replace(&mut group.role, Role::Follower) else {
            return;
        };
        self.counted.elections_won += 1;
        group.election_at = None;
        group.stood = 0;
        if now.since(group.made_way.1) > FORGIVEN {
            group.made_way.0 = 0;
        }
        group.leader = None;
        let voters: BTreeSet<NodeId> =
            candidacy.granted.into_iter().filter(|node| *node != me).collect();
        let mut reign = Reign::new(candidacy.term, voters.clone(), now);
        reign.strict.voter_disks = candidacy.disks;
        group.role = Role::TakingOver(reign);
        for voter in voters {
            self.start_live_sync(voter, pipeline, Purpose::Reign(candidacy.term));
        }
        self.adopt_if_merged(pipeline);
    }

    /// Takes up work once every voter's records are merged and that is on disk.
    pub(super) fn adopt_if_merged(&mut self, pipeline: PipelineId) {
        let Some(Role::TakingOver(reign)) = self.groups.get(&pipeline).map(|group| &group.role)
        else {
            return;
        };
        if reign.unmerged.is_empty() || self.has(Mutant::DispatchBeforeMerge) {
            let term = reign.term;
            if self.is_strict(pipeline) {
                // What differs is read from the disk first: the timer's errors stop the node.
                return self.arm(Duration::ZERO, Timer::Adopt(pipeline));
            }
            // Whoever founds a group anew is its first complete copy.
            self.admit_self(pipeline);
            self.hold_until_on_disk(Held::Adopted { pipeline, term });
        }
    }

    /// A term was seen. Whoever acts in an earlier one, or stands for one, steps down.
    pub(super) fn note_term(&mut self, pipeline: PipelineId, term: Term) {
        if term.counter > LAST_COUNTER {
            return;
        }
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let news = term > group.promise.highest;
        group.promise.highest = group.promise.highest.max(term);
        let highest = group.promise.highest;
        // Votes for an earlier term may still come in; whoever is elected by them is obeyed by none.
        if let Role::PreCandidate(candidacy) | Role::Candidate(candidacy) = &group.role
            && candidacy.term < highest
        {
            group.role = Role::Follower;
        }
        let deposed = group.elected_term().is_some_and(|mine| mine < highest);
        if news {
            self.write_promise(pipeline);
        }
        if deposed && !self.has(Mutant::DeposedStays) {
            self.step_down(pipeline);
        }
    }

    /// The term below which a coordinator is not listened to. A node that keeps nothing, and so takes no
    /// part in elections, follows whomever those elect who do, also where none of them has ever heard of
    /// the coordinator of a later term that this node followed before.
    pub(super) fn least_term(&self, pipeline: PipelineId, group: &Group) -> Term {
        if self.config.roles.replica || self.is_admitted(pipeline) || self.is_strict(pipeline) {
            return group.promise.highest;
        }
        let heard = |leader: &Leader| {
            let recent = self.now.since(leader.heard) < self.config.timing.lease;
            recent && self.is_reachable(leader.node)
        };
        group.leader.filter(heard).map_or(Term::ZERO, |leader| leader.term)
    }

    /// Coordinates no longer.
    pub(super) fn step_down(&mut self, pipeline: PipelineId) {
        let now = self.now;
        self.give_up_proposals(pipeline);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        self.counted.terms_lost += u64::from(group.elected_term().is_some());
        group.role = Role::Follower;
        let led = group.leader.take().is_some();
        group.leaderless_since = now;
        group.election_at = None;
        self.drop_readers_of(pipeline);
        self.share_event_bytes();
        if led {
            self.tell_no_leader(pipeline);
        }
        self.release_windows(pipeline);
        self.drop_sessions_for(pipeline);
        self.advert_changed = true;
        self.consider_election(pipeline);
    }

    /// Somebody says that it coordinates.
    pub(super) fn set_leader(&mut self, pipeline: PipelineId, node: NodeId, term: Term) {
        self.note_term(pipeline, term);
        let heard = self.now;
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.elected_term().is_some() {
            return;
        }
        let changed = group.leader.is_none_or(|leader| (leader.node, leader.term) != (node, term));
        group.leader = Some(Leader { node, term, heard });
        group.successor = None;
        if changed {
            (group.beat, group.in_step) = (None, None);
            group.doubtful.clear();
        }
        group.role = Role::Follower;
        group.election_at = None;
        group.stood = 0;
        if changed {
            self.tell_leader(pipeline, node, term);
            self.drop_offers(pipeline);
            self.grant_to_coordinators();
            self.tell_said_again(pipeline);
            self.resend_completions(pipeline);
        }
    }

    /// A peer cannot be reached: what it coordinated needs another.
    pub(super) fn leaders_lost(&mut self, peer: NodeId) {
        let led: Vec<PipelineId> = self
            .groups
            .values()
            .filter(|group| group.leader.is_some_and(|leader| leader.node == peer))
            .map(|group| group.id)
            .collect();
        led.into_iter().for_each(|pipeline| self.leader_lost(pipeline));
    }

    pub(super) fn leader_lost(&mut self, pipeline: PipelineId) {
        let now = self.now;
        if let Some(group) = self.groups.get_mut(&pipeline) {
            let led = group.leader.take().is_some();
            group.leaderless_since = now;
            if led {
                self.tell_no_leader(pipeline);
            }
        }
        self.consider_election(pipeline);
    }

    /// A coordinator says that this node's copy is complete.
    pub(super) fn on_admit(&mut self, pipeline: PipelineId, term: Term, disk: DiskId, copy: u64) {
        let fits = self
            .groups
            .get(&pipeline)
            .is_some_and(|group| term >= group.promise.highest && copy == group.copy);
        if disk == self.config.disk && fits {
            self.admit_self(pipeline);
            if let Some(group) = self.groups.get_mut(&pipeline)
                && group.leader.is_some_and(|leader| leader.term == term)
            {
                group.in_step = Some(term);
            }
        }
    }

    /// A replica says for which pipelines its disk is not admitted: where its copy is complete by
    /// now, it is; where it has dropped that copy since, it is brought up to date again. Of others it is
    /// told now and then that they are complete, as such a message may be lost.
    pub(super) fn admit(&mut self, from: NodeId, disk: DiskId, unadmitted: &[(PipelineId, u64)]) {
        let lacking: BTreeSet<PipelineId> = unadmitted.iter().map(|(it, _)| *it).collect();
        let (now, mut complete, mut dropped) = (self.now, Vec::new(), Vec::new());
        for &(pipeline, copy) in unadmitted {
            let Some(reign) = self.groups.get_mut(&pipeline).and_then(|group| group.reign()) else {
                continue;
            };
            let term = reign.term;
            let Some(sync) = reign.peers.get_mut(&from) else { continue };
            match *sync {
                PeerSync::Complete { copy: synced, .. } if synced == copy => {
                    complete.push(Message::Admit { pipeline, term, disk, copy });
                }
                PeerSync::InSync { copy: synced } | PeerSync::Complete { copy: synced, .. }
                    if synced != copy =>
                {
                    *sync = PeerSync::Lagging(now);
                    dropped.push(pipeline);
                }
                _ => {}
            }
        }
        let again = self.config.timing.anti_entropy;
        for group in self.groups.values_mut() {
            let pipeline = group.id;
            let Some(reign) = group.reign() else { continue };
            let term = reign.term;
            let Some(PeerSync::Complete { copy, all: true }) = reign.peers.get(&from).copied()
            else {
                reign.told.remove(&from);
                continue;
            };
            let told = reign.told.get(&from).is_some_and(|at| now.since(*at) < again);
            if !told && !lacking.contains(&pipeline) {
                reign.told.insert(from, now);
                complete.push(Message::Admit { pipeline, term, disk, copy });
            }
        }
        if let Some(member) = self.members.get_mut(&from) {
            member.unadmitted = Some(lacking);
        }
        dropped.into_iter().for_each(|pipeline| self.drop_sessions_of(from, pipeline));
        if !self.has(Mutant::NeverAdmitted) {
            complete.into_iter().for_each(|admit| self.send(from, admit));
        }
    }

    /// This node's copy counts from now on.
    pub(super) fn admit_self(&mut self, pipeline: PipelineId) {
        let admitted = Some(self.config.disk);
        let strict = self.is_strict(pipeline);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        if group.promise.admitted != admitted {
            group.promise.admitted = admitted;
            group.promise.horizon_ms = group.horizon_ms;
            group.founded = None;
            let unknown = group.horizon_ms == 0;
            self.write_promise(pipeline);
            if strict || unknown {
                self.note_made(pipeline);
            }
        }
    }
}
