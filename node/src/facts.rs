//! What a node finds out about itself and its way to others: clock, disk, limits, folder, and whom
//! it reaches. `carbonmesh doctor` judges it; here nothing is judged.
//!
//! ```text
//! asking node ── stream ──► other node
//!             ◄── a line: its clock ── at once: half the way there and back is what it is off by
//!             ◄── a line: its facts ── after it has tried to reach the members that it knows
//! ```
//! A connection says only that one side reached the other. So each node tries to open a plain TCP
//! connection to where each member says that it listens, and says how that went.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use carbonmesh_protocol::{
    id::NodeId,
    io::{Request, Response},
    view::{ClusterView, Liveness},
};
use carbonmesh_storage::free_bytes;
use futures::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, StreamExt, io::BufReader};
use libp2p::{Multiaddr, PeerId, StreamProtocol, multiaddr::Protocol};
use libp2p_stream::IncomingStreams;
use nix::sys::{
    resource::{Resource, getrlimit},
    statvfs::statvfs,
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tokio_util::sync::CancellationToken;
use utoipa::ToSchema;

use crate::{
    clock,
    handle::NodeHandle,
    net::{Streams, node_id_of},
    trust::Trust,
};

/// The stream on which a node is asked for its facts.
pub(crate) const FACTS: StreamProtocol = StreamProtocol::new("/carbonmesh/1/facts");

/// How long one address is tried.
const REACH_TIMEOUT: Duration = Duration::from_secs(2);

/// How many members are tried, and how many at once.
const REACHED: usize = 256;
const REACHED_AT_ONCE: usize = 16;

/// How many addresses of one member are tried.
const ADDRESSES: usize = 4;

/// How long a peer may take for its first line, and for all of its answer.
const CLOCK_TIMEOUT: Duration = Duration::from_secs(3);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);

/// The longest answer that is read, in bytes.
const ANSWER_BYTES: u64 = 1 << 20;

/// How many answers are given at once: more who ask wait.
const ANSWERS_AT_ONCE: usize = 2;

/// What a node says of itself. Later releases may say more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Facts {
    /// The node: 32 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Its program's version.
    pub version: String,
    /// When it started (RFC 3339).
    #[schema(format = DateTime)]
    pub started_at: String,
    /// How often its folder was started.
    pub boot: u64,
    /// Where its folder is.
    #[schema(value_type = String)]
    pub data_dir: PathBuf,
    /// Why the folder counts as a new disk since this start, if it does.
    pub amnesia: Option<String>,
    /// Whether the folder is encrypted at rest.
    #[serde(default)]
    pub encrypted: bool,
    /// Free bytes on the folder's disk.
    pub free_bytes: u64,
    /// All bytes of that disk.
    pub disk_bytes: u64,
    /// Below so many free bytes it takes no jobs.
    pub least_free_bytes: u64,
    /// How many files it has open.
    pub open_files: u64,
    /// How many it may have open.
    pub open_files_limit: u64,
    /// Where it listens for others.
    pub listen: Vec<String>,
    /// Whether it had to take another port than the usual one, which nobody chose.
    pub port_was_taken: bool,
    /// Where it serves HTTP.
    pub http: String,
    /// Whether it has a cluster secret; without one it keeps to its machine.
    pub has_secret: bool,
    /// Whom it reaches.
    pub reach: Vec<Reach>,
}

/// A node's way to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Reach {
    /// The other: 32 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Whether they are connected, whoever began that.
    pub connected: bool,
    /// How it went to open a connection to where the other listens: by address.
    pub tried: Vec<Tried>,
}

/// An address that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Tried {
    /// Where.
    pub address: String,
    /// Why it did not work; nothing if it did.
    pub error: Option<String>,
}

/// What is found of a node by asking another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FactsOf {
    /// The node: 32 hexadecimal digits.
    pub id: String,
    /// How far its clock is ahead of the asking node's, in ms.
    pub clock_ahead_ms: Option<i64>,
    /// How far that may be wrong, in ms.
    pub clock_within_ms: Option<u64>,
    /// What it says.
    pub facts: Option<Facts>,
    /// Why there is nothing of it, if so.
    pub error: Option<String>,
}

/// What a node knows of itself from its start on.
#[derive(Clone, Debug)]
pub(crate) struct Here {
    pub(crate) handle: NodeHandle,
    pub(crate) name: String,
    pub(crate) started_at: String,
    pub(crate) boot: u64,
    pub(crate) data_dir: PathBuf,
    pub(crate) amnesia: Option<String>,
    pub(crate) encrypted: bool,
    pub(crate) least_free_bytes: u64,
    pub(crate) listen: Vec<String>,
    pub(crate) port_was_taken: bool,
    pub(crate) http: String,
    pub(crate) has_secret: bool,
}

/// A node's clock, as the first line of an answer.
#[derive(Serialize, Deserialize)]
struct Clock {
    unix_ms: u64,
}

impl Here {
    /// All facts, as they are now.
    pub(crate) async fn facts(&self) -> Facts {
        let (free, all) = space(&self.data_dir);
        Facts {
            id: format!("{:#}", self.handle.node()),
            name: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.started_at.clone(),
            boot: self.boot,
            data_dir: self.data_dir.clone(),
            amnesia: self.amnesia.clone(),
            encrypted: self.encrypted,
            free_bytes: free,
            disk_bytes: all,
            least_free_bytes: self.least_free_bytes,
            open_files: fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64),
            open_files_limit: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft),
            listen: self.listen.clone(),
            port_was_taken: self.port_was_taken,
            http: self.http.clone(),
            has_secret: self.has_secret,
            reach: self.reach().await,
        }
    }

    async fn reach(&self) -> Vec<Reach> {
        let Ok(Response::Cluster(view)) = self.handle.request(Request::Cluster).await else {
            return Vec::new();
        };
        let tries = others(&view).map(|(id, name, connected, addresses)| async move {
            let tried = futures::stream::iter(addresses).then(try_address).collect().await;
            Reach { id: format!("{id:#}"), name, connected, tried }
        });
        let tries: Vec<_> = tries.take(REACHED).collect();
        futures::stream::iter(tries).buffered(REACHED_AT_ONCE).collect().await
    }
}

/// The members but this one that are not retired: who, whether connected, and where they listen.
fn others(view: &ClusterView) -> impl Iterator<Item = (NodeId, String, bool, Vec<String>)> {
    let own = view.node;
    let there = view
        .members
        .iter()
        .filter(move |member| member.node != own && member.liveness != Liveness::Retired);
    there.map(|member| {
        let connected = member.liveness == Liveness::Alive;
        let addresses = member.addresses.iter().take(ADDRESSES).cloned().collect();
        (member.node, member.name.clone(), connected, addresses)
    })
}

async fn try_address(address: String) -> Tried {
    let Some(target) = target(&address) else {
        let error = Some("it is no address that TCP can reach".to_owned());
        return Tried { address, error };
    };
    let opened = match target {
        Target::Ip(socket) => timeout(REACH_TIMEOUT, TcpStream::connect(socket)).await,
        Target::Name(host, port) => timeout(REACH_TIMEOUT, TcpStream::connect((host, port))).await,
    };
    let error = match opened {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer within {} s", REACH_TIMEOUT.as_secs())),
    };
    Tried { address, error }
}

#[derive(Debug, PartialEq, Eq)]
enum Target {
    Ip(SocketAddr),
    Name(String, u16),
}

fn target(address: &str) -> Option<Target> {
    let address: Multiaddr = address.parse().ok()?;
    let mut parts = address.iter();
    let (host, port) = (parts.next()?, parts.next()?);
    let Protocol::Tcp(port) = port else { return None };
    match host {
        Protocol::Ip4(ip) => Some(Target::Ip(SocketAddr::new(ip.into(), port))),
        Protocol::Ip6(ip) => Some(Target::Ip(SocketAddr::new(ip.into(), port))),
        Protocol::Dns(host) | Protocol::Dns4(host) | Protocol::Dns6(host) => {
            Some(Target::Name(host.into_owned(), port))
        }
        _ => None,
    }
}

/// Free and all bytes of a folder's disk; zero if it is gone.
fn space(path: &std::path::Path) -> (u64, u64) {
    let all = statvfs(path).map_or(0, |disk| disk.blocks() * disk.fragment_size());
    (free_bytes(path).unwrap_or_default(), all)
}

/// Answers whoever of the cluster asks, until cancelled.
///
/// With certificates, only those who serve clients are told: what a node can reach is not for all.
pub(crate) async fn answer(
    here: Here,
    trust: Option<Trust>,
    mut asked: IncomingStreams,
    cancel: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(ANSWERS_AT_ONCE));
    loop {
        let (peer, stream) = tokio::select! {
            () = cancel.cancelled() => return,
            next = asked.next() => match next {
                Some(next) => next,
                None => return,
            },
        };
        let may_know = trust.as_ref().is_none_or(|trust| {
            let rights = node_id_of(&peer).and_then(|node| trust.rights_of(node));
            rights.is_some_and(|rights| rights.serve_clients())
        });
        if !may_know {
            tracing::debug!(%peer, "a peer asked for facts that are not for it");
            continue;
        }
        // Those for whom there is no place wait with their streams open; libp2p bounds these.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let here = here.clone();
        tokio::spawn(async move {
            let _place = place;
            match timeout(ANSWER_TIMEOUT, answer_one(&here, stream)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%peer, %error, "facts were not told"),
                Err(_) => tracing::debug!(%peer, "a peer is too slow to be told facts"),
            }
        });
    }
}

async fn answer_one(here: &Here, mut stream: libp2p::Stream) -> std::io::Result<()> {
    // Whoever opens a stream has to say something before the other side hears of it.
    let mut word = [0; 1];
    stream.read_exact(&mut word).await?;
    for line in [
        serde_json::to_string(&Clock { unix_ms: clock::unix_ms() })?,
        serde_json::to_string(&here.facts().await)?,
    ] {
        stream.write_all(line.as_bytes()).await?;
        stream.write_all(b"\n").await?;
        stream.flush().await?;
    }
    stream.close().await
}

/// Asks the peers that are connected.
#[derive(Clone, Debug)]
pub(crate) struct FactsOfOthers(pub(crate) Streams);

impl FactsOfOthers {
    /// What each of the others says, asked at once.
    pub(crate) async fn ask_all(&self) -> Vec<FactsOf> {
        let peers: BTreeMap<NodeId, PeerId> =
            self.0.peers().iter().filter_map(|it| Some((node_id_of(it)?, *it))).collect();
        let asked = peers.into_iter().take(REACHED).map(|(node, peer)| self.ask(node, peer));
        let asked: Vec<_> = asked.collect();
        futures::stream::iter(asked).buffered(REACHED_AT_ONCE).collect().await
    }

    async fn ask(&self, node: NodeId, peer: PeerId) -> FactsOf {
        let mut found = FactsOf {
            id: format!("{node:#}"),
            clock_ahead_ms: None,
            clock_within_ms: None,
            facts: None,
            error: None,
        };
        let asked = timeout(ANSWER_TIMEOUT, self.read(peer, &mut found)).await;
        found.error = match asked {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error),
            Err(_) => Some(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        };
        found
    }

    async fn read(&self, peer: PeerId, found: &mut FactsOf) -> Result<(), String> {
        let opened = self.0.open(peer, FACTS).await;
        let mut stream = opened
            .map_err(|error| format!("it does not tell, as older releases do not: {error}"))?;
        let failed = |error: std::io::Error| error.to_string();
        // Behind the opening, which may take turns of its own.
        let (asked, asked_ms) = (Instant::now(), clock::unix_ms());
        stream.write_all(b"?").await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let mut lines = BufReader::new(stream.take(ANSWER_BYTES));
        let mut line = String::new();
        let first = timeout(CLOCK_TIMEOUT, lines.read_line(&mut line)).await;
        first.map_err(|_| "it is silent".to_owned())?.map_err(failed)?;
        let there: Clock = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        let half_ms = i64::try_from(asked.elapsed().as_millis()).unwrap_or(i64::MAX) / 2;
        let signed = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
        let ahead = signed(there.unix_ms).saturating_sub(signed(asked_ms).saturating_add(half_ms));
        found.clock_ahead_ms = Some(ahead);
        found.clock_within_ms = Some(half_ms.unsigned_abs() + 1);
        line.clear();
        lines.read_line(&mut line).await.map_err(failed)?;
        found.facts = Some(serde_json::from_str(&line).map_err(|error| error.to_string())?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_tcp() {
        let ip = |text: &str| Some(Target::Ip(text.parse().unwrap()));
        assert_eq!(target("/ip4/10.0.0.7/tcp/7401"), ip("10.0.0.7:7401"));
        assert_eq!(target("/ip6/::1/tcp/7401"), ip("[::1]:7401"));
        assert_eq!(target("/dns/oak/tcp/7401"), Some(Target::Name("oak".to_owned(), 7401)));
        assert_eq!(target("/ip4/10.0.0.7/udp/7401"), None);
        assert_eq!(target("nonsense"), None);
    }

    #[tokio::test]
    async fn an_address_is_tried() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = |port: u16| format!("/ip4/127.0.0.1/tcp/{port}");
        let port = listener.local_addr().unwrap().port();
        assert_eq!(try_address(address(port)).await.error, None);
        drop(listener);
        assert!(try_address(address(port)).await.error.is_some());
    }
}
