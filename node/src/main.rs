//! The program: a node without phases of its own, and the command line.

use std::process::ExitCode;

use carbonmesh::{cli, phase::PhaseRegistry};

fn main() -> ExitCode {
    cli::main_with(PhaseRegistry::default())
}
