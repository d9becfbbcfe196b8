//! What a member may do: which roles may send which message, and what else a certificate grants.
//!
//! Each kind of message names its senders here and nowhere else; the shell asks
//! [`Rights::admit`] before it hands a message to the core. What a member only claims of itself, its
//! adverts and windows, is cut down to what it was granted. `docs/security.md` has the same table,
//! held against this one by a test.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    advert::{Advert, Roles},
    message::Message,
    name::{Name, NameError, Namespace},
};

/// Phases that a worker may offer: one, or `NAMESPACE/*`, all of a namespace. It is written as text, so
/// that certificates with names alone are what they always were.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum PhaseGrant {
    /// This one.
    One(Name),
    /// All of this namespace.
    All(Namespace),
}

impl PhaseGrant {
    fn has(&self, phase: &Name) -> bool {
        match self {
            Self::One(name) => name == phase,
            Self::All(namespace) => namespace.as_str() == phase.namespace(),
        }
    }

    fn covers(&self, other: &Self) -> bool {
        match other {
            Self::One(name) => self.has(name),
            Self::All(_) => self == other,
        }
    }

    /// In which namespace they are.
    pub fn namespace(&self) -> Namespace {
        match self {
            Self::One(name) => Namespace::containing(name),
            Self::All(namespace) => namespace.clone(),
        }
    }
}

impl FromStr for PhaseGrant {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix("/*") {
            Some(namespace) => namespace.parse().map(Self::All),
            None => text.parse().map(Self::One),
        }
    }
}

impl fmt::Display for PhaseGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(name) => name.fmt(f),
            Self::All(namespace) => write!(f, "{namespace}/*"),
        }
    }
}

impl TryFrom<String> for PhaseGrant {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<PhaseGrant> for String {
    fn from(grant: PhaseGrant) -> Self {
        grant.to_string()
    }
}

/// What a member was granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rights {
    /// Which parts it may play.
    pub roles: Roles,
    /// Which phases it may offer as a worker; all, if not said.
    pub phases: Option<BTreeSet<PhaseGrant>>,
}

/// A message that its sender may not send. It was not handled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NotAllowed {
    /// None of the sender's roles may say that.
    #[error("a member with the roles {roles} may not send `{kind}`")]
    Kind {
        /// What it said.
        kind: &'static str,
        /// What it is.
        roles: Roles,
    },
    /// Only replicas coordinate.
    #[error("a member that is no replica claims to coordinate {0} pipelines")]
    Coordinates(usize),
}

/// Which roles may send a message; the first that a member has is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Senders(Roles);

impl Senders {
    const ANY: Self = Self(Roles::ALL);
    const WORKER: Self = Self(Roles { worker: true, replica: false, gateway: false });
    const REPLICA: Self = Self(Roles { worker: false, replica: true, gateway: false });
    const CLIENTS: Self = Self(Roles { worker: false, replica: true, gateway: true });

    /// Whether a member with these roles may.
    pub const fn include(self, roles: Roles) -> bool {
        self.0.worker && roles.worker
            || self.0.replica && roles.replica
            || self.0.gateway && roles.gateway
    }
}

impl fmt::Display for Senders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Message {
    /// What kind it is.
    pub const fn kind(&self) -> &'static str {
        self.kind_and_senders().0
    }

    /// Which roles may send it.
    pub const fn senders(&self) -> Senders {
        self.kind_and_senders().1
    }

    const fn kind_and_senders(&self) -> (&'static str, Senders) {
        match self {
            // What every member says of itself, and that it lives.
            Self::Hello(_) => ("Hello", Senders::ANY),
            Self::Beat(_) => ("Beat", Senders::ANY),
            Self::BeatAck(_) => ("BeatAck", Senders::ANY),
            Self::CatalogAck(_) => ("CatalogAck", Senders::ANY),
            Self::CatalogPull => ("CatalogPull", Senders::ANY),
            Self::HandlersAck(_) => ("HandlersAck", Senders::ANY),
            Self::HandlersPull(_) => ("HandlersPull", Senders::ANY),
            Self::SecretsAck(_) => ("SecretsAck", Senders::ANY),
            Self::SecretsPull(_) => ("SecretsPull", Senders::ANY),
            // Definitions come from clients, by way of a gateway, and from those who keep them.
            Self::Catalog(_) => ("Catalog", Senders::CLIENTS),
            // Code that others run above all.
            Self::Handlers(_) => ("Handlers", Senders::CLIENTS),
            // What others put into the environment of what they run.
            Self::Secrets(_) => ("Secrets", Senders::CLIENTS),
            // So do jobs: a coordinator enqueues what its pipeline's schedules say.
            Self::Store { .. } => ("Store", Senders::CLIENTS),
            Self::Query { .. } => ("Query", Senders::CLIENTS),
            // Votes, terms, copies, answers about jobs, and work given out.
            Self::PreVote { .. } => ("PreVote", Senders::REPLICA),
            Self::Vote { .. } => ("Vote", Senders::REPLICA),
            Self::Ballot(_) => ("Ballot", Senders::REPLICA),
            Self::Stale { .. } => ("Stale", Senders::REPLICA),
            Self::Admit { .. } => ("Admit", Senders::REPLICA),
            Self::Replicate(_) => ("Replicate", Senders::REPLICA),
            Self::ReplicateAck { .. } => ("ReplicateAck", Senders::REPLICA),
            Self::SyncPage(_) => ("SyncPage", Senders::REPLICA),
            Self::SyncReply(_) => ("SyncReply", Senders::REPLICA),
            Self::SyncPush { .. } => ("SyncPush", Senders::REPLICA),
            Self::SyncPushAck { .. } => ("SyncPushAck", Senders::REPLICA),
            Self::Stored { .. } => ("Stored", Senders::REPLICA),
            Self::Answer { .. } => ("Answer", Senders::REPLICA),
            Self::Assign(_) => ("Assign", Senders::REPLICA),
            Self::AssignWith(_) => ("AssignWith", Senders::REPLICA),
            Self::Trace { .. } => ("Trace", Senders::REPLICA),
            Self::Cancel(_) => ("Cancel", Senders::REPLICA),
            Self::CompletionAck(_) => ("CompletionAck", Senders::REPLICA),
            Self::ItemsAck { .. } => ("ItemsAck", Senders::REPLICA),
            // What workers say of their attempts.
            Self::Grant { .. } => ("Grant", Senders::WORKER),
            Self::Declined(_) => ("Declined", Senders::WORKER),
            Self::Completed(_) => ("Completed", Senders::WORKER),
            Self::CompletedWith(_) => ("CompletedWith", Senders::WORKER),
            Self::Items(_) => ("Items", Senders::WORKER),
            Self::Said(_) => ("Said", Senders::WORKER),
        }
    }
}

impl Rights {
    /// Everything.
    pub const ALL: Self = Self { roles: Roles::ALL, phases: None };

    /// Whether whoever has these may pass `other` on.
    pub fn cover(&self, other: &Self) -> bool {
        let roles = (!other.roles.worker || self.roles.worker)
            && (!other.roles.replica || self.roles.replica)
            && (!other.roles.gateway || self.roles.gateway);
        let phases = match (&self.phases, &other.phases) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(mine), Some(theirs)) => {
                theirs.iter().all(|their| mine.iter().any(|my| my.covers(their)))
            }
        };
        roles && phases
    }

    /// Whether a phase may be offered.
    pub fn offer(&self, phase: &Name) -> bool {
        let granted = |phases: &BTreeSet<PhaseGrant>| phases.iter().any(|grant| grant.has(phase));
        self.roles.worker && self.phases.as_ref().is_none_or(granted)
    }

    /// The namespaces of what may be offered; all, if not said.
    pub fn namespaces(&self) -> Option<BTreeSet<Namespace>> {
        let phases = self.phases.as_ref()?;
        Some(phases.iter().map(PhaseGrant::namespace).collect())
    }

    /// Whether whoever has these may have jobs enqueued, shown and changed.
    pub const fn serve_clients(&self) -> bool {
        Senders::CLIENTS.include(self.roles)
    }

    /// Takes out of an advert what its node was not granted.
    pub fn limit(&self, advert: &mut Advert) {
        advert.roles.worker &= self.roles.worker;
        advert.roles.replica &= self.roles.replica;
        advert.roles.gateway &= self.roles.gateway;
        advert.phases.retain(|offered| self.offer(&offered.phase));
        if !self.roles.replica {
            advert.coordinates.clear();
        }
    }

    /// Whether a member with these rights may send that. What it claims beyond them is taken out of
    /// the message.
    ///
    /// # Errors
    /// It may not: the message must not be handled.
    pub fn admit(&self, message: &mut Message) -> Result<(), NotAllowed> {
        let (kind, senders) = message.kind_and_senders();
        if !senders.include(self.roles) {
            return Err(NotAllowed::Kind { kind, roles: self.roles });
        }
        match message {
            Message::Hello(advert) => self.limit(advert),
            Message::Beat(beat) if !self.roles.replica && !beat.groups.is_empty() => {
                return Err(NotAllowed::Coordinates(beat.groups.len()));
            }
            Message::Grant { windows } => windows.retain(|(phase, _)| self.offer(phase)),
            _ => {}
        }
        Ok(())
    }
}
