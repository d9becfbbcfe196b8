//! Sends requests to one of several nodes, and again where that does no harm.
//!
//! ```text
//! Call ─► the URL that answered last ─► answer
//!              │ no answer, or a refusal that may pass
//!              └─► the next URL; once all were tried, wait: Retry-After, or a backoff with jitter
//! ```
//! Invariant: what may not be done twice is sent again only if it was certainly not done.

use std::{
    error::Error as StdError,
    sync::{
        Once,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{Error, Problem};

/// How long to try to connect: a node on the same network answers at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The first wait and the longest, where nobody says how long.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// The header of a single job's key.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The header of W3C Trace Context.
const TRACEPARENT: &str = "traceparent";

/// Whether a request may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Doing it twice is as doing it once.
    Always,
    /// Only if it was certainly not done.
    IfRefused,
}

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Call<'a> {
    pub(crate) method: Method,
    /// What follows `/v1`.
    pub(crate) path: Vec<&'a str>,
    pub(crate) query: Vec<(&'a str, String)>,
    pub(crate) key: Option<String>,
    pub(crate) traceparent: Option<String>,
    /// Its media type, and it.
    pub(crate) body: Option<(&'static str, Bytes)>,
    /// How long the node is asked to wait.
    pub(crate) wait: Duration,
    pub(crate) again: Again,
}

impl<'a> Call<'a> {
    pub(crate) fn new(method: Method, path: impl Into<Vec<&'a str>>, again: Again) -> Self {
        let (query, wait) = (Vec::new(), Duration::ZERO);
        let (key, traceparent, body) = (None, None, None);
        Self { method, path: path.into(), query, key, traceparent, body, wait, again }
    }

    pub(crate) fn get(path: impl Into<Vec<&'a str>>) -> Self {
        Self::new(Method::GET, path, Again::Always)
    }

    pub(crate) fn json(mut self, body: Bytes) -> Self {
        self.body = Some(("application/json", body));
        self
    }

    pub(crate) fn query(mut self, key: &'a str, value: impl Into<String>) -> Self {
        self.query.push((key, value.into()));
        self
    }
}

/// Why one try failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    /// Whether it was certainly not done.
    undone: bool,
    /// Whether a later try may do better.
    may_pass: bool,
    /// Not before this is over.
    after: Option<Duration>,
}

impl Failed {
    fn for_good(error: Error) -> Self {
        Self { error, undone: true, may_pass: false, after: None }
    }

    /// It may have been done.
    pub(crate) fn unknown(url: &Url, reason: String) -> Self {
        let error = Error::Unknown { url: url.to_string(), reason };
        Self { error, undone: false, may_pass: true, after: None }
    }

    fn of(url: &Url, error: &reqwest::Error) -> Self {
        let reason = innermost(error);
        if error.is_builder() {
            return Self::for_good(Error::setting("request", reason));
        }
        if error.is_connect() {
            let error = Error::NoNode(format!("{url}: {reason}"));
            return Self { error, undone: true, may_pass: true, after: None };
        }
        let reason = if error.is_timeout() { "time was over".to_owned() } else { reason };
        Self::unknown(url, reason)
    }

    pub(crate) fn refused(problem: Problem, after: Option<Duration>) -> Self {
        // 504 is a node's word that it does not know.
        let (undone, may_pass) = (problem.status != 504, problem.status == 504);
        let may_pass = may_pass || problem.may_pass();
        let after = after.or(problem.retry_after_s.map(Duration::from_secs));
        Self { error: Error::Refused(Box::new(problem)), undone, may_pass, after }
    }
}

/// Several tries of one thing, between which it waits.
#[derive(Debug)]
pub(crate) struct Tries {
    until: Instant,
    /// How many nodes were tried since it waited last.
    tried: usize,
    rounds: u32,
}

impl Tries {
    /// Waits until it is time to try again, at another node.
    ///
    /// # Errors
    /// There is no sense in that, or no time for it: what went wrong.
    pub(crate) async fn again(
        &mut self,
        sender: &Sender,
        at: usize,
        failed: Failed,
        again: Again,
    ) -> Result<(), Error> {
        let allowed = failed.undone || again == Again::Always;
        if !failed.may_pass || !allowed {
            return Err(failed.error);
        }
        sender.turn_from(at);
        self.tried += 1;
        // Another node may do at once what this one cannot; one that says that there is too much to do
        // speaks for all of them.
        let all_busy = failed.error.problem().is_some_and(|problem| problem.status == 429);
        if self.tried < sender.urls.len() && !all_busy {
            return if Instant::now() < self.until { Ok(()) } else { Err(failed.error) };
        }
        let wait = backoff(self.rounds).max(failed.after.unwrap_or_default());
        if Instant::now() + wait > self.until {
            return Err(failed.error);
        }
        (self.tried, self.rounds) = (0, self.rounds + 1);
        sleep(wait).await;
        Ok(())
    }
}

/// Twice as long each time, less a random part, so that clients do not come back all at once.
fn backoff(rounds: u32) -> Duration {
    let longest = FIRST_BACKOFF.saturating_mul(1 << rounds.min(10)).min(MAX_BACKOFF);
    longest.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Sender {
    http: reqwest::Client,
    urls: Vec<Url>,
    /// Which one is asked first.
    first: AtomicUsize,
    patience: Duration,
    answer_timeout: Duration,
}

impl Sender {
    pub(crate) fn new(
        urls: &[String],
        token: Option<&str>,
        patience: Duration,
        answer_timeout: Duration,
    ) -> Result<Self, Error> {
        let urls = urls.iter().map(|url| base(url)).collect::<Result<_, _>>()?;
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|error| Error::setting("token", error))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        choose_crypto();
        // No proxy: nodes are neighbours.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(CONNECT_TIMEOUT);
        let http = http.default_headers(headers).build();
        let http = http.map_err(|error| Error::setting("client", innermost(&error)))?;
        Ok(Self { http, urls, first: AtomicUsize::new(0), patience, answer_timeout })
    }

    /// A number of tries, from now on.
    pub(crate) fn tries(&self) -> Tries {
        let now = Instant::now();
        // Far enough for those who never give up.
        let until = now.checked_add(self.patience);
        let until = until.unwrap_or_else(|| now + Duration::from_secs(1 << 30));
        Tries { until, tried: 0, rounds: 0 }
    }

    /// Which node is asked now.
    pub(crate) fn at(&self) -> usize {
        self.first.load(Ordering::Relaxed) % self.urls.len()
    }

    pub(crate) fn url(&self, at: usize) -> &Url {
        &self.urls[at]
    }

    /// The next node is asked from now on, unless that was said already.
    fn turn_from(&self, at: usize) {
        let next = (at + 1) % self.urls.len();
        // Whoever came first has turned it.
        let _ = self.first.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Sends a request, and reads the document that answers it.
    pub(crate) async fn document<T: DeserializeOwned>(&self, call: &Call<'_>) -> Result<T, Error> {
        let (at, text) = self.text(call).await?;
        serde_json::from_str(&text).map_err(|error| Error::Unreadable {
            url: self.url(at).to_string(),
            reason: error.to_string(),
        })
    }

    /// Sends a request whose answer has no document.
    pub(crate) async fn done(&self, call: &Call<'_>) -> Result<(), Error> {
        self.text(call).await.map(drop)
    }

    async fn text(&self, call: &Call<'_>) -> Result<(usize, String), Error> {
        let mut tries = self.tries();
        loop {
            let at = self.at();
            let answer = match self.send(at, call).await {
                Ok(response) => {
                    response.text().await.map_err(|error| Failed::of(self.url(at), &error))
                }
                Err(failed) => Err(failed),
            };
            match answer {
                Ok(text) => return Ok((at, text)),
                Err(failed) => tries.again(self, at, failed, call.again).await?,
            }
        }
    }

    /// Tries once; whatever is no success is a failure.
    pub(crate) async fn send(&self, at: usize, call: &Call<'_>) -> Result<Response, Failed> {
        let base = self.url(at);
        let mut url = base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(&call.path);
        }
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&call.query);
        }
        let timeout = self.answer_timeout.saturating_add(call.wait);
        let mut request = self.http.request(call.method.clone(), url).timeout(timeout);
        if let Some(key) = &call.key {
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        if let Some(parent) = &call.traceparent {
            request = request.header(TRACEPARENT, parent);
        }
        if let Some((media_type, body)) = &call.body {
            request = request.header(CONTENT_TYPE, *media_type).body(body.clone());
        }
        let response = request.send().await.map_err(|error| Failed::of(base, &error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after = retry_after(response.headers());
        let body = response.text().await.map_err(|error| Failed::of(base, &error))?;
        match serde_json::from_str::<Problem>(&body) {
            Ok(problem) => Err(Failed::refused(problem, after)),
            Err(_) => Err(strange(base, status, after)),
        }
    }
}

/// No node speaks like this: somebody between here and there does.
fn strange(url: &Url, status: StatusCode, after: Option<Duration>) -> Failed {
    let reason = format!("it says {status} without a problem document");
    match status {
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Failed { after, ..Failed::unknown(url, reason) },
        _ => Failed::for_good(Error::Unreadable { url: url.to_string(), reason }),
    }
}

/// The header's number of seconds; a date, which nodes do not send, is passed over.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

fn base(text: &str) -> Result<Url, Error> {
    let wrong = |why: &str| {
        Err(Error::setting("url", format!("`{text}`: {why}: give it as http://HOST:PORT")))
    };
    match text.parse::<Url>() {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(url),
        Ok(_) => wrong("no http URL"),
        Err(error) => wrong(&error.to_string()),
    }
}

/// The client needs some cryptography for `https`, and takes what the program has chosen; ring where it
/// has not.
fn choose_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            // An error says that the program chose one meanwhile.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
    });
}

/// The reason below all others: the upper ones only repeat what was tried.
fn innermost(error: &dyn StdError) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_are_none_are_named() {
        for bad in ["localhost:7400", "ftp://a", "", "http://"] {
            let error = base(bad).unwrap_err().to_string();
            assert!(error.contains("http://HOST:PORT"), "{error}");
        }
        assert!(base("http://[::1]:7400").is_ok() && base("https://mesh.example/api").is_ok());
    }

    #[test]
    fn waits_grow_and_differ() {
        let first = backoff(0);
        assert!(first >= FIRST_BACKOFF / 2 && first <= FIRST_BACKOFF);
        let last = backoff(u32::MAX);
        assert!(last >= MAX_BACKOFF / 2 && last <= MAX_BACKOFF);
    }
}
