//! How much memory jobs take that wait.

use std::time::Duration;

use super::{Bench, Plan, Results, load, process};
use crate::api::{Error, http_client};

/// How many jobs wait, the key of that figure, and on how many nodes each of them is kept.
const SIZES: [(usize, &str, usize); 4] = [
    (10_000, "queued_1e4", 3),
    (100_000, "queued_1e5", 3),
    (1_000_000, "queued_1e6", 3),
    // One node holds what each of three would, in a third of the time and of the memory.
    (10_000_000, "queued_1e7", 1),
];

/// How many jobs go into one request.
const BATCH: usize = 10_000;

/// What a job is thought to take on one node before that is measured, in bytes.
const ASSUMED: f64 = 1500.0;

/// What is left to others of the machine's memory, in MiB.
const SPARED_MIB: f64 = 1024.0;

const MIB: f64 = (1 << 20) as f64;

/// Room for all of them: the defaults hold a million jobs, and 1 GiB of them.
const LIMITS: &str = "[limits]\nwaiting_jobs = 100_000_000\nwaiting_bytes = 1_000_000_000_000\n";

/// `queued_1eN.rss_mib` and `.bytes_per_job`: of the fullest node, each of which keeps all 10^N jobs;
/// the phase that they wait for runs nowhere. `.bytes_per_job` is what the node has beyond what it
/// had without them. A size beyond `most`, or beyond the memory, is left out.
///
/// # Errors
/// The cluster does not start, or refuses a job.
pub async fn measure(results: &mut Results, plan: Plan<'_>, most: usize) -> Result<(), Error> {
    let (mut last, mut bytes): (Option<Queue>, f64) = (None, ASSUMED);
    for (size, name, nodes) in SIZES {
        if size > most {
            println!("  {name} is left out: --queued {size} measures it");
            continue;
        }
        // A cluster that is of no more use gives its memory back here.
        let mut queue = match last.take().filter(|queue| queue.bench.names().len() == nodes) {
            Some(queue) => queue,
            None => Queue::start(Plan { nodes, ..plan }).await?,
        };
        let needed = bytes * (size - queue.queued) as f64 * nodes as f64 / MIB;
        let available = process::available_mib()? - SPARED_MIB;
        if needed > available {
            println!("  {name} is left out: {needed:.0} MiB needed, {available:.0} MiB free");
            continue;
        }
        let resident = queue.fill(size).await?;
        bytes = (resident - queue.empty_mib) / size as f64 * MIB;
        let meaning = format!("resident memory of a node, {size} jobs wait (nodes: {nodes})");
        results.add(&format!("{name}.rss_mib"), resident, &meaning);
        results.add(&format!("{name}.bytes_per_job"), bytes, "of that, for each job");
        last = Some(queue);
    }
    Ok(())
}

/// A cluster whose jobs wait for ever.
struct Queue {
    bench: Bench,
    http: reqwest::Client,
    url: String,
    queued: usize,
    /// What the fullest node had without jobs.
    empty_mib: f64,
}

impl Queue {
    async fn start(plan: Plan<'_>) -> Result<Self, Error> {
        let plan = Plan { phase: "absent", phases: 1, config: LIMITS, ..plan };
        let bench = Bench::start(&plan).await?;
        let url = bench.jobs_url(&bench.gateway().await?)?;
        let empty_mib = bench.fullest_mib()?;
        Ok(Self { bench, http: http_client().build()?, url, queued: 0, empty_mib })
    }

    /// Enqueues until `size` jobs wait; what the fullest node has then, in MiB.
    async fn fill(&mut self, size: usize) -> Result<f64, Error> {
        let batch = load::lines(BATCH, 0);
        while self.queued < size {
            load::enqueue(&self.http, &self.url, batch.clone(), BATCH).await?;
            self.queued += BATCH;
        }
        // What the last ones took on their way is given back.
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.bench.fullest_mib()
    }
}
