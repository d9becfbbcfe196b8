//! ORDER: a phase starts only when all that it comes after are durable.

use carbonmesh_protocol::record::Progress;

use super::{Fact, Invariant, Seen, Verdict};

pub(super) struct Order;

impl Invariant for Order {
    fn name(&self) -> &'static str {
        "order"
    }

    fn see(&mut self, seen: &Seen<'_>, fact: &Fact<'_>) -> Verdict {
        let Fact::Started { attempt, .. } = fact else { return Ok(()) };
        let position: u16 = attempt.step.as_str()[1..].parse().expect("our own name");
        let (job, results) = (attempt.job, attempt.results.len());
        if results != usize::from(position) {
            return Err(format!("job {job} step {position} began with {results} results"));
        }
        let ended = |at: usize, step: u16| {
            let record = seen.on_disk(at, job).unwrap_or_default();
            let control = record.controls.get(&step);
            control.is_some_and(|it| matches!(it.progress, Progress::Succeeded { .. }))
        };
        for step in 0..position {
            if !(0..seen.nodes.len()).any(|at| ended(at, step)) {
                return Err(format!("job {job} step {position} began, step {step} is on no disk"));
            }
        }
        Ok(())
    }
}
