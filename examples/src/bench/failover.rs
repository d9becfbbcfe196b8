//! How long work stands still after a node is killed with signal 9.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};

use super::{Bench, Plan, Results, Start, results::histogram, wait_for};
use crate::api::Error;

/// How long a phase takes while nodes are killed, in ms.
const PHASE_MS: u64 = 200;

/// How many jobs there are when a node is killed: enough to keep all slots busy throughout.
const JOBS: usize = 600;

/// `failover.coordinator_ms_p50` and `_p99`: from the kill of the coordinator until a survivor
/// starts a phase that a new coordinator gave it. `failover.rerun_on_living` counts phases that ran
/// a second time although the worker of the first run lives.
///
/// # Errors
/// The cluster does not start or does not finish.
pub async fn coordinators(
    results: &mut Results,
    plan: Plan<'_>,
    kills: usize,
) -> Result<(), Error> {
    let (mut stopped, mut reruns, mut lost) = (histogram()?, 0, 0);
    for _ in 0..kills {
        let mut bench = Bench::start(&slow(plan)).await?;
        let killed = bench.coordinator("a").await?;
        let survivor = bench.gateway().await?;
        let jobs = begin(&bench, &survivor).await?;
        bench.cluster.kill(&killed)?;
        let at_ms = now_ms();
        let terms: BTreeSet<String> = bench.starts().into_iter().map(|start| start.term).collect();
        let first = wait_for("the first dispatch", async || {
            let new = bench.starts().into_iter().filter(|start| !terms.contains(&start.term));
            Ok(new.map(|start| start.at_ms).min())
        })
        .await?;
        stopped.record(first.saturating_sub(at_ms))?;
        lost += finish(&bench, &survivor, &jobs).await?;
        reruns += rerun_on_living(&bench.starts(), &killed);
    }
    let p50 = stopped.value_at_quantile(0.5) as f64;
    results.add("failover.coordinator_ms_p50", p50, "kill -9 of the coordinator: first dispatch");
    let p99 = stopped.value_at_quantile(0.99) as f64;
    results.add("failover.coordinator_ms_p99", p99, "the same, the slowest");
    let meaning = "phases run again although their worker lives";
    results.add_zero("failover.rerun_on_living", reruns, meaning);
    results.lose(lost);
    Ok(())
}

/// `failover.worker_ms_p50` and `_p99`: from the kill of a worker that does not coordinate until all
/// phases that it ran have started elsewhere.
///
/// # Errors
/// The cluster does not start or does not finish.
pub async fn workers(results: &mut Results, plan: Plan<'_>, kills: usize) -> Result<(), Error> {
    let (mut stopped, mut lost) = (histogram()?, 0);
    for _ in 0..kills {
        let mut bench = Bench::start(&slow(plan)).await?;
        let coordinator = bench.coordinator("a").await?;
        let killed = bench.gateway().await?;
        let jobs = begin(&bench, &coordinator).await?;
        bench.cluster.kill(&killed)?;
        let at_ms = now_ms();
        let before = bench.starts();
        let there = |start: &&Start| start.node == killed && start.at_ms + PHASE_MS > at_ms;
        let running: BTreeSet<(String, String)> = before
            .iter()
            .filter(there)
            .map(|start| (start.job.clone(), start.step.clone()))
            .collect();
        lost += finish(&bench, &coordinator, &jobs).await?;
        let again = bench.starts().into_iter().filter(|start| {
            start.at_ms >= at_ms && running.contains(&(start.job.clone(), start.step.clone()))
        });
        // What had ended and been reported just before the kill does not start again.
        if let Some(last) = again.map(|start| start.at_ms - at_ms).max() {
            stopped.record(last)?;
        }
    }
    if stopped.is_empty() {
        println!("  failover.worker_ms is left out: no worker ran a phase when it was killed");
    } else {
        let p50 = stopped.value_at_quantile(0.5) as f64;
        let meaning = "kill -9 of a worker: its phases run elsewhere";
        results.add("failover.worker_ms_p50", p50, meaning);
        let p99 = stopped.value_at_quantile(0.99) as f64;
        results.add("failover.worker_ms_p99", p99, "the same, the slowest");
    }
    results.lose(lost);
    Ok(())
}

/// Phases take so long that some run when a node is killed.
fn slow(plan: Plan<'_>) -> Plan<'_> {
    Plan { phase: "sleep", ..plan }
}

/// Enqueues jobs, and waits until all slots are busy.
async fn begin(bench: &Bench, node: &str) -> Result<Vec<String>, Error> {
    let jobs: Vec<Value> = (0..JOBS).map(|at| json!({ "at": at, "ms": PHASE_MS })).collect();
    let jobs = bench.enqueue(node, &jobs).await?;
    wait_for("all slots are busy", async || Ok((bench.starts().len() >= 150).then_some(())))
        .await?;
    Ok(jobs)
}

/// Waits until all jobs are done; how many are not.
async fn finish(bench: &Bench, asked: &str, jobs: &[String]) -> Result<usize, Error> {
    let api = bench.api(asked)?;
    let mut lost = 0;
    for job in jobs {
        let view = api.get(&format!("/v1/jobs/{job}?wait=60s")).await?.success()?;
        lost += usize::from(view["state"] != "succeeded");
    }
    Ok(lost)
}

fn rerun_on_living(starts: &[Start], killed: &str) -> usize {
    let mut living: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for start in starts.iter().filter(|start| start.node != killed) {
        *living.entry((&start.job, &start.step)).or_default() += 1;
    }
    living.values().filter(|runs| **runs > 1).count()
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
