//! One target: what it wants, what waits for it, and how that goes.
//!
//! ```text
//! tell() ─► queue ─► heap by time ─► one try at a time ─► delivered
//!                         ▲                  │ failed: later, by backoff with jitter
//!                         └──────────────────┴─ too often, or for good: dead, and shown
//! ```
//! Invariant: no more than [`TargetSettings::queue`] wait, in the queue and in the heap together.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use super::{
    Kind, Notice,
    deliver::Way,
    settings::TargetSettings,
    template::{Letter, Writer},
};
use crate::{clock, metrics::Metrics, results::post::Unsent, scope};

/// How many that were given up are kept to be shown.
const DEAD_KEPT: usize = 100;

/// How often it is logged that notifications are dropped, at most.
const WARN_EVERY_MS: u64 = 60_000;

/// A notification that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dead {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) summary: String,
    /// When it was given up (ms since 1970).
    pub(crate) at_ms: u64,
    pub(crate) attempts: u32,
    pub(crate) error: String,
}

/// What one try came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tried {
    pub(crate) delivered: bool,
    /// What the receiver said, or what went wrong.
    pub(crate) detail: String,
    pub(crate) took: Duration,
}

/// How it has gone since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) delivered: u64,
    /// Tries that failed.
    pub(crate) failed: u64,
    pub(crate) dead: u64,
    /// Those for which there was no room.
    pub(crate) dropped: u64,
    /// When the last was delivered (ms since 1970).
    pub(crate) delivered_ms: Option<u64>,
    /// The last error, and when it came (ms since 1970).
    pub(crate) error: Option<(u64, String)>,
    /// Those that were given up last, the latest last.
    pub(crate) given_up: VecDeque<Dead>,
}

/// See the [module](self).
pub(crate) struct Target {
    settings: TargetSettings,
    writer: Writer,
    way: Way,
    queue: mpsc::Sender<Box<Notice>>,
    waiting: AtomicUsize,
    tally: Mutex<Tally>,
    warned_ms: AtomicU64,
    metrics: Metrics,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// One that waits for its moment: by that, then by its turn.
struct Waiting {
    due: Instant,
    turn: u64,
    tries: u32,
    notice: Box<Notice>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.turn) == (other.due, other.turn)
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.turn).cmp(&(other.due, other.turn))
    }
}

/// Room for so many tries a minute.
struct Pace {
    per_minute: f64,
    room: f64,
    at: Instant,
}

impl Pace {
    fn new(per_minute: u32) -> Self {
        let per_minute = f64::from(per_minute);
        Self { per_minute, room: per_minute, at: Instant::now() }
    }

    /// Takes a place; how long to wait for it.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.room = (self.room + passed * self.per_minute / 60.0).min(self.per_minute) - 1.0;
        Duration::from_secs_f64((-self.room).max(0.0) * 60.0 / self.per_minute)
    }
}

/// Whether a target can be made of these settings.
///
/// # Errors
/// The key, and what is wrong with it.
pub(super) fn check(settings: &TargetSettings) -> Result<(), String> {
    parts(settings).map(|_| ())
}

fn parts(settings: &TargetSettings) -> Result<(Writer, Way), String> {
    let writer = Writer::new(settings).map_err(|(key, reason)| format!("{key}: {reason}"))?;
    Ok((writer, Way::new(&settings.to, settings.template.is_some())?))
}

impl Target {
    /// A target, and the queue that [`run`](Self::run) takes from.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub(super) fn new(
        settings: TargetSettings,
        metrics: Metrics,
    ) -> Result<(Self, mpsc::Receiver<Box<Notice>>), String> {
        let (writer, way) = parts(&settings)?;
        let (queue, waiting) = mpsc::channel(settings.queue.max(1));
        let (tally, warned_ms) = (Mutex::default(), AtomicU64::default());
        let target = Self {
            settings,
            writer,
            way,
            queue,
            waiting: AtomicUsize::new(0),
            tally,
            warned_ms,
            metrics,
        };
        Ok((target, waiting))
    }

    pub(crate) fn name(&self) -> &str {
        &self.settings.name
    }

    pub(crate) fn settings(&self) -> &TargetSettings {
        &self.settings
    }

    /// Where it leads, without what may be a secret.
    pub(crate) fn shown(&self) -> String {
        self.way.shown()
    }

    /// How many wait for their turn or for another try.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// How it has gone.
    pub(crate) fn tally(&self) -> Tally {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it wants anything of that kind, of whatever pipeline.
    pub(crate) fn wants_kind(&self, kind: Kind) -> bool {
        let chosen = self.settings.events.as_ref().is_none_or(|kinds| kinds.contains(&kind));
        chosen && kind.level() >= self.settings.level
    }

    /// Whether it wants to hear of that pipeline.
    pub(super) fn wants_pipeline(&self, pipeline: &str) -> bool {
        let patterns = &self.settings.pipelines;
        patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(pipeline))
    }

    /// Whether it wants this.
    pub(super) fn wants(&self, notice: &Notice) -> bool {
        self.wants_kind(notice.kind)
            && notice.pipeline.as_deref().is_none_or(|pipeline| self.wants_pipeline(pipeline))
    }

    /// Puts it into the queue; never waits.
    pub(super) fn tell(&self, notice: Notice) {
        let mut notice = Box::new(notice);
        notice.cluster.clone_from(&self.settings.cluster);
        let waits = self.waiting.fetch_add(1, Ordering::Relaxed);
        if waits < self.settings.queue && self.queue.try_send(notice).is_ok() {
            self.metrics.notifications_wait(self.name(), self.waiting());
            return;
        }
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.lock().dropped += 1;
        self.metrics.notified(self.name(), "dropped");
        let (now, before) = (clock::unix_ms(), self.warned_ms.load(Ordering::Relaxed));
        if now.saturating_sub(before) >= WARN_EVERY_MS {
            self.warned_ms.store(now, Ordering::Relaxed);
            let waiting = self.settings.queue;
            warn!(target = self.name(), waiting, "too many notifications wait: more are dropped");
        }
    }

    /// Sends a notification of its own, at once and once.
    pub(crate) async fn test(&self, from: &str) -> Tried {
        let now = clock::unix_ms();
        let summary = format!("node {from} tries target {}", self.name());
        let names = [from, self.name(), &now.to_string(), &rand::random::<u64>().to_string()];
        let mut notice = Notice::new(Kind::Test, &names, now, summary);
        notice.cluster.clone_from(&self.settings.cluster);
        let began = Instant::now();
        let tried = match self.writer.write(&notice) {
            Ok(letter) => self.try_once(&letter).await,
            Err((key, reason)) => Err(Unsent::Never(format!("{key}: {reason}"))),
        };
        let took = began.elapsed();
        match tried {
            Ok(detail) => Tried { delivered: true, detail, took },
            Err(Unsent::Later(error, _) | Unsent::Never(error)) => {
                Tried { delivered: false, detail: error, took }
            }
        }
    }

    /// One try, counted.
    async fn try_once(&self, letter: &Letter) -> Result<String, Unsent> {
        let sent = self.way.send(letter).await;
        let now = clock::unix_ms();
        let mut tally = self.lock();
        match sent {
            Ok(detail) => {
                tally.delivered += 1;
                tally.delivered_ms = Some(now);
                self.metrics.notified(self.name(), "delivered");
                Ok(detail)
            }
            Err(why) => {
                let shown = |text: String| scope::hidden(&text).into_owned();
                let why = match why {
                    Unsent::Later(error, after) => Unsent::Later(shown(error), after),
                    Unsent::Never(error) => Unsent::Never(shown(error)),
                };
                let (Unsent::Later(error, _) | Unsent::Never(error)) = &why;
                tally.failed += 1;
                tally.error = Some((now, error.clone()));
                self.metrics.notified(self.name(), "failed");
                Err(why)
            }
        }
    }

    /// Delivers what comes, until cancelled; what waits then is gone with the node.
    pub(super) async fn run(
        self: Arc<Self>,
        mut queue: mpsc::Receiver<Box<Notice>>,
        cancel: CancellationToken,
    ) {
        let mut waiting: BinaryHeap<Reverse<Waiting>> = BinaryHeap::new();
        let (mut turn, mut pace) = (0, Pace::new(self.settings.per_minute));
        loop {
            let due = waiting.peek().map(|Reverse(first)| first.due);
            let next = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                notice = queue.recv() => {
                    let Some(notice) = notice else { return };
                    turn += 1;
                    waiting.push(Reverse(Waiting { due: Instant::now(), turn, tries: 0, notice }));
                    continue;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    waiting.pop()
                }
            };
            let Some(Reverse(next)) = next else { continue };
            let again = tokio::select! {
                () = cancel.cancelled() => return,
                again = self.deliver(next, &mut pace) => again,
            };
            match again {
                Some(again) => waiting.push(Reverse(again)),
                None => {
                    self.waiting.fetch_sub(1, Ordering::Relaxed);
                    self.metrics.notifications_wait(self.name(), self.waiting());
                }
            }
        }
    }

    /// One try; what is to be tried again comes back.
    async fn deliver(&self, one: Waiting, pace: &mut Pace) -> Option<Waiting> {
        let letter = match self.writer.write(&one.notice) {
            Ok(letter) => letter,
            Err((key, reason)) => {
                self.give_up(&one, format!("{key}: {reason}"));
                return None;
            }
        };
        sleep(pace.take(Instant::now())).await;
        let tries = one.tries + 1;
        match self.try_once(&letter).await {
            Ok(_) => None,
            Err(Unsent::Later(error, after)) if tries < self.settings.max_attempts => {
                let wait = backoff(self.settings.backoff, tries, rand::random());
                let wait = wait.max(after.unwrap_or_default());
                debug!(
                    target = self.name(),
                    id = one.notice.id,
                    tries,
                    error,
                    ?wait,
                    "again later"
                );
                Some(Waiting { due: Instant::now() + wait, tries, ..one })
            }
            Err(Unsent::Later(error, _) | Unsent::Never(error)) => {
                self.give_up(&Waiting { tries, ..one }, error);
                None
            }
        }
    }

    fn give_up(&self, one: &Waiting, reason: String) {
        let Notice { id, kind, summary, .. } = &*one.notice;
        let (name, attempts) = (self.name(), one.tries);
        error!(target = name, id, %kind, attempts, reason, "a notification was not delivered");
        self.metrics.notified(name, "dead");
        let mut tally = self.lock();
        tally.dead += 1;
        let at_ms = clock::unix_ms();
        tally.error = Some((at_ms, reason.clone()));
        if tally.given_up.len() == DEAD_KEPT {
            tally.given_up.pop_front();
        }
        tally.given_up.push_back(Dead {
            id: id.clone(),
            kind: *kind,
            summary: summary.clone(),
            at_ms,
            attempts,
            error: reason,
        });
    }
}

/// How long to wait after so many tries: it doubles, and half of it is chance, so that many who failed
/// at one time do not come back at one time.
fn backoff(first: Duration, tries: u32, chance: u32) -> Duration {
    let doubled = first.saturating_mul(1 << (tries - 1).min(20)).min(TargetSettings::LONGEST_WAIT);
    let half = doubled / 2;
    half + half.mul_f64(f64::from(chance) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_limit_and_half_of_each_is_chance() {
        let second = Duration::from_secs(1);
        let wait = |tries, chance| backoff(second, tries, chance);
        assert_eq!((wait(1, 0), wait(1, u32::MAX)), (second / 2, second));
        assert_eq!((wait(4, 0), wait(4, u32::MAX)), (second * 4, second * 8));
        assert_eq!(wait(u32::MAX, u32::MAX), TargetSettings::LONGEST_WAIT);
    }

    #[test]
    fn there_is_room_for_so_many_a_minute() {
        let mut pace = Pace::new(60);
        let now = pace.at;
        for _ in 0..60 {
            assert_eq!(pace.take(now), Duration::ZERO);
        }
        assert_eq!(pace.take(now), Duration::from_secs(1));
        let later = now + Duration::from_secs(10);
        for _ in 0..9 {
            assert_eq!(pace.take(later), Duration::ZERO);
        }
        assert!(pace.take(later) > Duration::ZERO);
    }
}
