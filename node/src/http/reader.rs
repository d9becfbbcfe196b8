//! The reader of the interface's document, served at `/docs`: a page of our own that draws
//! `/v1/openapi.json`, and files that are part of the program, as those of the main page are.

use std::future::ready;

use axum::{Router, http::HeaderMap, routing::get};

use super::page;

/// Every file: where it is served, as what, and what is in it.
const FILES: [(&str, &str, &[u8]); 3] = [
    ("/docs", "text/html; charset=utf-8", include_bytes!("reader/reader.html")),
    ("/docs/reader.js", "text/javascript; charset=utf-8", include_bytes!("reader/reader.js")),
    ("/docs/reader.css", "text/css; charset=utf-8", include_bytes!("reader/reader.css")),
];

/// Where they are.
#[cfg(test)]
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    FILES.into_iter().map(|(path, ..)| path)
}

/// `GET` and `HEAD` of each file.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let tag = page::tag(content);
        let answer = move |headers: HeaderMap| ready(page::file(kind, content, &tag, &headers));
        router.route(path, get(answer))
    })
}
