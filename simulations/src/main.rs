//! Runs seeds, says which fail and in how simple a world, and shows one run event by event.

use std::{
    panic,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use carbonmesh_simulations::{Kind, Options, Report, SIMPLIFICATIONS, replay, run, shrink};
use clap::{Parser, Subcommand, builder::PossibleValuesParser};
use indicatif::{ProgressBar, ProgressStyle};

// Cores allocate and free all the time; this is a fifth of the run time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const AFTER_HELP: &str = "\
Exit codes:
  0  all held
  1  something unsafe happened, or the core broke one of its own assertions
  2  something did not come to its end";

/// How many failures are made simpler: each takes up to a minute.
const SHRINK: usize = 3;

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
    /// Do not look for simpler worlds that fail as well
    #[arg(long)]
    no_shrink: bool,
    /// Give every cluster so many nodes; without this each seed draws a number
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
    nodes: Option<u8>,
    /// Split every pipeline into so many partitions
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    partitions: u16,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a run: its world, then what happens, a line each
    Replay {
        /// Which
        seed: u64,
        /// Make the world simpler first; may be given more than once
        #[arg(long, value_delimiter = ',', value_parser = names())]
        without: Vec<String>,
        /// As it was given to the run that failed
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=100))]
        nodes: Option<u8>,
        /// As it was given to the run that failed
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
        partitions: u16,
    },
    /// Simulate one cluster of many nodes that falls apart in halves and comes together again
    Large {
        /// How many nodes
        #[arg(long, default_value_t = 1000)]
        nodes: usize,
        /// The seed
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(SIMPLIFICATIONS.iter().map(|(name, _)| *name))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.command {
        None => run_seeds(&arguments),
        Some(Command::Replay { seed, without, nodes, partitions }) => {
            show(world(*seed, *nodes, *partitions), without)
        }
        Some(Command::Large { nodes, seed }) => run_large(*seed, *nodes),
    }
}

fn show(mut options: Options, without: &[String]) -> ExitCode {
    for name in without {
        let way = SIMPLIFICATIONS.iter().find(|(known, _)| known == name);
        if let Some((_, simplify)) = way {
            simplify(&mut options);
        }
    }
    println!("{options:#?}");
    let report = replay(&options);
    println!("{report:#?}");
    exit_code(&[(options.seed, report)])
}

fn world(seed: u64, nodes: Option<u8>, partitions: u16) -> Options {
    Options::of_size(seed, nodes.map(usize::from)).in_partitions(partitions)
}

fn world_of(arguments: &Arguments, seed: u64) -> Options {
    world(seed, arguments.nodes, arguments.partitions)
}

fn run_large(seed: u64, nodes: usize) -> ExitCode {
    let began = Instant::now();
    let report = run(&Options::large(seed, nodes));
    let (virtual_s, took) = (report.virtual_ms as f64 / 1000.0, began.elapsed().as_secs_f64());
    println!(
        "{nodes} nodes, {virtual_s:.0} simulated seconds in {took:.0} s, {} events, {} jobs, at one \
         {:.1} s after the last fault",
        report.events,
        report.acknowledged,
        report.peace_ms as f64 / 1000.0
    );
    let failed = [(seed, report)];
    tell(&failed[0]);
    exit_code(&failed)
}

fn run_seeds(arguments: &Arguments) -> ExitCode {
    // What breaks is told at the end, once.
    panic::set_hook(Box::new(|_| {}));
    let (done, failed) = run_all(arguments);
    for (at, (seed, report)) in failed.iter().enumerate() {
        tell(&(*seed, report.clone()));
        let violation = report.violations.first().filter(|_| at < SHRINK && !arguments.no_shrink);
        let simpler = violation.map(|it| shrink(&world_of(arguments, *seed), it.invariant).1);
        let without = simpler.filter(|names| !names.is_empty());
        let without = without.map(|names| format!(" --without {}", names.join(",")));
        let nodes = arguments.nodes.map(|nodes| format!(" --nodes {nodes}")).unwrap_or_default();
        let partitions = match arguments.partitions {
            1 => String::new(),
            partitions => format!(" --partitions {partitions}"),
        };
        let without = without.unwrap_or_default();
        println!("  see it: carbonmesh-sim replay {seed}{nodes}{partitions}{without}");
    }
    println!("{done} seeds, {} violations", failed.len());
    exit_code(&failed)
}

fn tell((seed, report): &(u64, Report)) {
    for violation in &report.violations {
        println!("seed {seed}: {:?} {}: {}", violation.kind, violation.invariant, violation.detail);
    }
}

/// Runs the seeds; gives back how many were run, and those that failed.
fn run_all(arguments: &Arguments) -> (u64, Vec<(u64, Report)>) {
    let end = arguments.first.saturating_add(arguments.seeds);
    let (next, simulated_ms) = (AtomicU64::new(arguments.first), AtomicU64::new(0));
    let node_ms = AtomicU64::new(0);
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
            let report = run(&world_of(arguments, seed));
            simulated_ms.fetch_add(report.virtual_ms, Ordering::Relaxed);
            node_ms.fetch_add(report.node_ms, Ordering::Relaxed);
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
    let seconds = began.elapsed().as_secs_f64();
    let mut failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.sort_by_key(|(seed, _)| *seed);
    let rate = |ms: AtomicU64, unit: f64| ms.into_inner() as f64 / unit / seconds;
    println!(
        "{done} seeds in {seconds:.0} s: {:.2} simulated hours a second, {:.0} node-seconds a second",
        rate(simulated_ms, 3_600_000.0),
        rate(node_ms, 1000.0)
    );
    (done, failed)
}

fn exit_code(reports: &[(u64, Report)]) -> ExitCode {
    let violations = || reports.iter().flat_map(|(_, report)| &report.violations);
    match violations().any(|violation| violation.kind != Kind::Liveness) {
        true => ExitCode::from(1),
        false if violations().next().is_some() => ExitCode::from(2),
        false => ExitCode::SUCCESS,
    }
}
