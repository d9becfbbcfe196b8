//! Phase hosts in whole clusters: files of handlers in Python and JavaScript, whose processes are
//! killed with their nodes and by themselves.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::NodeOptions;
use carbonmesh_tests::{PATIENCE, World, await_job, text};
use serde_json::{Value, json};

const HANDLERS: &str = r#"
import os, time
from carbonmesh import Phase, Pipeline

class Double(Phase):
    job_type = 'double'
    def execute(self, instructions):
        print('this belongs to the log')
        return {'number': instructions['number'] * 2, 'pid': os.getpid()}

class Slow(Phase):
    job_type = 'slow'
    def execute(self, instructions):
        with open(instructions['pids'], 'a') as pids:
            pids.write('%d\n' % os.getpid())
        time.sleep(instructions.get('seconds', 0))
        return {'slow': True}

class Odd(Phase):
    job_type = 'odd'
    def execute(self, instructions):
        raise ValueError('%r is odd' % instructions['number'])

class Twice(Pipeline):
    name = 'twice'
    phases = [Double, Slow]

class Odds(Pipeline):
    name = 'odds'
    phases = [{'name': 'odd', 'max_attempts': 1}]
"#;

fn sdk(part: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk").join(part)
}

/// Starts a node for a file of handlers; the SDK is unpacked beside it.
fn start(world: &mut World, name: &str, file: &Path, command: &[&str]) -> Result<(), String> {
    let mut words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
    words.insert(1, file.display().to_string());
    let cache = world.cluster.folder().join("cache").display().to_string();
    let options = NodeOptions {
        command: words,
        env: vec![("XDG_CACHE_HOME".to_owned(), cache)],
        ..NodeOptions::default()
    };
    world.cluster.start(name, options).map_err(|error| error.to_string())
}

fn handlers(world: &World, text: &str) -> PathBuf {
    let path = world.cluster.folder().join("handlers.py");
    fs::write(&path, text).expect("room for a file");
    path
}

async fn await_pipeline(world: &World, node: &str, name: &str) {
    let (api, began) = (world.api(node), Instant::now());
    while api.get(&format!("/v1/pipelines/{name}")).await.expect("an answer").status != 200 {
        assert!(began.elapsed() < PATIENCE, "pipeline {name} is not known");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_file_of_handlers_is_a_whole_node() {
    let mut world = World::default();
    let file = handlers(&world, HANDLERS);
    start(&mut world, "a", &file, &["bundle"]).unwrap();
    await_pipeline(&world, "a", "twice").await;
    await_pipeline(&world, "a", "odds").await;
    let api = world.api("a");
    let job = json!({ "number": 21, "pids": world.runs_path() });
    let done = api.enqueue_with("twice", &job, "?wait=30s").await.unwrap().body;
    assert_eq!((&done["state"], &done["result"]["number"]), (&"succeeded".into(), &42.into()));
    let dead = api.enqueue_with("odds", &json!({ "number": 3 }), "?wait=30s").await.unwrap().body;
    let error = text(&dead["invocations"][0]["attempts"][0]["error"]);
    assert!(error.contains("3 is odd") && error.contains("Traceback"), "{dead}");
    let log = world.cluster.log("a");
    assert!(log.contains("this belongs to the log"), "{log}");
}

#[tokio::test]
async fn the_example_of_the_sdk_does_what_it_says() {
    let mut world = World::default();
    start(&mut world, "a", &sdk("python/examples/files.py"), &["bundle"]).unwrap();
    await_pipeline(&world, "a", "example-one").await;
    let job = json!({ "size": 100_000 });
    let done = world.api("a").enqueue_with("example-one", &job, "?wait=30s").await.unwrap().body;
    let result = &done["result"];
    assert_eq!((&done["state"], &result["removed"]), (&"succeeded".into(), &true.into()), "{done}");
    assert_eq!(text(&result["sha256"]).len(), 64);
    assert!(!Path::new(&text(&result["path"])).exists());
}

#[tokio::test]
async fn the_client_in_python_speaks_with_a_real_node() {
    let mut world = World::default();
    world.start("a", "", String::new());
    let done = std::process::Command::new("python3")
        .args(["-m", "unittest", "discover", "-p", "test_client.py", "-s"])
        .arg(sdk("python/tests"))
        .env("PYTHONPATH", sdk("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("CARBONMESH_TEST_API", world.cluster.http("a").unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && !said.contains("skipped"), "{said}");
}

#[tokio::test]
async fn phases_and_pipelines_of_a_file_run_on_nodes_of_their_own_and_survive_a_kill() {
    let mut world = World::default();
    let file = handlers(&world, HANDLERS);
    start(&mut world, "a", &file, &["pipeline", "twice"]).unwrap();
    start(&mut world, "b", &file, &["phase", "double", "slow=2"]).unwrap();
    start(&mut world, "c", &file, &["phase", "double", "slow=2"]).unwrap();
    world.await_members("a", 3).await;
    await_pipeline(&world, "a", "twice").await;
    let nodes = world.api("a").get("/v1/nodes").await.unwrap().body;
    let offers = |name: &str| -> Vec<String> {
        let all = nodes["nodes"].as_array().unwrap();
        let node = all.iter().find(|node| node["name"] == name).unwrap();
        node["phases"].as_array().unwrap().iter().map(|it| text(&it["phase"])).collect()
    };
    assert_eq!((offers("a"), offers("b")), (vec![], vec!["double".to_owned(), "slow".to_owned()]));
    let pids = world.runs_path();
    let job = json!({ "number": 1, "pids": pids, "seconds": 600 });
    let stuck = text(&world.api("a").enqueue("twice", &job).await.unwrap().body["id"]);
    world.await_runs(1).await;
    let api = world.api("a");
    let runs = |job: &Value| job["invocations"][1]["state"] == "running";
    let running = await_job(&api, &stuck, runs).await;
    let worker = text(&running["invocations"][1]["attempts"][0]["worker"]["name"]);
    world.cluster.kill(&worker).unwrap();
    // The host ends with its node, and another node runs the phase.
    let first: i32 = world.runs()[0][0].parse().unwrap();
    assert_gone(first).await;
    world.await_runs(2).await;
    world.api("a").post(&format!("/v1/jobs/{stuck}/cancel"), &json!({})).await.unwrap();
    let second: i32 = world.runs()[1][0].parse().unwrap();
    assert_gone(second).await;
    let quick = json!({ "number": 4, "pids": pids });
    let done = world.api("a").enqueue_with("twice", &quick, "?wait=30s").await.unwrap().body;
    assert_eq!(done["result"]["number"], 8, "{done}");
}

async fn assert_gone(pid: i32) {
    let began = Instant::now();
    loop {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit(')').next().unwrap_or_default().trim().to_owned();
        if state.is_empty() || state.starts_with('Z') {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "process {pid} lives");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn handlers_that_cannot_be_used_are_told_of_before_the_node_serves() {
    for (text, reasons) in [
        ("import no_such_module\n", ["Traceback", "no_such_module"]),
        ("from carbonmesh import Phase\nclass A(Phase):\n    pass\n", ["A", "job_type"]),
        ("x = 1\n", ["handlers", "phase"]),
    ] {
        let mut world = World::default();
        let file = handlers(&world, text);
        let error = start(&mut world, "a", &file, &["bundle"]).unwrap_err();
        let log = world.cluster.log("a");
        assert!(error.contains("ended with"), "{error}");
        for reason in reasons {
            assert!(log.contains(reason), "{reason}: {log}");
        }
    }
}

#[tokio::test]
async fn handlers_in_javascript_run_too() {
    let mut world = World::default();
    let file = world.cluster.folder().join("handlers.mjs");
    let library = sdk("javascript/carbonmesh.mjs").canonicalize().unwrap();
    let text = format!(
        "import {{ phase, run }} from {library:?};\n\
         phase('shout', async (instructions) => ({{ text: instructions.text.toUpperCase() }}));\n\
         run();\n"
    );
    fs::write(&file, text).unwrap();
    if std::process::Command::new("node").arg("--version").output().is_err() {
        eprintln!("not tried: there is no Node.js");
        return;
    }
    start(&mut world, "a", &file, &["phase", "shout"]).unwrap();
    let api = world.api("a");
    api.apply(&json!({ "name": "p", "phases": ["shout"] })).await.unwrap();
    let done: Value =
        api.enqueue_with("p", &json!({ "text": "hello" }), "?wait=30s").await.unwrap().body;
    assert_eq!(done["result"]["text"], "HELLO", "{done}");
}

/// A host that listens on a socket, and says in each result who it is.
const LISTENER: &str = r#"
import json, os, socket, sys, threading

def serve(connection):
    stream = connection.makefile('rw', newline='\n')
    def say(frame):
        stream.write(json.dumps(frame) + '\n')
        stream.flush()
    say({'type': 'hello', 'protocol': 1, 'phases': [{'name': 'far'}], 'concurrency': 2})
    for line in stream:
        frame = json.loads(line)
        if frame['type'] == 'run':
            say({'type': 'result', 'id': frame['id'], 'result': {'pid': os.getpid()}})
        elif frame['type'] == 'shutdown':
            break
    connection.close()

path = sys.argv[1]
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(path)
listener.listen()
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
"#;

/// A process that ends with the test.
struct Listener(std::process::Child);

impl Listener {
    fn start(script: &Path, socket: &Path) -> Self {
        let child = std::process::Command::new("python3").arg(script).arg(socket).spawn();
        Self(child.expect("python3 runs"))
    }

    fn pid(&self) -> u64 {
        self.0.id().into()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_host_that_runs_by_itself_is_reached_by_its_socket_and_may_start_again() {
    let mut world = World::default();
    let folder = world.cluster.folder().to_owned();
    let (script, socket) = (folder.join("listener.py"), folder.join("far.sock"));
    fs::write(&script, LISTENER).expect("room for a file");
    let first = Listener::start(&script, &socket);
    let config = format!("[hosts.far]\nslots = 4\nsocket = \"unix:{}\"\n", socket.display());
    world.start("a", "", config);
    let api = world.api("a");
    api.apply(&json!({ "name": "p", "phases": ["far"] })).await.expect("a pipeline");
    let run = async || {
        let receipt = api.enqueue_with("p", &json!({}), "").await.expect("taken").body;
        let done = |job: &Value| job["state"] == "succeeded";
        await_job(&api, &text(&receipt["id"]), done).await
    };
    assert_eq!(run().await["result"]["pid"], first.pid());
    // While nobody listens attempts wait; none fails.
    drop(first);
    let receipt = api.enqueue_with("p", &json!({}), "").await.expect("taken").body;
    let id = text(&receipt["id"]);
    await_job(&api, &id, |job| job["state"] == "running").await;
    let second = Listener::start(&script, &socket);
    let job = await_job(&api, &id, |job| job["state"] == "succeeded").await;
    assert_eq!(job["result"]["pid"], second.pid());
    assert_eq!(job["invocations"][0]["attempts"].as_array().map(Vec::len), Some(1), "{job}");
    assert_eq!(run().await["result"]["pid"], second.pid());
}
