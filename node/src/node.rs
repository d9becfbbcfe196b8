//! A node: started from its settings, run until it is told to stop.
//!
//! It puts the parts together in the order in which they depend on each other, and takes them down
//! in the reverse one. What each does is theirs.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use carbonmesh_protocol::{
    config::Config as CoreConfig,
    core::Core,
    id::NodeId,
    io::{Request, Response},
    pipeline::PipelineDef,
    rights::Rights,
    store::ReadError,
    view::Liveness,
};
use carbonmesh_storage::{DataDir, MarkError, OpenError, StorageError, StoreReader, free_bytes};
use libp2p::{Multiaddr, multiaddr::Protocol};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use thiserror::Error;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    backup::Owner,
    clock,
    config::{ConfigError, DEFAULT_PORT, Settings, UpArgs},
    driver::{self, Command, DriverError, Inputs, Outputs},
    facts::{self, FactsOfOthers, Here},
    handle::{NodeHandle, Stopped},
    http::{
        self, HttpLimits, Problem,
        access::{AccessError, Security},
    },
    key,
    library::{Library, Terms},
    local::Local,
    logs,
    net::{self, Net, NetConfig, NetError, Secret},
    notify::{self, Notifier},
    otlp,
    phase::{self, PhaseRegistry, PhaseRunner},
    service,
    tls::Fingerprint,
    trust::{Trust, TrustError},
};

/// How long a node that failed waits for its threads to let go of the store.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a node that stops waits for what runs on it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a node that stops tries to write the audit log.
const AUDIT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often the side file that tells a restored folder from the latest one is written.
const MARK_EVERY: Duration = Duration::from_secs(1);

/// After how long a pipeline that the cluster could not take is applied again.
const APPLY_AGAIN: Duration = Duration::from_millis(500);

/// How long a node looks for others before it makes pipelines known, and how often.
const MEET_TIME: Duration = Duration::from_secs(1);
const MEET_AGAIN: Duration = Duration::from_millis(50);

/// How often the free space is looked at.
const SPACE_EVERY: Duration = Duration::from_secs(2);

/// Inputs that may wait for the core.
const WAITING_EVENTS: usize = 256;
const WAITING_CALLS: usize = 1024;
const WAITING_NEWS: usize = 4096;

/// The node could not be started, or has failed. What was acknowledged is on disk.
#[derive(Debug, Error)]
pub enum RunError {
    /// The settings cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data folder cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The node's key cannot be used.
    #[error(transparent)]
    Key(#[from] crate::key::KeyError),
    /// The node has no certificate that holds.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The network cannot be used.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The HTTP interface cannot be served.
    #[error("cannot serve HTTP on {address}: {source}; choose another address with --http")]
    Http {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The HTTP interface cannot be secured as it is wanted.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// What the node has on disk cannot be read.
    #[error("cannot read what is in the data folder: {0}")]
    Read(#[from] ReadError),
    /// The store cannot be closed in order. What was acknowledged is on disk.
    #[error("cannot close the data folder in order: {0}")]
    Close(#[from] StorageError),
    /// The mark cannot be written at the end. What was acknowledged is on disk.
    #[error("cannot close the data folder in order: {0}")]
    Mark(#[from] MarkError),
    /// It ran, and failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The ready file cannot be written.
    #[error("cannot write the ready file {}: {source}", path.display())]
    ReadyFile {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The system refuses something.
    #[error("the system refuses what a node needs: {0}")]
    System(#[from] io::Error),
}

/// A running node, for programs that have one inside. Dropping it ends the node as a crash would;
/// nothing acknowledged is lost by that.
#[derive(Debug)]
pub struct Node {
    handle: NodeHandle,
    http: SocketAddr,
    security: Arc<Security>,
    net: Net,
    data: Arc<DataDir>,
    commands: mpsc::Sender<Command>,
    ended: oneshot::Receiver<Result<(), DriverError>>,
    server: JoinHandle<io::Result<()>>,
    mark: JoinHandle<()>,
    history: JoinHandle<()>,
    cancel: CancelOnDrop,
}

/// Ends the node's tasks.
#[derive(Debug)]
struct CancelOnDrop(CancellationToken);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Node {
    /// Starts a node; it serves when this returns.
    ///
    /// # Errors
    /// One of its parts cannot be started; nothing keeps running then.
    pub async fn start(settings: Settings) -> Result<Self, RunError> {
        let data = Arc::new(DataDir::open_with(
            &settings.data_dir,
            settings.encryption.as_ref(),
            rand::random,
        )?);
        if let Some(key) = &settings.encryption {
            info!(key = key.id(), "the data folder is encrypted at rest");
        }
        if let Some(reason) = &data.amnesia {
            warn!(
                reason,
                "the data folder may have lost what it once promised: it takes part as a new one, \
                 and the others bring it up to date"
            );
        }
        let cancel = CancelOnDrop(CancellationToken::new());
        let keypair =
            key::load_or_create(&settings.data_dir.join("key"), data.files(), data.is_new)?;
        let trust =
            Trust::open(&settings.data_dir, data.files(), &keypair, settings.join.as_deref())?;
        if let Some(trust) = &trust {
            // What is found on the disk now may not be what the settings were made for.
            let asked = Rights { roles: settings.roles, phases: None };
            let granted = Rights { roles: trust.rights().roles, phases: None };
            if !granted.cover(&asked) || settings.cluster != trust.cluster() {
                return Err(TrustError::Changed.into());
            }
        }
        let listener = listen_http(&settings).await?;
        let http = listener.local_addr()?;
        let security = Arc::new(Security::open(&settings.access, &settings.data_dir, http)?);
        security.watch(&cancel.0);

        let (net_events, net_inputs) = mpsc::channel(WAITING_EVENTS);
        let net = start_net(&settings, &data, keypair, trust.clone(), net_events, cancel.0.clone())
            .await?;
        let (news, phase_inputs) = mpsc::channel(WAITING_NEWS);
        let (said, said_inputs) = mpsc::channel(driver::ROUND);
        let (calls, call_inputs) = mpsc::channel(WAITING_CALLS);
        let (commands, command_inputs) = mpsc::channel(16);
        let node = net.node_id();
        let core = new_core(&settings, node, &data)?;
        let sizes = (settings.limits.result_bytes, settings.limits.job_bytes);
        // What the node tells of itself asks through one that does not have that in it.
        let plain = NodeHandle::new(node, calls).with_trust(trust.clone());
        let owner = Owner {
            node: format!("{node:#}"),
            name: settings.name.clone(),
            cluster: settings.cluster.clone(),
        };
        let local = Local::new(&data, settings.backup_dir.clone(), owner);
        let handle = plain.clone().with_local(local);
        let folder = settings.data_dir.clone();
        handle.metrics().watch(&data.storage, net.counters(), folder);
        let terms = Terms {
            accept: settings.accept_handlers,
            namespaces: settings.namespaces,
            labels: settings.labels,
            folder: settings.data_dir.join("handlers"),
            own: settings.phases.clone(),
        };
        let runner = PhaseRunner::new(settings.phases, sizes, news, handle.metrics().clone())?;
        let runner = runner.with_sessions((&settings.limits).into());
        let runner = runner.with_scopes(settings.scopes).heard_by(said);
        let inputs = Inputs {
            net: net_inputs,
            calls: call_inputs,
            phases: phase_inputs,
            said: said_inputs,
            commands: command_inputs,
        };
        let storage = data.storage.clone();
        let outputs = Outputs { gossip: net.gossip(), runner, storage, trust };
        let ended = driver::spawn(core, inputs, outputs)?;

        let here = Here {
            handle: plain,
            name: settings.name.clone(),
            started_at: format!("{:.3}", jiff::Timestamp::now()),
            boot: data.boot,
            data_dir: settings.data_dir.clone(),
            amnesia: data.amnesia.clone(),
            encrypted: data.files().are_sealed(),
            least_free_bytes: settings.free_bytes,
            listen: net.listening().iter().map(Multiaddr::to_string).collect(),
            port_was_taken: !settings.listen_is_explicit && !net.listening().iter().any(is_usual),
            http: format!("{}://{http}", scheme(&security)),
            has_secret: settings.secret.is_some() || handle.trust().is_some(),
        };
        if let Some(asked) = net.streams().accept(facts::FACTS) {
            tokio::spawn(facts::answer(
                here.clone(),
                handle.trust().cloned(),
                asked,
                cancel.0.clone(),
            ));
        }
        handle.local().tells(here, FactsOfOthers(net.streams()));
        if let Some(asked) = net.streams().accept(notify::AGES) {
            let trust = handle.trust().cloned();
            tokio::spawn(notify::answer_ages(handle.clone(), trust, asked, cancel.0.clone()));
        }
        if let Some(endpoint) = settings.otlp_endpoint {
            otlp::start(endpoint, &handle, &cancel.0).map_err(|reason| {
                let setting = "--otlp-endpoint".to_owned();
                ConfigError::Setting { setting, reason }
            })?;
        }
        let notifier = Notifier::start(settings.notify, &handle, &cancel.0)?;
        notifier.watch(&handle, Some(net.streams()), &cancel.0);
        handle.local().notifies(notifier);
        let hosts = settings.access.hosts.clone();
        let job_bytes = settings.limits.job_bytes;
        let limits = HttpLimits { job_bytes, hosts, ..HttpLimits::default() };
        let router = http::secured_router(handle.clone(), limits, security.clone());
        let serve = http::serve_with(listener, security.tls(), router, cancel.0.clone());
        let server = tokio::spawn(serve);
        let mark = tokio::spawn(keep_mark(data.clone(), commands.clone(), cancel.0.clone()));
        let path = settings.data_dir.clone();
        let watch = watch_space(path, settings.free_bytes, commands.clone(), cancel.0.clone());
        tokio::spawn(watch);
        if !terms.accept.is_empty() {
            let library = Library::new(handle.clone(), commands.clone(), terms);
            tokio::spawn(library.run(cancel.0.clone()));
        }
        let path = settings.data_dir.join("history.json");
        let history = handle.history().clone().run(
            handle.clone(),
            path,
            data.files().clone(),
            cancel.0.clone(),
        );
        let history = tokio::spawn(history);
        Ok(Self {
            handle,
            http,
            security,
            net,
            data,
            commands,
            ended,
            server,
            mark,
            history,
            cancel,
        })
    }

    /// Talks to the node.
    pub fn handle(&self) -> &NodeHandle {
        &self.handle
    }

    /// Where the HTTP interface is.
    pub fn http_address(&self) -> SocketAddr {
        self.http
    }

    /// What clients may trust its certificate by, if it speaks TLS.
    pub fn http_fingerprint(&self) -> Option<Fingerprint> {
        self.security.tls().map(|tls| tls.fingerprint())
    }

    /// Where other nodes can connect.
    pub fn listening(&self) -> &[Multiaddr] {
        self.net.listening()
    }

    /// Waits until the node fails, for as long as it does not.
    pub async fn failed(&mut self) -> RunError {
        let error = match (&mut self.ended).await {
            Ok(Err(error)) => error.into(),
            Ok(Ok(())) | Err(_) => DriverError::Died.into(),
        };
        // Other threads let go of the store now. It has to be closed before the process ends: a
        // store that closes beside that ends it by a signal.
        self.cancel.0.cancel();
        let _ = (&mut self.mark).await;
        let _ = timeout(AUDIT_TIMEOUT, self.security.flush()).await;
        let began = tokio::time::Instant::now();
        while Arc::strong_count(&self.data.storage) > 1 && began.elapsed() < CLOSE_TIMEOUT {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        error
    }

    /// Stops the node: it takes no new work, lets what runs end for up to 10 s, and closes its
    /// store.
    ///
    /// # Errors
    /// It failed while it stopped. What was acknowledged is on disk.
    pub async fn stop(self) -> Result<(), RunError> {
        let (drained, quiet) = oneshot::channel();
        if self.commands.send(Command::Drain(drained)).await.is_ok()
            && timeout(DRAIN_TIMEOUT, quiet).await.is_err()
        {
            warn!(
                "attempts still run, or others do not know yet what this node knows: it stops all the same"
            );
        }
        // It may have failed already, which `ended` tells.
        let _ = self.commands.send(Command::Stop).await;
        let ended = self.ended.await.unwrap_or(Err(DriverError::Died));
        self.cancel.0.cancel();
        self.net.stopped().await;
        if let Ok(Err(error)) = self.server.await {
            warn!(%error, "the HTTP interface did not end in order");
        }
        if timeout(AUDIT_TIMEOUT, self.security.flush()).await.is_err() {
            warn!("the audit log could not be written to its end");
        }
        // An error here is a panic in the task, which has been reported already.
        let _ = self.mark.await;
        let _ = self.history.await;
        ended?;
        self.data.storage.flush()?;
        self.data.mark()?;
        Ok(())
    }
}

/// Runs a node until a signal stops it: what `carbonmesh up` does.
///
/// # Errors
/// It cannot be started, or fails. What was acknowledged is on disk.
pub async fn run(args: UpArgs, phases: PhaseRegistry) -> Result<(), RunError> {
    logs::start(args.log_format()?);
    raise_file_limit();
    let guard = phase::groups::Guard::start();
    if let Err(error) = &guard {
        warn!(%error, "cannot watch over commands: if this node is killed, they go on");
    }
    let hosts = args.start_hosts().await?;
    let settings = args.resolve(&hosts.register(phases)?)?;
    if settings.secret.is_none() && !settings.certified {
        info!("no cluster secret: only nodes on this machine can join (see --secret-file)");
    }
    let (name, ready_file) = (settings.name.clone(), settings.ready_file.clone());
    let done = serve(settings, hosts.pipelines, &name, ready_file.as_deref()).await;
    phase::groups::kill_all();
    done
}

/// Makes pipelines known, once others were met or had the time to be: what they know comes first. Goes
/// on until the cluster takes them: a strict pipeline, for one, takes a majority.
pub(crate) async fn apply_all(handle: NodeHandle, pipelines: Vec<PipelineDef>) {
    if !pipelines.is_empty() {
        await_others(&handle).await;
    }
    for definition in pipelines {
        let (name, mut told) = (definition.name.clone(), String::new());
        loop {
            let problem = match handle.request(Request::Apply(Box::new(definition.clone()))).await {
                Ok(Response::Applied { copies, .. }) => {
                    info!(pipeline = %name, copies, "the pipeline is known");
                    break;
                }
                Ok(Response::Refused(refusal)) => Problem::from(refusal),
                Ok(other) => Problem::unexpected(&other),
                Err(Stopped::Before | Stopped::Unanswered) => return,
            };
            if told != problem.detail {
                warn!(pipeline = %name, why = problem.detail, "the pipeline is not known yet");
                told = problem.detail;
            }
            tokio::time::sleep(APPLY_AGAIN).await;
        }
    }
}

async fn await_others(handle: &NodeHandle) {
    let met = async {
        while let Ok(Response::Cluster(view)) = handle.request(Request::Cluster).await {
            if view.members.iter().filter(|it| it.liveness == Liveness::Alive).count() > 1 {
                return;
            }
            tokio::time::sleep(MEET_AGAIN).await;
        }
    };
    let _ = timeout(MEET_TIME, met).await;
}

/// Each attempt of a command takes some descriptors, and the usual limit is low.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files");
    }
}

async fn serve(
    settings: Settings,
    pipelines: Vec<PipelineDef>,
    name: &str,
    ready_file: Option<&Path>,
) -> Result<(), RunError> {
    // Before anything starts, so that no signal ends a half-started node.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut node = Box::pin(Node::start(settings)).await?;
    announce(&node, name, ready_file)?;
    // It ends with the node: nothing answers it then.
    tokio::spawn(apply_all(node.handle().clone(), pipelines));
    tokio::spawn(service::keep_alive(node.handle().clone()));
    tokio::select! {
        _ = terminate.recv() => info!("stopping"),
        _ = interrupt.recv() => info!("stopping; press Ctrl-C again to stop at once"),
        failure = node.failed() => {
            error!(error = %failure, "the node has failed");
            return Err(failure);
        }
    }
    service::stopping();
    tokio::select! {
        stopped = node.stop() => stopped,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

fn scheme(security: &Security) -> &'static str {
    if security.tls().is_some() { "https" } else { "http" }
}

fn announce(node: &Node, name: &str, ready_file: Option<&Path>) -> Result<(), RunError> {
    let listen: Vec<String> = node.listening().iter().map(Multiaddr::to_string).collect();
    let fingerprint = node.http_fingerprint().map(|it| it.to_string());
    let http = format!("{}://{}", scheme(&node.security), node.http_address());
    let id = node.handle().node();
    let listening = listen.join(" ");
    match &fingerprint {
        Some(fingerprint) => {
            info!(node = %id, name, %http, fingerprint, listen = listening, "ready");
        }
        None => info!(node = %id, name, %http, listen = listening, "ready"),
    }
    if let Some(path) = ready_file {
        let mut ready = json!({ "node": format!("{id:#}"), "http": http, "listen": listen });
        if let Some(fingerprint) = fingerprint {
            ready["fingerprint"] = fingerprint.into();
        }
        let text = ready.to_string();
        let fresh = path.with_extension("new");
        fs::write(&fresh, text)
            .and_then(|()| fs::rename(&fresh, path))
            .map_err(|source| RunError::ReadyFile { path: path.to_owned(), source })?;
    }
    service::ready(&format!("node {id} serves at {http}"));
    Ok(())
}

async fn listen_http(settings: &Settings) -> Result<TcpListener, RunError> {
    let address = settings.http;
    let bound = match TcpListener::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && !settings.http_is_explicit => {
            warn!(%address, "the usual port is taken: serving HTTP on another");
            TcpListener::bind((address.ip(), 0)).await
        }
        bound => bound,
    };
    bound.map_err(|source| RunError::Http { address, source })
}

async fn start_net(
    settings: &Settings,
    data: &DataDir,
    keypair: libp2p::identity::Keypair,
    trust: Option<Trust>,
    events: mpsc::Sender<net::NetEvent>,
    cancel: CancellationToken,
) -> Result<Net, RunError> {
    let config = |listen: &[Multiaddr], peers: Vec<Multiaddr>| NetConfig {
        keypair: keypair.clone(),
        cluster: settings.cluster.clone(),
        secret: settings.secret.as_ref().map(|secret| Secret::new(secret.as_bytes())),
        trust: trust.clone(),
        listen: listen.to_vec(),
        peers,
        mdns: settings.mdns,
        book: settings.data_dir.join("peers.json"),
        files: data.files().clone(),
        advertise: settings.advertise.clone(),
        relay: settings.relay,
    };
    let peers = settings.peers.clone();
    match net::start(config(&settings.listen, peers), events.clone(), cancel.clone()).await {
        Err(NetError::AddressInUse(taken)) if !settings.listen_is_explicit => {
            warn!(%taken, "the usual port is taken: listening on another, and asking who has it");
            let other: Vec<Multiaddr> = settings.listen.iter().map(any_port).collect();
            let peers = settings.peers.iter().cloned().chain([usual_peer()]).collect();
            Ok(net::start(config(&other, peers), events, cancel).await?)
        }
        started => Ok(started?),
    }
}

/// Where another node of this machine most likely is.
fn usual_peer() -> Multiaddr {
    Multiaddr::from(Ipv4Addr::LOCALHOST).with(Protocol::Tcp(DEFAULT_PORT))
}

fn is_usual(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::Tcp(DEFAULT_PORT))
}

fn any_port(address: &Multiaddr) -> Multiaddr {
    let other = address.iter().map(|part| match part {
        Protocol::Tcp(_) => Protocol::Tcp(0),
        part => part,
    });
    other.collect()
}

fn new_core(settings: &Settings, node: NodeId, data: &DataDir) -> Result<Core, RunError> {
    let phases = settings.phases.iter().map(|phase| (phase.name.clone(), phase.slots));
    let config = CoreConfig {
        node,
        disk: data.disk_id,
        boot: data.boot,
        name: settings.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        roles: settings.roles,
        phases: phases.collect(),
        labels: settings.labels.clone(),
        timing: settings.timing,
        limits: settings.limits,
    };
    let reader = Box::new(StoreReader::new(data.storage.clone()));
    Ok(Core::new(config, rand::random(), clock::now()?, clock::unix_ms(), reader)?)
}

/// Writes the side file again and again.
async fn keep_mark(data: Arc<DataDir>, commands: mpsc::Sender<Command>, cancel: CancellationToken) {
    let mut every = tokio::time::interval(MARK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        let data = data.clone();
        let marked = tokio::task::spawn_blocking(move || data.mark()).await;
        match marked {
            Ok(Err(MarkError::Sync(error))) => {
                // What a failed sync has lost is not known: it must not be tried again.
                let _ = commands.send(Command::Fail(error)).await;
                return;
            }
            Ok(Err(MarkError::File(error))) => warn!(%error, "cannot write the mark"),
            Ok(Ok(())) | Err(_) => {}
        }
    }
}

/// Tells the core when the disk has no room for more jobs, and when it has again.
async fn watch_space(
    path: PathBuf,
    enough: u64,
    commands: mpsc::Sender<Command>,
    cancel: CancellationToken,
) {
    let mut told_full = false;
    let mut every = tokio::time::interval(SPACE_EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        let Ok(free) = free_bytes(&path) else { continue };
        let full = free < enough;
        if full == told_full {
            continue;
        }
        told_full = full;
        let accepting = if full {
            let (free, enough) = (free >> 20, enough >> 20);
            let reason = format!(
                "{free} MiB are free in {}, less than the {enough} MiB of limits.free_bytes",
                path.display()
            );
            error!(reason, "taking no more jobs");
            Err(reason)
        } else {
            info!("taking jobs again");
            Ok(())
        };
        if commands.send(Command::Accepting(accepting)).await.is_err() {
            return;
        }
    }
}
