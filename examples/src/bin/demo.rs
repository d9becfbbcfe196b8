//! A cluster of three nodes on this machine loses its coordinator in the middle of its work, and no
//! job.
//!
//! Two nodes keep jobs and run phases; a third only takes jobs in. Two pipelines run at once: one
//! makes files, hashes and deletes them; the other hashes, compresses and indexes every source file
//! of this repository. The coordinator is killed with signal 9 while they run. In the end every
//! promise is checked, and the exit code says whether all were kept.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use carbonmesh_examples::{
    api::{Api, Error},
    local::{LocalCluster, NodeOptions, program},
};
use clap::Parser;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Where every node that is asked answers.
const GATEWAY: &str = "gate";
const KEEPERS: [&str; 2] = ["oak", "elm"];
const FILES: &str = "carbontube";
const SOURCES: &str = "sources";

#[derive(Parser)]
#[command(about = "Kills a cluster's coordinator while jobs run, and shows that none is lost")]
struct Options {
    /// How many files the first pipeline makes.
    #[arg(long, default_value_t = 400)]
    files: usize,
    /// The folder whose source files the second pipeline reads.
    #[arg(long, default_value = ".")]
    sources: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Error> {
    let began = Instant::now();
    println!("CarbonMesh demo: three nodes, two pipelines, one kill -9.\n");
    let mut cluster = start_cluster()?;
    let api = cluster.api(GATEWAY)?;
    let runs = cluster.folder().join("runs");
    let work = cluster.folder().join("work");
    fs::create_dir(&work)?;
    wait_for_members(&api).await?;
    for pipeline in pipelines() {
        api.apply(&pipeline).await?;
    }
    println!("Applied pipelines {FILES} (generate-file, calculate-hash, delete-file)");
    println!("              and {SOURCES} (hash, compress, index).\n");

    let sources = source_files(&options.sources)?;
    let made: Vec<Value> = (0..options.files)
        .map(|seed| json!({ "folder": work, "seed": seed, "bytes": 20_000 }))
        .collect();
    let read: Vec<Value> = sources.iter().map(|path| json!({ "path": path })).collect();
    let mut jobs = enqueue(&api, FILES, &made).await?;
    jobs.extend(enqueue(&api, SOURCES, &read).await?);
    let total = jobs.len();
    println!("Enqueued {total} jobs through `{GATEWAY}`, which neither keeps nor runs any;");
    println!("each was on 2 disks before it was acknowledged.\n");

    let display = Display::new(total as u64);
    let killed = watch_and_kill(&mut cluster, &api, &display, total).await?;
    display.finish();
    prove(&api, &jobs, &sources, &runs, &killed).await?;
    println!("\nThe whole demo took {:.1} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// Starts the nodes; their roles differ.
fn start_cluster() -> Result<LocalCluster, Error> {
    let mut cluster = LocalCluster::new(program("carbonmesh")?)?;
    let phases = program("file-phases")?;
    let runs = cluster.folder().join("runs");
    let names = ["generate-file", "calculate-hash", "delete-file", "hash", "compress", "index"];
    let config: String = names
        .iter()
        .map(|name| {
            format!(
                "[phases.{name}]\nslots = 2\ncommand = [{phases:?}, {name:?}]\n\
                 env = {{ FILE_PHASES_RUNS = {runs:?} }}\n\n"
            )
        })
        .collect();
    for name in KEEPERS {
        let roles = "worker,replica".to_owned();
        let config = config.clone();
        cluster.start(name, NodeOptions { roles, config, ..NodeOptions::default() })?;
        println!("Started node `{name}`: worker, replica.");
    }
    let roles = "gateway".to_owned();
    cluster.start(GATEWAY, NodeOptions { roles, ..NodeOptions::default() })?;
    println!("Started node `{GATEWAY}`: gateway.\n");
    Ok(cluster)
}

fn pipelines() -> [Value; 2] {
    [
        json!({ "name": FILES, "phases": ["generate-file", "calculate-hash", "delete-file"] }),
        json!({ "name": SOURCES, "phases": ["hash", "compress", "index"] }),
    ]
}

async fn wait_for_members(api: &Api) -> Result<(), Error> {
    let deadline = Instant::now() + Duration::from_secs(15);
    while Instant::now() < deadline {
        let status = api.get("/v1/status").await?.success()?;
        if status["members"]["alive"] == 3 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Err("the nodes did not find each other within 15 s".into())
}

/// Every source file of the repository.
fn source_files(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    let mut open = vec![fs::canonicalize(root)?];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                open.push(path);
            } else if ["rs", "toml", "md", "sh"]
                .iter()
                .any(|end| name.ends_with(&format!(".{end}")))
            {
                files.push(path);
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(format!("no source files in {}", root.display()).into());
    }
    Ok(files)
}

/// A job that was acknowledged.
struct Job {
    id: String,
    pipeline: &'static str,
    number: usize,
}

async fn enqueue(api: &Api, pipeline: &'static str, jobs: &[Value]) -> Result<Vec<Job>, Error> {
    let answers = api.enqueue_bulk(pipeline, jobs).await?;
    let accepted = answers.iter().enumerate().map(|(number, answer)| {
        let id = answer["id"].as_str().ok_or_else(|| format!("a job was refused: {answer}"))?;
        if answer["copies"].as_u64() < Some(2) {
            return Err(format!("a job has fewer than two copies: {answer}").into());
        }
        Ok(Job { id: id.to_owned(), pipeline, number })
    });
    let accepted = accepted.collect::<Result<Vec<_>, Error>>()?;
    if accepted.len() != jobs.len() {
        return Err(format!("{} jobs, but {} answers", jobs.len(), accepted.len()).into());
    }
    Ok(accepted)
}

/// What is known of the kill.
struct Killed {
    node: String,
    /// Its id, as attempts that it gave out name it.
    id: String,
    at: Timestamp,
    at_done: u64,
    new_coordinator: Option<String>,
}

/// Shows what happens; kills the coordinator when a third is done; ends when all are.
async fn watch_and_kill(
    cluster: &mut LocalCluster,
    api: &Api,
    display: &Display,
    total: usize,
) -> Result<Killed, Error> {
    let deadline = Instant::now() + Duration::from_secs(55);
    let mut killed: Option<(Instant, Killed)> = None;
    loop {
        if Instant::now() > deadline {
            return Err("not all jobs were done within 55 s".into());
        }
        let status = api.get("/v1/status").await?.success()?;
        let done = display.show(&status);
        match &mut killed {
            None if done >= total as u64 / 3 => {
                let Some(node) = cluster.coordinator(GATEWAY, FILES).await? else { continue };
                let id = cluster.id(&node)?.to_owned();
                cluster.kill(&node)?;
                let at = Timestamp::now();
                display.say(&format!(
                    "kill -9 `{node}`, the coordinator, with {done} of {total} jobs done"
                ));
                let at_done = done;
                let it = Killed { node, id, at, at_done, new_coordinator: None };
                killed = Some((Instant::now(), it));
            }
            Some((at, killed)) => {
                let now = cluster.coordinator(GATEWAY, FILES).await?;
                if killed.new_coordinator.is_none() && now.is_some() {
                    let name = now.clone().unwrap_or_default();
                    display.say(&format!(
                        "`{name}` coordinates, {:.2} s after the kill",
                        at.elapsed().as_secs_f64()
                    ));
                    killed.new_coordinator = now;
                }
            }
            None => {}
        }
        if done == total as u64 {
            let Some((_, killed)) = killed else {
                return Err("all jobs were done before the kill: give it more with --files".into());
            };
            return Ok(killed);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the terminal shows while jobs run.
struct Display {
    members: ProgressBar,
    counts: ProgressBar,
    bar: ProgressBar,
    all: MultiProgress,
    plain: bool,
    last: std::cell::Cell<Option<Instant>>,
}

impl Display {
    fn new(total: u64) -> Self {
        let plain = !console_is_terminal();
        let target =
            if plain { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stdout() };
        let all = MultiProgress::with_draw_target(target);
        let line = || {
            ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar())
        };
        let members = all.add(ProgressBar::new_spinner().with_style(line()));
        let counts = all.add(ProgressBar::new_spinner().with_style(line()));
        let style = ProgressStyle::with_template("[{bar:50}] {pos}/{len} done, {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = all.add(ProgressBar::new(total).with_style(style));
        Self { members, counts, bar, all, plain, last: std::cell::Cell::new(None) }
    }

    /// Shows the cluster; gives back how many jobs are done.
    fn show(&self, status: &Value) -> u64 {
        let pipelines = status["pipelines"].as_array().cloned().unwrap_or_default();
        let sum = |state: &str| -> u64 {
            pipelines.iter().filter_map(|pipeline| pipeline["counts"][state].as_u64()).sum()
        };
        let who: Vec<String> = pipelines
            .iter()
            .map(|pipeline| match pipeline["coordinator"]["name"].as_str() {
                Some(name) => {
                    format!("{}: {name}, term {}", text(&pipeline["name"]), pipeline["term"])
                }
                None => format!("{}: electing", text(&pipeline["name"])),
            })
            .collect();
        let (alive, down) = (&status["members"]["alive"], sum_down(&status["members"]));
        let members =
            format!("members: {alive} alive, {down} lost   coordinators: {}", who.join("; "));
        let done = sum("succeeded");
        let counts = format!("queued {}   running {}   done {done}", sum("queued"), sum("running"));
        if self.plain {
            let due = self.last.get().is_none_or(|at| at.elapsed() > Duration::from_secs(1));
            if due {
                self.last.set(Some(Instant::now()));
                println!("{members}   {counts}");
            }
        }
        self.members.set_message(members);
        self.counts.set_message(counts);
        self.bar.set_position(done);
        done
    }

    fn say(&self, text: &str) {
        if self.plain {
            println!(">>> {text}");
        } else {
            // The display is only for people: a terminal that went away is no reason to fail.
            let _ = self.all.println(format!(">>> {text}"));
        }
    }

    fn finish(&self) {
        self.members.finish();
        self.counts.finish();
        self.bar.finish();
        println!();
    }
}

fn console_is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stdout())
}

fn sum_down(members: &Value) -> u64 {
    ["suspect", "down", "retired"].iter().filter_map(|state| members[state].as_u64()).sum()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Checks every promise; says what was found.
async fn prove(
    api: &Api,
    jobs: &[Job],
    sources: &[PathBuf],
    runs: &Path,
    killed: &Killed,
) -> Result<(), Error> {
    let sums = sha256sum(sources)?;
    let (mut done, mut wrong) = (0, Vec::new());
    let mut dispatched = Vec::new();
    for job in jobs {
        let view = api.get(&format!("/v1/jobs/{}", job.id)).await?.success()?;
        if job.pipeline == FILES {
            dispatched.extend(given_out_by_others(&view, &killed.id));
        }
        if view["state"] != "succeeded" {
            wrong.push(format!("{} of {} is {}", job.id, job.pipeline, view["state"]));
            continue;
        }
        done += 1;
        let result = &view["result"];
        let right = match job.pipeline {
            SOURCES => {
                Some(text(&result["sha256"])) == sums.get(&sources[job.number]).map(String::as_str)
            }
            _ => result["sha256"].is_string() && !Path::new(text(&result["path"])).exists(),
        };
        if !right {
            wrong.push(format!("{} of {} has a wrong result: {result}", job.id, job.pipeline));
        }
    }
    let log = fs::read_to_string(runs)?;
    let mut counted: BTreeMap<&str, u32> = BTreeMap::new();
    log.lines().for_each(|line| *counted.entry(line).or_default() += 1);
    let phases = jobs.len() * 3;
    let twice = counted.values().filter(|count| **count > 1).count();
    let after = dispatched.into_iter().filter(|at| *at >= killed.at);
    let first = after.min().ok_or("nothing was dispatched after the kill")?;
    let dispatch = Duration::try_from(first.duration_since(killed.at))?;

    println!("Proof");
    println!("  enqueued                {}", jobs.len());
    println!("  done                    {done}");
    println!("  lost                    {}", jobs.len() - done);
    println!(
        "  sha256 as by sha256sum  {} of {} source files",
        sources.len() - wrong.len().min(sources.len()),
        sources.len()
    );
    println!("  phases run              {} of {phases}, {twice} of them twice", counted.len());
    println!("  killed                  `{}`, with {} jobs done", killed.node, killed.at_done);
    println!("  first dispatch          {:.2} s after the kill", dispatch.as_secs_f64());
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    if counted.len() != phases {
        return Err(format!("{phases} phases should have run, but {} did", counted.len()).into());
    }
    if dispatch > Duration::from_secs(3) {
        return Err(format!(
            "the first dispatch came {dispatch:.1?} after the kill: more than 3 s"
        )
        .into());
    }
    Ok(())
}

/// When the attempts began that another coordinator than the killed one gave out.
fn given_out_by_others(job: &Value, killed: &str) -> Vec<Timestamp> {
    let invocations = job["invocations"].as_array().into_iter().flatten();
    let attempts = invocations.flat_map(|one| one["attempts"].as_array().into_iter().flatten());
    // A token is `counter@coordinator/sequence`.
    let coordinator = |token: &str| {
        let (_, rest) = token.split_once('@')?;
        Some(rest.split_once('/')?.0.to_owned())
    };
    let others = attempts.filter(|attempt| {
        coordinator(text(&attempt["token"])).is_some_and(|node| !killed.starts_with(&node))
    });
    others.filter_map(|attempt| text(&attempt["started_at"]).parse().ok()).collect()
}

/// What the system's own tool says of the files.
fn sha256sum(files: &[PathBuf]) -> Result<BTreeMap<PathBuf, String>, Error> {
    let output = Command::new("sha256sum").arg("--").args(files).output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let text = String::from_utf8(output.stdout)?;
    let sums = text.lines().filter_map(|line| line.split_once("  "));
    Ok(sums.map(|(sum, path)| (PathBuf::from(path), sum.to_owned())).collect())
}
