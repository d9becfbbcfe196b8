//! How long the core takes for a job: all that three nodes do for it but disk, network and work; and
//! what that rises to where many are under way.

use std::hint::black_box;

use carbonmesh_simulations::cost::Cluster;
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How many jobs are under way at once.
const JOBS: usize = 1000;

fn jobs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("core");
    group.sample_size(20).throughput(Throughput::Elements(JOBS as u64));
    for phases in [1, 3] {
        let mut cluster = Cluster::new(phases);
        group.bench_function(format!("w{phases}"), |bencher| {
            bencher.iter(|| black_box(&mut cluster).run_jobs(JOBS));
        });
    }
}

fn growth(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("growth");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for jobs in [1000, 100_000] {
        group.throughput(Throughput::Elements(jobs as u64));
        // What is done stays in memory here, which is its own cost: each begins with nothing.
        group.bench_function(format!("w3/{jobs}"), |bencher| {
            bencher.iter_with_setup(|| Cluster::new(3), |mut cluster| cluster.run_jobs(jobs));
        });
    }
}

criterion_group!(benches, jobs, growth);
criterion_main!(benches);
