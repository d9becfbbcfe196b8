//! WebAssembly on real nodes: phases from files and from the cluster, and modules that behave badly.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::{PATIENCE, World};
use serde_json::{Value, json};

/// Prints `{"version": N}`.
fn prints(version: u32) -> String {
    format!(
        r#"(module
          (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (memory (export "memory") 1)
          (data (i32.const 64) "{{\"version\": {version}}}")
          (func (export "_start")
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 14))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#
    )
}

const SPINS: &str = r#"(module (func (export "_start") (loop $on (br $on))))"#;
const TRAPS: &str =
    r#"(module (func $settle unreachable) (func (export "_start") (call $settle)))"#;
const GROWS: &str = r#"(module (memory (export "memory") 1) (func (export "_start")
    (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable))"#;

/// Opens the first folder that it was granted, and exits with the number of what went wrong.
const READS: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open"
      (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "etc/passwd")
    (func (export "_start")
      (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 10) (i32.const 0)
        (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8)))))"#;

fn module(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.cluster.folder().join(name);
    fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    path
}

fn flag(name: &str, path: &Path) -> String {
    format!("--wasm={name}={}", path.display())
}

fn handler(world: &World, node: &str, words: &[&str]) -> Output {
    Command::new(program("carbonmesh").unwrap())
        .args(["--api", world.cluster.http(node).unwrap(), "-o", "json", "handler"])
        .args(words)
        .output()
        .unwrap()
}

/// PUTs a handler as a document: the status, and the answer.
async fn put(world: &World, node: &str, document: &Value) -> (u16, Value) {
    let url = format!("{}/v1/handlers/work", world.cluster.http(node).unwrap());
    let answer = reqwest::Client::new().put(url).json(document).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

fn done(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test]
async fn modules_that_behave_badly_fail_alone_and_say_how() {
    let mut world = World::default();
    let config = "[phases.spins]\ntimeout = '500ms'\n[phases.grows]\nmax_memory = 2097152\n";
    let args = [("good", prints(1).as_str()), ("spins", SPINS), ("traps", TRAPS), ("grows", GROWS)]
        .iter()
        .chain(&[("reads", READS)])
        .map(|(name, text)| flag(name, &module(&world, name, text)))
        .collect();
    let options = NodeOptions { config: config.to_owned(), args, ..NodeOptions::default() };
    world.cluster.start("a", options).unwrap();
    let api = world.api("a");
    for phase in ["good", "spins", "traps", "grows", "reads"] {
        let once = json!([{ "name": "only", "phase": phase, "max_attempts": 1 }]);
        api.apply(&json!({ "name": phase, "phases": once })).await.unwrap();
    }
    let run = async |pipeline: &str| {
        api.enqueue_with(pipeline, &json!({}), "?wait=30s").await.unwrap().body
    };
    assert_eq!(run("good").await["result"]["version"], 1);
    for (pipeline, said) in [
        ("spins", "timed out after 500ms"),
        ("traps", "unreachable` instruction executed, in settle"),
        ("grows", "at most 2097152 are allowed (max_memory)"),
        ("reads", "exit code 8"),
    ] {
        let ended = run(pipeline).await;
        assert_eq!(ended["state"], "dead", "{ended}");
        let told = ended.to_string();
        assert!(told.contains(said) && told.contains("\"only\""), "{pipeline}: {told}");
    }
    // The node is as well as before.
    assert_eq!(run("good").await["result"]["version"], 1);

    // One that computes when its node is told to end does not keep it.
    api.apply(&json!({ "name": "long", "phases": [{ "name": "only", "phase": "spins", "timeout": "1h" }] }))
        .await
        .unwrap();
    let job = api.enqueue("long", &json!({})).await.unwrap().body;
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let began = Instant::now();
    while api.get(&path).await.unwrap().body["invocations"][0]["state"] != "running" {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let cancelled = api.post(&format!("{path}/cancel"), &json!({})).await.unwrap();
    assert!(cancelled.status < 300, "{}", cancelled.body);
    let ended = api.get(&format!("{path}?wait=10s")).await.unwrap().body;
    assert_eq!(ended["state"], "cancelled", "{ended}");
}

#[tokio::test]
async fn a_file_that_is_no_module_keeps_the_node_from_starting() {
    let mut world = World::default();
    let garbage = world.cluster.folder().join("garbage.wasm");
    fs::write(&garbage, "#!/bin/sh\n").unwrap();
    let args = vec![flag("work", &garbage)];
    let error = world.cluster.start("a", NodeOptions { args, ..NodeOptions::default() });
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--wasm") && error.contains("garbage.wasm"), "{error}");
    assert!(error.contains("no valid WebAssembly module"), "{error}");
}

#[tokio::test]
async fn a_module_is_a_handler_where_its_language_is_accepted() {
    let mut world = World::default();
    for (name, accepts) in [("a", "--accept-handlers=shell"), ("b", "--accept-handlers=wasm")] {
        let args = vec![accepts.to_owned()];
        world.cluster.start(name, NodeOptions { args, ..NodeOptions::default() }).unwrap();
    }
    world.await_members("a", 2).await;
    let api = world.api("a");
    api.apply(&json!({ "name": "p", "phases": ["work"] })).await.unwrap();
    for version in [1, 2] {
        let work = module(&world, "work.wasm", &prints(version));
        let put = done(&handler(&world, "a", &["put", work.to_str().unwrap(), "--slots", "2"]));
        assert_eq!((&put["changed"], &put["copies"]), (&json!(true), &json!(2)), "{put}");
        let began = Instant::now();
        loop {
            let ended = api.enqueue_with("p", &json!({}), "?wait=30s").await.unwrap().body;
            match ended["result"]["version"] == version {
                true => break,
                false => assert!(began.elapsed() < PATIENCE, "{ended}"),
            }
        }
    }
    // It comes back as it went.
    let shown = done(&handler(&world, "b", &["show", "work"]));
    assert_eq!(shown["language"], "wasm");
    let again = json!({ "language": "wasm", "source": shown["source"], "slots": 2 });
    let (_, same) = put(&world, "a", &again).await;
    assert_eq!((&same["sha256"], &same["changed"]), (&shown["sha256"], &json!(false)), "{same}");

    // What is none is refused before it is kept: here by the command line, and by nodes.
    let garbage = world.cluster.folder().join("work.wasm");
    fs::write(&garbage, b"\0asm\x01\0\0\0\x01").unwrap();
    let refused = handler(&world, "a", &["put", garbage.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("no valid WebAssembly"), "{said}");
    for (source, part) in [("!", "no Base64"), ("aGVsbG8=", "no WebAssembly module")] {
        let bad = json!({ "language": "wasm", "source": source });
        let (status, refused) = put(&world, "a", &bad).await;
        assert_eq!(status, 422, "{refused}");
        assert!(refused.to_string().contains(part), "{refused}");
    }
    let kept = api.enqueue_with("p", &json!({}), "?wait=30s").await.unwrap().body;
    assert_eq!(kept["result"]["version"], 2, "{kept}");
}
