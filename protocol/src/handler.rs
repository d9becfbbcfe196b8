//! What the cluster knows of one handler: the source that runs a phase, in a language that nodes have.
//!
//! Entries are joined like those of pipelines: any two nodes that exchanged theirs have the same. Every
//! node keeps all of them, and runs none that its operator did not say it may.

use std::{collections::BTreeSet, fmt, str::FromStr};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    codec::{self, Encoded, Kind},
    name::Name,
    requirement::{MAX_REQUIREMENTS, Requirement},
};

/// The largest source, in bytes: every node keeps all of them in memory.
pub const MAX_SOURCE_BYTES: usize = 256 << 10;

/// How many handlers there may be.
pub const MAX_HANDLERS: usize = 128;

/// How many of a handler's earlier versions are named.
pub const MAX_VERSIONS: usize = 16;

/// How many attempts of one handler a node may be told to run at once.
pub const MAX_SLOTS: u32 = 10_000;

/// How each WebAssembly module begins; components begin otherwise, and are not run.
const WASM_MODULE: &[u8] = b"\0asm\x01\0\0\0";

/// More changes than there can have been: an entry that claims more must not bring sums to overflow.
const LAST_GENERATION: u64 = 1 << 48;

/// In what a handler is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// A file of classes for the Python SDK.
    Python,
    /// A module for Node.js.
    JavaScript,
    /// A script for `sh`: one process for each attempt.
    Shell,
    /// A WebAssembly module, as its bytes: one instance for each attempt.
    Wasm,
}

impl Language {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Python, Self::JavaScript, Self::Shell, Self::Wasm];

    /// Its name in documents and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::JavaScript => "javascript",
            Self::Shell => "shell",
            Self::Wasm => "wasm",
        }
    }

    /// Whether its sources are text, in UTF-8.
    pub const fn is_text(self) -> bool {
        !matches!(self, Self::Wasm)
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Language {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|language| language.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is no language of handlers: they are {names}")
        })
    }
}

/// The SHA-256 of a source, which names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SourceHash([u8; 32]);

impl SourceHash {
    /// That of a source.
    pub fn of(source: &[u8]) -> Self {
        Self(Sha256::digest(source).into())
    }
}

impl fmt::Display for SourceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SourceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What runs a phase.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handler {
    /// In what it is written.
    pub language: Language,
    /// What a node must have to offer it.
    pub requires: BTreeSet<Requirement>,
    /// How many attempts of it a node runs at once.
    pub slots: u32,
    /// It.
    pub source: Bytes,
}

impl Handler {
    /// The SHA-256 of its source.
    pub fn hash(&self) -> SourceHash {
        SourceHash::of(&self.source)
    }

    /// Whether it can be kept.
    ///
    /// # Errors
    /// Why not, and the way out.
    pub fn check(&self) -> Result<(), String> {
        let bytes = self.source.len();
        if bytes == 0 || bytes > MAX_SOURCE_BYTES {
            return Err(format!(
                "source: {bytes} bytes are not possible: 1 to {MAX_SOURCE_BYTES} are; put what is \
                 larger on the nodes, and import it"
            ));
        }
        if self.language.is_text() && std::str::from_utf8(&self.source).is_err() {
            return Err("source: it is no UTF-8 text".to_owned());
        }
        if self.language == Language::Wasm && !self.source.starts_with(WASM_MODULE) {
            return Err("source: it is no WebAssembly module: it begins otherwise".to_owned());
        }
        if !(1..=MAX_SLOTS).contains(&self.slots) {
            return Err(format!("slots: {} is not possible: 1 to {MAX_SLOTS} are", self.slots));
        }
        if self.requires.len() > MAX_REQUIREMENTS {
            return Err(format!("requires: at most {MAX_REQUIREMENTS} are possible"));
        }
        match self.requires.iter().find(|requirement| !requirement.is_sound()) {
            Some(odd) => Err(format!("requires: `{odd}` is no requirement")),
            None => Ok(()),
        }
    }
}

/// A source that a handler has or had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HandlerVersion {
    /// Of the handler's changes, which one brought it, from 1.
    pub generation: u64,
    /// Its SHA-256.
    pub hash: SourceHash,
    /// When it was put (ms since 1970), by the clock of the node that took it.
    pub put_ms: u64,
}

/// The handler of a phase, with its past.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HandlerEntry {
    /// The phase that it runs.
    pub phase: Name,
    /// Raised by each change.
    pub generation: u64,
    /// What runs it; nothing once it was removed.
    pub handler: Option<Handler>,
    /// The last sources, the latest first.
    pub versions: Vec<HandlerVersion>,
}

impl Encoded for HandlerEntry {
    const KIND: Kind = 0x111;
}

impl HandlerEntry {
    /// Nothing yet.
    pub fn new(phase: Name) -> Self {
        Self { phase, generation: 0, handler: None, versions: Vec::new() }
    }

    /// The same phase with another handler, or none.
    #[must_use]
    pub fn changed(&self, handler: Option<Handler>, now_ms: u64) -> Self {
        let generation = self.generation + 1;
        let mut versions = self.versions.clone();
        if let Some(handler) = &handler {
            let hash = handler.hash();
            versions.insert(0, HandlerVersion { generation, hash, put_ms: now_ms });
            versions.truncate(MAX_VERSIONS);
        }
        Self { phase: self.phase.clone(), generation, handler, versions }
    }

    /// Whether it can be what a node made.
    pub fn is_valid(&self) -> bool {
        let named = |handler: &Handler| {
            let hash = self.versions.first().map(|version| version.hash);
            hash == Some(handler.hash())
        };
        self.generation <= LAST_GENERATION
            && self.versions.len() <= MAX_VERSIONS
            && self.handler.as_ref().is_none_or(|it| it.check().is_ok() && named(it))
    }

    /// A hash of the entry's whole state.
    pub fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&codec::encode_body(self))
    }

    /// Takes over what `other` knows, if that is later; of two changes beyond a partition, the greater.
    /// Says whether anything changed.
    pub fn merge(&mut self, other: &Self) -> bool {
        let later = (other.generation, &other.handler, &other.versions)
            > (self.generation, &self.handler, &self.versions);
        if later {
            *self = other.clone();
        }
        later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handler(source: &'static str) -> Handler {
        Handler {
            language: Language::Shell,
            requires: BTreeSet::new(),
            slots: 1,
            source: Bytes::from_static(source.as_bytes()),
        }
    }

    fn entry() -> HandlerEntry {
        HandlerEntry::new("p".parse().expect("a name"))
    }

    #[test]
    fn a_source_is_named_by_its_hash() {
        let hash = handler("abc").hash().to_string();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_field() {
        let large = Handler { source: vec![b'x'; MAX_SOURCE_BYTES + 1].into(), ..handler("x") };
        for (bad, field) in [
            (large, "source"),
            (handler(""), "source"),
            (Handler { source: Bytes::from_static(b"\xff"), ..handler("x") }, "source"),
            (Handler { slots: 0, ..handler("x") }, "slots"),
        ] {
            let error = bad.check().expect_err(field);
            assert!(error.starts_with(field), "{error}");
        }
        assert_eq!(handler("x").check(), Ok(()));
    }

    #[test]
    fn a_module_is_kept_as_its_bytes_and_must_be_one() {
        let module = |source: &'static [u8]| Handler {
            language: Language::Wasm,
            source: Bytes::from_static(source),
            ..handler("x")
        };
        assert_eq!(module(b"\0asm\x01\0\0\0\0\x02\x01\xff").check(), Ok(()));
        for other in [b"(module)" as &[u8], b"\0asm\x0d\0\x01\0", b"\0asm"] {
            let error = module(other).check().expect_err("no module");
            assert!(error.contains("no WebAssembly module"), "{error}");
        }
    }

    #[test]
    fn entries_merge_in_any_order_to_the_later_one() {
        let first = entry().changed(Some(handler("a")), 1);
        let here = first.changed(Some(handler("b")), 2);
        let there = first.changed(Some(handler("c")), 3);
        let gone = there.changed(None, 4);
        for (one, other, winner) in
            [(&first, &here, &here), (&here, &there, &there), (&gone, &here, &gone)]
        {
            let (mut a, mut b) = (one.clone(), other.clone());
            a.merge(other);
            b.merge(one);
            assert_eq!((&a, &b), (winner, winner));
            assert!(!a.merge(other), "the second time changes nothing");
        }
    }

    #[test]
    fn an_entry_whose_source_is_not_what_it_says_is_none() {
        let mut odd = entry().changed(Some(handler("a")), 1);
        assert!(odd.is_valid());
        odd.handler = Some(handler("b"));
        assert!(!odd.is_valid());
        let many = (0..40).fold(entry(), |entry, _| entry.changed(Some(handler("a")), 1));
        assert_eq!((many.versions.len(), many.is_valid()), (MAX_VERSIONS, true));
    }
}
