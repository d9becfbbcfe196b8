//! Nodes that are far from each other: each in a namespace of its own, with a delay between them.
//!
//! All that a node sends to another is under way for so long; clients are near.

use std::ffi::OsStr;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::{
    api::Error,
    local::Place,
    network::{Network, Quality, can_isolate, can_worsen, start_again},
};

/// As many as a benchmark has nodes, unless it says otherwise.
const NODES: usize = 3;

/// A network of three nodes.
#[derive(Debug)]
pub struct Far {
    network: Network,
}

impl Far {
    /// Makes it, once in a process, which must be isolated.
    ///
    /// # Errors
    /// Something that it takes is missing.
    pub fn new(delay_ms: u64) -> Result<Self, Error> {
        // Each connection of a client takes three descriptors: its own, and two of a relay.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
        let mut network = Network::new(NODES)?;
        let away = Quality { delay_ms, ..Quality::default() };
        for node in 0..NODES {
            // On the way out alone, so that each frame waits once.
            network.worsen(node, [away, Quality::default()], node as u64)?;
        }
        Ok(Self { network })
    }

    /// Where a node runs.
    pub(super) fn place(&self, node: usize) -> Result<Place, Error> {
        if node >= NODES {
            return Err(format!("there is room for {NODES} nodes far from each other").into());
        }
        let listen = self.network.listen(node);
        Ok(Place { namespace: Network::namespace(node), listen })
    }
}

/// Starts this program again with one argument more, isolated; its exit code.
///
/// # Errors
/// That is not possible here.
pub fn isolate(argument: &str) -> Result<u8, Error> {
    if !can_isolate() || !can_worsen() {
        return Err(
            "a delay between nodes takes namespaces, `ip` (iproute2) and /dev/net/tun, which \
                    this user does not have here: run it as root, or leave --delay out"
                .into(),
        );
    }
    start_again(true, &[OsStr::new(argument)])
}
