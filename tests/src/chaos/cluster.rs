//! The nodes of a run together: started in turn, asked as one, and brought back when they end.

use std::{
    env, fs,
    net::TcpListener,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use carbonmesh_examples::{api::Error, local::program, network::Network};
use serde_json::{Value, json};

use crate::{
    agent::Agent,
    clock::now_ms,
    folder::Disk,
    journal,
    load::{self, Load, PIPELINE},
    node::{Node, Places, Start},
    options::Options,
    work::STEPS,
};

/// How many disks keep a job.
pub(crate) const REPLICAS: u32 = 3;

/// A node's disk: its store grows with each job, since finished ones stay.
const DISK_MIB: u64 = 192;
const DISK_MIB_PER_MINUTE: u64 = 12;

/// How often copies are compared: as it is by default, so that faults meet what is shipped; and where
/// one node after another has to be waited for.
const COMPARE: Duration = Duration::from_secs(10);
const COMPARE_OFTEN: Duration = Duration::from_secs(1);

/// Some nodes, the network between them, and a client beside each.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    pub(crate) agents: Vec<Agent>,
    /// None in a reduced run.
    pub(crate) network: Option<Network>,
    pub(crate) load: Arc<Load>,
    /// How often nodes compare what they hold.
    compare: Duration,
}

impl Cluster {
    /// Starts all nodes, and the load.
    pub(crate) fn start(options: &Options, root: &std::path::Path) -> Result<Self, Error> {
        let count = options.nodes as usize;
        let network = (!options.reduced).then(|| Network::new(count)).transpose()?;
        let program = match &options.upgrade_from {
            Some(from) => from.clone(),
            None => program("carbonmesh")?,
        };
        let compare = if options.upgrade_from.is_some() { COMPARE_OFTEN } else { COMPARE };
        let places = Places { program: &program, root, out: &options.out };
        let mib = DISK_MIB + DISK_MIB_PER_MINUTE * options.minutes().ceil() as u64;
        let mut nodes = Vec::new();
        for index in 0..count {
            let name = format!("n{index}");
            let disk = Disk::new(root, &name, network.as_ref().map(|_| mib))?;
            let config = config(options, &name, compare)?;
            let where_to = addresses(network.as_ref(), index)?;
            let isolated = network.is_some();
            nodes.push(Node::new(index, &places, disk, &config, where_to, isolated)?);
        }
        let mut cluster =
            Self { nodes, agents: Vec::new(), network, load: Arc::default(), compare };
        for index in 0..count {
            cluster.bring_up(index)?;
        }
        cluster.start_clients(0.0)?;
        cluster.await_members()?;
        cluster.apply()?;
        cluster.start_clients(options.rate / f64::from(options.nodes))?;
        Ok(cluster)
    }

    /// Clients without a rate only ask what they are told to.
    fn start_clients(&mut self, rate: f64) -> Result<(), Error> {
        self.agents.clear();
        for (index, node) in self.nodes.iter().enumerate() {
            let namespace = self.network.as_ref().map(|_| Network::namespace(index));
            let (load, name) = (self.load.clone(), node.name.clone());
            // Not all at the same moment.
            let begin =
                Duration::from_secs_f64(index as f64 / (rate * self.nodes.len() as f64 + 1.0));
            let agent = Agent::start(namespace, &node.http, move |client| async move {
                if rate > 0.0 {
                    tokio::time::sleep(begin).await;
                    load::run(load, client, name, rate).await;
                }
            })?;
            self.agents.push(agent);
        }
        Ok(())
    }

    fn await_members(&self) -> Result<(), Error> {
        let all = self.nodes.len() as u64;
        within(Duration::from_secs(30), "not all nodes have found each other", || {
            (0..self.nodes.len()).all(|node| self.alive(node) == Some(all))
        })
    }

    fn apply(&self) -> Result<(), Error> {
        // Attempts are lost with their nodes, which is no reason to give a job up.
        let steps =
            STEPS.map(|step| json!({ "name": step, "phase": "work", "max_attempts": 1000 }));
        let document = json!({ "name": PIPELINE, "replicas": REPLICAS, "phases": steps });
        let agent = self.agents.first().ok_or("no nodes")?;
        agent.put(&format!("/v1/pipelines/{PIPELINE}"), document)?.success()?;
        let all = 0..self.nodes.len();
        within(Duration::from_secs(30), "the pipeline is not known everywhere", || {
            all.clone().all(|node| self.pipeline(node).is_some_and(|p| !p["coordinator"].is_null()))
        })
    }

    /// Starts a node that has to start.
    pub(crate) fn bring_up(&mut self, index: usize) -> Result<(), Error> {
        match self.try_start(index)? {
            Start::Serves => Ok(()),
            Start::Ended(status, log) => {
                Err(format!("node {} ended with {status}:\n{log}", self.nodes[index].name).into())
            }
        }
    }

    /// Starts a node, with all the others as peers.
    pub(crate) fn try_start(&mut self, index: usize) -> Result<Start, Error> {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        let peers: Vec<String> = others.map(|(_, node)| node.listen.clone()).collect();
        self.nodes[index].start(&peers)
    }

    /// Gives a stopped node another address.
    pub(crate) fn readdress(&mut self, index: usize) -> Result<String, Error> {
        if let Some(network) = &mut self.network {
            network.readdress(index)?;
            self.nodes[index].listen = network.listen(index);
        } else {
            self.nodes[index].listen = free_port()?;
        }
        Ok(self.nodes[index].listen.clone())
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.name.clone()).collect()
    }

    /// A document of a node; nothing if it does not answer.
    pub(crate) fn ask(&self, index: usize, path: &str) -> Option<Value> {
        self.agents[index].get(path).ok()?.success().ok()
    }

    pub(crate) fn alive(&self, index: usize) -> Option<u64> {
        self.ask(index, "/v1/status")?["members"]["alive"].as_u64()
    }

    /// The pipeline as one node sees it.
    pub(crate) fn pipeline(&self, index: usize) -> Option<Value> {
        self.ask(index, &format!("/v1/pipelines/{PIPELINE}"))
    }

    /// The node that coordinates, as another sees it.
    pub(crate) fn coordinator(&self) -> Option<usize> {
        let running = (0..self.nodes.len()).find(|node| self.nodes[*node].is_running())?;
        let name = self.pipeline(running)?["coordinator"]["name"].as_str()?.to_owned();
        self.nodes.iter().position(|node| node.name == name)
    }

    /// The nodes that should keep every job.
    pub(crate) fn replicas(&self) -> Vec<usize> {
        let pipeline = (0..self.nodes.len()).find_map(|node| self.pipeline(node));
        let ids: Vec<Option<String>> = (0..self.nodes.len()).map(|node| self.id(node)).collect();
        let pipeline = pipeline.unwrap_or_default();
        let replicas = pipeline["replicas"].as_array().cloned().unwrap_or_default();
        let place = |id: &Value| ids.iter().position(|own| own.as_deref() == id.as_str());
        // One that was wiped has left its name, but not its id, to another.
        replicas.iter().filter_map(|replica| place(&replica["id"])).collect()
    }

    fn id(&self, index: usize) -> Option<String> {
        self.ask(index, "/v1/status")?["node"]["id"].as_str().map(str::to_owned)
    }

    /// Which disk a node says it has.
    pub(crate) fn disk_id(&self, index: usize) -> Option<String> {
        let own = self.id(index)?;
        let nodes = self.ask(index, "/v1/nodes")?;
        let found = nodes["nodes"].as_array()?.iter().find(|node| node["id"] == own.as_str())?;
        found["disk"].as_str().map(str::to_owned)
    }

    /// Waits until all nodes see each other, clients of all are told of all copies, and what is
    /// compared now and then has been compared; when that was.
    pub(crate) fn await_converged(&self, patience: Duration) -> Option<u64> {
        let (all, began) = (self.nodes.len() as u64, now_ms());
        let names = self.names();
        within(patience, "not converged", || {
            (0..self.nodes.len()).all(|node| self.alive(node) >= Some(all))
        })
        .ok()?;
        let since = now_ms();
        let left = patience.saturating_sub(Duration::from_millis(since - began));
        within(left, "not converged", || self.load.all_in_full_since(&names, REPLICAS, since))
            .ok()?;
        self.await_compared();
        Some(now_ms())
    }

    /// Waits until what is compared from time to time has been.
    pub(crate) fn await_compared(&self) {
        thread::sleep(self.compare + Duration::from_secs(2));
    }
}

fn within(patience: Duration, failure: &str, check: impl Fn() -> bool) -> Result<(), Error> {
    let deadline = Instant::now() + patience;
    while !check() {
        if Instant::now() > deadline {
            return Err(failure.into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn config(options: &Options, name: &str, compare: Duration) -> Result<String, Error> {
    let journal = fs::canonicalize(&options.out)?.join(format!("{name}{}", journal::SUFFIX));
    let program = env::current_exe()?;
    let (program, journal) = (program.to_string_lossy(), journal.to_string_lossy());
    // Nobody waits ten minutes here for the place of a node that is gone to be taken. The workers
    // keep the machine's clock, whatever their node is made to see.
    Ok(format!(
        "[phases.work]\nslots = 6\ntimeout = '60s'\nenv = {{ LD_PRELOAD = '' }}\n\
         command = [{program:?}, 'work', '--journal', {journal:?}, '--node', '{name}']\n\
         [limits]\nfree_bytes = 4000000\n\
         [timing]\nreplace_after = '30s'\nanti_entropy = '{}s'\n",
        compare.as_secs()
    ))
}

/// Where a node serves clients and listens for others.
fn addresses(network: Option<&Network>, index: usize) -> Result<(String, String), Error> {
    match network {
        Some(network) => Ok(("127.0.0.1:7400".to_owned(), network.listen(index))),
        None => Ok((free_port()?, free_port()?)),
    }
}

fn free_port() -> Result<String, Error> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
