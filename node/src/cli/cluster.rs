//! `carbonmesh node ls`, `phase ls`, `status` and `version`.

use std::ffi::OsString;

use clap::Subcommand;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, clean, joined, or_dash, short, table, values},
    pipeline::{list, node},
};
use crate::http::view::{NodesDoc, PhasesDoc, StatusDoc, VersionDoc};

#[derive(Debug, Subcommand)]
pub(super) enum NodeCommand {
    /// List the nodes
    Ls,
}

#[derive(Debug, Subcommand)]
pub(super) enum PhaseCommand {
    /// List the phases with their slots
    Ls,
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

pub(super) async fn phases(client: &Client, out: &Output) -> Result<(), Failure> {
    out.answer(&client.get::<PhasesDoc>(&["phases"], &[]).await?, |found| {
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
    if out.is_json() {
        return out.text(&serde_json::json!({ "program": own, "node": node }).to_string());
    }
    let node = node.unwrap_or_else(|| format!("none answers at {}", client.url()));
    out.text(&values([("program", Some(own.to_owned())), ("node", Some(node))]))
}
