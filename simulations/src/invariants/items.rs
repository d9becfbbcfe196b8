//! ITEMS: what is made of an item runs only once the attempt that gave it succeeded, and the phase
//! behind gets one result of each item of that attempt, no more and no less; and what that attempt left
//! in its session, and nothing of any other.

use std::collections::BTreeMap;

use bytes::Bytes;
use carbonmesh_protocol::{
    id::{JobId, Token},
    io::Attempt,
    message::{Gathered, Message, SessionOf},
    record::Progress,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::world::session_of;

#[derive(Default)]
pub(super) struct Items {
    /// How many items each attempt gave, and whether it left a session.
    given: BTreeMap<Token, (u32, bool)>,
}

impl Invariant for Items {
    fn name(&self) -> &'static str {
        "items"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Gave { token, count, leaves } => {
                self.given.insert(*token, (*count, *leaves));
            }
            Fact::Sent { at, message: Message::Assign(it), .. } => {
                return self.given_away(seen, *at, it.job, (&it.gathered, &it.sessions));
            }
            Fact::Started { at, attempt } => {
                let Attempt { job, gathered, sessions, .. } = attempt;
                if seen.gives_itself(*at, attempt) {
                    return self.given_away(seen, *at, *job, (gathered, sessions));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Items {
    fn given_away(
        &self,
        seen: &Seen<'_>,
        at: usize,
        job: JobId,
        (gathered, sessions): (&[Gathered], &[SessionOf]),
    ) -> Verdict {
        if seen.nodes[at].disk.is_damaged() {
            return Ok(());
        }
        // Whose items a coordinator has on disk as those that are to be worked on, or were.
        let ended =
            |job: JobId, step: u16| match seen.on_disk(at, job)?.controls.get(&step)?.progress {
                Progress::Succeeded { token, .. } => Some(token),
                _ => None,
            };
        let record = seen.on_disk(at, job).unwrap_or_default();
        let parent = record.spec.as_ref().and_then(|spec| spec.parent.clone());
        if let Some(parent) = parent
            && ended(parent.job, 0) != Some(parent.token)
        {
            let (index, of) = (parent.index, parent.job);
            return Err(format!(
                "n{at} gives item {index} of {of} away, its attempt does not count"
            ));
        }
        if gathered.is_empty() && !sessions.is_empty() {
            return Err(format!("{job} gets a session, and comes behind no items"));
        }
        for gathered in gathered {
            let token = ended(job, 1).ok_or_else(|| format!("{job} has items that nobody gave"))?;
            let results: Vec<serde_json::Value> =
                serde_json::from_slice(&gathered.results).map_err(|error| error.to_string())?;
            let (given, left) = self.given.get(&token).copied().unwrap_or_default();
            let left: Vec<Bytes> = left.then(|| session_of(token).into()).into_iter().collect();
            if !sessions.iter().map(|of| &of.entries).eq(&left) {
                return Err(format!("{job} gets {sessions:?}, and {token} left {left:?}"));
            }
            if results.len() != given as usize {
                let got = results.len();
                return Err(format!("{job} goes on with {got} results of {given} items"));
            }
        }
        Ok(())
    }
}
