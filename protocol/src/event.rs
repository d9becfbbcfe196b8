//! What happens to a pipeline and in the cluster, as it is told to whoever follows.
//!
//! A pipeline's coordinator keeps its last events in memory, in one order; whoever follows reads on
//! behind a token. A token is a term and a number within it: tokens of later terms are greater. What
//! is not kept any more, or was only kept by an earlier coordinator, is made up for by one event that
//! says so ([`What::Gap`]), and the stream goes on with what there is.
//!
//! Events tell of what is durable, and are themselves not: they are for eyes, not for bookkeeping.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    id::{JobId, NodeId, Term},
    name::Name,
};

/// The most bytes of a text in an event; what is longer is cut.
pub const MAX_TEXT_BYTES: usize = 2048;

/// The most bytes of one line of a log; what is longer is cut.
pub const MAX_LINE_BYTES: usize = 8 << 10;

/// Where an event stands in its stream: behind all of a lesser term, and of a lesser number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventToken {
    /// The coordinator's term; of cluster events, the node that tells them and its boot.
    pub term: Term,
    /// Counts within the term, from 1.
    pub number: u64,
}

impl fmt::Display for EventToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Term { counter, node, boot } = self.term;
        write!(f, "{counter}.{node:#}.{boot}.{}", self.number)
    }
}

/// The text is no token.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no token of an event: give one as it came with an event")]
pub struct ParseTokenError(pub String);

impl FromStr for EventToken {
    type Err = ParseTokenError;

    fn from_str(text: &str) -> Result<Self, ParseTokenError> {
        let wrong = || ParseTokenError(text.chars().take(100).collect());
        let parts: Vec<&str> = text.split('.').collect();
        let [counter, node, boot, number] = parts[..] else { return Err(wrong()) };
        let digits = |text: &str| text.parse::<u64>().map_err(|_| wrong());
        if node.len() != 32 || !node.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let node = u128::from_str_radix(node, 16).map_err(|_| wrong())?;
        let node = NodeId::from_bytes(node.to_be_bytes());
        let term = Term { counter: digits(counter)?, node, boot: digits(boot)? };
        Ok(Self { term, number: digits(number)? })
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place.
    pub token: EventToken,
    /// When it happened, by the teller's clock (ms since 1970).
    pub at_ms: u64,
    /// What it is about.
    pub about: About,
    /// What happened.
    pub what: What,
}

/// What an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The job.
    pub job: Option<JobId>,
    /// The job of which that is a part, if it is made of an item.
    pub part_of: Option<JobId>,
    /// The step's name in the pipeline; of cluster events, the phase that workers offer.
    pub phase: Option<Name>,
    /// Which attempt, from 1.
    pub attempt: Option<u32>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// Some events in between are not kept.
    Gap {
        /// How many, where that is known.
        missed: Option<u64>,
        /// Why.
        why: GapReason,
    },
    /// A node coordinates the pipeline from here on.
    Coordinator {
        /// Who.
        node: NodeId,
        /// How many unfinished jobs it found.
        unfinished: u64,
    },
    /// A job was enqueued.
    Enqueued,
    /// A job's first attempt was given out.
    Started,
    /// An attempt was given out.
    AttemptStarted {
        /// To whom.
        worker: NodeId,
    },
    /// An attempt has failed.
    AttemptFailed {
        /// Why.
        error: Arc<str>,
        /// When there is another (ms since 1970), if there is.
        again_ms: Option<u64>,
    },
    /// An attempt will not end, or was given back; it is given to another worker.
    AttemptLost {
        /// Why.
        error: Arc<str>,
    },
    /// A phase has succeeded.
    PhaseSucceeded,
    /// A phase was left out.
    PhaseSkipped {
        /// Why.
        reason: Arc<str>,
    },
    /// A phase has failed for good.
    PhaseFailed {
        /// Why.
        error: Arc<str>,
    },
    /// A phase was cancelled.
    PhaseCancelled {
        /// Why.
        reason: Arc<str>,
    },
    /// A phase that waited got its signal.
    Signalled,
    /// An operator tries a job again.
    Retried {
        /// How often that was done, this time included.
        generation: u32,
    },
    /// A job has succeeded.
    Succeeded,
    /// A job has failed for good.
    Dead {
        /// Why.
        error: Arc<str>,
    },
    /// A job was cancelled.
    Cancelled {
        /// Why.
        reason: Arc<str>,
    },
    /// No more work of the pipeline, or of the phase, is given out.
    Paused,
    /// It is again.
    Resumed,
    /// New jobs follow another definition.
    Revised,
    /// An attempt's line of log.
    Log {
        /// Counts within the attempt, from 0.
        line: u64,
        /// How much it matters.
        level: LogLevel,
        /// It.
        text: Arc<str>,
    },
    /// How far an attempt is.
    Progress {
        /// Counts as a line of the log.
        line: u64,
        /// In ten-thousandths.
        done: u16,
        /// What it does.
        text: Arc<str>,
    },
    /// Lines of an attempt's log were left out: there were more than may be.
    LogDropped {
        /// The first of them.
        line: u64,
        /// How many.
        count: u64,
    },
    /// A node came that was not known.
    NodeJoined(Told),
    /// A node that was away can be reached.
    NodeReturned(Told),
    /// A node cannot be reached since a moment ago.
    NodeSuspected(Told),
    /// A node cannot be reached for longer than a lease.
    NodeDown(Told),
    /// A node was away for so long that its copies are made elsewhere.
    NodeRetired(Told),
    /// A node began to offer a phase.
    PhaseAvailable(Told),
    /// A node does not offer a phase any more.
    PhaseGone(Told),
    /// A node coordinates a pipeline, as the teller sees it.
    CoordinatorSeen {
        /// The pipeline.
        pipeline: Name,
        /// Who.
        node: NodeId,
        /// In which term.
        term: Term,
    },
    /// Nobody is known to coordinate a pipeline.
    CoordinatorLost {
        /// The pipeline.
        pipeline: Name,
    },
}

/// A node and its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Who.
    pub node: NodeId,
    /// Its name.
    pub name: Arc<str>,
}

/// Why events are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GapReason {
    /// Whoever follows was too slow, or away for too long.
    Behind,
    /// Another coordinates by now, or another node was asked: what the one before kept is not here.
    Teller,
}

impl GapReason {
    /// For people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Behind => "they are not kept any more: the reader was away or slow for too long",
            Self::Teller => {
                "they were kept by another coordinator, or by this node before it was restarted"
            }
        }
    }
}

/// How much a line of a log matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogLevel {
    /// To find mistakes.
    Debug,
    /// As usual; what commands write to standard error counts as this.
    Info,
    /// Worth a look.
    Warning,
    /// Something went wrong.
    Error,
}

impl LogLevel {
    /// Its name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What an attempt says: a line of its log, or how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Counts within the attempt, from 0; where numbers are missing, lines were left out.
    pub line: u64,
    /// When, by its worker's clock (ms since 1970).
    pub at_ms: u64,
    /// How much it matters.
    pub level: LogLevel,
    /// How far the attempt is, in ten-thousandths, if it says that.
    pub done: Option<u16>,
    /// It.
    pub text: Arc<str>,
}

impl Said {
    /// As an event tells it.
    pub fn what(&self) -> What {
        let (line, text) = (self.line, self.text.clone());
        match self.done {
            Some(done) => What::Progress { line, done, text },
            None => What::Log { line, level: self.level, text },
        }
    }

    /// What it takes in memory, about.
    pub fn size(&self) -> usize {
        64 + self.text.len()
    }
}

/// What is kept of an attempt's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptLog {
    /// The job, or a part of it.
    pub job: JobId,
    /// The step's name in the pipeline.
    pub phase: Name,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Its last lines.
    pub lines: Vec<Said>,
}

/// What is kept of a job's logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogsPage {
    /// The job's pipeline.
    pub pipeline: Name,
    /// By attempt.
    pub attempts: Vec<AttemptLog>,
    /// Behind which event of the pipeline what comes next is told.
    pub next: EventToken,
}

macro_rules! kinds {
    ($($kind:ident $name:literal,)*) => {
        /// The kinds of events, to choose among them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum EventKind {
            $(
                #[doc = concat!("See [`What::", stringify!($kind), "`].")]
                $kind,
            )*
        }

        impl EventKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// Its name in documents and on the command line.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }

        impl What {
            /// Its kind.
            pub const fn kind(&self) -> EventKind {
                match self {
                    $(Self::$kind { .. } => EventKind::$kind,)*
                }
            }
        }
    };
}

kinds! {
    Gap "gap",
    Coordinator "coordinator",
    Enqueued "enqueued",
    Started "started",
    AttemptStarted "attempt_started",
    AttemptFailed "attempt_failed",
    AttemptLost "attempt_lost",
    PhaseSucceeded "phase_succeeded",
    PhaseSkipped "phase_skipped",
    PhaseFailed "phase_failed",
    PhaseCancelled "phase_cancelled",
    Signalled "signalled",
    Retried "retried",
    Succeeded "succeeded",
    Dead "dead",
    Cancelled "cancelled",
    Paused "paused",
    Resumed "resumed",
    Revised "revised",
    Log "log",
    Progress "progress",
    LogDropped "log_dropped",
    NodeJoined "node_joined",
    NodeReturned "node_returned",
    NodeSuspected "node_suspected",
    NodeDown "node_down",
    NodeRetired "node_retired",
    PhaseAvailable "phase_available",
    PhaseGone "phase_gone",
    CoordinatorSeen "coordinator_seen",
    CoordinatorLost "coordinator_lost",
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for EventKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|kind| kind.name() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|kind| kind.name()).collect();
            format!("`{text}` is no kind of event: the kinds are {}", names.join(", "))
        })
    }
}

/// Some kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventKinds(u64);

impl EventKinds {
    /// All there are, and those of later versions.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether that is among them; a gap always is.
    pub const fn has(self, kind: EventKind) -> bool {
        matches!(kind, EventKind::Gap) || self.0 & 1 << kind as u8 != 0
    }
}

impl FromIterator<EventKind> for EventKinds {
    fn from_iter<T: IntoIterator<Item = EventKind>>(kinds: T) -> Self {
        Self(kinds.into_iter().fold(0, |all, kind| all | 1 << kind as u8))
    }
}

const _: () = assert!(EventKind::ALL.len() <= 64);

/// Which events somebody wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventQuery {
    /// From where on.
    pub from: EventsFrom,
    /// Only those about this job, or about a part of it.
    pub job: Option<JobId>,
    /// Only these kinds.
    pub kinds: EventKinds,
    /// How many at most, at once.
    pub limit: u32,
    /// How long to wait for the first, if there is none.
    pub wait: Option<Duration>,
}

impl EventQuery {
    /// All from somewhere on, waited for.
    pub const fn all(from: EventsFrom, wait: Duration) -> Self {
        Self { from, job: None, kinds: EventKinds::ALL, limit: 1000, wait: Some(wait) }
    }

    /// Whether an event is wanted.
    pub fn wants(&self, about: &About, what: &What) -> bool {
        let job = self.job.is_none_or(|job| [about.job, about.part_of].contains(&Some(job)));
        self.kinds.has(what.kind()) && (job || matches!(what, What::Coordinator { .. }))
    }
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventsFrom {
    /// With the oldest that is kept.
    Oldest,
    /// With what happens from now on.
    Latest,
    /// Behind this one.
    After(EventToken),
}

/// Some events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// In their order; none if there was none in time.
    pub events: Vec<Event>,
    /// Behind which one the next page begins.
    pub next: EventToken,
}

/// Cuts a text to what events take.
pub fn cut(text: &str, bytes: usize) -> Arc<str> {
    text[..text.floor_char_boundary(bytes)].into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_reads_back_from_its_text_and_orders_by_term_first() {
        let term = Term { counter: 7, node: NodeId::from_bytes(*b"0123456789abcdef"), boot: 3 };
        let token = EventToken { term, number: 12 };
        assert_eq!(token.to_string(), "7.30313233343536373839616263646566.3.12");
        assert_eq!(token.to_string().parse(), Ok(token));
        let later = EventToken { term: Term { counter: 8, ..term }, number: 1 };
        assert!(later > token);
        for bad in ["", "7", "7.30.3.12", "7.30313233343536373839616263646566.3.-1", "a.b.c.d"] {
            assert!(bad.parse::<EventToken>().is_err(), "{bad}");
        }
        let signed = "7.+0313233343536373839616263646566.3.1";
        assert!(signed.parse::<EventToken>().is_err());
    }

    #[test]
    fn kinds_read_back_from_their_names_and_a_gap_is_always_told() {
        for kind in EventKind::ALL {
            assert_eq!(kind.name().parse(), Ok(*kind));
        }
        let kinds: EventKinds = [EventKind::Dead, EventKind::Log].into_iter().collect();
        assert!(kinds.has(EventKind::Dead) && kinds.has(EventKind::Gap));
        assert!(!kinds.has(EventKind::Succeeded));
        assert!("done".parse::<EventKind>().is_err_and(|error| error.contains("succeeded")));
    }
}
