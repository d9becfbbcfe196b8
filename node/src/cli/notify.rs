//! `carbonmesh notify ls` and `notify test`: whom a node notifies, and whether that works.

use std::time::Duration;

use clap::Subcommand;
use reqwest::Method;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, clean, joined, or_dash, short, table},
};
use crate::http::notify::{NotifyDoc, NotifyTargetDoc, NotifyTestDoc};

/// How long a try may take beside what any request may: a mail server answers in steps.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List whom the asked node notifies, and how that has gone
    Ls {
        /// List what was given up instead
        #[arg(long)]
        dead: bool,
    },
    /// Send a test to a target of the asked node, and say what came of it
    Test {
        /// The target: NAME of [notify.NAME] in the node's configuration file
        name: String,
    },
}

pub(super) async fn run(command: Command, client: &Client, out: &Output) -> Result<(), Failure> {
    match command {
        Command::Ls { dead } => {
            let targets = client.get::<NotifyDoc>(&["notify"], &[]).await?;
            out.answer(&targets, |doc| match dead {
                true => given_up(&doc.targets),
                false => listed(&doc.targets),
            })
        }
        Command::Test { name } => {
            let request = client.request(Method::POST, &["notify", &name, "test"], &[]);
            let tried = client.answer::<NotifyTestDoc>(request, PATIENCE).await?;
            out.answer(&tried, |doc| match doc.delivered {
                true => format!("delivered in {} ms: {}", doc.took_ms, clean(&doc.detail)),
                false => String::new(),
            })?;
            match tried.document.delivered {
                true => Ok(()),
                false => Err(Failure::Undelivered(tried.document.detail)),
            }
        }
    }
}

fn listed(targets: &[NotifyTargetDoc]) -> String {
    if targets.is_empty() {
        return "this node notifies nobody: see [notify.NAME] in docs/notifications.md".to_owned();
    }
    let rows = targets.iter().map(|one| {
        [
            one.name.clone(),
            clean(&one.to),
            one.level.clone(),
            joined(&one.pipelines),
            one.waiting.to_string(),
            one.delivered.to_string(),
            one.failed.to_string(),
            one.dead.to_string(),
            one.dropped.to_string(),
            or_dash(one.error.as_deref().map(short)),
        ]
    });
    let header = [
        "NAME",
        "TO",
        "LEVEL",
        "PIPELINES",
        "WAITING",
        "DELIVERED",
        "FAILED",
        "DEAD",
        "DROPPED",
        "LAST ERROR",
    ];
    table(header, rows)
}

fn given_up(targets: &[NotifyTargetDoc]) -> String {
    let rows = targets.iter().flat_map(|target| {
        target.given_up.iter().map(|dead| {
            [
                target.name.clone(),
                dead.at.clone(),
                dead.kind.clone(),
                dead.attempts.to_string(),
                short(&dead.summary),
                short(&dead.error),
            ]
        })
    });
    table(["TARGET", "AT", "KIND", "TRIES", "WHAT", "ERROR"], rows)
}
