//! One node: a process that is started, killed, stopped and woken.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use carbonmesh_examples::{
    api::Error,
    network::{Network, SECRET},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::folder::Disk;

/// How long a node may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// A node and its disk.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) disk: Disk,
    pub(crate) http: String,
    pub(crate) listen: String,
    /// The network namespace to run in, if it has one.
    namespace: Option<PathBuf>,
    /// What the next start runs.
    pub(crate) program: PathBuf,
    config: PathBuf,
    ready: PathBuf,
    log: PathBuf,
    child: Option<Child>,
    is_paused: bool,
    /// More environment for the next start.
    pub(crate) env: Vec<(String, String)>,
}

/// Where a node's files lie.
#[derive(Clone, Debug)]
pub(crate) struct Places<'a> {
    pub(crate) program: &'a Path,
    /// Goes with the run.
    pub(crate) root: &'a Path,
    /// Stays.
    pub(crate) out: &'a Path,
}

/// How a start ended.
#[derive(Debug)]
pub(crate) enum Start {
    Serves,
    /// It ended by itself, with this at the end of its log.
    Ended(ExitStatus, String),
}

impl Node {
    /// A node that was never started.
    pub(crate) fn new(
        index: usize,
        places: &Places<'_>,
        disk: Disk,
        config: &str,
        (http, listen): (String, String),
        isolated: bool,
    ) -> Result<Self, Error> {
        let name = format!("n{index}");
        let at = |suffix: &str| places.root.join(format!("{name}.{suffix}"));
        fs::write(at("toml"), config)?;
        Ok(Self {
            disk,
            http,
            listen,
            namespace: isolated.then(|| Network::namespace(index)),
            program: places.program.to_owned(),
            config: at("toml"),
            ready: at("ready"),
            log: places.out.join(format!("{name}.log")),
            child: None,
            is_paused: false,
            env: Vec::new(),
            name,
        })
    }

    /// Starts it, and waits until it serves or has ended.
    pub(crate) fn start(&mut self, peers: &[String]) -> Result<Start, Error> {
        if self.ready.exists() {
            fs::remove_file(&self.ready)?;
        }
        let before = self.log().len();
        self.child = Some(self.command(peers)?.spawn()?);
        let deadline = Instant::now() + START_TIMEOUT;
        while !self.ready.exists() {
            if let Some(status) = self.exited()? {
                let tail = self.log().get(before..).unwrap_or_default().to_owned();
                return Ok(Start::Ended(status, tail));
            }
            if Instant::now() > deadline {
                return Err(format!("node {} does not serve in time", self.name).into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Start::Serves)
    }

    fn command(&self, peers: &[String]) -> Result<Command, Error> {
        let mut command = match &self.namespace {
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.display())).arg("--");
                command
            }
            // No namespace ends it with this process.
            None => {
                let mut command = Command::new("setpriv");
                command.args(["--pdeathsig", "KILL", "--"]);
                command
            }
        };
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        command.arg(&self.program).args(["up", "--no-mdns", "--name", &self.name]);
        command.args(["--http", &self.http, "--listen", &self.listen]);
        command.arg("--data-dir").arg(self.disk.data());
        command.arg("--config").arg(&self.config).arg("--ready-file").arg(&self.ready);
        for peer in peers {
            command.args(["--peer", peer]);
        }
        command.env("CARBONMESH_SECRET", SECRET).envs(self.env.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// How it ended, if it has.
    pub(crate) fn exited(&mut self) -> Result<Option<ExitStatus>, Error> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    /// Whether it can be asked.
    pub(crate) fn is_running(&self) -> bool {
        self.child.is_some() && !self.is_paused
    }

    /// Signal 9; nothing if it does not run.
    pub(crate) fn kill(&mut self) -> Result<(), Error> {
        self.is_paused = false;
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Asks it to end; how it did, if it does in time.
    pub(crate) fn terminate(&mut self, patience: Duration) -> Result<Option<ExitStatus>, Error> {
        self.signal(Signal::SIGTERM)?;
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if let Some(status) = self.exited()? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(None)
    }

    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        self.is_paused = true;
        self.signal(Signal::SIGSTOP)
    }

    pub(crate) fn resume(&mut self) -> Result<(), Error> {
        self.is_paused = false;
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), Error> {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(i32::try_from(child.id())?), signal)?;
        }
        Ok(())
    }

    /// All that it has logged.
    pub(crate) fn log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // One that is gone already is what is wanted.
        let _ = self.kill();
    }
}
