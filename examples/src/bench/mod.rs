//! What the benchmark measures, part by part, and how it is told.
//!
//! Every cluster is made of `rust-node` processes with their default settings, unless the part says
//! otherwise. A figure that counts something that must not happen, such as a lost job, makes the
//! benchmark fail if it is not zero.

pub mod failover;
pub mod far;
pub mod growth;
pub mod idle;
pub mod latency;
mod load;
pub mod machine;
pub mod plot;
mod process;
pub mod queue;
mod results;
pub mod throughput;
mod wire;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::far::Far;
pub use results::Results;

use crate::{
    api::{Api, Error},
    local::{LocalCluster, NodeOptions, program},
};

/// The nodes of a cluster that is measured; workers have other names.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// How long anything may take before the benchmark gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it waits before it asks again: answers cost CPU time that is measured.
const PAUSE: Duration = Duration::from_millis(20);

/// How a cluster is made that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// How many nodes take and keep jobs; they run phases too, unless there are workers.
    nodes: usize,
    /// How many nodes do nothing but run phases.
    workers: usize,
    /// What each phase of the pipeline is.
    phase: &'static str,
    /// How many phases it has.
    phases: usize,
    /// The nodes' configuration file.
    config: &'static str,
    /// How many partitions the pipeline has.
    partitions: u32,
    /// The network between them, if it is not loopback.
    far: Option<&'a Far>,
}

impl<'a> Plan<'a> {
    /// Three nodes and a pipeline of three no-op phases, which parts vary.
    pub fn new(partitions: u32, far: Option<&'a Far>) -> Self {
        Self { nodes: 3, workers: 0, phase: "noop", phases: 3, config: "", partitions, far }
    }
}

/// A cluster with one pipeline `p`.
struct Bench {
    cluster: LocalCluster,
    names: Vec<String>,
}

impl Bench {
    /// Starts the nodes, and waits until all know each other and one coordinates.
    async fn start(plan: &Plan<'_>) -> Result<Self, Error> {
        let roles = if plan.workers > 0 { "replica,gateway" } else { "" };
        let nodes = NAMES.iter().take(plan.nodes).map(|name| ((*name).to_owned(), roles));
        let workers = (0..plan.workers).map(|at| (format!("worker{at}"), "worker"));
        let (names, roles): (Vec<String>, Vec<&str>) = nodes.chain(workers).unzip();
        let mut bench = Self { cluster: LocalCluster::new(program("rust-node")?)?, names };
        for (at, (name, roles)) in bench.names.iter().zip(roles).enumerate() {
            let starts = bench.cluster.folder().join("starts").display().to_string();
            let env = vec![
                ("RUST_NODE_STARTS".to_owned(), starts),
                ("RUST_NODE_NAME".to_owned(), name.clone()),
                ("CARBONMESH_LOG".to_owned(), "warn".to_owned()),
            ];
            let (roles, config) = (roles.to_owned(), plan.config.to_owned());
            let place = plan.far.map(|far| far.place(at)).transpose()?;
            let options = NodeOptions { roles, config, env, place, ..Default::default() };
            bench.cluster.start(name, options)?;
        }
        bench.await_members("a").await?;
        let step = |at| json!({ "name": format!("s{at}"), "phase": plan.phase });
        let steps: Vec<Value> = (0..plan.phases).map(step).collect();
        let replicas = plan.nodes.min(3);
        let mut pipeline = json!({ "name": "p", "phases": steps, "replicas": replicas });
        if plan.partitions > 1 {
            pipeline["partitions"] = plan.partitions.into();
        }
        bench.api("a")?.apply(&pipeline).await?;
        bench.coordinator("a").await?;
        Ok(bench)
    }

    /// Names of all nodes that were started.
    fn names(&self) -> &[String] {
        &self.names
    }

    fn api(&self, node: &str) -> Result<Api, Error> {
        self.cluster.api(node)
    }

    /// Where jobs are enqueued through a node.
    fn jobs_url(&self, node: &str) -> Result<String, Error> {
        Ok(format!("{}/v1/pipelines/p/jobs", self.cluster.http(node)?))
    }

    /// Waits until a node sees all.
    async fn await_members(&self, asked: &str) -> Result<(), Error> {
        let api = self.api(asked)?;
        wait_for("all nodes know each other", async || {
            let status = api.get("/v1/status").await?.success()?;
            Ok((status["members"]["alive"] == self.names.len()).then_some(()))
        })
        .await
    }

    /// The node that coordinates, the first partition if there are several, as `asked` sees it.
    async fn coordinator(&self, asked: &str) -> Result<String, Error> {
        wait_for("a coordinator", async || self.cluster.coordinator(asked, "p").await).await
    }

    /// A node that takes jobs and does not coordinate, if there is one.
    async fn gateway(&self) -> Result<String, Error> {
        let coordinator = self.coordinator("a").await?;
        let mut others = self.names.iter().filter(|name| NAMES.contains(&name.as_str()));
        Ok(others.find(|name| **name != coordinator).cloned().unwrap_or(coordinator))
    }

    /// How many jobs have succeeded, as the node that is asked knows; zero while nobody has counted
    /// them lately.
    async fn succeeded(&self, api: &Api) -> Result<u64, Error> {
        let status = api.get("/v1/pipelines/p").await?.success()?;
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

    /// The processes of all nodes.
    fn pids(&self) -> Result<Vec<u32>, Error> {
        self.names.iter().map(|name| self.cluster.pid(name)).collect()
    }

    /// Resident memory of the node that has most, in MiB.
    fn fullest_mib(&self) -> Result<f64, Error> {
        self.pids()?
            .into_iter()
            .try_fold(0.0, |most: f64, pid| Ok(most.max(process::resident_mib(pid)?)))
    }

    /// What went between the nodes so far, in MiB.
    fn wire_mib(&self) -> Result<f64, Error> {
        self.names.iter().try_fold(0.0, |sum, name| {
            let address = self.cluster.listen(name)?;
            let (_, port) = address.split_once("/tcp/").ok_or("a node listens on no port")?;
            let port = port.split('/').next().unwrap_or_default().parse()?;
            Ok(sum + wire::mib(self.cluster.command(name, "ss"), port)?)
        })
    }

    /// Where a node keeps its state.
    fn data_folder(&self, name: &str) -> PathBuf {
        self.cluster.folder().join(format!("{name}.data"))
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
        tokio::time::sleep(PAUSE).await;
    }
    Err(format!("{what}: waited in vain for {} s", PATIENCE.as_secs()).into())
}
