//! A pipeline with partitions, on real processes one of which is killed.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use carbonmesh_examples::api::Api;
use carbonmesh_tests::{NAMES, PATIENCE, World, text};
use serde_json::{Value, json};

fn document(partitions: u64) -> Value {
    let phases =
        [json!({ "name": "s0", "phase": "step" }), json!({ "name": "s1", "phase": "step" })];
    json!({ "name": "p", "partitions": partitions, "phases": phases })
}

/// Waits until each of so many partitions has a coordinator that lives; their names.
async fn coordinators(api: &Api, count: usize, lost: Option<&str>) -> Vec<String> {
    let began = Instant::now();
    loop {
        let shown = api.get("/v1/pipelines/p").await.unwrap().body;
        let partitions = shown["partitions"].as_array().cloned().unwrap_or_default();
        let names: Vec<String> =
            partitions.iter().map(|it| text(&it["coordinator"]["name"])).collect();
        let led = |name: &String| !name.is_empty() && Some(name.as_str()) != lost;
        if names.len() == count && names.iter().all(led) {
            return names;
        }
        assert!(began.elapsed() < PATIENCE, "{shown}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// All events of the pipeline that a node tells of, from behind a token.
async fn events(world: &World, node: &str, after: &str) -> Vec<Value> {
    let node = world.cluster.http(node).unwrap();
    let url = format!("{node}/v1/pipelines/p/events?follow=false&after={after}");
    let request = reqwest::Client::new().get(url).header("accept", "application/x-ndjson");
    let text = request.send().await.unwrap().error_for_status().unwrap().text().await.unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.filter(|event: &Value| event["kind"] != "alive").collect()
}

#[tokio::test]
async fn no_job_of_any_partition_is_lost_with_a_node() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    world.api("a").apply(&document(6)).await.unwrap();
    // Whoever coordinates the first of them is killed, be it one or all that it coordinates.
    let lost = coordinators(&world.api("a"), 6, None).await.remove(0);
    let others: Vec<&str> = NAMES.into_iter().filter(|name| *name != lost).collect();
    let [a, b] = others[..] else { panic!("{others:?}") };

    let mut jobs = Vec::new();
    for _ in 0..12 {
        jobs.extend(world.enqueue(b, 5).await);
    }
    world.cluster.kill(&lost).unwrap();
    for _ in 0..12 {
        jobs.extend(world.enqueue(b, 5).await);
    }
    coordinators(&world.api(a), 6, Some(&lost)).await;
    world.await_done(a, &jobs).await;

    // The list has each of them once, over its pages.
    let listed = world.api(b).jobs("p", "succeeded").await.unwrap();
    let ids: BTreeSet<String> = listed.iter().map(|job| text(&job["id"])).collect();
    assert_eq!((listed.len(), ids), (jobs.len(), jobs.iter().cloned().collect()));
    let shown = world.api(b).get("/v1/pipelines/p").await.unwrap().body;
    assert_eq!(shown["definition"]["partitions"], 6);

    // A node that comes back has its part again.
    world.cluster.restart(&lost).unwrap();
    world.await_members(a, 3).await;
    let more = world.enqueue(&lost, 10).await;
    world.await_done(&lost, &more).await;
    // An earlier definition is taken up without giving up what was split since.
    let mut other = document(8);
    other["timeout"] = json!("1d");
    world.api(b).apply(&other).await.unwrap();
    let back = world.api(a).post("/v1/pipelines/p/rollback", &json!({})).await.unwrap();
    assert_eq!(back.status, 200, "{}", back.body);
    let shown = world.api(b).get("/v1/pipelines/p").await.unwrap().body;
    let definition = &shown["definition"];
    assert_eq!((&definition["partitions"], &definition["timeout"]), (&json!(8), &Value::Null));
    let fewer = world.api(a).apply(&document(2)).await.unwrap_err().to_string();
    assert!(fewer.contains("has 8 partitions, and they cannot become 2"), "{fewer}");
}

#[tokio::test]
async fn events_of_all_partitions_are_one_stream_that_is_taken_up_anywhere() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    world.api("a").apply(&document(4)).await.unwrap();
    coordinators(&world.api("a"), 4, None).await;
    let mut jobs = Vec::new();
    for _ in 0..12 {
        jobs.extend(world.enqueue("a", 1).await);
    }
    world.await_done("a", &jobs).await;
    let began = Instant::now();
    let all = loop {
        let all = events(&world, "b", "oldest").await;
        if all.iter().filter(|event| event["kind"] == "succeeded").count() == jobs.len() {
            break all;
        }
        assert!(began.elapsed() < PATIENCE, "{} events", all.len());
    };
    let tokens: BTreeSet<String> = all.iter().map(|event| text(&event["token"])).collect();
    assert_eq!(tokens.len(), all.len(), "each has a place of its own");
    // From each third of them on, from another node: exactly what is missing comes.
    let name = |event: &Value| (text(&event["job"]), text(&event["kind"]), text(&event["phase"]));
    for at in (0..all.len()).step_by(all.len() / 3) {
        let rest = events(&world, "c", &text(&all[at]["token"])).await;
        let mut came: BTreeMap<_, u32> = BTreeMap::new();
        rest.iter().for_each(|event| *came.entry(name(event)).or_default() += 1);
        let mut expected: BTreeMap<_, u32> = BTreeMap::new();
        all[at + 1..].iter().for_each(|event| *expected.entry(name(event)).or_default() += 1);
        assert_eq!(came, expected, "behind {at} of {}", all.len());
    }
    // Of one job, there is one stream as ever.
    let path = format!("/v1/jobs/{}/logs", jobs[0]);
    assert_eq!(world.api("b").get(&path).await.unwrap().status, 200);
}
