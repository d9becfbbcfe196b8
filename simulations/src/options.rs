//! What kind of world a seed makes: drawn whole, so that rare mixtures come up too.

use carbonmesh_protocol::advert::Roles;

use crate::random::Random;

/// A world's parameters.
#[derive(Clone, Debug)]
pub struct Options {
    /// What all of it comes from.
    pub seed: u64,
    /// Each node's parts.
    pub roles: Vec<Roles>,
    /// How many phases the pipeline has.
    pub phases: usize,
    /// Attempts of one phase that a worker runs at once.
    pub slots: u32,
    /// How many requests clients make.
    pub requests: usize,
    /// The longest time that faults go on, in virtual ms.
    pub faults_ms: u64,
    /// The longest way of a message, in ms.
    pub delay_ms: u64,
    /// How many messages of a thousand are lost, though their connection lives.
    pub lost_per_mille: u32,
    /// How many of a thousand come twice.
    pub repeated_per_mille: u32,
    /// How many of a thousand are overtaken by later ones.
    pub overtaken_per_mille: u32,
    /// How many of a thousand take seconds, and hold up all behind them.
    pub stuck_per_mille: u32,
    /// How many rounds of a thousand take in more than one input.
    pub rounds_per_mille: u32,
    /// The longest sync, in ms.
    pub sync_ms: u64,
    /// The longest attempt, in ms.
    pub attempt_ms: u64,
    /// Mean time between crashes, in ms; zero for none.
    pub crash_every_ms: u64,
    /// How many crashes of a thousand take the disk with them, or bring back an older copy of it.
    pub disk_losses_per_mille: u32,
    /// Mean time between cut connections.
    pub cut_every_ms: u64,
    /// Mean time between partitions.
    pub partition_every_ms: u64,
    /// Mean time between pauses of a process.
    pub pause_every_ms: u64,
    /// How many attempts of a thousand fail.
    pub failures_per_mille: u32,
    /// A bug in every core.
    #[cfg(feature = "mutants")]
    pub mutant: Option<carbonmesh_protocol::mutant::Mutant>,
}

impl Options {
    /// The world of a seed.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 3 + random.below(3);
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
        let disk_losses_per_mille = [0, 0, 300][random.below(3)];
        let mut rarely = |mean: u64| match random.below(3) {
            0 => 0,
            pick => mean * pick as u64,
        };
        let (crash_every_ms, cut_every_ms) = (rarely(4000), rarely(2000));
        let (partition_every_ms, pause_every_ms) = (rarely(8000), rarely(6000));
        Self {
            seed,
            roles,
            phases: 1 + random.below(3),
            slots: 1 + random.below(4) as u32,
            requests: 5 + random.below(25),
            faults_ms: 10_000 + random.next() % 20_000,
            delay_ms: [2, 20, 150][random.below(3)],
            lost_per_mille: [0, 0, 2, 30][random.below(4)],
            repeated_per_mille: [0, 0, 5, 50][random.below(4)],
            overtaken_per_mille: [0, 0, 5, 50][random.below(4)],
            stuck_per_mille: [0, 0, 2][random.below(3)],
            rounds_per_mille: [0, 300, 900][random.below(3)],
            sync_ms: [1, 10, 100][random.below(3)],
            attempt_ms: [5, 200, 4000][random.below(3)],
            crash_every_ms,
            disk_losses_per_mille,
            cut_every_ms,
            partition_every_ms,
            pause_every_ms,
            failures_per_mille: [0, 0, 50][random.below(3)],
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// The same world without any fault.
    #[must_use]
    pub fn without_faults(self) -> Self {
        Self {
            crash_every_ms: 0,
            disk_losses_per_mille: 0,
            cut_every_ms: 0,
            partition_every_ms: 0,
            pause_every_ms: 0,
            failures_per_mille: 0,
            lost_per_mille: 0,
            repeated_per_mille: 0,
            overtaken_per_mille: 0,
            stuck_per_mille: 0,
            delay_ms: 5,
            sync_ms: 5,
            ..self
        }
    }

    /// Whether nothing goes wrong in it.
    pub fn is_faultless(&self) -> bool {
        let faults = [
            self.crash_every_ms,
            self.cut_every_ms,
            self.partition_every_ms,
            self.pause_every_ms,
            self.failures_per_mille.into(),
            self.lost_per_mille.into(),
            self.repeated_per_mille.into(),
            self.overtaken_per_mille.into(),
            self.stuck_per_mille.into(),
        ];
        faults.iter().all(|fault| *fault == 0)
    }
}
