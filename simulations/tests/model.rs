//! Every scenario of the model checker within its default bounds; `make model` goes further. A name
//! on the command line, as for other tests, picks scenarios.

use std::{collections::BTreeSet, env};

use carbonmesh_simulations::model::{Options, SCENARIOS, Scenario, check};

// Cores are copied for each step, and thrown away.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        return;
    }
    let names: Vec<&String> = arguments.iter().filter(|name| !name.starts_with('-')).collect();
    let chosen = |scenario: &Scenario| {
        names.is_empty() || names.iter().any(|name| scenario.name.contains(name.as_str()))
    };
    SCENARIOS.into_iter().filter(chosen).for_each(explore);
}

fn explore(scenario: Scenario) {
    let mut reached = BTreeSet::new();
    for bounds in scenario.bounds {
        let options = Options::new(scenario, *bounds);
        println!("{options}");
        let outcome = check(options).expect("the preset is there");
        println!("{outcome}");
        assert!(outcome.broken.is_none(), "an invariant is broken");
        assert!(outcome.exhausted, "not all was seen");
        reached.extend(outcome.reached);
    }
    for what in scenario.reaches {
        assert!(reached.contains(what), "{}: it never comes to it that {what}", scenario.name);
    }
}
