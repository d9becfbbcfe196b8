//! How much memory jobs take that wait.

use std::time::Duration;

use super::{Bench, Plan, Results, load, process};
use crate::api::Error;

/// How many jobs wait, and the key of that figure.
const SIZES: [(usize, &str); 4] = [
    (10_000, "queued_1e4"),
    (100_000, "queued_1e5"),
    (1_000_000, "queued_1e6"),
    (10_000_000, "queued_1e7"),
];

/// How many jobs go into one request.
const BATCH: usize = 10_000;

/// What a job is thought to take on one node before that is measured, in bytes.
const ASSUMED: f64 = 1500.0;

/// What is left to others of the machine's memory, in MiB.
const SPARED_MIB: f64 = 1024.0;

/// Room for all of them: the defaults hold a million jobs, and 1 GiB of them.
const LIMITS: &str = "[limits]\nwaiting_jobs = 100_000_000\nwaiting_bytes = 1_000_000_000_000\n";

/// `queued_1eN.rss_mib` and `.bytes_per_job`: of the fullest of `nodes` nodes, each of which keeps
/// all 10^N jobs; the phase that they wait for runs nowhere. `.bytes_per_job` is what the node has
/// beyond what it had without them. A size beyond `most`, or beyond the memory, is left out.
///
/// # Errors
/// The cluster does not start, or refuses a job.
pub async fn measure(results: &mut Results, most: usize) -> Result<(), Error> {
    let plan = Plan { phase: "absent", phases: 1, config: LIMITS, ..Plan::default() };
    let bench = Bench::start(&plan).await?;
    let gateway = bench.gateway().await?;
    let (http, url) = (reqwest::Client::new(), bench.jobs_url(&gateway)?);
    let batch = load::lines(BATCH, 0);
    let before = bench.fullest_mib()?;
    let (mut queued, mut bytes) = (0, ASSUMED);
    for (size, name) in SIZES.into_iter().filter(|(size, _)| *size <= most) {
        let nodes = bench.names().len() as f64;
        let needed = bytes * (size - queued) as f64 * nodes / f64::from(1 << 20);
        let available = process::available_mib()? - SPARED_MIB;
        if needed > available {
            println!(
                "  {name} is left out: it takes {needed:.0} MiB, {available:.0} MiB are there"
            );
            break;
        }
        while queued < size {
            load::enqueue(&http, &url, batch.clone(), BATCH).await?;
            queued += BATCH;
        }
        // What the last ones took on their way is given back.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let resident = bench.fullest_mib()?;
        bytes = (resident - before) / size as f64 * f64::from(1 << 20);
        let meaning = format!("resident memory of a node, {size} jobs wait");
        results.add(&format!("{name}.rss_mib"), resident, &meaning);
        results.add(&format!("{name}.bytes_per_job"), bytes, "of that, for each job");
    }
    Ok(())
}
