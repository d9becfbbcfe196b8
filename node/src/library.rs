//! Handlers that the cluster keeps, run on this node because its operator said that it may.
//!
//! ```text
//! core: all handlers ─► those that fit here ─► a pool of processes, a script, a module ─► phases it offers
//! ```
//! A handler fits where its language is accepted and on the path, and the node has what it requires. One
//! that changes takes over for attempts to come; those that run end with the source that they began with.
//! One that does not start leaves the one before in its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use carbonmesh_protocol::{
    handler::{Handler, HandlerEntry, Language, SourceHash},
    io::{Request, Response},
    name::{Name, Namespace},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    driver::Command,
    handle::NodeHandle,
    phase::{
        ExecPhase, ExecSettings, OfferedPhase, Phase, PhaseRegistry, Registered, RunningHost,
        WasmPhase, WasmSettings, host::sdk, wasm,
    },
};

/// How often the node looks for changes: they are there within a second of being put.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// After how long a handler that did not start is tried again: twice as long each time.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
const LAST_AGAIN: Duration = Duration::from_secs(60);

/// How many files a process of a handler may have open.
const MAX_FILES: u64 = 1024;

/// What a module for Node.js imports.
const JAVASCRIPT_SDK: &str = include_str!("../../sdk/javascript/carbonmesh.mjs");

/// What a node says of the handlers that it runs.
#[derive(Clone, Debug)]
pub(crate) struct Terms {
    /// The languages that its operator accepts.
    pub(crate) accept: BTreeSet<Language>,
    /// The namespaces that it works for.
    pub(crate) namespaces: BTreeSet<Namespace>,
    /// What it has.
    pub(crate) labels: BTreeMap<String, String>,
    /// Where it puts sources.
    pub(crate) folder: PathBuf,
    /// The phases that it offers by itself; they go before handlers of the same name.
    pub(crate) own: Vec<OfferedPhase>,
}

/// See the [module](self).
pub(crate) struct Library {
    handle: NodeHandle,
    commands: mpsc::Sender<Command>,
    terms: Terms,
    running: BTreeMap<Name, Shipped>,
    /// Of which change a start is under way.
    starting: BTreeMap<Name, u64>,
    starts: JoinSet<Started>,
    failed: BTreeMap<Name, Failed>,
    /// Phases of its own that have handlers too, as far as that was told.
    hidden: BTreeSet<Name>,
}

/// A handler that is offered.
struct Shipped {
    generation: u64,
    offered: OfferedPhase,
}

/// A handler that did not start.
struct Failed {
    generation: u64,
    again: Instant,
    wait: Duration,
}

/// What became of a start.
struct Started {
    phase: Name,
    generation: u64,
    hash: SourceHash,
    result: Result<OfferedPhase, String>,
}

impl Library {
    pub(crate) fn new(handle: NodeHandle, commands: mpsc::Sender<Command>, terms: Terms) -> Self {
        Self {
            handle,
            commands,
            terms,
            running: BTreeMap::new(),
            starting: BTreeMap::new(),
            starts: JoinSet::new(),
            failed: BTreeMap::new(),
            hidden: BTreeSet::new(),
        }
    }

    /// Goes on until `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        // What an earlier process has left may be half of a source.
        match clear(&self.terms.folder) {
            Ok(folder) => self.terms.folder = folder,
            Err(error) => {
                let folder = self.terms.folder.display();
                error!(%folder, %error, "handlers cannot be kept: none runs here");
                return;
            }
        }
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let offers = tokio::select! {
                () = cancel.cancelled() => return,
                Some(started) = self.starts.join_next() => match started {
                    Ok(started) => self.started(started),
                    // It panicked, which is told; the next look starts it again.
                    Err(_) => {
                        self.starting.clear();
                        false
                    }
                },
                _ = every.tick() => match self.handle.request(Request::Handlers).await {
                    Ok(Response::Handlers(all)) => self.look(all),
                    Ok(_) => false,
                    Err(_) => return,
                },
            };
            if offers {
                let shipped = self.running.values().map(|shipped| shipped.offered.clone());
                let all = self.terms.own.iter().cloned().chain(shipped).collect();
                if self.commands.send(Command::Offer(all)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Starts what is new. Says whether the node offers something less.
    fn look(&mut self, all: Vec<HandlerEntry>) -> bool {
        let mut wanted = BTreeMap::new();
        for entry in all {
            if !self.terms.namespaces.contains(&Namespace::containing(&entry.phase)) {
                continue;
            }
            if self.terms.own.iter().any(|own| own.name == entry.phase) {
                if self.hidden.insert(entry.phase.clone()) {
                    let phase = entry.phase;
                    warn!(%phase, "the node has this phase by itself: the cluster's handler is not run");
                }
            } else if let Some(handler) = entry.handler.filter(|it| self.terms.fit(it)) {
                wanted.insert(
                    entry.phase,
                    (entry.generation, entry.versions.first().copied(), handler),
                );
            }
        }
        let before = self.running.len();
        self.running.retain(|phase, _| {
            let stays = wanted.contains_key(phase);
            if !stays {
                info!(%phase, "the handler is not run here any more");
            }
            stays
        });
        self.failed.retain(|phase, _| wanted.contains_key(phase));
        for (phase, (generation, version, handler)) in wanted {
            let running = self.running.get(&phase).map(|shipped| shipped.generation);
            let starting = self.starting.get(&phase).copied();
            let failed = self.failed.get(&phase).filter(|failed| failed.generation == generation);
            let waits = failed.is_some_and(|failed| Instant::now() < failed.again);
            let known = running == Some(generation) || starting.is_some() || waits;
            let Some(version) = version.filter(|_| !known) else { continue };
            self.starting.insert(phase.clone(), generation);
            let folder = self.terms.folder.join(version.hash.to_string());
            self.starts.spawn(async move {
                let result = start(&phase, &handler, &folder).await;
                Started { phase, generation, hash: version.hash, result }
            });
        }
        self.running.len() != before
    }

    /// A start has ended. Says whether the node offers something else.
    fn started(&mut self, started: Started) -> bool {
        let Started { phase, generation, hash, result } = started;
        self.starting.remove(&phase);
        match result {
            Ok(offered) => {
                info!(%phase, sha256 = %hash, "the handler runs here");
                self.failed.remove(&phase);
                self.running.insert(phase, Shipped { generation, offered });
                true
            }
            Err(why) => {
                let before = self.failed.get(&phase).filter(|it| it.generation == generation);
                let wait = before.map_or(FIRST_AGAIN, |before| (before.wait * 2).min(LAST_AGAIN));
                let kept = self.running.contains_key(&phase);
                error!(%phase, sha256 = %hash, kept, "the handler does not start: {why}");
                self.failed
                    .insert(phase, Failed { generation, again: Instant::now() + wait, wait });
                false
            }
        }
    }
}

impl Terms {
    /// Whether a handler may be run here.
    fn fit(&self, handler: &Handler) -> bool {
        self.accept.contains(&handler.language)
            && is_runnable(handler.language)
            && handler.requires.iter().all(|requirement| requirement.is_met_by(&self.labels))
    }
}

/// What runs a language; nothing where this program does it by itself.
pub(crate) fn processor(language: Language) -> Option<&'static str> {
    match language {
        Language::Python => Some("python3"),
        Language::JavaScript => Some("node"),
        Language::Shell => Some("sh"),
        Language::Wasm => None,
    }
}

/// Whether there is here what runs a language.
fn is_runnable(language: Language) -> bool {
    processor(language).map_or(wasm::IS_BUILT_IN, is_on_path)
}

/// Whether there is such a program.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// How a file in a language is called.
pub(crate) fn extension(language: Language) -> &'static str {
    match language {
        Language::Python => "py",
        Language::JavaScript => "mjs",
        Language::Shell => "sh",
        Language::Wasm => "wasm",
    }
}

async fn start(phase: &Name, handler: &Handler, folder: &Path) -> Result<OfferedPhase, String> {
    if handler.language == Language::Wasm {
        return start_module(phase, handler).await;
    }
    let file = unpack(handler, folder)
        .map_err(|error| format!("cannot write it into {}: {error}", folder.display()))?;
    let offered = |phase_impl: Arc<dyn Phase>| OfferedPhase {
        name: phase.clone(),
        slots: handler.slots,
        timeout: None,
        phase: phase_impl,
    };
    if handler.language == Language::Shell {
        let command = ["sh", &file.to_string_lossy()].map(str::to_owned).to_vec();
        return Ok(offered(Arc::new(ExecPhase::new(ExecSettings {
            command,
            directory: Some(folder.to_owned()),
            env: BTreeMap::new(),
            clean: true,
            max_output: ExecSettings::MAX_OUTPUT,
            no_retry_codes: ExecSettings::NO_RETRY_CODES.to_vec(),
        }))));
    }
    let mut settings = sdk::host_of(phase.local(), &file)?;
    settings.slots = handler.slots;
    settings.directory = Some(folder.to_owned());
    settings.max_files = Some(MAX_FILES);
    let host = RunningHost::start(settings).await?;
    let registry = PhaseRegistry::default().with_host(&host)?;
    let mut phases = registry.iter();
    match phases.find(|(name, _)| *name == phase.local()) {
        Some((_, Registered { phase, .. })) => Ok(offered(phase.clone())),
        None => Err(format!(
            "it has no phase `{phase}`, but {}: put it under a name that it has",
            host.phases().join(", ")
        )),
    }
}

/// A module needs no file and no folder: it is granted nothing.
async fn start_module(phase: &Name, handler: &Handler) -> Result<OfferedPhase, String> {
    let (settings, module) = (WasmSettings::new(phase.local()), handler.source.clone());
    // Compiling may take seconds, for which nothing else may wait.
    let loaded = tokio::task::spawn_blocking(move || WasmPhase::load(settings, &module)).await;
    let loaded = loaded.map_err(|error| format!("compiling it has failed: {error}"))??;
    let (name, slots) = (phase.clone(), handler.slots);
    Ok(OfferedPhase { name, slots, timeout: None, phase: Arc::new(loaded) })
}

/// Writes a source where its language finds what it needs.
fn unpack(handler: &Handler, folder: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if handler.language == Language::JavaScript {
        fs::write(folder.join("carbonmesh.mjs"), JAVASCRIPT_SDK)?;
    }
    let file = folder.join(format!("handler.{}", extension(handler.language)));
    // The same source may be running here, under another number or for another phase: what reads the file
    // must see all of it at any time.
    if fs::read(&file).is_ok_and(|there| there == handler.source) {
        return Ok(file);
    }
    let fresh = file.with_extension("new");
    fs::write(&fresh, &handler.source)?;
    fs::rename(&fresh, &file)?;
    Ok(file)
}

/// An empty folder, by its full name: handlers run inside of it.
fn clear(folder: &Path) -> io::Result<PathBuf> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => DirBuilder::new().recursive(true).mode(0o700).create(folder)?,
    }
    folder.canonicalize()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn handler(language: Language, source: &'static str) -> Handler {
        let (requires, slots) = (BTreeSet::new(), 2);
        Handler { language, requires, slots, source: Bytes::from_static(source.as_bytes()) }
    }

    fn terms(accept: &[Language], labels: &[(&str, &str)]) -> Terms {
        let label = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Terms {
            accept: accept.iter().copied().collect(),
            namespaces: BTreeSet::from([Namespace::default()]),
            labels: labels.iter().map(label).collect(),
            folder: PathBuf::new(),
            own: Vec::new(),
        }
    }

    #[test]
    fn a_handler_fits_where_its_language_is_accepted_and_its_requirements_are_met() {
        let mut shell = handler(Language::Shell, "true");
        assert!(terms(&[Language::Shell], &[]).fit(&shell));
        assert!(!terms(&[Language::Python], &[]).fit(&shell));
        shell.requires.insert("gpu".parse().unwrap());
        assert!(!terms(&Language::ALL, &[]).fit(&shell));
        assert!(terms(&Language::ALL, &[("gpu", "amd")]).fit(&shell));
    }

    #[cfg(feature = "wasm")]
    #[tokio::test]
    async fn a_module_that_cannot_run_does_not_start_and_says_why() {
        let start = async |text: &str| {
            let source = Bytes::from(wat::parse_str(text).unwrap());
            let module = Handler { source, ..handler(Language::Wasm, "") };
            assert!(terms(&Language::ALL, &[]).fit(&module));
            start(&"a".parse().unwrap(), &module, Path::new("/no/such/folder")).await
        };
        let offered = start("(module (func (export \"_start\")))").await.unwrap();
        assert_eq!((offered.name.as_str(), offered.slots), ("a", 2));
        let error = start("(module)").await.unwrap_err();
        assert!(error.contains("`_start`"), "{error}");
    }

    #[tokio::test]
    async fn a_file_without_the_phase_does_not_start_and_says_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let source = "from carbonmesh import Phase\nclass A(Phase):\n    job_type = 'a'\n    \
                      def execute(self, instructions):\n        return {}\n";
        let python = handler(Language::Python, source);
        let start =
            async |phase: &str| start(&phase.parse().unwrap(), &python, folder.path()).await;
        assert_eq!(start("a").await.unwrap().slots, 2);
        let error = start("b").await.unwrap_err();
        assert!(error.contains("no phase `b`, but a"), "{error}");
    }
}
