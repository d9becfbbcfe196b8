//! Modules that do what programs do: echo, fail, loop, want too much, and look where they may not.

use std::{sync::Arc, time::Duration};

use carbonmesh_protocol::io::{Attempt, Outcome};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::*;
use crate::phase::{
    OfferedPhase, Phase, PhaseContext,
    runner::News,
    tests::{attempt, failed, items_of, run, runner},
    voice::Voice,
};

/// How long a module that was cancelled may take to end: the machine may have other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// What programs here are made of: WASI's functions, one page of memory, and a few of their own.
const PRELUDE: &str = r#"
    (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_get" (func $env (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
      (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (memory (export "memory") 2)
    (func $print (param $fd i32) (param $at i32) (param $bytes i32)
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $bytes))
      (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
"#;

const ECHO: &str = r#"(func (export "_start")
    (loop $more
      (i32.store (i32.const 0) (i32.const 1024))
      (i32.store (i32.const 4) (i32.const 4096))
      (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
      (call $print (i32.const 1) (i32.const 1024) (i32.load (i32.const 8)))
      (br_if $more (i32.load (i32.const 8)))))"#;

const LOOP: &str = r#"(func (export "_start") (loop $on (br $on)))"#;

/// Opens a file below the first folder, and exits with the number of what went wrong.
fn opens(path: &str, creates: bool) -> String {
    // Rights to read and to write, and the flag that makes a file.
    let (flags, rights) = if creates { (1, 0x40) } else { (0, 0x2) };
    format!(
        r#"(data (i32.const 64) "{path}")
        (func (export "_start")
          (call $exit (call $open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const {}) (i32.const {flags})
            (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 8))))"#,
        path.len()
    )
}

fn bytes(body: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {PRELUDE} {body})")).expect("a module")
}

fn settings() -> WasmSettings {
    WasmSettings::new("work")
}

fn module(body: &str) -> WasmPhase {
    WasmPhase::load(settings(), &bytes(body)).expect("a phase")
}

/// Prints so much text to a stream and ends.
fn prints(fd: u32, text: &str, end: &str) -> String {
    let length = text.len();
    let text = text.replace('"', "\\\"").replace('\n', "\\n");
    format!(
        r#"(data (i32.const 64) "{text}")
        (func (export "_start") (call $print (i32.const {fd}) (i32.const 64) (i32.const {length})) {end})"#
    )
}

#[tokio::test]
async fn a_module_gets_json_and_gives_json() {
    assert_eq!(run(module(ECHO), None).await, Outcome::Succeeded(r#"{"a":1,"b":2}"#.into()));
    let silent = r#"(func (export "_start"))"#;
    assert_eq!(run(module(silent), None).await, Outcome::Succeeded("{}".into()));
    let exits = r#"(func (export "_start") (call $exit (i32.const 0)) unreachable)"#;
    assert_eq!(run(module(exits), None).await, Outcome::Succeeded("{}".into()));
    let (error, retry) = failed(run(module(&prints(1, "Hello", "")), None).await);
    assert!(error.contains("no JSON") && error.contains("`Hello`") && !retry, "{error}");
}

#[tokio::test]
async fn a_large_input_goes_through() {
    let text = format!(r#"{{"text":"{}"}}"#, "x".repeat(300_000));
    let (news, mut heard) = mpsc::channel(1);
    let runner = runner(module(ECHO), news);
    let (instructions, results) = (text.clone().into(), Vec::new());
    runner.start(Attempt { instructions, results, ..attempt(None) });
    match heard.recv().await.unwrap() {
        News::Ended(_, outcome) => assert!(outcome == Outcome::Succeeded(text.into())),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn exit_codes_say_whether_to_try_again() {
    let exits =
        |code: u32| prints(2, "lost the file\n", &format!("(call $exit (i32.const {code}))"));
    let (error, retry) = failed(run(module(&exits(3)), None).await);
    assert_eq!((error.as_str(), retry), ("exit code 3: lost the file", true));
    let (error, retry) = failed(run(module(&exits(65)), None).await);
    assert_eq!((error.as_str(), retry), ("exit code 65: lost the file", false));
    let says = prints(1, r#"{"retry_after": "30s"}"#, "(call $exit (i32.const 1))");
    match run(module(&says), None).await {
        Outcome::Failed { after, .. } => assert_eq!(after, Some(Duration::from_secs(30))),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_trap_is_told_with_the_functions_that_led_to_it_and_the_log() {
    let body = format!(
        "(func $inner unreachable) (func $work (call $inner)) {}",
        prints(2, "about to divide\n", "(call $work)")
    );
    let (error, retry) = failed(run(module(&body), None).await);
    assert!(error.contains("unreachable") && error.contains("inner < work <"), "{error}");
    assert!(error.ends_with(": about to divide") && retry, "{error}");
    let deep = r#"(func $deep (call $deep)) (func (export "_start") (call $deep))"#;
    let (error, _) = failed(run(module(deep), None).await);
    assert!(error.contains("call stack exhausted, in deep < deep"), "{error}");
    assert!(error.len() < 400, "{error}");
}

#[tokio::test]
async fn modules_that_compute_for_ever_are_timed_out_and_hold_up_nobody() {
    // More of them than there are threads.
    let (news, mut heard) = mpsc::channel(100);
    let spins = runner(module(LOOP), news);
    let count = 2 * std::thread::available_parallelism().unwrap().get() + 2;
    let attempts = (0..count as u64).map(|sequence| {
        let mut attempt = attempt(None);
        attempt.token.sequence = sequence;
        attempt
    });
    let attempts: Vec<Attempt> = attempts.collect();
    attempts.iter().cloned().for_each(|attempt| spins.start(attempt));
    assert_eq!(run(module(ECHO), None).await, Outcome::Succeeded(r#"{"a":1,"b":2}"#.into()));
    let (error, retry) = failed(run(module(LOOP), Some(Duration::from_secs(1))).await);
    assert!(error.contains("timed out after 1s") && retry, "{error}");
    assert!(heard.try_recv().is_err(), "one ended by itself");
    attempts.iter().for_each(|attempt| spins.cancel(attempt.token));
    for _ in 0..count {
        match heard.recv().await.unwrap() {
            News::Ended(_, outcome) => assert_eq!(outcome, Outcome::Cancelled),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_cancelled_module_ends_at_once_whether_it_computes_or_sleeps() {
    // A clock's subscription: an hour in nanoseconds.
    let sleeps = r#"(func (export "_start")
        (i32.store (i32.const 80) (i32.const 1))
        (i64.store (i32.const 88) (i64.const 3600000000000))
        (drop (call $poll (i32.const 64) (i32.const 200) (i32.const 1) (i32.const 8))))"#;
    for body in [LOOP, sleeps] {
        // Without a runner, which would drop it when its grace is over.
        let (attempt, cancelled) = (attempt(None), CancellationToken::new());
        let voice = Arc::new(Voice::new(attempt.token, None));
        let context = PhaseContext::new(attempt, cancelled.clone(), Span::none(), None, voice);
        let phase = module(body);
        let mut running = tokio::spawn(async move { phase.run(context).await });
        let early = timeout(Duration::from_millis(200), &mut running).await;
        assert!(early.is_err(), "it ended by itself: {early:?}");
        cancelled.cancel();
        let ended = timeout(PATIENCE, running).await.expect("it ends").expect("no panic");
        assert_eq!(ended.unwrap_err().to_string(), "the attempt was cancelled");
    }
}

#[tokio::test]
async fn a_module_gets_no_more_memory_than_it_may() {
    let bomb = r#"(func (export "_start")
        (loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
        unreachable)"#;
    let limited = WasmSettings { max_memory: 4 << 20, ..settings() };
    let phase = WasmPhase::load(limited, &bytes(bomb)).unwrap();
    let (error, retry) = failed(run(phase, None).await);
    assert!(error.contains("4325376 bytes of memory, and at most 4194304") && retry, "{error}");
    assert!(error.contains("max_memory"), "{error}");
    // One that says itself that it wants more is not taken.
    let large = "(module (memory (export \"memory\") 100) (func (export \"_start\")))";
    let limited = WasmSettings { max_memory: 4 << 20, ..settings() };
    let error = WasmPhase::load(limited, &wat::parse_str(large).unwrap()).unwrap_err();
    assert!(error.contains("needs 6553600 bytes") && error.contains("max_memory"), "{error}");
}

#[tokio::test]
async fn no_attempt_sees_what_another_left() {
    let counts = r#"(global $runs (mut i32) (i32.const 0))
        (func (export "_start")
          (global.set $runs (i32.add (global.get $runs) (i32.const 1)))
          (i32.store (i32.const 64) (i32.add (i32.load (i32.const 64)) (i32.const 1)))
          (call $exit (i32.add (global.get $runs) (i32.load (i32.const 64)))))"#;
    let phase = Arc::new(module(counts));
    for _ in 0..3 {
        let (news, mut heard) = mpsc::channel(1);
        let name = "phase".parse().unwrap();
        let mut runner = runner(module(LOOP), news);
        runner.offer(vec![OfferedPhase { name, slots: 1, timeout: None, phase: phase.clone() }]);
        runner.start(attempt(None));
        match heard.recv().await.unwrap() {
            News::Ended(_, outcome) => assert_eq!(failed(outcome).0, "exit code 2"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_module_sees_its_job_and_nothing_of_the_nodes_environment() {
    let shows = r#"(func (export "_start")
        (drop (call $env_sizes (i32.const 16) (i32.const 20)))
        (drop (call $env (i32.const 1024) (i32.const 4096)))
        (call $print (i32.const 2) (i32.const 4096) (i32.load (i32.const 20)))
        (call $exit (i32.const 1)))"#;
    let env = BTreeMap::from([("REGION".to_owned(), "eu".to_owned())]);
    let phase = WasmPhase::load(WasmSettings { env, ..settings() }, &bytes(shows)).unwrap();
    let (error, _) = failed(run(phase, None).await);
    for there in ["CARBONMESH_STEP=step", "CARBONMESH_ATTEMPT=1", "TRACEPARENT=", "REGION=eu"] {
        assert!(error.contains(there), "{there}: {error}");
    }
    assert!(std::env::var_os("PATH").is_some() && !error.contains("PATH="), "{error}");
}

#[tokio::test]
async fn files_are_there_as_far_as_they_are_granted() {
    // No folder at all: the descriptor is none.
    let (error, _) = failed(run(module(&opens("a.txt", false)), None).await);
    assert_eq!(error, "exit code 8");

    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("inside");
    fs::create_dir(&inside).unwrap();
    fs::write(folder.path().join("secret"), "s").unwrap();
    fs::write(inside.join("a.txt"), "a").unwrap();
    std::os::unix::fs::symlink(folder.path().join("secret"), inside.join("link")).unwrap();
    let granted = || BTreeMap::from([("/in".to_owned(), inside.clone())]);
    let read = |body: &str| {
        let settings = WasmSettings { read_folders: granted(), ..settings() };
        WasmPhase::load(settings, &bytes(body)).expect("a phase")
    };
    let write = |body: &str| {
        let settings = WasmSettings { write_folders: granted(), ..settings() };
        WasmPhase::load(settings, &bytes(body)).expect("a phase")
    };
    let good = Outcome::Succeeded("{}".into());
    assert_eq!(run(read(&opens("a.txt", false)), None).await, good);
    for (path, creates) in
        [("new.txt", true), ("../secret", false), ("link", false), ("/etc/passwd", false)]
    {
        let (error, _) = failed(run(read(&opens(path, creates)), None).await);
        assert!(error.starts_with("exit code "), "{path}: {error}");
    }
    assert_eq!(fs::read_dir(&inside).unwrap().count(), 2);
    assert_eq!(run(write(&opens("new.txt", true)), None).await, good);
    assert!(inside.join("new.txt").is_file());
    let (error, _) = failed(run(write(&opens("../new.txt", true)), None).await);
    assert!(error.starts_with("exit code ") && !folder.path().join("new.txt").exists(), "{error}");

    // A folder that is not there is told before anything runs.
    let read_folders = BTreeMap::from([("/in".to_owned(), "/no/such/folder".into())]);
    let error = WasmPhase::load(WasmSettings { read_folders, ..settings() }, &bytes(ECHO));
    assert!(error.unwrap_err().contains("no folder /no/such/folder"));
}

#[tokio::test]
async fn what_it_prints_is_bounded() {
    let floods = r#"(func (export "_start")
        (loop $more (call $print (i32.const 1) (i32.const 1024) (i32.const 65536)) (br $more)))"#;
    let (error, retry) = failed(run(module(floods), None).await);
    assert!(error.contains("more than 16777216 bytes (max_output)") && !retry, "{error}");
    // What fits into that is more than a result may have.
    let text = format!(r#"{{"x":"{}"}}"#, "y".repeat(1 << 16));
    let limited = WasmSettings { max_output: 1000, ..settings() };
    let phase = WasmPhase::load(limited, &bytes(&prints(1, &text, ""))).unwrap();
    let (error, _) = failed(run(phase, None).await);
    assert!(error.contains("more than 1000 bytes"), "{error}");
}

#[tokio::test]
async fn each_line_of_a_module_is_an_item() {
    let lines = "{\"n\":1}\n\n\"text\"\n";
    let (items, outcome) = items_of(module(&prints(1, lines, ""))).await;
    assert_eq!(outcome, Outcome::Succeeded("{}".into()));
    assert_eq!(items, ["{\"n\":1}", "{\"item\":\"text\"}"]);
    let (_, outcome) = items_of(module(&prints(1, "{}\n{\n", ""))).await;
    assert!(failed(outcome).0.contains("line 2"));
}

#[test]
fn what_is_no_program_is_refused_with_the_way_out() {
    let wat = |text: &str| wat::parse_str(text).expect("a module");
    let foreign = wat(r#"(module (import "env" "log" (func)) (func (export "_start")))"#);
    let unknown = wat(
        r#"(module (import "wasi_snapshot_preview1" "teleport" (func)) (memory (export "memory") 1)
            (func (export "_start")))"#,
    );
    let hidden =
        wat(r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32)))
            (func (export "_start")))"#);
    let cases: [(&[u8], &[&str]); 9] = [
        (b"", &["no valid WebAssembly module"]),
        (b"#!/bin/sh\necho {}\n", &["no valid WebAssembly module"]),
        (b"\0asm\x01\0\0\0\x01\x7f\xff", &["no valid WebAssembly module"]),
        (b"\0asm\x0d\0\x01\0", &["component", "wasm32-wasip1"]),
        (&wat("(module)"), &["`_start`", "wasm32-wasip1"]),
        (&wat(r#"(module (func (export "_start") (param i32)))"#), &["`_start`"]),
        (&foreign, &["`log` from `env`", "wasm32-wasip1"]),
        (&unknown, &["WASI preview 1 does not give", "teleport"]),
        (&hidden, &["does not export its `memory`"]),
    ];
    for (module, parts) in cases {
        let error = WasmPhase::load(settings(), module).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

#[test]
fn files_that_are_no_modules_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (path, part) in
        [(folder.path().join("none"), "No such file"), (folder.path().into(), "no file")]
    {
        let error = read_module(&path).unwrap_err();
        assert!(error.contains(&path.display().to_string()) && error.contains(part), "{error}");
    }
    let large = folder.path().join("large");
    fs::File::create(&large).unwrap().set_len(MAX_MODULE_BYTES + 1).unwrap();
    assert!(read_module(&large).unwrap_err().contains("at most 67108864"));
}
