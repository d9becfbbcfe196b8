//! `carbonmesh host check`: tries a program against the phase host protocol.

use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{failure::Failure, output::Output};
use crate::{
    document::parse_duration,
    phase::host::check::{Finding, check},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a phase host, and say what of the protocol it does not keep
    Check {
        /// What each of its phases is given: a JSON object
        #[arg(long, value_name = "JSON", default_value = "{}", value_parser = object)]
        instructions: Value,
        /// How long it may take for anything
        #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = patience)]
        timeout: Duration,
        /// The program and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
}

fn object(text: &str) -> Result<Value, String> {
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err("it is JSON, but no object: write {\"key\": \"value\"}".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

fn patience(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

pub(super) async fn run(command: Command, out: &Output) -> Result<(), Failure> {
    let Command::Check { instructions, timeout, command } = command;
    let findings = check(&command, &instructions, timeout).await;
    let broken = findings.iter().filter(|finding| finding.found.is_err()).count();
    let json = json!({ "findings": findings.iter().map(document).collect::<Vec<_>>() });
    out.document(&json, || findings.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    match broken {
        0 => Ok(()),
        broken => Err(Failure::HostBreaks(broken)),
    }
}

fn line(finding: &Finding) -> String {
    match &finding.found {
        Ok(found) => format!("ok    {}: {found}", finding.rule),
        Err(wrong) => format!("WRONG {}: {wrong}", finding.rule),
    }
}

fn document(finding: &Finding) -> Value {
    let (well, text) = match &finding.found {
        Ok(text) => (true, text),
        Err(text) => (false, text),
    };
    json!({ "rule": finding.rule, "ok": well, "found": text })
}
