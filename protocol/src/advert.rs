//! What a node says about itself to the whole cluster: a hint, never a promise.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    codec::{Encoded, Kind},
    id::{DiskId, NodeId, PipelineId, Term},
    name::Name,
};

/// Which parts a node plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roles {
    /// Runs phases.
    pub worker: bool,
    /// Keeps jobs and may coordinate.
    pub replica: bool,
    /// Accepts jobs from clients.
    pub gateway: bool,
}

impl Roles {
    /// Every part: what a node plays unless told otherwise.
    pub const ALL: Self = Self { worker: true, replica: true, gateway: true };
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = [(self.worker, "worker"), (self.replica, "replica"), (self.gateway, "gateway")];
        let names: Vec<&str> =
            named.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        f.write_str(&names.join(","))
    }
}

/// A phase that a worker offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseSlots {
    /// Which.
    pub phase: Name,
    /// How many attempts of it may run there at once.
    pub slots: u32,
    /// How many run.
    pub busy: u32,
}

/// A node's view of itself, newest by `(boot, sequence)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advert {
    /// Who.
    pub node: NodeId,
    /// Which data folder.
    pub disk: DiskId,
    /// How often that folder was started.
    pub boot: u64,
    /// Grows with each change within a boot.
    pub sequence: u64,
    /// A name for people; need not be unique.
    pub name: String,
    /// The version of the program.
    pub version: String,
    /// What it does.
    pub roles: Roles,
    /// What it runs.
    pub phases: Vec<PhaseSlots>,
    /// What its operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Where it listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// What it coordinates.
    pub coordinates: Vec<(PipelineId, Term)>,
    /// A digest of the pipelines that it knows.
    pub catalog: u64,
    /// Why it takes no jobs at present, if so.
    pub refusing: Option<String>,
}

impl Encoded for Advert {
    const KIND: Kind = 0x01;
}
