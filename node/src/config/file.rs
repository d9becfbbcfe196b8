//! The configuration file: TOML, every key optional, unknown keys refused.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use carbonmesh_protocol::config::{Limits, Timing};
use serde::Deserialize;

use super::{ConfigError, access::ApiSection, notify::NotifySection, wrong};
use crate::{
    document::parse_duration,
    phase::{ExecSettings, HostSettings, WasmPhase, WasmSettings, host::sdk, wasm::read_module},
    results::{FileSettings, MailSettings, MailTls, PostSettings, ResultSettings},
};

pub(super) const DEFAULT_FREE_BYTES: u64 = 512 << 20;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    pub(super) role: Vec<String>,
    pub(super) namespaces: Vec<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) listen: Vec<String>,
    pub(super) peer: Vec<String>,
    pub(super) advertise: Vec<String>,
    pub(super) relay: bool,
    pub(super) data_dir: Option<PathBuf>,
    pub(super) backup_dir: Option<PathBuf>,
    pub(super) encryption_key_file: Option<PathBuf>,
    pub(super) encryption_key_command: Option<String>,
    pub(super) log_format: Option<String>,
    pub(super) otlp_endpoint: Option<String>,
    pub(super) cluster: Option<String>,
    pub(super) secret_file: Option<PathBuf>,
    pub(super) name: Option<String>,
    pub(super) http: Option<String>,
    pub(super) api: ApiSection,
    pub(super) mdns: Option<bool>,
    pub(super) accept_handlers: Vec<String>,
    pub(super) secrets_file: Option<PathBuf>,
    pub(super) scope_key_file: Option<PathBuf>,
    pub(super) phases: BTreeMap<String, PhaseSection>,
    pub(super) hosts: BTreeMap<String, HostSection>,
    pub(super) results: ResultsSection,
    pub(super) notify: BTreeMap<String, NotifySection>,
    pub(super) limits: LimitsSection,
    pub(super) timing: TimingSection,
}

/// Where results of jobs may go.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ResultsSection {
    folder: Option<PathBuf>,
    post: Option<PostSection>,
    mail: Option<MailSection>,
}

/// To which HTTP servers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostSection {
    urls: Vec<String>,
    secret_file: PathBuf,
    timeout: Option<String>,
}

/// By e-mail, through which server, and to whom.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MailSection {
    pub(super) server: String,
    pub(super) tls: Option<String>,
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
    pub(super) from: String,
    pub(super) to: Vec<String>,
}

/// One phase.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PhaseSection {
    pub(super) slots: Option<u32>,
    pub(super) command: Option<Vec<String>>,
    pub(super) wasm: Option<PathBuf>,
    timeout: Option<String>,
    max_output: Option<usize>,
    no_retry_codes: Option<Vec<i32>>,
    directory: Option<PathBuf>,
    env: BTreeMap<String, String>,
    max_memory: Option<usize>,
    read_folders: BTreeMap<String, PathBuf>,
    write_folders: BTreeMap<String, PathBuf>,
    /// Whether its module was named by a flag.
    #[serde(skip)]
    pub(super) by_flag: bool,
}

/// One phase host.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostSection {
    command: Option<Vec<String>>,
    file: Option<PathBuf>,
    socket: Option<String>,
    slots: Option<u32>,
    timeout: Option<String>,
    directory: Option<PathBuf>,
    env: BTreeMap<String, String>,
    pass_env: Vec<String>,
    max_frame: Option<usize>,
    start_timeout: Option<String>,
    recycle_after: Option<u64>,
    recycle_memory: Option<u64>,
    max_memory: Option<u64>,
    max_cpu_seconds: Option<u64>,
    max_files: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsSection {
    job_bytes: Option<usize>,
    result_bytes: Option<usize>,
    job_results_bytes: Option<usize>,
    session_bytes: Option<usize>,
    session_keys: Option<usize>,
    waiting_jobs: Option<u64>,
    waiting_bytes: Option<usize>,
    resident_bytes: Option<usize>,
    journal_bytes: Option<usize>,
    journal_jobs: Option<usize>,
    pipelines: Option<usize>,
    requests: Option<usize>,
    events: Option<usize>,
    event_bytes: Option<usize>,
    free_bytes: Option<u64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct TimingSection {
    beat: Option<String>,
    lease: Option<String>,
    reconnect_grace: Option<String>,
    ack_timeout: Option<String>,
    election_step: Option<String>,
    minority_wait: Option<String>,
    start_wait: Option<String>,
    request_timeout: Option<String>,
    overdue: Option<String>,
    anti_entropy: Option<String>,
    replace_after: Option<String>,
    tombstones: Option<String>,
}

impl ConfigFile {
    pub(super) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|error| ConfigError::File {
            path: path.to_owned(),
            // It shows line and column by itself.
            reason: error.to_string().trim_end().to_owned(),
        })
    }
}

impl PhaseSection {
    pub(super) fn exec(&self, name: &str) -> Result<ExecSettings, ConfigError> {
        let command = self.command.clone().unwrap_or_default();
        if command.first().is_none_or(String::is_empty) {
            let reason = "is empty: give the program and its arguments";
            return Err(wrong(format!("phases.{name}.command"), reason));
        }
        for (key, is_given) in [
            ("max_memory", self.max_memory.is_some()),
            ("read_folders", !self.read_folders.is_empty()),
            ("write_folders", !self.write_folders.is_empty()),
        ] {
            if is_given {
                let reason = "is for WebAssembly modules, and a command does what its user may do";
                return Err(wrong(format!("phases.{name}.{key}"), reason));
            }
        }
        Ok(ExecSettings {
            command,
            directory: self.directory.clone(),
            env: self.env.clone(),
            max_output: self.max_output(name)?,
            clean: false,
            no_retry_codes: self.no_retry_codes(),
        })
    }

    /// The module of the file, compiled.
    pub(super) fn module(&self, name: &str, file: &Path) -> Result<WasmPhase, ConfigError> {
        let key = |key: &str| format!("phases.{name}.{key}");
        let setting = if self.by_flag { "--wasm".to_owned() } else { key("wasm") };
        if self.command.is_some() {
            return Err(wrong(setting, format!("{name} has a command too: give one of both")));
        }
        if self.directory.is_some() {
            let reason = "is for commands: a module sees the folders that read_folders and \
                          write_folders grant";
            return Err(wrong(key("directory"), reason));
        }
        if self.max_memory == Some(0) {
            return Err(wrong(key("max_memory"), "must be at least 1 byte"));
        }
        let twice = self.read_folders.keys().find(|name| self.write_folders.contains_key(*name));
        if let Some(twice) = twice {
            let reason = format!("`{twice}` is in read_folders too: give it once");
            return Err(wrong(key("write_folders"), reason));
        }
        let settings = WasmSettings {
            env: self.env.clone(),
            max_memory: self.max_memory.unwrap_or(WasmSettings::MAX_MEMORY),
            max_output: self.max_output(name)?,
            no_retry_codes: self.no_retry_codes(),
            read_folders: self.read_folders.clone(),
            write_folders: self.write_folders.clone(),
            ..WasmSettings::new(name)
        };
        let module = read_module(file).map_err(|why| wrong(setting.clone(), why))?;
        WasmPhase::load(settings, &module)
            .map_err(|why| wrong(setting, format!("{}: {why}", file.display())))
    }

    fn max_output(&self, name: &str) -> Result<usize, ConfigError> {
        match self.max_output {
            Some(0) => Err(wrong(format!("phases.{name}.max_output"), "must be at least 1 byte")),
            given => Ok(given.unwrap_or(ExecSettings::MAX_OUTPUT)),
        }
    }

    fn no_retry_codes(&self) -> Vec<i32> {
        let given = self.no_retry_codes.clone();
        given.unwrap_or_else(|| ExecSettings::NO_RETRY_CODES.to_vec())
    }

    pub(super) fn timeout(&self, name: &str) -> Result<Option<Duration>, ConfigError> {
        duration(&format!("phases.{name}.timeout"), self.timeout.as_deref())
    }
}

impl HostSection {
    /// A host that somebody else has started: what is said of processes cannot be for it.
    fn socket_settings(&self, name: &str) -> Result<HostSettings, ConfigError> {
        let key = |key: &str| format!("hosts.{name}.{key}");
        let socket = self.socket.as_deref().unwrap_or_default();
        let path = socket.strip_prefix("unix:").filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| {
            wrong(
                key("socket"),
                format!("is `{socket}`: give unix: and a whole path, unix:/run/it.sock"),
            )
        })?;
        for (name, is_given) in [
            ("directory", self.directory.is_some()),
            ("env", !self.env.is_empty()),
            ("pass_env", !self.pass_env.is_empty()),
            ("recycle_memory", self.recycle_memory.is_some()),
            ("max_memory", self.max_memory.is_some()),
            ("max_cpu_seconds", self.max_cpu_seconds.is_some()),
            ("max_files", self.max_files.is_some()),
        ] {
            if is_given {
                let reason =
                    "is for processes that this node starts, and a host with a socket is none";
                return Err(wrong(key(name), reason));
            }
        }
        Ok(HostSettings { socket: Some(path.into()), ..HostSettings::new(name, Vec::new()) })
    }

    /// How the host is run.
    pub(super) fn settings(&self, name: &str) -> Result<HostSettings, ConfigError> {
        let key = |key: &str| format!("hosts.{name}.{key}");
        let mut settings = match (&self.command, &self.file) {
            (None, None) if self.socket.is_some() => self.socket_settings(name)?,
            _ if self.socket.is_some() => {
                let reason = "give either a command, a file or a socket";
                return Err(wrong(key("socket"), reason));
            }
            (Some(command), None) if command.first().is_some_and(|first| !first.is_empty()) => {
                HostSettings::new(name, command.clone())
            }
            (Some(_), None) => {
                return Err(wrong(key("command"), "is empty: give the program and its arguments"));
            }
            (None, Some(file)) => {
                sdk::host_of(name, file).map_err(|reason| wrong(key("file"), reason))?
            }
            (None, None) | (Some(_), Some(_)) => {
                let reason = "give either a command, a file of handlers in Python or JavaScript, or a \
                              socket on which a host listens";
                return Err(wrong(key("command"), reason));
            }
        };
        let max_frame = self.max_frame.unwrap_or(settings.max_frame);
        for (name, value) in [
            ("max_frame", Some(max_frame as u64)),
            ("recycle_after", self.recycle_after),
            ("recycle_memory", self.recycle_memory),
            ("max_memory", self.max_memory),
            ("max_cpu_seconds", self.max_cpu_seconds),
            ("max_files", self.max_files),
        ] {
            if value == Some(0) {
                return Err(wrong(key(name), "must be at least 1"));
            }
        }
        for (name, value) in &self.env {
            let value = match settings.env.get(name) {
                // The SDK has to be found all the same.
                Some(paths) if name == "PYTHONPATH" => format!("{paths}:{value}"),
                _ => value.clone(),
            };
            settings.env.insert(name.clone(), value);
        }
        let start_timeout = duration(&key("start_timeout"), self.start_timeout.as_deref())?;
        Ok(HostSettings {
            slots: self.slots.unwrap_or(settings.slots),
            timeout: duration(&key("timeout"), self.timeout.as_deref())?,
            directory: self.directory.clone(),
            pass_env: self.pass_env.clone(),
            max_frame,
            start_timeout: start_timeout.unwrap_or(HostSettings::START_TIMEOUT),
            recycle_after: self.recycle_after,
            recycle_memory: self.recycle_memory,
            max_memory: self.max_memory,
            max_cpu_seconds: self.max_cpu_seconds,
            max_files: self.max_files,
            ..settings
        })
    }
}

impl ResultsSection {
    /// What phases may do with results; secrets are read by `secret`.
    pub(super) fn settings(
        &self,
        secret: impl Fn(&str, &Path) -> Result<String, ConfigError>,
    ) -> Result<ResultSettings, ConfigError> {
        let file = self.folder.clone().map(|folder| FileSettings { folder });
        let post = self.post.as_ref().map(|post| {
            if post.urls.is_empty() {
                return Err(wrong("results.post.urls", "is empty: say where results may be sent"));
            }
            let timeout = duration("results.post.timeout", post.timeout.as_deref())?;
            Ok(PostSettings {
                urls: post.urls.clone(),
                secret: secret("results.post.secret_file", &post.secret_file)?.into_bytes(),
                timeout: timeout.unwrap_or(PostSettings::TIMEOUT),
            })
        });
        let mail = self
            .mail
            .as_ref()
            .map(|mail| mail.settings(|key| format!("results.mail.{key}"), &secret));
        Ok(ResultSettings { file, post: post.transpose()?, mail: mail.transpose()? })
    }
}

impl MailSection {
    /// How mails are sent; `key` names a key of the section that these are of.
    pub(super) fn settings(
        &self,
        key: impl Fn(&str) -> String,
        secret: impl Fn(&str, &Path) -> Result<String, ConfigError>,
    ) -> Result<MailSettings, ConfigError> {
        let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let server = self.server.rsplit_once(':');
        let server = server.and_then(|(host, text)| Some((host, port(text)?)));
        let (host, port) = server.filter(|(host, _)| !host.is_empty()).ok_or_else(|| {
            let reason = format!("`{}` is no HOST:PORT, as smtp.example.org:587 is", self.server);
            wrong(key("server"), reason)
        })?;
        let tls = match self.tls.as_deref() {
            None | Some("starttls") => MailTls::StartTls,
            Some("tls") => MailTls::Tls,
            Some("none") => MailTls::None,
            Some(other) => {
                let reason = format!("`{other}` is none: starttls, tls and none are");
                return Err(wrong(key("tls"), reason));
            }
        };
        let login = match (&self.user, &self.password_file) {
            (None, None) => None,
            (Some(user), Some(file)) => Some((user.clone(), secret(&key("password_file"), file)?)),
            _ => return Err(wrong(key("user"), "give user and password_file, or none of them")),
        };
        if login.is_some() && tls == MailTls::None {
            let reason = "a password would be sent in the clear: take starttls or tls";
            return Err(wrong(key("tls"), reason));
        }
        if self.to.is_empty() {
            let reason = "is empty: name addresses, or a domain as @example.org";
            return Err(wrong(key("to"), reason));
        }
        let (from, to) = (self.from.clone(), self.to.clone());
        Ok(MailSettings { host: host.to_owned(), port, tls, login, from, to })
    }
}

impl LimitsSection {
    /// The limits, and the free space below which no jobs are taken.
    pub(super) fn resolve(&self) -> Result<(Limits, u64), ConfigError> {
        let default = Limits::DEFAULT;
        let limits = Limits {
            job_bytes: self.job_bytes.unwrap_or(default.job_bytes),
            result_bytes: self.result_bytes.unwrap_or(default.result_bytes),
            job_results_bytes: self.job_results_bytes.unwrap_or(default.job_results_bytes),
            session_bytes: self.session_bytes.unwrap_or(default.session_bytes),
            session_keys: self.session_keys.unwrap_or(default.session_keys),
            waiting_jobs: self.waiting_jobs.unwrap_or(default.waiting_jobs),
            waiting_bytes: self.waiting_bytes.unwrap_or(default.waiting_bytes),
            resident_bytes: self.resident_bytes.unwrap_or(default.resident_bytes),
            journal_bytes: self.journal_bytes.unwrap_or(default.journal_bytes),
            journal_jobs: self.journal_jobs.unwrap_or(default.journal_jobs),
            pipelines: self.pipelines.unwrap_or(default.pipelines),
            requests: self.requests.unwrap_or(default.requests),
            events: self.events.unwrap_or(default.events),
            event_bytes: self.event_bytes.unwrap_or(default.event_bytes),
        };
        // A job and its results have to fit into one message with room to spare.
        const MOST: usize = 16 << 20;
        for (name, value) in [
            ("job_bytes", limits.job_bytes),
            ("result_bytes", limits.result_bytes),
            ("job_results_bytes", limits.job_results_bytes),
            ("session_bytes", limits.session_bytes),
        ] {
            if value == 0 || value > MOST {
                let reason = format!("{value} is not possible: 1 to {MOST} bytes are");
                return Err(wrong(format!("limits.{name}"), reason));
            }
        }
        Ok((limits, self.free_bytes.unwrap_or(DEFAULT_FREE_BYTES)))
    }
}

impl TimingSection {
    pub(super) fn resolve(&self) -> Result<Timing, ConfigError> {
        let default = Timing::DEFAULT;
        let or = |name: &str, text: &Option<String>, default| {
            let found = duration(&format!("timing.{name}"), text.as_deref())?;
            Ok::<_, ConfigError>(found.unwrap_or(default))
        };
        let timing = Timing {
            beat: or("beat", &self.beat, default.beat)?,
            lease: or("lease", &self.lease, default.lease)?,
            reconnect_grace: or("reconnect_grace", &self.reconnect_grace, default.reconnect_grace)?,
            ack_timeout: or("ack_timeout", &self.ack_timeout, default.ack_timeout)?,
            election_step: or("election_step", &self.election_step, default.election_step)?,
            minority_wait: or("minority_wait", &self.minority_wait, default.minority_wait)?,
            start_wait: or("start_wait", &self.start_wait, default.start_wait)?,
            request_timeout: or("request_timeout", &self.request_timeout, default.request_timeout)?,
            overdue: or("overdue", &self.overdue, default.overdue)?,
            anti_entropy: or("anti_entropy", &self.anti_entropy, default.anti_entropy)?,
            replace_after: or("replace_after", &self.replace_after, default.replace_after)?,
            tombstones: or("tombstones", &self.tombstones, default.tombstones)?,
        };
        if timing.lease < timing.beat * 2 {
            let reason = "must be at least twice timing.beat, or one lost beat ends it";
            return Err(wrong("timing.lease", reason));
        }
        if timing.reconnect_grace >= timing.lease {
            return Err(wrong("timing.reconnect_grace", "must be shorter than timing.lease"));
        }
        Ok(timing)
    }
}

pub(super) fn duration(setting: &str, text: Option<&str>) -> Result<Option<Duration>, ConfigError> {
    let Some(text) = text else { return Ok(None) };
    match parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err(wrong(setting, "must be longer than zero")),
        Ok(duration) => Ok(Some(duration)),
        Err(error) => Err(wrong(setting, error.to_string())),
    }
}
