//! `carbonmesh enqueue`: one job; many are the upload's business.

use std::{io::Read, time::Duration};

use carbonmesh_protocol::trace::TraceParent;
use clap::Args;
use jiff::Timestamp;
use reqwest::{Method, header::CONTENT_TYPE};

use super::{
    bulk,
    client::{Client, Typed},
    failure::Failure,
    job,
    output::{Output, table},
};
use crate::{
    document::{format_duration, parse_duration},
    http::view::ReceiptDoc,
};

/// The header of W3C Trace Context.
pub(super) const TRACEPARENT: &str = "traceparent";

#[derive(Debug, Args)]
pub(super) struct EnqueueArgs {
    /// For which pipeline
    pub(super) pipeline: Typed,
    /// The job: a JSON object; `@FILE` reads a file, `-` stdin
    #[arg(value_name = "JSON")]
    pub(super) job: String,
    /// Wait for the job's end, at most this long if a duration is given
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = parse_duration)]
    pub(super) wait: Option<Option<Duration>>,
    /// The job's idempotency key: the same key is the same job
    #[arg(long, value_name = "KEY")]
    pub(super) id: Option<String>,
    /// Begin no earlier than in this time, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "run_at")]
    pub(super) delay: Option<Duration>,
    /// Begin no earlier than at this moment, such as 2030-01-31T12:00:00Z
    #[arg(long, value_name = "MOMENT")]
    pub(super) run_at: Option<Timestamp>,
    /// Give up if it has not ended after this time
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "deadline")]
    pub(super) timeout: Option<Duration>,
    /// Give up if it has not ended at this moment
    #[arg(long, value_name = "MOMENT")]
    pub(super) deadline: Option<Timestamp>,
    /// Of what waits for the same phase, the higher goes first: -100 to 100
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-100..=100))]
    pub(super) priority: Option<i8>,
    /// The span that it is enqueued within: a traceparent of W3C Trace Context
    #[arg(long, value_name = "TRACEPARENT")]
    pub(super) traceparent: Option<TraceParent>,
    /// Read many jobs, one JSON object a line
    #[arg(long, conflicts_with_all = ["wait", "id"])]
    pub(super) ndjson: bool,
    /// The field of each job that holds its idempotency key
    #[arg(long, value_name = "FIELD", requires = "ndjson")]
    pub(super) key: Option<String>,
    /// Leave out this many lines, to go on with an upload that stopped
    #[arg(long, value_name = "LINES", requires = "ndjson", default_value_t = 0)]
    pub(super) skip: u64,
}

pub(super) async fn run(args: EnqueueArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    if args.ndjson {
        return bulk::run(args, client, out).await;
    }
    let pipeline = client.full(&args.pipeline);
    let path = ["pipelines", pipeline.as_str(), "jobs"];
    let options = options(&args);
    let options: Vec<_> = options.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut request = client
        .request(Method::POST, &path, &options)
        .header(CONTENT_TYPE, "application/json")
        .body(read(&args.job)?);
    if let Some(key) = &args.id {
        request = request.header("Idempotency-Key", key);
    }
    if let Some(parent) = args.traceparent {
        request = request.header(TRACEPARENT, parent.to_string());
    }
    let answer = client.answer::<ReceiptDoc>(request, Duration::ZERO).await?;
    match args.wait {
        Some(limit) => {
            let id = &answer.document.id;
            job::wait(id, limit, client, out).await.map_err(|failure| failure.after_accepted(id))
        }
        None => out.answer(&answer, receipt),
    }
}

/// What is said of a job beside what is to be done, as parameters of the request.
pub(super) fn options(args: &EnqueueArgs) -> Vec<(&'static str, String)> {
    let options = [
        ("delay", args.delay.map(format_duration)),
        ("run_at", args.run_at.map(|at| at.to_string())),
        ("timeout", args.timeout.map(format_duration)),
        ("deadline", args.deadline.map(|at| at.to_string())),
        ("priority", args.priority.map(|priority| priority.to_string())),
    ];
    options.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn receipt(receipt: &ReceiptDoc) -> String {
    let yes = |is: bool| (if is { "yes" } else { "no" }).to_owned();
    let copies = format!("{} of {}", receipt.copies, receipt.target);
    let row = [receipt.id.clone(), copies, yes(receipt.degraded), yes(receipt.existed)];
    table(["ID", "COPIES", "DEGRADED", "EXISTED"], [row])
}

fn read(job: &str) -> Result<Vec<u8>, Failure> {
    let bytes = match job.strip_prefix('@') {
        _ if job == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).map(|_| bytes)
        }
        Some(file) => std::fs::read(file),
        None => return Ok(job.as_bytes().to_vec()),
    };
    bytes.map_err(|error| Failure::Usage(format!("cannot read {job}: {error}")))
}
