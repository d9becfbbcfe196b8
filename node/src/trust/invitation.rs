//! Invitations: one text that is all that a new machine needs.
//!
//! ```text
//! cm1 base64url( root's public key | the invitation's key and its certificates | addresses )
//! ```
//! Whoever has it may come in as long as it lasts: it is to be kept like a password.

use std::{fmt, str::FromStr};

use carbonmesh_protocol::codec::{self, Encoded, Kind};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{ChainError, Issuer, PublicKey, Roots, Succession};

const PREFIX: &str = "cm1";

/// More than this is no invitation.
const MOST_CHARACTERS: usize = 16 << 10;

/// The most addresses in one.
pub(crate) const MOST_ADDRESSES: usize = 16;

/// The text is no invitation that could be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum InvitationError {
    /// It is something else, or a part of one.
    #[error(
        "this is no invitation, or not all of it: it begins with {PREFIX}, and `carbonmesh cluster invite` prints it"
    )]
    NotOne,
    /// It does not hold.
    #[error("the invitation cannot be used: {0}; ask for a new one (`carbonmesh cluster invite`)")]
    Unusable(#[from] ChainError),
}

/// What brings a node into a cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Invitation {
    /// The key that certifies whoever has it.
    pub(crate) issuer: Issuer,
    /// Where members may be found, as multiaddresses.
    pub(crate) addresses: Vec<String>,
    /// Whether the node is to keep the key, and renew others' certificates with it.
    pub(crate) renews: bool,
    /// What has led from the cluster's first root to the one that this was made under.
    #[serde(skip)]
    pub(crate) roots: Vec<Succession>,
}

/// One of a cluster whose root was changed.
#[derive(Serialize, Deserialize)]
struct Succeeded {
    invitation: Invitation,
    roots: Vec<Succession>,
}

impl Encoded for Succeeded {
    const KIND: Kind = 0x214;
}

impl Invitation {
    /// The first root of the cluster that it is for: what the cluster goes by.
    pub(crate) fn first_root(&self) -> PublicKey {
        self.roots.first().map_or(self.issuer.root, Succession::old)
    }
}

impl Encoded for Invitation {
    const KIND: Kind = 0x212;
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self.roots.is_empty() {
            true => codec::encode(self),
            false => {
                codec::encode(&Succeeded { invitation: self.clone(), roots: self.roots.clone() })
            }
        };
        write!(f, "{PREFIX}{}", BASE64URL_NOPAD.encode(&bytes))
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, InvitationError> {
        let text = text.trim();
        let encoded = text.strip_prefix(PREFIX).ok_or(InvitationError::NotOne)?;
        if encoded.len() > MOST_CHARACTERS {
            return Err(InvitationError::NotOne);
        }
        let bytes = BASE64URL_NOPAD.decode(encoded.as_bytes());
        let bytes = bytes.map_err(|_| InvitationError::NotOne)?;
        let invitation = match codec::decode::<Succeeded>(&bytes) {
            Ok(Succeeded { invitation, roots }) => Self { roots, ..invitation },
            Err(_) => codec::decode(&bytes).map_err(|_| InvitationError::NotOne)?,
        };
        let roots = Roots::of(invitation.first_root(), invitation.roots.iter().cloned());
        if roots.map_err(|_| InvitationError::NotOne)?.last() != invitation.issuer.root {
            return Err(InvitationError::NotOne);
        }
        if invitation.addresses.len() > MOST_ADDRESSES {
            return Err(InvitationError::NotOne);
        }
        // Whether its time is over is for its user to see: a node that has joined needs it no more.
        invitation.issuer.chain.verify_genuine(invitation.issuer.root)?;
        invitation.issuer.keypair()?;
        Ok(invitation)
    }
}
