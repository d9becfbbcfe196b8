//! What goes wrong, and when; and the peace that ends it.

use super::{Event, World};
use crate::invariants::Fact;

impl World {
    pub(super) fn schedule_faults(&mut self) {
        self.schedule(self.options.crash_every_ms, Event::Crash);
        self.schedule(self.options.cut_every_ms, Event::Cut);
        self.schedule(self.options.partition_every_ms, Event::Partition);
        self.schedule(self.options.pause_every_ms, Event::Pause);
        if self.options.disk_losses_per_mille > 0 {
            self.schedule(2000, Event::Backup);
        }
    }

    /// A fault that comes about every `mean` ms, unless that is zero.
    fn schedule(&mut self, mean: u64, event: Event) {
        if mean > 0 && !self.peace {
            let after = self.random.between(mean / 2, mean * 3 / 2);
            self.push(after, event);
        }
    }

    fn some_node(&mut self) -> usize {
        self.random.below(self.nodes.len())
    }

    pub(super) fn crash_some(&mut self) {
        let at = self.some_node();
        let ran = self.nodes[at].core.is_some();
        self.crash(at);
        if ran && self.random.per_mille(self.options.disk_losses_per_mille) {
            let restored = self.random.per_mille(500);
            self.replace_disk(at, restored);
        }
        let after = self.random.between(100, 6000);
        self.push(after, Event::Restart(at));
        self.schedule(self.options.crash_every_ms, Event::Crash);
    }

    pub(super) fn cut_some(&mut self) {
        let links = self.network.pairs();
        if !links.is_empty() {
            let (a, b) = links[self.random.below(links.len())];
            let silence = self.random.between(0, 200);
            self.cut(a, b, silence);
        }
        self.schedule(self.options.cut_every_ms, Event::Cut);
    }

    pub(super) fn partition(&mut self) {
        self.set_apart();
        let after = self.random.between(500, 10_000);
        self.push(after, Event::Heal);
        self.schedule(self.options.partition_every_ms, Event::Partition);
    }

    pub(super) fn pause_some(&mut self) {
        let at = self.some_node();
        let pause = self.random.between(50, 6000);
        // A pause is never cut short: what waits for its end keeps its order.
        let until = self.nodes[at].paused_until.max(self.now + pause);
        self.nodes[at].paused_until = until;
        self.tell(Fact::Paused { at, until });
        self.schedule(self.options.pause_every_ms, Event::Pause);
    }

    /// Somebody copies a disk.
    pub(super) fn backup(&mut self) {
        let at = self.some_node();
        let node = &mut self.nodes[at];
        node.backup = node.storage.copy().into();
        self.schedule(2000, Event::Backup);
    }

    /// No more faults: everybody is there and connected.
    pub(super) fn make_peace(&mut self) {
        self.peace = true;
        self.network.heal();
        for at in 0..self.nodes.len() {
            if self.nodes[at].core.is_none() {
                self.start(at);
            }
        }
    }
}
