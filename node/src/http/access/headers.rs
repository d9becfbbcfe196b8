//! Headers of every answer: what browsers must not do with it, and which other pages may read it.
//!
//! No page of another origin may, but those of `--http-origin`. There are no cookies: a page that
//! has no token can do nothing by calling a node from somebody's browser.

use axum::{
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
            ACCESS_CONTROL_REQUEST_METHOD, CACHE_CONTROL, CONTENT_SECURITY_POLICY, ORIGIN,
            REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, VARY, WWW_AUTHENTICATE,
            X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
};

/// What documents and refusals may do if a browser shows them: nothing.
const NOTHING: &str =
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// For how long a browser that has called this node by TLS calls it so only, in seconds: a year.
const HSTS: &str = "max-age=31536000";

/// What pages of other origins may ask, if any may.
const METHODS: &str = "GET, POST, PUT, DELETE";
const HEADERS: &str = "authorization, content-type, idempotency-key";
const EXPOSED: &str = "location, retry-after";
const PREFLIGHT_S: &str = "600";

/// What of a request its answer's headers depend on.
pub(in crate::http) struct Asked {
    /// The origin, if it is one of those that may read answers.
    origin: Option<HeaderValue>,
    /// Whether browsers are to call this host by TLS only.
    strict: bool,
}

impl Asked {
    /// Of this request, when these origins are allowed.
    pub(in crate::http) fn of(request: &Request<Body>, origins: &[String], strict: bool) -> Self {
        let origin = request.headers().get(ORIGIN);
        let origin =
            origin.filter(|one| origins.iter().any(|known| known.as_bytes() == one.as_bytes()));
        Self { origin: origin.cloned(), strict }
    }

    /// The answer to a browser that asks whether a page of another origin may do something.
    pub(in crate::http) fn preflight(&self, request: &Request<Body>) -> Option<Response> {
        let asks = request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if !asks || self.origin.is_none() {
            return None;
        }
        let headers = [
            (ACCESS_CONTROL_ALLOW_METHODS, METHODS),
            (ACCESS_CONTROL_ALLOW_HEADERS, HEADERS),
            (ACCESS_CONTROL_MAX_AGE, PREFLIGHT_S),
        ];
        Some((StatusCode::NO_CONTENT, headers).into_response())
    }

    /// Sets all that an answer has not said by itself.
    pub(in crate::http) fn set(self, response: &mut Response) {
        if response.status() == StatusCode::UNAUTHORIZED {
            let value = HeaderValue::from_static("Bearer realm=\"carbonmesh\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        let headers = response.headers_mut();
        for (name, value) in [
            (CACHE_CONTROL, "no-store"),
            (CONTENT_SECURITY_POLICY, NOTHING),
            // Not `no-referrer`: browsers may then send `Origin: null`, which is refused.
            (REFERRER_POLICY, "same-origin"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            headers.entry(name).or_insert(HeaderValue::from_static(value));
        }
        if self.strict {
            headers.insert(STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(HSTS));
        }
        if let Some(origin) = self.origin {
            allow(headers, origin);
        }
    }
}

fn allow(headers: &mut HeaderMap, origin: HeaderValue) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    // An answer that one origin got must not be given to another from a cache.
    headers.append(VARY, HeaderValue::from_static("origin"));
}
