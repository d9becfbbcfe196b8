//! Bugs that can be switched on, to see that the simulator's checks find them.
//!
//! Without the feature `mutants` there is no way to switch one on, and no core asks.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A vote is told before it is on disk.
    VoteBeforeSync,
    /// Jobs are acknowledged to their gateway before they are on disk.
    StoreBeforeSync,
    /// A coordinator's changes are acknowledged before they are on disk.
    ReplicateBeforeSync,
    /// A worker is told to forget an end before that is on disk.
    CompletionBeforeSync,
    /// An attempt is handed over before what it builds on is durable.
    AssignBeforeDurable,
    /// Work begins in a term before all that the voters held is merged.
    DispatchBeforeMerge,
    /// A disk that came in place of another votes and counts at once.
    AmnesiaCounts,
    /// A worker begins an attempt again whose message came twice.
    AssignTwice,
    /// Whoever is elected stays so, though a later term is known.
    DeposedStays,
    /// A job that comes in twice in one round is thrown away.
    SecondCopyDrops,
    /// An end that its coordinator did not take is not offered again.
    EndsOnce,
    /// A replica whose copy is complete is never admitted.
    NeverAdmitted,
    /// A strict group's coordinator acts though its lease may be over.
    LeaseIgnored,
    /// A strict group counts the copies of nodes that are not in its view.
    HintsCounted,
    /// Components of a newer release are thrown away.
    NewerDropped,
    /// Of two values of a phase the one that came last stays.
    LastComesStays,
    /// Attempts are not counted where they outlive a process.
    AttemptsUncounted,
    /// A shell that does not notice that its disk is an older copy.
    RestoredDiskUnnoticed,
    /// A shell that does not count its starts.
    BootReused,
    /// Whoever takes over a strict group does not write anew what its voters differ in.
    NotDecidedAnew,
    /// What is asked of a strict group is told before it is committed.
    ReadUncommitted,
    /// Idempotency keys are not looked at.
    KeyIgnored,
    /// A process that starts takes the unfinished jobs on its disk for leftovers.
    OrphansDropped,
    /// An attempt that is still on its way to its worker counts as lost.
    OnItsWayLost,
    /// Copies are compared by what jobs they have, not by how far these are.
    ContentIgnored,
    /// Each message leaves a timer behind.
    TimersPile,
    /// Unfinished jobs are forgotten too.
    UnfinishedReaped,
    /// That a job was forgotten is forgotten at once.
    MarksDropped,
    /// A phase's rate and limit are not looked at.
    LimitsIgnored,
    /// A phase for items ends before all of these have.
    ReduceEarly,
    /// What a failed job has done is left as it is.
    NeverUndone,
    /// Items run though the attempt that gave them has not succeeded.
    ItemsEarly,
    /// What a failed attempt left in its session counts for the next.
    SessionKept,
    /// A shell that ends a connection over which a message comes that it does not know.
    UnknownEndsConnection,
    /// A shell whose clock stands still while its process does.
    ClockStops,
    /// One copy is enough for any acknowledgement.
    AcceptsAlone,
    /// A client is told that its job is changed before that is on disk.
    ChangeBeforeSync,
    /// A copy that was away for longer than marks are kept counts as before.
    StaleCounts,
    /// Events are told in the order in which a batch came to them.
    EventsUnordered,
    /// Whoever takes over does not look for runs of schedules that are late.
    RunsMissed,
    /// Values and secrets are kept in memory alone.
    SecretsUnwritten,
    /// What changed last of jobs goes with the journal.
    ChangesDropped,
    /// Which jobs came last goes with the journal.
    ArrivalsDropped,
}
