//! What a pipeline is: its phases, what each comes after, and how careful the cluster is with it.
//!
//! A definition never changes: `apply` adds a revision, and a job keeps the one it was enqueued
//! with. The phases form a directed acyclic graph, kept in an order in which each phase stands
//! behind all that it comes after.

mod define;
mod error;
mod frozen;
mod input;
mod order;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    codec,
    id::PipelineId,
    name::Name,
    record::JobSpec,
    requirement::Requirement,
    schedule::{MAX_SCHEDULES, Schedule},
};

pub use error::PipelineError;
pub use input::{EachInput, PhaseInput, Settings};

use define::{
    are_compensations, are_sound, check_names, check_pointer, check_schedules, define,
    define_compensations, in_range, settings_waits,
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

/// The most partitions that a pipeline may be split into.
pub const MAX_PARTITIONS: u16 = 64;

/// The largest description of what jobs have to look like.
pub const MAX_INPUT_SCHEMA_BYTES: usize = 64 << 10;

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
    /// What a node must have to run it.
    pub requires: Vec<Requirement>,
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
#[serde(from = "frozen::PipelineV1", into = "frozen::PipelineV1")]
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
    /// What jobs have to look like, as a JSON Schema: for people and programs that make them; the
    /// cluster does not hold jobs to it.
    pub input_schema: Option<String>,
    /// Into how many parts its jobs are split, each with a coordinator of its own.
    pub partitions: u16,
    /// How many of them, the first ones, take jobs with keys: as many as there were when the pipeline
    /// was made, so that a key names the same job however it is split later.
    pub keyed_partitions: u16,
    /// Which of them this is the definition of.
    pub partition: u16,
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
        let Settings {
            replicas,
            accept,
            execute,
            timeout,
            retention,
            fair_by,
            schedules,
            input_schema,
            partitions,
        } = settings;
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
        let schema_bytes = input_schema.as_ref().map_or(0, String::len) as u64;
        let most = MAX_INPUT_SCHEMA_BYTES as u64;
        in_range(&name, || "input_schema in bytes".into(), schema_bytes, 0, most)?;
        in_range(&name, || "partitions".into(), partitions.into(), 1, MAX_PARTITIONS.into())?;
        let made = Self {
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
            input_schema,
            partitions,
            keyed_partitions: partitions,
            partition: 0,
        };
        match made.unpartable().filter(|_| partitions > 1) {
            Some(has) => Err(PipelineError::Partitions { pipeline: made.name, partitions, has }),
            None => Ok(made),
        }
    }

    /// What of a definition all partitions have.
    pub(crate) fn shared(&self) -> Self {
        Self { partition: 0, schedules: Vec::new(), input_schema: None, ..self.clone() }
    }

    /// What a pipeline with partitions cannot have, since no partition knows what the others do.
    fn unpartable(&self) -> Option<&'static str> {
        let phases = self.all_phases();
        let has = [
            ("execute = \"majority\"", self.execute == Quorum::Majority),
            ("a phase with a `rate`", phases.iter().any(|phase| phase.rate.is_some())),
            ("a phase with a `limit`", phases.iter().any(|phase| phase.limit.is_some())),
        ];
        has.into_iter().find(|(_, has)| *has).map(|(what, _)| what)
    }

    /// The definition of one of its partitions. Schedules are the first one's, as is what forms are made of.
    #[must_use]
    pub fn of_partition(&self, partition: u16) -> Self {
        let mut part = Self { partition, ..self.clone() };
        if partition > 0 {
            part.schedules.clear();
            part.input_schema = None;
        }
        part
    }

    /// Whether [`with`](Self::with) can have made it: for definitions that came from elsewhere.
    pub fn is_valid(&self) -> bool {
        are_sound(&self.phases, 1)
            && are_compensations(&self.compensations, &self.phases)
            && check_names(&self.name, &self.phases, &self.compensations).is_ok()
            && (1..=MAX_REPLICAS).contains(&self.replicas)
            && self.schedules.len() <= MAX_SCHEDULES
            && self.schedules.iter().all(|schedule| schedule.name.is_plain())
            && self.is_in_one_namespace()
            && (1..=MAX_PARTITIONS).contains(&self.partitions)
            && self.partition < self.partitions
            && (1..=self.partitions).contains(&self.keyed_partitions)
            && (self.partitions == 1 || self.unpartable().is_none())
            && self.input_schema.as_ref().is_none_or(|it| it.len() <= MAX_INPUT_SCHEMA_BYTES)
            && settings_waits(self.timeout, &self.retention).all(|(_, wait)| wait <= MAX_AGE)
    }

    /// Whether it asks workers for phases of its own namespace alone.
    fn is_in_one_namespace(&self) -> bool {
        let own = self.name.namespace();
        self.all_phases().iter().all(|phase| phase.phase.namespace() == own)
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

    /// The identity of the pipeline, or of this partition of it.
    pub fn id(&self) -> PipelineId {
        PipelineId::of_partition(self.name.as_str(), self.partition)
    }

    /// What names this very definition.
    pub fn revision(&self) -> Revision {
        xxhash_rust::xxh3::xxh3_64(&codec::encode_body(self))
    }
}
