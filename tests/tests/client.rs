//! The client crate and typed phases against a real cluster that loses a node meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use carbonmesh_client::{
    Client, Error, JobState, Liveness, PhaseSpec, PipelineSpec, ProblemKind, Receipt,
};
use carbonmesh_tests::{NAMES, PATIENCE, World};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

#[derive(Serialize)]
struct Hello {
    name: String,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Greeted {
    greeting: String,
}

/// Three nodes with phases in Rust.
async fn world() -> World {
    let mut world = World::of("rust-node");
    for name in NAMES {
        world.start(name, "", String::new());
    }
    for name in NAMES {
        world.await_members(name, 3).await;
    }
    world
}

fn client(world: &World, nodes: &[&str]) -> Client {
    let urls = nodes.iter().map(|node| world.cluster.http(node).unwrap());
    Client::builder().urls(urls).patience(PATIENCE).build().unwrap()
}

/// Waits until what a client sees is as it should be.
async fn until<T, F: Future<Output = Result<T, Error>>>(
    ask: impl Fn() -> F,
    holds: impl Fn(&T) -> bool,
) -> T {
    let began = Instant::now();
    loop {
        let seen = ask().await;
        if let Ok(seen) = seen
            && holds(&seen)
        {
            return seen;
        }
        assert!(began.elapsed() < PATIENCE, "it does not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn typed_jobs_run_and_keep_running_when_a_node_goes() {
    let mut world = world().await;
    let client = client(&world, &NAMES);
    let applied = client.apply(&PipelineSpec::new("hello").phase("greet")).await.unwrap();
    assert_eq!((applied.name.as_str(), applied.changed), ("hello", true));

    let ada = Hello { name: "Ada".to_owned() };
    let job = client.enqueue("hello", &ada).key("ada").wait(PATIENCE).await.unwrap();
    assert_eq!(job.output::<Greeted>().unwrap().greeting, "Hello, Ada!");
    assert_eq!(job.key.as_deref(), Some("ada"));

    // The node that was asked dies: the next of the URLs takes over, and the key is still one job.
    world.cluster.kill("a").unwrap();
    let again: Receipt = client.enqueue("hello", &ada).key("ada").await.unwrap();
    assert_eq!((again.id.as_str(), again.existed), (job.id.as_str(), true));

    // What does not fit the phase's type is a dead letter that names the field.
    let job = client.enqueue("hello", &json!({ "name": 7 })).wait(PATIENCE).await.unwrap();
    let error = job.output::<Greeted>().unwrap_err();
    assert!(matches!(&error, Error::Failed(failed) if failed.state == JobState::Dead), "{error}");
    let text = error.to_string();
    assert!(text.contains("at `name`: invalid type: integer `7`"), "{text}");
    assert_eq!(job.invocations[0].attempt_count, 1, "a fatal error was tried again");
}

#[tokio::test]
async fn many_jobs_are_enqueued_listed_and_changed() {
    let world = world().await;
    let client = client(&world, &NAMES);
    let spec = PipelineSpec::new("many").phase("greet");
    client.apply(&spec).await.unwrap();
    client.pause("many", None).await.unwrap();
    let paused = until(|| client.pipeline("many"), |it| it.coordinator.is_some()).await;
    assert!(paused.paused);
    assert_eq!(paused.definition.phases()[0].name(), "greet");

    // 2,500 jobs are three parts; sent twice they are the same jobs.
    let jobs = || (0..2500).map(|n| json!({ "id": format!("n{n}"), "name": format!("{n}") }));
    for existed in [false, true] {
        let answers = client.enqueue_many("many").key_field("id").send(jobs());
        let answers: Vec<_> = answers.try_collect().await.unwrap();
        assert_eq!(answers.len(), 2500);
        for answer in answers {
            assert_eq!(answer.result.unwrap().existed, existed, "job {}", answer.index);
        }
    }
    // A job that is none is refused by itself.
    let odd = [json!({ "id": "odd" }), json!({ "no": "key" }), json!([1])];
    let answers: Vec<_> = client.enqueue_many("many").key_field("id").send(odd).collect().await;
    let kinds: Vec<_> = answers
        .iter()
        .map(|it| it.as_ref().unwrap().result.as_ref().map_err(|p| p.kind()))
        .collect();
    assert!(kinds[0].is_ok());
    assert_eq!(kinds[1].unwrap_err(), ProblemKind::NoKey);
    assert_eq!(kinds[2].unwrap_err(), ProblemKind::NotAnObject);

    let page = client.jobs("many").state(JobState::Queued).limit(1000).await.unwrap();
    assert_eq!(page.jobs.len(), 1000);
    let behind = client.jobs("many").after(&page.next.unwrap()).limit(1).await.unwrap();
    assert!(!page.jobs.iter().any(|job| job.id == behind.jobs[0].id));
    let all: Vec<_> = client.jobs("many").limit(700).all().try_collect().await.unwrap();
    assert_eq!(all.len(), 2501);

    let odd = all.iter().find(|job| job.key.as_deref() == Some("odd")).unwrap();
    client.cancel(&odd.id, "not a name").await.unwrap();
    let cancelled = client.job(&odd.id).await.unwrap();
    assert_eq!(cancelled.state, JobState::Cancelled);
    assert!(cancelled.error().is_some_and(|why| why.contains("not a name")), "{cancelled:?}");
    client.retry(&odd.id, true).await.unwrap();
    let error = client.retry(&odd.id, true).await.unwrap_err();
    assert_eq!(error.kind(), Some(ProblemKind::WrongState));
    client.cancel(&odd.id, "again").await.unwrap();
    client.discard(&odd.id).await.unwrap();
    let gone = |job: &Error| job.kind() == Some(ProblemKind::UnknownJob);
    assert!(gone(&client.job(&odd.id).await.unwrap_err()));

    let in_use = client.remove_pipeline("many").await.unwrap_err();
    assert_eq!(in_use.kind(), Some(ProblemKind::PipelineInUse));
    assert_eq!(client.cancel_all("many", JobState::Queued, "enough").await.unwrap(), 2500);
    client.resume("many", None).await.unwrap();
    client.remove_pipeline("many").await.unwrap();
    let unknown = client.pipeline("many").await.unwrap_err();
    assert_eq!(unknown.kind(), Some(ProblemKind::UnknownPipeline));
}

#[tokio::test]
async fn signals_and_the_cluster_are_there_too() {
    let world = world().await;
    let client = client(&world, &["b"]);
    let spec = PipelineSpec::new("ask").phase(PhaseSpec::new("ok").wait_for("yes")).phase("greet");
    client.apply(&spec).await.unwrap();
    let receipt = client.enqueue("ask", &json!({})).await.unwrap();
    let early = client.wait(&receipt.id, Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(early, Error::StillRuns { .. }), "{early}");
    let name = json!({ "name": "Bob" });
    // A phase waits for its signal once the job's coordinator has come to it.
    let began = Instant::now();
    while let Err(error) = client.signal(&receipt.id, "yes", &name).await {
        assert_eq!(error.kind(), Some(ProblemKind::NotAwaited), "{error}");
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let job = client.wait(&receipt.id, PATIENCE).await.unwrap();
    assert_eq!(job.output::<Greeted>().unwrap().greeting, "Hello, Bob!");

    let nodes = client.nodes().await.unwrap();
    assert_eq!(nodes.iter().filter(|node| node.liveness == Liveness::Alive).count(), 3);
    assert!(nodes.iter().all(|node| node.phases.iter().any(|offer| offer.phase == "greet")));
    let status = client.status().await.unwrap();
    assert_eq!((status.members.alive, status.node.name.as_deref()), (3, Some("b")));
    assert_eq!(status.pipelines[0].name, "ask");
    assert_eq!(client.version().await.unwrap().version, status.version);
    assert_eq!(client.pipelines().await.unwrap().len(), 1);
}

#[test]
fn its_tree_has_nothing_of_a_node() {
    let check = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/check-client");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let done = Command::new(check).current_dir(root).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}
