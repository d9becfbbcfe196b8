//! Makes the world of a failure simpler, as long as it fails in the same way.

use crate::{
    Options,
    options::{SIMPLIFICATIONS, Simplification},
    run,
};

/// Which simplifications the world of `options` can bear and still break the same invariant. Each
/// may be applied several times: those that halve are.
pub fn shrink(options: &Options, invariant: &str) -> (Options, Vec<&'static str>) {
    let (mut simplest, mut applied) = (options.clone(), Vec::new());
    loop {
        let next = SIMPLIFICATIONS.iter().find_map(|way| simpler(&simplest, *way, invariant));
        let Some((name, options)) = next else { return (simplest, applied) };
        simplest = options;
        applied.push(name);
    }
}

/// The world made simpler in one way, if that changes it and it still fails.
fn simpler(
    options: &Options,
    (name, simplify): Simplification,
    invariant: &str,
) -> Option<(&'static str, Options)> {
    let mut simpler = options.clone();
    simplify(&mut simpler);
    let changed = format!("{simpler:?}") != format!("{options:?}");
    let fails = || run(&simpler).violations.iter().any(|it| it.invariant == invariant);
    (changed && fails()).then_some((name, simpler))
}
