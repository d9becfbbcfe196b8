//! One address may not take all the places of those who are not through the gate yet.
//!
//! Loopback is left out: there all nodes of a machine have one address, and no stranger.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::IpAddr,
    task::{Context, Poll},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dummy,
    },
};
use thiserror::Error;

/// How many connections from one address may be on their way through the gate.
const PENDING: usize = 16;

/// The address has enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{PENDING} connections from {0} are on their way through the gate already")]
struct Crowded(IpAddr);

/// Counts them.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    pending: HashMap<ConnectionId, IpAddr>,
}

impl Crowd {
    fn enter(&mut self, connection: ConnectionId, from: IpAddr) -> Result<(), Crowded> {
        if from.is_loopback() {
            return Ok(());
        }
        let from = network_of(from);
        let there = self.pending.values().filter(|other| **other == from).count();
        if there >= PENDING {
            return Err(Crowded(from));
        }
        self.pending.insert(connection, from);
        Ok(())
    }
}

/// Whoever has one IPv6 address has all of its /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => address.into(),
            None => {
                let [a, b, c, d, ..] = address.segments();
                [a, b, c, d, 0, 0, 0, 0].into()
            }
        },
        IpAddr::V4(_) => address,
    }
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

impl NetworkBehaviour for Crowd {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let Some(from) = ip_of(remote) else { return Ok(()) };
        self.enter(connection, from).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.pending.remove(&connection);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ListenFailure(failure) = event {
            self.pending.remove(&failure.connection_id);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_so_many_places_and_others_have_theirs() {
        let mut crowd = Crowd::default();
        let mut enter = |number, from: &str| {
            let from: IpAddr = from.parse().expect("an address");
            crowd.enter(ConnectionId::new_unchecked(number), from)
        };
        for number in 0..PENDING {
            assert_eq!(enter(number, "192.0.2.1"), Ok(()));
            assert_eq!(enter(1000 + number, &format!("2001:db8::{number}")), Ok(()));
        }
        let full: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(enter(100, "192.0.2.1"), Err(Crowded(full)));
        assert!(enter(100, "::ffff:192.0.2.1").is_err());
        assert!(enter(100, "2001:db8::ffff").is_err(), "it is of the same /64");
        assert_eq!(enter(100, "192.0.2.2"), Ok(()));
        assert_eq!(enter(101, "2001:db8:0:1::1"), Ok(()));
        for number in 200..300 {
            assert_eq!(enter(number, "127.0.0.1"), Ok(()));
        }
    }
}
