//! Phases that do what phases do: succeed, fail, hang, crash, shout.

use std::{fs, time::Instant};

use carbonmesh_protocol::{
    id::{JobId, NodeId, PipelineId, Term, Token},
    io::{Attempt, Outcome},
};
use tokio::sync::mpsc;

use super::*;

const RESULT_BYTES: usize = 1 << 20;

fn attempt(timeout: Option<Duration>) -> Attempt {
    let pipeline = PipelineId::of_name("p");
    let term = Term { counter: 1, node: NodeId::from_bytes([1; 16]), boot: 1 };
    Attempt {
        token: Token { term, sequence: 1 },
        job: JobId::time_ordered(pipeline, 1, [0; 10]),
        pipeline: "p".parse().unwrap(),
        step: "step".parse().unwrap(),
        phase: "phase".parse().unwrap(),
        number: 1,
        timeout,
        key: None,
        instructions: bytes::Bytes::from_static(br#"{"a":1}"#),
        results: vec![bytes::Bytes::from_static(br#"{"b":2}"#)],
        names: None,
        gathered: Vec::new(),
        gives_items: false,
    }
}

fn sh(script: &str) -> ExecPhase {
    ExecPhase::new(ExecSettings {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        directory: None,
        env: BTreeMap::new(),
        max_output: ExecSettings::MAX_OUTPUT,
        no_retry_codes: ExecSettings::NO_RETRY_CODES.to_vec(),
    })
}

/// Runs one attempt to its end.
async fn run(phase: impl Phase, timeout: Option<Duration>) -> Outcome {
    let (ends, mut ended) = mpsc::channel(1);
    let host = host(phase, ends);
    host.start(attempt(timeout));
    ended.recv().await.unwrap().1
}

fn host(phase: impl Phase, ends: mpsc::Sender<News>) -> PhaseHost {
    let name = "phase".parse().unwrap();
    let offered = OfferedPhase { name, slots: 1, timeout: None, phase: Arc::new(phase) };
    PhaseHost::new(vec![offered], (RESULT_BYTES, RESULT_BYTES), ends).expect("threads")
}

fn failed(outcome: Outcome) -> (String, bool) {
    match outcome {
        Outcome::Failed { error, retry, .. } => (error, retry),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_command_gets_json_and_gives_json() {
    assert_eq!(run(sh("cat"), None).await, Outcome::Succeeded(r#"{"a":1,"b":2}"#.into()));
    let variables =
        r#"cat >/dev/null; printf '{"step":"%s","n":%s}' $CARBONMESH_STEP $CARBONMESH_ATTEMPT"#;
    let outcome = run(sh(variables), None).await;
    assert_eq!(outcome, Outcome::Succeeded(r#"{"n":1,"step":"step"}"#.into()));
}

#[tokio::test]
async fn a_command_that_says_nothing_and_reads_nothing_succeeds() {
    assert_eq!(run(sh("true"), None).await, Outcome::Succeeded("{}".into()));
}

#[tokio::test]
async fn exit_codes_say_whether_to_try_again() {
    let (error, retry) = failed(run(sh("echo lost the file >&2; exit 3"), None).await);
    assert_eq!((error.as_str(), retry), ("exit code 3: lost the file", true));
    let (error, retry) = failed(run(sh("exit 65"), None).await);
    assert_eq!((error.as_str(), retry), ("exit code 65", false));
    let (error, retry) = failed(run(sh("kill -SEGV $$"), None).await);
    assert!(error.contains("SIGSEGV") && retry, "{error}");
}

#[tokio::test]
async fn a_command_that_fails_may_say_when_to_try_again() {
    let after = async |script: &str| match run(sh(script), None).await {
        Outcome::Failed { after, retry, .. } => (retry, after),
        other => panic!("{other:?}"),
    };
    let says = "echo '{\"retry_after\": \"30s\"}'; ";
    assert_eq!(after(&format!("{says} exit 1")).await, (true, Some(Duration::from_secs(30))));
    assert_eq!(after(&format!("{says} exit 65")).await, (false, None));
    assert_eq!(after("echo '{\"retry_after\": 30}'; exit 1").await, (true, None));
}

#[tokio::test]
async fn output_that_is_no_object_is_shown() {
    let (error, retry) = failed(run(sh("echo Hello"), None).await);
    assert!(error.contains("no JSON") && error.contains("`Hello`") && !retry, "{error}");
    let (error, _) = failed(run(sh("echo [1]"), None).await);
    assert!(error.contains("not an object"), "{error}");
}

#[tokio::test]
async fn a_hundred_megabytes_are_cut_off() {
    let (error, retry) = failed(run(sh("head -c 100000000 /dev/zero"), None).await);
    assert!(error.contains("max_output") && !retry, "{error}");
    let big = format!(r#"printf '{{"x":"%0{RESULT_BYTES}d"}}' 1"#);
    let (error, _) = failed(run(sh(&big), None).await);
    assert!(error.contains("limits.result_bytes"), "{error}");
}

#[tokio::test]
async fn a_command_that_is_not_there_is_named() {
    let mut settings = sh("").settings();
    settings.command = vec!["/no/such/program".to_owned()];
    let (error, retry) = failed(run(ExecPhase::new(settings), None).await);
    // Another node may have it.
    assert!(error.contains("/no/such/program") && retry, "{error}");
}

#[tokio::test]
async fn a_hanging_command_ends_with_all_that_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    // The grandchild holds the pipes, and takes no notice of SIGTERM.
    let script = format!("sh -c 'trap \"\" TERM; echo $$ > {}; sleep 600' & wait", path.display());
    let began = Instant::now();
    let (error, retry) = failed(run(sh(&script), Some(Duration::from_millis(500))).await);
    assert!(error.contains("timed out after 500ms") && retry, "{error}");
    assert!(began.elapsed() < Duration::from_secs(30));
    let pid: i32 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    assert_gone(pid).await;
}

#[tokio::test]
async fn what_a_command_leaves_behind_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pid");
    let script = format!("sleep 600 & echo $! > {}; echo '{{}}'", path.display());
    assert_eq!(run(sh(&script), None).await, Outcome::Succeeded("{}".into()));
    let pid: i32 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    assert_gone(pid).await;
}

/// Killed, and reaped by whoever is its parent now, or a zombie until then.
async fn assert_gone(pid: i32) {
    for _ in 0..500 {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = state.rsplit(')').next().unwrap_or_default().trim().to_owned();
        if state.is_empty() || state.starts_with('Z') {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("process {pid} lives");
}

struct Panics;

#[async_trait]
impl Phase for Panics {
    async fn run(&self, _: PhaseContext) -> Result<Fields, PhaseError> {
        panic!("out of luck");
    }
}

#[tokio::test]
async fn a_panic_is_a_failed_attempt() {
    let (error, retry) = failed(run(Panics, None).await);
    assert!(error.contains("out of luck") && retry, "{error}");
}

#[tokio::test]
async fn a_cancelled_attempt_ends_as_such() {
    let (ends, mut ended) = mpsc::channel(1);
    let host = host(sh("sleep 600"), ends);
    let attempt = attempt(None);
    host.start(attempt.clone());
    host.cancel(attempt.token);
    assert_eq!(ended.recv().await, Some((attempt.token, Outcome::Cancelled)));
}
