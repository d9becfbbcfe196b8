//! How each kind of fault is done to a node, and taken back.
//!
//! Links are broken in `links`; `again` is about nodes that come back.

mod again;
mod links;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    thread,
    time::Duration,
};

use carbonmesh_examples::{
    api::Error,
    network::{Counts, can_worsen},
};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::{clock::now_ms, cluster::Cluster, fault::Kind, history::Fault, node::Node};

/// How long a node goes on after its folder was copied, so that the copy is an old one.
const COPY_AGE: Duration = Duration::from_secs(4);

/// The exit code of a node whose disk fails it.
const DISK_FAILED: i32 = 5;

/// Where Debian puts the library that makes a process see another time.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";

/// Does faults, and remembers what they may lead to.
#[derive(Debug)]
pub(crate) struct Faults {
    faketime: Option<PathBuf>,
    /// Nodes that may find later that their disk was tampered with.
    tampered: BTreeSet<usize>,
    /// The disks that nodes had before something was done to them.
    disks: BTreeMap<usize, String>,
    /// What became of frames on bad links, by node: two faults of the network end together.
    carried: BTreeMap<usize, Counts>,
}

/// A fault that goes on.
#[derive(Debug)]
pub(crate) struct Active {
    pub(crate) node: usize,
    pub(crate) fault: Fault,
    /// What a node did in answer that none may do.
    pub(crate) offence: Option<String>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        let folders = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
        let faketime =
            folders.map(|folder| folder.path().join(FAKETIME)).find(|path| path.exists());
        let (disks, carried) = (BTreeMap::new(), BTreeMap::new());
        Self { faketime, tampered: BTreeSet::new(), disks, carried }
    }

    /// Whether this machine has what the fault takes.
    pub(crate) fn can(&self, kind: Kind) -> bool {
        if kind == Kind::Clock && self.faketime.is_none() {
            println!("No clock jumps: there is no libfaketime (apt-get install libfaketime).");
            return false;
        }
        if kind.worsens() && !can_worsen() {
            println!("No {kind} links: this user cannot open /dev/net/tun here.");
            return false;
        }
        true
    }

    pub(crate) fn begin(
        &mut self,
        cluster: &mut Cluster,
        rng: &mut ChaCha8Rng,
        kind: Kind,
        node: usize,
    ) -> Result<Active, Error> {
        if kind.destroys() {
            let disk = cluster.disk_id(node).ok_or("a node does not tell its disk")?;
            self.disks.insert(node, disk);
        }
        let mut fault = Fault {
            kind,
            nodes: vec![cluster.nodes[node].name.clone()],
            of_coordinator: cluster.coordinator() == Some(node),
            from_ms: now_ms(),
            until_ms: 0,
            destroyed: kind.destroys(),
            converged_ms: None,
            note: String::new(),
        };
        match kind {
            Kind::Pause => cluster.nodes[node].pause()?,
            Kind::Partition | Kind::OneWay | Kind::Slow | Kind::Lossy => {
                let names = cluster.names();
                let network = cluster.network.as_mut().ok_or("there is no network to break")?;
                let hit = links::separate(network, rng, kind, node, names.len(), &mut fault.note)?;
                fault.nodes = hit.into_iter().map(|node| names[node].clone()).collect();
            }
            Kind::DiskFull => {
                self.tampered.insert(node);
                cluster.nodes[node].disk.fill()?;
                if rng.random_bool(0.4) {
                    cluster.nodes[node].kill()?;
                    cluster.try_start(node)?;
                }
            }
            Kind::Outage => {
                fault.nodes = cluster.names();
                cluster.nodes.iter_mut().try_for_each(Node::kill)?;
            }
            _ => fault.note = self.begin_stopped(cluster, rng, kind, node)?,
        }
        Ok(Active { node, fault, offence: None })
    }

    /// Faults for which the node has to be down.
    fn begin_stopped(
        &mut self,
        cluster: &mut Cluster,
        rng: &mut ChaCha8Rng,
        kind: Kind,
        node: usize,
    ) -> Result<String, Error> {
        cluster.nodes[node].kill()?;
        let mut note = String::new();
        match kind {
            Kind::Kill if rng.random_bool(0.5) => cluster.nodes[node].disk.take_copy()?,
            Kind::Wipe => cluster.nodes[node].disk.wipe()?,
            Kind::Restore => {
                if !cluster.nodes[node].disk.has_copy() {
                    cluster.nodes[node].disk.take_copy()?;
                    cluster.bring_up(node)?;
                    thread::sleep(COPY_AGE);
                    cluster.nodes[node].kill()?;
                }
                cluster.nodes[node].disk.restore()?;
            }
            Kind::Flip => {
                self.tampered.insert(node);
                let bits = rng.random_range(1..6);
                note = cluster.nodes[node].disk.flip(rng, bits)?;
            }
            Kind::Readdress => note = format!("now at {}", cluster.readdress(node)?),
            Kind::Clock => {
                let hours = rng.random_range(1..48) * if rng.random_bool(0.5) { 1 } else { -1 };
                note = format!("{hours:+} hours");
                self.jump(cluster, node, hours)?;
            }
            _ => {}
        }
        Ok(note)
    }

    /// Starts a node with the right time, which then jumps.
    fn jump(&self, cluster: &mut Cluster, node: usize, hours: i64) -> Result<(), Error> {
        let library = self.faketime.as_ref().ok_or("there is no libfaketime")?;
        let clock = cluster.nodes[node].disk.data().with_file_name("clock");
        fs::write(&clock, "+0\n")?;
        cluster.nodes[node].env = vec![
            ("LD_PRELOAD".to_owned(), library.to_string_lossy().into_owned()),
            ("FAKETIME_TIMESTAMP_FILE".to_owned(), clock.to_string_lossy().into_owned()),
            ("FAKETIME_CACHE_DURATION".to_owned(), "1".to_owned()),
            // What counts elapsed time does not jump when somebody sets the clock.
            ("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()),
        ];
        let started = cluster.bring_up(node);
        cluster.nodes[node].env.clear();
        started?;
        thread::sleep(Duration::from_secs(1));
        Ok(fs::write(&clock, format!("{hours:+}h\n"))?)
    }

    pub(crate) fn end(
        &mut self,
        cluster: &mut Cluster,
        mut active: Active,
    ) -> Result<Active, Error> {
        let node = active.node;
        match active.fault.kind {
            Kind::Pause => cluster.nodes[node].resume()?,
            Kind::Partition | Kind::OneWay | Kind::Slow | Kind::Lossy => {
                let network = cluster.network.as_mut().ok_or("there is no network to heal")?;
                self.carried.extend(network.heal()?);
                if let Some(counts) =
                    self.carried.remove(&node).filter(|_| active.fault.kind.worsens())
                {
                    active.fault.note += &format!(": {counts}");
                }
            }
            Kind::DiskFull => {
                cluster.nodes[node].disk.unfill()?;
                let status = cluster.nodes[node].exited()?;
                if status.is_some_and(|status| status.code() != Some(DISK_FAILED)) {
                    let log = cluster.nodes[node].log();
                    active.offence =
                        Some(format!("a full disk: {status:?}: {}", again::last(&log)));
                }
                active.fault.note = "it went on".to_owned();
                if !cluster.nodes[node].is_running() {
                    active.fault.note =
                        format!("it stopped ({})", again::last(&cluster.nodes[node].log()));
                    cluster.bring_up(node)?;
                }
            }
            Kind::Outage => {
                (0..cluster.nodes.len()).try_for_each(|node| cluster.bring_up(node))?;
            }
            Kind::Clock => {
                let clock = cluster.nodes[node].disk.data().with_file_name("clock");
                fs::write(clock, "+0\n")?;
            }
            _ => self.start_again(cluster, &mut active)?,
        }
        active.fault.until_ms = now_ms();
        Ok(active)
    }
}
