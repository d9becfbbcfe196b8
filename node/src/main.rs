//! The program: a node without phases of its own, and the command line.

use std::process::ExitCode;

use carbonmesh::{cli, phase::PhaseRegistry};

/// A node makes and drops millions of small records; the system's allocator took a sixth of the
/// core's time under load.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    cli::main_with(PhaseRegistry::default())
}
