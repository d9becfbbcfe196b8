//! A phase that is a WebAssembly module: a WASI program (preview 1) that runs in this process, and can
//! do nothing but what it was granted.
//!
//! ```text
//! FILE.wasm ─► load: checked, compiled once ─► an instance for each attempt ─► stdout, stderr, exit code
//! ```
//! It is given and gives what a command does ([`exec`](super::exec)): JSON on standard input and standard
//! output, its log on standard error, the exit code tells. No attempt sees what another has left in
//! memory. Without the feature `wasm` there is nothing to run modules with, and [`WasmPhase::load`] says so.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use super::ExecSettings;

#[cfg(not(feature = "wasm"))]
mod absent;
#[cfg(feature = "wasm")]
mod machine;
#[cfg(feature = "wasm")]
mod run;

#[cfg(not(feature = "wasm"))]
pub use absent::WasmPhase;
#[cfg(feature = "wasm")]
pub use run::WasmPhase;

/// Whether this program can run modules.
pub(crate) const IS_BUILT_IN: bool = cfg!(feature = "wasm");

/// What is said where it cannot.
pub(crate) const NOT_BUILT_IN: &str =
    "this program was built without WebAssembly: build it with `--features wasm`";

/// The largest file that is taken for a module: compiling it takes many times as much memory.
const MAX_MODULE_BYTES: u64 = 64 << 20;

/// How a module is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WasmSettings {
    /// Its first argument: what it is called.
    pub name: String,
    /// All environment variables that it gets beside those of its job.
    pub env: BTreeMap<String, String>,
    /// The most memory that one instance may have, in bytes.
    pub max_memory: usize,
    /// The most that it may print, in bytes.
    pub max_output: usize,
    /// Exit codes that mean: do not try again.
    pub no_retry_codes: Vec<i32>,
    /// Folders that it may read, by the names that it knows them by.
    pub read_folders: BTreeMap<String, PathBuf>,
    /// Folders that it may read and change, likewise.
    pub write_folders: BTreeMap<String, PathBuf>,
}

impl WasmSettings {
    /// The default for `max_memory`: 256 MiB.
    pub const MAX_MEMORY: usize = 256 << 20;

    /// A module that is called so, and to which nothing is granted.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            env: BTreeMap::new(),
            max_memory: Self::MAX_MEMORY,
            max_output: ExecSettings::MAX_OUTPUT,
            no_retry_codes: ExecSettings::NO_RETRY_CODES.to_vec(),
            read_folders: BTreeMap::new(),
            write_folders: BTreeMap::new(),
        }
    }
}

/// Reads what may be a module from a file.
///
/// # Errors
/// It cannot be read, or is too large.
pub(crate) fn read_module(path: &Path) -> Result<Vec<u8>, String> {
    let wrong = |reason: &dyn std::fmt::Display| format!("{}: {reason}", path.display());
    let about = fs::metadata(path).map_err(|error| wrong(&error))?;
    if !about.is_file() {
        return Err(wrong(&"it is no file"));
    }
    if about.len() > MAX_MODULE_BYTES {
        let reason = format!("it has {} bytes: at most {MAX_MODULE_BYTES} are taken", about.len());
        return Err(wrong(&reason));
    }
    fs::read(path).map_err(|error| wrong(&error))
}

#[cfg(all(test, feature = "wasm"))]
mod tests;
