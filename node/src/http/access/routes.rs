//! What every route takes: one table, which the guard goes by and `docs/security-api.md` shows.
//!
//! A route that is not in the table takes `admin`: forgotten, it is closed rather than open.

use axum::http::Method;

use super::scope::Verb;

/// On which pipelines a caller needs a route's verb.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// On none: everybody may, a stranger too.
    Open,
    /// On none, but the caller must be known.
    Known,
    /// On any: the answer leaves out, or the handler refuses, what the caller may not see or do.
    Some,
    /// On the one that the path names.
    Pipeline,
    /// On that of the job which the path names.
    Job,
    /// On all of the namespace that the path names.
    Namespace,
    /// On all of them.
    All,
}

impl On {
    /// As the documentation says it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Open => "open to everybody",
            Self::Known => "any token",
            Self::Some => "what it covers",
            Self::Pipeline => "this pipeline",
            Self::Job => "the job's pipeline",
            Self::Namespace => "all of this namespace",
            Self::All => "all pipelines",
        }
    }
}

/// What one route takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its method; `HEAD` is as `GET`.
    pub method: &'static str,
    /// Its path, as the router has it.
    pub path: &'static str,
    /// What the caller has to be allowed.
    pub verb: Verb,
    /// On what.
    pub on: On,
}

const fn route(method: &'static str, path: &'static str, verb: Verb, on: On) -> Route {
    Route { method, path, verb, on }
}

/// Every route but the files of the page and of `/docs`, which are open: they hold nothing of the cluster.
pub const ROUTES: &[Route] = &[
    route("GET", "/v1/pipelines", Verb::Read, On::Some),
    route("POST", "/v1/pipelines", Verb::Pipelines, On::Some),
    route("GET", "/v1/pipelines/{name}", Verb::Read, On::Pipeline),
    route("PUT", "/v1/pipelines/{name}", Verb::Pipelines, On::Pipeline),
    route("DELETE", "/v1/pipelines/{name}", Verb::Pipelines, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/jobs", Verb::Enqueue, On::Pipeline),
    route("GET", "/v1/pipelines/{name}/jobs", Verb::Read, On::Pipeline),
    route("GET", "/v1/pipelines/{name}/revisions", Verb::Read, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/cancel", Verb::Jobs, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/retry", Verb::Jobs, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/discard", Verb::Jobs, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/pause", Verb::Pipelines, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/resume", Verb::Pipelines, On::Pipeline),
    route("GET", "/v1/pipelines/{name}/diff", Verb::Read, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/diff", Verb::Read, On::Pipeline),
    route("GET", "/v1/pipelines/{name}/graph", Verb::Read, On::Pipeline),
    route("GET", "/v1/pipelines/{name}/events", Verb::Read, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/rollback", Verb::Pipelines, On::Pipeline),
    route("POST", "/v1/pipelines/{name}/recover", Verb::Admin, On::All),
    route("GET", "/v1/jobs/{id}", Verb::Read, On::Job),
    route("DELETE", "/v1/jobs/{id}", Verb::Jobs, On::Job),
    route("GET", "/v1/jobs/{id}/explain", Verb::Read, On::Job),
    route("GET", "/v1/jobs/{id}/logs", Verb::Read, On::Job),
    route("POST", "/v1/jobs/{id}/cancel", Verb::Jobs, On::Job),
    route("POST", "/v1/jobs/{id}/retry", Verb::Jobs, On::Job),
    route("POST", "/v1/jobs/{id}/signals/{name}", Verb::Jobs, On::Job),
    route("GET", "/v1/handlers", Verb::Read, On::All),
    route("GET", "/v1/handlers/{phase}", Verb::Read, On::All),
    route("PUT", "/v1/handlers/{phase}", Verb::Admin, On::All),
    route("DELETE", "/v1/handlers/{phase}", Verb::Admin, On::All),
    route("GET", "/v1/secrets", Verb::Read, On::Some),
    route("GET", "/v1/secrets/{namespace}/{secret}", Verb::Read, On::Namespace),
    route("PUT", "/v1/secrets/{namespace}/{secret}", Verb::Pipelines, On::Namespace),
    route("DELETE", "/v1/secrets/{namespace}/{secret}", Verb::Pipelines, On::Namespace),
    route("GET", "/v1/events", Verb::Read, On::All),
    route("GET", "/v1/nodes", Verb::Read, On::Some),
    route("POST", "/v1/nodes/{id}/drain", Verb::Admin, On::All),
    route("GET", "/v1/phases", Verb::Read, On::Some),
    route("GET", "/v1/status", Verb::Read, On::Some),
    route("GET", "/v1/history", Verb::Read, On::Some),
    route("POST", "/v1/backups", Verb::Admin, On::All),
    route("GET", "/v1/facts", Verb::Admin, On::All),
    route("GET", "/v1/node/log-levels", Verb::Admin, On::All),
    route("PUT", "/v1/node/log-levels", Verb::Admin, On::All),
    route("GET", "/v1/notify", Verb::Admin, On::All),
    route("POST", "/v1/notify/{name}/test", Verb::Admin, On::All),
    route("GET", "/v1/pipeline.schema.json", Verb::Read, On::Known),
    route("GET", "/v1/openapi.json", Verb::Read, On::Known),
    route("GET", "/v1/version", Verb::Read, On::Known),
    route("GET", "/v1/trust", Verb::Read, On::All),
    route("POST", "/v1/trust/revocations", Verb::Admin, On::All),
    route("POST", "/v1/trust/successions", Verb::Admin, On::All),
    route("GET", "/healthz", Verb::Read, On::Open),
    route("GET", "/metrics", Verb::Metrics, On::Some),
];

/// What a request takes that came to this path of the router; none if there is no such path.
pub fn needs(method: &Method, matched: Option<&str>) -> (Verb, On) {
    // Nothing is there: its answer says no more than that.
    let Some(path) = matched else { return (Verb::Read, On::Open) };
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    let is_file = path == "/" || path == "/docs";
    if method == "GET" && (is_file || ["/page/", "/docs/"].iter().any(|it| path.starts_with(it))) {
        return (Verb::Read, On::Open);
    }
    let found = ROUTES.iter().find(|route| route.method == method && route.path == path);
    found.map_or((Verb::Admin, On::All), |route| (route.verb, route.on))
}

/// Whether a request changes something.
pub fn is_change(method: &Method) -> bool {
    !matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The routes of the router, read from its source: `.route("PATH", get(..).post(..))`.
    fn router() -> Vec<(String, String)> {
        let source = include_str!("../mod.rs");
        let body = source.split("Router::new()").nth(1).expect("a router");
        let body = body.split(".fallback(").next().expect("its routes");
        let mut found = Vec::new();
        for part in body.split(".route(").skip(1) {
            let path = part.split('"').nth(1).expect("a path");
            let before = found.len();
            for method in ["get", "post", "put", "delete", "patch"] {
                let called = format!("{method}(");
                let calls = part.match_indices(&called).filter(|(at, _)| {
                    // `get(` of `target(` is another word.
                    !part[..*at].ends_with(|one: char| one.is_alphanumeric() || one == '_')
                });
                found.extend(calls.map(|_| (method.to_uppercase(), path.to_owned())));
            }
            assert!(found.len() > before, "no method of {path} is understood by this test");
        }
        found
    }

    #[test]
    fn every_route_says_what_it_takes() {
        let mut expected = router();
        let mut table: Vec<_> =
            ROUTES.iter().map(|route| (route.method.to_owned(), route.path.to_owned())).collect();
        expected.sort();
        table.sort();
        assert_eq!(table, expected);
    }

    #[test]
    fn the_documentation_shows_the_table() {
        let docs = include_str!("../../../../docs/security-api.md");
        let table: Vec<String> = ROUTES
            .iter()
            .map(|route| {
                let verb = match route.on {
                    On::Open | On::Known => "-",
                    _ => route.verb.name(),
                };
                format!("| `{} {}` | {verb} | {} |", route.method, route.path, route.on.text())
            })
            .collect();
        let begin = "<!-- routes -->\n| route | verb | on |\n|---|---|---|\n";
        let shown = docs.split(begin).nth(1).expect("the table's begin");
        let shown = shown.split("\n\n").next().expect("the table's end");
        assert_eq!(shown, table.join("\n"), "write the table of docs/security-api.md anew");
    }

    #[test]
    fn what_is_not_in_the_table_is_for_admins() {
        let unlisted = needs(&Method::PATCH, Some("/v1/pipelines/{name}"));
        assert_eq!(unlisted, (Verb::Admin, On::All));
        assert_eq!(needs(&Method::GET, Some("/v1/unlisted")), (Verb::Admin, On::All));
        assert_eq!(needs(&Method::POST, Some("/")), (Verb::Admin, On::All));
        for path in crate::http::reader::paths() {
            assert_eq!(needs(&Method::GET, Some(path)), (Verb::Read, On::Open), "{path}");
            assert_eq!(needs(&Method::POST, Some(path)), (Verb::Admin, On::All), "{path}");
        }
        assert_eq!(needs(&Method::HEAD, Some("/v1/nodes")), (Verb::Read, On::Some));
    }
}
