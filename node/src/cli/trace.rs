//! `carbonmesh trace`: a job as a tree of its phases and their attempts, with what was made of its items
//! and what undoes it, to a bounded depth.
//!
//! It is made of what the interface tells of jobs: nothing else is recorded for it.

use std::fmt::Write as _;

use carbonmesh_protocol::{id::JobId, view::JobState};
use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, clean, short},
};
use crate::{
    document::graph::{self, Format},
    http::view::{AttemptDoc, InvocationDoc, JobDoc, JobsDoc},
};

/// How much of a value `--data` shows in a text, in characters.
const VALUE_CHARS: usize = 2000;

/// The most jobs that are asked for.
const MAX_JOBS: usize = 1000;

/// Show how a job went.
#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    /// Which job
    id: JobId,
    /// As what
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Show what was enqueued and what phases gave, not only how large it is
    #[arg(long)]
    data: bool,
    /// How deep to go into jobs that are made of items or undo others
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=16))]
    depth: u32,
    /// How many items of each job to show
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    items: u32,
}

/// A part of a trace.
#[derive(Debug, Default, PartialEq, Serialize)]
struct Part {
    /// What it is: `job`, `phase`, `attempt`, `item`, `compensation`, `more`.
    kind: &'static str,
    /// Which.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    /// When it began, and how long it took so far or in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    began_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    took_ms: Option<i64>,
    /// How long it was until its first attempt was given out.
    #[serde(skip_serializing_if = "Option::is_none")]
    waited_ms: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// The span of whoever enqueued it.
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    in_bytes: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    out_bytes: Option<usize>,
    /// What went in, and what came out: with `--data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<Part>,
}

pub(super) async fn run(args: TraceArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let mut gatherer = Gatherer { client, args: &args, asked: 0 };
    let tree = gatherer.job("job", &args.id.to_string(), args.depth).await?;
    match args.format {
        Format::Dot => out.text(&dot(&tree)),
        Format::Svg => out.text(&graph::picture(&dot(&tree))),
        Format::Text => {
            let json = serde_json::to_value(&tree).unwrap_or_default();
            out.document(&json, || text(&tree))
        }
    }
}

/// Asks for jobs.
struct Gatherer<'a> {
    client: &'a Client,
    args: &'a TraceArgs,
    asked: usize,
}

impl Gatherer<'_> {
    /// One job, with those that hang on it down to a depth.
    async fn job(&mut self, kind: &'static str, id: &str, depth: u32) -> Result<Part, Failure> {
        self.asked += 1;
        let job = self.client.get::<JobDoc>(&["jobs", id], &[]).await?.document;
        let mut part = of_job(kind, &job, self.args.data);
        if depth == 0 {
            return Ok(part);
        }
        part.parts.extend(self.items(&job, depth - 1).await?);
        if let Some(id) = &job.compensation {
            part.parts.push(Box::pin(self.job("compensation", id, depth - 1)).await?);
        }
        Ok(part)
    }

    /// What is made of the items that a job has given.
    async fn items(&mut self, job: &JobDoc, depth: u32) -> Result<Vec<Part>, Failure> {
        // One more than is shown, to know whether there is more.
        let limit = (self.args.items + 1).min(1000).to_string();
        let query = [("of", job.id.as_str()), ("limit", limit.as_str())];
        let path = ["pipelines", job.pipeline.as_str(), "jobs"];
        let found = self.client.get::<JobsDoc>(&path, &query).await?.document;
        let (mut parts, shown) = (Vec::new(), self.args.items as usize);
        for item in found.jobs.iter().take(shown) {
            if self.asked >= MAX_JOBS {
                break;
            }
            parts.push(Box::pin(self.job("item", &item.id, depth)).await?);
        }
        if parts.len() < found.jobs.len() || found.next.is_some() {
            let name = format!("more: carbonmesh job ls {} --of {}", job.pipeline, job.id);
            parts.push(Part { kind: "more", name, ..Part::default() });
        }
        Ok(parts)
    }
}

fn of_job(kind: &'static str, job: &JobDoc, data: bool) -> Part {
    let parts: Vec<Part> = job.invocations.iter().map(|one| of_phase(one, data)).collect();
    let attempts = job.invocations.iter().flat_map(|one| &one.attempts);
    let first = attempts.map(|attempt| attempt.started_at.as_str()).min();
    let name = match job.item {
        Some(item) if kind == "item" => format!("{item}: job {}", job.id),
        _ => format!("{} of {}", job.id, job.pipeline),
    };
    let value = |value: &Option<Box<RawValue>>| value.as_ref().map(|it| it.get().to_owned());
    Part {
        kind,
        name,
        state: Some(job.state.to_string()),
        began_at: Some(job.created_at.clone()),
        took_ms: between(&job.created_at, job.finished_at.as_deref()),
        waited_ms: first.and_then(|first| between(&job.created_at, Some(first))),
        traceparent: job.traceparent.clone(),
        in_bytes: job.instructions.as_ref().map(|it| it.get().len()),
        out_bytes: job.result.as_ref().map(|it| it.get().len()),
        input: value(&job.instructions).filter(|_| data),
        output: value(&job.result).filter(|_| data),
        parts,
        ..Part::default()
    }
}

fn of_phase(phase: &InvocationDoc, data: bool) -> Part {
    let (first, last) = (phase.attempts.first(), phase.attempts.last());
    let ended = last.filter(|_| phase.state.is_terminal()).and_then(|it| it.finished_at.as_deref());
    let name = match phase.phase == phase.step {
        true => phase.step.clone(),
        false => format!("{} ({})", phase.step, phase.phase),
    };
    let mut parts = Vec::new();
    let left_out = (phase.attempt_count as usize).saturating_sub(phase.attempts.len());
    if left_out > 0 {
        let name = format!("{left_out} earlier attempts are not kept");
        parts.push(Part { kind: "more", name, ..Part::default() });
    }
    parts.extend(phase.attempts.iter().map(of_attempt));
    Part {
        kind: "phase",
        name,
        state: Some(phase.state.to_string()),
        began_at: first.map(|attempt| attempt.started_at.clone()),
        took_ms: first.and_then(|first| between(&first.started_at, ended)),
        error: phase.note.clone(),
        out_bytes: phase.result.as_ref().map(|it| it.get().len()),
        output: phase.result.as_ref().filter(|_| data).map(|it| it.get().to_owned()),
        parts,
        ..Part::default()
    }
}

fn of_attempt(attempt: &AttemptDoc) -> Part {
    let worker = attempt.worker.name.clone().unwrap_or_else(|| attempt.worker.id.clone());
    let state = match (&attempt.finished_at, &attempt.error) {
        (None, _) => JobState::Running.name(),
        (Some(_), None) => JobState::Succeeded.name(),
        (Some(_), Some(_)) => "failed",
    };
    Part {
        kind: "attempt",
        name: attempt.number.to_string(),
        state: Some(state.to_owned()),
        began_at: Some(attempt.started_at.clone()),
        took_ms: between(&attempt.started_at, attempt.finished_at.as_deref()),
        worker: Some(worker),
        error: attempt.error.clone(),
        ..Part::default()
    }
}

/// From one moment to another, in ms; clocks of several nodes may say that it is less than nothing.
fn between(from: &str, to: Option<&str>) -> Option<i64> {
    let read =
        |text: &str| text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond);
    Some(read(to?)? - read(from)?)
}

fn duration(ms: i64) -> String {
    match ms {
        ..1000 => format!("{ms} ms"),
        1000..60_000 => format!("{:.1} s", ms as f64 / 1000.0),
        _ => format!("{} min {} s", ms / 60_000, ms % 60_000 / 1000),
    }
}

impl Part {
    /// It in a line.
    fn line(&self) -> String {
        let mut line = match self.kind {
            "phase" | "more" => clean(&self.name),
            kind => format!("{kind} {}", clean(&self.name)),
        };
        let waited = self.waited_ms.map(|ms| format!("waited {}", duration(ms)));
        let sizes = [("in", self.in_bytes), ("out", self.out_bytes)];
        let sizes =
            sizes.into_iter().filter_map(|(name, size)| Some(format!("{name} {} B", size?)));
        let told = [
            self.worker.as_deref().map(clean),
            self.state.clone(),
            self.took_ms.map(duration),
            waited,
        ];
        for one in told.into_iter().flatten().chain(sizes).chain(self.error.as_deref().map(short)) {
            let _ = write!(line, "  {one}");
        }
        line
    }
}

fn text(tree: &Part) -> String {
    let mut out = String::new();
    lines(tree, "", "", &mut out);
    out
}

/// A part's line behind `first`, and what belongs to it behind `rest`.
fn lines(part: &Part, first: &str, rest: &str, out: &mut String) {
    let _ = writeln!(out, "{first}{}", part.line());
    let bar = if part.parts.is_empty() { "   " } else { "│  " };
    if let Some(within) = &part.traceparent {
        let _ = writeln!(out, "{rest}{bar}within {}", clean(within));
    }
    for (name, value) in [("in", &part.input), ("out", &part.output)] {
        if let Some(value) = value {
            let end = value.char_indices().nth(VALUE_CHARS).map(|(end, _)| end);
            let (shown, more) = end.map_or((value.as_str(), ""), |end| (&value[..end], "…"));
            let _ = writeln!(out, "{rest}{bar}{name}: {}{more}", clean(shown));
        }
    }
    for (at, inner) in part.parts.iter().enumerate() {
        let (branch, below) =
            if at + 1 == part.parts.len() { ("└─ ", "   ") } else { ("├─ ", "│  ") };
        lines(inner, &format!("{rest}{branch}"), &format!("{rest}{below}"), out);
    }
}

fn dot(tree: &Part) -> String {
    let mut out = "digraph \"trace\" {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
    nodes(tree, None, &mut 0, &mut out);
    out + "}\n"
}

fn nodes(part: &Part, above: Option<usize>, next: &mut usize, out: &mut String) {
    let this = *next;
    *next += 1;
    // Errors come from anywhere: what would end the text in the graph's language is left out.
    let label: String =
        part.line().chars().map(|one| if "\"\\".contains(one) { '\'' } else { one }).collect();
    let _ = writeln!(out, "  n{this} [label=\"{label}\"];");
    if let Some(above) = above {
        let _ = writeln!(out, "  n{above} -> n{this};");
    }
    for inner in &part.parts {
        nodes(inner, Some(this), next, out);
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::{
        id::PipelineId,
        io::{Request, Response},
        view::JobSummary,
    };
    use serde_json::json;

    use super::*;
    use crate::http::{HttpLimits, fake};

    fn job() -> JobDoc {
        let worker = json!({ "id": "0a".repeat(16), "name": "oak" });
        let attempt = |number: u32, from: &str, to: Option<&str>, error: Option<&str>| json!({ "number": number, "worker": worker, "started_at": from, "finished_at": to, "error": error });
        let document = json!({
            "id": "0192e4a1-7c3b-7def-8123-456789abcdef", "pipeline": "p", "state": "running",
            "created_at": "2026-01-01T00:00:00.000Z", "finished_at": null, "key": null,
            "instructions": { "n": 1 }, "result": null, "conflicts": 0,
            "invocations": [
                { "step": "fetch", "phase": "get", "state": "succeeded", "attempt_count": 3, "result": { "a": "x" },
                  "attempts": [
                    attempt(2, "2026-01-01T00:00:00.040Z", Some("2026-01-01T00:00:00.140Z"), Some("no \"room\"\n")),
                    attempt(3, "2026-01-01T00:00:01.000Z", Some("2026-01-01T00:01:01.540Z"), None),
                  ] },
                { "step": "send", "phase": "send", "state": "running", "attempt_count": 1, "result": null,
                  "attempts": [attempt(1, "2026-01-01T00:01:02.000Z", None, None)] },
            ],
        });
        serde_json::from_value(document).expect("a job")
    }

    #[test]
    fn the_tree_has_phases_and_attempts_with_how_long_they_took() {
        let expected = "\
job 0192e4a1-7c3b-7def-8123-456789abcdef of p  running  waited 40 ms  in 7 B
├─ fetch (get)  succeeded  1 min 1 s  out 9 B
│  ├─ 1 earlier attempts are not kept
│  ├─ attempt 2  oak  failed  100 ms  no \"room\" 
│  └─ attempt 3  oak  succeeded  1 min 0 s
└─ send  running
   └─ attempt 1  oak  running
";
        assert_eq!(text(&of_job("job", &job(), false)), expected);
    }

    #[test]
    fn the_span_of_whoever_enqueued_it_is_shown() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let job = JobDoc { traceparent: Some(parent.to_owned()), ..job() };
        let told = text(&of_job("job", &job, false));
        assert_eq!(told.lines().nth(1), Some(format!("│  within {parent}").as_str()), "{told}");
    }

    #[test]
    fn values_are_shown_where_they_are_asked_for() {
        let told = text(&of_job("job", &job(), true));
        assert!(told.contains("│  in: {\"n\":1}\n"), "{told}");
        assert!(told.contains("│  │  out: {\"a\":\"x\"}\n"), "{told}");
    }

    #[test]
    fn the_graph_has_an_edge_to_each_part_and_no_text_breaks_out_of_it() {
        let tree = of_job("job", &job(), false);
        let dot = dot(&tree);
        assert_eq!((dot.matches(" -> ").count(), dot.matches("[label=").count()), (6, 7), "{dot}");
        assert!(dot.contains("no 'room' "), "{dot}");
        let svg = graph::picture(&dot);
        assert!(svg.trim_end().ends_with("</svg>") && svg.contains("attempt 3"), "{svg}");
        assert_eq!(svg.matches("marker-end").count(), 6, "{svg}");
    }

    #[tokio::test]
    async fn what_hangs_on_a_job_is_asked_for_to_a_depth() {
        let id = |number: u8| JobId::of_key(PipelineId::of_name("p"), &number.to_string());
        let url = fake::serve_with(HttpLimits::default(), move |request| match request {
            Request::Job { job, .. } => {
                let mut view = fake::job(job, JobState::Dead);
                view.compensation = (job == id(0)).then(|| id(9));
                Response::Job(Box::new(view))
            }
            // Whatever is asked for, there are three items, and those of an item are others.
            Request::Jobs { of: Some(of), limit, .. } => {
                let first = if of == id(0) { 1 } else { 4 };
                let jobs = (first..first + 3).take(limit as usize).map(|at| JobSummary {
                    job: id(at),
                    state: JobState::Dead,
                    created_ms: 1,
                    key: None,
                    step: None,
                    error: None,
                });
                Response::Jobs { jobs: jobs.collect(), next: None }
            }
            other => fake::answer(other),
        })
        .await;
        let client = Client::new(url.parse().unwrap()).unwrap();
        let kinds = async |depth, items| {
            let args = TraceArgs { id: id(0), format: Format::Text, data: false, depth, items };
            let mut gatherer = Gatherer { client: &client, args: &args, asked: 0 };
            let Ok(tree) = gatherer.job("job", &id(0).to_string(), depth).await else {
                panic!("it is told")
            };
            let inner = tree.parts.iter().filter(|part| part.kind != "phase");
            let inner: Vec<_> = inner.map(|part| part.kind).collect();
            (inner.join(" "), gatherer.asked)
        };
        assert_eq!(kinds(0, 20).await, (String::new(), 1));
        assert_eq!(kinds(1, 20).await, ("item item item compensation".to_owned(), 5));
        assert_eq!(kinds(1, 2).await, ("item item more compensation".to_owned(), 4));
        assert_eq!(kinds(1, 0).await, ("more compensation".to_owned(), 2));
        // The job, its three items, and of each of these and of the compensation three more.
        assert_eq!(kinds(2, 3).await.1, 1 + 3 * (1 + 3) + (1 + 3));
    }
}
