//! Explores every order in which things may happen in small clusters, and says how many states
//! there are and whether an invariant was broken.

use std::{process::ExitCode, time::Duration};

use carbonmesh_simulations::model::{Bounds, Options, Outcome, SCENARIOS, Scenario, check};
use clap::{Args, Parser};

// Cores are copied for each step, and thrown away.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const AFTER_HELP: &str = "\
Exit codes:
  0  every state within the bounds was seen, and all held
  1  an invariant was broken; the way there is printed
  2  not all was seen, or nothing happens within the bounds";

/// Explore elections and takeovers on the core itself, within bounds
#[derive(Debug, Parser)]
#[command(name = "carbonmesh-model", after_help = AFTER_HELP)]
struct Arguments {
    /// Only these scenarios
    scenarios: Vec<String>,
    /// Within the wider bounds, which takes much longer
    #[arg(long)]
    wide: bool,
    /// How many threads
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Stop after so many seconds, though not all was seen
    #[arg(long)]
    seconds: Option<u64>,
    #[command(flatten)]
    bounds: BoundsArguments,
}

/// Bounds in place of the scenario's; what is not given is zero
#[derive(Debug, Args)]
struct BoundsArguments {
    /// How often each node's next timer may fire, as in 1,1,0
    #[arg(long, value_delimiter = ',')]
    timers: Vec<u8>,
    /// How often each node may be killed and started again
    #[arg(long, value_delimiter = ',')]
    crashes: Vec<u8>,
    /// How often each node may stand still for a while
    #[arg(long, value_delimiter = ',')]
    pauses: Vec<u8>,
    /// How often a stream or a disk may be held up
    #[arg(long, default_value_t = 0)]
    holds: u8,
    /// How many connections may be cut
    #[arg(long, default_value_t = 0)]
    cuts: u8,
    /// How many connections may be made again
    #[arg(long, default_value_t = 0)]
    connections: u8,
    /// How many messages may be lost
    #[arg(long, default_value_t = 0)]
    losses: u8,
    /// How many messages may come twice
    #[arg(long, default_value_t = 0)]
    repeats: u8,
    /// How many jobs are enqueued on the way
    #[arg(long, default_value_t = 0)]
    enqueued: u8,
}

impl BoundsArguments {
    /// The scenario's bounds, unless others are given.
    fn of(&self, usual: &[Bounds]) -> Vec<Bounds> {
        let mut bounds = Bounds {
            holds: self.holds,
            cuts: self.cuts,
            connections: self.connections,
            losses: self.losses,
            repeats: self.repeats,
            jobs: self.enqueued,
            ..Bounds::default()
        };
        bounds.timers.iter_mut().zip(&self.timers).for_each(|(to, given)| *to = *given);
        bounds.crashes.iter_mut().zip(&self.crashes).for_each(|(to, given)| *to = *given);
        bounds.pauses.iter_mut().zip(&self.pauses).for_each(|(to, given)| *to = *given);
        if bounds == Bounds::default() { usual.to_vec() } else { vec![bounds] }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen = |scenario: &Scenario| {
        let names = &arguments.scenarios;
        names.is_empty() || names.iter().any(|name| name == scenario.name)
    };
    let mut worst = 0;
    for scenario in SCENARIOS.into_iter().filter(chosen) {
        for bounds in
            arguments.bounds.of(if arguments.wide { scenario.wide } else { scenario.bounds })
        {
            let limit = arguments.seconds.map(Duration::from_secs);
            let threads = arguments.jobs;
            let options = Options { limit, threads, ..Options::new(scenario, bounds) };
            println!("{options}");
            match check(options) {
                Ok(outcome) => {
                    println!("{outcome}");
                    worst = worst.max(exit_code(&outcome));
                }
                Err(error) => {
                    eprintln!("error: {error}");
                    return ExitCode::from(2);
                }
            }
        }
    }
    ExitCode::from(worst)
}

fn exit_code(outcome: &Outcome) -> u8 {
    match outcome.broken {
        Some(_) => 1,
        None if outcome.exhausted && !outcome.reached.is_empty() => 0,
        None => 2,
    }
}
