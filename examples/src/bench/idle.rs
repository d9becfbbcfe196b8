//! What a node takes that has nothing to do.

use std::time::Duration;

use super::{Bench, Plan, Results, process};
use crate::api::Error;

/// How long the CPU time is counted.
const WATCHED: Duration = Duration::from_secs(10);

/// `idle.rss_mib` and `idle.cpu_percent` (of one core): the worst of three nodes that know one
/// pipeline without jobs.
///
/// # Errors
/// The cluster does not start.
pub async fn measure(results: &mut Results, plan: Plan<'_>) -> Result<(), Error> {
    let bench = Bench::start(&plan).await?;
    // What starting costs is not idling.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pids = bench.pids()?;
    let before: Vec<f64> = pids.iter().map(|pid| process::cpu_s(*pid)).collect::<Result<_, _>>()?;
    tokio::time::sleep(WATCHED).await;
    let mut cpu = 0.0_f64;
    for (pid, before) in pids.iter().zip(before) {
        cpu = cpu.max(process::cpu_s(*pid)? - before);
    }
    results.add("idle.rss_mib", bench.fullest_mib()?, "resident memory of an idle node");
    let percent = cpu / WATCHED.as_secs_f64() * 100.0;
    results.add("idle.cpu_percent", percent, "of one core, an idle node");
    Ok(())
}
