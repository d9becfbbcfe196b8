//! Bytes from peers, and from the file of addresses: they end the connection, and no more.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use allocation_counter::measure;
use carbonmesh_fuzz::{Corpus, target};
use carbonmesh_protocol::{codec, id::NodeId, message::Message};
use futures::{AsyncRead, AsyncWrite, executor::block_on};
use libp2p::{PeerId, identity::Keypair, noise};
use tokio::{runtime::Runtime, sync::mpsc};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{
    NetEvent, Secret, address,
    book::Book,
    gate::{Gate, GateError, Role},
    link::{FRAME_BYTES, Link},
};

/// What a peer says, in pieces, and then nothing more; what it is told goes nowhere.
struct Peer<'a> {
    says: &'a [u8],
    piece: usize,
}

impl AsyncRead for Peer<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let count = self.piece.min(into.len()).min(self.says.len());
        let (now, later) = self.says.split_at(count);
        into[..count].copy_from_slice(now);
        self.says = later;
        Poll::Ready(Ok(count))
    }
}

impl AsyncWrite for Peer<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        from: &[u8],
    ) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(from.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime")
}

/// Reads all that a peer says; gives what came of it, and why the reading ended.
fn read(runtime: &Runtime, says: &[u8], piece: usize) -> (Vec<Message>, io::Error) {
    let (events, mut told) = mpsc::channel(1 << 14);
    let (dead, _) = mpsc::channel(1);
    let (peer, node) = (PeerId::random(), NodeId::from_bytes([1; 16]));
    let link = Link { peer, node, events, dead, counters: Default::default() };
    let ended = runtime.block_on(link.read(Peer { says, piece }));
    let mut messages = Vec::new();
    while let Ok(event) = told.try_recv() {
        match event {
            NetEvent::Messages { messages: more, .. } => messages.extend(more),
            other => panic!("{other:?}"),
        }
    }
    (messages, ended.expect_err("a peer that says nothing more has gone"))
}

/// Frames as they go over a stream.
fn frame(envelopes: &[u8]) -> Vec<u8> {
    [&(envelopes.len() as u32).to_le_bytes()[..], envelopes].concat()
}

fn streams() -> Vec<Vec<u8>> {
    let (one, two) =
        (codec::encode(&Message::CatalogPull), codec::encode(&Message::CatalogAck(vec![])));
    vec![
        frame(&one),
        [frame(&[&two[..], &one].concat()), frame(&one), frame(&[])].concat(),
        frame(&two.repeat(40)),
    ]
}

#[test]
fn streams_of_frames_are_read_or_refused_however_they_are_cut() {
    let runtime = runtime();
    for stream in streams() {
        let (messages, end) = read(&runtime, &stream, 7);
        assert!(!messages.is_empty() && end.kind() == io::ErrorKind::UnexpectedEof, "{end}");
    }
    let corpus = Corpus::load("stream").and(streams());
    target!(corpus, |input: &[u8]| {
        let (whole, end) = read(&runtime, input, usize::MAX);
        for piece in [1, 3, 64] {
            let (pieces, same_end) = read(&runtime, input, piece);
            assert_eq!((&whole, end.kind()), (&pieces, same_end.kind()));
        }
    });
}

#[test]
fn planted_damage_ends_the_stream_and_the_frames_before_it_count() {
    let runtime = runtime();
    let mut stream = [frame(&codec::encode(&Message::CatalogPull)), streams().remove(2)].concat();
    let at = stream.len() - 1;
    stream[at] ^= 1;
    let (messages, end) = read(&runtime, &stream, 100);
    assert_eq!((messages.len(), end.kind()), (1, io::ErrorKind::InvalidData), "{end}");
    let long = (FRAME_BYTES as u32 + 1).to_le_bytes();
    assert!(read(&runtime, &long, 4).1.to_string().contains("over"));
}

/// The bound on memory: a length that lies takes next to nothing, and a frame of the smallest
/// messages that there are a small multiple of its size.
#[test]
fn a_frame_takes_memory_only_for_what_has_come() {
    let runtime = runtime();
    let taken = |says: &[u8]| measure(|| drop(read(&runtime, says, usize::MAX))).bytes_max;
    let small = taken(&[]);
    let lie = [&(FRAME_BYTES as u32).to_le_bytes()[..], &[0; 100]].concat();
    assert!(taken(&lie) < small + (1 << 20), "{}", taken(&lie));

    let stream = frame(&codec::encode(&Message::CatalogPull).repeat(100_000));
    let (events, mut told) = mpsc::channel(1);
    let (dead, _) = mpsc::channel(1);
    let (peer, node) = (PeerId::random(), NodeId::from_bytes([1; 16]));
    let link = Link { peer, node, events, dead, counters: Default::default() };
    let count = std::cell::Cell::new(0);
    let bytes = measure(|| {
        runtime.block_on(async {
            let reading =
                async { drop(link.read(Peer { says: &stream, piece: usize::MAX }).await) };
            let hearing = async {
                while count.get() < 100_000 {
                    if let Some(NetEvent::Messages { messages, .. }) = told.recv().await {
                        count.set(count.get() + messages.len());
                    }
                }
            };
            futures::join!(reading, hearing);
        });
    });
    let most = 3 * stream.len() as u64 + (2 << 20);
    assert!(bytes.bytes_max < most, "{} for {}", bytes.bytes_max, stream.len());
}

fn gate(keypair: &Keypair, secret: &str) -> Gate {
    let noise = noise::Config::new(keypair).expect("a key");
    let local = keypair.public().to_peer_id();
    Gate::new(noise, local, "test", Some(Secret::new(secret.as_bytes())))
}

#[test]
fn nothing_but_a_proof_passes_the_gate() {
    let keypair = Keypair::generate_ed25519();
    let gate = gate(&keypair, "the secret of this test");
    let corpus = Corpus::of("gate", vec![vec![0; 64], vec![0xff; 32], vec![7; 100]]);
    let peer = PeerId::random();
    target!(corpus, |input: &[u8]| {
        for role in [Role::Initiator, Role::Responder] {
            let mut io = Peer { says: input, piece: 5 };
            match block_on(gate.pass(&mut io, role, peer)) {
                Err(GateError::Io(_)) => assert!(input.len() < 64),
                Err(GateError::Refused) => assert!(input.len() >= 64),
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn a_proof_passes_the_gate() {
    let (left, right) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let pass = |secret: &str| {
        let (near, far) = tokio::io::duplex(64);
        let (mut near, mut far) = (near.compat(), far.compat());
        let (inside, outside) = (gate(&left, "secret"), gate(&right, secret));
        let (here, there) = (left.public().to_peer_id(), right.public().to_peer_id());
        block_on(async {
            let opened = async move { inside.pass(&mut near, Role::Responder, there).await };
            let asked = async move { outside.pass(&mut far, Role::Initiator, here).await };
            futures::join!(opened, asked)
        })
    };
    assert!(matches!(pass("secret"), (Ok(()), Ok(()))));
    assert!(matches!(pass("Secret"), (Err(GateError::Refused), Err(GateError::Io(_)))));
}

#[test]
fn addresses_and_books_of_them_are_read_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("peers.json");
    let words = ["/ip4/", "/tcp/", "/dns/", "/p2p/", "127.0.0.1", "[::]", ":7401", "\"", "{", "["];
    target!(Corpus::load("addresses").words(words), |input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        for text in text.lines() {
            if let Ok(address) = address::parse_address(text) {
                let _ = (address::is_loopback(&address), address::is_dialable(&address));
                let _ = address::named_peer(&address).as_ref().map(address::node_id_of);
                assert!(address::named_peer(&address::without_peer(&address)).is_none());
            }
        }
        let _ = PeerId::from_bytes(input).as_ref().map(address::node_id_of);
        std::fs::write(&path, input).unwrap();
        if let Ok(mut book) = Book::load(&path, &carbonmesh_storage::Files::default()) {
            let _ = (book.peers().count(), book.take_changes());
        }
    });
}
