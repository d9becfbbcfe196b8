//! A node that others than this machine can reach, as its operator and its clients see it: real
//! processes, TLS, tokens, the audit log.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_carbonmesh"));
    // What the machine that runs this has set is not what is tried.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("CARBONMESH_")) {
        command.env_remove(name);
    }
    command
}

fn run(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().expect("it starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

/// A node on all addresses of this machine.
struct Node {
    folder: TempDir,
    child: Child,
    ready: Value,
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn up(folder: &Path) -> Command {
    let mut command = program();
    command.args(["up", "--no-mdns", "--listen", "127.0.0.1:0", "--data-dir"]);
    command.arg(folder.join("data")).arg("--ready-file").arg(folder.join("ready"));
    command
}

impl Node {
    fn start(folder: TempDir, args: &[&str]) -> Self {
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let mut command = up(folder.path());
        command.args(args).arg("--tokens-file").arg(folder.path().join("tokens.toml"));
        let mut child = command.stderr(log).spawn().expect("it starts");
        let (path, began) = (folder.path().join("ready"), Instant::now());
        while !path.exists() {
            let ended = child.try_wait().expect("a child");
            let log = || fs::read_to_string(folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "{}", log());
            thread::sleep(Duration::from_millis(20));
        }
        let text = fs::read_to_string(path).expect("it is there");
        let ready = serde_json::from_str(&text).expect("JSON");
        Self { folder, child, ready }
    }

    /// Where this machine reaches it.
    fn url(&self) -> String {
        let http = self.ready["http"].as_str().expect("text");
        http.replace("0.0.0.0", "127.0.0.1")
    }

    fn fingerprint(&self) -> &str {
        self.ready["fingerprint"].as_str().expect("text")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program as a client that trusts it.
    fn client(&self, token: Option<&str>, args: &[&str]) -> (i32, String, String) {
        let mut command = program();
        command.args(["--api", &self.url(), "--tls-fingerprint", self.fingerprint()]).args(args);
        if let Some(token) = token {
            command.arg("--token-file").arg(self.path(token));
        }
        run(&mut command)
    }

    fn stop(mut self) -> TempDir {
        let id = i32::try_from(self.child.id()).expect("an id");
        kill(Pid::from_raw(id), Signal::SIGTERM).expect("it runs");
        assert!(self.child.wait().expect("a child").success());
        std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"))
    }
}

/// Makes a token for `tokens.toml`, in a file of the name.
fn token(folder: &Path, name: &str, scopes: &str) {
    let mut command = program();
    command.args(["token", "create", "--name", name, "--scope", scopes, "--expires", "1h"]);
    command.arg("--append").arg(folder.join("tokens.toml")).arg("--out").arg(folder.join(name));
    let (code, _, stderr) = run(&mut command);
    assert_eq!(code, 0, "{stderr}");
}

#[test]
fn a_node_that_others_reach_is_not_started_without_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let (code, _, stderr) = run(up(folder.path()).args(["--http", "0.0.0.0:0"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--tokens-file") && stderr.contains("SSH tunnel"), "{stderr}");
    assert!(!folder.path().join("data").exists(), "nothing was made");
    let missing = folder.path().join("tokens.toml").display().to_string();
    let (code, _, stderr) =
        run(up(folder.path()).args(["--http", "0.0.0.0:0", "--tokens-file", &missing]));
    assert_ne!(code, 0);
    assert!(stderr.contains(&missing), "{stderr}");
}

#[test]
fn a_token_is_shown_once_and_only_its_hash_is_for_nodes() {
    let mut command = program();
    command.args(["token", "create", "--name", "ci", "--scope", "read:*", "-o", "json"]);
    let (code, stdout, _) = run(&mut command);
    assert_eq!(code, 0);
    let made: Value = serde_json::from_str(&stdout).expect("JSON");
    let token = made["token"].as_str().expect("text");
    let entry = made["entry"].as_str().expect("text");
    assert!(token.starts_with("cmt_") && !entry.contains(token));
    assert!(entry.contains("sha256") && entry.contains("expires"));
    // It is no flag, and no word of the command line.
    let (code, _, _) = run(program().args(["--token", token, "status"]));
    assert_eq!(code, 2);
}

#[test]
fn clients_reach_a_secured_node_from_the_command_line_and_from_python() {
    let folder = tempfile::tempdir().expect("a folder");
    token(folder.path(), "boss", "admin");
    token(folder.path(), "ci", "enqueue:orders,read:orders");
    let node = Node::start(folder, &["--http", "0.0.0.0:0"]);
    assert!(node.url().starts_with("https://"), "{}", node.url());

    let document = node.path("orders.toml");
    fs::write(
        &document,
        "name = 'orders'\nreplicas = 1\nphases = [{ name = 'asked', wait_for = 'answer' }]\n",
    )
    .expect("a file");
    let apply = ["pipeline", "apply", document.to_str().expect("text")];
    let (code, _, stderr) = node.client(None, &apply);
    assert_eq!(code, 1, "{stderr}");
    assert!(stderr.contains("hint: give a token with --token-file"), "{stderr}");
    assert_eq!(node.client(Some("ci"), &apply).0, 1);
    let (code, _, stderr) = node.client(Some("boss"), &apply);
    assert_eq!(code, 0, "{stderr}");
    let (code, stdout, stderr) =
        node.client(Some("ci"), &["enqueue", "orders", "{}", "-o", "json"]);
    assert_eq!(code, 0, "{stderr}");
    let job: Value = serde_json::from_str(&stdout).expect("JSON");
    let job = job["id"].as_str().expect("an id");
    assert_eq!(node.client(Some("ci"), &["job", "show", job]).0, 0);
    assert_eq!(node.client(Some("ci"), &["job", "cancel", job]).0, 1);

    // Who cannot tell that it is the right node sends it nothing.
    let (code, _, stderr) = run(program().args(["--api", &node.url(), "status"]));
    assert_eq!(code, 2, "{stderr}");
    assert!(stderr.contains("--tls-fingerprint") && stderr.contains("--ca-file"), "{stderr}");
    let cert = node.path("data").join("http-cert.pem");
    let mut signed = program();
    signed.args(["--api", &node.url(), "status", "--ca-file"]).arg(cert);
    signed.arg("--token-file").arg(node.path("ci"));
    assert_eq!(run(&mut signed).0, 0);

    let script = "
import sys
from carbonmesh import Client, Refused, Unreachable
url, fingerprint, token = sys.argv[1:]
client = Client(url, fingerprint=fingerprint, token_file=token)
job = client.enqueue('orders', {'a': 1})
assert client.job(job)['pipeline'] == 'orders'
assert [one['name'] for one in client.pipelines()] == ['orders']
try:
    client.cancel(job)
    sys.exit('it was cancelled')
except Refused as refused:
    assert refused.kind == 'forbidden', refused.problem
for wrong in ({'fingerprint': 'ab' * 32}, {}):
    try:
        Client(url, patience=0, token_file=token, **wrong).status()
        sys.exit('it trusts anybody')
    except Unreachable:
        pass
";
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/python");
    let mut python = Command::new("python3");
    python.args(["-c", script, &node.url(), node.fingerprint()]).arg(node.path("ci"));
    let (code, _, stderr) = run(python.env("PYTHONPATH", sdk));
    assert_eq!(code, 0, "{stderr}");

    // All of it stands in the log; one changed letter shows.
    let folder = node.stop();
    let log = folder.path().join("data/audit.ndjson");
    let verify = |args: &[&str]| run(program().args(["audit", "verify"]).arg(&log).args(args));
    let (code, stdout, stderr) = verify(&[]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    let head = stdout.split_whitespace().last().expect("a hash").to_owned();
    assert_eq!(verify(&["--head", &head]).0, 0);
    let text = fs::read_to_string(&log).expect("a log");
    for part in ["token boss", "token ci", "\"pipeline\":\"orders\"", "denied", job] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    fs::write(&log, text.replacen("token ci", "token me", 1)).expect("a file");
    let (code, stdout, _) = verify(&[]);
    assert_eq!(code, 1);
    assert!(stdout.contains("WRONG") && stdout.contains("audit.ndjson:"), "{stdout}");
    let lines: Vec<&str> = text.lines().collect();
    fs::write(&log, lines[..lines.len() - 1].join("\n") + "\n").expect("a file");
    assert_eq!((verify(&[]).0, verify(&["--head", &head]).0), (0, 1));
}

#[test]
fn a_token_is_not_sent_where_others_could_read_it() {
    let folder = tempfile::tempdir().expect("a folder");
    token(folder.path(), "ci", "read:*");
    let mut command = program();
    command.args(["--api", "http://192.0.2.1:7400", "status", "--token-file"]);
    let (code, _, stderr) = run(command.arg(folder.path().join("ci")));
    assert_eq!(code, 2);
    assert!(stderr.contains("https://"), "{stderr}");
    let text = fs::read_to_string(folder.path().join("ci")).expect("a token");
    assert!(!stderr.contains(text.trim()));
}
