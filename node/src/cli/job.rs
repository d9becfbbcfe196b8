//! `carbonmesh job ...`, and waiting for a job's end.

use std::time::Duration;

use carbonmesh_protocol::{id::JobId, name::Name, view::JobState};
use clap::{Args, Subcommand};
use reqwest::{Method, header::CONTENT_TYPE};
use serde_json::json;
use tokio::time::Instant;

use super::{
    client::{Answer, Client, Typed},
    failure::Failure,
    output::{Output, clean, or_dash, short, table, values},
    pipeline::node,
};
use crate::{
    document::{format_duration, parse_duration},
    http::view::{ChangedDoc, ExplainDoc, InvocationDoc, JobDoc, JobsDoc},
};

/// How long one request waits for a job's end: short enough to notice soon that the node is gone.
const WAIT_STEP: Duration = Duration::from_secs(30);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List a pipeline's jobs
    Ls {
        /// Of which pipeline
        pipeline: Typed,
        /// What is made of the items of this job, instead
        #[arg(long, value_name = "ID")]
        of: Option<JobId>,
        /// Only those in this state: queued, running, succeeded, dead or cancelled
        #[arg(long)]
        state: Option<JobState>,
        /// How many at most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
        /// Only those behind this one, to read on
        #[arg(long, value_name = "ID")]
        after: Option<JobId>,
    },
    /// Show one job
    Show {
        /// Which
        id: JobId,
        /// Wait for its end, at most this long if a duration is given
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = parse_duration)]
        wait: Option<Option<Duration>>,
    },
    /// Say what a job waits for, and what each node lacks to run it
    Explain {
        /// Which
        id: JobId,
    },
    /// End jobs; what runs is asked to stop, and made to after a while
    Cancel {
        #[command(flatten)]
        which: Which,
        /// Why, for people
        #[arg(long)]
        reason: Option<String>,
    },
    /// Run dead or cancelled jobs again
    Retry {
        #[command(flatten)]
        which: Which,
        /// All of it, not only what did not succeed
        #[arg(long)]
        from_start: bool,
    },
    /// Forget finished jobs
    Discard {
        #[command(flatten)]
        which: Which,
    },
    /// Write a pipeline's jobs to stdout, a document of each on its line
    Export(super::transfer::ExportArgs),
    /// Enqueue jobs that were exported and had not ended; a second time makes none twice
    Import(super::transfer::ImportArgs),
    /// Give a job the signal that a phase of it waits for
    Signal {
        /// Which job
        id: JobId,
        /// Which signal
        name: Name,
        /// What the phase gives: a JSON object
        #[arg(value_name = "JSON", default_value = "{}")]
        data: String,
        /// Fail the job instead, for this reason
        #[arg(long, value_name = "REASON", conflicts_with = "data")]
        fail: Option<String>,
    },
}

/// One job, or all of a pipeline in one state.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// One job
    #[arg(required_unless_present = "pipeline")]
    id: Option<JobId>,
    /// All jobs of this pipeline in one state
    #[arg(long, conflicts_with = "id", requires = "state")]
    pipeline: Option<Typed>,
    /// In which state: queued, running, succeeded, dead or cancelled
    #[arg(long, requires = "pipeline")]
    state: Option<JobState>,
}

pub(super) async fn run(command: Command, client: &Client, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Ls { pipeline, of, state, limit, after } => {
            let of = of.map(|of| of.to_string());
            let (limit, after) = (limit.to_string(), after.map(|after| after.to_string()));
            let mut query = vec![("limit", limit.as_str())];
            query.extend(state.map(|state| ("state", state.name())));
            query.extend(after.as_deref().map(|after| ("after", after)));
            query.extend(of.as_deref().map(|of| ("of", of)));
            let pipeline = client.full(&pipeline);
            let path = ["pipelines", pipeline.as_str(), "jobs"];
            out.answer(&client.get::<JobsDoc>(&path, &query).await?, list)
        }
        Command::Show { id, wait: None } => {
            out.answer(&client.get(&["jobs", &id.to_string()], &[]).await?, show)
        }
        Command::Explain { id } => {
            let path = ["jobs", &id.to_string(), "explain"];
            out.answer(&client.get::<ExplainDoc>(&path, &[]).await?, explain)
        }
        Command::Cancel { which, reason } => {
            change(Method::POST, &which, "cancel", json!({"reason": reason}), client, out).await
        }
        Command::Retry { which, from_start } => {
            change(Method::POST, &which, "retry", json!({"from_start": from_start}), client, out)
                .await
        }
        Command::Discard { which: Which { id: Some(id), .. } } => {
            let request = client.request(Method::DELETE, &["jobs", &id.to_string()], &[]);
            client.text(request, Duration::ZERO).await.map(drop)
        }
        Command::Discard { which } => {
            change(Method::POST, &which, "discard", json!({}), client, out).await
        }
        Command::Signal { id, name, data, fail } => {
            let query = fail.as_deref().map(|fail| ("fail", fail));
            let query: Vec<_> = query.into_iter().collect();
            let path = ["jobs", &id.to_string(), "signals", name.as_str()];
            let request = client.request(Method::POST, &path, &query);
            let request = match fail {
                Some(_) => request,
                None => request.header(CONTENT_TYPE, "application/json").body(data),
            };
            out.answer(&client.answer::<ChangedDoc>(request, Duration::ZERO).await?, changed)
        }
        Command::Export(args) => super::transfer::export(args, client, out).await,
        Command::Import(args) => super::transfer::import(args, client, out).await,
        Command::Show { id, wait: Some(limit) } => wait(&id.to_string(), limit, client, out).await,
    }
}

/// Changes one job, or page by page all of a pipeline in a state.
async fn change(
    method: Method,
    which: &Which,
    how: &str,
    document: serde_json::Value,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    if let Some(id) = &which.id {
        let path = ["jobs", &id.to_string(), how];
        let request = client.request(method, &path, &[]).json(&document);
        return out.answer(&client.answer::<ChangedDoc>(request, Duration::ZERO).await?, changed);
    }
    let pipeline = which.pipeline.as_ref().map(|typed| client.full(typed));
    let pipeline = pipeline.as_ref().map(Name::as_str).unwrap_or_default();
    let state = which.state.map(JobState::name).unwrap_or_default();
    let (mut sum, mut after) = (0, None::<String>);
    loop {
        let mut query = vec![("state", state)];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let path = ["pipelines", pipeline, how];
        let request = client.request(method.clone(), &path, &query);
        let request = match how {
            "discard" => request,
            _ => request.json(&document),
        };
        let mut answer = client.answer::<ChangedDoc>(request, Duration::ZERO).await?;
        sum += answer.document.changed;
        after = answer.document.next.take();
        if after.is_none() {
            answer.document.changed = sum;
            return out.answer(&answer, changed);
        }
    }
}

fn changed(document: &ChangedDoc) -> String {
    match document.changed {
        1 => "1 job changed".to_owned(),
        count => format!("{count} jobs changed"),
    }
}

/// Waits for a job's end, at most for `limit`, and prints it; an end that is no success fails.
pub(super) async fn wait(
    job: &str,
    limit: Option<Duration>,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let answer = wait_for_end(job, limit, client).await?;
    out.answer(&answer, show)?;
    match answer.document.state {
        JobState::Succeeded => Ok(()),
        state => Err(Failure::Ended { job: job.to_owned(), state }),
    }
}

async fn wait_for_end(
    job: &str,
    limit: Option<Duration>,
    client: &Client,
) -> Result<Answer<JobDoc>, Failure> {
    let start = Instant::now();
    loop {
        let left = limit.map(|limit| limit.saturating_sub(start.elapsed()));
        let step = left.map_or(WAIT_STEP, |left| left.min(WAIT_STEP));
        // Whole milliseconds: that is what the node counts in.
        let step = Duration::from_millis(u64::try_from(step.as_millis()).unwrap_or(u64::MAX));
        let text = format_duration(step);
        let request = client.request(Method::GET, &["jobs", job], &[("wait", &text)]);
        let answer = client.answer::<JobDoc>(request, step).await?;
        let state = answer.document.state;
        match limit {
            _ if state.is_terminal() => return Ok(answer),
            Some(limit) if start.elapsed() >= limit => {
                return Err(Failure::StillUnfinished { job: job.to_owned(), state, waited: limit });
            }
            _ => {}
        }
    }
}

fn list(page: &JobsDoc) -> String {
    let rows = page.jobs.iter().map(|job| {
        [
            job.id.clone(),
            job.state.to_string(),
            job.created_at.clone(),
            or_dash(job.step.as_ref()),
            or_dash(job.key.as_deref().map(short)),
            or_dash(job.error.as_deref().map(short)),
        ]
    });
    let jobs = table(["ID", "STATE", "CREATED", "STEP", "KEY", "ERROR"], rows);
    match &page.next {
        Some(next) => format!("{jobs}\nthere may be more: read on with --after {next}"),
        None => jobs,
    }
}

fn show(job: &JobDoc) -> String {
    let json =
        |raw: &Option<Box<serde_json::value::RawValue>>| raw.as_ref().map(|raw| clean(raw.get()));
    let head = values([
        ("id", Some(job.id.clone())),
        ("pipeline", Some(job.pipeline.clone())),
        ("state", Some(job.state.to_string())),
        ("created", Some(job.created_at.clone())),
        ("finished", job.finished_at.clone()),
        ("not before", job.not_before.clone()),
        ("deadline", job.deadline.clone()),
        ("priority", (job.priority != 0).then(|| job.priority.to_string())),
        ("generation", (job.generation > 0).then(|| job.generation.to_string())),
        ("key", job.key.as_deref().map(clean)),
        ("part of", job.parent.as_ref().map(|of| format!("{of}, item {}", job.item.unwrap_or(0)))),
        ("compensates", job.compensates.clone()),
        ("compensated by", job.compensation.clone()),
        ("conflicts", (job.conflicts > 0).then(|| job.conflicts.to_string())),
        ("other payloads", (job.other_payloads > 0).then(|| job.other_payloads.to_string())),
        ("instructions", json(&job.instructions)),
        ("result", json(&job.result)),
    ]);
    let header = ["STEP", "PHASE", "STATE", "ATTEMPTS", "WORKER", "ERROR"];
    format!("{head}\n\n{}", table(header, job.invocations.iter().map(invocation)))
}

fn explain(why: &ExplainDoc) -> String {
    let mut text = format!("{} of {} is {}", why.id, clean(&why.pipeline), why.state);
    why.reasons.iter().for_each(|reason| text += &format!("\n  {}", clean(reason)));
    for phase in &why.phases {
        text += &format!("\n{} is {}", clean(&phase.step), phase.state);
        phase.reasons.iter().for_each(|reason| text += &format!("\n  {}", clean(reason)));
        for of in &phase.nodes {
            let lacks = match &of.lacks[..] {
                [] => "could take it".to_owned(),
                lacks => lacks.iter().map(|it| clean(it)).collect::<Vec<_>>().join("; "),
            };
            text += &format!("\n    {}: {lacks}", node(&of.node));
        }
    }
    text
}

fn invocation(invocation: &InvocationDoc) -> [String; 6] {
    let last = invocation.attempts.last();
    let error = last.and_then(|attempt| attempt.error.as_deref());
    [
        invocation.step.clone(),
        invocation.phase.clone(),
        invocation.state.to_string(),
        match invocation.items {
            Some(items) => format!("{} of {} items", items.ended, items.total),
            None => invocation.attempt_count.to_string(),
        },
        or_dash(last.map(|attempt| node(&attempt.worker))),
        or_dash(invocation.note.as_deref().or(error).map(short)),
    ]
}
