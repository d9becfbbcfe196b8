//! Events: what a coordinator keeps of what happened to its pipeline, what a node keeps of what it saw
//! in the cluster, and those who follow either.
//!
//! ```text
//! update_control, seal ─► Held::Event ─durable─► Ring ─► readers that wait, and those that come
//! ```
//! Events of jobs are told once what they tell is durable. A ring is bounded in number and in bytes;
//! who reads too slowly falls out of it and is told so, and nobody waits for readers.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use crate::{
    advert::Advert,
    catalog::CatalogEntry,
    event::{
        About, Event, EventPage, EventQuery, EventToken, EventsFrom, GapReason, MAX_TEXT_BYTES,
        Told, What, cut,
    },
    id::{JobId, NodeId, PipelineId, Term},
    io::{Refusal, RequestId, Response},
    message::{Answer, Question},
    mutant::Mutant,
    name::Name,
    record::{Control, Progress},
    time::Timestamp,
    view::{JobState, Liveness},
};

use super::{
    Core,
    attempts::GIVEN_BACK,
    commit::Held,
    group::{End, Role, Standing},
    query::Asker,
    timer::Timer,
};

/// How often waits of readers end, in ms: each end has a timer of its own, and readers ask all the time.
const WAITS_END_EVERY_MS: u64 = 250;

/// How long events are gathered before those who wait are told: so many of them cost one answer.
const GATHER: Duration = Duration::from_millis(20);

/// The longest that somebody may wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How many may wait for events of one stream, on one node.
const MAX_READERS: usize = 1000;

/// The most events in one page, and about how many bytes of them.
const MAX_PAGE: usize = 1000;
const PAGE_BYTES: usize = 1 << 20;

/// How many events are looked at for one page: it is read while everything else waits.
const PAGE_COST: usize = 20_000;

/// What one event takes, without its text.
const EVENT_BYTES: usize = size_of::<Kept>();

/// An event without its place.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) at_ms: u64,
    pub(super) about: About,
    pub(super) what: What,
}

impl Kept {
    fn size(&self) -> usize {
        let text = match &self.what {
            What::AttemptFailed { error, .. }
            | What::AttemptLost { error }
            | What::PhaseFailed { error }
            | What::Dead { error } => error.len(),
            What::PhaseSkipped { reason }
            | What::PhaseCancelled { reason }
            | What::Cancelled { reason } => reason.len(),
            What::Log { text, .. } | What::Progress { text, .. } => text.len(),
            _ => 0,
        };
        EVENT_BYTES + text
    }
}

/// The last events of a stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    kept: VecDeque<Kept>,
    /// The number of the last.
    last: u64,
    bytes: usize,
}

impl Ring {
    fn push(&mut self, kept: Kept, number: usize, bytes: usize) {
        self.bytes += kept.size();
        self.kept.push_back(kept);
        self.last += 1;
        while self.kept.len() > number || self.bytes > bytes {
            let Some(oldest) = self.kept.pop_front() else { return };
            self.bytes -= oldest.size();
        }
    }

    /// The number of the oldest.
    fn first(&self) -> u64 {
        self.last + 1 - self.kept.len() as u64
    }

    /// How many are kept, and what they take in bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.kept.len(), self.bytes)
    }

    /// What somebody wants of it.
    fn page(&self, term: Term, query: &EventQuery, now_ms: u64) -> EventPage {
        let (first, token) = (self.first(), |number| EventToken { term, number });
        let (mut at, gap) = match query.from {
            EventsFrom::Oldest => (first, None),
            EventsFrom::Latest => (self.last + 1, None),
            EventsFrom::After(after) if after.term != term || after.number > self.last => {
                (first, Some((None, GapReason::Teller)))
            }
            EventsFrom::After(after) if after.number + 1 < first => {
                (first, Some((Some(first - after.number - 1), GapReason::Behind)))
            }
            EventsFrom::After(after) => (after.number + 1, None),
        };
        let gap = gap.map(|(missed, why)| Event {
            token: token(at - 1),
            at_ms: now_ms,
            about: About::default(),
            what: What::Gap { missed, why },
        });
        let mut events: Vec<Event> = gap.into_iter().collect();
        let limit = (query.limit as usize).clamp(1, MAX_PAGE) + events.len();
        let (mut bytes, end) = (0, at + PAGE_COST as u64);
        for kept in self.kept.iter().skip((at - first) as usize) {
            if events.len() >= limit || bytes > PAGE_BYTES || at == end {
                break;
            }
            if query.wants(&kept.about, &kept.what) {
                bytes += kept.size();
                let Kept { at_ms, about, what } = kept.clone();
                events.push(Event { token: token(at), at_ms, about, what });
            }
            at += 1;
        }
        EventPage { events, next: token(at - 1) }
    }

    /// Whether there is something behind a page that found nothing: more than one page may cost.
    fn has_more(&self, page: &EventPage) -> bool {
        page.next.number < self.last
    }
}

/// Somebody who waits for events.
#[derive(Clone, Debug)]
struct Reader {
    asker: Asker,
    query: EventQuery,
    until: Timestamp,
}

/// Those who wait for events of one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Readers {
    waiting: Vec<Reader>,
    /// Whether they are told in a moment.
    telling: bool,
}

impl Readers {
    /// Some have gone.
    pub(super) fn drop(&mut self, gone: impl Fn(&Asker) -> bool) {
        self.waiting.retain(|reader| !gone(&reader.asker));
    }
}

/// What a node tells of the cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct ClusterEvents {
    ring: Ring,
    readers: Readers,
    /// How many bytes each ring of a pipeline may take.
    pub(super) each: usize,
}

impl ClusterEvents {
    pub(super) fn new(bytes: usize) -> Self {
        Self { each: bytes, ..Self::default() }
    }
}

/// How a phase stood before a change of it.
pub(super) struct Before {
    terminal: bool,
    /// The last attempt that had not ended: where it stood, and its number.
    open: Option<(usize, u32)>,
}

impl Before {
    pub(super) fn of(control: &Control) -> Self {
        let at = control.attempts.iter().rposition(|attempt| attempt.finished_ms.is_none());
        let open = at.map(|at| (at, control.attempts[at].number));
        Self { terminal: control.is_terminal(), open }
    }

    /// What a change made of an attempt: its number, and what happened.
    pub(super) fn attempt_end(&self, control: &Control) -> Option<(u32, What)> {
        let (at, number) = self.open?;
        let text = |error: &str| cut(error, MAX_TEXT_BYTES);
        let Some(attempt) = control.attempts.get(at) else {
            return Some((number, What::AttemptLost { error: text("it was never begun") }));
        };
        let error = attempt.error.as_deref().filter(|_| attempt.finished_ms.is_some())?;
        let again_ms = match control.progress {
            Progress::Waiting { not_before_ms } => Some(not_before_ms),
            _ => None,
        };
        let given_back = attempt.lost || error == GIVEN_BACK;
        if given_back && self.terminal {
            // It was told to end, as its phase had.
            return None;
        }
        let what = match given_back {
            true => What::AttemptLost { error: text(error) },
            false => What::AttemptFailed { error: text(error), again_ms },
        };
        Some((number, what))
    }

    /// What a change made of the phase: which attempt did it, and what happened.
    pub(super) fn phase_end(&self, control: &Control) -> Option<(Option<u32>, What)> {
        if self.terminal {
            return None;
        }
        let note = || cut(control.note.as_deref().unwrap_or_default(), MAX_TEXT_BYTES);
        match &control.progress {
            Progress::Waiting { .. } | Progress::Running { .. } | Progress::Items => None,
            Progress::Succeeded { token, .. } => {
                let by = control.attempts.iter().rfind(|attempt| attempt.token == *token);
                let skipped = by.is_none() && control.note.is_some();
                let what = match skipped {
                    true => What::PhaseSkipped { reason: note() },
                    false => What::PhaseSucceeded,
                };
                Some((by.map(|attempt| attempt.number), what))
            }
            Progress::Dead => {
                let last = control.attempts.last().filter(|_| control.note.is_none());
                let what = What::PhaseFailed { error: why(control) };
                Some((last.map(|attempt| attempt.number), what))
            }
            Progress::Cancelled => Some((None, What::PhaseCancelled { reason: note() })),
        }
    }
}

/// Why a phase has ended, for people.
fn why(control: &Control) -> Arc<str> {
    let last = control.attempts.last().and_then(|attempt| attempt.error.as_deref());
    cut(control.note.as_deref().or(last).unwrap_or_default(), MAX_TEXT_BYTES)
}

/// The moment, or a little later: waits that end at about the same time end together.
fn on_grid(moment: Timestamp) -> Timestamp {
    Timestamp::from_millis(moment.as_millis().next_multiple_of(WAITS_END_EVERY_MS))
}

impl Core {
    /// Tells an event of a job, or of a phase of it, once this batch is durable.
    pub(super) fn note(
        &mut self,
        pipeline: PipelineId,
        (job, step): (JobId, Option<u16>),
        attempt: Option<u32>,
        what: What,
    ) {
        if let Some(kept) = self.kept(pipeline, (job, step), attempt, what) {
            let term = self.elected_term(pipeline);
            self.hold_until_durable(pipeline, Held::Event { pipeline, term, kept });
        }
    }

    fn kept(
        &self,
        pipeline: PipelineId,
        (job, step): (JobId, Option<u16>),
        attempt: Option<u32>,
        what: What,
    ) -> Option<Kept> {
        if self.config.limits.events == 0 {
            return None;
        }
        let record = &self.groups.get(&pipeline)?.jobs.get(&job)?.record;
        let phase = |step: u16| self.phases_of(pipeline, record)?.get(usize::from(step));
        let phase = step.and_then(phase).map(|phase| phase.name.clone());
        let part_of = record.spec.as_ref().and_then(|spec| Some(spec.parent.as_ref()?.job));
        let about = About { job: Some(job), part_of, phase, attempt };
        Some(Kept { at_ms: self.wall_ms(), about, what })
    }

    /// Tells that an attempt was given out.
    pub(super) fn note_attempt(
        &mut self,
        pipeline: PipelineId,
        (job, step): (JobId, u16),
        worker: NodeId,
    ) {
        let entry = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        let Some(record) = entry.map(|entry| &entry.record) else { return };
        if record.is_over() {
            // A worker claims what it was given elsewhere, and nobody wants any more.
            return;
        }
        let Some(control) = record.controls.get(&step) else { return };
        let number = control.attempts.last().map(|attempt| attempt.number);
        let all: u32 = record.controls.values().map(|control| control.attempt_count).sum();
        if all == 1 {
            self.note(pipeline, (job, None), None, What::Started);
        }
        let what = What::AttemptStarted { worker };
        self.note(pipeline, (job, Some(step)), number, what);
    }

    /// What it means that a job counts as something else than before; whether that comes before all
    /// else that happened to it in the same batch.
    pub(super) fn turn(
        &self,
        pipeline: PipelineId,
        job: JobId,
        (before, now): (Option<Standing>, Standing),
    ) -> Option<(bool, Kept)> {
        let group = self.groups.get(&pipeline).filter(|group| group.is_coordinator())?;
        let record = &group.jobs.get(&job)?.record;
        let what = match (before, now) {
            (None | Some(Standing::Ended(End::Reaped, _)), Standing::Live { .. }) => What::Enqueued,
            (Some(Standing::Ended(..)), Standing::Live { .. }) => {
                What::Retried { generation: record.generation() }
            }
            (Some(Standing::Live { .. }), Standing::Ended(..)) if !record.is_reaped() => {
                let ended = |state| record.controls.values().find(move |it| it.state() == state);
                match record.state() {
                    JobState::Dead => {
                        What::Dead { error: ended(JobState::Dead).map_or("".into(), why) }
                    }
                    JobState::Cancelled => {
                        let reason = ended(JobState::Cancelled).map_or("".into(), why);
                        What::Cancelled { reason }
                    }
                    _ => What::Succeeded,
                }
            }
            _ => return None,
        };
        let first = matches!(what, What::Enqueued | What::Retried { .. });
        let first = first && !self.has(Mutant::EventsUnordered);
        Some((first, self.kept(pipeline, (job, None), None, what)?))
    }

    /// Appends an event to a pipeline's stream, if this node coordinates it.
    pub(super) fn tell(&mut self, pipeline: PipelineId, kept: Kept) {
        let (number, bytes) = (self.config.limits.events, self.cluster_events.each);
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        let Some(reign) = group.reign() else { return };
        reign.events.push(kept, number, bytes);
        if !group.readers.waiting.is_empty() && !group.readers.telling {
            group.readers.telling = true;
            self.arm(GATHER, Timer::Events(Some(pipeline)));
        }
    }

    /// Tells an event of a pipeline as a whole.
    pub(super) fn tell_of(&mut self, pipeline: PipelineId, phase: Option<Name>, what: What) {
        if self.config.limits.events == 0 {
            return;
        }
        let about = About { phase, ..About::default() };
        self.tell(pipeline, Kept { at_ms: self.wall_ms(), about, what });
    }

    /// Appends an event to what this node saw in the cluster.
    pub(super) fn tell_cluster(&mut self, phase: Option<Name>, what: What) {
        let limits = &self.config.limits;
        if limits.events == 0 {
            return;
        }
        let about = About { phase, ..About::default() };
        let kept = Kept { at_ms: self.wall_ms(), about, what };
        let (number, bytes) = (limits.events, limits.event_bytes / 8);
        self.cluster_events.ring.push(kept, number, bytes);
        let readers = &mut self.cluster_events.readers;
        if !readers.waiting.is_empty() && !readers.telling {
            readers.telling = true;
            self.arm(GATHER, Timer::Events(None));
        }
    }

    /// A node, as events name it.
    pub(super) fn told(&self, node: NodeId) -> Told {
        let name = match self.members.get(&node) {
            Some(member) => member.advert.name.as_str(),
            None if node == self.me() => self.config.name.as_str(),
            None => "",
        };
        Told { node, name: name.into() }
    }

    /// Tells how members look by now, where that has changed; called with each beat and when one is
    /// found or lost.
    pub(super) fn tell_liveness(&mut self) {
        let looks: Vec<(NodeId, Option<Liveness>, Liveness)> = self
            .members
            .iter()
            .map(|(node, member)| (*node, member.told, self.liveness(member)))
            .filter(|(node, told, now)| {
                // One that is only heard of is no news before it can be reached.
                let met = self.members.get(node).is_some_and(|member| member.met);
                met && *told != Some(*now)
            })
            .collect();
        for (node, before, now) in looks {
            let Some(member) = self.members.get_mut(&node) else { continue };
            member.told = Some(now);
            let told = self.told(node);
            let what = match (before, now) {
                (None, Liveness::Alive) => What::NodeJoined(told),
                (Some(_), Liveness::Alive) => What::NodeReturned(told),
                (_, Liveness::Suspect) => What::NodeSuspected(told),
                (_, Liveness::Down) => What::NodeDown(told),
                (_, Liveness::Retired) => What::NodeRetired(told),
            };
            self.tell_cluster(None, what);
        }
    }

    /// Tells which phases a node offers by now, or no more.
    pub(super) fn tell_phases(&mut self, advert: &Advert) {
        let names = |advert: &Advert| -> BTreeSet<Name> {
            advert.phases.iter().map(|slots| slots.phase.clone()).collect()
        };
        let known = self.members.get(&advert.node).map(|member| &member.advert);
        if known.is_some_and(|known| known.phases == advert.phases) {
            return;
        }
        let (before, now) = (known.map(names).unwrap_or_default(), names(advert));
        let told = Told { node: advert.node, name: advert.name.as_str().into() };
        for phase in now.difference(&before) {
            self.tell_cluster(Some(phase.clone()), What::PhaseAvailable(told.clone()));
        }
        for phase in before.difference(&now) {
            self.tell_cluster(Some(phase.clone()), What::PhaseGone(told.clone()));
        }
    }

    /// Somebody coordinates a pipeline by now.
    pub(super) fn tell_leader(&mut self, pipeline: PipelineId, node: NodeId, term: Term) {
        let name = self.catalog.get(&pipeline).map(|entry| entry.name.clone());
        if let Some(pipeline) = name {
            self.tell_cluster(None, What::CoordinatorSeen { pipeline, node, term });
        }
    }

    /// Nobody is known to coordinate a pipeline any more.
    pub(super) fn tell_no_leader(&mut self, pipeline: PipelineId) {
        let name = self.catalog.get(&pipeline).map(|entry| entry.name.clone());
        if let Some(pipeline) = name {
            self.tell_cluster(None, What::CoordinatorLost { pipeline });
        }
    }

    /// Tells what a change of a pipeline's entry in the catalog means.
    pub(super) fn tell_entry(&mut self, before: &CatalogEntry, now: &CatalogEntry) {
        let (id, mut told) = (now.id(), Vec::new());
        let what = |paused: bool| if paused { What::Paused } else { What::Resumed };
        if before.paused != now.paused {
            told.push((None, what(now.paused)));
        }
        for step in before.paused_steps.symmetric_difference(&now.paused_steps) {
            told.push((Some(step.clone()), what(now.paused_steps.contains(step))));
        }
        if before.current != now.current {
            told.push((None, What::Revised));
        }
        told.into_iter().for_each(|(phase, what)| self.tell_of(id, phase, what));
    }

    /// Shares out what events may take among the pipelines that this node coordinates.
    pub(super) fn share_event_bytes(&mut self) {
        let coordinated = self.groups.values().filter(|group| group.is_coordinator()).count();
        self.cluster_events.each = self.config.limits.event_bytes / 2 / coordinated.max(1);
    }

    /// A client wants events of a pipeline, or of the cluster as this node sees it.
    pub(super) fn ask_events(
        &mut self,
        request: RequestId,
        name: Option<&Name>,
        partition: Option<u16>,
        query: EventQuery,
    ) {
        let Some(name) = name else {
            return self.read_events(Asker::Client(request), None, query);
        };
        let pipeline = match self.stream_of(name, partition, &query) {
            Ok(pipeline) => pipeline,
            Err(refusal) => return self.reply(request, Response::Refused(refusal)),
        };
        let Some(group) = self.groups.get(&pipeline) else {
            let refusal = Refusal::NoCoordinator(name.to_string());
            return self.reply(request, Response::Refused(refusal));
        };
        if group.is_coordinator() {
            return self.read_events(Asker::Client(request), Some(pipeline), query);
        }
        let leader = group.leader.map(|leader| leader.node);
        match leader.filter(|node| *node != self.me() && self.is_reachable(*node)) {
            Some(node) => {
                let whom = (vec![(pipeline, node)], false);
                self.pass_on(request, whom, |pipeline| Question::Events { pipeline, query });
            }
            None => {
                let refusal = Refusal::NoCoordinator(name.to_string());
                self.reply(request, Response::Refused(refusal));
            }
        }
    }

    /// The stream that is asked for: each partition has its own.
    fn stream_of(
        &self,
        name: &Name,
        partition: Option<u16>,
        query: &EventQuery,
    ) -> Result<PipelineId, Refusal> {
        let parts = self.partitions_named(name)?;
        let of_job = |job: JobId| parts.iter().find(|part| job.may_belong_to(**part));
        let found = match partition {
            Some(at) => {
                let wanted = PipelineId::of_partition(name.as_str(), at);
                parts.iter().find(|part| **part == wanted)
            }
            None if parts.len() == 1 => parts.first(),
            None => query.job.and_then(of_job),
        };
        let count = parts.len();
        found.copied().ok_or_else(|| Refusal::WhichPartition { name: name.to_string(), count })
    }

    /// Answers with what there is, or puts the asker among those who wait.
    pub(super) fn read_events(
        &mut self,
        asker: Asker,
        stream: Option<PipelineId>,
        mut query: EventQuery,
    ) {
        let Some((page, more)) = self.page_of_events(stream, &query) else {
            return self.answer(asker, Answer::Elsewhere);
        };
        let wait = query.wait.filter(|wait| !wait.is_zero() && !self.draining && !more);
        let now = self.now;
        let Some(readers) = self.readers_of(stream) else { return };
        match wait {
            Some(wait) if page.events.is_empty() && readers.waiting.len() < MAX_READERS => {
                let until = on_grid(now + wait.min(LONGEST_WAIT));
                query.from = EventsFrom::After(page.next);
                readers.waiting.push(Reader { asker, query, until });
                self.arm_at(until, Timer::Events(stream));
            }
            _ => self.answer(asker, Answer::Events(Box::new(page))),
        }
    }

    fn readers_of(&mut self, stream: Option<PipelineId>) -> Option<&mut Readers> {
        match stream {
            None => Some(&mut self.cluster_events.readers),
            Some(pipeline) => self.groups.get_mut(&pipeline).map(|group| &mut group.readers),
        }
    }

    /// A page, and whether there is more to look at at once; none if another coordinates.
    fn page_of_events(
        &self,
        stream: Option<PipelineId>,
        query: &EventQuery,
    ) -> Option<(EventPage, bool)> {
        let (ring, term) = match stream {
            None => (&self.cluster_events.ring, self.own_term()),
            Some(pipeline) => match &self.groups.get(&pipeline)?.role {
                Role::Coordinator(reign) => (&reign.events, reign.term),
                _ => return None,
            },
        };
        let page = ring.page(term, query, self.wall_ms());
        let more = ring.has_more(&page);
        Some((page, more))
    }

    /// What stands for a term in tokens of cluster events.
    fn own_term(&self) -> Term {
        Term { counter: 0, node: self.me(), boot: self.config.boot }
    }

    /// Where a pipeline's stream is by now.
    pub(super) fn last_event(&self, pipeline: PipelineId) -> Option<EventToken> {
        match &self.groups.get(&pipeline)?.role {
            Role::Coordinator(reign) => {
                Some(EventToken { term: reign.term, number: reign.events.last })
            }
            _ => None,
        }
    }

    /// There are events, or some have waited long enough.
    pub(super) fn on_events_timer(&mut self, stream: Option<PipelineId>) {
        let (now, draining) = (self.now, self.draining);
        let Some(readers) = self.readers_of(stream) else { return };
        readers.telling = false;
        let waiting = std::mem::take(&mut readers.waiting);
        let mut left = Vec::with_capacity(waiting.len());
        for mut reader in waiting {
            let Some((page, more)) = self.page_of_events(stream, &reader.query) else {
                self.answer(reader.asker, Answer::Elsewhere);
                continue;
            };
            if page.events.is_empty() && !more && reader.until > now && !draining {
                reader.query.from = EventsFrom::After(page.next);
                left.push(reader);
            } else {
                self.answer(reader.asker, Answer::Events(Box::new(page)));
            }
        }
        if let Some(readers) = self.readers_of(stream) {
            readers.waiting.append(&mut left);
        }
    }

    /// This node coordinates a pipeline no longer: its readers have to ask another.
    pub(super) fn drop_readers_of(&mut self, pipeline: PipelineId) {
        let Some(group) = self.groups.get_mut(&pipeline) else { return };
        for reader in std::mem::take(&mut group.readers.waiting) {
            self.answer_elsewhere(pipeline, reader.asker);
        }
    }

    /// Some readers have gone.
    pub(super) fn drop_readers(&mut self, gone: impl Fn(&Asker) -> bool) {
        self.cluster_events.readers.drop(&gone);
        self.groups.values_mut().for_each(|group| group.readers.drop(&gone));
    }

    /// What a coordinator keeps of a pipeline's events behind a number, with the token of the first.
    pub fn events_behind(
        &self,
        pipeline: PipelineId,
        number: u64,
    ) -> Option<(EventToken, impl Iterator<Item = (&About, &What)>)> {
        let Role::Coordinator(reign) = &self.groups.get(&pipeline)?.role else { return None };
        let first = reign.events.first();
        let from = first.max(number.saturating_add(1));
        let kept = reign.events.kept.iter().skip((from - first) as usize);
        let token = EventToken { term: reign.term, number: from };
        Some((token, kept.map(|kept| (&kept.about, &kept.what))))
    }

    /// How many wait for events.
    pub(super) fn readers(&self) -> usize {
        let of_groups = self.groups.values().map(|group| group.readers.waiting.len());
        of_groups.sum::<usize>() + self.cluster_events.readers.waiting.len()
    }

    /// Nobody waits for events of a node that is about to stop.
    pub(super) fn let_readers_go(&mut self) {
        let streams: Vec<PipelineId> = self.groups.keys().copied().collect();
        streams.into_iter().for_each(|pipeline| self.on_events_timer(Some(pipeline)));
        self.on_events_timer(None);
    }
}
