//! A cluster of real processes on this machine: started, killed and started again.
//!
//! Every port is chosen by the system; everything lies in one temporary folder, which goes with the
//! cluster.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    api::{Api, Error},
    network::{Relay, SECRET},
};

/// How long a node may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// How a node is started.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Its roles, as `--role` takes them.
    pub roles: String,
    /// Its configuration file.
    pub config: String,
    /// What is run in place of `up`, such as `bundle` and a file.
    pub command: Vec<String>,
    /// More arguments.
    pub args: Vec<String>,
    /// More environment.
    pub env: Vec<(String, String)>,
    /// Where it runs, if not beside this program.
    pub place: Option<Place>,
}

/// A namespace of the network for a node alone.
#[derive(Clone, Debug)]
pub struct Place {
    /// The namespace's file.
    pub namespace: PathBuf,
    /// Where the node listens for others in there, as `--listen` takes it.
    pub listen: String,
}

/// A running node.
#[derive(Debug)]
struct Node {
    child: Child,
    id: String,
    http: String,
    listen: String,
    /// How clients reach a node in a namespace of its own, for as long as it runs.
    relay: Option<Relay>,
}

/// Some nodes on this machine.
#[derive(Debug)]
pub struct LocalCluster {
    program: PathBuf,
    folder: TempDir,
    nodes: BTreeMap<String, Node>,
    options: BTreeMap<String, NodeOptions>,
}

/// The program `name` that was built together with this one.
///
/// # Errors
/// It was not built.
pub fn program(name: &str) -> Result<PathBuf, Error> {
    let here = env::current_exe()?;
    let folders = here.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| format!("{name} is not built: run `cargo build --workspace`").into())
}

impl LocalCluster {
    /// No nodes yet; they will run `program up`.
    ///
    /// # Errors
    /// There is no room for a temporary folder.
    pub fn new(program: PathBuf) -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("carbonmesh-").tempdir()?;
        Ok(Self { program, folder, nodes: BTreeMap::new(), options: BTreeMap::new() })
    }

    /// The folder that goes with the cluster.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a node and waits until it serves.
    ///
    /// # Errors
    /// It does not start; the error has the end of its log.
    pub fn start(&mut self, name: &str, options: NodeOptions) -> Result<(), Error> {
        self.options.insert(name.to_owned(), options);
        self.restart(name)
    }

    /// Starts a node again, in its folder, on other ports.
    ///
    /// # Errors
    /// It does not start; the error has the end of its log.
    pub fn restart(&mut self, name: &str) -> Result<(), Error> {
        let child = self.spawn(name)?;
        let ready = self.folder.path().join(format!("{name}.ready"));
        let mut node = wait_ready(child, &ready).map_err(|error| {
            let log = self.log(name);
            let tail: Vec<&str> = log.lines().rev().take(10).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            format!("node {name}: {error}\n{}", tail.join("\n"))
        })?;
        if let Some(place) = self.place(name) {
            node.relay = Some(Relay::start(&place.namespace, &node.http)?);
        }
        self.nodes.insert(name.to_owned(), node);
        Ok(())
    }

    fn place(&self, name: &str) -> Option<&Place> {
        self.options.get(name)?.place.as_ref()
    }

    /// Starts a node without waiting for it to serve.
    fn spawn(&self, name: &str) -> Result<Child, Error> {
        let options = self.options.get(name).ok_or("no such node")?;
        let at = |suffix: &str| self.folder.path().join(format!("{name}.{suffix}"));
        fs::write(at("toml"), &options.config)?;
        // A folder that is started again must not be taken for ready before it is.
        if at("ready").exists() {
            fs::remove_file(at("ready"))?;
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(at("log"))?;
        let mut command = within(options.place.as_ref(), &self.program);
        match &options.command[..] {
            [] => command.arg("up"),
            words => command.args(words),
        };
        command.args(["--name", name, "--no-mdns", "--http", "127.0.0.1:0"]);
        match &options.place {
            Some(place) => {
                command.args(["--listen", &place.listen]).env("CARBONMESH_SECRET", SECRET)
            }
            None => command.args(["--listen", "127.0.0.1:0"]),
        };
        command.arg("--data-dir").arg(at("data")).arg("--config").arg(at("toml"));
        command.arg("--ready-file").arg(at("ready"));
        if !options.roles.is_empty() {
            command.args(["--role", &options.roles]);
        }
        for node in self.nodes.values() {
            command.args(["--peer", &node.listen]);
        }
        command.args(&options.args).envs(options.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command.spawn()?)
    }

    /// Kills a node with signal 9.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, name: &str) -> Result<(), Error> {
        let mut node = self.nodes.remove(name).ok_or("no such node")?;
        node.child.kill()?;
        node.child.wait()?;
        Ok(())
    }

    /// Asks a node to stop, and waits until it has.
    ///
    /// # Errors
    /// It does not run, or ends with an error.
    pub fn stop(&mut self, name: &str) -> Result<(), Error> {
        let mut node = self.nodes.remove(name).ok_or("no such node")?;
        kill(Pid::from_raw(i32::try_from(node.child.id())?), Signal::SIGTERM)?;
        let status = node.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("{name} ended with {status}").into()) }
    }

    /// Waits until a node ends by itself.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub fn await_exit(&mut self, name: &str, patience: Duration) -> Result<ExitStatus, Error> {
        let deadline = Instant::now() + patience;
        let node = self.nodes.get_mut(name).ok_or("no such node")?;
        loop {
            if let Some(status) = node.child.try_wait()? {
                self.nodes.remove(name);
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(format!("{name} does not end in time").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Names of the nodes that run.
    pub fn names(&self) -> Vec<String> {
        self.nodes.keys().cloned().collect()
    }

    /// A running node's process id.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self, name: &str) -> Result<u32, Error> {
        Ok(self.nodes.get(name).ok_or("no such node")?.child.id())
    }

    /// A running node's id.
    ///
    /// # Errors
    /// It does not run.
    pub fn id(&self, name: &str) -> Result<&str, Error> {
        Ok(&self.nodes.get(name).ok_or("no such node")?.id)
    }

    /// A running node's HTTP interface.
    ///
    /// # Errors
    /// It does not run.
    pub fn api(&self, name: &str) -> Result<Api, Error> {
        Api::new(self.http(name)?)
    }

    /// Where a running node's HTTP interface is.
    ///
    /// # Errors
    /// It does not run.
    pub fn http(&self, name: &str) -> Result<&str, Error> {
        let node = self.nodes.get(name).ok_or("no such node")?;
        Ok(node.relay.as_ref().map_or(&node.http, Relay::url))
    }

    /// Where a running node listens for others.
    ///
    /// # Errors
    /// It does not run.
    pub fn listen(&self, name: &str) -> Result<&str, Error> {
        Ok(&self.nodes.get(name).ok_or("no such node")?.listen)
    }

    /// What runs a program where a node runs.
    pub fn command(&self, name: &str, program: &str) -> Command {
        within(self.place(name), Path::new(program))
    }

    /// The name of the running node with that id.
    pub fn name_of(&self, id: &str) -> Option<String> {
        self.nodes.iter().find(|(_, node)| node.id == id).map(|(name, _)| name.clone())
    }

    /// What a node has logged so far.
    pub fn log(&self, name: &str) -> String {
        let path = self.folder.path().join(format!("{name}.log"));
        fs::read(path).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The name of the node that coordinates a pipeline, as another node sees it.
    ///
    /// # Errors
    /// That node does not answer.
    pub async fn coordinator(&self, asked: &str, pipeline: &str) -> Result<Option<String>, Error> {
        let answer = self.api(asked)?.get(&format!("/v1/pipelines/{pipeline}")).await?;
        Ok(answer.body["coordinator"]["id"].as_str().and_then(|id| self.name_of(id)))
    }
}

impl Drop for LocalCluster {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            // A node that is gone already is what is wanted.
            let _ = node.child.kill();
            let _ = node.child.wait();
        }
    }
}

/// A program in a place, if there is one.
fn within(place: Option<&Place>, program: &Path) -> Command {
    let Some(place) = place else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", place.namespace.display())).arg("--").arg(program);
    command
}

fn wait_ready(mut child: Child, ready: &Path) -> Result<Node, Error> {
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if let Ok(text) = fs::read_to_string(ready) {
            let document: Value = serde_json::from_str(&text)?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Ok(Node {
                id: text(&document["node"]),
                http: text(&document["http"]),
                listen: text(&document["listen"][0]),
                relay: None,
                child,
            });
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("it ended with {status}").into());
        }
        if Instant::now() > deadline {
            child.kill()?;
            return Err("it does not serve in time".into());
        }
        thread::sleep(Duration::from_millis(10));
    }
}
