//! Runs the system's tools, with errors that say what was run.

use std::process::Command;

use crate::api::Error;

/// Runs a command line whose words have no spaces in them.
///
/// # Errors
/// It cannot be started, or fails.
pub fn run(line: &str) -> Result<(), Error> {
    let words: Vec<&str> = line.split_whitespace().collect();
    run_words(&words)
}

/// Runs a program with these arguments.
///
/// # Errors
/// As for [`run`].
pub fn run_words(words: &[&str]) -> Result<(), Error> {
    let (program, arguments) = words.split_first().ok_or("an empty command")?;
    let output = Command::new(program).args(arguments).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{}`: {}", words.join(" "), reason.trim()).into())
}
