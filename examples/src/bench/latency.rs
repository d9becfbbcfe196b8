//! How long jobs take: one at a time, and at given rates.
//!
//! Rates are kept by an open loop: a job is sent when its time has come, whether or not the ones
//! before it have been answered, and its time counts from then. A cluster that is too slow cannot
//! hide that by slowing its clients down.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    Bench, Plan, Results,
    load::Gateway,
    results::{MEDIAN_AND_TAIL, PERCENTILES, histogram},
};
use crate::api::Error;

/// Jobs a second.
const RATES: [u32; 3] = [1, 100, 1000];

/// A request that is answered when its job has ended.
const UNTIL_DONE: &str = "/v1/pipelines/p/jobs?wait=30s";

/// A rate counts as held if so much of it was reached.
const HELD: f64 = 0.98;

/// `latency_w3`: of one job at a time through three no-op phases, from the request until its result,
/// and of jobs at each rate (`rate_N`), from the time that each is due. `enqueue_ack`: of one job at
/// a time, until it is acknowledged. A rate that is not held is no failure: `.reached_per_s` says what
/// was, `.failed` how many jobs were refused or not done within 30 s.
///
/// # Errors
/// The cluster does not start, or a job that is alone fails.
pub async fn measure(
    results: &mut Results,
    plan: Plan<'_>,
    jobs: usize,
    seconds: u32,
) -> Result<(), Error> {
    let bench = Bench::start(&plan).await?;
    singles(results, &bench, jobs).await?;
    for rate in RATES {
        at_rate(results, &bench, rate, seconds).await?;
    }
    Ok(())
}

async fn singles(results: &mut Results, bench: &Bench, jobs: usize) -> Result<(), Error> {
    let gateway = Gateway::new(bench.cluster.http("b")?);
    let until_done = gateway.request("POST", UNTIL_DONE, "{}");
    let until_acknowledged = gateway.request("POST", "/v1/pipelines/p/jobs", "{}");
    let (mut whole, mut acknowledged) = (histogram()?, histogram()?);
    // A tenth more come first, so that nothing is done for the first time while it is measured.
    for at in 0..jobs + jobs / 10 {
        let began = Instant::now();
        let answer = gateway.send(&until_done).await?;
        let took = began.elapsed();
        if !succeeded(&answer) {
            let (status, body) = answer;
            let body = String::from_utf8_lossy(&body).into_owned();
            return Err(format!("a job did not succeed: {status} {body}").into());
        }
        let began = Instant::now();
        let (_, receipt) = gateway.send(&until_acknowledged).await?;
        let acked = began.elapsed();
        // The next measurement starts on an idle cluster.
        let receipt: Value = serde_json::from_slice(&receipt)?;
        let id = receipt["id"].as_str().ok_or("a job was not taken")?;
        let shown = gateway.request("GET", &format!("/v1/jobs/{id}?wait=30s"), "");
        results.lose(usize::from(!succeeded(&gateway.send(&shown).await?)));
        if at >= jobs / 10 {
            whole.record(took.as_micros() as u64)?;
            acknowledged.record(acked.as_micros() as u64)?;
        }
    }
    let meaning = "one job alone, 3 phases, until its result";
    results.add_ms("latency_w3", &whole, &MEDIAN_AND_TAIL, meaning);
    let meaning = "until it is on 3 synced disks";
    results.add_ms("enqueue_ack", &acknowledged, &MEDIAN_AND_TAIL, meaning);
    Ok(())
}

/// Jobs at one rate, through all nodes in turn.
async fn at_rate(
    results: &mut Results,
    bench: &Bench,
    rate: u32,
    seconds: u32,
) -> Result<(), Error> {
    let gateways: Vec<Arc<Gateway>> = bench
        .names()
        .iter()
        .map(|name| Ok(Arc::new(Gateway::new(bench.cluster.http(name)?))))
        .collect::<Result<_, Error>>()?;
    let began = Instant::now();
    let (clock, mut due) = mpsc::unbounded_channel();
    // A thread of its own keeps time: the runtime's timers are a millisecond late.
    thread::spawn(move || {
        for at in 0..rate * seconds {
            let next = began + Duration::from_secs(1) * at / rate;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            if clock.send(next).is_err() {
                break;
            }
        }
    });
    let (mut jobs, mut turn) = (JoinSet::new(), gateways.iter().cycle());
    while let Some((due, gateway)) = due.recv().await.zip(turn.next()) {
        jobs.spawn(timed(gateway.clone(), due));
    }
    let (mut times, mut failed) = (histogram()?, 0_usize);
    while let Some(job) = jobs.join_next().await {
        match job? {
            Some(took) => times.record(took.as_micros() as u64)?,
            None => failed += 1,
        }
    }
    let planned = Duration::from_secs(seconds.into());
    let reached = times.len() as f64 / began.elapsed().max(planned).as_secs_f64();
    let name = format!("latency_w3.rate_{rate}");
    let meaning = format!("{rate}/s for {seconds} s, 3 phases, until the result");
    results.add_ms(&name, &times, &PERCENTILES, &meaning);
    results.add(&format!("{name}.reached_per_s"), reached, "jobs done a second");
    results.keep(&format!("{name}.failed"), failed.into());
    if reached < f64::from(rate) * HELD {
        println!(
            "  {rate} jobs a second were not held: {reached:.0} were reached, {failed} failed"
        );
    }
    Ok(())
}

/// How long a job took since it was due; none if it was refused, or did not succeed in time.
async fn timed(gateway: Arc<Gateway>, due: Instant) -> Option<Duration> {
    let request = gateway.request("POST", UNTIL_DONE, "{}");
    let answer = gateway.send(&request).await.ok()?;
    succeeded(&answer).then(|| due.elapsed())
}

/// Whether the answer is a job's document that says so; its state comes among the first fields.
fn succeeded((status, body): &(u16, Vec<u8>)) -> bool {
    let state = b"\"state\":\"succeeded\"";
    *status == 200 && body.windows(state.len()).take(200).any(|window| window == state)
}
