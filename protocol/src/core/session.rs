//! Sessions: what an attempt that gives items leaves beside them, for the phase behind what is made of
//! these.
//!
//! ```text
//! mapper ─CompletedWith─► its control value ─all items have ended─► the control value of the phase for
//! them ─AssignWith─► reducer
//! ```
//! A session has no life of its own: it is a part of the control value that says which attempt counts,
//! and merges, is replicated, outlives its coordinator and is forgotten with it. An attempt that fails
//! leaves nothing, and a job that is tried again begins with none.
//!
//! Invariant: a phase behind items reads what the attempt left that gave exactly these, and no other.

use std::{collections::BTreeSet, fmt};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};

use crate::{
    id::Token,
    message::SessionOf,
    pipeline::PhaseDef,
    record::{JobRecord, Progress},
};

use super::Core;

impl Core {
    /// Why a session cannot be kept, if so.
    pub(super) fn session_fault(&self, session: &Bytes) -> Option<String> {
        let (most, most_keys) = (self.config.limits.session_bytes, self.config.limits.session_keys);
        if session.len() > most {
            let bytes = session.len();
            return Some(format!(
                "its session has {bytes} bytes: at most {most} are allowed (limits.session_bytes)"
            ));
        }
        match serde_json::from_slice::<Keys>(session) {
            Ok(Keys(keys)) if keys > most_keys => Some(format!(
                "its session has {keys} keys: at most {most_keys} are allowed (limits.session_keys)"
            )),
            Ok(_) => None,
            Err(error) => Some(format!("its session is no JSON object: {error}")),
        }
    }
}

/// The attempt of a phase that counts, and what it left.
pub(super) fn left_by(record: &JobRecord, step: u16) -> Option<(Token, Option<Box<Bytes>>)> {
    let control = record.controls.get(&step)?;
    match control.progress {
        Progress::Succeeded { token, .. } => Some((token, control.session.clone())),
        _ => None,
    }
}

/// What a phase may read: of each phase for items right before it, what the attempt left that gave
/// them.
pub(super) fn left_before(record: &JobRecord, phases: &[PhaseDef], step: u16) -> Vec<SessionOf> {
    let after = phases.get(usize::from(step)).map_or(&[][..], |phase| &phase.after);
    // Two phases may do something with the same items.
    let mut givers = BTreeSet::new();
    let left = |before: &u16| {
        let of = phases.get(usize::from(*before))?.each.as_ref()?.of;
        let (_, session) = left_by(record, *before)?;
        let session = session.filter(|_| givers.insert(of))?;
        let step = phases.get(usize::from(of))?.name.clone();
        Some(SessionOf { step, entries: *session })
    };
    after.iter().filter_map(left).collect()
}

/// How many keys an object has.
struct Keys(usize);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Count;

        impl<'de> Visitor<'de> for Count {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if !keys.insert(key) {
                        return Err(A::Error::custom("a key comes twice"));
                    }
                }
                Ok(Keys(keys.len()))
            }
        }

        deserializer.deserialize_map(Count)
    }
}
