//! Two or three networks in one process, over real sockets on loopback.

use std::time::Duration;

use bytes::BytesMut;
use carbonmesh_protocol::{
    advert::{Advert, Roles},
    codec,
    id::{DiskId, NodeId},
    message::Message,
};
use libp2p::{Multiaddr, identity::Keypair};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::trust::tests::Member;

const LOOPBACK: &str = "/ip4/127.0.0.1/tcp/0";

/// Where a host is found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On loopback.
    Here,
    /// On loopback, and it relays.
    Relay,
    /// It listens at no address of its own.
    Nowhere,
}

pub(super) struct Host {
    pub(super) node: NodeId,
    net: Option<Net>,
    pub(super) events: mpsc::Receiver<NetEvent>,
    cancel: CancellationToken,
    folder: tempfile::TempDir,
    keypair: Keypair,
}

impl Host {
    pub(super) async fn start(secret: &str, peers: &[Multiaddr]) -> Self {
        Self::start_as(Keypair::generate_ed25519(), tempfile::tempdir().unwrap(), secret, peers)
            .await
    }

    async fn start_as(
        keypair: Keypair,
        folder: tempfile::TempDir,
        secret: &str,
        peers: &[Multiaddr],
    ) -> Self {
        let secret = Secret::new(secret.as_bytes());
        Self::start_with(keypair, folder, "test", (Some(secret), None), peers, Place::Here).await
    }

    /// One that relays.
    pub(super) async fn relay() -> Self {
        Self::placed(Place::Relay, &[]).await
    }

    /// One that nobody can dial.
    pub(super) async fn start_nowhere(peers: &[Multiaddr]) -> Self {
        Self::placed(Place::Nowhere, peers).await
    }

    async fn placed(place: Place, peers: &[Multiaddr]) -> Self {
        let (keypair, folder) = (Keypair::generate_ed25519(), tempfile::tempdir().unwrap());
        let secret = Secret::new(SECRET.as_bytes());
        Self::start_with(keypair, folder, "test", (Some(secret), None), peers, place).await
    }

    /// Its address at a relay, once it has one, of which it tells the others too.
    pub(super) async fn at_relay(&mut self) -> Multiaddr {
        loop {
            let NetEvent::Listening(addresses) = self.next().await else { continue };
            let Some(first) = addresses.first() else { continue };
            let mut advert = advert(self.node, 1);
            advert.addresses = addresses.clone();
            self.net.as_ref().unwrap().gossip().publish(advert);
            return first.parse().unwrap();
        }
    }

    pub(super) fn peer(&self) -> PeerId {
        self.keypair.public().to_peer_id()
    }

    /// A member by its certificate.
    pub(super) async fn certified(member: Member, peers: &[Multiaddr]) -> Self {
        let Member { folder, keypair, trust } = member;
        let cluster = trust.cluster();
        Self::start_with(keypair, folder, &cluster, (None, Some(trust)), peers, Place::Here).await
    }

    async fn start_with(
        keypair: Keypair,
        folder: tempfile::TempDir,
        cluster: &str,
        (secret, trust): (Option<Secret>, Option<Trust>),
        peers: &[Multiaddr],
        place: Place,
    ) -> Self {
        let (sender, events) = mpsc::channel(64);
        let cancel = CancellationToken::new();
        let config = NetConfig {
            keypair: keypair.clone(),
            cluster: cluster.to_owned(),
            secret,
            trust,
            listen: match place {
                Place::Nowhere => vec![],
                Place::Here | Place::Relay => vec![LOOPBACK.parse().unwrap()],
            },
            peers: peers.to_vec(),
            mdns: false,
            book: folder.path().join("peers.json"),
            files: Files::default(),
            advertise: vec![],
            relay: place == Place::Relay,
        };
        let net = start(config, sender, cancel.clone()).await.unwrap();
        let node = node_id_of(&keypair.public().to_peer_id()).unwrap();
        Self { node, net: Some(net), events, cancel, folder, keypair }
    }

    pub(super) fn address(&self) -> Multiaddr {
        self.net.as_ref().unwrap().listening()[0].clone()
    }

    async fn next(&mut self) -> NetEvent {
        timeout(Duration::from_secs(20), self.events.recv()).await.expect("an event").unwrap()
    }

    pub(super) async fn up(&mut self) -> (NodeId, Lane) {
        loop {
            if let NetEvent::PeerUp(node, lane) = self.next().await {
                return (node, lane);
            }
        }
    }

    pub(super) async fn down(&mut self) -> NodeId {
        loop {
            if let NetEvent::PeerDown(node) = self.next().await {
                return node;
            }
        }
    }

    pub(super) async fn messages(&mut self) -> Vec<Message> {
        loop {
            if let NetEvent::Messages { messages, .. } = self.next().await {
                return messages;
            }
        }
    }

    async fn stop(mut self) -> (Keypair, tempfile::TempDir) {
        self.cancel.cancel();
        self.net.take().unwrap().stopped().await;
        (self.keypair, self.folder)
    }
}

pub(super) fn advert(node: NodeId, sequence: u64) -> Advert {
    Advert {
        node,
        disk: DiskId(1),
        boot: 1,
        sequence,
        name: "test".to_owned(),
        version: "0".to_owned(),
        roles: Roles::ALL,
        phases: vec![],
        labels: Default::default(),
        addresses: vec![],
        coordinates: vec![],
        catalog: 0,
        refusing: None,
    }
}

pub(super) fn frame(messages: &[Message]) -> bytes::Bytes {
    let mut out = BytesMut::new();
    messages.iter().for_each(|message| codec::encode_into(message, &mut out));
    out.freeze()
}

pub(super) const SECRET: &str = "correct horse battery";

#[tokio::test]
async fn frames_arrive_in_order_both_ways() {
    let mut a = Host::start(SECRET, &[]).await;
    let mut b = Host::start(SECRET, &[a.address()]).await;
    let ((at_a, to_b), (at_b, to_a)) = (a.up().await, b.up().await);
    assert_eq!((at_a, at_b), (b.node, a.node));

    for sequence in 0..100 {
        to_b.send(frame(&[Message::Hello(advert(a.node, sequence)), Message::CatalogPull]));
        to_a.send(frame(&[Message::Hello(advert(b.node, sequence))]));
    }
    for sequence in 0..100 {
        let expected = [Message::Hello(advert(a.node, sequence)), Message::CatalogPull];
        assert_eq!(b.messages().await, expected);
        assert_eq!(a.messages().await, [Message::Hello(advert(b.node, sequence))]);
    }
}

#[tokio::test]
async fn a_peer_with_another_secret_reaches_nothing() {
    let mut a = Host::start(SECRET, &[]).await;
    let mut stranger = Host::start("another secret, as long", &[a.address()]).await;
    let mut friend = Host::start(SECRET, &[a.address()]).await;
    let (at_a, at_friend) = (a.up().await, friend.up().await);
    assert_eq!((at_a.0, at_friend.0), (friend.node, a.node));
    // The stranger has dialled more than once by now; nothing but its own address was reported.
    tokio::time::sleep(Duration::from_millis(500)).await;
    while let Ok(event) = stranger.events.try_recv() {
        assert!(matches!(event, NetEvent::Listening(_)), "{event:?}");
    }
    while let Ok(event) = a.events.try_recv() {
        assert!(!matches!(event, NetEvent::PeerUp(..)), "{event:?}");
    }
}

#[tokio::test]
async fn a_restarted_peer_is_found_again_by_the_address_book() {
    let mut a = Host::start(SECRET, &[]).await;
    let mut b = Host::start(SECRET, &[a.address()]).await;
    let _lanes = (a.up().await, b.up().await);
    let (b_node, (keypair, folder)) = (b.node, b.stop().await);
    assert_eq!(a.down().await, b_node);
    // No address is given this time, and the port is another.
    let mut b = Host::start_as(keypair, folder, SECRET, &[]).await;
    let (at_a, at_b) = (a.up().await, b.up().await);
    assert_eq!((at_a.0, at_b.0), (b_node, a.node));
}

#[tokio::test]
async fn gossip_leads_to_a_full_mesh() {
    let mut a = Host::start(SECRET, &[]).await;
    let mut b = Host::start(SECRET, &[a.address()]).await;
    let mut c = Host::start(SECRET, &[a.address()]).await;
    for host in [&b, &c] {
        let mut advert = advert(host.node, 1);
        advert.addresses = vec![host.address().to_string()];
        host.net.as_ref().unwrap().gossip().publish(advert);
    }
    let mut lanes = Vec::new();
    for host in [&mut a, &mut b, &mut c] {
        let (one, other) = (host.up().await, host.up().await);
        assert_ne!(one.0, other.0);
        lanes.push((one, other));
    }
}

#[tokio::test]
async fn nobody_speaks_for_another_in_gossip() {
    let mut a = Host::start(SECRET, &[]).await;
    let mut b = Host::start(SECRET, &[a.address()]).await;
    let _lanes = (a.up().await, b.up().await);
    let own = async {
        loop {
            let Some(event) = a.events.recv().await else { panic!("no more events") };
            if let NetEvent::Advert(advert) = event {
                return advert.node;
            }
        }
    };
    let another = NodeId::from_bytes([7; 16]);
    let gossip = b.net.as_ref().unwrap().gossip();
    let speak = async {
        for sequence in 1.. {
            gossip.publish(advert(another, sequence));
            tokio::time::sleep(Duration::from_millis(100)).await;
            gossip.publish(advert(b.node, sequence));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        heard = own => assert_eq!(heard, b.node),
        () = speak => {}
        () = tokio::time::sleep(Duration::from_secs(20)) => panic!("nothing was heard"),
    }
}

#[tokio::test]
async fn who_speaks_for_another_again_and_again_is_kept_out() {
    let mut a = Host::start(SECRET, &[]).await;
    let mut b = Host::start(SECRET, &[a.address()]).await;
    let _lanes = (a.up().await, b.up().await);
    let gossip = b.net.as_ref().unwrap().gossip();
    let speak = async {
        for sequence in 1.. {
            gossip.publish(advert(NodeId::from_bytes([7; 16]), sequence));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        down = a.down() => assert_eq!(down, b.node),
        () = speak => {}
    }
    let again = timeout(Duration::from_secs(2), a.up()).await;
    assert!(again.is_err(), "it is back at once");
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_dropped() {
    let a = Host::start(SECRET, &[]).await;
    let address = a.address();
    let Some(libp2p::multiaddr::Protocol::Tcp(port)) = address.iter().last() else {
        panic!("no port")
    };
    let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let mut heard = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut heard);
    // However it ends.
    drop(timeout(Duration::from_secs(10), end).await.expect("it is cut off"));
    assert!(heard.len() < 100, "{heard:?}");
}

#[tokio::test]
async fn a_peer_that_reads_too_slowly_loses_the_connection_not_frames() {
    let mut a = Host::start(SECRET, &[]).await;
    let b = Host::start(SECRET, &[a.address()]).await;
    let (_, to_b) = a.up().await;
    let mut big = advert(a.node, 1);
    big.name = "x".repeat(8 << 20);
    let frame = frame(&[Message::Hello(big)]);
    // `b` takes none of its events, so nothing is read there.
    for _ in 0..200 {
        to_b.send(frame.clone());
    }
    assert_eq!(a.down().await, b.node);
}

#[tokio::test]
async fn without_a_secret_only_this_machine_is_spoken_to() {
    let (sender, _events) = mpsc::channel(1);
    let config = NetConfig {
        keypair: Keypair::generate_ed25519(),
        cluster: "test".to_owned(),
        secret: None,
        trust: None,
        listen: vec!["/ip4/0.0.0.0/tcp/0".parse().unwrap()],
        peers: vec![],
        mdns: false,
        book: "unused".into(),
        files: Files::default(),
        advertise: vec![],
        relay: false,
    };
    let error = start(config, sender, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().contains("--secret-file"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let a = Host::start(SECRET, &[]).await;
    let (sender, _events) = mpsc::channel(1);
    let config = NetConfig {
        keypair: Keypair::generate_ed25519(),
        cluster: "test".to_owned(),
        secret: None,
        trust: None,
        listen: vec![a.address()],
        peers: vec![],
        mdns: false,
        book: "unused".into(),
        files: Files::default(),
        advertise: vec![],
        relay: false,
    };
    let error = start(config, sender, CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, NetError::AddressInUse(_)), "{error:?}");
}

#[test]
fn addresses_are_read_as_people_write_them() {
    for (text, address) in [
        ("10.0.0.7:7401", "/ip4/10.0.0.7/tcp/7401"),
        ("[::1]:7401", "/ip6/::1/tcp/7401"),
        ("oak.local:7401", "/dns/oak.local/tcp/7401"),
        ("/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"),
    ] {
        assert_eq!(parse_address(text).unwrap().to_string(), address);
    }
    for text in
        ["", "oak", "oak:", ":7401", "oak:99999", "/ip4/127.0.0.1", "o ak:1", "/ip4/x/tcp/1"]
    {
        assert!(parse_address(text).is_err(), "{text}");
    }
}
