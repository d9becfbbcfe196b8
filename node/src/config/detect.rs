//! What a node finds out about its machine, as labels that phases may require.

use std::{collections::BTreeMap, env, fs, path::Path};

/// Programs that phases often need; each that is on the path becomes a label `tool.NAME`.
const TOOLS: [&str; 8] = ["bash", "docker", "ffmpeg", "git", "java", "node", "perl", "python3"];

/// The labels of this machine: `os`, `arch`, `cores`, `memory`, `gpu`, `tool.*`.
pub(super) fn labels() -> BTreeMap<String, String> {
    let mut found = BTreeMap::from([
        ("os".to_owned(), env::consts::OS.to_owned()),
        ("arch".to_owned(), env::consts::ARCH.to_owned()),
    ]);
    if let Ok(cores) = std::thread::available_parallelism() {
        found.insert("cores".to_owned(), cores.to_string());
    }
    let memory = fs::read_to_string("/proc/meminfo");
    if let Some(mib) = memory.ok().as_deref().and_then(total_mib) {
        found.insert("memory".to_owned(), format!("{mib}MiB"));
    }
    if let Some(gpu) = gpu() {
        found.insert("gpu".to_owned(), gpu.to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let there = |tool: &&str| env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    let tools = TOOLS.into_iter().filter(there);
    found.extend(tools.map(|tool| (format!("tool.{tool}"), "true".to_owned())));
    found
}

fn total_mib(meminfo: &str) -> Option<u64> {
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    total.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib >> 10)
}

/// Whose GPU can be used here: told by what its driver leaves behind.
fn gpu() -> Option<&'static str> {
    let any = |folder: &str| fs::read_dir(folder).is_ok_and(|mut found| found.next().is_some());
    match () {
        () if any("/proc/driver/nvidia/gpus") => Some("nvidia"),
        () if Path::new("/dev/kfd").exists() => Some("amd"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        let labels = labels();
        assert_eq!(labels["os"], env::consts::OS);
        assert!(labels["cores"].parse::<u32>().is_ok_and(|cores| cores > 0));
        assert!(labels["memory"].ends_with("MiB"));
    }

    #[test]
    fn memory_is_read_from_what_the_system_tells() {
        assert_eq!(total_mib("MemTotal:       16384000 kB\nMemFree: 1 kB\n"), Some(16000));
        assert_eq!(total_mib("nothing"), None);
    }
}
