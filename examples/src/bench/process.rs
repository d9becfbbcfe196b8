//! What the system says of processes, their folders and the memory that is left.

use std::{fs, path::Path};

use nix::unistd::{SysconfVar, sysconf};

use crate::api::Error;

/// CPU time that a process has used so far, in seconds.
pub(super) fn cpu_s(pid: u32) -> Result<f64, Error> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses and may hold spaces; utime is the 14th.
    let (_, fields) = stat.rsplit_once(") ").ok_or("no such process")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    let per_second = sysconf(SysconfVar::CLK_TCK)?.ok_or("no clock ticks")?;
    Ok(ticks as f64 / per_second as f64)
}

/// Memory that a process has resident, in MiB.
pub(super) fn resident_mib(pid: u32) -> Result<f64, Error> {
    Ok(number(&format!("/proc/{pid}/status"), "VmRSS:")? / 1024.0)
}

/// What a process has made the system write to disks so far, in MiB; zero on a disk in memory.
pub(super) fn written_mib(pid: u32) -> Result<f64, Error> {
    Ok(number(&format!("/proc/{pid}/io"), "write_bytes:")? / f64::from(1 << 20))
}

/// Memory that could still be used, in MiB.
pub(super) fn available_mib() -> Result<f64, Error> {
    Ok(number("/proc/meminfo", "MemAvailable:")? / 1024.0)
}

/// What the files in a folder have together, in MiB.
pub(super) fn folder_mib(folder: &Path) -> Result<f64, Error> {
    let mut sum = 0.0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // A running node removes files between one look and the next.
        let Ok(about) = entry.metadata() else { continue };
        sum += match about.is_dir() {
            true => folder_mib(&entry.path())?,
            false => about.len() as f64 / f64::from(1 << 20),
        };
    }
    Ok(sum)
}

/// The number that follows a name at the start of a line.
fn number(path: &str, name: &str) -> Result<f64, Error> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let line = line.ok_or_else(|| format!("{path} has no {name}"))?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
