//! Jobs a second when many are enqueued in bulk, and what a thousand of them cost.

use std::time::Instant;

use super::{Bench, PAUSE, Plan, Results, load, process, wait_for};
use crate::api::{Error, http_client};

/// What is measured: jobs of one size on one kind of cluster.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// How many jobs.
    pub jobs: usize,
    /// How many bytes each has; none but a number if 0.
    pub bytes: usize,
    /// How often it is measured, each time on a new cluster; the median counts.
    pub repeat: usize,
}

/// What one run gave; the median of several is taken figure by figure.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    jobs_per_s: f64,
    enqueue_per_s: f64,
    /// Of all nodes, for 1,000 jobs; so are the others.
    cpu_s: f64,
    load_cpu_s: f64,
    written_mib: f64,
    folder_mib: f64,
    /// None where the system does not say.
    wire_mib: Option<f64>,
}

/// `w1` (one no-op phase) and `w3` (three) on three nodes: `.jobs_per_s` from the first byte sent
/// until the last job is done, all enqueued through one node that does not coordinate;
/// `.enqueue_per_s` until the last is acknowledged; and for 1,000 jobs `.cpu_s_per_1000`,
/// `.wire_mib_per_1000` between the nodes, `.written_mib_per_1000` to disks, and
/// `.folder_mib_per_1000`, by which the data folders grew. `load.cpu_s_per_1000` is what this
/// process takes for W3.
///
/// # Errors
/// The cluster does not start, or does not finish in time.
pub async fn standard(results: &mut Results, plan: Plan<'_>, case: Case) -> Result<(), Error> {
    for phases in [1, 3] {
        let name = format!("w{phases}");
        let figures = measure(results, &Plan { phases, ..plan }, case).await?;
        let meaning = format!("done, {phases} no-op phases each, {} in bulk", case.jobs);
        results.add(&format!("{name}.jobs_per_s"), figures.jobs_per_s, &meaning);
        let meaning = "acknowledged, each on 3 synced disks";
        results.add(&format!("{name}.enqueue_per_s"), figures.enqueue_per_s, meaning);
        let meaning = "CPU time of all nodes for 1,000 jobs";
        results.add(&format!("{name}.cpu_s_per_1000"), figures.cpu_s, meaning);
        match figures.wire_mib {
            Some(mib) => {
                let meaning = "between the nodes for 1,000 jobs";
                results.add(&format!("{name}.wire_mib_per_1000"), mib, meaning);
            }
            None => println!("  {name}.wire_mib_per_1000 is left out: `ss` of iproute2 is missing"),
        }
        let meaning = "written to the disks of all nodes";
        results.add(&format!("{name}.written_mib_per_1000"), figures.written_mib, meaning);
        let meaning = "by which all data folders grew";
        results.add(&format!("{name}.folder_mib_per_1000"), figures.folder_mib, meaning);
        if phases == 3 {
            let meaning = "CPU time of the load itself (W3)";
            results.add("load.cpu_s_per_1000", figures.load_cpu_s, meaning);
        }
    }
    Ok(())
}

/// `nodes_1` and `nodes_5`: W1 and W3 on clusters of other sizes, with as many replicas as there are
/// nodes, but three at most.
///
/// # Errors
/// As for [`standard`].
pub async fn nodes(results: &mut Results, plan: Plan<'_>, case: Case) -> Result<(), Error> {
    for nodes in [1, 5] {
        for phases in [1, 3] {
            let name = format!("nodes_{nodes}.w{phases}");
            let plan = Plan { nodes, phases, ..plan };
            let figures = measure(results, &plan, case).await?;
            let meaning = format!("W{phases}, nodes: {nodes}");
            results.add(&format!("{name}.jobs_per_s"), figures.jobs_per_s, &meaning);
            let meaning = "CPU time of all nodes for 1,000 jobs";
            results.add(&format!("{name}.cpu_s_per_1000"), figures.cpu_s, meaning);
        }
    }
    Ok(())
}

/// `workers_N.w1.jobs_per_s`: W1 on three replicas that run nothing, and N workers.
///
/// # Errors
/// As for [`standard`].
pub async fn workers(results: &mut Results, plan: Plan<'_>, case: Case) -> Result<(), Error> {
    for workers in [1, 2, 4, 8] {
        let plan = Plan { workers, phases: 1, ..plan };
        let figures = measure(results, &plan, case).await?;
        let meaning = format!("W1, workers beside 3 replicas: {workers}");
        results.add(&format!("workers_{workers}.w1.jobs_per_s"), figures.jobs_per_s, &meaning);
    }
    Ok(())
}

/// `payload_100b`, `payload_10kb` and `payload_1mb`: W1 with jobs of that size, as
/// `.w1.jobs_per_s` and `.w1.mb_per_s` (10^6 bytes of jobs a second).
///
/// # Errors
/// As for [`standard`].
pub async fn payloads(results: &mut Results, plan: Plan<'_>, case: Case) -> Result<(), Error> {
    // Of the larger ones fewer, so that all of them fit into memory.
    for (size, bytes, part) in [("100b", 100, 1), ("10kb", 10_000, 10), ("1mb", 1_000_000, 250)] {
        let case = Case { jobs: (case.jobs / part).max(1), bytes, ..case };
        let figures = measure(results, &Plan { phases: 1, ..plan }, case).await?;
        let name = format!("payload_{size}.w1");
        let meaning = format!("W1, {bytes} bytes each, {} in bulk", case.jobs);
        results.add(&format!("{name}.jobs_per_s"), figures.jobs_per_s, &meaning);
        let mb_per_s = figures.jobs_per_s * bytes as f64 / 1e6;
        results.add(&format!("{name}.mb_per_s"), mb_per_s, "the same in MB of jobs");
    }
    Ok(())
}

/// `partitions.w1_N` and `partitions.w3_N`: W1 and W3 through a pipeline of N partitions, each of which has a
/// coordinator of its own: `.jobs_per_s` and `.enqueue_per_s`. Workers have so many slots that these do not fill up
/// while an attempt and its end are under way: else nothing is measured but that.
///
/// # Errors
/// As for [`standard`].
pub async fn partitions(results: &mut Results, plan: Plan<'_>, case: Case) -> Result<(), Error> {
    for partitions in [1, 3, 6] {
        for phases in [1, 3] {
            let name = format!("partitions.w{phases}_{partitions}");
            let plan = Plan { partitions, phases, phase: "wide", ..plan };
            let figures = measure(results, &plan, case).await?;
            let meaning = format!("W{phases}, partitions: {partitions}");
            results.add(&format!("{name}.jobs_per_s"), figures.jobs_per_s, &meaning);
            let meaning = "acknowledged, each on 3 synced disks";
            results.add(&format!("{name}.enqueue_per_s"), figures.enqueue_per_s, meaning);
        }
    }
    Ok(())
}

async fn measure(results: &mut Results, plan: &Plan<'_>, case: Case) -> Result<Figures, Error> {
    let mut runs = Vec::new();
    for _ in 0..case.repeat.max(1) {
        runs.push(run(results, plan, case).await?);
    }
    let median = |figure: fn(&Figures) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(Figures {
        jobs_per_s: median(|run| run.jobs_per_s),
        enqueue_per_s: median(|run| run.enqueue_per_s),
        cpu_s: median(|run| run.cpu_s),
        load_cpu_s: median(|run| run.load_cpu_s),
        written_mib: median(|run| run.written_mib),
        folder_mib: median(|run| run.folder_mib),
        wire_mib: runs[0].wire_mib.map(|_| median(|run| run.wire_mib.unwrap_or_default())),
    })
}

/// One run on a cluster of its own.
async fn run(results: &mut Results, plan: &Plan<'_>, case: Case) -> Result<Figures, Error> {
    let bench = Bench::start(plan).await?;
    let coordinator = bench.coordinator("a").await?;
    let gateway = bench.gateway().await?;
    let (http, url) = (http_client().build()?, bench.jobs_url(&gateway)?);
    // The first jobs warm connections and caches.
    let warm = case.jobs / 20 + 1;
    load::enqueue(&http, &url, load::lines(warm, case.bytes), warm).await?;
    await_succeeded(results, &bench, &coordinator, warm).await?;
    let lines = load::lines(case.jobs, case.bytes);
    let before = Used::so_far(&bench)?;
    let began = Instant::now();
    load::enqueue(&http, &url, lines, case.jobs).await?;
    let enqueued = began.elapsed();
    await_succeeded(results, &bench, &coordinator, warm + case.jobs).await?;
    let done = began.elapsed();
    let after = Used::so_far(&bench)?;
    let jobs = case.jobs as f64;
    let per_1000 = |figure: fn(&Used) -> f64| (figure(&after) - figure(&before)) / jobs * 1000.0;
    let wire = before.wire_mib.zip(after.wire_mib);
    Ok(Figures {
        jobs_per_s: jobs / done.as_secs_f64(),
        enqueue_per_s: jobs / enqueued.as_secs_f64(),
        cpu_s: per_1000(|used| used.cpu_s),
        load_cpu_s: per_1000(|used| used.load_cpu_s),
        written_mib: per_1000(|used| used.written_mib),
        folder_mib: per_1000(|used| used.folder_mib),
        wire_mib: wire.map(|(before, after)| (after - before) / jobs * 1000.0),
    })
}

/// Waits for as long as it takes, but not for a cluster that stands still: what is missing then is
/// lost.
async fn await_succeeded(
    results: &mut Results,
    bench: &Bench,
    asked: &str,
    count: usize,
) -> Result<(), Error> {
    let api = bench.api(asked)?;
    let mut done = 0;
    while done < count {
        let more = wait_for("more jobs are done", async || {
            let now = bench.succeeded(&api).await? as usize;
            Ok((now > done).then_some(now))
        });
        match more.await {
            Ok(now) if now >= count => return Ok(()),
            Ok(now) => done = now,
            Err(error) => {
                results.lose(count - done);
                return Err(error);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// What all nodes of a cluster have used since they started.
#[derive(Debug, Default)]
struct Used {
    cpu_s: f64,
    written_mib: f64,
    folder_mib: f64,
    wire_mib: Option<f64>,
    /// What this process has used.
    load_cpu_s: f64,
}

impl Used {
    fn so_far(bench: &Bench) -> Result<Self, Error> {
        let load_cpu_s = process::cpu_s(std::process::id())?;
        let mut used = Self { wire_mib: bench.wire_mib().ok(), load_cpu_s, ..Self::default() };
        for pid in bench.pids()? {
            used.cpu_s += process::cpu_s(pid)?;
            used.written_mib += process::written_mib(pid)?;
        }
        for name in bench.names() {
            used.folder_mib += process::folder_mib(&bench.data_folder(name))?;
        }
        Ok(used)
    }
}
