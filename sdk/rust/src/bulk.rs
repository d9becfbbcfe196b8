//! Enqueues many jobs: NDJSON in parts, each answered line by line.
//!
//! A part is sent again until each of its lines has an answer, with those lines that have none yet.
//! However many jobs there are, one part of them is held here.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use reqwest::Method;
use serde::{Deserialize, Serialize};

use crate::{
    Client, Error, Problem, Receipt,
    enqueue::{Options, milliseconds},
    send::{Again, Call, Failed},
};

/// The most jobs and bytes of one part: enough for a node to write many with one sync.
const PART_JOBS: usize = 1000;
const PART_BYTES: usize = 1 << 20;

/// Many jobs that are about to be enqueued.
#[derive(Clone, Debug)]
#[must_use = "jobs are enqueued by `send`"]
pub struct Bulk {
    client: Client,
    pipeline: String,
    key_field: Option<String>,
    options: Options,
}

/// What became of one of many jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BulkAnswer {
    /// Which it was, from 0.
    pub index: u64,
    /// That it was accepted, or why not.
    pub result: Result<Receipt, Box<Problem>>,
}

/// What one job's answer says.
type Answer = Result<Receipt, Box<Problem>>;

/// One line of an answer.
#[derive(Deserialize)]
struct Line {
    line: usize,
    #[serde(flatten)]
    receipt: Option<Receipt>,
    error: Option<Box<Problem>>,
}

/// A job on its way.
struct Waiting {
    index: u64,
    line: Bytes,
}

impl Client {
    /// Enqueues many jobs.
    ///
    /// ```no_run
    /// # async fn f(client: carbonmesh_client::Client) -> Result<(), carbonmesh_client::Error> {
    /// use futures::{StreamExt, pin_mut};
    /// use serde_json::json;
    ///
    /// let jobs = (0..1_000_000).map(|number| json!({ "id": format!("n{number}") }));
    /// let answers = client.enqueue_many("numbers").key_field("id").send(jobs);
    /// pin_mut!(answers);
    /// while let Some(answer) = answers.next().await {
    ///     let answer = answer?;
    ///     if let Err(problem) = answer.result {
    ///         eprintln!("job {}: {problem}", answer.index);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn enqueue_many(&self, pipeline: &str) -> Bulk {
        let (client, pipeline) = (self.clone(), pipeline.to_owned());
        Bulk { client, pipeline, key_field: None, options: Options::default() }
    }
}

impl Bulk {
    /// The field of the instructions that holds each job's idempotency key. Without one, an answer
    /// that is lost ends it: nobody could tell whether to send these jobs again.
    pub fn key_field(mut self, field: &str) -> Self {
        self.key_field = Some(field.to_owned());
        self
    }

    /// Of what waits for the same phase, the higher goes first: -100 to 100.
    pub fn priority(mut self, priority: i8) -> Self {
        self.options.set("priority", priority.to_string());
        self
    }

    /// They do not begin before this is over.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.options.set("delay", milliseconds(delay));
        self
    }

    /// If one has not ended by then, it is a dead letter.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.set("timeout", milliseconds(timeout));
        self
    }

    /// Enqueues these; gives an answer for each as it comes. Dropping the answers ends it.
    ///
    /// An error is the last answer: what of the part under way was not answered may have been accepted.
    pub fn send<T: Serialize>(
        self,
        jobs: impl IntoIterator<Item = T>,
    ) -> impl Stream<Item = Result<BulkAnswer, Error>> {
        self.send_stream(stream::iter(jobs))
    }

    /// Enqueues what a stream gives, likewise.
    pub fn send_stream<T: Serialize>(
        self,
        jobs: impl Stream<Item = T>,
    ) -> impl Stream<Item = Result<BulkAnswer, Error>> {
        let lines = Box::pin(jobs.map(|job| serde_json::to_vec(&job)));
        let answers = VecDeque::new();
        let state = State { bulk: self, lines, next: 0, ended: false, answers, failed: None };
        stream::unfold(state, |mut state| async move { Some((state.next().await?, state)) })
    }
}

/// How far it is.
struct State<S> {
    bulk: Bulk,
    lines: S,
    /// The number of the next job.
    next: u64,
    /// Whether nothing more is read.
    ended: bool,
    answers: VecDeque<BulkAnswer>,
    /// What ends it, once the answers before are given.
    failed: Option<Error>,
}

impl<S: Stream<Item = serde_json::Result<Vec<u8>>> + Unpin> State<S> {
    async fn next(&mut self) -> Option<Result<BulkAnswer, Error>> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(Ok(answer));
            }
            if let Some(error) = self.failed.take() {
                self.ended = true;
                return Some(Err(error));
            }
            let part = self.part().await;
            if part.is_empty() && self.failed.is_none() {
                return None;
            }
            if let Err(error) = self.exchange(part).await {
                self.failed = Some(error);
            }
        }
    }

    /// The next jobs, as far as they fit.
    async fn part(&mut self) -> Vec<Waiting> {
        let (mut part, mut bytes) = (Vec::new(), 0);
        while !self.ended && part.len() < PART_JOBS && bytes < PART_BYTES {
            match self.lines.next().await {
                None => self.ended = true,
                Some(Ok(line)) => {
                    bytes += line.len();
                    part.push(Waiting { index: self.next, line: line.into() });
                    self.next += 1;
                }
                Some(Err(error)) => {
                    self.failed = Some(Error::setting(format!("job {}", self.next), error));
                    self.ended = true;
                }
            }
        }
        part
    }

    /// Sends jobs until each has its answer.
    async fn exchange(&mut self, mut part: Vec<Waiting>) -> Result<(), Error> {
        let client = self.bulk.client.clone();
        let again = match self.bulk.key_field {
            Some(_) => Again::Always,
            None => Again::IfRefused,
        };
        let mut tries = client.send.tries();
        while !part.is_empty() {
            let at = client.send.at();
            let (busy, failed) = self.exchange_once(at, &mut part).await;
            let Some(failed) = failed else { continue };
            let error = match tries.again(&client.send, at, failed, again).await {
                Ok(()) => continue,
                Err(error) => error,
            };
            // Those that a node was too busy for were answered, if not as one would like.
            if busy.is_empty() {
                return Err(error);
            }
            for (waiting, problem) in part.drain(..).zip(busy) {
                let index = waiting.index;
                self.answers.push_back(BulkAnswer { index, result: Err(problem) });
            }
        }
        Ok(())
    }

    /// Sends jobs once, and takes those out that have their answer. If the rest may be sent again, says
    /// why they were not accepted; one problem for each where a node named one.
    async fn exchange_once(
        &mut self,
        at: usize,
        part: &mut Vec<Waiting>,
    ) -> (Vec<Box<Problem>>, Option<Failed>) {
        let send = self.bulk.client.send.clone();
        let path = ["pipelines", self.bulk.pipeline.as_str(), "jobs"];
        let mut call = Call::new(Method::POST, path, Again::Always);
        call.query.extend(self.bulk.options.query());
        if let Some(field) = &self.bulk.key_field {
            call.query.push(("key", field.clone()));
        }
        let mut body = Vec::new();
        for waiting in part.iter() {
            body.extend_from_slice(&waiting.line);
            body.push(b'\n');
        }
        call.body = Some(("application/x-ndjson", body.into()));
        let mut response = match send.send(at, &call).await {
            Ok(response) => response,
            Err(failed) => return (Vec::new(), Some(failed)),
        };
        let (mut buffer, mut lost) = (Vec::new(), None);
        let mut answered: Vec<Option<Answer>> = Vec::new();
        answered.resize_with(part.len(), || None);
        loop {
            match response.chunk().await {
                Ok(Some(bytes)) => buffer.extend_from_slice(&bytes),
                Ok(None) => break,
                Err(error) => {
                    lost = Some(error.to_string());
                    break;
                }
            }
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let rest = buffer.split_off(end + 1);
                let line = std::mem::replace(&mut buffer, rest);
                let Some((number, result)) = read(&line) else {
                    lost = Some("a line of it makes no sense".to_owned());
                    break;
                };
                if let Some(slot) = number.checked_sub(1).and_then(|it| answered.get_mut(it)) {
                    *slot = Some(result);
                }
            }
        }
        let (url, keyed) = (send.url(at), self.bulk.key_field.is_some());
        let (mut rest, mut busy) = (Vec::new(), Vec::new());
        for (waiting, answer) in part.drain(..).zip(answered) {
            match answer {
                None => {
                    let reason = || "it has an answer for some jobs only".to_owned();
                    lost.get_or_insert_with(reason);
                    rest.push(waiting);
                }
                // 504: nobody knows. With a key it may be sent again.
                Some(Err(problem)) if problem.may_pass() || (keyed && problem.status == 504) => {
                    busy.push(problem);
                    rest.push(waiting);
                }
                Some(result) => {
                    let index = waiting.index;
                    self.answers.push_back(BulkAnswer { index, result });
                }
            }
        }
        *part = rest;
        match (lost, busy.first()) {
            (Some(reason), _) => (Vec::new(), Some(Failed::unknown(url, reason))),
            (None, Some(first)) => {
                let failed = Failed::refused((**first).clone(), None);
                (busy, Some(failed))
            }
            (None, None) => (busy, None),
        }
    }
}

/// Reads one line of an answer: which job it is about, and what became of it.
fn read(line: &[u8]) -> Option<(usize, Answer)> {
    let Line { line, receipt, error } = serde_json::from_slice(line).ok()?;
    match (error, receipt) {
        (Some(problem), _) => Some((line, Err(problem))),
        (None, Some(receipt)) => Some((line, Ok(receipt))),
        (None, None) => None,
    }
}
