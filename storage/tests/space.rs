//! What is deleted gives its room back, by RocksDB's own figures.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use carbonmesh_protocol::store::{Table, Write};
use carbonmesh_storage::{RocksStorage, Storage};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How many jobs come, and go, in a round.
const JOBS: u64 = 5000;
const ROUNDS: u64 = 20;

/// What a job takes: nothing of it can be compressed.
const JOB_BYTES: usize = 1024;

fn key(job: u64) -> Bytes {
    Bytes::copy_from_slice(&job.to_be_bytes())
}

fn round(storage: &RocksStorage, random: &mut ChaCha8Rng, round: u64) {
    for chunk in 0..JOBS / 100 {
        let jobs = (round * JOBS + chunk * 100)..(round * JOBS + chunk * 100 + 100);
        let mut batch = Vec::new();
        for job in jobs {
            let mut value = vec![0; JOB_BYTES];
            random.fill_bytes(&mut value);
            batch.push(Write::Put { table: Table::Jobs, key: key(job), value: value.into() });
            // What came two rounds ago is over.
            if let Some(old) = job.checked_sub(2 * JOBS) {
                batch.push(Write::Delete { table: Table::Jobs, key: key(old) });
            }
        }
        storage.write(&batch, false).unwrap();
    }
}

/// Waits until the tables have no more than so many bytes; how many they have.
fn settles_below(storage: &RocksStorage, limit: u64) -> u64 {
    let began = Instant::now();
    loop {
        let bytes = storage.statistics().unwrap().table_bytes;
        if bytes < limit || began.elapsed() > Duration::from_secs(30) {
            return bytes;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_store_takes_no_more_than_a_few_times_what_it_holds_however_much_went_through_it() {
    let folder = tempfile::tempdir().unwrap();
    let storage = RocksStorage::open(&folder.path().join("store")).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(1);
    (0..ROUNDS).for_each(|number| round(&storage, &mut random, number));
    let held = 2 * JOBS * JOB_BYTES as u64;
    let limit = 3 * held;
    let bytes = settles_below(&storage, limit);
    assert!(bytes < limit, "{bytes} bytes are taken by {held}");
    // RocksDB's own estimate of what is alive in them agrees: it has noticed what is deleted.
    let live = storage.statistics().unwrap().live_bytes;
    assert!(live > held / 2 && live < 2 * held, "{live} bytes of {held} are alive");
    let through = ROUNDS * JOBS * JOB_BYTES as u64;
    assert!(through > 3 * limit, "too little went through it to tell");
}

#[test]
fn what_is_forgotten_at_once_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let storage = RocksStorage::open(&folder.path().join("store")).unwrap();
    let mut random = ChaCha8Rng::seed_from_u64(2);
    let jobs = 300_000;
    let in_batches = |write: &mut dyn FnMut(u64) -> Write| {
        for first in (0..jobs).step_by(1000) {
            let batch: Vec<Write> = (first..first + 1000).map(&mut *write).collect();
            storage.write(&batch, false).unwrap();
        }
    };
    in_batches(&mut |job| {
        let mut value = vec![0; 200];
        random.fill_bytes(&mut value);
        Write::Put { table: Table::Jobs, key: key(job), value: value.into() }
    });
    let held = settles_below(&storage, u64::MAX);
    assert!(held > 40_000_000, "{held}");
    in_batches(&mut |job| Write::Delete { table: Table::Jobs, key: key(job) });
    let left = settles_below(&storage, held / 4);
    assert!(left < held / 4, "{left} of {held} bytes are still taken");
    let statistics = storage.statistics().unwrap();
    assert!(statistics.live_bytes <= statistics.table_bytes, "{statistics:?}");
    assert!(statistics.live_bytes < held / 4, "{statistics:?}");
}
