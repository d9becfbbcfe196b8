//! Addresses: how operators write them, which are worth dialling, and whom a key belongs to.

use std::net::{IpAddr, SocketAddr};

use carbonmesh_protocol::id::NodeId;
use libp2p::{Multiaddr, PeerId, identity::PublicKey, multiaddr::Protocol};
use thiserror::Error;

/// The text is no address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is no address: write HOST:PORT as 10.0.0.7:7401, or a multiaddress as /ip4/10.0.0.7/tcp/7401"
)]
pub struct NotAnAddress {
    /// What was given.
    pub text: String,
}

/// Reads `HOST:PORT`, `[IPV6]:PORT` or a multiaddress.
///
/// # Errors
/// It is neither, or does not name a TCP port.
pub fn parse_address(text: &str) -> Result<Multiaddr, NotAnAddress> {
    let wrong = || NotAnAddress { text: text.to_owned() };
    let address = if text.starts_with('/') {
        text.parse().map_err(|_| wrong())?
    } else if let Ok(socket) = text.parse::<SocketAddr>() {
        Multiaddr::from(socket.ip()).with(Protocol::Tcp(socket.port()))
    } else {
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong());
        }
        Multiaddr::empty().with(Protocol::Dns(host.into())).with(Protocol::Tcp(port))
    };
    let tcp = address.iter().any(|part| matches!(part, Protocol::Tcp(_)));
    if tcp { Ok(address) } else { Err(wrong()) }
}

/// Whether only programs on this machine can use the address.
pub fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        Some(Protocol::Dns(host) | Protocol::Dns4(host) | Protocol::Dns6(host)) => {
            host == "localhost"
        }
        _ => false,
    }
}

/// Whether the address could lead to somebody: it has a host and a TCP port.
pub(super) fn is_dialable(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !IpAddr::from(ip).is_unspecified(),
        Some(Protocol::Ip6(ip)) => !IpAddr::from(ip).is_unspecified(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    host && matches!(parts.next(), Some(Protocol::Tcp(port)) if port != 0)
}

/// The address without the peer's name at its end.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// The peer that the address names, if it does.
pub(super) fn named_peer(address: &Multiaddr) -> Option<PeerId> {
    address.iter().find_map(|part| match part {
        Protocol::P2p(peer) => Some(peer),
        _ => None,
    })
}

/// The public key behind a libp2p identity; none if it is not ed25519.
pub(crate) fn key_of(peer: &PeerId) -> Option<crate::trust::PublicKey> {
    let key = PublicKey::try_decode_protobuf(peer.as_ref().digest()).ok()?;
    Some(crate::trust::PublicKey(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The node behind a libp2p identity; none if its key is not ed25519.
///
/// A libp2p peer id holds an ed25519 public key whole, so no exchange is needed.
pub fn node_id_of(peer: &PeerId) -> Option<NodeId> {
    let key = PublicKey::try_decode_protobuf(peer.as_ref().digest()).ok()?;
    let key = key.try_into_ed25519().ok()?;
    Some(NodeId::of_public_key(&key.to_bytes()))
}
