//! The phase hosts that a node starts: those of its configuration, and that of a file of handlers.

use std::path::{Path, PathBuf};

use carbonmesh_protocol::{name::Namespace, pipeline::PipelineDef};

use super::{ConfigError, UpArgs, given, namespaces, offers::MAX_SLOTS, roles, wrong};
use crate::{
    document::PipelineDocument,
    phase::{HostSettings, PhaseRegistry, RunningHost, host::sdk},
};

/// A file of handlers, for a node that is started for it.
#[derive(Clone, Debug)]
pub(crate) struct HandlerFile {
    /// In a language that there is an SDK for.
    pub(crate) path: PathBuf,
    /// What of it this node is for.
    pub(crate) take: Take,
}

/// What a node takes of a file of handlers.
#[derive(Clone, Debug)]
pub(crate) enum Take {
    /// All phases and all pipelines.
    All,
    /// These phases, each as `NAME` or `NAME=SLOTS`.
    Phases(Vec<String>),
    /// This pipeline, and no phases.
    Pipeline(String),
}

impl HandlerFile {
    /// Tells nodes of one machine apart.
    pub(super) fn label(&self) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        match &self.take {
            Take::All => stem.into_owned(),
            Take::Phases(names) => {
                let names = names.iter().map(|name| name.split('=').next().unwrap_or_default());
                format!("{stem}-{}", names.collect::<Vec<_>>().join("-"))
            }
            Take::Pipeline(name) => format!("{stem}-{name}"),
        }
    }
}

/// What [`UpArgs::start_hosts`] has started.
#[derive(Debug, Default)]
pub struct Hosts {
    /// They run.
    pub running: Vec<RunningHost>,
    /// Pipelines that the node is to make known.
    pub pipelines: Vec<PipelineDef>,
}

impl Hosts {
    /// These phases, and those of all hosts.
    ///
    /// # Errors
    /// Two have a phase of the same name.
    pub fn register(&self, registry: PhaseRegistry) -> Result<PhaseRegistry, ConfigError> {
        self.running.iter().try_fold(registry, |registry, host| {
            registry.with_host(host).map_err(|phase| {
                let reason = format!("its phase `{phase}` is there already: rename one of them");
                wrong(format!("hosts.{}", host.settings().name), reason)
            })
        })
    }
}

impl UpArgs {
    /// Starts the phase hosts that this node is to have; dropping them ends them.
    ///
    /// # Errors
    /// A setting cannot be used, or a host does not start; the text holds what it wrote.
    pub async fn start_hosts(&self) -> Result<Hosts, ConfigError> {
        let file = self.read_file()?;
        let mut hosts = Hosts::default();
        if roles(&given(self.role.clone(), file.role.clone()))?.worker {
            for (name, section) in &file.hosts {
                hosts.running.push(start_host(section.settings(name)?).await?);
            }
        }
        let Some(HandlerFile { path, take }) = &self.file else { return Ok(hosts) };
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let settings = sdk::host_of(&name, path);
        let settings = settings.map_err(|reason| wrong(path.display().to_string(), reason))?;
        let host = start_host(settings).await?;
        let namespace = match &self.namespaces[..] {
            [one] => namespaces(std::slice::from_ref(one))?.pop_first(),
            _ => None,
        };
        hosts.pipelines = pipelines(&host, path, take, &namespace.unwrap_or_default())?;
        if !matches!(take, Take::Pipeline(_)) {
            hosts.running.push(host);
        }
        Ok(hosts)
    }
}

async fn start_host(settings: HostSettings) -> Result<RunningHost, ConfigError> {
    let setting = format!("hosts.{}", settings.name);
    if settings.slots == 0 || settings.slots > MAX_SLOTS {
        let reason = format!("{} is not possible: 1 to {MAX_SLOTS} are", settings.slots);
        return Err(wrong(format!("{setting}.slots"), reason));
    }
    RunningHost::start(settings).await.map_err(|reason| wrong(setting, reason))
}

/// Which of the pipelines that came with a file are to be made known.
fn pipelines(
    host: &RunningHost,
    path: &Path,
    take: &Take,
    namespace: &Namespace,
) -> Result<Vec<PipelineDef>, ConfigError> {
    let setting = || path.display().to_string();
    if matches!(take, Take::Phases(_)) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for document in host.pipelines() {
        let document = PipelineDocument::from_json(document.to_string().as_bytes());
        let definition = document.and_then(|mut document| {
            // It lives where the node works, unless it says where.
            if !document.name.contains('/') {
                document.name = format!("{namespace}/{}", document.name);
            }
            document.definition()
        });
        found.push(definition.map_err(|error| wrong(setting(), error.to_string()))?);
    }
    let Take::Pipeline(name) = take else { return Ok(found) };
    let names: Vec<&str> = found.iter().map(|one| one.name.local()).collect();
    if !names.contains(&name.as_str()) {
        let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(wrong(setting(), format!("there is no pipeline `{name}` (it has: {there})")));
    }
    found.retain(|one| one.name.local() == name);
    Ok(found)
}
