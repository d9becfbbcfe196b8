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
    pipeline::{PipelineDef, Revision},
};

/// How many definitions of one pipeline are kept for the jobs that still follow them.
pub const MAX_REVISIONS: usize = 64;

/// A pipeline in the catalog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// Its name.
    pub name: Name,
    /// Raised by each change.
    pub generation: u64,
    /// Whether it was removed.
    pub removed: bool,
    /// The definition that new jobs follow.
    pub current: Revision,
    /// That one and earlier ones.
    pub revisions: BTreeMap<Revision, PipelineDef>,
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
            current,
            revisions: BTreeMap::from([(current, definition)]),
            founders,
        }
    }

    /// Its identity.
    pub fn id(&self) -> PipelineId {
        PipelineId::of_name(self.name.as_str())
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
        let rank = |entry: &Self| (entry.generation, entry.removed, entry.current);
        if rank(other) > rank(self) {
            self.generation = other.generation;
            self.removed = other.removed;
            self.current = other.current;
        }
        self.revisions
            .extend(other.revisions.iter().map(|(at, definition)| (*at, definition.clone())));
        self.founders.extend(other.founders.iter().copied());
        while self.revisions.len() > MAX_REVISIONS {
            let first = self.revisions.keys().copied().find(|&at| at != self.current);
            first.map(|at| self.revisions.remove(&at));
        }
        self.digest() != before
    }
}
