//! What a node tells Prometheus: names and units as its conventions ask for, in OpenMetrics text.
//!
//! Counters of attempts live here; everything else is read when somebody asks. Jobs are told by the
//! node that coordinates their pipeline alone, so that sums over all nodes are right.

use std::{fs, time::Duration};

use carbonmesh_protocol::view::{ClusterView, Counts, PipelineView};
use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// What is counted while a node runs; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    attempts: Family<AttemptLabels, Counter>,
    durations: Family<PhaseLabels, Histogram>,
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
struct PipelineLabels {
    pipeline: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    pipeline: String,
    state: &'static str,
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
        Self { attempts: Family::default(), durations }
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

    /// All of it as text.
    pub(crate) fn text(&self, cluster: &ClusterView) -> String {
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
        register_cluster(own, cluster);
        register_process(&mut registry);
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
    let (jobs, terms) =
        (Family::<JobLabels, Gauge>::default(), Family::<PipelineLabels, Gauge>::default());
    let unoffered = Family::<PipelineLabels, Gauge>::default();
    let mine = |one: &&PipelineView| one.coordinator.is_some_and(|(it, _)| it == cluster.node);
    for one in cluster.pipelines.iter().filter(mine) {
        let pipeline = one.definition.name.to_string();
        let labels = PipelineLabels { pipeline: pipeline.clone() };
        if let Some((_, term)) = one.coordinator {
            terms.get_or_create(&labels).set(i64::try_from(term.counter).unwrap_or(i64::MAX));
        }
        unoffered.get_or_create(&labels).set(one.unoffered.len() as i64);
        let Some(counts) = one.counts else { continue };
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

/// What Prometheus expects of every process.
fn register_process(registry: &mut Registry) {
    let process = registry.sub_registry_with_prefix("process");
    let per_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may have anything in it but ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks =
        |at: usize| fields.get(at).and_then(|it| it.parse::<f64>().ok()).unwrap_or_default();
    let seconds = (ticks(12) + ticks(13)) / per_second;
    let help = "CPU time, user and system";
    process.register_with_unit("cpu", help, Unit::Seconds, ConstCounter::new(seconds));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib =
        resident.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<i64>().ok());
    let memory = Gauge::<i64>::default();
    memory.set(kib.unwrap_or_default() << 10);
    process.register_with_unit("resident_memory", "Memory in use", Unit::Bytes, memory);
    let open = Gauge::<i64>::default();
    open.set(fs::read_dir("/proc/self/fd").map_or(0, |found| found.count() as i64));
    process.register("open_fds", "Open file descriptors", open);
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
        let text = metrics.text(&ClusterView { node, members: vec![], pipelines: vec![] });
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
}
