//! The clients: one beside each node enqueues jobs, writes down what it asked and what it heard, and
//! watches for the ends of some.
//!
//! Every second job has an idempotency key; if its outcome is unknown, it is tried again, often
//! through another node, and must stay one job.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use carbonmesh_examples::api::{Answer, Error};
use reqwest::Method;
use serde_json::json;
use tokio::{task::spawn_local, time};

use crate::{
    agent::Client,
    clock::now_ms,
    history::{Op, Outcome, Seen, is_terminal},
};

/// The pipeline that all jobs are of.
pub(crate) const PIPELINE: &str = "chaos";

/// How long a client waits before it calls an outcome unknown: longer than a node does.
const ENQUEUE_TIMEOUT: Duration = Duration::from_secs(8);

/// How long a client waits for a job's end.
const WATCH: &str = "20s";
const WATCH_TIMEOUT: Duration = Duration::from_secs(25);

/// One job in so many is watched.
const WATCHED: u64 = 3;

/// What the clients share.
#[derive(Debug, Default)]
pub(crate) struct Load {
    stopped: AtomicBool,
    next: AtomicU64,
    /// Jobs whose outcome is unknown and that may be tried again.
    retries: Mutex<VecDeque<u64>>,
    ops: Mutex<Vec<Op>>,
    seen: Mutex<Vec<Seen>>,
    busy: AtomicU64,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// No new jobs; those that are under way are waited for.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    pub(crate) fn ops(&self) -> Vec<Op> {
        locked(&self.ops).clone()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        locked(&self.seen).clone()
    }

    /// Whether clients of all these nodes were told of so many copies since then.
    pub(crate) fn all_in_full_since(&self, nodes: &[String], copies: u32, since_ms: u64) -> bool {
        let ops = locked(&self.ops);
        let full = |op: &&Op| matches!(op.outcome, Outcome::Ok { copies: n, .. } if n >= copies);
        let recent = ops.iter().rev().take_while(|op| op.at_ms >= since_ms);
        let heard: Vec<&String> = recent.filter(full).map(|op| &op.node).collect();
        nodes.iter().all(|node| heard.contains(&node))
    }

    fn record(&self, number: u64, node: &str, outcome: Outcome) {
        let (at_ms, node) = (now_ms(), node.to_owned());
        locked(&self.ops).push(Op { at_ms, number, node, keyed: is_keyed(number), outcome });
    }
}

/// Whether a job has an idempotency key.
fn is_keyed(number: u64) -> bool {
    number.is_multiple_of(2)
}

/// One client: so many jobs a second until the load is stopped.
pub(crate) async fn run(load: Arc<Load>, client: Client, node: String, rate: f64) {
    let mut ticks = time::interval(Duration::from_secs_f64(1.0 / rate));
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Counted before it is looked whether to go on: whoever stops the load misses nobody.
        load.busy.fetch_add(1, Ordering::SeqCst);
        if load.stopped.load(Ordering::SeqCst) {
            load.busy.fetch_sub(1, Ordering::SeqCst);
            return;
        }
        let again = locked(&load.retries).pop_front();
        let number = again.unwrap_or_else(|| load.next.fetch_add(1, Ordering::SeqCst));
        let (load, client, node) = (load.clone(), client.clone(), node.clone());
        spawn_local(async move {
            let accepted = enqueue(&load, &client, &node, number).await;
            load.busy.fetch_sub(1, Ordering::SeqCst);
            if let Some(id) = accepted.filter(|_| number.is_multiple_of(WATCHED)) {
                watch(&load, &client, &node, id).await;
            }
        });
    }
}

/// Tries once; the job's id if it was accepted.
async fn enqueue(load: &Load, client: &Client, node: &str, number: u64) -> Option<String> {
    load.record(number, node, Outcome::Invoked);
    let path = format!("/v1/pipelines/{PIPELINE}/jobs");
    let body = json!({ "number": number, "text": "x".repeat((number % 50) as usize * 20) });
    let key = is_keyed(number).then(|| format!("key-{number}"));
    let answer =
        client.send(Method::POST, &path, Some(&body), key.as_deref(), ENQUEUE_TIMEOUT).await;
    let outcome = outcome(answer);
    load.record(number, node, outcome.clone());
    match outcome {
        Outcome::Ok { id, .. } => return Some(id),
        Outcome::Unknown(_) if is_keyed(number) => locked(&load.retries).push_back(number),
        _ => {}
    }
    None
}

fn outcome(answer: Result<Answer, Error>) -> Outcome {
    match answer {
        Ok(Answer { status: 202, body }) => Outcome::Ok {
            id: body["id"].as_str().unwrap_or_default().to_owned(),
            copies: body["copies"].as_u64().unwrap_or_default() as u32,
        },
        Ok(Answer { status: 504 | 500, body }) => Outcome::Unknown(body["title"].to_string()),
        Ok(Answer { status, body }) => Outcome::Failed(format!("{status} {}", body["title"])),
        // Nobody listened: nobody can have heard.
        Err(error) if is_refused(&error) => Outcome::Failed("no connection".to_owned()),
        Err(error) => Outcome::Unknown(error.to_string()),
    }
}

fn is_refused(error: &Error) -> bool {
    error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_connect)
}

async fn watch(load: &Load, client: &Client, node: &str, id: String) {
    let path = format!("/v1/jobs/{id}?wait={WATCH}");
    let Ok(answer) = client.send(Method::GET, &path, None, None, WATCH_TIMEOUT).await else {
        return;
    };
    let state = answer.body["state"].as_str().unwrap_or_default().to_owned();
    if is_terminal(&state) {
        locked(&load.seen).push(Seen { at_ms: now_ms(), id, node: node.to_owned(), state });
    }
}
