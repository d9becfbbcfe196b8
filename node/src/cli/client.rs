//! Talks to a node over HTTP: builds requests, tells apart how they can fail.

use std::{error::Error, fmt, str::FromStr, time::Duration};

use carbonmesh_protocol::name::{Name, NameError, Namespace};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use super::{failure::Failure, reach::ReachArgs};
use crate::outbound;

pub(super) use crate::http::Problem;

/// How long to try to connect: a node on the same network answers at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long an answer may take, beside the time that the request asks the node to wait: longer than
/// a node tries to do what it was asked.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a node serves HTTP.
#[derive(Clone, Debug)]
pub(super) struct BaseUrl(Url);

impl FromStr for BaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| format!("{why}: give it as http://HOST:PORT or https://HOST:PORT");
        match text.parse::<Url>() {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(Self(url)),
            Ok(_) => Err(wrong("no http URL")),
            Err(error) => Err(wrong(&error.to_string())),
        }
    }
}

/// A pipeline or a phase as it was typed: without a namespace it is in the one that the
/// [client](Client::full) goes by.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    name: Name,
    has_namespace: bool,
}

impl FromStr for Typed {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Ok(Self { name: text.parse()?, has_namespace: text.contains('/') })
    }
}

impl fmt::Display for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// A client of one node.
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
    /// Where names without a namespace are; none was said.
    namespace: Option<Namespace>,
}

/// A document as it came, and what it says.
pub(super) struct Answer<T> {
    /// The JSON.
    pub(super) text: String,
    /// What it says.
    pub(super) document: T,
}

impl Client {
    /// One that shows nobody who it is.
    #[cfg(test)]
    pub(super) fn new(base: BaseUrl) -> Result<Self, Failure> {
        Self::reaching(base, &ReachArgs::default())
    }

    pub(super) fn reaching(base: BaseUrl, reach: &ReachArgs) -> Result<Self, Failure> {
        let base = base.0;
        // No proxy: a node is a neighbour, and its interface is for its neighbours alone.
        let http = outbound::client().no_proxy().connect_timeout(CONNECT_TIMEOUT);
        // A token is for this node, wherever it might send us.
        let http = http.redirect(reqwest::redirect::Policy::none());
        match reach.apply(http, &base)?.build() {
            Ok(http) => Ok(Self { http, base, namespace: None }),
            Err(error) => Err(Failure::Usage(innermost(&error))),
        }
    }

    /// The same, for names in a namespace.
    pub(super) fn within(self, namespace: Option<Namespace>) -> Self {
        Self { namespace, ..self }
    }

    /// The namespace that was asked for.
    pub(super) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    /// What lists are cut down to.
    pub(super) fn of_namespace(&self) -> Vec<(&'static str, &str)> {
        self.namespace.iter().map(|namespace| ("namespace", namespace.as_str())).collect()
    }

    /// The whole name of what was typed.
    pub(super) fn full(&self, typed: &Typed) -> Name {
        match (&self.namespace, typed.has_namespace) {
            (Some(namespace), false) => typed.name.within(namespace),
            (None, _) | (_, true) => typed.name.clone(),
        }
    }

    /// The whole name of what a file calls so: one with a namespace has it already.
    pub(super) fn full_plain(&self, name: &Name) -> Name {
        match &self.namespace {
            Some(namespace) if name.is_plain() => name.within(namespace),
            Some(_) | None => name.clone(),
        }
    }

    /// The node's address.
    pub(super) fn url(&self) -> &Url {
        &self.base
    }

    /// A request to `/v1` and the rest of the path.
    pub(super) fn request(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    /// Reads a document.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Answer<T>, Failure> {
        self.answer(self.request(Method::GET, path, query), Duration::ZERO).await
    }

    /// Sends a request that the node may take `wait` longer to answer, and reads the document.
    pub(super) async fn answer<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        wait: Duration,
    ) -> Result<Answer<T>, Failure> {
        let text = self.text(request, wait).await?;
        match serde_json::from_str(&text) {
            Ok(document) => Ok(Answer { text, document }),
            Err(error) => Err(self.unreadable(error.to_string())),
        }
    }

    /// Sends a request and reads the answer's body, whatever it is.
    pub(super) async fn text(
        &self,
        request: RequestBuilder,
        wait: Duration,
    ) -> Result<String, Failure> {
        let waited = ANSWER_TIMEOUT + wait;
        let response = self.send(request.timeout(waited)).await?;
        response.text().await.map_err(|error| self.failure(&error))
    }

    /// Sends a request; whatever is no success is a failure.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, Failure> {
        let response = request.send().await.map_err(|error| self.failure(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = response.text().await.map_err(|error| self.failure(&error))?;
        match serde_json::from_str::<Problem>(&body) {
            Ok(problem) => Err(Failure::Refused(Box::new(problem))),
            Err(_) => Err(self.unreadable(format!("it says {status} without a problem document"))),
        }
    }

    /// What went wrong between here and the node.
    pub(super) fn failure(&self, error: &reqwest::Error) -> Failure {
        let url = self.base.clone();
        match error {
            _ if error.is_connect() => match untrusted(error) {
                Some(reason) => Failure::Untrusted { url, reason },
                None => Failure::NoNode(url),
            },
            _ if error.is_timeout() => Failure::NoAnswer { url, waited: ANSWER_TIMEOUT },
            _ => Failure::Lost { url, reason: innermost(error) },
        }
    }

    /// The answer makes no sense.
    pub(super) fn unreadable(&self, reason: String) -> Failure {
        Failure::Unreadable { url: self.base.clone(), reason }
    }
}

/// Why TLS was not agreed on, if that is what failed.
fn untrusted(error: &reqwest::Error) -> Option<String> {
    let mut at: &dyn Error = error;
    while let Some(source) = at.source() {
        at = source;
        if let Some(found) = tls_error(at) {
            return Some(found.to_string());
        }
    }
    None
}

/// The error of TLS itself; what wraps it may be wrapped in turn.
fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    let inner = || error.downcast_ref::<std::io::Error>()?.get_ref();
    error.downcast_ref().or_else(|| tls_error(inner()?))
}

/// The reason below all others: the upper ones only repeat what was tried.
fn innermost(error: &dyn Error) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}
