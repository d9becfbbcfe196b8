//! How often the core allocates for a job: a number that is the same on every machine, and rises when
//! something is copied or built anew that was not before.

use carbonmesh_simulations::cost::Cluster;

const JOBS: usize = 1000;

fn allocations_per_job(phases: usize) -> f64 {
    let mut cluster = Cluster::new(phases);
    // Maps and buffers have grown to their size after the first.
    cluster.run_jobs(JOBS);
    let taken = allocation_counter::measure(|| cluster.run_jobs(JOBS));
    taken.count_total as f64 / JOBS as f64
}

#[test]
fn a_job_takes_no_more_allocations_than_stated() {
    for (phases, limit) in [(1, 105.0), (3, 192.0)] {
        let taken = allocations_per_job(phases);
        println!("{phases} phases: {taken:.1} allocations for each job, on three nodes together");
        assert!(taken <= limit, "{taken:.1} allocations for a job of {phases} phases");
    }
}
