//! Runs attempts, one task each, passes on what they give, and reports each one's end exactly once.

use std::{
    collections::HashMap,
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use carbonmesh_protocol::{
    config::Limits,
    id::Token,
    io::{Attempt, Outcome},
    name::Name,
    secret::{PlaceId, SecretEntry},
};
use futures::FutureExt;
use tokio::{runtime::Runtime, sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span, warn};

use super::{
    Fields, OfferedPhase, Phase, PhaseContext, PhaseError,
    items::ItemSink,
    session::{Leaving, SessionLimits},
    voice::{Heard, Voice},
};
use crate::{
    document::format_duration,
    metrics::Metrics,
    scope::{Scopes, hidden},
};

/// How long an attempt that was cancelled may take to end by itself.
const GRACE: Duration = Duration::from_secs(3);

/// How much of an error is kept.
pub(super) const ERROR_BYTES: usize = 8 << 10;

/// See the [module](self).
pub(crate) struct PhaseRunner {
    phases: HashMap<Name, OfferedPhase>,
    result_bytes: usize,
    job_bytes: usize,
    session_limits: SessionLimits,
    news: mpsc::Sender<News>,
    /// Where goes what attempts say.
    said: Option<mpsc::Sender<Heard>>,
    metrics: Metrics,
    /// What attempts get beside their instructions.
    scopes: Scopes,
    running: Arc<Running>,
    /// Their own: a phase that keeps a thread busy must not keep the network from its beats. There
    /// until it is dropped.
    runtime: Option<Runtime>,
}

/// What attempts tell.
#[derive(Debug)]
pub(crate) enum News {
    /// One has ended.
    Ended(Token, Outcome),
    /// One gives items, a line each; it waits until it hears that they are durable.
    Items { token: Token, lines: Bytes },
    /// One leaves something in its session; its end comes next.
    Session { token: Token, entries: Bytes },
}

/// What a running attempt hears.
struct Ears {
    cancelled: CancellationToken,
    items: Option<Arc<ItemSink>>,
}

/// How each running attempt is reached.
#[derive(Default)]
struct Running(Mutex<HashMap<Token, Ears>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<Token, Ears>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PhaseRunner {
    /// Runs these phases on threads of their own.
    ///
    /// # Errors
    /// The system refuses threads.
    pub(crate) fn new(
        phases: Vec<OfferedPhase>,
        (result_bytes, job_bytes): (usize, usize),
        news: mpsc::Sender<News>,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("phases")
            .enable_all()
            .build()?;
        Ok(Self {
            phases: phases.into_iter().map(|phase| (phase.name.clone(), phase)).collect(),
            result_bytes,
            job_bytes,
            session_limits: SessionLimits::from(&Limits::DEFAULT),
            news,
            said: None,
            metrics,
            scopes: Scopes::default(),
            running: Arc::default(),
            runtime: Some(runtime),
        })
    }

    /// The same, with values and secrets for its attempts.
    pub(crate) fn with_scopes(mut self, scopes: Scopes) -> Self {
        self.scopes = scopes;
        self
    }

    /// What the cluster keeps for attempts that begin from now on.
    pub(crate) fn look_at_secrets<'a>(
        &mut self,
        entries: impl Iterator<Item = (PlaceId, u64, &'a SecretEntry)>,
    ) {
        self.scopes.look(entries);
    }

    /// The same, whose attempts may leave so much in their sessions.
    pub(crate) fn with_sessions(mut self, limits: SessionLimits) -> Self {
        self.session_limits = limits;
        self
    }

    /// What attempts say goes there.
    pub(crate) fn heard_by(mut self, said: mpsc::Sender<Heard>) -> Self {
        self.said = Some(said);
        self
    }

    /// Offers these phases from now on; attempts that run go on as they began. Gives the names of those
    /// that are not among them: they are kept until [`withdraw`](Self::withdraw).
    pub(crate) fn offer(&mut self, phases: Vec<OfferedPhase>) -> Vec<Name> {
        let before: Vec<Name> = self.phases.keys().cloned().collect();
        let names: Vec<Name> = phases.iter().map(|phase| phase.name.clone()).collect();
        self.phases.extend(phases.into_iter().map(|phase| (phase.name.clone(), phase)));
        before.into_iter().filter(|name| !names.contains(name)).collect()
    }

    /// Offers these no more.
    pub(crate) fn withdraw(&mut self, phases: &[Name]) {
        phases.iter().for_each(|phase| drop(self.phases.remove(phase)));
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Starts an attempt; its end comes by the channel.
    pub(crate) fn start(&self, mut attempt: Attempt) {
        let (token, news) = (attempt.token, self.news.clone());
        let Some(offered) = self.phases.get(&attempt.phase) else {
            let error = format!("phase {} is not offered here", attempt.phase);
            let outcome = Outcome::Failed { error, retry: true, after: None };
            // Nobody listens only when the node ends.
            self.spawn(async move { drop(news.send(News::Ended(token, outcome)).await) });
            return;
        };
        let cancelled = CancellationToken::new();
        let sink = || Arc::new(ItemSink::new(token, self.job_bytes, news.clone()));
        let items = attempt.gives_items.then(sink);
        let leaving = attempt.gives_items.then(|| Arc::new(Leaving::new(self.session_limits)));
        let ears = Ears { cancelled: cancelled.clone(), items: items.clone() };
        self.running.lock().insert(token, ears);
        let (phase, running) = (offered.phase.clone(), self.running.clone());
        let (name, metrics) = (attempt.phase.to_string(), self.metrics.clone());
        attempt.timeout = attempt.timeout.or(offered.timeout);
        let result_bytes = self.result_bytes;
        let scope = self.scopes.of(&attempt.pipeline, &attempt.phase);
        // What was a secret when the attempt began is hidden in all that it says, to its end.
        let hidden = scope.clone();
        let span = info_span!(
            "attempt",
            job = %attempt.job,
            step = %attempt.step,
            number = attempt.number
        );
        let voice = Arc::new(Voice::new(token, self.said.clone()));
        let task = async move {
            let (voice, cancel) = (voice, cancelled.clone());
            let context = PhaseContext::new(attempt, cancel, span.clone(), items, voice.clone());
            let context = context.with_scope(scope).with_leaving(leaving.clone());
            let began = Instant::now();
            let ended = attended(&*phase, context, result_bytes, &cancelled);
            let ended = ended.instrument(span).await;
            running.lock().remove(&token);
            let outcome = match ended {
                Ended::Result(result) => concluded(result.map_err(hiding), result_bytes),
                Ended::Cancelled => Outcome::Cancelled,
            };
            metrics.ended(&name, outcome_name(&outcome), began.elapsed());
            voice.end().await;
            drop(hidden);
            let left = leaving.and_then(|leaving| leaving.close());
            if let Some(entries) = left.filter(|_| matches!(outcome, Outcome::Succeeded(_))) {
                let _ = news.send(News::Session { token, entries }).await;
            }
            let _ = news.send(News::Ended(token, outcome)).await;
        };
        self.spawn(task);
    }

    /// Nobody wants the attempt's end any more.
    pub(crate) fn cancel(&self, token: Token) {
        if let Some(ears) = self.running.lock().get(&token) {
            ears.cancelled.cancel();
        }
    }

    /// The items that the attempt gave are durable.
    pub(crate) fn items_taken(&self, token: Token) {
        if let Some(items) = self.running.lock().get(&token).and_then(|ears| ears.items.clone()) {
            items.taken();
        }
    }
}

/// A node that ends takes its attempts with it: commands must not outlive it.
impl Drop for PhaseRunner {
    fn drop(&mut self) {
        self.running.lock().values().for_each(|ears| ears.cancelled.cancel());
        if let Some(runtime) = self.runtime.take() {
            // Its tasks are dropped, and the groups of their commands killed with them.
            runtime.shutdown_background();
        }
    }
}

enum Ended {
    Result(Result<Fields, PhaseError>),
    Cancelled,
}

/// Runs the phase, and tells it how each attempt begins and ends; its hooks' panics change nothing.
async fn attended(
    phase: &dyn Phase,
    context: PhaseContext,
    result_bytes: usize,
    cancelled: &CancellationToken,
) -> Ended {
    hooked(phase.on_started(&context)).await;
    let ended = guarded(phase, context.clone(), result_bytes, cancelled).await;
    match &ended {
        Ended::Result(Ok(result)) => hooked(phase.on_finished(&context, result)).await,
        Ended::Result(Err(error)) => hooked(phase.on_failed(&context, error)).await,
        Ended::Cancelled => {}
    }
    ended
}

async fn hooked(hook: impl Future<Output = ()>) {
    let hook = AssertUnwindSafe(hook).catch_unwind();
    match timeout(GRACE, hook).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => warn!("a hook of the phase panicked"),
        Err(_) => warn!("a hook of the phase took longer than {GRACE:?}: dropping it"),
    }
}

/// Runs the phase within its time, and survives its panics.
async fn guarded(
    phase: &dyn Phase,
    context: PhaseContext,
    result_bytes: usize,
    cancelled: &CancellationToken,
) -> Ended {
    let limit = context.timeout();
    context.heartbeat();
    let run = async {
        let given = phase.run(context.clone()).await?;
        let result = context.output(given, result_bytes)?;
        // Whoever hears of its end may count on its items.
        context.finish_items().await?;
        Ok(result)
    };
    let run = AssertUnwindSafe(run).catch_unwind();
    tokio::pin!(run);
    let time_over = async {
        let over = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = over => format!("timed out after {}", format_duration(limit.unwrap_or_default())),
            longest = context.silence() => format!(
                "it was silent for {}, its heartbeat_timeout",
                format_duration(longest)
            ),
        }
    };
    tokio::select! {
        biased;
        ended = &mut run => Ended::Result(ended.unwrap_or_else(|panic| Err(panicked(&*panic)))),
        () = cancelled.cancelled() => {
            // It may clean up; what it gives is not wanted any more.
            if timeout(GRACE, run).await.is_err() {
                warn!("a cancelled attempt did not end by itself: dropping it");
            }
            Ended::Cancelled
        }
        why = time_over => {
            cancelled.cancel();
            let _ = timeout(GRACE, run).await;
            Ended::Result(Err(PhaseError::Retry(why)))
        }
    }
}

fn outcome_name(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded(_) => "succeeded",
        Outcome::Failed { .. } => "failed",
        Outcome::Cancelled => "cancelled",
    }
}

/// An error goes to every replica, and to whoever asks: no secret of this node may be in it.
fn hiding(error: PhaseError) -> PhaseError {
    let shown = |text: String| hidden(&text).into_owned();
    match error {
        PhaseError::Retry(text) => PhaseError::Retry(shown(text)),
        PhaseError::RetryAfter(text, after) => PhaseError::RetryAfter(shown(text), after),
        PhaseError::Fatal(text) => PhaseError::Fatal(shown(text)),
    }
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> PhaseError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    PhaseError::Retry(format!("the phase panicked: {}", text.unwrap_or("without a message")))
}

/// An error is kept with its job and goes to every replica: its beginning has to do.
fn bounded(mut error: String) -> String {
    if error.len() > ERROR_BYTES {
        error.truncate(error.floor_char_boundary(ERROR_BYTES));
        error.push_str(" ...");
    }
    error
}

pub(super) fn concluded(result: Result<Fields, PhaseError>, limit: usize) -> Outcome {
    match result {
        Ok(fields) => match serde_json::to_vec(&fields) {
            Ok(json) if json.len() <= limit => Outcome::Succeeded(json.into()),
            Ok(json) => Outcome::Failed {
                error: format!(
                    "the result has {} bytes, at most {limit} are allowed (limits.result_bytes): \
                     put large data elsewhere and pass on where it is",
                    json.len()
                ),
                retry: false,
                after: None,
            },
            Err(error) => Outcome::Failed {
                error: format!("the result cannot be written as JSON: {error}"),
                retry: false,
                after: None,
            },
        },
        Err(PhaseError::Retry(error)) => {
            Outcome::Failed { error: bounded(error), retry: true, after: None }
        }
        Err(PhaseError::RetryAfter(error, after)) => {
            Outcome::Failed { error: bounded(error), retry: true, after: Some(after) }
        }
        Err(PhaseError::Fatal(error)) => {
            Outcome::Failed { error: bounded(error), retry: false, after: None }
        }
    }
}
