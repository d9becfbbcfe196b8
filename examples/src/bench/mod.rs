//! What the benchmark measures, part by part, and how it is told.
//!
//! Every cluster is made of `rust-node` processes with their default settings. A figure that counts
//! something that must not happen, such as a lost job, makes the benchmark fail if it is not zero.

pub mod failover;
pub mod idle;
pub mod latency;
mod process;
pub mod throughput;

use std::{
    fs,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::{
    api::{Api, Error},
    local::{LocalCluster, NodeOptions, program},
};

/// The nodes of a cluster that is measured.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Figures, by name.
#[derive(Debug)]
pub struct Results {
    figures: Value,
    broken: Option<String>,
}

impl Default for Results {
    fn default() -> Self {
        Self { figures: Value::Object(Map::new()), broken: None }
    }
}

impl Results {
    /// Prints a figure and keeps it: `name` is a path with dots; its last part ends in the unit.
    pub fn add(&mut self, name: &str, value: f64, meaning: &str) {
        // Three digits are more than a run repeats.
        let digits = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 100.0) };
        println!("  {name:32} {value:>10.digits$}   {meaning}");
        let value = (value * 1000.0).round() / 1000.0;
        let (parents, last) = name.rsplit_once('.').unwrap_or(("", name));
        let parents = parents.split('.').filter(|part| !part.is_empty());
        let parent = parents.fold(&mut self.figures, |at, part| &mut at[part]);
        parent[last] = json!(value);
    }

    /// Prints and keeps what must be zero.
    pub fn add_zero(&mut self, name: &str, value: usize, meaning: &str) {
        self.add(name, value as f64, meaning);
        if value > 0 {
            self.broken.get_or_insert_with(|| format!("{name} is {value}, not 0: {meaning}"));
        }
    }

    /// All figures, as nested objects.
    pub fn json(&self) -> &Value {
        &self.figures
    }

    /// What should be zero and is not.
    pub fn broken_promise(&self) -> Option<String> {
        self.broken.clone()
    }
}

/// A cluster of three nodes that do everything, with one pipeline `p`.
struct Bench {
    cluster: LocalCluster,
}

impl Bench {
    /// Starts the nodes, and waits until all know each other and one coordinates.
    async fn start(phase: &str, phases: usize) -> Result<Self, Error> {
        let mut bench = Self { cluster: LocalCluster::new(program("rust-node")?)? };
        for name in NAMES {
            let starts = bench.cluster.folder().join("starts").display().to_string();
            let env = vec![
                ("RUST_NODE_STARTS".to_owned(), starts),
                ("RUST_NODE_NAME".to_owned(), name.to_owned()),
                ("CARBONMESH_LOG".to_owned(), "warn".to_owned()),
            ];
            bench.cluster.start(name, NodeOptions { env, ..NodeOptions::default() })?;
        }
        bench.await_members("a").await?;
        let steps: Vec<Value> =
            (0..phases).map(|at| json!({ "name": format!("s{at}"), "phase": phase })).collect();
        bench.api("a")?.apply(&json!({ "name": "p", "phases": steps })).await?;
        bench.coordinator("a").await?;
        Ok(bench)
    }

    fn api(&self, node: &str) -> Result<Api, Error> {
        self.cluster.api(node)
    }

    /// Waits until a node sees all three.
    async fn await_members(&self, asked: &str) -> Result<(), Error> {
        let api = self.api(asked)?;
        wait_for("all nodes know each other", async || {
            let status = api.get("/v1/status").await?.success()?;
            Ok((status["members"]["alive"] == NAMES.len()).then_some(()))
        })
        .await
    }

    /// The node that coordinates, as `asked` sees it.
    async fn coordinator(&self, asked: &str) -> Result<String, Error> {
        wait_for("a coordinator", async || self.cluster.coordinator(asked, "p").await).await
    }

    /// How many jobs have succeeded, as `asked` knows.
    async fn succeeded(&self, asked: &str) -> Result<u64, Error> {
        let status = self.api(asked)?.get("/v1/pipelines/p").await?.success()?;
        Ok(status["counts"]["succeeded"].as_u64().unwrap_or(0))
    }

    /// Enqueues jobs in bulk; each must be taken.
    async fn enqueue(&self, node: &str, jobs: &[Value]) -> Result<Vec<String>, Error> {
        let answers = self.api(node)?.enqueue_bulk("p", jobs).await?;
        let id = |answer: &Value| answer["id"].as_str().map(str::to_owned);
        let ids: Option<Vec<String>> = answers.iter().map(id).collect();
        let ids = ids.filter(|ids| ids.len() == jobs.len());
        ids.ok_or_else(|| "not all jobs were taken".into())
    }

    /// Starts of `sleep` phases so far.
    fn starts(&self) -> Vec<Start> {
        let text = fs::read_to_string(self.cluster.folder().join("starts")).unwrap_or_default();
        text.lines().filter_map(Start::parse).collect()
    }
}

/// One line of the file that `sleep` phases write.
#[derive(Clone, Debug)]
struct Start {
    job: String,
    step: String,
    node: String,
    /// In which coordinator's term it was given out.
    term: String,
    at_ms: u64,
}

impl Start {
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.split(' ').map(str::to_owned);
        let (job, step, node, token) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let term = token.split_once('/')?.0.to_owned();
        Some(Self { job, step, node, term, at_ms: parts.next()?.parse().ok()? })
    }
}

/// Asks again and again until there is an answer.
async fn wait_for<T>(
    what: &str,
    mut ask: impl AsyncFnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Err(format!("{what}: waited in vain for {} s", PATIENCE.as_secs()).into())
}

/// An empty histogram, of three digits.
fn histogram() -> Result<Histogram<u64>, Error> {
    Ok(Histogram::new(3)?)
}
