//! Answers that have not changed are not sent again: a weak `ETag` for each JSON document that is
//! read, `304` where `If-None-Match` names it; and what `If-Match` asks of a pipeline that is put.
//!
//! A document's tag is made of its bytes, so that no handler has to know of it. That of one pipeline
//! begins with its revision, and only this counts for `If-Match`: counts change all the time.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::Problem;

/// Documents above this are sent as they are: they are lists that nobody asks for twice a second.
const MAX_BYTES: u64 = 8 << 20;

/// What the handler wants the tag to begin with.
#[derive(Clone)]
pub(super) struct Revision(pub(super) String);

/// Tags documents, and leaves out those that the client has.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let reads = *request.method() == Method::GET;
    let known = tags(request.headers(), IF_NONE_MATCH);
    let response = next.run(request).await;
    if !reads || !is_document(&response) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(bytes) = to_bytes(body, MAX_BYTES as usize).await else {
        // It has said that it is no longer than that.
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let tag = tag(parts.extensions.get::<Revision>(), &bytes);
    if let Ok(value) = HeaderValue::from_str(&format!("W/{tag}")) {
        parts.headers.insert(ETAG, value);
    }
    if known.iter().any(|one| *one == "*" || *one == tag) {
        parts.status = StatusCode::NOT_MODIFIED;
        parts.headers.remove(CONTENT_TYPE);
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        return Response::from_parts(parts, Body::empty());
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// What a client asks of the pipeline that it is about to put.
pub(super) struct Precondition {
    matches: Vec<String>,
    none: Vec<String>,
}

impl Precondition {
    /// Of the request's headers.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self { matches: tags(headers, IF_MATCH), none: tags(headers, IF_NONE_MATCH) }
    }

    /// Whether anything is asked.
    pub(super) fn is_some(&self) -> bool {
        !(self.matches.is_empty() && self.none.is_empty())
    }

    /// Whether it holds while this is the current revision.
    pub(super) fn check(&self, revision: Option<&str>) -> Result<(), Problem> {
        let names = |tags: &[String]| {
            tags.iter().any(|tag| match revision {
                Some(revision) => tag == "*" || revision_of(tag) == revision,
                None => false,
            })
        };
        let failed = |header: &str, is: String| {
            let detail = format!("{header}: {is}; nothing was changed: read it again, then decide");
            Problem::new(
                StatusCode::PRECONDITION_FAILED,
                "precondition-failed",
                "precondition failed",
                detail,
            )
            .with("revision", revision)
        };
        let is = match revision {
            Some(revision) => format!("the pipeline's revision is {revision}"),
            None => "there is no such pipeline".to_owned(),
        };
        if !self.matches.is_empty() && !names(&self.matches) {
            return Err(failed("If-Match", is));
        }
        if names(&self.none) {
            return Err(failed("If-None-Match", is));
        }
        Ok(())
    }
}

/// A document whose length is known: streams are none.
fn is_document(response: &Response) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let json = kind.is_some_and(|kind| kind.starts_with(b"application/json"));
    let size = axum::body::HttpBody::size_hint(response.body()).exact();
    response.status() == StatusCode::OK && json && size.is_some_and(|size| size <= MAX_BYTES)
}

/// The tags that a header names, without what says that they are weak.
fn tags(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let tags = values.flat_map(|value| value.split(',')).map(str::trim);
    let tags = tags.filter(|tag| !tag.is_empty());
    tags.map(|tag| tag.strip_prefix("W/").unwrap_or(tag).to_owned()).collect()
}

/// `"REVISION.DIGEST"`, or `"DIGEST"`.
fn tag(revision: Option<&Revision>, content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let digits: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    match revision {
        Some(Revision(revision)) => format!("\"{revision}.{digits}\""),
        None => format!("\"{digits}\""),
    }
}

fn revision_of(tag: &str) -> &str {
    let tag = tag.trim_matches('"');
    tag.split_once('.').map_or(tag, |(revision, _)| revision)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn if_match_counts_the_revision_alone() {
        for (value, holds) in [
            ("\"00ff\"", true),
            ("W/\"00ff.0123\"", true),
            ("\"1\", \"00ff\"", true),
            ("*", true),
            ("\"00fe\"", false),
            ("\"0123.00ff\"", false),
        ] {
            let asked = Precondition::of(&headers(&[(IF_MATCH, value)]));
            assert_eq!(asked.check(Some("00ff")).is_ok(), holds, "{value}");
            assert!(asked.check(None).is_err(), "{value}");
        }
    }

    #[test]
    fn if_none_match_keeps_what_is_there() {
        let asked = Precondition::of(&headers(&[(IF_NONE_MATCH, "*")]));
        assert!(asked.check(None).is_ok());
        let problem = asked.check(Some("00ff")).expect_err("it is there");
        assert_eq!(problem.status, 412);
        assert!(problem.detail.contains("00ff"), "{}", problem.detail);
        assert!(!Precondition::of(&HeaderMap::new()).is_some());
    }
}
