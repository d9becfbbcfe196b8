//! The HTTP interface of whole clusters: clients that wait while a coordinator is lost, and results
//! that a worker takes away.

use std::{fs, time::Duration};

use carbonmesh_tests::{NAMES, PATIENCE, World, await_job};
use serde_json::{Value, json};

#[tokio::test]
async fn a_client_that_waits_gets_its_result_though_the_coordinator_is_killed() {
    let mut world = World::default();
    // What runs once the others are asked is short; until then it waits for them.
    let go = world.cluster.folder().join("go");
    let script =
        format!("while ! [ -e {} ]; do sleep 0.02; done; echo '{{\"done\":1}}'", go.display());
    world.start_all(&NAMES, &script);
    world.await_members("a", 3).await;
    world.apply("a", 1).await;
    // A first job shows who coordinates.
    let first = world.enqueue("a", 1).await;
    world.await_runs(1).await;
    let coordinator = world.coordinator("a").await;
    let survivor = NAMES.into_iter().find(|name| *name != coordinator).unwrap();
    let api = world.api(survivor);
    let waiting = tokio::spawn(async move {
        api.enqueue_with("p", &json!({ "n": 1 }), "?wait=60s").await.unwrap()
    });
    world.await_runs(2).await;
    world.cluster.kill(&coordinator).unwrap();
    fs::write(&go, "").unwrap();
    let answer = tokio::time::timeout(PATIENCE + Duration::from_secs(10), waiting).await;
    let answer = answer.unwrap().unwrap();
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("succeeded")), "{answer:?}");
    world.await_done(survivor, &first).await;
}

#[tokio::test]
async fn a_result_is_taken_away_by_a_worker_that_may() {
    let mut world = World::default();
    let out = world.cluster.folder().join("out");
    fs::create_dir(&out).unwrap();
    let config = world.phase("a", "step", "echo '{\"answer\": 42}'");
    world.start("a", "", config.clone());
    world.start("b", "", format!("{config}[results]\nfolder = '{}'\n", out.display()));
    world.await_members("a", 2).await;
    let definition = json!({ "name": "p", "phases": ["step"], "result": { "to": "file:{pipeline}/{job}.json" } });
    world.api("a").apply(&definition).await.unwrap();
    let answer = world.api("a").enqueue_with("p", &json!({ "n": 1 }), "?wait=60s").await.unwrap();
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("succeeded")), "{answer:?}");
    let id = answer.body["id"].as_str().unwrap();
    let written = fs::read(out.join(format!("p/{id}.json"))).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written, json!({ "n": 1, "answer": 42 }));
    let step = &answer.body["invocations"][1];
    assert_eq!((&step["step"], &step["attempt_count"]), (&json!("result"), &json!(1)), "{step}");
    assert_eq!(step["attempts"][0]["worker"]["name"], "b");
    // Where it may not go it goes nowhere, and the job says so.
    let away = json!({ "name": "q", "phases": ["step"], "result": { "to": "file:../{job}" } });
    world.api("a").apply(&away).await.unwrap();
    let job = world.api("a").enqueue("q", &json!({})).await.unwrap().success().unwrap();
    let job =
        await_job(&world.api("a"), job["id"].as_str().unwrap(), |it| it["state"] == "dead").await;
    let error = job["invocations"][1]["attempts"][0]["error"].as_str().unwrap();
    assert!(error.contains("must lead down"), "{error}");
}
