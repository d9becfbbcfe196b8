//! The machine's figures, taken every few seconds on a thread of their own: a disk that hangs holds up
//! nothing but these.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
    },
    registry::{Registry, Unit},
};
use sysinfo::{DiskRefreshKind, Disks, Networks, System};

/// How often they are taken.
const EVERY: Duration = Duration::from_secs(5);

/// So many network devices are told of: a machine that runs containers may have thousands.
const DEVICES: usize = 32;

/// The machine's figures; cheap to clone. They are taken for as long as a clone lives.
#[derive(Clone, Debug)]
pub(super) struct Host {
    latest: Arc<Mutex<Option<HostFigures>>>,
    /// Dropping it ends the thread.
    _alive: SyncSender<()>,
}

#[derive(Clone, Debug, Default)]
struct HostFigures {
    /// Busy processors of all, 0 to 1; none before the second look.
    cpu: Option<f64>,
    cpus: usize,
    load: [f64; 3],
    memory: u64,
    memory_available: u64,
    swap: u64,
    swap_used: u64,
    disk: Option<DiskFigures>,
    devices: Vec<DeviceFigures>,
}

#[derive(Clone, Debug)]
struct DiskFigures {
    size: u64,
    available: u64,
    read: u64,
    written: u64,
}

#[derive(Clone, Debug)]
struct DeviceFigures {
    name: String,
    received: u64,
    sent: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeviceLabels {
    device: String,
}

impl Host {
    /// Begins to look at the machine, and at the disk that holds `folder`.
    pub(super) fn watch(folder: PathBuf) -> Self {
        let latest = Arc::new(Mutex::new(None));
        let (alive, ended) = sync_channel::<()>(0);
        let kept = Arc::clone(&latest);
        let run = move || {
            let Ok(mut looker) = Looker::new(&folder) else { return };
            loop {
                let figures = looker.look();
                *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(figures);
                if let Err(RecvTimeoutError::Disconnected) = ended.recv_timeout(EVERY) {
                    return;
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("figures".to_owned()).spawn(run) {
            tracing::warn!(%error, "the machine's figures will not be told");
        }
        Self { latest, _alive: alive }
    }

    /// What was seen last.
    pub(super) fn register(&self, own: &mut Registry) {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(figures) = latest {
            figures.register(own);
        }
    }
}

struct Looker {
    system: System,
    networks: Networks,
    disks: Disks,
    folder: PathBuf,
    looked: bool,
}

impl Looker {
    fn new(folder: &Path) -> Result<Self, sysinfo::Error> {
        let (system, networks, disks) = (System::new()?, Networks::new()?, Disks::new()?);
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Ok(Self { system, networks, disks, folder, looked: false })
    }

    fn look(&mut self) -> HostFigures {
        self.system.refresh_memory();
        self.system.refresh_cpu_usage();
        self.networks.refresh(true);
        self.disks
            .refresh_specifics(true, DiskRefreshKind::nothing().with_storage().with_io_usage());
        let load = System::load_average().unwrap_or_default();
        let known = std::mem::replace(&mut self.looked, true);
        let disk = self.disks.iter().filter(|disk| self.folder.starts_with(disk.mount_point()));
        let disk = disk.max_by_key(|disk| disk.mount_point().as_os_str().len());
        let mut devices: Vec<DeviceFigures> = self
            .networks
            .iter()
            .map(|(name, data)| DeviceFigures {
                name: name.to_string_lossy().into_owned(),
                received: data.total_received(),
                sent: data.total_transmitted(),
            })
            .collect();
        devices.sort_by(|a, b| b.received.cmp(&a.received).then_with(|| a.name.cmp(&b.name)));
        devices.truncate(DEVICES);
        HostFigures {
            cpu: known.then(|| f64::from(self.system.global_cpu_usage()) / 100.0),
            cpus: self.system.cpus().len(),
            load: [load.one, load.five, load.fifteen],
            memory: self.system.total_memory(),
            memory_available: self.system.available_memory(),
            swap: self.system.total_swap(),
            swap_used: self.system.used_swap(),
            disk: disk.map(|disk| DiskFigures {
                size: disk.total_space(),
                available: disk.available_space(),
                read: disk.usage().total_read_bytes,
                written: disk.usage().total_written_bytes,
            }),
            devices,
        }
    }
}

impl HostFigures {
    fn register(self, own: &mut Registry) {
        let host = own.sub_registry_with_prefix("host");
        if let Some(cpu) = self.cpu {
            let help = "Part of the machine's processors that was busy, 0 to 1";
            host.register("cpu_usage_ratio", help, ConstGauge::new(cpu));
        }
        host.register("cpus", "The machine's processors", ConstGauge::new(self.cpus as u64));
        for (name, load) in ["load1", "load5", "load15"].into_iter().zip(self.load) {
            let help = "Average of processes that ran or wanted to, over so many minutes";
            host.register(name, help, ConstGauge::new(load));
        }
        let mut bytes = |name: &str, help: &str, value: u64| {
            host.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(value));
        };
        bytes("memory_total", "The machine's memory", self.memory);
        bytes("memory_available", "Memory that programs could have", self.memory_available);
        bytes("swap_total", "The machine's swap space", self.swap);
        bytes("swap_used", "Swap space in use", self.swap_used);
        if let Some(disk) = self.disk {
            bytes("data_disk_size", "Size of the disk with the data folder", disk.size);
            bytes("data_disk_available", "What is free of it", disk.available);
            let help = "Read from the disk with the data folder, by all programs";
            let read = ConstCounter::new(disk.read);
            host.register_with_unit("data_disk_read", help, Unit::Bytes, read);
            let help = "Written to the disk with the data folder, by all programs";
            let written = ConstCounter::new(disk.written);
            host.register_with_unit("data_disk_written", help, Unit::Bytes, written);
        }
        let received = Family::<DeviceLabels, Counter>::default();
        let sent = Family::<DeviceLabels, Counter>::default();
        for device in self.devices {
            let labels = DeviceLabels { device: device.name };
            received.get_or_create(&labels).inc_by(device.received);
            sent.get_or_create(&labels).inc_by(device.sent);
        }
        let help = "Received by each of the machine's network devices";
        host.register_with_unit("network_received", help, Unit::Bytes, received);
        let help = "Sent by each of the machine's network devices";
        host.register_with_unit("network_sent", help, Unit::Bytes, sent);
    }
}

/// What Prometheus expects of every process; read when it asks.
pub(super) fn register_process(registry: &mut Registry) {
    process::register(registry.sub_registry_with_prefix("process"));
}

mod process {
    use std::fs;

    use nix::{
        sys::resource::{Resource, getrlimit},
        unistd::{SysconfVar, sysconf},
    };

    use super::{ConstCounter, ConstGauge, Registry, Unit};

    pub(super) fn register(process: &mut Registry) {
        let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name may have anything in it but ends with the last parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
        let number =
            |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok()).unwrap_or_default();
        let seconds = (number(12) + number(13)) / per_second;
        let help = "CPU time, user and system";
        process.register_with_unit("cpu", help, Unit::Seconds, ConstCounter::new(seconds));
        if let Some(booted) = booted() {
            let start = booted + number(20) / per_second;
            let help = "When the process was started, since 1970";
            process.register_with_unit("start_time", help, Unit::Seconds, ConstGauge::new(start));
        }
        process.register("threads", "Threads", ConstGauge::new(number(18) as i64));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        for (name, field, help) in [
            ("resident_memory", "VmRSS:", "Memory in use"),
            ("virtual_memory", "VmSize:", "Memory that is mapped"),
        ] {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let kib = line.and_then(|it| it.trim().trim_end_matches("kB").trim().parse().ok());
            let bytes = kib.unwrap_or(0_i64) << 10;
            process.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(bytes));
        }
        let open = fs::read_dir("/proc/self/fd").map_or(0, |found| found.count() as i64);
        process.register("open_fds", "Open file descriptors", ConstGauge::new(open));
        if let Ok((soft, _)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let help = "File descriptors that may be open";
            process.register("max_fds", help, ConstGauge::new(soft));
        }
    }

    /// When the machine was started, in seconds since 1970.
    fn booted() -> Option<f64> {
        let stat = fs::read_to_string("/proc/stat").ok()?;
        stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
    }
}
