//! What one attempt knows of itself.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use carbonmesh_protocol::{event::LogLevel, id::JobId, io::Attempt, mapping, name::Name};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{Span, debug, error, info, warn};

use super::{
    Fields, PhaseError,
    items::ItemSink,
    session::{self, Leaving, Session, Sessions},
    voice::Voice,
};
use crate::document::{
    InstructionsError, gathered_value, merge_instructions, name_results, named_object, one_item,
};
use crate::otlp::context::traceparent;
use crate::scope::Scope;

/// The largest input that a mapping may make.
const MAX_INPUT_BYTES: usize = 64 << 20;

/// See the [module](self).
#[derive(Clone, Debug)]
pub struct PhaseContext {
    attempt: Attempt,
    cancelled: CancellationToken,
    span: Span,
    /// Where its items go, if it is to give some.
    items: Option<Arc<ItemSink>>,
    /// What it leaves beside them.
    leaving: Option<Arc<Leaving>>,
    /// What attempts before left, by step, once it was read.
    sessions: Arc<OnceLock<Sessions>>,
    /// When it showed last that it lives.
    heard: Arc<watch::Sender<Instant>>,
    scope: Scope,
    /// Who follows the job hears it by this.
    voice: Arc<Voice>,
}

impl PhaseContext {
    pub(super) fn new(
        attempt: Attempt,
        cancelled: CancellationToken,
        span: Span,
        items: Option<Arc<ItemSink>>,
        voice: Arc<Voice>,
    ) -> Self {
        let heard = Arc::new(watch::Sender::new(Instant::now()));
        let (scope, leaving, sessions) = (Scope::default(), None, Arc::default());
        Self { attempt, cancelled, span, items, leaving, sessions, heard, scope, voice }
    }

    pub(super) fn with_leaving(self, leaving: Option<Arc<Leaving>>) -> Self {
        Self { leaving, ..self }
    }

    pub(super) fn with_scope(self, scope: Scope) -> Self {
        Self { scope, ..self }
    }

    /// Values and secrets that this node's operator gives to this phase.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// What a phase that gives items leaves beside them, for the phase behind what is made of these.
    pub fn session(&self) -> Session<'_> {
        Session(self)
    }

    pub(super) fn leaving(&self) -> Option<&Leaving> {
        self.leaving.as_deref()
    }

    /// What attempts before left, by step.
    pub(super) fn sessions(&self) -> &Sessions {
        self.sessions.get_or_init(|| session::read(&self.attempt.sessions))
    }

    /// The same in JSON, as it came.
    pub(super) fn sessions_json(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.attempt.sessions.iter().map(|of| (of.step.as_str(), &of.entries[..]))
    }

    /// Shows that the attempt lives. One whose phase has a `heartbeat_timeout`, and that is silent for
    /// longer, has failed; progress and items count as well.
    pub fn heartbeat(&self) {
        self.heard.send_replace(Instant::now());
    }

    /// Comes when the attempt was silent for too long; tells for how long it may be.
    pub(super) async fn silence(&self) -> Duration {
        let Some(longest) = self.attempt.handling.heartbeat else {
            return std::future::pending().await;
        };
        loop {
            let heard = *self.heard.borrow();
            tokio::time::sleep_until(heard + longest).await;
            if *self.heard.borrow() == heard {
                return longest;
            }
        }
    }

    /// What counts of what the phase gave.
    ///
    /// # Errors
    /// The phase's mapping cannot be applied to it.
    pub(super) fn output(&self, fields: Fields, limit: usize) -> Result<Fields, PhaseError> {
        let Some(expression) = &self.attempt.handling.output else { return Ok(fields) };
        let fatal = |error: String| PhaseError::Fatal(format!("output_mapping: {error}"));
        let json = serde_json::to_vec(&fields).map_err(|error| fatal(error.to_string()))?;
        let json = mapping::apply(expression, &json, limit).map_err(fatal)?;
        serde_json::from_slice(&json).map_err(|error| fatal(error.to_string()))
    }

    /// Whether a phase behind does something with each item that this one gives.
    pub fn gives_items(&self) -> bool {
        self.items.is_some()
    }

    /// Gives one item: JSON, by itself a job's instructions if it is an object, else under `item`.
    /// Waits while many are on their way: however many there are, few are held here.
    ///
    /// # Errors
    /// It is no JSON or too large, nobody does anything with items, or the attempt was cancelled.
    pub async fn give(&self, item: &[u8]) -> Result<(), PhaseError> {
        let Some(items) = &self.items else {
            return Err(PhaseError::Fatal(format!(
                "step `{}` gives an item, and no phase of the pipeline has for_each = \"{0}\"",
                self.step()
            )));
        };
        let line = one_item(item).map_err(|error| PhaseError::Fatal(error.to_string()))?;
        self.not_silent(items.give(&line, &self.cancelled)).await
    }

    /// Waits for others: that is not the phase's silence.
    pub(super) async fn not_silent<T>(&self, wait: impl Future<Output = T>) -> T {
        self.heartbeat();
        let Some(longest) = self.attempt.handling.heartbeat else { return wait.await };
        tokio::pin!(wait);
        loop {
            match timeout(longest / 2, &mut wait).await {
                Ok(done) => {
                    self.heartbeat();
                    return done;
                }
                Err(_) => self.heartbeat(),
            }
        }
    }

    /// The largest item that may be given, in bytes.
    pub(super) fn item_bytes(&self) -> usize {
        self.items.as_ref().map_or(0, |items| items.item_bytes)
    }

    /// Waits until all items that were given are durable.
    pub(super) async fn finish_items(&self) -> Result<(), PhaseError> {
        match &self.items {
            Some(items) => self.not_silent(items.finish(&self.cancelled)).await,
            None => Ok(()),
        }
    }

    /// The job.
    pub fn job(&self) -> JobId {
        self.attempt.job
    }

    /// The job's pipeline.
    pub fn pipeline(&self) -> &str {
        self.attempt.pipeline.as_str()
    }

    /// The step's name in the pipeline.
    pub fn step(&self) -> &str {
        self.attempt.step.as_str()
    }

    /// The idempotency key that the job was enqueued with.
    pub fn key(&self) -> Option<&str> {
        self.attempt.key.as_deref()
    }

    /// Which attempt of this phase of this job it is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt.number
    }

    /// How long this attempt may take.
    pub fn timeout(&self) -> Option<Duration> {
        self.attempt.timeout
    }

    /// What fences this attempt: later attempts of the same phase of the same job have greater
    /// ones.
    pub fn token(&self) -> String {
        self.attempt.token.to_string()
    }

    /// The span of this attempt, as W3C Trace Context writes it: what the phase does belongs below it.
    pub fn traceparent(&self) -> String {
        traceparent(self.attempt.job, self.attempt.trace, &self.token())
    }

    /// The same for all attempts of this phase of this job: for systems that drop repetitions.
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}", self.attempt.job, self.attempt.step)
    }

    /// The instructions that the job was enqueued with, the results of the phases before merged
    /// into them.
    ///
    /// # Errors
    /// They are no JSON object.
    pub fn instructions(&self) -> Result<Fields, PhaseError> {
        serde_json::from_slice(&self.instructions_json()?)
            .map_err(|error| PhaseError::Fatal(format!("the instructions are no object: {error}")))
    }

    /// The same as one line of JSON.
    ///
    /// # Errors
    /// They are no JSON object.
    pub fn instructions_json(&self) -> Result<Vec<u8>, PhaseError> {
        let Attempt { instructions, results, names, gathered, .. } = &self.attempt;
        let gathered = gathered.iter().map(|it| Ok((&it.name, gathered_value(it)?)));
        let gathered = gathered.collect::<Result<Vec<(&Name, Bytes)>, InstructionsError>>();
        let input = gathered.and_then(|gathered| match names {
            None => {
                let gathered = gathered.iter().map(|(name, value)| named_object(name, value));
                let results: Vec<Bytes> = results.iter().cloned().chain(gathered).collect();
                merge_instructions(instructions, &results)
            }
            Some(names) => {
                let results = names.iter().zip(results);
                let gathered = gathered.iter().map(|(name, value)| (*name, value));
                let all = results.chain(gathered).map(|(name, json)| (name.as_str(), json));
                name_results(instructions, all)
            }
        });
        let input = input.map_err(|error| PhaseError::Fatal(error.to_string()))?;
        let Some(expression) = &self.attempt.handling.input else { return Ok(input) };
        mapping::apply(expression, &input, MAX_INPUT_BYTES)
            .map_err(|error| PhaseError::Fatal(format!("input_mapping: {error}")))
    }

    /// Cancelled when nobody wants the attempt's end any more, or its time is over.
    pub fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Where the attempt's log lines belong; the phase runs inside it.
    pub fn span(&self) -> &Span {
        &self.span
    }

    /// Logs how far the attempt has come: a part of 1, and what is being done. Whoever follows the job
    /// sees it.
    pub fn progress(&self, done: f32, message: &str) {
        self.heartbeat();
        info!(parent: &self.span, done, message, "progress");
        let parts = (done.clamp(0.0, 1.0) * 10_000.0).round();
        self.voice.say(LogLevel::Info, Some(parts as u16), message);
    }

    /// Writes a line to the attempt's log: to that of the node, and for those who follow the job
    /// (`carbonmesh logs`). Never waits: lines that are too many, a few hundred a second, are left out,
    /// and it is told how many.
    pub fn log(&self, level: LogLevel, line: &str) {
        self.heartbeat();
        let span = &self.span;
        match level {
            LogLevel::Debug => debug!(target: "carbonmesh::phase", parent: span, "{line}"),
            LogLevel::Info => info!(target: "carbonmesh::phase", parent: span, "{line}"),
            LogLevel::Warning => warn!(target: "carbonmesh::phase", parent: span, "{line}"),
            LogLevel::Error => error!(target: "carbonmesh::phase", parent: span, "{line}"),
        }
        self.say(level, line);
    }

    /// Says a line to those who follow the job, and not to the node's log.
    pub(super) fn say(&self, level: LogLevel, line: &str) {
        self.voice.say(level, None, line);
    }
}
