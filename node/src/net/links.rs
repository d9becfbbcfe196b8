//! Which peers have a link, and for how long after their last connection.
//!
//! A link stays for a while when its peer goes, so that the end of a session is told before the next one
//! begins, whoever comes back how fast. Then it is forgotten: whoever has the cluster's secret can make keys
//! without end, and come with each of them once.
//!
//! Invariant: there are no more than [`LINKS`].

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use libp2p::PeerId;
use tokio::sync::{mpsc, watch};

/// More than a full mesh can have.
const LINKS: usize = 4096;

/// By then the end of a session has been told, however much waits before it.
const KEPT: Duration = Duration::from_secs(60);

/// Where a peer's link takes its streams from. Its task ends when this is dropped.
pub(super) enum LinkInput {
    /// We open them while this is true.
    Opener(watch::Sender<bool>),
    /// The peer opens them.
    Acceptor(mpsc::Sender<libp2p::Stream>),
}

struct Entry {
    input: LinkInput,
    /// When the last connection went; nothing while there is one.
    closed_at: Option<Instant>,
}

/// All links.
#[derive(Default)]
pub(super) struct Links(HashMap<PeerId, Entry>);

impl Links {
    /// A peer's.
    pub(super) fn get(&self, peer: &PeerId) -> Option<&LinkInput> {
        self.0.get(peer).map(|entry| &entry.input)
    }

    /// The peer is connected; whether it has a link.
    pub(super) fn connected(&mut self, peer: &PeerId) -> bool {
        let Some(entry) = self.0.get_mut(peer) else { return false };
        entry.closed_at = None;
        if let LinkInput::Opener(connected) = &entry.input {
            connected.send_replace(true);
        }
        true
    }

    /// The peer has no connection any more.
    pub(super) fn disconnected(&mut self, peer: &PeerId, now: Instant) {
        let Some(entry) = self.0.get_mut(peer) else { return };
        entry.closed_at = Some(now);
        if let LinkInput::Opener(connected) = &entry.input {
            connected.send_replace(false);
        }
    }

    /// Whether there is room for one more, once those are forgotten that nobody needs.
    pub(super) fn have_room(&mut self, now: Instant) -> bool {
        let is_needed = |entry: &Entry| {
            entry.closed_at.is_none_or(|at| now.saturating_duration_since(at) < KEPT)
        };
        self.0.retain(|_, entry| is_needed(entry));
        self.0.len() < LINKS
    }

    /// The link of a peer that is connected, and has had none.
    pub(super) fn insert(&mut self, peer: PeerId, input: LinkInput) {
        self.0.insert(peer, Entry { input, closed_at: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opener() -> (LinkInput, watch::Receiver<bool>) {
        let (connected, watch) = watch::channel(true);
        (LinkInput::Opener(connected), watch)
    }

    #[test]
    fn whoever_comes_with_keys_without_end_finds_no_more_than_so_much_room() {
        let (mut links, began) = (Links::default(), Instant::now());
        let stays = PeerId::random();
        links.insert(stays, opener().0);
        let mut refused = 0;
        for _ in 0..3 * LINKS {
            let peer = PeerId::random();
            match links.have_room(began) {
                true => links.insert(peer, opener().0),
                false => refused += 1,
            }
            links.disconnected(&peer, began);
        }
        assert_eq!((links.0.len(), refused), (LINKS, 2 * LINKS + 1));
        assert!(!links.have_room(began + KEPT - Duration::from_millis(1)));
        assert!(links.have_room(began + KEPT));
        assert_eq!(links.0.len(), 1);
        assert!(links.get(&stays).is_some(), "who is connected stays");
    }

    #[test]
    fn a_link_outlives_a_short_absence_and_its_task_ends_with_it() {
        let (mut links, began, peer) = (Links::default(), Instant::now(), PeerId::random());
        let (input, watch) = opener();
        assert!(!links.connected(&peer), "it has none yet");
        links.insert(peer, input);
        links.disconnected(&peer, began);
        assert!(!*watch.borrow());
        assert!(links.have_room(began + KEPT / 2) && links.connected(&peer));
        assert!(*watch.borrow());
        assert!(links.have_room(began + 9 * KEPT) && links.get(&peer).is_some());
        links.disconnected(&peer, began);
        links.have_room(began + KEPT);
        assert!(links.get(&peer).is_none() && watch.has_changed().is_err(), "nobody holds it");
    }
}
