//! What kind of world a seed makes: drawn whole, so that rare mixtures come up too; and the ways to
//! make one simpler, to see which of its faults a failure needs.

use std::time::Duration;

use carbonmesh_protocol::{
    advert::Roles,
    pipeline::{Quorum, Rate},
};

use crate::random::Random;

/// A world's parameters. Times are virtual milliseconds; a mean time of zero means never.
#[derive(Clone, Debug)]
pub struct Options {
    /// What all of it comes from.
    pub seed: u64,
    /// Each node's parts.
    pub roles: Vec<Roles>,
    /// How many of the nodes, the last ones, come while the others are at work.
    pub joiners: usize,
    /// Whether one node leaves for good.
    pub leaver: bool,
    /// Whether it goes without being told to, from one moment to the next.
    pub vanishes: bool,
    /// How long a member is away before its place is given to another.
    pub replace_after_ms: u64,
    /// How many copies an acknowledgement needs, and how many must back who dispatches.
    pub quorums: (Quorum, Quorum),
    /// Into how many partitions the pipeline is split.
    pub partitions: u16,
    /// Whether it is split while it is at work already.
    pub split_later: bool,
    /// How many phases the pipeline has.
    pub phases: usize,
    /// What jobs take of a node's memory before those that only wait are on disk alone.
    pub resident_bytes: usize,
    /// How many bytes of changes, and how many new jobs, a journal has before they get rows of their own.
    pub journal: (usize, usize),
    /// Attempts of one phase that a worker runs at once.
    pub slots: u32,
    /// How many requests clients make.
    pub requests: usize,
    /// How long faults go on.
    pub faults_ms: u64,
    /// Whether messages go through the codec, as over a wire.
    pub wire: bool,
    /// Whether the trace takes in whole what cores do: slow, and exact.
    pub traced: bool,
    /// How many jobs of a thousand carry a component that only a newer release knows.
    pub newer_per_mille: u32,
    /// The latest version of messages that the release knows with which nodes begin.
    pub reads_at_first: u8,
    /// Mean time between two nodes that get this release instead.
    pub upgrade_every_ms: u64,

    /// The longest way of a message.
    pub delay_ms: u64,
    /// How many links of a thousand are ten times as slow.
    pub slow_links_per_mille: u32,
    /// How many messages of a thousand are lost, though their connection lives.
    pub lost_per_mille: u32,
    /// How many of a thousand come twice.
    pub repeated_per_mille: u32,
    /// How many of a thousand are overtaken by later ones.
    pub overtaken_per_mille: u32,
    /// How many of a thousand take up to seconds, and hold up all behind them.
    pub stuck_per_mille: u32,
    /// Mean time between cut connections.
    pub cut_every_ms: u64,
    /// Mean time between partitions.
    pub partition_every_ms: u64,
    /// Mean time between links that carry one way only.
    pub one_way_every_ms: u64,

    /// How many rounds of a thousand take in more than one input.
    pub rounds_per_mille: u32,
    /// Mean time between crashes.
    pub crash_every_ms: u64,
    /// How many crashes of a thousand take the disk with them: all of it, the end of its log, or
    /// everything since some copy.
    pub disk_losses_per_mille: u32,
    /// How long a process is away or stands still at most; partitions last somewhat longer.
    pub away_ms: u64,
    /// Mean time between pauses of a process.
    pub pause_every_ms: u64,
    /// The longest sync.
    pub sync_ms: u64,
    /// Mean time between disks that hang.
    pub stall_every_ms: u64,
    /// Mean time between disks that are full.
    pub full_every_ms: u64,
    /// Mean time between records that become unreadable.
    pub damage_every_ms: u64,
    /// How much faster or slower clocks may run, in millionths.
    pub drift_ppm: u64,
    /// Mean time between jumps of a wall clock.
    pub jump_every_ms: u64,

    /// The longest attempt, as a rule.
    pub attempt_ms: u64,
    /// How many attempts of a thousand fail.
    pub failures_per_mille: u32,
    /// How many of a thousand take half a minute.
    pub hangs_per_mille: u32,
    /// Whether phases have time-outs, to which workers do not keep.
    pub timed: bool,
    /// How many workers of a thousand cancellations end the attempt.
    pub cancels_per_mille: u32,

    /// How long finished jobs are kept; 0 for longer than a world lasts.
    pub keep_ms: u64,
    /// How long it is kept in mind that a job was forgotten.
    pub tombstones_ms: u64,
    /// Whether the second phase waits for a signal.
    pub signals: bool,
    /// Whether the first of three phases gives items, with each of which the second does something.
    pub items: bool,
    /// Whether phases are undone where their job fails.
    pub undone: bool,
    /// How many attempts of the first phase may begin in a second; 0 for any number.
    pub rate: u32,
    /// Whether only one attempt of the first phase may run for each key.
    pub keyed: bool,
    /// Whether a job is enqueued every five seconds by the pipeline itself.
    pub cron: bool,
    /// How many jobs of a thousand are to begin later, or to end by a deadline.
    pub dated_per_mille: u32,
    /// How many jobs of a thousand clients cancel, try again or discard.
    pub changes_per_mille: u32,

    /// A bug in every core.
    #[cfg(feature = "mutants")]
    pub mutant: Option<carbonmesh_protocol::mutant::Mutant>,
}

/// The longest absence in worlds with long ones.
const LONG_MS: u64 = 60_000;

/// How much a journal holds, in bytes of changes and in new jobs: as by default, little, nothing.
const JOURNALS: [(usize, usize); 5] =
    [(2 << 20, 65_536), (600, 4), (200, 65_536), (2 << 20, 1), (0, 0)];

/// A way to make a world simpler: its name, and what it does.
pub type Simplification = (&'static str, fn(&mut Options));

/// What the shrinker tries, and `replay --without` takes.
pub const SIMPLIFICATIONS: &[Simplification] = &[
    ("joiners", |it| it.joiners = 0),
    ("leaver", |it| it.leaver = false),
    ("newer-components", |it| it.newer_per_mille = 0),
    ("upgrade", |it| (it.reads_at_first, it.upgrade_every_ms) = (u8::MAX, 0)),
    ("slow-links", |it| it.slow_links_per_mille = 0),
    ("lost-messages", |it| it.lost_per_mille = 0),
    ("repeated-messages", |it| it.repeated_per_mille = 0),
    ("overtaken-messages", |it| it.overtaken_per_mille = 0),
    ("stuck-messages", |it| it.stuck_per_mille = 0),
    ("cuts", |it| it.cut_every_ms = 0),
    ("partitions", |it| it.partition_every_ms = 0),
    ("one-way-links", |it| it.one_way_every_ms = 0),
    ("rounds", |it| it.rounds_per_mille = 0),
    ("crashes", |it| it.crash_every_ms = 0),
    ("disk-losses", |it| it.disk_losses_per_mille = 0),
    ("pauses", |it| it.pause_every_ms = 0),
    ("stalls", |it| it.stall_every_ms = 0),
    ("full-disks", |it| it.full_every_ms = 0),
    ("damage", |it| it.damage_every_ms = 0),
    ("drift", |it| it.drift_ppm = 0),
    ("jumps", |it| it.jump_every_ms = 0),
    ("failures", |it| it.failures_per_mille = 0),
    ("hangs", |it| it.hangs_per_mille = 0),
    ("time-outs", |it| it.timed = false),
    ("cancels", |it| it.cancels_per_mille = 0),
    ("retention", |it| it.keep_ms = 0),
    ("signals", |it| it.signals = false),
    ("items", |it| it.items = false),
    ("compensation", |it| it.undone = false),
    ("rates", |it| it.rate = 0),
    ("keys", |it| it.keyed = false),
    ("cron", |it| it.cron = false),
    ("dates", |it| it.dated_per_mille = 0),
    ("changes", |it| it.changes_per_mille = 0),
    ("journal", |it| it.journal = (0, 0)),
    ("half-the-requests", |it| it.requests = it.requests.div_ceil(2)),
    ("long-absences", |it| it.away_ms = it.away_ms.min(6000)),
    ("half-the-time", |it| it.faults_ms /= 2),
    ("slow-syncs", |it| it.sync_ms = 1),
    ("long-ways", |it| it.delay_ms = 2),
    ("later-phases", |it| it.phases = 1),
    ("one-partition", |it| it.partitions = 1),
    ("later-split", |it| it.split_later = false),
];

impl Options {
    /// The world of a seed.
    pub fn from_seed(seed: u64) -> Self {
        Self::of_size(seed, None)
    }

    /// The world of a seed, with so many nodes in the place of those that it draws.
    pub fn of_size(seed: u64, nodes: Option<usize>) -> Self {
        let mut random = Random::new(seed);
        let drawn = match random.below(20) {
            0 => 1 + random.below(2),
            1 => 6 + random.below(5),
            _ => 3 + random.below(3),
        };
        let count = nodes.unwrap_or(drawn);
        let roles = (0..count).map(|index| match index {
            // Somebody must be able to keep and to run.
            0 => Roles::ALL,
            1 => Roles { replica: true, worker: random.per_mille(700), gateway: true },
            _ => Roles {
                worker: random.per_mille(700),
                replica: random.per_mille(700),
                gateway: true,
            },
        });
        let roles = roles.collect();
        // Each kind of fault is left out of most worlds, so that what hides behind others shows.
        let mut rarely = |mean: u64| match random.below(3) {
            0 | 1 => 0,
            _ => mean + random.next() % mean,
        };
        let (crash_every_ms, cut_every_ms) = (rarely(6000), rarely(3000));
        let (partition_every_ms, pause_every_ms) = (rarely(12_000), rarely(9000));
        let (one_way_every_ms, stall_every_ms) = (rarely(12_000), rarely(12_000));
        let (full_every_ms, damage_every_ms) = (rarely(15_000), rarely(30_000));
        let jump_every_ms = rarely(10_000);
        let leaver = count > 3 && random.below(4) == 0;
        let mut one_of = |choices: &[u32]| choices[random.below(choices.len())];
        let quorums = match one_of(&[0, 0, 0, 0, 0, 1, 1, 1, 2, 3]) {
            0 => (Quorum::Any, Quorum::Any),
            1 => (Quorum::Majority, Quorum::Majority),
            2 => (Quorum::Any, Quorum::Majority),
            _ => (Quorum::Majority, Quorum::Any),
        };
        let delay_ms = one_of(&[2, 20, 150]).into();
        // A lease cannot be held over a link that takes about as long both ways.
        let patient = quorums.1 == Quorum::Any || delay_ms < 100;
        // Drawn by itself, so that other worlds stay what they were.
        let mut apart = Random::new(!seed.rotate_left(32));
        let (reads_at_first, upgrade_every_ms) = match apart.below(4) {
            0 => (1 + apart.below(2) as u8, [4000, 12_000][apart.below(2)]),
            _ => (u8::MAX, 0),
        };
        // Longer than a member's place is kept for it, and about as long as marks are kept.
        let away_ms = if apart.below(5) == 0 { LONG_MS } else { 6000 };
        let vanishes = apart.below(2) == 0;
        Self {
            seed,
            roles,
            joiners: one_of(&[0, 0, 1, 2]).min(count.saturating_sub(3) as u32) as usize,
            leaver,
            vanishes,
            // Where one leaves for good, the time until its place is given away is part of the run.
            replace_after_ms: if leaver { 15_000 } else { one_of(&[600_000, 15_000]).into() },
            quorums,
            partitions: 1,
            split_later: false,
            phases: one_of(&[1, 2, 3]) as usize,
            slots: one_of(&[1, 2, 3, 4]),
            requests: one_of(&[10, 30, 60]) as usize,
            faults_ms: 54_000 + away_ms + u64::from(one_of(&[0, 5000, 20_000])),
            away_ms,
            wire: one_of(&[0, 0, 0, 1]) == 1,
            traced: false,
            newer_per_mille: one_of(&[0, 0, 0, 300]),
            reads_at_first,
            upgrade_every_ms,
            delay_ms,
            slow_links_per_mille: if patient { one_of(&[0, 0, 200]) } else { 0 },
            lost_per_mille: one_of(&[0, 0, 2, 30]),
            repeated_per_mille: one_of(&[0, 0, 5, 50]),
            overtaken_per_mille: one_of(&[0, 0, 5, 50]),
            stuck_per_mille: one_of(&[0, 0, 2]),
            cut_every_ms,
            partition_every_ms,
            one_way_every_ms,
            rounds_per_mille: one_of(&[0, 300, 900]),
            crash_every_ms,
            disk_losses_per_mille: one_of(&[0, 0, 300]),
            pause_every_ms,
            sync_ms: one_of(&[1, 10, 100]).into(),
            stall_every_ms,
            full_every_ms,
            damage_every_ms,
            drift_ppm: one_of(&[0, 200, 10_000]).into(),
            jump_every_ms,
            attempt_ms: one_of(&[5, 200, 4000]).into(),
            failures_per_mille: one_of(&[0, 0, 50]),
            hangs_per_mille: one_of(&[0, 0, 20]),
            cancels_per_mille: one_of(&[0, 500, 1000]),
            keep_ms: one_of(&[0, 0, 0, 4000, 20_000]).into(),
            // With clocks that jump by hours, hours pass.
            tombstones_ms: match jump_every_ms {
                0 => one_of(&[6_000_000, 45_000]).into(),
                _ => 600_000_000,
            },
            signals: one_of(&[0, 0, 0, 1]) == 1,
            rate: one_of(&[0, 0, 0, 20]),
            keyed: one_of(&[0, 0, 0, 1]) == 1,
            // With clocks that jump, moments mean little.
            cron: jump_every_ms == 0 && one_of(&[0, 0, 0, 1]) == 1,
            dated_per_mille: if jump_every_ms == 0 { one_of(&[0, 0, 0, 300]) } else { 0 },
            changes_per_mille: one_of(&[0, 0, 0, 300]),
            items: one_of(&[0, 0, 1]) == 1,
            undone: one_of(&[0, 0, 1]) == 1,
            resident_bytes: one_of(&[64 << 20, 64 << 20, 4000, 0]) as usize,
            // Drawn by themselves, so that earlier worlds stay what they were.
            journal: JOURNALS[Random::new(seed.rotate_left(48)).below(JOURNALS.len())],
            timed: Random::new(!seed).below(3) == 0,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// The same world with its pipeline split, in every second one only later, and without what
    /// takes one coordinator for all of it.
    #[must_use]
    pub fn in_partitions(mut self, partitions: u16) -> Self {
        self.partitions = partitions;
        if partitions > 1 {
            // Nothing is drawn for it, so that the world is otherwise that of its seed.
            self.split_later = self.seed % 2 == 1;
            self.quorums.1 = Quorum::Any;
            (self.rate, self.keyed) = (0, false);
        }
        self
    }

    /// For how long after a fault began its effects may show, if that is `usually` so.
    pub(crate) fn aftermath(&self, usually: Duration) -> Duration {
        let longer = if self.has_long_absences() { self.away_ms * 5 / 2 } else { 0 };
        usually + Duration::from_millis(longer)
    }

    /// Whether nodes are away, or links gone, for up to minutes.
    pub(crate) fn has_long_absences(&self) -> bool {
        self.away_ms == LONG_MS
    }

    /// How much rarer faults are whose effects last longer.
    pub(crate) fn rarer(&self) -> u64 {
        if self.has_long_absences() { 4 } else { 1 }
    }

    /// Whether any job is forgotten while the world lasts.
    pub(crate) fn forgets(&self) -> bool {
        self.keep_ms > 0 || self.changes_per_mille > 0
    }

    /// Whether it is forgotten in time that jobs were.
    pub(crate) fn expires(&self) -> bool {
        self.forgets() && self.has_short_marks()
    }

    /// Whether a node may be away for longer than marks are kept.
    pub(crate) fn outlasts_marks(&self) -> bool {
        self.has_short_marks() && self.has_long_absences()
    }

    /// Whether what was forgotten may be brought back, and run, by somebody who was cut off for longer than marks
    /// are kept, and decided alone.
    pub(crate) fn outlasts_in_any(&self) -> bool {
        self.expires() && self.outlasts_marks() && !self.is_strict()
    }

    /// Whether marks of what was forgotten are kept for less than the world lasts.
    pub(crate) fn has_short_marks(&self) -> bool {
        self.tombstones_ms < 60_000
    }

    /// The phase that waits for a signal.
    pub(crate) fn signal_step(&self) -> Option<u16> {
        (self.signals && self.phases > 1).then_some(1)
    }

    /// The phase that does something with items.
    pub(crate) fn items_step(&self) -> Option<u16> {
        // Where attempts take long, so many more of them would take too long.
        let brief = self.attempt_ms < 1000;
        (self.items && self.phases == 3 && !self.signals && brief).then_some(1)
    }

    /// The phases that are undone where their job fails.
    pub(crate) fn undone_steps(&self) -> impl DoubleEndedIterator<Item = u16> {
        let steps = if self.undone { self.phases as u16 } else { 0 };
        (0..steps).filter(|step| self.signal_step() != Some(*step))
    }

    /// The phase that no worker runs.
    pub(crate) fn idle_step(&self) -> Option<u16> {
        self.signal_step().or(self.items_step())
    }

    /// How many attempts of the first phase may begin in a time.
    pub(crate) fn rate(&self) -> Option<Rate> {
        (self.rate > 0).then_some(Rate { count: self.rate, per: Duration::from_secs(1) })
    }

    /// A world of many nodes, seven of which keep jobs: a partition in half is all that goes wrong.
    pub fn large(seed: u64, nodes: usize) -> Self {
        let worker = Roles { replica: false, worker: true, gateway: false };
        let roles = (0..nodes).map(|index| if index < 7 { Roles::ALL } else { worker });
        let partition_every_ms = 10_000;
        let calm = Self::from_seed(seed).without_faults();
        Self {
            roles: roles.collect(),
            joiners: 0,
            leaver: false,
            quorums: (Quorum::Any, Quorum::Any),
            faults_ms: 20_000,
            requests: 40,
            partition_every_ms,
            // A disk here syncs one batch at a time, a node's shell many at once: with thousands of
            // nodes that come at once it would take long.
            sync_ms: 0,
            ..calm
        }
    }

    /// The same world without any fault.
    #[must_use]
    pub fn without_faults(mut self) -> Self {
        let harmless = [
            "rounds",
            "half-the-requests",
            "half-the-time",
            "later-phases",
            "retention",
            "rates",
            "keys",
            "one-partition",
        ];
        for (name, simplify) in SIMPLIFICATIONS {
            if !harmless.contains(name) {
                simplify(&mut self);
            }
        }
        Self { sync_ms: 5, delay_ms: 5, ..self }
    }

    /// Whether one coordinator at a time is promised.
    pub fn is_strict(&self) -> bool {
        self.quorums.1 == Quorum::Majority
    }

    /// Whether nothing goes wrong in it.
    pub fn is_faultless(&self) -> bool {
        let faults = [
            self.crash_every_ms,
            self.cut_every_ms,
            self.partition_every_ms,
            self.one_way_every_ms,
            self.pause_every_ms,
            self.stall_every_ms,
            self.full_every_ms,
            self.damage_every_ms,
            self.jump_every_ms,
            self.upgrade_every_ms,
            self.leaver.into(),
            self.joiners as u64,
            self.failures_per_mille.into(),
            self.hangs_per_mille.into(),
            self.lost_per_mille.into(),
            self.repeated_per_mille.into(),
            self.overtaken_per_mille.into(),
            self.stuck_per_mille.into(),
            self.changes_per_mille.into(),
        ];
        faults.iter().all(|fault| *fault == 0)
    }
}
