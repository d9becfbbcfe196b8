//! What workers write down: each start and each end of a phase, as a line of JSON, synced before the
//! phase goes on.
//!
//! The journal lies outside the cluster, on a disk that no fault touches.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};

/// Which side of a run a record tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Moment {
    Start,
    Finish,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) at_ms: u64,
    pub(crate) moment: Moment,
    pub(crate) node: String,
    pub(crate) job: String,
    /// The number that the client gave the job.
    pub(crate) number: u64,
    /// Which round of attempts: an operator's retry would begin another.
    pub(crate) generation: u32,
    pub(crate) step: String,
    pub(crate) attempt: u32,
    pub(crate) token: String,
    /// The tokens of the earlier steps' runs whose results this one was given, in the steps' order.
    pub(crate) inputs: Vec<String>,
    /// Of the output; empty at the start.
    pub(crate) hash: String,
}

/// Adds a line and waits until it is on disk.
pub(crate) fn append(path: &Path, record: &Record) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    // One write: lines of several workers do not mix, and a kill leaves all of it or nothing.
    file.write_all(format!("{}\n", serde_json::to_string(record)?).as_bytes())?;
    file.sync_data()
}

/// All lines of the journals in a folder, oldest first.
pub(crate) fn read(folder: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(SUFFIX) {
            let text = fs::read_to_string(entry.path())?;
            for line in text.lines() {
                records.push(serde_json::from_str::<Record>(line)?);
            }
        }
    }
    records.sort_by_key(|record| record.at_ms);
    Ok(records)
}

/// How the journals' names end.
pub(crate) const SUFFIX: &str = ".journal";
