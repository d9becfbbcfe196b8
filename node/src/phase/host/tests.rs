//! Hosts that do what hosts do: answer, lie, hang, die, shout.

use carbonmesh_protocol::{
    io::{Attempt, Outcome},
    message::SessionOf,
    pipeline::Handling,
};
use tokio::sync::mpsc;

use super::*;
use crate::phase::{
    News, PhaseRunner,
    tests::{assert_gone, attempt, failed, items_of, run, run_with, runner, said, session_of},
};

const HELLO: &str = r#"echo '{"type": "hello", "protocol": 1, "phases": [{"name": "phase"}]}'"#;

/// Reads the next `run`, and gets its id.
const NEXT: &str = r#"next() { read -r line || exit 0; id=${line#*\"id\":}; id=${id%%,*}; }"#;

/// Gives a result.
const GIVE: &str = r#"give() { printf '{"type": "result", "id": %s, "result": {"pid": %s, "n": %s}}\n' $id $$ "$1"; }"#;

/// A host in shell that says hello, and then does this.
fn settings(script: &str) -> HostSettings {
    let script = format!("{HELLO}\n{NEXT}\n{GIVE}\nread -r welcome\n{script}");
    HostSettings::new("test", ["sh", "-c", &script].map(str::to_owned).to_vec())
}

async fn start(settings: HostSettings) -> RunningHost {
    RunningHost::start(settings).await.unwrap()
}

/// What an attempt in it gives.
async fn ask(host: &RunningHost) -> Outcome {
    run(host.phase("phase"), None).await
}

fn fields(outcome: Outcome) -> Value {
    match outcome {
        Outcome::Succeeded(json) => serde_json::from_slice(&json).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Gives attempts all at once, and waits for their ends.
async fn ask_together(host: &RunningHost, count: u64) -> Vec<Value> {
    let (news, mut heard) = mpsc::channel(8);
    let runner: PhaseRunner = runner(host.phase("phase"), news);
    for sequence in 1..=count {
        let mut attempt = attempt(None);
        attempt.token.sequence = sequence;
        runner.start(attempt);
    }
    let mut results = Vec::new();
    while results.len() < count as usize {
        match heard.recv().await.unwrap() {
            News::Ended(_, outcome) => results.push(fields(outcome)),
            other => panic!("{other:?}"),
        }
    }
    results
}

#[tokio::test]
async fn a_process_stays_for_one_attempt_after_the_other() {
    let host = start(settings("n=0; while next; do n=$((n+1)); give $n; done")).await;
    let (first, second) = (fields(ask(&host).await), fields(ask(&host).await));
    assert_eq!((&first["n"], &second["n"]), (&1.into(), &2.into()));
    assert_eq!(first["pid"], second["pid"]);
}

#[tokio::test]
async fn an_attempt_comes_with_what_it_needs() {
    let script =
        r#"next; printf '{"type": "result", "id": %s, "result": {"run": %s}}\n' $id "$line"; cat"#;
    let run = fields(ask(&start(settings(script)).await).await)["run"].clone();
    assert_eq!(run["instructions"], serde_json::json!({ "a": 1, "b": 2 }));
    assert_eq!((&run["phase"], &run["attempt"]), (&"phase".into(), &1.into()));
    for key in ["job", "pipeline", "step", "token", "idempotency_key", "traceparent", "gives_items"]
    {
        assert!(!run[key].is_null(), "{key}: {run}");
    }
    assert!(run["timeout_ms"].is_null());
}

#[tokio::test]
async fn a_host_leaves_a_session_and_reads_those_before() {
    let script = r#"next
        printf '{"type": "session", "id": %s, "key": "k", "value": {"n": 1}}\n' $id
        printf '{"type": "session", "id": %s, "key": "gone", "value": 1}\n' $id
        printf '{"type": "session", "id": %s, "key": "gone"}\n' $id
        printf '{"type": "result", "id": %s, "result": {"run": %s}}\n' $id "$line"; cat"#;
    let left = |step: &str, entries: &'static str| SessionOf {
        step: step.parse().unwrap(),
        entries: entries.into(),
    };
    let before = vec![left("zeta", r#"{"a":1}"#), left("alpha", r#"{"a":2}"#)];
    let host = start(settings(script)).await;
    let (left, outcome) = session_of(host.phase("phase"), before).await;
    assert_eq!(left, Some(serde_json::json!({ "k": { "n": 1 } })));
    let run = fields(outcome)["run"].clone();
    assert_eq!(run["sessions"], serde_json::json!({ "zeta": { "a": 1 }, "alpha": { "a": 2 } }));
    // What is too much fails the attempt, and it hears of that.
    let script = r#"next
        printf '{"type": "session", "id": %s, "key": "k", "value": "' $id
        head -c 2000000 /dev/zero | tr '\0' 1; echo '"}'
        read -r cancel
        printf '{"type": "result", "id": %s, "result": {}}\n' $id; cat"#;
    let host = start(settings(script)).await;
    let (left, outcome) = session_of(host.phase("phase"), Vec::new()).await;
    let (error, retry) = failed(outcome);
    assert!(error.contains("limits.session_bytes") && !retry && left.is_none(), "{error}");
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_process_and_the_next_takes_over() {
    let folder = tempfile::tempdir().unwrap();
    for (says, reason) in [
        ("echo Hello", "no frame"),
        (r#"printf '{"type": "resu'; exit 0"#, "within a frame"),
        (r#"echo '{"type": "result", "id": 77, "result": {}}'"#, "attempt 77, which it was not"),
        (r#"echo '{"type": "item", "id": 77, "item": 1}'"#, "attempt 77, which does not run"),
        (r#"echo '{"type": "session", "id": 77, "key": "k"}'"#, "attempt 77, which does not run"),
        (HELLO, "hello twice"),
        ("head -c 2000 /dev/zero | tr '\\0' 1", "more than 1000 bytes (max_frame)"),
        ("echo lost it >&2; exit 3", "exit code 3; its log ends with: lost it"),
        ("kill -KILL $$", "signal 9 (SIGKILL)"),
    ] {
        let once = folder.path().join("once");
        let path = once.display();
        // Whoever comes first does it; the others answer.
        let script = format!(
            "while next; do if [ -e {path} ]; then give 1; else :> {path}; {says}; fi; done"
        );
        let host = start(HostSettings { max_frame: 1000, ..settings(&script) }).await;
        let (error, retry) = failed(ask(&host).await);
        assert!(error.contains("phase host `test`") && error.contains(reason), "{says}: {error}");
        assert!(retry, "{says}");
        assert_eq!(fields(ask(&host).await)["n"], 1, "{says}");
        std::fs::remove_file(once).unwrap();
    }
}

#[tokio::test]
async fn an_end_may_be_an_error() {
    let error = |keys: &str| {
        settings(&format!(
            r#"next; printf '{{"type": "error", "id": %s, "message": "no luck"{keys}}}\n' $id; cat"#
        ))
    };
    assert_eq!(failed(ask(&start(error("")).await).await), ("no luck".to_owned(), true));
    let fatal = error(r#", "retry": false, "traceback": "line 7""#);
    assert_eq!(failed(ask(&start(fatal).await).await), ("no luck\nline 7".to_owned(), false));
    let host = r#"next; printf '{"type": "result", "id": %s, "result": [1]}\n' $id; cat"#;
    let (error, retry) = failed(ask(&start(settings(host)).await).await);
    assert!(error.contains("no object, but `[1]`") && !retry, "{error}");
}

#[tokio::test]
async fn a_host_that_cannot_start_says_why() {
    let of = |script: &str| HostSettings {
        start_timeout: Duration::from_millis(300),
        ..HostSettings::new("test", ["sh", "-c", script].map(str::to_owned).to_vec())
    };
    for (script, reason) in [
        ("echo 'ImportError: no module named x' >&2; exit 1", "ImportError: no module named x"),
        ("echo Hello; cat", "no frame"),
        (r#"echo '{"type": "heartbeat", "id": 1}'; cat"#, "first frame is no `hello`"),
        ("exec sleep 600", "not said hello within 300ms (start_timeout)"),
    ] {
        let error = RunningHost::start(of(script)).await.unwrap_err();
        assert!(error.contains(reason), "{script}: {error}");
    }
    let missing = HostSettings::new("test", vec!["/no/such/program".to_owned()]);
    let error = RunningHost::start(missing).await.unwrap_err();
    assert!(error.contains("/no/such/program"), "{error}");
}

#[tokio::test]
async fn time_that_is_over_ends_the_process_with_all_that_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let pid = folder.path().join("pid");
    let script = format!("next; sleep 600 & echo $! > {}; wait", pid.display());
    let host = start(settings(&script)).await;
    let outcome = run(host.phase("phase"), Some(Duration::from_millis(300))).await;
    let (error, retry) = failed(outcome);
    assert!(error.contains("timed out after 300ms") && retry, "{error}");
    let pid = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    assert_gone(pid).await;
}

#[tokio::test]
async fn a_process_that_obeys_a_cancel_stays() {
    let script = "next; read -r cancel; give 1; while next; do give 2; done";
    let host = start(settings(script)).await;
    let outcome = run(host.phase("phase"), Some(Duration::from_millis(300))).await;
    assert!(failed(outcome).0.contains("timed out"));
    let again = fields(ask(&host).await);
    assert_eq!(again["n"], 2);
}

#[tokio::test]
async fn as_many_run_at_once_as_a_process_takes() {
    // It answers only when it has both.
    let both = "next; a=$id; next; give 1; id=$a; give 2; cat";
    let mut settings = settings(both);
    settings.command[2] =
        settings.command[2].replace(r#""protocol": 1"#, r#""protocol": 1, "concurrency": 2"#);
    let results = ask_together(&start(settings).await, 2).await;
    assert_eq!(results[0]["pid"], results[1]["pid"]);
}

#[tokio::test]
async fn attempts_that_find_no_room_get_a_process_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    // Each waits until all have begun.
    let script = format!(
        "while next; do : > {0}/$$; until [ $(ls {0} | wc -l) = 3 ]; do sleep 0.01; done; give 1; done",
        folder.path().display()
    );
    let host = start(settings(&script)).await;
    let mut pids: Vec<_> =
        ask_together(&host, 3).await.iter().map(|it| it["pid"].as_u64()).collect();
    pids.sort_unstable();
    pids.dedup();
    assert_eq!(pids.len(), 3);
}

#[tokio::test]
async fn worn_processes_are_replaced() {
    let script = "while next; do give 1; done";
    let worn = HostSettings { recycle_after: Some(1), ..settings(script) };
    let heavy = HostSettings { recycle_memory: Some(1000), ..settings(script) };
    for settings in [worn, heavy] {
        let host = start(settings).await;
        let (first, second) = (fields(ask(&host).await), fields(ask(&host).await));
        assert_ne!(first["pid"], second["pid"]);
    }
}

#[tokio::test]
async fn a_host_gets_no_more_of_the_node_than_it_is_given() {
    let script = r#"while next; do printf '{"type": "result", "id": %s, "result": {"of_cargo": "%s", "given": "%s", "files": %s}}\n' $id "$CARGO_MANIFEST_DIR" "$GIVEN" $(ulimit -n); done"#;
    let mut cleaned = settings(script);
    cleaned.env.insert("GIVEN".to_owned(), "yes".to_owned());
    cleaned.max_files = Some(20);
    let passed =
        HostSettings { pass_env: vec!["CARGO_MANIFEST_DIR".to_owned()], ..cleaned.clone() };
    let got = fields(ask(&start(cleaned).await).await);
    assert_eq!(got, serde_json::json!({ "of_cargo": "", "given": "yes", "files": 20 }));
    let got = fields(ask(&start(passed).await).await);
    assert!(got["of_cargo"].as_str().unwrap().ends_with("node"), "{got}");
}

#[tokio::test]
async fn what_is_logged_before_an_end_belongs_to_the_attempt() {
    let host = start(settings("while next; do echo before it >&2; give 1; done")).await;
    for at in 0..200 {
        let lines = said(host.phase("phase")).await;
        assert_eq!(lines.len(), 1, "attempt {at}: {lines:?}");
    }
}

#[tokio::test]
async fn items_come_in_frames() {
    let script = r#"next; for i in $(seq 1 2500); do printf '{"type": "item", "id": %s, "item": {"n": %s}}\n' $id $i; done; give 1; cat"#;
    let host = start(settings(script)).await;
    let (items, outcome) = items_of(host.phase("phase")).await;
    assert_eq!((items.len(), items[2499].as_str()), (2500, r#"{"n":2500}"#));
    assert_eq!(fields(outcome)["n"], 1);
    // Where nothing is done with items, one is the attempt's fault, not its process's.
    let script = r#"next; printf '{"type": "item", "id": %s, "item": 1}\n' $id; read -r cancel; give 1; while next; do give 2; done"#;
    let host = start(settings(script)).await;
    let (error, retry) = failed(ask(&host).await);
    assert!(error.contains("for_each") && !retry, "{error}");
    assert_eq!(fields(ask(&host).await)["n"], 2);
}

#[tokio::test]
async fn a_host_that_shows_that_it_lives_is_not_silent() {
    let handling = Handling { heartbeat: Some(Duration::from_millis(400)), ..Handling::default() };
    let script = r#"next; for i in 1 2 3 4 5 6 7 8; do sleep 0.1; printf '{"type": "heartbeat", "id": %s}\n' $id; done; give 1; cat"#;
    let host = start(settings(script)).await;
    assert_eq!(fields(run_with(host.phase("phase"), handling.clone()).await)["n"], 1);
    let host = start(settings("next; sleep 600")).await;
    let (error, _) = failed(run_with(host.phase("phase"), handling).await);
    assert!(error.contains("heartbeat_timeout"), "{error}");
}

#[tokio::test]
async fn a_host_is_checked_against_the_protocol() {
    let good = format!(
        "{HELLO}\n{GIVE}\nread -r welcome\nwhile read -r line; do case $line in *shutdown*) exit 0;; \
         *'\"run\"'*) id=${{line#*\\\"id\\\":}}; id=${{id%%,*}}; give 1;; esac; done"
    );
    let command = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
    let patience = Duration::from_secs(20);
    let findings = check::check(&command(&good), &serde_json::json!({}), patience).await;
    let wrong: Vec<_> = findings.iter().filter(|finding| finding.found.is_err()).collect();
    assert!(wrong.is_empty() && findings.len() == 8, "{findings:?}");
    let pipelines =
        r#"echo '{"type": "hello", "protocol": 1, "phases": [], "pipelines": [{}]}'; cat"#;
    let findings = check::check(&command(pipelines), &serde_json::json!({}), patience).await;
    assert_eq!(findings.len(), 2, "{findings:?}");
    // One that minds what it does not know, and does not hear `shutdown`.
    let bad = good.replace("*shutdown*) exit 0;;", "*weather*) echo what;;");
    let findings = check::check(&command(&bad), &serde_json::json!({}), patience).await;
    let wrong: Vec<_> = findings.iter().filter(|it| it.found.is_err()).map(|it| it.rule).collect();
    assert!(wrong.contains(&"passes over keys and types that it does not know"), "{wrong:?}");
    assert!(wrong.contains(&"ends with exit code 0 at `shutdown`"), "{wrong:?}");
}

#[tokio::test]
async fn what_is_given_to_many_attempts_ends_with_its_process() {
    let die = "next; next; exit 7";
    let mut settings = settings(die);
    settings.command[2] =
        settings.command[2].replace(r#""protocol": 1"#, r#""protocol": 1, "concurrency": 2"#);
    let host = start(settings).await;
    let (news, mut heard) = mpsc::channel(8);
    let runner = runner(host.phase("phase"), news);
    for sequence in 1..=2 {
        let mut given: Attempt = attempt(None);
        given.token.sequence = sequence;
        runner.start(given);
    }
    for _ in 0..2 {
        match heard.recv().await.unwrap() {
            News::Ended(_, outcome) => assert!(failed(outcome).0.contains("exit code 7")),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_host_that_starts_more_slowly_than_an_attempt_may_take_starts_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let once = folder.path().join("once");
    let path = once.display();
    // The first process is there at once and dies of its first attempt; the next takes its time.
    let mut slow = settings("next; [ $fast ] && exit 1; while true; do give 1; next; done");
    let begin = format!("if [ -e {path} ]; then sleep 0.8; fast=; else :> {path}; fast=1; fi\n");
    slow.command[2].insert_str(0, &begin);
    let host = start(slow).await;
    assert!(failed(ask(&host).await).0.contains("exit code 1"));
    let hasty = run(host.phase("phase"), Some(Duration::from_millis(200))).await;
    assert!(failed(hasty).0.contains("timed out"));
    let patient = run(host.phase("phase"), Some(Duration::from_secs(20))).await;
    assert_eq!(fields(patient)["n"], 1);
}
