//! Identifiers: who, which job, which term.
//!
//! All are values that compare and print; none is made here from a clock or a random source: the
//! caller hands both in.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;
use uuid::Uuid;

/// A node's identity: the first 128 bits of the SHA-256 of its public key.
///
/// It outlives restarts and address changes; `Display` prints 8 digits for people, `{:#}` all 32.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "u128", into = "u128")]
pub struct NodeId([u8; 16]);

// As one number: 16 bytes one by one take several times as long to write and to read.
impl From<u128> for NodeId {
    fn from(number: u128) -> Self {
        Self(number.to_le_bytes())
    }
}

impl From<NodeId> for u128 {
    fn from(node: NodeId) -> Self {
        Self::from_le_bytes(node.0)
    }
}

impl NodeId {
    /// The identity that belongs to a public key.
    pub fn of_public_key(key: &[u8]) -> Self {
        Self(first_16(Sha256::digest(key).as_ref()))
    }

    /// An identity from its bytes.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if f.alternate() { 16 } else { 4 };
        self.0[..shown].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One data folder's life: drawn at random when the folder is made, and again whenever the folder
/// may have lost something that it once promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskId(pub u64);

/// A pipeline's identity: the first 128 bits of the SHA-256 of its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PipelineId(u128);

impl PipelineId {
    /// The identity that belongs to a name.
    pub fn of_name(name: &str) -> Self {
        let digest = Sha256::new().chain_update(b"pipeline\0").chain_update(name).finalize();
        Self(u128::from_be_bytes(first_16(digest.as_ref())))
    }

    /// The identity of one of the parts that a name's jobs are split into; the first is that of the
    /// name. Tags count up from one to the next, so that a job's id says in which of them it is.
    pub fn of_partition(name: &str, partition: u16) -> Self {
        let first = Self::of_name(name);
        if partition == 0 {
            return first;
        }
        let digest = Sha256::new()
            .chain_update(b"partition\0")
            .chain_update(partition.to_be_bytes())
            .chain_update(name)
            .finalize();
        let low = u128::from_be_bytes(first_16(digest.as_ref())) & (u128::MAX >> 16);
        Self(u128::from(first.tag().wrapping_add(partition)) << 112 | low)
    }

    /// Its bytes, in the order in which keys sort.
    pub const fn to_be_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`to_be_bytes`](Self::to_be_bytes).
    pub const fn from_be_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    fn tag(self) -> u16 {
        (self.0 >> 112) as u16
    }
}

impl fmt::Display for PipelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

impl fmt::Debug for PipelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The most items that one attempt may give.
pub const MAX_ITEMS: u32 = 1 << 24;

fn token_bytes(token: Token) -> Vec<u8> {
    let Token { term, sequence } = token;
    let numbers = [term.counter, term.boot, sequence].map(u64::to_be_bytes).concat();
    [term.node.as_bytes(), &numbers[..]].concat()
}

/// The text is no job id.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no job id: a job id is a UUID such as 0192e4a1-7c3b-7def-8123-456789abcdef")]
pub struct ParseJobIdError(pub String);

/// A job's identity, printed as a UUID (RFC 9562).
///
/// Version 7 (time-ordered, random) for a job without an idempotency key; version 8, a hash of
/// pipeline and key, for one with: the same key enqueued on both sides of a partition is one job.
/// Its last 16 bits are a tag of the pipeline, so that a node which sees only the id needs to ask
/// few groups.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(u128);

impl JobId {
    /// The smallest and the largest id there can be, as bounds of scans.
    pub const MIN: Self = Self(0);
    /// See [`MIN`](Self::MIN).
    pub const MAX: Self = Self(u128::MAX);

    /// An id for a job without idempotency key, from the wall clock (ms since 1970) and chance.
    pub fn time_ordered(pipeline: PipelineId, unix_ms: u64, random: [u8; 10]) -> Self {
        let id = uuid::Builder::from_unix_timestamp_millis(unix_ms, &random).into_uuid();
        Self(id.as_u128()).tagged(pipeline)
    }

    /// Whether ids like it come in the order in which jobs were enqueued.
    pub(crate) fn is_time_ordered(self) -> bool {
        uuid::Uuid::from_u128(self.0).get_version_num() == 7
    }

    /// The id of the one job that `key` names in `pipeline`.
    pub fn of_key(pipeline: PipelineId, key: &str) -> Self {
        let digest =
            Sha256::new().chain_update(pipeline.to_be_bytes()).chain_update(key).finalize();
        let id = uuid::Builder::from_custom_bytes(first_16(digest.as_ref())).into_uuid();
        Self(id.as_u128()).tagged(pipeline)
    }

    /// The id of the job that undoes what a generation of another has done; one that has its key
    /// later was enqueued (ms since 1970) at another moment.
    pub fn of_compensation(
        pipeline: PipelineId,
        job: Self,
        created_ms: u64,
        generation: u32,
    ) -> Self {
        let digest = Sha256::new()
            .chain_update(b"compensation")
            .chain_update(pipeline.to_be_bytes())
            .chain_update(job.to_be_bytes())
            .chain_update(created_ms.to_be_bytes())
            .chain_update(generation.to_be_bytes())
            .finalize();
        let id = uuid::Builder::from_custom_bytes(first_16(digest.as_ref())).into_uuid();
        Self(id.as_u128()).tagged(pipeline)
    }

    /// The id of the job that is made of an item which an attempt gave.
    ///
    /// All that come of one job and step lie together, and those of one attempt in their order: 50
    /// bits of a hash of the former, 32 of the latter, 24 that count. Version 8, like those of keys.
    pub fn of_item(
        pipeline: PipelineId,
        parent: Self,
        step: u16,
        token: Token,
        index: u32,
    ) -> Self {
        let attempt = xxhash_rust::xxh3::xxh3_64(&token_bytes(token));
        let index = u128::from(index.min(MAX_ITEMS - 1)) << 16;
        let low = u128::from(attempt >> 30) << 40 | index;
        Self::among_items(pipeline, parent, step, low)
    }

    /// All ids that items of a job's step can have.
    pub fn of_items(
        pipeline: PipelineId,
        parent: Self,
        step: u16,
    ) -> std::ops::RangeInclusive<Self> {
        let all = (1 << 74) - 1;
        let of = |low| Self::among_items(pipeline, parent, step, low);
        of(0)..=of(all)
    }

    fn among_items(pipeline: PipelineId, parent: Self, step: u16, low: u128) -> Self {
        let from = [&parent.to_be_bytes()[..], &step.to_be_bytes()].concat();
        let high = u128::from(xxhash_rust::xxh3::xxh3_64(&from) >> 10) << 74;
        let id = uuid::Builder::from_custom_bytes((high | low).to_be_bytes()).into_uuid();
        Self(id.as_u128()).tagged(pipeline)
    }

    /// Whether the job may belong to `pipeline`; false says that it surely does not.
    pub fn may_belong_to(self, pipeline: PipelineId) -> bool {
        self.0 as u16 == pipeline.tag()
    }

    /// What comes before all jobs of a pipeline, and says which pipeline that is: no job has it.
    pub(crate) fn before_all_of(pipeline: PipelineId) -> Self {
        Self::MIN.tagged(pipeline)
    }

    /// Its bytes, in the order in which keys sort.
    pub const fn to_be_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// The inverse of [`to_be_bytes`](Self::to_be_bytes).
    pub const fn from_be_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The next id in order; the largest stays.
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The id before it in order; the smallest stays.
    pub const fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The largest id that a job can have which was made before then (ms since 1970) without a key.
    pub(crate) const fn last_before(unix_ms: u64) -> Self {
        Self(((unix_ms as u128) << 80).saturating_sub(1))
    }

    fn tagged(self, pipeline: PipelineId) -> Self {
        Self(self.0 & !0xffff | u128::from(pipeline.tag()))
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Uuid::from_u128(self.0).hyphenated(), f)
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobId {
    type Err = ParseJobIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Uuid::parse_str(text)
            .map(|id| Self(id.as_u128()))
            .map_err(|_| ParseJobIdError(text.to_owned()))
    }
}

/// The number of a coordinator's reign over one pipeline: ordered, and unique by construction,
/// because a node never uses a counter twice within a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    /// Grows with each election.
    pub counter: u64,
    /// The candidate.
    pub node: NodeId,
    /// The candidate's boot.
    pub boot: u64,
}

impl Term {
    /// Before the first election.
    pub const ZERO: Self = Self { counter: 0, node: NodeId([0; 16]), boot: 0 };
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.counter, self.node)
    }
}

/// The fencing token of one attempt: no two attempts anywhere share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token {
    /// The term in which the attempt was assigned.
    pub term: Term,
    /// The coordinator's counter within the term.
    pub sequence: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.term, self.sequence)
    }
}

fn first_16(digest: &[u8]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_id_reads_back_from_its_text() {
        let pipeline = PipelineId::of_name("thumbnails");
        let id = JobId::time_ordered(pipeline, 1_700_000_000_000, [7; 10]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(id.may_belong_to(pipeline));
    }

    #[test]
    fn the_same_key_is_the_same_job_and_another_key_another() {
        let pipeline = PipelineId::of_name("thumbnails");
        assert_eq!(JobId::of_key(pipeline, "a"), JobId::of_key(pipeline, "a"));
        assert_ne!(JobId::of_key(pipeline, "a"), JobId::of_key(pipeline, "b"));
    }

    #[test]
    fn a_job_is_in_one_partition_alone() {
        let all: Vec<_> = (0..64).map(|at| PipelineId::of_partition("thumbnails", at)).collect();
        assert_eq!(all[0], PipelineId::of_name("thumbnails"));
        for pipeline in &all {
            let jobs = [
                JobId::of_key(*pipeline, "a"),
                JobId::time_ordered(*pipeline, 1, [7; 10]),
                JobId::before_all_of(*pipeline),
            ];
            for job in jobs {
                let of: Vec<_> = all.iter().filter(|it| job.may_belong_to(**it)).collect();
                assert_eq!(of, [pipeline]);
            }
        }
    }

    #[test]
    fn items_of_one_step_lie_together_in_the_order_of_each_attempt() {
        let pipeline = PipelineId::of_name("p");
        let parent = JobId::of_key(pipeline, "a");
        let term = Term { counter: 1, node: NodeId([7; 16]), boot: 1 };
        let token = |sequence| Token { term, sequence };
        let item =
            |step, sequence, index| JobId::of_item(pipeline, parent, step, token(sequence), index);
        let all = JobId::of_items(pipeline, parent, 1);
        for sequence in 0..50 {
            let ids = [0, 1, 255, 256, MAX_ITEMS - 1].map(|index| item(1, sequence, index));
            assert!(ids.is_sorted() && ids.windows(2).all(|pair| pair[0] != pair[1]));
            assert!(ids.iter().all(|id| all.contains(id) && id.may_belong_to(pipeline)));
        }
        assert!(!all.contains(&item(2, 0, 0)));
        assert_ne!(item(1, 0, 0), item(1, 1, 0));
    }

    #[test]
    fn job_ids_sort_by_time() {
        let pipeline = PipelineId::of_name("thumbnails");
        let early = JobId::time_ordered(pipeline, 1_000, [255; 10]);
        let late = JobId::time_ordered(pipeline, 1_001, [0; 10]);
        assert!(early < late);
    }

    #[test]
    fn terms_order_by_counter_first() {
        let low = Term { counter: 1, node: NodeId([9; 16]), boot: 9 };
        let high = Term { counter: 2, node: NodeId([1; 16]), boot: 1 };
        assert!(low < high);
    }
}
