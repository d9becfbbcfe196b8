//! What a user may get wrong, on a real node: each is told with its place and the way out, nothing
//! is lost by it, and the node goes on.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    io::Write,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use carbonmesh_examples::local::program;
use carbonmesh_tests::World;

/// Runs the program as a user does; gives back its exit code and all that it said.
fn carbonmesh(api: &str, args: &[&str], input: &str) -> (i32, String) {
    let mut child = Command::new(program("carbonmesh").unwrap())
        .args(args)
        .env("CARBONMESH_API", api)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its arguments reads no input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn bad_input_is_refused_with_its_place_and_harms_nothing() {
    let mut world = World::default();
    let config = world.phase("a", "step", "echo '{}'") + "[limits]\njob_bytes = 1000\n";
    world.start("a", "", config);
    let api = world.cluster.http("a").unwrap().to_owned();
    let ask = |args: &[&str], input: &str| carbonmesh(&api, args, input);

    let document = r#"{"name": "p", "phases": ["step"]}"#;
    assert_eq!(ask(&["pipeline", "apply", "-"], document).0, 0);
    let (code, text) = ask(&["enqueue", "p", r#"{"n": 1}"#, "--id", "one"], "");
    assert_eq!(code, 0, "{text}");

    let large = format!("{{\"text\": \"{}\"}}", "x".repeat(1000));
    let cases: [(&[&str], &str, i32, &[&str]); 12] = [
        // Unknown and odd names.
        (&["enqueue", "nope", "{}"], "", 1, &["no pipeline is named `nope`", "known are p"]),
        (&["enqueue", "p/q/r", "{}"], "", 2, &["p/q/r", "has `/`"]),
        (&["pipeline", "show", "nope"], "", 1, &["no pipeline is named `nope`"]),
        // Jobs.
        (&["enqueue", "p", "[1]"], "", 1, &["array", "one JSON object"]),
        (&["enqueue", "p", "{\"a\": }"], "", 1, &["line 1 column 7"]),
        (&["enqueue", "p", "-"], &large, 1, &["1000", "limit"]),
        (&["enqueue", "p", r#"{"n": 2}"#, "--id", "one"], "", 1, &["`one`", "another payload"]),
        // Pipelines.
        (
            &["pipeline", "apply", "-"],
            r#"{"name": "q", "phases": ["step"], "colour": 1}"#,
            2,
            &["unknown field `colour`", "line 1"],
        ),
        (
            &["pipeline", "apply", "-"],
            r#"{"name": "q", "phases": ["step", "step"]}"#,
            2,
            &["phases[1].name `step`", "earlier phase"],
        ),
        (
            &["pipeline", "apply", "-"],
            r#"{"name": "q", "phases": [{"name": "a", "after": ["b"]}, {"name": "b", "after": ["a"]}]}"#,
            2,
            &["comes after itself", "`a`"],
        ),
        (
            &["pipeline", "apply", "-"],
            r#"{"name": "q", "phases": [{"name": "a", "after": ["x"]}]}"#,
            2,
            &["phases[0].after", "`x`"],
        ),
        (&["job", "show", "0198-nope"], "", 2, &["0198-nope"]),
    ];
    for (args, input, expected, needles) in cases {
        let (code, text) = ask(args, input);
        assert_eq!(code, expected, "{args:?} {input}\n{text}");
        for needle in needles {
            assert!(text.contains(needle), "{args:?} {input}\n{text}\nlacks {needle}");
        }
    }

    // A phase that nobody offers: the job is taken, and the status says what it waits for.
    let document = r#"{"name": "later", "phases": ["nowhere"]}"#;
    assert_eq!(ask(&["pipeline", "apply", "-"], document).0, 0);
    assert_eq!(ask(&["enqueue", "later", "{}"], "").0, 0);
    let (code, text) = ask(&["status"], "");
    assert!(code == 0 && text.contains("nowhere"), "{text}");

    // Bad lines among good ones: each good one is taken, each bad one named.
    let lines = "{\"n\": 3}\n[]\n{\"n\": 4}\nnothing\n";
    let (code, text) = ask(&["enqueue", "p", "-", "--ndjson"], lines);
    assert_eq!(code, 1, "{text}");
    for needle in ["line 2", "line 4", "2 jobs were refused"] {
        assert!(text.contains(needle), "{text}\nlacks {needle}");
    }

    // All that was taken is done: one by its key, two from the lines, and this one.
    let (code, text) = ask(&["enqueue", "p", "{}", "--wait"], "");
    assert_eq!(code, 0, "{text}");
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let done = world.api("a").jobs("p", "succeeded").await.unwrap();
        if done.len() == 4 {
            break;
        }
        assert!(done.len() < 4 && Instant::now() < deadline, "{done:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_pipeline_is_compared_changed_and_rolled_back() {
    let mut world = World::default();
    let config = world.phase("a", "step", "echo '{}'");
    world.start("a", "", config);
    let api = world.cluster.http("a").unwrap().to_owned();
    let ask = |args: &[&str], input: &str| carbonmesh(&api, args, input);
    let first = r#"{"name": "p", "phases": ["step", {"name": "more", "phase": "step"}]}"#;
    let second = r#"{"name": "p", "phases": [{"name": "step", "timeout": "9s"}]}"#;
    let (code, diff) = ask(&["pipeline", "diff", "-"], first);
    assert!(code == 0 && diff.contains("+name = \"p\""), "{diff}");
    let (code, none) = ask(&["pipeline", "rollback", "p"], "");
    assert!(code != 0 && none.contains("no pipeline"), "{code} {none}");
    assert_eq!(ask(&["pipeline", "apply", "-"], first).0, 0);
    let (code, none) = ask(&["pipeline", "rollback", "p"], "");
    assert!(code == 2 && none.contains("no other definition"), "{code} {none}");
    let (code, diff) = ask(&["pipeline", "diff", "-"], second);
    assert!(code == 0 && diff.contains("+timeout = \"9s\""), "{diff}");
    let (code, said) = ask(&["pipeline", "apply", "-"], second);
    assert!(code == 0 && said.contains("phase `more` is not there any more"), "{said}");
    let (code, history) = ask(&["pipeline", "history", "p"], "");
    assert!(code == 0 && history.lines().count() == 3, "{history}");
    let (code, since) = ask(&["pipeline", "diff", "p"], "");
    assert!(code == 0 && since.contains("-phase = \"step\""), "{since}");
    let (code, unknown) = ask(&["pipeline", "diff", "p", "0123"], "");
    assert!(code == 2 && unknown.contains("no revision 0123"), "{unknown}");
    let (code, back) = ask(&["pipeline", "rollback", "p"], "");
    assert!(code == 0 && back.contains("p applied"), "{back}");
    let (_, shown) = ask(&["pipeline", "show", "p"], "");
    assert!(shown.contains("more"), "{shown}");
}
