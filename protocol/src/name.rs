//! Names, and the namespaces that pipelines and phases live in: one rule, checked where they enter.
//!
//! A pipeline or a phase is called `NAMESPACE/NAME`. Without a namespace it lives in `default`, and is
//! written without one: `default/x` and `x` are one name, whose text is `x`. All other names (of steps,
//! signals, schedules, clusters) are [plain](Name::plain).

use std::{fmt, str::FromStr, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use thiserror::Error;

/// The longest name, in bytes; a namespace before it has as many of its own.
pub const MAX_NAME_BYTES: usize = 63;

/// The namespace of names that say none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The text is no name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// It has no character.
    #[error(
        "a name is empty: it needs 1 to {MAX_NAME_BYTES} characters, and so does a namespace before a `/`"
    )]
    Empty,
    /// It has too many characters.
    #[error("name `{name}` has {bytes} bytes: at most {MAX_NAME_BYTES} are allowed")]
    TooLong {
        /// Its first characters.
        name: String,
        /// Its length.
        bytes: usize,
    },
    /// It has a character that names may not have.
    #[error(
        "name `{name}` has `{character}` at position {position}: allowed are a-z, A-Z, 0-9, `-`, `_` and `.`, \
         and the first must be a letter or a digit"
    )]
    Character {
        /// The text.
        name: String,
        /// What is not allowed.
        character: char,
        /// Where it stands, from 1.
        position: usize,
    },
    /// It has a namespace, and is no pipeline's and no phase's.
    #[error(
        "name `{0}` has a namespace, and only pipelines and phases may: leave out what is before the `/`"
    )]
    Namespaced(Name),
}

/// A valid name: 1 to 63 of `a-z A-Z 0-9 - _ .`, the first a letter or a digit; of a pipeline or a phase
/// that is not in the default namespace, two of these with a `/` between.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a name that has no namespace.
    ///
    /// # Errors
    /// It is none, or has one.
    pub fn plain(text: &str) -> Result<Self, NameError> {
        let name: Self = text.parse()?;
        if text.contains('/') { Err(NameError::Namespaced(name)) } else { Ok(name) }
    }

    /// Whether it has no namespace, or is in the default one.
    pub fn is_plain(&self) -> bool {
        !self.0.contains('/')
    }

    /// The namespace that it lives in.
    pub fn namespace(&self) -> &str {
        self.0.split_once('/').map_or(DEFAULT_NAMESPACE, |(namespace, _)| namespace)
    }

    /// What it is called within that.
    pub fn local(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, local)| local)
    }

    /// The same in another namespace.
    #[must_use]
    pub fn within(&self, namespace: &Namespace) -> Self {
        namespace.of(self.local())
    }
}

/// A namespace: called like what lives in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Name", into = "Name")]
pub struct Namespace(Name);

impl Namespace {
    /// Its text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// That of a pipeline or a phase.
    pub fn containing(name: &Name) -> Self {
        Self(Name(name.namespace().into()))
    }

    fn of(&self, local: &str) -> Name {
        match self.as_str() {
            DEFAULT_NAMESPACE => Name(local.into()),
            namespace => Name(format!("{namespace}/{local}").into()),
        }
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self(Name(DEFAULT_NAMESPACE.into()))
    }
}

impl FromStr for Namespace {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Name::plain(text).map(Self)
    }
}

impl TryFrom<Name> for Namespace {
    type Error = NameError;

    fn try_from(name: Name) -> Result<Self, NameError> {
        if name.is_plain() { Ok(Self(name)) } else { Err(NameError::Namespaced(name)) }
    }
}

impl From<Namespace> for Name {
    fn from(namespace: Namespace) -> Self {
        namespace.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let Some((namespace, local)) = text.split_once('/') else {
            return check(text, text, 0).map(|()| Self(text.into()));
        };
        check(text, namespace, 0)?;
        check(text, local, namespace.len() + 1)?;
        Ok(Self(if namespace == DEFAULT_NAMESPACE { local } else { text }.into()))
    }
}

/// Whether a part of a text, which begins at `start`, is a name.
fn check(text: &str, part: &str, start: usize) -> Result<(), NameError> {
    if part.is_empty() {
        return Err(NameError::Empty);
    }
    if part.len() > MAX_NAME_BYTES {
        let name = part.chars().take(32).collect::<String>() + "…";
        return Err(NameError::TooLong { name, bytes: part.len() });
    }
    let bad = part.chars().enumerate().find(|&(at, character)| {
        !(character.is_ascii_alphanumeric() || at > 0 && matches!(character, '-' | '_' | '.'))
    });
    match bad {
        Some((at, character)) => {
            Err(NameError::Character { name: text.to_owned(), character, position: start + at + 1 })
        }
        None => Ok(()),
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text)
    }
}

struct Text;

impl Visitor<'_> for Text {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
        text.parse().map_err(E::custom)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass() {
        for good in ["a", "generate-file", "v1.2_x", "9lives"] {
            assert_eq!(good.parse::<Name>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
    }

    #[test]
    fn odd_names_are_refused_with_the_place() {
        let position = |text: &str| match text.parse::<Name>() {
            Err(NameError::Character { position, .. }) => position,
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(position("-a"), 1);
        assert_eq!(position("a b"), 2);
        assert_eq!(position("a/b/c"), 4);
        assert_eq!(position("a/-b"), 3);
        assert_eq!(position("naïve"), 3);
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        for half in ["ab/", "/ab", "/"] {
            assert_eq!(half.parse::<Name>(), Err(NameError::Empty), "{half}");
        }
        assert!(matches!("x".repeat(64).parse::<Name>(), Err(NameError::TooLong { .. })));
        let long = format!("{}/{}", "n".repeat(63), "x".repeat(63));
        assert_eq!(long.parse::<Name>().map(|name| name.to_string()), Ok(long));
    }

    #[test]
    fn the_default_namespace_is_not_written() {
        let name: Name = "default/x".parse().expect("a name");
        assert_eq!((name.as_str(), name.namespace(), name.local()), ("x", "default", "x"));
        assert_eq!(Ok(name.clone()), "x".parse());
        let team: Namespace = "team".parse().expect("a namespace");
        let other = name.within(&team);
        assert_eq!((other.as_str(), other.namespace(), other.local()), ("team/x", "team", "x"));
        assert_eq!(Namespace::containing(&other), team);
        assert_eq!(other.within(&Namespace::default()), name);
        assert!("team/x".parse::<Namespace>().is_err() && Name::plain("team/x").is_err());
        // Whoever writes a namespace where none belongs hears of it, whichever it is.
        assert!(Name::plain("default/x").is_err());
    }
}
