//! Black-box chaos: real nodes, faults, and a checker in the manner of Jepsen's total-queue.
//!
//! ```text
//! outside ─ starts itself within namespaces ─► inside ─ cluster of real nodes ─ node, folder
//!                                                │
//!                     load (agents) ◄────────────┼──────► nemesis ─ faults, or upgrade
//!                         │                      ▼
//!                         └────► history ◄─ journal ◄─ work (the phase that nodes run)
//!                                   │
//!                                checker ─► report, page
//! ```

mod agent;
mod chart;
mod checker;
mod clock;
mod cluster;
mod fault;
mod faults;
mod folder;
mod history;
mod inside;
mod journal;
mod load;
mod nemesis;
mod node;
mod options;
mod outside;
mod page;
mod recovery;
mod report;
mod survey;
mod upgrade;
mod work;

use std::{fs, path::Path, process::ExitCode};

use carbonmesh_examples::api::Error;
use clap::Parser;

use self::options::{Options, Role};

/// The run could not be made.
const COULD_NOT_RUN: u8 = 2;

fn main() -> ExitCode {
    let options = Options::parse();
    let done = match (&options.role, &options.inside) {
        (Some(Role::Work(args)), _) => work::run(args).map(|()| 0).map_err(Error::from),
        (Some(Role::Check { history }), _) => check(history),
        (None, Some(root)) => inside::run(&options, root),
        (None, None) => outside::run(&options),
    };
    match done {
        Ok(code) => code.into(),
        Err(error) => {
            eprintln!("error: {error}");
            COULD_NOT_RUN.into()
        }
    }
}

fn check(path: &Path) -> Result<u8, Error> {
    let history = serde_json::from_slice(&fs::read(path)?)?;
    inside::conclude(&history, path.parent().unwrap_or(Path::new(".")))
}
