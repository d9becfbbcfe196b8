//! The address book: where known peers were last found, kept in a file over restarts.
//!
//! An address is a rumour: the identity behind it is proven at each connection. Peers that were
//! never connected are not written down, and forgotten when they do not answer.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use carbonmesh_storage::Files;
use libp2p::{Multiaddr, PeerId};
use serde::{Deserialize, Serialize};

/// More than a full mesh can have; beyond it, strangers are not added.
const PEERS: usize = 4096;

/// The name by which the file is sealed.
pub(super) const NAME: &str = "peers.json";

/// Addresses kept for one peer, the last proven first.
const ADDRESSES: usize = 8;

/// A peer's addresses.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) addresses: Vec<Multiaddr>,
    /// Whether it was ever connected.
    pub(super) proven: bool,
}

/// All known peers.
#[derive(Debug, Default)]
pub(super) struct Book {
    entries: BTreeMap<PeerId, Entry>,
    changed: bool,
}

/// The file: peer ids and addresses as text.
#[derive(Default, Serialize, Deserialize)]
struct Saved {
    peers: BTreeMap<String, Vec<String>>,
}

impl Book {
    /// Reads the file; an absent one is an empty book.
    ///
    /// # Errors
    /// It cannot be read, or is no address book. The caller may go on with an empty one.
    pub(super) fn load(path: &Path, files: &Files) -> io::Result<Self> {
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            read => files.open(NAME, read?).map_err(io::Error::other)?,
        };
        let saved: Saved = serde_json::from_slice(&text)?;
        let mut book = Self::default();
        for (peer, addresses) in saved.peers {
            let Ok(peer) = peer.parse() else { continue };
            let addresses = addresses.iter().filter_map(|text| text.parse().ok()).collect();
            book.entries.insert(peer, Entry { addresses, proven: true });
        }
        Ok(book)
    }

    /// The file's new content, if there is something new to write.
    pub(super) fn take_changes(&mut self) -> Option<Vec<u8>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut saved = Saved::default();
        for (peer, entry) in self.entries.iter().filter(|(_, entry)| entry.proven) {
            let addresses = entry.addresses.iter().map(Multiaddr::to_string).collect();
            saved.peers.insert(peer.to_string(), addresses);
        }
        serde_json::to_vec_pretty(&saved).ok()
    }

    pub(super) fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.entries.keys()
    }

    pub(super) fn get(&self, peer: &PeerId) -> Option<&Entry> {
        self.entries.get(peer)
    }

    /// Somebody says that the peer may be found there; whether that was new.
    pub(super) fn hear(&mut self, peer: PeerId, address: Multiaddr) -> bool {
        if self.entries.len() >= PEERS && !self.entries.contains_key(&peer) {
            return false;
        }
        let entry = self.entries.entry(peer).or_default();
        if entry.addresses.contains(&address) {
            return false;
        }
        if entry.addresses.len() == ADDRESSES {
            entry.addresses.pop();
        }
        // Newer than what did not work lately, less sure than what did.
        let at = usize::from(entry.proven).min(entry.addresses.len());
        entry.addresses.insert(at, address);
        self.changed |= entry.proven;
        true
    }

    /// The peer was connected, at that address if we dialled it.
    pub(super) fn prove(&mut self, peer: PeerId, address: Option<Multiaddr>) {
        self.make_room(&peer);
        let entry = self.entries.entry(peer).or_default();
        self.changed |= !entry.proven;
        entry.proven = true;
        let Some(address) = address else { return };
        if entry.addresses.first() != Some(&address) {
            entry.addresses.retain(|known| *known != address);
            entry.addresses.insert(0, address);
            entry.addresses.truncate(ADDRESSES);
            self.changed = true;
        }
    }

    /// A member is worth more than whoever was only heard of.
    fn make_room(&mut self, peer: &PeerId) {
        if self.entries.len() < PEERS || self.entries.contains_key(peer) {
            return;
        }
        let worst = self.entries.iter().min_by_key(|(_, entry)| entry.proven);
        if let Some(worst) = worst.map(|(peer, _)| *peer) {
            self.entries.remove(&worst);
        }
    }

    /// Somebody else answered at the address.
    pub(super) fn disprove(&mut self, peer: &PeerId, address: &Multiaddr) {
        if let Some(entry) = self.entries.get_mut(peer) {
            entry.addresses.retain(|known| known != address);
            self.changed |= entry.proven;
        }
    }

    /// Drops a peer.
    pub(super) fn remove(&mut self, peer: &PeerId) {
        self.changed |= self.entries.remove(peer).is_some();
    }

    /// Drops a peer that was never connected.
    pub(super) fn forget_unproven(&mut self, peer: &PeerId) -> bool {
        let unproven = self.entries.get(peer).is_some_and(|entry| !entry.proven);
        unproven && self.entries.remove(peer).is_some()
    }
}

/// Replaces the file as a whole.
pub(super) fn save(path: PathBuf, content: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = fs::File::create(&fresh)?;
    file.write_all(content)?;
    // Else a power cut could leave an empty file under the name of the old one.
    file.sync_all()?;
    fs::rename(fresh, path)
}
