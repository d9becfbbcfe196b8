//! What the cluster knows of one pipeline: its definitions, and who founded its group.
//!
//! Entries are joined like job records: any two nodes that exchanged theirs have the same. Every
//! node keeps all entries; there are few, and they are small.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{self, Encoded, Kind},
    id::{DiskId, NodeId, PipelineId},
    name::Name,
    pipeline::{MAX_PHASES, PipelineDef, Revision},
    requirement::Requirement,
    view::RevisionView,
};

/// How many definitions of one pipeline are kept for the jobs that still follow them.
pub const MAX_REVISIONS: usize = 64;

/// More changes than there can have been: an entry that claims more must not bring sums to overflow.
const LAST_GENERATION: u64 = 1 << 48;

/// A pipeline in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// Its name.
    pub name: Name,
    /// Raised by each change.
    pub generation: u64,
    /// Whether it was removed.
    pub removed: bool,
    /// Whether no more of its work is given out.
    pub paused: bool,
    /// The phases of which no more work is given out.
    pub paused_steps: BTreeSet<Name>,
    /// The definition that new jobs follow.
    pub current: Revision,
    /// That one and earlier ones.
    pub revisions: BTreeMap<Revision, PipelineDef>,
    /// In which generation each was applied last: the oldest go first.
    pub applied: BTreeMap<Revision, u64>,
    /// The disks whose copies were complete from the start, since there was nothing yet.
    pub founders: BTreeSet<(NodeId, DiskId)>,
}

impl Encoded for CatalogEntry {
    const KIND: Kind = 0x110;
}

impl CatalogEntry {
    /// A new pipeline.
    pub fn new(definition: PipelineDef, founders: BTreeSet<(NodeId, DiskId)>) -> Self {
        let current = definition.revision();
        Self {
            name: definition.name.clone(),
            generation: 1,
            removed: false,
            paused: false,
            paused_steps: BTreeSet::new(),
            current,
            revisions: BTreeMap::from([(current, definition)]),
            applied: BTreeMap::from([(current, 1)]),
            founders,
        }
    }

    /// The definitions that it has and had, the latest first.
    pub fn history(&self) -> Vec<RevisionView> {
        let mut history: Vec<RevisionView> = self
            .revisions
            .iter()
            .map(|(revision, definition)| RevisionView {
                definition: definition.clone(),
                applied: self.applied.get(revision).copied().unwrap_or_default(),
                current: *revision == self.current,
            })
            .collect();
        history.sort_by_key(|one| (!one.current, std::cmp::Reverse(one.applied)));
        history
    }

    /// The same pipeline with another definition.
    #[must_use]
    pub fn changed(&self, definition: PipelineDef) -> Self {
        let mut changed = self.clone();
        changed.generation += 1;
        changed.removed = false;
        changed.current = definition.revision();
        changed.applied.insert(changed.current, changed.generation);
        changed.revisions.insert(changed.current, definition);
        changed.forget_oldest();
        changed
    }

    /// The same pipeline, or one of its phases, paused or not.
    #[must_use]
    pub fn pausing(&self, step: Option<&Name>, paused: bool) -> Self {
        let mut changed = self.clone();
        match step {
            None => changed.paused = paused,
            Some(step) if paused => drop(changed.paused_steps.insert(step.clone())),
            Some(step) => drop(changed.paused_steps.remove(step)),
        }
        changed.generation += u64::from(changed != *self);
        changed
    }

    /// What a phase requires of its worker: by the current definition, also for older jobs; where that
    /// has no such phase, by the last one that had it.
    pub fn requires(&self, step: &Name) -> &[Requirement] {
        let last = || {
            let with = self.revisions.iter().filter_map(|(at, it)| Some((at, it.named(step)?)));
            with.max_by_key(|(at, _)| self.applied.get(at)).map(|(_, phase)| phase)
        };
        let current = self.definition().and_then(|definition| definition.named(step));
        current.or_else(last).map_or(&[], |phase| &phase.requires)
    }

    /// Whether work of a phase may be given out.
    pub fn gives_out(&self, step: &Name) -> bool {
        !self.paused && !self.paused_steps.contains(step)
    }

    /// Whether it can be what a node made: its definitions are valid, and under their own names.
    pub fn is_valid(&self) -> bool {
        let sound = |(at, definition): (&Revision, &PipelineDef)| {
            *at == definition.revision()
                && definition.name == self.name
                && definition.partition == self.partition()
                && definition.is_valid()
                && self.applied.contains_key(at)
        };
        self.generation <= LAST_GENERATION
            && self.revisions.contains_key(&self.current)
            && self.applied.len() == self.revisions.len()
            && self.paused_steps.len() <= MAX_REVISIONS * MAX_PHASES
            && self.revisions.iter().all(sound)
    }

    /// Its identity: of the pipeline, or of one of its partitions.
    pub fn id(&self) -> PipelineId {
        PipelineId::of_partition(self.name.as_str(), self.partition())
    }

    /// Which of the pipeline's partitions it is of: all of its definitions are of the same.
    pub fn partition(&self) -> u16 {
        self.definition().map_or(0, |definition| definition.partition)
    }

    /// The definition that new jobs follow.
    pub fn definition(&self) -> Option<&PipelineDef> {
        self.revisions.get(&self.current)
    }

    /// A hash of the entry's whole state.
    pub fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&codec::encode_body(self))
    }

    /// Takes over what `other` knows. Says whether anything changed.
    pub fn merge(&mut self, other: &Self) -> bool {
        let before = self.digest();
        let rank = |entry: &Self| {
            let Self { generation, removed, current, paused, .. } = *entry;
            (generation, removed, entry.whole(), current, paused, entry.paused_steps.clone())
        };
        if rank(other) > rank(self) {
            self.paused = other.paused;
            self.paused_steps = other.paused_steps.clone();
            self.generation = other.generation;
            self.removed = other.removed;
            self.current = other.current;
        }
        self.revisions
            .extend(other.revisions.iter().map(|(at, definition)| (*at, definition.clone())));
        for (at, generation) in &other.applied {
            let applied = self.applied.entry(*at).or_default();
            *applied = (*applied).max(*generation);
        }
        self.founders.extend(other.founders.iter().copied());
        self.forget_oldest();
        self.digest() != before
    }

    /// What names the current definition of the whole pipeline, whichever partition this is: all of them
    /// have to decide alike between two that were applied at once.
    fn whole(&self) -> Revision {
        let split = self.definition().filter(|definition| definition.partitions > 1);
        split.map_or(self.current, |definition| definition.shared().revision())
    }

    fn forget_oldest(&mut self) {
        while self.revisions.len() > MAX_REVISIONS {
            let others = self.applied.iter().filter(|(at, _)| **at != self.current);
            let Some(oldest) = others.min_by_key(|(at, since)| (**since, **at)) else { return };
            let oldest = *oldest.0;
            self.revisions.remove(&oldest);
            self.applied.remove(&oldest);
        }
    }
}
