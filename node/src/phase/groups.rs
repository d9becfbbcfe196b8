//! The process groups that commands run in: known to this process, so that they end with it.
//!
//! Groups of attempts that end are ended with them. What is left when the node stops, in whatever
//! way, is killed: by [`kill_all`] if it can still do that itself, else by a [`Guard`], a second
//! process that is told of every group and acts when it hears nothing any more.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

static GROUPS: Mutex<Groups> = Mutex::new(Groups { running: BTreeSet::new(), guard: None });

struct Groups {
    running: BTreeSet<i32>,
    guard: Option<ChildStdin>,
}

impl Groups {
    fn tell_guard(&mut self, line: &str) {
        // A guard that is gone cannot be helped; attempts go on without it.
        if self.guard.as_mut().is_some_and(|guard| guard.write_all(line.as_bytes()).is_err()) {
            self.guard = None;
        }
    }
}

fn groups() -> MutexGuard<'static, Groups> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A command's process group, by its leader; killed when dropped.
pub(super) struct Group(Option<i32>);

impl Group {
    /// The group of a command that was started as the leader of one.
    pub(super) fn of(leader: Option<u32>) -> Self {
        let group = leader.and_then(|id| i32::try_from(id).ok());
        if let Some(group) = group {
            let mut groups = groups();
            groups.running.insert(group);
            groups.tell_guard(&format!("+{group}\n"));
        }
        Self(group)
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // A group that is gone already is what is wanted.
            let _ = killpg(Pid::from_raw(group), signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        if let Some(group) = self.0 {
            let mut groups = groups();
            groups.running.remove(&group);
            groups.tell_guard(&format!("-{group}\n"));
        }
    }
}

/// Kills all groups that still run: this process is about to end.
pub(crate) fn kill_all() {
    for group in &groups().running {
        let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
    }
}

/// A process that kills the groups of this one when it is gone, even by signal 9.
pub(crate) struct Guard(Child);

impl Guard {
    /// The hidden command of this program that runs a guard.
    pub(crate) const COMMAND: &str = "kill-orphans";

    /// Starts this very program again as a guard.
    ///
    /// # Errors
    /// The system refuses; groups then end with their node only if it stops in order.
    pub(crate) fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(Self::COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Signals from the terminal are for the node.
            .process_group(0)
            .spawn()?;
        let mut groups = groups();
        groups.guard = child.stdin.take();
        let known: Vec<String> = groups.running.iter().map(|group| format!("+{group}\n")).collect();
        groups.tell_guard(&known.concat());
        Ok(Self(child))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        groups().guard = None;
        let _ = self.0.wait();
    }
}

/// What a guard does: listens until its node is gone, then kills what that has left.
pub(crate) fn guard(node: impl BufRead) {
    let mut running = BTreeSet::new();
    for line in node.lines().map_while(Result::ok) {
        match (line.get(..1), line.get(1..).and_then(|group| group.parse::<i32>().ok())) {
            (Some("+"), Some(group)) => drop(running.insert(group)),
            (Some("-"), Some(group)) => drop(running.remove(&group)),
            _ => {}
        }
    }
    for group in running {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}
