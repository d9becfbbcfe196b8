//! Where explorations start, and how far they go.
//!
//! The way to the start is one fixed run without faults: nodes meet, a pipeline is applied, a
//! coordinator may be elected. From there on everything is open, within the bounds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use carbonmesh_protocol::{
    advert::Roles,
    config::{Config, Limits, Timing},
    id::{DiskId, NodeId},
    io::{Input, Request, RequestId},
    pipeline::{PhaseInput, PipelineDef, PipelineError, Quorum, Settings},
    time::Timestamp,
};

use super::{
    PIPELINE, Preset,
    action::Action,
    bounds::Bounds,
    history::{ADMITTED, ADOPTED, ATTEMPT, TERM, TWO_TERMS},
    name,
    network::Network,
    node::Node,
    pipeline,
    state::State,
    step::Step,
};

/// Time passes only where a timer is made to fire. Beats would be most of what happens and decide
/// nothing that is checked here, so they come with connections and new terms alone.
const TIMING: Timing = Timing {
    beat: Duration::from_secs(3600),
    // Whoever finds no majority may decide with those who are there at once: the worst case.
    minority_wait: Duration::ZERO,
    ..Timing::DEFAULT
};

/// Where a majority has to grant a lease, clocks go together, and time passes.
const STRICT_TIMING: Timing = Timing { beat: Duration::from_secs(2), ..Timing::DEFAULT };

/// What is explored.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    /// How many nodes there are; the first three by rank keep the jobs.
    nodes: usize,
    /// What the pipeline promises.
    pub(super) preset: Preset,
    timing: Timing,
    /// Leads to its start.
    prepare: fn(&mut Step),
    /// What has to come about within the default bounds.
    pub reaches: &'static [&'static str],
    /// What is explored by default, each on its own.
    pub bounds: &'static [Bounds],
    /// What is explored when there is more time.
    pub wide: &'static [Bounds],
}

const NOTHING: Bounds = Bounds::NOTHING;

/// All of them.
pub const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "election",
        about: "nobody coordinates; two replicas stand, and the third has a job that they lack",
        nodes: 3,
        preset: Preset::Available,
        timing: TIMING,
        prepare: |step| {
            step.enqueue(2, "a");
            step.on_node(2, |step| step.synced(2));
            step.state.network.lose_all();
        },
        reaches: &[TERM, TWO_TERMS, ATTEMPT],
        bounds: &[
            Bounds { timers: [2, 2, 0, 0], ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], crashes: [0, 0, 1, 0], holds: 1, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], crashes: [0, 0, 1, 0], connections: 1, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], losses: 1, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], repeats: 1, ..NOTHING },
        ],
        wide: &[
            Bounds { timers: [2, 2, 0, 0], holds: 1, ..NOTHING },
            Bounds {
                timers: [1, 1, 0, 0],
                crashes: [0, 0, 1, 0],
                holds: 1,
                connections: 1,
                ..NOTHING
            },
            Bounds { timers: [1, 1, 0, 0], holds: 2, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], losses: 1, repeats: 1, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], losses: 2, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], losses: 1, holds: 1, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], repeats: 1, holds: 1, ..NOTHING },
        ],
    },
    Scenario {
        name: "takeover",
        about: "the coordinator of a running job crashes, another takes over, the first comes back",
        nodes: 3,
        preset: Preset::Available,
        timing: TIMING,
        prepare: one_runs,
        reaches: &[TERM, ADOPTED],
        bounds: &[
            Bounds { timers: [0, 1, 0, 0], crashes: [1, 0, 0, 0], connections: 2, ..NOTHING },
            Bounds {
                timers: [1, 1, 0, 0],
                crashes: [1, 0, 0, 0],
                losses: 1,
                repeats: 1,
                ..NOTHING
            },
            Bounds {
                timers: [0, 1, 0, 0],
                crashes: [1, 0, 0, 0],
                connections: 1,
                losses: 1,
                ..NOTHING
            },
        ],
        wide: &[
            Bounds { timers: [1, 1, 0, 0], crashes: [1, 0, 0, 0], connections: 2, ..NOTHING },
            Bounds {
                timers: [1, 1, 0, 0],
                crashes: [1, 0, 0, 0],
                connections: 2,
                holds: 1,
                ..NOTHING
            },
            Bounds {
                timers: [0, 1, 0, 0],
                crashes: [1, 0, 0, 0],
                connections: 2,
                repeats: 1,
                ..NOTHING
            },
            Bounds { timers: [1, 1, 1, 0], crashes: [1, 1, 0, 0], connections: 1, ..NOTHING },
        ],
    },
    Scenario {
        name: "two-jobs",
        about: "one job runs and one waits; the coordinator is cut off, and does not know",
        nodes: 3,
        preset: Preset::Available,
        timing: TIMING,
        prepare: one_runs_and_one_waits,
        reaches: &[TERM, ATTEMPT, ADOPTED],
        bounds: &[
            Bounds { timers: [0, 1, 0, 0], cuts: 2, connections: 1, ..NOTHING },
            Bounds { timers: [0, 1, 0, 0], cuts: 2, holds: 1, ..NOTHING },
        ],
        wide: &[
            Bounds { timers: [0, 1, 0, 0], cuts: 2, connections: 1, jobs: 1, ..NOTHING },
            Bounds { timers: [1, 1, 0, 0], cuts: 2, connections: 1, ..NOTHING },
            Bounds { timers: [0, 1, 0, 0], cuts: 2, repeats: 1, ..NOTHING },
        ],
    },
    Scenario {
        name: "view",
        about: "a replica is gone and a fourth node takes its place, while the coordinator crashes",
        nodes: 4,
        preset: Preset::Available,
        timing: Timing {
            beat: Duration::from_secs(1),
            replace_after: Duration::from_millis(500),
            ..TIMING
        },
        prepare: one_is_gone,
        reaches: &[TERM, ADMITTED],
        bounds: &[
            Bounds { timers: [3, 0, 1, 0], crashes: [1, 0, 0, 0], ..NOTHING },
            Bounds { timers: [2, 1, 0, 0], connections: 1, ..NOTHING },
        ],
        wide: &[
            Bounds { timers: [3, 0, 2, 1], crashes: [1, 0, 0, 0], connections: 1, ..NOTHING },
            Bounds { timers: [2, 1, 1, 0], connections: 2, ..NOTHING },
        ],
    },
    Scenario {
        name: "strict-takeover",
        about: "only a majority decides; the coordinator crashes or stands still while one job runs and one waits",
        nodes: 3,
        preset: Preset::Strict,
        timing: STRICT_TIMING,
        prepare: one_runs_and_one_waits,
        reaches: &[TERM, ATTEMPT, ADOPTED],
        bounds: &[
            Bounds { timers: [0, 6, 0, 0], crashes: [1, 0, 0, 0], connections: 1, ..NOTHING },
            Bounds { timers: [0, 5, 0, 0], pauses: [1, 0, 0, 0], ..NOTHING },
        ],
        wide: &[
            Bounds { timers: [0, 6, 0, 0], cuts: 2, ..NOTHING },
            Bounds { timers: [0, 6, 0, 0], crashes: [1, 0, 0, 0], losses: 1, ..NOTHING },
            Bounds { timers: [0, 6, 0, 0], crashes: [1, 0, 0, 0], holds: 1, ..NOTHING },
            Bounds { timers: [4, 7, 4, 0], pauses: [1, 0, 0, 0], ..NOTHING },
        ],
    },
    Scenario {
        name: "strict-view",
        about: "only a majority decides; a fourth node takes a lost one's place, while the coordinator crashes",
        nodes: 4,
        preset: Preset::Strict,
        timing: Timing { replace_after: Duration::from_millis(500), ..STRICT_TIMING },
        prepare: one_is_gone,
        reaches: &[TERM, ADMITTED],
        bounds: &[Bounds { timers: [4, 0, 6, 0], crashes: [1, 0, 0, 0], ..NOTHING }],
        wide: &[
            Bounds { timers: [4, 0, 6, 2], crashes: [1, 0, 0, 0], ..NOTHING },
            Bounds { timers: [4, 0, 6, 0], pauses: [1, 0, 0, 0], ..NOTHING },
        ],
    },
];

impl Scenario {
    /// The state that exploration starts from.
    ///
    /// # Errors
    /// There is no such preset yet.
    pub(super) fn start(&self, step: impl FnOnce(State) -> Step) -> Result<State, PipelineError> {
        let quorum = match self.preset {
            Preset::Available => Quorum::Any,
            Preset::Strict => Quorum::Majority,
        };
        let phases = vec![PhaseInput::named(name("s0"))];
        let settings = Settings { accept: quorum, execute: quorum, ..Settings::default() };
        let request =
            Request::Apply(Box::new(PipelineDef::with(name(PIPELINE), phases, settings)?));
        let nodes = (0..self.nodes).map(|at| Arc::new(Node::new(self.config(at))));
        let state = State {
            nodes: nodes.collect(),
            network: Network::default(),
            history: Arc::default(),
            now: Timestamp::default(),
            paused: BTreeSet::new(),
            left: Bounds::NONE,
            broken: None,
        };
        let mut step = step(state);
        #[cfg(feature = "mutants")]
        for at in 0..self.nodes {
            let mutant = step.mutant;
            Arc::make_mut(&mut step.state.nodes[at]).core.mutate(mutant);
        }
        for at in 0..self.nodes {
            step.fire(at);
            (0..at).for_each(|peer| step.take(Action::Connect((peer, at))));
        }
        settle(&mut step);
        step.on_node(0, |step| step.input(0, Input::Request { id: RequestId(0), request }));
        settle(&mut step);
        (self.prepare)(&mut step);
        Ok(step.state)
    }

    /// Nodes are numbered by their rank for the pipeline, so that the first is the first candidate.
    fn config(&self, at: usize) -> Config {
        let ids = (0..self.nodes as u8).map(|number| NodeId::of_public_key(&[number]));
        let ranked = carbonmesh_protocol::placement::rank(pipeline(), ids);
        // The last replica alone runs phases, so that others have to hand work over.
        let worker = at == 2;
        Config {
            node: ranked[at],
            disk: DiskId(at as u64 + 1),
            boot: 1,
            name: format!("n{at}"),
            version: String::new(),
            roles: Roles { worker, ..Roles::ALL },
            phases: if worker { vec![(name("s0"), 1)] } else { Vec::new() },
            labels: BTreeMap::new(),
            timing: self.timing,
            // Each job has its rows at once: what lies in which row of a journal is to make no state of its own.
            limits: Limits { journal_bytes: 0, journal_jobs: 0, ..Limits::DEFAULT },
        }
    }
}

/// A job runs.
fn one_runs(step: &mut Step) {
    elect(step);
    step.enqueue(2, "a");
    settle(step);
}

/// One job runs, and one waits for its worker.
fn one_runs_and_one_waits(step: &mut Step) {
    elect(step);
    ["a", "b"].into_iter().for_each(|key| step.enqueue(2, key));
    settle(step);
}

/// A job runs, and the second replica is gone for so long that the last node may take its place.
fn one_is_gone(step: &mut Step) {
    elect(step);
    step.enqueue(3, "a");
    settle(step);
    (0..4).filter(|at| *at != 1).for_each(|at| step.take(Action::Cut((at, 1))));
    settle(step);
    for _ in 0..3 {
        step.take(Action::Fire(0));
        settle(step);
    }
}

/// The first node is elected.
fn elect(step: &mut Step) {
    while step.state.nodes[0].group(pipeline()).is_none_or(|group| group.coordinates.is_none()) {
        step.take(Action::Fire(0));
        settle(step);
    }
}

/// All that is on its way arrives, but for what is held up.
fn settle(step: &mut Step) {
    while step.state.next().is_some() {
        step.take(Action::Next);
    }
}
