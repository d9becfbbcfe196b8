//! Events and logs of whole clusters, as the command line shows them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::{NodeOptions, program};
use carbonmesh_tests::{NAMES, PATIENCE, World, text};
use serde_json::{Value, json};

/// A command whose output goes to a file; it ends with this.
struct Shown {
    child: Child,
    path: PathBuf,
}

impl Shown {
    fn new(world: &World, node: &str, args: &[&str]) -> Self {
        let path = world.cluster.folder().join(format!("{}.shown", args.join("-")));
        let file = File::create(&path).expect("room for a file");
        let mut command = Command::new(program("carbonmesh").expect("it is built"));
        command.args(["--api", world.cluster.http(node).expect("it runs")]).args(args);
        command.stdin(Stdio::null()).stdout(file).stderr(Stdio::null());
        Self { child: command.spawn().expect("it starts"), path }
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.path).expect("it is there")
    }

    /// Lines that are whole by now, as JSON.
    fn lines(&self) -> Vec<Value> {
        let text = self.text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    async fn until(&self, what: &str, holds: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let began = Instant::now();
        loop {
            let lines = self.lines();
            if holds(&lines) {
                return lines;
            }
            assert!(began.elapsed() < PATIENCE, "waited for: {what}\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ended(&mut self) -> bool {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.success();
            }
            assert!(began.elapsed() < PATIENCE, "it does not end:\n{}", self.text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn count(lines: &[Value], kind: &str, jobs: &[String]) -> usize {
    let of_kind = lines.iter().filter(|line| line["kind"] == kind);
    of_kind.filter(|line| jobs.contains(&text(&line["job"]))).count()
}

#[tokio::test]
async fn events_are_followed_over_the_loss_of_the_coordinator() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    world.apply("a", 2).await;
    let lost = world.coordinator("a").await;
    let asked = NAMES.into_iter().find(|name| *name != lost).expect("two others");
    let shown = Shown::new(&world, asked, &["events", "p", "--follow", "--output", "json"]);
    let first = world.enqueue(asked, 20).await;
    shown.until("the end of the first jobs", |lines| count(lines, "succeeded", &first) == 20).await;
    world.cluster.kill(&lost).expect("it ran");
    let began = Instant::now();
    while world.coordinator(asked).await == lost {
        assert!(began.elapsed() < PATIENCE, "no other coordinator");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    shown
        .until("another coordinator", |lines| {
            lines.iter().filter(|line| line["kind"] == "coordinator").count() == 2
        })
        .await;
    let second = world.enqueue(asked, 20).await;
    let lines = shown
        .until("the end of the others", |lines| count(lines, "succeeded", &second) == 20)
        .await;
    assert_eq!(count(&lines, "enqueued", &second), 20);
    // What the lost one may have kept is told to be missing, right before the new one's first event.
    let at = lines.iter().rposition(|line| line["kind"] == "coordinator").expect("a second one");
    assert_eq!(lines[at - 1]["kind"], "gap", "{:?}", &lines[at - 1]);
    let tokens: BTreeSet<String> = lines.iter().map(|line| text(&line["token"])).collect();
    assert_eq!(tokens.len(), lines.len(), "each comes once");
    for job in first.iter().chain(&second) {
        let of_job = lines.iter().filter(|line| line["job"] == **job);
        let kinds: Vec<String> = of_job.map(|line| text(&line["kind"])).collect();
        assert_eq!(kinds.last().map(String::as_str), Some("succeeded"), "{kinds:?}");
        let attempts = kinds.iter().filter(|kind| *kind == "attempt_started").count();
        let ends = kinds.iter().filter(|kind| *kind == "phase_succeeded").count();
        assert_eq!((attempts, ends), (2, 2), "{kinds:?}");
    }
}

#[tokio::test]
async fn the_log_of_a_command_is_followed_to_its_end() {
    let mut world = World::default();
    let script = "for at in 1 2 3 4 5; do echo line $at >&2; sleep 0.2; done; echo '{}'";
    world.start_all(&["a", "b"], script);
    world.await_members("a", 2).await;
    world.apply("a", 1).await;
    world.coordinator("a").await;
    let job = world.enqueue("a", 1).await.remove(0);
    world.await_runs(1).await;
    let mut shown = Shown::new(&world, "b", &["logs", "-f", &job]);
    assert!(shown.ended().await, "{}", shown.text());
    let text = shown.text();
    let lines: Vec<&str> =
        text.lines().filter_map(|line| Some(line.split_once("s0#1 | ")?.1)).collect();
    assert_eq!(lines, ["line 1", "line 2", "line 3", "line 4", "line 5"], "{text}");
    // Without -f, what is kept.
    let mut again = Shown::new(&world, "a", &["logs", &job]);
    assert!(again.ended().await);
    assert_eq!(again.text(), text);
}

const HANDLERS: &str = r#"
from carbonmesh import Phase, Pipeline

class Talk(Phase):
    job_type = 'talk'
    def execute(self, instructions):
        print('this belongs to the log')
        return {}

class Talks(Pipeline):
    name = 'talks'
    phases = [Talk]
"#;

#[tokio::test]
async fn the_log_of_a_handler_in_python_is_shown() {
    let mut world = World::default();
    let file = world.cluster.folder().join("handlers.py");
    fs::write(&file, HANDLERS).expect("room for a file");
    let cache = world.cluster.folder().join("cache").display().to_string();
    let options = NodeOptions {
        command: vec!["bundle".to_owned(), file.display().to_string()],
        env: vec![("XDG_CACHE_HOME".to_owned(), cache)],
        ..NodeOptions::default()
    };
    world.cluster.start("a", options).expect("it starts");
    let (api, began) = (world.api("a"), Instant::now());
    while api.get("/v1/pipelines/talks").await.expect("an answer").status != 200 {
        assert!(began.elapsed() < PATIENCE, "the pipeline is not known");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let done = api.enqueue_with("talks", &json!({}), "?wait=30s").await.expect("an answer").body;
    assert_eq!(done["state"], "succeeded", "{done}");
    // What an attempt says comes on a way of its own, which nothing waits for.
    loop {
        let mut shown = Shown::new(&world, "a", &["logs", &text(&done["id"])]);
        assert!(shown.ended().await);
        if shown.text().contains("talk#1 | this belongs to the log") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{}", shown.text());
    }
    let cluster = Shown::new(&world, "a", &["events", "--output", "json"]);
    cluster
        .until("what the node saw", |lines| {
            lines.iter().any(|line| line["kind"] == "coordinator_seen")
        })
        .await;
}
