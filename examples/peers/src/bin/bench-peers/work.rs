//! The work: jobs that pass through stages, one queue for each, and what is measured of them.
//!
//! Producers and workers run in this process, each with a connection of its own. A job counts as
//! done when the last stage's server has taken its end; jobs that come twice count once.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use carbonmesh_peers::figures::{Figures, jobs_for, quantile};
use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::JoinSet,
    time::timeout,
};

use crate::peer::{Effort, Error};

/// How many jobs are put, taken and handed over together. Of what was tried (200 to 1,000, on two and
/// on four connections) this served peers that sync best; the others' figures differed by noise.
pub(crate) const BATCH: usize = 1000;

/// How many connections put jobs, and how many work on each stage: while one waits for a sync, another
/// fills the next.
const CONNECTIONS: usize = 4;

/// How long nothing may get done.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a stage takes jobs from, and where it hands them over to.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// The queue's name.
    pub(crate) queue: String,
    /// The next one's, unless this is the last.
    pub(crate) next: Option<String>,
}

/// A server of queues.
pub(crate) trait Server: Sync {
    /// A connection that puts jobs.
    type Producer: Producer + 'static;
    /// A connection that works on a stage.
    type Worker: Worker + 'static;

    /// Makes a queue.
    fn create(&self, queue: &str) -> impl Future<Output = Result<(), Error>> + Send;

    /// Connects a producer.
    fn producer(&self, queue: &str) -> impl Future<Output = Result<Self::Producer, Error>> + Send;

    /// Connects a worker that takes up to `batch` jobs at a time.
    fn worker(
        &self,
        stage: &Stage,
        batch: usize,
    ) -> impl Future<Output = Result<Self::Worker, Error>> + Send;
}

/// A connection that puts jobs.
pub(crate) trait Producer: Send {
    /// Puts jobs, all sent before the first answer is awaited; returns when all are acknowledged.
    fn put(&mut self, jobs: &[String]) -> impl Future<Output = Result<(), Error>> + Send;
}

/// A connection that works on a stage.
pub(crate) trait Worker: Send {
    /// Waits for jobs, does nothing with them, and hands them over or ends them; which they were.
    fn step(&mut self) -> impl Future<Output = Result<Vec<usize>, Error>> + Send;
}

/// All figures of a server that has just been started.
///
/// # Errors
/// It does not do what it should, or not in time.
pub(crate) async fn measure<S: Server>(server: &S, effort: Effort) -> Result<Figures, Error> {
    Ok(Figures {
        w1_jobs_per_s: throughput(server, 1, effort.seconds).await?,
        w3_jobs_per_s: throughput(server, 3, effort.seconds).await?,
        ..latency(server, effort.singles).await?
    })
}

/// Jobs a second, from the first byte sent until the last job is done. Two shorter runs come first:
/// they warm the server, and tell how many jobs take about `seconds`.
async fn throughput<S: Server>(server: &S, stages: usize, seconds: f64) -> Result<f64, Error> {
    let mut rate = 0.0;
    for (at, part) in [0.0, 0.2, 1.0].into_iter().enumerate() {
        let jobs = jobs_for(rate, part * seconds);
        let stages = create(server, &format!("w{stages}-{at}"), stages).await?;
        let mut work = Work::start(server, &stages, BATCH).await?;
        let mut producers = Vec::new();
        for _ in 0..CONNECTIONS {
            producers.push(server.producer(&stages[0].queue).await?);
        }
        let began = Instant::now();
        let share = jobs.div_ceil(CONNECTIONS);
        for (at, mut producer) in producers.into_iter().enumerate() {
            let numbers = share * at..(share * (at + 1)).min(jobs);
            work.spawn(async move {
                let jobs: Vec<String> = numbers.map(job).collect();
                for batch in jobs.chunks(BATCH) {
                    producer.put(batch).await?;
                }
                Ok(())
            });
        }
        work.await_done(jobs).await?;
        rate = jobs as f64 / began.elapsed().as_secs_f64();
    }
    Ok(rate)
}

/// The latency of jobs that pass three stages one at a time. A tenth more come first, so that nothing
/// is done for the first time while it is measured.
async fn latency<S: Server>(server: &S, singles: usize) -> Result<Figures, Error> {
    let stages = create(server, "single", 3).await?;
    let mut work = Work::start(server, &stages, 1).await?;
    let mut producer = server.producer(&stages[0].queue).await?;
    let mut times = Vec::with_capacity(singles);
    for at in 0..singles + singles / 10 {
        let began = Instant::now();
        producer.put(&[job(at)]).await?;
        work.await_done(at + 1).await?;
        if at >= singles / 10 {
            times.push(began.elapsed().as_secs_f64() * 1000.0);
        }
    }
    Ok(Figures {
        single_w3_p50_ms: quantile(times.clone(), 0.5),
        single_w3_p99_ms: quantile(times, 0.99),
        ..Figures::default()
    })
}

async fn create<S: Server>(server: &S, run: &str, count: usize) -> Result<Vec<Stage>, Error> {
    let name = |at: usize| format!("{run}-{at}");
    let mut stages = Vec::new();
    for at in 0..count {
        server.create(&name(at)).await?;
        stages.push(Stage { queue: name(at), next: (at + 1 < count).then(|| name(at + 1)) });
    }
    Ok(stages)
}

/// Workers that run, and what they have done.
struct Work {
    tasks: JoinSet<()>,
    done: Receiver<Result<Vec<usize>, Error>>,
    report: Sender<Result<Vec<usize>, Error>>,
    seen: Vec<bool>,
    count: usize,
}

impl Work {
    async fn start<S: Server>(server: &S, stages: &[Stage], batch: usize) -> Result<Self, Error> {
        let (report, done) = channel(1024);
        let mut work = Self { tasks: JoinSet::new(), done, report, seen: Vec::new(), count: 0 };
        // Where one job is alone, one worker is enough for each stage.
        let connections = CONNECTIONS.min(batch);
        for stage in stages {
            for _ in 0..connections {
                let mut worker = server.worker(stage, batch).await?;
                let last = stage.next.is_none();
                let report = work.report.clone();
                work.spawn(async move {
                    loop {
                        let jobs = worker.step().await?;
                        if last && report.send(Ok(jobs)).await.is_err() {
                            return Ok(());
                        }
                    }
                });
            }
        }
        Ok(work)
    }

    /// Runs a task; an error of it is one of the whole work.
    fn spawn(&mut self, task: impl Future<Output = Result<(), Error>> + Send + 'static) {
        let report = self.report.clone();
        self.tasks.spawn(async move {
            if let Err(error) = task.await {
                // Nobody listens any more once all is done.
                let _ = report.send(Err(error)).await;
            }
        });
    }

    /// Waits until so many different jobs are done.
    async fn await_done(&mut self, jobs: usize) -> Result<(), Error> {
        self.seen.resize(jobs, false);
        while self.count < jobs {
            let next = timeout(PATIENCE, self.done.recv()).await;
            let missing = jobs - self.count;
            let next = next.map_err(|_| format!("{missing} jobs of {jobs} do not get done"))?;
            for at in next.ok_or("all workers are gone")?? {
                let seen = self.seen.get_mut(at).ok_or("a job that was never put")?;
                self.count += usize::from(!*seen);
                *seen = true;
            }
        }
        Ok(())
    }
}

/// A job's document.
fn job(at: usize) -> String {
    format!("{{\"at\":{at}}}")
}

/// Which job a document is.
///
/// # Errors
/// It is none that was put.
pub(crate) fn number(job: &[u8]) -> Result<usize, Error> {
    let text = std::str::from_utf8(job)?;
    let number = text.strip_prefix("{\"at\":").and_then(|rest| rest.strip_suffix('}'));
    Ok(number.ok_or_else(|| format!("no job: {text}"))?.parse()?)
}
