//! What one node can do and tell by itself, beside what the cluster agrees on: its backups, what it
//! finds on its machine, its logs.
//!
//! A node of which nothing of this is known, as in tests, refuses with the reason.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, TryLockError, Weak},
};

use carbonmesh_storage::DataDir;
use thiserror::Error;

use crate::{
    backup::{self, BackupError, Manifest, Owner},
    facts::{FactsOfOthers, Here},
    notify::Notifier,
};

/// Why a node does not make a backup.
#[derive(Debug, Error)]
pub(crate) enum NoBackup {
    /// Its operator allows no folder.
    #[error("this node has no folder for backups: start it with --backup-dir FOLDER")]
    NotAllowed,
    /// One is being made.
    #[error("this node is making a backup: wait for its end")]
    Busy,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
    /// It failed.
    #[error(transparent)]
    Failed(#[from] BackupError),
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Local {
    backups: Option<Backups>,
    here: OnceLock<Here>,
    others: OnceLock<FactsOfOthers>,
    notifier: OnceLock<Notifier>,
}

#[derive(Debug)]
struct Backups {
    /// Weak, so that whoever keeps a handle does not keep the folder open.
    data: Weak<DataDir>,
    root: PathBuf,
    owner: Owner,
    one: Mutex<()>,
}

impl Local {
    /// Of a node with this folder; `backups` is where it may make backups.
    pub(crate) fn new(data: &Arc<DataDir>, backups: Option<PathBuf>, owner: Owner) -> Self {
        let data = Arc::downgrade(data);
        let backups = backups.map(|root| Backups { data, root, owner, one: Mutex::default() });
        Self { backups, ..Self::default() }
    }

    /// What is known of the node's machine, and how others are asked, from now on.
    pub(crate) fn tells(&self, here: Here, others: FactsOfOthers) {
        // A node starts once.
        let _ = self.here.set(here);
        let _ = self.others.set(others);
    }

    /// Whom the node notifies, from now on.
    pub(crate) fn notifies(&self, notifier: Notifier) {
        // A node starts once.
        let _ = self.notifier.set(notifier);
    }

    /// Whom the node notifies; nobody, of a node that has just begun to start.
    pub(crate) fn notifier(&self) -> Notifier {
        self.notifier.get().cloned().unwrap_or_default()
    }

    /// What is known of the node's machine.
    pub(crate) fn here(&self) -> Option<&Here> {
        self.here.get()
    }

    /// How others are asked for the same.
    pub(crate) fn others(&self) -> Option<&FactsOfOthers> {
        self.others.get()
    }

    /// Makes a backup; blocks for as long as that takes.
    pub(crate) fn back_up(&self, name: Option<&str>) -> Result<(PathBuf, Manifest), NoBackup> {
        let of = self.backups.as_ref().ok_or(NoBackup::NotAllowed)?;
        let _one = match of.one.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => one.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(NoBackup::Busy),
        };
        let usual = || backup::usual_name(&of.owner);
        let name = name.map_or_else(usual, str::to_owned);
        let data = of.data.upgrade().ok_or(NoBackup::Stopped)?;
        Ok(backup::make(&data, &of.root, &name, &of.owner)?)
    }
}
