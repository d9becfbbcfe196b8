//! A job's state as a product of joins.
//!
//! A record is a set of components, each under a tag: what was enqueued, and one control value per
//! phase. Components merge on their own, so a record merges in any order, any number of times, with
//! the same end. A component whose tag or schema is not known here is kept byte for byte, and of two
//! the greater is kept, before any that is known: an old node passes on what a newer one wrote.
//!
//! Invariants: merge is commutative, associative and idempotent; within a generation nothing
//! terminal becomes unfinished.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::{
    codec::{self, DecodeError, Encoded, Kind, Pieces},
    id::{JobId, NodeId, Term, Token},
    pipeline::Revision,
    trace::TraceParent,
    view::{AttemptView, JobState},
};

/// The tag of what was enqueued.
pub const SPEC: u16 = 0;

/// The tag of payloads that were enqueued under one id.
pub const PAYLOADS: u16 = 1;

/// The tag of what stays of a job that was forgotten.
pub const REAPED: u16 = 2;

/// The tag of the trace that a job is a part of.
pub const TRACE: u16 = 3;

/// The tag of the first phase's control value; the others follow.
pub const FIRST_CONTROL: u16 = 0x100;

/// How many of an invocation's attempts are kept in detail.
pub const MAX_ATTEMPTS_KEPT: usize = 8;

/// What most components fit into.
const COMPONENT_BYTES: usize = 192;

/// What a record takes in memory beside its parts, about: with its places in tables, and what
/// allocating it costs.
const RECORD_BYTES: usize = 320;

/// What the first of the components takes that are kept as bytes: they lie in a tree.
const KEPT_BYTES: usize = 480;

/// How many payloads under one id are told apart.
const MAX_PAYLOADS: usize = 8;

/// One component in its envelope, as it lies on disk and goes over the wire.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Component {
    /// Which.
    pub tag: u16,
    /// Its bytes.
    pub bytes: Bytes,
}

/// What was enqueued. Never changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobSpec {
    /// Raised, with those of all its phases, when an operator tries the finished job again.
    pub generation: u32,
    /// The pipeline's definition that the job follows.
    pub revision: Revision,
    /// How many phases that has.
    pub phases: u16,
    /// When it was enqueued, by the gateway's clock.
    pub created_ms: u64,
    /// In which term it was taken, where only a coordinator takes jobs.
    pub term: Option<Term>,
    /// When it may begin, and how soon.
    pub options: JobOptions,
    /// The idempotency key.
    pub key: Option<String>,
    /// Where it comes from, if it is made of an item that another job gave.
    pub parent: Option<Box<Parent>>,
    /// What it undoes, if another job has failed.
    pub compensates: Option<Compensated>,
    /// A JSON object.
    pub instructions: Bytes,
}

/// Of which item of which job a job is made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Parent {
    /// The job.
    pub job: JobId,
    /// Its phase that says what is done with the item.
    pub step: u16,
    /// The attempt that gave the item.
    pub token: Token,
    /// Which of the items that this attempt gave, from 0.
    pub index: u32,
    /// The way to the phases that it goes through, from the pipeline's own.
    pub path: Vec<u16>,
}

/// What a job undoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Compensated {
    /// The job that failed.
    pub job: JobId,
    /// In which generation.
    pub generation: u32,
}

impl JobSpec {
    /// The way to the job's phases within the pipeline; empty for the pipeline's own.
    pub fn path(&self) -> &[u16] {
        self.parent.as_ref().map_or(&[], |parent| &parent.path)
    }
}

impl Encoded for JobSpec {
    const KIND: Kind = 0x100;
}

/// What a client says of a job beside what is to be done. Times are ms since 1970.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct JobOptions {
    /// No phase begins earlier; 0 for at once.
    pub not_before_ms: u64,
    /// When it becomes a dead letter unless it has ended.
    pub deadline_ms: Option<u64>,
    /// Of what waits for the same phase, the higher goes first.
    pub priority: i8,
}

/// Hashes of the payloads that one idempotency key was used for on both sides of a partition: the
/// job runs with one of them, and the others must not go unnoticed. A set that only grows, and of
/// which the greatest few are kept, so that it joins in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Payloads(BTreeSet<u64>);

impl Encoded for Payloads {
    const KIND: Kind = 0x102;
}

impl Payloads {
    fn add(&mut self, hashes: impl IntoIterator<Item = u64>) -> bool {
        let before = self.0.clone();
        self.0.extend(hashes);
        while self.0.len() > MAX_PAYLOADS {
            self.0.pop_first();
        }
        self.0 != before
    }
}

/// What stays of a job whose retention is over, for as long as a copy that somebody still has might
/// bring it back: all of it up to a generation is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reaped {
    /// The last generation that is gone.
    pub generation: u32,
    /// When it was forgotten (ms since 1970).
    pub at_ms: u64,
}

impl Encoded for Reaped {
    const KIND: Kind = 0x103;
}

fn payload_hash(spec: &JobSpec) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&spec.instructions)
}

/// Where one phase of a job stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Progress {
    /// It wants an attempt, not before this moment (ms since 1970).
    Waiting {
        /// The moment.
        not_before_ms: u64,
    },
    /// A worker has it.
    Running {
        /// Who.
        worker: NodeId,
        /// The attempt.
        token: Token,
    },
    /// What is done with the items of a phase before is under way.
    Items,
    /// It was cancelled.
    Cancelled,
    /// Its attempts are spent.
    Dead,
    /// It gave a result.
    Succeeded {
        /// The attempt that gave it.
        token: Token,
        /// A JSON object.
        result: Bytes,
    },
}

impl Progress {
    /// The rank of an end: of two ends the higher wins. Zero for what has not ended.
    fn rank(&self) -> u8 {
        match self {
            Self::Waiting { .. } | Self::Running { .. } | Self::Items => 0,
            Self::Cancelled => 1,
            Self::Dead => 2,
            Self::Succeeded { .. } => 3,
        }
    }
}

/// The control value of one phase of a job: of two the greater wins as a whole, so that the stories
/// of two coordinators never mix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Raised when an operator tries a finished job again.
    pub generation: u32,
    /// The term in which it was written.
    pub term: Term,
    /// The writer's counter within that term.
    pub sequence: u64,
    /// Whether a coordinator wrote it that a majority backed: the later term then wins, whatever
    /// it says, since an end that was not committed must not outlive what was decided after it.
    pub strict: bool,
    /// Where the phase stands.
    pub progress: Progress,
    /// How often it was tried.
    pub attempt_count: u32,
    /// How many of these attempts ended because their worker was lost.
    pub lost_count: u32,
    /// How many attempts ended well after another had been accepted.
    pub late_count: u32,
    /// How many items the attempt gave that was accepted.
    pub items: u32,
    /// When it was written, by the writer's clock (ms since 1970).
    pub written_ms: u64,
    /// When its first attempt of this generation was given out, or its wait for a signal began; 0
    /// while neither has.
    pub since_ms: u64,
    /// Why it ended, where that is not what its last attempt says.
    pub note: Option<String>,
    /// The last few attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// What the attempt that was accepted left in its session: a JSON object. It is a part of this
    /// value, so that it counts exactly where that attempt does. A value that has one is written as a
    /// version of its own.
    #[serde(skip)]
    pub session: Option<Box<Bytes>>,
}

impl Encoded for Control {
    const KIND: Kind = 0x101;
}

/// A control value with a session, as it is written.
#[derive(Serialize, Deserialize)]
struct WithSession {
    control: Control,
    session: Bytes,
}

impl Encoded for WithSession {
    const KIND: Kind = Control::KIND;
    const SCHEMA: u8 = 2;
}

fn read_control(bytes: &[u8]) -> Result<Control, DecodeError> {
    match codec::decode::<Control>(bytes) {
        Err(DecodeError::Unknown { .. }) => {
            let WithSession { control, session } = codec::decode(bytes)?;
            Ok(Control { session: Some(Box::new(session)), ..control })
        }
        read => read,
    }
}

impl Ord for Control {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank()
            .cmp(&other.rank())
            // Equal ranks mean equal values, since a writer never reuses a sequence; the rest is
            // compared all the same so that the order is total whatever the bytes say.
            .then_with(|| self.progress.cmp(&other.progress))
            .then_with(|| self.attempt_count.cmp(&other.attempt_count))
            .then_with(|| self.lost_count.cmp(&other.lost_count))
            .then_with(|| self.late_count.cmp(&other.late_count))
            .then_with(|| self.items.cmp(&other.items))
            .then_with(|| self.written_ms.cmp(&other.written_ms))
            .then_with(|| self.since_ms.cmp(&other.since_ms))
            .then_with(|| self.note.cmp(&other.note))
            .then_with(|| self.attempts.cmp(&other.attempts))
            .then_with(|| self.session.cmp(&other.session))
    }
}

impl PartialOrd for Control {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Control {
    /// What decides which of two values wins.
    pub(crate) fn rank(&self) -> (u32, bool, u8, Term, u64) {
        let rank = if self.strict { 0 } else { self.progress.rank() };
        (self.generation, self.strict, rank, self.term, self.sequence)
    }

    /// Whether the phase is over.
    pub fn is_terminal(&self) -> bool {
        self.progress.rank() > 0
    }

    /// How many bytes its result and its session have.
    pub fn result_bytes(&self) -> usize {
        let session = self.session.as_ref().map_or(0, |session| session.len());
        match &self.progress {
            Progress::Succeeded { result, .. } => result.len() + session,
            _ => session,
        }
    }

    /// Its component's bytes, in their envelope.
    fn encode(&self, pieces: &mut Pieces) -> Bytes {
        match &self.session {
            None => pieces.encode(self),
            Some(session) => {
                let (control, session) = (self.clone(), (**session).clone());
                pieces.encode(&WithSession { control, session })
            }
        }
    }

    /// Where the phase stands, as clients see it.
    pub fn state(&self) -> JobState {
        match self.progress {
            Progress::Waiting { .. } => JobState::Queued,
            Progress::Running { .. } | Progress::Items => JobState::Running,
            Progress::Cancelled => JobState::Cancelled,
            Progress::Dead => JobState::Dead,
            Progress::Succeeded { .. } => JobState::Succeeded,
        }
    }
}

/// The control values of a job's phases, by position. Most jobs have a few, and there are many jobs: a
/// tree would make room for eleven at once.
pub type Controls = LiteMap<u16, Control>;

/// A job's record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobRecord {
    /// What was enqueued, once it is known here.
    pub spec: Option<Arc<JobSpec>>,
    /// The phases that were tried, by position.
    pub controls: Controls,
    /// What the id was used for, if for more than one payload.
    payloads: Payloads,
    /// What was forgotten of it.
    pub reaped: Option<Reaped>,
    /// Components that are kept as bytes: those of a later version, and the trace, which is thereby kept,
    /// merged and counted in digests as by nodes that do not know it.
    pub unknown: BTreeMap<u16, Bytes>,
}

impl JobRecord {
    /// A new job.
    pub fn new(spec: JobSpec) -> Self {
        Self { spec: Some(Arc::new(spec)), ..Self::default() }
    }

    /// The same, as a part of somebody's trace.
    #[must_use]
    pub fn traced(mut self, trace: Option<TraceParent>) -> Self {
        self.unknown.extend(trace.map(|trace| (TRACE, codec::encode(&trace))));
        self
    }

    /// The trace that it is a part of, if it was enqueued within one.
    pub fn trace(&self) -> Option<TraceParent> {
        let bytes = self.unknown.get(&TRACE)?;
        codec::decode(bytes).ok().filter(TraceParent::is_valid)
    }

    /// Joins one component. Says whether anything changed.
    ///
    /// # Errors
    /// The bytes are damaged; the record is then unchanged.
    pub fn merge(&mut self, component: &Component) -> Result<bool, DecodeError> {
        let tag = component.tag;
        match Known::read(component) {
            // A later version has the tag already: what it means outranks what is known here.
            Ok(_) if self.unknown.contains_key(&tag) => Ok(false),
            Ok(Known::Spec(spec)) => Ok(self.merge_spec(&Arc::new(spec))),
            Ok(Known::Payloads(payloads)) => Ok(self.note_payloads(payloads.0)),
            Ok(Known::Reaped(reaped)) => Ok(self.merge_reaped(reaped)),
            Ok(Known::Control(step, control)) => Ok(self.merge_control(step, control)),
            Err(DecodeError::Unknown { .. }) => Ok(self.merge_unknown(component)),
            Err(error) => Err(error),
        }
    }

    fn merge_unknown(&mut self, component: &Component) -> bool {
        let tag = component.tag;
        let kept = self.unknown.get(&tag).is_some_and(|kept| *kept >= component.bytes);
        if kept || self.reaped.is_some() {
            return false;
        }
        self.unknown.insert(tag, component.bytes.clone());
        if tag == SPEC {
            self.spec = None;
        }
        // Whether payloads differ is for those to say who can read them all.
        if tag == SPEC || tag == PAYLOADS {
            self.payloads = Payloads::default();
        }
        if let Some(step) = tag.checked_sub(FIRST_CONTROL) {
            self.controls.remove(&step);
        }
        true
    }

    /// Whether nothing up to a generation counts any more.
    fn has_reaped(&self, generation: u32) -> bool {
        self.reaped.is_some_and(|reaped| reaped.generation >= generation)
    }

    /// Whether it was forgotten, and not begun anew.
    pub fn is_reaped(&self) -> bool {
        self.reaped.is_some() && self.spec.is_none()
    }

    /// Whether nothing but enqueueing has happened to it, and nothing but its turn has to come: it is no
    /// part of another job, and waits for no moment.
    pub(crate) fn is_untouched(&self) -> bool {
        let plain = |spec: &JobSpec| {
            let JobOptions { not_before_ms, deadline_ms, priority: _ } = spec.options;
            let alone = spec.parent.is_none() && spec.compensates.is_none();
            alone && not_before_ms == 0 && deadline_ms.is_none()
        };
        let known = self.reaped.is_none()
            && self.unknown.keys().all(|tag| *tag == TRACE)
            && self.payloads.0.is_empty();
        known && self.controls.is_empty() && self.spec.as_deref().is_some_and(plain)
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.is_reaped() || self.state().is_terminal()
    }

    /// The highest generation of any part.
    pub fn generation(&self) -> u32 {
        let spec = self.spec.as_ref().map_or(0, |spec| spec.generation);
        self.controls.values().map(|control| control.generation).fold(spec, u32::max)
    }

    /// Forgets all of it up to a generation. What has none goes with it, so that the order in which
    /// parts come makes no difference. Says whether that is news.
    pub fn merge_reaped(&mut self, reaped: Reaped) -> bool {
        if self.reaped >= Some(reaped) {
            return false;
        }
        self.reaped = Some(reaped);
        self.spec = self.spec.take().filter(|spec| spec.generation > reaped.generation);
        self.controls.retain(|_, control| control.generation > reaped.generation);
        self.payloads = Payloads::default();
        self.unknown.clear();
        true
    }

    /// Joins a control value. Says whether it won.
    pub fn merge_control(&mut self, step: u16, control: Control) -> bool {
        match self.controls.get(&step) {
            _ if self.has_reaped(control.generation) => false,
            Some(mine) if *mine >= control => false,
            _ => {
                self.make_room();
                self.controls.insert(step, control);
                true
            }
        }
    }

    /// Before the first control value: makes room for those of a short job, and no more.
    pub(crate) fn make_room(&mut self) {
        if self.controls.is_empty() {
            let phases = self.spec.as_ref().map_or(1, |spec| spec.phases);
            self.controls = LiteMap::with_capacity(usize::from(phases.clamp(1, 4)));
        }
    }

    fn merge_spec(&mut self, spec: &Arc<JobSpec>) -> bool {
        // Two payloads can share an id only when one key was used twice across a partition. The
        // earlier wins everywhere; that there were two is kept.
        if self.has_reaped(spec.generation) {
            return false;
        }
        let Some(mine) = self.spec.clone() else {
            self.spec = Some(Arc::clone(spec));
            return true;
        };
        // Where only coordinators take jobs, the later one has seen all that counts.
        let rank = |spec: &Arc<JobSpec>| {
            (Reverse((spec.generation, spec.term)), spec.created_ms, Arc::clone(spec))
        };
        let older = rank(spec) < rank(&mine);
        let conflict = mine.instructions != spec.instructions
            && self.note_payloads([payload_hash(&mine), payload_hash(spec)]);
        if older {
            self.spec = Some(Arc::clone(spec));
        }
        older || conflict
    }

    fn note_payloads(&mut self, hashes: impl IntoIterator<Item = u64>) -> bool {
        let readable = ![SPEC, PAYLOADS].iter().any(|tag| self.unknown.contains_key(tag));
        readable && self.reaped.is_none() && self.payloads.add(hashes)
    }

    /// How many payloads beside the one that counts were enqueued under this id, at least.
    pub fn payload_conflicts(&self) -> usize {
        self.payloads.0.len().saturating_sub(1)
    }

    /// The component under a tag, in its envelope.
    pub fn component(&self, tag: u16) -> Option<Component> {
        self.component_in(tag, &mut Pieces::with_room(COMPONENT_BYTES))
    }

    /// One component, whose bytes are a part of others'.
    pub(crate) fn component_in(&self, tag: u16, pieces: &mut Pieces) -> Option<Component> {
        let bytes = match tag {
            SPEC => self.spec.as_deref().map(|spec| pieces.encode(spec)),
            PAYLOADS if !self.payloads.0.is_empty() => Some(pieces.encode(&self.payloads)),
            REAPED => self.reaped.as_ref().map(|reaped| pieces.encode(reaped)),
            tag => tag
                .checked_sub(FIRST_CONTROL)
                .and_then(|step| self.controls.get(&step))
                .map(|control| control.encode(pieces)),
        };
        let bytes = bytes.or_else(|| self.unknown.get(&tag).cloned())?;
        Some(Component { tag, bytes })
    }

    /// The tags of all components.
    pub(crate) fn tags(&self) -> impl Iterator<Item = u16> {
        let controls = self.controls.keys().map(|step| FIRST_CONTROL + step);
        let unknown = self.unknown.keys().copied();
        let spec = self.spec.as_ref().map(|_| SPEC);
        let payloads = (!self.payloads.0.is_empty()).then_some(PAYLOADS);
        let reaped = self.reaped.map(|_| REAPED);
        [spec, payloads, reaped].into_iter().flatten().chain(controls).chain(unknown)
    }

    /// All components.
    pub fn components(&self) -> Vec<Component> {
        self.tags().filter_map(|tag| self.component(tag)).collect()
    }

    /// When any of its phases changed last (ms since 1970).
    pub fn written_ms(&self) -> u64 {
        self.controls.values().map(|control| control.written_ms).max().unwrap_or_default()
    }

    /// Where the job stands.
    pub fn state(&self) -> JobState {
        let has = |state| self.controls.values().any(|control| control.state() == state);
        if has(JobState::Dead) {
            return JobState::Dead;
        }
        if has(JobState::Cancelled) {
            return JobState::Cancelled;
        }
        let done = |step: u16| {
            self.controls.get(&step).is_some_and(|control| control.state() == JobState::Succeeded)
        };
        match &self.spec {
            Some(spec) if (0..spec.phases).all(done) => JobState::Succeeded,
            _ if has(JobState::Running) => JobState::Running,
            _ => JobState::Queued,
        }
    }

    /// A hash of the whole state: equal for equal records, on every node.
    pub fn digest(&self) -> u64 {
        let mut hasher = Xxh3::new();
        if let Some(spec) = &self.spec {
            hasher.update(&spec.generation.to_le_bytes());
            hasher.update(&spec.revision.to_le_bytes());
            hasher.update(&spec.created_ms.to_le_bytes());
            hasher.update(&spec.term.map_or(0, |term| term.counter).to_le_bytes());
            hasher.update(&spec.instructions);
            // One key may be used twice at once, with other options; once it has ended these say nothing.
            let JobOptions { not_before_ms, deadline_ms, priority } = spec.options;
            if spec.options != JobOptions::default() && !self.is_over() {
                hasher.update(&not_before_ms.to_le_bytes());
                hasher.update(&deadline_ms.unwrap_or(u64::MAX).to_le_bytes());
                hasher.update(&priority.to_le_bytes());
            }
        }
        for (step, control) in &self.controls {
            hasher.update(&step.to_le_bytes());
            hasher.update(&control.generation.to_le_bytes());
            hasher.update(&[control.progress.rank()]);
            hasher.update(&control.term.counter.to_le_bytes());
            hasher.update(control.term.node.as_bytes());
            hasher.update(&control.term.boot.to_le_bytes());
            hasher.update(&control.sequence.to_le_bytes());
        }
        if let Some(reaped) = self.reaped {
            hasher.update(&reaped.generation.to_le_bytes());
            hasher.update(&reaped.at_ms.to_le_bytes());
        }
        for payload in &self.payloads.0 {
            hasher.update(&payload.to_le_bytes());
        }
        for (tag, bytes) in &self.unknown {
            hasher.update(&tag.to_le_bytes());
            hasher.update(bytes);
        }
        hasher.digest()
    }

    /// About how much memory it takes.
    pub fn size(&self) -> usize {
        let spec = self.spec.as_ref().map_or(0, |spec| spec.instructions.len() + 128);
        let controls = self
            .controls
            .values()
            .map(|control| control.result_bytes() + 160 + control.attempts.len() * 96);
        let kept = if self.unknown.is_empty() { 0 } else { KEPT_BYTES };
        RECORD_BYTES
            + spec
            + kept
            + controls.sum::<usize>()
            + self.unknown.values().map(Bytes::len).sum::<usize>()
    }
}

enum Known {
    Spec(JobSpec),
    Payloads(Payloads),
    Reaped(Reaped),
    Control(u16, Control),
}

impl Known {
    fn read(component: &Component) -> Result<Self, DecodeError> {
        match component.tag {
            SPEC => codec::decode(&component.bytes).map(Self::Spec),
            PAYLOADS => codec::decode(&component.bytes).map(Self::Payloads),
            REAPED => codec::decode(&component.bytes).map(Self::Reaped),
            tag if tag >= FIRST_CONTROL => read_control(&component.bytes)
                .map(|value| Self::Control(tag - FIRST_CONTROL, value)),
            _ => {
                let envelope = codec::split_envelope(&mut component.bytes.clone())?;
                Err(DecodeError::Unknown { kind: envelope.kind, schema: envelope.schema })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes of other releases compare their digests with ours.
    #[test]
    fn digests_stay_what_they_were() {
        let record = |bytes: usize| {
            JobRecord::new(JobSpec {
                generation: 0,
                revision: 7,
                phases: 1,
                created_ms: 1_700_000_000_000,
                term: None,
                options: JobOptions::default(),
                key: None,
                parent: None,
                compensates: None,
                instructions: vec![b'x'; bytes].into(),
            })
        };
        let digests = [2, 500, 5000].map(|bytes| record(bytes).digest());
        let then =
            [12_825_275_323_958_246_603, 15_496_131_256_973_740_094, 5_351_671_131_993_709_255];
        assert_eq!(digests, then);
    }
}
