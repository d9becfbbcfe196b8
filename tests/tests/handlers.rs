//! Handlers that the cluster keeps: put on one node, run on others, changed under load, removed.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::{PATIENCE, World, text};
use serde_json::{Value, json};

fn source(version: u32) -> String {
    format!(
        "import time\n\
         from carbonmesh import Phase\n\n\
         class Work(Phase):\n    \
             job_type = 'work'\n    \
             def execute(self, instructions):\n        \
                 time.sleep(instructions.get('seconds', 0))\n        \
                 return {{'version': {version}}}\n"
    )
}

fn file(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.cluster.folder().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

fn handler(world: &World, node: &str, words: &[&str]) -> Output {
    Command::new(program("carbonmesh").unwrap())
        .args(["--api", world.cluster.http(node).unwrap(), "-o", "json", "handler"])
        .args(words)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap()
}

fn done(output: &Output) -> Value {
    let (out, error) = (&output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(out).unwrap()
}

/// One node that keeps jobs and runs nothing, one that accepts handlers, one that accepts other ones.
async fn world() -> World {
    let mut world = World::default();
    let cache = world.cluster.folder().join("cache").display().to_string();
    let env = vec![("XDG_CACHE_HOME".to_owned(), cache)];
    for (name, accepts) in
        [("a", None), ("b", Some("--accept-handlers")), ("c", Some("--accept-handlers=shell"))]
    {
        let args = accepts.map(str::to_owned).into_iter().collect();
        let options = NodeOptions { args, env: env.clone(), ..NodeOptions::default() };
        world.cluster.start(name, options).unwrap();
    }
    world.await_members("a", 3).await;
    world
}

async fn offers(world: &World, phase: &str) -> Vec<String> {
    let phases = world.api("a").get("/v1/phases").await.unwrap().body;
    let all = phases["phases"].as_array().unwrap();
    let found = all.iter().find(|one| one["phase"] == phase);
    let nodes = found.map(|one| one["nodes"].as_array().unwrap().clone()).unwrap_or_default();
    nodes.iter().map(|node| text(&node["name"])).collect()
}

#[tokio::test]
async fn a_handler_is_put_runs_within_seconds_changes_under_load_and_goes() {
    let world = world().await;
    let api = world.api("a");
    let work = file(&world, "work.py", &source(1));
    let work = work.to_str().unwrap();
    api.apply(&json!({ "name": "p", "phases": ["work"] })).await.unwrap();

    // Put on a node that runs nothing: its first job ends on another within five seconds.
    let began = Instant::now();
    let put = done(&handler(&world, "a", &["put", work, "--phase", "work", "--slots", "4"]));
    assert_eq!((&put["changed"], &put["copies"]), (&json!(true), &json!(3)), "{put}");
    let first = api.enqueue_with("p", &json!({}), "?wait=30s").await.unwrap().body;
    let took = began.elapsed();
    assert_eq!(first["result"]["version"], 1, "{first}");
    println!("from `handler put` to the end of the first job: {took:?}");
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    // The others hear of it by gossip, in a moment.
    while offers(&world, "work").await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "nobody is told to offer it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(offers(&world, "work").await, ["b"]);

    // Some run for long while it changes; more come all the time. None is lost, none is tried twice.
    let long: Vec<Value> = (0..4).map(|_| json!({ "seconds": 2 })).collect();
    let mut jobs: Vec<String> =
        api.enqueue_bulk("p", &long).await.unwrap().iter().map(|it| text(&it["id"])).collect();
    let (long_jobs, began) = (jobs.clone(), Instant::now());
    loop {
        let job = api.get(&format!("/v1/jobs/{}", jobs[3])).await.unwrap().body;
        if job["invocations"][0]["state"] == "running" {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{job}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fs::write(work, source(2)).unwrap();
    let put = done(&handler(&world, "b", &["put", work, "--slots", "4"]));
    assert_eq!(put["changed"], true, "{put}");
    let mut versions: BTreeMap<u64, usize> = BTreeMap::new();
    let began = Instant::now();
    while versions.get(&2).copied().unwrap_or_default() < 20 {
        assert!(began.elapsed() < PATIENCE, "the new one does not come: {versions:?}");
        let id = text(&api.enqueue("p", &json!({})).await.unwrap().body["id"]);
        let job = api.get(&format!("/v1/jobs/{id}?wait=30s")).await.unwrap().body;
        *versions.entry(job["result"]["version"].as_u64().unwrap()).or_default() += 1;
        jobs.push(id);
    }
    world.await_done("a", &jobs).await;
    for id in &jobs {
        let job = api.get(&format!("/v1/jobs/{id}")).await.unwrap().body;
        assert_eq!(job["invocations"][0]["attempt_count"], 1, "{job}");
        // What ran when it changed has ended on the source that it began with.
        assert!(!long_jobs.contains(id) || job["result"]["version"] == 1, "{job}");
    }

    // One that is no Python is told where it is put, and the one before stays.
    let broken = file(&world, "broken.py", "def execute(:\n");
    let refused = handler(&world, "a", &["put", broken.to_str().unwrap(), "--phase", "work"]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("SyntaxError"), "{said}");
    // One that does not start is told in the node's log, with its traceback; the one before stays.
    let missing = file(&world, "missing.py", "import no_such_module\n");
    done(&handler(&world, "a", &["put", missing.to_str().unwrap(), "--phase", "work"]));
    let began = Instant::now();
    while !world.cluster.log("b").contains("No module named 'no_such_module'") {
        assert!(began.elapsed() < PATIENCE, "{}", world.cluster.log("b"));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let kept = api.enqueue_with("p", &json!({}), "?wait=30s").await.unwrap().body;
    assert_eq!(kept["result"]["version"], 2, "{kept}");

    // It is in use; forced, it goes, and nobody offers the phase any more.
    let refused = handler(&world, "a", &["rm", "work"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("used by p"));
    done(&handler(&world, "a", &["rm", "work", "--force"]));
    let began = Instant::now();
    while !offers(&world, "work").await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "it is still offered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_folder_of_handlers_is_kept_in_step_and_survives_restarts() {
    let mut world = world().await;
    let api = world.api("a");
    let shout = "read -r job; printf '{\"by\": \"shell\", \"secret\": \"%s\"}' \"$CARBONMESH_TEST_SECRET\"\n";
    file(&world, "handlers/shout.sh", shout);
    file(&world, "handlers/work.py", &source(1));
    file(&world, "handlers/README.md", "no handler");
    let folder = world.cluster.folder().join("handlers");
    let folder = folder.to_str().unwrap();
    let dry = done(&handler(&world, "a", &["sync", folder, "--dry-run"]));
    assert_eq!((&dry["new"], &dry["dry_run"]), (&json!(["shout", "work"]), &json!(true)), "{dry}");
    assert_eq!(done(&handler(&world, "a", &["ls"]))["handlers"], json!([]));
    done(&handler(&world, "a", &["sync", folder]));

    // Both nodes accept shell, one of them Python.
    let began = Instant::now();
    while offers(&world, "shout").await.len() < 2 || offers(&world, "work").await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "not all are offered");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(offers(&world, "work").await, ["b"]);
    api.apply(&json!({ "name": "q", "phases": ["shout", "work"] })).await.unwrap();
    let ended = api.enqueue_with("q", &json!({}), "?wait=30s").await.unwrap().body;
    let result = &ended["result"];
    assert_eq!((&result["by"], &result["version"]), (&json!("shell"), &json!(1)), "{ended}");

    // A node that starts again has them on its disk, and offers them without being told.
    world.cluster.kill("b").unwrap();
    world.cluster.restart("b").unwrap();
    let began = Instant::now();
    while offers(&world, "work").await.is_empty() {
        assert!(began.elapsed() < PATIENCE, "it does not come back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    fs::remove_file(format!("{folder}/shout.sh")).unwrap();
    fs::write(format!("{folder}/work.py"), source(2)).unwrap();
    file(&world, "handlers/more.sh", "cat >/dev/null\n");
    let refused = handler(&world, "b", &["sync", folder]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("`shout` is used by q"));
    let synced = done(&handler(&world, "b", &["sync", folder, "--force"]));
    assert_eq!(
        (&synced["unchanged"], &synced["removed"]),
        (&json!(["more", "work"]), &json!(["shout"]))
    );
    let shown = done(&handler(&world, "c", &["show", "work"]));
    assert_eq!(shown["versions"].as_array().unwrap().len(), 2, "{shown}");
    assert_eq!(text(&shown["source"]), source(2));
}
