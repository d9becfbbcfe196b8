//! Values and secrets that the cluster keeps: put once through any node, sealed on every disk, had by phases
//! where the node has the key, and seen by nobody else.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output, Stdio},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::{World, text};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

const FIRST: &str = "hunter2-of-the-cluster";
const SECOND: &str = "correct-horse-battery";

/// Proves that it has the key, and says it in its log.
const CHECK: &str = r#"
[phases.check]
command = ['sh', '-c', 'cat >/dev/null; echo key is $LEDGER_KEY >&2; printf "{\"sha256\": \"%s\", \"region\": \"%s\"}" $(printf %s "$LEDGER_KEY" | sha256sum | cut -c1-64) "$REGION"']
"#;

fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret(world: &World, node: &str, words: &[&str], input: &str) -> Output {
    let mut child = Command::new(program("carbonmesh").unwrap())
        .args(["--api", world.cluster.http(node).unwrap(), "-o", "json", "secret"])
        .args(words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn done(output: &Output) -> Value {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// All files below a folder that have these bytes.
fn files_with(folder: &Path, bytes: &[u8], found: &mut Vec<String>, looked: &mut usize) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_with(&path, bytes, found, looked);
        } else if let Ok(content) = fs::read(&path) {
            *looked += 1;
            if content.windows(bytes.len()).any(|part| part == bytes) {
                found.push(path.display().to_string());
            }
        }
    }
}

fn assert_nowhere(folder: &Path, secret: &str) {
    let (mut found, mut looked) = (Vec::new(), 0);
    files_with(folder, secret.as_bytes(), &mut found, &mut looked);
    assert!(looked > 10, "only {looked} files");
    assert!(found.is_empty(), "{secret} is in {found:?}");
}

/// `a` takes jobs and keeps them, `b` and `c` run them, and `b` alone has the key.
async fn world() -> (World, String) {
    let mut world = World::default();
    let key = world.cluster.folder().join("scope.key");
    let made = Command::new(program("carbonmesh").unwrap())
        .args(["-o", "json", "secret", "key"])
        .arg(&key)
        .output()
        .unwrap();
    let id = text(&done(&made)["key"]);
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let key = key.display().to_string();
    for (name, roles, phases, has_key) in [
        ("a", "gateway,replica", "", false),
        ("b", "worker,replica", CHECK, true),
        ("c", "worker", &CHECK.replace("check", "blind"), false),
    ] {
        let args = match has_key {
            true => vec!["--scope-key-file".to_owned(), key.clone()],
            false => Vec::new(),
        };
        let (roles, config) = (roles.to_owned(), phases.to_owned());
        world
            .cluster
            .start(name, NodeOptions { roles, config, args, ..NodeOptions::default() })
            .unwrap();
    }
    world.await_members("a", 3).await;
    (world, id)
}

async fn run(world: &World, pipeline: &str) -> Value {
    let answer = world.api("a").enqueue_with(pipeline, &json!({}), "?wait=30s").await.unwrap();
    assert_eq!(answer.body["state"], "succeeded", "{}", answer.body);
    answer.body["result"].clone()
}

#[tokio::test]
async fn a_secret_is_put_once_had_where_the_key_is_and_seen_nowhere() {
    let (mut world, id) = world().await;
    let key = world.cluster.folder().join("scope.key").display().to_string();
    let api = world.api("a");
    for phase in ["check", "blind"] {
        api.apply(&json!({ "name": phase, "phases": [phase] })).await.unwrap();
    }
    assert_eq!(run(&world, "check").await["sha256"], sha256(""));

    let put = |value: &str, more: &[&str]| {
        let words = [&["put"], more, &["--scope-key-file", &key]].concat();
        secret(&world, "a", &words, value)
    };
    // Through a node that has no key, for all pipelines; the line end is none of it.
    let first = done(&put(&format!("{FIRST}\n"), &["LEDGER_KEY"]));
    assert_eq!((&first["copies"], &first["key"]), (&json!(3), &json!(id)), "{first}");
    done(&put("eu", &["REGION", "--value", "--pipeline", "ch*", "--phase", "check"]));
    assert_eq!(run(&world, "check").await, json!({ "sha256": sha256(FIRST), "region": "eu" }));
    // A node without the key keeps it, and gives phases nothing.
    assert_eq!(run(&world, "blind").await, json!({ "sha256": sha256(""), "region": "" }));

    // What is known of it is the same everywhere, and never says it.
    for node in ["a", "b", "c"] {
        let list = done(&secret(&world, node, &["ls"], ""));
        let names: Vec<String> =
            list["secrets"].as_array().unwrap().iter().map(|one| text(&one["name"])).collect();
        assert_eq!(names, ["LEDGER_KEY", "REGION"], "{node}: {list}");
        assert!(!list.to_string().contains(FIRST), "{list}");
    }
    let shown = done(&secret(&world, "c", &["show", "LEDGER_KEY"], ""));
    assert_eq!((&shown["hidden"], &shown["namespace"]), (&json!(true), &json!("default")));

    // A change counts for the next job; whoever was away learns of it before it runs anything.
    world.cluster.kill("b").unwrap();
    let words = ["put", "LEDGER_KEY", "--scope-key-file", &key];
    done(&secret(&world, "a", &words, SECOND));
    world.cluster.restart("b").unwrap();
    world.await_members("a", 3).await;
    assert_eq!(run(&world, "check").await["sha256"], sha256(SECOND));
    assert_eq!(
        world.api("b").get("/v1/secrets").await.unwrap().body["secrets"][0]["key"],
        json!(id)
    );

    let gone = secret(&world, "a", &["rm", "LEDGER_KEY"], "");
    assert_eq!(done(&gone)["removed"], "LEDGER_KEY");
    assert_eq!(run(&world, "check").await, json!({ "sha256": sha256(""), "region": "eu" }));
    let unknown = secret(&world, "a", &["show", "LEDGER_KEY"], "");
    assert_eq!(unknown.status.code(), Some(1), "{}", String::from_utf8_lossy(&unknown.stderr));

    // Nobody has said it: no log, no disk, no interface.
    let log = world.cluster.log("b");
    assert!(log.contains("key is [hidden]"), "{log}");
    let jobs = api.get("/v1/pipelines/check/jobs").await.unwrap().body;
    let ids = jobs["jobs"].as_array().unwrap().iter().map(|job| text(&job["id"]));
    let mut paths: Vec<String> = ids.map(|id| format!("/v1/jobs/{id}/logs")).collect();
    assert!(paths.len() >= 4, "{jobs}");
    paths.extend(["/v1/secrets", "/v1/events?follow=false", "/metrics"].map(str::to_owned));
    paths.push("/v1/pipelines/check/events?follow=false".to_owned());
    let mut said = String::new();
    for path in paths {
        let url = format!("{}{path}", world.cluster.http("b").unwrap());
        said += &reqwest::get(url).await.unwrap().text().await.unwrap();
    }
    assert!(said.contains("key is [hidden]"), "{said}");
    for value in [FIRST, SECOND] {
        assert_nowhere(world.cluster.folder(), value);
        assert!(!said.contains(value), "{said}");
    }
}

#[tokio::test]
async fn what_cannot_be_put_is_refused_and_what_cannot_be_opened_is_told() {
    let (world, id) = world().await;
    let folder = world.cluster.folder().to_owned();
    let key = folder.join("scope.key").display().to_string();
    for (words, input, reason) in [
        (vec!["put", "LEDGER_KEY"], "short", "less than 6 bytes"),
        (vec!["put", "PATH"], FIRST, "taken"),
        (vec!["put", "a-b"], FIRST, "letters, digits"),
        (vec!["put", "LEDGER_KEY", "--pipeline", "team/x"], FIRST, "within the namespace"),
    ] {
        let words = [words, vec!["--scope-key-file", &key]].concat();
        let output = secret(&world, "a", &words, input);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(reason) && !error.contains(FIRST), "{error}");
    }
    // A key is never written over, and one that others may read is none.
    let again = secret(&world, "a", &["key", &key], "");
    assert_eq!(again.status.code(), Some(2));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let open = secret(&world, "a", &["put", "KEY", "--scope-key-file", &key], FIRST);
    let error = String::from_utf8_lossy(&open.stderr);
    assert!(error.contains("--scope-key-file") && error.contains("chmod 600"), "{error}");

    // One that another key has sealed stops neither the node nor what it can open.
    let other = folder.join("other.key").display().to_string();
    let other_id = text(&done(&secret(&world, "a", &["key", &other], ""))["key"]);
    done(&secret(&world, "a", &["put", "LOST", "--scope-key-file", &other], SECOND));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    done(&secret(&world, "a", &["put", "LEDGER_KEY", "--scope-key-file", &key], FIRST));
    world.api("a").apply(&json!({ "name": "check", "phases": ["check"] })).await.unwrap();
    assert_eq!(run(&world, "check").await["sha256"], sha256(FIRST));
    assert_eq!(run(&world, "check").await["sha256"], sha256(FIRST));
    let told = |log: &str| log.lines().filter(|line| line.contains("LOST")).count();
    let log = world.cluster.log("b");
    assert!(log.contains(&other_id) && log.contains(&id), "{log}");
    assert_eq!(told(&log), 1, "{log}");
    assert_eq!(told(&world.cluster.log("a")), 0, "a node without a key opens nothing");
}
