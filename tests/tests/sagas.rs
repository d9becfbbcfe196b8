//! What jobs that failed have done is undone, on clusters of real processes that lose a node meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{fs, path::PathBuf};

use carbonmesh_tests::{NAMES, World, await_job};
use serde_json::{Value, json};

/// Each phase writes its name and what it got into one file; `deliver` fails.
fn phases(journal: &str) -> String {
    let phase = |name: &str, then: &str| {
        let script = format!("echo {name} $(cat) >> '{journal}'; {then}");
        format!("[phases.{name}]\nslots = 4\ncommand = [\"sh\", \"-c\", {script:?}]\n")
    };
    [
        phase("charge", "echo '{\"receipt\":5}'"),
        phase("ship", "echo '{}'"),
        phase("deliver", "echo nobody is there >&2; exit 65"),
        phase("call-back", "sleep 0.5; echo '{}'"),
        phase("refund", "echo '{}'"),
    ]
    .concat()
}

fn pipeline(preset: &str) -> Value {
    json!({
        "name": "p",
        "preset": preset,
        "phases": [
            { "name": "charge", "compensate": "refund" },
            { "name": "ship", "compensate": { "name": "call-back", "max_attempts": 5 } },
            { "name": "deliver", "max_attempts": 1 }
        ]
    })
}

async fn is_undone(preset: &str) {
    let mut world = World::default();
    let journal: PathBuf = world.cluster.folder().join("journal");
    for name in NAMES {
        world.start(name, "", phases(&journal.display().to_string()));
    }
    world.await_members("a", 3).await;
    world.api("a").apply(&pipeline(preset)).await.unwrap();
    let coordinator = world.coordinator("a").await;
    let asked = NAMES.iter().find(|name| **name != coordinator).unwrap();
    let api = world.api(asked);
    let receipt = api.enqueue_with("p", &json!({ "order": 7 }), "").await.unwrap().body;
    let id = receipt["id"].as_str().unwrap().to_owned();
    let job = await_job(&api, &id, |job| job["compensation"].is_string()).await;
    assert_eq!(job["state"], "dead");
    world.cluster.kill(&coordinator).unwrap();
    let by = job["compensation"].as_str().unwrap();
    let undo = await_job(&api, by, |undo| undo["state"] == "succeeded").await;
    assert_eq!(undo["compensates"], json!(id));
    let lines = fs::read_to_string(&journal).unwrap();
    let mut steps: Vec<&str> = lines.lines().filter_map(|it| it.split(' ').next()).collect();
    // What ran on the node that died may have run twice.
    steps.dedup();
    assert_eq!(steps, ["charge", "ship", "deliver", "call-back", "refund"], "{lines}");
    let got = lines.lines().find_map(|line| line.strip_prefix("refund ")).unwrap();
    assert_eq!(got, "{\"order\":7,\"receipt\":5}");
    let again = api.post(&format!("/v1/jobs/{id}/retry"), &json!({})).await.unwrap();
    assert_eq!(again.status, 409, "{}", again.body);
}

#[tokio::test]
async fn a_failed_job_is_undone_the_last_phase_first_though_its_coordinator_is_killed() {
    is_undone("available").await;
}

#[tokio::test]
async fn the_same_holds_where_a_majority_decides() {
    is_undone("strict").await;
}
