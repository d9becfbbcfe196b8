//! Clusters of real processes that lose nodes, and no jobs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use carbonmesh_examples::{
    api::Api,
    local::{LocalCluster, NodeOptions, program},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster whose phases write down that they run, and where.
struct World {
    cluster: LocalCluster,
}

impl World {
    fn new() -> Self {
        Self { cluster: LocalCluster::new(program("carbonmesh").unwrap()).unwrap() }
    }

    /// Each run is one line: job, step, attempt and node.
    fn runs_path(&self) -> PathBuf {
        self.cluster.folder().join("runs")
    }

    /// A phase that says that it runs, then does what `script` says.
    fn phase(&self, node: &str, name: &str, script: &str) -> String {
        let runs = self.runs_path();
        let script = format!(
            "cat >/dev/null; echo $CARBONMESH_JOB_ID $CARBONMESH_STEP $CARBONMESH_ATTEMPT {node} \
             >> {}; {script}",
            runs.display()
        );
        format!("[phases.{name}]\nslots = 4\ncommand = ['sh', '-c', {script:?}]\n")
    }

    fn start(&mut self, name: &str, roles: &str, config: String) {
        let options = NodeOptions { roles: roles.to_owned(), config, ..NodeOptions::default() };
        self.cluster.start(name, options).unwrap();
    }

    /// Nodes that do everything, each with the phase `step`.
    fn start_all(&mut self, names: &[&str], script: &str) {
        for name in names {
            let config = self.phase(name, "step", script);
            self.start(name, "", config);
        }
    }

    fn api(&self, node: &str) -> Api {
        self.cluster.api(node).unwrap()
    }

    async fn await_members(&self, asked: &str, count: u64) {
        let api = self.api(asked);
        let began = Instant::now();
        loop {
            let status = api.get("/v1/status").await.unwrap().body;
            if status["members"]["alive"] == count {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{count} members were expected: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn apply(&self, node: &str, steps: usize) {
        let phases: Vec<Value> =
            (0..steps).map(|step| json!({ "name": format!("s{step}"), "phase": "step" })).collect();
        self.api(node).apply(&json!({ "name": "p", "phases": phases })).await.unwrap();
    }

    async fn enqueue(&self, node: &str, count: usize) -> Vec<String> {
        let jobs: Vec<Value> = (0..count).map(|number| json!({ "number": number })).collect();
        let answers = self.api(node).enqueue_bulk("p", &jobs).await.unwrap();
        let ids: Vec<String> = answers.iter().map(|answer| text(&answer["id"])).collect();
        assert!(ids.iter().all(|id| !id.is_empty()), "{answers:?}");
        ids
    }

    /// Waits until every one of these jobs has succeeded.
    async fn await_done(&self, node: &str, jobs: &[String]) {
        let api = self.api(node);
        for job in jobs {
            let path = format!("/v1/jobs/{job}?wait=30s");
            let began = Instant::now();
            loop {
                let last = api.get(&path).await.map(|answer| answer.body);
                match &last {
                    Ok(body) if body["state"] == "succeeded" => break,
                    _ => assert!(began.elapsed() < PATIENCE, "job {job}: {last:?}"),
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }

    fn runs(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.runs_path()).unwrap_or_default();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    async fn await_runs(&self, count: usize) {
        let began = Instant::now();
        while self.runs().len() < count {
            assert!(began.elapsed() < PATIENCE, "only {} runs", self.runs().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn coordinator(&self, asked: &str) -> String {
        let began = Instant::now();
        loop {
            if let Ok(Some(name)) = self.cluster.coordinator(asked, "p").await {
                return name;
            }
            assert!(began.elapsed() < PATIENCE, "no coordinator");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

const NAMES: [&str; 3] = ["a", "b", "c"];

#[tokio::test]
async fn every_node_takes_jobs() {
    let mut world = World::new();
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
    let mut world = World::new();
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
    let mut world = World::new();
    // The first to run hangs; whoever runs it after that does not.
    let marker = world.cluster.folder().join("hung");
    let script = format!("mkdir {} 2>/dev/null && sleep 600; echo '{{}}'", marker.display());
    world.start_all(&NAMES, &script);
    world.await_members("a", 3).await;
    world.apply("a", 1).await;
    let jobs = world.enqueue("a", 1).await;
    world.await_runs(1).await;
    let worker = world.runs()[0][3].clone();
    world.cluster.kill(&worker).unwrap();
    let survivor = NAMES.into_iter().find(|name| *name != worker).unwrap();
    world.await_done(survivor, &jobs).await;
    assert_ne!(world.runs()[1][3], worker);
}

#[tokio::test]
async fn one_of_three_finishes_what_was_acknowledged() {
    let mut world = World::new();
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
    let mut world = World::new();
    world.start_all(&NAMES, "sleep 0.05; echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 2).await;
    let jobs = world.enqueue("a", 40).await;
    world.await_runs(5).await;
    world.cluster.stop("a").unwrap();
    world.cluster.kill("b").unwrap();
    world.cluster.kill("c").unwrap();
    for name in NAMES {
        world.cluster.restart(name).unwrap();
    }
    world.await_members("b", 3).await;
    world.await_done("c", &jobs).await;
}

#[tokio::test]
async fn a_node_that_joins_late_gets_the_work_that_waited_for_it() {
    let mut world = World::new();
    world.start("a", "", String::new());
    world.apply("a", 1).await;
    let jobs = world.enqueue("a", 3).await;
    let status = world.api("a").get("/v1/status").await.unwrap().body.to_string();
    assert!(status.contains("step"), "the status says which phase is waited for: {status}");
    let config = world.phase("late", "step", "echo '{}'");
    world.start("late", "worker", config);
    world.await_done("a", &jobs).await;
    assert!(world.runs().iter().all(|run| run[3] == "late"));
}

#[tokio::test]
async fn a_node_with_another_secret_stays_outside() {
    let mut world = World::new();
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
    let mut world = World::new();
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
