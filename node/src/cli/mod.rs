//! The command line: a node to run, and a client of the HTTP interface.
//!
//! Data goes to stdout, errors (`error: ...`, then `hint: ...`) and progress to stderr. This knows
//! the interface's documents and nothing of the protocol behind them.

mod audit;
mod backup;
mod bulk;
mod client;
mod cluster;
mod doctor;
mod enqueue;
mod events;
mod failure;
mod file;
mod handler;
mod history;
mod host;
mod job;
mod notify;
mod output;
mod pipeline;
mod reach;
mod recover;
mod reference;
mod rekey;
mod secret;
mod source;
mod token;
mod top;
mod trace;
mod transfer;
mod trust;
mod unanswered;
mod watch;

use std::{io::Write, path::PathBuf, process::ExitCode};

use carbonmesh_protocol::name::Namespace;
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use self::{
    client::{BaseUrl, Client},
    failure::Failure,
    output::{Color, Format, Output},
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
  6  time is over
  7  doctor: something needs a look
  8  doctor: something is broken";

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
    /// Where pipelines and phases are that are named without a namespace [default: default]
    #[arg(long, global = true, env = "CARBONMESH_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// How to print: a table for people, or the interface's JSON for programs, or that as YAML
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Format,
    /// Whether to use colours
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: Color,
    /// Ask again and again, every 2s or as given, and show what there is now
    #[arg(
        long,
        global = true,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = watch::USUAL
    )]
    watch: Option<watch::Every>,
    #[command(flatten)]
    reach: reach::ReachArgs,
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
    /// Keep sources of phases in the cluster, for nodes that accept them
    #[command(subcommand)]
    Handler(handler::Command),
    /// Keep values and secrets for phases in the cluster, sealed with a key of yours
    #[command(subcommand)]
    Secret(secret::Command),
    /// Show nodes
    #[command(subcommand)]
    Node(cluster::NodeCommand),
    /// Show phases that workers offer; or run a node for some: `phase FILE NAME...`
    #[command(subcommand)]
    Phase(cluster::PhaseCommand),
    /// Show whom a node notifies, and try it
    #[command(subcommand)]
    Notify(notify::Command),
    /// Show what happened to a pipeline and its jobs, or in the cluster; with -f go on
    Events(events::EventsArgs),
    /// Show the end of a job's logs; with -f go on until it has ended
    Logs(events::LogsArgs),
    /// Show how a job went: its phases, their attempts, and what hangs on it
    Trace(trace::TraceArgs),
    /// Watch nodes, pipelines and failures on one screen
    Top,
    /// Keys of a cluster: make them, let nodes in, shut them out
    #[command(subcommand)]
    Cluster(trust::Command),
    /// Show the cluster at a glance
    Status,
    /// Look for what is wrong with nodes, their machines and their ways to each other
    Doctor,
    /// Copy the asked node's data folder while the node runs
    Backup(backup::BackupArgs),
    /// Make a new data folder of a backup; no node is needed
    Restore(backup::RestoreArgs),
    /// Have another key open a data folder that is encrypted at rest; its node may run meanwhile
    Rekey(rekey::RekeyArgs),
    /// Print the version of this program and of the node
    Version,
    /// Make tokens for the HTTP interface of nodes
    #[command(subcommand)]
    Token(token::Command),
    /// Check audit logs
    #[command(subcommand)]
    Audit(audit::Command),
    /// Kill what a node that is gone has left running; nodes start this themselves
    #[command(hide = true, name = crate::phase::groups::Guard::COMMAND)]
    KillOrphans,
    /// Write man pages into a folder
    Man {
        /// Which; made if it is not there
        folder: PathBuf,
    },
    /// Print the reference of all commands that docs/cli.md has
    #[command(hide = true)]
    Reference,
    /// Print the document of the HTTP interface (OpenAPI 3.1)
    Openapi,
    /// Print completions for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
}

/// Runs the program; `phases` are those that its nodes offer beside the configured ones.
pub fn main_with(phases: PhaseRegistry) -> ExitCode {
    let cli = Cli::parse();
    crate::tls::install_provider();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Failure::Runtime(error)),
    };
    let done = runtime.block_on(run(cli, phases));
    // Not waiting for a thread that may still be blocked in reading stdin.
    runtime.shutdown_background();
    done.map_or_else(|failure| report(&failure), |()| ExitCode::SUCCESS)
}

impl Cli {
    fn output(&self) -> Output {
        Output::new(self.output, self.color)
    }
}

async fn run(cli: Cli, phases: PhaseRegistry) -> Result<(), Failure> {
    let out = cli.output();
    match cli.watch {
        Some(every) => watch::run(cli, every, Cli::parse).await,
        None => once(cli, &out, phases).await,
    }
}

async fn once(cli: Cli, out: &Output, phases: PhaseRegistry) -> Result<(), Failure> {
    let namespace = cli.namespace.clone();
    let client = || {
        let client = Client::reaching(cli.api.clone(), &cli.reach);
        client.map(|client| client.within(cli.namespace.clone()))
    };
    match cli.command {
        Command::Up(args) => file::run(args.within(namespace), phases).await,
        Command::Bundle(args) => file::run(args.up().within(namespace), phases).await,
        Command::Host(command) => host::run(command, out).await,
        Command::Pipeline(pipeline::Command::File(words)) => {
            file::pipeline(words, namespace, phases).await
        }
        Command::Pipeline(command) => pipeline::run(command, &client()?, out).await,
        Command::Enqueue(args) => enqueue::run(args, &client()?, out).await,
        Command::Job(command) => job::run(command, &client()?, out).await,
        Command::Handler(command) => handler::run(command, &client()?, out).await,
        Command::Secret(secret::Command::Key { file }) => secret::make_key(&file, out),
        Command::Secret(command) => secret::run(command, &client()?, out).await,
        Command::Node(command) => cluster::node_command(command, &client()?, out).await,
        Command::Phase(cluster::PhaseCommand::Ls) => cluster::phases(&client()?, out).await,
        Command::Phase(cluster::PhaseCommand::Show { phase }) => {
            cluster::show_phase(&phase, &client()?, out).await
        }
        Command::Phase(cluster::PhaseCommand::File(words)) => {
            file::phase(words, namespace, phases).await
        }
        Command::Notify(command) => notify::run(command, &client()?, out).await,
        Command::Doctor => doctor::run(&client()?, out).await,
        Command::Backup(args) => backup::back_up(args, &client()?, out).await,
        Command::Restore(args) => backup::restore(args, out),
        Command::Rekey(args) => rekey::run(args, out),
        Command::Man { folder } => reference::man(Cli::command(), &folder, out),
        Command::Reference => out.text(&reference::markdown(Cli::command())),
        Command::Events(args) => events::run(args, &client()?, out).await,
        Command::Logs(args) => events::logs(args, &client()?, out).await,
        Command::Trace(args) => trace::run(args, &client()?, out).await,
        Command::Top => top::run(client()?).await,
        Command::Cluster(command) => trust::run(command, &client()?, out).await,
        Command::Status => cluster::status(&client()?, out).await,
        Command::Version => cluster::version(&client()?, out).await,
        Command::Token(command) => token::run(command, out),
        Command::Audit(command) => audit::run(command, out),
        Command::KillOrphans => {
            crate::phase::groups::guard(std::io::stdin().lock());
            Ok(())
        }
        Command::Openapi => out.text(crate::http::openapi_json().trim_end()),
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

    /// The docs say what there is; with UPDATE_DOCS=1 this writes it there.
    #[test]
    fn the_reference_in_the_docs_is_current() {
        const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/cli.md");
        const MARK: &str = "--lib reference` -->\n";
        let docs = std::fs::read_to_string(PATH).unwrap();
        let (head, _) = docs.split_once(MARK).expect("the mark that the reference begins behind");
        for line in AFTER_HELP.lines().skip(1) {
            let (code, meaning) = line.trim().split_once("  ").expect("a code and its meaning");
            let row = format!("| {code} | {meaning} |");
            assert!(head.contains(&row), "{row} is not in docs/cli.md");
        }
        let current = format!("{head}{MARK}{}", reference::markdown(Cli::command()));
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(PATH, &current).unwrap();
        } else {
            assert!(docs == current, "docs/cli.md is old: run this test with UPDATE_DOCS=1");
        }
    }

    #[test]
    fn every_command_gets_a_man_page() {
        let folder = tempfile::tempdir().unwrap();
        let out = Output::new(Format::Table, Color::Never);
        reference::man(Cli::command(), folder.path(), &out).unwrap();
        let page = std::fs::read_to_string(folder.path().join("carbonmesh-pipeline-recover.1"));
        assert!(page.unwrap().contains("accept"), "its options are in it");
        assert!(folder.path().join("carbonmesh.1").exists());
        assert!(!folder.path().join("carbonmesh-kill-orphans.1").exists());
    }

    #[test]
    fn only_looks_are_watched() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["carbonmesh"], args].concat()).unwrap();
        assert!(parse(&["status", "--watch"]).watch.is_some());
        assert!(parse(&["--watch=5s", "job", "ls", "p"]).watch.is_some());
        assert!(parse(&["node", "ls"]).watch.is_none());
    }

    #[test]
    fn a_traceparent_is_one_or_refused_by_its_name() {
        let parse = |parent: &str| {
            Cli::try_parse_from(["carbonmesh", "enqueue", "p", "{}", "--traceparent", parent])
        };
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(parse(parent).is_ok());
        let error = parse("00-4bf9-00f0-01").expect_err("it is refused").to_string();
        assert!(
            error.contains("--traceparent") && error.contains("00-TRACE-SPAN-FLAGS"),
            "{error}"
        );
    }

    #[test]
    fn wait_takes_a_duration_or_none() {
        let parse = |args: &[&str]| Cli::try_parse_from([&["carbonmesh"], args].concat());
        for good in [
            &["enqueue", "p", "{}", "--wait"] as &[&str],
            &["enqueue", "p", "--wait=30s", "{}"],
            &["enqueue", "p", "-", "--ndjson", "--key", "id", "--skip", "7"],
            &["job", "ls", "p", "--state", "dead", "--limit", "5", "-o", "json"],
            &["events", "p", "-f", "--kind", "dead,log", "--kind", "gap"],
            &["events", "--follow"],
            &["enqueue", "team/p", "{}"],
            &["pipeline", "ls", "--namespace", "team"],
            &["logs", "-f", "0192e4a1-7c3b-7def-8123-456789abcdef"],
            &["--api", "http://[::1]:7400", "status"],
            &["status", "--api", "https://oak:7400", "--token-file", "t", "--ca-file", "c"],
            &["token", "create", "--name", "ci", "--scope", "read:*,enqueue:p", "--expires", "30d"],
            &["audit", "verify", "audit.ndjson"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            &["enqueue", "p", "{}", "--wait=soon"] as &[&str],
            &["enqueue", "p", "{}", "--key", "id"],
            &["enqueue", "p", "-", "--ndjson", "--wait"],
            &["enqueue", "p/q/r", "{}"],
            &["--namespace", "a/b", "status"],
            &["job", "show", "7"],
            &["job", "ls", "p", "--state", "lost"],
            &["--api", "ftp://localhost", "status"],
            &["--tls-fingerprint", "ab", "status"],
            &["token", "create", "--name", "ci"],
            &["token", "create", "--name", "ci", "--scope", "write:*"],
            &["audit", "verify"],
            &["events", "p", "--kind", "lost"],
            &["events", "--job", "0192e4a1-7c3b-7def-8123-456789abcdef"],
            &["logs", "7"],
            &["--api", "localhost:7400", "status"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
