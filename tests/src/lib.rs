//! What the tests of whole clusters share: nodes whose phases write down that they run, and where.

#![expect(clippy::unwrap_used, missing_docs, reason = "a test may panic, and says what it does")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use carbonmesh_examples::{
    api::Api,
    local::{LocalCluster, NodeOptions, program},
};
use serde_json::{Value, json};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster whose phases write down that they run, and where.
pub struct World {
    pub cluster: LocalCluster,
}

impl Default for World {
    fn default() -> Self {
        Self::of("carbonmesh")
    }
}

impl World {
    /// No nodes yet; they will run this program.
    pub fn of(program_name: &str) -> Self {
        Self { cluster: LocalCluster::new(program(program_name).unwrap()).unwrap() }
    }

    /// Each run is one line: job, step, attempt and node.
    pub fn runs_path(&self) -> PathBuf {
        self.cluster.folder().join("runs")
    }

    /// A phase that says that it runs, then does what `script` says.
    pub fn phase(&self, node: &str, name: &str, script: &str) -> String {
        let runs = self.runs_path();
        let script = format!(
            "cat >/dev/null; echo $CARBONMESH_JOB_ID $CARBONMESH_STEP $CARBONMESH_ATTEMPT {node} \
             >> {}; {script}",
            runs.display()
        );
        format!("[phases.{name}]\nslots = 4\ncommand = ['sh', '-c', {script:?}]\n")
    }

    pub fn start(&mut self, name: &str, roles: &str, config: String) {
        let options = NodeOptions { roles: roles.to_owned(), config, ..NodeOptions::default() };
        self.cluster.start(name, options).unwrap();
    }

    /// Nodes that do everything, each with the phase `step`.
    pub fn start_all(&mut self, names: &[&str], script: &str) {
        for name in names {
            let config = self.phase(name, "step", script);
            self.start(name, "", config);
        }
    }

    pub fn api(&self, node: &str) -> Api {
        self.cluster.api(node).unwrap()
    }

    pub async fn await_members(&self, asked: &str, count: u64) {
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

    pub async fn apply(&self, node: &str, steps: usize) {
        let phases: Vec<Value> =
            (0..steps).map(|step| json!({ "name": format!("s{step}"), "phase": "step" })).collect();
        self.api(node).apply(&json!({ "name": "p", "phases": phases })).await.unwrap();
    }

    pub async fn enqueue(&self, node: &str, count: usize) -> Vec<String> {
        let jobs: Vec<Value> = (0..count).map(|number| json!({ "number": number })).collect();
        let answers = self.api(node).enqueue_bulk("p", &jobs).await.unwrap();
        let ids: Vec<String> = answers.iter().map(|answer| text(&answer["id"])).collect();
        assert!(ids.iter().all(|id| !id.is_empty()), "{answers:?}");
        ids
    }

    /// Waits until every one of these jobs has succeeded.
    pub async fn await_done(&self, node: &str, jobs: &[String]) {
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

    pub fn runs(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.runs_path()).unwrap_or_default();
        text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
    }

    pub async fn await_runs(&self, count: usize) {
        let began = Instant::now();
        while self.runs().len() < count {
            assert!(began.elapsed() < PATIENCE, "only {} runs", self.runs().len());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    pub async fn coordinator(&self, asked: &str) -> String {
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

/// Waits until a job is as it should be.
pub async fn await_job(api: &Api, id: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let job = api.get(&format!("/v1/jobs/{id}")).await.unwrap().body;
        if holds(&job) {
            return job;
        }
        assert!(began.elapsed() < PATIENCE * 2, "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A text, or nothing.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Nodes of most clusters.
pub const NAMES: [&str; 3] = ["a", "b", "c"];

/// A program that does `prepare` in a shell and then becomes a node, by way of `exec`.
pub fn wrapped(folder: &Path, prepare: &str, exec: &str) -> PathBuf {
    let path = folder.join("node.sh");
    let node = program("carbonmesh").unwrap();
    // Written by another process: while a file is open for writing here, a child that is started
    // by another test at that moment would have it open too, and nobody could run it.
    let script = format!("#!/bin/sh\n{prepare}\n{exec} {} \"$@\"\n", node.display());
    let write = "printf %s \"$1\" >\"$2\" && chmod 755 \"$2\"";
    let status = Command::new("sh").args(["-c", write, "sh", &script]).arg(&path).status();
    assert!(status.unwrap().success());
    path
}
