//! NO-LOST-JOB: once faults stop, every acknowledged job comes to its end; and CONVERGENCE's part
//! that takes time: one coordinator, no attempt that nobody runs, no end that nobody took.

use std::collections::BTreeSet;

use carbonmesh_protocol::{id::JobId, record::JobRecord};

use super::Seen;

/// What is not at its end yet.
pub(super) fn unfinished(seen: &Seen<'_>, acknowledged: &BTreeSet<JobId>) -> Option<String> {
    // Whoever is being upgraded, or could not read its disk, has missed what came meanwhile.
    if let Some(node) = seen.nodes.iter().find(|node| node.core.is_none() && !node.gone) {
        return Some(format!("{} is not back", node.config.name));
    }
    let coordinators = seen.groups().filter(|(_, group)| group.coordinates.is_some()).count();
    // Should all disks be lost that knew of the pipeline, there is nothing to coordinate.
    let known = seen.groups().next().is_some();
    if coordinators != 1 && known && !acknowledged.is_empty() {
        return Some(format!("{coordinators} nodes coordinate"));
    }
    let running: usize = seen.groups().map(|(_, group)| group.running).sum();
    if running > 0 {
        return Some(format!("{running} attempts run"));
    }
    for (node, core) in seen.cores() {
        let (name, snapshot) = (&node.config.name, core.snapshot());
        if snapshot.unacknowledged > 0 {
            let held = snapshot.unacknowledged;
            return Some(format!("{name} holds {held} ends that nobody took"));
        }
        if snapshot.commits > 0 {
            return Some(format!("{name} waits for {} batches", snapshot.commits));
        }
    }
    let live: u64 = seen.groups().map(|(_, group)| group.live.count).sum();
    if live > 0 {
        let open = |core: &'_ carbonmesh_protocol::core::Core| {
            let mut records = core.records(seen.pipeline).filter(|(_, record)| !record.is_over());
            records.next().map(|(job, record)| {
                let progress: Vec<_> = record.controls.values().map(|it| &it.progress).collect();
                let parent = record.spec.as_ref().and_then(|spec| spec.parent.as_ref());
                format!("{job} {progress:?}, parent {parent:?}")
            })
        };
        let first = seen.cores().find_map(|(node, core)| Some((&node.config.name, open(core)?)));
        return Some(format!("{live} copies of jobs are unfinished, the first {first:?}"));
    }
    // While a place that is not given to another yet is empty, whoever stands in keeps copies.
    let complete = seen.nodes.iter().all(|node| !node.gone);
    for (node, group) in seen.groups().filter(|_| complete) {
        if group.live.count + group.finished.count > 0 && !group.admitted {
            return Some(format!("{} keeps jobs, and is not admitted", node.config.name));
        }
    }
    let secrets: BTreeSet<u64> =
        seen.knowing_secrets().map(|(_, core)| core.secrets_digest()).collect();
    if secrets.len() > 1 {
        return Some("values and secrets differ".to_owned());
    }
    let digests = seen.groups().map(|(_, group)| (group.live, group.finished));
    let held: BTreeSet<(u64, u64, u64)> = digests
        .filter(|(live, finished)| live.count + finished.count > 0)
        .map(|(live, finished)| (live.count, finished.count, finished.xor))
        .collect();
    let same = held.len() < 2 && held.iter().all(|(live, ..)| *live == 0);
    if !same {
        return Some(format!("copies differ, or jobs are unfinished: {held:?}"));
    }
    for job in acknowledged {
        let record = |core: &carbonmesh_protocol::core::Core| {
            // A damaged copy is for the node to find; the others count.
            core.record(seen.pipeline, *job).ok().flatten()
        };
        let states: Vec<_> = seen.cores().filter_map(|(_, core)| record(core)).collect();
        // A job whose disks are all gone is the business of acked-survives.
        if !states.iter().all(JobRecord::is_over) {
            let states: Vec<_> = states.iter().map(JobRecord::state).collect();
            return Some(format!("job {job} is {states:?}"));
        }
    }
    None
}
