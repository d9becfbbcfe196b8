//! A flood of frames that are none, from a stranger and from a member, upon a cluster that has work to do.
//!
//! Each offers 10,000 frames a second, half of them malformed, half of them larger than any may be, for
//! as many seconds as `CARBONMESH_FLOOD_SECONDS` says: 2 if it says nothing. What the work loses by it is
//! told, and held to its bound where the flood lasts for half a minute or longer: in shorter ones, what
//! else the machine does weighs more.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use carbonmesh_protocol::{
    id::JobId,
    io::{NewJob, Request, Response},
    view::JobState,
};
use clap::Parser;
use futures::{AsyncWriteExt as _, StreamExt};
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, identity::Keypair, multiaddr::Protocol, noise,
    swarm::SwarmEvent, tcp, yamux,
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{behaviour::FRAMES, gate::Gate, link::FRAME_BYTES, tests::SECRET, *};
use crate::{
    config::UpArgs,
    document::PipelineDocument,
    handle::NodeHandle,
    node::Node,
    phase::{Fields, Phase, PhaseContext, PhaseError, PhaseRegistry},
};

/// What each of both offers.
const FRAMES_A_SECOND: u64 = 10_000;

/// How often it offers some, and so how many at once.
const TICK: Duration = Duration::from_millis(10);
const AT_ONCE: u64 = FRAMES_A_SECOND / 100;

/// How many clients enqueue one job after the other.
const CLIENTS: usize = 16;

/// How much of the work a long flood may not stop, in percent, and from how many seconds on.
const KEPT_PERCENT: u64 = 70;
const LONG_S: u64 = 30;

/// What the flood may take in memory, beyond what the work does.
const MEMORY_BYTES: u64 = 256 << 20;

/// The identities that the member goes through as one after the other is kept out.
const IDENTITIES: usize = 32;

/// How long one job may take, and the cluster to be there.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: UpArgs,
}

struct Step;

#[async_trait]
impl Phase for Step {
    async fn run(&self, _: PhaseContext) -> Result<Fields, PhaseError> {
        Ok(Fields::default())
    }
}

async fn node(folder: &Path, name: &str, peers: &[Multiaddr]) -> Node {
    let secret = folder.join(format!("{name}.secret"));
    crate::trust::write_private(&secret, SECRET.as_bytes()).unwrap();
    let args = ["up", "--cluster", "test", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let mut args: Vec<String> = args.map(str::to_owned).to_vec();
    args.extend(["--name", name, "--secret-file"].map(str::to_owned));
    args.extend([secret.display().to_string(), "--data-dir".to_owned()]);
    args.push(folder.join(name).display().to_string());
    for peer in peers {
        args.extend(["--peer".to_owned(), peer.to_string()]);
    }
    let line = Line::try_parse_from(args).unwrap();
    let phases = PhaseRegistry::default().with("step", 32, Step);
    Box::pin(Node::start(line.args.resolve(&phases).unwrap())).await.unwrap()
}

/// Noise that neither starts as a protocol does nor as a frame; every other one is said to be larger than
/// any may be.
fn nonsense(count: u64) -> Vec<u8> {
    let mut out = Vec::new();
    for number in 0..count {
        let length = if number % 2 == 0 { 64 } else { FRAME_BYTES as u32 + 1 };
        out.extend(length.to_le_bytes());
        out.extend([0xa5; 64]);
    }
    out
}

/// Counts what was offered.
#[derive(Clone, Default)]
struct Offered(Arc<AtomicU64>);

/// It knows nothing, and writes all the same: each time that it is thrown out, it comes back.
async fn stranger(at: Multiaddr, offered: Offered) {
    let Some(Protocol::Tcp(port)) = at.iter().last() else { panic!("no port") };
    let (mut tick, bytes) = (tokio::time::interval(TICK), nonsense(AT_ONCE));
    let mut connection = None;
    loop {
        tick.tick().await;
        offered.0.fetch_add(AT_ONCE, Ordering::Relaxed);
        if connection.is_none() {
            connection = TcpStream::connect(("127.0.0.1", port)).await.ok();
        }
        let Some(stream) = &mut connection else { continue };
        if !matches!(timeout(TICK, stream.write_all(&bytes)).await, Ok(Ok(()))) {
            connection = None;
        }
    }
}

/// Who is to be found there.
async fn who_is(at: &Multiaddr) -> PeerId {
    let mut swarm = swarm_of(Keypair::generate_ed25519());
    swarm.dial(at.clone()).expect("dialled");
    loop {
        if let SwarmEvent::ConnectionEstablished { peer_id, .. } = swarm.select_next_some().await {
            return peer_id;
        }
    }
}

/// A member that is to open the frame stream to `target`, as the lower of both does.
fn member(target: PeerId) -> Swarm<libp2p_stream::Behaviour> {
    loop {
        let keypair = Keypair::generate_ed25519();
        if keypair.public().to_peer_id() < target {
            return swarm_of(keypair);
        }
    }
}

/// A swarm that passes the gate.
pub(super) fn swarm_of(keypair: Keypair) -> Swarm<libp2p_stream::Behaviour> {
    let noise = noise::Config::new(&keypair).expect("noise");
    let local = keypair.public().to_peer_id();
    let gate = Gate::new(noise, local, "test", Some(Secret::new(SECRET.as_bytes())));
    SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_tcp(
            tcp::Config::default(),
            |_: &_| Ok::<_, std::convert::Infallible>(gate),
            yamux::Config::default,
        )
        .expect("tcp")
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .expect("a behaviour")
        .build()
}

/// It belongs to the cluster, and sends what no node sends: with another identity when one is kept out.
async fn malicious(target: PeerId, at: Multiaddr, offered: Offered, entered: Offered) {
    let (mut tick, bytes) = (tokio::time::interval(TICK), nonsense(AT_ONCE));
    let mut swarms: Vec<_> = (0..IDENTITIES).map(|_| member(target)).collect();
    for turn in (0..IDENTITIES).cycle() {
        let swarm = &mut swarms[turn];
        let mut control = swarm.behaviour().new_control();
        // It may be connected still.
        let _ = swarm.dial(at.clone());
        let flood = async {
            let stream = timeout(PATIENCE, control.open_stream(target, FRAMES)).await;
            let Ok(Ok(mut stream)) = stream else { return };
            let _ = stream.write_all(b"CMF1").await;
            loop {
                tick.tick().await;
                offered.0.fetch_add(AT_ONCE, Ordering::Relaxed);
                if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
                    return;
                }
                entered.0.fetch_add(AT_ONCE, Ordering::Relaxed);
            }
        };
        let refused = async {
            loop {
                if let SwarmEvent::OutgoingConnectionError { .. } = swarm.select_next_some().await {
                    return;
                }
            }
        };
        tokio::select! {
            () = flood => {}
            () = refused => {
                tokio::time::sleep(TICK).await;
                offered.0.fetch_add(AT_ONCE, Ordering::Relaxed);
            }
        }
    }
}

/// One client: its jobs, and how many of them have ended by now.
async fn client(handle: NodeHandle, done: Arc<AtomicU64>, end: CancellationToken) -> Vec<JobId> {
    let mut jobs = Vec::new();
    while !end.is_cancelled() {
        let job = NewJob {
            key: None,
            options: Default::default(),
            trace: None,
            instructions: Bytes::from_static(b"{\"text\":\"as good as any\"}"),
        };
        let request = Request::Enqueue { pipeline: "p".parse().unwrap(), jobs: vec![job] };
        let Ok(Response::Enqueued(mut answers)) = handle.request(request).await else {
            panic!("the node has stopped")
        };
        // What was refused is no job; what was accepted has to end.
        let Ok(receipt) = answers.remove(0) else { continue };
        jobs.push(receipt.job);
        assert_eq!(state(&handle, receipt.job).await, JobState::Succeeded);
        done.fetch_add(1, Ordering::Relaxed);
    }
    jobs
}

/// How a job is once it has ended.
async fn state(handle: &NodeHandle, job: JobId) -> JobState {
    let began = Instant::now();
    loop {
        let request = Request::Job { job, wait: Some(Duration::from_secs(10)) };
        if let Ok(Response::Job(view)) = handle.request(request).await
            && view.state.is_terminal()
        {
            return view.state;
        }
        assert!(began.elapsed() < PATIENCE, "job {job} does not end");
    }
}

/// What this process has in memory, in bytes.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kilobytes.unwrap_or(0_u64) << 10
}

/// Lets the work go on for so long; how many jobs have ended, and the most memory that was in use.
async fn measure(done: &AtomicU64, time: Duration) -> (u64, u64) {
    let (before, began, mut most) = (done.load(Ordering::Relaxed), Instant::now(), 0);
    while began.elapsed() < time {
        tokio::time::sleep(Duration::from_millis(50)).await;
        most = most.max(memory());
    }
    (done.load(Ordering::Relaxed) - before, most)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_nonsense_loses_no_job_and_leaves_the_work_its_share() {
    let seconds = std::env::var("CARBONMESH_FLOOD_SECONDS").ok();
    let seconds: u64 = seconds.map_or(2, |text| text.parse().expect("CARBONMESH_FLOOD_SECONDS"));
    let time = Duration::from_secs(seconds);
    let folder = tempfile::tempdir().unwrap();
    let first = node(folder.path(), "a", &[]).await;
    let at = first.listening()[0].clone();
    let others = [
        node(folder.path(), "b", std::slice::from_ref(&at)).await,
        node(folder.path(), "c", std::slice::from_ref(&at)).await,
    ];
    let document = r#"{ "name": "p", "phases": [{ "name": "step" }] }"#;
    let definition =
        PipelineDocument::from_json(document.as_bytes()).unwrap().definition().unwrap();
    let began = Instant::now();
    loop {
        let request = Request::Apply(Box::new(definition.clone()));
        match first.handle().request(request).await.unwrap() {
            Response::Applied { copies: 3, .. } => break,
            other => assert!(began.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let (done, end) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(client(others[0].handle().clone(), done.clone(), end.clone()));
    }
    measure(&done, Duration::from_millis(500)).await;
    let (calm, before) = measure(&done, time).await;

    // Both at the node that all found first; it is a replica, and runs a third of the work.
    let target = timeout(PATIENCE, who_is(&at)).await.expect("it answers");
    let (strange, inside, entered) = (Offered::default(), Offered::default(), Offered::default());
    let mut flood = JoinSet::new();
    // The member comes first: behind the stranger's connections it may wait at the gate for as long as this lasts.
    flood.spawn(malicious(target, at.clone(), inside.clone(), entered.clone()));
    let is_inside = async {
        while entered.0.load(Ordering::Relaxed) == 0 {
            tokio::time::sleep(TICK).await;
        }
    };
    timeout(PATIENCE, is_inside).await.expect("the member comes inside");
    flood.spawn(stranger(at, strange.clone()));
    let (flooded, during) = measure(&done, time).await;
    assert!(flood.try_join_next().is_none(), "the flood goes on to the end");
    flood.shutdown().await;
    end.cancel();

    let mut jobs = Vec::new();
    while let Some(ended) = clients.join_next().await {
        jobs.extend(ended.unwrap());
    }
    let kept = 100 * flooded / calm.max(1);
    println!(
        "{seconds} s each: {calm} jobs without a flood, {flooded} ({kept} %) with {} frames of a stranger and {} \
         of a member, {} of which came through the gate; memory {} MiB before, {} MiB at most then",
        strange.0.load(Ordering::Relaxed),
        inside.0.load(Ordering::Relaxed),
        entered.0.load(Ordering::Relaxed),
        before >> 20,
        during >> 20,
    );
    assert!(calm > 0 && flooded > 0, "{calm}, {flooded}");
    // Each is there and done, as another node tells.
    let (accepted, mut lost) = (jobs.len(), 0);
    for job in jobs {
        lost += u64::from(state(others[1].handle(), job).await != JobState::Succeeded);
    }
    println!(
        "flood: {lost} of {accepted} jobs lost (bound: 0), {kept} % of the quiet throughput kept (bound: \
         {KEPT_PERCENT} % from {LONG_S} s on), {} MiB of memory beyond the quiet time's (bound: {} MiB)",
        during.saturating_sub(before) >> 20,
        MEMORY_BYTES >> 20,
    );
    assert_eq!(lost, 0, "of {accepted} jobs");
    assert!(during.saturating_sub(before) < MEMORY_BYTES, "{before} bytes, then {during}");
    if seconds >= LONG_S {
        assert!(kept >= KEPT_PERCENT, "the work kept {kept} % only");
    }
    first.stop().await.unwrap();
    for other in others {
        other.stop().await.unwrap();
    }
}
