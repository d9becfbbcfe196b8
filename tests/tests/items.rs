//! Jobs that fan out, on clusters of real processes that lose a node meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;

use carbonmesh_examples::api::Api;
use carbonmesh_tests::{NAMES, World, await_job};
use serde_json::{Value, json};

/// `split` gives so many items, `work` passes each on, `collect` keeps what it gets in a file.
fn phases(world: &World, items: u32, work: &str) -> String {
    let kept = world.cluster.folder().join("collected.json");
    let phase = |name: &str, script: &str| {
        format!("[phases.{name}]\nslots = 4\ncommand = [\"sh\", \"-c\", {script:?}]\n")
    };
    [
        phase("split", &format!("seq -f '{{\"n\":%.0f}}' 1 {items}")),
        phase("work", work),
        phase("collect", &format!("cat > '{}' && echo '{{}}'", kept.display())),
    ]
    .concat()
}

async fn started(items: u32, work: &str, pipeline: &Value) -> World {
    let mut world = World::default();
    for name in NAMES {
        let config = phases(&world, items, work);
        world.start(name, "", config);
    }
    world.await_members("a", 3).await;
    world.api("a").apply(pipeline).await.unwrap();
    world.coordinator("a").await;
    world
}

fn pipeline(more: Value) -> Value {
    let mut each = json!({ "name": "work", "for_each": "split" });
    each.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "name": "p", "phases": ["split", each, "collect"] })
}

async fn enqueued(api: &Api) -> String {
    let receipt = api.enqueue_with("p", &json!({}), "").await.unwrap().body;
    receipt["id"].as_str().unwrap().to_owned()
}

fn collected(world: &World) -> Value {
    let kept = fs::read(world.cluster.folder().join("collected.json")).unwrap();
    serde_json::from_slice(&kept).unwrap()
}

#[tokio::test]
async fn all_results_of_all_items_come_together_though_the_coordinator_is_killed() {
    come_together(pipeline(json!({}))).await;
}

#[tokio::test]
async fn the_same_holds_where_a_majority_decides() {
    let mut strict = pipeline(json!({}));
    strict["preset"] = json!("strict");
    come_together(strict).await;
}

async fn come_together(pipeline: Value) {
    let work = "sed 's/n/square/'";
    let world = &mut started(200, work, &pipeline).await;
    let coordinator = world.coordinator("a").await;
    let asked = NAMES.iter().find(|name| **name != coordinator).unwrap();
    let api = world.api(asked);
    let id = enqueued(&api).await;
    let through = world.api(&coordinator);
    await_job(&through, &id, |job| {
        job["invocations"][1]["items"]["ended"].as_u64().is_some_and(|ended| ended > 20)
    })
    .await;
    world.cluster.kill(&coordinator).unwrap();
    await_job(&api, &id, |job| job["state"] == "succeeded").await;
    // Grouped by key, in the order of the items.
    let squares: Vec<u64> = (1..=200).collect();
    assert_eq!(collected(world)["work"], json!({ "square": squares }));
    let items = api.get(&format!("/v1/pipelines/p/jobs?of={id}&limit=1000")).await.unwrap().body;
    assert_eq!(items["jobs"].as_array().unwrap().len(), 200);
}

#[tokio::test]
async fn items_that_fail_fail_the_job_unless_so_many_may() {
    let work = "case $(cat) in *:7}) exit 65;; *) echo '{\"ok\":1}';; esac";
    let world = started(10, work, &pipeline(json!({ "max_attempts": 1 }))).await;
    let api = world.api("a");
    let id = enqueued(&api).await;
    let job = await_job(&api, &id, |job| job["state"] == "dead").await;
    let note = job["invocations"][1]["note"].as_str().unwrap();
    assert!(note.contains("1 of 10 items failed") && note.contains("exit code 65"), "{note}");
    let tolerant = pipeline(json!({ "tolerate_percent": 10, "combine": "list" }));
    api.apply(&tolerant).await.unwrap();
    let id = enqueued(&api).await;
    await_job(&api, &id, |job| job["state"] == "succeeded").await;
    assert_eq!(collected(&world)["work"], json!(vec![json!({"ok": 1}); 9]));
}

#[tokio::test]
async fn a_line_that_is_no_json_fails_with_its_number() {
    let mut world = World::default();
    let phase = |name: &str, script: &str| {
        format!("[phases.{name}]\ncommand = [\"sh\", \"-c\", {script:?}]\n")
    };
    let config = phase("split", "echo '{\"n\":1}'; echo; echo 'no json'") + &phase("work", "cat");
    world.start("a", "", config);
    let api = world.api("a");
    let each = json!({ "name": "work", "for_each": "split" });
    api.apply(&json!({ "name": "p", "phases": ["split", each] })).await.unwrap();
    let id = enqueued(&api).await;
    let job = await_job(&api, &id, |job| job["state"] == "dead").await;
    let error = job["invocations"][0]["attempts"][0]["error"].as_str().unwrap();
    assert!(error.contains("line 3") && error.contains("no JSON"), "{error}");
}

#[tokio::test]
async fn items_of_items_come_together_within_their_own_item() {
    let mut world = World::default();
    let phase = |name: &str, script: &str| {
        format!("[phases.{name}]\nslots = 4\ncommand = [\"sh\", \"-c\", {script:?}]\n")
    };
    let kept = world.cluster.folder().join("collected.json");
    let config = [
        phase("outer", "seq -f '{\"n\":%.0f}' 1 3"),
        phase("inner", "seq -f '{\"m\":%.0f}' 1 4"),
        phase("leaf", "cat"),
        phase("join", "sed 's/.*\"leaf\":\\({[^}]*}\\).*/{\"joined\":\\1}/'"),
        phase("collect", &format!("cat > '{}' && echo '{{}}'", kept.display())),
    ];
    world.start("a", "", config.concat());
    let api = world.api("a");
    let within = json!(["inner", { "name": "leaf", "for_each": "inner" }, "join"]);
    let each = json!({ "name": "each", "for_each": "outer", "phases": within, "combine": "list" });
    api.apply(&json!({ "name": "p", "phases": ["outer", each, "collect"] })).await.unwrap();
    let id = enqueued(&api).await;
    await_job(&api, &id, |job| job["state"] == "succeeded").await;
    let joined = json!({ "joined": { "m": [1, 2, 3, 4] } });
    assert_eq!(collected(&world)["each"], json!(vec![joined; 3]));
}

/// A mapper that leaves a session, what is done with each item, and a reducer that keeps what it reads.
const MAPPER: &str = r#"
import json
from carbonmesh import Phase, Retry

class Split(Phase):
    job_type = 'split'
    def execute(self, instructions):
        self.session['attempt of %d' % self.context.attempt] = self.context.token
        if self.context.attempt == 1:
            # What this attempt has left must not be seen again.
            raise Retry('once', after=0)
        self.session['total'] = {'items': 60}
        for n in range(60):
            yield {'n': n}

class Collect(Phase):
    job_type = 'collect'
    def execute(self, instructions):
        read = {'session': dict(self.session), 'squares': len(instructions['work']['square'])}
        with open(KEPT, 'w') as kept:
            json.dump(read, kept)
"#;

#[tokio::test]
async fn a_reducer_reads_its_mappers_session_though_the_coordinator_is_killed_between() {
    for preset in ["available", "strict"] {
        let world = &mut World::default();
        let kept = world.cluster.folder().join("collected.json");
        let file = world.cluster.folder().join("mapper.py");
        fs::write(&file, MAPPER.replace("KEPT", &format!("{:?}", kept.display().to_string())))
            .unwrap();
        let sdk = concat!(env!("CARGO_MANIFEST_DIR"), "/../sdk/python");
        let host = format!(
            "[hosts.mapper]\nslots = 4\ncommand = [\"python3\", \"-m\", \"carbonmesh\", {:?}]\n\
             env = {{ PYTHONPATH = {sdk:?} }}\n[phases.work]\nslots = 2\n\
             command = [\"sh\", \"-c\", \"sleep 0.05; sed 's/n/square/'\"]\n",
            file.display().to_string()
        );
        for name in NAMES {
            world.start(name, "", host.clone());
        }
        world.await_members("a", 3).await;
        let mut document = pipeline(json!({}));
        document["preset"] = json!(preset);
        world.api("a").apply(&document).await.unwrap();
        let coordinator = world.coordinator("a").await;
        let asked = NAMES.iter().find(|name| **name != coordinator).unwrap();
        let api = world.api(asked);
        let id = enqueued(&api).await;
        let through = world.api(&coordinator);
        await_job(&through, &id, |job| {
            job["invocations"][1]["items"]["ended"].as_u64().is_some_and(|ended| ended > 5)
        })
        .await;
        world.cluster.kill(&coordinator).unwrap();
        let job = await_job(&api, &id, |job| job["state"] == "succeeded").await;
        let read = collected(world);
        assert_eq!(read["squares"], 60, "{preset}: {read}");
        assert_eq!(read["session"]["total"], json!({ "items": 60 }), "{preset}: {read}");
        let attempts = job["invocations"][0]["attempts"].as_array().unwrap();
        let number = &attempts.last().unwrap()["number"];
        let session = read["session"].as_object().unwrap();
        assert_eq!(session.len(), 2, "{preset}: {read}");
        assert!(session.contains_key(&format!("attempt of {number}")), "{preset}: {read}");
    }
}
