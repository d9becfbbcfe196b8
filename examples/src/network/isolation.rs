//! Namespaces for a whole program, which starts itself again within them.
//!
//! The inner program is the child of the first process of a namespace; when that ends, however it ends,
//! the kernel kills and unmounts all that was made in there.

use std::{
    env,
    ffi::OsStr,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    time::timeout,
};

use crate::api::Error;

/// A user who may do nothing outside may do all this inside.
pub(super) const ISOLATE: [&str; 9] = [
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

/// How long the inner program may take to end after a signal.
const GRACE: Duration = Duration::from_secs(2);

/// The exit code where the inner program has none, as it was killed.
const KILLED: u8 = 2;

/// Whether this user may make all that a [`Network`](super::Network) takes.
pub fn can_isolate() -> bool {
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

/// Starts this program again, with its own arguments and then `more`; its exit code. It ends with this
/// one, and is within namespaces if `isolated` says so.
///
/// # Errors
/// It cannot be started.
pub fn start_again(isolated: bool, more: &[&OsStr]) -> Result<u8, Error> {
    let mut words = vec!["setpriv", "--pdeathsig", "KILL"];
    if isolated {
        words.extend(ISOLATE.iter().chain(&INIT));
    }
    let mut command = tokio::process::Command::new(words[0]);
    command.args(&words[1..]).arg(env::current_exe()?).args(env::args_os().skip(1)).args(more);
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
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(KILLED))
}

/// The terminal has sent its signal to the inner program too; it alone may not be enough.
async fn stop(child: &mut Child) -> Result<std::process::ExitStatus, Error> {
    if let Ok(status) = timeout(GRACE, child.wait()).await {
        return Ok(status?);
    }
    child.kill().await?;
    Ok(child.wait().await?)
}
