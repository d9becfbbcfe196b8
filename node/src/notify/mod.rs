//! Notifications: what an operator wants to be told, by webhook or e-mail.
//!
//! ```text
//! events of the cluster and of pipelines ─► watch.rs ─► Notice ─► each target: wants it? ─► its queue
//! ages of queues, here and elsewhere ─────► ages.rs ──┘                                      │
//!                                            webhook │ e-mail ◄── deliver.rs ◄── again later ─┘
//! ```
//! A node that has `[notify.NAME]` tables follows events as any client does, and sends. Nothing waits
//! for a receiver: each target has a queue of its own, and what does not fit is dropped and counted.
//!
//! Invariant: no text that leaves here for a log, a metric or a client has a secret or the path of a
//! webhook's address in it.

mod ages;
mod deliver;
mod notice;
mod settings;
mod target;
mod template;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{config::ConfigError, handle::NodeHandle, net::Streams};

pub use notice::{Kind, Level};
pub use settings::{Pattern, TargetSettings, To, WebhookSettings};

pub(crate) use ages::{AGES, answer as answer_ages};
pub(crate) use notice::Notice;
pub(crate) use settings::secret_bytes;
pub(crate) use target::{Dead, Target, Tried};

/// The targets of a node; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notifier {
    targets: Arc<Vec<Arc<Target>>>,
}

impl Notifier {
    /// Makes targets of settings, and begins to deliver what they are told.
    ///
    /// # Errors
    /// A target cannot be used; the error names it.
    pub(crate) fn start(
        settings: Vec<TargetSettings>,
        handle: &NodeHandle,
        cancel: &CancellationToken,
    ) -> Result<Self, ConfigError> {
        let mut targets = Vec::with_capacity(settings.len());
        for one in settings {
            let name = one.name.clone();
            let made = Target::new(one, handle.metrics().clone());
            let (target, queue) = made.map_err(|reason| {
                let setting = format!("notify.{name}");
                ConfigError::Setting { setting, reason }
            })?;
            let target = Arc::new(target);
            handle.metrics().notifies(target.name());
            tokio::spawn(target.clone().run(queue, cancel.clone()));
            targets.push(target);
        }
        Ok(Self { targets: Arc::new(targets) })
    }

    /// Whether a target can be made of these settings.
    ///
    /// # Errors
    /// What is wrong with them: the key, and why.
    pub(crate) fn check(settings: &TargetSettings) -> Result<(), String> {
        target::check(settings)
    }

    /// Follows what happens, for as long as the node lives; `others` are asked how old their queues are.
    pub(crate) fn watch(
        &self,
        handle: &NodeHandle,
        others: Option<Streams>,
        cancel: &CancellationToken,
    ) {
        watch::start(self, handle, cancel);
        ages::start(self, handle, others, cancel);
    }

    /// All targets, by name.
    pub(crate) fn targets(&self) -> &[Arc<Target>] {
        &self.targets
    }

    /// The target of that name.
    pub(crate) fn target(&self, name: &str) -> Option<&Arc<Target>> {
        self.targets.iter().find(|target| target.name() == name)
    }

    /// Hands something to all who want it.
    fn tell(&self, notice: &Notice) {
        for target in self.targets.iter().filter(|target| target.wants(notice)) {
            target.tell(notice.clone());
        }
    }

    /// Whether somebody wants something of this kind.
    fn wants_kind(&self, kind: Kind) -> bool {
        self.targets.iter().any(|target| target.wants_kind(kind))
    }
}
