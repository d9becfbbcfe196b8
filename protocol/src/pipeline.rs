//! What a pipeline is: its phases, what each comes after, and how careful the cluster is with it.
//!
//! A definition never changes: `apply` adds a revision, and a job keeps the one it was enqueued
//! with. The phases form a directed acyclic graph, kept in an order in which each phase stands
//! behind all that it comes after.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{codec, id::PipelineId, name::Name};

/// The most phases that one pipeline may have.
pub const MAX_PHASES: usize = 256;

/// The longest time-out or wait that a phase may have.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// The most copies that a pipeline may ask for.
pub const MAX_REPLICAS: u8 = 9;

/// How many of a pipeline's replicas must agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quorum {
    /// Those that can be reached, at least one.
    #[default]
    Any,
    /// More than half of the view.
    Majority,
}

/// How long the next attempt of a failed phase waits: `initial`, then twice as long each time, up to
/// `max`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait before the second attempt.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Backoff {
    /// One second, then doubling up to one minute.
    pub const DEFAULT: Self =
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(60) };

    /// The wait after `failed` failed attempts.
    pub fn after(&self, failed: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failed.saturating_sub(1).min(30));
        self.initial.saturating_mul(doubled).min(self.max)
    }
}

/// One step of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PhaseDef {
    /// Its name within the pipeline.
    pub name: Name,
    /// What a worker must offer to run it; most often the same as `name`.
    pub phase: Name,
    /// Positions, in the pipeline's list, of the phases that must have succeeded before.
    pub after: Vec<u16>,
    /// How often it is tried before the job becomes a dead letter, at least 1.
    pub max_attempts: u32,
    /// How long a retry waits.
    pub backoff: Backoff,
    /// How long one attempt may run; without it, the worker's own limit holds.
    pub timeout: Option<Duration>,
}

/// Identifies one definition by its content.
pub type Revision = u64;

/// A pipeline as the cluster knows it; made valid by [`PipelineDef::new`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PipelineDef {
    /// Its name in the cluster.
    pub name: Name,
    /// Its phases; each stands behind all that it comes after.
    pub phases: Vec<PhaseDef>,
    /// How many nodes keep its jobs.
    pub replicas: u8,
    /// How many copies must be on disk before a job is acknowledged.
    pub accept: Quorum,
    /// How many replicas must back the coordinator before it dispatches.
    pub execute: Quorum,
}

/// The pipeline cannot be. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PipelineError {
    /// A pipeline does something.
    #[error("pipeline `{0}` has no phases: give at least one")]
    NoPhases(Name),
    /// Too many.
    #[error("pipeline `{pipeline}` has {count} phases: at most {MAX_PHASES} are allowed")]
    TooManyPhases {
        /// The pipeline.
        pipeline: Name,
        /// How many it has.
        count: usize,
    },
    /// Two phases share a name.
    #[error(
        "pipeline `{pipeline}`: phases[{position}].name `{phase}` is taken by an earlier phase"
    )]
    DuplicatePhase {
        /// The pipeline.
        pipeline: Name,
        /// The name.
        phase: Name,
        /// The position of the second, from 0.
        position: usize,
    },
    /// `after` names a phase that is not there.
    #[error(
        "pipeline `{pipeline}`: phases[{position}].after names `{missing}`, which is no phase of it"
    )]
    UnknownAfter {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// What is missing.
        missing: Name,
    },
    /// Phases wait for each other.
    #[error("pipeline `{pipeline}`: phase `{phase}` comes after itself, by way of {cycle}")]
    Cycle {
        /// The pipeline.
        pipeline: Name,
        /// A phase on the cycle.
        phase: Name,
        /// The way round, as text.
        cycle: String,
    },
    /// A number is out of range.
    #[error("pipeline `{pipeline}`: {field} is {value}: allowed are {allowed}")]
    OutOfRange {
        /// The pipeline.
        pipeline: Name,
        /// Where.
        field: String,
        /// What was given.
        value: u64,
        /// What would do.
        allowed: String,
    },
}

/// A phase as a person describes it, before positions are known.
#[derive(Clone, Debug)]
pub struct PhaseInput {
    /// See [`PhaseDef::name`].
    pub name: Name,
    /// See [`PhaseDef::phase`].
    pub phase: Name,
    /// Names of earlier phases; `None` means the one before in the list.
    pub after: Option<Vec<Name>>,
    /// See [`PhaseDef::max_attempts`].
    pub max_attempts: u32,
    /// See [`PhaseDef::backoff`].
    pub backoff: Backoff,
    /// See [`PhaseDef::timeout`].
    pub timeout: Option<Duration>,
}

impl PhaseInput {
    /// A phase with the usual settings: 3 attempts, the default backoff, after the one before.
    pub fn named(name: Name) -> Self {
        Self {
            phase: name.clone(),
            name,
            after: None,
            max_attempts: 3,
            backoff: Backoff::DEFAULT,
            timeout: None,
        }
    }
}

impl PipelineDef {
    /// A valid pipeline with 3 replicas in the `available` preset.
    ///
    /// # Errors
    /// Whatever [`with`](Self::with) finds.
    pub fn new(name: Name, phases: Vec<PhaseInput>) -> Result<Self, PipelineError> {
        Self::with(name, phases, 3, Quorum::Any, Quorum::Any)
    }

    /// A valid pipeline: names are unique, `after` leads nowhere in circles, numbers are in range.
    ///
    /// # Errors
    /// Says which field cannot be, and what would do.
    pub fn with(
        name: Name,
        phases: Vec<PhaseInput>,
        replicas: u8,
        accept: Quorum,
        execute: Quorum,
    ) -> Result<Self, PipelineError> {
        in_range(&name, || "replicas".into(), replicas.into(), 1, MAX_REPLICAS.into())?;
        if phases.is_empty() {
            return Err(PipelineError::NoPhases(name));
        }
        if phases.len() > MAX_PHASES {
            return Err(PipelineError::TooManyPhases { pipeline: name, count: phases.len() });
        }
        let after = positions(&name, &phases)?;
        for (position, phase) in phases.iter().enumerate() {
            let field = || format!("phases[{position}].max_attempts");
            in_range(&name, field, phase.max_attempts.into(), 1, 1000)?;
            let waits = [
                ("timeout", phase.timeout.unwrap_or_default()),
                ("backoff.initial", phase.backoff.initial),
                ("backoff.max", phase.backoff.max),
            ];
            for (what, wait) in waits {
                let field = || format!("phases[{position}].{what} in seconds");
                in_range(&name, field, wait.as_secs(), 0, MAX_DURATION.as_secs())?;
            }
        }
        let order = topological(&name, &phases, &after)?;
        let place = |old: usize| order.iter().position(|&at| at == old).unwrap_or_default() as u16;
        let phases = order
            .iter()
            .map(|&at| {
                let PhaseInput { name, phase, max_attempts, backoff, timeout, .. } =
                    phases[at].clone();
                let mut after: Vec<u16> = after[at].iter().map(|&before| place(before)).collect();
                after.sort_unstable();
                PhaseDef { name, phase, after, max_attempts, backoff, timeout }
            })
            .collect();
        Ok(Self { name, phases, replicas, accept, execute })
    }

    /// Whether [`with`](Self::with) can have made it: for definitions that came from elsewhere.
    pub fn is_valid(&self) -> bool {
        let names: BTreeSet<&Name> = self.phases.iter().map(|phase| &phase.name).collect();
        let sound = |(position, phase): (usize, &PhaseDef)| {
            let waits =
                [phase.timeout.unwrap_or_default(), phase.backoff.initial, phase.backoff.max];
            phase.max_attempts >= 1
                && waits.iter().all(|wait| *wait <= MAX_DURATION)
                && phase.after.iter().all(|at| usize::from(*at) < position)
        };
        (1..=MAX_PHASES).contains(&self.phases.len())
            && names.len() == self.phases.len()
            && (1..=MAX_REPLICAS).contains(&self.replicas)
            && self.phases.iter().enumerate().all(sound)
    }

    /// Whether only a coordinator that a majority backs may take or dispatch jobs.
    pub fn is_strict(&self) -> bool {
        (self.accept, self.execute) == (Quorum::Majority, Quorum::Majority)
    }

    /// The pipeline's identity.
    pub fn id(&self) -> PipelineId {
        PipelineId::of_name(self.name.as_str())
    }

    /// What names this very definition.
    pub fn revision(&self) -> Revision {
        xxhash_rust::xxh3::xxh3_64(&codec::encode_body(self))
    }

    /// All phases that `phase` comes after, directly or not, in order.
    pub fn ancestors(&self, phase: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::new();
        let mut open = vec![phase];
        while let Some(at) = open.pop() {
            for &before in &self.phases[at].after {
                if found.insert(usize::from(before)) {
                    open.push(before.into());
                }
            }
        }
        found
    }
}

fn in_range(
    pipeline: &Name,
    field: impl FnOnce() -> String,
    value: u64,
    low: u64,
    high: u64,
) -> Result<(), PipelineError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(PipelineError::OutOfRange {
        pipeline: pipeline.clone(),
        field: field(),
        value,
        allowed: format!("{low} to {high}"),
    })
}

/// For each phase the positions of those it comes after.
fn positions(pipeline: &Name, phases: &[PhaseInput]) -> Result<Vec<Vec<usize>>, PipelineError> {
    let find = |name: &Name| phases.iter().position(|phase| phase.name == *name);
    let mut all = Vec::with_capacity(phases.len());
    for (position, phase) in phases.iter().enumerate() {
        if find(&phase.name) != Some(position) {
            return Err(PipelineError::DuplicatePhase {
                pipeline: pipeline.clone(),
                phase: phase.name.clone(),
                position,
            });
        }
        let mut after = BTreeSet::new();
        match &phase.after {
            None => after.extend(position.checked_sub(1)),
            Some(names) => {
                for name in names {
                    after.insert(find(name).ok_or_else(|| PipelineError::UnknownAfter {
                        pipeline: pipeline.clone(),
                        position,
                        missing: name.clone(),
                    })?);
                }
            }
        }
        all.push(after.into_iter().collect());
    }
    Ok(all)
}

/// An order in which each phase stands behind all that it comes after, otherwise as given.
fn topological(
    pipeline: &Name,
    phases: &[PhaseInput],
    after: &[Vec<usize>],
) -> Result<Vec<usize>, PipelineError> {
    let mut order: Vec<usize> = Vec::with_capacity(phases.len());
    while order.len() < phases.len() {
        let next = (0..phases.len()).find(|at| {
            !order.contains(at) && after[*at].iter().all(|before| order.contains(before))
        });
        match next {
            Some(at) => order.push(at),
            None => return Err(cycle(pipeline, phases, after, &order)),
        }
    }
    Ok(order)
}

fn cycle(
    pipeline: &Name,
    phases: &[PhaseInput],
    after: &[Vec<usize>],
    sorted: &[usize],
) -> PipelineError {
    // Each phase that could not be sorted has one before it that could not: walking back repeats.
    let mut way: Vec<usize> = Vec::new();
    let mut at = (0..phases.len()).find(|at| !sorted.contains(at)).unwrap_or_default();
    while !way.contains(&at) {
        way.push(at);
        at = after[at].iter().copied().find(|before| !sorted.contains(before)).unwrap_or(at);
    }
    let mut names: Vec<&str> = way
        .iter()
        .skip_while(|&&step| step != at)
        .map(|&step| phases[step].name.as_str())
        .collect();
    names.push(phases[at].name.as_str());
    PipelineError::Cycle {
        pipeline: pipeline.clone(),
        phase: phases[at].name.clone(),
        cycle: names.join(" after "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().expect("a valid name")
    }

    fn phase(text: &str, after: &[&str]) -> PhaseInput {
        PhaseInput {
            after: Some(after.iter().map(|at| name(at)).collect()),
            ..PhaseInput::named(name(text))
        }
    }

    #[test]
    fn phases_without_after_form_a_chain() {
        let phases = ["a", "b", "c"].map(|text| PhaseInput::named(name(text))).to_vec();
        let pipeline = PipelineDef::new(name("p"), phases).expect("valid");
        let after: Vec<_> = pipeline.phases.iter().map(|phase| phase.after.clone()).collect();
        assert_eq!(after, [vec![], vec![0], vec![1]]);
    }

    #[test]
    fn a_diamond_is_sorted_and_knows_its_ancestors() {
        let phases = vec![
            phase("end", &["l", "r"]),
            phase("l", &["s"]),
            phase("r", &["s"]),
            phase("s", &[]),
        ];
        let pipeline = PipelineDef::new(name("p"), phases).expect("valid");
        let names: Vec<_> = pipeline.phases.iter().map(|phase| phase.name.as_str()).collect();
        assert_eq!(names, ["s", "l", "r", "end"]);
        assert_eq!(pipeline.ancestors(3), BTreeSet::from([0, 1, 2]));
    }

    #[test]
    fn a_cycle_is_shown_with_the_way_round() {
        let phases = vec![phase("a", &["b"]), phase("b", &["c"]), phase("c", &["b"])];
        let error = PipelineDef::new(name("p"), phases).expect_err("a cycle");
        assert_eq!(
            error.to_string(),
            "pipeline `p`: phase `b` comes after itself, by way of b after c after b"
        );
    }

    #[test]
    fn duplicate_and_unknown_names_are_refused_with_the_place() {
        let twice = vec![phase("a", &[]), phase("a", &[])];
        assert!(matches!(
            PipelineDef::new(name("p"), twice),
            Err(PipelineError::DuplicatePhase { position: 1, .. })
        ));
        let unknown = vec![phase("a", &["z"])];
        assert!(matches!(
            PipelineDef::new(name("p"), unknown),
            Err(PipelineError::UnknownAfter { position: 0, .. })
        ));
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let waits = [1, 2, 3, 7, 40].map(|failed| Backoff::DEFAULT.after(failed).as_secs());
        assert_eq!(waits, [1, 2, 4, 60, 60]);
    }
}
