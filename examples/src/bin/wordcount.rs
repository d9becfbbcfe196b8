//! Counts the words of text files on a cluster of three nodes, one of which is killed meanwhile, and
//! compares the result with what `sort | uniq -c` says.
//!
//! One phase gives a line for each file, another counts the words of each, wherever there is room, and
//! a third adds up. The program is all of that: `wordcount phase NAME` is what workers run.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use carbonmesh_examples::{
    api::{Api, Error},
    local::{LocalCluster, NodeOptions, program},
};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

const NODES: [&str; 3] = ["ash", "oak", "elm"];

/// How long the cluster may take for all of it.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Parser)]
#[command(about = "Counts words on a cluster, kills a node, and compares with sort | uniq -c")]
struct Options {
    /// The folder whose text files are counted, with those below it.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// How many of the most frequent words are shown.
    #[arg(long, default_value_t = 10)]
    top: usize,
    #[command(subcommand)]
    command: Option<Internal>,
}

#[derive(Subcommand)]
enum Internal {
    /// What a worker runs: instructions on standard input, results on standard output.
    #[command(hide = true)]
    Phase { name: String },
}

type Counts = BTreeMap<String, u64>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let result = match &options.command {
        Some(Internal::Phase { name }) => phase(name),
        None => run(&options).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn phase(name: &str) -> Result<(), Error> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let instructions: Value = serde_json::from_str(&text)?;
    let mut out = io::stdout().lock();
    match name {
        // Each line is an item.
        "split" => {
            for path in text_files(Path::new(text_of(&instructions, "folder")?))? {
                writeln!(out, "{}", json!({ "path": path }))?;
            }
        }
        "count" => {
            let path = text_of(&instructions, "path")?;
            writeln!(out, "{}", json!(words(&fs::read(path)?)))?;
        }
        // What the items gave, by word: the list of its counts.
        "add" => {
            let counts: BTreeMap<String, Vec<u64>> =
                serde_json::from_value(instructions["count"].clone())?;
            let sums: Counts =
                counts.into_iter().map(|(word, counts)| (word, counts.iter().sum())).collect();
            let into = text_of(&instructions, "into")?;
            fs::write(into, serde_json::to_vec(&sums)?)?;
            writeln!(out, "{}", json!({ "words": sums.len() }))?;
        }
        other => return Err(format!("there is no phase {other}").into()),
    }
    Ok(())
}

fn text_of<'a>(instructions: &'a Value, field: &str) -> Result<&'a str, Error> {
    instructions[field].as_str().ok_or_else(|| format!("the instructions have no {field}").into())
}

/// Runs of ASCII letters, in small letters.
fn words(text: &[u8]) -> Counts {
    let mut counts = Counts::new();
    let words = text.split(|byte| !byte.is_ascii_alphabetic()).filter(|word| !word.is_empty());
    for word in words {
        let word = String::from_utf8_lossy(word).to_ascii_lowercase();
        *counts.entry(word).or_default() += 1;
    }
    counts
}

fn text_files(root: &Path) -> Result<Vec<PathBuf>, Error> {
    let (mut files, mut open) = (Vec::new(), vec![fs::canonicalize(root)?]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let text = ["rs", "md", "txt", "toml", "sh"];
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                open.push(path);
            } else if text.iter().any(|end| name.ends_with(&format!(".{end}"))) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

async fn run(options: &Options) -> Result<(), Error> {
    let files = text_files(&options.folder)?;
    if files.is_empty() {
        return Err(format!("{} has no text files", options.folder.display()).into());
    }
    let mut cluster = start_cluster()?;
    let api = cluster.api(NODES[0])?;
    let pipeline = json!({ "name": "words", "phases": [
        "split",
        { "name": "count", "for_each": "split", "combine": "group" },
        "add",
    ]});
    api.apply(&pipeline).await?;
    let into = cluster.folder().join("sums.json");
    let folder = fs::canonicalize(&options.folder)?;
    let job = json!({ "folder": folder, "into": into });
    let id = api.enqueue_with("words", &job, "").await?.success()?["id"].clone();
    let id = id.as_str().ok_or("no id")?;
    println!("Job {id}: {} files of {}.", files.len(), folder.display());

    let began = Instant::now();
    await_items(&api, id, files.len() as u64 / 3).await?;
    // The node that is asked stays.
    let killed = NODES[1];
    cluster.kill(killed)?;
    println!(">>> kill -9 `{killed}` with a third of the files counted");
    let job = api.get(&format!("/v1/jobs/{id}?wait=60s")).await?.success()?;
    if job["state"] != "succeeded" {
        return Err(format!("the job is {}: {job}", job["state"]).into());
    }
    println!("Done after {:.2} s.\n", began.elapsed().as_secs_f64());
    compare(&files, &into, options.top)
}

fn start_cluster() -> Result<LocalCluster, Error> {
    let mut cluster = LocalCluster::new(program("carbonmesh")?)?;
    let own = program("wordcount")?;
    let phase =
        |name| format!("[phases.{name}]\nslots = 2\ncommand = [{own:?}, \"phase\", {name:?}]\n\n");
    let config: String = ["split", "count", "add"].map(phase).concat();
    for name in NODES {
        let config = config.clone();
        cluster.start(name, NodeOptions { config, ..NodeOptions::default() })?;
    }
    Ok(cluster)
}

/// Waits until so many items of a job have ended.
async fn await_items(api: &Api, job: &str, count: u64) -> Result<(), Error> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        let job = api.get(&format!("/v1/jobs/{job}")).await?.success()?;
        let items = &job["invocations"][1]["items"]["ended"];
        if items.as_u64().is_some_and(|ended| ended >= count) || job["state"] == "succeeded" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("the items do not end in time".into())
}

/// Counts the same files with the system's own tools.
fn compare(files: &[PathBuf], into: &Path, top: usize) -> Result<(), Error> {
    let ours: Counts = serde_json::from_slice(&fs::read(into)?)?;
    let script = "cat -- \"$@\" | tr -cs 'A-Za-z' '\\n' | tr 'A-Z' 'a-z' | grep . | sort | uniq -c";
    let shell =
        Command::new("sh").args(["-c", script, "sh"]).args(files).env("LC_ALL", "C").output()?;
    let lines = String::from_utf8(shell.stdout)?;
    let parse = |line: &str| {
        let (count, word) = line.trim_start().split_once(' ')?;
        Some((word.to_owned(), count.parse().ok()?))
    };
    let theirs: Counts = lines.lines().filter_map(parse).collect();
    let mut most: Vec<(&String, &u64)> = ours.iter().collect();
    most.sort_by_key(|(word, count)| (std::cmp::Reverse(**count), word.as_str()));
    for (word, count) in most.iter().take(top) {
        println!("{count:>8}  {word}");
    }
    let total: u64 = ours.values().sum();
    if ours != theirs {
        return Err(format!("{} words here, {} by sort | uniq -c", ours.len(), theirs.len()).into());
    }
    println!(
        "\n{total} words, {} different: all counts equal those of sort | uniq -c.",
        ours.len()
    );
    Ok(())
}
