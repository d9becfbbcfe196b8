//! What a pipeline is: its phases, what each comes after, and how careful the cluster is with it.
//!
//! A definition never changes: `apply` adds a revision, and a job keeps the one it was enqueued
//! with. The phases form a directed acyclic graph, kept in an order in which each phase stands
//! behind all that it comes after.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    codec, condition,
    id::PipelineId,
    mapping,
    name::Name,
    record::JobSpec,
    schedule::{MAX_SCHEDULES, Schedule},
};

/// The most phases that one pipeline may have.
pub const MAX_PHASES: usize = 256;

/// How deep phases for items may lie within each other.
pub const MAX_DEPTH: usize = 4;

/// The longest time-out or wait that a phase may have.
pub const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

/// The longest time that a job may take, or be kept for.
pub const MAX_AGE: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

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
/// `max`, less a random part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Backoff {
    /// The wait before the second attempt.
    pub initial: Duration,
    /// The longest wait.
    pub max: Duration,
    /// How much of each wait is left to chance, in percent: what failed at one moment should not
    /// come back at one moment.
    pub jitter_percent: u8,
}

impl Backoff {
    /// One second, then doubling up to one minute, each up to a tenth shorter.
    pub const DEFAULT: Self =
        Self { initial: Duration::from_secs(1), max: Duration::from_secs(60), jitter_percent: 10 };

    /// The longest wait after `failed` failed attempts.
    pub fn after(&self, failed: u32) -> Duration {
        let doubled = 2u32.saturating_pow(failed.saturating_sub(1).min(30));
        self.initial.saturating_mul(doubled).min(self.max)
    }

    /// The wait after `failed` failed attempts; `chance` is any number, drawn anew each time.
    pub fn wait(&self, failed: u32, chance: u64) -> Duration {
        let longest = self.after(failed);
        let part = longest * u32::from(self.jitter_percent.min(100)) / 100;
        let shorter = chance % (part.as_millis() as u64 + 1);
        longest - Duration::from_millis(shorter).min(longest)
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
    /// How long one attempt may run; without it, the worker's own limit holds. Of a phase that waits
    /// for a signal, how long it waits.
    pub timeout: Option<Duration>,
    /// How long after its first attempt began the phase may be tried again.
    pub total_timeout: Option<Duration>,
    /// What it gets to work on.
    pub input: PhaseInputMode,
    /// The signal whose data is its result; no worker is needed then.
    pub wait_for: Option<Name>,
    /// How many attempts may begin in a time.
    pub rate: Option<Rate>,
    /// How many attempts there may be at once for jobs that have one value in common.
    pub limit: Option<KeyedLimit>,
    /// What is done with each item that a phase before gave; no worker runs the phase itself then.
    pub each: Option<Box<Each>>,
    /// What has to hold for it to run; else it is left out, as if it had given nothing.
    pub when: Option<String>,
    /// How its worker goes about it.
    pub handling: Handling,
    /// Of a phase that undoes another: the position of that one among the pipeline's own.
    pub undoes: Option<u16>,
}

/// How a worker goes about a phase, beside how long it may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Handling {
    /// What an attempt gets, made of the instructions and the results by name: a JMESPath expression.
    pub input: Option<String>,
    /// What counts of what an attempt gave: a JMESPath expression.
    pub output: Option<String>,
    /// How long an attempt may be silent; then it has failed.
    pub heartbeat: Option<Duration>,
}

/// What is done with each item that a phase gave: a pipeline within the pipeline.
///
/// Each item becomes a job of its own, whose instructions it is. The phase is over when all of these
/// are; what they gave goes, combined, to the phases right behind it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Each {
    /// The position of the phase that gives the items.
    pub of: u16,
    /// What an item goes through; each phase stands behind all that it comes after.
    pub phases: Vec<PhaseDef>,
    /// How many items of a hundred may fail; one more, and the job fails.
    pub tolerate_percent: u8,
    /// How what the items gave is put together.
    pub combine: Combine,
}

/// How what items gave is put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// By key: an object with each key that any result has, and the list of its values.
    #[default]
    Group,
    /// The list of results, in the order of the items; of those that failed there is none.
    List,
}

impl PhaseDef {
    /// Whether a worker runs it.
    pub fn has_worker(&self) -> bool {
        self.wait_for.is_none() && self.each.is_none()
    }
}

/// Whether a phase is to give items.
pub fn gives_items(phases: &[PhaseDef], step: u16) -> bool {
    phases.iter().any(|phase| phase.each.as_ref().is_some_and(|each| each.of == step))
}

/// All phases that `phase` comes after, directly or not, in order.
pub fn ancestors(phases: &[PhaseDef], phase: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open = vec![phase];
    while let Some(at) = open.pop() {
        for &before in &phases[at].after {
            if found.insert(usize::from(before)) {
                open.push(before.into());
            }
        }
    }
    found
}

/// What a phase gets to work on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseInputMode {
    /// The instructions, with the results of all phases before merged into them.
    #[default]
    Merge,
    /// The results of the phases right before, merged; the instructions only where there are none.
    Replace,
    /// The instructions and each result of a phase before, under its name.
    Named,
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u32,
    /// In which time.
    pub per: Duration,
}

/// So many at once for each value of a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyedLimit {
    /// Where in the instructions the value stands: a JSON Pointer (RFC 6901).
    pub key: String,
    /// How many at once, at least 1.
    pub running: u32,
}

/// How long finished jobs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Keep {
    /// For how long after their end; `None` for ever.
    pub age: Option<Duration>,
    /// How many at most: the oldest go first; `None` for any number.
    pub count: Option<u64>,
}

impl Keep {
    const fn days(days: u64) -> Self {
        Self { age: Some(Duration::from_secs(days * 24 * 3600)), count: None }
    }
}

/// How long finished jobs are kept, by how they ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Retention {
    /// Those that succeeded.
    pub succeeded: Keep,
    /// Dead letters.
    pub dead: Keep,
    /// Those that were cancelled.
    pub cancelled: Keep,
}

impl Retention {
    /// A week; dead letters 30 days.
    pub const DEFAULT: Self =
        Self { succeeded: Keep::days(7), dead: Keep::days(30), cancelled: Keep::days(7) };
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
    /// How long a job may take from when it is enqueued; then it is a dead letter.
    pub timeout: Option<Duration>,
    /// How long finished jobs are kept.
    pub retention: Retention,
    /// Where in the instructions stands whose job it is (JSON Pointer, RFC 6901): of what waits,
    /// each owner's jobs come in turn.
    pub fair_by: Option<String>,
    /// Jobs that it enqueues by itself.
    pub schedules: Vec<Schedule>,
    /// What undoes phases of a job that has failed for good, each behind the one before: those of
    /// the last phases come first.
    pub compensations: Vec<PhaseDef>,
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
        }
    }
}

impl PipelineDef {
    /// A valid pipeline with the usual settings.
    ///
    /// # Errors
    /// Whatever [`with`](Self::with) finds.
    pub fn new(name: Name, phases: Vec<PhaseInput>) -> Result<Self, PipelineError> {
        Self::with(name, phases, Settings::default())
    }

    /// A valid pipeline: names are unique, `after` leads nowhere in circles, numbers are in range.
    ///
    /// # Errors
    /// Says which field cannot be, and what would do.
    pub fn with(
        name: Name,
        phases: Vec<PhaseInput>,
        settings: Settings,
    ) -> Result<Self, PipelineError> {
        let Settings { replicas, accept, execute, timeout, retention, fair_by, schedules } =
            settings;
        in_range(&name, || "replicas".into(), replicas.into(), 1, MAX_REPLICAS.into())?;
        let inputs = phases.clone();
        let phases = define(&name, phases, 1)?;
        let compensations = define_compensations(&name, &inputs, &phases)?;
        check_names(&name, &phases, &compensations)?;
        for (what, wait) in settings_waits(timeout, &retention) {
            in_range(&name, || format!("{what} in seconds"), wait.as_secs(), 0, MAX_AGE.as_secs())?;
        }
        if let Some(pointer) = &fair_by {
            check_pointer(&name, || "fair_by".to_owned(), pointer)?;
        }
        check_schedules(&name, &schedules)?;
        Ok(Self {
            name,
            phases,
            replicas,
            accept,
            execute,
            timeout,
            retention,
            fair_by,
            schedules,
            compensations,
        })
    }

    /// Whether [`with`](Self::with) can have made it: for definitions that came from elsewhere.
    pub fn is_valid(&self) -> bool {
        are_sound(&self.phases, 1)
            && are_compensations(&self.compensations, &self.phases)
            && check_names(&self.name, &self.phases, &self.compensations).is_ok()
            && (1..=MAX_REPLICAS).contains(&self.replicas)
            && self.schedules.len() <= MAX_SCHEDULES
            && settings_waits(self.timeout, &self.retention).all(|(_, wait)| wait <= MAX_AGE)
    }

    /// The phases that a job goes through.
    pub fn phases_of(&self, job: &JobSpec) -> Option<&[PhaseDef]> {
        match &job.compensates {
            Some(_) => Some(&self.compensations),
            None => self.body(job.path()),
        }
    }

    /// The pipeline's own phases, or those for items, by the way to these.
    pub fn body(&self, path: &[u16]) -> Option<&[PhaseDef]> {
        let mut phases = &self.phases;
        for step in path {
            phases = &phases.get(usize::from(*step))?.each.as_ref()?.phases;
        }
        Some(phases)
    }

    /// All phases that do something by themselves, those for items among them.
    pub fn all_phases(&self) -> Vec<&PhaseDef> {
        fn add<'a>(phases: &'a [PhaseDef], all: &mut Vec<&'a PhaseDef>) {
            for phase in phases {
                match &phase.each {
                    Some(each) => add(&each.phases, all),
                    None => all.push(phase),
                }
            }
        }
        let mut all = Vec::new();
        add(&self.phases, &mut all);
        add(&self.compensations, &mut all);
        all
    }

    /// The phase of that name that does something by itself.
    pub fn named(&self, step: &Name) -> Option<&PhaseDef> {
        fn find<'a>(phases: &'a [PhaseDef], step: &Name) -> Option<&'a PhaseDef> {
            phases.iter().find_map(|phase| match &phase.each {
                Some(each) => find(&each.phases, step),
                None => Some(phase).filter(|phase| phase.name == *step),
            })
        }
        find(&self.phases, step).or_else(|| find(&self.compensations, step))
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
}

/// Phases in an order in which each stands behind all that it comes after, with what is in range.
fn define(
    name: &Name,
    phases: Vec<PhaseInput>,
    depth: usize,
) -> Result<Vec<PhaseDef>, PipelineError> {
    if phases.is_empty() {
        return Err(PipelineError::NoPhases(name.clone()));
    }
    if phases.len() > MAX_PHASES {
        return Err(PipelineError::TooManyPhases { pipeline: name.clone(), count: phases.len() });
    }
    let after = positions(name, &phases)?;
    for (position, phase) in phases.iter().enumerate() {
        let field = || format!("phases[{position}].max_attempts");
        in_range(name, field, phase.max_attempts.into(), 1, 1000)?;
        let waits = [
            ("timeout", phase.timeout.unwrap_or_default()),
            ("total_timeout", phase.total_timeout.unwrap_or_default()),
            ("backoff.initial", phase.backoff.initial),
            ("backoff.max", phase.backoff.max),
            ("rate.per", phase.rate.map_or(Duration::ZERO, |rate| rate.per)),
            ("heartbeat_timeout", phase.handling.heartbeat.unwrap_or_default()),
        ];
        for (what, wait) in waits {
            let field = || format!("phases[{position}].{what} in seconds");
            in_range(name, field, wait.as_secs(), 0, MAX_DURATION.as_secs())?;
        }
        let field = || format!("phases[{position}].backoff.jitter in percent");
        in_range(name, field, phase.backoff.jitter_percent.into(), 0, 100)?;
        check_limits(name, position, phase)?;
        check_handling(name, position, phase)?;
        if depth > 1 && phase.compensate.is_some() {
            let reason = "what is done with single items cannot be undone by itself: say at the \
                          phase that has these what undoes all of it";
            let (pipeline, reason) = (name.clone(), reason.to_owned());
            return Err(PipelineError::Compensate { pipeline, position, reason });
        }
        if let Some(when) = &phase.when {
            condition::check(when).map_err(|reason| PipelineError::When {
                pipeline: name.clone(),
                position,
                reason,
            })?;
        }
    }
    let order = topological(name, &phases, &after)?;
    let place = |old: usize| order.iter().position(|&at| at == old).unwrap_or_default() as u16;
    let mut defined = Vec::with_capacity(phases.len());
    for &at in &order {
        let input = phases[at].clone();
        let mut behind: Vec<u16> = after[at].iter().map(|&before| place(before)).collect();
        behind.sort_unstable();
        let each = match input.each {
            Some(each) => {
                let of = phases.iter().position(|phase| phase.name == each.of);
                let giver =
                    of.filter(|of| phases[*of].each.is_none() && phases[*of].wait_for.is_none());
                let reason = match giver {
                    None => "only a phase that a worker runs gives items",
                    Some(_) if depth >= MAX_DEPTH => {
                        "phases for items lie too deep within each other"
                    }
                    Some(_) => "",
                };
                if !reason.is_empty() {
                    let (pipeline, reason) = (name.clone(), reason.to_owned());
                    return Err(PipelineError::Each { pipeline, position: at, reason });
                }
                let field = || format!("phases[{at}].tolerate in percent");
                in_range(name, field, each.tolerate_percent.into(), 0, 100)?;
                let within = define(name, each.phases.clone(), depth + 1);
                let phases = within.map_err(|error| PipelineError::Within {
                    phase: input.name.clone(),
                    error: Box::new(error),
                })?;
                if phases.last().is_some_and(|last| last.each.is_some()) {
                    let reason = "the last of its phases is for items itself, and what these give \
                                  would go nowhere: put a phase behind it";
                    let (pipeline, reason) = (name.clone(), reason.to_owned());
                    return Err(PipelineError::Each { pipeline, position: at, reason });
                }
                let EachInput { tolerate_percent, combine, .. } = each;
                let of = place(giver.unwrap_or_default());
                Some(Box::new(Each { of, phases, tolerate_percent, combine }))
            }
            None => None,
        };
        defined.push(PhaseDef {
            name: input.name,
            phase: input.phase,
            after: behind,
            max_attempts: input.max_attempts,
            backoff: input.backoff,
            timeout: input.timeout,
            total_timeout: input.total_timeout,
            input: input.input,
            wait_for: input.wait_for,
            rate: input.rate,
            limit: input.limit,
            each,
            when: input.when,
            handling: input.handling,
            undoes: None,
        });
    }
    Ok(defined)
}

/// What undoes phases, in the order in which it runs.
fn define_compensations(
    name: &Name,
    inputs: &[PhaseInput],
    phases: &[PhaseDef],
) -> Result<Vec<PhaseDef>, PipelineError> {
    let mut defined: Vec<PhaseDef> = Vec::new();
    for (at, phase) in phases.iter().enumerate().rev() {
        let Some(position) = inputs.iter().position(|input| input.name == phase.name) else {
            continue;
        };
        let Some(undo) = &inputs[position].compensate else { continue };
        let more = undo.after.is_some()
            || undo.each.is_some()
            || undo.wait_for.is_some()
            || undo.when.is_some()
            || undo.input != PhaseInputMode::default()
            || undo.compensate.is_some();
        let reason = match () {
            () if phase.wait_for.is_some() => {
                "the phase waits for a signal, and does nothing that could be undone"
            }
            () if more => "a worker runs it, alone and in its turn: say only how it is run",
            () => "",
        };
        if !reason.is_empty() {
            let (pipeline, reason) = (name.clone(), reason.to_owned());
            return Err(PipelineError::Compensate { pipeline, position, reason });
        }
        let alone = PhaseInput { after: Some(Vec::new()), ..(**undo).clone() };
        let alone = define(name, vec![alone], 1).map_err(|error| PipelineError::Undo {
            phase: phase.name.clone(),
            error: error.into(),
        })?;
        let after: Vec<u16> =
            defined.len().checked_sub(1).map(|at| at as u16).into_iter().collect();
        defined.extend(alone.into_iter().map(|undo| PhaseDef {
            after: after.clone(),
            undoes: Some(at as u16),
            ..undo
        }));
    }
    Ok(defined)
}

/// Whether [`define_compensations`] can have made these.
fn are_compensations(compensations: &[PhaseDef], phases: &[PhaseDef]) -> bool {
    let undoes = compensations.iter().map(|undo| undo.undoes.map_or(usize::MAX, usize::from));
    let in_turn = undoes.clone().zip(undoes.skip(1)).all(|(one, next)| next < one);
    let sound = |(at, undo): (usize, &PhaseDef)| {
        let undone = undo.undoes.and_then(|at| phases.get(usize::from(at)));
        undone.is_some_and(|phase| phase.wait_for.is_none())
            && undo.has_worker()
            && undo.when.is_none()
            && undo.after.iter().map(|at| usize::from(*at)).eq(at.checked_sub(1))
    };
    compensations.is_empty()
        || in_turn && are_sound(compensations, 1) && compensations.iter().enumerate().all(sound)
}

/// Whether [`define`] can have made these.
fn are_sound(phases: &[PhaseDef], depth: usize) -> bool {
    let sound = |(position, phase): (usize, &PhaseDef)| {
        let waits = [
            phase.timeout.unwrap_or_default(),
            phase.total_timeout.unwrap_or_default(),
            phase.backoff.initial,
            phase.backoff.max,
            phase.rate.map_or(Duration::ZERO, |rate| rate.per),
            phase.handling.heartbeat.unwrap_or_default(),
        ];
        let mappings = [&phase.handling.input, &phase.handling.output];
        let each = |each: &Each| {
            let giver = phases.get(usize::from(each.of)).is_some_and(PhaseDef::has_worker);
            giver
                && phase.after.contains(&each.of)
                && each.tolerate_percent <= 100
                && each.phases.last().is_some_and(|last| last.each.is_none())
                && are_sound(&each.phases, depth + 1)
        };
        phase.max_attempts >= 1
            && phase.backoff.jitter_percent <= 100
            && phase.rate.is_none_or(|rate| rate.count >= 1 && !rate.per.is_zero())
            && phase.limit.as_ref().is_none_or(|limit| limit.running >= 1)
            && waits.iter().all(|wait| *wait <= MAX_DURATION)
            && phase.after.iter().all(|at| usize::from(*at) < position)
            && phase.each.as_deref().is_none_or(each)
            && phase.when.as_ref().is_none_or(|when| condition::check(when).is_ok())
            && mappings.into_iter().flatten().all(|it| mapping::check(it).is_ok())
            && (phase.has_worker() || phase.handling == Handling::default())
    };
    (1..=MAX_PHASES).contains(&phases.len())
        && depth <= MAX_DEPTH
        && phases.iter().enumerate().all(sound)
}

/// Names tell phases apart, wherever these lie; only a phase for items may be called like what it does.
fn check_names(
    pipeline: &Name,
    phases: &[PhaseDef],
    compensations: &[PhaseDef],
) -> Result<(), PipelineError> {
    fn check<'a>(
        phases: &'a [PhaseDef],
        like: Option<&Name>,
        taken: &mut BTreeSet<&'a Name>,
    ) -> Result<(), &'a Name> {
        for phase in phases {
            if Some(&phase.name) != like && !taken.insert(&phase.name) {
                return Err(&phase.name);
            }
            if let Some(each) = &phase.each {
                let like = Some(&phase.name).filter(|_| each.phases.len() == 1);
                check(&each.phases, like, taken)?;
            }
        }
        Ok(())
    }
    let mut taken = BTreeSet::new();
    let checked = check(phases, None, &mut taken);
    checked.and_then(|()| check(compensations, None, &mut taken)).map_err(|name| {
        let mut all = phases.iter().chain(compensations);
        let position = all.position(|phase| phase.name == *name).unwrap_or_default();
        PipelineError::DuplicatePhase { pipeline: pipeline.clone(), phase: name.clone(), position }
    })
}

/// What a pipeline as a whole may wait or keep.
fn settings_waits(
    timeout: Option<Duration>,
    retention: &Retention,
) -> impl Iterator<Item = (&'static str, Duration)> {
    let ages = [
        ("timeout", timeout),
        ("retention.succeeded", retention.succeeded.age),
        ("retention.dead", retention.dead.age),
        ("retention.cancelled", retention.cancelled.age),
    ];
    ages.into_iter().map(|(what, age)| (what, age.unwrap_or_default()))
}

fn check_limits(pipeline: &Name, position: usize, phase: &PhaseInput) -> Result<(), PipelineError> {
    let most = u64::from(u32::MAX);
    if let Some(rate) = phase.rate {
        let field = |key: &'static str| move || format!("phases[{position}].rate.{key}");
        in_range(pipeline, field("count"), rate.count.into(), 1, most)?;
        let per = u64::try_from(rate.per.as_millis()).unwrap_or(u64::MAX);
        in_range(pipeline, field("per in ms"), per, 1, u64::MAX)?;
    }
    if let Some(limit) = &phase.limit {
        let field = || format!("phases[{position}].limit.running");
        in_range(pipeline, field, limit.running.into(), 1, most)?;
        check_pointer(pipeline, || format!("phases[{position}].limit.key"), &limit.key)?;
    }
    let has = [
        ("total_timeout", phase.total_timeout.is_some()),
        ("rate", phase.rate.is_some()),
        ("limit", phase.limit.is_some()),
    ];
    match has.into_iter().find(|(_, has)| *has && phase.wait_for.is_some()) {
        Some((key, _)) => Err(PipelineError::Waits { pipeline: pipeline.clone(), position, key }),
        None => Ok(()),
    }
}

fn check_handling(
    pipeline: &Name,
    position: usize,
    phase: &PhaseInput,
) -> Result<(), PipelineError> {
    let Handling { input, output, heartbeat } = &phase.handling;
    let mappings = [("input_mapping", input), ("output_mapping", output)];
    for (key, mapping) in mappings.into_iter().filter_map(|(key, it)| Some((key, it.as_ref()?))) {
        let checked = match key {
            "input_mapping" if phase.input != PhaseInputMode::default() => {
                Err("it takes the place of `input`: leave that out".to_owned())
            }
            _ => mapping::check(mapping),
        };
        checked.map_err(|reason| {
            let pipeline = pipeline.clone();
            PipelineError::Mapping { pipeline, position, key, reason }
        })?;
    }
    let has = [
        ("input_mapping", input.is_some()),
        ("output_mapping", output.is_some()),
        ("heartbeat_timeout", heartbeat.is_some()),
    ];
    match has.into_iter().find(|(_, has)| *has && phase.wait_for.is_some()) {
        Some((key, _)) => Err(PipelineError::Waits { pipeline: pipeline.clone(), position, key }),
        None => Ok(()),
    }
}

fn check_schedules(pipeline: &Name, schedules: &[Schedule]) -> Result<(), PipelineError> {
    let field = || "schedules in number".to_owned();
    in_range(pipeline, field, schedules.len() as u64, 0, MAX_SCHEDULES as u64)?;
    for (position, schedule) in schedules.iter().enumerate() {
        let taken = schedules[..position].iter().any(|it| it.name == schedule.name);
        let wrong = match schedule.times() {
            Ok(times) if times.after(0).is_none() => {
                ("cron", format!("`{}` names no moment that ever comes", schedule.cron))
            }
            Ok(_) if taken => ("name", format!("`{}` is taken by an earlier one", schedule.name)),
            Ok(_) => continue,
            Err(wrong) => wrong,
        };
        let ((key, reason), pipeline) = (wrong, pipeline.clone());
        return Err(PipelineError::Schedule { pipeline, position, key, reason });
    }
    Ok(())
}

fn check_pointer(
    pipeline: &Name,
    field: impl FnOnce() -> String,
    pointer: &str,
) -> Result<(), PipelineError> {
    if pointer.starts_with('/') {
        return Ok(());
    }
    let (pipeline, pointer) = (pipeline.clone(), pointer.to_owned());
    Err(PipelineError::Pointer { pipeline, field: field(), pointer })
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
        let of = phase.each.as_ref().map(|each| &each.of);
        if let Some(name) = of {
            after.insert(find(name).ok_or_else(|| PipelineError::UnknownAfter {
                pipeline: pipeline.clone(),
                position,
                missing: name.clone(),
            })?);
        }
        match &phase.after {
            None if of.is_some() => {}
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
        assert_eq!(ancestors(&pipeline.phases, 3), BTreeSet::from([0, 1, 2]));
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
    fn phases_for_items_lie_within_the_phase_that_has_them() {
        let each = |of: &str, phases: Vec<PhaseInput>| {
            let (of, tolerate_percent, combine) = (name(of), 0, Combine::Group);
            Some(EachInput { of, phases, tolerate_percent, combine })
        };
        let inner = PhaseInput {
            each: each("x", vec![PhaseInput::named(name("leaf"))]),
            ..PhaseInput::named(name("leaf"))
        };
        let within =
            vec![PhaseInput::named(name("x")), inner.clone(), PhaseInput::named(name("y"))];
        let outer = PhaseInput { each: each("a", within), ..PhaseInput::named(name("b")) };
        let first = PhaseInput::named(name("a"));
        let pipeline = PipelineDef::new(name("p"), vec![first.clone(), outer]).expect("valid");
        assert!(pipeline.is_valid());
        let names = |phases: Vec<&PhaseDef>| {
            phases.iter().map(|phase| phase.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(pipeline.all_phases()), ["a", "x", "leaf", "y"]);
        assert_eq!(
            pipeline.body(&[1, 1]).map(|it| names(it.iter().collect())),
            Some(vec!["leaf".into()])
        );
        assert_eq!(pipeline.body(&[0]), None);
        let reason = |phases| PipelineDef::new(name("p"), phases).expect_err("refused").to_string();
        let last = PhaseInput {
            each: each("a", vec![PhaseInput::named(name("x")), inner]),
            ..PhaseInput::named(name("b"))
        };
        assert!(reason(vec![first.clone(), last]).contains("put a phase behind it"));
        let of_items = PhaseInput {
            each: each("b", vec![PhaseInput::named(name("z"))]),
            ..PhaseInput::named(name("c"))
        };
        let b = PhaseInput {
            each: each("a", vec![PhaseInput::named(name("b"))]),
            ..PhaseInput::named(name("b"))
        };
        let refused = reason(vec![first.clone(), b, of_items]);
        assert!(refused.contains("only a phase that a worker runs"), "{refused}");
        let twice =
            PhaseInput { each: each("a", vec![first.clone()]), ..PhaseInput::named(name("b")) };
        assert!(reason(vec![first, twice]).contains("is taken by an earlier phase"));
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
