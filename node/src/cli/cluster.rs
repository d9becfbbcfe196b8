//! `carbonmesh node ...`, `phase ls` and `show`, `status` and `version`.

use std::{ffi::OsString, time::Duration};

use clap::Subcommand;
use reqwest::Method;
use serde_json::json;

use super::{
    client::{Client, Typed},
    failure::Failure,
    output::{Output, clean, joined, or_dash, short, table, values},
    pipeline::{list, node},
};
use crate::http::{
    local::LogLevelsDoc,
    view::{NodeDoc, NodesDoc, PhaseDoc, PhasesDoc, StatusDoc, VersionDoc},
};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List the nodes
    Ls,
    /// Show one node
    Show {
        /// Its name, or the first digits of its identity
        node: String,
    },
    /// Change which logs the asked node writes, until it stops; show it if nothing is given
    LogLevel {
        /// A target's level, as carbonmesh::net=debug; or a level for all others
        #[arg(value_name = "[TARGET=]LEVEL")]
        changes: Vec<String>,
        /// First back to how it was at the node's start
        #[arg(long)]
        reset: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum PhaseCommand {
    /// List the phases with their slots
    Ls,
    /// Show one phase, and who offers it
    Show {
        /// Which
        phase: Typed,
    },
    #[command(external_subcommand)]
    File(Vec<OsString>),
}

pub(super) async fn nodes(client: &Client, out: &Output) -> Result<(), Failure> {
    out.answer(&client.get::<NodesDoc>(&["nodes"], &[]).await?, |found| {
        let rows = found.nodes.iter().map(|one| {
            [
                clean(&one.name),
                one.id.chars().take(8).collect(),
                one.liveness.to_string(),
                joined(&one.roles),
                joined(one.phases.iter().map(|of| format!("{}={}", of.phase, of.slots))),
                clean(&one.version),
                or_dash(one.refusing.as_deref().map(short)),
            ]
        });
        table(["NAME", "ID", "STATE", "ROLES", "PHASES", "VERSION", "REFUSING"], rows)
    })
}

pub(super) async fn node_command(
    command: NodeCommand,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    match command {
        NodeCommand::Ls => nodes(client, out).await,
        NodeCommand::Show { node } => show_node(&node, client, out).await,
        NodeCommand::LogLevel { changes, reset } => {
            let get = changes.is_empty() && !reset;
            let method = if get { Method::GET } else { Method::PUT };
            let mut request = client.request(method, &["node", "log-levels"], &[]);
            if !get {
                request = request.json(&json!({ "set": changes, "reset": reset }));
            }
            let answer = client.answer::<LogLevelsDoc>(request, Duration::ZERO).await?;
            out.answer(&answer, |now| clean(&now.levels))
        }
    }
}

async fn show_node(which: &str, client: &Client, out: &Output) -> Result<(), Failure> {
    let found = client.get::<NodesDoc>(&["nodes"], &[]).await?.document;
    let one = node_named(which, &found)?;
    let json = serde_json::to_value(one).map_err(|error| client.unreadable(error.to_string()))?;
    out.document(&json, || node_in_full(one))
}

/// The node of that name, or whose identity begins so.
pub(super) fn node_named<'a>(which: &str, found: &'a NodesDoc) -> Result<&'a NodeDoc, Failure> {
    let named = |one: &&NodeDoc| one.name == which || one.id == which;
    let begins = |one: &&NodeDoc| which.len() >= 4 && one.id.starts_with(which);
    let mut matching: Vec<&NodeDoc> = found.nodes.iter().filter(named).collect();
    if matching.is_empty() {
        matching = found.nodes.iter().filter(begins).collect();
    }
    match matching.as_slice() {
        [one] => Ok(one),
        [] => {
            let names = joined(found.nodes.iter().map(|one| one.name.as_str()));
            Err(Failure::NotFound(format!("there is no node `{which}`; there are {names}")))
        }
        many => {
            let ids = joined(many.iter().map(|one| one.id.as_str()));
            let why = format!("`{which}` is each of {ids}: give more of the identity");
            Err(Failure::NotFound(why))
        }
    }
}

fn node_in_full(one: &NodeDoc) -> String {
    let labels = one.labels.iter().map(|(key, value)| format!("{key}={value}"));
    let head = values([
        ("name", Some(clean(&one.name))),
        ("id", Some(one.id.clone())),
        ("state", Some(one.liveness.to_string())),
        ("version", Some(clean(&one.version))),
        ("roles", Some(joined(&one.roles))),
        ("disk", Some(one.disk.clone())),
        ("boot", Some(one.boot.to_string())),
        ("addresses", Some(joined(&one.addresses))),
        ("labels", Some(joined(labels))),
        ("takes no jobs", one.refusing.as_deref().map(clean)),
    ]);
    let rows =
        one.phases.iter().map(|of| [clean(&of.phase), of.slots.to_string(), of.busy.to_string()]);
    format!("{head}\n\n{}", table(["PHASE", "SLOTS", "BUSY"], rows))
}

pub(super) async fn show_phase(
    which: &Typed,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let which = client.full(which);
    let found = client.get::<PhasesDoc>(&["phases"], &[]).await?.document;
    let Some(one) = found.phases.iter().find(|one| one.phase == which.as_str()) else {
        let names = joined(found.phases.iter().map(|one| one.phase.as_str()));
        let why = format!("no live node offers `{which}`; there are {names}");
        return Err(Failure::NotFound(why));
    };
    let json = serde_json::to_value(one).map_err(|error| client.unreadable(error.to_string()))?;
    out.document(&json, || phase_in_full(one))
}

fn phase_in_full(one: &PhaseDoc) -> String {
    let head = values([
        ("phase", Some(clean(&one.phase))),
        ("slots", Some(one.slots.to_string())),
        ("free", Some(one.free.to_string())),
    ]);
    let rows =
        one.nodes.iter().map(|of| [node(&of.node), of.slots.to_string(), of.free.to_string()]);
    format!("{head}\n\n{}", table(["NODE", "SLOTS", "FREE"], rows))
}

pub(super) async fn phases(client: &Client, out: &Output) -> Result<(), Failure> {
    out.answer(&client.get::<PhasesDoc>(&["phases"], &client.of_namespace()).await?, |found| {
        let rows = found.phases.iter().map(|one| {
            [
                clean(&one.phase),
                one.slots.to_string(),
                one.free.to_string(),
                joined(one.nodes.iter().map(|offer| node(&offer.node))),
            ]
        });
        table(["PHASE", "SLOTS", "FREE", "NODES"], rows)
    })
}

pub(super) async fn status(client: &Client, out: &Output) -> Result<(), Failure> {
    out.answer(&client.get::<StatusDoc>(&["status"], &[]).await?, |status| {
        let of = &status.members;
        let some = |text: String| (text != "-").then_some(text);
        let refusing = status.refusing.iter();
        let refusing = refusing.map(|one| format!("{} ({})", node(&one.node), one.reason));
        let head = values([
            ("node", Some(node(&status.node))),
            ("version", Some(clean(&status.version))),
            (
                "members",
                Some(format!(
                    "{} alive, {} suspect, {} down, {} retired",
                    of.alive, of.suspect, of.down, of.retired
                )),
            ),
            ("nobody offers", some(joined(&status.unoffered_phases))),
            ("take no jobs", some(joined(refusing))),
        ]);
        format!("{head}\n\n{}", list(&status.pipelines))
    })
}

/// This program's version, and the node's if one answers: the former needs no node.
pub(super) async fn version(client: &Client, out: &Output) -> Result<(), Failure> {
    let own = env!("CARGO_PKG_VERSION");
    let node = match client.get::<VersionDoc>(&["version"], &[]).await {
        Ok(answer) => Some(clean(&answer.document.version)),
        Err(Failure::NoNode(_)) => None,
        Err(failure) => return Err(failure),
    };
    out.document(&json!({ "program": own, "node": node }), || {
        let node = node.clone().unwrap_or_else(|| format!("none answers at {}", client.url()));
        values([("program", Some(own.to_owned())), ("node", Some(node))])
    })
}
