//! What trust costs: the checks that each frame and each message passes on its way in and out, an
//! admission, and which share all of it has in the work of a cluster with certificates (W3).
//!
//! All times are CPU times: what else the machine does counts for little. It is a measurement, which `make
//! cost` runs alone: beside other tests theirs would be counted as the cluster's.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use carbonmesh_protocol::{
    codec,
    io::{NewJob, Request, Response},
    message::Message,
    rights::Rights,
};
use clap::Parser;
use futures::{AsyncRead, AsyncReadExt, AsyncWriteExt, io::BufReader};
use libp2p::{
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    identity::Keypair,
    noise,
};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use tokio::{runtime::Runtime, task::JoinSet};
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::{
    gate::Gate,
    lane::lane,
    link::{BUFFER_BYTES, read_frame},
    tests::advert,
    *,
};
use crate::{
    config::UpArgs,
    document::PipelineDocument,
    node::Node,
    phase::{Fields, Phase, PhaseContext, PhaseError, PhaseRegistry},
    trust::{
        Invitation,
        tests::{Member, Operator, key_of},
    },
};

/// How many jobs the cluster does, if `CARBONMESH_COST_JOBS` does not say; some more beforehand, which warm
/// connections and caches.
const JOBS: usize = 30_000;
const WARM: usize = 300;

/// How many of them are enqueued at once, as in the benchmark.
const BULK: usize = 100;

/// What trust may take of the cluster's CPU time, in percent.
const MOST_PERCENT: f64 = 3.0;

/// Of so many rounds the median counts.
const ROUNDS: usize = 9;

/// How long the cluster may take to be there, and to go on.
const PATIENCE: Duration = Duration::from_secs(120);

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

fn cpu(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("a clock").into()
}

/// This thread's CPU time for one of `calls` calls, in ns.
fn cost_of(calls: u32, mut call: impl FnMut()) -> f64 {
    let mut rounds = [0.0; ROUNDS];
    for round in &mut rounds {
        let began = cpu(ClockId::CLOCK_THREAD_CPUTIME_ID);
        (0..calls).for_each(|_| call());
        let took = cpu(ClockId::CLOCK_THREAD_CPUTIME_ID) - began;
        *round = took.as_nanos() as f64 / f64::from(calls);
    }
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

async fn node(folder: &Path, name: &str, invitation: &Invitation, peers: &[Multiaddr]) -> Node {
    let join = folder.join(format!("{name}.join"));
    crate::trust::write_private(&join, invitation.to_string().as_bytes()).unwrap();
    let mut args = ["up", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--name", name]
        .map(str::to_owned)
        .to_vec();
    args.extend(["--join-file".to_owned(), join.display().to_string()]);
    args.extend(["--data-dir".to_owned(), folder.join(name).display().to_string()]);
    args.extend(peers.iter().flat_map(|peer| ["--peer".to_owned(), peer.to_string()]));
    let line = Line::try_parse_from(args).unwrap();
    let phases = PhaseRegistry::default().with("step", 32, Step);
    Box::pin(Node::start(line.args.resolve(&phases).unwrap())).await.unwrap()
}

async fn get(node: &Node, path: &str) -> String {
    let url = format!("http://{}{path}", node.http_address());
    let answer = reqwest::get(url).await.expect("it answers");
    answer.error_for_status().expect("success").text().await.expect("text")
}

async fn enqueue(node: &Node, jobs: usize) {
    let job = NewJob {
        key: None,
        options: Default::default(),
        trace: None,
        instructions: Bytes::from_static(b"{\"n\":1}"),
    };
    let mut bulks = JoinSet::new();
    for _ in 0..jobs / BULK {
        let (handle, jobs) = (node.handle().clone(), vec![job.clone(); BULK]);
        let request = Request::Enqueue { pipeline: "p".parse().unwrap(), jobs };
        bulks.spawn(async move { handle.request(request).await });
    }
    while let Some(answer) = bulks.join_next().await {
        let Response::Enqueued(answers) = answer.unwrap().unwrap() else { panic!("not enqueued") };
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    }
}

async fn await_succeeded(node: &Node, jobs: usize) {
    let began = Instant::now();
    loop {
        let view: Value = serde_json::from_str(&get(node, "/v1/pipelines/p").await).unwrap();
        if view["counts"]["succeeded"].as_u64() >= Some(jobs as u64) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{} of {jobs} jobs", view["counts"]);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What all nodes have counted and used.
#[derive(Clone, Copy, Debug)]
struct Used {
    frames: f64,
    bytes: f64,
    messages: f64,
    adverts: f64,
    connections: f64,
    cpu_ns: f64,
}

impl Used {
    async fn so_far(nodes: &[Node]) -> Self {
        let cpu_ns = cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID).as_nanos() as f64;
        let mut sums = BTreeMap::new();
        for node in nodes {
            for line in get(node, "/metrics").await.lines() {
                let Some((name, value)) = line.split_once(' ') else { continue };
                let name = name.split('{').next().unwrap_or_default().to_owned();
                *sums.entry(name).or_insert(0.0) += value.parse().unwrap_or(0.0);
            }
        }
        // What has a label is not told of before it was counted.
        let sum =
            |name: &str| sums.get(&format!("carbonmesh_{name}_total")).copied().unwrap_or(0.0);
        Self {
            frames: sum("stream_frames_received"),
            bytes: sum("stream_received_bytes"),
            messages: sum("stream_messages_received"),
            adverts: sum("gossip_adverts"),
            // Both ends count it.
            connections: sum("network_connections_opened") / 2.0,
            cpu_ns,
        }
    }

    /// What came after `before`; of the connections all, which are made but once.
    fn since(self, before: Self) -> Self {
        Self {
            frames: self.frames - before.frames,
            bytes: self.bytes - before.bytes,
            messages: self.messages - before.messages,
            adverts: self.adverts - before.adverts,
            connections: self.connections,
            cpu_ns: self.cpu_ns - before.cpu_ns,
        }
    }
}

/// Jobs of three phases, which do nothing, on three nodes with certificates.
async fn work(jobs: usize) -> Used {
    let (folder, operator) = (tempfile::tempdir().unwrap(), Operator::new());
    let invitation = operator.invite(Rights::ALL, 1, false);
    let first = node(folder.path(), "a", &invitation, &[]).await;
    let at = [first.listening()[0].clone()];
    let (second, third) = (
        node(folder.path(), "b", &invitation, &at).await,
        node(folder.path(), "c", &invitation, &at).await,
    );
    let nodes = [first, second, third];
    let steps = ["x", "y", "z"].map(|name| format!(r#"{{"name":"{name}","phase":"step"}}"#));
    let document = format!(r#"{{"name":"p","phases":[{}]}}"#, steps.join(","));
    let definition =
        PipelineDocument::from_json(document.as_bytes()).unwrap().definition().unwrap();
    let began = Instant::now();
    loop {
        let request = Request::Apply(Box::new(definition.clone()));
        match nodes[0].handle().request(request).await.unwrap() {
            Response::Applied { copies: 3, .. } => break,
            other => assert!(began.elapsed() < PATIENCE, "{other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    enqueue(&nodes[1], WARM).await;
    await_succeeded(&nodes[0], WARM).await;
    let before = Used::so_far(&nodes).await;
    enqueue(&nodes[1], jobs).await;
    await_succeeded(&nodes[0], WARM + jobs).await;
    let used = Used::so_far(&nodes).await.since(before);
    for node in nodes {
        node.stop().await.unwrap();
    }
    used
}

/// One frame again and again; each is waited for.
struct Frames {
    frame: Vec<u8>,
    at: usize,
    waited: bool,
}

impl Frames {
    fn of(bytes: usize) -> BufReader<Self> {
        let frame = [&(bytes as u32).to_le_bytes()[..], &vec![7; bytes]].concat();
        BufReader::with_capacity(BUFFER_BYTES, Self { frame, at: 0, waited: false })
    }
}

impl AsyncRead for Frames {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.at == 0 && !self.waited {
            self.waited = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let count = into.len().min(self.frame.len() - self.at);
        into[..count].copy_from_slice(&self.frame[self.at..][..count]);
        self.at = (self.at + count) % self.frame.len();
        self.waited = self.at != 0;
        Poll::Ready(Ok(count))
    }
}

/// What the limits add for one frame: of its size and the peer's silence on its way in, of what waits for
/// a peer on its way out. In ns.
fn limits(runtime: &Runtime, bytes: usize) -> (f64, f64) {
    const FRAMES: u32 = 5000;
    let each = f64::from(FRAMES);
    let mut frames = Frames::of(bytes);
    let checked = cost_of(1, || {
        runtime.block_on(async {
            for _ in 0..FRAMES {
                assert_eq!(read_frame(&mut frames).await.unwrap().len(), bytes);
            }
        });
    });
    let mut frames = Frames::of(bytes);
    let bare = cost_of(1, || {
        runtime.block_on(async {
            for _ in 0..FRAMES {
                let mut length = [0; 4];
                frames.read_exact(&mut length).await.unwrap();
                let mut frame = vec![0; u32::from_le_bytes(length) as usize];
                frames.read_exact(&mut frame).await.unwrap();
                assert_eq!(Bytes::from(frame).len(), bytes);
            }
        });
    });
    let (frame, (lane, mut outbox)) = (Bytes::from(vec![7; bytes]), lane());
    let counted = cost_of(FRAMES, || {
        lane.send(frame.clone());
        let taken = outbox.frames.try_recv().unwrap();
        outbox.taken(taken.len());
    });
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let uncounted = cost_of(FRAMES, || {
        sender.send(frame.clone()).unwrap();
        assert_eq!(receiver.try_recv().unwrap().len(), bytes);
    });
    ((checked - bare).max(0.0) / each, (counted - uncounted).max(0.0))
}

/// Two members' gates, who dials first.
fn gates(members: &[Member; 2]) -> [(noise::Config, Gate); 2] {
    members.each_ref().map(|member| {
        let noise = noise::Config::new(&member.keypair).expect("noise");
        let local = member.keypair.public().to_peer_id();
        let gate = Gate::new(noise.clone(), local, &member.trust.cluster(), None);
        (noise, gate.with_trust(Some(member.trust.clone())))
    })
}

/// Makes a secure connection of the one or the other kind, both ends of which are here.
async fn connect<U, O, E>(asks: U, opens: U) -> [O; 2]
where
    U: InboundConnectionUpgrade<Pipe, Info = &'static str, Output = (PeerId, O), Error = E>
        + OutboundConnectionUpgrade<Pipe, Info = &'static str, Output = (PeerId, O), Error = E>,
    E: fmt::Debug,
{
    let (near, far) = tokio::io::duplex(BUFFER_BYTES);
    let (asked, opened) = futures::join!(
        asks.upgrade_outbound(near.compat(), ""),
        opens.upgrade_inbound(far.compat(), ""),
    );
    [asked.expect("connected").1, opened.expect("connected").1]
}

type Pipe = tokio_util::compat::Compat<tokio::io::DuplexStream>;

/// Both ends' cost of an admission, in ns: Noise and the gate, and Noise alone; and of what Noise seals and
/// opens, for each byte.
fn admission(runtime: &Runtime, members: &[Member; 2]) -> (f64, f64, f64) {
    const MIB: usize = 1 << 20;
    let [(asks_noise, asks), (opens_noise, opens)] = gates(members);
    let whole = cost_of(100, || drop(runtime.block_on(connect(asks.clone(), opens.clone()))));
    let noise = cost_of(100, || {
        drop(runtime.block_on(connect(asks_noise.clone(), opens_noise.clone())));
    });
    let [mut from, mut to] = runtime.block_on(connect(asks, opens));
    let (sent, mut received) = (vec![7; MIB], vec![0; MIB]);
    let sealed = cost_of(4, || {
        runtime.block_on(async {
            let sending = async {
                from.write_all(&sent).await.unwrap();
                from.flush().await.unwrap();
            };
            let receiving = async { to.read_exact(&mut received).await.unwrap() };
            futures::join!(sending, receiving)
        });
    });
    (whole, noise, sealed / MIB as f64)
}

/// Checking an advert that came by gossip, in ns.
fn gossip() -> f64 {
    let author = Keypair::generate_ed25519();
    let node = node_id_of(&author.public().to_peer_id()).unwrap();
    let advert = codec::encode(&advert(node, 1));
    let signature = author.sign(&advert).unwrap();
    cost_of(200, || assert!(author.public().verify(&advert, &signature)))
}

#[test]
#[ignore = "a measurement, which `make cost` runs alone"]
fn trust_takes_a_small_share_of_the_work() {
    let jobs = std::env::var("CARBONMESH_COST_JOBS").ok();
    let jobs = jobs.map_or(JOBS, |text| text.parse().expect("CARBONMESH_COST_JOBS"));
    let jobs = jobs.max(BULK) / BULK * BULK;
    let used = tokio::runtime::Runtime::new().unwrap().block_on(work(jobs));
    let (each, runtime) = (jobs as f64, tokio::runtime::Builder::new_current_thread());
    let runtime = { runtime }.enable_time().build().unwrap();
    let (frames, messages) = (used.frames / each, used.messages / each);
    let cpu_ns = used.cpu_ns / each;
    assert!(frames > 0.0 && messages >= frames && used.connections >= 3.0, "{used:?}");

    let operator = Operator::new();
    let phases = ["step", "other", "third"].map(|name| name.parse().unwrap());
    let rights = Rights { phases: Some(phases.into()), ..Rights::ALL };
    let invitation = operator.invite(rights, 1, false);
    let members = [Member::join(&invitation), Member::join(&invitation)];
    let (admitted, noise, sealed) = admission(&runtime, &members);
    let [here, there] = &members;
    let (key, chain) = (key_of(&there.keypair), there.trust.chain());
    let chain = cost_of(200, || here.trust.admit(key, &chain).unwrap());
    let peer = key.id();
    let looked_at = cost_of(20_000, || assert_eq!(here.trust.unfit(peer), None));

    // Of all that a worker says often, this takes most.
    let windows = vec![("step".parse().unwrap(), 32), ("other".parse().unwrap(), 32)];
    let (mut grant, rights) = (Message::Grant { windows }, here.trust.rights_of(peer).unwrap());
    let admit = cost_of(20_000, || rights.admit(&mut grant).unwrap());
    let look_up = cost_of(20_000, || assert!(here.trust.rights_of(peer).is_some()));
    let (limit_in, limit_out) = limits(&runtime, (used.bytes / used.frames) as usize);
    let advert = gossip();

    let per_job = frames * (look_up + limit_in + limit_out)
        + messages * admit
        + used.adverts / each * advert
        + used.connections / each * admitted;
    let percent = 100.0 * per_job / cpu_ns;
    println!(
        "{jobs} jobs of W3 on three nodes, each job: {:.0} µs of CPU, {frames:.2} frames, {messages:.1} messages, \
         {:.0} bytes between nodes",
        cpu_ns / 1000.0,
        used.bytes / each,
    );
    println!("a message: may its sender send it     {admit:8.0} ns");
    println!("a frame:   what its sender may        {look_up:8.0} ns");
    println!("           size, silence (in)         {limit_in:8.0} ns");
    println!("           what waits (out)           {limit_out:8.0} ns");
    println!("an advert: its signature              {advert:8.0} ns");
    println!(
        "an admission, both sides together     {admitted:8.0} ns, {noise:.0} of them for Noise"
    );
    println!("           one side's look at a chain {chain:8.0} ns");
    println!("a peer's certificate, every 2 s       {looked_at:8.0} ns");
    println!(
        "trust: {percent:.2} % of the CPU time of W3 (bound: {MOST_PERCENT} %), {per_job:.0} ns a job; {:.0} \
         connections and {:.0} adverts are in it",
        used.connections, used.adverts,
    );
    println!(
        "beside: Noise seals and opens what goes between nodes, with certificates or without, {:.1} % more",
        100.0 * sealed * used.bytes / used.cpu_ns,
    );
    assert!(percent < MOST_PERCENT, "{percent:.2} %");
}
