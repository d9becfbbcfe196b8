//! A pipeline as a person describes it, before it is known whether it can be.

use std::time::Duration;

use crate::{name::Name, requirement::Requirement, schedule::Schedule};

use super::{Backoff, Combine, Handling, KeyedLimit, PhaseInputMode, Quorum, Rate, Retention};
#[cfg(doc)]
use super::{Each, PhaseDef, PipelineDef};

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
    /// See [`PhaseDef::total_timeout`].
    pub total_timeout: Option<Duration>,
    /// See [`PhaseDef::input`].
    pub input: PhaseInputMode,
    /// See [`PhaseDef::wait_for`].
    pub wait_for: Option<Name>,
    /// See [`PhaseDef::rate`].
    pub rate: Option<Rate>,
    /// See [`PhaseDef::limit`].
    pub limit: Option<KeyedLimit>,
    /// See [`PhaseDef::each`].
    pub each: Option<EachInput>,
    /// See [`PhaseDef::when`].
    pub when: Option<String>,
    /// See [`PhaseDef::handling`].
    pub handling: Handling,
    /// See [`PhaseDef::requires`].
    pub requires: Vec<Requirement>,
    /// What undoes it when its job fails for good; by name, with settings, after nothing.
    pub compensate: Option<Box<PhaseInput>>,
}

/// What is done with each item, as a person describes it.
#[derive(Clone, Debug)]
pub struct EachInput {
    /// The phase that gives the items.
    pub of: Name,
    /// See [`Each::phases`].
    pub phases: Vec<PhaseInput>,
    /// See [`Each::tolerate_percent`].
    pub tolerate_percent: u8,
    /// See [`Each::combine`].
    pub combine: Combine,
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
            total_timeout: None,
            input: PhaseInputMode::Merge,
            wait_for: None,
            rate: None,
            limit: None,
            each: None,
            when: None,
            handling: Handling::default(),
            requires: Vec::new(),
            compensate: None,
        }
    }
}

/// A pipeline as a person describes it, but for its name and phases.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// See [`PipelineDef::replicas`].
    pub replicas: u8,
    /// See [`PipelineDef::accept`].
    pub accept: Quorum,
    /// See [`PipelineDef::execute`].
    pub execute: Quorum,
    /// See [`PipelineDef::timeout`].
    pub timeout: Option<Duration>,
    /// See [`PipelineDef::retention`].
    pub retention: Retention,
    /// See [`PipelineDef::fair_by`].
    pub fair_by: Option<String>,
    /// See [`PipelineDef::schedules`].
    pub schedules: Vec<Schedule>,
    /// See [`PipelineDef::input_schema`].
    pub input_schema: Option<String>,
    /// See [`PipelineDef::partitions`].
    pub partitions: u16,
}

impl Default for Settings {
    /// 3 replicas in the `available` preset.
    fn default() -> Self {
        Self {
            replicas: 3,
            accept: Quorum::Any,
            execute: Quorum::Any,
            timeout: None,
            retention: Retention::DEFAULT,
            fair_by: None,
            schedules: Vec::new(),
            input_schema: None,
            partitions: 1,
        }
    }
}
