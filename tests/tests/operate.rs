//! What operators do to a running cluster: backups and what they bring back, jobs carried over, lost
//! majorities, restarts under load, logs, and the doctor.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use carbonmesh_examples::{
    api::Api,
    local::{NodeOptions, program},
};
use carbonmesh_tests::{NAMES, PATIENCE, World, text};
use serde_json::{Value, json};

/// Runs the program against a node.
fn carbonmesh(world: &World, node: &str, args: &[&str]) -> Output {
    let mut command = Command::new(program("carbonmesh").unwrap());
    command.args(["--api", world.cluster.http(node).unwrap()]).args(args).output().unwrap()
}

/// What a command printed, which must have succeeded.
fn done(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{:?}: {errors}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Three nodes that may make backups, with the phase `step`.
fn backed_up(script: &str) -> World {
    let mut world = World::default();
    let backups = world.cluster.folder().join("backups").display().to_string();
    for name in NAMES {
        let options = NodeOptions {
            config: world.phase(name, "step", script),
            args: vec!["--backup-dir".to_owned(), backups.clone()],
            ..NodeOptions::default()
        };
        world.cluster.start(name, options).unwrap();
    }
    world
}

/// Makes a new folder for a node, that is down, from its backup.
fn restore(world: &World, node: &str) {
    let at = |name: &str| world.cluster.folder().join(name);
    fs::rename(at(&format!("{node}.data")), at(&format!("{node}.lost"))).unwrap();
    let output = Command::new(program("carbonmesh").unwrap())
        .arg("restore")
        .arg(at("backups").join(node))
        .arg("--data-dir")
        .arg(at(&format!("{node}.data")))
        .output()
        .unwrap();
    assert!(done(&output).contains("new disk"), "it says what that means");
}

async fn disks(world: &World, asked: &str) -> BTreeMap<String, String> {
    let nodes = world.api(asked).get("/v1/nodes").await.unwrap().body;
    let nodes = nodes["nodes"].as_array().unwrap().iter();
    nodes.map(|node| (text(&node["name"]), text(&node["disk"]))).collect()
}

/// Enqueues job after job for `p` until stopped, at any of the nodes; keeps those acknowledged.
struct Load {
    nodes: Arc<Mutex<Vec<Api>>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    fn start(world: &World) -> Self {
        let nodes = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (to, until) = (nodes.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let (mut acknowledged, mut number) = (Vec::new(), 0);
            while !until.load(Ordering::Relaxed) {
                number += 1;
                let api = {
                    let nodes: &Vec<Api> = &to.lock().unwrap();
                    nodes.get(number % nodes.len().max(1)).cloned()
                };
                if let Some(api) = api
                    && let Ok(answer) = api.enqueue("p", &json!({ "load": number })).await
                    && answer.status == 202
                {
                    acknowledged.push(text(&answer.body["id"]));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            acknowledged
        });
        let load = Self { nodes, stop, task };
        load.knows(world);
        load
    }

    /// The nodes that run now are asked from now on.
    fn knows(&self, world: &World) {
        let names = world.cluster.names();
        *self.nodes.lock().unwrap() = names.iter().map(|name| world.api(name)).collect();
    }

    async fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_lost_as_a_whole_comes_back_from_backups_made_under_load() {
    let mut world = backed_up("sleep 0.05; echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 2).await;
    let finished = world.enqueue("a", 5).await;
    world.await_done("a", &finished).await;
    let before = disks(&world, "a").await;
    let load = Load::start(&world);
    let waiting = world.enqueue("b", 60).await;
    for name in NAMES {
        let made = done(&carbonmesh(&world, name, &["backup", name, "-o", "json"]));
        let made: Value = serde_json::from_str(&made).unwrap();
        let manifest = PathBuf::from(text(&made["path"])).join("MANIFEST.json");
        assert!(manifest.is_file(), "{made}");
    }
    let refused = carbonmesh(&world, "a", &["backup", "a"]);
    assert_eq!(refused.status.code(), Some(1), "a backup is not overwritten");
    load.end().await;
    let known_runs = world.runs();
    for name in NAMES {
        world.cluster.kill(name).unwrap();
        restore(&world, name);
    }
    for name in NAMES {
        world.cluster.restart(name).unwrap();
    }
    world.await_members("a", 3).await;
    world.await_done("c", &waiting).await;
    world.await_done("a", &finished).await;
    let after = disks(&world, "a").await;
    assert!(NAMES.iter().all(|name| before[*name] != after[*name]), "{before:?} {after:?}");
    // What had ended before the backups does not run again.
    let again = world.runs().split_off(known_runs.len());
    assert!(again.iter().all(|run| !finished.contains(&run[0])), "{again:?}");
    let log = world.cluster.log("a");
    assert!(log.contains("takes part as a new one"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_restored_beside_the_others_takes_part_again_and_runs_nothing_anew() {
    let mut world = backed_up("echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 1).await;
    let old = world.enqueue("a", 20).await;
    world.await_done("a", &old).await;
    done(&carbonmesh(&world, "c", &["backup", "c"]));
    let later = world.enqueue("a", 20).await;
    world.await_done("a", &later).await;
    world.cluster.kill("c").unwrap();
    restore(&world, "c");
    world.cluster.restart("c").unwrap();
    world.await_members("c", 3).await;
    let began = Instant::now();
    loop {
        let pipeline = world.api("c").get("/v1/pipelines/p").await.unwrap().body;
        if pipeline["counts"]["succeeded"] == 40 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{pipeline}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let last = world.enqueue("c", 10).await;
    world.await_done("c", &last).await;
    let runs: BTreeSet<Vec<String>> = world.runs().iter().map(|run| run[..3].to_vec()).collect();
    assert_eq!(runs.len(), world.runs().len(), "nothing ran again: {:?}", world.runs());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_pipeline_whose_disks_are_all_restored_waits_for_its_operator() {
    let mut world = backed_up("sleep 0.02; echo '{}'");
    world.await_members("a", 3).await;
    let phases = json!([{ "name": "s0", "phase": "step" }]);
    let strict =
        json!({ "name": "p", "accept": "majority", "execute": "majority", "phases": phases });
    world.api("a").apply(&strict).await.unwrap();
    world.coordinator("a").await;
    let jobs = world.enqueue("a", 30).await;
    for name in NAMES {
        done(&carbonmesh(&world, name, &["backup", name]));
    }
    for name in NAMES {
        world.cluster.kill(name).unwrap();
        restore(&world, name);
    }
    for name in NAMES {
        world.cluster.restart(name).unwrap();
    }
    world.await_members("a", 3).await;
    let began = Instant::now();
    let told = loop {
        let output = carbonmesh(&world, "a", &["pipeline", "recover", "p"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        if stderr.contains("may be lost") || stderr.contains("are lost") {
            break stderr;
        }
        assert!(began.elapsed() < PATIENCE, "{stderr}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(told.contains("other disks than before"), "{told}");
    let doctor = carbonmesh(&world, "a", &["doctor"]);
    assert_eq!(doctor.status.code(), Some(8));
    let doctor = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.contains("p has no coordinator"), "{doctor}");
    done(&carbonmesh(&world, "a", &["pipeline", "recover", "p", "--accept-loss"]));
    world.await_done("b", &jobs).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_pipeline_goes_on_with_one_of_three_once_its_operator_gives_the_others_up() {
    let mut world = backed_up("sleep 0.02; echo '{}'");
    world.await_members("a", 3).await;
    let phases = json!([{ "name": "s0", "phase": "step" }]);
    let strict =
        json!({ "name": "p", "accept": "majority", "execute": "majority", "phases": phases });
    world.api("a").apply(&strict).await.unwrap();
    world.coordinator("a").await;
    let jobs = world.enqueue("a", 30).await;
    world.await_done("a", &jobs).await;
    let ids = [world.cluster.id("b").unwrap(), world.cluster.id("c").unwrap()].map(str::to_owned);
    world.cluster.kill("b").unwrap();
    world.cluster.kill("c").unwrap();
    let (b, c) = (ids[0].as_str(), ids[1].as_str());
    let recover = ["pipeline", "recover", "p", "--accept-loss", "--lost", b, "--lost", c];
    let began = Instant::now();
    loop {
        let output = carbonmesh(&world, "a", &recover);
        if output.status.success() {
            break;
        }
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(stderr.contains("a moment ago") || stderr.contains("can be reached"), "{stderr}");
        assert!(began.elapsed() < PATIENCE, "{stderr}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    world.coordinator("a").await;
    let later = world.enqueue("a", 10).await;
    world.await_done("a", &later).await;
    world.cluster.restart("b").unwrap();
    world.await_members("a", 2).await;
    let last = world.enqueue("b", 10).await;
    world.await_done("b", &last).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_are_carried_into_another_cluster_and_a_second_time_make_none_twice() {
    let mut from = World::default();
    // Nobody offers the phase: these jobs wait.
    from.start("a", "", String::new());
    from.apply("a", 1).await;
    from.enqueue("a", 25).await;
    let keyed: Vec<Value> = (0..5).map(|number| json!({ "id": format!("ü{number}") })).collect();
    let lines: Vec<String> = keyed.iter().map(Value::to_string).collect();
    let file = from.cluster.folder().join("jobs");
    fs::write(&file, lines.join("\n")).unwrap();
    let at_file = format!("@{}", file.display());
    done(&carbonmesh(&from, "a", &["enqueue", "p", &at_file, "--ndjson", "--key", "id"]));
    let exported = carbonmesh(&from, "a", &["job", "export", "p"]);
    let exported = done(&exported);
    assert_eq!(exported.lines().count(), 30, "{exported}");
    fs::write(&file, &exported).unwrap();
    let path = file.display().to_string();
    // Into where they are: nothing is made.
    let here = done(&carbonmesh(&from, "a", &["job", "import", &path, "-o", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&here).unwrap()["existed"], 30, "{here}");

    let mut into = World::default();
    into.start_all(&["a"], "echo '{\"done\":true}'");
    into.apply("a", 1).await;
    let import = ["job", "import", path.as_str(), "-o", "json"];
    let first: Value = serde_json::from_str(&done(&carbonmesh(&into, "a", &import))).unwrap();
    assert_eq!((&first["enqueued"], &first["existed"]), (&json!(30), &json!(0)), "{first}");
    into.await_runs(30).await;
    let again: Value = serde_json::from_str(&done(&carbonmesh(&into, "a", &import))).unwrap();
    assert_eq!((&again["enqueued"], &again["existed"]), (&json!(0), &json!(30)), "{again}");
    let began = Instant::now();
    while into.api("a").jobs("p", "succeeded").await.unwrap().len() < 30 {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // What has ended is exported with its result, and not enqueued again.
    let ended = done(&carbonmesh(&into, "a", &["job", "export", "p", "--state", "succeeded"]));
    let results: Vec<Value> =
        ended.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(results.iter().all(|job| job["result"]["done"] == true), "{ended}");
    fs::write(&file, &ended).unwrap();
    let left: Value = serde_json::from_str(&done(&carbonmesh(&into, "a", &import))).unwrap();
    assert_eq!(left["left_out"], 30, "{left}");
    assert_eq!(into.runs().len(), 30, "each ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_restarted_one_after_another_lose_no_job_and_run_no_attempt_twice() {
    let mut world = World::default();
    world.start_all(&NAMES, "sleep 0.05; echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 2).await;
    let load = Load::start(&world);
    world.await_runs(20).await;
    for name in NAMES {
        let others = NAMES.iter().filter(|other| **other != name);
        *load.nodes.lock().unwrap() = others.map(|other| world.api(other)).collect();
        world.cluster.stop(name).unwrap();
        let runs = world.runs().len();
        world.await_runs(runs + 20).await;
        world.cluster.restart(name).unwrap();
        world.await_members(name, 3).await;
        load.knows(&world);
        let runs = world.runs().len();
        world.await_runs(runs + 20).await;
    }
    let acknowledged = load.end().await;
    assert!(acknowledged.len() > 20, "{}", acknowledged.len());
    world.await_done("a", &acknowledged).await;
    let mut by_step: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for run in world.runs() {
        let attempts = by_step.entry((run[0].clone(), run[1].clone())).or_default();
        assert!(attempts.insert(run[2].clone()), "an attempt ran twice: {run:?}");
    }
    for job in &acknowledged {
        let document = world.api("b").get(&format!("/v1/jobs/{job}")).await.unwrap().body;
        for invocation in document["invocations"].as_array().unwrap() {
            let runs = &by_step[&(job.clone(), text(&invocation["step"]))];
            let attempts = invocation["attempt_count"].as_u64().unwrap();
            assert!(runs.len() as u64 <= attempts, "{runs:?} of {invocation}");
        }
    }
    let again: usize = by_step.values().map(|attempts| attempts.len() - 1).sum();
    assert_eq!(again, 0, "whoever stops in order lets its attempts end: {by_step:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_json_if_wanted_change_at_run_time_and_hold_no_secret() {
    const SECRETS: [&str; 3] = ["correct-horse-battery", "phase-token-in-file", "host-env-secret"];
    let mut world = World::default();
    let config = "[phases.step]\ncommand = ['sh', '-c', 'cat >/dev/null; echo {}']\n\
                  env = { TOKEN = 'phase-token-in-file' }\n";
    for name in ["a", "b"] {
        let env = [
            ("CARBONMESH_SECRET", SECRETS[0]),
            ("CARBONMESH_LOG", "trace"),
            ("SERVICE_TOKEN", SECRETS[2]),
        ];
        let options = NodeOptions {
            config: config.to_owned(),
            args: vec!["--log-format".to_owned(), "json".to_owned()],
            env: env.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            ..NodeOptions::default()
        };
        world.cluster.start(name, options).unwrap();
    }
    world.await_members("a", 2).await;
    world.apply("a", 1).await;
    let jobs = world.enqueue("a", 3).await;
    world.await_done("b", &jobs).await;
    let now = done(&carbonmesh(&world, "a", &["node", "log-level", "error", "carbonmesh=info"]));
    assert_eq!(now.trim(), "error,carbonmesh=info");
    let refused = carbonmesh(&world, "a", &["node", "log-level", "carbonmesh=loud"]);
    assert_eq!(refused.status.code(), Some(1));
    let quiet = world.cluster.log("a").lines().count();
    let jobs = world.enqueue("a", 3).await;
    world.await_done("a", &jobs).await;
    let after: Vec<String> =
        world.cluster.log("a").lines().skip(quiet).map(str::to_owned).collect();
    // The last lines of before may have come in between.
    let loud = after.iter().filter(|line| line.contains("\"TRACE\"")).count();
    assert!(loud < 20, "{after:#?}");
    done(&carbonmesh(&world, "a", &["node", "log-level", "--reset"]));
    let jobs = world.enqueue("a", 3).await;
    world.await_done("a", &jobs).await;
    for name in ["a", "b"] {
        let log = world.cluster.log(name);
        assert!(log.lines().count() > 100, "traces are written: {log}");
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
        }
        for secret in SECRETS {
            assert!(!log.contains(secret), "{name} logs {secret}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_a_whole_cluster_well_and_names_a_node_that_is_gone() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    for name in NAMES {
        world.await_members(name, 3).await;
    }
    world.apply("a", 1).await;
    world.coordinator("a").await;
    let findings = |output: &Output| -> Value {
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
    };
    let output = carbonmesh(&world, "a", &["doctor", "-o", "json"]);
    let found = findings(&output);
    assert_ne!(found["worst"], "broken", "{found:#}");
    let of = |found: &Value, check: &str| -> Vec<Value> {
        let all = found["findings"].as_array().unwrap().iter();
        all.filter(|finding| finding["check"] == check).cloned().collect()
    };
    let ways = of(&found, "reachability");
    assert!(ways[0].to_string().contains("6 ways"), "each reaches each: {ways:?}");
    assert_eq!(of(&found, "clocks").len(), 3, "{found:#}");
    assert_eq!(of(&found, "disk").len(), 3, "{found:#}");
    world.cluster.kill("c").unwrap();
    let began = Instant::now();
    loop {
        let output = carbonmesh(&world, "a", &["doctor", "-o", "json"]);
        let found = findings(&output);
        let named = of(&found, "members").iter().any(|it| it["node"] == "c");
        let unreached = of(&found, "reachability").iter().any(|it| {
            it["level"] == "broken"
                && it["advice"].as_str().is_some_and(|it| it.contains("start c"))
        });
        if named && unreached {
            assert_eq!(output.status.code(), Some(8));
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{found:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let yaml = done(&carbonmesh(&world, "a", &["node", "show", "b", "-o", "yaml"]));
    assert!(yaml.contains("\nname: b\n") && yaml.contains("liveness: alive"), "{yaml}");
}
