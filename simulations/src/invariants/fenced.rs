//! FENCED: no two attempts share a token; in the end one outcome is accepted, and it is that of an
//! attempt that began.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    id::{JobId, Token},
    record::Progress,
};

use super::{Fact, Invariant, Seen, Verdict};
use crate::Options;

pub(super) struct Fenced {
    /// The step that no worker runs.
    idle_step: Option<u16>,
    started: BTreeMap<Token, (JobId, u16)>,
}

impl Fenced {
    pub(super) fn new(options: &Options) -> Self {
        Self { idle_step: options.idle_step(), started: BTreeMap::new() }
    }
}

impl Invariant for Fenced {
    fn name(&self) -> &'static str {
        "fenced"
    }

    fn see(&mut self, _: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        let Fact::Started { attempt, .. } = fact else { return Ok(()) };
        let what = (attempt.job, super::position(attempt));
        match self.started.insert(attempt.token, what) {
            None => Ok(()),
            Some(other) => Err(format!("{} began {what:?} after {other:?}", attempt.token)),
        }
    }

    fn finish(&mut self, seen: &Seen<'_>) -> Verdict {
        let mut accepted: BTreeMap<(JobId, u16), Token> = BTreeMap::new();
        let jobs: Vec<JobId> = self.started.values().map(|(job, _)| *job).collect();
        for at in 0..seen.nodes.len() {
            for job in &jobs {
                let Some(record) =
                    seen.on_disk(at, *job).filter(|_| !seen.nodes[at].disk.is_damaged())
                else {
                    continue;
                };
                for (step, control) in &record.controls {
                    let Progress::Succeeded { token, .. } = control.progress else { continue };
                    let ran = (*job, *step);
                    let left_out =
                        control.note.as_deref().is_some_and(|it| it.starts_with("left out"));
                    if left_out {
                        continue;
                    }
                    if self.idle_step != Some(*step) && self.started.get(&token) != Some(&ran) {
                        return Err(format!(
                            "{ran:?} was accepted of {token}, which never began it"
                        ));
                    }
                    let first = *accepted.entry((*job, *step)).or_insert(token);
                    if first != token {
                        return Err(format!("{ran:?}: {first} and {token} were both accepted"));
                    }
                }
            }
        }
        Ok(())
    }
}
