//! `carbonmesh audit verify`: whether audit logs are as nodes wrote them.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read as _},
    path::PathBuf,
};

use clap::Subcommand;
use serde_json::json;

use super::{
    failure::Failure,
    output::{Output, clean},
};
use crate::http::access::chain::{Checked, Line};

/// How much of a file is read to find its first entry, in bytes.
const FIRST_LINE: u64 = 64 << 10;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check that no entry was changed, taken out or put in
    Verify {
        /// The files of one node, older ones too, in any order
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The hash that the log must end with, as the node's log or an earlier check has told it
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
    },
}

pub(super) fn run(command: Command, out: &Output) -> Result<(), Failure> {
    let Command::Verify { mut files, head: expected } = command;
    let mut checked = Checked::default();
    files.sort_by_cached_key(|path| first_entry(path).unwrap_or(u64::MAX));
    for path in &files {
        let name = path.display().to_string();
        let failed = |error| Failure::Usage(format!("cannot read {name}: {error}"));
        let file = File::open(path).map_err(failed)?;
        checked.file(&name, BufReader::new(file)).map_err(failed)?;
    }
    let head = checked.head.clone().unwrap_or_default();
    let cut = expected.filter(|it| !it.eq_ignore_ascii_case(&head.hash));
    let faults = checked
        .faults
        .iter()
        .map(|fault| json!({ "file": fault.file, "line": fault.line, "what": fault.what }));
    let json = json!({
        "entries": checked.lines, "first": checked.first, "last": head.seq, "head": head.hash,
        "head_expected": cut, "faults": faults.collect::<Vec<_>>(),
    });
    out.document(&json, || {
        let mut lines: Vec<String> = checked
            .faults
            .iter()
            .map(|fault| {
                format!("WRONG {}:{}: {}", clean(&fault.file), fault.line, clean(&fault.what))
            })
            .collect();
        if cut.is_some() {
            lines.push("WRONG the log does not end with the hash that was given".to_owned());
        }
        if lines.is_empty() {
            lines.push(format!("ok    {} entries follow from each other", checked.lines));
        }
        match checked.first {
            Some(first) if first > 1 => {
                lines.push(format!("note  what was before entry {first} is not in these files"));
            }
            _ => {}
        }
        lines.push(format!("head  entry {} {}", head.seq, head.hash));
        lines.join("\n")
    })?;
    if checked.faults.is_empty() && cut.is_none() { Ok(()) } else { Err(Failure::Tampered) }
}

fn first_entry(path: &PathBuf) -> Option<u64> {
    let mut line = Vec::new();
    let file = BufReader::new(File::open(path).ok()?);
    file.take(FIRST_LINE).read_until(b'\n', &mut line).ok()?;
    serde_json::from_slice::<Line>(&line).ok().map(|line| line.seq)
}
