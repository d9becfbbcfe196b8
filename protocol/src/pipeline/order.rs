//! In which order phases stand: each behind all that it comes after.

use std::collections::BTreeSet;

use crate::name::Name;

use super::{PhaseInput, PipelineError};

/// For each phase the positions of those it comes after.
pub(super) fn positions(
    pipeline: &Name,
    phases: &[PhaseInput],
) -> Result<Vec<Vec<usize>>, PipelineError> {
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
pub(super) fn topological(
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

pub(super) fn cycle(
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
