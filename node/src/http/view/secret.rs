//! Documents of the values and secrets that the cluster keeps: all but what they say.

use carbonmesh_protocol::secret::{KeyId, Place, SecretEntry};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rfc3339;

/// All values and secrets that the caller may know of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretsDoc {
    /// In order of their places.
    pub secrets: Vec<SecretDoc>,
}

/// What is known of a value or secret, but for what it says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretDoc {
    /// What phases know it by.
    pub name: String,
    /// Of which namespace.
    pub namespace: String,
    /// Of which of its pipelines: a name, or how it begins and a `*`.
    pub pipeline: String,
    /// Of which phases, likewise.
    pub phase: String,
    /// Whether it is a secret, hidden in what nodes log; otherwise a value.
    pub hidden: bool,
    /// What tells the key apart that opens it.
    pub key: String,
    /// When it was put.
    #[schema(format = DateTime)]
    pub changed_at: String,
}

impl SecretDoc {
    fn new(place: &Place, key: KeyId, hidden: bool, changed_ms: u64) -> Self {
        Self {
            name: place.name.clone(),
            namespace: place.namespace.to_string(),
            pipeline: place.pipeline.to_string(),
            phase: place.phase.to_string(),
            hidden,
            key: key.to_string(),
            changed_at: rfc3339(changed_ms),
        }
    }

    /// Nothing, if it was removed.
    pub(crate) fn of(entry: &SecretEntry) -> Option<Self> {
        let sealed = entry.sealed.as_ref()?;
        Some(Self::new(&entry.place, sealed.key, sealed.hidden, entry.changed_ms))
    }
}

/// A value or secret was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretPutDoc {
    /// It.
    #[serde(flatten)]
    pub secret: SecretDoc,
    /// On how many nodes it is on disk.
    pub copies: u32,
}

impl SecretPutDoc {
    pub(crate) fn new(
        place: &Place,
        key: KeyId,
        hidden: bool,
        changed_ms: u64,
        copies: u32,
    ) -> Self {
        Self { secret: SecretDoc::new(place, key, hidden, changed_ms), copies }
    }
}
