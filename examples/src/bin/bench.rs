//! Measures real clusters of processes on this machine: RocksDB with sync, TCP over loopback.
//!
//! Prints a table, and writes `results.json` into the folder that `--out` names. Each figure says
//! what it is in [`carbonmesh_examples::bench`]'s modules.

use std::{fs, path::PathBuf, process::ExitCode};

use carbonmesh_examples::{
    api::Error,
    bench::{Results, failover, idle, latency, throughput},
};
use clap::{Parser, ValueEnum};

/// Measure clusters of real processes on this machine
#[derive(Debug, Parser)]
struct Options {
    /// How many jobs the throughput is measured with
    #[arg(long, default_value_t = 50_000)]
    jobs: usize,
    /// How many jobs, one at a time, the latency is measured with
    #[arg(long, default_value_t = 500)]
    singles: usize,
    /// How many nodes are killed for each failover figure
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Measure only these
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Write results.json into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Throughput,
    Latency,
    Failover,
    Idle,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: the benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Error> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let mut results = Results::default();
    println!("3 nodes as processes on this machine, 3 replicas, RocksDB with sync\n");
    if wanted(Part::Idle) {
        idle::measure(&mut results).await?;
    }
    if wanted(Part::Throughput) {
        throughput::measure(&mut results, "w1", 1, options.jobs).await?;
        throughput::measure(&mut results, "w3", 3, options.jobs).await?;
    }
    if wanted(Part::Latency) {
        latency::measure(&mut results, options.singles).await?;
    }
    if wanted(Part::Failover) {
        failover::coordinators(&mut results, options.kills).await?;
        failover::workers(&mut results, options.kills).await?;
    }
    if let Some(folder) = options.out {
        fs::create_dir_all(&folder)?;
        let path = folder.join("results.json");
        fs::write(&path, serde_json::to_string_pretty(results.json())? + "\n")?;
        println!("\nWritten to {}", path.display());
    }
    results.broken_promise().map_or(Ok(()), |broken| Err(broken.into()))
}
