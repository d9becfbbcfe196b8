//! What this node shows of a job, of a pipeline and of the cluster, as clients see it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use crate::{
    advert::Advert,
    catalog::CatalogEntry,
    id::{JobId, PipelineId},
    name::Name,
    pipeline::PhaseDef,
    record::{JobRecord, Progress},
    requirement::meets_all,
    store::ReadError,
    view::{
        ClusterView, Counts, InvocationView, JobState, JobView, Liveness, MemberView,
        PartitionView, PipelineView, StepCounts,
    },
};

use super::{Core, dispatch::results, group::Role};

impl Core {
    /// A job as clients see it, wherever its record lies.
    pub(super) fn job_view(
        &self,
        pipeline: PipelineId,
        job: JobId,
    ) -> Result<Option<JobView>, ReadError> {
        let in_memory = self.groups.get(&pipeline).and_then(|group| group.jobs.get(&job));
        if let Some(entry) = in_memory {
            return self.view_of(pipeline, job, &entry.record);
        }
        match self.read_record(pipeline, job)? {
            Some(record) => self.view_of(pipeline, job, &record),
            None => Ok(None),
        }
    }

    pub(super) fn view_of(
        &self,
        pipeline: PipelineId,
        job: JobId,
        record: &JobRecord,
    ) -> Result<Option<JobView>, ReadError> {
        let Some(spec) = record.spec.as_ref() else { return Ok(None) };
        let definition = self.definition(pipeline, spec.revision);
        let phases = definition.and_then(|it| Some((it, it.phases_of(spec)?)));
        let Some((definition, phases)) = phases else { return Ok(None) };
        let state = record.state();
        let compensation = match state.is_terminal() {
            true => self.compensation_of(pipeline, job, record)?,
            false => None,
        };
        let invocations: Vec<InvocationView> = phases
            .iter()
            .enumerate()
            .map(|(step, phase)| {
                let control = record.controls.get(&(step as u16));
                InvocationView {
                    step: phase.name.clone(),
                    phase: phase.phase.clone(),
                    state: control.map_or(JobState::Queued, |control| control.state()),
                    attempt_count: control.map_or(0, |control| control.attempt_count),
                    attempts: control.map_or_else(Vec::new, |control| control.attempts.clone()),
                    note: control.and_then(|control| control.note.clone()),
                    result: control.and_then(|control| match &control.progress {
                        Progress::Succeeded { result, .. } => Some(result.clone()),
                        _ => None,
                    }),
                    items: self.items_view(pipeline, job, step as u16),
                }
            })
            .collect();
        let all: BTreeSet<usize> = (0..phases.len()).collect();
        Ok(Some(JobView {
            job,
            pipeline: definition.name.clone(),
            state,
            created_ms: spec.created_ms,
            finished_ms: state.is_terminal().then(|| record.written_ms()),
            options: spec.options,
            generation: spec.generation,
            key: spec.key.clone(),
            parent: spec.parent.as_ref().map(|parent| (parent.job, parent.index)),
            compensates: spec.compensates.as_ref().map(|compensated| compensated.job),
            compensation: compensation.map(|(job, _)| job),
            instructions: spec.instructions.clone(),
            results: results(record, &all),
            invocations,
            conflicts: record.controls.values().map(|control| control.late_count).sum(),
            other_payloads: record.payload_conflicts() as u32,
            trace: record.trace(),
        }))
    }

    /// What waits and runs at each step, if this node coordinates: as it has it in memory.
    pub(super) fn step_counts(&self, pipeline: PipelineId) -> Option<Vec<StepCounts>> {
        let group = self.groups.get(&pipeline)?;
        let Role::Coordinator(reign) = &group.role else { return None };
        let mut steps: BTreeMap<&Name, (u64, u64)> = BTreeMap::new();
        for ((_, step), queue) in &reign.ready {
            steps.entry(step).or_default().0 += queue.depth();
        }
        for running in reign.running.values() {
            steps.entry(&running.name).or_default().1 += 1;
        }
        let counts = steps.into_iter().map(|(step, (waiting, running))| StepCounts {
            step: step.clone(),
            waiting,
            running,
        });
        Some(counts.filter(|it| it.waiting + it.running > 0).collect())
    }

    /// The cluster as this node sees it.
    pub(super) fn cluster_view(&self) -> ClusterView {
        let mut members: Vec<MemberView> =
            vec![member_view(&self.advert(), Liveness::Alive, self.avoided_for(self.me()))];
        members.extend(self.members.values().map(|member| {
            let avoided = self.avoided_for(member.advert.node);
            let mut view = member_view(&member.advert, self.liveness(member), avoided);
            for slots in &mut view.phases {
                let busy = member.busy.iter().find(|(phase, _)| *phase == slots.phase);
                slots.busy = busy.map_or(slots.busy, |(_, busy)| *busy);
            }
            view
        }));
        let pipelines = self.pipelines().iter();
        let pipelines = pipelines.filter(|(_, entry)| !entry.removed && entry.partition() == 0);
        let pipelines = pipelines.filter_map(|(id, _)| self.pipeline_view(*id)).collect();
        ClusterView { node: self.me(), members, pipelines }
    }

    /// Whether somebody who can be reached runs such a phase, and has what it requires.
    fn is_offered(&self, phase: &PhaseDef) -> bool {
        let meets = |labels| meets_all(&phase.requires, labels);
        let here = self.worker.phases().any(|(offered, _, _)| *offered == phase.phase);
        let offers = |advert: &Advert| advert.phases.iter().any(|slots| slots.phase == phase.phase);
        let mut others = self.members.values().filter(|member| member.reachable);
        here && meets(&self.config.labels)
            || others.any(|member| offers(&member.advert) && meets(&member.advert.labels))
    }

    fn pipeline_view(&self, pipeline: PipelineId) -> Option<PipelineView> {
        let entry = self.catalog.get(&pipeline)?;
        let definition = entry.definition()?;
        let partitions = self.partitions_of(pipeline).into_iter();
        let partitions: Vec<_> = partitions.map(|part| self.partition_view(part)).collect();
        let first = partitions.first()?;
        let (coordinator, replicas) = (first.coordinator, first.replicas.clone());
        let counts = partitions.iter().map(|part| part.counts);
        // Of one whose counts are not known, nothing can be said of the whole.
        let counts = counts.sum::<Option<Counts>>();
        let phases = definition.all_phases().into_iter().filter(|phase| phase.has_worker());
        let unoffered = phases.filter(|phase| !self.is_offered(phase));
        let unoffered: BTreeSet<&Name> = unoffered.map(|phase| &phase.phase).collect();
        Some(PipelineView {
            definition: definition.clone(),
            paused: entry.paused,
            paused_steps: entry.paused_steps.iter().cloned().collect(),
            coordinator,
            replicas,
            counts,
            unoffered: unoffered.into_iter().cloned().collect(),
            partitions,
        })
    }

    fn partition_view(&self, pipeline: PipelineId) -> PartitionView {
        let group = self.groups.get(&pipeline);
        let counts = group.and_then(|group| {
            let told = group.beat.as_ref().filter(|_| group.leader.is_some());
            let own = group.is_coordinator().then(|| group.counts());
            own.or(told.map(|beat| beat.counts))
        });
        let leader = group.and_then(|group| group.leader);
        PartitionView {
            number: self.catalog.get(&pipeline).map_or(0, CatalogEntry::partition),
            coordinator: leader.map(|leader| (leader.node, leader.term)),
            replicas: self.view(pipeline),
            counts,
        }
    }
}

fn member_view(advert: &Advert, liveness: Liveness, avoided: Option<Duration>) -> MemberView {
    let advert = advert.clone();
    MemberView {
        node: advert.node,
        name: advert.name,
        disk: advert.disk,
        boot: advert.boot,
        version: advert.version,
        liveness,
        roles: advert.roles,
        phases: advert.phases,
        labels: advert.labels,
        addresses: advert.addresses,
        refusing: advert.refusing,
        avoided,
    }
}
