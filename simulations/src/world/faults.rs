//! What goes wrong, and when; and the peace that ends it.

use carbonmesh_protocol::{io::Input, mutant::Mutant};

use super::{Disk, Event, World};
use crate::invariants::Fact;

/// Something that goes wrong now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Crash,
    /// A node whose log will lose what comes from now on, and which crashes soon.
    TornLog,
    Cut,
    Partition,
    OneWay,
    Pause,
    Stall,
    Full,
    Damage,
    Jump,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::Crash,
        Self::TornLog,
        Self::Cut,
        Self::Partition,
        Self::OneWay,
        Self::Pause,
        Self::Stall,
        Self::Full,
        Self::Damage,
        Self::Jump,
    ];
}

impl World {
    pub(super) fn schedule_faults(&mut self) {
        Fault::ALL.into_iter().for_each(|fault| self.schedule(fault));
        if self.options.disk_losses_per_mille > 0 {
            self.push(std::time::Duration::from_secs(2), Event::Backup);
        }
        if self.options.leaver {
            let after = self.random.between(5000, self.options.faults_ms / 2);
            self.push(after, Event::Leave);
        }
    }

    fn every_ms(&self, fault: Fault) -> u64 {
        let options = &self.options;
        match fault {
            Fault::Crash => options.crash_every_ms,
            Fault::TornLog if options.disk_losses_per_mille > 0 => options.crash_every_ms * 4,
            Fault::TornLog => 0,
            Fault::Cut => options.cut_every_ms,
            Fault::Partition => options.partition_every_ms,
            Fault::OneWay => options.one_way_every_ms,
            Fault::Pause => options.pause_every_ms,
            Fault::Stall => options.stall_every_ms,
            Fault::Full => options.full_every_ms,
            Fault::Damage => options.damage_every_ms,
            Fault::Jump => options.jump_every_ms,
        }
    }

    /// The next fault of a kind, about when it is due.
    fn schedule(&mut self, fault: Fault) {
        let mean = self.every_ms(fault)
            * match fault {
                Fault::Crash | Fault::Partition | Fault::OneWay | Fault::Pause => {
                    self.options.rarer()
                }
                _ => 1,
            };
        if mean > 0 && !self.peace {
            let after = self.random.between(mean / 2, mean * 3 / 2);
            self.push(after, Event::Fault(fault));
        }
    }

    fn some_node(&mut self) -> usize {
        self.random.below(self.nodes.len())
    }

    /// What was planned before peace came is not done any more.
    pub(super) fn on_fault(&mut self, fault: Fault) {
        if self.peace {
            return;
        }
        match fault {
            Fault::Crash => self.crash_some(),
            Fault::TornLog => self.tear_log(),
            Fault::Cut => self.cut_some(),
            Fault::Partition => self.partition(),
            Fault::OneWay => self.deafen_some(),
            Fault::Pause => self.pause_some(),
            Fault::Stall => self.stall_some(),
            Fault::Full => self.fill_some(),
            Fault::Damage => self.damage_some(),
            Fault::Jump => self.jump_some(),
        }
        self.schedule(fault);
    }

    fn crash_some(&mut self) {
        let at = self.some_node();
        let ran = self.nodes[at].core.is_some() && self.may_lose_disk(at);
        self.crash(at);
        if ran && self.random.per_mille(self.options.disk_losses_per_mille) {
            let restored = self.random.per_mille(500);
            let disk = match restored {
                true => self.nodes[at].backup.copy(),
                false => Disk::default(),
            };
            self.replace_disk(at, disk, restored);
        }
        let after = self.random.between(100, self.options.away_ms);
        self.push(after, Event::Restart(at));
    }

    fn tear_log(&mut self) {
        let at = self.some_node();
        if self.nodes[at].disk.is_damaged() || !self.may_lose_disk(at) {
            return;
        }
        let torn = self.nodes[at].disk.copy().into();
        let (after, life) = (self.random.between(10, 1000), self.nodes[at].life);
        self.push(after, Event::Tear { at, life, torn });
    }

    pub(super) fn tear(&mut self, at: usize, life: u64, torn: Disk) {
        if self.peace || self.nodes[at].life != life || self.nodes[at].core.is_none() {
            return;
        }
        if !self.may_lose_disk(at) {
            return;
        }
        self.crash(at);
        self.replace_disk(at, torn, true);
        let after = self.random.between(100, 3000);
        self.push(after, Event::Restart(at));
    }

    fn cut_some(&mut self) {
        let links = self.network.pairs();
        if !links.is_empty() {
            let (a, b) = links[self.random.below(links.len())];
            let silence = self.random.between(0, 200);
            self.cut(a, b, silence);
        }
    }

    fn partition(&mut self) {
        if self.nodes.len() < 2 {
            return;
        }
        match self.nodes.len() > 20 {
            true => self.split_in_half(),
            false => self.set_apart(),
        }
        let after = self.random.between(500, self.options.away_ms * 5 / 3);
        self.push(after, Event::Heal);
    }

    fn deafen_some(&mut self) {
        let (from, to) = (self.some_node(), self.some_node());
        if from != to {
            self.deafen(from, to);
        }
        let after = self.random.between(500, self.options.away_ms * 5 / 2);
        self.push(after, Event::Hear);
    }

    fn pause_some(&mut self) {
        let at = self.some_node();
        let pause = self.random.between(50, self.options.away_ms);
        // What it has decided by now is on its way: that a message takes long is a fault of the network.
        if self.nodes[at].paused_until <= self.now {
            self.drain(at);
        }
        // A pause is never cut short: what waits for its end keeps its order.
        let before = self.nodes[at].paused_until.max(self.now);
        let until = before.max(self.now + pause);
        self.nodes[at].paused_until = until;
        if self.is_mutated(Mutant::ClockStops) {
            self.nodes[at].stop_clock(until.since(before));
        }
        self.reschedule(at);
        self.tell(Fact::Paused { at, until });
    }

    /// A disk takes its time for what it is given next.
    fn stall_some(&mut self) {
        let at = self.some_node();
        let stall = self.random.between(300, 9000);
        let until = self.nodes[at].sync_at.max(self.now + stall);
        self.nodes[at].sync_at = until;
        self.tell(Fact::Stalled { at, until });
    }

    fn fill_some(&mut self) {
        let at = self.some_node();
        self.set_full(at, true);
        let after = self.random.between(1000, 15_000);
        self.push(after, Event::Room(at));
    }

    pub(super) fn set_full(&mut self, at: usize, full: bool) {
        self.tell(Fact::Full { at, full });
        self.nodes[at].full = full;
        self.tell_room(at);
    }

    /// A node sees how much room its disk has.
    pub(super) fn tell_room(&mut self, at: usize) {
        let full = self.nodes[at].full;
        let accepting = if full { Err("the disk is full".to_owned()) } else { Ok(()) };
        self.input(at, Input::Accepting(accepting));
    }

    fn damage_some(&mut self) {
        let (at, pick) = (self.some_node(), self.random.next());
        if self.may_lose_disk(at) && self.nodes[at].disk.damage(pick) {
            let disk = self.nodes[at].config.disk;
            self.tell(Fact::Damaged { at, disk });
        }
    }

    fn jump_some(&mut self) {
        let at = self.some_node();
        let most = [1000, 60_000, 7_200_000][self.random.below(3)];
        let error_ms = (self.random.next() % (2 * most + 1)) as i64 - most as i64;
        self.set_wall_clock(at, error_ms);
        self.tell(Fact::Jumped { at, error_ms });
    }

    /// Somebody copies a disk.
    pub(super) fn backup(&mut self) {
        let at = self.some_node();
        let node = &mut self.nodes[at];
        if !node.disk.is_damaged() {
            node.backup = node.disk.copy();
        }
        if !self.peace {
            let after = self.random.between(1000, 3000);
            self.push(after, Event::Backup);
        }
    }

    /// Whether a disk may be lost: a strict group that has lost a majority can do nothing any more,
    /// and so one is lost at a time, the next when another has taken its place.
    fn may_lose_disk(&self, at: usize) -> bool {
        if !self.options.is_strict() {
            return true;
        }
        let groups = self
            .nodes
            .iter()
            .filter_map(|node| node.core.as_ref()?.snapshot().groups.remove(&super::pipeline()));
        let latest = groups.max_by_key(|group| (group.view.term, group.view.sequence));
        let Some(group) = latest else { return false };
        let view = group.view.clone();
        let sound = |holder: &carbonmesh_protocol::group_view::Holder| {
            let node = &self.nodes[self.by_id[&holder.0]];
            node.config.disk == holder.1 && !node.disk.is_damaged() && !node.gone
        };
        let me = (self.nodes[at].config.node, self.nodes[at].config.disk);
        // What only its coordinator knows is not committed.
        let known = |holder: &carbonmesh_protocol::group_view::Holder| {
            let node = &self.nodes[self.by_id[&holder.0]];
            let group =
                node.core.as_ref().map(|it| it.snapshot().groups.remove(&super::pipeline()));
            group.flatten().is_some_and(|it| it.view == view)
        };
        !view.has(me)
            || view.next.is_none()
                && view.members.len() >= 3
                && view.members.iter().all(|holder| sound(holder) && known(holder))
    }

    /// The last node is told to stop, or is lost, and never comes back.
    pub(super) fn leave(&mut self) {
        let at = self.nodes.len() - 1;
        if !self.may_lose_disk(at) {
            let after = self.random.between(1000, 3000);
            return self.push(after, Event::Leave);
        }
        if self.options.vanishes {
            return self.be_gone(at);
        }
        self.tell(Fact::Leaves { at });
        self.input(at, Input::Draining);
        let after = self.random.between(500, 5000);
        self.push(after, Event::Gone(at));
    }

    /// The node that leaves has gone, and its disk with it.
    pub(super) fn be_gone(&mut self, at: usize) {
        if !self.may_lose_disk(at) {
            let after = self.random.between(1000, 3000);
            return self.push(after, Event::Gone(at));
        }
        self.nodes[at].gone = true;
        self.crash(at);
        self.replace_disk(at, Disk::default(), false);
    }

    /// No more faults: everybody is there and connected.
    pub(super) fn make_peace(&mut self) {
        self.peace = true;
        // Whoever is asked first may not know the pipeline yet.
        for after in [2000, 10_000, 20_000] {
            self.push(std::time::Duration::from_millis(after), Event::EndSchedule);
        }
        self.network.heal();
        self.network.heal_one_way();
        for at in 0..self.nodes.len() {
            if self.nodes[at].core.is_none() && !self.nodes[at].gone {
                self.start(at);
            } else if self.options.full_every_ms > 0 {
                self.set_full(at, false);
            }
        }
    }
}
