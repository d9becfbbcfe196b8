//! Disks that fail or are full: nothing is acknowledged that is not on disk, and the node says why
//! it stops.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::{LocalCluster, NodeOptions, program};
use carbonmesh_tests::{PATIENCE, World, wrapped};
use serde_json::{Value, json};

/// Enqueues jobs of 10 KB until one is not acknowledged; gives back the ids of those that were.
async fn enqueue_until_refused(world: &World, node: &str) -> Vec<String> {
    let (api, mut ids) = (world.api(node), Vec::new());
    let began = Instant::now();
    loop {
        let job = json!({ "number": ids.len(), "text": "x".repeat(10_000) });
        match api.enqueue("p", &job).await {
            Ok(answer) if answer.status == 202 => {
                ids.push(answer.body["id"].as_str().unwrap().to_owned());
            }
            _ => return ids,
        }
        assert!(began.elapsed() < PATIENCE, "{} jobs, and the disk is not full", ids.len());
    }
}

#[tokio::test]
async fn a_node_that_cannot_write_stops_and_keeps_what_it_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    // No file may grow beyond 2 MiB; without the trap the signal would end the process.
    let program =
        wrapped(folder.path(), "trap '' XFSZ; [ -n \"$FAIL\" ] && ulimit -f 4096", "exec");
    let mut world = World { cluster: LocalCluster::new(program).unwrap() };
    let options = |env: Vec<(String, String)>| NodeOptions { env, ..NodeOptions::default() };
    world.cluster.start("a", options(vec![("FAIL".to_owned(), "1".to_owned())])).unwrap();
    world.apply("a", 1).await;
    let ids = enqueue_until_refused(&world, "a").await;
    assert!(ids.len() > 10, "some jobs fit: {}", ids.len());
    let status = world.cluster.await_exit("a", PATIENCE).unwrap();
    assert_eq!(status.code(), Some(5), "{}", world.cluster.log("a"));
    let log = world.cluster.log("a");
    assert!(log.contains("nothing more can be acknowledged"), "{log}");

    // With room again, every acknowledged job is there.
    world.cluster.start("a", options(Vec::new())).unwrap();
    let there = world.api("a").jobs("p", "queued").await.unwrap();
    let there: Vec<&str> = there.iter().filter_map(|job| job["id"].as_str()).collect();
    let lost: Vec<&String> = ids.iter().filter(|id| !there.contains(&id.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} are lost", lost.len(), ids.len());
}

/// Runs a shell script in a mount namespace of its own, with a small disk at `$DISK`.
fn with_small_disk(script: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c"])
        .arg(format!("set -e; mount -t tmpfs -o size=32m none \"$DISK\"; {script}"))
        .env("DISK", folder.path())
        .env("NODE", program("carbonmesh").unwrap())
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_is_told_and_nothing_on_it_is_changed() {
    if !with_small_disk("true").status.success() {
        // Some systems let nobody mount: then only the test above tells of such disks.
        return println!("skipped: this system gives no mount namespaces");
    }
    // The folder is made, filled up, and opened again.
    let output = with_small_disk(
        "ready() { for _ in $(seq 400); do [ -s $DISK/ready ] && return; sleep 0.05; done; exit 9; }
         up=\"timeout 20 $NODE up --data-dir $DISK/data --http 127.0.0.1:0 \
               --listen 127.0.0.1:0 --ready-file $DISK/ready\"
         $up & ready
         kill $!; wait $! || true
         cat /dev/zero >$DISK/filler 2>/dev/null || true
         sums() { find $DISK/data -type f ! -name 'LOG*' | sort | xargs sha256sum; }
         before=$(sums)
         code=0; $up 2>$DISK.log || code=$?
         cat $DISK.log; rm $DISK.log
         after=$(sums)
         [ \"$before\" = \"$after\" ] || echo CHANGED
         rm $DISK/filler $DISK/ready
         $up & ready
         kill $!; wait $! || true
         echo code $code",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("is full: free some space first"), "{text}\n{output:?}");
    assert!(text.contains("code 5") && !text.contains("CHANGED"), "{text}");
}

#[tokio::test]
async fn below_the_mark_of_free_space_no_jobs_are_taken() {
    let mut world = World::default();
    // More than any disk has.
    world.start("a", "", "[limits]\nfree_bytes = 1000000000000000\n".to_owned());
    world.apply("a", 1).await;
    let began = Instant::now();
    let refused = loop {
        let answer = world.api("a").enqueue("p", &json!({})).await.unwrap();
        if answer.status != 202 {
            break answer;
        }
        assert!(began.elapsed() < PATIENCE, "jobs are taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(refused.status, 507, "{refused:?}");
    assert!(refused.body.to_string().contains("limits.free_bytes"), "{refused:?}");
    let nodes: Value = world.api("a").get("/v1/nodes").await.unwrap().body;
    assert!(nodes.to_string().contains("limits.free_bytes"), "{nodes}");
}

/// Files below a folder that hold these bytes.
fn showing(folder: &Path, what: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(showing(&path, what));
        } else if fs::read(&path).unwrap().windows(what.len()).any(|window| window == what) {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn what_is_encrypted_at_rest_is_of_no_use_without_its_key() {
    let mut world = World::default();
    let with_key = |key: &str| {
        let env = vec![("CARBONMESH_ENCRYPTION_KEY".to_owned(), key.to_owned())];
        NodeOptions { env, ..NodeOptions::default() }
    };
    let (key, other) = ("k".repeat(32), "o".repeat(32));
    world.cluster.start("a", with_key(&key)).unwrap();
    let id = world.cluster.id("a").unwrap().to_owned();
    world.apply("a", 1).await;
    let payload = "account 4711 owes nothing to nobody";
    let jobs: Vec<Value> = (0..100).map(|n| json!({ "number": n, "text": payload })).collect();
    world.api("a").enqueue_bulk("p", &jobs).await.unwrap();
    world.cluster.kill("a").unwrap();

    let data = world.cluster.folder().join("a.data");
    for secret in [payload, r#""step""#] {
        let found = showing(&data, secret.as_bytes());
        assert!(found.is_empty(), "{secret}: {found:?}");
    }
    assert!(!fs::read(data.join("key")).unwrap().is_empty());
    let mut refused = |options: NodeOptions, words: &str| {
        let error = world.cluster.start("a", options).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(!error.contains(&key) && !error.contains(&other), "{error}");
    };
    refused(NodeOptions::default(), "give its key with --encryption-key-file");
    refused(with_key(&other), "is encrypted with key");
    refused(with_key("short"), "at least 32 are needed");
    let output = Command::new(program("carbonmesh").unwrap())
        .args(["up", "--http", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(&data)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");

    world.cluster.start("a", with_key(&key)).unwrap();
    assert_eq!(world.cluster.id("a").unwrap(), id);
    let there = world.api("a").jobs("p", "queued").await.unwrap();
    assert_eq!(there.len(), 100);
    let facts = world.api("a").get("/v1/facts").await.unwrap().body;
    assert!(facts.to_string().contains(r#""encrypted":true"#), "{facts}");
    world.cluster.stop("a").unwrap();

    // Another key takes over, and the old one opens nothing any more.
    let new = world.cluster.folder().join("new.key");
    fs::write(&new, &other).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    let rekeyed = Command::new(program("carbonmesh").unwrap())
        .arg("rekey")
        .arg("--data-dir")
        .arg(&data)
        .arg("--new-key-file")
        .arg(&new)
        .env("CARBONMESH_ENCRYPTION_KEY", &key)
        .output()
        .unwrap();
    assert!(rekeyed.status.success(), "{rekeyed:?}");
    let error = world.cluster.start("a", with_key(&key)).unwrap_err().to_string();
    assert!(error.contains("is encrypted with key"), "{error}");
    world.cluster.start("a", with_key(&other)).unwrap();
    assert_eq!(world.api("a").jobs("p", "queued").await.unwrap().len(), 100);
}
