//! ORDER: a phase starts only when all that it comes after are durable.

use carbonmesh_protocol::{id::JobId, message::Message, record::Progress};

use super::{Fact, Invariant, Seen, Verdict};

pub(super) struct Order;

impl Invariant for Order {
    fn name(&self) -> &'static str {
        "order"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        match fact {
            Fact::Sent { at, message: Message::Assign(assignment), .. } => {
                ended(seen, *at, assignment.job, assignment.step)
            }
            Fact::Started { at, attempt } => {
                let position = super::position(attempt);
                let (job, results) = (attempt.job, attempt.results.len());
                // What undoes others gets what these gave, too.
                let undoes = attempt.step.as_str().starts_with('u');
                if results != usize::from(position) && !undoes || results < usize::from(position) {
                    return Err(format!("job {job} step {position} began with {results} results"));
                }
                match seen.gives_itself(*at, attempt) {
                    true => ended(seen, *at, job, position),
                    false => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}

/// Whether all steps before one have ended on a coordinator's disk.
fn ended(seen: &Seen<'_>, at: usize, job: JobId, before: u16) -> Verdict {
    if seen.nodes[at].disk.is_damaged() {
        return Ok(());
    }
    let record = seen.on_disk(at, job).unwrap_or_default();
    for step in 0..before {
        let control = record.controls.get(&step);
        if !control.is_some_and(|it| matches!(it.progress, Progress::Succeeded { .. })) {
            return Err(format!(
                "n{at} gives job {job} step {before} away, step {step} is not on disk"
            ));
        }
    }
    Ok(())
}
