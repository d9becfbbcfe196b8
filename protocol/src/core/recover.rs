//! A strict group whose majority is lost for good goes on with those that are left, if an operator
//! says so.
//!
//! No node can tell a lost majority from one beyond a partition, so no node decides this: an operator
//! names each member that is given up, and is told what that means. What can be known is checked: that
//! there is no majority here, nobody coordinates, and all that cannot be reached are named.
//!
//! ```text
//! terms of elections:   1, 2, … counter < 2^32  │  2^32, … < 2·2^32  │ …
//!                       before                  │  after a recovery  │  after another
//! ```
//! The recovered group's view is written in a term beyond all that elections can reach in the epoch
//! before. So should a member that was given up live, even a majority of them, it yields as soon as it
//! meets one of the others: its coordinator steps down, it learns the view, and what it holds is
//! offered to the recovered group like the records of any copy that was away.

use std::collections::BTreeSet;

use crate::{
    group_view::{GroupView, Holder},
    id::{NodeId, PipelineId, Term},
    io::{Effect, Refusal, RequestId, Response},
    name::Name,
};

use super::{Core, commit::Held, election::LAST_COUNTER, group::Role};

/// How many counters an epoch has: no group elects so often.
const EPOCH: u64 = 1 << 32;

/// What a recovery is to do.
struct Plan {
    pipeline: PipelineId,
    term: Term,
    /// Those who are left, with the disks that they have now.
    members: BTreeSet<Holder>,
    /// Those who are given up.
    lost: BTreeSet<NodeId>,
}

impl Core {
    /// An operator gives up members of a strict group, so that the others may go on.
    pub(super) fn recover(
        &mut self,
        request: RequestId,
        name: &Name,
        lost: &BTreeSet<NodeId>,
        accept_loss: bool,
    ) {
        match self.plan_recovery(name, lost, accept_loss) {
            Ok(plan) => self.carry_out(request, plan),
            Err(refusal) => self.reply(request, Response::Refused(refusal)),
        }
    }

    fn plan_recovery(
        &self,
        name: &Name,
        lost: &BTreeSet<NodeId>,
        accept_loss: bool,
    ) -> Result<Plan, Refusal> {
        let refused = |why: String| Err(Refusal::NotRecoverable(why));
        let pipeline = self.pipeline_named(name)?.id();
        if !self.is_strict(pipeline) {
            return refused(format!(
                "pipeline `{name}` has execute = \"any\": those that are left go on by themselves, \
                 with what they hold"
            ));
        }
        let Some(group) = self.groups.get(&pipeline).filter(|_| self.config.roles.replica) else {
            return refused("this node keeps no jobs: ask a replica".to_owned());
        };
        let view = self.group_view(pipeline);
        let has_its_disk =
            |(node, disk): &Holder| self.is_reachable(*node) && self.disk_of(*node) == Some(*disk);
        if view.has_quorum(has_its_disk) {
            return refused(format!(
                "a majority of the replicas of pipeline `{name}` can be reached from here: it needs \
                 no recovery, only some seconds to elect a coordinator"
            ));
        }
        let quiet = self.now.since(group.leaderless_since) >= self.config.timing.lease;
        if self.hears_leader(group) || !quiet || self.is_pledged(pipeline, group, self.me()) {
            return refused(format!(
                "pipeline `{name}` had a coordinator a moment ago, which may still act: ask again in \
                 a few seconds"
            ));
        }
        let nodes: BTreeSet<NodeId> = view.holders().into_iter().map(|(node, _)| node).collect();
        let (here, away): (BTreeSet<NodeId>, BTreeSet<NodeId>) =
            nodes.iter().partition(|node| self.is_reachable(**node));
        if !here.contains(&self.me()) && !here.is_empty() {
            return refused(format!(
                "this node is no replica of pipeline `{name}`: ask one of {}",
                self.names_of(&here)
            ));
        }
        if *lost != away {
            return refused(format!(
                "to recover pipeline `{name}` give up exactly those of its replicas that cannot be \
                 reached from here: {}",
                self.names_of(&away)
            ));
        }
        let left = if here.is_empty() { BTreeSet::from([self.me()]) } else { here.clone() };
        let disk = |node: &NodeId| Some((*node, self.disk_of(*node)?));
        let members: BTreeSet<Holder> = left.iter().filter_map(disk).collect();
        if !accept_loss {
            return refused(self.what_may_be_lost(&view, &here, &away));
        }
        let known = group.promise.highest.max(group.promise.voted).max(view.term);
        let counter = (known.counter / EPOCH + 1) * EPOCH;
        if counter >= LAST_COUNTER {
            return refused(format!("pipeline `{name}` was recovered too often"));
        }
        let term = Term { counter, node: self.me(), boot: self.config.boot };
        Ok(Plan { pipeline, term, members, lost: away })
    }

    fn what_may_be_lost(
        &self,
        view: &GroupView,
        here: &BTreeSet<NodeId>,
        away: &BTreeSet<NodeId>,
    ) -> String {
        let copies = match here.is_empty() {
            true => "none of its replicas is left: all its jobs are lost".to_owned(),
            false => {
                let replaced = view
                    .members
                    .iter()
                    .any(|(node, disk)| here.contains(node) && self.disk_of(*node) != Some(*disk));
                let disks = match replaced {
                    true => "; some of these have other disks than before, with what they hold",
                    false => "",
                };
                format!("{} go on with what they hold{disks}", self.names_of(here))
            }
        };
        let given_up = match away.is_empty() {
            true => String::new(),
            false => format!(
                " Should one of {} still run, and reach clients or workers, two groups act at one \
                 time: phases may run in both, and what was answered there may be undone",
                self.names_of(away)
            ),
        };
        format!(
            "{copies}. Jobs, and ends of phases, that only the others have are lost: such a job may \
             be gone, or a phase run again.{given_up}. Nothing was changed; confirm with accept_loss"
        )
    }

    fn names_of(&self, nodes: &BTreeSet<NodeId>) -> String {
        let name = |node: &NodeId| match self.members.get(node) {
            Some(member) => format!("{} ({node:#})", member.advert.name),
            None if *node == self.me() => format!("{} ({node:#})", self.config.name),
            None => format!("{node:#}"),
        };
        match nodes.is_empty() {
            true => "none".to_owned(),
            false => nodes.iter().map(name).collect::<Vec<_>>().join(", "),
        }
    }

    fn carry_out(&mut self, request: RequestId, plan: Plan) {
        let Plan { pipeline, term, members, lost } = plan;
        let nodes = members.iter().map(|(node, _)| *node).collect();
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        group.role = Role::Follower;
        group.promise.highest = term;
        // No vote of an earlier epoch is given any more.
        group.promise.voted = term;
        group.view = Some(GroupView { term, sequence: 1, members, next: None });
        group.election_at = None;
        self.write_promise(pipeline);
        self.store_view(pipeline);
        let response = Response::Recovered { members: nodes, lost };
        self.hold_until_on_disk(Held::Effect(Box::new(Effect::Reply { id: request, response })));
        self.consider_election(pipeline);
    }
}
