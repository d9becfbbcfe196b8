//! Reads what items gave, for the phase behind: a thousand at a time, before that is given away.
//!
//! Invariant: what is given away was read for the attempts whose items count by then, and still do when it
//! goes. The job may have been tried again meanwhile, or have gone on with what came of another attempt
//! elsewhere.

use std::collections::BTreeMap;

use bytes::{BufMut, BytesMut};

use crate::{
    id::{JobId, PipelineId, Token},
    message::Gathered,
    mutant::Mutant,
    pipeline::PhaseDef,
    record::Progress,
    store::ReadError,
};

use super::{
    Core,
    items::{AGAIN, PAUSE},
    timer::Timer,
};

/// For how many phases results are read, or wait for a worker, at once: they may be large.
const COLLECTED_AT_ONCE: usize = 4;

/// What items gave, as far as it was read.
#[derive(Clone, Debug)]
pub(super) struct Collecting {
    /// What is complete, of those phases that come before this one.
    done: Vec<Gathered>,
    /// For which phases it was read, or is, and whose items these were for.
    of: Vec<(u16, Token)>,
    /// The phase whose items come next.
    step: u16,
    /// Where reading goes on.
    next: Option<JobId>,
    results: BytesMut,
    found: u32,
}

/// What items gave, all of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Collected {
    pub(super) given: Vec<Gathered>,
    /// For which phases, and whose items these were for.
    pub(super) of: Vec<(u16, Token)>,
}

impl Core {
    /// Whether all that items gave to a phase was read; begins to, if not.
    pub(super) fn is_collected(&mut self, pipeline: PipelineId, job: JobId, step: u16) -> bool {
        let Some(record) = self.record_of(pipeline, job) else { return true };
        let phases = self.phases_of(pipeline, record).unwrap_or_default();
        let Some(first) = first_for_items(phases, step, 0) else { return true };
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return true };
        let of = reign.collected.get(&(job, step)).map(|collected| collected.of.clone());
        if of.is_some_and(|of| self.still_count(pipeline, job, &of)) {
            return true;
        }
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return true };
        reign.collected.remove(&(job, step));
        if reign.collecting.contains_key(&(job, step)) {
            return false;
        }
        let (waiting, under_way) = (reign.collected.len(), reign.collecting.len());
        if waiting + under_way >= COLLECTED_AT_ONCE {
            self.drop_stale_results(pipeline);
            self.look_again(pipeline, job, step, AGAIN / 4);
            return false;
        }
        let (done, of, next, results, found) = (Vec::new(), Vec::new(), None, BytesMut::new(), 0);
        let collecting = Collecting { done, of, step: first, next, results, found };
        reign.collecting.insert((job, step), collecting);
        self.arm(PAUSE, Timer::Items(pipeline));
        false
    }

    /// What was read for phases that have gone on without it has no use.
    fn drop_stale_results(&mut self, pipeline: PipelineId) {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let of: Vec<(JobId, u16)> =
            reign.into_iter().flat_map(|it| it.collected.keys()).copied().collect();
        for (job, step) in of {
            if !self.is_ready(pipeline, job, step) {
                self.take_collected(pipeline, job, step);
            }
        }
    }

    /// What was read for a phase; it is given away now.
    pub(super) fn take_collected(
        &mut self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Collected {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let collected = reign.and_then(|reign| reign.collected.remove(&(job, step)));
        collected.unwrap_or_default()
    }

    /// Whether what was read is that of the items which count.
    pub(super) fn still_count(
        &self,
        pipeline: PipelineId,
        job: JobId,
        of: &[(u16, Token)],
    ) -> bool {
        let counts = |step: u16| self.gathered_by(pipeline, job, step).map(|(token, ..)| token);
        of.iter().all(|(step, token)| counts(*step) == Some(*token))
    }

    /// Reads on what items gave, for one phase that waits for it.
    pub(super) fn collect_more(&mut self, pipeline: PipelineId) -> Result<(), ReadError> {
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        let Some((of, mut collecting)) = reign.collecting.pop_first() else { return Ok(()) };
        if !reign.collecting.is_empty() {
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        let (job, step) = of;
        if !self.is_ready(pipeline, job, step) {
            return Ok(());
        }
        if !self.still_count(pipeline, job, &collecting.of) {
            // It is read anew when its turn comes.
            self.refresh(pipeline, job);
            return Ok(());
        }
        let Some((token, total, failed)) = self.gathered_by(pipeline, job, collecting.step) else {
            return Ok(());
        };
        let id = |index| JobId::of_item(pipeline, job, collecting.step, token, index);
        let to = id(total.saturating_sub(1));
        if collecting.next.is_none() {
            collecting.of.push((collecting.step, token));
        }
        let from = collecting.next.unwrap_or_else(|| id(0));
        let (items, last) = match total {
            0 => (BTreeMap::new(), to),
            _ => self.items_in(pipeline, from, to)?,
        };
        for record in items.values() {
            let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
            let its = parent.is_some_and(|parent| (parent.job, parent.token) == (job, token));
            if let Some(output) = self.output_of(pipeline, record).filter(|_| its) {
                collecting.found += 1;
                let between = if collecting.results.is_empty() { b'[' } else { b',' };
                collecting.results.put_u8(between);
                collecting.results.extend_from_slice(&output);
            }
        }
        collecting.next = Some(last.next());
        let limit = self.config.limits.job_results_bytes;
        let so_far: usize = collecting.done.iter().map(|it| it.results.len()).sum();
        if so_far + collecting.results.len() + self.result_bytes(pipeline, job) > limit {
            let note = format!(
                "what the phases and items before it gave has more than {limit} bytes together \
                 (limits.job_results_bytes)"
            );
            self.end_by_rule(pipeline, job, step, Progress::Dead, note);
            return Ok(());
        }
        if last >= to {
            if collecting.found < total.saturating_sub(failed) && !self.has(Mutant::ReduceEarly) {
                self.wait_for_items(pipeline, job, step, collecting.step);
                return Ok(());
            }
            self.end_of_items(pipeline, job, step, &mut collecting);
        }
        let reign = self.groups.get_mut(&pipeline).and_then(|group| group.reign());
        let Some(reign) = reign else { return Ok(()) };
        if collecting.step == u16::MAX {
            let collected = Collected { given: collecting.done, of: collecting.of };
            reign.collected.insert(of, collected);
            self.refresh(pipeline, job);
        } else {
            reign.collecting.insert(of, collecting);
            self.arm(PAUSE, Timer::Items(pipeline));
        }
        Ok(())
    }

    /// All that the items of one phase gave is read: those of the next come, if there is one.
    fn end_of_items(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
        collecting: &mut Collecting,
    ) {
        let record = self.record_of(pipeline, job);
        let phases = record.and_then(|record| self.phases_of(pipeline, record)).unwrap_or_default();
        let mut results = std::mem::take(&mut collecting.results);
        results.extend_from_slice(if results.is_empty() { b"[]" } else { b"]" });
        let phase = phases.get(usize::from(collecting.step));
        if let Some((phase, each)) = phase.and_then(|it| Some((it, it.each.as_ref()?))) {
            let (name, combine) = (phase.name.clone(), each.combine);
            collecting.done.push(Gathered { name, combine, results: results.freeze() });
        }
        let next = first_for_items(phases, step, collecting.step + 1);
        (collecting.step, collecting.next) = (next.unwrap_or(u16::MAX), None);
        collecting.found = 0;
    }

    /// Whose items a phase was for, how many there were, and how many of them failed.
    fn gathered_by(
        &self,
        pipeline: PipelineId,
        job: JobId,
        step: u16,
    ) -> Option<(Token, u32, u32)> {
        let control = self.control(pipeline, job, step)?;
        match control.progress {
            Progress::Succeeded { token, .. } => Some((token, control.items, control.lost_count)),
            _ => None,
        }
    }

    /// A phase cannot begin, since not all that items gave before it is here. If nobody has it, the
    /// job begins anew.
    fn wait_for_items(&mut self, pipeline: PipelineId, job: JobId, step: u16, lacking: u16) {
        if self.is_known_by_all(pipeline) {
            self.begin_anew(pipeline, job, lacking);
        } else {
            self.look_again(pipeline, job, step, AGAIN);
        }
    }
}

/// The first phase, from a place on, for whose items' results a phase waits.
fn first_for_items(phases: &[PhaseDef], step: u16, from: u16) -> Option<u16> {
    let after = &phases.get(usize::from(step))?.after;
    let mut after = after.iter().copied().filter(|before| *before >= from);
    after.find(|before| phases.get(usize::from(*before)).is_some_and(|it| it.each.is_some()))
}
