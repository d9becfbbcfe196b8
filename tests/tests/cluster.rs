//! Clusters of real processes that lose nodes, and no jobs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use carbonmesh_examples::local::NodeOptions;
use carbonmesh_tests::{NAMES, PATIENCE, World, text};
use serde_json::json;

#[tokio::test]
async fn every_node_takes_jobs() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{\"done\":true}'");
    world.await_members("a", 3).await;
    world.apply("a", 3).await;
    for name in NAMES {
        let jobs = world.enqueue(name, 5).await;
        world.await_done("a", &jobs).await;
        let job = world.api("b").get(&format!("/v1/jobs/{}", jobs[0])).await.unwrap().body;
        assert_eq!(job["result"], json!({ "number": 0, "done": true }), "{job}");
    }
    assert_eq!(world.runs().len(), 3 * 5 * 3, "each phase of each job ran once");
}

#[tokio::test]
async fn a_killed_coordinator_costs_no_job() {
    let mut world = World::default();
    world.start_all(&NAMES, "sleep 0.02; echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 3).await;
    let jobs = world.enqueue("a", 60).await;
    world.await_runs(20).await;
    let coordinator = world.coordinator("a").await;
    world.cluster.kill(&coordinator).unwrap();
    let survivor = NAMES.into_iter().find(|name| *name != coordinator).unwrap();
    world.await_done(survivor, &jobs).await;
    // What ran on the nodes that live was adopted, not run again.
    let mut by_run: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
    for run in world.runs() {
        by_run.entry((run[0].clone(), run[1].clone())).or_default().push(run[3].clone());
    }
    assert_eq!(by_run.len(), 60 * 3);
    for (run, nodes) in by_run {
        let elsewhere = nodes.iter().filter(|node| **node != coordinator).count();
        assert_eq!(elsewhere.max(1), 1, "{run:?} ran on {nodes:?}");
    }
}

#[tokio::test]
async fn a_killed_workers_jobs_run_elsewhere() {
    let mut world = World::default();
    // The first to run hangs; whoever runs it after that does not.
    let marker = world.cluster.folder().join("hung");
    let script = format!("mkdir {} 2>/dev/null && sleep 600; echo '{{}}'", marker.display());
    world.start_all(&NAMES, &script);
    world.await_members("a", 3).await;
    world.apply("a", 1).await;
    let jobs = world.enqueue("a", 1).await;
    world.await_runs(1).await;
    let began = Instant::now();
    while !marker.exists() {
        assert!(began.elapsed() < PATIENCE, "the first run does not hang");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let worker = world.runs()[0][3].clone();
    world.cluster.kill(&worker).unwrap();
    let survivor = NAMES.into_iter().find(|name| *name != worker).unwrap();
    world.await_done(survivor, &jobs).await;
    assert_ne!(world.runs()[1][3], worker);
}

#[tokio::test]
async fn a_killed_node_leaves_no_command_behind() {
    let mut world = World::default();
    let pid = world.cluster.folder().join("pid");
    let script = format!("sleep 600 & echo $! >{}; wait", pid.display());
    world.start_all(&["a"], &script);
    world.apply("a", 1).await;
    world.enqueue("a", 1).await;
    world.await_runs(1).await;
    let began = Instant::now();
    let pid = loop {
        if let Ok(pid) = fs::read_to_string(&pid).unwrap_or_default().trim().parse::<u32>() {
            break pid;
        }
        assert!(began.elapsed() < PATIENCE, "the command does not run");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let lives = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // One that nobody has waited for yet is dead all the same.
        !stat.is_empty() && !stat.contains(") Z ")
    };
    assert!(lives());
    world.cluster.kill("a").unwrap();
    while lives() {
        assert!(began.elapsed() < PATIENCE, "process {pid} outlives its node");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn one_of_three_finishes_what_was_acknowledged() {
    let mut world = World::default();
    world.start_all(&NAMES, "sleep 0.02; echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 2).await;
    let jobs = world.enqueue("a", 40).await;
    world.await_runs(10).await;
    world.cluster.kill("a").unwrap();
    world.cluster.kill("b").unwrap();
    world.await_done("c", &jobs).await;
}

#[tokio::test]
async fn a_whole_cluster_comes_back_on_other_ports() {
    let mut world = World::default();
    world.start_all(&NAMES, "sleep 0.05; echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 2).await;
    let jobs = world.enqueue("a", 40).await;
    world.await_runs(5).await;
    let disks = disks(&world).await;
    world.cluster.stop("a").unwrap();
    world.cluster.kill("b").unwrap();
    world.cluster.kill("c").unwrap();
    for name in NAMES {
        world.cluster.restart(name).unwrap();
    }
    world.await_members("b", 3).await;
    world.await_done("c", &jobs).await;
    assert_eq!(disks, self::disks(&world).await, "a kill makes no disk a new one");
}

/// Each node's name and disk.
async fn disks(world: &World) -> BTreeMap<String, String> {
    let nodes = world.api("a").get("/v1/nodes").await.unwrap().body;
    let nodes = nodes["nodes"].as_array().unwrap().iter();
    nodes.map(|node| (text(&node["name"]), text(&node["disk"]))).collect()
}

#[tokio::test]
async fn a_node_that_joins_late_gets_the_work_that_waited_for_it() {
    let mut world = World::default();
    world.start("a", "", String::new());
    world.apply("a", 1).await;
    let jobs = world.enqueue("a", 3).await;
    let status = world.api("a").get("/v1/status").await.unwrap().body;
    let waited_for = &status["pipelines"][0]["unoffered"];
    assert_eq!(*waited_for, json!(["step"]), "the status says which phase is waited for: {status}");
    let config = world.phase("late", "step", "echo '{}'");
    world.start("late", "worker", config);
    world.await_done("a", &jobs).await;
    assert!(world.runs().iter().all(|run| run[3] == "late"));
}

#[tokio::test]
async fn a_node_with_another_secret_stays_outside() {
    let mut world = World::default();
    for (name, secret) in [
        ("a", "correct horse battery"),
        ("b", "wrong horse, as long"),
        ("c", "correct horse battery"),
    ] {
        let env = vec![("CARBONMESH_SECRET".to_owned(), secret.to_owned())];
        world.cluster.start(name, NodeOptions { env, ..NodeOptions::default() }).unwrap();
    }
    world.await_members("a", 2).await;
    world.await_members("b", 1).await;
    let log = world.cluster.log("a");
    assert!(log.contains("another cluster secret"), "{log}");
}

#[tokio::test]
async fn misbehaving_commands_fail_with_a_reason() {
    let mut world = World::default();
    let mut config = String::new();
    for (name, script) in [
        ("hang", "sleep 600"),
        ("crash", "kill -9 $$"),
        ("text", "echo Hello"),
        ("flood", "head -c 100000000 /dev/zero"),
    ] {
        config += &world.phase("a", name, script);
        config += "timeout = '1s'\n";
    }
    world.start("a", "", config);
    let api = world.api("a");
    for (name, reason) in [
        ("hang", "timed out after 1s"),
        ("crash", "SIGKILL"),
        ("text", "no JSON"),
        ("flood", "max_output"),
    ] {
        let phase = json!({ "name": name, "max_attempts": 1 });
        api.apply(&json!({ "name": name, "phases": [phase] })).await.unwrap();
        let job = api.enqueue_with(name, &json!({}), "?wait=30s").await.unwrap().body;
        assert_eq!(job["state"], "dead", "{job}");
        assert!(job.to_string().contains(reason), "{job}");
    }
}
