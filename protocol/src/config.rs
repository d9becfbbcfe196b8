//! What the core is told when a node starts: who it is, what it does, its timing and its limits.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    advert::Roles,
    id::{DiskId, NodeId},
    name::Name,
};

/// One node's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who it is.
    pub node: NodeId,
    /// Its data folder.
    pub disk: DiskId,
    /// How often that folder was started; must be on disk before the core is made.
    pub boot: u64,
    /// Its name for people.
    pub name: String,
    /// The program's version.
    pub version: String,
    /// What it does.
    pub roles: Roles,
    /// The phases that it runs, each with its slots.
    pub phases: Vec<(Name, u32)>,
    /// What its operator says of it.
    pub labels: BTreeMap<String, String>,
    /// How fast it reacts.
    pub timing: Timing,
    /// How much it takes.
    pub limits: Limits,
}

/// How fast a node reacts. Every node of a cluster should have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often leases are renewed and views exchanged. Default 1 s.
    pub beat: Duration,
    /// How long a lease holds without renewal: several beats, so that one lost frame does no harm.
    /// Default 3 s.
    pub lease: Duration,
    /// How long a worker whose connection broke has to come back before its attempts are given to
    /// others. Shorter than `lease`. Default 1 s.
    pub reconnect_grace: Duration,
    /// How long a replica may keep the others waiting before it is put out of the in-sync set.
    /// Default 500 ms.
    pub ack_timeout: Duration,
    /// The step between candidates of neighbouring rank. Default 100 ms.
    pub election_step: Duration,
    /// How long a candidate that finds no majority waits before those who are there decide alone.
    /// Default 1 s.
    pub minority_wait: Duration,
    /// How long a node that has just started looks for the others before it decides without them.
    /// Default 10 s.
    pub start_wait: Duration,
    /// How long a request is tried before its outcome is called unknown. Default 5 s.
    pub request_timeout: Duration,
    /// How long a worker that answers may keep an attempt beyond twice its time-out before that is given
    /// to another. Default 60 s.
    pub overdue: Duration,
    /// How often a node that holds live jobs of a pipeline compares them with its coordinator's.
    /// Default 10 s.
    pub anti_entropy: Duration,
    /// How long a member must be away before its place is given to another. Default 10 min.
    pub replace_after: Duration,
    /// How long it is kept in mind that a job was forgotten: for so long no copy that comes back
    /// can run it again, and its idempotency key stays taken. Default 7 days.
    pub tombstones: Duration,
}

impl Timing {
    /// The defaults, for a local network.
    pub const DEFAULT: Self = Self {
        beat: Duration::from_millis(1000),
        lease: Duration::from_millis(3000),
        reconnect_grace: Duration::from_millis(1000),
        ack_timeout: Duration::from_millis(500),
        election_step: Duration::from_millis(100),
        minority_wait: Duration::from_millis(1000),
        start_wait: Duration::from_millis(10_000),
        request_timeout: Duration::from_millis(5000),
        overdue: Duration::from_secs(60),
        anti_entropy: Duration::from_millis(10_000),
        replace_after: Duration::from_secs(600),
        tombstones: Duration::from_secs(7 * 24 * 3600),
    };
}

impl Default for Timing {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// How much a node takes; at a limit the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest job, in bytes of its instructions. Default 1 MiB.
    pub job_bytes: usize,
    /// The largest result of a phase, in bytes. Default 1 MiB.
    pub result_bytes: usize,
    /// The most that the results of one job's phases may have together, in bytes, since they go to
    /// the phases behind them in one message. Default 16 MiB.
    pub job_results_bytes: usize,
    /// The most that an attempt may leave in its session, in bytes of JSON. It counts among the results
    /// of its job as well. Default 1 MiB.
    pub session_bytes: usize,
    /// How many keys that may have. Default 1,024.
    pub session_keys: usize,
    /// How many unfinished jobs of one pipeline a replica keeps. Default 10,000,000.
    pub waiting_jobs: u64,
    /// How many bytes of memory the unfinished jobs of one node may take together. Default 1 GiB.
    pub waiting_bytes: usize,
    /// How many bytes of memory they may take before those that only wait are kept on disk, and no
    /// more of them in memory than some 100 bytes each. Default 64 MiB.
    pub resident_bytes: usize,
    /// How many bytes of changes of unfinished jobs are written together before each of these jobs has rows
    /// of its own. Default 2 MiB.
    pub journal_bytes: usize,
    /// How many jobs are written together as unfinished ones before each is listed by itself, if it still
    /// is one. A start looks for each of them. Default 65,536.
    pub journal_jobs: usize,
    /// How many pipelines there may be. Default 1,000.
    pub pipelines: usize,
    /// How many requests may wait in a node. Default 10,000.
    pub requests: usize,
    /// How many events of one pipeline its coordinator keeps, and a node of the cluster; 0 keeps
    /// none. Default 16,384.
    pub events: usize,
    /// How many bytes of memory the events and log lines may take that a node keeps for all
    /// pipelines that it coordinates together. Default 64 MiB.
    pub event_bytes: usize,
}

impl Limits {
    /// The defaults.
    pub const DEFAULT: Self = Self {
        job_bytes: 1 << 20,
        result_bytes: 1 << 20,
        job_results_bytes: 16 << 20,
        session_bytes: 1 << 20,
        session_keys: 1024,
        waiting_jobs: 10_000_000,
        waiting_bytes: 1 << 30,
        resident_bytes: 64 << 20,
        journal_bytes: 2 << 20,
        journal_jobs: 65_536,
        pipelines: 1000,
        requests: 10_000,
        events: 16_384,
        event_bytes: 64 << 20,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
