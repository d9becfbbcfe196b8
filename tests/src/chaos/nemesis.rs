//! The nemesis: deals faults from a shuffled deck until its time is over.
//!
//! A fault that destroys what a disk holds comes alone: only when all copies are known to be there,
//! and nothing else happens until they are again. So whatever was acknowledged is always on a disk
//! that nothing was done to. Other faults may come in pairs.

use std::{
    thread,
    time::{Duration, Instant},
};

use carbonmesh_examples::api::Error;
use rand::{
    RngExt, SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;

use crate::{
    clock::now_ms,
    cluster::Cluster,
    fault::Kind,
    faults::{Active, Faults},
    history::Fault,
};

/// How long copies may take to be complete again before it is given up to destroy more.
const CONVERGE: Duration = Duration::from_secs(45);

/// A fault that destroys something needs this long until all is whole again.
const DESTROY: Duration = Duration::from_secs(25);

/// How often two faults overlap.
const PAIRED: f64 = 0.35;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Nemesis {
    kinds: Vec<Kind>,
    deck: Vec<Kind>,
    rng: ChaCha8Rng,
    faults: Faults,
    /// What was done.
    pub(crate) done: Vec<Fault>,
    /// What a node did that none may do.
    pub(crate) offences: Vec<String>,
}

impl Nemesis {
    /// Draws from these kinds, or from all that the run can do.
    pub(crate) fn new(seed: u64, kinds: &[Kind], reduced: bool) -> Self {
        let faults = Faults::new();
        let wanted = |kind: &Kind| kinds.is_empty() || kinds.contains(kind);
        let possible = |kind: &Kind| !(reduced && kind.needs_isolation());
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(wanted).filter(possible).collect();
        let kinds = kinds.into_iter().filter(|kind| faults.can(*kind)).collect();
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { kinds, deck: Vec::new(), rng, faults, done: Vec::new(), offences: Vec::new() }
    }

    /// Does its work until then; everything is whole again when this returns.
    pub(crate) fn run(&mut self, cluster: &mut Cluster, until: Instant) -> Result<(), Error> {
        if self.kinds.is_empty() {
            return Err("none of these faults is possible here".into());
        }
        let mut whole = true;
        while Instant::now() < until {
            self.wait(1500..4000);
            let kind = self.deal();
            if kind.destroys() && Instant::now() + DESTROY > until {
                continue;
            }
            if kind.destroys() && !whole {
                whole = self.settle(cluster)?.is_some();
                if !whole {
                    println!("  copies are not complete: nothing is destroyed for now");
                    continue;
                }
            }
            self.round(cluster, kind)?;
            let at = self.done.len() - 1;
            self.revive(cluster)?;
            whole = false;
            if kind.destroys() {
                let converged = self.settle(cluster)?;
                whole = converged.is_some();
                self.done[at].converged_ms = converged;
            }
        }
        if self.settle(cluster)?.is_none() {
            self.offences.push("the healed cluster does not come together again".to_owned());
        }
        Ok(())
    }

    /// Waits until all copies are there again; when that was. A damaged disk may show only then.
    fn settle(&mut self, cluster: &mut Cluster) -> Result<Option<u64>, Error> {
        for _ in 0..2 {
            self.revive(cluster)?;
            if let Some(at_ms) = cluster.await_converged(CONVERGE) {
                return Ok(Some(at_ms));
            }
        }
        Ok(None)
    }

    fn round(&mut self, cluster: &mut Cluster, kind: Kind) -> Result<(), Error> {
        let mut active = vec![self.begin(cluster, kind, None)?];
        if !kind.is_alone() && self.rng.random_bool(PAIRED) {
            let next = self.deal();
            if next.is_alone() || next == kind {
                self.deck.push(next);
            } else {
                self.wait(300..2000);
                let taken = active[0].node;
                active.push(self.begin(cluster, next, Some(taken))?);
            }
        }
        self.wait(2500..8000);
        while let Some(one) = active.pop() {
            let ended = self.faults.end(cluster, one)?;
            println!("{:>9} over: {}", ended.fault.kind, ended.fault.note);
            self.offences.extend(ended.offence);
            self.done.push(ended.fault);
        }
        Ok(())
    }

    fn begin(
        &mut self,
        cluster: &mut Cluster,
        kind: Kind,
        other_than: Option<usize>,
    ) -> Result<Active, Error> {
        let node = self.victim(cluster, kind, other_than);
        let active = self.faults.begin(cluster, &mut self.rng, kind, node)?;
        println!("{kind:>9} of {}", active.fault.nodes.join(", "));
        Ok(active)
    }

    /// The coordinator is hit more often than the others.
    fn victim(&mut self, cluster: &Cluster, kind: Kind, other_than: Option<usize>) -> usize {
        let mut any = self.rng.random_range(0..cluster.nodes.len());
        if kind.destroys() {
            // There is something to destroy.
            let replicas = cluster.replicas();
            any = replicas.choose(&mut self.rng).copied().unwrap_or(any);
        }
        let coordinator = cluster.coordinator().filter(|_| self.rng.random_bool(0.5));
        let node = coordinator.unwrap_or(any);
        if Some(node) == other_than { (node + 1) % cluster.nodes.len() } else { node }
    }

    /// Nodes that ended by themselves are started again, as an operator would.
    fn revive(&mut self, cluster: &mut Cluster) -> Result<(), Error> {
        for index in 0..cluster.nodes.len() {
            let Some(status) = cluster.nodes[index].exited()? else { continue };
            let name = cluster.nodes[index].name.clone();
            let from_ms = now_ms();
            let (revived, destroyed) = self.faults.revive(cluster, index)?;
            println!("  {name} had ended by itself with {status}: {revived}");
            if !self.faults.may_end(index, status.code()) {
                self.offences.push(format!("{name} ended by itself with {status}"));
            }
            let (nodes, until_ms) = (vec![name], now_ms());
            let note = format!("ended by itself with {status}; {revived}");
            let (kind, converged_ms) = (Kind::Kill, None);
            let of_coordinator = false;
            self.done.push(Fault {
                kind,
                nodes,
                of_coordinator,
                from_ms,
                until_ms,
                destroyed,
                converged_ms,
                note,
            });
        }
        Ok(())
    }

    fn deal(&mut self) -> Kind {
        if self.deck.is_empty() {
            self.deck = self.kinds.clone();
            self.deck.shuffle(&mut self.rng);
        }
        self.deck.pop().unwrap_or(Kind::Kill)
    }

    fn wait(&mut self, range_ms: std::ops::Range<u64>) {
        thread::sleep(Duration::from_millis(self.rng.random_range(range_ms)));
    }
}
