//! Phases: what a worker runs, in this process, in programs that stay, or as commands.
//!
//! ```text
//! PhaseRegistry (Rust)  ─┐
//! [hosts.*] programs    ─┼─► OfferedPhase ─► PhaseRunner: one task for each attempt
//! [phases.*] commands,   │
//!   WebAssembly modules ─┘
//! ```
//! Which attempt runs where and when is the core's to decide; a phase only knows its own.

mod context;
mod exec;
pub(crate) mod groups;
pub(crate) mod host;
mod items;
mod runner;
mod session;
mod typed;
mod voice;
pub(crate) mod wasm;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use carbonmesh_protocol::name::Name;
use serde_json::{Map, Value};
use thiserror::Error;

pub use carbonmesh_protocol::event::LogLevel;
pub use context::{PhaseContext, PhaseContext as Context};
pub use exec::{ExecPhase, ExecSettings};
pub use host::{HostSettings, RunningHost};
pub(crate) use runner::{News, PhaseRunner};
pub use session::Session;
pub use typed::{Failure, NamedPhase, OrFail, TypedPhase, phase_fn};
pub(crate) use voice::Heard;
pub use wasm::{WasmPhase, WasmSettings};

/// A JSON object: what a phase gets, and what it gives.
pub type Fields = Map<String, Value>;

/// An attempt has failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PhaseError {
    /// Another attempt may do better.
    #[error("{0}")]
    Retry(String),
    /// Another attempt may do better, but not before this time is over; it takes the place of the
    /// pipeline's backoff.
    #[error("{0}")]
    RetryAfter(String, Duration),
    /// No other attempt will do better.
    #[error("{0}")]
    Fatal(String),
}

/// A phase, for programs that have a node inside.
///
/// ```
/// use async_trait::async_trait;
/// use carbonmesh::phase::{Fields, Phase, PhaseContext, PhaseError, PhaseRegistry};
///
/// struct Greet;
///
/// #[async_trait]
/// impl Phase for Greet {
///     async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
///         let instructions = context.instructions()?;
///         let name = instructions.get("name").and_then(|name| name.as_str()).unwrap_or("you");
///         Ok(Fields::from_iter([("greeting".to_owned(), format!("Hello, {name}!").into())]))
///     }
/// }
///
/// let phases = PhaseRegistry::default().with("greet", 4, Greet);
/// ```
#[async_trait]
pub trait Phase: Send + Sync + 'static {
    /// Runs one attempt; what it returns is merged into the next phase's instructions. Where a phase
    /// behind does something `for_each` item, it gives these by [`PhaseContext::give`].
    ///
    /// An attempt may be run again after its end was lost with its node: use
    /// [`PhaseContext::idempotency_key`] towards systems that can tell.
    ///
    /// # Errors
    /// The attempt has failed.
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError>;

    /// An attempt begins: called before [`run`](Self::run), for logs, figures and the like.
    async fn on_started(&self, _context: &PhaseContext) {}

    /// An attempt has ended well, with this.
    async fn on_finished(&self, _context: &PhaseContext, _result: &Fields) {}

    /// An attempt has failed: by its own word, by a panic, or because its time was over. Not called
    /// where nobody wanted its end any more.
    async fn on_failed(&self, _context: &PhaseContext, _error: &PhaseError) {}
}

/// Phases that a program brings along.
#[derive(Clone, Default)]
pub struct PhaseRegistry {
    phases: BTreeMap<String, Registered>,
}

#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) slots: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) phase: Arc<dyn Phase>,
}

impl PhaseRegistry {
    /// Adds a phase, of which `slots` attempts may run at once. The name is checked when the node
    /// starts.
    #[must_use]
    pub fn with(mut self, name: &str, slots: u32, phase: impl Phase) -> Self {
        let registered = Registered { slots, timeout: None, phase: Arc::new(phase) };
        self.phases.insert(name.to_owned(), registered);
        self
    }

    /// Adds the phases of a running host.
    ///
    /// # Errors
    /// One of them is there already; its name.
    pub fn with_host(mut self, host: &RunningHost) -> Result<Self, String> {
        let HostSettings { slots, timeout, .. } = *host.settings();
        for name in host.phases() {
            let registered = Registered { slots, timeout, phase: Arc::new(host.phase(name)) };
            if self.phases.insert(name.clone(), registered).is_some() {
                return Err(name.clone());
            }
        }
        Ok(self)
    }

    /// Each with its name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Registered)> {
        self.phases.iter().map(|(name, registered)| (name.as_str(), registered))
    }
}

impl fmt::Debug for PhaseRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.phases.keys()).finish()
    }
}

/// A phase as this node offers it.
#[derive(Clone)]
pub struct OfferedPhase {
    /// Its name.
    pub name: Name,
    /// How many attempts may run at once.
    pub slots: u32,
    /// How long an attempt may take, where the pipeline does not say.
    pub timeout: Option<Duration>,
    /// What runs.
    pub phase: Arc<dyn Phase>,
}

impl fmt::Debug for OfferedPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.slots)
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
