//! A node inside another program: its settings without a command line.

use std::{fmt, path::PathBuf};

use carbonmesh_protocol::pipeline::PipelineDef;

use super::{ConfigError, Settings, UpArgs, wrong};
use crate::{
    document::PipelineDocument,
    node::{Node, RunError, apply_all},
    phase::PhaseRegistry,
};

/// Says how a node is started inside another program. What is not said is as `carbonmesh up` has
/// it, except that no environment variable is read.
///
/// ```
/// use carbonmesh::{node::Node, phase::{Context, PhaseRegistry, phase_fn}};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Deserialize)]
/// struct In { name: String }
///
/// #[derive(Serialize)]
/// struct Out { greeting: String }
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let greet = phase_fn("greet", |_: Context, input: In| async move {
///     Ok(Out { greeting: format!("Hello, {}!", input.name) })
/// });
/// # let folder = std::env::temp_dir().join(format!("carbonmesh-doc-{}", std::process::id()));
/// let node = Node::builder(&folder)
///     .http("127.0.0.1:0")
///     .listen("127.0.0.1:0")
///     .phases(PhaseRegistry::default().with_phase(greet.slots(4)))
///     .pipeline(r#"{"name": "hello", "phases": ["greet"]}"#)
///     .start()
///     .await?;
/// println!("http://{}", node.http_address());
/// node.stop().await?;
/// # std::fs::remove_dir_all(folder)?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a node is started by `start`"]
pub struct NodeBuilder {
    args: UpArgs,
    secret: Option<String>,
    phases: PhaseRegistry,
    pipelines: Vec<String>,
}

impl fmt::Debug for NodeBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without its secret.
        f.debug_struct("NodeBuilder").field("args", &self.args).finish_non_exhaustive()
    }
}

impl Node {
    /// A node that keeps its state in this folder.
    pub fn builder(data_dir: impl Into<PathBuf>) -> NodeBuilder {
        let args = UpArgs { data_dir: Some(data_dir.into()), ..UpArgs::default() };
        let (phases, pipelines) = (PhaseRegistry::default(), Vec::new());
        NodeBuilder { args, secret: None, phases, pipelines }
    }
}

impl NodeBuilder {
    /// Its name for people; the host's name unless given.
    pub fn name(mut self, name: &str) -> Self {
        self.args.name = Some(name.to_owned());
        self
    }

    /// The cluster's name; `carbonmesh` unless given.
    pub fn cluster(mut self, name: &str) -> Self {
        self.args.cluster = Some(name.to_owned());
        self
    }

    /// The cluster's secret, at least 16 bytes; without one, only nodes on this machine can join.
    pub fn secret(mut self, secret: &str) -> Self {
        self.secret = Some(secret.to_owned());
        self
    }

    /// One thing that it does: `worker`, `replica` or `gateway`; all of them unless given.
    pub fn role(mut self, role: &str) -> Self {
        self.args.role.push(role.to_owned());
        self
    }

    /// A namespace that it works for: it offers its phases there; `default` unless given.
    pub fn namespace(mut self, name: &str) -> Self {
        self.args.namespaces.push(name.to_owned());
        self
    }

    /// What to say about it, for phases that require it.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.args.label.push(format!("{key}={value}"));
        self
    }

    /// Where it listens for other nodes, such as `0.0.0.0:7401`; port 0 is one that is free.
    pub fn listen(mut self, address: &str) -> Self {
        self.args.listen.push(address.to_owned());
        self
    }

    /// Where another node may be found.
    pub fn peer(mut self, address: &str) -> Self {
        self.args.peer.push(address.to_owned());
        self
    }

    /// Whether it looks for others on the local network; it does unless told otherwise.
    pub fn mdns(mut self, mdns: bool) -> Self {
        self.args.no_mdns = !mdns;
        self
    }

    /// Where it serves HTTP; port 0 is one that is free.
    pub fn http(mut self, address: &str) -> Self {
        self.args.http = Some(address.to_owned());
        self
    }

    /// A file of values and secrets for phases that run here (TOML, chmod 600).
    pub fn secrets_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.args.secrets_file = Some(path.into());
        self
    }

    /// The key of the values and secrets that the cluster keeps, for phases that run here (chmod 600).
    pub fn scope_key_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.args.scope_key_file = Some(path.into());
        self
    }

    /// A language of the cluster's handlers that it runs: `python`, `javascript`, `shell`, `wasm` or `all`;
    /// none unless given.
    pub fn accept_handlers(mut self, language: &str) -> Self {
        self.args.accept_handlers.push(language.to_owned());
        self
    }

    /// A configuration file for the rest. The hosts that it names are started too.
    pub fn config(mut self, path: impl Into<PathBuf>) -> Self {
        self.args.config = Some(path.into());
        self
    }

    /// The phases that it offers.
    pub fn phases(mut self, phases: PhaseRegistry) -> Self {
        self.phases = phases;
        self
    }

    /// A pipeline that it makes known to the cluster, as JSON or TOML, once it has met others.
    pub fn pipeline(mut self, document: &str) -> Self {
        self.pipelines.push(document.to_owned());
        self
    }

    /// The settings that this makes, checked.
    ///
    /// # Errors
    /// One of them cannot be used; the error names it.
    pub fn settings(self) -> Result<Settings, ConfigError> {
        self.args.resolve_with(&self.phases, self.secret)
    }

    /// Starts the node; it serves when this returns. Dropping it ends it as a crash would, so end it
    /// with [`Node::stop`].
    ///
    /// # Errors
    /// A setting or a pipeline cannot be used, or a part cannot be started; nothing keeps running
    /// then.
    pub async fn start(mut self) -> Result<Node, RunError> {
        let mut pipelines = definitions(&self.pipelines)?;
        let hosts = self.args.start_hosts().await?;
        self.phases = hosts.register(self.phases)?;
        pipelines.extend(hosts.pipelines);
        let node = Box::pin(Node::start(self.settings()?)).await?;
        // It ends with the node: nothing answers it then.
        tokio::spawn(apply_all(node.handle().clone(), pipelines));
        Ok(node)
    }
}

fn definitions(documents: &[String]) -> Result<Vec<PipelineDef>, ConfigError> {
    let definition = |(at, text): (usize, &String)| {
        let document = PipelineDocument::from_text(text);
        let definition = document.and_then(|document| document.definition());
        definition.map_err(|error| wrong(format!("pipeline {}", at + 1), error.to_string()))
    };
    documents.iter().enumerate().map(definition).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::phase::{Fields, phase_fn};

    #[test]
    fn settings_are_those_of_the_command_line() {
        let phase = phase_fn("noop", |_, _: Fields| async { Ok(()) });
        let settings = Node::builder("/tmp/state")
            .name("orders")
            .role("worker")
            .listen("127.0.0.1:0")
            .http("127.0.0.1:0")
            .label("zone", "a")
            .phases(PhaseRegistry::default().with_phase(phase.slots(7)))
            .settings()
            .unwrap();
        assert_eq!((settings.name.as_str(), settings.roles.replica), ("orders", false));
        assert_eq!(settings.labels["zone"], "a");
        assert_eq!(format!("{:?}", settings.phases), "[noop=7]");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let error = Node::builder("/tmp/state").secret("short").settings().unwrap_err();
        assert!(error.to_string().contains("at least 16"), "{error}");
        let error = Node::builder("/tmp/state").role("boss").settings().unwrap_err();
        assert!(error.to_string().contains("`boss` is no role"), "{error}");
        let error = definitions(&["{\"name\": \"p\"}".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("pipeline 1") && error.to_string().contains("phases"));
    }
}
