//! Why a pipeline cannot be.

use thiserror::Error;

use crate::name::Name;

use super::MAX_PHASES;

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
    /// A place in the instructions is not named as it must be.
    #[error(
        "pipeline `{pipeline}`: {field} `{pointer}` is no JSON Pointer: it begins with `/`, as in `/tenant`"
    )]
    Pointer {
        /// The pipeline.
        pipeline: Name,
        /// Where.
        field: String,
        /// What was given.
        pointer: String,
    },
    /// A phase that waits for a signal has what only one that a worker runs can have.
    #[error(
        "pipeline `{pipeline}`: phases[{position}] waits for a signal, so it can have no {key}"
    )]
    Waits {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// What it has.
        key: &'static str,
    },
    /// A schedule cannot be.
    #[error("pipeline `{pipeline}`: schedules[{position}].{key}: {reason}")]
    Schedule {
        /// The pipeline.
        pipeline: Name,
        /// The position of the schedule, from 0.
        position: usize,
        /// Which part.
        key: &'static str,
        /// Why not, and what would do.
        reason: String,
    },
    /// A condition cannot be.
    #[error("pipeline `{pipeline}`: phases[{position}].when is no JMESPath expression: {reason}")]
    When {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// Why not.
        reason: String,
    },
    /// A phase for items cannot be.
    #[error("pipeline `{pipeline}`: phases[{position}].for_each: {reason}")]
    Each {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// Why not, and what would do.
        reason: String,
    },
    /// A mapping cannot be.
    #[error("pipeline `{pipeline}`: phases[{position}].{key} is no mapping: {reason}")]
    Mapping {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// Which.
        key: &'static str,
        /// Why not, and what would do.
        reason: String,
    },
    /// A name has a namespace that it may not have.
    #[error(
        "pipeline `{pipeline}`: phases[{position}].{key} is `{name}`: {reason}: leave the `/` and what is before it out"
    )]
    Namespace {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// Which name.
        key: &'static str,
        /// What it is.
        name: Name,
        /// Why not.
        reason: &'static str,
    },
    /// What undoes a phase cannot be.
    #[error("pipeline `{pipeline}`: phases[{position}].compensate: {reason}")]
    Compensate {
        /// The pipeline.
        pipeline: Name,
        /// The position of the phase, from 0.
        position: usize,
        /// Why not, and what would do.
        reason: String,
    },
    /// What undoes a phase cannot be.
    #[error("what compensates `{phase}`: {error}")]
    Undo {
        /// The phase.
        phase: Name,
        /// What is wrong.
        error: Box<PipelineError>,
    },
    /// The phases for items cannot be.
    #[error("what `{phase}` does with each item: {error}")]
    Within {
        /// The phase.
        phase: Name,
        /// What is wrong.
        error: Box<PipelineError>,
    },
    /// It has what needs one coordinator that sees all of its jobs.
    #[error(
        "pipeline `{pipeline}`: partitions is {partitions}, and it has {has}, which takes one coordinator for all \
         of its jobs: leave one of the two out"
    )]
    Partitions {
        /// The pipeline.
        pipeline: Name,
        /// How many were asked for.
        partitions: u16,
        /// What does not go with that.
        has: &'static str,
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
