//! The program as a shell sees it: exit codes, stdout and stderr, without a cluster. Where a node
//! must answer, a socket answers by rote.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Command, Output, Stdio},
    thread,
};

/// An address where nobody listens.
const NOBODY: &str = "http://127.0.0.1:1";

fn carbonmesh(api: &str, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_carbonmesh"))
        .args(args)
        .env("CARBONMESH_API", api)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that reads no stdin may have ended already.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    child.wait_with_output().expect("the program ends")
}

/// The exit code and stderr.
fn failure(api: &str, args: &[&str], input: &str) -> (i32, String) {
    let output = carbonmesh(api, args, input);
    let code = output.status.code().expect("no signal");
    (code, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// A node that gives every request the same answer.
fn node(status: &str, content_type: &str, body: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    );
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let (mut request, mut chunk) = (Vec::new(), [0; 4096]);
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let read = stream.read(&mut chunk).expect("a request");
                request.extend_from_slice(&chunk[..read]);
            }
            stream.write_all(answer.as_bytes()).expect("a listener");
        }
    });
    url
}

#[test]
fn the_help_documents_the_exit_codes() {
    let output = carbonmesh(NOBODY, &["--help"], "");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("Exit codes:"), "{text}");
    assert!(text.contains("3  no node answers"), "{text}");
}

#[test]
fn without_a_node_the_way_to_start_one_is_shown() {
    for args in [&["status"] as &[&str], &["enqueue", "p", "{}"], &["job", "ls", "p"]] {
        let (code, stderr) = failure(NOBODY, args, "");
        assert_eq!(code, 3, "{stderr}");
        let start = "error: no node answers at http://127.0.0.1:1/: start one with `carbonmesh up`";
        assert!(stderr.starts_with(start), "{stderr}");
    }
}

#[test]
fn an_upload_without_a_node_says_where_to_go_on() {
    let args = ["enqueue", "p", "-", "--ndjson", "--skip", "1"];
    let (code, stderr) = failure(NOBODY, &args, "{}\n{}\n{}\n");
    assert_eq!(code, 3, "{stderr}");
    assert!(stderr.contains("answered: lines 1 to 1; sent: up to line 3"), "{stderr}");
    assert!(stderr.contains("--skip 1"), "{stderr}");
}

#[test]
fn what_the_command_line_names_must_be_usable() {
    let cases = [
        (
            &["pipeline", "apply", "-"] as &[&str],
            "name = 'p'\nphases = [{ name = 'a', timeout = '3' }]",
        ),
        (&["pipeline", "apply", "/no/such/file"], ""),
        (&["enqueue", "p", "@/no/such/file"], ""),
        (&["enqueue", "p", "{}", "--ndjson"], ""),
        (&["enqueue", "p", "{}", "--wait=soon"], ""),
    ];
    for (args, input) in cases {
        let (code, stderr) = failure(NOBODY, args, input);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
    }
    let (_, stderr) = failure(NOBODY, cases[0].0, cases[0].1);
    assert!(stderr.starts_with("error: phases[0].timeout: `3` is no duration"), "{stderr}");
}

#[test]
fn refusals_and_trouble_have_codes_of_their_own() {
    let problem = |status: u16, kind: &str| {
        format!(
            r#"{{"type":"urn:carbonmesh:problem:{kind}","title":"t","status":{status},"detail":"so it is"}}"#
        )
    };
    let media = "application/problem+json";
    let refused = node("404 Not Found", media, &problem(404, "unknown-pipeline"));
    let (code, stderr) = failure(&refused, &["pipeline", "show", "p"], "");
    assert_eq!(code, 1);
    assert_eq!(stderr, "error: so it is\nhint: see `carbonmesh pipeline ls`, or apply it first\n");
    let trouble = node("503 Service Unavailable", media, &problem(503, "no-replica"));
    assert_eq!(failure(&trouble, &["enqueue", "p", "{}"], "").0, 5);
    let stranger = node("502 Bad Gateway", "text/html", "<html>");
    assert_eq!(failure(&stranger, &["status"], "").0, 5);
}

#[test]
fn the_end_of_a_job_that_was_waited_for_decides_the_code() {
    let job = |state: &str| {
        let id = "00000000-0000-0000-0000-000000000001";
        format!(
            r#"{{"id":"{id}","pipeline":"p","state":"{state}","created_at":"then","finished_at":null,
            "key":null,"instructions":{{}},"result":null,"invocations":[],"conflicts":0}}"#
        )
    };
    let args = ["job", "show", "00000000-0000-0000-0000-000000000001", "--wait=0s"];
    for (state, expected) in [("succeeded", 0), ("dead", 4), ("cancelled", 4), ("running", 6)] {
        let url = node("200 OK", "application/json", &job(state));
        let (code, stderr) = failure(&url, &args, "");
        assert_eq!(code, expected, "{stderr}");
        let json = carbonmesh(&url, &[&args[..3], &["-o", "json"]].concat(), "");
        assert_eq!(String::from_utf8_lossy(&json.stdout).trim_end(), job(state));
    }
}

#[test]
fn a_closed_stdout_is_no_failure() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_carbonmesh"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("the program ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty());
}
