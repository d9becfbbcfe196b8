//! Explores every order in which things may happen in small clusters, and says how many states
//! there are and whether an invariant was broken.

use std::{process::ExitCode, time::Duration};

use carbonmesh_simulations::model::{Bounds, Options, Outcome, Preset, SCENARIOS, Scenario, check};
use clap::{Args, Parser, ValueEnum};

const AFTER_HELP: &str = "\
Exit codes:
  0  every state within the bounds was seen, and all held
  1  an invariant was broken; the way there is printed
  2  not all was seen, nothing happens within the bounds, or the preset is not there yet";

/// Explore elections and takeovers on the core itself, within bounds
#[derive(Debug, Parser)]
#[command(name = "carbonmesh-model", after_help = AFTER_HELP)]
struct Arguments {
    /// Only these scenarios
    scenarios: Vec<String>,
    /// Within the wider bounds, which takes much longer
    #[arg(long)]
    wide: bool,
    /// What the pipeline promises about its coordinators
    #[arg(long, value_enum, default_value_t = PresetArgument::Available)]
    preset: PresetArgument,
    /// How many threads
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Stop after so many seconds, though not all was seen
    #[arg(long)]
    seconds: Option<u64>,
    #[command(flatten)]
    bounds: BoundsArguments,
}

/// Other bounds than the scenario's
#[derive(Debug, Args)]
struct BoundsArguments {
    /// How often each node's next timer may fire, as in 1,1,0
    #[arg(long, value_delimiter = ',')]
    timers: Vec<u8>,
    /// How often each node may be killed and started again
    #[arg(long, value_delimiter = ',')]
    crashes: Vec<u8>,
    /// How often a stream or a disk may be held up
    #[arg(long)]
    holds: Option<u8>,
    /// How many connections may be cut
    #[arg(long)]
    cuts: Option<u8>,
    /// How many connections may be made again
    #[arg(long)]
    connections: Option<u8>,
    /// How many messages may be lost
    #[arg(long)]
    losses: Option<u8>,
    /// How many messages may come twice
    #[arg(long)]
    repeats: Option<u8>,
    /// How many jobs are enqueued on the way
    #[arg(long)]
    enqueued: Option<u8>,
}

impl BoundsArguments {
    fn apply(&self, mut bounds: Bounds) -> Bounds {
        bounds.timers.iter_mut().zip(&self.timers).for_each(|(to, given)| *to = *given);
        bounds.crashes.iter_mut().zip(&self.crashes).for_each(|(to, given)| *to = *given);
        Bounds {
            holds: self.holds.unwrap_or(bounds.holds),
            cuts: self.cuts.unwrap_or(bounds.cuts),
            connections: self.connections.unwrap_or(bounds.connections),
            losses: self.losses.unwrap_or(bounds.losses),
            repeats: self.repeats.unwrap_or(bounds.repeats),
            jobs: self.enqueued.unwrap_or(bounds.jobs),
            ..bounds
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PresetArgument {
    Available,
    Strict,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let chosen = |scenario: &Scenario| {
        let names = &arguments.scenarios;
        names.is_empty() || names.iter().any(|name| name == scenario.name)
    };
    let mut worst = 0;
    for scenario in SCENARIOS.into_iter().filter(chosen) {
        let bounds = if arguments.wide { scenario.wide } else { scenario.bounds };
        let bounds = arguments.bounds.apply(bounds);
        let preset = match arguments.preset {
            PresetArgument::Available => Preset::Available,
            PresetArgument::Strict => Preset::Strict,
        };
        let limit = arguments.seconds.map(Duration::from_secs);
        println!("{}: {}", scenario.name, scenario.about);
        println!("  bounds: {bounds}");
        let options = Options::new(scenario);
        match check(Options { bounds, preset, limit, threads: arguments.jobs, ..options }) {
            Ok(outcome) => worst = worst.max(report(&outcome)),
            Err(error) => {
                eprintln!("error: {error}");
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::from(worst)
}

fn report(outcome: &Outcome) -> u8 {
    let Outcome { states, steps, depth, took, exhausted, reached, broken } = outcome;
    println!(
        "  {states} states, {steps} steps between them, at most {depth} deep, {:.1} s",
        took.as_secs_f64()
    );
    println!("  reached: {}", reached.join(", "));
    if let Some(broken) = broken {
        println!("  BROKEN {}: {}", broken.invariant, broken.seen);
        broken.way.iter().for_each(|line| println!("    {line}"));
        return 1;
    }
    match exhausted {
        true => println!("  every invariant holds in all of them"),
        false => println!("  every invariant holds in these; there are MORE"),
    }
    if *exhausted && !reached.is_empty() { 0 } else { 2 }
}
