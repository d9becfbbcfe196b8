//! The phase that the nodes run: it writes down that it starts, works for a moment, and writes down
//! what came out before it says so.
//!
//! What comes out depends on the instructions alone, so that the checker can tell whether it is
//! right; the token beside it tells which of several runs was accepted.

use std::{
    env,
    io::{self, Read},
    path::PathBuf,
    thread,
    time::Duration,
};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{
    clock::now_ms,
    journal::{self, Moment, Record},
};

/// The steps of the pipeline, in their order.
pub(crate) const STEPS: [&str; 3] = ["a", "b", "c"];

/// What a worker is told by its node's configuration.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct WorkArgs {
    #[arg(long)]
    journal: PathBuf,
    #[arg(long)]
    node: String,
}

/// Runs one phase: instructions on standard input, the result on standard output.
pub(crate) fn run(args: &WorkArgs) -> io::Result<()> {
    let mut text = String::new();
    io::stdin().read_to_string(&mut text)?;
    let instructions: Map<String, Value> = serde_json::from_str(&text)?;
    let start = start_record(&args.node, &instructions);
    journal::append(&args.journal, &start)?;
    thread::sleep(duration(&start.token));
    let hash = output(&start.step, start.number);
    let finish =
        Record { at_ms: now_ms(), moment: Moment::Finish, hash: hash.clone(), ..start.clone() };
    journal::append(&args.journal, &finish)?;
    let step = &start.step;
    println!("{}", json!({ step: hash, token_field(step): start.token }));
    Ok(())
}

/// The field of a result that tells which run it is of.
pub(crate) fn token_field(step: &str) -> String {
    format!("{step}_token")
}

/// What a step of a job gives: a chain, so that a step that was left out shows.
pub(crate) fn output(step: &str, number: u64) -> String {
    let mut hash = format!("job {number}");
    for name in STEPS {
        let sum = Sha256::digest(format!("{name} {hash}"));
        hash = sum.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        if name == step {
            break;
        }
    }
    hash
}

fn start_record(node: &str, instructions: &Map<String, Value>) -> Record {
    let variable = |name: &str| env::var(format!("CARBONMESH_{name}")).unwrap_or_default();
    let step = variable("STEP");
    let before = STEPS.iter().take_while(|name| **name != step);
    let inputs = before.map(|name| {
        let token = instructions.get(&token_field(name));
        token.and_then(Value::as_str).unwrap_or_default().to_owned()
    });
    Record {
        at_ms: now_ms(),
        moment: Moment::Start,
        node: node.to_owned(),
        job: variable("JOB_ID"),
        number: instructions.get("number").and_then(Value::as_u64).unwrap_or(u64::MAX),
        generation: 0,
        attempt: variable("ATTEMPT").parse().unwrap_or_default(),
        token: variable("TOKEN"),
        inputs: inputs.collect(),
        hash: String::new(),
        step,
    }
}

/// Most runs are short; some are long enough that a fault begins and ends meanwhile.
fn duration(token: &str) -> Duration {
    let sum = Sha256::digest(token);
    let (kind, part) = (sum[0], u64::from(sum[1]));
    Duration::from_millis(if kind < 8 { 1000 + part * 8 } else { 20 + part / 2 })
}
