//! EVENTS: what a coordinator tells of a job comes in an order that can be: nothing before it was enqueued,
//! one end, and nothing behind that but what was late, until it is tried again.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    event::EventKind,
    id::{JobId, NodeId, Term},
};

use super::{Invariant, Seen, Verdict};

/// How far one coordinator's stream was read, and what is known of its jobs from that.
struct Read {
    term: Term,
    number: u64,
    /// Whether each has ended.
    jobs: BTreeMap<JobId, bool>,
}

#[derive(Default)]
pub(super) struct Events {
    read: BTreeMap<NodeId, Read>,
}

impl Events {
    /// Whether an event may come now.
    fn follows(ended: Option<bool>, kind: EventKind) -> bool {
        use EventKind::*;
        match kind {
            // Under its key, one that was forgotten may come again.
            Enqueued => ended != Some(false),
            Retried => ended != Some(false),
            Succeeded | Dead | Cancelled => ended != Some(true),
            Started | AttemptStarted => ended != Some(true),
            _ => true,
        }
    }
}

impl Invariant for Events {
    fn name(&self) -> &'static str {
        "events"
    }

    fn inspect(&mut self, seen: &Seen<'_>) -> Verdict {
        for (node, core) in seen.cores() {
            let id = node.config.node;
            let number = self.read.get(&id).map_or(0, |read| read.number);
            let Some((token, mut events)) = core.events_behind(seen.pipeline, number) else {
                self.read.remove(&id);
                continue;
            };
            let known = self.read.get(&id).is_some_and(|read| read.term == token.term);
            if !known && number > 0 {
                // In another term it counts anew: it is read from its beginning next time.
                self.read.remove(&id);
                continue;
            }
            let read = self.read.entry(id).or_insert_with(|| Read {
                term: token.term,
                number: 0,
                jobs: BTreeMap::new(),
            });
            if token.number != read.number + 1 {
                read.jobs.clear();
            }
            read.number = token.number - 1;
            events.try_for_each(|(about, what)| {
                read.number += 1;
                let Some(job) = about.job else { return Ok(()) };
                let (kind, ended) = (what.kind(), read.jobs.get(&job).copied());
                if !Self::follows(ended, kind) {
                    let (name, ended) = (&node.config.name, ended.unwrap_or_default());
                    let state = if ended { "has ended" } else { "is under way" };
                    return Err(format!("{name} tells `{kind}` of job {job}, which {state}"));
                }
                match kind {
                    EventKind::Succeeded | EventKind::Dead | EventKind::Cancelled => {
                        read.jobs.insert(job, true);
                    }
                    EventKind::Enqueued | EventKind::Started | EventKind::Retried => {
                        read.jobs.insert(job, false);
                    }
                    // What is late says nothing of where the job stands.
                    _ => {}
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}
