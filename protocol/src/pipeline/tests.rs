//! What can be a pipeline, and what cannot.

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
    let phases =
        vec![phase("end", &["l", "r"]), phase("l", &["s"]), phase("r", &["s"]), phase("s", &[])];
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
    let within = vec![PhaseInput::named(name("x")), inner.clone(), PhaseInput::named(name("y"))];
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
    let twice = PhaseInput { each: each("a", vec![first.clone()]), ..PhaseInput::named(name("b")) };
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
