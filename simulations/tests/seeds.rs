//! Some thousand seeds, and one large cluster; `make simulate` runs more.

use carbonmesh_simulations::{Options, Report, run};

fn check(options: &Options) -> Report {
    let report = run(options);
    assert!(
        report.violations.is_empty(),
        "seed {}: {:?}\nsee it: cargo run -p carbonmesh-simulations -- replay {} --partitions {}",
        options.seed,
        report.violations,
        options.seed,
        options.partitions
    );
    report
}

#[test]
fn invariants_hold_under_faults() {
    (0..1500).for_each(|seed| drop(check(&Options::from_seed(seed))));
}

// The test runner takes both halves at once.
#[test]
fn invariants_hold_under_other_faults() {
    (1500..3000).for_each(|seed| drop(check(&Options::from_seed(seed))));
}

/// Worlds in which something was found that others of their size did not show.
#[test]
fn invariants_hold_where_they_once_did_not() {
    let seeds = [
        19, 2158, 2255, 4972, 5204, 7113, 8442, 12114, 13065, 14233, 14984, 17167, 18065, 18580,
        23164, 27379, 28920, 39809, 57286, 64999, 103768, 105068, 106035, 114569, 117818, 118114,
        151971, 495191, 503741, 513211, 533725, 540596, 557529, 604579, 606528, 613662, 617976,
        624110, 708930, 802340, 905601, 910076, 912128, 1203366, 1203562, 1506182, 1720292,
        1722294, 1725114, 1756367, 1852884, 1922295, 1924000, 1926354, 2086458, 2091046, 2119191,
        2238358, 2420195, 2503926, 2846478,
    ];
    for seed in seeds {
        let options = Options::of_size(seed, Some(5));
        // Some were found before nodes could begin with another release: `--without upgrade` shows these.
        check(&Options { reads_at_first: u8::MAX, upgrade_every_ms: 0, ..options.clone() });
        check(&options);
    }
}

#[test]
fn invariants_hold_in_each_partition() {
    let mut acknowledged = 0;
    for seed in (0..50).chain([6620]) {
        let options = Options::of_size(seed, Some(5)).in_partitions(3);
        acknowledged += check(&options).acknowledged;
    }
    assert!(acknowledged > 1000, "the worlds do something: {acknowledged} jobs");
}

#[test]
fn without_faults_each_phase_of_each_partition_runs_once() {
    for seed in 0..20 {
        check(&Options::from_seed(seed).in_partitions(3).without_faults());
    }
}

#[test]
fn a_thousand_nodes_come_together_after_they_were_split_in_half() {
    let report = run(&Options::large(1, 1000));
    assert!(report.violations.is_empty(), "{report:?}");
    assert!(report.acknowledged > 100, "it does something: {report:?}");
    assert!(report.peace_ms < 60_000, "it takes {} ms", report.peace_ms);
}

#[test]
fn without_faults_each_phase_runs_once() {
    let mut acknowledged = 0;
    for seed in 0..50 {
        let options = Options::from_seed(seed).without_faults();
        acknowledged += check(&options).acknowledged;
    }
    assert!(acknowledged > 1000, "the worlds do something: {acknowledged} jobs");
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..5 {
        let options = Options { traced: true, ..Options::from_seed(seed) };
        let (first, again) = (run(&options), run(&options));
        assert_eq!(first, again, "seed {seed}");
        let other = Options { traced: true, ..Options::from_seed(seed + 5) };
        assert_ne!(first.trace, run(&other).trace, "another seed is another run");
    }
}
