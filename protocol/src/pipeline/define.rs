//! Makes of what a person describes what the cluster knows, or says why that cannot be; and says of
//! what came from elsewhere whether it can have been made here.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    condition, mapping,
    name::{Name, Namespace},
    requirement::{MAX_REQUIREMENTS, Requirement},
    schedule::{MAX_SCHEDULES, Schedule},
};

use super::{
    Each, EachInput, Handling, MAX_DEPTH, MAX_DURATION, MAX_PHASES, PhaseDef, PhaseInput,
    PhaseInputMode, PipelineError, Retention,
    order::{positions, topological},
};

/// Phases in an order in which each stands behind all that it comes after, with what is in range.
pub(super) fn define(
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
        check_namespace(name, position, phase)?;
        let field = || format!("phases[{position}].requires, in number,");
        in_range(name, field, phase.requires.len() as u64, 0, MAX_REQUIREMENTS as u64)?;
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
    let namespace = Namespace::containing(name);
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
            phase: input.phase.within(&namespace),
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
            requires: input.requires,
            undoes: None,
        });
    }
    Ok(defined)
}

/// What undoes phases, in the order in which it runs.
pub(super) fn define_compensations(
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
pub(super) fn are_compensations(compensations: &[PhaseDef], phases: &[PhaseDef]) -> bool {
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
pub(super) fn are_sound(phases: &[PhaseDef], depth: usize) -> bool {
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
            && phase.requires.len() <= MAX_REQUIREMENTS
            && phase.requires.iter().all(Requirement::is_sound)
            && phase.name.is_plain()
            && phase.wait_for.as_ref().is_none_or(Name::is_plain)
    };
    (1..=MAX_PHASES).contains(&phases.len())
        && depth <= MAX_DEPTH
        && phases.iter().enumerate().all(sound)
}

/// Names tell phases apart, wherever these lie; only a phase for items may be called like what it does.
pub(super) fn check_names(
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
pub(super) fn settings_waits(
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

pub(super) fn check_limits(
    pipeline: &Name,
    position: usize,
    phase: &PhaseInput,
) -> Result<(), PipelineError> {
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
        ("requires", !phase.requires.is_empty()),
    ];
    match has.into_iter().find(|(_, has)| *has && phase.wait_for.is_some()) {
        Some((key, _)) => Err(PipelineError::Waits { pipeline: pipeline.clone(), position, key }),
        None => Ok(()),
    }
}

/// Only what workers offer has a namespace, and it is the pipeline's.
fn check_namespace(
    pipeline: &Name,
    position: usize,
    phase: &PhaseInput,
) -> Result<(), PipelineError> {
    let plain = [("name", Some(&phase.name)), ("wait_for", phase.wait_for.as_ref())];
    let with = plain.into_iter().find(|(_, name)| name.is_some_and(|name| !name.is_plain()));
    let other = !phase.phase.is_plain() && phase.phase.namespace() != pipeline.namespace();
    let (key, name, reason) = match with {
        Some((key, Some(name))) => (key, name, "only pipelines and phases have a namespace"),
        _ if other => {
            ("phase", &phase.phase, "a pipeline asks for phases of its own namespace only")
        }
        _ => return Ok(()),
    };
    Err(PipelineError::Namespace {
        pipeline: pipeline.clone(),
        position,
        key,
        name: name.clone(),
        reason,
    })
}

pub(super) fn check_handling(
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

pub(super) fn check_schedules(
    pipeline: &Name,
    schedules: &[Schedule],
) -> Result<(), PipelineError> {
    let field = || "schedules in number".to_owned();
    in_range(pipeline, field, schedules.len() as u64, 0, MAX_SCHEDULES as u64)?;
    for (position, schedule) in schedules.iter().enumerate() {
        let taken = schedules[..position].iter().any(|it| it.name == schedule.name);
        let wrong = match schedule.times() {
            Ok(times) if times.after(0).is_none() => {
                ("cron", format!("`{}` names no moment that ever comes", schedule.cron))
            }
            Ok(_) if taken => ("name", format!("`{}` is taken by an earlier one", schedule.name)),
            Ok(_) if !schedule.name.is_plain() => {
                ("name", format!("`{}` has a namespace: leave it out", schedule.name))
            }
            Ok(_) => continue,
            Err(wrong) => wrong,
        };
        let ((key, reason), pipeline) = (wrong, pipeline.clone());
        return Err(PipelineError::Schedule { pipeline, position, key, reason });
    }
    Ok(())
}

pub(super) fn check_pointer(
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

pub(super) fn in_range(
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
