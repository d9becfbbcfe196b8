//! A day of each pipeline's figures, for charts: every ten seconds of the last hour, every five minutes
//! of the last day.
//!
//! Each node keeps its own, of all pipelines that it knows, in memory and in a small file that is
//! written each minute: after a restart at most that is missing. Nothing depends on it; a file that
//! cannot be read is begun anew.
//!
//! Invariant: it holds no more than [`PIPELINES`] pipelines, and of each no more than two rings do.

use std::{
    collections::{BTreeMap, VecDeque},
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use carbonmesh_protocol::{
    figures::{Figures, Tally},
    io::{Request, Response},
    name::Name,
    view::{ClusterView, Counts, PipelineView},
};
use carbonmesh_storage::Files;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{clock, handle::NodeHandle};

/// Of how many pipelines a history is kept: those that are known first. Their sum is of all.
const PIPELINES: usize = 64;

/// How often figures are taken.
const EVERY: Duration = Duration::from_secs(10);

/// How many times figures are taken before the file is written.
const SAVE_AFTER: u32 = 6;

/// The name by which the file is sealed.
const NAME: &str = "history.json";

/// A larger file is none of ours.
const FILE_BYTES: u64 = 16 << 20;

/// How far back one looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// An hour, in steps of ten seconds.
    Hour,
    /// A day, in steps of five minutes.
    Day,
}

impl Range {
    /// How long a step is, in seconds.
    pub(crate) const fn step_s(self) -> u64 {
        match self {
            Self::Hour => 10,
            Self::Day => 300,
        }
    }

    /// How many steps there are.
    const fn steps(self) -> u64 {
        match self {
            Self::Hour => 360,
            Self::Day => 288,
        }
    }

    /// In which step a moment lies.
    const fn step_of(self, unix_ms: u64) -> u64 {
        unix_ms / 1000 / self.step_s()
    }
}

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "hour" => Ok(Self::Hour),
            "day" => Ok(Self::Day),
            other => Err(format!("`{other}` is no range: take hour or day")),
        }
    }
}

/// What happened within one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Row", into = "Row")]
pub(crate) struct Step {
    /// Which, counted from 1970.
    pub(crate) at: u64,
    /// Jobs that came.
    pub(crate) accepted: u64,
    /// Jobs that ended.
    pub(crate) succeeded: u64,
    pub(crate) dead: u64,
    pub(crate) cancelled: u64,
    /// The most that waited at once, and that ran, if somebody counted them.
    pub(crate) queued: Option<u64>,
    pub(crate) running: Option<u64>,
    /// Within how many ms half of those that succeeded did so, and 95 of 100.
    pub(crate) p50_ms: Option<u64>,
    pub(crate) p95_ms: Option<u64>,
}

/// A step as it lies in the file: short.
type Row = (u64, u64, u64, u64, u64, Option<u64>, Option<u64>, Option<u64>, Option<u64>);

impl From<Row> for Step {
    fn from(row: Row) -> Self {
        let (at, accepted, succeeded, dead, cancelled, queued, running, p50_ms, p95_ms) = row;
        Self { at, accepted, succeeded, dead, cancelled, queued, running, p50_ms, p95_ms }
    }
}

impl From<Step> for Row {
    fn from(step: Step) -> Self {
        let Step { at, accepted, succeeded, dead, cancelled, queued, running, p50_ms, p95_ms } =
            step;
        (at, accepted, succeeded, dead, cancelled, queued, running, p50_ms, p95_ms)
    }
}

/// What was seen of a pipeline at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    /// Since the sample before.
    tally: Tally,
    queued: Option<u64>,
    running: Option<u64>,
}

impl Sample {
    fn add(&mut self, other: &Self) {
        let sum = |a: Option<u64>, b: Option<u64>| a.or(b).map(|_| a.unwrap_or(0) + b.unwrap_or(0));
        self.tally.add(&other.tally);
        self.queued = sum(self.queued, other.queued);
        self.running = sum(self.running, other.running);
    }
}

/// The last steps of one length.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Ring {
    steps: VecDeque<Step>,
    /// What was counted in the last step so far.
    #[serde(skip)]
    open: Tally,
}

impl Ring {
    fn add(&mut self, range: Range, unix_ms: u64, sample: &Sample) {
        let at = range.step_of(unix_ms);
        // A clock that was set back would mix up the order: what lies behind is of no use.
        while self.steps.back().is_some_and(|step| step.at > at) {
            self.steps.pop_back();
            self.open = Tally::default();
        }
        if self.steps.back().is_none_or(|step| step.at < at) {
            self.steps.push_back(Step { at, ..Step::default() });
            self.open = Tally::default();
        }
        self.open.add(&sample.tally);
        let open = &self.open;
        if let Some(step) = self.steps.back_mut() {
            step.accepted += sample.tally.accepted;
            step.succeeded += sample.tally.succeeded;
            step.dead += sample.tally.dead;
            step.cancelled += sample.tally.cancelled;
            step.queued = step.queued.max(sample.queued);
            step.running = step.running.max(sample.running);
            // After a restart the first half of a step is not known any more.
            step.p50_ms = open.quantile_ms(0.5).or(step.p50_ms);
            step.p95_ms = open.quantile_ms(0.95).or(step.p95_ms);
        }
        self.trim(range, at);
    }

    fn trim(&mut self, range: Range, now: u64) {
        let first = (now + 1).saturating_sub(range.steps());
        while self.steps.front().is_some_and(|step| step.at < first) {
            self.steps.pop_front();
        }
    }

    /// Takes what a file says only as far as it can be true.
    fn check(&mut self, range: Range, unix_ms: u64) {
        let now = range.step_of(unix_ms);
        let mut steps: Vec<Step> = self.steps.drain(..).filter(|step| step.at <= now).collect();
        steps.sort_by_key(|step| step.at);
        steps.dedup_by_key(|step| step.at);
        self.steps = steps.into();
        self.trim(range, now);
    }
}

/// One pipeline, or all of them.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Series {
    hour: Ring,
    day: Ring,
}

impl Series {
    fn add(&mut self, unix_ms: u64, sample: &Sample) {
        self.hour.add(Range::Hour, unix_ms, sample);
        self.day.add(Range::Day, unix_ms, sample);
    }

    fn check(&mut self, unix_ms: u64) {
        self.hour.check(Range::Hour, unix_ms);
        self.day.check(Range::Day, unix_ms);
    }
}

/// All of it, as it lies in the file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    all: Series,
    pipelines: BTreeMap<String, Series>,
    /// What was seen last.
    #[serde(skip)]
    last: BTreeMap<Name, (Tally, Option<Counts>)>,
    /// Whether anything was seen yet: a pipeline that comes after that is counted from nothing.
    #[serde(skip)]
    began: bool,
}

impl Kept {
    fn add(&mut self, unix_ms: u64, cluster: &ClusterView, figures: &Figures) {
        let mut sum: Option<Sample> = None;
        let mut last = BTreeMap::new();
        for view in &cluster.pipelines {
            let name = &view.definition.name;
            let seen = figures.groups.iter().find(|group| group.pipeline == *name);
            let seen = seen.map(|group| group.seen).unwrap_or_default();
            let before = self.last.get(name).copied();
            let before = before.or_else(|| self.began.then(Default::default));
            last.insert(name.clone(), (seen, view.counts));
            let tally = before.and_then(|before| difference(cluster, view, seen, &before));
            if tally.is_none() && view.counts.is_none() {
                continue;
            }
            let sample = Sample {
                tally: tally.unwrap_or_default(),
                queued: view.counts.map(|counts| counts.queued),
                running: view.counts.map(|counts| counts.running),
            };
            sum.get_or_insert_default().add(&sample);
            if self.pipelines.len() < PIPELINES || self.pipelines.contains_key(name.as_str()) {
                self.pipelines.entry(name.to_string()).or_default().add(unix_ms, &sample);
            }
        }
        (self.last, self.began) = (last, true);
        if let Some(sum) = sum {
            self.all.add(unix_ms, &sum);
        }
        self.forget_old(unix_ms);
    }

    fn forget_old(&mut self, unix_ms: u64) {
        let now = Range::Day.step_of(unix_ms);
        self.pipelines.retain(|_, series| {
            series.hour.trim(Range::Hour, Range::Hour.step_of(unix_ms));
            series.day.trim(Range::Day, now);
            !series.day.steps.is_empty()
        });
    }

    fn read(path: &Path, files: &Files, unix_ms: u64) -> io::Result<Self> {
        let length = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            found => found?.len(),
        };
        if length > FILE_BYTES {
            return Err(io::Error::other("it is too large"));
        }
        let mut kept: Self =
            serde_json::from_slice(&files.open(NAME, fs::read(path)?).map_err(io::Error::other)?)?;
        kept.all.check(unix_ms);
        kept.pipelines.values_mut().for_each(|series| series.check(unix_ms));
        kept.forget_old(unix_ms);
        while kept.pipelines.len() > PIPELINES {
            kept.pipelines.pop_last();
        }
        Ok(kept)
    }
}

/// What a pipeline did since the sample before. Who keeps its jobs has counted; others go by what its
/// coordinator tells, which falls when jobs are forgotten.
fn difference(
    cluster: &ClusterView,
    view: &PipelineView,
    seen: Tally,
    (seen_before, counts_before): &(Tally, Option<Counts>),
) -> Option<Tally> {
    if view.partitions.iter().all(|partition| partition.replicas.contains(&cluster.node)) {
        return Some(seen.since(seen_before));
    }
    let (now, before) = (view.counts?, (*counts_before)?);
    let all = |it: &Counts| it.queued + it.running + it.succeeded + it.dead + it.cancelled;
    Some(Tally {
        accepted: all(&now).saturating_sub(all(&before)),
        succeeded: now.succeeded.saturating_sub(before.succeeded),
        dead: now.dead.saturating_sub(before.dead),
        cancelled: now.cancelled.saturating_sub(before.cancelled),
        ..Tally::default()
    })
}

/// The history that a node keeps; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct History(Arc<Mutex<Kept>>);

impl History {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The steps of a pipeline, or of all together, oldest first. Steps of which nothing is known are
    /// left out.
    pub(crate) fn steps(&self, pipeline: Option<&Name>, range: Range) -> Vec<Step> {
        let kept = self.kept();
        let series = match pipeline {
            Some(name) => kept.pipelines.get(name.as_str()),
            None => Some(&kept.all),
        };
        let ring = series.map(|series| match range {
            Range::Hour => &series.hour,
            Range::Day => &series.day,
        });
        ring.map(|ring| ring.steps.iter().copied().collect()).unwrap_or_default()
    }

    /// Takes figures in again and again, and writes them down, until it is cancelled.
    pub(crate) async fn run(
        self,
        handle: NodeHandle,
        path: PathBuf,
        files: Files,
        cancel: CancellationToken,
    ) {
        match Kept::read(&path, &files, clock::unix_ms()) {
            Ok(kept) => *self.kept() = kept,
            Err(error) => {
                warn!(path = %path.display(), %error, "cannot read the history of figures: beginning anew");
            }
        }
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut unsaved = 0;
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                _ = every.tick() => {}
            }
            let Ok(Response::Cluster(cluster)) = handle.request(Request::Cluster).await else {
                continue;
            };
            let Ok(figures) = handle.figures().await else { continue };
            self.kept().add(clock::unix_ms(), &cluster, &figures);
            unsaved += 1;
            if unsaved >= SAVE_AFTER {
                unsaved = 0;
                self.clone().save(path.clone(), files.clone()).await;
            }
        }
        self.save(path, files).await;
    }

    async fn save(self, path: PathBuf, files: Files) {
        let write = move || {
            let text = files.seal(NAME, serde_json::to_vec(&*self.kept())?);
            let fresh = path.with_extension("new");
            // Whole or not at all; a power cut may cost it, since it is not worth a sync.
            fs::write(&fresh, text).and_then(|()| fs::rename(&fresh, &path))
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            debug!(%error, "cannot write the history of figures");
        }
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::{figures::GroupFigures, id::NodeId, view::JobState};

    use super::*;
    use crate::http::fake;

    const START_MS: u64 = 1_700_000_100_000;

    fn figures(seen: Tally) -> Figures {
        let group = GroupFigures {
            pipeline: fake::name("p"),
            coordinates: false,
            led: Tally::default(),
            seen,
            queues: vec![],
            delayed: 0,
            replicas_in_step: 0,
            replicas_syncing: 0,
            replicas_lagging: 0,
        };
        Figures { groups: vec![group], ..Figures::default() }
    }

    fn cluster(counts: Option<Counts>, keeps: bool) -> ClusterView {
        let mut cluster = fake::cluster();
        cluster.pipelines[0].counts = counts;
        if !keeps {
            cluster.pipelines[0].partitions[0].replicas = vec![NodeId::from_bytes([9; 16])];
        }
        cluster
    }

    fn tally(succeeded: u64, took_ms: u64) -> Tally {
        let mut tally = Tally { accepted: succeeded, ..Tally::default() };
        (0..succeeded).for_each(|_| tally.ended(JobState::Succeeded, took_ms));
        tally
    }

    #[test]
    fn steps_hold_what_came_between_two_samples() {
        let mut kept = Kept::default();
        let counts = |queued| Some(Counts { queued, running: 1, ..Counts::default() });
        // What there was at the start did not happen just now.
        kept.add(START_MS, &cluster(counts(5), true), &figures(tally(100, 10)));
        kept.add(START_MS + 10_000, &cluster(counts(9), true), &figures(tally(103, 10)));
        kept.add(START_MS + 20_000, &cluster(counts(2), true), &figures(tally(110, 10)));
        let history = History(Arc::new(Mutex::new(kept)));
        let name = fake::name("p");
        let hour = history.steps(Some(&name), Range::Hour);
        let rows: Vec<_> = hour.iter().map(|it| (it.succeeded, it.queued, it.p50_ms)).collect();
        assert_eq!(rows, [(0, Some(5), None), (3, Some(9), Some(16)), (7, Some(2), Some(16))]);
        let day = history.steps(Some(&name), Range::Day);
        assert_eq!(day.len(), 1);
        assert_eq!((day[0].succeeded, day[0].accepted, day[0].queued), (10, 10, Some(9)));
        assert_eq!(history.steps(None, Range::Day), day);
        assert_eq!(history.steps(Some(&fake::name("q")), Range::Day), []);
    }

    #[test]
    fn a_pipeline_that_comes_later_is_counted_from_nothing() {
        let mut kept = Kept::default();
        let mut nothing = fake::cluster();
        nothing.pipelines.clear();
        kept.add(START_MS, &nothing, &Figures::default());
        kept.add(START_MS + 10_000, &cluster(None, true), &figures(tally(4, 10)));
        assert_eq!(kept.pipelines["p"].hour.steps[0].succeeded, 4);
    }

    #[test]
    fn who_keeps_no_jobs_goes_by_the_coordinators_counts() {
        let mut kept = Kept::default();
        let counts = |succeeded, queued| Some(Counts { succeeded, queued, ..Counts::default() });
        kept.add(START_MS, &cluster(counts(100, 0), false), &Figures::default());
        kept.add(START_MS + 10_000, &cluster(counts(104, 2), false), &Figures::default());
        // Some were forgotten; then nobody counts for a while.
        kept.add(START_MS + 20_000, &cluster(counts(50, 0), false), &Figures::default());
        kept.add(START_MS + 30_000, &cluster(None, false), &Figures::default());
        let steps = &kept.pipelines["p"].hour.steps;
        let rows: Vec<_> = steps.iter().map(|it| (it.accepted, it.succeeded)).collect();
        assert_eq!(rows, [(0, 0), (6, 4), (0, 0)]);
    }

    #[test]
    fn no_more_is_kept_than_an_hour_and_a_day() {
        let mut kept = Kept::default();
        for at in 0..20_000 {
            let view = cluster(Some(Counts::default()), true);
            let seen = Tally { accepted: at, succeeded: at, ..Tally::default() };
            kept.add(START_MS + at * 10_000, &view, &figures(seen));
        }
        let series = &kept.pipelines["p"];
        assert_eq!((series.hour.steps.len(), series.day.steps.len()), (360, 288));
        assert!(series.day.steps.iter().skip(1).take(286).all(|step| step.succeeded == 30));
        // A clock that was set back does not mix up the order.
        kept.add(START_MS, &cluster(Some(Counts::default()), true), &figures(tally(0, 1)));
        assert_eq!(kept.pipelines["p"].hour.steps.len(), 1);
        // What is gone for a day is forgotten.
        let day = Duration::from_secs(25 * 3600).as_millis() as u64;
        let mut nothing = fake::cluster();
        nothing.pipelines.clear();
        kept.add(START_MS + day, &nothing, &Figures::default());
        assert!(kept.pipelines.is_empty());
    }

    #[test]
    fn no_more_pipelines_are_kept_than_the_bound() {
        let mut kept = Kept::default();
        let mut view = cluster(Some(Counts { queued: 1, ..Counts::default() }), true);
        let one = view.pipelines[0].clone();
        view.pipelines = (0..100)
            .map(|at| {
                let mut other = one.clone();
                other.definition.name = fake::name(&format!("p{at}"));
                other
            })
            .collect();
        kept.add(START_MS, &view, &Figures::default());
        assert_eq!(kept.pipelines.len(), PIPELINES);
        assert_eq!(kept.all.hour.steps[0].queued, Some(100));
    }

    #[tokio::test]
    async fn the_file_brings_it_back_and_a_damaged_one_does_no_harm() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history.json");
        let now = clock::unix_ms();
        let mut kept = Kept::default();
        for at in 0..3 {
            let view = cluster(Some(Counts { queued: at, ..Counts::default() }), true);
            kept.add(now - 30_000 + at * 10_000, &view, &figures(tally(at * 2, 3)));
        }
        let history = History(Arc::new(Mutex::new(kept)));
        let before = history.steps(None, Range::Hour);
        history.clone().save(path.clone(), Files::default()).await;
        let again = History(Arc::new(Mutex::new(
            Kept::read(&path, &Files::default(), now).expect("readable"),
        )));
        assert_eq!(again.steps(None, Range::Hour), before);
        assert_eq!(again.steps(Some(&fake::name("p")), Range::Hour).len(), 3);
        // What lies in the future is not believed.
        let past = Kept::read(&path, &Files::default(), now - 86_400_000).expect("readable");
        assert!(past.all.hour.steps.is_empty() && past.pipelines.is_empty());
        for damaged in ["", "{", "[]", r#"{"all": 1}"#, r#"{"all":{"hour":[[1]],"day":[]}}"#] {
            fs::write(&path, damaged).expect("written");
            assert!(Kept::read(&path, &Files::default(), now).is_err(), "{damaged}");
        }
    }
}
