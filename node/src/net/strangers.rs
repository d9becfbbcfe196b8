//! Strangers and members of many kinds, made of plain libp2p: what each can get.

use std::{
    convert::Infallible,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use carbonmesh_protocol::{
    id::{JobId, Term, Token},
    io::{Request, Response},
    message::{Beat, Completion, Message, Question, Scope, SyncPage},
    pipeline::PipelineDef,
    rights::Rights,
};
use clap::Parser;
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt};
use hmac::Mac;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, SwarmBuilder,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    identity::Keypair,
    multiaddr::Protocol,
    noise, relay,
    swarm::{
        NetworkBehaviour, Swarm, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use libp2p_stream::Control;
use tokio::time::timeout;

use super::{
    behaviour::PER_PEER,
    flood::swarm_of,
    gate::{Gate, Role},
    tests::{Host, SECRET, advert, frame},
    *,
};
use crate::{
    config::UpArgs,
    document::PipelineDocument,
    node::Node,
    phase::PhaseRegistry,
    trust::{
        Chain, Revocation, Statement, now_s,
        tests::{Member, Operator, WORKER, key_of, statement},
    },
};

/// All that a member can reach.
const PROTOCOLS: [&str; 5] = [
    "/carbonmesh/1/trust",
    "/carbonmesh/1/frames",
    "/ipfs/id/1.0.0",
    "/meshsub/1.1.0",
    "/libp2p/circuit/relay/0.2.0/stop",
];

const NOISE: &str = "/carbonmesh/1/noise";

/// A client that keeps to no rule: it proves what it can, shows what it likes, and goes on whatever
/// it hears.
#[derive(Clone)]
struct Intruder {
    noise: noise::Config,
    local: PeerId,
    /// Proves to know the cluster; without it, it shows random bytes.
    knows: Option<Gate>,
    shows: Bytes,
    heard: Arc<Mutex<Vec<u8>>>,
    /// Whether it came as far as to the gate.
    reached: Arc<AtomicBool>,
}

impl Intruder {
    async fn intrude<S>(self, socket: S) -> io::Result<(PeerId, noise::Output<S>)>
    where
        S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static,
    {
        let upgraded = self.noise.clone().upgrade_outbound(socket, NOISE).await;
        let (peer, mut io) = upgraded.map_err(io::Error::other)?;
        let ours = [7; 32];
        io.write_all(&ours).await?;
        io.flush().await?;
        let mut theirs = [0; 32];
        io.read_exact(&mut theirs).await?;
        self.reached.store(true, Ordering::Relaxed);
        let proof = match &self.knows {
            Some(gate) => gate.proof(Role::Initiator, self.local, peer, &[ours, theirs]),
            None => Gate::new(self.noise.clone(), self.local, "else", None).proof(
                Role::Initiator,
                self.local,
                peer,
                &[ours, theirs],
            ),
        };
        let shows = [&(self.shows.len() as u16).to_le_bytes()[..], &self.shows].concat();
        io.write_all(&proof.finalize().into_bytes()).await?;
        // Who is refused may not get to say it all, and listens all the same.
        let _ = io.write_all(&shows).await;
        let _ = io.flush().await;
        // All that comes until the end, or as long as an honest peer would take to say it.
        let heard = self.heard.clone();
        let mut byte = [0];
        while let Ok(Ok(1)) = timeout(Duration::from_millis(500), io.read(&mut byte)).await {
            heard.lock().expect("no panic").push(byte[0]);
            let bytes = heard.lock().expect("no panic").clone();
            let chain = bytes.get(..2).map(|it| usize::from(u16::from_le_bytes([it[0], it[1]])));
            if chain.is_some_and(|chain| bytes.len() == 2 + chain + 1) {
                break;
            }
        }
        Ok((peer, io))
    }
}

impl UpgradeInfo for Intruder {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once(NOISE)
    }
}

type Passing<S> = Pin<Box<dyn Future<Output = io::Result<(PeerId, noise::Output<S>)>> + Send>>;

impl<S> InboundConnectionUpgrade<S> for Intruder
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, noise::Output<S>);
    type Error = io::Error;
    type Future = Passing<S>;

    fn upgrade_inbound(self, _: S, _: Self::Info) -> Self::Future {
        async { Err(io::Error::other("nobody comes to it")) }.boxed()
    }
}

impl<S> OutboundConnectionUpgrade<S> for Intruder
where
    S: futures::AsyncRead + futures::AsyncWrite + Unpin + Send + 'static,
{
    type Output = (PeerId, noise::Output<S>);
    type Error = io::Error;
    type Future = Passing<S>;

    fn upgrade_outbound(self, socket: S, _: Self::Info) -> Self::Future {
        self.intrude(socket).boxed()
    }
}

/// Dials as that key, showing that chain; what was heard behind the nonce, and how many protocols
/// could be reached.
async fn intrude(
    keypair: &Keypair,
    knows: Option<&Trust>,
    shows: Bytes,
    at: &Multiaddr,
) -> (Vec<u8>, u32) {
    let noise = noise::Config::new(keypair).expect("noise");
    let local = keypair.public().to_peer_id();
    let knows = knows.map(|trust| {
        Gate::new(noise.clone(), local, &trust.cluster(), None).with_trust(Some(trust.clone()))
    });
    let heard = Arc::new(Mutex::new(Vec::new()));
    let reached = Arc::default();
    let intruder = Intruder { noise, local, knows, shows, heard: heard.clone(), reached };
    let mut swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            |_: &_| Ok::<_, Infallible>(intruder),
            yamux::Config::default,
        )
        .expect("tcp")
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .expect("a behaviour")
        .build();
    let control = swarm.behaviour().new_control();
    let came_in = enter(&mut swarm, control, at, None).await;
    let heard = heard.lock().expect("no panic").clone();
    (heard, came_in)
}

/// Dials, and waits for a connection to `whom`, or to anybody; how many protocols can be reached then.
async fn enter<B: NetworkBehaviour>(
    swarm: &mut Swarm<B>,
    mut control: Control,
    at: &Multiaddr,
    whom: Option<PeerId>,
) -> u32 {
    swarm.dial(at.clone()).expect("dialled");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    let peer = loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                // Its own side takes the connection for made before the other has said so.
                SwarmEvent::ConnectionEstablished { peer_id, .. }
                    if whom.is_none_or(|whom| whom == peer_id) => break Some(peer_id),
                SwarmEvent::OutgoingConnectionError { .. } => break None,
                _ => {}
            },
            () = tokio::time::sleep_until(deadline) => panic!("no end"),
        }
    };
    let Some(peer) = peer else { return 0 };
    let drive = async {
        loop {
            swarm.select_next_some().await;
        }
    };
    let tries = async {
        let mut opened = 0;
        for protocol in PROTOCOLS {
            let stream = control.open_stream(peer, StreamProtocol::new(protocol));
            let stream = timeout(Duration::from_secs(1), stream).await;
            opened += u32::from(matches!(stream, Ok(Ok(_))));
        }
        opened
    };
    tokio::select! {
        opened = tries => opened,
        () = drive => 0,
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Through {
    relayed: relay::client::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// The same by way of a relay, past whose gate it gets as a member does; whether it came as far as to
/// the gate behind, what it heard there, and how many protocols it reached.
async fn intrude_through(at: &Multiaddr, whom: PeerId) -> (bool, Vec<u8>, u32) {
    let keypair = Keypair::generate_ed25519();
    let noise = noise::Config::new(&keypair).expect("noise");
    let local = keypair.public().to_peer_id();
    let gate = Gate::new(noise.clone(), local, "test", Some(Secret::new(SECRET.as_bytes())));
    let (heard, reached) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
    let intruder = Intruder {
        noise,
        local,
        knows: None,
        shows: Bytes::new(),
        heard: heard.clone(),
        reached: reached.clone(),
    };
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(tcp::Config::default(), |_: &_| Ok::<_, Infallible>(gate), yamux::Config::default)
        .expect("tcp")
        .with_relay_client(|_: &_| Ok::<_, Infallible>(intruder), yamux::Config::default)
        .expect("relaying")
        .with_behaviour(|_, relayed| Through { relayed, streams: libp2p_stream::Behaviour::new() })
        .expect("a behaviour")
        .build();
    let control = swarm.behaviour().streams.new_control();
    let came_in = enter(&mut swarm, control, at, Some(whom)).await;
    let heard = heard.lock().expect("no panic").clone();
    (reached.load(Ordering::Relaxed), heard, came_in)
}

#[tokio::test]
async fn who_gets_past_a_relay_has_the_gate_before_it_all_the_same() {
    let relay = Host::relay().await;
    let mut host = Host::start_nowhere(&[relay.address()]).await;
    let at = host.at_relay().await;
    // It is given a nonce, as everybody is, and nothing else.
    assert_eq!(intrude_through(&at, host.peer()).await, (true, Vec::new(), 0));
}

#[tokio::test]
async fn strangers_get_nothing_but_a_refusal() {
    let operator = Operator::new();
    let host = Member::join(&operator.invite(Rights::ALL, 1, false));
    let (host_chain, host_trust) = (host.trust.chain(), host.trust.clone());
    let invitation = operator.invite(Rights { roles: WORKER, phases: None }, 1, false);
    let genuine = Member::join(&invitation);
    let foreign = Member::join(&Operator::new().invite(Rights::ALL, 1, false));
    let revoked = Member::join(&invitation);
    let issuer = operator.issuer.keypair().unwrap();
    let entry = Revocation::new(revoked.key().id(), now_s(), (&issuer, &operator.issuer.chain));
    host_trust.learn(vec![entry]).unwrap();
    let mut host = Host::certified(host, &[]).await;
    let at = host.address();

    // What a member hears, who is let in.
    let welcome = [&(host_chain.len() as u16).to_le_bytes()[..], &host_chain, &[0]].concat();
    let shown = genuine.trust.chain();
    let entered = intrude(&genuine.keypair, Some(&genuine.trust), shown.clone(), &at).await;
    assert_eq!(entered, (welcome.clone(), PROTOCOLS.len() as u32));

    // Who does not know the cluster hears nothing, whatever it shows.
    let strange = Keypair::generate_ed25519();
    let nothing = (Vec::new(), 0);
    assert_eq!(intrude(&strange, None, Bytes::new(), &at).await, nothing);
    assert_eq!(
        intrude(&strange, None, shown.clone(), &at).await,
        nothing,
        "replayed, by a stranger"
    );
    let theirs = foreign.trust.chain();
    let other_cluster = intrude(&foreign.keypair, Some(&foreign.trust), theirs.clone(), &at).await;
    assert_eq!(other_cluster, nothing);

    // Who knows it, and has no certificate that holds, hears no more than who it speaks to.
    let no_verdict = (welcome[..welcome.len() - 1].to_vec(), 0);
    let key = genuine.keypair.clone();
    let sign = |statement: Statement| {
        let signer = invitation.issuer.keypair().expect("its key");
        invitation.issuer.chain.extend_unchecked(&signer, statement).encode()
    };
    let own = statement(key_of(&strange), Rights { roles: WORKER, phases: None }, 0, 600);
    let self_made = {
        let signer = strange.clone().try_into_ed25519().unwrap();
        Chain::default().extend_unchecked(&signer, own.clone()).encode()
    };
    let forged = {
        let signer = strange.clone().try_into_ed25519().unwrap();
        invitation.issuer.chain.extend_unchecked(&signer, own.clone()).encode()
    };
    let too_wide = sign(Statement { rights: Rights::ALL, ..own.clone() });
    let too_long = sign(Statement { expires_s: now_s() + 9000, ..own.clone() });
    for (what, shows) in [
        ("nothing", Bytes::new()),
        ("another's, replayed", shown.clone()),
        ("another cluster's", theirs),
        ("one that it made itself", self_made),
        ("one that it forged", forged),
        ("one with roles that were not granted", too_wide),
        ("one that outlives its signer", too_long),
        ("noise", Bytes::from(vec![0xa5; 700])),
        ("too much", Bytes::from(vec![0xa5; 1100])),
    ] {
        let refused = intrude(&strange, Some(&genuine.trust), shows, &at).await;
        assert_eq!(refused, no_verdict, "{what}");
    }

    // Only who was a member once is told why it is none any more.
    let expired = sign(Statement { subject: key_of(&key), expires_s: now_s() - 10, ..own.clone() });
    let mut told = welcome.clone();
    *told.last_mut().unwrap() = 1;
    let refused = intrude(&key, Some(&genuine.trust), expired.clone(), &at).await;
    assert_eq!(refused, (told.clone(), 0));
    let replayed = intrude(&strange, Some(&genuine.trust), expired, &at).await;
    assert_eq!(replayed, no_verdict, "nobody learns of another's certificate");
    *told.last_mut().unwrap() = 2;
    let shows = revoked.trust.chain();
    let refused = intrude(&revoked.keypair, Some(&revoked.trust), shows, &at).await;
    assert_eq!(refused, (told, 0));

    // The node has seen none of them.
    let mut seen = Vec::new();
    while let Ok(event) = host.events.try_recv() {
        if let NetEvent::PeerUp(node, _) = event {
            seen.push(node);
        }
    }
    assert!(seen.is_empty(), "{seen:?}");
}

#[tokio::test]
async fn a_client_without_the_secret_hears_nothing() {
    let mut host = Host::start(SECRET, &[]).await;
    let strange = Keypair::generate_ed25519();
    let heard = intrude(&strange, None, Bytes::new(), &host.address()).await;
    assert_eq!(heard, (Vec::new(), 0));
    while let Ok(event) = host.events.try_recv() {
        assert!(matches!(event, NetEvent::Listening(_)), "{event:?}");
    }
}

/// Of what a stranger gets to hear most is what Noise needs, and TCP has proven where it is by then: nobody
/// can have a node speak to others than itself.
#[tokio::test]
async fn a_stranger_cannot_make_a_node_say_much() {
    let host = Host::start(SECRET, &[]).await;
    let Some(Protocol::Tcp(port)) = host.address().iter().last() else { panic!("no port") };
    let hello = b"\x13/multistream/1.0.0\n\x14/carbonmesh/1/noise\n".to_vec();
    let key = [&hello[..], &[0, 32], &[9; 32]].concat();
    let answered = hello.len() + 256;
    let tries = [
        ("nothing", Vec::new(), 0),
        ("noise", vec![0xa5; 4000], 4000),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), 39),
        ("what comes before Noise", hello.clone(), hello.len()),
        ("the first of Noise", key.clone(), answered),
        ("the same, and more", [&key[..], &[0xa5; 4000]].concat(), answered),
    ];
    let tries = tries.map(|(what, says, most)| async move {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        // Who is refused may not get to say it all, and listens all the same.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &says).await;
        let mut heard = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut heard);
        // However it ends.
        drop(timeout(Duration::from_secs(20), end).await.expect("it is cut off"));
        (what, heard.len(), most)
    });
    for (what, heard, most) in futures::future::join_all(tries).await {
        assert!(heard <= most, "{what}: {heard} bytes");
        assert_eq!(heard > hello.len(), most == answered, "{what}: {heard} bytes");
    }
}

#[tokio::test]
async fn a_member_has_so_many_connections_and_no_more() {
    let host = Host::start(SECRET, &[]).await;
    let mut member = swarm_of(Keypair::generate_ed25519());
    let more = 4;
    for _ in 0..PER_PEER + more {
        let whom = DialOpts::peer_id(host.peer()).addresses(vec![host.address()]);
        member.dial(whom.condition(PeerCondition::Always).build()).expect("dialled");
    }
    let (mut made, mut cut) = (0, 0);
    while made < PER_PEER + more || cut < more {
        match timeout(Duration::from_secs(8), member.select_next_some()).await.expect("an event") {
            SwarmEvent::ConnectionEstablished { .. } => made += 1,
            SwarmEvent::ConnectionClosed { .. } => cut += 1,
            SwarmEvent::OutgoingConnectionError { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    assert_eq!(member.network_info().connection_counters().num_established(), PER_PEER);
}

#[tokio::test]
async fn who_dials_checks_the_cluster_before_it_shows_itself() {
    // A listener that claims to be of the cluster and shows another's certificates.
    let operator = Operator::new();
    let member = Member::join(&operator.invite(Rights::ALL, 1, false));
    let liar = Member::join(&Operator::new().invite(Rights::ALL, 1, false));
    let (near, far) = tokio::io::duplex(64 << 10);
    let (mut near, mut far) = (
        tokio_util::compat::TokioAsyncReadCompatExt::compat(near),
        tokio_util::compat::TokioAsyncReadCompatExt::compat(far),
    );
    let noise = noise::Config::new(&member.keypair).unwrap();
    let local = member.keypair.public().to_peer_id();
    let gate = Gate::new(noise, local, &member.trust.cluster(), None)
        .with_trust(Some(member.trust.clone()));
    let peer = liar.keypair.public().to_peer_id();
    let dial = gate.pass(&mut near, Role::Initiator, peer);
    let listen = async {
        let mut taken = [0; 32];
        far.write_all(&[1; 32]).await.unwrap();
        far.read_exact(&mut taken).await.unwrap();
        far.read_exact(&mut taken).await.unwrap();
        let chain = liar.trust.chain();
        far.write_all(&(chain.len() as u16).to_le_bytes()).await.unwrap();
        far.write_all(&chain).await.unwrap();
        far
    };
    let (dialled, mut far) = futures::join!(dial, listen);
    let error = dialled.unwrap_err().to_string();
    assert!(error.contains("another cluster's root"), "{error}");
    drop(near);
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty(), "it has shown {} bytes of itself", rest.len());
}

#[tokio::test]
async fn members_of_both_issuers_meet_and_a_revoked_one_is_cut() {
    let operator = Operator::new();
    let second =
        Operator { issuer: Operator::issuer_of(&operator.root), root: operator.root.clone() };
    let one = Member::join(&operator.invite(Rights::ALL, 1, false));
    let two = Member::join(&second.invite(Rights::ALL, 1, false));
    let three = Member::join(&second.invite(Rights::ALL, 1, false));
    let told = one.trust.clone();
    let mut one = Host::certified(one, &[]).await;
    let mut two = Host::certified(two, &[one.address()]).await;
    let mut three = Host::certified(three, &[one.address(), two.address()]).await;
    let mut lanes = Vec::new();
    for host in [&mut one, &mut two, &mut three] {
        lanes.push((host.up().await, host.up().await));
    }
    // Told to one, known to two.
    let issuer = second.issuer.keypair().unwrap();
    let entry = Revocation::new(three.node, now_s(), (&issuer, &second.issuer.chain));
    told.learn(vec![entry]).unwrap();
    for host in [&mut one, &mut two] {
        let mut expelled = false;
        let mut down = false;
        while !(expelled && down) {
            let next = timeout(Duration::from_secs(20), host.events.recv()).await;
            match next.expect("it is cut").expect("an event") {
                NetEvent::Expelled(node) => expelled |= node == three.node,
                NetEvent::PeerDown(node) => down |= node == three.node,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_network() {
    let operator = Operator::new();
    let renewer = Member::join(&operator.invite(Rights::ALL, 24 * 365, true));
    let plain = Member::join(&operator.invite(Rights { roles: WORKER, phases: None }, 1, false));
    let trust = plain.trust.clone();
    assert!(trust.wants_renewal());
    let renewer = Host::certified(renewer, &[]).await;
    let _plain = Host::certified(plain, &[renewer.address()]).await;
    let mut changes = trust.changes();
    let renewed = async {
        while trust.wants_renewal() {
            changes.changed().await.expect("it is there");
        }
    };
    timeout(Duration::from_secs(30), renewed).await.expect("a new certificate");
}

#[tokio::test]
async fn a_member_that_floods_with_nonsense_is_kept_out() {
    let mut host = Host::start(SECRET, &[]).await;
    let mut flooder = Host::start(SECRET, &[host.address()]).await;
    for _ in 0..3 {
        let (_, lane) = flooder.up().await;
        // As long as it is held, the session goes on.
        let _held = host.up().await;
        for _ in 0..100 {
            lane.send(Bytes::from_static(b"this is no frame of ours, and will never be"));
        }
        assert_eq!(host.down().await, flooder.node);
    }
    let again = timeout(Duration::from_secs(3), flooder.up()).await;
    assert!(again.is_err(), "it is back at once");
}

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: UpArgs,
}

async fn node(folder: &std::path::Path, invitation: &crate::trust::Invitation) -> Node {
    let join = folder.join("join");
    crate::trust::write_private(&join, invitation.to_string().as_bytes()).unwrap();
    let data = folder.join("data");
    let args = ["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--join-file"];
    let args = args.map(std::ffi::OsString::from).into_iter();
    let args = args.chain([join.into(), "--data-dir".into(), data.into()]);
    let line = Line::try_parse_from(args).unwrap();
    let settings = line.args.resolve(&PhaseRegistry::default()).unwrap();
    Box::pin(Node::start(settings)).await.unwrap()
}

/// What a member gets to hear that asks for all sorts of things.
async fn asks_for_everything(host: &mut Host, pipeline: &PipelineDef) -> Vec<&'static str> {
    let pipeline = pipeline.id();
    let (first, last) = (JobId::from_be_bytes([0; 16]), JobId::from_be_bytes([255; 16]));
    let term = Term { counter: 1 << 40, node: host.node, boot: 1 };
    let (_, lane) = host.up().await;
    let own = advert(host.node, 1);
    let beat = Beat { sequence: 1, catalog: 0, groups: vec![], demand: vec![], busy: vec![] };
    let token = Token { term, sequence: 1 };
    lane.send(frame(&[
        Message::Hello(own),
        Message::Beat(beat),
        Message::Query {
            query: 1,
            question: Question::Jobs { pipeline, of: None, state: None, after: None, limit: 9 },
        },
        Message::Store { store: 1, pipeline, revision: 1, jobs: vec![] },
        Message::SyncPage(SyncPage {
            session: 1,
            pipeline,
            scope: Scope::All,
            from: first,
            to: last,
            entries: vec![],
            only_these: false,
            view: None,
        }),
        Message::PreVote { pipeline, counter: 1 << 40, founding: false },
        Message::Completed(Completion {
            token,
            pipeline,
            job: first,
            step: 0,
            outcome: carbonmesh_protocol::io::Outcome::Cancelled,
            items: 0,
            session: None,
        }),
        Message::CatalogPull,
    ]));
    let mut heard = Vec::new();
    let listen = async {
        loop {
            heard.extend(host.messages().await.iter().map(Message::kind));
        }
    };
    // Nothing tells that nothing more will come.
    let _ = timeout(Duration::from_secs(2), listen).await;
    heard
}

#[tokio::test]
async fn a_worker_gets_no_answer_to_what_it_may_not_ask() {
    let operator = Operator::new();
    let folder = tempfile::tempdir().unwrap();
    let served = node(folder.path(), &operator.invite(Rights::ALL, 1, false)).await;
    let document = r#"{ "name": "p", "phases": [{ "name": "a" }] }"#;
    let definition =
        PipelineDocument::from_json(document.as_bytes()).unwrap().definition().unwrap();
    let applied = served.handle().request(Request::Apply(Box::new(definition.clone()))).await;
    assert!(matches!(applied, Ok(Response::Applied { .. })), "{applied:?}");
    let at = served.listening().to_vec();

    let all = Member::join(&operator.invite(Rights::ALL, 1, false));
    let mut all = Host::certified(all, &at).await;
    let heard = asks_for_everything(&mut all, &definition).await;
    for answer in ["Answer", "SyncReply", "Ballot", "Catalog", "BeatAck"] {
        assert!(heard.contains(&answer), "no {answer} among {heard:?}");
    }

    let worker = Member::join(&operator.invite(Rights { roles: WORKER, phases: None }, 1, false));
    let mut worker = Host::certified(worker, &at).await;
    let heard = asks_for_everything(&mut worker, &definition).await;
    for answer in ["Catalog", "BeatAck"] {
        assert!(heard.contains(&answer), "no {answer} among {heard:?}");
    }
    for answer in ["Answer", "Stored", "SyncReply", "Ballot", "Replicate"] {
        assert!(!heard.contains(&answer), "{answer} among {heard:?}");
    }
    // It says that it does everything; that is not believed.
    let Ok(Response::Cluster(view)) = served.handle().request(Request::Cluster).await else {
        panic!("no view");
    };
    let seen = view.members.iter().find(|member| member.node == worker.node).unwrap();
    assert_eq!(seen.roles, WORKER);
    served.stop().await.unwrap();
}
