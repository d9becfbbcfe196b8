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

/// Whether the address leads through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    address.iter().any(|part| part == Protocol::P2pCircuit)
}

/// The relay that the address leads through, if it does.
pub(super) fn relay_of(address: &Multiaddr) -> Option<PeerId> {
    is_relayed(address).then(|| named_peer(&direct_part(address))).flatten()
}

/// What comes before the relay's part.
fn direct_part(address: &Multiaddr) -> Multiaddr {
    address.iter().take_while(|part| *part != Protocol::P2pCircuit).collect()
}

/// Whether the address could lead to somebody: it has a host and a TCP port, and no more behind them
/// than the way through one relay, which is named.
pub(super) fn is_dialable(address: &Multiaddr) -> bool {
    let mut parts = address.iter();
    let host = match parts.next() {
        Some(Protocol::Ip4(ip)) => !IpAddr::from(ip).is_unspecified(),
        Some(Protocol::Ip6(ip)) => !IpAddr::from(ip).is_unspecified(),
        Some(Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_)) => true,
        _ => false,
    };
    if !host || !matches!(parts.next(), Some(Protocol::Tcp(port)) if port != 0) {
        return false;
    }
    matches!(
        (parts.next(), parts.next(), parts.next(), parts.next()),
        (None, ..)
            | (Some(Protocol::P2p(_)), None, ..)
            | (
                Some(Protocol::P2p(_)),
                Some(Protocol::P2pCircuit),
                None | Some(Protocol::P2p(_)),
                None
            )
    )
}

/// Whether the address means something else in another network.
pub(super) fn is_private(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || shared
        }
        Some(Protocol::Ip6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        _ => false,
    }
}

/// The address without the peer's name at its end; a relay's is left, it belongs to the way.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    if is_relayed(address) {
        let way = direct_part(address).with(Protocol::P2pCircuit);
        let behind = address.iter().skip(way.iter().count());
        return way.iter().chain(behind.filter(|part| !matches!(part, Protocol::P2p(_)))).collect();
    }
    address.iter().filter(|part| !matches!(part, Protocol::P2p(_))).collect()
}

/// The peer that the address names, if it does; not a relay on the way to it.
pub(super) fn named_peer(address: &Multiaddr) -> Option<PeerId> {
    let mut named = None;
    for part in address.iter() {
        match part {
            Protocol::P2p(peer) => named = Some(peer),
            Protocol::P2pCircuit => named = None,
            _ => {}
        }
    }
    named
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_way_through_a_relay_keeps_the_relays_name() {
        let (relay, peer) = (PeerId::random(), PeerId::random());
        let direct = of("/ip4/192.0.2.1/tcp/7401");
        let named = direct.clone().with(Protocol::P2p(peer));
        assert_eq!((without_peer(&named), named_peer(&named)), (direct.clone(), Some(peer)));
        assert_eq!(relay_of(&named), None);
        let way = direct.clone().with(Protocol::P2p(relay)).with(Protocol::P2pCircuit);
        let whole = way.clone().with(Protocol::P2p(peer));
        assert_eq!((without_peer(&whole), named_peer(&whole)), (way.clone(), Some(peer)));
        assert_eq!((without_peer(&way), named_peer(&way)), (way.clone(), None));
        assert_eq!((relay_of(&whole), relay_of(&way)), (Some(relay), Some(relay)));
        for good in [&direct, &named, &way, &whole] {
            assert!(is_dialable(good), "{good}");
        }
        let unnamed = direct.clone().with(Protocol::P2pCircuit);
        let twice = whole.clone().with(Protocol::P2pCircuit).with(Protocol::P2p(peer));
        let beyond = way.with(Protocol::Tcp(1));
        for bad in [unnamed, twice, beyond, of("/ip4/0.0.0.0/tcp/1"), of("/ip4/192.0.2.1/tcp/0")] {
            assert!(!is_dialable(&bad), "{bad}");
        }
    }

    #[test]
    fn addresses_of_other_networks_are_told_from_those_of_all() {
        for text in
            ["10.0.0.1", "192.168.1.1", "172.16.0.9", "100.64.0.1", "127.0.0.1", "169.254.1.1"]
        {
            assert!(is_private(&of(&format!("/ip4/{text}/tcp/1"))), "{text}");
        }
        for text in ["::1", "fd00::1", "fe80::1"] {
            assert!(is_private(&of(&format!("/ip6/{text}/tcp/1"))), "{text}");
        }
        for text in ["/ip4/203.0.113.7/tcp/1", "/ip6/2001:db8::1/tcp/1", "/dns/oak/tcp/1"] {
            assert!(!is_private(&of(text)), "{text}");
        }
    }
}
