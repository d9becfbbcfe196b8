//! What was heard by gossip, and of whom: old news are not passed on, and who tells wrong ones is known.
//!
//! Gossip is signed by its author, with a number that the author raises from message to message and
//! from start to start. Whoever repeats what another said long ago shows a number that is not new.
//!
//! Only an author is blamed for what is wrong: who passes it on may be of another release, and know
//! more or less than this node.

use std::collections::BTreeMap;

use carbonmesh_protocol::{
    advert::Advert,
    codec::{self, DecodeError},
    id::{DiskId, NodeId},
};
use libp2p::{PeerId, gossipsub::Message};

use super::address::node_id_of;

/// More nodes than that are not kept in mind; their adverts count by what the core makes of them.
const NODES: usize = 4096;

/// What is to be done with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is an advert of its author's.
    Fresh(Box<Advert>),
    /// Not to be passed on; nobody is to blame.
    Stale,
    /// Not to be passed on, and the peer that sent it has made it.
    Wrong,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    disk: DiskId,
    boot: u64,
    number: u64,
}

/// The last of each node.
#[derive(Debug, Default)]
pub(super) struct Heard(BTreeMap<NodeId, Last>);

impl Heard {
    /// Judges what `from` has sent, whose signature holds. A fresh advert is remembered.
    pub(super) fn judge(&mut self, from: PeerId, message: &Message) -> Verdict {
        let (Some(author), Some(number)) = (message.source, message.sequence_number) else {
            // Nothing like that gets through strict validation.
            return Verdict::Stale;
        };
        let wrong = if author == from { Verdict::Wrong } else { Verdict::Stale };
        let advert = match codec::decode::<Advert>(&message.data) {
            Ok(advert) => advert,
            // A later release says something new.
            Err(DecodeError::Unknown { .. }) => return Verdict::Stale,
            Err(_) => return wrong,
        };
        if node_id_of(&author) != Some(advert.node) {
            return wrong;
        }
        let last = Last { disk: advert.disk, boot: advert.boot, number };
        if let Some(known) = self.0.get(&advert.node) {
            // A clock that was set back makes numbers small; a start of the same folder shows even so.
            let new = match known.disk == last.disk {
                true => (last.boot, last.number) > (known.boot, known.number),
                false => last.number > known.number,
            };
            if !new {
                return Verdict::Stale;
            }
        } else if self.0.len() >= NODES {
            return Verdict::Fresh(Box::new(advert));
        }
        self.0.insert(advert.node, last);
        Verdict::Fresh(Box::new(advert))
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{gossipsub::TopicHash, identity::Keypair};

    use super::*;
    use crate::net::tests::advert;

    struct Author {
        peer: PeerId,
        node: NodeId,
    }

    impl Author {
        fn new() -> Self {
            let peer = Keypair::generate_ed25519().public().to_peer_id();
            Self { peer, node: node_id_of(&peer).expect("an ed25519 key") }
        }

        fn says(&self, number: u64, data: Vec<u8>) -> Message {
            let (source, topic) = (Some(self.peer), TopicHash::from_raw("t"));
            Message { source, data, sequence_number: Some(number), topic }
        }

        fn advertises(&self, number: u64, disk: u64, boot: u64) -> Message {
            let advert = Advert { boot, disk: DiskId(disk), ..advert(self.node, number) };
            self.says(number, codec::encode(&advert).to_vec())
        }
    }

    fn is_fresh(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Fresh(_))
    }

    #[test]
    fn what_was_said_before_is_not_heard_again() {
        let (mut heard, author, other) = (Heard::default(), Author::new(), PeerId::random());
        let mut judge = |message: &Message| heard.judge(other, message);
        let old = author.advertises(10, 1, 1);
        assert!(is_fresh(&judge(&old)));
        assert!(is_fresh(&judge(&author.advertises(12, 1, 1))));
        assert_eq!(judge(&old), Verdict::Stale);
        assert_eq!(judge(&author.advertises(12, 1, 1)), Verdict::Stale, "the latest, once more");
        assert!(is_fresh(&judge(&author.advertises(5, 1, 2))), "its clock was set back");
        assert_eq!(judge(&author.advertises(4, 2, 9)), Verdict::Stale, "an old folder");
        assert!(is_fresh(&judge(&author.advertises(6, 2, 1))), "a new folder");
        assert!(is_fresh(&judge(&Author::new().advertises(1, 1, 1))));
    }

    #[test]
    fn only_who_made_it_is_to_blame_for_what_is_wrong() {
        let (mut heard, author, other) = (Heard::default(), Author::new(), Author::new());
        let noise = author.says(1, b"no advert".to_vec());
        assert_eq!(heard.judge(author.peer, &noise), Verdict::Wrong);
        assert_eq!(heard.judge(other.peer, &noise), Verdict::Stale);
        let for_another = author.says(2, codec::encode(&advert(other.node, 1)).to_vec());
        assert_eq!(heard.judge(author.peer, &for_another), Verdict::Wrong);
        assert_eq!(heard.judge(other.peer, &for_another), Verdict::Stale);
        assert!(heard.0.is_empty());
    }
}
