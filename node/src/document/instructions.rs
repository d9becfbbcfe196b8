//! A job's instructions: one JSON object, checked where it enters and merged where it is used.
//!
//! Numbers and strings keep the spelling that their sender gave them: what is stored is the
//! sender's text without the white space, so it stands on one line.

use std::collections::BTreeMap;

use bytes::Bytes;
use carbonmesh_protocol::{message::Gathered, name::Name, pipeline::Combine};
use serde_json::{Map, Value, value::RawValue};
use thiserror::Error;

/// The bytes are no instructions. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum InstructionsError {
    /// They are no JSON; the message ends in line and column.
    #[error("the job is no JSON: {0}")]
    Syntax(String),
    /// An item is no JSON; the message ends in line and column.
    #[error("an item is no JSON: {0}; print one in each line, as in {{\"page\": 3}}")]
    Item(String),
    /// They are JSON, but no object.
    #[error("the job is {0}: instructions are one JSON object, such as {{\"size\": 3}}")]
    NotAnObject(&'static str),
    /// A part of what should be merged is no JSON object.
    #[error("{part} cannot be merged, since it is no JSON object: {reason}")]
    Merge {
        /// `instructions`, or `results[n]`.
        part: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// A JSON object that was checked in full.
#[derive(Clone, Debug)]
pub struct Instructions {
    fields: Map<String, Value>,
    bytes: Bytes,
}

impl Instructions {
    /// Checks that the bytes are one JSON object.
    ///
    /// # Errors
    /// They are no JSON, are nested too deep, or are no object.
    pub fn parse(json: &[u8]) -> Result<Self, InstructionsError> {
        let syntax = |error: serde_json::Error| InstructionsError::Syntax(error.to_string());
        // Read as values, not skipped over: a phase must be able to read what is accepted here. And
        // as fields: a value whose first field has a name that serde_json keeps for itself would be
        // read as something else.
        match serde_json::from_slice(json) {
            Ok(fields) => Ok(Self { fields, bytes: compact(json).into() }),
            Err(error) if error.is_data() => {
                let other = serde_json::from_slice(json).map_err(syntax)?;
                Err(InstructionsError::NotAnObject(kind(&other)))
            }
            Err(error) => Err(syntax(error)),
        }
    }

    /// The text of a top-level field, if there is such a field and it is a text.
    pub fn text_field(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    /// The object on one line.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// What a phase gets: the instructions with the results of the phases before merged into them, key
/// by key at the top level; the later one wins. One line of JSON.
///
/// # Errors
/// A part is no JSON object.
pub fn merge_instructions(
    instructions: &[u8],
    results: &[Bytes],
) -> Result<Vec<u8>, InstructionsError> {
    let mut merged = BTreeMap::new();
    merge_part(&mut merged, instructions, || "instructions".to_owned())?;
    for (at, result) in results.iter().enumerate() {
        merge_part(&mut merged, result, || format!("results[{at}]"))?;
    }
    let json = serde_json::to_vec(&merged)
        .map_err(|error| InstructionsError::Syntax(error.to_string()))?;
    Ok(compact(&json))
}

/// What a phase gets that wants each result by itself: `{"instructions": ..., "results": {NAME: ...}}`.
/// One line of JSON.
///
/// # Errors
/// A part is no JSON.
pub fn name_results<'a, N: AsRef<str> + 'a>(
    instructions: &[u8],
    results: impl Iterator<Item = (N, &'a Bytes)>,
) -> Result<Vec<u8>, InstructionsError> {
    #[derive(serde::Serialize)]
    struct Named<'a> {
        instructions: &'a RawValue,
        results: BTreeMap<String, &'a RawValue>,
    }
    fn part<'a>(json: &'a [u8], name: &str) -> Result<&'a RawValue, InstructionsError> {
        serde_json::from_slice(json).map_err(|error| InstructionsError::Merge {
            part: name.to_owned(),
            reason: error.to_string(),
        })
    }
    let results = results.map(|(name, json)| {
        let name = name.as_ref();
        Ok((name.to_owned(), part(json, name)?))
    });
    let results = results.collect::<Result<_, InstructionsError>>()?;
    let named = Named { instructions: part(instructions, "instructions")?, results };
    let json =
        serde_json::to_vec(&named).map_err(|error| InstructionsError::Syntax(error.to_string()))?;
    Ok(compact(&json))
}

/// What a phase's items gave, put together as the pipeline says: JSON.
///
/// # Errors
/// A result is no JSON object.
pub(crate) fn gathered_value(gathered: &Gathered) -> Result<Bytes, InstructionsError> {
    if gathered.combine == Combine::List {
        return Ok(gathered.results.clone());
    }
    let failed = |error: serde_json::Error| InstructionsError::Merge {
        part: format!("results of {}", gathered.name),
        reason: error.to_string(),
    };
    let results: Vec<BTreeMap<String, &RawValue>> =
        serde_json::from_slice(&gathered.results).map_err(failed)?;
    let mut groups: BTreeMap<String, Vec<&RawValue>> = BTreeMap::new();
    for (key, value) in results.into_iter().flatten() {
        groups.entry(key).or_default().push(value);
    }
    serde_json::to_vec(&groups).map(Bytes::from).map_err(failed)
}

/// An object with one value.
pub(crate) fn named_object(name: &Name, value: &[u8]) -> Bytes {
    // Names have no character that would have to be escaped.
    [b"{\"", name.as_str().as_bytes(), b"\":", value, b"}"].concat().into()
}

/// An item as the instructions of its job, on one line.
///
/// # Errors
/// It is no JSON.
pub(crate) fn one_item(json: &[u8]) -> Result<Bytes, InstructionsError> {
    match Instructions::parse(json) {
        Ok(instructions) => Ok(instructions.into_bytes()),
        Err(InstructionsError::NotAnObject(_)) => {
            Ok([b"{\"item\":", &compact(json)[..], b"}"].concat().into())
        }
        Err(InstructionsError::Syntax(error)) => Err(InstructionsError::Item(error)),
        Err(error) => Err(error),
    }
}

fn merge_part<'a>(
    merged: &mut BTreeMap<String, &'a RawValue>,
    json: &'a [u8],
    part: impl FnOnce() -> String,
) -> Result<(), InstructionsError> {
    let fields: BTreeMap<String, &RawValue> = serde_json::from_slice(json)
        .map_err(|error| InstructionsError::Merge { part: part(), reason: error.to_string() })?;
    merged.extend(fields);
    Ok(())
}

/// Valid JSON without the white space between its tokens.
fn compact(json: &[u8]) -> Vec<u8> {
    let (mut in_text, mut escaped) = (false, false);
    let mut keep = |byte: u8| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_text = !in_text,
            _ => return in_text || !byte.is_ascii_whitespace(),
        }
        true
    };
    json.iter().copied().filter(|&byte| keep(byte)).collect()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_keep_their_spelling_but_not_their_white_space() {
        let json = b"{ \"n\": 123456789012345678901234567890,\n \"a b\\\" \": [1.50, \" x \"] }";
        let parsed = Instructions::parse(json).expect("valid");
        let bytes = parsed.into_bytes();
        let expected: &[u8] = b"{\"n\":123456789012345678901234567890,\"a b\\\" \":[1.50,\" x \"]}";
        assert_eq!(bytes, expected);
    }

    #[test]
    fn only_objects_are_instructions() {
        let refusal = |json: &str| Instructions::parse(json.as_bytes()).expect_err(json);
        assert_eq!(refusal("[1]"), InstructionsError::NotAnObject("an array"));
        assert!(refusal("{\n\"a\": }").to_string().contains("line 2 column 6"));
        assert!(matches!(refusal(&"[".repeat(10_000)), InstructionsError::Syntax(_)));
        assert!(matches!(refusal("{} {}"), InstructionsError::Syntax(_)));
    }

    #[test]
    fn a_text_field_is_found_and_nothing_else_is() {
        let parsed = Instructions::parse(br#"{"key":"k1","n":1}"#).expect("valid");
        assert_eq!(parsed.text_field("key"), Some("k1"));
        assert_eq!(parsed.text_field("n"), None);
        assert_eq!(parsed.text_field("absent"), None);
    }

    #[test]
    fn the_later_result_wins_at_the_top_level_only() {
        let results = [Bytes::from(r#"{"b":{"x":1}, "c":2}"#), Bytes::from(r#"{"c":3}"#)];
        let merged = merge_instructions(br#"{"a":1,"b":{"y":2}}"#, &results).expect("objects");
        assert_eq!(merged, br#"{"a":1,"b":{"x":1},"c":3}"#);
    }

    #[test]
    fn a_result_that_is_no_object_is_named() {
        let results = [Bytes::from("{\"x\": 1}"), Bytes::from("{}")];
        let named = ["a", "b"].into_iter().zip(&results);
        let named = name_results(br#"{"a":1}"#, named).expect("objects");
        let text = String::from_utf8(named).expect("text");
        assert_eq!(text, r#"{"instructions":{"a":1},"results":{"a":{"x":1},"b":{}}}"#);
        let error = merge_instructions(b"{}", &[Bytes::from("{}"), Bytes::from("7")]);
        let error = error.expect_err("a number").to_string();
        assert!(error.starts_with("results[1] cannot be merged"), "{error}");
    }
}
