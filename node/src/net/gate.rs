//! The gate: only who belongs to the cluster gets past the security upgrade.
//!
//! ```text
//! both: nonce(32) ─►  ◄─ nonce(32)           inside the Noise channel
//! with a secret, or none:
//!   initiator: proof(32) ─►, then ◄─ proof(32)  HMAC-SHA256(secret, label, cluster, role, prover,
//!                                         verifier, initiator's nonce, responder's nonce)
//! with certificates:
//!   initiator: proof(32) ─►   the same, of the root's public key: it knows which cluster it seeks
//!   responder: ◄─ chain       length(2, LE), at most 1 KiB, and 7 KiB of what led from the cluster's
//!                             first root to its present one; the initiator checks the cluster
//!   initiator: chain ─►       before it says anything of itself beyond its key
//!   responder: ◄─ verdict(1)  welcome; or expired or revoked, to who was a member once
//! ```
//! It stands before the muxer: a peer that is refused reaches no protocol at all. The role and both
//! identities are part of the proof, so that none can be reflected or passed on; a certificate counts
//! for the key that Noise has proven only. Without a secret the proof still keeps clusters of
//! different names apart.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, FutureExt};
use hmac::{Hmac, KeyInit, Mac};
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    noise,
};
use sha2::Sha256;
use thiserror::Error;
use tracing::{debug, warn};

use super::{address::key_of, penalty::Penalties};
use crate::trust::{Denied, MAX_SHOWN_BYTES, Trust};

const CERTIFIED_LABEL: &[u8] = b"carbonmesh/1/gate/certificates";
const LABEL: &[u8] = b"carbonmesh/1/gate";
const PROTOCOL: &str = "/carbonmesh/1/noise";

/// A peer that is slower is refused, so that half-open connections do not pile up.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often refusals are logged: a stranger that keeps trying shall not fill the disk.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What admits to a cluster. It is never printed.
#[derive(Clone)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    /// A secret from its bytes; the caller has checked that there are enough.
    pub fn new(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The connection was not made.
#[derive(Debug, Error)]
pub(super) enum GateError {
    /// Noise failed.
    #[error(transparent)]
    Noise(#[from] noise::Error),
    /// The connection broke: the peer may have refused us.
    #[error("the peer ended the connection at the gate: {0}")]
    Io(#[from] io::Error),
    /// The proof is wrong.
    #[error("the peer has another cluster secret, or belongs to another cluster")]
    Refused,
    /// Its certificates do not let it in.
    #[error("the peer's certificate does not let it in: {0}")]
    Denied(#[from] Denied),
    /// The peer says that ours do not.
    #[error("the peer says that this node's certificate {0}")]
    Told(&'static str),
    /// It has sent what no node sends.
    #[error("the peer is kept out for a while: it has sent what no node sends")]
    KeptOut,
    /// The peer was silent.
    #[error("the peer did not pass the gate within {} s", PATIENCE.as_secs())]
    Slow,
}

/// Noise and the gate, as one security upgrade.
#[derive(Clone)]
pub(super) struct Gate {
    noise: noise::Config,
    local: PeerId,
    cluster: Arc<str>,
    secret: Option<Secret>,
    trust: Option<Trust>,
    penalties: Penalties,
    logged: Arc<Mutex<Option<Instant>>>,
}

/// What the responder says at the end.
const WELCOME: u8 = 0;
const EXPIRED: u8 = 1;
const REVOKED: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Initiator,
    Responder,
}

impl Gate {
    pub(super) fn new(
        noise: noise::Config,
        local: PeerId,
        cluster: &str,
        secret: Option<Secret>,
    ) -> Self {
        let (penalties, logged) = (Penalties::default(), Arc::default());
        Self { noise, local, cluster: cluster.into(), secret, trust: None, penalties, logged }
    }

    /// The same gate, where certificates decide.
    pub(super) fn with_trust(self, trust: Option<Trust>) -> Self {
        Self { trust, ..self }
    }

    /// The same gate, for those who are not kept out.
    pub(super) fn with_penalties(self, penalties: Penalties) -> Self {
        Self { penalties, ..self }
    }

    /// Lets the peer prove that it belongs here, and proves it to the peer.
    pub(super) async fn pass<S>(
        &self,
        io: &mut S,
        role: Role,
        peer: PeerId,
    ) -> Result<(), GateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if self.penalties.keep_out(peer, Instant::now()) {
            return Err(GateError::KeptOut);
        }
        let ours: [u8; 32] = rand::random();
        io.write_all(&ours).await?;
        io.flush().await?;
        let mut theirs = [0; 32];
        io.read_exact(&mut theirs).await?;

        let (other, nonces) = match role {
            Role::Initiator => (Role::Responder, [ours, theirs]),
            Role::Responder => (Role::Initiator, [theirs, ours]),
        };
        if let Some(trust) = &self.trust {
            let shown = self.show_certificates(io, role, peer, &nonces, trust).await;
            if let Err(error) = &shown {
                self.log_denied(peer, error);
            }
            return shown;
        }
        let proof = self.proof(role, self.local, peer, &nonces).finalize().into_bytes();
        let claimed = self.proof(other, peer, self.local, &nonces);
        // Whoever comes proves itself first: a stranger gets nothing that a secret could be guessed
        // from.
        if role == Role::Responder {
            self.verify(io, claimed, peer).await?;
            io.write_all(&proof).await?;
            io.flush().await?;
        } else {
            io.write_all(&proof).await?;
            io.flush().await?;
            self.verify(io, claimed, peer).await?;
        }
        Ok(())
    }

    async fn verify<S>(
        &self,
        io: &mut S,
        proof: Hmac<Sha256>,
        peer: PeerId,
    ) -> Result<(), GateError>
    where
        S: AsyncRead + Unpin,
    {
        let mut claim = [0; 32];
        io.read_exact(&mut claim).await?;
        proof.verify_slice(&claim).map_err(|_| {
            // Certificates have a log of their own.
            if self.trust.is_none() {
                self.log_refusal(peer);
            }
            GateError::Refused
        })
    }

    async fn show_certificates<S>(
        &self,
        io: &mut S,
        role: Role,
        peer: PeerId,
        nonces: &[[u8; 32]; 2],
        trust: &Trust,
    ) -> Result<(), GateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let key = key_of(&peer).ok_or(GateError::Refused)?;
        match role {
            Role::Initiator => {
                let proof = self.proof(role, self.local, peer, nonces).finalize().into_bytes();
                io.write_all(&proof).await?;
                io.flush().await?;
                let chain = read_chain(io).await?;
                trust.admit(key, &chain)?;
                write_chain(io, &trust.chain()).await?;
                let mut verdict = [0];
                io.read_exact(&mut verdict).await?;
                match verdict[0] {
                    WELCOME => Ok(()),
                    EXPIRED => Err(GateError::Told(
                        "is not valid now: it has expired, or the clocks differ",
                    )),
                    REVOKED => Err(GateError::Told("was revoked")),
                    _ => Err(GateError::Refused),
                }
            }
            Role::Responder => {
                // A stranger does not know the root's key, and is told nothing.
                let claimed = self.proof(Role::Initiator, peer, self.local, nonces);
                self.verify(io, claimed, peer).await?;
                write_chain(io, &trust.chain()).await?;
                let chain = read_chain(io).await?;
                let admitted = trust.admit(key, &chain);
                // Why not is for those alone who were members once, and have proven to be.
                let verdict = match &admitted {
                    Ok(()) => Some(WELCOME),
                    Err(Denied::Chain(error)) if error.is_about_time() => Some(EXPIRED),
                    Err(Denied::Revoked(_)) => Some(REVOKED),
                    Err(_) => None,
                };
                if let Some(verdict) = verdict {
                    io.write_all(&[verdict]).await?;
                    io.flush().await?;
                }
                if admitted.is_err() {
                    // Lets the verdict arrive before the connection goes.
                    let _ = io.close().await;
                }
                Ok(admitted?)
            }
        }
    }

    pub(super) fn proof(
        &self,
        role: Role,
        prover: PeerId,
        verifier: PeerId,
        nonces: &[[u8; 32]; 2],
    ) -> Hmac<Sha256> {
        let root = self.trust.as_ref().map(|trust| trust.root().0);
        let secret = self.secret.as_ref().map_or(&[][..], |secret| &secret.0);
        let (label, secret) = match &root {
            Some(root) => (CERTIFIED_LABEL, &root[..]),
            None => (LABEL, secret),
        };
        let mut mac = keyed(secret);
        let role: &[u8] = if role == Role::Initiator { b"initiator" } else { b"responder" };
        let (prover, verifier) = (prover.to_bytes(), verifier.to_bytes());
        let parts =
            [label, self.cluster.as_bytes(), role, &prover, &verifier, &nonces[0], &nonces[1]];
        for part in parts {
            // The length keeps two lists of parts with the same bytes apart.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    /// Whether it is time to log a refusal again.
    fn may_log(&self) -> bool {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let due = logged.is_none_or(|at| at.elapsed() >= LOG_EVERY);
        if due {
            *logged = Some(Instant::now());
        }
        due
    }

    fn log_denied(&self, peer: PeerId, error: &GateError) {
        match error {
            GateError::Refused if self.may_log() => {
                warn!(%peer, "refused a peer: it belongs to another cluster, or has no certificate");
            }
            GateError::Denied(why) if self.may_log() => {
                warn!(%peer, %why, "refused a peer by its certificate");
            }
            GateError::Told(why) if self.may_log() => {
                warn!(%peer, "refused by a peer: it says that this node's certificate {why}");
            }
            error => debug!(%peer, %error, "not past the gate"),
        }
    }

    fn log_refusal(&self, peer: PeerId) {
        if self.may_log() {
            warn!(
                %peer, cluster = %self.cluster,
                "refused a peer: it has another cluster secret, or belongs to another cluster; \
                 give all nodes of a cluster the same --cluster and --secret-file"
            );
        }
    }

    async fn guarded<S>(self, mut io: S, role: Role, peer: PeerId) -> Result<(PeerId, S), GateError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        tokio::time::timeout(PATIENCE, self.pass(&mut io, role, peer))
            .await
            .map_err(|_| GateError::Slow)??;
        Ok((peer, io))
    }
}

async fn write_chain(io: &mut (impl AsyncWrite + Unpin), chain: &[u8]) -> io::Result<()> {
    io.write_all(&(chain.len() as u16).to_le_bytes()).await?;
    io.write_all(chain).await?;
    io.flush().await
}

async fn read_chain(io: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    io.read_exact(&mut length).await?;
    let length = usize::from(u16::from_le_bytes(length));
    if length > MAX_SHOWN_BYTES {
        return Err(io::Error::other(format!("certificates of {length} bytes")));
    }
    let mut chain = vec![0; length];
    io.read_exact(&mut chain).await?;
    Ok(chain)
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn keyed(secret: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(secret).expect("any length is a key")
}

impl UpgradeInfo for Gate {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(PROTOCOL)
    }
}

type Passing<S> =
    Pin<Box<dyn Future<Output = Result<(PeerId, noise::Output<S>), GateError>> + Send>>;

impl<S> InboundConnectionUpgrade<S> for Gate
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, noise::Output<S>);
    type Error = GateError;
    type Future = Passing<S>;

    fn upgrade_inbound(self, socket: S, _: Self::Info) -> Self::Future {
        async move {
            let (peer, io) = self.noise.clone().upgrade_inbound(socket, PROTOCOL).await?;
            self.guarded(io, Role::Responder, peer).await
        }
        .boxed()
    }
}

impl<S> OutboundConnectionUpgrade<S> for Gate
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, noise::Output<S>);
    type Error = GateError;
    type Future = Passing<S>;

    fn upgrade_outbound(self, socket: S, _: Self::Info) -> Self::Future {
        async move {
            let (peer, io) = self.noise.clone().upgrade_outbound(socket, PROTOCOL).await?;
            self.guarded(io, Role::Initiator, peer).await
        }
        .boxed()
    }
}
