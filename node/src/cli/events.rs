//! `carbonmesh events` and `carbonmesh logs`: follow what happens, over failovers and restarts.
//!
//! A stream that breaks is opened again at the same address behind the last token that came; what was
//! missed meanwhile and is not kept any more comes as a gap.

use std::{collections::BTreeMap, time::Duration};

use carbonmesh_protocol::{event::EventKind, id::JobId, name::Name};
use clap::Args;
use reqwest::{Method, Response, header::ACCEPT};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Answer, Client, Typed},
    failure::Failure,
    output::{Output, clean},
    pipeline::node,
};
use crate::http::{
    Place,
    view::{AttemptLogDoc, EndDoc, EventDoc, JobDoc, LogsDoc},
};

/// A stream shows every few seconds that it lives: one that says nothing for longer is broken.
const SILENCE: Duration = Duration::from_secs(45);

/// How long to wait before a broken stream is opened again: more each time it fails.
const AGAIN: Duration = Duration::from_millis(250);
const AGAIN_LATER: Duration = Duration::from_secs(3);

/// How long an election may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest line that a node may send.
const LINE_BYTES: usize = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    /// Of which pipeline; without it, what the node sees in the cluster
    pipeline: Option<Typed>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Only those about this job, or about what is made of its items
    #[arg(long, value_name = "ID", requires = "pipeline")]
    job: Option<JobId>,
    /// Only this kind, such as `dead`; may be given several times, or as a list with commas
    #[arg(long = "kind", value_name = "KIND", value_delimiter = ',')]
    kinds: Vec<EventKind>,
    /// Only those behind the event with this token
    #[arg(long, value_name = "TOKEN")]
    after: Option<Place>,
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// Of which job
    job: JobId,
    /// Go on until the job has ended
    #[arg(short, long)]
    follow: bool,
}

pub(super) async fn run(args: EventsArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let mut query = Vec::new();
    query.extend(args.job.map(|job| ("job", job.to_string())));
    if !args.kinds.is_empty() {
        let kinds: Vec<&str> = args.kinds.iter().map(|kind| kind.name()).collect();
        query.push(("kinds", kinds.join(",")));
    }
    let pipeline = args.pipeline.as_ref().map(|typed| client.full(typed));
    let path = path(pipeline.as_ref().map(Name::as_str));
    let after = args.after.map(|token| token.to_string());
    let mut stream = Stream::new(client, path, query, after, args.follow);
    while let Some((text, event)) = stream.next().await? {
        match out.is_json() {
            true => out.text(&text)?,
            false => out.text(&line(&event))?,
        }
    }
    Ok(())
}

/// Where events are.
pub(super) fn path(pipeline: Option<&str>) -> Vec<String> {
    match pipeline {
        Some(name) => vec!["pipelines".to_owned(), name.to_owned(), "events".to_owned()],
        None => vec!["events".to_owned()],
    }
}

/// One event for people.
fn line(event: &EventDoc) -> String {
    let mut words = vec![event.at.clone(), format!("{:<16}", clean(&event.kind))];
    words.extend(event.pipeline.as_deref().filter(|_| event.term.is_some()).map(clean));
    words.extend(event.job.as_deref().map(clean));
    match (&event.phase, event.attempt) {
        (Some(phase), Some(attempt)) => words.push(format!("{}#{attempt}", clean(phase))),
        (Some(phase), None) => words.push(clean(phase)),
        (None, _) => {}
    }
    words.extend(event.node.as_ref().map(|of| format!("on {}", node(of))));
    words.extend(event.term.as_deref().map(|term| format!("in term {}", clean(term))));
    words.extend(event.unfinished.map(|count| format!("with {count} unfinished jobs")));
    words.extend(event.generation.map(|count| format!("for the {count}. time")));
    words.extend(event.missed.map(|count| format!("{count} events are missing:")));
    words.extend(event.count.map(|count| format!("{count} lines were left out")));
    words.extend(event.done.map(|done| format!("{:.0} %", done * 100.0)));
    words.extend(event.level.as_deref().filter(|level| *level != "info").map(clean));
    for text in [&event.text, &event.error, &event.reason] {
        words.extend(text.as_deref().map(clean));
    }
    words.extend(event.again_at.as_deref().map(|at| format!("(again at {})", clean(at))));
    words.join(" ")
}

/// Events as they come.
pub(super) struct Stream<'a> {
    client: &'a Client,
    path: Vec<String>,
    query: Vec<(&'static str, String)>,
    /// The token of the last.
    after: Option<String>,
    /// Whether it is opened again when it ends.
    follow: bool,
    open: Option<Response>,
    read: Vec<u8>,
    /// Whether it was open once.
    opened: bool,
    /// How long to wait before it is opened again, and whether that it broke was told.
    again: Duration,
    told: bool,
    quiet: bool,
}

/// What a line says.
enum Said {
    Event(String, Box<EventDoc>),
    Alive,
    End(String),
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        client: &'a Client,
        path: Vec<String>,
        query: Vec<(&'static str, String)>,
        after: Option<String>,
        follow: bool,
    ) -> Self {
        Self {
            client,
            path,
            query,
            after,
            follow,
            open: None,
            read: Vec::new(),
            opened: false,
            again: AGAIN,
            told: false,
            quiet: false,
        }
    }

    /// One that says nothing of what breaks.
    pub(super) fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The next event, as it came and what it says; none at the end of what is not followed.
    ///
    /// # Errors
    /// It cannot be opened, or breaks and is not followed.
    pub(super) async fn next(&mut self) -> Result<Option<(String, EventDoc)>, Failure> {
        loop {
            match self.attend().await {
                Ok(Some(Said::Event(text, event))) => {
                    self.after = Some(event.token.clone());
                    return Ok(Some((text, *event)));
                }
                Ok(Some(Said::Alive)) => {}
                Ok(Some(Said::End(reason))) => self.broken(&reason).await,
                Ok(None) if !self.follow => return Ok(None),
                Ok(None) => self.broken("the node has ended it").await,
                Err(failure) if !self.follow || !self.opened || is_final(&failure) => {
                    return Err(failure);
                }
                Err(failure) => self.broken(&failure.to_string()).await,
            }
        }
    }

    async fn broken(&mut self, why: &str) {
        if !self.told && !self.quiet {
            eprintln!("the stream broke ({}): opening it again", clean(why));
        }
        self.told = true;
        (self.open, self.again) = (None, (self.again * 2).min(AGAIN_LATER));
        self.read.clear();
        sleep(self.again).await;
    }

    async fn attend(&mut self) -> Result<Option<Said>, Failure> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let text = String::from_utf8_lossy(&line).trim().to_owned();
                if !text.is_empty() {
                    return self.parse(text).map(Some);
                }
                continue;
            }
            if self.read.len() > LINE_BYTES {
                return Err(self.client.unreadable("its line has no end".to_owned()));
            }
            let silent = || Failure::NoAnswer { url: self.client.url().clone(), waited: SILENCE };
            let response = match &mut self.open {
                Some(response) => response,
                None => {
                    let response = timeout(SILENCE, self.ask()).await.map_err(|_| silent())??;
                    self.opened = true;
                    self.open.insert(response)
                }
            };
            let chunk = timeout(SILENCE, response.chunk()).await.map_err(|_| silent())?;
            match chunk.map_err(|error| self.client.failure(&error))? {
                Some(chunk) => self.read.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    async fn ask(&self) -> Result<Response, Failure> {
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        let mut query: Vec<(&str, &str)> =
            self.query.iter().map(|(name, value)| (*name, value.as_str())).collect();
        query.extend(self.after.as_deref().map(|after| ("after", after)));
        query.push(("follow", if self.follow { "true" } else { "false" }));
        let request = self.client.request(Method::GET, &path, &query);
        self.client.send(request.header(ACCEPT, "application/x-ndjson")).await
    }

    fn parse(&mut self, text: String) -> Result<Said, Failure> {
        let wrong = |error: serde_json::Error| self.client.unreadable(error.to_string());
        let value: Value = serde_json::from_str(&text).map_err(wrong)?;
        let said = match value.get("kind").and_then(Value::as_str) {
            Some("alive") => {
                let token = value.get("token").and_then(Value::as_str);
                self.after = token.map(str::to_owned).or(self.after.take());
                Said::Alive
            }
            Some("end") => {
                let end: EndDoc = serde_json::from_value(value).map_err(wrong)?;
                return Ok(Said::End(end.reason));
            }
            _ => Said::Event(text, serde_json::from_value(value).map_err(wrong)?),
        };
        (self.again, self.told) = (AGAIN, false);
        Ok(said)
    }
}

/// Whether it makes no sense to try again.
fn is_final(failure: &Failure) -> bool {
    match failure {
        Failure::Refused(problem) => problem.status < 500 && problem.status != 429,
        Failure::NoNode(_) | Failure::Lost { .. } | Failure::NoAnswer { .. } => false,
        _ => true,
    }
}

/// Lines of a job's logs that were printed: by attempt, the number of the next.
#[derive(Default)]
struct Printed(BTreeMap<(String, String, u32), u64>);

impl Printed {
    /// Whether a line is news.
    fn is_news(&mut self, job: &str, phase: &str, attempt: u32, line: u64) -> bool {
        let next = self.0.entry((job.to_owned(), phase.to_owned(), attempt)).or_default();
        let news = line >= *next;
        *next = (*next).max(line.saturating_add(1));
        news
    }
}

pub(super) async fn logs(args: LogsArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let (job, mut printed) = (args.job.to_string(), Printed::default());
    let kept = kept(client, &job).await?;
    if out.is_json() && !args.follow {
        return out.text(&kept.text);
    }
    print_kept(&kept.document.attempts, &job, &mut printed, out)?;
    if !args.follow {
        return Ok(());
    }
    let kinds = "log,progress,log_dropped,succeeded,dead,cancelled";
    let query = vec![("job", job.clone()), ("kinds", kinds.to_owned())];
    let path = path(Some(&kept.document.pipeline));
    let mut stream = Stream::new(client, path, query, Some(kept.document.next), true);
    // It may have ended before the stream begins: what it said until then is kept.
    let (said, mut ended) = look_again(client, &job).await?;
    print_kept(&said, &job, &mut printed, out)?;
    loop {
        if ended {
            return Ok(());
        }
        let Some((_, event)) = stream.next().await? else { return Ok(()) };
        let own = event.job.as_deref() == Some(&job);
        match event.kind.as_str() {
            "gap" => {
                // What the stream lacks may be kept by attempt.
                let (missing, over) = look_again(client, &job).await?;
                print_kept(&missing, &job, &mut printed, out)?;
                ended = over;
            }
            "succeeded" | "dead" | "cancelled" if own => return Ok(()),
            "log" | "progress" | "log_dropped" => {
                let (of, phase) = (event.job.as_deref(), event.phase.as_deref());
                let (of, phase) = (of.unwrap_or_default(), phase.unwrap_or_default());
                let (attempt, line) = (event.attempt.unwrap_or(0), event.line.unwrap_or(0));
                if event.kind == "log_dropped" {
                    let count = event.count.unwrap_or(0);
                    if printed.is_news(of, phase, attempt, line + count.saturating_sub(1)) {
                        dropped(count);
                    }
                } else if printed.is_news(of, phase, attempt, line) {
                    let text = event.text.as_deref().unwrap_or_default();
                    let said = Line { job: of, phase, attempt, done: event.done, text };
                    print(&said, &event.at, &job, out)?;
                }
            }
            _ => {}
        }
    }
}

/// What is kept of a job's logs, once somebody coordinates its pipeline.
async fn kept(client: &Client, job: &str) -> Result<Answer<LogsDoc>, Failure> {
    let began = Instant::now();
    loop {
        match client.get(&["jobs", job, "logs"], &[]).await {
            Err(Failure::Refused(problem))
                if problem.status == 503 && began.elapsed() < PATIENCE =>
            {
                sleep(AGAIN).await;
            }
            answer => return answer,
        }
    }
}

/// What is kept of the logs by now, and whether the job has ended; asked until somebody can say, for
/// a while.
async fn look_again(client: &Client, job: &str) -> Result<(Vec<AttemptLogDoc>, bool), Failure> {
    let began = Instant::now();
    loop {
        // Asked in this order: all that it said before its end is there.
        let ended = has_ended(client, job).await;
        let kept = client.get::<LogsDoc>(&["jobs", job, "logs"], &[]).await;
        match (kept, ended) {
            (Ok(kept), Ok(ended)) => return Ok((kept.document.attempts, ended)),
            (Err(failure), _) | (_, Err(failure))
                if is_final(&failure) || began.elapsed() > SILENCE =>
            {
                return Err(failure);
            }
            _ => sleep(AGAIN).await,
        }
    }
}

async fn has_ended(client: &Client, job: &str) -> Result<bool, Failure> {
    let answer = client.get::<JobDoc>(&["jobs", job], &[]).await?;
    Ok(answer.document.state.is_terminal())
}

/// One line of a log.
struct Line<'a> {
    job: &'a str,
    phase: &'a str,
    attempt: u32,
    done: Option<f64>,
    text: &'a str,
}

fn dropped(count: u64) {
    eprintln!("{count} lines were left out: there were too many, or they are not kept any more");
}

fn print_kept(
    attempts: &[AttemptLogDoc],
    job: &str,
    printed: &mut Printed,
    out: &Output,
) -> Result<(), Failure> {
    for log in attempts {
        let news = log
            .lines
            .iter()
            .filter(|line| printed.is_news(&log.job, &log.phase, log.attempt, line.line));
        let news: Vec<_> = news.collect();
        if log.missing > 0 && news.len() == log.lines.len() {
            dropped(log.missing);
        }
        for said in news {
            let (phase, attempt, text) = (log.phase.as_str(), log.attempt, said.text.as_str());
            let line = Line { job: &log.job, phase, attempt, done: said.done, text };
            print(&line, &said.at, job, out)?;
        }
    }
    Ok(())
}

/// Prints a line; those of the job's parts with these.
fn print(line: &Line<'_>, at: &str, job: &str, out: &Output) -> Result<(), Failure> {
    let Line { job: of, phase, attempt, done, text } = line;
    if out.is_json() {
        let document = serde_json::json!({
            "at": at, "job": of, "phase": phase, "attempt": attempt, "done": done, "text": text,
        });
        return out.text(&document.to_string());
    }
    let part = if *of == job { String::new() } else { format!("{} ", clean(of)) };
    let done = done.map_or_else(String::new, |done| format!("[{:.0} %] ", done * 100.0));
    out.text(&format!("{} {part}{}#{attempt} | {done}{}", clean(at), clean(phase), clean(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_printed_once_however_often_it_comes() {
        let mut printed = Printed::default();
        assert!(printed.is_news("j", "p", 1, 0) && printed.is_news("j", "p", 1, 1));
        assert!(!printed.is_news("j", "p", 1, 1) && !printed.is_news("j", "p", 1, 0));
        assert!(printed.is_news("j", "p", 2, 0) && printed.is_news("j", "p", 1, 9));
        assert!(!printed.is_news("j", "p", 1, 5));
    }

    #[test]
    fn an_event_is_one_line_without_control_characters() {
        let event: EventDoc = serde_json::from_value(serde_json::json!({
            "token": "t", "at": "2026-01-01T00:00:00.000Z", "kind": "attempt_failed",
            "pipeline": "p", "job": "j", "phase": "resize", "attempt": 2,
            "error": "no\u{1b}[31m\nroom", "again_at": "2026-01-01T00:00:01.000Z",
        }))
        .expect("an event");
        assert_eq!(
            line(&event),
            "2026-01-01T00:00:00.000Z attempt_failed   j resize#2 no [31m room (again at \
             2026-01-01T00:00:01.000Z)"
        );
    }
}
