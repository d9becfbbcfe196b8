//! Every acknowledgement waited for a sync on every disk that it names: as the system's own record of
//! what the nodes asked of it shows.
//!
//! Three nodes run under `strace`. Between the moment when the gateway read a request and the moment
//! when it began to write `202`, each of them must have begun and ended a sync of its store's log.

use std::{
    collections::BTreeMap,
    fs,
    process::{Command, Stdio},
};

use carbonmesh_examples::local::{LocalCluster, NodeOptions};
use carbonmesh_tests::{NAMES, World, wrapped};
use serde_json::json;

const JOBS: usize = 40;

/// The tracer is the node's grandchild, so that the node itself is what is started and killed.
const TRACED: &str = "exec strace -D -f -y -ttt -T -s 24 -o \"$TRACE\" \
     -e trace=fdatasync,fsync,read,recvfrom,write,writev,sendto";

/// What a node asked of the system, in seconds since 1970: when a call began, when it ended.
#[derive(Debug, Default)]
struct Trace {
    /// Syncs of the store's log.
    syncs: Vec<(f64, f64)>,
    /// Requests to enqueue: when they were there to be read.
    requests: Vec<f64>,
    /// Answers that say that a job was accepted: when writing began.
    answers: Vec<f64>,
}

impl Trace {
    fn read(text: &str) -> Self {
        let mut trace = Self::default();
        // A call that another thread's line cut in two, by thread.
        let mut begun: BTreeMap<&str, &str> = BTreeMap::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(char::is_whitespace) else { continue };
            let Some((at, call)) = rest.trim_start().split_once(' ') else { continue };
            let Ok(at) = at.parse::<f64>() else { continue };
            if call.ends_with("<unfinished ...>") {
                begun.insert(thread, call);
                trace.began(at, call);
            } else if call.starts_with("<... ") {
                let call_begun = begun.remove(thread).unwrap_or_default();
                trace.ended(at - took(call), at, &format!("{call_begun} {call}"));
            } else {
                trace.began(at, call);
                trace.ended(at, at + took(call), call);
            }
        }
        trace
    }

    fn began(&mut self, at: f64, call: &str) {
        let writes = ["write(", "writev(", "sendto("].iter().any(|name| call.starts_with(name));
        if writes && call.contains("\"HTTP/1.1 202") {
            self.answers.push(at);
        }
    }

    fn ended(&mut self, began: f64, ended: f64, call: &str) {
        let syncs = call.starts_with("fdatasync(") || call.starts_with("fsync(");
        if syncs && call.contains("/store/") && call.contains(".log>") && call.contains("= 0") {
            self.syncs.push((began, ended));
        }
        let reads = call.starts_with("read(") || call.starts_with("recvfrom(");
        if reads && call.contains("\"POST /v1/pipelines/") {
            self.requests.push(ended);
        }
    }

    /// Whether a sync began and ended within a span.
    fn synced_within(&self, from: f64, until: f64) -> bool {
        self.syncs.iter().any(|(began, ended)| *began >= from && *ended <= until)
    }
}

/// How long a call took, which stands at its line's end.
fn took(call: &str) -> f64 {
    let seconds = call.rsplit_once('<').and_then(|(_, rest)| rest.strip_suffix('>'));
    seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or_default()
}

fn can_trace() -> bool {
    let mut probe = Command::new("strace");
    probe.args(["-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success())
}

#[tokio::test]
async fn every_acknowledgement_waits_for_a_sync_on_every_replica() {
    if !can_trace() {
        // Its result would look like that of a check that was made.
        return eprintln!(
            "SKIPPED: there is no strace (apt-get install strace), or it may not trace"
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let program = wrapped(folder.path(), "", TRACED);
    let mut world = World { cluster: LocalCluster::new(program).unwrap() };
    for name in NAMES {
        let trace = folder.path().join(name).to_string_lossy().into_owned();
        let env = vec![("TRACE".to_owned(), trace)];
        world.cluster.start(name, NodeOptions { env, ..NodeOptions::default() }).unwrap();
    }
    world.await_members("a", 3).await;
    // Nobody offers the phase: nothing but what is enqueued is written.
    world.apply("a", 1).await;
    let gateway = world.api("a");
    for number in 0..JOBS {
        let answer = gateway.enqueue("p", &json!({ "number": number })).await.unwrap();
        assert_eq!((answer.status, &answer.body["copies"]), (202, &json!(3)), "{answer:?}");
    }
    NAMES.iter().for_each(|name| world.cluster.stop(name).unwrap());

    let traces: Vec<Trace> = NAMES
        .iter()
        .map(|name| Trace::read(&fs::read_to_string(folder.path().join(name)).unwrap()))
        .collect();
    let (requests, answers) = (&traces[0].requests, &traces[0].answers);
    assert_eq!((requests.len(), answers.len()), (JOBS, JOBS));
    for (request, answer) in requests.iter().zip(answers) {
        for (name, trace) in NAMES.iter().zip(&traces) {
            let synced = trace.synced_within(*request, *answer);
            assert!(synced, "{name} has not synced between {request} and {answer}");
        }
    }
    println!("{JOBS} acknowledgements, each after a sync on each of {} disks", NAMES.len());
}

#[test]
fn a_sync_that_ends_after_the_answer_does_not_count() {
    let text = "\
7 100.000000 recvfrom(9<socket:[1]>, \"POST /v1/pipelines/p/jo\"..., 8192, 0, NULL, NULL) = 90 <0.000010>
8 100.001000 fdatasync(5</d/store/000004.log> <unfinished ...>
7 100.002000 sendto(9<socket:[1]>, \"HTTP/1.1 202 Accepted\\r\\n\"..., 90, MSG_NOSIGNAL, NULL, 0) = 90 <0.000010>
8 100.003000 <... fdatasync resumed>) = 0 <0.002000>
";
    let late = Trace::read(text);
    assert_eq!((late.requests.len(), late.answers.len(), late.syncs.len()), (1, 1, 1));
    assert!(!late.synced_within(late.requests[0], late.answers[0]));
    let in_time = Trace::read(&text.replace("7 100.002000", "7 100.004000"));
    assert!(in_time.synced_within(in_time.requests[0], in_time.answers[0]));
}
