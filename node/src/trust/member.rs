//! What a running node knows of trust: its own certificates, who was shut out, what its peers may do.
//!
//! It lies in the data folder's `trust/`: `membership` (the root's public key and the node's own
//! chain), `revoked` (who was shut out), `roots` (which roots have followed that one), and, on nodes that renew others' certificates, `issuer.key`.
//! The network asks here at each connection, and the driver for each message.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use carbonmesh_protocol::{
    codec::{self, Encoded, Kind},
    id::NodeId,
    rights::Rights,
};
use carbonmesh_storage::Files;
use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    CLOCK_SKEW, Chain, ChainError, Invitation, Issuer, NODE_LIFETIME, PublicKey, RENEW_BELOW,
    Revocation, Roots, Statement, Succession, VaultError, WARN_BELOW, now_s,
    revocation::{RevocationError, Revocations},
    succession::SuccessionError,
    vault::read_private,
    write_private,
};

/// The folder in the data folder.
pub(crate) const FOLDER: &str = "trust";
const MEMBERSHIP: &str = "membership";
const REVOKED: &str = "revoked";
const ROOTS: &str = "roots";
/// What a backup has of it: a key that lets others in stays where it is.
pub(crate) const KEPT: [&str; 3] = [MEMBERSHIP, REVOKED, ROOTS];
const ISSUER: &str = "issuer.key";

/// How many peers' certificates are kept in mind.
const MOST_PEERS: usize = 10_000;

/// A renewed certificate that lasts no longer than this beyond the old one is not worth a change.
const WORTH_S: u64 = 60;

/// The node cannot take part with a certificate. Nothing was changed.
#[derive(Debug, Error)]
pub enum TrustError {
    /// A file cannot be used.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The invitation does not hold.
    #[error("the invitation cannot be used: {0}; ask for a new one (`carbonmesh cluster invite`)")]
    Invitation(ChainError),
    /// The certificate does not hold.
    #[error(
        "this node's certificate cannot be used: {0}; join again with a new invitation (`carbonmesh cluster invite`, then `carbonmesh up --join`)"
    )]
    Certificate(ChainError),
    /// The data folder belongs to another cluster.
    #[error(
        "this data folder belongs to cluster {stored}, the invitation is for {invited}: choose another folder with --data-dir"
    )]
    OtherCluster {
        /// The folder's.
        stored: NodeId,
        /// The invitation's.
        invited: NodeId,
    },
    /// It is another than the one that the settings were made for.
    #[error("this node's certificate was exchanged while it started: start it again")]
    Changed,
    /// The invitation's roots, or the folder's, do not go together.
    #[error("the cluster's roots do not go together: {0}; ask for a new invitation")]
    Roots(#[from] SuccessionError),
    /// Somebody shut it out.
    #[error(
        "{0} was shut out of the cluster: start with an empty data folder and a new invitation, as a new node"
    )]
    Revoked(NodeId),
}

/// A peer that is not let in.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Denied {
    /// Its certificates do not hold.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It was shut out, or somebody who let it in was.
    #[error("{0} was shut out of the cluster")]
    Revoked(NodeId),
    /// There are too many.
    #[error("{MOST_PEERS} peers are known already")]
    Full,
}

/// Which cluster a node belongs to, and by which certificates.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Membership {
    /// The cluster's first root, which it goes by.
    pub(crate) root: PublicKey,
    /// The node's certificates.
    pub(crate) chain: Chain,
    /// What has followed that root; in a file of its own.
    #[serde(skip)]
    pub(crate) later: Vec<Succession>,
}

impl Encoded for Membership {
    const KIND: Kind = 0x213;
}

impl Membership {
    /// What a data folder holds; none, if it belongs to no cluster with certificates.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>, VaultError> {
        let path = data_dir.join(FOLDER).join(MEMBERSHIP);
        if !path.exists() {
            return Ok(None);
        }
        let damaged = |_| VaultError::Damaged { path: path.clone() };
        let mut read: Self = codec::decode(&read_private(&path)?).map_err(damaged)?;
        let roots = Roots::read(&path.with_file_name(ROOTS), read.root)?;
        read.chain = roots.renewed(&read.chain);
        read.later = roots.successions().to_vec();
        Ok(Some(read))
    }

    /// The cluster's roots.
    ///
    /// # Errors
    /// They do not follow each other.
    fn roots(&self) -> Result<Roots, SuccessionError> {
        Roots::of(self.root, self.later.iter().cloned())
    }

    fn is_valid(&self) -> bool {
        self.roots().is_ok_and(|roots| roots.verify(&self.chain, now_s()).is_ok())
    }
}

/// What a node that starts with this folder and this invitation may do, and its cluster's root.
///
/// # Errors
/// They do not fit each other, or do not hold.
pub(crate) fn joined_rights(
    data_dir: &Path,
    files: &Files,
    invitation: Option<&Invitation>,
) -> Result<Option<(PublicKey, Rights)>, TrustError> {
    let stored = Membership::read(data_dir)?;
    let chain = match (&stored, needed(data_dir, files, stored.as_ref(), invitation)?) {
        (_, Some(invitation)) => &invitation.issuer.chain,
        (Some(stored), None) => &stored.chain,
        (None, None) => return Ok(None),
    };
    let root = stored.as_ref().map(|it| it.root).or(invitation.map(Invitation::first_root));
    let rights = chain.leaf().map(|leaf| leaf.rights.clone());
    Ok(root.zip(rights))
}

/// The invitation, unless the node has joined already and needs none.
fn needed<'a>(
    data_dir: &Path,
    files: &Files,
    stored: Option<&Membership>,
    invitation: Option<&'a Invitation>,
) -> Result<Option<&'a Invitation>, TrustError> {
    let Some(invitation) = invitation else { return Ok(None) };
    if let Some(stored) = stored {
        if stored.root != invitation.first_root() {
            let (stored, invited) = (stored.root.id(), invitation.first_root().id());
            return Err(TrustError::OtherCluster { stored, invited });
        }
        let key = data_dir.join(FOLDER).join(ISSUER);
        let keeps =
            || Issuer::read_in(&key, files).is_ok_and(|kept| kept.chain == invitation.issuer.chain);
        if stored.is_valid() && (!invitation.renews || keeps()) {
            return Ok(None);
        }
    }
    invitation.issuer.statement().map_err(TrustError::Invitation)?;
    Ok(Some(invitation))
}

/// What a node holds; cheap to clone.
#[derive(Clone, Debug)]
pub struct Trust(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The cluster's first root.
    root: PublicKey,
    key: PublicKey,
    folder: PathBuf,
    issuer: Option<Issuer>,
    state: Mutex<State>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    roots: Roots,
    chain: Chain,
    rights: Arc<Rights>,
    revoked: Revocations,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Debug)]
struct Peer {
    key: PublicKey,
    chain: Chain,
    /// The root that the chain begins with.
    root: PublicKey,
    rights: Arc<Rights>,
    /// Whether it renews others' certificates.
    renews: bool,
}

impl Trust {
    /// What the data folder holds, after the invitation was taken if there is one and it is needed;
    /// none, if the node belongs to no cluster with certificates.
    ///
    /// # Errors
    /// The node has no certificate that holds.
    pub(crate) fn open(
        data_dir: &Path,
        files: &Files,
        keypair: &Keypair,
        invitation: Option<&Invitation>,
    ) -> Result<Option<Self>, TrustError> {
        let key = keypair.clone().try_into_ed25519();
        let key = key.map_err(|_| TrustError::Certificate(ChainError::WrongKey))?;
        let key = PublicKey::of(&key);
        let folder = data_dir.join(FOLDER);
        let stored = Membership::read(data_dir)?;
        let membership = match (needed(data_dir, files, stored.as_ref(), invitation)?, stored) {
            (Some(invitation), _) => join(&folder, files, key, invitation)?,
            (None, Some(stored)) => stored,
            (None, None) => return Ok(None),
        };
        let root = membership.root;
        let mut roots = membership.roots()?;
        // A node that has joined already may hear of another root by an invitation that it needs no more.
        let told = invitation.into_iter().flat_map(|invitation| invitation.roots.iter().cloned());
        let mut news = false;
        for one in told {
            news |= roots.learn(one)?;
        }
        if news {
            roots.write(&folder.join(ROOTS))?;
        }
        let membership = Membership { chain: roots.renewed(&membership.chain), ..membership };
        let leaf = roots.verify_node(&membership.chain, now_s(), key);
        let leaf = leaf.map_err(TrustError::Certificate)?;
        let rights = Arc::new(leaf.rights.clone());
        let revoked = Revocations::read(&folder.join(REVOKED), roots.clone())?;
        if let Some(who) = revoked.find(&membership.chain) {
            return Err(TrustError::Revoked(who));
        }
        let issuer = folder.join(ISSUER);
        let issuer = match issuer.exists() {
            true => Some(Issuer::read_in(&issuer, files)?),
            false => None,
        };
        let (chain, peers) = (membership.chain, BTreeMap::new());
        let state = State { roots, chain, rights, revoked, peers };
        let (state, changes) = (Mutex::new(state), watch::Sender::new(0));
        let trust = Self(Arc::new(Shared { root, key, folder, issuer, state, changes }));
        trust.renew_self();
        Ok(Some(trust))
    }

    /// What the cluster is called.
    pub(crate) fn cluster(&self) -> String {
        self.0.root.cluster()
    }

    /// The cluster's first root: what it goes by, whatever has followed.
    pub(crate) fn root(&self) -> PublicKey {
        self.0.root
    }

    /// The node's own certificates, as they go over the network.
    pub(crate) fn chain(&self) -> bytes::Bytes {
        let state = self.state();
        state.roots.show(&state.chain)
    }

    /// Has one root follow another, and writes that down; whether that was news. Others hear of it with
    /// this node's certificates.
    ///
    /// # Errors
    /// It does not count.
    pub(crate) fn succeed(&self, one: Succession) -> Result<bool, SuccessionError> {
        self.take_over(&mut self.state(), one)
    }

    fn take_over(&self, state: &mut State, one: Succession) -> Result<bool, SuccessionError> {
        let (root, ends_s) = (one.successor().id(), one.ends_s());
        if !state.roots.learn(one)? {
            return Ok(false);
        }
        warn!(%root, ends_s, "another root takes over in this cluster; when its time is over, the old one counts no more");
        if let Err(error) = state.roots.write(&self.0.folder.join(ROOTS)) {
            error!(%error, "cannot write down that another root takes over: others will tell it again");
        }
        let roots = state.roots.clone();
        state.revoked.heed(roots.clone());
        for peer in state.peers.values_mut() {
            peer.chain = roots.renewed(&peer.chain);
            peer.root = roots.signer_of(&peer.chain);
        }
        let chain = roots.renewed(&state.chain);
        if chain != state.chain {
            self.keep(&chain);
            state.chain = chain;
        } else if roots.rank(&chain) + 1 < roots.all().count() {
            warn!(
                "this node's certificate ends with the old root: its issuer was not taken over; join \
                 again with a new invitation before that"
            );
        }
        self.0.changes.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// Writes a certificate down.
    fn keep(&self, chain: &Chain) {
        let (root, chain) = (self.0.root, chain.clone());
        let path = self.0.folder.join(MEMBERSHIP);
        let bytes = codec::encode(&Membership { root, chain, later: Vec::new() });
        if let Err(error) = write_private(&path, &bytes) {
            error!(%error, "cannot write the renewed certificate down");
        }
    }

    /// What the node itself may do.
    pub(crate) fn rights(&self) -> Arc<Rights> {
        self.state().rights.clone()
    }

    /// What a peer may do; none, if its certificates were never seen or hold no more.
    pub(crate) fn rights_of(&self, node: NodeId) -> Option<Arc<Rights>> {
        self.state().peers.get(&node).map(|peer| peer.rights.clone())
    }

    /// Raised at each change that peers should hear of.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Lets a peer in that has proven to hold `key`.
    ///
    /// # Errors
    /// Its certificates do not hold, or it was shut out.
    pub(crate) fn admit(&self, key: PublicKey, chain: &[u8]) -> Result<(), Denied> {
        let (chain, told) = Roots::read_shown(chain)?;
        let mut state = self.state();
        for one in told {
            if let Err(error) = self.take_over(&mut state, one) {
                warn!(%error, peer = %key.id(), "a peer tells of another root, and that does not hold");
                break;
            }
        }
        let chain = state.roots.renewed(&chain);
        let leaf = state.roots.verify_node(&chain, now_s(), key)?;
        let rights = Arc::new(leaf.rights.clone());
        if let Some(who) = state.revoked.find(&chain) {
            return Err(Denied::Revoked(who));
        }
        let renews = state.peers.get(&key.id()).is_some_and(|known| known.renews);
        if state.peers.len() >= MOST_PEERS && !state.peers.contains_key(&key.id()) {
            let now_s = now_s();
            state.peers.retain(|_, peer| peer.chain.leaf().is_some_and(|it| it.expires_s > now_s));
            if state.peers.len() >= MOST_PEERS {
                return Err(Denied::Full);
            }
        }
        let root = state.roots.signer_of(&chain);
        state.peers.insert(key.id(), Peer { key, chain, root, rights, renews });
        Ok(())
    }

    /// Why a peer that was let in may stay no longer, if so.
    pub(crate) fn unfit(&self, node: NodeId) -> Option<Denied> {
        let state = self.state();
        let Peer { chain, root, .. } = state.peers.get(&node)?;
        if let Some(who) = state.revoked.find(chain) {
            return Some(Denied::Revoked(who));
        }
        // Each certificate ends before the one above it.
        let (now_s, leaf) = (now_s(), chain.leaf()?);
        if now_s >= leaf.expires_s {
            let (link, since_s) = (chain.links().len(), now_s - leaf.expires_s);
            return Some(ChainError::Expired { link, since_s }.into());
        }
        state.roots.check_end(*root, now_s).err().map(Denied::Chain)
    }

    /// Notes whether a peer renews certificates.
    pub(crate) fn note_renews(&self, node: NodeId, renews: bool) {
        if let Some(peer) = self.state().peers.get_mut(&node) {
            peer.renews = renews;
        }
    }

    /// Whether this node renews certificates.
    pub(crate) fn is_issuer(&self) -> bool {
        self.0.issuer.as_ref().is_some_and(|issuer| issuer.statement().is_ok())
    }

    /// Everybody who was shut out.
    pub(crate) fn revocations(&self) -> Vec<Revocation> {
        self.state().revoked.all()
    }

    /// Takes entries over, and writes them down; how many were news.
    ///
    /// # Errors
    /// One of them does not count; those before it do.
    pub(crate) fn learn(&self, entries: Vec<Revocation>) -> Result<usize, RevocationError> {
        let mut state = self.state();
        let (mut news, mut failed) = (0, None);
        for entry in entries {
            let (key, at_s) = (entry.key, entry.at_s);
            match state.revoked.learn(entry) {
                Ok(true) => {
                    warn!(%key, at_s, "shut out of the cluster");
                    news += 1;
                }
                Ok(false) => {}
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        if news > 0 {
            if let Err(error) = state.revoked.write(&self.0.folder.join(REVOKED)) {
                error!(%error, "cannot write down who was shut out: others will tell it again");
            }
            if state.revoked.find(&state.chain).is_some() {
                error!("this node was shut out of the cluster: the others speak to it no more");
            }
            self.0.changes.send_modify(|count| *count += 1);
        }
        failed.map_or(Ok(news), Err)
    }

    /// Nodes that are no members any more, and never will be. Whoever was only let in by somebody
    /// who was shut out may have another certificate by now: it is cut off, and may come back.
    pub(crate) fn expelled(&self) -> Vec<NodeId> {
        self.state().revoked.nodes()
    }

    /// Whether it is time for a new certificate.
    pub(crate) fn wants_renewal(&self) -> bool {
        self.state().chain.leaf().is_some_and(|leaf| leaf.left(now_s()) < RENEW_BELOW)
    }

    /// Whether a peer could give a better certificate: a longer one, when it is time, or one by a
    /// newer issuer, so that all come over when an issuer is replaced.
    pub(crate) fn wants_renewal_from(&self, node: NodeId) -> bool {
        let soon = self.wants_renewal();
        let state = self.state();
        let peer = state.peers.get(&node).filter(|peer| peer.renews);
        peer.is_some_and(|peer| soon || is_by_newer_issuer(&peer.chain, &state.chain))
    }

    /// A new certificate for a member that is here, if this node may give it.
    pub(crate) fn renew(&self, node: NodeId) -> Option<bytes::Bytes> {
        let (key, rights) = {
            let state = self.state();
            let peer = state.peers.get(&node)?;
            if state.revoked.find(&peer.chain).is_some() {
                return None;
            }
            (peer.key, Rights::clone(&peer.rights))
        };
        let chain = self.issue(key, rights)?;
        info!(%node, "renewed a certificate");
        Some(chain.encode())
    }

    fn issue(&self, key: PublicKey, rights: Rights) -> Option<Chain> {
        let issuer = self.0.issuer.as_ref()?;
        match issuer.issue(issuer.within(node_statement(key, rights))) {
            // The key is the same under each root.
            Ok(chain) => Some(self.state().roots.renewed(&chain)),
            Err(error) => {
                warn!(%error, "cannot renew a certificate");
                None
            }
        }
    }

    /// Renews the node's own certificate, if it may and it is time.
    pub(crate) fn renew_self(&self) {
        if !self.wants_renewal() {
            return;
        }
        let rights = Rights::clone(&self.rights());
        if let Some(chain) = self.issue(self.0.key, rights)
            && let Err(error) = self.adopt(&chain.encode())
        {
            warn!(%error, "cannot use the renewed certificate");
        }
    }

    /// Takes a renewed certificate for the node's own; whether it was better than the last.
    ///
    /// # Errors
    /// It does not hold.
    pub(crate) fn adopt(&self, chain: &[u8]) -> Result<bool, Denied> {
        let mut state = self.state();
        let chain = state.roots.renewed(&Chain::decode(chain)?);
        let leaf = state.roots.verify_node(&chain, now_s(), self.0.key)?;
        let (rank, own_rank) = (state.roots.rank(&chain), state.roots.rank(&state.chain));
        if let Some(who) = state.revoked.find(&chain) {
            return Err(Denied::Revoked(who));
        }
        let until = state.chain.leaf().map_or(0, |leaf| leaf.expires_s);
        let better = rank > own_rank
            || leaf.expires_s > until.saturating_add(WORTH_S)
            || is_by_newer_issuer(&chain, &state.chain);
        // Whatever it promises: the root before ends sooner.
        if !better || rank < own_rank || leaf.rights != *state.rights {
            return Ok(false);
        }
        let days = leaf.left(now_s()).as_secs() / (24 * 3600);
        self.keep(&chain);
        state.chain = chain;
        info!(days, "this node's certificate was renewed");
        self.0.changes.send_modify(|count| *count += 1);
        Ok(true)
    }

    /// Says in the log that the certificate ends soon.
    pub(crate) fn warn_of_end(&self) {
        let left = self.state().chain.leaf().map_or(Duration::ZERO, |leaf| leaf.left(now_s()));
        if left == Duration::ZERO {
            error!(
                "this node's certificate has expired: the others speak to it no more; join again \
                 with a new invitation (`carbonmesh cluster invite`)"
            );
        } else if left < WARN_BELOW {
            let hours = left.as_secs() / 3600;
            warn!(
                hours,
                "this node's certificate ends soon, and no member that renews certificates is \
                 here: start one, or join again with a new invitation"
            );
        }
    }

    /// The node's membership, as operators see it.
    pub(crate) fn membership(&self) -> Membership {
        let state = self.state();
        let later = state.roots.successions().to_vec();
        Membership { root: self.0.root, chain: state.chain.clone(), later }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether another issuer stands behind a chain, made after that of the one at hand.
fn is_by_newer_issuer(chain: &Chain, current: &Chain) -> bool {
    let issuers = chain.links().next().zip(current.links().next());
    issuers.is_some_and(|(one, other)| {
        one.subject != other.subject && one.not_before_s > other.not_before_s
    })
}

/// What a node's certificate says.
fn node_statement(subject: PublicKey, rights: Rights) -> Statement {
    let now_s = now_s();
    Statement {
        subject,
        rights,
        not_before_s: now_s.saturating_sub(CLOCK_SKEW.as_secs()),
        expires_s: now_s + NODE_LIFETIME.as_secs(),
        issues: 0,
        only_for: None,
    }
}

/// Makes the node's certificate with the invitation's key, and writes all down.
fn join(
    folder: &Path,
    files: &Files,
    key: PublicKey,
    invitation: &Invitation,
) -> Result<Membership, TrustError> {
    let issuer = &invitation.issuer;
    let failed = TrustError::Invitation;
    let rights = issuer.statement().map_err(failed)?.rights.clone();
    let chain = issuer.issue(issuer.within(node_statement(key, rights))).map_err(failed)?;
    let first = invitation.first_root();
    let mut roots = Roots::read(&folder.join(ROOTS), first)?;
    for one in invitation.roots.iter().cloned() {
        roots.learn(one)?;
    }
    let revoked = Revocations::read(&folder.join(REVOKED), roots.clone())?;
    if let Some(who) = revoked.find(&chain) {
        return Err(TrustError::Revoked(who));
    }
    if !folder.exists() {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| VaultError::Io { path: folder.to_owned(), source })?;
    }
    let kept = folder.join(ISSUER);
    if invitation.renews {
        issuer.write_in(&kept, files)?;
    } else if kept.exists() {
        fs::remove_file(&kept).map_err(|source| VaultError::Io { path: kept, source })?;
    }
    if !roots.successions().is_empty() {
        roots.write(&folder.join(ROOTS))?;
    }
    let chain = roots.renewed(&chain);
    let membership = Membership { root: first, chain, later: roots.successions().to_vec() };
    write_private(&folder.join(MEMBERSHIP), &codec::encode(&membership))?;
    info!(cluster = %membership.root.id(), node = %key.id(), "joined the cluster by an invitation");
    Ok(membership)
}
