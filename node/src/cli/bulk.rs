//! `carbonmesh enqueue --ndjson`: sends many jobs in chunks and accounts for every line.
//!
//! Lines that the node is too busy for are sent again when it says; a line that it refuses is
//! reported, and the rest goes on; anything else stops the upload, and says which lines were
//! answered. A lost connection is not tried again: jobs without keys could be enqueued twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    time::Duration,
};

use carbonmesh_protocol::{name::Name, trace::TraceParent};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, header::CONTENT_TYPE};

use super::{
    client::{Client, Problem},
    enqueue::{self, EnqueueArgs, TRACEPARENT},
    failure::Failure,
    output::{Output, clean},
    source::{Line, Source},
    unanswered::Unanswered,
};
use crate::http::view::LineDoc;

/// How many refused lines are shown; the rest are counted.
const SHOWN: u64 = 20;

/// How long to wait if a busy node does not say.
const RETRY_AFTER_S: u64 = 1;

/// Sends all lines of the input.
pub(super) async fn run(args: EnqueueArgs, client: &Client, out: &Output) -> Result<(), Failure> {
    let mut source = Source::open(&args.job)?;
    let options = enqueue::options(&args);
    let mut upload = Upload {
        client,
        out,
        options,
        pipeline: client.full(&args.pipeline),
        key: args.key,
        traceparent: args.traceparent,
        bar: progress(source.bytes()),
        tally: Tally::default(),
        answered_up_to: args.skip,
    };
    source.skip(args.skip).await?;
    loop {
        let chunk = source.chunk().await;
        let chunk = chunk.map_err(|reason| upload.stopped(reason, &[], BTreeSet::new()))?;
        if chunk.is_empty() {
            break;
        }
        upload.send_all(chunk).await?;
    }
    upload.bar.finish_and_clear();
    upload.tally.summary(out)
}

/// How many lines ended how.
#[derive(Debug, Default)]
struct Tally {
    accepted: u64,
    existed: u64,
    degraded: u64,
    refused: u64,
}

impl Tally {
    fn summary(&self, out: &Output) -> Result<(), Failure> {
        let Self { accepted, existed, degraded, refused } = self;
        if !out.is_json() {
            out.text(&format!(
                "{accepted} accepted ({existed} existed, {degraded} with too few copies), \
                 {refused} refused"
            ))?;
        }
        if *refused > 0 { Err(Failure::SomeRefused(*refused)) } else { Ok(()) }
    }
}

struct Upload<'a> {
    client: &'a Client,
    out: &'a Output,
    pipeline: Name,
    key: Option<String>,
    /// The span that all are enqueued within.
    traceparent: Option<TraceParent>,
    /// What is said of each job beside.
    options: Vec<(&'static str, String)>,
    bar: ProgressBar,
    tally: Tally,
    answered_up_to: u64,
}

impl Upload<'_> {
    /// Sends a chunk until each of its lines is answered.
    async fn send_all(&mut self, chunk: Vec<Line>) -> Result<(), Failure> {
        let mut answers = BTreeMap::new();
        let done = self.exchange(&chunk, &mut answers).await;
        let answered = answers.keys().copied().collect();
        // Printed in any case: what was accepted stays accepted.
        self.settle(answers)?;
        done.map_err(|reason| self.stopped(reason, &chunk, answered))?;
        self.answered_up_to = chunk.last().map_or(self.answered_up_to, |(number, _)| *number);
        self.bar.inc(chunk.iter().map(|(_, line)| line.len() as u64).sum());
        Ok(())
    }

    /// The upload ends in the middle of a chunk, of which these lines were answered.
    fn stopped(&self, reason: Failure, chunk: &[Line], mut answered: BTreeSet<u64>) -> Failure {
        self.bar.finish_and_clear();
        let mut answered_up_to = self.answered_up_to;
        for (number, _) in chunk {
            if !answered.remove(number) {
                break;
            }
            answered_up_to = *number;
        }
        let sent_up_to = chunk.last().map_or(answered_up_to, |(number, _)| *number);
        let keyed = self.key.is_some();
        let unanswered = Unanswered { answered_up_to, answered, sent_up_to, keyed };
        Failure::Stopped { reason: Box::new(reason), unanswered }
    }

    /// Sends lines, and again those that the node is too busy for.
    async fn exchange(
        &self,
        chunk: &[Line],
        answers: &mut BTreeMap<u64, LineDoc>,
    ) -> Result<(), Failure> {
        let mut open: Vec<&Line> = chunk.iter().collect();
        while !open.is_empty() {
            let sent = self.send(&open, answers).await;
            let busy_s = answers.values().filter_map(busy).max();
            answers.retain(|_, answer| busy(answer).is_none());
            let busy_s = match sent {
                Ok(()) => busy_s,
                Err(Failure::Refused(problem)) if problem.status == 429 => {
                    Some(retry_after(&problem))
                }
                Err(failure) => return Err(failure),
            };
            if let Some(problem) = answers.values().find_map(trouble) {
                let problem = Box::new(problem.clone());
                answers.retain(|_, answer| trouble(answer).is_none());
                return Err(Failure::Refused(problem));
            }
            open.retain(|(number, _)| !answers.contains_key(number));
            if let Some(seconds) = busy_s {
                self.bar.set_message("the node is busy");
                tokio::time::sleep(Duration::from_secs(seconds)).await;
            }
        }
        Ok(())
    }

    /// One request; whatever was answered before it broke is among the answers.
    async fn send(
        &self,
        lines: &[&Line],
        answers: &mut BTreeMap<u64, LineDoc>,
    ) -> Result<(), Failure> {
        let mut query: Vec<_> = self.key.iter().map(|field| ("key", field.as_str())).collect();
        query.extend(self.options.iter().map(|(key, value)| (*key, value.as_str())));
        let path = ["pipelines", self.pipeline.as_str(), "jobs"];
        let mut body = Vec::new();
        for (_, line) in lines {
            body.extend_from_slice(line.trim_ascii());
            body.push(b'\n');
        }
        let request = self.client.request(Method::POST, &path, &query);
        let mut request = request.header(CONTENT_TYPE, "application/x-ndjson").body(body);
        if let Some(parent) = self.traceparent {
            request = request.header(TRACEPARENT, parent.to_string());
        }
        let mut chunks = self.client.send(request).await?.bytes_stream();
        let (mut buffer, mut count) = (Vec::new(), 0);
        while let Some(chunk) = chunks.next().await {
            buffer.extend_from_slice(&chunk.map_err(|error| self.client.failure(&error))?);
            while let Some(end) = buffer.iter().position(|&byte| byte == b'\n') {
                let answer: Vec<u8> = buffer.drain(..=end).collect();
                let mut answer: LineDoc = serde_json::from_slice(&answer)
                    .map_err(|error| self.client.unreadable(error.to_string()))?;
                let index = usize::try_from(answer.line).ok().and_then(|line| line.checked_sub(1));
                let Some((number, _)) = index.and_then(|index| lines.get(index)) else {
                    let reason = format!("it answers line {} of {}", answer.line, lines.len());
                    return Err(self.client.unreadable(reason));
                };
                answer.line = *number;
                answers.insert(*number, answer);
                count += 1;
            }
        }
        match count == lines.len() {
            true => Ok(()),
            false => {
                Err(self.client.unreadable(format!("{count} answers to {} lines", lines.len())))
            }
        }
    }

    /// Counts and shows final answers.
    fn settle(&mut self, answers: BTreeMap<u64, LineDoc>) -> Result<(), Failure> {
        for answer in answers.into_values() {
            if self.out.is_json() {
                let json = serde_json::to_string(&answer)
                    .map_err(|error| self.client.unreadable(error.to_string()))?;
                self.out.row(&json)?;
            }
            match (&answer.receipt, &answer.error) {
                (Some(receipt), _) => {
                    self.tally.accepted += 1;
                    self.tally.existed += u64::from(receipt.existed);
                    self.tally.degraded += u64::from(receipt.degraded);
                }
                (None, error) => {
                    self.tally.refused += 1;
                    self.show_refusal(answer.line, error.as_ref());
                }
            }
        }
        self.bar.set_message(format!("{} accepted", self.tally.accepted));
        Ok(())
    }

    fn show_refusal(&self, line: u64, error: Option<&Problem>) {
        let detail = error.map_or_else(|| "refused".to_owned(), |problem| clean(&problem.detail));
        let message = match self.tally.refused {
            shown if shown <= SHOWN => format!("line {line}: {detail}"),
            next if next == SHOWN + 1 => "further refused lines are only counted".to_owned(),
            _ => return,
        };
        self.bar.suspend(|| {
            // Nobody is left to tell if stderr is closed.
            let _ = writeln!(std::io::stderr(), "{message}");
        });
    }
}

/// After how many seconds to send the line again, if that is the answer.
fn busy(answer: &LineDoc) -> Option<u64> {
    answer.error.as_ref().filter(|problem| problem.status == 429).map(retry_after)
}

/// What is wrong with the cluster, if that is the answer: the next lines would fare no better.
fn trouble(answer: &LineDoc) -> Option<&Problem> {
    answer.error.as_ref().filter(|problem| problem.status >= 500)
}

fn retry_after(problem: &Problem) -> u64 {
    problem.retry_after_s.unwrap_or(RETRY_AFTER_S)
}

/// A bar on stderr; invisible if that is no terminal.
fn progress(bytes: Option<u64>) -> ProgressBar {
    let (bar, template) = match bytes {
        Some(bytes) => (ProgressBar::new(bytes), "{wide_bar} {bytes}/{total_bytes} {eta} {msg}"),
        None => (ProgressBar::no_length(), "{spinner} {bytes} {elapsed} {msg}"),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::TcpListener,
        sync::{Arc, Mutex},
    };

    use carbonmesh_protocol::io::{Refusal, Request, Response};

    use super::*;
    use crate::{
        cli::output::{Color, Format},
        http::{HttpLimits, fake},
    };

    async fn upload(url: &str, lines: &str, key: Option<&str>) -> Result<(), Failure> {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        file.write_all(lines.as_bytes()).expect("written");
        let args = EnqueueArgs {
            pipeline: "p".parse().expect("a name"),
            job: format!("@{}", file.path().display()),
            wait: None,
            id: None,
            traceparent: None,
            ndjson: true,
            key: key.map(str::to_owned),
            delay: None,
            run_at: None,
            timeout: None,
            deadline: None,
            priority: None,
            skip: 0,
        };
        let client = Client::new(url.parse().expect("a URL"))?;
        run(args, &client, &Output::new(Format::Table, Color::Never)).await
    }

    fn numbered(count: usize) -> String {
        (0..count).map(|n| format!("{{\"id\":\"{n}\"}}\n")).collect()
    }

    #[tokio::test]
    async fn lines_that_met_a_busy_node_are_sent_again_and_no_others() {
        let accepted = Arc::new(Mutex::new(Vec::new()));
        let (log, mut asked) = (accepted.clone(), 0);
        let url = fake::serve_with(HttpLimits::default(), move |request| {
            asked += 1;
            let Request::Enqueue { jobs, .. } = &request else { panic!("{request:?}") };
            let Response::Enqueued(mut answers) = fake::accept(&request) else { panic!() };
            for (at, (job, answer)) in jobs.iter().zip(&mut answers).enumerate() {
                if asked == 1 && at % 3 == 1 {
                    *answer = Err(Refusal::Busy { waiting: 1, limit: 1 });
                } else {
                    log.lock().expect("a lock").push(job.key.clone());
                }
            }
            Response::Enqueued(answers)
        })
        .await;
        upload(&url, &numbered(1500), Some("id")).await.expect("all accepted");
        let mut accepted = accepted.lock().expect("a lock").clone();
        assert_eq!(accepted.len(), 1500);
        accepted.sort();
        accepted.dedup();
        assert_eq!(accepted.len(), 1500);
    }

    #[tokio::test]
    async fn a_refused_line_does_not_stop_the_others() {
        let url = fake::serve_with(HttpLimits::default(), |request| fake::accept(&request)).await;
        let refused = upload(&url, "{}\nnope\n\n[]\n{}\n", None).await;
        assert!(matches!(refused, Err(Failure::SomeRefused(2))), "{refused:?}");
    }

    #[tokio::test]
    async fn trouble_stops_the_upload_behind_what_was_answered() {
        let mut asked = 0;
        let url = fake::serve_with(HttpLimits::default(), move |request| {
            asked += 1;
            match asked {
                1 => fake::accept(&request),
                _ => Response::Refused(Refusal::StorageFull("full".into())),
            }
        })
        .await;
        let stopped = upload(&url, &numbered(3000), None).await;
        let Err(Failure::Stopped { reason, unanswered }) = stopped else { panic!("{stopped:?}") };
        assert!(matches!(*reason, Failure::Refused(problem) if problem.status == 507));
        // How many lines make a batch depends on how they arrive: a thousand at most.
        let (answered, sent) = (unanswered.answered_up_to, unanswered.sent_up_to);
        assert!((1..=1000).contains(&answered), "{answered} of {sent}");
        assert!(answered < sent && sent <= 3000, "{answered} of {sent}");
    }

    #[tokio::test]
    async fn a_lost_connection_is_told_with_the_lines_that_were_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let _ = stream.read(&mut [0; 65536]).expect("a request");
            let answer = |line| {
                format!(
                    r#"{{"line":{line},"id":"x","copies":1,"target":1,"degraded":false,"existed":false}}"#
                )
            };
            let body = format!("{}\n{}\n", answer(1), answer(3));
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            write!(stream, "{head}{:x}\r\n{body}\r\n", body.len()).expect("a reader");
        });
        let stopped = upload(&url, "{}\n\n{}\n{}\n{}\n", None).await;
        let Err(Failure::Stopped { reason, unanswered }) = stopped else { panic!("{stopped:?}") };
        assert!(matches!(*reason, Failure::Lost { .. }), "{reason:?}");
        // The third line that was sent is line 4 of the file, since line 2 is blank.
        let expected =
            Unanswered { answered_up_to: 1, answered: [4].into(), sent_up_to: 5, keyed: false };
        assert_eq!(unanswered, expected);
    }
}
