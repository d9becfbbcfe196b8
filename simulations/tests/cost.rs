//! How often the core allocates for a job, and how many rows it writes: numbers that are the same on every
//! machine, and rise when something is copied, built anew or written that was not before.

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
    for (phases, limit) in [(1, 95.0), (3, 180.0)] {
        let taken = allocations_per_job(phases);
        println!("{phases} phases: {taken:.1} allocations for each job, on three nodes together");
        assert!(taken <= limit, "{taken:.1} allocations for a job of {phases} phases");
    }
}

#[test]
fn a_job_takes_no_more_rows_than_stated() {
    // What was enqueued, what each phase ended as, and that the job has ended; the rest are rows of batches.
    for (phases, limit) in [(1, 9.5), (3, 15.5)] {
        let mut cluster = Cluster::new(phases);
        let before = cluster.rows_written();
        cluster.run_jobs(JOBS);
        let written = (cluster.rows_written() - before) as f64 / JOBS as f64;
        println!("{phases} phases: {written:.2} rows for each job, on three nodes together");
        assert!(written <= limit, "{written:.2} rows for a job of {phases} phases");
    }
}
