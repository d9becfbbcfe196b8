//! `carbonmesh enqueue`: one job; many are the upload's business.

use std::{io::Read, time::Duration};

use carbonmesh_protocol::name::Name;
use clap::Args;
use reqwest::{Method, header::CONTENT_TYPE};

use super::{
    bulk,
    client::Client,
    failure::Failure,
    job,
    output::{Output, table},
};
use crate::{document::parse_duration, http::view::ReceiptDoc};

#[derive(Debug, Args)]
pub(super) struct EnqueueArgs {
    /// For which pipeline
    pub(super) pipeline: Name,
    /// The job: a JSON object; `@FILE` reads a file, `-` stdin
    #[arg(value_name = "JSON")]
    pub(super) job: String,
    /// Wait for the job's end, at most this long if a duration is given
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = parse_duration)]
    pub(super) wait: Option<Option<Duration>>,
    /// The job's idempotency key: the same key is the same job
    #[arg(long, value_name = "KEY")]
    pub(super) id: Option<String>,
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
    let path = ["pipelines", args.pipeline.as_str(), "jobs"];
    let mut request = client
        .request(Method::POST, &path, &[])
        .header(CONTENT_TYPE, "application/json")
        .body(read(&args.job)?);
    if let Some(key) = &args.id {
        request = request.header("Idempotency-Key", key);
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
