//! The checker, in the manner of Jepsen's total-queue: judges what was seen from outside.
//!
//! A job is counted where clients and the healed cluster say it is; what ran is what the workers
//! wrote down. Repetitions are allowed where a fault explains them, and only there; whether it does
//! is in `excuse`. Everything else is a violation.

mod excuse;
mod promises;
mod repeats;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;

use crate::history::{History, Outcome};

/// What a run did that it may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Crime {
    /// Acknowledged and gone, though a disk that held it was spared.
    Lost,
    /// Acknowledged, there, and not at its end though nothing was left to do.
    Stuck,
    /// Given up although no phase fails.
    Dead,
    /// A job that nobody asked for, or another's number under a job's id.
    Unexpected,
    /// Refused for good, and there.
    RefusedAndKept,
    /// One idempotency key, two jobs.
    KeySplit,
    /// Two ends of one phase were taken for its end, and nothing explains it.
    CompletedTwice,
    /// A phase ran once more than faults explain.
    ExtraRun,
    /// Something ran, or was unfinished, after the job's end had been seen.
    Resurrected,
    /// A phase was given a result that nobody had finished before.
    OutOfOrder,
    /// A result that is not what the instructions give.
    Corrupt,
    /// Two nodes hold different things for truth.
    Diverged,
    /// A node did what none may do, whatever happens to it.
    Offence,
}

impl Crime {
    pub(crate) const ALL: [Self; 13] = [
        Self::Lost,
        Self::Stuck,
        Self::Dead,
        Self::Unexpected,
        Self::RefusedAndKept,
        Self::KeySplit,
        Self::CompletedTwice,
        Self::ExtraRun,
        Self::Resurrected,
        Self::OutOfOrder,
        Self::Corrupt,
        Self::Diverged,
        Self::Offence,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Stuck => "stuck",
            Self::Dead => "given up",
            Self::Unexpected => "unexpected",
            Self::RefusedAndKept => "refused and kept",
            Self::KeySplit => "one key, two jobs",
            Self::CompletedTwice => "completed twice, unexplained",
            Self::ExtraRun => "run again, unexplained",
            Self::Resurrected => "resurrected",
            Self::OutOfOrder => "out of order",
            Self::Corrupt => "wrong result",
            Self::Diverged => "diverged",
            Self::Offence => "offences of nodes",
        }
    }
}

impl fmt::Display for Crime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One case.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Violation {
    pub(crate) crime: Crime,
    pub(crate) detail: String,
}

/// What is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Counts {
    /// Jobs that clients asked for, by what they heard in the end.
    pub(crate) invoked: usize,
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) failed: usize,
    /// Of unknown outcome, and there.
    pub(crate) recovered: usize,
    /// Acknowledged on fewer disks than were destroyed afterwards, and gone.
    pub(crate) lost_with_disk: usize,
    /// Jobs that are at their end.
    pub(crate) terminal: usize,
    /// Phases that ran, by how often.
    pub(crate) runs: BTreeMap<usize, usize>,
    /// Extra runs, by the fault that explains them.
    pub(crate) explained: BTreeMap<String, usize>,
    /// Phases of which two ends were acted upon, on two sides of a cut or after a loss.
    pub(crate) completed_twice: usize,
    /// Starts after an end was seen, which a fault explains.
    pub(crate) revived: usize,
}

/// What the checker finds.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Verdict {
    pub(crate) counts: Counts,
    pub(crate) violations: Vec<Violation>,
}

impl Verdict {
    fn add(&mut self, crime: Crime, detail: impl Into<String>) {
        self.violations.push(Violation { crime, detail: detail.into() });
    }

    pub(crate) fn count(&self, crime: Crime) -> usize {
        self.violations.iter().filter(|violation| violation.crime == crime).count()
    }
}

/// What clients know of one number.
#[derive(Clone, Debug, Default)]
struct Story {
    /// The ids that it was acknowledged with, each with when and on how many disks at first.
    acknowledged: BTreeMap<String, (u64, u32)>,
    unknown: usize,
    keyed: bool,
}

/// Judges a run.
pub(crate) fn check(history: &History) -> Verdict {
    let mut verdict = Verdict::default();
    let stories = stories(history);
    let ids = ids(history, &stories);
    count(history, &stories, &ids, &mut verdict.counts);
    promises::check(history, &stories, &ids, &mut verdict);
    repeats::check(history, &mut verdict);
    for offence in &history.offences {
        verdict.add(Crime::Offence, offence.clone());
    }
    verdict
}

fn stories(history: &History) -> BTreeMap<u64, Story> {
    let mut stories: BTreeMap<u64, Story> = BTreeMap::new();
    for op in &history.ops {
        let story = stories.entry(op.number).or_default();
        story.keyed = op.keyed;
        match &op.outcome {
            Outcome::Invoked => story.unknown += 1,
            Outcome::Ok { id, copies } => {
                story.unknown -= 1;
                story.acknowledged.entry(id.clone()).or_insert((op.at_ms, *copies));
            }
            Outcome::Failed(_) => story.unknown -= 1,
            // It stays what it is from the call on.
            Outcome::Unknown(_) => {}
        }
    }
    stories
}

/// Every id that anybody knows, by number.
fn ids(history: &History, stories: &BTreeMap<u64, Story>) -> BTreeMap<u64, BTreeSet<String>> {
    let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for (number, story) in stories {
        ids.entry(*number).or_default().extend(story.acknowledged.keys().cloned());
    }
    for run in &history.runs {
        ids.entry(run.number).or_default().insert(run.job.clone());
    }
    for (id, state) in &history.finals {
        if let Some(number) = state.number {
            ids.entry(number).or_default().insert(id.clone());
        }
    }
    ids
}

fn count(
    history: &History,
    stories: &BTreeMap<u64, Story>,
    ids: &BTreeMap<u64, BTreeSet<String>>,
    counts: &mut Counts,
) {
    counts.invoked = stories.len();
    for (number, story) in stories {
        match story {
            Story { acknowledged, .. } if !acknowledged.is_empty() => counts.acknowledged += 1,
            Story { unknown: 0, .. } => counts.failed += 1,
            _ => {
                counts.unknown += 1;
                counts.recovered +=
                    usize::from(ids.contains_key(number) && !ids[number].is_empty());
            }
        }
    }
    counts.terminal = history.finals.values().filter(|state| state.is_terminal()).count();
}
