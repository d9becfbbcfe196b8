//! Sessions: what an attempt that gives items leaves beside them, for the phase behind what is made of
//! these. It counts if the attempt does, lies with its result, and is gone with the job.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use carbonmesh_protocol::{config::Limits, message::SessionOf};
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{Fields, PhaseContext, PhaseError};

/// How much an attempt may leave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLimits {
    /// In bytes of JSON.
    pub(crate) bytes: usize,
    /// In keys.
    pub(crate) keys: usize,
}

impl From<&Limits> for SessionLimits {
    fn from(limits: &Limits) -> Self {
        Self { bytes: limits.session_bytes, keys: limits.session_keys }
    }
}

/// What one attempt leaves, so far.
#[derive(Debug)]
pub(super) struct Leaving {
    limits: SessionLimits,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    /// By key, in JSON.
    values: BTreeMap<String, Box<RawValue>>,
    bytes: usize,
    closed: bool,
}

/// What braces take.
const OBJECT_BYTES: usize = 2;

fn entry_bytes(key: &str, value: &RawValue) -> usize {
    // Its quotes and escapes, a colon and a comma.
    let key = serde_json::to_string(key).map_or(key.len(), |key| key.len());
    key + value.get().len() + 2
}

impl Leaving {
    pub(super) fn new(limits: SessionLimits) -> Self {
        Self { limits, entries: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: &str, value: Box<RawValue>) -> Result<(), PhaseError> {
        let SessionLimits { bytes: most, keys: most_keys } = self.limits;
        let mut entries = self.lock();
        let fatal = |error: String| Err(PhaseError::Fatal(error));
        if entries.closed {
            return fatal(format!("key `{key}` is set in a session after the attempt's end"));
        }
        let before = entries.values.get(key).map(|before| entry_bytes(key, before));
        let bytes = entries.bytes - before.unwrap_or(0) + entry_bytes(key, &value);
        if before.is_none() && entries.values.len() >= most_keys {
            return fatal(format!(
                "the session has {most_keys} keys already: no more are allowed (limits.session_keys)"
            ));
        }
        if bytes + OBJECT_BYTES > most {
            return fatal(format!(
                "the session would have {} bytes: at most {most} are allowed (limits.session_bytes); \
                 put large data elsewhere and keep where it is",
                bytes + OBJECT_BYTES
            ));
        }
        entries.bytes = bytes;
        entries.values.insert(key.to_owned(), value);
        Ok(())
    }

    fn remove(&self, key: &str) -> bool {
        let mut entries = self.lock();
        let Some(value) = entries.values.remove(key) else { return false };
        entries.bytes -= entry_bytes(key, &value);
        true
    }

    /// The attempt has ended: what it leaves, if that is anything.
    pub(super) fn close(&self) -> Option<Bytes> {
        let mut entries = self.lock();
        entries.closed = true;
        let left = serde_json::to_vec(&entries.values).unwrap_or_default();
        (!entries.values.is_empty()).then(|| left.into())
    }

    fn all(&self) -> Fields {
        let entries = self.lock();
        let value = |json: &RawValue| serde_json::from_str(json.get()).unwrap_or(Value::Null);
        entries.values.iter().map(|(key, json)| (key.clone(), value(json))).collect()
    }
}

/// What attempts before left, each with the step that did, in the pipeline's order; why it cannot be
/// read, if so.
pub(super) type Sessions = Result<Vec<(String, Fields)>, String>;

/// Reads them.
pub(super) fn read(sessions: &[SessionOf]) -> Sessions {
    let read = |of: &SessionOf| match serde_json::from_slice(&of.entries) {
        Ok(fields) => Ok((of.step.to_string(), fields)),
        Err(error) => Err(format!("the session of step {} cannot be read: {error}", of.step)),
    };
    sessions.iter().map(read).collect()
}

/// A session as its phase sees it. A phase that gives items writes its own; the phase behind what is
/// made of them reads it.
///
/// A phase that is both reads its own keys before those of others. Where several phases left one to
/// the same reader, the later in the pipeline counts; [`of`](Self::of) has each.
#[derive(Clone, Copy, Debug)]
pub struct Session<'a>(pub(super) &'a PhaseContext);

impl Session<'_> {
    /// Sets a key. It is durable when the attempt's end is, and counts if the attempt does: what an
    /// attempt left that failed is gone.
    ///
    /// # Errors
    /// The value cannot be JSON, the session is full, or no phase does anything with this one's items.
    pub fn set(&self, key: &str, value: &(impl Serialize + ?Sized)) -> Result<(), PhaseError> {
        let value = serde_json::value::to_raw_value(value);
        let value = value.map_err(|error| {
            PhaseError::Fatal(format!("session key `{key}` cannot be JSON: {error}"))
        })?;
        self.leaving(key)?.set(key, value)
    }

    /// Takes out a key that this attempt has set. Says whether it had.
    ///
    /// # Errors
    /// No phase does anything with this one's items.
    pub fn remove(&self, key: &str) -> Result<bool, PhaseError> {
        Ok(self.leaving(key)?.remove(key))
    }

    /// The value of a key.
    ///
    /// # Errors
    /// What was left cannot be read.
    pub fn get(&self, key: &str) -> Result<Option<Value>, PhaseError> {
        let own = self.0.leaving().map(|leaving| leaving.all().remove(key));
        let before =
            || Ok(self.before()?.iter().rev().find_map(|(_, left)| left.get(key).cloned()));
        own.flatten().map_or_else(before, |value| Ok(Some(value)))
    }

    /// All keys with their values.
    ///
    /// # Errors
    /// What was left cannot be read.
    pub fn all(&self) -> Result<Fields, PhaseError> {
        let before = self.before()?.iter().flat_map(|(_, left)| left);
        let mut all: Fields = before.map(|(key, value)| (key.clone(), value.clone())).collect();
        all.extend(self.0.leaving().map(Leaving::all).unwrap_or_default());
        Ok(all)
    }

    /// What one step before left.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(&self, step: &str) -> Result<Option<&Fields>, PhaseError> {
        Ok(self.before()?.iter().find(|(of, _)| of == step).map(|(_, left)| left))
    }

    fn before(&self) -> Result<&Vec<(String, Fields)>, PhaseError> {
        self.0.sessions().as_ref().map_err(|error| PhaseError::Fatal(error.clone()))
    }

    fn leaving(&self, key: &str) -> Result<&Leaving, PhaseError> {
        self.0.leaving().ok_or_else(|| {
            PhaseError::Fatal(format!(
                "step `{}` sets `{key}` in its session, and no phase of the pipeline has \
                 for_each = \"{0}\", behind which one could read it",
                self.0.step()
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    #[test]
    fn what_it_counts_is_what_it_writes() {
        let leaving = Leaving::new(SessionLimits { bytes: 100, keys: 3 });
        assert_eq!(leaving.close(), None);
        let leaving = Leaving::new(SessionLimits { bytes: 100, keys: 3 });
        for (key, value) in [("a", "1"), ("a\n\"", "[2]"), ("a", "{}"), ("c", "null")] {
            leaving.set(key, raw(value)).expect("there is room");
        }
        assert!(leaving.remove("c") && !leaving.remove("c"));
        let counted = leaving.lock().bytes + OBJECT_BYTES;
        let left = leaving.close().expect("it leaves something");
        assert_eq!(&left[..], br#"{"a":{},"a\n\"":[2]}"#);
        // One comma more than there is.
        assert_eq!(counted, left.len() + 1);
    }

    #[test]
    fn a_full_session_says_which_limit_it_is() {
        let leaving = Leaving::new(SessionLimits { bytes: 40, keys: 2 });
        let text = format!("{:?}", "x".repeat(40));
        let error = leaving.set("k", raw(&text)).expect_err("too long");
        assert!(error.to_string().contains("limits.session_bytes"), "{error}");
        leaving.set("a", raw("1")).expect("room");
        leaving.set("b", raw("1")).expect("room");
        leaving.set("b", raw("2")).expect("it was there");
        let error = leaving.set("c", raw("1")).expect_err("too many");
        assert!(error.to_string().contains("limits.session_keys"), "{error}");
        leaving.close();
        let error = leaving.set("a", raw("1")).expect_err("too late");
        assert!(error.to_string().contains("after the attempt's end"), "{error}");
    }
}
