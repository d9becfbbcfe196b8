//! The node's logs: how they are written, and which of them, changeable while the node runs.
//!
//! A filter is a list of `LEVEL` and `TARGET=LEVEL`, as in `warn,carbonmesh=info`; the more exact
//! target counts. Secrets have types that do not print themselves, and tests look for them in logs.

use std::{
    io::{self, IsTerminal},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use clap::ValueEnum;
use thiserror::Error;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, layer::SubscriberExt, reload, util::SubscriberInitExt,
};

use crate::scope::HidingStderr;

/// What is written unless said otherwise. AutoNAT warns whenever it finds that a peer cannot be dialled,
/// which is what it is there for.
const USUAL: &str = "warn,carbonmesh=info,libp2p_autonat=error";

/// The variable that says what is written.
const VARIABLE: &str = "CARBONMESH_LOG";

/// More targets than this are a mistake, and would slow every line down.
const MOST_BYTES: usize = 4096;

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people, in colour on a terminal
    #[default]
    Human,
    /// For programs: one JSON object a line
    Json,
}

/// The levels are as before.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum LevelError {
    /// The text is none.
    #[error(
        "`{0}` is no level of a target: write TARGET=LEVEL as carbonmesh::net=debug, or LEVEL for all others; levels are off, error, warn, info, debug and trace"
    )]
    Malformed(String),
    /// There are too many already.
    #[error("there are levels of too many targets: set them back first")]
    TooMany,
    /// The program that the node runs in has logs of its own.
    #[error("this node's logs belong to the program that it runs in: change them there")]
    NotOurs,
}

/// What is written, and how it was at the start.
#[derive(Debug)]
struct Control {
    start: String,
    now: Mutex<String>,
    reload: reload::Handle<EnvFilter, Registry>,
}

/// Logs belong to the process, as tracing's subscriber does.
static CONTROL: OnceLock<Control> = OnceLock::new();

/// Starts to write logs to stderr, unless the program that this runs in does already.
pub(crate) fn start(format: LogFormat) {
    let given = std::env::var(VARIABLE).ok().filter(|spec| EnvFilter::try_new(spec).is_ok());
    let spec = given.unwrap_or_else(|| USUAL.to_owned());
    let (filter, reload) = reload::Layer::new(EnvFilter::new(&spec));
    let lines = tracing_subscriber::fmt::layer().with_writer(HidingStderr);
    let lines = match format {
        LogFormat::Human => lines.with_ansi(colours(io::stderr().is_terminal())).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_ok() {
        // Nobody else can have set it: the subscriber is this one.
        let _ = CONTROL.set(Control { start: spec.clone(), now: Mutex::new(spec), reload });
    }
}

/// Whether a terminal gets colours: unless somebody does not want them (https://no-color.org).
fn colours(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What is written now.
pub(crate) fn levels() -> Option<String> {
    CONTROL.get().map(|control| control.now().clone())
}

/// Writes as much as at the start again. Says what is written now.
pub(crate) fn reset() -> Result<String, LevelError> {
    let control = CONTROL.get().ok_or(LevelError::NotOurs)?;
    let mut now = control.now();
    control.apply(&mut now, control.start.clone())
}

/// Changes the level of one target, or of all that have none of their own. Says what is written now.
pub(crate) fn set(change: &str) -> Result<String, LevelError> {
    check(change)?;
    let control = CONTROL.get().ok_or(LevelError::NotOurs)?;
    let mut now = control.now();
    let changed = changed(&now, change);
    if changed.len() > MOST_BYTES {
        return Err(LevelError::TooMany);
    }
    control.apply(&mut now, changed)
}

impl Control {
    fn now(&self) -> MutexGuard<'_, String> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, now: &mut String, spec: String) -> Result<String, LevelError> {
        let filter = EnvFilter::try_new(&spec).map_err(|_| LevelError::Malformed(spec.clone()))?;
        self.reload.reload(filter).map_err(|_| LevelError::NotOurs)?;
        now.clone_from(&spec);
        Ok(spec)
    }
}

/// The filter with one part replaced or added.
fn changed(now: &str, change: &str) -> String {
    let target = |part: &str| part.split_once('=').map(|(target, _)| target.to_owned());
    let of = target(change);
    let others = now.split(',').filter(|part| !part.is_empty() && target(part) != of);
    others.chain([change]).collect::<Vec<_>>().join(",")
}

/// `LEVEL` or `TARGET=LEVEL`: no more than that of what filters can say.
fn check(change: &str) -> Result<(), LevelError> {
    let wrong = || LevelError::Malformed(change.to_owned());
    let (target, level) = match change.split_once('=') {
        Some((target, level)) => (Some(target), level),
        None => (None, change),
    };
    let known = ["off", "error", "warn", "info", "debug", "trace"].contains(&level);
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-.".contains(&byte);
    let sound = target.is_none_or(|it| !it.is_empty() && it.len() <= 256 && it.bytes().all(plain));
    if known && sound { Ok(()) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_replaces_the_level_of_its_target_alone() {
        let now = "warn,carbonmesh=info";
        assert_eq!(changed(now, "carbonmesh=debug"), "warn,carbonmesh=debug");
        assert_eq!(
            changed(now, "carbonmesh::net=trace"),
            "warn,carbonmesh=info,carbonmesh::net=trace"
        );
        assert_eq!(changed(now, "error"), "carbonmesh=info,error");
    }

    #[test]
    fn only_levels_of_targets_are_changes() {
        for good in ["debug", "carbonmesh::net=trace", "libp2p_swarm=off"] {
            check(good).unwrap();
            EnvFilter::try_new(changed(USUAL, good)).unwrap();
        }
        for bad in ["", "loud", "a=loud", "=info", "a=info,b=info", "a[span]=info", "a b=info"] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
