//! Who belongs to a cluster, and what each may do there: certificates instead of a server to ask.
//!
//! ```text
//! root key (offline) ─► issuer ─► invitation's key ─► node           at most three certificates,
//!                       (operator's)  (short-lived)    (its own key)  none wider than the one before
//! ```
//! `certificate` makes and checks chains; `vault` keeps keys in files; `invitation` is the token that
//! brings a new machine in; `revocation` shuts nodes out again; `succession` changes the root; [`Trust`] is what a running node
//! holds: its own chain, who was shut out, and what its peers may do. What goes over the network,
//! and when, is left to `net`.
//!
//! Invariant: no certificate grants what the one that signed it does not: neither roles, nor phases,
//! nor time, nor the right to sign.

mod certificate;
mod invitation;
mod member;
mod revocation;
mod succession;
mod vault;

#[cfg(test)]
mod frozen;
#[cfg(test)]
mod fuzz;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use certificate::{Chain, ChainError, MAX_CHAIN_BYTES, PublicKey, Statement};
pub(crate) use invitation::Invitation;
pub(crate) use member::{Denied, FOLDER, KEPT, Membership, Trust, TrustError, joined_rights};
pub(crate) use revocation::{MAX_REVOCATIONS, Revocation};
pub(crate) use succession::{MAX_SHOWN_BYTES, Roots, Succession};
pub(crate) use vault::{Issuer, Passphrase, SealedRoot, VaultError, write_private};

use std::time::Duration;

/// How long a node's certificate lasts.
pub(crate) const NODE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// With less left than this, a node asks for a new certificate.
pub(crate) const RENEW_BELOW: Duration = Duration::from_secs(60 * 24 * 3600);

/// With less left than this, a node warns.
pub(crate) const WARN_BELOW: Duration = Duration::from_secs(30 * 24 * 3600);

/// Certificates begin this long before they are made, since clocks differ.
pub(crate) const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Seconds since 1970.
pub(crate) fn now_s() -> u64 {
    crate::clock::unix_ms() / 1000
}
