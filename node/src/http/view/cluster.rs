//! Documents of the cluster: pipelines, nodes, phases, status.

use std::collections::{BTreeMap, BTreeSet};

use carbonmesh_protocol::{
    id::PipelineId,
    schedule::Schedule,
    view::{
        ClusterView, Counts, Liveness, MemberView, PartitionView, PipelineView, RevisionView,
        StepCounts,
    },
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Names, NodeRef, full, rfc3339};
use crate::{
    document::PipelineDocument,
    http::openapi::schemas::{counts, liveness, pipeline_document},
};

/// A pipeline was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AppliedDoc {
    /// Which.
    pub name: String,
    /// What names the current definition.
    pub revision: String,
    /// Whether that is new.
    pub changed: bool,
    /// On how many nodes it is on disk.
    pub copies: u32,
}

/// All pipelines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PipelinesDoc {
    /// In order of their names.
    pub pipelines: Vec<PipelineDoc>,
    /// Where the next page begins (as `after`), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A pipeline's definitions, as far as they are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevisionsDoc {
    /// The latest first.
    pub revisions: Vec<RevisionDoc>,
}

/// One definition that a pipeline has or had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevisionDoc {
    /// What names it.
    pub revision: String,
    /// With which of the pipeline's changes it was applied last, counted from 1.
    pub applied: u64,
    /// Whether new jobs follow it.
    pub current: bool,
    /// It; may be applied again.
    #[schema(schema_with = pipeline_document)]
    pub definition: PipelineDocument,
}

impl From<&RevisionView> for RevisionDoc {
    fn from(view: &RevisionView) -> Self {
        Self {
            revision: format!("{:016x}", view.definition.revision()),
            applied: view.applied,
            current: view.current,
            definition: PipelineDocument::from(&view.definition),
        }
    }
}

/// What differs between two definitions of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiffDoc {
    /// Which pipeline.
    pub name: String,
    /// The revision of the one; none if there is no such pipeline yet.
    pub from: Option<String>,
    /// The revision of the other.
    pub to: String,
    /// Whether they differ.
    pub changed: bool,
    /// How: a unified diff of the documents in TOML; empty if they do not.
    pub diff: String,
    /// Phases that the other has no more; jobs that began with them still run them.
    pub left_out: Vec<String>,
}

/// A pipeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PipelineDoc {
    /// Its name.
    pub name: String,
    /// What names its current definition.
    pub revision: String,
    /// Its current definition; may be applied again.
    #[schema(schema_with = pipeline_document)]
    pub definition: PipelineDocument,
    /// Whether no more of its work is given out.
    #[serde(default)]
    pub paused: bool,
    /// The phases of which no more work is given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused_phases: Vec<String>,
    /// Who coordinates it.
    pub coordinator: Option<NodeRef>,
    /// The counter of the coordinator's term.
    pub term: Option<u64>,
    /// Who should keep its jobs.
    pub replicas: Vec<NodeRef>,
    /// Its jobs by state, if its coordinator counted them lately.
    #[schema(schema_with = counts)]
    pub counts: Option<Counts>,
    /// By phase: what waits for a worker there and runs, where anything does; only of one pipeline
    /// that is asked for, if its coordinator answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_counts: Option<BTreeMap<String, PhaseCountsDoc>>,
    /// When its schedules ran and run; only of one pipeline that is asked for, if it has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedule_runs: Vec<ScheduleRunsDoc>,
    /// Phases that no live worker offers, or none that has what they require.
    pub unoffered: Vec<String>,
    /// Its partitions, if it is split into some; what stands above is then the first one's, and the
    /// counts are sums.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub partitions: Vec<PartitionDoc>,
}

impl PipelineDoc {
    /// How many of its partitions nobody coordinates at present; it is its only one if it is not split.
    pub(crate) fn leaderless(&self) -> usize {
        match self.partitions.is_empty() {
            true => usize::from(self.coordinator.is_none()),
            false => self.partitions.iter().filter(|one| one.coordinator.is_none()).count(),
        }
    }
}

/// One of the parts that a pipeline's jobs are split into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionDoc {
    /// Who coordinates it.
    pub coordinator: Option<NodeRef>,
    /// The counter of the coordinator's term.
    pub term: Option<u64>,
    /// Who should keep its jobs.
    pub replicas: Vec<NodeRef>,
    /// Its jobs by state, if its coordinator counted them lately.
    #[schema(schema_with = counts)]
    pub counts: Option<Counts>,
}

/// What of a pipeline's jobs is at one of its phases, items included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PhaseCountsDoc {
    /// How many wait for a worker.
    pub waiting: u64,
    /// How many a worker has.
    pub running: u64,
}

impl From<&StepCounts> for PhaseCountsDoc {
    fn from(counts: &StepCounts) -> Self {
        Self { waiting: counts.waiting, running: counts.running }
    }
}

/// How many runs of a schedule that are to come are told.
const NEXT_RUNS: usize = 3;

/// When one of a pipeline's schedules ran and runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScheduleRunsDoc {
    /// The schedule.
    pub name: String,
    /// The moment of its last run, if there was one since it was applied. The run may have been missed
    /// or left out, or be forgotten: the job's absence tells.
    #[schema(format = DateTime)]
    pub last_at: Option<String>,
    /// The job of that run.
    pub last_job: Option<String>,
    /// The moments of the next runs; fewer if there are no more.
    pub next: Vec<String>,
}

impl ScheduleRunsDoc {
    /// The runs about a moment, in ms since 1970; none of what cannot be read.
    pub(crate) fn new(schedule: &Schedule, pipeline: PipelineId, now_ms: u64) -> Option<Self> {
        let times = schedule.times().ok()?;
        let last_ms = times.until(now_ms).filter(|at| *at > schedule.since_ms);
        let next = std::iter::successors(times.after(now_ms), |at| times.after(*at));
        Some(Self {
            name: schedule.name.to_string(),
            last_at: last_ms.map(rfc3339),
            last_job: last_ms.map(|at| schedule.job(pipeline, at).to_string()),
            next: next.take(NEXT_RUNS).map(rfc3339).collect(),
        })
    }
}

impl PipelineDoc {
    /// The document of a pipeline.
    pub(crate) fn new(pipeline: &PipelineView, names: &Names) -> Self {
        Self {
            name: pipeline.definition.name.to_string(),
            revision: format!("{:016x}", pipeline.definition.revision()),
            definition: PipelineDocument::from(&pipeline.definition),
            paused: pipeline.paused,
            paused_phases: pipeline.paused_steps.iter().map(ToString::to_string).collect(),
            coordinator: pipeline.coordinator.map(|(node, _)| names.node(node)),
            term: pipeline.coordinator.map(|(_, term)| term.counter),
            replicas: pipeline.replicas.iter().map(|&node| names.node(node)).collect(),
            counts: pipeline.counts,
            phase_counts: None,
            schedule_runs: Vec::new(),
            unoffered: pipeline.unoffered.iter().map(ToString::to_string).collect(),
            partitions: match pipeline.partitions.as_slice() {
                [_] => Vec::new(),
                all => all.iter().map(|one| PartitionDoc::new(one, names)).collect(),
            },
        }
    }
}

impl PartitionDoc {
    fn new(partition: &PartitionView, names: &Names) -> Self {
        Self {
            coordinator: partition.coordinator.map(|(node, _)| names.node(node)),
            term: partition.coordinator.map(|(_, term)| term.counter),
            replicas: partition.replicas.iter().map(|&node| names.node(node)).collect(),
            counts: partition.counts,
        }
    }
}

/// All members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodesDoc {
    /// The node that was asked among them.
    pub nodes: Vec<NodeDoc>,
    /// Where the next page begins (as `after`), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeDoc {
    /// 32 hexadecimal digits.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Its data folder, as 16 hexadecimal digits.
    pub disk: String,
    /// How often that was started.
    pub boot: u64,
    /// Its program's version.
    pub version: String,
    /// Whether it can be reached.
    #[schema(schema_with = liveness)]
    pub liveness: Liveness,
    /// What it does.
    pub roles: Vec<String>,
    /// What it runs.
    pub phases: Vec<NodePhaseDoc>,
    /// What its operator says of it.
    pub labels: BTreeMap<String, String>,
    /// Where it listens.
    pub addresses: Vec<String>,
    /// Why it takes no jobs, if so.
    pub refusing: Option<String>,
}

impl From<&MemberView> for NodeDoc {
    fn from(member: &MemberView) -> Self {
        let roles = [
            (member.roles.worker, "worker"),
            (member.roles.replica, "replica"),
            (member.roles.gateway, "gateway"),
        ];
        let phases = member.phases.iter().map(|offer| NodePhaseDoc {
            phase: offer.phase.to_string(),
            slots: offer.slots,
            busy: offer.busy,
        });
        Self {
            id: full(member.node),
            name: member.name.clone(),
            disk: format!("{:016x}", member.disk.0),
            boot: member.boot,
            version: member.version.clone(),
            liveness: member.liveness,
            roles: roles.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).into()).collect(),
            phases: phases.collect(),
            labels: member.labels.clone(),
            addresses: member.addresses.clone(),
            refusing: member.refusing.clone(),
        }
    }
}

/// A phase at one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodePhaseDoc {
    /// Which.
    pub phase: String,
    /// How many attempts may run there at once.
    pub slots: u32,
    /// How many run.
    pub busy: u32,
}

/// All phases that are offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PhasesDoc {
    /// In order of their names.
    pub phases: Vec<PhaseDoc>,
    /// Where the next page begins (as `after`), if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A phase that live members offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PhaseDoc {
    /// Which.
    pub phase: String,
    /// How many attempts may run at once.
    pub slots: u64,
    /// How many more could.
    pub free: u64,
    /// Who offers it.
    pub nodes: Vec<OfferDoc>,
}

/// What one member offers of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OfferDoc {
    /// Who.
    #[serde(flatten)]
    pub node: NodeRef,
    /// How many attempts may run there at once.
    pub slots: u32,
    /// How many more could.
    pub free: u32,
}

impl PhasesDoc {
    /// The phases of the members that can be reached.
    pub(crate) fn new(cluster: &ClusterView) -> Self {
        let mut offers: BTreeMap<&str, Vec<OfferDoc>> = BTreeMap::new();
        for member in cluster.members.iter().filter(|one| one.liveness == Liveness::Alive) {
            for offer in &member.phases {
                offers.entry(offer.phase.as_str()).or_default().push(OfferDoc {
                    node: NodeRef { id: full(member.node), name: Some(member.name.clone()) },
                    slots: offer.slots,
                    free: offer.slots.saturating_sub(offer.busy),
                });
            }
        }
        let phase = |(phase, nodes): (&str, Vec<OfferDoc>)| PhaseDoc {
            phase: phase.to_owned(),
            slots: nodes.iter().map(|offer| u64::from(offer.slots)).sum(),
            free: nodes.iter().map(|offer| u64::from(offer.free)).sum(),
            nodes,
        };
        Self { phases: offers.into_iter().map(phase).collect(), next: None }
    }
}

/// The cluster at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusDoc {
    /// The node that was asked.
    pub node: NodeRef,
    /// Its program's version.
    pub version: String,
    /// How many members there are.
    pub members: MembersDoc,
    /// All pipelines.
    pub pipelines: Vec<PipelineDoc>,
    /// Phases that no live worker offers, or none that has what they require.
    pub unoffered_phases: BTreeSet<String>,
    /// Members that take no jobs at present.
    pub refusing: Vec<RefusingDoc>,
}

/// How many members there are, by liveness.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MembersDoc {
    /// Connected.
    pub alive: usize,
    /// Not connected since a moment ago.
    pub suspect: usize,
    /// Not connected for longer than a lease.
    pub down: usize,
    /// Away for so long that their copies are made elsewhere.
    pub retired: usize,
}

/// A member that takes no jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusingDoc {
    /// Who.
    pub node: NodeRef,
    /// Why.
    pub reason: String,
}

impl StatusDoc {
    /// The cluster as one node sees it.
    pub(crate) fn new(cluster: &ClusterView) -> Self {
        let names = Names::of(&cluster.members);
        let count =
            |liveness| cluster.members.iter().filter(|one| one.liveness == liveness).count();
        let refusing = cluster.members.iter().filter_map(|member| {
            let reason = member.refusing.clone()?;
            Some(RefusingDoc { node: names.node(member.node), reason })
        });
        let pipelines = cluster.pipelines.iter();
        Self {
            node: names.node(cluster.node),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            members: MembersDoc {
                alive: count(Liveness::Alive),
                suspect: count(Liveness::Suspect),
                down: count(Liveness::Down),
                retired: count(Liveness::Retired),
            },
            unoffered_phases: pipelines
                .clone()
                .flat_map(|one| one.unoffered.iter().map(ToString::to_string))
                .collect(),
            pipelines: pipelines.map(|one| PipelineDoc::new(one, &names)).collect(),
            refusing: refusing.collect(),
        }
    }
}

/// Which program this is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VersionDoc {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A node takes no new work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainDoc {
    /// Which.
    pub node: NodeRef,
    /// Whether nothing runs on it any more.
    pub quiet: bool,
}

/// The node's loop answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthDoc {
    /// `ok`.
    pub status: String,
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::schedule::{Missed, Overlap};

    use super::*;

    #[test]
    fn a_schedule_tells_its_last_run_and_the_next_ones() {
        let hour_ms = 3_600_000;
        let mut schedule = Schedule {
            name: "hourly".parse().expect("a name"),
            cron: "0 * * * *".to_owned(),
            timezone: "UTC".to_owned(),
            instructions: "{}".into(),
            missed: Missed::default(),
            overlap: Overlap::default(),
            since_ms: hour_ms / 2,
        };
        let pipeline = PipelineId::of_name("p");
        let told = ScheduleRunsDoc::new(&schedule, pipeline, hour_ms * 3 / 2).expect("runs");
        assert_eq!(told.last_at.as_deref(), Some("1970-01-01T01:00:00.000Z"));
        assert_eq!(told.last_job, Some(schedule.job(pipeline, hour_ms).to_string()));
        let hours = ["02", "03", "04"].map(|hour| format!("1970-01-01T{hour}:00:00.000Z"));
        assert_eq!(told.next, hours);
        // What was due before it was applied did not run.
        schedule.since_ms = hour_ms;
        let told = ScheduleRunsDoc::new(&schedule, pipeline, hour_ms * 3 / 2).expect("runs");
        assert_eq!((told.last_at, told.last_job), (None, None));
        schedule.cron = "no times".to_owned();
        assert_eq!(ScheduleRunsDoc::new(&schedule, pipeline, hour_ms), None);
    }
}
