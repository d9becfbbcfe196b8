//! Who was shut out: signed entries that every member keeps and passes on.
//!
//! ```text
//! entry = key's id, when, the signer's certificates (none: the root's own), signature
//! ```
//! An entry counts against every chain that the key stands in, but never against a key that stands
//! as high as its signer's or higher: the root shuts out anybody, an issuer whoever is below issuers,
//! and a node that renews certificates only nodes. Entries whose signer was shut out do not count.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use carbonmesh_protocol::{
    codec::{self, Encoded, Kind},
    id::NodeId,
};
use libp2p::identity::ed25519;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{
    Chain, ChainError, PublicKey, Roots, VaultError,
    certificate::Signature,
    vault::{read_private, write_private},
};

/// How many keys may be shut out.
pub(crate) const MAX_REVOCATIONS: usize = 4096;

const LABEL: &[u8] = b"carbonmesh/1/revocation\0";

/// One key that is shut out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    /// Whose: a node's, an invitation's or an issuer's.
    pub(crate) key: NodeId,
    /// When, in s since 1970.
    pub(crate) at_s: u64,
    /// The signer's certificates.
    by: Chain,
    signature: Signature,
}

impl Encoded for Revocation {
    const KIND: Kind = 0x202;
}

/// All of them, as they lie in their file.
#[derive(Default, Serialize, Deserialize)]
struct Listed(Vec<Revocation>);

impl Encoded for Listed {
    const KIND: Kind = 0x203;
}

/// An entry that does not count. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum RevocationError {
    /// Its signer may not.
    #[error("whoever signed it may not shut nodes out: {0}")]
    Signer(#[from] ChainError),
    /// Its signature is wrong.
    #[error("its signature is wrong")]
    Forged,
    /// It has more certificates than it takes.
    #[error(
        "the certificate of a node or an invitation shuts nobody out: only issuers and the root do"
    )]
    NotIssuer,
    /// There are too many.
    #[error(
        "{MAX_REVOCATIONS} keys are shut out already: let a new issuer take the place of the old one"
    )]
    Full,
}

impl Revocation {
    /// Shuts a key out; `by` are the signer's certificates, none if it is the root.
    pub(crate) fn new(key: NodeId, at_s: u64, by: (&ed25519::Keypair, &Chain)) -> Self {
        let signature = Signature::new(by.0, &signed(PublicKey::of(by.0), key, at_s));
        Self { key, at_s, by: by.1.clone(), signature }
    }

    /// How far below the root its signer stands.
    fn rank(&self) -> usize {
        self.by.links().len()
    }

    /// The id of the key that signed it, if some root stands above it. Which root that is, a root's own
    /// entry tells by its signature alone.
    fn signer(&self, roots: &Roots) -> Result<NodeId, RevocationError> {
        if let Some(leaf) = self.by.leaf() {
            return Ok(leaf.subject.id());
        }
        let mut all = roots.all();
        let signer = match roots.successions().is_empty() {
            true => all.next(),
            false => {
                all.find(|root| root.verifies(&signed(*root, self.key, self.at_s), &self.signature))
            }
        };
        signer.map(|root| root.id()).ok_or(RevocationError::Forged)
    }

    fn verify(&self, roots: &Roots) -> Result<(), RevocationError> {
        // What was said while it could be said goes on to count, also if its root was followed since.
        let mut result = Err(RevocationError::Forged);
        for root in roots.all() {
            result = self.verify_by(root);
            if result.is_ok() {
                break;
            }
        }
        result
    }

    fn verify_by(&self, root: PublicKey) -> Result<(), RevocationError> {
        let signer = match self.rank() {
            0 => root,
            _ => {
                let leaf = self.by.verify_genuine(root)?;
                // An invitation's key, which many have had, lets nodes in, and shuts none out.
                if leaf.issues < 2 {
                    return Err(RevocationError::NotIssuer);
                }
                leaf.subject
            }
        };
        match signer.verifies(&signed(signer, self.key, self.at_s), &self.signature) {
            true => Ok(()),
            false => Err(RevocationError::Forged),
        }
    }
}

fn signed(signer: PublicKey, key: NodeId, at_s: u64) -> Vec<u8> {
    [LABEL, &signer.0, key.as_bytes(), &at_s.to_le_bytes()].concat()
}

/// Everybody who was shut out, as far as this node knows.
#[derive(Debug)]
pub(crate) struct Revocations {
    roots: Roots,
    /// By key, and by rank and key of the signer: the first of each. What one says must not take the
    /// place of what another does, who may be shut out himself.
    entries: BTreeMap<(NodeId, usize, NodeId), Revocation>,
}

impl Revocations {
    /// Nobody.
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, entries: BTreeMap::new() }
    }

    /// Reads the file; without one, nobody was shut out.
    ///
    /// # Errors
    /// It cannot be read, or is damaged.
    pub(crate) fn read(path: &Path, roots: Roots) -> Result<Self, VaultError> {
        let mut list = Self::new(roots);
        if !path.exists() {
            return Ok(list);
        }
        let damaged = || VaultError::Damaged { path: path.to_owned() };
        let listed: Listed = codec::decode(&read_private(path)?).map_err(|_| damaged())?;
        for entry in listed.0 {
            list.learn(entry).map_err(|_| damaged())?;
        }
        Ok(list)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), VaultError> {
        write_private(path, &self.encode())
    }

    fn encode(&self) -> Bytes {
        codec::encode(&Listed(self.all()))
    }

    /// Counts what these roots have said, from now on.
    pub(crate) fn heed(&mut self, roots: Roots) {
        self.roots = roots;
    }

    /// All entries.
    pub(crate) fn all(&self) -> Vec<Revocation> {
        self.entries.values().cloned().collect()
    }

    /// Takes an entry over; whether that was news.
    ///
    /// # Errors
    /// It does not count.
    pub(crate) fn learn(&mut self, entry: Revocation) -> Result<bool, RevocationError> {
        let place = (entry.key, entry.rank(), entry.signer(&self.roots)?);
        if self.entries.contains_key(&place) {
            return Ok(false);
        }
        entry.verify(&self.roots)?;
        if self.entries.len() >= MAX_REVOCATIONS {
            return Err(RevocationError::Full);
        }
        self.entries.insert(place, entry);
        Ok(true)
    }

    /// Which key of a chain was shut out, if any was.
    pub(crate) fn find(&self, chain: &Chain) -> Option<NodeId> {
        let last = chain.links().len().checked_sub(1)?;
        let links = chain.links().enumerate();
        let mut hit = links.filter(|(index, statement)| {
            let is_node = *index == last && statement.issues == 0;
            let highest = if is_node { usize::MAX } else { *index };
            self.counts(statement.subject.id(), highest)
        });
        hit.next().map(|(_, statement)| statement.subject.id())
    }

    /// Nodes that were shut out by somebody who may shut out nodes: anybody who signs entries may.
    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        let keys = self.entries.keys().map(|(key, ..)| *key);
        keys.filter(|key| self.counts(*key, usize::MAX)).collect()
    }

    /// Whether somebody of at most this rank shut the key out, who was not shut out himself.
    fn counts(&self, key: NodeId, highest: usize) -> bool {
        let (first, last) = (NodeId::from_bytes([0; 16]), NodeId::from_bytes([0xff; 16]));
        let mut entries = self.entries.range((key, 0, first)..=(key, highest, last));
        entries.any(|(_, entry)| self.find(&entry.by).is_none())
    }
}
