//! The machine that everything was measured on.

use std::{env, fs, thread};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use serde_json::{Value, json};

use crate::peer::Error;

/// Its processor, cores, memory and kernel; how many others want its cores now; and whether the folders
/// of the servers lie in memory, where syncing costs nothing.
///
/// # Errors
/// The system does not say.
pub(crate) fn describe() -> Result<Value, Error> {
    let field = |file: &str, name: &str| -> Result<String, Error> {
        let text = fs::read_to_string(file)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim());
        Ok(value.unwrap_or("unknown").to_owned())
    };
    let load = fs::read_to_string("/proc/loadavg")?;
    let load: f64 = load.split(' ').next().unwrap_or_default().parse()?;
    Ok(json!({
        "cpu": field("/proc/cpuinfo", "model name")?,
        "cores": thread::available_parallelism()?.get(),
        "memory": field("/proc/meminfo", "MemTotal")?,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "load_before": load,
        "folders_in_memory": statfs(&env::temp_dir())?.filesystem_type() == TMPFS_MAGIC,
    }))
}
