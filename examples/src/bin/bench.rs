//! Measures real clusters of processes on this machine: RocksDB with sync, TCP over loopback, or with a
//! delay between the nodes.
//!
//! Prints a table, and writes `results.json` and charts into the folder that `--out` names. Each
//! figure says what it is in [`carbonmesh_examples::bench`]'s modules.

use std::{fs, path::PathBuf, process::ExitCode};

use carbonmesh_examples::{
    api::Error,
    bench::{
        Plan, Results, failover,
        far::{self, Far},
        growth, idle, latency, machine, plot, queue,
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
    /// How many jobs wait at most while memory and growth are measured; 10000000 takes minutes more
    #[arg(long, default_value_t = 1_000_000)]
    queued: usize,
    /// How many nodes are killed for each failover figure
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Measure only these [default: all but `partitions`]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// How many partitions the pipeline has, each with a coordinator of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    partitions: u32,
    /// How long what one node sends to another is under way, in ms: throughput and latency alone, of
    /// three nodes in network namespaces of their own, clients near them
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..=1000))]
    delay: Option<u64>,
    /// Said to this program by itself: it is within namespaces
    #[arg(long, hide = true)]
    isolated: bool,
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
    /// What a job costs where many wait, many are done, or there are many pipelines
    Growth,
    /// Throughput by the number of partitions
    Partitions,
}

impl Options {
    /// What is to be measured.
    fn parts(&self) -> Result<Vec<Part>, Error> {
        if let Some(part) = self.only.iter().find(|part| !part.is_possible(self)) {
            let part = format!("{part:?}").to_lowercase();
            return Err(format!(
                "{part} is not measured with this --delay or --partitions: leave it out of --only"
            )
            .into());
        }
        let is_wanted = |part: &Part| match self.only.is_empty() {
            true => *part != Part::Partitions && part.is_possible(self),
            false => self.only.contains(part),
        };
        Ok(Part::value_variants().iter().copied().filter(is_wanted).collect())
    }
}

impl Part {
    /// Whether it can be measured on such clusters.
    fn is_possible(self, options: &Options) -> bool {
        // The others have more nodes than there are places far from each other, or tell nothing new.
        let far = matches!(self, Self::Throughput | Self::Latency | Self::Partitions);
        // One kills the coordinator of all jobs, one asks it for all, and one has numbers of its own.
        let one = matches!(self, Self::Failover | Self::Growth | Self::Partitions);
        (options.delay.is_none() || far) && (options.partitions == 1 || !one)
    }
}

fn main() -> ExitCode {
    match start(Options::parse()) {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: the benchmark failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, within namespaces if it takes them; the exit code.
fn start(options: Options) -> Result<u8, Error> {
    let parts = options.parts()?;
    if options.delay.is_some() && !options.isolated {
        return far::isolate("--isolated");
    }
    measure_here(&options, &parts).map(|()| 0)
}

#[tokio::main]
async fn measure_here(options: &Options, parts: &[Part]) -> Result<(), Error> {
    // Whoever interrupts a run wants no nodes left behind: they go with what runs.
    tokio::select! {
        outcome = run(options, parts) => outcome,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
    }
}

async fn run(options: &Options, parts: &[Part]) -> Result<(), Error> {
    let mut results = Results::default();
    machine::note(&mut results);
    println!("3 nodes as processes, 3 replicas, RocksDB with sync, unless it says otherwise");
    if let Some(delay_ms) = options.delay {
        results.keep("cluster.delay_ms", delay_ms.into());
        println!("What a node sends to another is {delay_ms} ms under way");
    }
    if options.partitions > 1 {
        results.keep("cluster.partitions", options.partitions.into());
        println!("The pipeline has {} partitions", options.partitions);
    }
    println!();
    let measured = measure(options, parts, &mut results).await;
    results.add_lost();
    // What was measured before something failed is worth keeping.
    if let Some(folder) = &options.out {
        fs::create_dir_all(folder)?;
        let path = folder.join("results.json");
        fs::write(&path, serde_json::to_string_pretty(results.json())? + "\n")?;
        plot::write(folder, results.json())?;
        println!("\nWritten to {}", path.display());
    }
    measured?;
    results.broken_promise().map_or(Ok(()), |broken| Err(broken.into()))
}

async fn measure(options: &Options, parts: &[Part], results: &mut Results) -> Result<(), Error> {
    let far = options.delay.map(Far::new).transpose()?;
    let plan = Plan::new(options.partitions, far.as_ref());
    let case = Case { jobs: options.jobs, bytes: 0, repeat: options.repeat };
    for part in parts {
        match part {
            Part::Idle => idle::measure(results, plan).await?,
            Part::Throughput => throughput::standard(results, plan, case).await?,
            Part::Nodes => throughput::nodes(results, plan, case).await?,
            Part::Workers => throughput::workers(results, plan, case).await?,
            Part::Payload => throughput::payloads(results, plan, case).await?,
            Part::Latency => {
                latency::measure(results, plan, options.singles, options.seconds).await?;
            }
            Part::Queue => queue::measure(results, plan, options.queued).await?,
            Part::Failover => {
                failover::coordinators(results, plan, options.kills).await?;
                failover::workers(results, plan, options.kills).await?;
            }
            Part::Growth => {
                growth::queued(results, plan, options.queued).await?;
                growth::kept(results, plan).await?;
            }
            Part::Partitions => throughput::partitions(results, plan, case).await?,
        }
    }
    Ok(())
}
