//! Looks after jobs: shows them, waits for them, lists them, changes them.

use std::{future::IntoFuture, pin::Pin, time::Duration};

use bytes::Bytes;
use futures::{Stream, TryStreamExt, stream};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    Client, Error, Job, JobState, JobSummary, Page,
    enqueue::milliseconds,
    send::{Again, Call},
};

/// How long one request asks a node to wait for a job's end: less than whoever stands between takes for
/// silence.
const WAIT_AT_ONCE: Duration = Duration::from_secs(20);

/// How many jobs were changed, and where to go on.
#[derive(Deserialize)]
struct Changed {
    changed: u64,
    #[serde(default)]
    next: Option<String>,
}

impl Client {
    /// A job in full.
    ///
    /// # Errors
    /// There is no such job, or nobody can say.
    pub async fn job(&self, id: &str) -> Result<Job, Error> {
        self.send.document(&Call::get(["jobs", id])).await
    }

    /// Waits until a job has ended, well or not: its `state` says which.
    ///
    /// # Errors
    /// It has not ended in time ([`Error::StillRuns`]), there is no such job, or nobody can say.
    pub async fn wait(&self, id: &str, timeout: Duration) -> Result<Job, Error> {
        let began = Instant::now();
        loop {
            let left = timeout.saturating_sub(began.elapsed()).min(WAIT_AT_ONCE);
            let mut call = Call::get(["jobs", id]);
            if !left.is_zero() {
                call = call.query("wait", milliseconds(left));
            }
            call.wait = left;
            let job: Job = self.send.document(&call).await?;
            if job.state.is_terminal() {
                return Ok(job);
            }
            if began.elapsed() >= timeout {
                let (job, state) = (job.id, job.state);
                return Err(Error::StillRuns { job, state, waited: timeout });
            }
        }
    }

    /// The jobs of a pipeline: one page by `.await`, or all of them by [`JobList::all`].
    pub fn jobs(&self, pipeline: &str) -> JobList {
        let (client, pipeline) = (self.clone(), pipeline.to_owned());
        JobList { client, pipeline, state: None, of: None, after: None, limit: None }
    }

    /// Cancels a job that has not ended.
    ///
    /// # Errors
    /// It has ended, there is no such job, or nobody can do it.
    pub async fn cancel(&self, id: &str, reason: &str) -> Result<(), Error> {
        let call = change(["jobs", id, "cancel"], &json!({ "reason": reason }))?;
        self.send.done(&call).await
    }

    /// Tries a job again that was dead or cancelled; from its first phase, or where it failed.
    ///
    /// # Errors
    /// It is neither, there is no such job, or nobody can do it.
    pub async fn retry(&self, id: &str, from_start: bool) -> Result<(), Error> {
        let call = change(["jobs", id, "retry"], &json!({ "from_start": from_start }))?;
        self.send.done(&call).await
    }

    /// Forgets a job that has ended.
    ///
    /// # Errors
    /// It has not ended, there is no such job, or nobody can do it.
    pub async fn discard(&self, id: &str) -> Result<(), Error> {
        self.send.done(&Call::new(Method::DELETE, ["jobs", id], Again::IfRefused)).await
    }

    /// Gives a phase that waits for a signal its result.
    ///
    /// # Errors
    /// Nothing waits for it, there is no such job, or nobody can do it.
    pub async fn signal<T: Serialize + ?Sized>(
        &self,
        id: &str,
        signal: &str,
        data: &T,
    ) -> Result<(), Error> {
        let call = change(["jobs", id, "signals", signal], data)?;
        self.send.done(&call).await
    }

    /// Fails a phase that waits for a signal.
    ///
    /// # Errors
    /// Nothing waits for it, there is no such job, or nobody can do it.
    pub async fn fail_signal(&self, id: &str, signal: &str, why: &str) -> Result<(), Error> {
        let call = change(["jobs", id, "signals", signal], &json!({}))?;
        self.send.done(&call.query("fail", why)).await
    }

    /// Cancels all jobs of a pipeline in one state. Says how many.
    ///
    /// # Errors
    /// There is no such pipeline, or nobody can do it; some may be cancelled.
    pub async fn cancel_all(
        &self,
        pipeline: &str,
        state: JobState,
        reason: &str,
    ) -> Result<u64, Error> {
        self.change_all(pipeline, "cancel", state, &json!({ "reason": reason })).await
    }

    /// Tries all jobs of a pipeline in one state again. Says how many.
    ///
    /// # Errors
    /// There is no such pipeline, or nobody can do it; some may be tried again.
    pub async fn retry_all(&self, pipeline: &str, state: JobState) -> Result<u64, Error> {
        self.change_all(pipeline, "retry", state, &json!({})).await
    }

    /// Forgets all jobs of a pipeline in one state. Says how many.
    ///
    /// # Errors
    /// There is no such pipeline, or nobody can do it; some may be forgotten.
    pub async fn discard_all(&self, pipeline: &str, state: JobState) -> Result<u64, Error> {
        self.change_all(pipeline, "discard", state, &json!({})).await
    }

    async fn change_all(
        &self,
        pipeline: &str,
        verb: &str,
        state: JobState,
        body: &serde_json::Value,
    ) -> Result<u64, Error> {
        let (mut count, mut after) = (0, None);
        loop {
            let call = change(["pipelines", pipeline, verb], body)?.query("state", state.name());
            let call = match after {
                Some(after) => call.query("after", after),
                None => call,
            };
            let Changed { changed, next } = self.send.document(&call).await?;
            count += changed;
            match next {
                Some(next) => after = Some(next),
                None => return Ok(count),
            }
        }
    }
}

/// What changes jobs may not be done twice without need: the second time it would be refused.
fn change<'a, T: Serialize + ?Sized>(
    path: impl Into<Vec<&'a str>>,
    body: &T,
) -> Result<Call<'a>, Error> {
    let json = serde_json::to_vec(body).map_err(|error| Error::setting("body", error))?;
    Ok(Call::new(Method::POST, path, Again::IfRefused).json(Bytes::from(json)))
}

/// Which jobs of a pipeline are listed.
#[derive(Clone, Debug)]
#[must_use = "jobs are listed by `.await` or `all`"]
pub struct JobList {
    client: Client,
    pipeline: String,
    state: Option<JobState>,
    of: Option<String>,
    after: Option<String>,
    limit: Option<u32>,
}

impl JobList {
    /// Only those that stand there.
    pub fn state(mut self, state: JobState) -> Self {
        self.state = Some(state);
        self
    }

    /// Only those that are made of this job's items.
    pub fn of(mut self, job: &str) -> Self {
        self.of = Some(job.to_owned());
        self
    }

    /// Only those behind this: what [`Page::next`] said.
    pub fn after(mut self, cursor: &str) -> Self {
        self.after = Some(cursor.to_owned());
        self
    }

    /// How many a page has at most: 1 to 1000. Default 100.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// All of them, page after page, as they are read.
    pub fn all(self) -> impl Stream<Item = Result<JobSummary, Error>> {
        let pages = stream::try_unfold(Some(self), |list| async move {
            let Some(list) = list else { return Ok::<_, Error>(None) };
            let page = list.page().await?;
            let rest = page.next.map(|next| list.after(&next));
            Ok(Some((page.jobs, rest)))
        });
        pages.map_ok(|jobs| stream::iter(jobs.into_iter().map(Ok::<_, Error>))).try_flatten()
    }

    async fn page(&self) -> Result<Page, Error> {
        let mut call = Call::get(["pipelines", self.pipeline.as_str(), "jobs"]);
        let parameters = [
            ("state", self.state.map(|state| state.name().to_owned())),
            ("of", self.of.clone()),
            ("after", self.after.clone()),
            ("limit", self.limit.map(|limit| limit.to_string())),
        ];
        let given = parameters.into_iter().filter_map(|(name, value)| Some((name, value?)));
        call.query.extend(given);
        self.client.send.document(&call).await
    }
}

impl IntoFuture for JobList {
    type Output = Result<Page, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.page().await })
    }
}
