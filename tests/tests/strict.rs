//! The strict preset on real nodes: a majority goes on and loses nothing, a minority does nothing.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use carbonmesh_tests::{PATIENCE, World};
use serde_json::json;

const NAMES: [&str; 3] = ["a", "b", "c"];

async fn strict_cluster() -> World {
    let mut world = World::default();
    world.start_all(&NAMES, "sleep 0.05; echo '{}'");
    world.await_members("a", 3).await;
    let phases = json!([{ "name": "s0", "phase": "step" }, { "name": "s1", "phase": "step" }]);
    let document = json!({ "name": "p", "preset": "strict", "phases": phases });
    world.api("a").apply(&document).await.unwrap();
    world
}

#[tokio::test]
async fn a_killed_coordinator_costs_no_job_and_repeats_no_finished_phase() {
    let mut world = strict_cluster().await;
    let coordinator = world.coordinator("a").await;
    let jobs = world.enqueue("a", 60).await;
    world.await_runs(30).await;
    world.cluster.kill(&coordinator).unwrap();
    let survivor = NAMES.into_iter().find(|name| *name != coordinator).unwrap();
    world.await_done(survivor, &jobs).await;
    let late = world.enqueue(survivor, 5).await;
    world.await_done(survivor, &late).await;
}

#[tokio::test]
async fn a_minority_takes_nothing_and_says_so() {
    let mut world = strict_cluster().await;
    world.coordinator("a").await;
    world.cluster.kill("b").unwrap();
    world.cluster.kill("c").unwrap();
    let began = Instant::now();
    loop {
        let answer = world.api("a").enqueue("p", &json!({})).await.unwrap();
        // Either the outcome is not known, or nobody coordinates any more: never a success.
        assert!(answer.status == 503 || answer.status == 504, "{answer:?}");
        if answer.body["type"].to_string().contains("no-coordinator") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
