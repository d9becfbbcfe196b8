//! The inner half of the program: a whole run, from the first node to the verdict.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use carbonmesh_examples::{api::Error, local::program, shell::run as sh};

use crate::{
    checker::{self, Verdict},
    clock::now_ms,
    cluster::{Cluster, REPLICAS},
    history::{History, Outcome},
    journal,
    nemesis::Nemesis,
    options::Options,
    page, report, survey,
    upgrade::{self, Programs},
};

/// What comes after the faults takes about so long.
const REST: Duration = Duration::from_secs(40);
const FAULTS_AT_LEAST: Duration = Duration::from_secs(20);

/// What copies of data folders get of the machine's memory, at most: they grow with the run.
const ROOT_MIB: u64 = 512;
const ROOT_MIB_PER_MINUTE: u64 = 60;

/// Runs it; the exit code.
pub(crate) fn run(options: &Options, root: &Path) -> Result<u8, Error> {
    if !options.reduced {
        let mib = ROOT_MIB + ROOT_MIB_PER_MINUTE * options.minutes().ceil() as u64;
        sh(&format!("mount -t tmpfs -o size={mib}m none {}", root.display()))?;
        // Where libfaketime leaves files.
        sh("mount -t tmpfs none /dev/shm")?;
    }
    clean(&options.out)?;
    let seed = options.seed.unwrap_or_else(|| rand::random_range(0..1_000_000));
    match &options.upgrade_from {
        Some(_) => println!("Replacing {} nodes, one after another", options.nodes),
        None => println!("seed {seed}: {} nodes, {} minutes", options.nodes, options.minutes()),
    }
    let mut history = History { seed, replicas: REPLICAS, ..History::default() };
    let mut cluster = Cluster::start(options, root)?;
    history.nodes = cluster.names();
    history.began_ms = now_ms();
    let done = match &options.upgrade_from {
        Some(from) => {
            let programs = Programs { from: from.clone(), to: program("carbonmesh")? };
            upgrade::run(&mut cluster, &programs, &mut history)
        }
        None => deal(options, seed, &mut cluster, &mut history),
    };
    if let Err(error) = done {
        history.offences.push(format!("the run broke off: {error}"));
    }
    finish(&mut cluster, &mut history)?;
    if options.upgrade_from.is_some() {
        upgrade::judge(&mut history);
    }
    history.runs = journal::read(&options.out)?;
    fs::write(options.out.join("history.json"), serde_json::to_vec(&history)?)?;
    conclude(&history, &options.out)
}

/// Lets the nemesis do its work.
fn deal(
    options: &Options,
    seed: u64,
    cluster: &mut Cluster,
    history: &mut History,
) -> Result<(), Error> {
    let mut nemesis = Nemesis::new(seed, &options.faults, options.reduced);
    let time = Duration::from_secs_f64(options.minutes() * 60.0).saturating_sub(REST);
    let done = nemesis.run(cluster, Instant::now() + time.max(FAULTS_AT_LEAST));
    history.faults = nemesis.done;
    history.offences = nemesis.offences;
    done
}

/// Lets the cluster come to rest, and asks what became of the jobs.
fn finish(cluster: &mut Cluster, history: &mut History) -> Result<(), Error> {
    history.healed_ms = now_ms();
    cluster.load.stop();
    history.ops = cluster.load.ops();
    let acknowledged = history.ops.iter().filter_map(|op| match &op.outcome {
        Outcome::Ok { id, .. } => Some(id.clone()),
        _ => None,
    });
    let acknowledged: Vec<String> = acknowledged.collect();
    println!("healed; waiting until nothing is left to do");
    if !survey::drain(cluster, &acknowledged)? {
        println!("  some jobs do not end");
    }
    history.seen = cluster.load.seen();
    history.drained_ms = now_ms();
    history.finals = survey::together(cluster, &acknowledged)?;
    cluster.await_compared();
    println!("asking each node by itself");
    match survey::apart(cluster) {
        Ok(copies) => history.copies = copies,
        Err(error) => history.offences.push(error.to_string()),
    }
    for node in &mut cluster.nodes {
        let log = node.log();
        for line in log.lines().filter(|line| line.contains("panicked at")) {
            history.offences.push(format!("{}: {line}", node.name));
        }
        if let Some(status) = node.exited()? {
            history.offences.push(format!("{} ended at the end with {status}", node.name));
        }
    }
    Ok(())
}

/// Judges a history and tells what came out.
pub(crate) fn conclude(history: &History, out: &Path) -> Result<u8, Error> {
    let verdict: Verdict = checker::check(history);
    let text = report::text(history, &verdict);
    fs::write(out.join("report.txt"), &text)?;
    fs::write(out.join("report.html"), page::html(history, &verdict)?)?;
    print!("{text}");
    println!("Report: {}", out.join("report.html").display());
    Ok(u8::from(!verdict.violations.is_empty()))
}

/// What an earlier run left in the folder would be taken for this one's.
fn clean(out: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(out)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(journal::SUFFIX) || name.ends_with(".log") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
