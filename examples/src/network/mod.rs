//! A network within namespaces: one for each node, and a bridge in the program's own between them.
//!
//! What a node sends to another is cut by giving it a wrong hardware address for that other: the
//! frames leave and reach nobody, as on a broken cable, and the sender is told nothing. That needs no
//! packet filter, and works one way.

mod isolation;
mod link;
mod relay;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::PathBuf,
};

use self::link::Link;
pub use self::{
    isolation::{can_isolate, start_again},
    relay::Relay,
    wire::{Counts, Quality},
};
use crate::{api::Error, shell::run};

/// Where TAP devices are made.
const DEVICES: &str = "/dev/net/tun";

/// Whether this user can make links bad here.
pub fn can_worsen() -> bool {
    File::options().read(true).write(true).open(DEVICES).is_ok()
}

/// What nodes there share: without a secret they would keep to loopback.
pub const SECRET: &str = "correct horse battery";

/// Nobody has it.
const NOBODY: &str = "02:00:00:00:00:ff";

/// The port that nodes listen on.
const PORT: u16 = 7401;

/// The namespaces, links and addresses of some nodes.
#[derive(Debug)]
pub struct Network {
    /// How often each node has changed its address.
    moves: Vec<u8>,
    cuts: BTreeSet<(usize, usize)>,
    /// The bad links, by the node whose they are.
    bad: BTreeMap<usize, Link>,
}

impl Network {
    /// Makes it; all of it goes with the namespaces that this process is in.
    ///
    /// # Errors
    /// A tool of the system fails.
    pub fn new(nodes: usize) -> Result<Self, Error> {
        run("mount -t tmpfs none /run")?;
        run("ip link set lo up")?;
        run("ip link add br0 type bridge")?;
        run("ip link set br0 up")?;
        for node in 0..nodes {
            run(&format!("ip netns add n{node}"))?;
            run(&format!("ip link add v{node} type veth peer name eth0 netns n{node}"))?;
            run(&format!("ip link set v{node} master br0 up"))?;
            run(&format!("ip -n n{node} link set lo up"))?;
            run(&format!("ip -n n{node} link set eth0 up"))?;
        }
        let (cuts, bad) = (BTreeSet::new(), BTreeMap::new());
        let network = Self { moves: vec![0; nodes], cuts, bad };
        for node in 0..nodes {
            run(&format!("ip -n n{node} addr add {}/16 dev eth0", network.address(node)))?;
        }
        Ok(network)
    }

    fn address(&self, node: usize) -> String {
        format!("10.88.{}.{}", self.moves[node], 10 + node)
    }

    /// Where a node listens.
    pub fn listen(&self, node: usize) -> String {
        format!("{}:{PORT}", self.address(node))
    }

    /// The namespace that a node runs in.
    pub fn namespace(node: usize) -> PathBuf {
        PathBuf::from(format!("/run/netns/n{node}"))
    }

    /// Gives a node another address; it must be started again.
    ///
    /// # Errors
    /// A tool of the system fails.
    pub fn readdress(&mut self, node: usize) -> Result<(), Error> {
        let old = self.address(node);
        self.moves[node] = self.moves[node].wrapping_add(1);
        run(&format!("ip -n n{node} addr del {old}/16 dev eth0"))?;
        run(&format!("ip -n n{node} addr add {}/16 dev eth0", self.address(node)))?;
        // Who did not reach it there does not reach it here.
        let cut = self.cuts.iter().filter(|(_, to)| *to == node);
        for (from, to) in cut.copied().collect::<Vec<_>>() {
            run(&format!("ip -n n{from} neigh del {old} dev eth0"))?;
            self.cut(from, to)?;
        }
        Ok(())
    }

    /// Nothing that `from` sends reaches `to` any more.
    ///
    /// # Errors
    /// A tool of the system fails.
    pub fn cut(&mut self, from: usize, to: usize) -> Result<(), Error> {
        let to_address = self.address(to);
        self.cuts.insert((from, to));
        run(&format!(
            "ip -n n{from} neigh replace {to_address} lladdr {NOBODY} dev eth0 nud permanent"
        ))
    }

    /// Makes the link of a node a bad one: first for what it sends, then for what it gets.
    ///
    /// # Errors
    /// This user may make no TAP devices.
    pub fn worsen(&mut self, node: usize, qualities: [Quality; 2], seed: u64) -> Result<(), Error> {
        let names = [format!("a{node}"), format!("b{node}")];
        let link = Link::start(names, qualities, seed)?;
        run(&format!("ip link add s{node} type bridge"))?;
        run(&format!("ip link set s{node} up"))?;
        run(&format!("ip link set a{node} master s{node}"))?;
        run(&format!("ip link set b{node} master br0"))?;
        run(&format!("ip link set v{node} master s{node}"))?;
        self.bad.insert(node, link);
        Ok(())
    }

    /// All links are whole and good again; what became of the frames on bad ones, by node.
    ///
    /// # Errors
    /// A tool of the system fails.
    pub fn heal(&mut self) -> Result<Vec<(usize, Counts)>, Error> {
        for (from, to) in std::mem::take(&mut self.cuts) {
            run(&format!("ip -n n{from} neigh del {} dev eth0", self.address(to)))?;
        }
        let mut counts = Vec::new();
        for (node, link) in std::mem::take(&mut self.bad) {
            run(&format!("ip link set v{node} master br0"))?;
            counts.push((node, link.stop()?));
            run(&format!("ip link del s{node}"))?;
        }
        Ok(counts)
    }

    /// Nobody hears anybody.
    ///
    /// # Errors
    /// A tool of the system fails.
    pub fn isolate_all(&mut self) -> Result<(), Error> {
        let nodes = self.moves.len();
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| *to != from) {
                self.cut(from, to)?;
            }
        }
        Ok(())
    }
}
