//! A node's settings: flags, environment, file, defaults, in this order of precedence.
//!
//! [`UpArgs`] holds flags and environment as clap reads them, `file` the TOML document; here they
//! become one [`Settings`], checked as a whole. Every error names the setting and the way out.

mod access;
mod detect;
mod embed;
mod encryption;
mod file;
#[cfg(test)]
mod fuzz;
mod hosts;
mod notify;
mod offers;
mod private;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs, io,
    net::SocketAddr,
    path::PathBuf,
};

use carbonmesh_protocol::{
    advert::Roles,
    config::{Limits, Timing},
    handler::Language,
    name::{Name, Namespace},
    rights::Rights,
};
use carbonmesh_storage::{Files, OperatorKey};
use libp2p::Multiaddr;
use thiserror::Error;

pub use self::{
    access::AccessArgs, embed::NodeBuilder, encryption::EncryptionArgs, hosts::Hosts,
    private::ClusterSecret,
};
use self::{
    file::{ConfigFile, ResultsSection},
    offers::{accepted_languages, granted_phases, in_namespaces, modules, phases},
    private::{read_invitation, read_secret, secret_text},
};
pub(crate) use self::{
    hosts::{HandlerFile, Take},
    private::{encryption_key, encryption_key_in, scope_key_in},
};
use crate::{
    http::access::AccessSettings,
    logs::LogFormat,
    net::{is_loopback, parse_address},
    notify::TargetSettings,
    otlp,
    phase::{OfferedPhase, PhaseRegistry},
    scope::Scopes,
    trust::{Invitation, joined_rights},
};

const DEFAULT_CLUSTER: &str = "carbonmesh";
const DEFAULT_HTTP: &str = "127.0.0.1:7400";
pub(crate) const DEFAULT_PORT: u16 = 7401;

/// In how many namespaces one node may offer its phases: others are told of each.
const MAX_NAMESPACES: usize = 100;

/// The settings cannot be used. Nothing was started.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is no valid configuration.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// A setting has a value that cannot be used.
    #[error("{setting}: {reason}")]
    Setting {
        /// Which.
        setting: String,
        /// What is wrong, and the way out.
        reason: String,
    },
}

fn wrong(setting: impl Into<String>, reason: impl Into<String>) -> ConfigError {
    ConfigError::Setting { setting: setting.into(), reason: reason.into() }
}

/// How to run a node. Flags come before variables, variables before the file.
///
/// The cluster's secret has no flag, since every user of the machine can see a process's flags.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(after_help = "The cluster's secret is given by --secret-file, or in CARBONMESH_SECRET.")]
pub struct UpArgs {
    /// A configuration file (TOML)
    #[arg(long, env = "CARBONMESH_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// What this node does: worker, replica, gateway [default: all]
    #[arg(long, env = "CARBONMESH_ROLE", value_name = "ROLE", value_delimiter = ',')]
    role: Vec<String>,
    /// Offer only these phases, each with so many slots
    #[arg(long, env = "CARBONMESH_PHASE", value_name = "NAME=SLOTS", value_delimiter = ',')]
    phase: Vec<String>,
    /// Offer a phase that is a WebAssembly module (WASI preview 1), which can do nothing but compute
    #[arg(long, env = "CARBONMESH_WASM", value_name = "NAME=FILE", value_delimiter = ',')]
    wasm: Vec<String>,
    /// Offer the phases in these namespaces [default: that of --namespace]
    #[arg(long, env = "CARBONMESH_NAMESPACES", value_name = "NAMES", value_delimiter = ',')]
    namespaces: Vec<String>,
    /// What to say about this node, beside what it finds out: os, arch, cores, memory, gpu, tool.*
    #[arg(long, env = "CARBONMESH_LABEL", value_name = "KEY=VALUE", value_delimiter = ',')]
    label: Vec<String>,
    /// Where to listen for other nodes [default: port 7401, on loopback without a secret]
    #[arg(long, env = "CARBONMESH_LISTEN", value_name = "ADDRESS", value_delimiter = ',')]
    listen: Vec<String>,
    /// Where other nodes may be found
    #[arg(long, env = "CARBONMESH_PEER", value_name = "ADDRESS", value_delimiter = ',')]
    peer: Vec<String>,
    /// Tell others to connect here instead
    #[arg(long, env = "CARBONMESH_ADVERTISE", value_name = "ADDRESS", value_delimiter = ',')]
    advertise: Vec<String>,
    /// Relay for nodes that cannot dial each other; this one others must be able to dial
    #[arg(long, env = "CARBONMESH_RELAY")]
    relay: bool,
    /// Where to keep the node's state [default: carbonmesh in the user's data folder]
    #[arg(long, env = "CARBONMESH_DATA_DIR", value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// The cluster's name [default: carbonmesh]
    #[arg(long, env = "CARBONMESH_CLUSTER", value_name = "NAME")]
    cluster: Option<String>,
    /// The file that holds the cluster's secret, at least 16 bytes
    #[arg(long, env = "CARBONMESH_SECRET_FILE", value_name = "FILE")]
    secret_file: Option<PathBuf>,
    /// Join a cluster by this invitation; every user of the machine sees flags, so give it by
    /// --join-file or in the variable where others use it too
    #[arg(long, env = "CARBONMESH_JOIN", value_name = "TOKEN", hide_env_values = true)]
    join: Option<String>,
    /// Join a cluster by the invitation in this file; a node that has joined needs it no more
    #[arg(long, env = "CARBONMESH_JOIN_FILE", value_name = "FILE", conflicts_with = "join")]
    join_file: Option<PathBuf>,
    /// The node's name for people [default: the host's name]
    #[arg(long, env = "CARBONMESH_NAME", value_name = "NAME")]
    name: Option<String>,
    /// Where to serve HTTP; elsewhere than on loopback by TLS and with tokens [default: 127.0.0.1:7400]
    #[arg(long, env = "CARBONMESH_HTTP", value_name = "ADDRESS")]
    http: Option<String>,
    #[command(flatten)]
    access: AccessArgs,
    /// Do not look for nodes on the local network
    #[arg(long, env = "CARBONMESH_NO_MDNS")]
    no_mdns: bool,
    /// Below which folder `carbonmesh backup` may make backups of this node
    #[arg(long, env = "CARBONMESH_BACKUP_DIR", value_name = "FOLDER")]
    backup_dir: Option<PathBuf>,
    #[command(flatten)]
    encryption: EncryptionArgs,
    /// How to write logs [default: human]
    #[arg(long, env = "CARBONMESH_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    log_format: Option<LogFormat>,
    /// Send traces of jobs to this collector, such as http://127.0.0.1:4318 (OTLP over HTTP)
    #[arg(long, env = "CARBONMESH_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Run handlers that the cluster keeps, in these languages: python, javascript, shell, wasm [default: all]
    #[arg(
        long,
        env = "CARBONMESH_ACCEPT_HANDLERS",
        value_name = "LANGUAGES",
        value_delimiter = ',',
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "all"
    )]
    accept_handlers: Vec<String>,
    /// A file of values and secrets for phases that run here (TOML, chmod 600)
    #[arg(long, env = "CARBONMESH_SECRETS_FILE", value_name = "FILE")]
    secrets_file: Option<PathBuf>,
    /// The key of the values and secrets that the cluster keeps (`secret key` makes one), for phases that run
    /// here (chmod 600)
    #[arg(long, env = "CARBONMESH_SCOPE_KEY_FILE", value_name = "FILE")]
    scope_key_file: Option<PathBuf>,
    /// Write where the node serves into this file, as JSON, once it does
    #[arg(long, env = "CARBONMESH_READY_FILE", value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// A file of handlers whose phases it offers
    #[arg(skip)]
    file: Option<HandlerFile>,
}

/// All that a node needs to know, checked.
#[derive(Debug)]
pub struct Settings {
    /// The node's name for people.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's secret.
    pub secret: Option<ClusterSecret>,
    /// The invitation by which it joins, if it was given one.
    pub(crate) join: Option<Box<Invitation>>,
    /// Whether its cluster goes by certificates.
    pub certified: bool,
    /// What the node does.
    pub roles: Roles,
    /// What was found out about its machine, and what its operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Where it listens.
    pub listen: Vec<Multiaddr>,
    /// Whether somebody chose that: else another port may be taken.
    pub listen_is_explicit: bool,
    /// Where others may be found.
    pub peers: Vec<Multiaddr>,
    /// What others are told instead of `listen`.
    pub advertise: Vec<Multiaddr>,
    /// Whether it relays for nodes that cannot dial each other.
    pub relay: bool,
    /// Where it keeps its state.
    pub data_dir: PathBuf,
    /// Below which folder it may make backups.
    pub backup_dir: Option<PathBuf>,
    /// What its folder is encrypted with, if it is.
    pub encryption: Option<OperatorKey>,
    /// Where it serves HTTP.
    pub http: SocketAddr,
    /// Whether somebody chose that: else another port may be taken.
    pub http_is_explicit: bool,
    /// Who may use it, and how it is secured.
    pub access: AccessSettings,
    /// Whether it looks for others on the local network.
    pub mdns: bool,
    /// Where to write that it serves.
    pub ready_file: Option<PathBuf>,
    /// The phases that it offers.
    pub phases: Vec<OfferedPhase>,
    /// The namespaces in which it offers them. Default `default`.
    pub namespaces: BTreeSet<Namespace>,
    /// Values and secrets for phases that run here. Default none.
    pub scopes: Scopes,
    /// Whom it notifies of what. Default nobody.
    pub notify: Vec<TargetSettings>,
    /// Where it sends traces of jobs that it coordinates. Default nowhere.
    pub otlp_endpoint: Option<reqwest::Url>,
    /// The languages of the cluster's handlers that it runs. Default none.
    pub accept_handlers: BTreeSet<Language>,
    /// How much it takes.
    pub limits: Limits,
    /// How fast it reacts.
    pub timing: Timing,
    /// Below so many free bytes on its disk it takes no jobs. Default 512 MiB.
    pub free_bytes: u64,
}

impl UpArgs {
    /// The same, with what a file of handlers has.
    #[must_use]
    pub(crate) fn with_file(self, file: HandlerFile) -> Self {
        Self { file: Some(file), ..self }
    }

    /// Where it works, unless it is said in another way.
    pub(crate) fn within(mut self, namespace: Option<Namespace>) -> Self {
        if self.namespaces.is_empty() {
            self.namespaces.extend(namespace.map(|namespace| namespace.to_string()));
        }
        self
    }

    /// How the node writes its logs.
    ///
    /// # Errors
    /// The configuration file cannot be used.
    pub fn log_format(&self) -> Result<LogFormat, ConfigError> {
        if let Some(given) = self.log_format {
            return Ok(given);
        }
        let Some(name) = self.read_file()?.log_format else { return Ok(LogFormat::default()) };
        let known = |_| wrong("log_format", format!("`{name}` is not known: take human or json"));
        <LogFormat as clap::ValueEnum>::from_str(&name, false).map_err(known)
    }

    fn data_dir(&self, file: &ConfigFile) -> Result<PathBuf, ConfigError> {
        if let Some(given) = self.data_dir.as_ref().or(file.data_dir.as_ref()) {
            return Ok(given.clone());
        }
        let usual = default_data_dir()?;
        // Several nodes of one machine have several folders.
        Ok(match &self.file {
            Some(of) => usual.with_file_name(format!("carbonmesh-{}", of.label())),
            None => usual,
        })
    }

    fn read_file(&self) -> Result<ConfigFile, ConfigError> {
        self.config.as_deref().map_or_else(|| Ok(ConfigFile::default()), ConfigFile::read)
    }

    /// Reads the file, and makes all of it one. `registry` are the program's own phases.
    ///
    /// # Errors
    /// Something cannot be used; the error names it.
    pub fn resolve(mut self, registry: &PhaseRegistry) -> Result<Settings, ConfigError> {
        self.encryption = self.encryption.with_variable()?;
        let secret = match env::var("CARBONMESH_SECRET") {
            Ok(secret) => Some(secret),
            Err(env::VarError::NotPresent) => None,
            Err(env::VarError::NotUnicode(_)) => {
                return Err(wrong(
                    "CARBONMESH_SECRET",
                    "it is no text: use a file for such a secret",
                ));
            }
        };
        self.resolve_with(registry, secret)
    }

    fn resolve_with(
        self,
        registry: &PhaseRegistry,
        secret: Option<String>,
    ) -> Result<Settings, ConfigError> {
        let mut file = self.read_file()?;
        let data_dir = self.data_dir(&file)?;
        let (limits, free_bytes) = file.limits.resolve()?;
        let timing = file.timing.resolve()?;
        if secret.is_some() && self.secret_file.is_some() {
            let reason = "CARBONMESH_SECRET is set too: give the secret in one way only";
            return Err(wrong("--secret-file", reason));
        }
        let secret_file = self.secret_file.or(file.secret_file);
        let secret = read_secret(secret, secret_file.as_deref())?;
        let join = read_invitation(self.join, self.join_file.as_deref())?;
        let encryption =
            self.encryption.resolve(file.encryption_key_file, file.encryption_key_command)?;
        let files = Files::of(&data_dir, encryption.as_ref());
        let granted = joined_rights(&data_dir, &files, join.as_ref());
        let granted = granted.map_err(|error| wrong("--join", error.to_string()))?;
        if granted.is_some() && secret.is_some() {
            let reason = "this node has a certificate too, and a cluster goes by one of both: leave \
                          the secret out (--secret-file, CARBONMESH_SECRET), or start with another \
                          --data-dir and without --join";
            return Err(wrong("--secret-file", reason));
        }
        let exposed_ok = secret.is_some() || granted.is_some();
        let listen = given(self.listen, file.listen);
        let listen_is_explicit = !listen.is_empty();
        let listen = match listen_is_explicit {
            true => addresses("--listen", &listen, exposed_ok)?,
            false => vec![default_listen(exposed_ok)],
        };
        let asked = given(self.role, file.role);
        let roles = match &granted {
            Some((_, rights)) if asked.is_empty() => rights.roles,
            Some((_, rights)) => granted_roles(&asked, rights)?,
            None => roles(&asked)?,
        };
        let mut chosen = self.phase;
        match self.file.map(|file| file.take) {
            Some(Take::Phases(names)) => chosen.extend(names),
            Some(Take::All | Take::Pipeline(_)) | None => {}
        }
        if !self.wasm.is_empty() && !roles.worker {
            return Err(wrong("--wasm", "this node is no worker: add worker to --role"));
        }
        modules(&self.wasm, &mut file.phases)?;
        let phases = match roles.worker {
            true => phases(&chosen, &file.phases, &with_results(&file.results, registry)?)?,
            false if !chosen.is_empty() => {
                return Err(wrong("--phase", "this node is no worker: add worker to --role"));
            }
            false => Vec::new(),
        };
        let asked = given(self.namespaces, file.namespaces);
        let by_certificate = granted.as_ref().and_then(|(_, rights)| rights.namespaces());
        let namespaces = match by_certificate.filter(|_| asked.is_empty()) {
            Some(granted) if !granted.is_empty() => granted,
            Some(_) | None => namespaces(&asked)?,
        };
        let phases = in_namespaces(&phases, &namespaces);
        let phases = match &granted {
            Some((_, rights)) => granted_phases(phases, &chosen, rights)?,
            None => phases,
        };
        let said = if self.label.is_empty() { file.labels } else { labels(&self.label)? };
        let mut labels = detect::labels();
        labels.extend(said);
        let scopes = match self.secrets_file.or(file.secrets_file) {
            None => Scopes::default(),
            Some(path) => Scopes::read(&path)
                .map_err(|why| wrong(format!("--secrets-file {}", path.display()), why))?,
        };
        let scopes = match self.scope_key_file.or(file.scope_key_file) {
            None => scopes,
            Some(path) => scopes.with_key(scope_key_in(&path)?),
        };
        let http = self.http.or(file.http);
        let http_is_explicit = http.is_some();
        let http = http_address(http)?;
        let cluster = self.cluster.or(file.cluster);
        let cluster = match &granted {
            Some(_) if cluster.is_some() => {
                let reason =
                    "this node's certificate says which cluster it belongs to: leave it out";
                return Err(wrong("--cluster", reason));
            }
            Some((root, _)) => root.cluster(),
            None => cluster.unwrap_or_else(|| DEFAULT_CLUSTER.to_owned()),
        };
        let cluster = Name::plain(&cluster).map_err(|e| wrong("--cluster", e.to_string()))?;
        let mut peers = addresses("--peer", &given(self.peer, file.peer), exposed_ok)?;
        if let Some(join) = &join {
            let invited = addresses("--join", &join.addresses, exposed_ok)?;
            peers.extend(
                invited.into_iter().filter(|address| !peers.contains(address)).collect::<Vec<_>>(),
            );
        }
        let relay = self.relay || file.relay;
        if relay && !exposed_ok {
            let reason = "without a secret or an invitation a node keeps to this machine, where \
                          nobody needs a relay: give it --secret-file or --join-file";
            return Err(wrong("--relay", reason));
        }
        let loopback = listen.iter().all(is_loopback);
        Ok(Settings {
            name: node_name(self.name.or(file.name))?,
            cluster: cluster.to_string(),
            secret,
            roles,
            labels,
            // What is told by multicast is of no use to others if only loopback is listened on.
            mdns: file.mdns.unwrap_or(true) && !self.no_mdns && !loopback,
            listen,
            listen_is_explicit,
            peers,
            join: join.map(Box::new),
            certified: granted.is_some(),
            advertise: addresses(
                "--advertise",
                &given(self.advertise, file.advertise),
                exposed_ok,
            )?,
            relay,
            data_dir,
            backup_dir: self.backup_dir.or(file.backup_dir),
            encryption,
            http_is_explicit,
            http,
            access: self.access.resolve(file.api, http)?,
            ready_file: self.ready_file,
            scopes,
            otlp_endpoint: self
                .otlp_endpoint
                .or(file.otlp_endpoint)
                .map(|text| otlp::endpoint(&text).map_err(|why| wrong("--otlp-endpoint", why)))
                .transpose()?,
            notify: notify::targets(&file.notify, cluster.as_str(), secret_text)?,
            accept_handlers: accepted_languages(
                &given(self.accept_handlers, file.accept_handlers),
                roles,
            )?,
            phases,
            namespaces,
            limits,
            timing,
            free_bytes,
        })
    }
}

/// Flags and environment, or what the file says.
fn given(first: Vec<String>, second: Vec<String>) -> Vec<String> {
    if first.is_empty() { second } else { first }
}

fn roles(names: &[String]) -> Result<Roles, ConfigError> {
    if names.is_empty() {
        return Ok(Roles::ALL);
    }
    let mut roles = Roles { worker: false, replica: false, gateway: false };
    for name in names {
        match name.trim() {
            "worker" => roles.worker = true,
            "replica" => roles.replica = true,
            "gateway" => roles.gateway = true,
            other => {
                let reason = format!("`{other}` is no role: take worker, replica or gateway");
                return Err(wrong("--role", reason));
            }
        }
    }
    Ok(roles)
}

/// The roles that were asked for, all of which the certificate must grant.
fn granted_roles(asked: &[String], rights: &Rights) -> Result<Roles, ConfigError> {
    let roles = roles(asked)?;
    let granted = Rights { roles: rights.roles, phases: None };
    match granted.cover(&Rights { roles, phases: None }) {
        true => Ok(roles),
        false => {
            let reason = format!(
                "this node's certificate grants {} only: leave --role out, or ask for an invitation \
                 with more",
                rights.roles
            );
            Err(wrong("--role", reason))
        }
    }
}

/// The registry with the phases that take results where the operator lets them.
fn with_results(
    results: &ResultsSection,
    registry: &PhaseRegistry,
) -> Result<PhaseRegistry, ConfigError> {
    let settings = results.settings(secret_text)?;
    settings.register(registry.clone()).map_err(|(setting, reason)| wrong(setting, reason))
}

/// Where the node works.
fn namespaces(asked: &[String]) -> Result<BTreeSet<Namespace>, ConfigError> {
    if asked.is_empty() {
        return Ok(BTreeSet::from([Namespace::default()]));
    }
    let read = |text: &String| text.trim().parse::<Namespace>();
    let namespaces = asked.iter().map(read).collect::<Result<BTreeSet<_>, _>>();
    let namespaces = namespaces.map_err(|error| wrong("--namespaces", error.to_string()))?;
    match namespaces.len() {
        ..=MAX_NAMESPACES => Ok(namespaces),
        count => {
            let reason = format!("{count} are too many: one node can work for {MAX_NAMESPACES}");
            Err(wrong("--namespaces", reason))
        }
    }
}

fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    let pair = |text: &String| {
        let (key, value) = text
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| wrong("--label", format!("`{text}` is no label: write KEY=VALUE")))?;
        Ok((key.to_owned(), value.to_owned()))
    };
    texts.iter().map(pair).collect()
}

fn addresses(
    setting: &str,
    texts: &[String],
    exposed_ok: bool,
) -> Result<Vec<Multiaddr>, ConfigError> {
    let parse = |text: &String| {
        let address = parse_address(text.trim()).map_err(|e| wrong(setting, e.to_string()))?;
        if !exposed_ok && !is_loopback(&address) {
            let reason = format!(
                "{text} is not on this machine, and there is no cluster secret: give all nodes \
                 the same one with --secret-file or CARBONMESH_SECRET, or join with --join"
            );
            return Err(wrong(setting, reason));
        }
        Ok(address)
    };
    texts.iter().map(parse).collect()
}

fn default_listen(exposed_ok: bool) -> Multiaddr {
    let ip = if exposed_ok { [0, 0, 0, 0] } else { [127, 0, 0, 1] };
    Multiaddr::from(std::net::Ipv4Addr::from(ip))
        .with(libp2p::multiaddr::Protocol::Tcp(DEFAULT_PORT))
}

fn http_address(text: Option<String>) -> Result<SocketAddr, ConfigError> {
    let text = text.as_deref().unwrap_or(DEFAULT_HTTP);
    text.parse()
        .map_err(|_| wrong("--http", format!("`{text}` is no IP:PORT, as {DEFAULT_HTTP} is")))
}

fn node_name(given: Option<String>) -> Result<String, ConfigError> {
    let name = given.unwrap_or_else(|| {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        if host.trim().is_empty() { "node".to_owned() } else { host.trim().to_owned() }
    });
    if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
        return Err(wrong("--name", "1 to 64 printable characters are possible"));
    }
    Ok(name)
}

fn default_data_dir() -> Result<PathBuf, ConfigError> {
    let base = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| env::home_dir().map(|home| home.join(".local/share")));
    base.map(|base| base.join("carbonmesh"))
        .ok_or_else(|| wrong("--data-dir", "there is no home folder: give a folder"))
}
