//! A node with phases of its own, written in Rust: the whole of `carbonmesh`, and four phases more.
//!
//! ```text
//! rust-node up &
//! rust-node pipeline apply - <<< '{"name": "hello", "phases": ["greet"]}'
//! rust-node enqueue hello '{"name": "Ada"}' --wait
//! ```
//! `greet` shows how a phase with types reads its instructions and gives a result. `noop` and `sleep` are what
//! the benchmark measures with: `sleep` waits `ms` milliseconds, and appends a line with job, step,
//! node, token and the time in ms since 1970 to the file that `RUST_NODE_STARTS` names, if it does; `wide` is `noop`
//! with more slots, for nodes that are far from each other.

use std::{
    env,
    fs::OpenOptions,
    io::Write,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use carbonmesh::{
    cli,
    phase::{Context, Fields, Phase, PhaseContext, PhaseError, PhaseRegistry, phase_fn},
};
use serde::{Deserialize, Serialize};

/// What `greet` reads. A job that does not fit becomes a dead letter at once.
#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Serialize)]
struct Greeting {
    greeting: String,
}

struct Noop;

#[async_trait]
impl Phase for Noop {
    async fn run(&self, _: PhaseContext) -> Result<Fields, PhaseError> {
        Ok(Fields::new())
    }
}

struct Sleep;

#[async_trait]
impl Phase for Sleep {
    async fn run(&self, context: PhaseContext) -> Result<Fields, PhaseError> {
        note_start(&context).map_err(|error| PhaseError::Retry(error.to_string()))?;
        let ms = context.instructions()?.get("ms").and_then(serde_json::Value::as_u64);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(ms.unwrap_or_default())) => {}
            () = context.cancelled().cancelled() => {}
        }
        Ok(Fields::new())
    }
}

fn note_start(context: &PhaseContext) -> std::io::Result<()> {
    let Some(path) = env::var_os("RUST_NODE_STARTS") else { return Ok(()) };
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let node = env::var("RUST_NODE_NAME").unwrap_or_default();
    let (job, step, token) = (context.job(), context.step(), context.token());
    let line = format!("{job} {step} {node} {token} {now_ms}\n");
    // One write to a file opened for appending: lines of several processes do not mix.
    OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
}

/// As in `carbonmesh` itself.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let greet = phase_fn("greet", |_: Context, Named { name }| async move {
        Ok(Greeting { greeting: format!("Hello, {name}!") })
    });
    let phases = PhaseRegistry::default()
        .with_phase(greet.slots(4))
        .with("noop", 256, Noop)
        .with("wide", 4096, Noop)
        .with("sleep", 16, Sleep);
    cli::main_with(phases)
}
