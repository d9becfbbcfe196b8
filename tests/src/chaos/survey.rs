//! What is read from the cluster when all is over: once from all nodes together, and once from each
//! while it can ask nobody else.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use carbonmesh_examples::api::{Answer, Error};
use serde_json::Value;

use crate::{
    agent::Agent,
    cluster::Cluster,
    history::{Copy, JobState},
    load::PIPELINE,
    node::Node,
    work::{STEPS, token_field},
};

/// How long open jobs may take to end.
const DRAIN: Duration = Duration::from_secs(120);

/// How many jobs are read in full from each node by itself; beyond that, one in so many.
const FULL: usize = 3000;

/// How long a node may take to notice that it is alone.
const ALONE: Duration = Duration::from_secs(40);

/// Waits until none of these jobs is open, nor any other; whether that came. The list alone does not
/// do: whoever answers it may not know of all jobs yet.
pub(crate) fn drain(cluster: &Cluster, acknowledged: &[String]) -> Result<bool, Error> {
    let deadline = Instant::now() + DRAIN;
    let mut open = acknowledged.to_vec();
    loop {
        let found = read(cluster, &open)?;
        open.retain(|id| !found.get(id).is_some_and(JobState::is_terminal));
        let listed = |state| list(&cluster.agents[0], Some(state)).map(|jobs| jobs.len());
        let empty = matches!((listed("queued"), listed("running")), (Ok(0), Ok(0)));
        if open.is_empty() && empty {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(500));
    }
}

/// Every job as the cluster shows it. `wanted` are ids that may not be in its list.
pub(crate) fn together(
    cluster: &Cluster,
    wanted: &[String],
) -> Result<BTreeMap<String, JobState>, Error> {
    let mut ids: Vec<String> = list(&cluster.agents[0], None)?.into_keys().collect();
    ids.extend(wanted.iter().cloned());
    ids.sort();
    ids.dedup();
    read(cluster, &ids)
}

/// Reads jobs through all nodes at once.
fn read(cluster: &Cluster, ids: &[String]) -> Result<BTreeMap<String, JobState>, Error> {
    let share = ids.len().div_ceil(cluster.agents.len()).max(1);
    let parts = ids.chunks(share).zip(&cluster.agents);
    thread::scope(|scope| {
        let readers: Vec<_> = parts
            .map(|(part, agent)| {
                scope.spawn(move || {
                    let found = part.iter().map(|id| {
                        let state = job(agent, id)?;
                        Ok(state.map(|state| (id.clone(), state)))
                    });
                    found.filter_map(Result::transpose).collect::<Result<BTreeMap<_, _>, Error>>()
                })
            })
            .collect();
        let mut all = BTreeMap::new();
        for reader in readers {
            all.extend(reader.join().map_err(|_| "a reader has failed")??);
        }
        Ok(all)
    })
}

/// What each node holds, with all links cut.
pub(crate) fn apart(cluster: &mut Cluster) -> Result<Vec<Copy>, Error> {
    let replicas = cluster.replicas();
    let Some(network) = &mut cluster.network else { return in_turn(cluster, &replicas) };
    network.isolate_all()?;
    let deadline = Instant::now() + ALONE;
    while (0..cluster.nodes.len()).any(|node| cluster.alive(node) != Some(1)) {
        if Instant::now() > deadline {
            return Err("nodes that are cut off do not notice it".into());
        }
        thread::sleep(Duration::from_millis(200));
    }
    let copies = thread::scope(|scope| {
        let nodes = cluster.nodes.iter().zip(&cluster.agents).enumerate();
        let readers: Vec<_> = nodes
            .map(|(index, (node, agent))| {
                let is_replica = replicas.contains(&index);
                scope.spawn(move || alone(agent, &node.name, is_replica))
            })
            .collect();
        readers
            .into_iter()
            .map(|reader| reader.join().map_err(|_| "a reader has failed")?)
            .collect()
    });
    if let Some(network) = &mut cluster.network {
        network.heal()?;
    }
    copies
}

/// Without a network to cut, all but one are stopped.
fn in_turn(cluster: &mut Cluster, replicas: &[usize]) -> Result<Vec<Copy>, Error> {
    let mut copies = Vec::new();
    for index in 0..cluster.nodes.len() {
        for (other, node) in cluster.nodes.iter_mut().enumerate() {
            if other == index { node.resume()? } else { node.pause()? }
        }
        let deadline = Instant::now() + ALONE;
        while cluster.alive(index) != Some(1) {
            if Instant::now() > deadline {
                return Err("a node that is left alone does not notice it".into());
            }
            thread::sleep(Duration::from_millis(200));
        }
        let name = &cluster.nodes[index].name;
        copies.push(alone(&cluster.agents[index], name, replicas.contains(&index))?);
    }
    cluster.nodes.iter_mut().try_for_each(Node::resume)?;
    Ok(copies)
}

fn alone(agent: &Agent, name: &str, is_replica: bool) -> Result<Copy, Error> {
    let mut jobs = list(agent, None).map_err(|error| format!("{name} alone: {error}"))?;
    let every = jobs.len().div_ceil(FULL).max(1);
    for (id, state) in jobs.iter_mut().step_by(every) {
        if let Some(full) = job(agent, id)? {
            *state = full;
        }
    }
    Ok(Copy { node: name.to_owned(), is_replica, jobs })
}

/// Ids and states, page after page.
fn list(agent: &Agent, state: Option<&str>) -> Result<BTreeMap<String, JobState>, Error> {
    let mut all = BTreeMap::new();
    let state = state.map(|state| format!("&state={state}")).unwrap_or_default();
    let mut after = String::new();
    loop {
        let path = format!("/v1/pipelines/{PIPELINE}/jobs?limit=1000{state}{after}");
        let page = agent.get(&path)?.success()?;
        for job in page["jobs"].as_array().ok_or("a page without jobs")? {
            let state = JobState { state: text(&job["state"]), ..JobState::default() };
            all.insert(text(&job["id"]), state);
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return Ok(all),
        }
    }
}

/// A job in full; nothing if nobody knows it, which is not the same as that nobody answers.
fn job(agent: &Agent, id: &str) -> Result<Option<JobState>, Error> {
    let path = format!("/v1/jobs/{id}");
    // A node that is busy for a moment is asked again.
    let settled = |answer: &Answer| matches!(answer.status, 200 | 404);
    let answer = (0..3).find_map(|_| agent.get(&path).ok().filter(settled));
    let answer = answer.ok_or_else(|| format!("nobody tells of job {id}"))?;
    if answer.status == 404 {
        return Ok(None);
    }
    let answer = answer.body;
    let result = &answer["result"];
    let results = STEPS.iter().filter_map(|step| {
        let output = result[*step].as_str()?.to_owned();
        Some(((*step).to_owned(), (output, text(&result[token_field(step)]))))
    });
    Ok(Some(JobState {
        state: text(&answer["state"]),
        number: answer["instructions"]["number"].as_u64(),
        results: results.collect(),
    }))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
