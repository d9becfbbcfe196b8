//! Phases that do what phases do: succeed, fail, hang, crash, shout.

use std::{fs, time::Instant};

use carbonmesh_protocol::{
    id::{JobId, NodeId, PipelineId, Term, Token},
    io::{Attempt, Outcome},
    message::SessionOf,
    pipeline::Handling,
};
use tokio::sync::mpsc;

use super::*;
use crate::metrics::Metrics;

const RESULT_BYTES: usize = 1 << 20;

pub(super) fn attempt(timeout: Option<Duration>) -> Attempt {
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
        handling: Handling::default(),
        sessions: Vec::new(),
        trace: None,
    }
}

fn sh(script: &str) -> ExecPhase {
    ExecPhase::new(ExecSettings {
        command: ["sh", "-c", script].map(str::to_owned).to_vec(),
        directory: None,
        env: BTreeMap::new(),
        clean: false,
        max_output: ExecSettings::MAX_OUTPUT,
        no_retry_codes: ExecSettings::NO_RETRY_CODES.to_vec(),
    })
}

/// Runs one attempt to its end.
pub(super) async fn run(phase: impl Phase, timeout: Option<Duration>) -> Outcome {
    let (ends, mut ended) = mpsc::channel(1);
    let runner = runner(phase, ends);
    runner.start(attempt(timeout));
    match ended.recv().await.unwrap() {
        News::Ended(_, outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

pub(super) fn runner(phase: impl Phase, ends: mpsc::Sender<News>) -> PhaseRunner {
    let name = "phase".parse().unwrap();
    let offered = OfferedPhase { name, slots: 1, timeout: None, phase: Arc::new(phase) };
    PhaseRunner::new(vec![offered], (RESULT_BYTES, RESULT_BYTES), ends, Metrics::default())
        .expect("threads")
}

pub(super) fn failed(outcome: Outcome) -> (String, bool) {
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
pub(super) async fn assert_gone(pid: i32) {
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
    let runner = runner(sh("sleep 600"), ends);
    let attempt = attempt(None);
    runner.start(attempt.clone());
    runner.cancel(attempt.token);
    match ended.recv().await.unwrap() {
        News::Ended(token, outcome) => {
            assert_eq!((token, outcome), (attempt.token, Outcome::Cancelled));
        }
        other => panic!("{other:?}"),
    }
}

/// Runs one attempt that gives items, each part of which is said to be durable at once.
pub(super) async fn items_of(phase: impl Phase) -> (Vec<String>, Outcome) {
    let (news, mut heard) = mpsc::channel(1);
    let runner = runner(phase, news);
    let attempt = Attempt { gives_items: true, ..attempt(None) };
    runner.start(attempt);
    let mut items = Vec::new();
    loop {
        match heard.recv().await.unwrap() {
            News::Items { token, lines } => {
                items.extend(String::from_utf8(lines.into()).unwrap().lines().map(str::to_owned));
                runner.items_taken(token);
            }
            News::Session { .. } => {}
            News::Ended(_, outcome) => return (items, outcome),
        }
    }
}

/// Runs one attempt that gives items, and may read these sessions: what it leaves, and its end.
pub(super) async fn session_of(
    phase: impl Phase,
    sessions: Vec<SessionOf>,
) -> (Option<serde_json::Value>, Outcome) {
    let (news, mut heard) = mpsc::channel(1);
    let runner = runner(phase, news);
    runner.start(Attempt { gives_items: true, sessions, ..attempt(None) });
    let mut left = None;
    loop {
        match heard.recv().await.unwrap() {
            News::Items { token, .. } => runner.items_taken(token),
            News::Session { entries, .. } => left = serde_json::from_slice(&entries).ok(),
            News::Ended(_, outcome) => return (left, outcome),
        }
    }
}

/// Leaves what it is to, reads what others left, and fails if it is to.
struct Leaves(Result<(), PhaseError>);

#[async_trait]
impl Phase for Leaves {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        let session = context.session();
        session.set("n", &1)?;
        session.set("gone", &[1, 2])?;
        assert!(session.remove("gone")?);
        assert_eq!(session.get("n")?, Some(1.into()));
        assert_eq!(session.get("old")?, Some("b".into()));
        assert_eq!(session.of("first")?.unwrap()["old"], "a");
        context.give(b"{}").await?;
        self.0
            .clone()
            .map(|()| Fields::from_iter([("all".to_owned(), session.all().unwrap().into())]))
    }
}

#[tokio::test]
async fn a_session_is_left_by_an_attempt_that_ends_well_and_by_no_other() {
    let before = || {
        [("first", r#"{"old":"a","n":0}"#), ("second", r#"{"old":"b"}"#)].map(|(step, entries)| {
            SessionOf { step: step.parse().unwrap(), entries: entries.into() }
        })
    };
    let (left, outcome) = session_of(Leaves(Ok(())), before().to_vec()).await;
    assert_eq!(left, Some(serde_json::json!({ "n": 1 })));
    assert_eq!(outcome, Outcome::Succeeded(r#"{"all":{"n":1,"old":"b"}}"#.into()));
    let fails = Leaves(Err(PhaseError::Retry("no".to_owned())));
    let (left, outcome) = session_of(fails, before().to_vec()).await;
    assert_eq!((left, failed(outcome)), (None, ("no".to_owned(), true)));
    // Where nobody would read it, that is told.
    let (error, retry) = failed(run(Leaves(Ok(())), None).await);
    assert!(error.contains("no phase of the pipeline has for_each") && !retry, "{error}");
}

#[tokio::test]
async fn each_line_of_a_command_is_an_item() {
    let script = "seq -f '{\"n\": %.0f}' 1 2500; echo; echo '\"text\"'";
    let (items, outcome) = items_of(sh(script)).await;
    assert_eq!(outcome, Outcome::Succeeded("{}".into()));
    assert_eq!((items.len(), items[0].as_str()), (2501, "{\"n\":1}"));
    assert_eq!(items[2500], "{\"item\":\"text\"}");
}

#[tokio::test]
async fn an_item_that_cannot_be_fails_the_attempt() {
    let (_, outcome) = items_of(sh("echo '{}'; echo '{'")).await;
    let (error, retry) = failed(outcome);
    assert!(error.contains("line 2") && error.contains("no JSON") && !retry, "{error}");
    let (_, outcome) = items_of(sh("head -c 3000000 /dev/zero | tr '\\0' 1")).await;
    assert!(failed(outcome).0.contains("limits.job_bytes"));
    // What a process that it left behind may print is not waited for.
    let (items, outcome) = items_of(sh("setsid -f sleep 5; sleep 0.2; echo '{}'")).await;
    assert!(failed(outcome).0.contains("stayed open"), "{items:?}");
    // Where nothing is done with items, it prints a result.
    struct Giver;
    #[async_trait]
    impl Phase for Giver {
        async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
            context.give(b"1").await.map(|()| Fields::new())
        }
    }
    assert!(failed(run(Giver, None).await).0.contains("for_each"));
}

#[tokio::test]
async fn what_items_gave_is_grouped_or_listed() {
    use carbonmesh_protocol::{message::Gathered, pipeline::Combine};
    for (combine, expected) in [
        (Combine::Group, r#"{"a":1,"b":2,"m":{"x":[1,3],"y":[2]}}"#),
        (Combine::List, r#"{"a":1,"b":2,"m":[{"x":1,"y":2},{"x":3}]}"#),
    ] {
        let results = bytes::Bytes::from_static(br#"[{"x":1,"y":2},{"x":3}]"#);
        let gathered = vec![Gathered { name: "m".parse().unwrap(), combine, results }];
        let attempt = Attempt { gathered, ..attempt(None) };
        let (news, mut heard) = mpsc::channel(1);
        let runner = runner(sh("cat"), news);
        runner.start(attempt);
        match heard.recv().await.unwrap() {
            News::Ended(_, outcome) => assert_eq!(outcome, Outcome::Succeeded(expected.into())),
            other => panic!("{other:?}"),
        }
    }
}

pub(super) async fn run_with(phase: impl Phase, handling: Handling) -> Outcome {
    let (news, mut heard) = mpsc::channel(1);
    let runner = runner(phase, news);
    runner.start(Attempt { handling, ..attempt(None) });
    match heard.recv().await.unwrap() {
        News::Ended(_, outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_attempt_that_is_silent_for_too_long_fails_and_one_that_shows_that_it_lives_does_not() {
    let heartbeat = Some(Duration::from_millis(400));
    let handling = Handling { heartbeat, ..Handling::default() };
    let (error, retry) = failed(run_with(sh("sleep 60"), handling.clone()).await);
    assert!(error.contains("silent for 400ms, its heartbeat_timeout") && retry, "{error}");
    let script = "for i in 1 2 3 4 5 6 7 8; do echo alive >&2; sleep 0.1; done; echo '{}'";
    assert_eq!(run_with(sh(script), handling).await, Outcome::Succeeded("{}".into()));
}

#[tokio::test]
async fn what_a_phase_gets_and_gives_is_mapped() {
    let handling = Handling {
        input: Some("{all: merge(instructions, results.first)}".to_owned()),
        output: Some("{first: all.a, kind: 'mapped'}".to_owned()),
        heartbeat: None,
    };
    let mapped = |phase: &'static str, handling: Handling| async move {
        let (news, mut heard) = mpsc::channel(1);
        let runner = runner(sh(phase), news);
        let names = Some(vec!["first".parse().unwrap()]);
        runner.start(Attempt { handling, names, ..attempt(None) });
        match heard.recv().await.unwrap() {
            News::Ended(_, outcome) => outcome,
            other => panic!("{other:?}"),
        }
    };
    let outcome = mapped("cat", handling.clone()).await;
    assert_eq!(outcome, Outcome::Succeeded(r#"{"first":1,"kind":"mapped"}"#.into()));
    let wrong = Handling { output: Some("all.a".to_owned()), ..handling.clone() };
    let (error, retry) = failed(mapped("cat", wrong).await);
    assert!(error.contains("output_mapping: it gives number") && !retry, "{error}");
    let wrong = Handling { input: Some("instructions.a".to_owned()), ..handling };
    let (error, retry) = failed(mapped("cat", wrong).await);
    assert!(error.contains("input_mapping: it gives number") && !retry, "{error}");
}

/// Notes what its hooks hear.
struct Attended(Arc<std::sync::Mutex<Vec<String>>>);

#[async_trait]
impl Phase for Attended {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        match context.attempt() {
            1 => Ok(Fields::from_iter([("a".to_owned(), 1.into())])),
            2 => Err(PhaseError::Fatal("no".to_owned())),
            _ => panic!("out of luck"),
        }
    }

    async fn on_started(&self, context: &PhaseContext) {
        self.0.lock().unwrap().push(format!("started {}", context.attempt()));
    }

    async fn on_finished(&self, _: &PhaseContext, result: &Fields) {
        self.0.lock().unwrap().push(format!("finished {}", result["a"]));
        panic!("a hook's own fault");
    }

    async fn on_failed(&self, _: &PhaseContext, error: &PhaseError) {
        self.0.lock().unwrap().push(format!("failed {error}"));
    }
}

#[tokio::test]
async fn hooks_hear_how_attempts_begin_and_end() {
    let heard = Arc::default();
    let (news, mut told) = mpsc::channel(1);
    let runner = runner(Attended(Arc::clone(&heard)), news);
    for number in 1..=3 {
        runner.start(Attempt { number, ..attempt(None) });
        let ended = told.recv().await.unwrap();
        let well = matches!(ended, News::Ended(_, Outcome::Succeeded(_)));
        assert_eq!(well, number == 1);
    }
    let expected = [
        "started 1",
        "finished 1",
        "started 2",
        "failed no",
        "started 3",
        "failed the phase panicked: out of luck",
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
}

/// Runs one attempt to its end; what it said.
pub(super) async fn said(phase: impl Phase) -> Vec<(LogLevel, Option<u16>, String)> {
    let (ends, mut ended) = mpsc::channel(1);
    let (says, mut said) = mpsc::channel(100);
    let runner = runner(phase, ends).heard_by(says);
    runner.start(attempt(None));
    assert!(matches!(ended.recv().await, Some(News::Ended(..))));
    // All of it is there before the end is.
    let said = std::iter::from_fn(|| said.try_recv().ok());
    said.map(|(_, said)| (said.level, said.done, said.text.to_string())).collect()
}

#[tokio::test]
async fn what_a_command_logs_is_heard() {
    let lines = said(sh("echo one >&2; echo two >&2; printf 'no end' >&2; echo {}")).await;
    let line = |text: &str| (LogLevel::Info, None, text.to_owned());
    assert_eq!(lines, ["one", "two", "no end"].map(line));
}

#[tokio::test]
async fn what_a_command_writes_in_parts_is_one_line() {
    let script =
        "printf one >&2; sleep 0.05; printf ' two' >&2; sleep 0.05; echo >&2; echo three >&2";
    let lines = said(sh(script)).await;
    let line = |text: &str| (LogLevel::Info, None, text.to_owned());
    assert_eq!(lines, ["one two", "three"].map(line));
    // One that is too long comes in pieces.
    let long = said(sh("head -c 10000 /dev/zero | tr '\\0' x >&2; echo ' end' >&2")).await;
    let lengths: Vec<usize> = long.iter().map(|(.., text)| text.len()).collect();
    assert_eq!(lengths.len(), 2, "{lengths:?}");
    assert!(long[1].2.ends_with("x end"), "{:?}", long[1]);
}

struct Chatty;

#[async_trait]
impl Phase for Chatty {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        context.log(LogLevel::Warning, "careful");
        context.progress(0.25, "a quarter");
        context.progress(f32::NAN, "who knows");
        Ok(Fields::new())
    }
}

#[tokio::test]
async fn what_a_phase_says_is_heard() {
    let lines = said(Chatty).await;
    let expected = [
        (LogLevel::Warning, None, "careful".to_owned()),
        (LogLevel::Info, Some(2500), "a quarter".to_owned()),
        (LogLevel::Info, Some(0), "who knows".to_owned()),
    ];
    assert_eq!(lines, expected);
}
