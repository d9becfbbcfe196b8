//! A model checker on the core itself: every order in which things may happen, within bounds.
//!
//! ```text
//! Scenario ─fixed run─► first State ─every Action, again and again─► States ─► invariants
//! ```
//! The simulator draws long runs at random; this takes short ones from a chosen moment on, and all
//! of them. Each node is the core that runs in production, copied for each way on. Time is no
//! number that all share: a node's clock stands still until its next timer is made to fire, at any
//! moment and however early or late for the others, since nothing that is safe may rest on clocks.
//! Leases do. Where a majority has to grant one, clocks go together: the earliest timer fires next,
//! once all has arrived that is neither held up nor lost, and a process may stand still meanwhile.
//!
//! The search, its threads and its ways back to the start are `stateright`'s. Two states are the same
//! if their cores, disks, queues, budgets and whatever invariants remember are.

mod action;
mod bounds;
mod digest;
mod history;
mod network;
mod node;
mod scenario;
mod state;
mod step;

use std::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use carbonmesh_protocol::{id::PipelineId, name::Name, pipeline::PipelineError};
use stateright::{Checker, HasDiscoveries, Model, Property};

pub use bounds::Bounds;
pub use scenario::{SCENARIOS, Scenario};

use action::Action;
use history::{INVARIANTS, REACHABLE};
use state::State;
use step::Step;

/// The one pipeline's name.
const PIPELINE: &str = "p";

/// What the pipeline promises about its coordinators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// There may be two: a term names one of them, and no safety rests on there being one.
    Available,
    /// There is one: once a later term has begun, nobody gives work away in an earlier one.
    Strict,
}

fn pipeline() -> PipelineId {
    PipelineId::of_name(PIPELINE)
}

/// A name that we made ourselves.
fn name(text: &str) -> Name {
    text.parse().expect("a valid name")
}

/// What is to be explored.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// From where.
    pub scenario: Scenario,
    /// How far.
    pub bounds: Bounds,
    /// On how many threads.
    pub threads: usize,
    /// For how long at most.
    pub limit: Option<Duration>,
    /// A bug in every core.
    #[cfg(feature = "mutants")]
    pub mutant: Option<carbonmesh_protocol::mutant::Mutant>,
}

impl Options {
    /// A scenario within some bounds.
    pub fn new(scenario: Scenario, bounds: Bounds) -> Self {
        Self {
            scenario,
            bounds,
            threads: 1,
            limit: None,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    fn step(&self, state: State) -> Step {
        Step {
            state,
            preset: self.scenario.preset,
            log: None,
            #[cfg(feature = "mutants")]
            mutant: self.mutant,
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Scenario { name, about, .. } = self.scenario;
        write!(f, "{name}: {about}\n  bounds: {}", self.bounds)
    }
}

/// What an exploration came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How many states there are within the bounds.
    pub states: usize,
    /// How many steps were taken, most of them to states that were known.
    pub steps: usize,
    /// The longest way from the start, in steps.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// Whether all of them were seen: false if time was up, or an invariant was broken before.
    pub exhausted: bool,
    /// Things that are to come about, so that the bounds are known not to be too narrow; those that
    /// did.
    pub reached: Vec<&'static str>,
    /// The invariant that was broken, if one was, and the way there.
    pub broken: Option<Counterexample>,
}

/// How an invariant came to be broken.
#[derive(Clone, Debug)]
pub struct Counterexample {
    /// Which.
    pub invariant: &'static str,
    /// What was seen.
    pub seen: String,
    /// What happened, a line each; what nodes did about it is indented.
    pub way: Vec<String>,
}

/// Explores all that may happen.
///
/// # Errors
/// The core does not know the preset yet.
pub fn check(options: Options) -> Result<Outcome, PipelineError> {
    let began = Instant::now();
    let start = options.scenario.start(|state| options.step(state))?;
    let start = State { left: options.bounds, ..start };
    let deadline = options.limit.map(|limit| began + limit);
    let (cut_short, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let search = Search { options, start, deadline, cut_short, over };
    let checker = search.checker().threads(options.threads);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures);
    let checker = checker.spawn_dfs().join();
    let took = began.elapsed();
    checker.model().over.store(true, Ordering::Relaxed);
    let found = checker.discoveries();
    let reached = REACHABLE.into_iter().filter(|what| found.contains_key(what)).collect();
    let broken = INVARIANTS.into_iter().find_map(|invariant| {
        let path = found.get(invariant)?.clone();
        Some(counterexample(checker.model(), invariant, path.into_actions()))
    });
    Ok(Outcome {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        took,
        exhausted: broken.is_none() && !checker.model().cut_short.load(Ordering::Relaxed),
        reached,
        broken,
    })
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, took, .. } = self;
        let seconds = took.as_secs_f64();
        writeln!(f, "  {states} states, {steps} steps, at most {depth} deep, {seconds:.1} s")?;
        writeln!(f, "  reached: {}", self.reached.join("; "))?;
        match &self.broken {
            Some(broken) => broken.fmt(f),
            None if self.exhausted => f.write_str("  every invariant holds in all of them"),
            None => f.write_str("  every invariant holds in these, but there are MORE"),
        }
    }
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  BROKEN {}: {}", self.invariant, self.seen)?;
        self.way.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

fn counterexample(
    search: &Search,
    invariant: &'static str,
    actions: Vec<Action>,
) -> Counterexample {
    let mut state = search.start.clone();
    let mut way = Vec::new();
    for action in actions {
        way.push(action.describe(&state));
        let mut step = search.options.step(state);
        step.log = Some(Vec::new());
        step.take(action);
        way.extend(step.log.into_iter().flatten().map(|line| format!("    {line}")));
        state = step.state;
    }
    let seen = state.broken.map_or_else(String::new, |(_, seen)| seen);
    Counterexample { invariant, seen, way }
}

/// A scenario within its bounds, as `stateright` sees it.
struct Search {
    options: Options,
    start: State,
    deadline: Option<Instant>,
    /// Whether time was up before all was seen.
    cut_short: AtomicBool,
    /// Whether the search is over.
    over: AtomicBool,
}

impl Model for Search {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start.clone()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let time_is_up = || self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        // The ways to what was found are walked again when the search is over.
        if !self.over.load(Ordering::Relaxed) && time_is_up() {
            self.cut_short.store(true, Ordering::Relaxed);
        } else if state.broken.is_none() {
            Action::all(state, self.options.scenario.preset, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut step = self.options.step(last.clone());
        step.take(action);
        Some(step.state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds<const AT: usize>(_: &Search, state: &State) -> bool {
            state.broken.as_ref().is_none_or(|(name, _)| *name != INVARIANTS[AT])
        }
        fn reached<const AT: usize>(search: &Search, state: &State) -> bool {
            state.history.reached(&search.start.history, REACHABLE[AT])
        }
        // A property is a plain function: it cannot be made for a name that is known only here.
        let holds =
            [holds::<0>, holds::<1>, holds::<2>, holds::<3>, holds::<4>, holds::<5>, holds::<6>];
        let reached = [reached::<0>, reached::<1>, reached::<2>, reached::<3>, reached::<4>];
        let always = INVARIANTS.into_iter().zip(holds);
        let always = always.map(|(name, holds)| Property::always(name, holds));
        let sometimes = REACHABLE.into_iter().zip(reached);
        always.chain(sometimes.map(|(name, is)| Property::sometimes(name, is))).collect()
    }
}
