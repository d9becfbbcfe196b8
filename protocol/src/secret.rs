//! What the cluster knows of one value or secret for phases: where it belongs, and its sealed bytes.
//!
//! Whoever puts one seals it before, with a key that the operator keeps: no node needs the key to keep and
//! pass on what is sealed. Entries are joined like those of handlers. What is authenticated with the bytes
//! ([`Place::associated`]) keeps an entry from being read as another's.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    codec::{self, Encoded, Kind},
    name::{MAX_NAME_BYTES, Name, Namespace},
};

/// How many values and secrets there may be: every node keeps all of them in memory.
pub const MAX_SECRETS: usize = 1024;

/// At how many places something may be or have been: what was removed leaves a mark.
pub const MAX_SECRET_PLACES: usize = 8 * MAX_SECRETS;

/// How many of each one namespace may have, so that none takes the others' places.
pub const MAX_NAMESPACE_SECRETS: usize = MAX_SECRETS / 2;
/// See [`MAX_NAMESPACE_SECRETS`].
pub const MAX_NAMESPACE_PLACES: usize = MAX_SECRET_PLACES / 4;

/// The longest, in bytes, before it is sealed.
pub const MAX_SECRET_BYTES: usize = 16 << 10;

/// What sealing adds, in bytes: a nonce and a tag.
pub const SEAL_BYTES: usize = 24 + 16;

/// The longest name of a value or secret, in bytes.
pub const MAX_SECRET_NAME_BYTES: usize = 128;

/// What no name may begin with: nodes say it themselves.
const OURS: &str = "CARBONMESH_";

/// Before what a place is named by.
const PLACE_LABEL: &[u8] = b"carbonmesh/1/scope/place\0";

/// Before what is authenticated with sealed bytes.
const SEALED_LABEL: &[u8] = b"carbonmesh/1/scope/sealed\0";

/// More changes than there can have been: an entry that claims more must not bring sums to overflow.
const LAST_GENERATION: u64 = 1 << 48;

/// Whether a value or secret for phases may be called that: it becomes an environment variable.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Result<(), String> {
    let plain = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let starts = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if !starts || !name.chars().all(plain) {
        return Err("a name has letters, digits and `_`, and begins with no digit".to_owned());
    }
    if name.starts_with(OURS) || ["PATH", "HOME", "LD_PRELOAD"].contains(&name) {
        return Err("that name is taken: choose another".to_owned());
    }
    Ok(())
}

/// Variables by which a shell, the linker or a language runs code from elsewhere: whoever may put a value is
/// not to run programs by it.
const RUNS_CODE: [&str; 24] = [
    "BASH_ENV",
    "ENV",
    "GCONV_PATH",
    "GIT_EXEC_PATH",
    "GIT_SSH_COMMAND",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LUA_INIT",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PROMPT_COMMAND",
    "PS4",
    "PYTHONBREAKPOINT",
    "PYTHONHOME",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONWARNINGS",
    "RUBYLIB",
    "RUBYOPT",
    "SHELLOPTS",
];

/// A name within a namespace, or how such names begin: `NAME`, `BEGINNING*` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pattern(String);

impl Pattern {
    /// Reads one.
    ///
    /// # Errors
    /// Why it is none.
    pub fn new(text: &str) -> Result<Self, String> {
        let stem = text.strip_suffix('*').unwrap_or(text);
        // `*` alone is all of them.
        if stem.len() < text.len() && stem.is_empty() {
            return Ok(Self(text.to_owned()));
        }
        if stem.len() > MAX_NAME_BYTES || stem.contains('/') {
            return Err(format!(
                "a name of at most {MAX_NAME_BYTES} characters within the namespace, or how it begins and a \
                 `*`, is possible"
            ));
        }
        Name::plain(stem).map_err(|error| error.to_string())?;
        Ok(Self(text.to_owned()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it covers this name, which is one within a namespace.
    pub fn matches(&self, local: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(start) => local.starts_with(start),
            None => local == self.0,
        }
    }

    /// How much it says: what names one thing says more than any beginning, and that more than a shorter one.
    fn weight(&self) -> (bool, usize) {
        (!self.0.ends_with('*'), self.0.len())
    }
}

impl Default for Pattern {
    fn default() -> Self {
        Self("*".to_owned())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a value or secret is called, and whose attempts get it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Of which namespace.
    pub namespace: Namespace,
    /// Of which of its pipelines.
    pub pipeline: Pattern,
    /// Of which of its phases.
    pub phase: Pattern,
    /// What they know it by.
    pub name: String,
}

impl Place {
    /// Whether something can be kept there.
    ///
    /// # Errors
    /// Why not; the text begins with the name of the field.
    pub fn check(&self) -> Result<(), String> {
        for (field, pattern) in [("pipeline", &self.pipeline), ("phase", &self.phase)] {
            Pattern::new(pattern.as_str())
                .map_err(|error| format!("{field}: `{pattern}` is not possible: {error}"))?;
        }
        if self.name.len() > MAX_SECRET_NAME_BYTES {
            return Err(format!("name: at most {MAX_SECRET_NAME_BYTES} bytes are possible"));
        }
        check_name(&self.name).map_err(|error| format!("name: `{}`: {error}", self.name))?;
        let linker = ["LD_", "DYLD_"].iter().any(|prefix| self.name.starts_with(prefix));
        match linker || RUNS_CODE.contains(&self.name.as_str()) {
            true => Err(format!(
                "name: `{}`: it makes programs run other code: choose another",
                self.name
            )),
            false => Ok(()),
        }
    }

    /// Whether the attempts of this phase in this pipeline get it.
    pub fn covers(&self, pipeline: &Name, phase: &Name) -> bool {
        self.namespace.as_str() == pipeline.namespace()
            && self.pipeline.matches(pipeline.local())
            && self.phase.matches(phase.local())
    }

    /// Which of two of the same name counts: the greater. What says more of the pipeline does, then what
    /// says more of the phase.
    pub fn weight(&self) -> impl Ord + use<'_> {
        (self.pipeline.weight(), self.phase.weight(), self)
    }

    /// What it is known by between nodes and on disk.
    pub fn id(&self) -> PlaceId {
        let mut sum = Sha256::new();
        sum.update(PLACE_LABEL);
        let parts = [self.namespace.as_str(), self.pipeline.as_str(), self.phase.as_str()];
        for part in parts.into_iter().chain([self.name.as_str()]) {
            // The lengths keep parts apart.
            sum.update((part.len() as u64).to_le_bytes());
            sum.update(part);
        }
        PlaceId(sum.finalize().into())
    }

    /// What is authenticated with the bytes that are sealed for it: the place, the key, and whether it is
    /// hidden, so that none of these can be exchanged.
    pub fn associated(&self, key: KeyId, hidden: bool) -> Vec<u8> {
        [SEALED_LABEL, &self.id().0, &key.0, &[u8::from(hidden)]].concat()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, pipeline, phase, name } = self;
        write!(f, "{name} (namespace {namespace}, pipeline {pipeline}, phase {phase})")
    }
}

/// The SHA-256 of a [`Place`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlaceId([u8; 32]);

impl PlaceId {
    /// Its bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// What tells the operator's keys from each other, and nothing of them: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The one of these bytes.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(bytes)
    }

    /// Reads its text.
    pub fn parse(text: &str) -> Option<Self> {
        let digits =
            text.len() == 16 && text.bytes().all(|it| matches!(it, b'0'..=b'9' | b'a'..=b'f'));
        let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()?;
        Some(Self(number.to_be_bytes()))
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A value or secret that only its key opens.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Sealed {
    /// With which key.
    pub key: KeyId,
    /// Whether it is a secret: hidden in what nodes log.
    pub hidden: bool,
    /// Nonce, cipher text and tag.
    pub bytes: Bytes,
}

impl Sealed {
    /// Whether it can be kept.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self) -> Result<(), String> {
        let (bytes, most) = (self.bytes.len(), MAX_SECRET_BYTES + SEAL_BYTES);
        match (SEAL_BYTES..=most).contains(&bytes) {
            true => Ok(()),
            false => {
                Err(format!("sealed: {bytes} bytes are not possible: {SEAL_BYTES} to {most} are"))
            }
        }
    }
}

/// A value or secret at its place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SecretEntry {
    /// Whose it is.
    pub place: Place,
    /// Raised by each change.
    pub generation: u64,
    /// It; nothing once it was removed.
    pub sealed: Option<Sealed>,
    /// When it was changed last (ms since 1970), by the clock of the node that took the change.
    pub changed_ms: u64,
}

impl Encoded for SecretEntry {
    const KIND: Kind = 0x112;
}

impl SecretEntry {
    /// Nothing yet.
    pub const fn new(place: Place) -> Self {
        Self { place, generation: 0, sealed: None, changed_ms: 0 }
    }

    /// The same place with something else, or nothing.
    #[must_use]
    pub fn changed(&self, sealed: Option<Sealed>, now_ms: u64) -> Self {
        let generation = self.generation + 1;
        Self { place: self.place.clone(), generation, sealed, changed_ms: now_ms }
    }

    /// Whether it can be what a node made.
    pub fn is_valid(&self) -> bool {
        self.generation <= LAST_GENERATION
            && self.place.check().is_ok()
            && self.sealed.as_ref().is_none_or(|sealed| sealed.check().is_ok())
    }

    /// A hash of the entry's whole state.
    pub fn digest(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&codec::encode_body(self))
    }

    /// Takes over what `other` knows, if that is later; of two changes beyond a partition, the greater.
    /// Says whether anything changed.
    pub fn merge(&mut self, other: &Self) -> bool {
        let later = (other.generation, &other.sealed, other.changed_ms)
            > (self.generation, &self.sealed, self.changed_ms);
        if later {
            *self = other.clone();
        }
        later
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(pipeline: &str, phase: &str, name: &str) -> Place {
        let pattern = |text: &str| Pattern::new(text).expect(text);
        Place {
            namespace: Namespace::default(),
            pipeline: pattern(pipeline),
            phase: pattern(phase),
            name: name.to_owned(),
        }
    }

    fn sealed(byte: u8) -> Sealed {
        Sealed {
            key: KeyId::from_bytes([1; 8]),
            hidden: true,
            bytes: Bytes::from(vec![byte; SEAL_BYTES + 6]),
        }
    }

    #[test]
    fn a_place_covers_what_its_patterns_say_and_nothing_in_another_namespace() {
        let place = place("invoices-*", "book", "KEY");
        let covers = |pipeline: &str, phase: &str| {
            place.covers(&pipeline.parse().expect("a name"), &phase.parse().expect("a name"))
        };
        assert!(covers("invoices-eu", "book"));
        for (pipeline, phase) in
            [("invoices", "book"), ("invoices-eu", "books"), ("team/invoices-eu", "team/book")]
        {
            assert!(!covers(pipeline, phase), "{pipeline} {phase}");
        }
        let of_team = Place { namespace: "team".parse().expect("a name"), ..place.clone() };
        assert!(of_team.covers(
            &"team/invoices-eu".parse().expect("a name"),
            &"team/book".parse().expect("a name")
        ));
        assert!(of_team.id() != place.id());
    }

    #[test]
    fn what_says_more_weighs_more() {
        let rising = [
            ("*", "*"),
            ("*", "b*"),
            ("*", "book"),
            ("in*", "book"),
            ("invoices-*", "*"),
            ("i", "*"),
            ("i", "b"),
        ];
        let places = rising.map(|(pipeline, phase)| place(pipeline, phase, "KEY"));
        for pair in places.windows(2) {
            assert!(pair[0].weight() < pair[1].weight(), "{pair:?}");
        }
    }

    #[test]
    fn each_part_of_a_place_is_a_part_of_its_id_and_of_what_is_authenticated() {
        let places = [
            place("*", "*", "KEY"),
            place("a*", "*", "KEY"),
            place("*", "a*", "KEY"),
            place("*", "*", "KEY2"),
        ];
        let mut all: Vec<Vec<u8>> = Vec::new();
        for place in &places {
            for (key, hidden) in [(1, true), (1, false), (2, true)] {
                all.push(place.associated(KeyId::from_bytes([key; 8]), hidden));
            }
        }
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_its_field() {
        let with = |pipeline: &str, name: &str| Place {
            pipeline: Pattern(pipeline.to_owned()),
            ..place("*", "*", name)
        };
        let long = "A".repeat(MAX_SECRET_NAME_BYTES + 1);
        for (bad, field) in [
            (with("a/b", "KEY"), "pipeline"),
            (with("", "KEY"), "pipeline"),
            (with("a b", "KEY"), "pipeline"),
            (with("a**", "KEY"), "pipeline"),
            (with("*", "1KEY"), "name"),
            (with("*", "PATH"), "name"),
            (with("*", "CARBONMESH_X"), "name"),
            (with("*", "LD_AUDIT"), "name"),
            (with("*", "BASH_ENV"), "name"),
            (with("*", &long), "name"),
        ] {
            let error = bad.check().expect_err(field);
            assert!(error.starts_with(field), "{error}");
        }
        let short = Sealed { bytes: Bytes::from_static(b"x"), ..sealed(1) };
        let large = vec![0; MAX_SECRET_BYTES + SEAL_BYTES + 1];
        for bad in [short, Sealed { bytes: large.into(), ..sealed(1) }] {
            assert!(bad.check().expect_err("its size").starts_with("sealed"));
        }
        assert_eq!((with("a-*", "KEY_1").check(), sealed(1).check()), (Ok(()), Ok(())));
    }

    #[test]
    fn entries_merge_in_any_order_to_the_later_one() {
        let first = SecretEntry::new(place("*", "*", "KEY")).changed(Some(sealed(1)), 1);
        let here = first.changed(Some(sealed(2)), 2);
        let there = first.changed(Some(sealed(3)), 3);
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
    fn the_id_of_a_key_reads_back() {
        let id = KeyId::from_bytes([0, 1, 2, 3, 0xfc, 0xfd, 0xfe, 0xff]);
        assert_eq!(
            (id.to_string().as_str(), KeyId::parse("00010203fcfdfeff")),
            ("00010203fcfdfeff", Some(id))
        );
        for odd in ["", "00010203FCFDFEFF", "+0010203fcfdfeff", "00010203fcfdfeff0"] {
            assert_eq!(KeyId::parse(odd), None, "{odd}");
        }
    }
}
