//! `carbonmesh pipeline ...`

use std::{
    ffi::OsString,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use carbonmesh_protocol::{name::Name, view::Counts};
use clap::Subcommand;
use reqwest::Method;

use super::{
    client::{Client, Typed},
    failure::Failure,
    history,
    output::{Output, clean, joined, or_dash, table, values},
};
use crate::{
    document::{PhaseItem, PipelineDocument, graph, json_schema},
    http::view::{AppliedDoc, NodeRef, PipelineDoc, PipelinesDoc},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a pipeline known, or change it for jobs to come
    Apply {
        /// A pipeline document in TOML or JSON; `-` reads stdin
        file: PathBuf,
    },
    /// List the pipelines
    Ls,
    /// Show one pipeline
    Show {
        /// Which
        name: Typed,
    },
    /// Give out no more work of a pipeline, or of one of its phases
    Pause {
        /// Which
        name: Typed,
        /// Only this phase
        #[arg(long)]
        phase: Option<Name>,
    },
    /// Go on with what was paused
    Resume {
        /// Which
        name: Typed,
        /// Only this phase
        #[arg(long)]
        phase: Option<Name>,
    },
    /// List the definitions that a pipeline has and had
    History {
        /// Which
        name: Typed,
    },
    /// Show what applying a file would change, or what has changed since a revision
    Diff {
        /// A pipeline document, if there is such a file; or a pipeline
        what: String,
        /// Since when, as `history` names it; the one before the current if not given
        revision: Option<String>,
    },
    /// Make an earlier definition the current one again, for jobs to come
    Rollback {
        /// Which
        name: Typed,
        /// To which definition, as `history` names it; the one before the current if not given
        revision: Option<String>,
    },
    /// Print the JSON Schema of pipeline documents, for editors
    Schema,
    /// Draw a pipeline's phases
    Graph {
        /// A pipeline; or a pipeline document, if there is such a file
        name: String,
        /// As what
        #[arg(long, value_enum, default_value = "text")]
        format: graph::Format,
    },
    /// Let a strict pipeline go on whose replicas are lost for good, all but a minority
    Recover(super::recover::RecoverArgs),
    /// Remove a pipeline that has no unfinished jobs
    Rm {
        /// Which
        name: Typed,
    },
    #[command(external_subcommand)]
    File(Vec<OsString>),
}

pub(super) async fn run(command: Command, client: &Client, out: &Output) -> Result<(), Failure> {
    match command {
        // A node, and no question to one.
        Command::File(_) => Ok(()),
        Command::Apply { file } => apply(&read(&file)?, client, out).await,
        Command::Ls => {
            let answer = client.get::<PipelinesDoc>(&["pipelines"], &client.of_namespace()).await?;
            out.answer(&answer, |found| list(&found.pipelines))
        }
        Command::Show { name } => {
            let name = client.full(&name);
            let answer = client.get::<PipelineDoc>(&["pipelines", name.as_str()], &[]).await?;
            out.answer(&answer, show)
        }
        Command::Pause { name, phase } => {
            pause(&client.full(&name), phase.as_ref(), "pause", client, out).await
        }
        Command::Resume { name, phase } => {
            pause(&client.full(&name), phase.as_ref(), "resume", client, out).await
        }
        Command::History { name } => history::list(&client.full(&name), client, out).await,
        Command::Diff { what, revision } => {
            history::diff(&what, revision.as_deref(), client, out).await
        }
        Command::Rollback { name, revision } => {
            history::roll_back(&client.full(&name), revision.as_deref(), client, out).await
        }
        Command::Schema => out.text(&json_schema()),
        Command::Graph { name, format } => draw(&name, format, client, out).await,
        Command::Recover(args) => super::recover::run(args, client, out).await,
        Command::Rm { name } => {
            let name = client.full(&name);
            let request = client.request(Method::DELETE, &["pipelines", name.as_str()], &[]);
            client.text(request, Duration::ZERO).await.map(drop)
        }
    }
}

async fn pause(
    name: &Name,
    phase: Option<&Name>,
    how: &'static str,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let query: Vec<_> = phase.map(|phase| ("phase", phase.as_str())).into_iter().collect();
    let request = client.request(Method::POST, &["pipelines", name.as_str(), how], &query);
    let answer = client.answer::<AppliedDoc>(request, Duration::ZERO).await?;
    out.answer(&answer, |applied| {
        let what = match (how, applied.changed) {
            ("pause", _) => "is paused",
            _ => "goes on",
        };
        format!("{} {what}, {} copies", applied.name, applied.copies)
    })
}

/// Draws what a document defines, if there is such a file, else what a node knows.
async fn draw(
    name: &str,
    format: graph::Format,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    let definition = if Path::new(name).is_file() || name == "-" {
        let document = PipelineDocument::from_text(&read(&name.into())?);
        document.and_then(|document| document.definition()).map_err(|error| usage(&error))?
    } else {
        let typed: Typed = name.parse().map_err(|error| usage(&error))?;
        let known = client.full(&typed);
        let answer = client.get::<PipelineDoc>(&["pipelines", known.as_str()], &[]).await?;
        answer.document.definition.definition().map_err(|error| usage(&error))?
    };
    out.text(&graph::draw(&definition, format))
}

/// One line per pipeline.
pub(super) fn list(pipelines: &[PipelineDoc]) -> String {
    table(
        [
            "NAME",
            "PHASES",
            "REPLICAS",
            "COORDINATOR",
            "TERM",
            "QUEUED",
            "RUNNING",
            "SUCCEEDED",
            "DEAD",
        ],
        pipelines.iter().map(|one| {
            let count = |of: fn(&Counts) -> u64| or_dash(one.counts.as_ref().map(of));
            [
                clean(&one.name),
                one.definition.phases.len().to_string(),
                one.replicas.len().to_string(),
                or_dash(one.coordinator.as_ref().map(node)),
                or_dash(one.term),
                count(|counts| counts.queued),
                count(|counts| counts.running),
                count(|counts| counts.succeeded),
                count(|counts| counts.dead),
            ]
        }),
    )
}

/// A node's name, or the first digits of its identity.
pub(super) fn node(node: &NodeRef) -> String {
    match &node.name {
        Some(name) => clean(name),
        None => node.id.chars().take(8).collect(),
    }
}

async fn apply(text: &str, client: &Client, out: &Output) -> Result<(), Failure> {
    let usage = |error: crate::document::DocumentError| Failure::Usage(error.to_string());
    let mut document = PipelineDocument::from_text(text).map_err(usage)?;
    history::place(&mut document, client);
    // Checked here too, so that a mistake in a file needs no node to be found.
    let definition = document.definition().map_err(usage)?;
    for phase in history::left_out(&definition, client).await? {
        eprintln!(
            "note: phase `{phase}` is not there any more; jobs that were enqueued before still run it"
        );
    }
    let path = ["pipelines", definition.name.as_str()];
    let request = client.request(Method::PUT, &path, &[]).json(&document);
    let answer = client.answer::<AppliedDoc>(request, Duration::ZERO).await?;
    out.answer(&answer, applied)
}

pub(super) fn applied(applied: &AppliedDoc) -> String {
    let what = if applied.changed { "applied" } else { "unchanged" };
    format!("{} {what}, revision {}, {} copies", applied.name, applied.revision, applied.copies)
}

pub(super) fn read(file: &PathBuf) -> Result<String, Failure> {
    let text = if file.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    text.map_err(|error| Failure::Usage(format!("cannot read {}: {error}", file.display())))
}

fn show(pipeline: &PipelineDoc) -> String {
    let head = values([
        ("name", Some(clean(&pipeline.name))),
        ("revision", Some(pipeline.revision.clone())),
        ("coordinator", Some(or_dash(pipeline.coordinator.as_ref().map(node)))),
        ("term", pipeline.term.map(|term| term.to_string())),
        ("replicas", Some(joined(pipeline.replicas.iter().map(node)))),
        ("jobs", pipeline.counts.as_ref().map(counts)),
        ("paused", pipeline.paused.then(|| "all of it".to_owned())),
        ("paused phases", some(&pipeline.paused_phases)),
        ("nobody offers", some(&pipeline.unoffered)),
    ]);
    let mut before = None;
    let phases = pipeline.definition.phases.iter().map(|item| {
        let row = phase(item, before.take());
        before = Some(row[0].clone());
        row
    });
    let phases = table(["STEP", "PHASE", "AFTER", "ATTEMPTS", "TIMEOUT"], phases);
    if pipeline.partitions.is_empty() {
        return format!("{head}\n\n{phases}");
    }
    let partitions = pipeline.partitions.iter().enumerate().map(|(at, one)| {
        [
            at.to_string(),
            or_dash(one.coordinator.as_ref().map(node)),
            or_dash(one.term),
            joined(one.replicas.iter().map(node)),
            or_dash(one.counts.as_ref().map(counts)),
        ]
    });
    let partitions = table(["PARTITION", "COORDINATOR", "TERM", "REPLICAS", "JOBS"], partitions);
    format!("{head}\n\n{phases}\n\n{partitions}")
}

fn phase(item: &PhaseItem, before: Option<String>) -> [String; 5] {
    const USUAL: &str = "3";
    match item {
        PhaseItem::Name(name) => {
            [name.clone(), name.clone(), or_dash(before), USUAL.to_owned(), "-".to_owned()]
        }
        PhaseItem::Full(phase) => [
            phase.name.clone(),
            phase.phase.as_ref().unwrap_or(&phase.name).clone(),
            match (&phase.after, &phase.for_each) {
                (None, Some(of)) => format!("each of {of}"),
                (Some(after), _) => joined(after),
                (None, None) => or_dash(before),
            },
            phase.max_attempts.map_or_else(|| USUAL.to_owned(), |attempts| attempts.to_string()),
            or_dash(phase.timeout.as_ref()),
        ],
    }
}

fn counts(counts: &Counts) -> String {
    let Counts { queued, running, items, succeeded, dead, cancelled } = counts;
    let parts = if *items > 0 { format!(" ({items} items unfinished)") } else { String::new() };
    format!(
        "{queued} queued, {running} running{parts}, {succeeded} succeeded, {dead} dead, \
         {cancelled} cancelled"
    )
}

fn some(names: &[String]) -> Option<String> {
    (!names.is_empty()).then(|| joined(names))
}
