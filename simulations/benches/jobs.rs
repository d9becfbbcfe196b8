//! How long the core takes for a job: all that three nodes do for it but disk, network and work.

use std::hint::black_box;

use carbonmesh_simulations::cost::Cluster;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

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

criterion_group!(benches, jobs);
criterion_main!(benches);
