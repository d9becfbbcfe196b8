//! What a phase asks of the nodes that run it: labels that these have, with values that suffice.
//!
//! ```text
//! gpu              the label is there, and neither `false` nor empty
//! zone=a  zone!=a  its value is, or is not, this text (a label that is not there is no text)
//! memory>=8GiB     its value is a number that suffices: >=, <=, > and <, with units as KB or KiB
//! ```

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// How many one phase may have, and how long each may be, in bytes.
pub const MAX_REQUIREMENTS: usize = 32;
const MAX_BYTES: usize = 255;

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Requirement {
    label: String,
    ask: Ask,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Ask {
    There,
    Is,
    IsNot,
    AtLeast,
    AtMost,
    More,
    Less,
}

/// In the order in which they are looked for: the longer first.
const OPERATORS: [(&str, Ask); 6] = [
    (">=", Ask::AtLeast),
    ("<=", Ask::AtMost),
    ("!=", Ask::IsNot),
    ("=", Ask::Is),
    (">", Ask::More),
    ("<", Ask::Less),
];

/// A text is no requirement.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is no requirement: {reason}; write a label, as in `gpu`, `zone=a` or `memory>=8GiB`"
)]
pub struct RequirementError {
    text: String,
    reason: &'static str,
}

impl FromStr for Requirement {
    type Err = RequirementError;

    fn from_str(text: &str) -> Result<Self, RequirementError> {
        let wrong = |reason| RequirementError { text: text.chars().take(80).collect(), reason };
        if text.len() > MAX_BYTES {
            return Err(wrong("it is longer than 255 bytes"));
        }
        let end = text.find(['<', '>', '=', '!']).unwrap_or(text.len());
        let (label, rest) = text.split_at(end);
        let label = label.trim();
        if label.is_empty() || label.contains(char::is_whitespace) {
            return Err(wrong("it begins with no label"));
        }
        if rest.is_empty() {
            return Ok(Self { label: label.into(), ask: Ask::There, value: String::new() });
        }
        let found = OPERATORS.iter().find_map(|(sign, ask)| Some((*ask, rest.strip_prefix(sign)?)));
        let (ask, value) = found.ok_or_else(|| wrong("`!` is followed by no `=`"))?;
        let value = value.trim();
        let compares = !matches!(ask, Ask::Is | Ask::IsNot);
        if compares && number(value).is_none() {
            return Err(wrong("what it is compared with is no number"));
        }
        Ok(Self { label: label.into(), ask, value: value.into() })
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = OPERATORS.iter().find(|(_, ask)| *ask == self.ask).map_or("", |(sign, _)| sign);
        write!(f, "{}{sign}{}", self.label, self.value)
    }
}

impl Requirement {
    /// Whether [`FromStr`] can have made it: for requirements that came from elsewhere.
    pub(crate) fn is_sound(&self) -> bool {
        self.to_string().parse::<Self>().as_ref() == Ok(self)
    }

    /// Whether a node with these labels meets it.
    pub fn is_met_by(&self, labels: &BTreeMap<String, String>) -> bool {
        let label = labels.get(&self.label);
        let compared = || number(label?)?.partial_cmp(&number(&self.value)?);
        match self.ask {
            Ask::There => label.is_some_and(|value| !value.is_empty() && value != "false"),
            Ask::Is => label == Some(&self.value),
            Ask::IsNot => label != Some(&self.value),
            Ask::AtLeast => compared().is_some_and(Ordering::is_ge),
            Ask::AtMost => compared().is_some_and(Ordering::is_le),
            Ask::More => compared().is_some_and(Ordering::is_gt),
            Ask::Less => compared().is_some_and(Ordering::is_lt),
        }
    }

    /// What a node with these labels lacks, for people; none if it meets it.
    pub fn lack_of(&self, labels: &BTreeMap<String, String>) -> Option<String> {
        if self.is_met_by(labels) {
            return None;
        }
        Some(match labels.get(&self.label) {
            Some(value) => format!("{self}: its label {} is `{value}`", self.label),
            None => format!("{self}: it has no label {}", self.label),
        })
    }
}

/// Whether a node with these labels meets all of them.
pub fn meets_all(requirements: &[Requirement], labels: &BTreeMap<String, String>) -> bool {
    requirements.iter().all(|requirement| requirement.is_met_by(labels))
}

/// A number, with or without a unit: `8`, `0.5`, `8GiB`, `16G`, `500MB`.
fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let end = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let value: f64 = digits.trim().parse().ok()?;
    let factor: f64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1_048_576.0,
        "gib" => 1_073_741_824.0,
        "tib" => 1_099_511_627_776.0,
        _ => return None,
    };
    Some(value * factor).filter(|value| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meets(text: &str, labels: &[(&str, &str)]) -> bool {
        let labels = labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
        text.parse::<Requirement>().expect("a requirement").is_met_by(&labels)
    }

    #[test]
    fn labels_are_there_or_have_values() {
        assert!(meets("gpu", &[("gpu", "nvidia")]));
        assert!(!meets("gpu", &[("gpu", "false")]) && !meets("gpu", &[("gpu", "")]));
        assert!(!meets("gpu", &[]));
        assert!(meets("zone = a", &[("zone", "a")]) && !meets("zone=a", &[("zone", "b")]));
        assert!(meets("zone!=a", &[("zone", "b")]) && meets("zone!=a", &[]));
        assert!(!meets("zone!=a", &[("zone", "a")]));
    }

    #[test]
    fn numbers_are_compared_with_their_units() {
        assert!(meets("memory>=8GiB", &[("memory", "8GiB")]));
        assert!(meets("memory >= 8 GiB", &[("memory", "16384MiB")]));
        assert!(!meets("memory>=8GiB", &[("memory", "8GB")]));
        assert!(meets("cores>2", &[("cores", "2.5")]) && !meets("cores>2", &[("cores", "2")]));
        assert!(meets("load<=0.5", &[("load", "0.5")]) && !meets("load<0.5", &[("load", "0.5")]));
        assert!(!meets("cores>=1", &[("cores", "many")]) && !meets("cores>=1", &[]));
    }

    #[test]
    fn what_is_no_requirement_is_named() {
        for text in
            ["", "=a", "a!", "a b", "memory>=much", "memory>=", "m>=1e999", &"x".repeat(256)]
        {
            let error = text.parse::<Requirement>().expect_err(text);
            assert!(error.to_string().contains("is no requirement"), "{error}");
        }
    }

    #[test]
    fn a_requirement_reads_back_from_its_text() {
        for text in ["gpu", "zone=a", "zone=", "zone!=a=b", "memory>=8GiB", "a<=1", "a>1", "a<1"] {
            let requirement: Requirement = text.parse().expect("a requirement");
            assert_eq!(requirement.to_string(), text);
            assert!(requirement.is_sound(), "{text}");
        }
    }

    #[test]
    fn a_lack_is_told() {
        let requirement: Requirement = "memory>=8GiB".parse().expect("a requirement");
        let labels = BTreeMap::from([("memory".to_owned(), "4GiB".to_owned())]);
        let lack = requirement.lack_of(&labels).expect("a lack");
        assert_eq!(lack, "memory>=8GiB: its label memory is `4GiB`");
        assert!(requirement.lack_of(&BTreeMap::new()).expect("a lack").contains("no label memory"));
    }
}
