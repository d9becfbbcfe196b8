//! `carbonmesh pipeline recover`: gives up lost replicas of a strict pipeline.

use std::time::Duration;

use clap::Args;
use reqwest::Method;
use serde_json::json;

use super::{
    client::{Client, Typed},
    cluster::node_named,
    failure::Failure,
    output::{Output, joined, values},
};
use crate::http::{local::RecoveredDoc, view::NodesDoc};

/// An identity in full: needs no node that knows its name.
const ID_DIGITS: usize = 32;

/// Let a strict pipeline go on whose replicas are lost for good, all but a minority.
///
/// A strict pipeline stands still while no majority of its replicas can be reached: its jobs are safe,
/// and go on by themselves once enough are back. Only if they never come back is this for you. Ask a
/// replica that is left (--api), and name each that is given up: all that it cannot reach. Jobs and
/// ends of phases that only those had are lost. Should they run after all, two groups act at one time
/// until they meet; then theirs yields, and its jobs are taken over as far as they are not contradicted.
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// Which
    name: Typed,
    /// A replica that is given up: its name or identity
    #[arg(long, value_name = "NODE")]
    lost: Vec<String>,
    /// Do it, knowing what may be lost; otherwise it is only told
    #[arg(long)]
    accept_loss: bool,
}

pub(super) async fn run(args: RecoverArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let nodes = client.get::<NodesDoc>(&["nodes"], &[]).await?.document;
    let id = |text: &String| match text.len() == ID_DIGITS {
        true => Ok(text.clone()),
        false => node_named(text, &nodes).map(|one| one.id.clone()),
    };
    let lost = args.lost.iter().map(id).collect::<Result<Vec<_>, _>>()?;
    let name = client.full(&args.name);
    let path = ["pipelines", name.as_str(), "recover"];
    let request = client.request(Method::POST, &path, &[]);
    let request = request.json(&json!({ "lost": lost, "accept_loss": args.accept_loss }));
    out.answer(&client.answer::<RecoveredDoc>(request, Duration::ZERO).await?, |done| {
        values([
            ("pipeline", Some(done.name.clone())),
            ("goes on with", Some(joined(&done.members))),
            ("gave up", Some(joined(&done.lost))),
        ])
    })
}
