//! What the benchmark ran on, and when.

use std::{fs, thread};

use jiff::Timestamp;
use serde_json::json;

use super::Results;

/// `machine`: the date (UTC), the CPU's model, how many cores there are, the kernel, the memory in
/// MiB, and the load of the last minute, which says whether the machine was quiet.
pub fn note(results: &mut Results) {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or(line, |(_, value)| value).trim().to_owned()
    };
    let kib = field("/proc/meminfo", "MemTotal:").trim_end_matches(" kB").parse::<u64>();
    let load = field("/proc/loadavg", "");
    let document = json!({
        "date": format!("{:.0}", Timestamp::now()),
        "cpu": field("/proc/cpuinfo", "model name"),
        "cores": thread::available_parallelism().map_or(0, usize::from),
        "kernel": field("/proc/sys/kernel/osrelease", ""),
        "memory_mib": kib.unwrap_or_default() / 1024,
        "load_1min": load.split(' ').next().and_then(|load| load.parse::<f64>().ok()),
    });
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    println!("{} cores of {}, Linux {}", document["cores"], text("cpu"), text("kernel"));
    println!("load before: {}", document["load_1min"]);
    results.keep("machine", document);
}
