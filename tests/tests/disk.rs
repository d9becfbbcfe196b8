//! Disks that fail or are full: nothing is acknowledged that is not on disk, and the node says why
//! it stops.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    process::{Command, Output},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::{LocalCluster, NodeOptions, program};
use carbonmesh_tests::{PATIENCE, World};
use serde_json::{Value, json};

/// A program that does `prepare` in a shell and then becomes a node.
fn wrapped(folder: &std::path::Path, prepare: &str) -> std::path::PathBuf {
    let path = folder.join("node.sh");
    let node = program("carbonmesh").unwrap();
    // Written by another process: while a file is open for writing here, a child that is started
    // by another test at that moment would have it open too, and nobody could run it.
    let script = format!("#!/bin/sh\n{prepare}\nexec {} \"$@\"\n", node.display());
    let write = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
    let status = Command::new("sh").args(["-c", write, "sh", &script]).arg(&path).status();
    assert!(status.unwrap().success());
    path
}

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
    let program = wrapped(folder.path(), "trap '' XFSZ; [ -n \"$FAIL\" ] && ulimit -f 4096");
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
