//! Certificates: who may do what, signed by who may say so.
//!
//! ```text
//! certificate = statement, signature
//! signature   = Ed25519(signer, "carbonmesh/1/certificate\0" | signer's key | statement's envelope)
//! chain       = 1 to 3 certificates: the root signs the first, each subject signs the next
//! ```
//! A chain is checked against the root's public key as a whole: signatures first, then rights, then
//! time, so that a chain which fails for its time alone is known to have been genuine.

use std::{fmt, time::Duration};

use carbonmesh_protocol::{
    codec::{self, DecodeError, Encoded, Kind},
    id::NodeId,
    rights::Rights,
};
use libp2p::identity::ed25519;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The longest chain, in bytes.
pub(crate) const MAX_CHAIN_BYTES: usize = 1024;

/// The most certificates in a chain: an issuer's, an invitation's, a node's.
pub(crate) const MAX_LINKS: usize = 3;

/// Keeps these signatures apart from all others that the same keys make.
const LABEL: &[u8] = b"carbonmesh/1/certificate\0";

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct PublicKey(pub(crate) [u8; 32]);

impl PublicKey {
    /// The key of a pair.
    pub(crate) fn of(keypair: &ed25519::Keypair) -> Self {
        Self(keypair.public().to_bytes())
    }

    /// Who has this key; a cluster goes by its root's.
    pub(crate) fn id(&self) -> NodeId {
        NodeId::of_public_key(&self.0)
    }

    /// What a cluster with this root is called.
    pub(crate) fn cluster(&self) -> String {
        format!("{:#}", self.id())
    }

    /// Whether the holder of this key signed that.
    pub(crate) fn verifies(&self, message: &[u8], signature: &Signature) -> bool {
        ed25519::PublicKey::try_from_bytes(&self.0)
            .is_ok_and(|key| key.verify(message, &signature.0.concat()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key of {}", self.id())
    }
}

/// An Ed25519 signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signature([[u8; 32]; 2]);

impl Signature {
    /// Signs.
    pub(crate) fn new(keypair: &ed25519::Keypair, message: &[u8]) -> Self {
        let made = keypair.sign(message);
        let mut halves = [[0; 32]; 2];
        for (half, bytes) in halves.iter_mut().zip(made.chunks_exact(32)) {
            half.copy_from_slice(bytes);
        }
        Self(halves)
    }
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Statement {
    /// Of whom.
    pub(crate) subject: PublicKey,
    /// What it may do, and let others do.
    pub(crate) rights: Rights,
    /// Since when, in s since 1970.
    pub(crate) not_before_s: u64,
    /// Until before when, in s since 1970.
    pub(crate) expires_s: u64,
    /// How many certificates may follow: none, if it is a node's.
    pub(crate) issues: u8,
    /// Whose certificate the next must be, if only one may follow.
    pub(crate) only_for: Option<NodeId>,
}

impl Encoded for Statement {
    const KIND: Kind = 0x200;
}

impl Statement {
    /// What is left of its time.
    pub(crate) fn left(&self, now_s: u64) -> Duration {
        Duration::from_secs(self.expires_s.saturating_sub(now_s))
    }
}

/// A statement, and the signature under it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Certificate {
    pub(crate) statement: Statement,
    signature: Signature,
}

/// Certificates from the root's to the holder's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain(Vec<Certificate>);

impl Encoded for Chain {
    const KIND: Kind = 0x201;
}

/// A chain that grants nothing.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ChainError {
    /// No certificates.
    #[error("there is no certificate")]
    Empty,
    /// The bytes are none.
    #[error("the certificates cannot be read: {0}")]
    Unreadable(#[from] DecodeError),
    /// The bytes are not those that were signed, although they say the same.
    #[error("the certificates are not written as they should be")]
    NotCanonical,
    /// Too many bytes.
    #[error(
        "the certificates have {0} bytes: at most {MAX_CHAIN_BYTES} are possible; name fewer phases"
    )]
    TooLarge(usize),
    /// Too many certificates.
    #[error("{0} certificates follow each other: at most {MAX_LINKS} may")]
    TooLong(usize),
    /// The root of this cluster did not sign the first.
    #[error("another cluster's root signed the first certificate, or nobody did")]
    OtherRoot,
    /// The root that signed the first does not count any more.
    #[error(
        "another root has followed the one that signed the first certificate, which ended {since_s} s ago"
    )]
    RootEnded {
        /// How long ago.
        since_s: u64,
    },
    /// A later one has a wrong signature.
    #[error("certificate {0} is forged: the one before it did not sign it")]
    Forged(usize),
    /// It grants roles or phases that its signer does not have.
    #[error("certificate {0} grants more than the one that signed it")]
    Wider(usize),
    /// It lasts longer than its signer, or ends before it begins.
    #[error("certificate {0} is valid at times at which the one that signed it is not")]
    Outlives(usize),
    /// Its signer may not sign it.
    #[error("certificate {0} was signed by a key that may not issue it")]
    NotIssuer(usize),
    /// It was issued for somebody else.
    #[error("certificate {0} may be issued to one node only, and this is another")]
    NotForIt(usize),
    /// Its time has not come.
    #[error("certificate {link} is not valid for {wait_s} s yet: compare the clocks")]
    NotYet {
        /// Which, from 1.
        link: usize,
        /// For how long it is not.
        wait_s: u64,
    },
    /// Its time is over.
    #[error("certificate {link} expired {since_s} s ago")]
    Expired {
        /// Which.
        link: usize,
        /// How long ago.
        since_s: u64,
    },
    /// Its holder is somebody else.
    #[error("the certificate belongs to another key")]
    WrongKey,
    /// It is no node's certificate.
    #[error("the certificate is for issuing others, not for a node")]
    NotANode,
}

impl ChainError {
    /// Whether the chain was genuine, and only its time is not now.
    pub(crate) fn is_about_time(&self) -> bool {
        matches!(self, Self::Expired { .. } | Self::NotYet { .. } | Self::RootEnded { .. })
    }
}

impl Chain {
    /// Reads a chain; it is not checked against a root yet.
    ///
    /// # Errors
    /// It is none, or too large.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ChainError> {
        if bytes.len() > MAX_CHAIN_BYTES {
            return Err(ChainError::TooLarge(bytes.len()));
        }
        let chain: Self = codec::decode(bytes)?;
        // Else one chain had several spellings, and a change of its bytes could go unseen.
        if *chain.encode() != *bytes {
            return Err(ChainError::NotCanonical);
        }
        Ok(chain)
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> bytes::Bytes {
        codec::encode(self)
    }

    /// Its certificates, from the root's.
    pub(crate) fn links(&self) -> impl DoubleEndedIterator<Item = &Statement> + ExactSizeIterator {
        self.0.iter().map(|certificate| &certificate.statement)
    }

    /// The first, which a root has signed.
    pub(crate) fn first(&self) -> Option<&Certificate> {
        self.0.first()
    }

    /// The same, with another first certificate; or that alone, if there was none.
    pub(crate) fn with_first(&self, first: Certificate) -> Self {
        let later = self.0.iter().skip(1).cloned();
        Self(std::iter::once(first).chain(later).collect())
    }

    /// Whether this root signed the first.
    pub(crate) fn is_signed_by(&self, root: PublicKey) -> bool {
        self.first()
            .is_some_and(|first| root.verifies(&signed(root, &first.statement), &first.signature))
    }

    /// The holder's own.
    pub(crate) fn leaf(&self) -> Option<&Statement> {
        self.0.last().map(|certificate| &certificate.statement)
    }

    /// One certificate more, signed by the holder of the last.
    ///
    /// # Errors
    /// No chain made this way would be accepted anywhere.
    pub(crate) fn extend(
        &self,
        signer: &ed25519::Keypair,
        statement: Statement,
    ) -> Result<Self, ChainError> {
        if let Some(last) = self.leaf()
            && last.subject != PublicKey::of(signer)
        {
            return Err(ChainError::WrongKey);
        }
        let signature = Signature::new(signer, &signed(PublicKey::of(signer), &statement));
        let mut longer = self.clone();
        longer.0.push(Certificate { statement, signature });
        longer.check_rights()?;
        match longer.encode().len() {
            ..=MAX_CHAIN_BYTES => Ok(longer),
            bytes => Err(ChainError::TooLarge(bytes)),
        }
    }

    /// The same, whatever comes of it: what a thief of the key could make.
    #[cfg(test)]
    pub(crate) fn extend_unchecked(&self, signer: &ed25519::Keypair, statement: Statement) -> Self {
        let signature = Signature::new(signer, &signed(PublicKey::of(signer), &statement));
        let mut longer = self.clone();
        longer.0.push(Certificate { statement, signature });
        longer
    }

    /// Checks all but time. What the holder was granted.
    ///
    /// # Errors
    /// Its root did not sign it, or somebody granted more than he had.
    pub(crate) fn verify_genuine(&self, root: PublicKey) -> Result<&Statement, ChainError> {
        let leaf = self.leaf().ok_or(ChainError::Empty)?;
        if self.0.len() > MAX_LINKS {
            return Err(ChainError::TooLong(self.0.len()));
        }
        let mut signer = root;
        for (index, certificate) in self.0.iter().enumerate() {
            let message = signed(signer, &certificate.statement);
            if !signer.verifies(&message, &certificate.signature) {
                return Err(match index {
                    0 => ChainError::OtherRoot,
                    _ => ChainError::Forged(index + 1),
                });
            }
            signer = certificate.statement.subject;
        }
        self.check_rights()?;
        Ok(leaf)
    }

    /// Checks it against a root and the clock. What the holder was granted.
    ///
    /// # Errors
    /// It grants nothing, or not now.
    pub(crate) fn verify(&self, root: PublicKey, now_s: u64) -> Result<&Statement, ChainError> {
        let leaf = self.verify_genuine(root)?;
        for (index, statement) in self.links().enumerate() {
            let link = index + 1;
            if now_s < statement.not_before_s {
                return Err(ChainError::NotYet { link, wait_s: statement.not_before_s - now_s });
            }
            if now_s >= statement.expires_s {
                return Err(ChainError::Expired { link, since_s: now_s - statement.expires_s });
            }
        }
        Ok(leaf)
    }

    /// The same, for a node that has proven to hold `key`.
    ///
    /// # Errors
    /// It grants that node nothing, or not now.
    pub(crate) fn verify_node(
        &self,
        root: PublicKey,
        now_s: u64,
        key: PublicKey,
    ) -> Result<&Statement, ChainError> {
        let timely = self.verify(root, now_s);
        let leaf = self.leaf().ok_or(ChainError::Empty)?;
        // Whose it is matters more than whether it has expired: only its holder may learn that.
        match timely {
            Err(error) if !error.is_about_time() => Err(error),
            _ if leaf.subject != key => Err(ChainError::WrongKey),
            _ if leaf.issues > 0 => Err(ChainError::NotANode),
            timely => timely,
        }
    }

    /// Each may grant what it has, and no more.
    fn check_rights(&self) -> Result<(), ChainError> {
        for (index, pair) in self.0.windows(2).enumerate() {
            let (parent, child) = (&pair[0].statement, &pair[1].statement);
            let link = index + 2;
            if child.issues >= parent.issues {
                return Err(ChainError::NotIssuer(link));
            }
            if !parent.rights.cover(&child.rights) {
                return Err(ChainError::Wider(link));
            }
            let within = child.not_before_s >= parent.not_before_s
                && child.expires_s <= parent.expires_s
                && child.not_before_s < child.expires_s;
            if !within {
                return Err(ChainError::Outlives(link));
            }
            if parent.only_for.is_some_and(|only| only != child.subject.id()) {
                return Err(ChainError::NotForIt(link));
            }
        }
        match self.0.first().map(|first| &first.statement) {
            Some(first) if usize::from(first.issues) >= MAX_LINKS => Err(ChainError::NotIssuer(1)),
            Some(first) if first.not_before_s >= first.expires_s => Err(ChainError::Outlives(1)),
            _ => Ok(()),
        }
    }
}

/// What is signed: the signer's key is part of it, so that no other key fits the signature.
fn signed(signer: PublicKey, statement: &Statement) -> Vec<u8> {
    [LABEL, &signer.0, &codec::encode(statement)].concat()
}
