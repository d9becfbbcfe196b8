//! What handlers take out of requests; whatever does not fit becomes a problem document.

use std::{fmt, str::FromStr, time::Duration};

use axum::{
    body::{Body, BodyDataStream},
    extract::{FromRequestParts, Path, Query},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE, request::Parts},
};
use bytes::{Bytes, BytesMut};
use carbonmesh_protocol::name::{Name, Namespace};
use futures::StreamExt;
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error as _};
use tokio::time::timeout;
use utoipa::IntoParams;

use super::{Api, Problem};
use crate::document::{format_duration, parse_duration};

/// How many times its limit a body may have to be read to its end, so that its sender, who may not
/// listen before it has sent all, gets to read the refusal.
const DRAIN: usize = 8;

/// How long the next piece of a body may take.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(60);

/// The one variable part of a path.
pub(super) struct PathPart<T>(pub(super) T);

impl<S, T> FromRequestParts<S> for PathPart<T>
where
    S: Send + Sync,
    T: FromStr<Err: fmt::Display> + Send,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| Problem::bad_request("bad-path", rejection.body_text()))?;
        text.parse()
            .map(Self)
            .map_err(|error: T::Err| Problem::bad_request("bad-path", error.to_string()))
    }
}

/// The query's parameters.
pub(super) struct Parameters<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query
            .map(|Query(parameters)| Self(parameters))
            .map_err(|rejection| Problem::bad_request("bad-query", rejection.body_text()))
    }
}

/// Which part of a list: all of it, unless asked otherwise.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// Only what stands behind this one: `next` of the page before.
    #[param(value_type = String, required = false)]
    after: Option<String>,
    /// How many at most, 1 to 1000; all of them unless given.
    #[param(value_type = u32, required = false, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Which part of a list of what lives in namespaces.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct NamespacePage {
    /// Only what stands behind this one: `next` of the page before.
    #[param(value_type = String, required = false)]
    after: Option<String>,
    /// How many at most, 1 to 1000; all of them unless given.
    #[param(value_type = u32, required = false, minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Only what lives in this namespace; of all that may be seen unless given.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, pattern = "^[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$")]
    namespace: Option<Namespace>,
}

impl NamespacePage {
    /// Whether it is asked for.
    pub(super) fn has(&self, name: &Name) -> bool {
        let namespace = self.namespace.as_ref();
        namespace.is_none_or(|namespace| namespace.as_str() == name.namespace())
    }

    /// Which part of what is asked for.
    pub(super) fn page(self) -> Page {
        Page { after: self.after, limit: self.limit }
    }
}

/// How much a page may hold.
const MAX_PAGE: u32 = 1000;

impl Page {
    /// The part of `all` that is meant, and where the next begins; `key` orders them.
    pub(super) fn of<'a, T>(
        &self,
        all: &'a [T],
        key: impl Fn(&T) -> String,
    ) -> Result<(Vec<&'a T>, Option<String>), Problem> {
        if let Some(limit) = self.limit.filter(|limit| !(1..=MAX_PAGE).contains(limit)) {
            let detail = format!("limit: {limit} is out of range: 1 to {MAX_PAGE} are allowed");
            return Err(Problem::bad_request("bad-query", detail));
        }
        let behind = |one: &&T| self.after.as_ref().is_none_or(|after| key(one) > *after);
        let mut all: Vec<&T> = all.iter().filter(behind).collect();
        all.sort_by_cached_key(|one| key(one));
        let limit = self.limit.map_or(usize::MAX, |limit| limit as usize);
        let more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| more).map(|last| key(last));
        Ok((all, next))
    }
}

/// Reads a parameter by its [`FromStr`].
pub(super) fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    String::deserialize(deserializer)?.parse().map(Some).map_err(D::Error::custom)
}

/// Reads a duration such as `30s`.
pub(super) fn duration<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
where
    D: Deserializer<'de>,
{
    parse_duration(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// How long a request waits: not longer than allowed.
pub(super) fn bounded_wait(wait: Duration, api: &Api) -> Result<Duration, Problem> {
    let max = api.limits.max_wait;
    if wait <= max {
        return Ok(wait);
    }
    let detail = format!(
        "wait: {} is longer than {}, which is the limit: ask again when it is over",
        format_duration(wait),
        format_duration(max)
    );
    Err(Problem::bad_request("bad-query", detail))
}

/// What a body is, by its `Content-Type`, without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// The body has a type that the route does not take.
pub(super) fn wrong_media_type(found: &str, allowed: &str) -> Problem {
    let found = if found.is_empty() { "is missing".to_owned() } else { format!("is `{found}`") };
    let detail = format!("Content-Type {found}: send {allowed}");
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "wrong-media-type",
        "unsupported media type",
        detail,
    )
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Bytes, Problem> {
    let mut chunks = body.into_data_stream();
    let (mut read, mut kept) = (0, BytesMut::new());
    while let Some(chunk) = next_chunk(&mut chunks).await {
        let chunk = chunk?;
        read += chunk.len();
        if read <= limit {
            kept.extend_from_slice(&chunk);
        } else if read > limit.saturating_mul(DRAIN) {
            break;
        }
    }
    if read > limit { Err(Problem::too_large("the body", limit)) } else { Ok(kept.freeze()) }
}

/// A body's next piece: a client that sends none for long is not waited for.
pub(super) async fn next_chunk(chunks: &mut BodyDataStream) -> Option<Result<Bytes, Problem>> {
    match timeout(CHUNK_TIMEOUT, chunks.next()).await {
        Ok(chunk) => chunk.map(|chunk| chunk.map_err(|error| broken_body(&error))),
        Err(_) => {
            let seconds = CHUNK_TIMEOUT.as_secs();
            let detail =
                format!("no more of the body came for {seconds} s: send it without pauses");
            let status = StatusCode::REQUEST_TIMEOUT;
            Some(Err(Problem::new(status, "slow-body", "request timed out", detail)))
        }
    }
}

/// The body ended before its end.
pub(super) fn broken_body(error: &axum::Error) -> Problem {
    Problem::bad_request("broken-body", format!("the body could not be read: {error}"))
}
