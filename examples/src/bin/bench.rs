//! Measures real clusters of processes on this machine: RocksDB with sync, TCP over loopback.
//!
//! Prints a table, and writes `results.json` and charts into the folder that `--out` names. Each
//! figure says what it is in [`carbonmesh_examples::bench`]'s modules.

use std::{fs, path::PathBuf, process::ExitCode};

use carbonmesh_examples::{
    api::Error,
    bench::{
        Results, failover, idle, latency, machine, plot, queue,
        throughput::{self, Case},
    },
};
use clap::{Parser, ValueEnum};

/// Measure clusters of real processes on this machine
#[derive(Debug, Parser)]
struct Options {
    /// How many jobs the throughput is measured with
    #[arg(long, default_value_t = 50_000)]
    jobs: usize,
    /// How often each throughput is measured; the median counts
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// How many jobs, one at a time, the latency is measured with
    #[arg(long, default_value_t = 500)]
    singles: usize,
    /// How many seconds each rate is kept
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// How many jobs wait at most while memory is measured; 10000000 takes minutes more
    #[arg(long, default_value_t = 1_000_000)]
    queued: usize,
    /// How many nodes are killed for each failover figure
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Write results.json and charts into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Idle nodes
    Idle,
    /// Throughput of three nodes, and what it costs
    Throughput,
    /// Throughput of one node and of five
    Nodes,
    /// Throughput by the number of workers
    Workers,
    /// Throughput by the size of jobs
    Payload,
    /// Latency of one job at a time, and at given rates
    Latency,
    /// Memory by the number of jobs that wait
    Queue,
    /// Kills with signal 9
    Failover,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Whoever interrupts a run wants no nodes left behind: they go with what runs.
    let outcome = tokio::select! {
        outcome = run(Options::parse()) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Error> {
    let mut results = Results::default();
    machine::note(&mut results);
    println!("3 nodes as processes, 3 replicas, RocksDB with sync, unless it says otherwise\n");
    let measured = measure(&options, &mut results).await;
    results.add_lost();
    // What was measured before something failed is worth keeping.
    if let Some(folder) = options.out {
        fs::create_dir_all(&folder)?;
        let path = folder.join("results.json");
        fs::write(&path, serde_json::to_string_pretty(results.json())? + "\n")?;
        plot::write(&folder, results.json())?;
        println!("\nWritten to {}", path.display());
    }
    measured?;
    results.broken_promise().map_or(Ok(()), |broken| Err(broken.into()))
}

async fn measure(options: &Options, results: &mut Results) -> Result<(), Error> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let case = Case { jobs: options.jobs, bytes: 0, repeat: options.repeat };
    if wanted(Part::Idle) {
        idle::measure(results).await?;
    }
    if wanted(Part::Throughput) {
        throughput::standard(results, case).await?;
    }
    if wanted(Part::Nodes) {
        throughput::nodes(results, case).await?;
    }
    if wanted(Part::Workers) {
        throughput::workers(results, case).await?;
    }
    if wanted(Part::Payload) {
        throughput::payloads(results, case).await?;
    }
    if wanted(Part::Latency) {
        latency::measure(results, options.singles, options.seconds).await?;
    }
    if wanted(Part::Queue) {
        queue::measure(results, options.queued).await?;
    }
    if wanted(Part::Failover) {
        failover::coordinators(results, options.kills).await?;
        failover::workers(results, options.kills).await?;
    }
    Ok(())
}
