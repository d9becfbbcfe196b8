//! Every scenario of the model checker within its default bounds; `make model` goes further.

use std::collections::BTreeSet;

use carbonmesh_simulations::model::{Options, SCENARIOS, check};

fn main() {
    for scenario in SCENARIOS {
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
}
