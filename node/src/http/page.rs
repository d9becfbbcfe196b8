//! The page for people: static files that are part of the program, served at `/`.
//!
//! Nothing here knows the node: the page asks the interface below `/v1` like any other client, and
//! its policy lets it load nothing from, and send nothing to, anywhere else. Paths in the files are
//! relative, so that a proxy may serve all of it below a path of its own.

use std::future::ready;

use axum::{
    Router,
    body::Body,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
            REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use sha2::{Digest, Sha256};

const HTML: &str = "text/html; charset=utf-8";
const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// What the page may do: its own files and the interface, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
                      img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// Headers of every answer. A browser asks each time whether a file has changed, since the next
/// version of the program serves others at the same place. Other sites may not embed them.
fn fixed_headers() -> [(HeaderName, &'static str); 5] {
    [
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // Not `no-referrer`: browsers may then send `Origin: null`, which the guard refuses.
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ]
}

/// Every file: where it is served, as what, and what is in it.
const FILES: [(&str, &str, &[u8]); 21] = [
    ("/", HTML, include_bytes!("page/index.html")),
    ("/page/api.js", JAVASCRIPT, include_bytes!("page/api.js")),
    ("/page/app.js", JAVASCRIPT, include_bytes!("page/app.js")),
    ("/page/charts.js", JAVASCRIPT, include_bytes!("page/charts.js")),
    ("/page/cron.js", JAVASCRIPT, include_bytes!("page/cron.js")),
    ("/page/dom.js", JAVASCRIPT, include_bytes!("page/dom.js")),
    ("/page/favicon.svg", SVG, include_bytes!("page/favicon.svg")),
    ("/page/format.js", JAVASCRIPT, include_bytes!("page/format.js")),
    ("/page/graph.js", JAVASCRIPT, include_bytes!("page/graph.js")),
    ("/page/handlers.js", JAVASCRIPT, include_bytes!("page/handlers.js")),
    ("/page/history.js", JAVASCRIPT, include_bytes!("page/history.js")),
    ("/page/job.js", JAVASCRIPT, include_bytes!("page/job.js")),
    ("/page/live.js", JAVASCRIPT, include_bytes!("page/live.js")),
    ("/page/login.js", JAVASCRIPT, include_bytes!("page/login.js")),
    ("/page/map.js", JAVASCRIPT, include_bytes!("page/map.js")),
    ("/page/overview.js", JAVASCRIPT, include_bytes!("page/overview.js")),
    ("/page/pipeline.js", JAVASCRIPT, include_bytes!("page/pipeline.js")),
    ("/page/rates.js", JAVASCRIPT, include_bytes!("page/rates.js")),
    ("/page/schema.js", JAVASCRIPT, include_bytes!("page/schema.js")),
    ("/page/style.css", CSS, include_bytes!("page/style.css")),
    ("/page/ui.js", JAVASCRIPT, include_bytes!("page/ui.js")),
];

/// The page's routes: `GET` and `HEAD` of each file.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.into_iter().fold(Router::new(), |router, (path, kind, content)| {
        let tag = tag(content);
        router
            .route(path, get(move |headers: HeaderMap| ready(file(kind, content, &tag, &headers))))
    })
}

/// The file, or that what the client has is still right.
pub(super) fn file(
    kind: &'static str,
    content: &'static [u8],
    tag: &str,
    asked: &HeaderMap,
) -> Response {
    let fresh = is_known(asked, tag);
    let mut response = match fresh {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => Body::from(Bytes::from_static(content)).into_response(),
    };
    let headers = response.headers_mut();
    for (name, value) in fixed_headers() {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !fresh {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    }
    if let Ok(tag) = HeaderValue::from_str(tag) {
        headers.insert(ETAG, tag);
    }
    response
}

/// Whether the client names this tag among those that it has.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all(IF_NONE_MATCH).into_iter().filter_map(|value| value.to_str().ok());
    let mut tags = tags.flat_map(|value| value.split(',')).map(str::trim);
    tags.any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

/// What names a file's content.
pub(super) fn tag(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    let digits: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("\"{digits}\"")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use reqwest::{Method, RequestBuilder};

    use super::*;
    use crate::http::{HttpLimits, fake};

    /// A node that is never asked: the page is there while it does not answer.
    async fn silent() -> String {
        fake::serve_with(HttpLimits::default(), |request| panic!("asked for {request:?}")).await
    }

    fn request(method: Method, url: String) -> RequestBuilder {
        crate::outbound::client().no_proxy().build().expect("a client").request(method, url)
    }

    #[tokio::test]
    async fn every_file_is_served_with_its_type_and_policy() {
        let url = silent().await;
        for (path, kind, content) in FILES {
            let response = request(Method::GET, format!("{url}{path}")).send().await;
            let response = response.expect("an answer");
            assert_eq!(response.status(), 200, "{path}");
            let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
            assert_eq!(header("content-type"), kind, "{path}");
            assert_eq!(header("cache-control"), "no-cache");
            assert_eq!(header("x-content-type-options"), "nosniff");
            let policy = header("content-security-policy");
            assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
            assert!(policy.contains("frame-ancestors 'none'"), "{policy}");
            assert_eq!(response.bytes().await.expect("a body"), content, "{path}");
        }
    }

    #[tokio::test]
    async fn a_file_that_the_browser_has_is_not_sent_again() {
        let url = silent().await;
        let get = |known: Option<String>| {
            let request = request(Method::GET, format!("{url}/page/app.js"));
            match known {
                Some(known) => request.header("if-none-match", known),
                None => request,
            }
        };
        let first = get(None).send().await.expect("an answer");
        let tag = first.headers()["etag"].to_str().expect("text").to_owned();
        for known in [tag.clone(), format!("\"other\", {tag}"), format!("W/{tag}"), "*".into()] {
            let response = get(Some(known.clone())).send().await.expect("an answer");
            assert_eq!(response.status(), 304, "{known}");
            assert_eq!(response.headers()["etag"], tag.as_str());
            assert!(response.headers().contains_key("content-security-policy"));
            assert!(response.bytes().await.expect("a body").is_empty());
        }
        let other = get(Some("\"other\"".into())).send().await.expect("an answer");
        assert_eq!(other.status(), 200);
    }

    #[tokio::test]
    async fn head_is_answered_without_a_body_and_other_methods_are_refused() {
        let url = silent().await;
        let response = request(Method::HEAD, format!("{url}/")).send().await.expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], HTML);
        let length = include_bytes!("page/index.html").len().to_string();
        assert_eq!(response.headers()["content-length"], length.as_str());
        assert!(response.bytes().await.expect("a body").is_empty());
        let posted = request(Method::POST, format!("{url}/")).send().await.expect("an answer");
        assert_eq!(posted.status(), 405);
        assert_eq!(posted.headers()["content-type"], "application/problem+json");
    }

    #[tokio::test]
    async fn foreign_names_do_not_get_the_page() {
        let url = silent().await;
        let response = request(Method::GET, format!("{url}/")).header("host", "evil.example");
        assert_eq!(response.send().await.expect("an answer").status(), 403);
    }

    #[test]
    fn every_file_of_the_folder_is_served_and_none_names_another_host() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http/page");
        let mut names: Vec<_> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        let mut served: Vec<_> = FILES
            .iter()
            .map(|(path, ..)| path.strip_prefix("/page/").unwrap_or("index.html").to_owned())
            .collect();
        served.sort();
        assert_eq!(names, served);
        for (path, _, content) in FILES {
            let text = std::str::from_utf8(content).expect("text");
            let hosts = text.split("://").skip(1).filter(|rest| !rest.starts_with("www.w3.org/"));
            assert_eq!(hosts.count(), 0, "{path} names a host");
        }
    }

    #[test]
    fn the_page_stays_small_and_sets_no_html() {
        let sum: usize = FILES.iter().map(|(.., content)| content.len()).sum();
        assert!(sum < 220_000, "{sum} bytes");
        for (path, _, content) in FILES {
            let text = String::from_utf8_lossy(content);
            for word in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
            {
                assert!(!text.contains(word), "{path} has {word}");
            }
        }
    }
}
