//! One node: its process, its clocks and its disk.
//!
//! A crash loses what was not synced, but for some first part of it. A disk can also be lost whole,
//! lose the end of its log, be put back from an older copy, or have a record that cannot be read:
//! the node's shell notices all that, and starts with a new disk id, as it must.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Disk, Event, World, clients::ITEM_STEP, name, step_name};
use crate::{Options, invariants::Fact, random::Random};
use carbonmesh_protocol::{
    config::{Config, Limits, Timing},
    core::Core,
    id::{DiskId, NodeId, PipelineId},
    io::{Input, PersistId},
    mutant::Mutant,
    store::{ReadError, Write},
    time::Timestamp,
};

/// How many writes of a thousand a full disk refuses.
const REFUSED_PER_MILLE: u32 = 100;

/// The wall clock when a world begins.
pub(crate) const WALL_START_MS: u64 = 1_700_000_000_000;

/// See the [module](self).
pub(crate) struct Node {
    pub(crate) core: Option<Core>,
    pub(crate) config: Config,
    pub(crate) disk: Disk,
    /// A copy of the disk as it once was.
    pub(super) backup: Disk,
    /// Writes that are not synced yet.
    pub(super) unsynced: VecDeque<(PersistId, Vec<Write>)>,
    /// Counts its processes.
    pub(crate) life: u64,
    /// The latest version of messages that its release knows.
    pub(crate) reads: u8,
    /// The process that was told to make way for another release.
    pub(super) replaced: u64,
    /// Whether its disk has no room.
    pub(super) full: bool,
    /// Whether it has left for good.
    pub(crate) gone: bool,
    clock: Clock,
    pub(super) paused_until: Timestamp,
    /// Which session it sees with each peer.
    pub(super) sessions: BTreeMap<usize, u64>,
    pub(super) sync_at: Timestamp,
    /// When its core wants to be called, in the world's time.
    pub(super) due: Option<Timestamp>,
}

/// A node's own time: begins anywhere, and may run too fast or too slow.
#[derive(Clone, Copy, Debug)]
struct Clock {
    offset_ms: u64,
    drift_ppm: i64,
    /// How wrong its wall clock is.
    wall_error_ms: i64,
}

impl Clock {
    fn new(options: &Options, random: &mut Random) -> Self {
        let drift = (random.next() % (2 * options.drift_ppm + 1)) as i64;
        let wall = random.next() % 120_000;
        Self {
            offset_ms: random.next() % 1_000_000_000,
            drift_ppm: drift - options.drift_ppm as i64,
            wall_error_ms: if options.jump_every_ms > 0 { wall as i64 - 60_000 } else { 0 },
        }
    }

    fn local(self, world: Timestamp) -> Timestamp {
        let ms = world.as_millis() as i64;
        let local = ms + ms * self.drift_ppm / 1_000_000 + self.offset_ms as i64;
        Timestamp::from_millis(local as u64)
    }

    /// The first moment of the world at which the clock shows at least `local`.
    fn world(self, local: Timestamp) -> Timestamp {
        let ms = local.as_millis().saturating_sub(self.offset_ms) as i64;
        let about = (ms as i128 * 1_000_000 / i128::from(1_000_000 + self.drift_ppm)) as i64;
        let at = |ms: i64| Timestamp::from_millis(ms.max(0) as u64);
        let first = (about - 2..=about + 2).find(|ms| self.local(at(*ms)) >= local);
        at(first.unwrap_or(about + 3))
    }

    fn unix_ms(self, world: Timestamp) -> u64 {
        (WALL_START_MS + world.as_millis()).saturating_add_signed(self.wall_error_ms)
    }
}

impl Node {
    /// Which copy of a pipeline's jobs it keeps: on which disk, and how often they were taken off that.
    pub(crate) fn copy(&self, pipeline: PipelineId) -> (DiskId, u32) {
        (self.config.disk, self.disk.emptied(pipeline))
    }

    pub(super) fn new(index: usize, options: &Options, random: &mut Random) -> Self {
        let roles = options.roles[index];
        let steps = (0..options.phases).map(step_name).chain([ITEM_STEP.to_owned()]);
        let phases = steps.map(|step| (name(&step), options.slots));
        let timing = Timing {
            replace_after: Duration::from_millis(options.replace_after_ms),
            tombstones: Duration::from_millis(options.tombstones_ms),
            overdue: Duration::from_secs(2),
            ..Timing::DEFAULT
        };
        let config = Config {
            node: NodeId::of_public_key(&(index as u32).to_le_bytes()),
            disk: DiskId(index as u64 + 1),
            boot: 0,
            name: format!("n{index}"),
            version: "simulated".to_owned(),
            roles,
            phases: if roles.worker { phases.collect() } else { Vec::new() },
            labels: BTreeMap::new(),
            timing,
            limits: Limits {
                resident_bytes: options.resident_bytes,
                journal_bytes: options.journal.0,
                journal_jobs: options.journal.1,
                ..Limits::DEFAULT
            },
        };
        Self {
            core: None,
            config,
            disk: Disk::default(),
            backup: Disk::default(),
            unsynced: VecDeque::new(),
            life: 0,
            reads: options.reads_at_first,
            replaced: u64::MAX,
            full: false,
            gone: false,
            clock: Clock::new(options, random),
            paused_until: Timestamp::default(),
            sessions: BTreeMap::new(),
            sync_at: Timestamp::default(),
            due: None,
        }
    }

    /// Its own time at a moment.
    pub(super) fn local(&self, world: Timestamp) -> Timestamp {
        self.clock.local(world)
    }

    /// A clock that stands still with its process, as if nothing had been.
    pub(super) fn stop_clock(&mut self, time: Duration) {
        let offset_ms = self.clock.offset_ms;
        self.clock.offset_ms = offset_ms.saturating_sub(time.as_millis() as u64);
    }

    /// When its core wants to be called next.
    pub(super) fn next_due(&self) -> Option<Timestamp> {
        let local = self.core.as_ref()?.poll_timeout()?;
        Some(self.clock.world(local).max(self.paused_until))
    }
}

impl World {
    pub(super) fn start(&mut self, at: usize) {
        self.note(at, "start");
        let seed = self.random.next();
        let (now, world_now) = (self.local(at), self.now);
        let counts = !self.is_mutated(Mutant::BootReused) || self.nodes[at].config.boot == 0;
        let node = &mut self.nodes[at];
        node.life += 1;
        node.config.boot += u64::from(counts);
        node.sync_at = world_now;
        let reader = Box::new(node.disk.reader());
        let unix_ms = node.clock.unix_ms(world_now);
        let core = match Core::new(node.config.clone(), seed, now, unix_ms, reader) {
            Ok(core) => core,
            Err(error) => {
                self.set_disk_aside(at, &error);
                return self.start(at);
            }
        };
        node.core = Some(core);
        #[cfg(feature = "mutants")]
        if let Some(core) = &mut node.core {
            core.mutate(self.options.mutant);
        }
        let (disk, boot) = (node.config.disk, node.config.boot);
        self.tell(Fact::Up { at, disk, boot });
        if self.nodes[at].full {
            self.tell_room(at);
        }
        self.drain(at);
        self.reschedule(at);
    }

    /// What a node found unreadable ends it; its operator sets the disk aside and starts it anew.
    pub(super) fn on_read_error(&mut self, at: usize, error: &ReadError) {
        self.crash(at);
        self.set_disk_aside(at, error);
        let after = self.random.between(100, 2000);
        self.push(after, Event::Restart(at));
    }

    fn set_disk_aside(&mut self, at: usize, error: &ReadError) {
        assert!(self.nodes[at].disk.is_damaged(), "the disk can be read: {error}");
        self.replace_disk(at, Disk::default(), false);
    }

    /// A process is gone; of what waited for its disk, some first part may have got there.
    pub(super) fn crash(&mut self, at: usize) {
        if self.nodes[at].core.take().is_none() {
            return;
        }
        self.note(at, "crash");
        let kept = self.random.below(self.nodes[at].unsynced.len() + 1);
        let node = &mut self.nodes[at];
        node.life += 1;
        for (_, writes) in node.unsynced.drain(..).take(kept) {
            node.disk.write(&writes);
        }
        node.unsynced.clear();
        node.sessions.clear();
        node.paused_until = self.now;
        self.reschedule(at);
        self.tell(Fact::Crashed { at });
        for peer in self.network.peers_of(at) {
            let notice = self.random.between(0, 100);
            self.cut(at, peer, notice);
        }
    }

    /// The disk of a node that does not run is replaced: by an empty one, or by an older copy.
    pub(super) fn replace_disk(&mut self, at: usize, disk: Disk, restored: bool) {
        self.note(at, "disk replaced");
        let fresh = DiskId(self.random.next());
        let unnoticed = restored && self.is_mutated(Mutant::RestoredDiskUnnoticed);
        let node = &mut self.nodes[at];
        node.disk = disk;
        if unnoticed {
            return;
        }
        let old = std::mem::replace(&mut node.config.disk, fresh);
        self.tell(Fact::DiskReplaced { at, old, new: fresh, restored });
    }

    pub(super) fn persist(&mut self, at: usize, id: PersistId, writes: Vec<Write>) {
        let sync = match writes.is_empty() {
            true => Duration::ZERO,
            false => self.random.between(0, self.options.sync_ms),
        };
        let node = &mut self.nodes[at];
        let done = node.sync_at.max(self.now) + sync;
        node.sync_at = done;
        node.unsynced.push_back((id, writes));
        let life = node.life;
        self.push_at(done, Event::Synced { at, life, id });
    }

    pub(super) fn synced(&mut self, at: usize, life: u64, id: PersistId) {
        let node = &mut self.nodes[at];
        if node.life != life {
            return;
        }
        // A full disk takes little things for a while. What it refuses ends the node.
        if node.full && self.random.per_mille(REFUSED_PER_MILLE) {
            self.nodes[at].unsynced.clear();
            self.crash(at);
            let after = self.random.between(100, 6000);
            return self.push(after, Event::Restart(at));
        }
        let node = &mut self.nodes[at];
        let Some((_, writes)) = node.unsynced.pop_front().filter(|(first, _)| *first == id) else {
            return;
        };
        node.disk.write(&writes);
        self.note(at, "synced");
        self.input(at, Input::Persisted(id));
    }

    /// Whether the shell has a bug.
    pub(super) fn is_mutated(&self, _mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        return self.options.mutant == Some(_mutant);
        #[cfg(not(feature = "mutants"))]
        false
    }

    /// A wall clock is set to another time.
    pub(super) fn set_wall_clock(&mut self, at: usize, error_ms: i64) {
        let (now, world_now) = (self.local(at), self.now);
        let node = &mut self.nodes[at];
        node.clock.wall_error_ms = error_ms;
        let unix_ms = node.clock.unix_ms(world_now);
        if let Some(core) = &mut node.core {
            core.set_wall_clock(now, unix_ms);
        }
    }
}
