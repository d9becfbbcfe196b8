//! Runs seeds, and says which fail and how to see one again.

use std::process::ExitCode;

use carbonmesh_simulations::{Kind, Options, run};
use clap::Parser;

/// Simulate clusters under faults. Exit codes: 0 all held, 1 safety broken, 2 liveness broken
#[derive(Parser)]
struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1)]
    iterations: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (mut unsafe_seeds, mut stuck_seeds) = (0, 0);
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.iterations) {
        let options = Options::from_seed(seed);
        let report = run(&options);
        if arguments.iterations == 1 {
            println!("{options:#?}\n{report:#?}");
        }
        if report.violations.is_empty() {
            continue;
        }
        println!("seed {seed}: {:?}", report.violations);
        println!("again: cargo run -p carbonmesh-simulations -- --seed {seed}");
        match report.violations.iter().any(|violation| violation.kind == Kind::Safety) {
            true => unsafe_seeds += 1,
            false => stuck_seeds += 1,
        }
    }
    println!("{} seeds, {} violations", arguments.iterations, unsafe_seeds + stuck_seeds);
    match (unsafe_seeds, stuck_seeds) {
        (0, 0) => ExitCode::SUCCESS,
        (0, _) => ExitCode::from(2),
        _ => ExitCode::from(1),
    }
}
