//! The outer half of the program: starts itself again within namespaces that end with it.
//!
//! Everything that a run makes (processes, mounts, networks, temporary files) is in there. The inner
//! half is the child of the first process of a namespace; when that ends, however it ends, the
//! kernel kills and unmounts the rest. Only the report stays.

use std::{
    env,
    fs::{self, File},
    process::{Command, Stdio},
    time::Duration,
};

use carbonmesh_examples::api::Error;
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::options::Options;

const PREFIX: &str = "carbonmesh-chaos-";

/// A user who may do nothing outside may do all this inside.
pub(crate) const ISOLATE: [&str; 9] = [
    "unshare",
    "--map-root-user",
    "--mount",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "--",
];

/// The first process of the namespace buries what others leave behind.
const INIT: [&str; 4] = ["sh", "-c", "\"$@\"; exit $?", "sh"];

/// How long the inner half may take to end after a signal.
const GRACE: Duration = Duration::from_secs(2);

/// Runs the inner half; its exit code.
pub(crate) fn run(options: &Options) -> Result<u8, Error> {
    remove_leftovers()?;
    fs::create_dir_all(&options.out)?;
    let root = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
    let lock = File::open(root.path())?;
    lock.try_lock()?;
    let reduced = options.reduced || !can_isolate();
    if reduced {
        let why = match options.reduced {
            true => "as asked for",
            false => "this user may make no namespaces here, or there is no `ip` (iproute2)",
        };
        println!("Reduced run over loopback, {why}: no partitions, slow links or full disks.");
    }
    let mut words = vec!["setpriv", "--pdeathsig", "KILL"];
    if !reduced {
        words.extend(ISOLATE.iter().chain(&INIT));
    }
    let mut command = tokio::process::Command::new(words[0]);
    command.args(&words[1..]).arg(env::current_exe()?).args(env::args_os().skip(1));
    command.arg("--inside").arg(root.path());
    if reduced && !options.reduced {
        command.arg("--reduced");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // The child must be this very thread's, or it would be killed when the thread ends.
    runtime.block_on(async {
        let child = command.stdin(Stdio::null()).kill_on_drop(true).spawn()?;
        wait(child).await
    })
}

async fn wait(mut child: Child) -> Result<u8, Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let status = tokio::select! {
        status = child.wait() => status?,
        _ = terminate.recv() => stop(&mut child).await?,
        _ = interrupt.recv() => stop(&mut child).await?,
    };
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2))
}

/// The terminal has sent its signal to the inner half too; it alone may not be enough.
async fn stop(child: &mut Child) -> Result<std::process::ExitStatus, Error> {
    if let Ok(status) = timeout(GRACE, child.wait()).await {
        return Ok(status?);
    }
    child.kill().await?;
    Ok(child.wait().await?)
}

/// Whether this user may make all that a run needs.
pub(crate) fn can_isolate() -> bool {
    let script = "mount -t tmpfs none /run && ip netns add x && ip link add br0 type bridge";
    let probe = Command::new(ISOLATE[0])
        .args(&ISOLATE[1..])
        .args(["sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    probe.is_ok_and(|status| status.success())
}

/// A run that was killed leaves its folder. From outside, the folder of one that goes on looks the
/// same, since what it holds is mounted inside only: the lock tells.
fn remove_leftovers() -> Result<(), Error> {
    for entry in fs::read_dir(env::temp_dir())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_ours = name.starts_with(PREFIX) && path.is_dir();
        if is_ours && File::open(&path)?.try_lock().is_ok() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
