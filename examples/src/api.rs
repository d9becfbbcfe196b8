//! A client of a node's HTTP interface, as thin as can be: it shows what goes over the wire.

use std::time::Duration;

use serde_json::Value;

pub use carbonmesh::outbound::client as http_client;

/// What went wrong with a request.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A node's HTTP interface.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    http: reqwest::Client,
}

/// An answer: its status and its JSON.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The document; null if the body is empty.
    pub body: Value,
}

impl Api {
    /// The interface at `http://HOST:PORT`.
    ///
    /// # Errors
    /// The HTTP client cannot be made.
    pub fn new(base: &str) -> Result<Self, Error> {
        let http = http_client().timeout(Duration::from_secs(120)).build()?;
        Ok(Self { base: base.to_owned(), http })
    }

    /// GETs a path.
    ///
    /// # Errors
    /// Nobody answers, or not in JSON.
    pub async fn get(&self, path: &str) -> Result<Answer, Error> {
        read(self.http.get(format!("{}{path}", self.base)).send().await?).await
    }

    /// POSTs a document.
    ///
    /// # Errors
    /// Nobody answers, or not in JSON.
    pub async fn post(&self, path: &str, document: &Value) -> Result<Answer, Error> {
        read(self.http.post(format!("{}{path}", self.base)).json(document).send().await?).await
    }

    /// DELETEs what is at a path.
    ///
    /// # Errors
    /// Nobody answers, or not in JSON.
    pub async fn delete(&self, path: &str) -> Result<Answer, Error> {
        read(self.http.delete(format!("{}{path}", self.base)).send().await?).await
    }

    /// PUTs a pipeline's definition.
    ///
    /// # Errors
    /// Nobody answers, or the definition is refused.
    pub async fn apply(&self, definition: &Value) -> Result<Value, Error> {
        let name = definition["name"].as_str().unwrap_or_default();
        let url = format!("{}/v1/pipelines/{name}", self.base);
        read(self.http.put(url).json(definition).send().await?).await?.success()
    }

    /// POSTs one job.
    ///
    /// # Errors
    /// Nobody answers, or not in JSON.
    pub async fn enqueue(&self, pipeline: &str, job: &Value) -> Result<Answer, Error> {
        self.enqueue_with(pipeline, job, "").await
    }

    /// POSTs one job, with a query string such as `?wait=30s`.
    ///
    /// # Errors
    /// Nobody answers, or not in JSON.
    pub async fn enqueue_with(
        &self,
        pipeline: &str,
        job: &Value,
        query: &str,
    ) -> Result<Answer, Error> {
        let url = format!("{}/v1/pipelines/{pipeline}/jobs{query}", self.base);
        read(self.http.post(url).json(job).send().await?).await
    }

    /// POSTs many jobs; gives back one answer per job, in their order.
    ///
    /// # Errors
    /// Nobody answers, or the pipeline is refused.
    pub async fn enqueue_bulk(&self, pipeline: &str, jobs: &[Value]) -> Result<Vec<Value>, Error> {
        let lines: Vec<String> = jobs.iter().map(Value::to_string).collect();
        let url = format!("{}/v1/pipelines/{pipeline}/jobs", self.base);
        let request = self.http.post(url).header("content-type", "application/x-ndjson");
        let response = request.body(lines.join("\n")).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            return Err(text.into());
        }
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// All jobs of a pipeline in one state, page after page.
    ///
    /// # Errors
    /// Nobody answers.
    pub async fn jobs(&self, pipeline: &str, state: &str) -> Result<Vec<Value>, Error> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let path = format!("/v1/pipelines/{pipeline}/jobs?state={state}&limit=1000{after}");
            let mut page = self.get(&path).await?.success()?;
            all.append(page["jobs"].as_array_mut().ok_or("no jobs in the answer")?);
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Ok(all),
            }
        }
    }
}

impl Answer {
    /// The document of a request that was done.
    ///
    /// # Errors
    /// It was refused.
    pub fn success(self) -> Result<Value, Error> {
        if (200..300).contains(&self.status) {
            Ok(self.body)
        } else {
            Err(self.body.to_string().into())
        }
    }
}

async fn read(response: reqwest::Response) -> Result<Answer, Error> {
    let status = response.status().as_u16();
    let text = response.text().await?;
    let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text)? };
    Ok(Answer { status, body })
}
