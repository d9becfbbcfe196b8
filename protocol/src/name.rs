//! Names of pipelines and phases: one rule for both, checked where they enter.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};
use thiserror::Error;

/// The longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 63;

/// The text is no name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// It has no character.
    #[error("a name is empty: it needs 1 to {MAX_NAME_BYTES} characters")]
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
}

/// A valid name: 1 to 63 of `a-z A-Z 0-9 - _ .`, the first a letter or a digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > MAX_NAME_BYTES {
            let name = text.chars().take(32).collect::<String>() + "…";
            return Err(NameError::TooLong { name, bytes: text.len() });
        }
        let bad = text.chars().enumerate().find(|&(at, character)| {
            !(character.is_ascii_alphanumeric() || at > 0 && matches!(character, '-' | '_' | '.'))
        });
        match bad {
            Some((at, character)) => {
                Err(NameError::Character { name: text.to_owned(), character, position: at + 1 })
            }
            None => Ok(Self(text.into())),
        }
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
        assert_eq!(position("ab/"), 3);
        assert_eq!(position("naïve"), 3);
        assert_eq!("".parse::<Name>(), Err(NameError::Empty));
        assert!(matches!("x".repeat(64).parse::<Name>(), Err(NameError::TooLong { .. })));
    }
}
