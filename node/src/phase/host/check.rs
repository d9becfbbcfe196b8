//! Tries a phase host against the protocol: what `carbonmesh host check` does.
//!
//! It speaks to the program itself, without what a node has between, so that it sees every frame.

use std::{collections::HashMap, process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::frame::{FromHost, Hello, PROTOCOL};
use crate::phase::{exec::TERM_GRACE, groups::Group};

/// A long line: a node may send more.
const LONG_BYTES: usize = 4 << 20;

/// What was tried, and what came of it.
#[derive(Debug)]
pub(crate) struct Finding {
    /// What a host must do.
    pub(crate) rule: &'static str,
    /// What it did, or what is wrong with that.
    pub(crate) found: Result<String, String>,
}

/// A host that is tried.
struct Talk {
    child: Child,
    _group: Group,
    stdin: Option<ChildStdin>,
    lines: Lines<BufReader<ChildStdout>>,
    patience: Duration,
}

/// Tries the command; each phase gets these instructions. `patience` is how long it may take for
/// anything.
pub(crate) async fn check(
    command: &[String],
    instructions: &Value,
    patience: Duration,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut note = |rule, found: Result<String, String>| {
        let well = found.is_ok();
        findings.push(Finding { rule, found });
        well
    };
    let (mut talk, hello) = match Talk::begin(command, patience).await {
        Ok(begun) => begun,
        Err(error) => {
            note("says hello first", Err(error));
            return findings;
        }
    };
    let names = hello.phases.join(", ");
    let slots = hello.concurrency;
    note("says hello first", Ok(format!("phases {names}; {slots} at once in a process")));
    for phase in &hello.phases {
        let run = talk.run(&[(1, phase, instructions)]).await;
        let told = run.map(|mut ends| format!("{phase}: {}", ends.remove(&1).unwrap_or_default()));
        if !note("ends each attempt once", told) {
            return findings;
        }
    }
    let Some(first) = hello.phases.first() else {
        // It has pipelines alone.
        note("ends with exit code 0 at `shutdown`", talk.end(true).await);
        return findings;
    };
    let strange = talk.strange(first, instructions).await;
    note("passes over keys and types that it does not know", strange);
    let mut long = instructions.clone();
    long["padding"] = "x".repeat(LONG_BYTES).into();
    let long = talk.run(&[(3, first, &long)]).await;
    note("reads long lines", long.map(|_| format!("{LONG_BYTES} bytes")));
    let many: Vec<_> =
        (0..slots as u64 * 4).map(|i| (10 + i, first.as_str(), instructions)).collect();
    let mut ended = Ok(String::new());
    for together in many.chunks(slots.max(1)) {
        if let Err(error) = talk.run(together).await {
            ended = Err(error);
            break;
        }
    }
    let ended = ended.map(|_| format!("{} attempts, {slots} at once", many.len()));
    note("runs as many at once as it says", ended);
    note("ends what is cancelled, and goes on", talk.cancel(first, instructions).await);
    note("ends with exit code 0 at `shutdown`", talk.end(true).await);
    let again = Talk::begin(command, patience).await;
    let closed = match again {
        Ok((mut talk, _)) => talk.end(false).await,
        Err(error) => Err(error),
    };
    note("ends with exit code 0 when its standard input ends", closed);
    findings
}

impl Talk {
    async fn begin(command: &[String], patience: Duration) -> Result<(Self, Hello), String> {
        let (program, arguments) = command.split_first().ok_or("the command is empty")?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_remove("CARBONMESH_SECRET")
            .env_remove("CARBONMESH_JOIN")
            .env_remove("CARBONMESH_ENCRYPTION_KEY")
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("cannot run {program}: {error}"))?;
        let group = Group::of(child.id());
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = stdout.ok_or("its standard output cannot be read")?;
        let lines = BufReader::new(stdout).lines();
        let mut talk = Self { child, _group: group, stdin, lines, patience };
        let line = talk.line().await?;
        let hello = match FromHost::parse(line.as_bytes())? {
            FromHost::Hello(hello) => hello,
            _ => return Err(format!("its first frame is no `hello`: {}", start_of(&line))),
        };
        let welcome = json!({
            "type": "welcome", "protocol": PROTOCOL, "max_frame": super::HostSettings::MAX_FRAME,
        });
        talk.send(&welcome).await?;
        Ok((talk, hello))
    }

    async fn line(&mut self) -> Result<String, String> {
        match timeout(self.patience, self.lines.next_line()).await {
            Ok(Ok(Some(line))) => Ok(line),
            Ok(Ok(None)) => {
                let status = timeout(TERM_GRACE, self.child.wait()).await;
                Err(match status {
                    Ok(Ok(status)) => format!("it ended too soon: {status}"),
                    _ => "it closed its standard output".to_owned(),
                })
            }
            Ok(Err(error)) => Err(format!("its output cannot be read: {error}")),
            Err(_) => Err(format!("it wrote nothing for {:?}", self.patience)),
        }
    }

    async fn send(&mut self, frame: &Value) -> Result<(), String> {
        let Some(stdin) = &mut self.stdin else { return Err("its input is closed".to_owned()) };
        let line = format!("{frame}\n");
        let sent = timeout(self.patience, stdin.write_all(line.as_bytes())).await;
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("it does not read its input: {error}")),
            Err(_) => Err(format!("it did not read its input for {:?}", self.patience)),
        }
    }

    /// Gives attempts, and waits until each has ended: how.
    async fn run(&mut self, given: &[(u64, &str, &Value)]) -> Result<HashMap<u64, String>, String> {
        for (id, phase, instructions) in given {
            self.send(&run_frame(*id, phase, instructions)).await?;
        }
        let mut ends = HashMap::new();
        while ends.len() < given.len() {
            let (id, how) = self.end_of_one().await?;
            if !given.iter().any(|(given, ..)| *given == id) {
                return Err(format!("it ended attempt {id}, which it was not given"));
            }
            if ends.insert(id, how).is_some() {
                return Err(format!("it ended attempt {id} twice"));
            }
        }
        Ok(ends)
    }

    async fn end_of_one(&mut self) -> Result<(u64, String), String> {
        loop {
            let line = self.line().await?;
            match FromHost::parse(line.as_bytes())? {
                FromHost::Ended { id, end: Ok(result) } => {
                    let fields: Result<super::Fields, _> = serde_json::from_str(result.get());
                    fields.map_err(|_| format!("its result is no object: {}", start_of(&line)))?;
                    return Ok((id, format!("a result, {}", start_of(result.get()))));
                }
                FromHost::Ended { id, end: Err(error) } => {
                    return Ok((id, format!("an error, `{}`", start_of(&error.to_string()))));
                }
                FromHost::Hello(_) => return Err("it said hello twice".to_owned()),
                FromHost::Log { .. }
                | FromHost::Heartbeat(_)
                | FromHost::Progress { .. }
                | FromHost::Item { .. }
                | FromHost::Session { .. } => {}
            }
        }
    }

    async fn strange(&mut self, phase: &str, instructions: &Value) -> Result<String, String> {
        self.send(&json!({ "type": "weather", "sun": true })).await?;
        self.send(&json!({ "type": "cancel", "id": 999_999 })).await?;
        let mut run = run_frame(2, phase, instructions);
        run["moon"] = json!({ "full": [true] });
        self.send(&run).await?;
        match self.end_of_one().await? {
            (2, _) => Ok("it goes on".to_owned()),
            (id, _) => Err(format!("it ended attempt {id}, which it was not given")),
        }
    }

    async fn cancel(&mut self, phase: &str, instructions: &Value) -> Result<String, String> {
        self.send(&run_frame(7, phase, instructions)).await?;
        self.send(&json!({ "type": "cancel", "id": 7 })).await?;
        let (id, how) = match timeout(TERM_GRACE, self.end_of_one()).await {
            Ok(ended) => ended?,
            Err(_) => return Err(format!("the attempt did not end within {TERM_GRACE:?}")),
        };
        if id != 7 {
            return Err(format!("it ended attempt {id}, which it was not given"));
        }
        self.run(&[(8, phase, instructions)]).await?;
        Ok(how)
    }

    async fn end(&mut self, told: bool) -> Result<String, String> {
        if told {
            self.send(&json!({ "type": "shutdown" })).await?;
        } else {
            self.stdin = None;
        }
        let status = timeout(TERM_GRACE, self.child.wait()).await;
        match status {
            Ok(Ok(status)) if status.success() => Ok("it did".to_owned()),
            Ok(Ok(status)) => Err(format!("it ended otherwise: {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it still runs after {TERM_GRACE:?}")),
        }
    }
}

/// What attempts of a check are given as their span.
const TRACEPARENT: &str = "00-000000000000000000000000000000c1-00000000000000c1-00";

fn run_frame(id: u64, phase: &str, instructions: &Value) -> Value {
    json!({
        "type": "run", "id": id, "phase": phase, "instructions": instructions,
        "job": "0", "pipeline": "check", "step": phase, "attempt": 1, "token": "0",
        "idempotency_key": format!("check/{id}"), "traceparent": TRACEPARENT,
        "gives_items": false, "timeout_ms": null,
        "sessions": { "mapper": { "key": [1] } },
    })
}

fn start_of(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(80).collect()
}
