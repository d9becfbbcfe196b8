//! Copies that differ from their coordinator's are offered to it; those that this node should not keep are
//! handed on, and dropped once all who should keep them do.

use crate::{
    id::{JobId, NodeId, PipelineId, Term},
    message::{BeatGroup, Digest, Scope},
    store::{Table, Write, component_key, job_key},
};

use super::{
    Core,
    commit::Held,
    group::{Group, Role},
    sync::Purpose,
};

impl Core {
    /// Whether a comparison of this pipeline, begun here as an offer, is under way.
    fn is_offering(&self, pipeline: PipelineId) -> bool {
        self.sessions.values().any(|session| {
            session.pipeline == pipeline && !matches!(session.purpose, Purpose::Reign(_))
        })
    }

    pub(super) fn note_anti_entropy(&mut self, pipeline: PipelineId) {
        let now = self.now;
        if let Some(group) = self.groups.get_mut(&pipeline) {
            group.last_anti_entropy = now;
        }
    }

    /// Offers what this node holds to a coordinator that seems to hold something else.
    pub(super) fn anti_entropy(&mut self) {
        let mut offers = Vec::new();
        for group in self.groups.values() {
            let Role::Follower = group.role else { continue };
            let (Some(leader), Some(beat)) = (group.leader, &group.beat) else { continue };
            let due = self.now.since(group.last_anti_entropy) >= self.config.timing.anti_entropy;
            if leader.node == self.me() || !due || !self.is_reachable(leader.node) {
                continue;
            }
            if let Some((scope, purpose)) = self.offer(group, leader.term, beat)
                && !self.is_offering(group.id)
            {
                offers.push((leader.node, group.id, scope, purpose));
            }
        }
        for (peer, pipeline, scope, purpose) in offers {
            self.note_anti_entropy(pipeline);
            self.start_sync(peer, pipeline, scope, purpose);
        }
    }

    /// Whether this node should have a copy of a pipeline's jobs, or stands in for one that should.
    pub(super) fn should_keep(&self, pipeline: PipelineId) -> bool {
        let me = self.me();
        self.keepers(pipeline).contains(&me) || self.view(pipeline).contains(&me)
    }

    fn offer(&self, group: &Group, term: Term, beat: &BeatGroup) -> Option<(Scope, Purpose)> {
        let (live, finished) = (group.live, group.finished.digest);
        if !self.should_keep(group.id) {
            // While somebody's place is empty nothing is dropped, and once is enough for what ended.
            let done = group.handed_on == Some((term, finished)) && !beat.settled;
            let purpose = Purpose::HandOff { live, finished, term };
            return match (live.count, finished.count) {
                (0, 0) => None,
                (0, _) if done => None,
                _ if done => Some((Scope::Live, purpose)),
                _ => Some((Scope::All, purpose)),
            };
        }
        // Finished jobs are compared only while nothing is unfinished: else the two are told apart
        // by what is on its way.
        let scope = match () {
            () if live != beat.live => Scope::Live,
            () if live.count == 0 && finished != beat.finished => Scope::All,
            () => return None,
        };
        Some((scope, Purpose::Offer(term)))
    }

    /// All is handed on and durable elsewhere.
    pub(super) fn drop_copies(
        &mut self,
        pipeline: PipelineId,
        to: (NodeId, Term),
        live: Digest,
        finished: Digest,
    ) {
        let now = self.now;
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        group.last_anti_entropy = now;
        group.handed_on = Some((to.1, finished));
        self.drop_handed_on(pipeline, to, live, finished);
    }

    /// This node's copies go, if nothing came since, once nobody is still to be told that they are here.
    pub(super) fn drop_handed_on(
        &mut self,
        pipeline: PipelineId,
        to: (NodeId, Term),
        live: Digest,
        finished: Digest,
    ) {
        let needed = self.should_keep(pipeline);
        let dirty = self.is_any_dirty(pipeline);
        let Some(group) = self.groups.get(&pipeline) else { return };
        let led = group.leader.is_some_and(|leader| (leader.node, leader.term) == to);
        let settled = group.beat.as_ref().is_some_and(|beat| beat.settled)
            && group.jobs.values().all(|job| job.pending == 0);
        if needed
            || dirty
            || !led
            || !settled
            || (group.live, group.finished.digest) != (live, finished)
        {
            return;
        }
        if self.is_answering(pipeline) {
            return self.hold_until_on_disk(Held::Drop { pipeline, to, live, finished });
        }
        self.drop_group_data(pipeline);
    }

    /// Forgets all jobs of a pipeline.
    pub(super) fn drop_group_data(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        group.forget_jobs();
        group.dropping += 1;
        // What was promised stays; only the copy is not complete any more.
        group.promise.admitted = None;
        self.journal.forget_all();
        let start = job_key(pipeline, JobId::MIN);
        let end = {
            let mut end = component_key(pipeline, JobId::MAX, u16::MAX).to_vec();
            end.push(0);
            bytes::Bytes::from(end)
        };
        for table in [Table::Jobs, Table::Live, Table::Ended] {
            let (start, end) = (start.clone(), end.clone());
            self.write(Write::DeleteRange { table, start, end });
        }
        self.write_promise(pipeline);
        self.hold_until_on_disk(Held::Dropped(pipeline));
    }
}
