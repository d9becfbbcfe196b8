//! What happens in the world, as the invariants and a reader of a run are told.

use std::fmt;

use carbonmesh_protocol::{
    id::{DiskId, JobId, Token},
    io::{Attempt, Change, NewJob, Receipt},
    message::Message,
    secret::Place,
    time::Timestamp,
    view::JobView,
};

/// Something that happens; nodes are named by their number.
pub(crate) enum Fact<'a> {
    /// A process starts.
    Up { at: usize, disk: DiskId, boot: u64 },
    /// A process is gone.
    Crashed { at: usize },
    /// A node that does not run gets another disk: an empty one, or an older copy of its own.
    DiskReplaced { at: usize, old: DiskId, new: DiskId, restored: bool },
    /// A process stands still.
    Paused { at: usize, until: Timestamp },
    /// A node's disk hangs.
    Stalled { at: usize, until: Timestamp },
    /// A node's disk is full, or has room again.
    Full { at: usize, full: bool },
    /// Something on a node's disk cannot be read any more.
    Damaged { at: usize, disk: DiskId },
    /// A node's wall clock is set to another time.
    Jumped { at: usize, error_ms: i64 },
    /// A node is told to leave for good.
    Leaves { at: usize },
    /// Nothing gets from one node to another.
    Deaf { from: usize, to: usize },
    /// A connection is cut.
    Cut { a: usize, b: usize },
    /// A node hears that a connection is gone.
    Disconnected { at: usize, peer: usize },
    /// A node is told to stop, and gets another release.
    Upgraded { at: usize },
    /// A node passes over a message that its release does not know.
    PassedOver { at: usize, from: usize },
    /// A message leaves.
    Sent { at: usize, to: usize, message: &'a Message },
    /// It will not arrive.
    Lost { at: usize, to: usize },
    /// It will arrive twice.
    Repeated { at: usize, to: usize },
    /// It takes long, and holds up all behind it.
    HeldUp { at: usize, to: usize },
    /// Later ones will arrive before it.
    Overtaken { at: usize, to: usize },
    /// A message arrives.
    Delivered { at: usize, from: usize, message: &'a Message },
    /// A worker begins an attempt.
    Started { at: usize, attempt: &'a Attempt },
    /// An attempt has ended.
    Ended { token: Token, failed: bool },
    /// An attempt has given all of its items.
    Gave { token: Token, count: u32, leaves: bool },
    /// A client wants a job taken.
    Asked { job: &'a NewJob },
    /// A client hears that its job is taken.
    Acknowledged { receipt: &'a Receipt, job: &'a NewJob },
    /// A client hears that its value or secret is kept.
    Put { place: &'a Place },
    /// The pipeline is known.
    Applied,
    /// A client wants a job changed.
    Changed { job: JobId, change: &'a Change },
    /// It hears that this is done.
    Heard { job: JobId, change: &'a Change },
    /// A client hears how far its job is.
    Told { at: usize, view: &'a JobView },
}

impl Fact<'_> {
    /// Whom a fault hits: the two ends of a link, or a node, which comes twice.
    pub(super) fn hits(&self) -> Option<(usize, usize)> {
        match *self {
            Self::Crashed { at }
            | Self::DiskReplaced { at, .. }
            | Self::Paused { at, .. }
            | Self::Stalled { at, .. }
            | Self::Full { at, .. }
            | Self::Damaged { at, .. }
            | Self::Jumped { at, .. }
            | Self::Leaves { at }
            | Self::Upgraded { at } => Some((at, at)),
            Self::Deaf { from: a, to: b }
            | Self::Cut { a, b }
            | Self::Disconnected { at: a, peer: b }
            | Self::Lost { at: a, to: b }
            | Self::Repeated { at: a, to: b }
            | Self::HeldUp { at: a, to: b }
            | Self::Overtaken { at: a, to: b } => Some((a, b)),
            Self::Up { .. }
            | Self::Applied
            | Self::PassedOver { .. }
            | Self::Put { .. }
            | Self::Sent { .. }
            | Self::Delivered { .. }
            | Self::Started { .. }
            | Self::Ended { .. }
            | Self::Gave { .. }
            | Self::Asked { .. }
            | Self::Acknowledged { .. }
            | Self::Changed { .. }
            | Self::Heard { .. }
            | Self::Told { .. } => None,
        }
    }

    /// Whether this may make a phase run again: something is lost, late or gone.
    pub(super) fn is_fault(&self) -> bool {
        matches!(self, Self::Changed { .. }) || self.hits().is_some()
    }
}

impl fmt::Display for Fact<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { at, disk, boot } => write!(f, "n{at} starts, disk {}, boot {boot}", disk.0),
            Self::Crashed { at } => write!(f, "n{at} CRASHES"),
            Self::DiskReplaced { at, restored: true, .. } => write!(f, "n{at} DISK RESTORED"),
            Self::DiskReplaced { at, .. } => write!(f, "n{at} DISK LOST"),
            Self::Paused { at, until } => {
                write!(f, "n{at} STANDS STILL until {}", until.as_millis())
            }
            Self::Stalled { at, until } => {
                write!(f, "n{at} DISK HANGS until {}", until.as_millis())
            }
            Self::Full { at, full: true } => write!(f, "n{at} DISK FULL"),
            Self::Full { at, .. } => write!(f, "n{at} has room again"),
            Self::Damaged { at, .. } => write!(f, "n{at} DISK DAMAGED"),
            Self::Jumped { at, error_ms } => write!(f, "n{at} CLOCK JUMPS, wrong by {error_ms} ms"),
            Self::Leaves { at } => write!(f, "n{at} LEAVES"),
            Self::Upgraded { at } => write!(f, "n{at} IS UPGRADED"),
            Self::PassedOver { at, from } => {
                write!(f, "n{at} <- n{from} passed over what its release does not know")
            }
            Self::Put { place } => write!(f, "KEPT {}", place.name),
            Self::Deaf { from, to } => write!(f, "n{from} -> n{to} ONE WAY ONLY"),
            Self::Cut { a, b } => write!(f, "n{a} - n{b} CUT"),
            Self::Disconnected { at, peer } => write!(f, "n{at} hears that n{peer} is gone"),
            Self::Sent { at, to, message } => write!(f, "n{at} -> n{to} {message:?}"),
            Self::Lost { at, to } => write!(f, "n{at} -> n{to} LOST"),
            Self::Repeated { at, to } => write!(f, "n{at} -> n{to} COMES TWICE"),
            Self::HeldUp { at, to } => write!(f, "n{at} -> n{to} HELD UP"),
            Self::Overtaken { at, to } => write!(f, "n{at} -> n{to} OVERTAKEN"),
            Self::Delivered { at, from, message } => write!(f, "n{at} <- n{from} {message:?}"),
            Self::Started { at, attempt } => {
                let Attempt { token, job, step, number, .. } = attempt;
                write!(f, "n{at} RUNS {job} {step}, attempt {number}, token {token}")
            }
            Self::Ended { token, failed } => {
                write!(f, "attempt {token} {}", if *failed { "fails" } else { "ends" })
            }
            Self::Gave { token, count, leaves } => {
                let with = if *leaves { "with" } else { "without" };
                write!(f, "attempt {token} has given {count} items, {with} a session")
            }
            Self::Asked { job } => write!(f, "TO BE TAKEN: key {:?}, {:?}", job.key, job.options),
            Self::Applied => write!(f, "APPLIED"),
            Self::Changed { job, change } => write!(f, "TO BE CHANGED {job}: {change:?}"),
            Self::Heard { job, change } => write!(f, "IS CHANGED {job}: {change:?}"),
            Self::Told { at, view } => write!(f, "n{at} TELLS OF {}: {:?}", view.job, view.state),
            Self::Acknowledged { receipt, job } => {
                write!(
                    f,
                    "ACKNOWLEDGED {} key {:?} copies {}",
                    receipt.job, job.key, receipt.copies
                )
            }
        }
    }
}
