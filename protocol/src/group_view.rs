//! Which disks a strict group consists of: a majority of them decides.
//!
//! A view is a register of the group: each coordinator writes it in its own term before it does
//! anything else, and whoever holds several takes the latest. A change goes over a joint view, in
//! which both the old and the new members need a majority. Source: Ongaro and Ousterhout, "In Search
//! of an Understandable Consensus Algorithm", 2014, section 6.
//!
//! A member is a node with its disk: a disk that came in place of another has promised nothing, and
//! is a member only after a change of the view.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    codec::{Encoded, Kind},
    id::{DiskId, NodeId, Term},
};

/// A node and the disk that it is a member with.
pub type Holder = (NodeId, DiskId);

/// See the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupView {
    /// The term in which it was written.
    pub term: Term,
    /// The writer's counter within that term.
    pub sequence: u64,
    /// The members.
    pub members: BTreeSet<Holder>,
    /// The members that shall be, while the view changes.
    pub next: Option<BTreeSet<Holder>>,
}

impl Encoded for GroupView {
    const KIND: Kind = 0x122;
}

impl GroupView {
    /// The view that a group begins with.
    pub fn founding(members: BTreeSet<Holder>) -> Self {
        Self { term: Term::ZERO, sequence: 0, members, next: None }
    }

    /// Whether those for whom `backs` holds are a majority of the members, and, while the view
    /// changes, of the next ones too.
    pub fn has_quorum(&self, backs: impl Fn(&Holder) -> bool) -> bool {
        let majority = |members: &BTreeSet<Holder>| {
            members.iter().filter(|holder| backs(holder)).count() > members.len() / 2
        };
        majority(&self.members) && self.next.as_ref().is_none_or(majority)
    }

    /// Whether it is later than another.
    pub fn is_later_than(&self, other: &Self) -> bool {
        (self.term, self.sequence) > (other.term, other.sequence)
    }

    /// All members, present and coming.
    pub fn holders(&self) -> BTreeSet<Holder> {
        self.members.iter().chain(self.next.iter().flatten()).copied().collect()
    }

    /// Whether a disk is a member, or is about to become one.
    pub fn has(&self, holder: Holder) -> bool {
        self.members.contains(&holder)
            || self.next.as_ref().is_some_and(|next| next.contains(&holder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holders(numbers: &[u8]) -> BTreeSet<Holder> {
        let holder = |number: &u8| (NodeId::of_public_key(&[*number]), DiskId((*number).into()));
        numbers.iter().map(holder).collect()
    }

    fn view(members: &[u8], next: Option<&[u8]>) -> GroupView {
        GroupView { next: next.map(holders), ..GroupView::founding(holders(members)) }
    }

    fn quorum(view: &GroupView, of: &[u8]) -> bool {
        let of = holders(of);
        view.has_quorum(|holder| of.contains(holder))
    }

    #[test]
    fn half_of_the_members_are_no_quorum() {
        assert!(!quorum(&view(&[1, 2, 3, 4], None), &[1, 2]));
        assert!(quorum(&view(&[1, 2, 3, 4], None), &[1, 2, 3]));
        assert!(!quorum(&view(&[], None), &[1]), "nobody decides for a group without members");
    }

    #[test]
    fn a_joint_view_needs_both_majorities() {
        let joint = view(&[1, 2, 3], Some(&[3, 4, 5]));
        assert!(!quorum(&joint, &[1, 2]));
        assert!(!quorum(&joint, &[3, 4, 5]));
        assert!(quorum(&joint, &[2, 3, 4]));
    }

    #[test]
    fn another_disk_of_a_member_does_not_count() {
        let view = view(&[1], None);
        assert!(!view.has((NodeId::of_public_key(&[1]), DiskId(9))));
    }
}
