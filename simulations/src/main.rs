//! Runs seeds, says which fail, and shows one run event by event.

use std::{
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use carbonmesh_simulations::{Kind, Options, Report, replay, run};
use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

const AFTER_HELP: &str = "\
Exit codes:
  0  all held
  1  something unsafe happened
  2  something did not come to its end
  101  the core broke one of its own assertions";

/// Simulate clusters under faults, one for each seed
#[derive(Debug, Parser)]
#[command(name = "carbonmesh-sim", after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// How many at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Stop after so many seeds that fail
    #[arg(long, default_value_t = 10)]
    failures: usize,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a run: its world, then what happens, a line each
    Replay {
        /// Which
        seed: u64,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Replay { seed }) = arguments.command {
        let options = Options::from_seed(seed);
        println!("{options:#?}");
        let report = replay(&options);
        println!("{report:#?}");
        return exit_code(&[(seed, report)]);
    }
    let failed = run_all(&arguments);
    for (seed, report) in &failed {
        for violation in &report.violations {
            println!(
                "seed {seed}: {:?} {}: {}",
                violation.kind, violation.invariant, violation.detail
            );
        }
        println!("  see it: carbonmesh-sim replay {seed}");
    }
    exit_code(&failed)
}

/// Runs the seeds; gives back those that failed.
fn run_all(arguments: &Arguments) -> Vec<(u64, Report)> {
    let end = arguments.first.saturating_add(arguments.seeds);
    let (next, simulated_ms) = (AtomicU64::new(arguments.first), AtomicU64::new(0));
    let (failed, enough) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let style = ProgressStyle::with_template("[{bar:40}] {pos}/{len} seeds, {eta} left {msg}");
    let bar = ProgressBar::new(arguments.seeds)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let began = Instant::now();
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end || enough.load(Ordering::Relaxed) {
                return;
            }
            let report = run(&Options::from_seed(seed));
            simulated_ms.fetch_add(report.virtual_ms, Ordering::Relaxed);
            bar.inc(1);
            if !report.violations.is_empty() {
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                failed.push((seed, report));
                bar.set_message(format!("{} FAILED", failed.len()));
                enough.fetch_or(failed.len() >= arguments.failures, Ordering::Relaxed);
            }
        }
    };
    thread::scope(|scope| (0..arguments.jobs.max(1)).for_each(|_| drop(scope.spawn(work))));
    let done = bar.position();
    bar.finish_and_clear();
    let hours = simulated_ms.into_inner() as f64 / 3_600_000.0;
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|(seed, _)| *seed);
    println!("{:.2} simulated hours a second", hours / began.elapsed().as_secs_f64());
    println!("{done} seeds, {} violations", failed.len());
    failed
}

fn exit_code(reports: &[(u64, Report)]) -> ExitCode {
    let violations = || reports.iter().flat_map(|(_, report)| &report.violations);
    match violations().any(|violation| violation.kind == Kind::Safety) {
        true => ExitCode::from(1),
        false if violations().next().is_some() => ExitCode::from(2),
        false => ExitCode::SUCCESS,
    }
}
