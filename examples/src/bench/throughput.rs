//! Jobs a second when many are enqueued in bulk.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Bench, NAMES, Results, process, wait_for};
use crate::api::Error;

/// `NAME.jobs_per_s`, `NAME.enqueue_per_s` and `NAME.cpu_s_per_1000`: from the first byte sent until
/// the last of `jobs` jobs is done, each of `phases` no-op phases, all enqueued through one node
/// that does not coordinate. `lost` counts jobs that were acknowledged and did not succeed.
///
/// # Errors
/// The cluster does not start, or does not finish in time.
pub async fn measure(
    results: &mut Results,
    name: &str,
    phases: usize,
    jobs: usize,
) -> Result<(), Error> {
    let bench = Bench::start("noop", phases).await?;
    let coordinator = bench.coordinator("a").await?;
    let gateway = NAMES.into_iter().find(|name| *name != coordinator).ok_or("no other node")?;
    let bodies =
        |count: usize| -> Vec<Value> { (0..count).map(|at| json!({ "at": at })).collect() };
    // The first jobs warm connections and caches.
    let warm = jobs / 20 + 1;
    bench.enqueue(gateway, &bodies(warm)).await?;
    await_succeeded(&bench, &coordinator, warm).await?;
    let before = cpu_of_all(&bench)?;
    let bodies = bodies(jobs);
    let began = Instant::now();
    let accepted = bench.enqueue(gateway, &bodies).await?.len();
    let enqueued = began.elapsed();
    await_succeeded(&bench, &coordinator, warm + accepted).await?;
    let done = began.elapsed();
    let cpu = cpu_of_all(&bench)? - before;
    let rate = |seconds: f64| jobs as f64 / seconds;
    let meaning = format!("done, {phases} no-op phases each, {jobs} in bulk");
    results.add(&format!("{name}.jobs_per_s"), rate(done.as_secs_f64()), &meaning);
    let meaning = "acknowledged, each on 3 synced disks";
    results.add(&format!("{name}.enqueue_per_s"), rate(enqueued.as_secs_f64()), meaning);
    let meaning = "CPU time of all nodes for 1,000 jobs";
    results.add(&format!("{name}.cpu_s_per_1000"), cpu / jobs as f64 * 1000.0, meaning);
    let lost = warm + accepted - bench.succeeded(&coordinator).await? as usize;
    results.add_zero("lost", lost, "jobs that were acknowledged and are not done");
    Ok(())
}

async fn await_succeeded(bench: &Bench, asked: &str, count: usize) -> Result<(), Error> {
    wait_for("all jobs are done", async || {
        Ok((bench.succeeded(asked).await? as usize >= count).then_some(()))
    })
    .await
}

fn cpu_of_all(bench: &Bench) -> Result<f64, Error> {
    NAMES.iter().try_fold(0.0, |sum, name| Ok(sum + process::cpu_s(bench.cluster.pid(name)?)?))
}
