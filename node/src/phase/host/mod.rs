//! Phase hosts: programs that stay, and run attempts of many phases (`docs/phase-hosts.md`).
//!
//! ```text
//! HostPhase ─► Pool ─► Process ◄─► a child process: frames over its standard streams
//!                              ◄─► a Unix socket, where somebody else has started the host
//! ```
//! An attempt has one end, whatever its process does; a process that breaks the protocol is killed
//! with all that it started.

pub(crate) mod check;
mod frame;
#[cfg(test)]
mod fuzz;
mod pool;
mod process;
pub(crate) mod sdk;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde_json::Value;

use self::pool::Pool;
pub(super) use self::process::PASSED_ENV;
use super::{Fields, Phase, PhaseContext, PhaseError};

/// How a phase host is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostSettings {
    /// Its name in the configuration, for messages.
    pub name: String,
    /// The program and its arguments; no shell is between.
    pub command: Vec<String>,
    /// In its place: the Unix socket on which a host listens that somebody else started. Each connection
    /// is to it what a process is otherwise.
    pub socket: Option<PathBuf>,
    /// How many attempts of each of its phases may run at once.
    pub slots: u32,
    /// How long an attempt may take, where the pipeline does not say.
    pub timeout: Option<Duration>,
    /// Where it runs; the node's own folder if not given.
    pub directory: Option<PathBuf>,
    /// Environment variables for it.
    pub env: BTreeMap<String, String>,
    /// Variables of the node that it gets too.
    pub pass_env: Vec<String>,
    /// The longest frame that it may write, in bytes.
    pub max_frame: usize,
    /// How long it may take until it says hello.
    pub start_timeout: Duration,
    /// A process is replaced after so many attempts.
    pub recycle_after: Option<u64>,
    /// A process is replaced when it has more memory than this, in bytes.
    pub recycle_memory: Option<u64>,
    /// `RLIMIT_AS`, in bytes.
    pub max_memory: Option<u64>,
    /// `RLIMIT_CPU`, in seconds.
    pub max_cpu_seconds: Option<u64>,
    /// `RLIMIT_NOFILE`.
    pub max_files: Option<u64>,
}

impl HostSettings {
    /// The default for `max_frame`: 16 MiB.
    pub const MAX_FRAME: usize = 16 << 20;

    /// The default for `start_timeout`.
    pub const START_TIMEOUT: Duration = Duration::from_secs(30);

    /// A host with these defaults.
    pub fn new(name: impl Into<String>, command: Vec<String>) -> Self {
        Self {
            name: name.into(),
            command,
            socket: None,
            slots: 1,
            timeout: None,
            directory: None,
            env: BTreeMap::new(),
            pass_env: Vec::new(),
            max_frame: Self::MAX_FRAME,
            start_timeout: Self::START_TIMEOUT,
            recycle_after: None,
            recycle_memory: None,
            max_memory: None,
            max_cpu_seconds: None,
            max_files: None,
        }
    }
}

/// A running phase host; its phases are given to a node by
/// [`PhaseRegistry::with_host`](super::PhaseRegistry::with_host).
#[derive(Clone)]
pub struct RunningHost {
    settings: HostSettings,
    pool: Arc<Pool>,
}

impl RunningHost {
    /// Starts its first process, or connects to it, and asks what it offers.
    ///
    /// # Errors
    /// It cannot be started or reached, or is no phase host; the text says why, with the end of its log.
    pub async fn start(settings: HostSettings) -> Result<Self, String> {
        let pool = Pool::start(settings.clone()).await?;
        Ok(Self { settings, pool: Arc::new(pool) })
    }

    /// How it is run.
    pub fn settings(&self) -> &HostSettings {
        &self.settings
    }

    /// The names of its phases.
    pub fn phases(&self) -> &[String] {
        &self.pool.hello().phases
    }

    /// The pipeline documents that came with it.
    pub fn pipelines(&self) -> &[Value] {
        &self.pool.hello().pipelines
    }

    /// One of its phases.
    pub(super) fn phase(&self, name: &str) -> impl Phase {
        HostPhase { name: name.to_owned(), pool: self.pool.clone() }
    }
}

impl fmt::Debug for RunningHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RunningHost({})", self.settings.name)
    }
}

struct HostPhase {
    name: String,
    pool: Arc<Pool>,
}

#[async_trait]
impl Phase for HostPhase {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        self.pool.run(&self.name, &context).await
    }
}
