//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::{fault::Kind, work::WorkArgs};

/// Real nodes in namespaces of their own, faults, and a checker of what clients and workers saw.
///
/// Exit codes: 0 nothing was violated, 1 something was, 2 it could not run.
#[derive(Clone, Debug, Parser)]
#[command(name = "carbonmesh-chaos", args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    /// About how long the run takes [default: 2, or 1 without namespaces]
    #[arg(long)]
    minutes: Option<f64>,
    /// Draws the faults; another each time unless given
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// Which faults; all unless given
    #[arg(long, value_delimiter = ',')]
    pub(crate) faults: Vec<Kind>,
    /// Where to leave the report, the history and the nodes' logs
    #[arg(long, default_value = "chaos-report")]
    pub(crate) out: PathBuf,
    /// How many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(3..=9))]
    pub(crate) nodes: u32,
    /// Jobs per second
    #[arg(long, default_value_t = 15.0)]
    pub(crate) rate: f64,
    /// No faults: replace the nodes one after another instead, from this program to the one that was
    /// built with this
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["minutes", "faults", "seed"])]
    pub(crate) upgrade_from: Option<PathBuf>,
    /// Do without namespaces: fewer faults, over loopback
    #[arg(long)]
    pub(crate) reduced: bool,
    /// Where this program, started by itself inside the namespaces, keeps what goes with the run
    #[arg(long, hide = true)]
    pub(crate) inside: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) role: Option<Role>,
}

impl Options {
    /// How long the run may take.
    pub(crate) fn minutes(&self) -> f64 {
        self.minutes.unwrap_or(if self.reduced { 1.0 } else { 2.0 })
    }
}

/// What this program is when a node starts it.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Role {
    /// Run one phase
    #[command(hide = true)]
    Work(WorkArgs),
    /// Check the history of an earlier run again
    Check {
        /// Its history.json
        history: PathBuf,
    },
}
