//! The frames between a node and a phase host: one JSON object a line (`docs/phase-hosts.md`).
//!
//! What a host writes is not trusted: whatever is no frame comes back as a reason that its author
//! can use.

use std::{borrow::Cow, collections::BTreeMap};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, value::RawValue};

use crate::document::parse_duration;
use crate::phase::{LogLevel, PhaseError};

/// The version of the protocol that is spoken here.
pub(super) const PROTOCOL: u32 = 1;

/// More would be a mistake, as more slots would be.
const MAX_CONCURRENCY: usize = 10_000;

/// What a host offers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hello {
    /// Its phases, by name.
    pub(crate) phases: Vec<String>,
    /// How many attempts one process runs at the same time.
    pub(crate) concurrency: usize,
    /// Pipeline documents that come with it.
    pub(crate) pipelines: Vec<Value>,
}

/// What a host writes.
#[derive(Debug)]
pub(super) enum FromHost<'a> {
    Hello(Hello),
    Log {
        id: Option<u64>,
        level: Level,
        message: Cow<'a, str>,
    },
    Heartbeat(u64),
    Progress {
        id: u64,
        done: f32,
        message: Cow<'a, str>,
    },
    Item {
        id: u64,
        item: &'a RawValue,
    },
    /// Without a value, the key is taken out.
    Session {
        id: u64,
        key: Cow<'a, str>,
        value: Option<&'a RawValue>,
    },
    Ended {
        id: u64,
        end: Result<&'a RawValue, PhaseError>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    Debug,
    Info,
    Warning,
    Error,
}

impl From<Level> for LogLevel {
    fn from(level: Level) -> Self {
        match level {
            Level::Debug => Self::Debug,
            Level::Info => Self::Info,
            Level::Warning => Self::Warning,
            Level::Error => Self::Error,
        }
    }
}

/// All keys of all types; which have to be there depends on the type.
#[derive(Deserialize)]
struct Keys<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    protocol: Option<u32>,
    phases: Option<Vec<Offer<'a>>>,
    concurrency: Option<usize>,
    #[serde(default)]
    pipelines: Vec<Value>,
    level: Option<Level>,
    #[serde(borrow)]
    message: Option<Cow<'a, str>>,
    done: Option<f32>,
    // What is `null` is there all the same.
    #[serde(default, borrow, deserialize_with = "present")]
    item: Option<&'a RawValue>,
    #[serde(borrow)]
    key: Option<Cow<'a, str>>,
    #[serde(default, borrow, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(default, borrow, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    retry: Option<bool>,
    #[serde(borrow)]
    retry_after: Option<Cow<'a, str>>,
    #[serde(borrow)]
    traceback: Option<Cow<'a, str>>,
}

fn present<'de, D: Deserializer<'de>>(value: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(value).map(Some)
}

#[derive(Deserialize)]
struct Offer<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
}

impl<'a> FromHost<'a> {
    /// Reads one line.
    ///
    /// # Errors
    /// It is no frame; what is wrong with it.
    pub(super) fn parse(line: &'a [u8]) -> Result<Self, String> {
        let keys: Keys<'a> = serde_json::from_slice(line).map_err(|error| {
            let start: String = String::from_utf8_lossy(line).chars().take(80).collect();
            // It may quote as much as the frame has.
            let why: String = error.to_string().chars().take(200).collect();
            format!(
                "what it wrote is no frame ({why}): `{}`; handlers must print to standard error",
                start.trim_end()
            )
        })?;
        let lacks = |key: &str| format!("its frame of type `{}` has no `{key}`", keys.kind);
        let id = keys.id.ok_or_else(|| lacks("id"));
        Ok(match &*keys.kind {
            "hello" => Self::Hello(hello(keys)?),
            "log" => Self::Log {
                id: keys.id,
                level: keys.level.ok_or_else(|| lacks("level"))?,
                message: keys.message.ok_or_else(|| lacks("message"))?,
            },
            "heartbeat" => Self::Heartbeat(id?),
            "progress" => Self::Progress {
                id: id?,
                // No number, as 0 / 0 is none in JSON, says nothing.
                done: keys.done.unwrap_or_default(),
                message: keys.message.unwrap_or_default(),
            },
            "item" => Self::Item { id: id?, item: keys.item.ok_or_else(|| lacks("item"))? },
            "session" => {
                let key = keys.key.clone().ok_or_else(|| lacks("key"))?;
                Self::Session { id: id?, key, value: keys.value }
            }
            "result" => {
                Self::Ended { id: id?, end: Ok(keys.result.ok_or_else(|| lacks("result"))?) }
            }
            "error" => {
                let message = keys.message.as_deref().ok_or_else(|| lacks("message"))?;
                let error = match keys.traceback.as_deref().map(str::trim) {
                    None | Some("") => message.to_owned(),
                    Some(traceback) => format!("{message}\n{traceback}"),
                };
                let end = match (keys.retry, keys.retry_after.as_deref()) {
                    (Some(false), _) => PhaseError::Fatal(error),
                    (_, None) => PhaseError::Retry(error),
                    // A handler's slip in this must not hide why it failed.
                    (_, Some(after)) => match parse_duration(after) {
                        Ok(after) => PhaseError::RetryAfter(error, after),
                        Err(wrong) => PhaseError::Retry(format!("{error} (retry_after: {wrong})")),
                    },
                };
                Self::Ended { id: id?, end: Err(end) }
            }
            other => {
                let start: String = other.chars().take(80).collect();
                return Err(format!("it wrote a frame of a type that is none: `{start}`"));
            }
        })
    }
}

fn hello(keys: Keys<'_>) -> Result<Hello, String> {
    match keys.protocol {
        Some(PROTOCOL) => {}
        Some(other) => {
            return Err(format!(
                "it speaks protocol {other}, and this node {PROTOCOL}: take an SDK of this version"
            ));
        }
        None => return Err("its `hello` has no `protocol`".to_owned()),
    }
    let phases = keys.phases.unwrap_or_default();
    let phases: Vec<String> = phases.into_iter().map(|phase| phase.name.into_owned()).collect();
    let concurrency = keys.concurrency.unwrap_or(1);
    match (phases.is_empty() && keys.pipelines.is_empty(), concurrency) {
        (true, _) => {
            Err("it offers neither phases nor pipelines: its `hello` must name one".into())
        }
        (_, 0) | (_, MAX_CONCURRENCY..) => {
            Err(format!("its `concurrency` is {concurrency}: 1 to {MAX_CONCURRENCY} are possible"))
        }
        _ => Ok(Hello { phases, concurrency, pipelines: keys.pipelines }),
    }
}

/// What a node writes.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum ToHost<'a> {
    Welcome { protocol: u32, max_frame: usize },
    Run(Box<Run<'a>>),
    Cancel { id: u64 },
    Shutdown,
}

/// One attempt.
#[derive(Serialize)]
pub(super) struct Run<'a> {
    pub(super) id: u64,
    pub(super) phase: &'a str,
    pub(super) job: String,
    pub(super) pipeline: &'a str,
    pub(super) step: &'a str,
    pub(super) attempt: u32,
    pub(super) token: String,
    pub(super) idempotency_key: String,
    pub(super) traceparent: String,
    pub(super) gives_items: bool,
    pub(super) timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) scope: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "as_object")]
    pub(super) sessions: Vec<(&'a str, &'a RawValue)>,
    pub(super) instructions: &'a RawValue,
}

/// Pairs as an object, in their order.
fn as_object<S: Serializer>(pairs: &[(&str, &RawValue)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().copied())
}

impl ToHost<'_> {
    /// Its line.
    pub(super) fn line(&self) -> Vec<u8> {
        // Nothing in it can fail to be JSON: names, numbers, and what is JSON already.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_frame_is_named() {
        for (line, reason) in [
            ("Hello", "no frame"),
            ("[]", "no frame"),
            ("{}", "missing field `type`"),
            (r#"{"type": "result", "id": 1}"#, "has no `result`"),
            (r#"{"type": "result", "result": {}}"#, "has no `id`"),
            (r#"{"type": "session", "id": 1, "value": 2}"#, "has no `key`"),
            (r#"{"type": "result", "id": -1, "result": {}}"#, "no frame"),
            (r#"{"type": "sing", "id": 1}"#, "`sing`"),
            (r#"{"type": "hello", "phases": [{"name": "a"}]}"#, "no `protocol`"),
            (r#"{"type": "hello", "protocol": 2, "phases": [{"name": "a"}]}"#, "protocol 2"),
            (r#"{"type": "hello", "protocol": 1, "phases": []}"#, "neither phases nor pipelines"),
            (r#"{"type": "log", "level": "loud", "message": ""}"#, "loud"),
            (
                r#"{"type": "hello", "protocol": 1, "concurrency": 0, "phases": [{"name": "a"}]}"#,
                "`concurrency` is 0",
            ),
        ] {
            let error = FromHost::parse(line.as_bytes()).expect_err(line);
            assert!(error.contains(reason), "{line}: {error}");
        }
        let error = FromHost::parse(b"{\"type\": \"log\xff\"}").expect_err("no UTF-8");
        assert!(error.contains("no frame"), "{error}");
    }

    #[test]
    fn null_is_an_item_too() {
        let line = br#"{"type": "item", "id": 1, "item": null}"#;
        match FromHost::parse(line).expect("a frame") {
            FromHost::Item { id: 1, item } => assert_eq!(item.get(), "null"),
            other => panic!("{other:?}"),
        }
        let lacks = FromHost::parse(br#"{"type": "item", "id": 1}"#).expect_err("no item");
        assert!(lacks.contains("no `item`"), "{lacks}");
    }

    #[test]
    fn a_session_key_without_a_value_is_taken_out_and_null_is_a_value() {
        let value = |line: &str| match FromHost::parse(line.as_bytes()).expect("a frame") {
            FromHost::Session { id: 1, key, value } => {
                assert_eq!(key, "k");
                value.map(|value| value.get().to_owned())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(value(r#"{"type": "session", "id": 1, "key": "k"}"#), None);
        let null = value(r#"{"type": "session", "id": 1, "key": "k", "value": null}"#);
        assert_eq!(null.as_deref(), Some("null"));
    }

    #[test]
    fn an_error_says_whether_to_try_again() {
        let end = |keys: &str| {
            let line = format!(r#"{{"type": "error", "id": 7, "message": "no", {keys} "x": 1}}"#);
            match FromHost::parse(line.as_bytes()).expect("a frame") {
                FromHost::Ended { id: 7, end: Err(error) } => error,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(end(""), PhaseError::Retry("no".into()));
        assert_eq!(end(r#""retry": false,"#), PhaseError::Fatal("no".into()));
        let after = PhaseError::RetryAfter("no".into(), std::time::Duration::from_secs(3));
        assert_eq!(end(r#""retry_after": "3s","#), after);
        let PhaseError::Retry(error) = end(r#""retry_after": "soon","#) else { panic!("it may") };
        assert!(error.starts_with("no (retry_after: "), "{error}");
        assert_eq!(end(r#""traceback": "at 7\n","#), PhaseError::Retry("no\nat 7".into()));
    }
}
