//! What a job costs where much else is there: jobs that wait, jobs that are done, other pipelines.
//!
//! Costs are CPU time of all nodes, which tells more of a node's work than a rate does, and is steadier.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Bench, PATIENCE, Plan, Results, load, process, wait_for};
use crate::api::{Api, Error, http_client};

/// With how many jobs a cost is measured: they take a second of CPU time or more, which is told in hundredths.
const SAMPLE: usize = 20_000;

/// How many jobs wait, and the last part of that figure's name.
const QUEUED: [(usize, &str); 5] = [
    (1000, "queued_1e3"),
    (10_000, "queued_1e4"),
    (100_000, "queued_1e5"),
    (1_000_000, "queued_1e6"),
    (10_000_000, "queued_1e7"),
];

/// Of how many jobs on it is one node that is measured, which has as much to do for each at any number: three
/// would take three times as much of the disk and of the memory.
const ALONE: usize = 10_000_000;

/// How long nodes have for what they do in the background, after many jobs.
const SETTLED: Duration = Duration::from_secs(3);

/// What a job takes of a node's memory, in bytes, and somewhat more.
const JOB_BYTES: usize = 150;

/// How often it is asked how many are done: with a thousand pipelines, answering that is work.
const ASKED_EVERY: Duration = Duration::from_millis(250);

/// How many jobs go into one request.
const BATCH: usize = 10_000;

/// With how many jobs a cost is measured where what RocksDB does in the background is a part of it: that
/// comes in bursts, one for some ten thousand jobs.
const LONG_SAMPLE: usize = 100_000;

/// How many jobs are done already where that is measured, and how many pipelines there are.
const DONE: usize = 500_000;
const PIPELINES: usize = 1000;

/// How many rounds one cost may take: twice as many as it takes where nobody takes over.
const MOST_ROUNDS: usize = 2 * SAMPLE / QUEUED[0].0;
const CHANGES: &str = "one coordinator follows upon the other: the costs would be wrong";

/// Room for all of that.
const LIMITS: &str =
    "[limits]\nwaiting_jobs = 100_000_000\nwaiting_bytes = 1_000_000_000_000\npipelines = 2000\n";

/// `growth.queued_1eN.cpu_ms_per_1000`: what it takes to run jobs through one no-op phase where 10^N wait in
/// front of it, as they were enqueued while the pipeline was paused; `growth.queued.ratio` compares the most
/// with the fewest. Where fewer wait than are measured, they are run and replaced in several rounds, each
/// with its pause. On one node, if `most` is 10^7: `growth.alone...`.
///
/// # Errors
/// The cluster does not start, refuses a job, or does not finish in time.
pub async fn queued(results: &mut Results, plan: Plan<'_>, most: usize) -> Result<(), Error> {
    let sizes =
        |least: usize| QUEUED.iter().filter(move |(size, _)| *size <= most && *size < least);
    waiting(results, Plan { nodes: 3, ..plan }, "growth", sizes(ALONE)).await?;
    if most < ALONE {
        println!("  growth.alone is left out: --queued {ALONE} measures it");
        return Ok(());
    }
    let ends = QUEUED.iter().filter(|(size, _)| *size == QUEUED[0].0 || *size == ALONE);
    waiting(results, Plan { nodes: 1, ..plan }, "growth.alone", ends).await
}

async fn waiting(
    results: &mut Results,
    plan: Plan<'_>,
    prefix: &str,
    sizes: impl Iterator<Item = &'static (usize, &'static str)>,
) -> Result<(), Error> {
    let grown = Grown::start(&Plan { phases: 1, config: LIMITS, ..plan }).await?;
    grown.pause(true).await?;
    let (mut there, mut costs) = (0, Vec::new());
    // The first jobs warm connections and caches.
    grown.enqueue(SAMPLE / 4).await?;
    grown.pause(false).await?;
    grown.await_succeeded(results, SAMPLE / 4).await?;
    grown.pause(true).await?;
    for (size, name) in sizes {
        let needed = (size * JOB_BYTES * plan.nodes) >> 20;
        let free = process::available_mib()? as usize;
        if needed > free {
            println!("  {prefix}.{name} is left out: {needed} MiB needed, {free} MiB free");
            continue;
        }
        let (mut cpu_s, mut done, mut rounds) = (0.0, 0, 0);
        // Where few wait, they are run and replaced several times.
        while done < SAMPLE {
            let missing = size - there;
            there += grown.enqueue(missing).await?;
            grown.settle(missing).await;
            let coordinator = grown.coordinator().await?;
            let (before, began) = (grown.succeeded().await?, grown.cpu_s()?);
            grown.pause(false).await?;
            grown.await_succeeded(results, before + SAMPLE.min(*size)).await?;
            grown.pause(true).await?;
            grown.await_idle().await?;
            let took = grown.cpu_s()? - began;
            let ran = grown.succeeded().await?.saturating_sub(before);
            there = there.saturating_sub(ran);
            // A takeover is no part of what a job costs.
            if grown.coordinator().await? == coordinator {
                (cpu_s, done) = (cpu_s + took, done + ran);
            }
            rounds += 1;
            if rounds > MOST_ROUNDS {
                return Err(CHANGES.into());
            }
        }
        let cost = cpu_s / done as f64 * 1e6;
        let meaning = format!("CPU time of 1,000 jobs, {size} wait (nodes: {})", plan.nodes);
        results.add(&format!("{prefix}.{name}.cpu_ms_per_1000"), cost, &meaning);
        costs.push(cost);
    }
    if let [first, .., last] = costs[..] {
        let meaning = "the same, most by fewest";
        results.add(&format!("{prefix}.queued.ratio"), last / first, meaning);
    }
    Ok(())
}

/// `growth.first`, `growth.done_5e5` and `growth.pipelines_1e3`: what W1 takes, enqueueing included, where
/// nothing else is there, where half a million jobs are done that are still kept, and where there are a
/// thousand pipelines beside that; `.ratio` compares the last two with the first.
///
/// # Errors
/// As for [`queued`].
pub async fn kept(results: &mut Results, plan: Plan<'_>) -> Result<(), Error> {
    let grown = Grown::start(&Plan { nodes: 3, phases: 1, config: LIMITS, ..plan }).await?;
    // The first jobs warm connections and caches.
    grown.run(results, SAMPLE / 4).await?;
    let first = grown.cost(results, LONG_SAMPLE).await?;
    let meaning = "CPU time of 1,000 jobs of W1, nothing else is there";
    results.add("growth.first.cpu_ms_per_1000", first, meaning);
    let done = grown.succeeded().await?;
    grown.run(results, DONE.saturating_sub(done)).await?;
    let cost = grown.cost(results, LONG_SAMPLE).await?;
    let meaning = format!("the same, {DONE} jobs are done and kept");
    results.add("growth.done_5e5.cpu_ms_per_1000", cost, &meaning);
    results.add("growth.done_5e5.ratio", cost / first, "of the first");
    for at in 1..PIPELINES {
        let phase = json!({ "name": "s", "phase": plan.phase });
        let other = json!({ "name": format!("other{at}"), "phases": [phase] });
        grown.bench.api("a")?.apply(&other).await?;
    }
    grown.await_coordinators().await?;
    let cost = grown.cost(results, LONG_SAMPLE).await?;
    let meaning = format!("the same, and there are {PIPELINES} pipelines");
    results.add("growth.pipelines_1e3.cpu_ms_per_1000", cost, &meaning);
    results.add("growth.pipelines_1e3.ratio", cost / first, "of the first");
    Ok(())
}

/// A cluster that is asked through its coordinator, whoever that is.
struct Grown {
    bench: Bench,
    http: reqwest::Client,
    url: String,
}

impl Grown {
    async fn start(plan: &Plan<'_>) -> Result<Self, Error> {
        let bench = Bench::start(plan).await?;
        let url = bench.jobs_url(&bench.gateway().await?)?;
        Ok(Self { bench, http: http_client().build()?, url })
    }

    /// Enqueues jobs. Says how many.
    async fn enqueue(&self, jobs: usize) -> Result<usize, Error> {
        let mut left = jobs;
        while left > 0 {
            let batch = left.min(BATCH);
            load::enqueue(&self.http, &self.url, load::lines(batch, 0), batch).await?;
            left -= batch;
        }
        Ok(jobs)
    }

    /// CPU time of 1,000 jobs that are enqueued and done.
    async fn cost(&self, results: &mut Results, jobs: usize) -> Result<f64, Error> {
        for _ in 0..MOST_ROUNDS {
            self.settle(SAMPLE).await;
            let (coordinator, began) = (self.coordinator().await?, self.cpu_s()?);
            self.run(results, jobs).await?;
            let cost = (self.cpu_s()? - began) / jobs.max(1) as f64 * 1e6;
            // A takeover is no part of what a job costs.
            if self.coordinator().await? == coordinator {
                return Ok(cost);
            }
        }
        Err(CHANGES.into())
    }

    /// Enqueues jobs, and waits until they are done.
    async fn run(&self, results: &mut Results, jobs: usize) -> Result<(), Error> {
        let before = self.succeeded().await?;
        self.enqueue(jobs).await?;
        self.await_succeeded(results, before + jobs).await
    }

    /// After many jobs: waits until what is done with them in the background is over, for the most part.
    async fn settle(&self, jobs: usize) {
        if jobs >= SAMPLE {
            tokio::time::sleep(SETTLED).await;
        }
    }

    async fn coordinator(&self) -> Result<String, Error> {
        self.bench.coordinator("a").await
    }

    async fn api(&self) -> Result<Api, Error> {
        self.bench.api(&self.coordinator().await?)
    }

    async fn pause(&self, paused: bool) -> Result<(), Error> {
        let what = if paused { "pause" } else { "resume" };
        let path = format!("/v1/pipelines/p/{what}");
        self.api().await?.post(&path, &json!({})).await?.success()?;
        Ok(())
    }

    /// Waits until no attempt runs.
    async fn await_idle(&self) -> Result<(), Error> {
        wait_for("nothing runs", async || {
            let pipeline = self.api().await?.get("/v1/pipelines/p").await?.success()?;
            Ok((pipeline["counts"]["running"] == 0).then_some(()))
        })
        .await
    }

    /// Waits until every pipeline has a coordinator.
    async fn await_coordinators(&self) -> Result<(), Error> {
        wait_for("each pipeline has a coordinator", async || {
            let list = self.bench.api("a")?.get("/v1/pipelines?limit=1000").await?.success()?;
            let led = |it: &Value| !it["coordinator"].is_null();
            let all = list["pipelines"].as_array();
            let all = all.is_some_and(|all| all.len() == PIPELINES && all.iter().all(led));
            Ok(all.then_some(()))
        })
        .await
    }

    async fn succeeded(&self) -> Result<usize, Error> {
        Ok(self.bench.succeeded(&self.api().await?).await? as usize)
    }

    /// Waits for as long as it takes, but not for a cluster that stands still.
    async fn await_succeeded(&self, results: &mut Results, count: usize) -> Result<(), Error> {
        let (mut done, mut since) = (self.succeeded().await?, Instant::now());
        while done < count {
            tokio::time::sleep(ASKED_EVERY).await;
            let now = self.succeeded().await?;
            if now > done {
                (done, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                results.lose(count - done);
                return Err(format!("{done} of {count} jobs are done, and no more are").into());
            }
        }
        Ok(())
    }

    /// What all nodes have used so far.
    fn cpu_s(&self) -> Result<f64, Error> {
        self.bench.pids()?.into_iter().try_fold(0.0, |sum, pid| Ok(sum + process::cpu_s(pid)?))
    }
}
