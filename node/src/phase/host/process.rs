//! One process of a phase host: started, greeted, given attempts, and ended with its whole group.
//!
//! ```text
//!  run ──► writer ──► standard input                 standard output ──► reader ──► end of each attempt
//!                                    the process     standard error ───► log, and the end of an error
//! ```
//! Whatever it writes that breaks the protocol ends it. Its end is the end of all its attempts. Where a host
//! is reached by a Unix socket, a connection stands for the process.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::{Child, Command},
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument, Span, debug, error, info, info_span, warn};

use super::{
    HostSettings,
    frame::{FromHost, Hello, Level, PROTOCOL, Run, ToHost},
};
use crate::phase::{
    Fields, LogLevel, PhaseContext, PhaseError,
    exec::{LINE_BYTES, LogBudget, PIPE_GRACE, TERM_GRACE, ended_how, read_log, spawn_attached},
    groups::Group,
};

/// Variables of the node that every host gets.
pub(in crate::phase) const PASSED_ENV: [&str; 7] =
    ["PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER"];

/// Frames that may wait until the host reads them.
const WAITING_FRAMES: usize = 64;

/// How much of what a host writes is read at once.
const READ_BYTES: usize = 64 << 10;

/// How often it is looked whether its log has been heard, and for how long, when an attempt ends.
const LOG_LOOKS: u32 = 20;
const LOG_LOOK_EVERY: Duration = Duration::from_millis(1);

/// While items wait to be durable, the host is not read: nobody in it counts as silent so long.
const HELD_BEAT: Duration = Duration::from_millis(250);

/// How long after a socket could not be reached it is tried again: twice as long each time.
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// How one attempt in a process ends.
type End = Result<Fields, PhaseError>;

/// See the [module](self). Dropping it kills its group.
pub(super) struct Process {
    pub(super) hello: Hello,
    frames: mpsc::Sender<Vec<u8>>,
    shared: Arc<Shared>,
    _alive: DropGuard,
}

struct Shared {
    settings: Arc<HostSettings>,
    id: Option<u32>,
    table: Mutex<Table>,
    /// Its end is wanted.
    stop: CancellationToken,
    /// Whoever waits for room hears that it is gone.
    changed: Arc<Notify>,
    /// Its standard error, to ask whether something waits to be read there.
    log: Option<OwnedFd>,
}

struct Table {
    /// The last attempt that was given.
    last: u64,
    attempts: HashMap<u64, Given>,
    /// Attempts that nobody waits for any more, and whose end the process may still tell.
    given_up: HashSet<u64>,
    /// Where its hello goes; none once it has come.
    hello: Option<oneshot::Sender<Hello>>,
    /// It was told to end.
    retired: bool,
    /// Its end has begun.
    closing: bool,
    /// How much it may log by frames.
    budget: LogBudget,
    /// Why it is killed.
    fault: Option<String>,
    over: Option<Over>,
}

impl Table {
    fn new(hello: oneshot::Sender<Hello>) -> Self {
        Self {
            last: 0,
            attempts: HashMap::new(),
            given_up: HashSet::new(),
            hello: Some(hello),
            retired: false,
            closing: false,
            budget: LogBudget::renewed(),
            fault: None,
            over: None,
        }
    }
}

/// How a process has ended.
#[derive(Clone, Debug)]
pub(super) struct Over {
    pub(super) why: String,
    /// The node did not want it to.
    pub(super) by_itself: bool,
}

struct Given {
    context: PhaseContext,
    end: oneshot::Sender<End>,
    /// What it did wrong; that is its end, whatever it says.
    verdict: Option<PhaseError>,
}

impl Shared {
    /// Waits until what it wrote to its log before is heard: it comes on a way of its own, and belongs to
    /// whoever runs when it comes.
    async fn hear_log(&self) {
        let waits = || {
            let Some(log) = &self.log else { return false };
            let mut log = [PollFd::new(log.as_fd(), PollFlags::POLLIN)];
            let readable = poll(&mut log, PollTimeout::ZERO).is_ok();
            readable && log[0].revents().is_some_and(|it| it.contains(PollFlags::POLLIN))
        };
        // One that never stops to write is not waited for.
        for _ in 0..LOG_LOOKS {
            if !waits() {
                return;
            }
            sleep(LOG_LOOK_EVERY).await;
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the process killed, for this reason.
    fn kill(&self, why: String) {
        self.table().fault.get_or_insert(why);
        self.stop.cancel();
    }

    /// Whether there is room for that in the log, of which a process has so much a minute.
    fn may_log(&self, message: &str) -> bool {
        self.table().budget.takes(message.len().min(LINE_BYTES))
    }

    /// What it writes to standard error is said by the attempt in it, if there is only one.
    fn say(&self, line: &str) {
        let table = self.table();
        let mut attempts = table.attempts.values();
        if let (Some(given), None) = (attempts.next(), attempts.next()) {
            given.context.say(LogLevel::Info, line);
        }
    }

    /// Waits until the process has ended.
    async fn ended(&self) -> Over {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let over = self.table().over.clone();
            if let Some(over) = over {
                return over;
            }
            changed.await;
        }
    }

    /// What an attempt in the process knows of itself.
    fn context(&self, id: u64) -> Option<PhaseContext> {
        self.table().attempts.get(&id).map(|given| given.context.clone())
    }

    /// Ends all that ran in the process.
    fn over(&self, over: Over) {
        let mut table = self.table();
        let attempts = std::mem::take(&mut table.attempts);
        table.hello = None;
        table.over = Some(over.clone());
        drop(table);
        for given in attempts.into_values() {
            // Whoever has left does not mind.
            let _ = given.end.send(Err(PhaseError::Retry(over.why.clone())));
        }
        self.changed.notify_waiters();
    }
}

impl Process {
    /// Starts one, and waits until it has said what it offers.
    ///
    /// # Errors
    /// It cannot be started, says nothing or nonsense, or ends; what is wrong, with the end of what
    /// it wrote to standard error.
    pub(super) async fn start(
        settings: Arc<HostSettings>,
        changed: Arc<Notify>,
    ) -> Result<Self, String> {
        let peer = Peer::reach(&settings).await?;
        let (hello, said_hello) = oneshot::channel();
        let (frames, to_write) = mpsc::channel(WAITING_FRAMES);
        let answers = frames.downgrade();
        let stop = CancellationToken::new();
        let alive = stop.clone().drop_guard();
        let table = Mutex::new(Table::new(hello));
        let start_timeout = settings.start_timeout;
        let (id, span) = (peer.id(), info_span!("host", name = settings.name));
        let log = match &peer {
            Peer::Child(child, _) => child.stderr.as_ref(),
            Peer::Connection(_) => None,
        };
        let log = log.and_then(|stderr| stderr.as_fd().try_clone_to_owned().ok());
        let shared = Arc::new(Shared { settings, id, table, stop, changed, log });
        let of = shared.clone();
        match peer {
            Peer::Child(mut child, group) => {
                let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
                let (Some(stdin), Some(stdout), Some(stderr)) = pipes else {
                    return Err("its standard streams cannot be used".to_owned());
                };
                let attended = async move {
                    let pipes = (read(stdout, &of, answers), write(stdin, to_write));
                    let log = read_log(stderr, LogBudget::renewed(), || (), |line| of.say(line));
                    attend(*child, group, pipes, log, &of).await;
                };
                tokio::spawn(attended.instrument(span));
            }
            Peer::Connection(stream) => {
                let (from, to) = stream.into_split();
                let attended = async move {
                    let streams = (read(from, &of, answers), write(to, to_write));
                    attend_connection(streams, &of).await;
                };
                tokio::spawn(attended.instrument(span));
            }
        }
        let hello = match timeout(start_timeout, said_hello).await {
            Ok(Ok(hello)) => hello,
            // It ends without one.
            Ok(Err(_)) => return Err(shared.ended().await.why),
            Err(_) => {
                return Err(format!(
                    "it has not said hello within {start_timeout:?} (start_timeout)"
                ));
            }
        };
        let welcome = ToHost::Welcome { protocol: PROTOCOL, max_frame: shared.settings.max_frame };
        // If it is gone already, its attempts will hear of that.
        let _ = frames.send(welcome.line()).await;
        Ok(Self { hello, frames, shared, _alive: alive })
    }

    /// Whether it can be given attempts.
    pub(super) fn is_well(&self) -> bool {
        let table = self.shared.table();
        !table.closing && table.fault.is_none() && !table.retired
    }

    /// How it has ended, if it has.
    pub(super) fn over(&self) -> Option<Over> {
        self.shared.table().over.clone()
    }

    /// Runs one attempt in it.
    ///
    /// # Errors
    /// The attempt has failed, or the process has ended.
    pub(super) async fn run(&self, phase: &str, context: &PhaseContext) -> End {
        let instructions = context.instructions_json()?;
        let fatal = |error: serde_json::Error| PhaseError::Fatal(error.to_string());
        let instructions: &RawValue = serde_json::from_slice(&instructions).map_err(fatal)?;
        let sessions = context.sessions_json().map(|(step, entries)| {
            serde_json::from_slice(entries).map(|entries| (step, entries)).map_err(fatal)
        });
        let sessions = sessions.collect::<Result<Vec<(&str, &RawValue)>, PhaseError>>()?;
        let (mut given, ended) = self.give(context)?;
        let run = ToHost::Run(Box::new(Run {
            id: given.id,
            phase,
            job: context.job().to_string(),
            pipeline: context.pipeline(),
            step: context.step(),
            attempt: context.attempt(),
            token: context.token(),
            idempotency_key: context.idempotency_key(),
            traceparent: context.traceparent(),
            gives_items: context.gives_items(),
            timeout_ms: context.timeout().map(|limit| limit.as_millis() as u64),
            scope: context.scope().all(),
            sessions,
            instructions,
        }));
        let ended = async {
            // If it is gone, whoever has seen that tells the attempt.
            let _ = self.frames.send(run.line()).await;
            ended.await.unwrap_or_else(|_| Err(PhaseError::Retry("its host has ended".into())))
        };
        tokio::pin!(ended);
        tokio::select! {
            end = &mut ended => {
                given.over = true;
                return end;
            }
            () = context.cancelled().cancelled() => {}
        }
        let cancel = ToHost::Cancel { id: given.id }.line();
        let obeyed = async {
            let _ = self.frames.send(cancel).await;
            let _ = ended.await;
        };
        given.over = timeout(TERM_GRACE, obeyed).await.is_ok();
        Err(PhaseError::Retry("the attempt was cancelled".to_owned()))
    }

    fn give(
        &self,
        context: &PhaseContext,
    ) -> Result<(GivenTo<'_>, oneshot::Receiver<End>), PhaseError> {
        let mut table = self.shared.table();
        if let Some(over) = &table.over {
            return Err(PhaseError::Retry(over.why.clone()));
        }
        table.last += 1;
        let (id, (end, ended)) = (table.last, oneshot::channel());
        table.attempts.insert(id, Given { context: context.clone(), end, verdict: None });
        Ok((GivenTo { process: self, id, over: false }, ended))
    }

    /// How much memory it has, in bytes; none if that cannot be told.
    pub(super) fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.shared.id?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
    }

    /// Tells it to end, and sees to it that it does.
    pub(super) async fn retire(&self) {
        self.shared.table().retired = true;
        let ended = async {
            let _ = self.frames.send(ToHost::Shutdown.line()).await;
            self.ended().await
        };
        if timeout(TERM_GRACE, ended).await.is_err() {
            self.shared.kill(format!("it did not end within {TERM_GRACE:?} of `shutdown`"));
        }
    }

    /// Waits until it has ended.
    pub(super) async fn ended(&self) -> Over {
        self.shared.ended().await
    }
}

/// An attempt in a process. One that is left before its end takes the process with it: what it
/// does there cannot be stopped in another way.
struct GivenTo<'a> {
    process: &'a Process,
    id: u64,
    over: bool,
}

impl Drop for GivenTo<'_> {
    fn drop(&mut self) {
        let mut table = self.process.shared.table();
        if table.attempts.remove(&self.id).is_some() {
            table.given_up.insert(self.id);
        }
        drop(table);
        if !self.over {
            self.process.shared.kill(
                "an attempt in it ran out of time or was cancelled, and did not end".to_owned(),
            );
        }
    }
}

/// A host, once it is reached.
enum Peer {
    Child(Box<Child>, Group),
    Connection(UnixStream),
}

impl Peer {
    async fn reach(settings: &HostSettings) -> Result<Self, String> {
        if let Some(path) = &settings.socket {
            return connect(path, settings.start_timeout).await.map(Self::Connection);
        }
        let child = spawn(settings)?;
        let group = Group::of(child.id());
        limit(settings, child.id())?;
        Ok(Self::Child(Box::new(child), group))
    }

    fn id(&self) -> Option<u32> {
        match self {
            Self::Child(child, _) => child.id(),
            Self::Connection(_) => None,
        }
    }
}

/// Connects to a host that somebody else has started, or is about to.
async fn connect(path: &Path, patience: Duration) -> Result<UnixStream, String> {
    let (until, mut pause) = (Instant::now() + patience, FIRST_RETRY);
    loop {
        match UnixStream::connect(path).await {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() + pause >= until => {
                return Err(format!(
                    "cannot connect to {} within {patience:?} (start_timeout): {error}; check that it \
                     runs, listens there and lets this user in",
                    path.display()
                ));
            }
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(LONGEST_RETRY);
    }
}

/// Sees a connection through: it ends when the host ends it, breaks the protocol, or nobody wants it any
/// more. What runs in the host then is its own affair.
async fn attend_connection(
    (reading, writing): (impl Future<Output = Result<(), String>>, impl Future<Output = ()>),
    shared: &Shared,
) {
    tokio::pin!(reading, writing);
    let mut written = false;
    let (broken, killed) = loop {
        tokio::select! {
            biased;
            read = &mut reading => break (read.err(), false),
            () = shared.stop.cancelled() => break (None, true),
            () = &mut writing, if !written => written = true,
        }
    };
    let (fault, retired) = {
        let mut table = shared.table();
        table.closing = true;
        (table.fault.clone(), table.retired)
    };
    let why = broken.or(fault).unwrap_or_else(|| "it closed the connection".to_owned());
    let why = format!("phase host `{}`: {why}", shared.settings.name);
    shared.over(Over { why, by_itself: !killed && !retired });
}

fn spawn(settings: &HostSettings) -> Result<Child, String> {
    let Some((program, arguments)) = settings.command.split_first() else {
        return Err("its command is empty".to_owned());
    };
    let passed = settings.pass_env.iter().map(String::as_str).chain(PASSED_ENV);
    let passed = passed.filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut command = Command::new(program);
    command.args(arguments).env_clear().envs(passed).envs(&settings.env);
    spawn_attached(&mut command, settings.directory.as_deref())
        .map_err(|error| format!("cannot run {program}: {error}; check its command"))
}

/// Limits what the process may take, before it was given anything to do.
fn limit(settings: &HostSettings, id: Option<u32>) -> Result<(), String> {
    let pid = id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    // Without one, the limits would be this process's own.
    let pid = Some(pid.ok_or("it has ended at once")?);
    for (resource, name, most) in [
        (Resource::As, "max_memory", settings.max_memory),
        (Resource::Cpu, "max_cpu_seconds", settings.max_cpu_seconds),
        (Resource::Nofile, "max_files", settings.max_files),
    ] {
        let Some(most) = most else { continue };
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        prlimit(pid, resource, limit).map_err(|error| format!("{name} = {most}: {error}"))?;
    }
    Ok(())
}

/// Sees a process through: it ends when its output does, when it breaks the protocol, or when
/// nobody wants it any more.
async fn attend(
    mut child: Child,
    group: Group,
    (reading, writing): (impl Future<Output = Result<(), String>>, impl Future<Output = ()>),
    logging: impl Future<Output = String>,
    shared: &Shared,
) {
    tokio::pin!(reading, writing, logging);
    let (mut log, mut written) = (None, false);
    let (mut exited, mut late) = (false, Instant::now());
    let (broken, killed) = loop {
        tokio::select! {
            biased;
            read = &mut reading => break (read.err(), false),
            () = shared.stop.cancelled() => break (None, true),
            tail = &mut logging, if log.is_none() => log = Some(tail),
            () = &mut writing, if !written => written = true,
            _ = child.wait(), if !exited => {
                // What it left behind would hold its output open.
                group.signal(Signal::SIGKILL);
                (exited, late) = (true, Instant::now() + PIPE_GRACE);
            }
            () = sleep_until(late), if exited => break (None, false),
        }
    };
    shared.table().closing = true;
    if broken.is_none() && !killed {
        // It has closed its output: that it ends is what comes next.
        let _ = timeout(TERM_GRACE, child.wait()).await;
    }
    group.signal(Signal::SIGKILL);
    let status = child.wait().await;
    let log = match log {
        Some(log) => log,
        None => timeout(PIPE_GRACE, logging).await.unwrap_or_default(),
    };
    let (fault, retired) = {
        let table = shared.table();
        (table.fault.clone(), table.retired)
    };
    let by_itself = !killed && !retired;
    let why = broken.or(fault).unwrap_or_else(|| match status {
        Ok(status) => format!("it ended: {}", ended_how(status)),
        Err(error) => format!("wait: {error}"),
    });
    let log = log.trim();
    let why = if log.is_empty() { why } else { format!("{why}; its log ends with: {log}") };
    shared.over(Over { why: format!("phase host `{}`: {why}", shared.settings.name), by_itself });
}

/// Writes frames; those that wait go in one piece.
async fn write(mut stdin: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Vec<u8>>) {
    let mut waiting = Vec::new();
    while frames.recv_many(&mut waiting, WAITING_FRAMES).await > 0 {
        let bytes = waiting.concat();
        waiting.clear();
        // A process that does not read any more ends, or is killed when its attempts' time is over.
        if stdin.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Hears what a process says, until its output ends.
///
/// # Errors
/// It broke the protocol; how.
async fn read(
    stdout: impl AsyncRead + Unpin,
    shared: &Shared,
    frames: mpsc::WeakSender<Vec<u8>>,
) -> Result<(), String> {
    let (mut reader, mut line) = (BufReader::with_capacity(READ_BYTES, stdout), Vec::new());
    let longest = shared.settings.max_frame as u64 + 1;
    loop {
        line.clear();
        line.shrink_to(READ_BYTES);
        let read = (&mut reader).take(longest).read_until(b'\n', &mut line).await;
        let read = read.map_err(|error| format!("reading its output: {error}"))?;
        if read == 0 {
            return Ok(());
        }
        if !line.ends_with(b"\n") {
            return Err(match read as u64 == longest {
                true => format!("it wrote a frame of more than {} bytes (max_frame)", longest - 1),
                false => "its output ended within a frame".to_owned(),
            });
        }
        if !line.iter().all(u8::is_ascii_whitespace) {
            heard(FromHost::parse(&line)?, shared, &frames).await?;
        }
    }
}

async fn heard(
    frame: FromHost<'_>,
    shared: &Shared,
    frames: &mpsc::WeakSender<Vec<u8>>,
) -> Result<(), String> {
    let hello = shared.table().hello.take();
    match (frame, hello) {
        (FromHost::Hello(hello), Some(told)) => {
            // Whoever started it may have lost patience.
            let _ = told.send(hello);
        }
        (FromHost::Hello(_), None) => return Err("it said hello twice".to_owned()),
        (_, Some(_)) => return Err("its first frame is no `hello`".to_owned()),
        (FromHost::Log { id, level, message }, None) => log(shared, id, level, &message),
        (FromHost::Heartbeat(id), None) => {
            if let Some(context) = shared.context(id) {
                context.heartbeat();
            }
        }
        (FromHost::Progress { id, done, message }, None) => {
            if let Some(context) = shared.context(id) {
                context.heartbeat();
                if shared.may_log(&message) {
                    context.progress(done, cut(&message));
                }
            }
        }
        (FromHost::Item { id, item }, None) => return take_item(shared, id, item, frames).await,
        (FromHost::Session { id, key, value }, None) => {
            return set_session(shared, id, &key, value, frames);
        }
        (FromHost::Ended { id, end }, None) => {
            shared.hear_log().await;
            let mut table = shared.table();
            let Some(given) = table.attempts.remove(&id) else {
                return match table.given_up.remove(&id) {
                    true => Ok(()),
                    false => Err(format!("it ends attempt {id}, which it was not given")),
                };
            };
            drop(table);
            let end = given.verdict.map_or_else(|| end.and_then(fields), Err);
            let _ = given.end.send(end);
        }
    }
    Ok(())
}

fn fields(result: &RawValue) -> End {
    serde_json::from_str(result.get()).map_err(|_| {
        let start: String = result.get().chars().take(80).collect();
        PhaseError::Fatal(format!("its result is no object, but `{start}`"))
    })
}

/// Takes an item. While it waits, all that run in the process are excused.
async fn take_item(
    shared: &Shared,
    id: u64,
    item: &RawValue,
    frames: &mpsc::WeakSender<Vec<u8>>,
) -> Result<(), String> {
    let Some(context) = shared.context(id) else {
        return match shared.table().given_up.contains(&id) {
            true => Ok(()),
            false => Err(format!("it gives an item of attempt {id}, which does not run in it")),
        };
    };
    let given = context.give(item.get().as_bytes());
    tokio::pin!(given);
    let given = loop {
        match timeout(HELD_BEAT, &mut given).await {
            Ok(given) => break given,
            Err(_) => shared.table().attempts.values().for_each(|it| it.context.heartbeat()),
        }
    };
    let (Err(error), false) = (given, context.cancelled().is_cancelled()) else { return Ok(()) };
    fail(shared, id, error, frames);
    Ok(())
}

/// Sets a key of an attempt's session, or takes it out.
fn set_session(
    shared: &Shared,
    id: u64,
    key: &str,
    value: Option<&RawValue>,
    frames: &mpsc::WeakSender<Vec<u8>>,
) -> Result<(), String> {
    let Some(context) = shared.context(id) else {
        return match shared.table().given_up.contains(&id) {
            true => Ok(()),
            false => {
                Err(format!("it sets a session key of attempt {id}, which does not run in it"))
            }
        };
    };
    context.heartbeat();
    let done = match value {
        Some(value) => context.session().set(key, value),
        None => context.session().remove(key).map(drop),
    };
    if let Err(error) = done {
        fail(shared, id, error, frames);
    }
    Ok(())
}

/// An attempt has failed, whatever it says from now on.
fn fail(shared: &Shared, id: u64, error: PhaseError, frames: &mpsc::WeakSender<Vec<u8>>) {
    match shared.table().attempts.get_mut(&id) {
        Some(given) if given.verdict.is_none() => given.verdict = Some(error),
        // It was told already.
        _ => return,
    }
    if let Some(frames) = frames.upgrade() {
        // Never waited for: a host that does not read while it writes would wait for us.
        let _ = frames.try_send(ToHost::Cancel { id }.line());
    }
}

/// The most of a text that goes into a log.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LINE_BYTES)]
}

fn log(shared: &Shared, id: Option<u64>, level: Level, message: &str) {
    let context = id.and_then(|id| shared.context(id));
    if let Some(context) = &context {
        context.heartbeat();
    }
    let message = cut(message);
    if let Some(context) = &context {
        context.say(level.into(), message);
    }
    let span = context.map_or_else(Span::current, |context| context.span().clone());
    if !shared.may_log(message) {
        return;
    }
    match level {
        Level::Debug => debug!(target: "carbonmesh::phase", parent: &span, "{message}"),
        Level::Info => info!(target: "carbonmesh::phase", parent: &span, "{message}"),
        Level::Warning => warn!(target: "carbonmesh::phase", parent: &span, "{message}"),
        Level::Error => error!(target: "carbonmesh::phase", parent: &span, "{message}"),
    }
}
