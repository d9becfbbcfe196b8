//! Each check finds a bug that it is there for: one is switched on in every core, and some seed among
//! the first few thousand has to show it. `cargo test -p carbonmesh-simulations --features mutants`.

use std::panic;

use carbonmesh_protocol::mutant::Mutant;
use carbonmesh_simulations::{Options, run};

/// How many seeds a bug may take to show.
const SEEDS: u64 = 5000;

/// The world of a seed. Few worlds forget jobs while nodes are cut off for long: where that is what it takes,
/// all do.
fn world(mutant: Mutant, seed: u64) -> Options {
    let drawn = Options { mutant: Some(mutant), ..Options::from_seed(seed) };
    match mutant {
        Mutant::StaleCounts => Options {
            keep_ms: 4000,
            tombstones_ms: 45_000,
            away_ms: 60_000,
            faults_ms: 120_000,
            jump_every_ms: 0,
            partition_every_ms: 10_000,
            ..drawn
        },
        _ => drawn,
    }
}

/// The first seed that breaks one of these invariants; a core that trips over its own assertions
/// counts as `assertion`.
fn first_seed(mutant: Mutant, expected: &[&str]) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| {
        let options = world(mutant, seed);
        let broken = match panic::catch_unwind(|| run(&options)) {
            Ok(report) => report.violations.iter().map(|it| it.invariant.to_owned()).collect(),
            Err(_) => vec!["assertion".to_owned()],
        };
        broken.into_iter().find(|name| expected.contains(&name.as_str())).map(|name| (seed, name))
    })
}

fn is_found(mutant: Mutant, expected: &[&str]) {
    let found = first_seed(mutant, expected);
    println!("{mutant:?} -> {found:?}");
    assert!(found.is_some(), "{mutant:?} breaks none of {expected:?} within {SEEDS} seeds");
}

macro_rules! mutants {
    ($($test:ident: $mutant:ident => $expected:expr;)*) => {
        $(#[test] fn $test() { is_found(Mutant::$mutant, &$expected); })*
    };
}

mutants! {
    a_vote_before_its_sync: VoteBeforeSync => ["durable-before-said"];
    a_stored_job_before_its_sync: StoreBeforeSync => ["durable-before-said"];
    a_replicated_change_before_its_sync: ReplicateBeforeSync => ["durable-before-said"];
    a_completion_before_its_sync: CompletionBeforeSync => ["durable-before-said"];
    an_attempt_before_what_it_builds_on: AssignBeforeDurable => ["order"];
    work_before_the_merge: DispatchBeforeMerge => ["adopt-first"];
    a_disk_with_amnesia_that_counts: AmnesiaCounts => ["amnesia"];
    an_attempt_that_begins_twice: AssignTwice => ["fenced"];
    a_deposed_coordinator_that_stays: DeposedStays => ["one-vote", "assertion"];
    a_second_copy_that_drops_the_first: SecondCopyDrops => ["durable-before-said", "assertion"];
    an_end_that_is_offered_once: EndsOnce => ["no-lost-job"];
    a_replica_that_is_never_admitted: NeverAdmitted => ["no-lost-job"];
    a_lease_that_nobody_heeds: LeaseIgnored => ["one-coordinator"];
    hints_that_count: HintsCounted => ["acked-survives", "one-coordinator", "terminal-stays"];
    differences_that_are_not_decided: NotDecidedAnew => ["terminal-stays", "convergence", "no-lost-job"];
    an_end_that_is_told_too_early: ReadUncommitted => ["one-coordinator"];
    a_key_that_nobody_looks_at: KeyIgnored => ["same-key"];
    orphans_that_are_swept_away: OrphansDropped => ["acked-survives"];
    an_attempt_on_its_way_that_counts_as_lost: OnItsWayLost => ["bounded-rerun"];
    copies_whose_content_nobody_compares: ContentIgnored => ["convergence", "no-lost-job"];
    timers_that_pile_up: TimersPile => ["bounded"];
    unfinished_jobs_that_are_forgotten: UnfinishedReaped => ["legal-reap"];
    marks_that_are_dropped_at_once: MarksDropped => ["legal-reap", "terminal-stays"];
    items_that_nobody_waits_for: ReduceEarly => ["items"];
    what_nobody_undoes: NeverUndone => ["undone"];
    items_of_an_attempt_that_may_fail: ItemsEarly => ["items"];
    a_session_of_an_attempt_that_failed: SessionKept => ["items"];
    limits_that_nobody_looks_at: LimitsIgnored => ["limits"];
    a_newer_component_that_is_dropped: NewerDropped => ["merge"];
    a_value_that_stays_because_it_came_last: LastComesStays => ["merge", "terminal-stays"];
    attempts_that_nobody_counts: AttemptsUncounted => ["no-lost-job"];
    a_restored_disk_that_nobody_notices: RestoredDiskUnnoticed => ["one-vote", "durable-before-said"];
    an_unknown_message_that_ends_its_connection: UnknownEndsConnection => ["no-lost-job"];
    a_clock_that_stops_with_its_process: ClockStops => ["one-coordinator"];
    an_acknowledgement_of_one_copy: AcceptsAlone => ["durable-before-said"];
    a_change_that_is_told_too_early: ChangeBeforeSync => ["changes"];
    a_copy_that_was_away_for_too_long_and_counts: StaleCounts => ["legal-reap", "terminal-stays"];
    events_that_nobody_orders: EventsUnordered => ["events"];
    runs_that_nobody_makes_good: RunsMissed => ["schedules"];
    secrets_that_nobody_writes_down: SecretsUnwritten => ["secrets"];
    changes_that_are_dropped: ChangesDropped => ["durable-before-said"];
    jobs_that_nobody_lists: ArrivalsDropped => ["acked-survives", "no-lost-job"];
    a_boot_that_is_used_twice: BootReused => ["fenced", "one-vote", "durable-before-said"];
}
