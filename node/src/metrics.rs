//! What a node tells Prometheus: names and units as its conventions ask for, in OpenMetrics text.
//!
//! Counters of attempts live here; everything else is read when somebody asks. Jobs are told by the
//! node that coordinates their pipeline alone, so that sums over all nodes are right.

mod classic;
mod figures;
mod host;

use std::{
    path::PathBuf,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use carbonmesh_protocol::{
    figures::Figures,
    view::{ClusterView, Counts, PartitionView},
};
use carbonmesh_storage::{Statistics, Storage};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use self::host::Host;
use crate::net::NetCounters;

/// What is counted while a node runs; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    attempts: Family<AttemptLabels, Counter>,
    durations: Family<PhaseLabels, Histogram>,
    notifications: Family<TargetLabels, Counter>,
    notifications_waiting: Family<WaitingLabels, Gauge>,
    events_missed: Counter,
    traces: Family<OutcomeLabels, Counter>,
    watched: Arc<OnceLock<Watched>>,
}

/// The parts of a node that are looked at when somebody asks.
#[derive(Debug)]
struct Watched {
    /// A node that ends waits until nobody holds its store.
    storage: Weak<dyn Storage>,
    net: NetCounters,
    host: Host,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    phase: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TargetLabels {
    target: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WaitingLabels {
    target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PipelineLabels {
    pipeline: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    pipeline: String,
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TableLabels {
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MemberLabels {
    liveness: String,
}

impl Default for Metrics {
    fn default() -> Self {
        // From a millisecond to about an hour.
        let buckets = || Histogram::new(exponential_buckets(0.001, 4.0, 12));
        let durations = Family::new_with_constructor(buckets as fn() -> Histogram);
        Self {
            attempts: Family::default(),
            durations,
            notifications: Family::default(),
            notifications_waiting: Family::default(),
            events_missed: Counter::default(),
            traces: Family::default(),
            watched: Arc::default(),
        }
    }
}

impl Metrics {
    /// An attempt of a phase has ended here: `succeeded`, `failed` or `cancelled`.
    pub(crate) fn ended(&self, phase: &str, outcome: &'static str, took: Duration) {
        let phase = phase.to_owned();
        self.durations
            .get_or_create(&PhaseLabels { phase: phase.clone() })
            .observe(took.as_secs_f64());
        self.attempts.get_or_create(&AttemptLabels { phase, outcome }).inc();
    }

    /// A notification was `delivered`, was given up as `dead` or `dropped`; or a try has `failed`.
    pub(crate) fn notified(&self, target: &str, outcome: &'static str) {
        let labels = TargetLabels { target: target.to_owned(), outcome };
        self.notifications.get_or_create(&labels).inc();
    }

    /// There is such a target: all that is counted of it is told from now on.
    pub(crate) fn notifies(&self, target: &str) {
        for outcome in ["delivered", "failed", "dead", "dropped"] {
            let labels = TargetLabels { target: target.to_owned(), outcome };
            let _zero = self.notifications.get_or_create(&labels);
        }
        self.notifications_wait(target, 0);
    }

    /// So many notifications wait for a target.
    pub(crate) fn notifications_wait(&self, target: &str, waiting: usize) {
        let labels = WaitingLabels { target: target.to_owned() };
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.notifications_waiting.get_or_create(&labels).set(waiting);
    }

    /// Events were missing of which somebody would have been notified.
    pub(crate) fn events_missed(&self) {
        self.events_missed.inc();
    }

    /// So many jobs were told to a collector of traces (`exported`), or were not (`dropped`).
    pub(crate) fn traced(&self, outcome: &'static str, jobs: u64) {
        self.traces.get_or_create(&OutcomeLabels { outcome }).inc_by(jobs);
    }

    /// From now on these are told of too, and the machine with the disk of this data folder.
    pub(crate) fn watch(&self, storage: &Arc<dyn Storage>, net: NetCounters, folder: PathBuf) {
        let storage = Arc::downgrade(storage);
        // A node has one of each.
        let _ = self.watched.set(Watched { storage, net, host: Host::watch(folder) });
    }

    /// All of it in the text format from before OpenMetrics.
    pub(crate) fn classic_text(&self, cluster: &ClusterView, figures: &Figures) -> String {
        classic::classic(&self.text(cluster, figures))
    }

    /// All of it as OpenMetrics text. Asks the disk: not to be called where that holds others up.
    pub(crate) fn text(&self, cluster: &ClusterView, figures: &Figures) -> String {
        let mut registry = Registry::default();
        let own = registry.sub_registry_with_prefix("carbonmesh");
        let attempts = "Attempts that ended on this node";
        own.register("attempts", attempts, self.attempts.clone());
        let durations = "How long attempts took on this node";
        own.register_with_unit(
            "attempt_duration",
            durations,
            Unit::Seconds,
            self.durations.clone(),
        );
        let help = "Notifications, and tries to deliver them";
        own.register("notifications", help, self.notifications.clone());
        let help = "Notifications that wait for their turn or for another try";
        own.register("notifications_waiting", help, self.notifications_waiting.clone());
        let help = "How often events were missing of which targets would have been notified";
        own.register("notification_gaps", help, self.events_missed.clone());
        let help = "Jobs whose traces a collector was to have";
        own.register("traces", help, self.traces.clone());
        register_cluster(own, cluster);
        figures::register(own, cluster, figures);
        if let Some(watched) = self.watched.get() {
            watched.net.register(own);
            let statistics = watched.storage.upgrade().map(|storage| storage.statistics());
            if let Some(Ok(statistics)) = statistics {
                register_storage(own, &statistics);
            }
            watched.host.register(own);
        }
        host::register_process(&mut registry);
        let mut text = String::new();
        // Writing into a text cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

fn register_cluster(own: &mut Registry, cluster: &ClusterView) {
    let members = Family::<MemberLabels, Gauge>::default();
    for member in &cluster.members {
        let liveness = member.liveness.to_string();
        members.get_or_create(&MemberLabels { liveness }).inc();
    }
    own.register("members", "Members as this node sees them", members);
    let (slots, busy) =
        (Family::<PhaseLabels, Gauge>::default(), Family::<PhaseLabels, Gauge>::default());
    let refusing = Gauge::<i64>::default();
    if let Some(me) = cluster.members.iter().find(|member| member.node == cluster.node) {
        for offered in &me.phases {
            let labels = PhaseLabels { phase: offered.phase.to_string() };
            slots.get_or_create(&labels).set(offered.slots.into());
            busy.get_or_create(&labels).set(offered.busy.into());
        }
        refusing.set(me.refusing.is_some().into());
        let about = [
            ("node", format!("{:#}", me.node)),
            ("name", me.name.clone()),
            ("version", me.version.clone()),
        ];
        own.register("node", "This node", Info::new(about.to_vec()));
    }
    own.register("phase_slots", "Attempts that may run on this node at once", slots);
    own.register("phase_slots_busy", "Attempts that run on this node", busy);
    own.register("refusing_jobs", "1 while this node takes no jobs", refusing);
    let leaderless = cluster.pipelines.iter().filter(|one| !one.is_led()).count();
    let help = "Pipelines that nobody coordinates, as this node sees them";
    own.register("pipelines_leaderless", help, ConstGauge::new(leaderless as u64));
    let (jobs, terms) =
        (Family::<JobLabels, Gauge>::default(), Family::<PipelineLabels, Gauge>::default());
    let unoffered = Family::<PipelineLabels, Gauge>::default();
    for one in &cluster.pipelines {
        let mine = |it: &&PartitionView| it.coordinator.is_some_and(|(it, _)| it == cluster.node);
        let mine: Vec<&PartitionView> = one.partitions.iter().filter(mine).collect();
        let led = mine.iter().filter_map(|it| it.coordinator);
        let Some(term) = led.map(|(_, term)| term.counter).max() else { continue };
        let pipeline = one.definition.name.to_string();
        let labels = PipelineLabels { pipeline: pipeline.clone() };
        terms.get_or_create(&labels).set(i64::try_from(term).unwrap_or(i64::MAX));
        unoffered.get_or_create(&labels).set(one.unoffered.len() as i64);
        let Some(counts) = mine.iter().map(|it| it.counts).sum::<Option<Counts>>() else {
            continue;
        };
        for (state, count) in by_state(counts) {
            let labels = JobLabels { pipeline: pipeline.clone(), state };
            jobs.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    own.register("jobs", "Jobs of the pipelines that this node coordinates", jobs);
    own.register("pipeline_term", "Terms of the pipelines that this node coordinates", terms);
    let help = "Phases that no worker can take, of the pipelines that this node coordinates";
    own.register("pipeline_unoffered_phases", help, unoffered);
}

fn by_state(counts: Counts) -> [(&'static str, u64); 5] {
    let Counts { queued, running, succeeded, dead, cancelled, .. } = counts;
    [
        ("queued", queued),
        ("running", running),
        ("succeeded", succeeded),
        ("dead", dead),
        ("cancelled", cancelled),
    ]
}

/// What RocksDB says of itself.
fn register_storage(own: &mut Registry, statistics: &Statistics) {
    let store = own.sub_registry_with_prefix("rocksdb");
    let mut bytes = |name: &str, help: &str, value: u64| {
        store.register_with_unit(name, help, Unit::Bytes, ConstGauge::new(value));
    };
    bytes("tables", "What the tables take on disk", statistics.table_bytes);
    bytes(
        "memtables",
        "Changes in memory that wait to be written to tables",
        statistics.memtable_bytes,
    );
    let help = "What has to be written again to bring the tables in order";
    bytes("pending_compaction", help, statistics.pending_compaction_bytes);
    bytes("block_cache", "Blocks of tables that are kept in memory", statistics.cache_bytes);
    let compactions = ConstGauge::new(statistics.compactions);
    store.register("compactions_running", "Compactions under way", compactions);
    let flushes = ConstGauge::new(statistics.flushes);
    store.register("flushes_running", "Flushes of memory to tables under way", flushes);
    let stopped = ConstGauge::new(i64::from(statistics.is_write_stopped));
    store.register("write_stopped", "1 while writes wait for compactions", stopped);
    let help = "Bytes a second to which writes are slowed down; 0 while they are not";
    store.register("delayed_write_rate", help, ConstGauge::new(statistics.delayed_write_rate));
    let errors = ConstCounter::new(statistics.background_errors);
    store.register("background_errors", "Errors of compactions and flushes", errors);
    let changes = ConstCounter::new(statistics.sequence);
    store.register("changes", "Changes of keys, since the data folder was made", changes);
    let keys = Family::<TableLabels, Gauge>::default();
    for (table, count) in &statistics.keys {
        let labels = TableLabels { table };
        keys.get_or_create(&labels).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    store.register("keys", "About how many keys each table has", keys);
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::id::NodeId;

    use super::*;

    #[test]
    fn attempts_and_the_process_are_told() {
        let metrics = Metrics::default();
        metrics.ended("fetch", "succeeded", Duration::from_millis(30));
        metrics.ended("fetch", "failed", Duration::from_secs(2));
        let node = NodeId::from_bytes([1; 16]);
        let cluster = ClusterView { node, members: vec![], pipelines: vec![] };
        let text = metrics.text(&cluster, &Figures::default());
        for line in [
            r#"carbonmesh_attempts_total{phase="fetch",outcome="succeeded"} 1"#,
            r#"carbonmesh_attempts_total{phase="fetch",outcome="failed"} 1"#,
            r#"carbonmesh_attempt_duration_seconds_count{phase="fetch"} 2"#,
            "# UNIT process_resident_memory_bytes bytes",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(text.contains("process_cpu_seconds_total"), "{text}");
    }

    #[test]
    fn the_store_the_network_and_the_machine_are_told_once_they_are_there() {
        let metrics = Metrics::default();
        let storage: Arc<dyn Storage> = Arc::new(carbonmesh_storage::MemoryStorage::default());
        metrics.watch(&storage, NetCounters::default(), std::env::temp_dir());
        let cluster =
            ClusterView { node: NodeId::from_bytes([1; 16]), members: vec![], pipelines: vec![] };
        let text = metrics.classic_text(&cluster, &Figures::default());
        for line in [
            "# TYPE carbonmesh_rocksdb_memtables_bytes gauge",
            "# TYPE carbonmesh_rocksdb_changes_total counter",
            "# TYPE carbonmesh_stream_sent_bytes_total counter",
            "carbonmesh_network_connections 0",
            r#"carbonmesh_rocksdb_keys{table="jobs"} 0"#,
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
        let watched = metrics.watched.get().expect("it watches");
        let began = std::time::Instant::now();
        loop {
            let mut registry = Registry::default();
            watched.host.register(&mut registry);
            let mut text = String::new();
            encode(&mut text, &registry).expect("a text");
            if text.contains("host_memory_total_bytes") && text.contains("host_load1") {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{text}");
            std::thread::yield_now();
        }
    }
}
