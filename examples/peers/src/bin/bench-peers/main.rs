//! The same work through CarbonMesh and through other queues, in turns, on one machine.
//!
//! Every queue takes its turn in every round; of each figure the median is told, and how many times
//! ours is the peer's. A peer that is not installed is skipped. `docs/benchmarks.md` says what each
//! mode means.

mod beanstalkd;
mod machine;
mod nats;
mod ours;
mod peer;
mod python;
mod rabbitmq;
mod redis;
mod sandbox;
mod work;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use carbonmesh_peers::report::{Entry, Report};
use clap::Parser;

use crate::peer::{Effort, Error, Peer, Tools};

/// Measure CarbonMesh and other queues with the same work on this machine
#[derive(Debug, Parser)]
struct Options {
    /// How many times each takes its turn
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// How long one throughput run is to take, in seconds, about
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// How many jobs, one at a time, the latency is measured with
    #[arg(long, default_value_t = 200)]
    singles: usize,
    /// Measure only peers whose name starts with one of these; ours always comes along
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Where `.ci/setup-peers` has installed what is not from Debian
    #[arg(long)]
    tools: Option<PathBuf>,
    /// Write peers.json into this folder
    #[arg(long)]
    out: Option<PathBuf>,
}

fn peers(tools: &Tools) -> Vec<Box<dyn Peer>> {
    let mut peers: Vec<Box<dyn Peer>> = vec![Box::new(ours::Ours::default())];
    peers.extend(redis::modes());
    peers.extend(beanstalkd::modes());
    peers.extend(nats::modes(tools));
    peers.extend(rabbitmq::modes());
    peers.extend(python::modes(tools));
    peers
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
    let machine = machine::describe()?;
    let mut report = Report { ours: ours::NAME.to_owned(), ..Report::default() };
    let mut found = Vec::new();
    for peer in peers(&Tools::new(options.tools)) {
        let name = peer.name();
        let wanted = |prefix: &String| name.starts_with(prefix);
        if name != ours::NAME && !options.only.is_empty() && !options.only.iter().any(wanted) {
            continue;
        }
        match peer.version() {
            Ok(version) => {
                let promise = peer.promise().to_owned();
                let entry = Entry { promise, version, rounds: Vec::new() };
                report.entries.push((name.to_owned(), entry));
                found.push(peer);
            }
            Err(hint) => {
                println!("skipped {name}: {hint}");
                report.skipped.insert(name.to_owned(), hint);
            }
        }
    }
    let effort = Effort { seconds: options.seconds, singles: options.singles };
    for round in 1..=options.rounds {
        for (peer, (name, entry)) in found.iter().zip(&mut report.entries) {
            let began = Instant::now();
            match peer.measure(effort).await {
                Ok(figures) => {
                    println!(
                        "round {round}  {name:22} w1 {:7.0}/s  w3 {:7.0}/s  p50 {:8.2} ms  p99 {:8.2} ms  in {} s",
                        figures.w1_jobs_per_s,
                        figures.w3_jobs_per_s,
                        figures.single_w3_p50_ms,
                        figures.single_w3_p99_ms,
                        began.elapsed().as_secs(),
                    );
                    entry.rounds.push(figures);
                }
                Err(error) => {
                    eprintln!("round {round}  {name}: {error}");
                    report.failed.insert(name.clone(), error.to_string());
                }
            }
        }
    }
    println!("\n{}", report.table());
    if let Some(folder) = options.out {
        let mut document = report.json();
        document["machine"] = machine;
        document["date"] = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        fs::create_dir_all(&folder)?;
        let path = folder.join("peers.json");
        fs::write(&path, serde_json::to_string_pretty(&document)? + "\n")?;
        println!("\nWritten to {}", path.display());
    }
    let failed: Vec<&str> = report.failed.keys().map(String::as_str).collect();
    if failed.is_empty() { Ok(()) } else { Err(format!("of {}", failed.join(", ")).into()) }
}
