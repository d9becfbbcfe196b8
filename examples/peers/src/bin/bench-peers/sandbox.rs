//! A temporary folder and the processes that run in it.
//!
//! Both go with the sandbox. Should this process itself be killed, a shell that waits for that kills
//! the others and removes the folder.

use std::{
    fs::{self, File},
    io,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

use crate::peer::Error;

/// How long a server may take to listen. RabbitMQ takes most of a minute on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// Reads until this process is gone, which closes the pipe; then ends what it has left.
const GUARD: &str = r#"read -r _; kill -s KILL -- "-$0"; sleep 0.5; rm -rf -- "$1""#;

/// A temporary folder and the processes that run in it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    folder: TempDir,
    processes: Vec<(String, Child)>,
    /// All processes are of one process group.
    group: Option<Pid>,
    guard: Option<Child>,
}

impl Sandbox {
    /// An empty folder.
    ///
    /// # Errors
    /// There is no room for it.
    pub(crate) fn new() -> Result<Self, Error> {
        let folder = tempfile::Builder::new().prefix("carbonmesh-peer-").tempdir()?;
        Ok(Self { folder, processes: Vec::new(), group: None, guard: None })
    }

    /// The folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a process in the folder; what it prints goes to `NAME.out` and `NAME.log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(&mut self, name: &str, command: &mut Command) -> Result<(), Error> {
        let file = |suffix| File::create(self.folder.path().join(format!("{name}.{suffix}")));
        command.current_dir(self.folder.path()).env("TMPDIR", self.folder.path());
        command.stdin(Stdio::null()).stdout(file("out")?).stderr(file("log")?);
        command.process_group(self.group.map_or(0, Pid::as_raw));
        let child =
            command.spawn().map_err(|error| format!("{name} cannot be started: {error}"))?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        self.processes.push((name.to_owned(), child));
        if self.group.is_none() {
            self.group = Some(pid);
            self.guard = Some(guard(pid, self.folder.path())?);
        }
        Ok(())
    }

    /// Waits until a process takes connections on a port of loopback.
    ///
    /// # Errors
    /// A process has ended, or does not listen in time; the error has the end of its log.
    pub(crate) async fn await_port(&mut self, port: u16) -> Result<(), Error> {
        let deadline = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            for at in 0..self.processes.len() {
                if let Some(status) = self.processes[at].1.try_wait()? {
                    return Err(self.ended(at, status));
                }
            }
            if Instant::now() > deadline {
                return Err(format!("nobody listens on port {port}").into());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Runs a program to its end; what it printed.
    ///
    /// # Errors
    /// It fails, or takes longer than `patience`; the error has the end of its log.
    pub(crate) async fn run(
        &mut self,
        name: &str,
        command: &mut Command,
        patience: Duration,
    ) -> Result<String, Error> {
        self.start(name, command)?;
        let deadline = Instant::now() + patience;
        let at = self.processes.len() - 1;
        loop {
            match self.processes[at].1.try_wait()? {
                Some(status) if status.success() => {
                    self.processes.pop();
                    return Ok(fs::read_to_string(self.folder().join(format!("{name}.out")))?);
                }
                Some(status) => return Err(self.ended(at, status)),
                None if Instant::now() > deadline => {
                    return Err(format!("{name} does not end in time").into());
                }
                None => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn ended(&self, at: usize, status: ExitStatus) -> Error {
        let name = &self.processes[at].0;
        let read = |suffix| {
            let bytes = fs::read(self.folder().join(format!("{name}.{suffix}")));
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        let printed = read("out") + &read("log");
        let tail: Vec<&str> = printed.lines().rev().take(10).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        format!("{name} ended with {status}\n{}", tail.join("\n")).into()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Whoever is gone already is what is wanted. The guard goes first: a group that is no more
        // must not be killed later, when its number may be another's.
        if let Some(guard) = &mut self.guard {
            let _ = guard.kill();
            let _ = guard.wait();
        }
        let Some(group) = self.group else { return };
        let _ = killpg(group, Signal::SIGKILL);
        for (_, child) in &mut self.processes {
            let _ = child.wait();
        }
        // Their own children end a little later, and may not write into a folder that is removed.
        let deadline = Instant::now() + Duration::from_secs(2);
        while killpg(group, None).is_ok() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn guard(group: Pid, folder: &Path) -> io::Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", GUARD, &group.to_string()]).arg(folder).process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
}

/// Ports of loopback that nobody listens on.
///
/// # Errors
/// There are none.
pub(crate) fn free_ports<const N: usize>() -> Result<[u16; N], Error> {
    let mut ports = [0; N];
    // All are held until all are known, so that they differ.
    let mut held = Vec::with_capacity(N);
    for port in &mut ports {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}
