//! The command line: a node to run, and a client of the HTTP interface.
//!
//! Data goes to stdout, errors (`error: ...`, then `hint: ...`) and progress to stderr. This knows
//! the interface's documents and nothing of the protocol behind them.

mod bulk;
mod client;
mod cluster;
mod enqueue;
mod failure;
mod file;
mod graph;
mod history;
mod host;
mod job;
mod output;
mod pipeline;
mod source;
mod unanswered;

use std::{io::Write, process::ExitCode};

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::{
    client::{BaseUrl, Client},
    failure::Failure,
    output::{Format, Output},
};
use crate::phase::PhaseRegistry;

const AFTER_HELP: &str = "\
Exit codes:
  0  done
  1  the request was refused: change it
  2  the command line or a file that it names cannot be used
  3  no node answers
  4  the job that was waited for ended dead or cancelled
  5  trouble in the node or the cluster: try again later
  6  time is over";

/// Job pipelines on a cluster without a broker.
#[derive(Debug, Parser)]
#[command(name = "carbonmesh", version, after_help = AFTER_HELP)]
struct Cli {
    /// The node to ask
    #[arg(
        long,
        global = true,
        env = "CARBONMESH_API",
        value_name = "URL",
        default_value = "http://127.0.0.1:7400"
    )]
    api: BaseUrl,
    /// How to print: a table for people, or the interface's JSON for programs
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    Up(Box<crate::config::UpArgs>),
    /// Run a node with all phases and all pipelines of a file of handlers
    Bundle(Box<file::BundleArgs>),
    /// Try programs that run phases
    #[command(subcommand)]
    Host(host::Command),
    /// Define, show and remove pipelines; or run a node for one: `pipeline FILE NAME`
    #[command(subcommand)]
    Pipeline(pipeline::Command),
    /// Enqueue one job, or many
    Enqueue(enqueue::EnqueueArgs),
    /// Show jobs
    #[command(subcommand)]
    Job(job::Command),
    /// Show nodes
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// Show phases that workers offer; or run a node for some: `phase FILE NAME...`
    #[command(subcommand)]
    Phase(cluster::PhaseCommand),
    /// Show the cluster at a glance
    Status,
    /// Print the version of this program and of the node
    Version,
    /// Kill what a node that is gone has left running; nodes start this themselves
    #[command(hide = true, name = crate::phase::groups::Guard::COMMAND)]
    KillOrphans,
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Runs the program; `phases` are those that its nodes offer beside the configured ones.
pub fn main_with(phases: PhaseRegistry) -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Runtime(error)),
    };
    let done = runtime.block_on(run(cli, phases));
    // Not waiting for a thread that may still be blocked in reading stdin.
    runtime.shutdown_background();
    done.map_or_else(|failure| report(&failure), |()| ExitCode::SUCCESS)
}

async fn run(cli: Cli, phases: PhaseRegistry) -> Result<(), Failure> {
    let out = Output::new(cli.output);
    let client = || Client::new(cli.api.clone());
    match cli.command {
        Command::Up(args) => file::run(*args, phases).await,
        Command::Bundle(args) => file::run(args.up(), phases).await,
        Command::Host(command) => host::run(command, &out).await,
        Command::Pipeline(command) => pipeline::run(command, &client()?, &out, phases).await,
        Command::Enqueue(args) => enqueue::run(args, &client()?, &out).await,
        Command::Job(command) => job::run(command, &client()?, &out).await,
        Command::Node(cluster::NodeCommand::Ls) => cluster::nodes(&client()?, &out).await,
        Command::Phase(cluster::PhaseCommand::Ls) => cluster::phases(&client()?, &out).await,
        Command::Phase(cluster::PhaseCommand::File(words)) => file::phase(words, phases).await,
        Command::Status => cluster::status(&client()?, &out).await,
        Command::Version => cluster::version(&client()?, &out).await,
        Command::KillOrphans => {
            crate::phase::groups::guard(std::io::stdin().lock());
            Ok(())
        }
        Command::Completions { shell } => {
            // To memory first: the generator panics if its writer fails.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "carbonmesh", &mut script);
            out.text(&String::from_utf8_lossy(&script))
        }
    }
}

fn report(failure: &Failure) -> ExitCode {
    let mut stderr = std::io::stderr().lock();
    // Nobody is left to tell if stderr is closed.
    if !failure.is_silent() {
        let _ = writeln!(stderr, "error: {failure}");
    }
    if let Some(hint) = failure.hint() {
        let _ = writeln!(stderr, "hint: {hint}");
    }
    failure.exit_code()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wait_takes_a_duration_or_none() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["carbonmesh"], args].concat());
        for good in [
            &["enqueue", "p", "{}", "--wait"] as &[&str],
            &["enqueue", "p", "--wait=30s", "{}"],
            &["enqueue", "p", "-", "--ndjson", "--key", "id", "--skip", "7"],
            &["job", "ls", "p", "--state", "dead", "--limit", "5", "-o", "json"],
            &["--api", "http://[::1]:7400", "status"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["enqueue", "p", "{}", "--wait=soon"] as &[&str],
            &["enqueue", "p", "{}", "--key", "id"],
            &["enqueue", "p", "-", "--ndjson", "--wait"],
            &["enqueue", "p/q", "{}"],
            &["job", "show", "7"],
            &["job", "ls", "p", "--state", "lost"],
            &["--api", "https://localhost", "status"],
            &["--api", "localhost:7400", "status"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
