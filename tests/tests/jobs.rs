//! What users do to jobs, on clusters of real processes that lose their coordinator meanwhile.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::time::{Duration, Instant};

use carbonmesh_examples::api::Api;
use carbonmesh_tests::{NAMES, PATIENCE, World};
use serde_json::{Value, json};

/// Applies a pipeline of this document, named `p`, and waits for somebody to coordinate it.
async fn applied(world: &World, mut document: Value) {
    document["name"] = json!("p");
    world.api("a").apply(&document).await.unwrap();
    world.coordinator("a").await;
}

/// Enqueues one job; gives back its id.
async fn enqueued(api: &Api, job: &Value, query: &str) -> String {
    let receipt = api.enqueue_with("p", job, query).await.unwrap().body;
    receipt["id"].as_str().unwrap().to_owned()
}

async fn job(api: &Api, id: &str) -> Value {
    api.get(&format!("/v1/jobs/{id}")).await.unwrap().body
}

/// Waits until a job is in a state.
async fn await_state(api: &Api, id: &str, state: &str) -> Value {
    let began = Instant::now();
    loop {
        let job = job(api, id).await;
        if job["state"] == state {
            return job;
        }
        assert!(began.elapsed() < PATIENCE, "no job that is {state}: {job}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until so many jobs are in a state.
async fn await_jobs(api: &Api, state: &str, count: usize) -> Vec<Value> {
    let began = Instant::now();
    loop {
        let jobs = api.jobs("p", state).await.unwrap();
        if jobs.len() >= count {
            return jobs;
        }
        assert!(began.elapsed() < PATIENCE, "{} of {count} jobs are {state}", jobs.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Asks until it is done: while a coordinator is being elected nobody can.
async fn posted(api: &Api, path: &str, body: &Value) -> Value {
    let began = Instant::now();
    loop {
        let answer = api.post(path, body).await.unwrap();
        if answer.status == 200 {
            return answer.body;
        }
        let again = [503, 504].contains(&answer.status);
        assert!(again && began.elapsed() < PATIENCE, "{path}: {} {}", answer.status, answer.body);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Kills the coordinator; gives back the name of a node that lives.
async fn without_coordinator(world: &mut World) -> &'static str {
    let coordinator = world.coordinator("a").await;
    world.cluster.kill(&coordinator).unwrap();
    NAMES.into_iter().find(|name| *name != coordinator).unwrap()
}

#[tokio::test]
async fn a_cancelled_job_ends_with_its_command_and_runs_again_when_it_is_retried() {
    let mut world = World::default();
    let marker = world.cluster.folder().join("again");
    let script = format!("test -e {} || sleep 600; echo '{{}}'", marker.display());
    world.start_all(&NAMES, &script);
    world.await_members("a", 3).await;
    applied(&world, json!({ "phases": ["step"] })).await;
    let api = world.api("a");
    let id = enqueued(&api, &json!({}), "").await;
    world.await_runs(1).await;
    let body = json!({ "reason": "wrong file" });
    assert_eq!(posted(&api, &format!("/v1/jobs/{id}/cancel"), &body).await["changed"], 1);
    let cancelled = await_state(&api, &id, "cancelled").await;
    assert_eq!(cancelled["invocations"][0]["note"], "wrong file", "{cancelled}");
    let twice = api.post(&format!("/v1/jobs/{id}/cancel"), &body).await.unwrap();
    assert_eq!((twice.status, &twice.body["changed"]), (200, &json!(0)));
    std::fs::write(marker, "").unwrap();
    let survivor = without_coordinator(&mut world).await;
    let api = world.api(survivor);
    posted(&api, &format!("/v1/jobs/{id}/retry"), &json!({})).await;
    let done = await_state(&api, &id, "succeeded").await;
    assert_eq!(done["generation"], 1, "{done}");
    let late = api.post(&format!("/v1/jobs/{id}/cancel"), &body).await.unwrap();
    assert_eq!(late.status, 409, "{}", late.body);
    assert!(late.body["detail"].as_str().unwrap().contains("succeeded"), "{}", late.body);
}

#[tokio::test]
async fn a_job_waits_for_a_signal_through_a_failover() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    let approval = json!({ "name": "approve", "wait_for": "approval" });
    let after = json!({ "name": "after", "phase": "step" });
    applied(&world, json!({ "phases": ["step", approval, after] })).await;
    let (first, second) = {
        let api = world.api("b");
        (enqueued(&api, &json!({}), "").await, enqueued(&api, &json!({}), "").await)
    };
    world.await_runs(2).await;
    let survivor = without_coordinator(&mut world).await;
    let api = world.api(survivor);
    let path = |id: &str| format!("/v1/jobs/{id}/signals/approval");
    posted(&api, &path(&first), &json!({ "by": "me" })).await;
    let done = await_state(&api, &first, "succeeded").await;
    assert_eq!(done["result"]["by"], "me", "{done}");
    posted(&api, &format!("{}?fail=too+dear", path(&second)), &json!({})).await;
    let dead = await_state(&api, &second, "dead").await;
    assert_eq!(dead["invocations"][1]["note"], "too dear", "{dead}");
    let unknown = format!("/v1/jobs/{second}/signals/other");
    assert_eq!(api.post(&unknown, &json!({})).await.unwrap().status, 409);
}

#[tokio::test]
async fn a_paused_pipeline_gives_nothing_out_until_it_goes_on() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    applied(&world, json!({ "phases": ["step", { "name": "late", "phase": "step" }] })).await;
    posted(&world.api("a"), "/v1/pipelines/p/pause?phase=late", &json!({})).await;
    let id = enqueued(&world.api("b"), &json!({}), "").await;
    world.await_runs(1).await;
    let survivor = without_coordinator(&mut world).await;
    let api = world.api(survivor);
    world.coordinator(survivor).await;
    let shown = api.get("/v1/pipelines/p").await.unwrap().body;
    assert_eq!(shown["paused_phases"], json!(["late"]), "{shown}");
    assert_eq!(job(&api, &id).await["invocations"][0]["state"], "succeeded");
    assert_eq!(world.runs().len(), 1, "the paused phase does not run");
    let wrong = api.post("/v1/pipelines/p/pause?phase=none", &json!({})).await.unwrap();
    assert_eq!(wrong.status, 404, "{}", wrong.body);
    posted(&api, "/v1/pipelines/p/resume?phase=late", &json!({})).await;
    await_state(&api, &id, "succeeded").await;
}

#[tokio::test]
async fn a_job_begins_when_it_should_and_ends_by_its_deadline() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    applied(&world, json!({ "phases": ["step", { "name": "nobody", "phase": "nobody" }] })).await;
    let began = Instant::now();
    let later = enqueued(&world.api("a"), &json!({}), "?delay=4s").await;
    let doomed = enqueued(&world.api("a"), &json!({}), "?timeout=6s").await;
    let survivor = without_coordinator(&mut world).await;
    let api = world.api(survivor);
    await_state(&api, &doomed, "dead").await;
    assert!(began.elapsed() >= Duration::from_secs(6));
    let note = &job(&api, &doomed).await["invocations"][1]["note"];
    assert_eq!(note, "its deadline has passed");
    while job(&api, &later).await["invocations"][0]["state"] != "succeeded" {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let started = world.runs().iter().filter(|run| run[0] == later).count();
    assert_eq!(started, 1, "{:?}", world.runs());
    assert!(began.elapsed() >= Duration::from_secs(4));
}

#[tokio::test]
async fn the_urgent_comes_first_owners_take_turns_and_keys_are_limited() {
    let mut world = World::default();
    // One slot, so that the order can be seen.
    let config = world.phase("a", "step", "echo '{}'").replace("slots = 4", "slots = 1");
    world.start("a", "", config);
    applied(&world, json!({ "fair_by": "/owner", "phases": ["step"] })).await;
    let api = world.api("a");
    posted(&api, "/v1/pipelines/p/pause", &json!({})).await;
    let mut names = std::collections::BTreeMap::new();
    for (name, owner, priority) in
        [("m1", "many", 0), ("m2", "many", 0), ("m3", "many", 0), ("f1", "few", 0), ("now", "x", 5)]
    {
        let query = format!("?priority={priority}");
        names.insert(enqueued(&api, &json!({ "owner": owner }), &query).await, name);
    }
    posted(&api, "/v1/pipelines/p/resume", &json!({})).await;
    world.await_runs(5).await;
    let order: Vec<&str> = world.runs().iter().map(|run| names[&run[0]]).collect();
    assert_eq!(order, ["now", "m1", "f1", "m2", "m3"]);
}

#[tokio::test]
async fn no_two_run_at_once_for_one_key_and_no_more_begin_than_the_rate_allows() {
    let mut world = World::default();
    let lock = world.cluster.folder().join("lock");
    let script = format!(
        "mkdir {0} || echo BESIDE >>{0}.bad; sleep 0.05; rmdir {0}; echo '{{}}'",
        lock.display()
    );
    world.start_all(&NAMES, &script);
    world.await_members("a", 3).await;
    let step = json!({
        "name": "step",
        "limit": { "key": "/account", "running": 1 },
        "rate": { "count": 5, "per": "1s" }
    });
    applied(&world, json!({ "phases": [step] })).await;
    let api = world.api("a");
    let began = Instant::now();
    let mut jobs = Vec::new();
    for _ in 0..11 {
        jobs.push(enqueued(&api, &json!({ "account": 7 }), "").await);
    }
    world.await_done("a", &jobs).await;
    assert!(began.elapsed() >= Duration::from_secs(2), "11 at 5 a second took too little");
    assert!(!lock.with_extension("bad").exists(), "two ran at once");
}

#[tokio::test]
async fn finished_jobs_are_forgotten_and_stay_so() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    let keep = json!({ "succeeded": { "count": 2 }, "dead": { "age": "forever" } });
    applied(&world, json!({ "retention": keep, "phases": ["step"] })).await;
    let jobs = world.enqueue("a", 6).await;
    let began = Instant::now();
    let kept = loop {
        let page = world.api("b").get("/v1/pipelines/p/jobs").await.unwrap().body;
        let page = page["jobs"].as_array().unwrap().clone();
        let done = page.iter().all(|job| job["state"] == "succeeded");
        if page.len() == 2 && done && world.runs().len() == 6 {
            break page;
        }
        assert!(began.elapsed() < PATIENCE, "{page:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let kept: Vec<&str> = kept.iter().map(|job| job["id"].as_str().unwrap()).collect();
    let gone = jobs.iter().find(|job| !kept.contains(&job.as_str())).unwrap();
    assert_eq!(world.api("c").get(&format!("/v1/jobs/{gone}")).await.unwrap().status, 404);
    // A node that was not there when it was forgotten, and has it, does not bring it back.
    let survivor = without_coordinator(&mut world).await;
    let dead = NAMES.into_iter().find(|name| !world.cluster.names().contains(&(*name).into()));
    world.cluster.restart(dead.unwrap()).unwrap();
    world.await_members(survivor, 3).await;
    world.coordinator(survivor).await;
    let api = world.api(survivor);
    let discarded = api.delete(&format!("/v1/jobs/{}", kept[0])).await.unwrap();
    assert!([204, 503].contains(&discarded.status), "{}", discarded.body);
    assert_eq!(api.get(&format!("/v1/jobs/{gone}")).await.unwrap().status, 404);
    assert_eq!(world.runs().len(), 6, "nothing ran again");
}

#[tokio::test]
async fn a_schedule_skips_and_doubles_no_run_when_its_coordinator_is_killed() {
    let mut world = World::default();
    world.start_all(&NAMES, "echo '{}'");
    world.await_members("a", 3).await;
    let tick = json!({ "name": "tick", "cron": "* * * * * *", "instructions": { "by": "tick" } });
    applied(&world, json!({ "schedules": [tick], "phases": ["step"] })).await;
    world.await_runs(3).await;
    let survivor = without_coordinator(&mut world).await;
    let before = world.runs().len();
    world.await_runs(before + 5).await;
    let api = world.api(survivor);
    let began = Instant::now();
    let runs = loop {
        let jobs = api.jobs("p", "succeeded").await.unwrap();
        if jobs.len() >= before + 5 {
            break jobs;
        }
        assert!(began.elapsed() < PATIENCE, "{}", jobs.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut keys: Vec<&str> = runs.iter().map(|job| job["key"].as_str().unwrap()).collect();
    keys.sort_unstable();
    let second = |key: &&str| {
        let at = key.strip_prefix("schedule/tick/").unwrap();
        at.parse::<jiff::Timestamp>().unwrap().as_second()
    };
    let seconds: Vec<i64> = keys.iter().map(second).collect();
    // The last ones may still be on their way.
    let whole = &seconds[..seconds.len() - 2];
    assert!(whole.windows(2).all(|pair| pair[1] == pair[0] + 1), "{keys:?}");
}

#[tokio::test]
async fn runs_beside_one_that_is_unfinished_are_left_out_whoever_coordinates() {
    let mut world = World::default();
    let gate = world.cluster.folder().join("gate");
    world.start_all(
        &NAMES,
        &format!("until [ -e {} ]; do sleep 0.01; done; echo '{{}}'", gate.display()),
    );
    world.await_members("a", 3).await;
    let tick = json!({ "name": "tick", "cron": "* * * * * *", "overlap": "skip" });
    applied(&world, json!({ "schedules": [tick], "phases": ["step"] })).await;
    await_jobs(&world.api("a"), "cancelled", 2).await;
    let survivor = without_coordinator(&mut world).await;
    let api = world.api(survivor);
    let left_out = api.jobs("p", "cancelled").await.unwrap().len();
    let left_out = await_jobs(&api, "cancelled", left_out + 3).await;
    let running = await_jobs(&api, "running", 1).await;
    assert_eq!(running.len(), 1, "one at a time: {running:?}");
    for job in &left_out {
        assert!(job["key"].as_str() > running[0]["key"].as_str(), "{job} is before {running:?}");
        let job = self::job(&api, job["id"].as_str().unwrap()).await;
        let reason = job["invocations"][0]["note"].as_str().unwrap_or_default();
        assert!(reason.contains("left out"), "{job}");
    }
    std::fs::write(&gate, "").unwrap();
    let done = await_jobs(&api, "succeeded", 2).await;
    assert!(done.iter().any(|job| job["id"] == running[0]["id"]), "{done:?}");
}

#[tokio::test]
async fn branches_run_beside_each_other_and_a_join_has_each_result_by_name() {
    let mut world = World::default();
    let both = world.cluster.folder().join("both");
    // Each branch ends only when the other has begun.
    let branch = format!(
        "mkdir -p {0}; touch {0}/$CARBONMESH_STEP; until [ $(ls {0} | wc -l) = 2 ]; do sleep 0.01; \
         done; echo \"{{\\\"from\\\": \\\"$CARBONMESH_STEP\\\"}}\"",
        both.display()
    );
    for name in NAMES {
        let join = "[phases.join]\ncommand = ['sh', '-c', 'cat']\n";
        let config = world.phase(name, "branch", &branch) + join;
        world.start(name, "", config);
    }
    world.await_members("a", 3).await;
    let branch = |name: &str| json!({ "name": name, "phase": "branch", "after": [] });
    let join = json!({ "name": "join", "after": ["left", "right"], "input": "named" });
    applied(&world, json!({ "phases": [branch("left"), branch("right"), join] })).await;
    let api = world.api("b");
    let id = enqueued(&api, &json!({ "n": 1 }), "").await;
    let done = await_state(&api, &id, "succeeded").await;
    let expected = json!({
        "instructions": { "n": 1 },
        "results": { "left": { "from": "left" }, "right": { "from": "right" } }
    });
    assert_eq!(done["invocations"][2]["result"], expected, "{done}");
}

#[tokio::test]
async fn equal_workers_get_equal_shares() {
    const JOBS: usize = 1000;
    let names = ["a", "b", "c", "d"];
    let mut world = World::default();
    // Each takes the same time, so that only the coordinator's choice makes a difference.
    world.start_all(&names, "sleep 0.05; echo '{}'");
    world.await_members("a", names.len() as u64).await;
    world.apply("a", 1).await;
    world.coordinator("a").await;
    let mut ids = Vec::new();
    for _ in 0..JOBS / 250 {
        ids.extend(world.enqueue("a", 250).await);
    }
    world.await_runs(JOBS).await;
    world.await_done("a", &ids).await;
    let mut share = std::collections::BTreeMap::<String, usize>::new();
    let runs = world.runs();
    assert_eq!(runs.len(), JOBS, "each ran once");
    runs.iter().for_each(|run| *share.entry(run[3].clone()).or_default() += 1);
    let equal = JOBS / names.len();
    println!("of {JOBS} jobs: {share:?}");
    for name in names {
        let jobs = share.get(name).copied().unwrap_or_default();
        assert!(jobs.abs_diff(equal) <= equal / 10, "{name} got {jobs}, not {equal}: {share:?}");
    }
}
