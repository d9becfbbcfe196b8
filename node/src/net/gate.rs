//! The gate: only who knows the cluster's secret gets past the security upgrade.
//!
//! ```text
//! both: nonce(32) ─►  ◄─ nonce(32)           inside the Noise channel
//! initiator: proof(32) ─►, then ◄─ proof(32)  HMAC-SHA256(secret, label, cluster, role, prover,
//!                                       verifier, initiator's nonce, responder's nonce)
//! ```
//! It stands before the muxer: a peer that is refused reaches no protocol at all. The role and both
//! identities are part of the proof, so that none can be reflected or passed on. Without a secret
//! the proof still keeps clusters of different names apart.

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
use tracing::warn;

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
    logged: Arc<Mutex<Option<Instant>>>,
}

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
        Self { noise, local, cluster: cluster.into(), secret, logged: Arc::default() }
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
        let ours: [u8; 32] = rand::random();
        io.write_all(&ours).await?;
        io.flush().await?;
        let mut theirs = [0; 32];
        io.read_exact(&mut theirs).await?;

        let (other, nonces) = match role {
            Role::Initiator => (Role::Responder, [ours, theirs]),
            Role::Responder => (Role::Initiator, [theirs, ours]),
        };
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
            self.log_refusal(peer);
            GateError::Refused
        })
    }

    fn proof(
        &self,
        role: Role,
        prover: PeerId,
        verifier: PeerId,
        nonces: &[[u8; 32]; 2],
    ) -> Hmac<Sha256> {
        let secret = self.secret.as_ref().map_or(&[][..], |secret| &secret.0);
        let mut mac = keyed(secret);
        let role: &[u8] = if role == Role::Initiator { b"initiator" } else { b"responder" };
        let (prover, verifier) = (prover.to_bytes(), verifier.to_bytes());
        let parts =
            [LABEL, self.cluster.as_bytes(), role, &prover, &verifier, &nonces[0], &nonces[1]];
        for part in parts {
            // The length keeps two lists of parts with the same bytes apart.
            mac.update(&(part.len() as u64).to_le_bytes());
            mac.update(part);
        }
        mac
    }

    fn log_refusal(&self, peer: PeerId) {
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            *logged = Some(Instant::now());
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
