//! Why a job waits: what each of its phases waits for, and what each node lacks to run it.
//!
//! It is put together of what the node knows of the job and of the cluster: a moment's view, that the
//! coordinator's may be ahead of.

use carbonmesh_protocol::{
    pipeline::PhaseDef,
    view::{ClusterView, InvocationView, JobState, JobView, Liveness, MemberView, PipelineView},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Names, NodeRef, rfc3339};
use crate::http::openapi::schemas::job_state;

/// Why a job waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainDoc {
    /// The job.
    pub id: String,
    /// Its pipeline.
    pub pipeline: String,
    /// Where it stands.
    #[schema(schema_with = job_state)]
    pub state: JobState,
    /// What holds for all of it, if anything does.
    pub reasons: Vec<String>,
    /// Its phases that are not over.
    pub phases: Vec<ExplainPhaseDoc>,
}

/// Why a phase waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainPhaseDoc {
    /// Its name in the pipeline.
    pub step: String,
    /// Where it stands.
    #[schema(schema_with = job_state)]
    pub state: JobState,
    /// What it waits for.
    pub reasons: Vec<String>,
    /// The workers, where one is what it waits for.
    pub nodes: Vec<ExplainNodeDoc>,
}

/// What a node lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExplainNodeDoc {
    /// Who.
    pub node: NodeRef,
    /// What keeps it from taking the phase; nothing if it could.
    pub lacks: Vec<String>,
}

impl ExplainDoc {
    /// Explains a job as of `now_ms` (Unix time).
    pub(crate) fn new(job: &JobView, cluster: &ClusterView, now_ms: u64) -> Self {
        let pipeline = cluster.pipelines.iter().find(|it| it.definition.name == job.pipeline);
        let mut reasons = Vec::new();
        let over = job.state.is_terminal();
        if over {
            reasons.push(format!("it is over: {}", job.state.name()));
        }
        match pipeline {
            None => reasons.push("this node does not know its pipeline".to_owned()),
            Some(_) if over => {}
            Some(pipeline) => reasons.extend(whole(job, pipeline, now_ms)),
        }
        let names = Names::of(&cluster.members);
        let open = job.invocations.iter().filter(|it| !over && !it.state.is_terminal());
        let phases = pipeline.into_iter().flat_map(|pipeline| {
            open.clone().map(|it| ExplainPhaseDoc::new(it, job, pipeline, cluster, &names))
        });
        Self {
            id: job.job.to_string(),
            pipeline: job.pipeline.to_string(),
            state: job.state,
            reasons,
            phases: phases.collect(),
        }
    }
}

/// What holds back all of a job.
fn whole(job: &JobView, pipeline: &PipelineView, now_ms: u64) -> Vec<String> {
    let mut reasons = Vec::new();
    if job.options.not_before_ms > now_ms {
        reasons.push(format!("it may not begin before {}", rfc3339(job.options.not_before_ms)));
    }
    if pipeline.paused {
        reasons.push("its pipeline is paused: see `pipeline resume`".to_owned());
    }
    if !pipeline.is_led_for(job.job) {
        reasons.push("its pipeline has no coordinator at present".to_owned());
    }
    reasons
}

impl ExplainPhaseDoc {
    fn new(
        invocation: &InvocationView,
        job: &JobView,
        pipeline: &PipelineView,
        cluster: &ClusterView,
        names: &Names,
    ) -> Self {
        let InvocationView { step, state, .. } = invocation;
        let phase = pipeline.definition.named(step);
        let before = waits_for(invocation, job, pipeline);
        let (mut reasons, mut nodes) = (Vec::new(), Vec::new());
        match phase {
            _ if *state == JobState::Running => reasons.extend(runs(invocation, names)),
            _ if !before.is_empty() => {
                reasons.push(format!("it comes after {}", before.join(", ")))
            }
            None => reasons.push("its definition is an earlier one: see `pipeline history`".into()),
            Some(PhaseDef { wait_for: Some(signal), .. }) => reasons.push(format!(
                "it waits for the signal `{signal}`: send it with `job signal {} {signal}`",
                job.job
            )),
            Some(PhaseDef { each: Some(_), .. }) => reasons.push(match invocation.items {
                Some(items) => format!("{} of its {} items have ended", items.ended, items.total),
                None => "its items have not begun".to_owned(),
            }),
            Some(phase) => {
                if pipeline.paused_steps.contains(step) {
                    reasons.push("it is paused: see `pipeline resume --phase`".to_owned());
                }
                if invocation.attempt_count > 0 {
                    let count = invocation.attempt_count;
                    reasons
                        .push(format!("it was tried {count} times, and may wait for its backoff"));
                }
                let workers = cluster.members.iter().filter(|member| member.roles.worker);
                nodes.extend(workers.map(|member| ExplainNodeDoc {
                    node: names.node(member.node),
                    lacks: lacks(phase, member),
                }));
                reasons.push(summed_up(phase, &nodes));
            }
        }
        Self { step: step.to_string(), state: *state, reasons, nodes }
    }
}

fn runs(invocation: &InvocationView, names: &Names) -> Option<String> {
    let last = invocation.attempts.last()?;
    let node = names.node(last.worker);
    let name = node.name.unwrap_or(node.id);
    Some(format!("it runs on {name} since {}", rfc3339(last.started_ms)))
}

/// The phases before it that are not done.
fn waits_for(invocation: &InvocationView, job: &JobView, pipeline: &PipelineView) -> Vec<String> {
    let phases = &pipeline.definition.phases;
    let Some(phase) = phases.iter().find(|phase| phase.name == invocation.step) else {
        return Vec::new();
    };
    let before = phase.after.iter().filter_map(|at| phases.get(usize::from(*at)));
    let open = before.filter_map(|before| {
        let found = job.invocations.iter().find(|it| it.step == before.name)?;
        let state = found.state;
        (state != JobState::Succeeded)
            .then(|| format!("`{}`, which is {}", before.name, state.name()))
    });
    open.collect()
}

/// What keeps a worker from taking the phase.
fn lacks(phase: &PhaseDef, member: &MemberView) -> Vec<String> {
    let mut lacks = Vec::new();
    match member.liveness {
        Liveness::Alive => {}
        other => lacks.push(format!("it is {other}")),
    }
    match member.phases.iter().find(|slots| slots.phase == phase.phase) {
        None => lacks.push(format!("it does not offer `{}`", phase.phase)),
        Some(slots) if slots.busy >= slots.slots => {
            lacks.push(format!("all of its {} slots are taken", slots.slots));
        }
        Some(_) => {}
    }
    if let Some(left) = member.avoided {
        let left = left.as_secs() + 1;
        lacks.push(format!("it kept attempts far beyond their time-outs: left out for {left} s"));
    }
    lacks.extend(phase.requires.iter().filter_map(|it| it.lack_of(&member.labels)));
    lacks
}

fn summed_up(phase: &PhaseDef, nodes: &[ExplainNodeDoc]) -> String {
    let able = nodes.iter().filter(|node| node.lacks.is_empty()).count();
    let held = match (&phase.rate, &phase.limit) {
        (None, None) => "",
        _ => "; its rate or its limit may hold it back",
    };
    match able {
        0 => format!("no worker can take it, of {}", nodes.len()),
        able => format!("{able} of {} workers could take it{held}", nodes.len()),
    }
}
