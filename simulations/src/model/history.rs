//! What was said and done so far, and the invariants that are checked on it at each step.
//!
//! Only what a later step is judged by is kept, since all that is kept tells states apart.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    sync::Arc,
};

use carbonmesh_protocol::{
    id::{DiskId, JobId, PipelineId, Term, Token},
    message::{Assignment, Message},
    record::{JobRecord, Progress},
};

use super::{Preset, node::Node, state::Broken};

/// Within a generation nothing terminal becomes unfinished, and what a process knows only moves up.
pub(super) const TERMINAL_STAYS: &str = "terminal-stays";
/// One vote for each disk and counter, through any crash; the highest term never falls, and nobody
/// acts below it.
pub(super) const ONE_VOTE: &str = "one-vote";
/// A term names one coordinator, and begins once; with the preset `strict`, nobody gives work away
/// once somebody else has begun a later term.
pub(super) const ONE_COORDINATOR: &str = "one-coordinator";
/// A term begins only when all that its voters held is merged and on its coordinator's disk.
pub(super) const ADOPT_FIRST: &str = "adopt-first";
/// A token names one attempt, which begins once; only attempts that began have an accepted end.
pub(super) const FENCED: &str = "fenced";
/// Nobody gives away a job that has ended on its own disk.
pub(super) const NO_RESURRECTION: &str = "no-resurrection";
/// The core broke one of its own assertions.
pub(super) const ASSERTION: &str = "assertion";

/// All of them.
pub(super) const INVARIANTS: [&str; 7] =
    [TERMINAL_STAYS, ONE_VOTE, ONE_COORDINATOR, ADOPT_FIRST, FENCED, NO_RESURRECTION, ASSERTION];

/// Somebody begins to coordinate.
pub(super) const TERM: &str = "a term begins";
/// Twice.
pub(super) const TWO_TERMS: &str = "two terms begin";
/// A worker begins an attempt.
pub(super) const ATTEMPT: &str = "an attempt begins";
/// A takeover does not cost what ran before it.
pub(super) const ADOPTED: &str = "an end is accepted in a later term";
/// The view changes.
pub(super) const ADMITTED: &str = "a new replica is admitted";

/// What is to come about somewhere, lest the invariants hold because nothing happens.
pub(super) const REACHABLE: [&str; 5] = [TERM, TWO_TERMS, ATTEMPT, ADOPTED, ADMITTED];

/// How many nodes keep the pipeline from the start: the first of them.
pub(super) const FOUNDERS: usize = 3;

type Verdict = Result<(), Broken>;

/// What a voter had on disk when it gave its vote.
type Copy = Vec<(JobId, JobRecord)>;

/// See the [module](self).
#[derive(Clone, Default)]
pub(super) struct History {
    votes: BTreeMap<(DiskId, u64), Term>,
    held: BTreeMap<(Term, usize), Arc<Copy>>,
    begun: BTreeSet<Term>,
    given: BTreeMap<Token, (JobId, u16, usize)>,
    started: BTreeMap<Token, (JobId, String)>,
    /// Strict: attempts whose ends were agreed on, as their workers were told.
    agreed: BTreeSet<Token>,
    /// Whether an attempt's end was accepted in a later term than it was given away in.
    adopted: bool,
    /// Whether a node that did not found the group was admitted.
    admitted: bool,
    /// All jobs that ever were on a disk.
    pub(super) jobs: BTreeSet<JobId>,
}

impl Hash for History {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.votes, &self.begun, &self.given, &self.started).hash(state);
        (&self.agreed, self.adopted, self.admitted).hash(state);
        for (by, copy) in &self.held {
            by.hash(state);
            copy.iter().for_each(|(job, record)| (job, record.digest()).hash(state));
        }
    }
}

fn broken<T>(invariant: &'static str, seen: String) -> Result<T, Broken> {
    Err((invariant, seen))
}

/// What a step is judged by.
pub(super) struct Scene<'a> {
    pub(super) nodes: &'a [Arc<Node>],
    pub(super) pipeline: PipelineId,
    pub(super) preset: Preset,
}

impl History {
    /// A message leaves.
    pub(super) fn sent(
        &mut self,
        scene: &Scene<'_>,
        (at, to): (usize, usize),
        message: &Message,
    ) -> Verdict {
        let disk = scene.nodes[at].config.disk;
        match message {
            Message::Ballot(ballot) if ballot.granted && !ballot.pre => {
                let term = ballot.highest;
                let held = self.jobs.iter().filter_map(|job| {
                    Some((*job, scene.nodes[at].disk.record(scene.pipeline, *job)?))
                });
                // The vote may be told twice: what counts is what was held at first.
                let held = Arc::new(held.collect());
                self.held.entry((term, at)).or_insert(held);
                self.vote(disk, term)
            }
            Message::CompletionAck(token) if scene.preset == Preset::Strict => {
                self.note_agreed(scene, at, *token);
                Ok(())
            }
            // Whoever asks for votes has given its own.
            Message::Vote { term, .. } => self.vote(disk, *term),
            Message::Assign(assignment) => {
                let Assignment { token, job, step, .. } = &**assignment;
                self.give(scene, at, *token, (*job, *step, to))
            }
            _ => Ok(()),
        }
    }

    /// A worker is told that its end is agreed on, if it is the one that was accepted.
    fn note_agreed(&mut self, scene: &Scene<'_>, at: usize, token: Token) {
        let Some((job, step)) = self.started.get(&token) else { return };
        let record = scene.nodes[at].core.record(scene.pipeline, *job).expect("memory can be read");
        let progress =
            record.as_ref().and_then(|it| Some(&it.controls.get(&position(step))?.progress));
        if matches!(progress, Some(Progress::Succeeded { token: by, .. }) if *by == token) {
            self.agreed.insert(token);
        }
    }

    fn vote(&mut self, disk: DiskId, term: Term) -> Verdict {
        let first = *self.votes.entry((disk, term.counter)).or_insert(term);
        if first != term {
            return broken(ONE_VOTE, format!("disk {} votes for {first} and {term}", disk.0));
        }
        Ok(())
    }

    fn give(
        &mut self,
        scene: &Scene<'_>,
        at: usize,
        token: Token,
        what: (JobId, u16, usize),
    ) -> Verdict {
        let first = *self.given.entry(token).or_insert(what);
        if first != what {
            return broken(FENCED, format!("{token} is given to {first:?} and {what:?}"));
        }
        let record = scene.nodes[at].disk.record(scene.pipeline, what.0).unwrap_or_default();
        if record.state().is_terminal() {
            let (job, state) = (what.0, record.state());
            return broken(NO_RESURRECTION, format!("n{at} gives {job} away, which is {state}"));
        }
        let later = self.begun.iter().find(|begun| **begun > token.term);
        if let Some(later) = later.filter(|_| scene.preset == Preset::Strict) {
            let seen = format!("n{at} gives {token} away, though {later} has begun");
            return broken(ONE_COORDINATOR, seen);
        }
        Ok(())
    }

    /// An attempt begins.
    pub(super) fn started(
        &mut self,
        scene: &Scene<'_>,
        at: usize,
        token: Token,
        (job, step): (JobId, String),
    ) -> Verdict {
        // What a coordinator gives to itself is not sent.
        if token.term.node == scene.nodes[at].config.node {
            self.give(scene, at, token, (job, position(&step), at))?;
        }
        match self.started.insert(token, (job, step.clone())) {
            None => Ok(()),
            Some(_) => broken(FENCED, format!("n{at} begins {token} of {job} {step} once more")),
        }
    }

    /// A step is over in which one node changed; `same` unless it is another process since.
    pub(super) fn stepped(
        &mut self,
        scene: &Scene<'_>,
        at: usize,
        before: &Node,
        same: bool,
    ) -> Verdict {
        let node = &*scene.nodes[at];
        if same {
            moves_up(scene, at, before)?;
        }
        if node.disk != before.disk {
            self.disk_changed(scene, at, before)?;
        }
        let Some(group) = node.group(scene.pipeline) else { return Ok(()) };
        self.admitted |= at >= FOUNDERS && group.admitted;
        let Some(term) = group.coordinates else { return Ok(()) };
        if term < group.highest {
            let seen = format!("n{at} coordinates in {term} and knows of {}", group.highest);
            return broken(ONE_VOTE, seen);
        }
        if term.node != node.config.node {
            return broken(ONE_COORDINATOR, format!("n{at} coordinates in {term}"));
        }
        let did = before.group(scene.pipeline).and_then(|group| group.coordinates);
        if did == Some(term) && same {
            return Ok(());
        }
        if !self.begun.insert(term) {
            return broken(ONE_COORDINATOR, format!("n{at} begins {term} once more"));
        }
        let voters = |voter: &usize| group.voters.contains(&scene.nodes[*voter].config.node);
        for voter in (0..scene.nodes.len()).filter(voters) {
            let held = self.held.get(&(term, voter));
            for (job, theirs) in held.into_iter().flat_map(|held| &**held) {
                let mut mine = node.disk.record(scene.pipeline, *job).unwrap_or_default();
                for component in theirs.components() {
                    if mine.merge(&component).expect("it reads back") {
                        let seen = format!("n{at} begins {term} without {job} of n{voter}");
                        return broken(ADOPT_FIRST, seen);
                    }
                }
            }
        }
        Ok(())
    }

    fn disk_changed(&mut self, scene: &Scene<'_>, at: usize, before: &Node) -> Verdict {
        let (pipeline, disk) = (scene.pipeline, &scene.nodes[at].disk);
        self.jobs.extend(scene.nodes[at].core.records(pipeline).map(|(job, _)| job));
        let promise = disk.promise(pipeline).map(|promise| promise.highest);
        let earlier = before.disk.promise(pipeline).map(|promise| promise.highest);
        if promise < earlier {
            return broken(ONE_VOTE, format!("n{at}: {earlier:?} falls to {promise:?} on disk"));
        }
        for job in &self.jobs {
            let Some(record) = disk.record(pipeline, *job) else { continue };
            let old = before.disk.record(pipeline, *job).unwrap_or_default();
            for (step, control) in &record.controls {
                let was = old.controls.get(step);
                // What was never agreed on may be decided anew, in a later term.
                let agreed = was.is_some_and(|was| match was.progress {
                    Progress::Succeeded { token, .. } => self.agreed.contains(&token),
                    _ => false,
                });
                let later = was.is_some_and(|was| control.strict && control.term > was.term);
                let anew = later && !agreed;
                if was.is_some_and(|was| was.is_terminal())
                    && !control.is_terminal()
                    && !anew
                    && was.is_some_and(|was| control.generation <= was.generation)
                {
                    let seen = format!("n{at}: {job} step {step} is unfinished again on disk");
                    return broken(TERMINAL_STAYS, seen);
                }
                let Progress::Succeeded { token, .. } = control.progress else { continue };
                let ran = self.started.get(&token);
                if ran.is_none_or(|(of, name)| (*of, position(name)) != (*job, *step)) {
                    let seen = format!("n{at}: {token} ended {job} step {step}, but ran {ran:?}");
                    return broken(FENCED, seen);
                }
                self.adopted |= control.term > token.term;
            }
        }
        Ok(())
    }

    /// What has come about since `start`, of [`REACHABLE`].
    pub(super) fn reached(&self, start: &Self, what: &str) -> bool {
        match what {
            TERM => self.begun.len() > start.begun.len(),
            TWO_TERMS => self.begun.len() > start.begun.len() + 1,
            ATTEMPT => self.started.len() > start.started.len(),
            ADOPTED => self.adopted,
            _ => self.admitted,
        }
    }
}

/// What a process knows of a phase only moves up.
fn moves_up(scene: &Scene<'_>, at: usize, before: &Node) -> Verdict {
    let now: BTreeMap<JobId, Cow<'_, JobRecord>> =
        scene.nodes[at].core.records(scene.pipeline).collect();
    for (job, old) in before.core.records(scene.pipeline) {
        let Some(record) = now.get(&job) else { continue };
        for (step, was) in &old.controls {
            if record.controls.get(step).is_none_or(|control| control < was) {
                return broken(TERMINAL_STAYS, format!("n{at}: {job} step {step} fell"));
            }
        }
    }
    Ok(())
}

/// Steps are named after their position.
fn position(step: &str) -> u16 {
    step[1..].parse().expect("our own name")
}
