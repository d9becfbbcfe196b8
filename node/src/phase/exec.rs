//! A phase that is a command: JSON on standard input, JSON on standard output, the exit code tells.
//! One that gives items prints these instead, one in each line, and as many as it likes.
//!
//! The command has a process group of its own, which ends with it: whatever it started and left
//! behind is killed. Its output is bounded, its standard error is the log.

use std::{
    collections::BTreeMap,
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::{Instant, timeout},
};
use tracing::info;

use super::{Fields, LogLevel, Phase, PhaseContext, PhaseError, groups::Group, host::PASSED_ENV};
use crate::document::parse_duration;

/// How long a group may take to end after SIGTERM before it gets SIGKILL.
pub(super) const TERM_GRACE: Duration = Duration::from_secs(2);

/// How long the pipes are read after the command has ended: for what it wrote last.
pub(super) const PIPE_GRACE: Duration = Duration::from_secs(1);

const STAYED_OPEN: &str = "its standard output stayed open after it had ended: a process that it left \
                           behind must not keep it";

/// The longest line of the log, and how much of its end goes into an error.
pub(super) const LINE_BYTES: usize = 8 << 10;
pub(super) const TAIL_BYTES: usize = 2 << 10;

/// How much of a log is passed on; what is more is only read.
pub(super) struct LogBudget {
    left: usize,
    /// How often there is as much again.
    every: Option<Duration>,
    since: Instant,
}

impl LogBudget {
    const BYTES: usize = 1 << 20;

    /// For one attempt.
    pub(super) fn once() -> Self {
        Self { left: Self::BYTES, every: None, since: Instant::now() }
    }

    /// For a process that lives on: as much a minute.
    pub(super) fn renewed() -> Self {
        Self { every: Some(Duration::from_secs(60)), ..Self::once() }
    }

    pub(super) fn takes(&mut self, bytes: usize) -> bool {
        if self.every.is_some_and(|every| self.since.elapsed() >= every) {
            (self.left, self.since) = (Self::BYTES, Instant::now());
        }
        let takes = self.left > 0;
        self.left = self.left.saturating_sub(bytes);
        takes
    }
}

/// How a command is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSettings {
    /// The program and its arguments; no shell is between.
    pub command: Vec<String>,
    /// Where it runs; the node's own folder if not given.
    pub directory: Option<PathBuf>,
    /// More environment variables.
    pub env: BTreeMap<String, String>,
    /// Whether it gets none of the node's environment but `PATH`, `HOME` and the like.
    pub clean: bool,
    /// The most that it may print, in bytes.
    pub max_output: usize,
    /// Exit codes that mean: do not try again.
    pub no_retry_codes: Vec<i32>,
}

impl ExecSettings {
    /// The default for `max_output`: 16 MiB.
    pub const MAX_OUTPUT: usize = 16 << 20;

    /// The default for `no_retry_codes`: `EX_DATAERR` of sysexits.h.
    pub const NO_RETRY_CODES: [i32; 1] = [65];
}

/// See the [module](self).
#[derive(Debug)]
pub struct ExecPhase(ExecSettings);

impl ExecPhase {
    /// A phase that runs the command.
    pub fn new(settings: ExecSettings) -> Self {
        Self(settings)
    }

    #[cfg(test)]
    pub(super) fn settings(&self) -> ExecSettings {
        self.0.clone()
    }

    fn spawn(&self, context: &PhaseContext) -> Result<Child, PhaseError> {
        let settings = &self.0;
        let (program, arguments) = settings.command.split_first().ok_or_else(|| {
            PhaseError::Fatal("the phase's command is empty: set it in the configuration".into())
        })?;
        let mut command = Command::new(program);
        if settings.clean {
            let passed = PASSED_ENV.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
            command.env_clear().envs(passed);
        }
        command
            .args(arguments)
            .envs(job_env(context))
            // It would be of whatever has started the node.
            .env_remove("TRACESTATE")
            .env_remove("CARBONMESH_SECRET")
            .env_remove("CARBONMESH_JOIN")
            .env_remove("CARBONMESH_ENCRYPTION_KEY")
            .envs(&settings.env)
            .envs(context.scope().all());
        spawn_attached(&mut command, settings.directory.as_deref()).map_err(|error| {
            // Another node may have the program, or descriptors left.
            PhaseError::Retry(format!("cannot run {program}: {error}; check the phase's command"))
        })
    }
}

#[async_trait]
impl Phase for ExecPhase {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let instructions = context.instructions_json()?;
        let mut child = self.spawn(&context)?;
        let group = Group::of(child.id());
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let feed = async move {
            if let Some(mut stdin) = stdin {
                // A command need not read what it does not want.
                let _ = stdin.write_all(&instructions).await;
            }
        };
        let (giver, (end_told, mut ended)) = (context.clone(), watch::channel(false));
        let output = async move {
            match stdout {
                Some(stdout) if giver.gives_items() => read_items(stdout, &giver, &mut ended).await,
                Some(stdout) => read_output(stdout, self.0.max_output).await,
                None => Ok(Vec::new()),
            }
        };
        let logger = context.clone();
        let log = async move {
            match stderr {
                Some(stderr) => {
                    let heard = |line: &str| logger.say(LogLevel::Info, line);
                    read_log(stderr, LogBudget::once(), || logger.heartbeat(), heard).await
                }
                None => String::new(),
            }
        };
        tokio::pin!(feed, output, log);
        let (mut printed, mut logged, mut fed) = (None, None, false);
        let status = loop {
            tokio::select! {
                () = context.cancelled().cancelled() => {
                    end(&group, &mut child).await;
                    return Err(PhaseError::Retry("the attempt was cancelled".to_owned()));
                }
                () = &mut feed, if !fed => fed = true,
                read = &mut output, if printed.is_none() => match read {
                    Ok(bytes) => printed = Some(bytes),
                    Err(error) => {
                        end(&group, &mut child).await;
                        return Err(error);
                    }
                },
                tail = &mut log, if logged.is_none() => logged = Some(tail),
                status = child.wait() => break status,
            }
        };
        // What it left behind would hold the pipes open, and outlive its attempt.
        group.signal(Signal::SIGKILL);
        end_told.send_replace(true);
        let status = status.map_err(|error| PhaseError::Retry(format!("wait: {error}")))?;
        let rest = async {
            if printed.is_none() {
                printed = Some(output.await?);
            }
            if logged.is_none() {
                logged = Some(log.await);
            }
            Ok::<_, PhaseError>(())
        };
        // Items take as long as it takes until all are durable.
        let grace = if context.gives_items() { Duration::MAX } else { PIPE_GRACE };
        if let Ok(read) = timeout(grace, rest).await {
            read?;
        }
        let Some(printed) = printed else {
            // What it printed may not be all: half a result must not pass for one.
            return Err(PhaseError::Retry(STAYED_OPEN.to_owned()));
        };
        self.conclude(status, &printed, &logged.unwrap_or_default())
    }
}

impl ExecPhase {
    fn conclude(&self, status: ExitStatus, output: &[u8], log: &str) -> Result<Fields, PhaseError> {
        if status.success() {
            return parse(output);
        }
        let fatal = status.code().is_some_and(|code| self.0.no_retry_codes.contains(&code));
        Err(failed(ended_how(status), fatal, output, log))
    }
}

/// What an attempt knows of itself, as environment variables.
pub(super) fn job_env(context: &PhaseContext) -> [(&'static str, String); 7] {
    [
        ("CARBONMESH_JOB_ID", context.job().to_string()),
        ("CARBONMESH_PIPELINE", context.pipeline().to_owned()),
        ("CARBONMESH_STEP", context.step().to_owned()),
        ("CARBONMESH_ATTEMPT", context.attempt().to_string()),
        ("CARBONMESH_TOKEN", context.token()),
        ("CARBONMESH_IDEMPOTENCY_KEY", context.idempotency_key()),
        ("TRACEPARENT", context.traceparent()),
    ]
}

/// What becomes of an attempt whose program has failed: how it ended, with the end of its log.
pub(super) fn failed(ended: String, fatal: bool, output: &[u8], log: &str) -> PhaseError {
    let log = log.trim();
    let error = if log.is_empty() { ended } else { format!("{ended}: {log}") };
    match (fatal, retry_after(output)) {
        (true, _) => PhaseError::Fatal(error),
        (false, Some(after)) => PhaseError::RetryAfter(error, after),
        (false, None) => PhaseError::Retry(error),
    }
}

/// Starts a process whose streams end here, in a group of its own.
pub(super) fn spawn_attached(command: &mut Command, folder: Option<&Path>) -> io::Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    command.spawn()
}

/// How a process has ended, in words.
pub(super) fn ended_how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => {
            let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
            format!("ended by signal {signal} ({name})")
        }
        (None, None) => "ended in an unknown way".to_owned(),
    }
}

/// How long a command that failed wants the next attempt to wait, if it says so in what it printed.
fn retry_after(output: &[u8]) -> Option<Duration> {
    let fields: Fields = serde_json::from_slice(output).ok()?;
    parse_duration(fields.get("retry_after")?.as_str()?).ok()
}

/// Ends a command's group: first gently.
async fn end(group: &Group, child: &mut Child) {
    group.signal(Signal::SIGTERM);
    let _ = timeout(TERM_GRACE, child.wait()).await;
    group.signal(Signal::SIGKILL);
    let _ = child.wait().await;
}

pub(super) async fn read_output(
    stdout: impl AsyncRead + Unpin,
    limit: usize,
) -> Result<Vec<u8>, PhaseError> {
    let mut output = Vec::new();
    let read = stdout.take(limit as u64 + 1).read_to_end(&mut output).await;
    read.map_err(|error| PhaseError::Retry(format!("reading its output: {error}")))?;
    if output.len() > limit {
        return Err(PhaseError::Fatal(format!(
            "it printed more than {limit} bytes (max_output): put large data elsewhere and print \
             where it is"
        )));
    }
    Ok(output)
}

/// Comes when the command has ended and its pipes should have.
async fn long_after(ended: &mut watch::Receiver<bool>) {
    // Whoever tells is there until the pipes are read.
    let _ = ended.wait_for(|ended| *ended).await;
    tokio::time::sleep(PIPE_GRACE).await;
}

/// Gives each line as an item; what is printed is no result then.
pub(super) async fn read_items(
    stdout: impl AsyncRead + Unpin,
    context: &PhaseContext,
    ended: &mut watch::Receiver<bool>,
) -> Result<Vec<u8>, PhaseError> {
    let (mut reader, mut line, mut number) = (BufReader::new(stdout), Vec::new(), 0);
    // Room for white space and the end of the line.
    let longest = context.item_bytes() as u64 * 2 + 2;
    loop {
        line.clear();
        let mut limited = (&mut reader).take(longest);
        let read = tokio::select! {
            biased;
            read = limited.read_until(b'\n', &mut line) => read,
            () = long_after(ended) => return Err(PhaseError::Retry(STAYED_OPEN.to_owned())),
        };
        let read =
            read.map_err(|error| PhaseError::Retry(format!("reading its output: {error}")))?;
        if read == 0 {
            return Ok(Vec::new());
        }
        number += 1;
        if read as u64 == longest && !line.ends_with(b"\n") {
            let limit = context.item_bytes();
            return Err(PhaseError::Fatal(format!(
                "line {number} of its output has more than {limit} bytes (limits.job_bytes)"
            )));
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            context.give(&line).await.map_err(|error| match error {
                PhaseError::Fatal(error) => {
                    PhaseError::Fatal(format!("line {number} of its output: {error}"))
                }
                other => other,
            })?;
        }
    }
}

/// Passes the log on line by line; gives its end. Whatever comes, be it a part of a line, shows that
/// whoever writes it lives.
pub(super) async fn read_log(
    stderr: impl AsyncRead + Unpin,
    mut budget: LogBudget,
    lives: impl Fn(),
    heard: impl Fn(&str),
) -> String {
    let mut reader = BufReader::with_capacity(LINE_BYTES, stderr);
    let (mut line, mut tail) = (Vec::new(), Vec::new());
    let mut pass_on = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        heard(text.trim_end());
        if budget.takes(line.len()) {
            info!(target: "carbonmesh::phase", "{}", text.trim_end());
        }
        tail.extend_from_slice(line);
        if tail.len() > TAIL_BYTES {
            tail.drain(..tail.len() - TAIL_BYTES);
        }
        line.clear();
    };
    while let Ok(available) = reader.fill_buf().await {
        if available.is_empty() {
            break;
        }
        lives();
        // Programs write a line in parts as they like: it is one all the same, in which secrets are
        // found. One that is too long comes in pieces.
        let part = &available[..available.len().min(LINE_BYTES - line.len())];
        let end = part.iter().position(|byte| *byte == b'\n').map_or(part.len(), |i| i + 1);
        line.extend_from_slice(&part[..end]);
        reader.consume(end);
        if line.ends_with(b"\n") || line.len() == LINE_BYTES {
            pass_on(&mut line);
        }
    }
    if !line.is_empty() {
        pass_on(&mut line);
    }
    String::from_utf8_lossy(&tail).into_owned()
}

pub(super) fn parse(output: &[u8]) -> Result<Fields, PhaseError> {
    if output.iter().all(u8::is_ascii_whitespace) {
        return Ok(Fields::new());
    }
    let begin = || {
        let start: String = String::from_utf8_lossy(output).chars().take(80).collect();
        format!("`{}`", start.trim_end())
    };
    match serde_json::from_slice(output) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(PhaseError::Fatal(format!(
            "it printed JSON, but not an object: {}; print one as {{\"key\": \"value\"}}",
            begin()
        ))),
        Err(error) => Err(PhaseError::Fatal(format!(
            "it printed no JSON ({error}): {}; log to standard error instead",
            begin()
        ))),
    }
}
