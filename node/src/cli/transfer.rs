//! `carbonmesh job export` and `job import`: jobs as NDJSON, a job's document on each line.
//!
//! An import enqueues what had not ended, from its start, under the job's own key, or under one that
//! names the exported job. So a second import makes no second job. What had ended is in an export for
//! people and programs to read: only a cluster's own record can say that a phase ran.

use std::{io::Write, time::Duration};

use carbonmesh_protocol::{name::Name, view::JobState};
use clap::Args;
use futures::StreamExt;
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::json;

use super::{
    client::{Client, Typed},
    failure::Failure,
    output::{Output, clean},
    source::Source,
};
use crate::http::view::{JobDoc, JobsDoc, LineDoc, ReceiptDoc};

/// How many jobs are asked for, or sent, at once.
const AT_ONCE: usize = 16;

/// How many jobs are listed at once.
const PAGE: &str = "1000";

/// How many refused lines are shown; the rest are counted.
const SHOWN: u64 = 20;

/// How long to wait if a busy node does not say.
const RETRY_AFTER_S: u64 = 1;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// Of which pipeline
    pipeline: Typed,
    /// Only those in these states: queued, running, succeeded, dead or cancelled
    #[arg(long, value_delimiter = ',')]
    state: Vec<JobState>,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// What `job export` has written; `-` reads stdin
    file: String,
    /// Into this pipeline, whatever they were exported from
    #[arg(long)]
    pipeline: Option<Typed>,
    /// Those that were in these states are enqueued
    #[arg(long, value_delimiter = ',', default_values = ["queued", "running"])]
    state: Vec<JobState>,
}

/// Writes a pipeline's jobs to stdout.
pub(super) async fn export(args: ExportArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let states: Vec<Option<JobState>> = match args.state.as_slice() {
        [] => vec![None],
        some => some.iter().copied().map(Some).collect(),
    };
    let (mut exported, mut gone) = (0_u64, 0_u64);
    let pipeline = client.full(&args.pipeline);
    for state in states {
        let mut after = None::<String>;
        loop {
            let mut query = vec![("limit", PAGE)];
            query.extend(state.map(|state| ("state", state.name())));
            query.extend(after.as_deref().map(|after| ("after", after)));
            let path = ["pipelines", pipeline.as_str(), "jobs"];
            let page = client.get::<JobsDoc>(&path, &query).await?.document;
            let jobs = page.jobs.iter().map(|job| one(&job.id, client));
            let mut jobs = futures::stream::iter(jobs).buffered(AT_ONCE);
            while let Some(job) = jobs.next().await {
                match job? {
                    Some(line) => {
                        out.text(&line)?;
                        exported += 1;
                    }
                    None => gone += 1,
                }
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    if gone > 0 {
        note(&format!("{gone} jobs were forgotten while they were exported"));
    }
    note(&format!("{exported} jobs exported"));
    Ok(())
}

/// A job's document as one line; none if it was forgotten meanwhile.
async fn one(id: &str, client: &Client) -> Result<Option<String>, Failure> {
    match client.get::<JobDoc>(&["jobs", id], &[]).await {
        // What clients wrote is in it as they wrote it; a line's end can only stand between words.
        Ok(answer) => Ok(Some(answer.text.replace(['\n', '\r'], " "))),
        Err(Failure::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// What became of an imported line.
enum Imported {
    Made,
    Existed,
    LeftOut,
    Refused(String),
}

#[derive(Debug, Default)]
struct Tally {
    made: u64,
    existed: u64,
    left_out: u64,
    refused: u64,
}

/// Enqueues jobs that were exported.
pub(super) async fn import(args: ImportArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let name = if args.file == "-" { args.file.clone() } else { format!("@{}", args.file) };
    let mut source = Source::open(&name)?;
    let mut tally = Tally::default();
    loop {
        let chunk = source.chunk().await?;
        if chunk.is_empty() {
            break;
        }
        let lines = chunk.iter().map(|(number, line)| import_line(*number, line, &args, client));
        let mut done = futures::stream::iter(lines).buffered(AT_ONCE);
        while let Some(result) = done.next().await {
            let (number, imported) = result.inspect_err(|_| {
                note("import the file again once that is mended: it makes no job twice");
            })?;
            tally.count(number, imported);
        }
    }
    let Tally { made, existed, left_out, refused } = tally;
    let document = json!({
        "enqueued": made, "existed": existed, "left_out": left_out, "refused": refused,
    });
    out.document(&document, || {
        format!(
            "{made} enqueued, {existed} were there already, {left_out} left out for their state, \
             {refused} refused"
        )
    })?;
    if refused > 0 { Err(Failure::SomeRefused(refused)) } else { Ok(()) }
}

impl Tally {
    fn count(&mut self, number: u64, imported: Imported) {
        match imported {
            Imported::Made => self.made += 1,
            Imported::Existed => self.existed += 1,
            Imported::LeftOut => self.left_out += 1,
            Imported::Refused(why) => {
                self.refused += 1;
                match self.refused {
                    shown if shown <= SHOWN => note(&format!("line {number}: {}", clean(&why))),
                    next if next == SHOWN + 1 => note("further refused lines are only counted"),
                    _ => {}
                }
            }
        }
    }
}

async fn import_line(
    number: u64,
    line: &[u8],
    args: &ImportArgs,
    client: &Client,
) -> Result<(u64, Imported), Failure> {
    let job: JobDoc = match serde_json::from_slice(line) {
        Ok(job) => job,
        Err(error) => {
            let why = format!("it is no document of a job: {error}");
            return Ok((number, Imported::Refused(why)));
        }
    };
    // Parts of a job are made anew by it, as is what undoes it.
    let made_by_another = job.parent.is_some() || job.compensates.is_some();
    if made_by_another || !args.state.contains(&job.state) {
        return Ok((number, Imported::LeftOut));
    }
    if job.key.is_none() && is_known(&job.id, client).await? {
        return Ok((number, Imported::Existed));
    }
    loop {
        let pipeline = args.pipeline.as_ref().map(|typed| client.full(typed));
        match enqueue(&job, pipeline.as_ref(), client).await {
            Ok(receipt) if receipt.existed => return Ok((number, Imported::Existed)),
            Ok(_) => return Ok((number, Imported::Made)),
            Err(Failure::Refused(problem)) if problem.status == 429 => {
                let seconds = problem.retry_after_s.unwrap_or(RETRY_AFTER_S);
                tokio::time::sleep(Duration::from_secs(seconds)).await;
            }
            Err(Failure::Refused(problem)) if problem.status < 500 => {
                return Ok((number, Imported::Refused(problem.detail)));
            }
            Err(Failure::Usage(why)) => return Ok((number, Imported::Refused(why))),
            Err(failure) => return Err(failure),
        }
    }
}

/// Whether the job itself is in this cluster.
async fn is_known(id: &str, client: &Client) -> Result<bool, Failure> {
    match client.get::<JobDoc>(&["jobs", id], &[]).await {
        Ok(_) => Ok(true),
        Err(Failure::Refused(problem)) if problem.status == 404 => Ok(false),
        Err(failure) => Err(failure),
    }
}

async fn enqueue(
    job: &JobDoc,
    pipeline: Option<&Name>,
    client: &Client,
) -> Result<ReceiptDoc, Failure> {
    let Some(instructions) = &job.instructions else {
        return Err(Failure::Usage("it has no instructions".to_owned()));
    };
    let body = instructions.get().replace(['\n', '\r'], " ");
    let priority = job.priority.to_string();
    let mut query = vec![("priority", priority.as_str())];
    query.extend(job.not_before.as_deref().map(|at| ("run_at", at)));
    query.extend(job.deadline.as_deref().map(|at| ("deadline", at)));
    let path = ["pipelines", pipeline.map_or(job.pipeline.as_str(), Name::as_str), "jobs"];
    let key = job.key.clone().unwrap_or_else(|| format!("import:{}", job.id));
    if key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let request = client.request(Method::POST, &path, &query);
        let request = request.header(CONTENT_TYPE, "application/json");
        let request = request.header("Idempotency-Key", key).body(body);
        return Ok(client.answer::<ReceiptDoc>(request, Duration::ZERO).await?.document);
    }
    // A header cannot carry it: it came by a field of the job then.
    let Some(field) = field_with(instructions.get(), &key) else {
        let why = format!("its key `{key}` fits no header, and no field of the job has it");
        return Err(Failure::Usage(why));
    };
    query.push(("key", &field));
    let request = client.request(Method::POST, &path, &query);
    let request = request.header(CONTENT_TYPE, "application/x-ndjson").body(body);
    let line = client.answer::<LineDoc>(request, Duration::ZERO).await?.document;
    match (line.receipt, line.error) {
        (Some(receipt), _) => Ok(receipt),
        (None, Some(problem)) => Err(Failure::Refused(Box::new(problem))),
        (None, None) => Err(client.unreadable("it answers a line with nothing".to_owned())),
    }
}

/// The first field of an object that has that text.
fn field_with(object: &str, text: &str) -> Option<String> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(object).ok()?;
    let (field, _) = object.into_iter().find(|(_, value)| value.as_str() == Some(text))?;
    Some(field)
}

fn note(text: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_fits_no_header_is_found_among_the_fields() {
        let object = r#"{"n": 1, "id": "über", "other": "x"}"#;
        assert_eq!(field_with(object, "über").as_deref(), Some("id"));
        assert_eq!(field_with(object, "nobody"), None);
    }
}
