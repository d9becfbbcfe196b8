//! Gives each request an id: the client's own, or a new one; the answer, a problem document and the
//! log lines that belong to it all name it.
//!
//! It lies outside of all layers that refuse anything, so that what they refuse has an id too.

use std::time::Instant;

use axum::{
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tracing::{Instrument, debug, info_span, warn};

use super::Problem;

/// The header that carries it, both ways.
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest id that is taken from a client, in bytes: it goes into every log line.
const MAX_BYTES: usize = 128;

/// Names the request, logs how it went.
pub(super) async fn layer(request: Request, next: Next) -> Response {
    let id = given(request.headers()).unwrap_or_else(fresh);
    let text = id.to_str().unwrap_or_default().to_owned();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let span = info_span!("request", id = text);
    async move {
        let began = Instant::now();
        let mut response = named(next.run(request).await, &text);
        response.headers_mut().insert(X_REQUEST_ID, id);
        let (status, ms) = (response.status().as_u16(), began.elapsed().as_millis());
        match status {
            500.. => warn!(%method, path, status, ms, "a request failed"),
            _ => debug!(%method, path, status, ms, "a request was answered"),
        }
        response
    }
    .instrument(span)
    .await
}

/// The client's own id, if it can be used: visible ASCII, not too long.
fn given(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(X_REQUEST_ID)?;
    let bytes = value.as_bytes();
    let fits = (1..=MAX_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
    fits.then(|| value.clone())
}

fn fresh() -> HeaderValue {
    let id = format!("{:032x}", rand::random::<u128>());
    HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("unnamed"))
}

/// A problem document says whose request it answers.
fn named(mut response: Response, id: &str) -> Response {
    let Some(problem) = response.extensions_mut().remove::<Problem>() else { return response };
    let (mut parts, _) = response.into_parts();
    let (fresh, body) = problem.with("request_id", id).into_response().into_parts();
    // The rest of the headers stays, such as Allow.
    parts.headers.extend(fresh.headers);
    parts.headers.remove(axum::http::header::CONTENT_LENGTH);
    Response::from_parts(parts, body)
}
