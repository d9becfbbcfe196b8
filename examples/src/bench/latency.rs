//! How long one job takes, alone.

use std::time::Instant;

use hdrhistogram::Histogram;
use serde_json::json;

use super::{Bench, Results, histogram};
use crate::api::Error;

/// `single_w3.p50_ms` and `.p99_ms`: one job at a time through three no-op phases, from the request
/// until its result. `enqueue_ack.p50_ms` and `.p99_ms`: until it is acknowledged.
///
/// # Errors
/// The cluster does not start, or a job fails.
pub async fn measure(results: &mut Results, jobs: usize) -> Result<(), Error> {
    let bench = Bench::start("noop", 3).await?;
    let api = bench.api("b")?;
    let (mut whole, mut acknowledged) = (histogram()?, histogram()?);
    // A tenth more come first, so that nothing is done for the first time while it is measured.
    for at in 0..jobs + jobs / 10 {
        let job = json!({ "at": at });
        let began = Instant::now();
        let answer = api.enqueue_with("p", &job, "?wait=30s").await?.success()?;
        let took = began.elapsed();
        if answer["state"] != "succeeded" {
            return Err(format!("a job did not succeed: {answer}").into());
        }
        let began = Instant::now();
        let receipt = api.enqueue("p", &job).await?.success()?;
        let acked = began.elapsed();
        // The next measurement starts on an idle cluster.
        let id = receipt["id"].as_str().unwrap_or_default();
        api.get(&format!("/v1/jobs/{id}?wait=30s")).await?.success()?;
        if at >= jobs / 10 {
            whole.record(took.as_micros() as u64)?;
            acknowledged.record(acked.as_micros() as u64)?;
        }
    }
    let ms = |times: &Histogram<u64>, part| times.value_at_quantile(part) as f64 / 1000.0;
    results.add("single_w3.p50_ms", ms(&whole, 0.5), "one job alone, 3 phases, until its result");
    results.add("single_w3.p99_ms", ms(&whole, 0.99), "the same, 99 of 100");
    results.add("enqueue_ack.p50_ms", ms(&acknowledged, 0.5), "until it is on 3 synced disks");
    results.add("enqueue_ack.p99_ms", ms(&acknowledged, 0.99), "the same, 99 of 100");
    Ok(())
}
