//! Attacks on the interface: with no token, with wrong ones, around the routes. Those over TLS are in `tls`.

mod tls;

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use carbonmesh_protocol::{
    advert::PhaseSlots,
    id::{JobId, PipelineId},
    io::{Changed, Refusal, Request, Response},
    view::JobState,
};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    AccessSettings, Security,
    audit::Level,
    chain::{Checked, Line},
    routes::{On, ROUTES},
    scope::Verb,
    throttle::FAILURES,
    tokens::{TokenEntry, make_token},
};
use crate::{
    http::{HttpLimits, fake, secured_router, serve_with},
    tls::{ClientTls, Fingerprint},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A node that asks who calls, and what it was asked for.
struct Node {
    url: String,
    address: SocketAddr,
    folder: TempDir,
    security: Arc<Security>,
    asked: Arc<Mutex<Vec<Request>>>,
    cancel: CancellationToken,
    client: Client,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What a node answers that has the pipelines `p` and `secret`.
fn answer(request: Request) -> Response {
    match request {
        Request::Apply(_) | Request::Pause { .. } => {
            Response::Applied { revision: 1, changed: true, copies: 1 }
        }
        Request::Remove(_) => Response::Removed,
        Request::Revisions(_) => Response::Revisions(fake::revisions()),
        Request::Job { job, .. } if job == job_of("p") => {
            Response::Job(Box::new(fake::job(job, JobState::Succeeded)))
        }
        Request::Job { job, .. } => {
            let mut all = ["secret", "team/p", "other/p"].into_iter();
            let Some(pipeline) = all.find(|name| job == job_of(name)) else {
                return Response::Refused(Refusal::UnknownJob(job));
            };
            let mut view = fake::job(job, JobState::Succeeded);
            view.pipeline = fake::name(pipeline);
            Response::Job(Box::new(view))
        }
        Request::Jobs { .. } => Response::Jobs { jobs: vec![], next: None },
        Request::Change { .. } => Response::Changed(Changed { count: 1, next: None }),
        Request::Cluster => {
            let mut cluster = fake::cluster();
            let mut secret = cluster.pipelines[0].clone();
            secret.definition.name = fake::name("secret");
            secret.unoffered = vec![fake::name("hidden")];
            for name in ["team/p", "other/p"] {
                let mut one = secret.clone();
                one.definition.name = fake::name(name);
                one.unoffered = vec![fake::name(&name.replace("/p", "/hidden"))];
                cluster.pipelines.push(one);
                let phase = fake::name(&name.replace("/p", "/work"));
                cluster.members[0].phases.push(PhaseSlots { phase, slots: 1, busy: 0 });
            }
            cluster.pipelines.push(secret);
            Response::Cluster(Box::new(cluster))
        }
        Request::Enqueue { pipeline, .. } if pipeline.as_str() == "gone" => {
            let known = vec!["p".to_owned(), "secret".to_owned()];
            Response::Refused(Refusal::UnknownPipeline { name: "gone".to_owned(), known })
        }
        other => fake::answer(other),
    }
}

fn job_of(pipeline: &str) -> JobId {
    JobId::of_key(PipelineId::of_name(pipeline), "k")
}

fn entry(name: &str, token: &str, scopes: &[&str]) -> String {
    let scopes: Vec<_> = scopes.iter().map(|text| text.parse().expect(text)).collect();
    TokenEntry::new(name, token, &scopes, None).to_toml() + "\n"
}

async fn node(tokens: &str, change: impl FnOnce(&mut AccessSettings, &Path)) -> Node {
    crate::tls::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let tokens_file = folder.path().join("tokens.toml");
    fs::write(&tokens_file, tokens).unwrap();
    let mut settings =
        AccessSettings { tokens_file: Some(tokens_file), ..AccessSettings::default() };
    change(&mut settings, folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let security = Arc::new(Security::open(&settings, folder.path(), address).unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    let handle = fake::handle(move |request| {
        log.lock().unwrap().push(request.clone());
        answer(request)
    });
    let limits =
        HttpLimits { job_bytes: 1000, hosts: settings.hosts.clone(), ..HttpLimits::default() };
    let router = secured_router(handle, limits, security.clone());
    let cancel = CancellationToken::new();
    security.watch(&cancel);
    tokio::spawn(serve_with(listener, security.tls(), router, cancel.clone()));
    let scheme = if settings.tls { "https" } else { "http" };
    let url = format!("{scheme}://{address}");
    let client = client(&ClientTls::default());
    Node { url, address, folder, security, asked, cancel, client }
}

fn client(tls: &ClientTls) -> Client {
    let builder = Client::builder().no_proxy().timeout(PATIENCE);
    tls.apply(builder).unwrap().build().unwrap()
}

async fn plain(tokens: &str) -> Node {
    node(tokens, |_, _| {}).await
}

impl Node {
    fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        self.client.request(method, format!("{}{path}", self.url))
    }

    fn as_token(&self, method: &str, path: &str, token: &str) -> RequestBuilder {
        self.request(method, path).bearer_auth(token)
    }

    /// Sends bytes, and reads until the node is done with the connection.
    async fn raw(&self, text: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A node that goes on listening would keep this open.
        let _ = timeout(Duration::from_millis(300), stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Whether it was asked to change anything.
    fn changed(&self) -> bool {
        let asked = self.asked.lock().unwrap();
        asked.iter().any(|request| {
            !matches!(
                request,
                Request::Cluster
                    | Request::Job { .. }
                    | Request::Jobs { .. }
                    | Request::Newest { .. }
                    | Request::Steps(_)
                    | Request::Revisions(_)
            )
        })
    }

    fn grants(&self) -> usize {
        self.security.door.as_ref().unwrap().grants().len()
    }

    async fn audit(&self) -> Vec<Line> {
        self.security.flush().await;
        let text = fs::read_to_string(self.folder.path().join(super::audit::FILE)).unwrap();
        let mut checked = Checked::default();
        checked.file("audit", text.as_bytes()).unwrap();
        assert_eq!(checked.faults, vec![]);
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

async fn answered(request: RequestBuilder) -> (u16, Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

async fn status(request: RequestBuilder) -> u16 {
    answered(request).await.0
}

/// A request for a route, about the pipeline `p`.
fn concrete(node: &Node, method: &str, path: &str, token: Option<&str>) -> RequestBuilder {
    concrete_of("p", node, method, path, token)
}

/// A value that nobody opens.
const SEALED: &str = r#"{"key": "0101010101010101", "hidden": false, "sealed": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#;

/// The same about another.
fn concrete_of(
    pipeline: &str,
    node: &Node,
    method: &str,
    path: &str,
    token: Option<&str>,
) -> RequestBuilder {
    let part = pipeline.replace('/', "%2F");
    let path = path.replace("/signals/{name}", "/signals/s").replace("{name}", &part);
    let path = path.replace("/nodes/{id}", "/nodes/self").replace("{phase}", &part);
    let path = path.replace("{id}", &job_of(pipeline).to_string());
    let namespace = pipeline.split_once('/').map_or("default", |(namespace, _)| namespace);
    let path = path.replace("{namespace}", namespace).replace("{secret}", "KEY");
    let many = ["/cancel", "/retry", "/discard"].iter().any(|end| path.ends_with(end));
    let query = match path.as_str() {
        _ if many && path.contains("pipelines") => "?state=dead",
        "/v1/history" => &format!("?pipeline={part}"),
        _ => "",
    };
    let request = node.request(method, &format!("{path}{query}"));
    let request = match token {
        Some(token) => request.bearer_auth(token),
        None => request,
    };
    let body = match path.as_str() {
        _ if path.ends_with("/jobs") => "{}",
        _ if path.contains("/handlers") => r#"{"language": "shell", "source": "cat"}"#,
        _ if path.contains("/v1/secrets/") => SEALED,
        _ => &format!(r#"{{"name": "{pipeline}", "phases": ["a"]}}"#),
    };
    let takes_none = many || ["pause", "resume", "recover"].iter().any(|end| path.ends_with(end));
    let takes_one =
        ["/pipelines", "/handlers", "/v1/secrets/"].iter().any(|part| path.contains(part));
    match method {
        "POST" | "PUT" if takes_one && !takes_none => {
            request.header("content-type", "application/json").body(body.to_owned())
        }
        _ => request,
    }
}

#[tokio::test]
async fn every_route_takes_its_verb_and_no_other() {
    let (mut tokens, mut file) = (Vec::new(), String::new());
    for verb in Verb::ALL {
        for on in ["*", "p", "q*"] {
            let name = verb.name();
            let scope = if verb.has_pipelines() { format!("{name}:{on}") } else { name.to_owned() };
            let token = make_token().to_string();
            file += &entry(&format!("{name}-{}", tokens.len()), &token, &[&scope]);
            tokens.push((verb, on, token));
        }
    }
    let node = plain(&file).await;
    for route in ROUTES {
        let of = format!("{} {}", route.method, route.path);
        let stranger = status(concrete(&node, route.method, route.path, None)).await;
        assert_eq!(stranger == 401, route.on != On::Open, "{of}: {stranger}");
        for (verb, on, token) in &tokens {
            let has_verb = *verb == route.verb || *verb == Verb::Admin;
            let covers = !verb.has_pipelines() || "p".starts_with(on.trim_end_matches('*'));
            // Sums of pipelines cannot leave some out.
            let lists = route.method == "GET" && route.path != "/v1/history";
            let expected = match route.on {
                On::Open | On::Known => true,
                On::Some => has_verb && (covers || lists),
                On::Pipeline | On::Job => has_verb && covers,
                On::All | On::Namespace => has_verb && (!verb.has_pipelines() || *on == "*"),
            };
            let request = concrete(&node, route.method, route.path, Some(token));
            let (found, body) = answered(request).await;
            let kind = body["type"].as_str().unwrap_or_default();
            let kind = kind.strip_prefix("urn:carbonmesh:problem:").unwrap_or_default();
            let refused = ["unauthorized", "forbidden"].contains(&kind)
                // A job that the caller may not know of.
                || (route.on == On::Job && kind == "unknown-job");
            assert_eq!(!refused, expected, "{of} as {}:{on}: {found}", verb.name());
            // What the node of this test does not have: a machine to tell of, and certificates.
            let lacking = [
                "no-backup-folder",
                "starting",
                "foreign-logs",
                "no-certificates",
                "unknown-target",
                "unknown-secret",
            ];
            let lacking = lacking.contains(&kind);
            assert!(refused || lacking || found < 300, "{of} as {}:{on}: {found}", verb.name());
        }
    }
}

#[tokio::test]
async fn a_token_of_one_namespace_reaches_nothing_of_another_by_any_route() {
    let token = make_token();
    let verbs = Verb::ALL.into_iter().filter(|verb| verb.has_pipelines());
    let scopes: Vec<String> = verbs.map(|verb| format!("{}:team/*", verb.name())).collect();
    let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
    let node = plain(&entry("team", &token, &scopes)).await;
    for route in ROUTES.iter().filter(|route| !matches!(route.on, On::Open | On::Known)) {
        for (pipeline, is_own) in [("team/p", true), ("other/p", false), ("p", false)] {
            let of = format!("{} {} of {pipeline}", route.method, route.path);
            let request = concrete_of(pipeline, &node, route.method, route.path, Some(&token));
            let (found, body) = answered(request).await;
            let text = body.to_string();
            // What was asked for itself is named by a refusal.
            let tells = text.contains("other/") || text.contains("secret\"");
            assert!(!is_own || !tells, "{of}: {text}");
            let has_verb = route.verb.has_pipelines();
            let expected = match route.on {
                On::Pipeline | On::Job | On::Namespace => has_verb && is_own,
                // Lists leave out what is another's; the rest is about one pipeline, or is for admins.
                On::Some if route.path == "/v1/history" || route.method == "POST" => is_own,
                On::Some => has_verb,
                _ => false,
            };
            let kind = body["type"].as_str().unwrap_or_default();
            let refused = kind.ends_with(":forbidden") || kind.ends_with(":unknown-job");
            assert_eq!(!refused, expected, "{of}: {found} {kind}");
        }
    }
    let names = |body: &Value, list: &str, key: &str| -> Vec<String> {
        let all = body[list].as_array().unwrap().iter();
        all.map(|one| one[key].as_str().unwrap_or_default().to_owned()).collect()
    };
    let get = |path: &str| answered(node.as_token("GET", path, &token));
    assert_eq!(names(&get("/v1/pipelines").await.1, "pipelines", "name"), ["team/p"]);
    assert_eq!(names(&get("/v1/phases").await.1, "phases", "phase"), ["team/work"]);
    assert_eq!(names(&get("/v1/secrets").await.1, "secrets", "name"), ["KEY"]);
    let others = get("/v1/pipelines?namespace=other").await;
    assert_eq!((others.0, names(&others.1, "pipelines", "name").len()), (200, 0));
}

#[tokio::test]
async fn values_and_secrets_are_those_of_a_whole_namespace() {
    let (some, other) = (make_token(), make_token());
    let file = entry("some", &some, &["read:team/p*", "pipelines:team/p*"])
        + &entry("other", &other, &["read:default/*", "pipelines:default/*"]);
    let node = plain(&file).await;
    for (method, path, on_other) in [
        ("GET", "/v1/secrets/team/KEY", 403),
        ("DELETE", "/v1/secrets/team/KEY", 403),
        ("GET", "/v1/secrets/default/KEY", 404),
        ("DELETE", "/v1/secrets/default/KEY", 204),
    ] {
        assert_eq!(status(node.as_token(method, path, &some)).await, 403, "{method} {path}");
        assert_eq!(status(node.as_token(method, path, &other)).await, on_other, "{method} {path}");
    }
    for token in [&some, &other] {
        let (found, body) = answered(node.as_token("GET", "/v1/secrets", token)).await;
        assert_eq!((found, body["secrets"].as_array().map(Vec::len)), (200, Some(0)));
    }
}

#[tokio::test]
async fn the_default_namespace_is_one_by_both_its_names() {
    let token = make_token();
    let node = plain(&entry("t", &token, &["read:p", "pipelines:default/*"])).await;
    for (method, path, expected) in [
        ("GET", "/v1/pipelines/default%2Fp", 200),
        ("POST", "/v1/pipelines/default%2Fp/pause", 200),
        ("POST", "/v1/pipelines/team%2Fp/pause", 403),
        ("GET", "/v1/pipelines/team%2Fp", 403),
        ("GET", "/v1/pipelines/default/p", 404),
    ] {
        assert_eq!(status(node.as_token(method, path, &token)).await, expected, "{method} {path}");
    }
}

#[tokio::test]
async fn who_has_no_right_token_changes_nothing() {
    let now = jiff::Timestamp::now();
    let (good, old) = (make_token(), make_token());
    let scope = ["admin".parse().unwrap()];
    let expired = TokenEntry::new("old", &old, &scope, Some(now)).to_toml();
    let node = plain(&(entry("good", &good, &["admin"]) + &expired)).await;
    let delete = || node.request("DELETE", "/v1/pipelines/p");
    let hash = &TokenEntry::new("x", &good, &scope, None).sha256;
    for value in [
        format!("Bearer {}x", &*good),
        format!("Bearer {}", &good[..good.len() - 1]),
        format!("Bearer {hash}"),
        format!("Bearer {}", &*old),
        format!("Bearer  {}", &*good),
        "Bearer ".to_owned(),
        "Bearer".to_owned(),
        good.to_string(),
        format!("Basic {}", &*good),
        format!("Bearer {},Bearer {}", &*good, &*good),
    ] {
        let (found, body) = answered(delete().header("authorization", value.clone())).await;
        assert_eq!(found, 401, "{value}");
        assert_eq!(body["type"], "urn:carbonmesh:problem:unauthorized");
    }
    let twice = delete().bearer_auth(&*good).header("authorization", "Bearer x");
    assert_eq!(status(twice).await, 400);
    // Where tokens do not belong, they are none.
    for (header, value) in [
        ("cookie", format!("token={}", &*good)),
        ("x-api-key", good.to_string()),
        ("proxy-authorization", format!("Bearer {}", &*good)),
        ("x-forwarded-for", "127.0.0.1".to_owned()),
        ("x-forwarded-user", "admin".to_owned()),
    ] {
        assert_eq!(status(delete().header(header, value)).await, 401, "{header}");
    }
    let in_query = node.request("DELETE", &format!("/v1/pipelines/p?access_token={}", &*good));
    assert_eq!(status(in_query).await, 401);
    assert!(!node.changed());
    let response = delete().send().await.unwrap();
    assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"carbonmesh\"");
    let lower = delete().header("authorization", format!("bearer {}", &*good));
    assert_eq!(status(lower).await, 204);
    assert!(node.changed());
}

#[tokio::test]
async fn callers_learn_only_of_what_they_may_read() {
    let token = make_token();
    let node = plain(&entry("t", &token, &["read:p", "enqueue:*", "jobs:*"])).await;
    let get = |path: &str| answered(node.as_token("GET", path, &token));
    for (path, at) in [("/v1/pipelines", "pipelines"), ("/v1/status", "pipelines")] {
        let (found, body) = get(path).await;
        let names: Vec<_> =
            body[at].as_array().unwrap().iter().map(|one| one["name"].as_str()).collect();
        assert_eq!((found, names), (200, vec![Some("p")]), "{path}");
        assert!(!body.to_string().contains("secret") && !body.to_string().contains("hidden"));
    }
    // Whether a pipeline or a job is there does not show.
    let there = get("/v1/pipelines/secret").await;
    let nowhere = get("/v1/pipelines/nowhere").await;
    assert_eq!((there.0, nowhere.0), (403, 403));
    let there = get(&format!("/v1/jobs/{}", job_of("secret"))).await;
    let nowhere = get(&format!("/v1/jobs/{}", job_of("nowhere"))).await;
    assert_eq!((there.0, nowhere.0), (404, 404));
    let without_id = |(_, body): &(u16, Value), of: &str| {
        let mut body = body.clone();
        body["request_id"].take();
        body.to_string().replace(&job_of(of).to_string(), "")
    };
    assert_eq!(without_id(&there, "secret"), without_id(&nowhere, "nowhere"));
    // A refusal names no others.
    let jobs = node.as_token("POST", "/v1/pipelines/gone/jobs", &token);
    let (found, body) = answered(jobs.json(&serde_json::json!({}))).await;
    assert_eq!((found, &body["known"]), (404, &serde_json::json!(["p"])));
    assert!(!body.to_string().contains("secret"), "{body}");
    // Waiting for a job's end reads its results.
    let wait = |query: &str| {
        let path = format!("/v1/pipelines/secret/jobs{query}");
        status(node.as_token("POST", &path, &token).json(&serde_json::json!({})))
    };
    assert_eq!((wait("").await, wait("?wait=1s").await, wait("?w%61it=1s").await), (202, 403, 403));
    // Sums tell of all.
    let history =
        |query: &str| status(node.as_token("GET", &format!("/v1/history{query}"), &token));
    let found = (history("?pipeline=p").await, history("?pipeline=secret").await);
    assert_eq!((found, history("").await), ((200, 403), 403));
    // The name in the document counts, whatever the path is.
    let apply = make_token();
    let node = plain(&entry("t", &apply, &["pipelines:p"])).await;
    let post = |name: &str| {
        let document = serde_json::json!({ "name": name, "phases": ["a"] });
        status(node.as_token("POST", "/v1/pipelines", &apply).json(&document))
    };
    assert_eq!((post("p").await, post("secret").await), (200, 403));
}

#[tokio::test]
async fn guessing_is_slowed_down_and_locks_nobody_else_out() {
    let (ci, late) = (make_token(), make_token());
    let file = entry("ci", &ci, &["read:*"]) + &entry("late", &late, &["read:*"]);
    let node = plain(&file).await;
    let with = |token: String| status(node.as_token("GET", "/v1/nodes", &token));
    assert_eq!(with(ci.to_string()).await, 200);
    for guess in 0..FAILURES {
        assert_eq!(with(format!("guess{guess}")).await, 401);
    }
    let blocked = node.as_token("GET", "/v1/nodes", "guess").send().await.unwrap();
    assert_eq!(blocked.status(), 429);
    assert!(blocked.headers().contains_key("retry-after"));
    // A right guess comes too late; who was in before goes on; open routes are open.
    assert_eq!(with(late.to_string()).await, 429);
    assert_eq!(with(ci.to_string()).await, 200);
    assert_eq!(status(node.request("GET", "/healthz")).await, 200);
}

#[tokio::test]
async fn requests_that_others_may_read_differently_do_not_get_around_the_guard() {
    let token = make_token();
    let node = plain(&entry("t", &token, &["read:p"])).await;
    let host = "Host: localhost\r\n";
    let hidden = format!("DELETE /v1/pipelines/p HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let length = hidden.len();
    let bearer = format!("Authorization: Bearer {}\r\n", &*token);
    let cases = [
        // Two lengths: what one program takes for a body is another's next request.
        format!(
            "GET /healthz HTTP/1.1\r\n{host}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "POST /healthz HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!(
            "GET /healthz HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{hidden}"
        ),
        format!(
            "GET /healthz HTTP/1.1\r\n{host}Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n{hidden}"
        ),
        format!("GET /healthz HTTP/1.1\r\n{host}Transfer-Encoding : chunked\r\n\r\n{hidden}"),
        // One login for two requests on a connection.
        format!("GET /v1/nodes HTTP/1.1\r\n{host}{bearer}\r\n{hidden}"),
        format!("GET /healthz HTTP/1.1\r\n{host}X: y\n\n{hidden}"),
        format!("GET /healthz HTTP/1.1\r\n{host} {bearer}\r\n{hidden}"),
        // Other ways to write a path.
        format!("DELETE //v1/pipelines/p HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1//pipelines/p HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /healthz/../v1/pipelines/p HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /page/%2e%2e/v1/pipelines/p HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1%2fpipelines%2fp HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1/pipelines/p%00 HTTP/1.1\r\n{host}{bearer}\r\n"),
        format!("DELETE /V1/pipelines/p HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1/pipelines/p/ HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1/pipelines/p;x=/healthz HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1/pipelines/p#/healthz HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1/pipelines/p?/healthz HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE http://localhost/v1/pipelines/p HTTP/1.1\r\n{host}\r\n"),
        format!("DELETE /v1/pipelines/other%2f..%2fp HTTP/1.1\r\n{host}{bearer}\r\n"),
        // Other ways to say a method or a target.
        format!(
            "GET /v1/pipelines/p HTTP/1.1\r\n{host}{bearer}X-HTTP-Method-Override: DELETE\r\n\r\n"
        ),
        format!("POST /v1/pipelines/p?_method=DELETE HTTP/1.1\r\n{host}{bearer}\r\n"),
        format!(
            "GET /healthz HTTP/1.1\r\n{host}X-Original-URL: /v1/pipelines/p\r\nX-Rewrite-URL: /v1/pipelines/p\r\n\r\n"
        ),
        format!("delete /v1/pipelines/p HTTP/1.1\r\n{host}{bearer}\r\n"),
        format!("CONNECT /v1/pipelines/p HTTP/1.1\r\n{host}{bearer}\r\n"),
        // Two hosts, or none.
        format!("DELETE /v1/pipelines/p HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n"),
        "DELETE /v1/pipelines/p HTTP/1.1\r\n\r\n".to_owned(),
        "DELETE /v1/pipelines/p HTTP/1.0\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ];
    for (at, case) in cases.iter().enumerate() {
        let case =
            case.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", if at < 8 { 0 } else { 1 });
        let answer = node.raw(&case).await;
        assert!(!node.changed(), "{case}\n{answer}");
        let done = answer.starts_with("HTTP/1.1 204");
        assert!(!done, "{case}\n{answer}");
    }
    assert_eq!(status(node.request("GET", "/healthz")).await, 200);
}

#[tokio::test]
async fn heads_that_are_too_large_are_refused() {
    let node = plain("").await;
    for head in [
        format!("Authorization: Bearer {}\r\n", "x".repeat(1 << 20)),
        (0..10_000).map(|at| format!("X-{at}: y\r\n")).collect::<String>(),
    ] {
        let text = format!("GET /v1/nodes HTTP/1.1\r\nHost: localhost\r\n{head}\r\n");
        let answer = timeout(PATIENCE, node.raw(&text)).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let target = "a".repeat(1 << 20);
    let answer = node.raw(&format!("GET /{target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    assert_eq!(status(node.request("GET", "/healthz")).await, 200);
}

#[tokio::test]
async fn a_refusal_reaches_whoever_sends_much_at_once() {
    let node = plain("").await;
    for _ in 0..5 {
        let request = node.request("POST", "/v1/pipelines/p/jobs").body(vec![b' '; 4 << 20]);
        assert_eq!(status(request).await, 401);
    }
}

#[tokio::test]
async fn every_answer_says_what_browsers_must_not_do() {
    let token = make_token();
    let node = plain(&entry("t", &token, &["read:*"])).await;
    for (request, expected) in [
        (node.as_token("GET", "/v1/nodes", &token), 200),
        (node.request("GET", "/v1/nodes"), 401),
        (node.request("GET", "/nowhere"), 404),
        (node.request("GET", "/healthz").header("host", "evil.example"), 403),
        (node.as_token("GET", "/v1/jobs/7", &token), 400),
    ] {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), expected);
        let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(header("cache-control"), "no-store");
        assert_eq!(header("x-content-type-options"), "nosniff");
        assert_eq!(header("x-frame-options"), "DENY");
        assert_eq!(header("referrer-policy"), "same-origin");
        assert!(header("content-security-policy").contains("frame-ancestors 'none'"));
        assert!(!response.headers().contains_key("strict-transport-security"));
        assert!(!response.headers().contains_key("access-control-allow-origin"));
        assert!(!response.headers().contains_key("set-cookie"));
    }
}

#[tokio::test]
async fn pages_of_others_may_ask_only_if_they_are_named() {
    let token = make_token();
    let node = node(&entry("t", &token, &["read:*"]), |settings, _| {
        settings.origins = vec!["https://dash.example".to_owned()];
    })
    .await;
    let preflight = |origin: &str| {
        node.request("OPTIONS", "/v1/nodes")
            .header("origin", origin)
            .header("access-control-request-method", "GET")
            .header("access-control-request-headers", "authorization")
            .send()
    };
    let allowed = preflight("https://dash.example").await.unwrap();
    assert_eq!(allowed.status(), 204);
    assert_eq!(allowed.headers()["access-control-allow-origin"], "https://dash.example");
    let headers = allowed.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(headers.contains("authorization"));
    assert!(!allowed.headers().contains_key("access-control-allow-credentials"));
    for origin in [
        "https://evil.example",
        "http://dash.example",
        "https://dash.example:444",
        "https://dash.example.evil.example",
        "https://DASH.example",
        "null",
    ] {
        let refused = preflight(origin).await.unwrap();
        assert_eq!(refused.status(), 403, "{origin}");
        assert!(!refused.headers().contains_key("access-control-allow-origin"), "{origin}");
    }
    let get = node.as_token("GET", "/v1/nodes", &token).header("origin", "https://dash.example");
    let response = get.send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["access-control-allow-origin"], "https://dash.example");
    assert_eq!(response.headers()["vary"], "origin");
    // The node's own page, by whatever address it was called.
    let own = node.as_token("GET", "/v1/nodes", &token).header("origin", &node.url);
    assert_eq!(status(own).await, 200);
}

#[tokio::test]
async fn changes_and_failed_logins_are_in_the_audit_log() {
    let token = make_token();
    let node = plain(&entry("ci", &token, &["enqueue:p", "jobs:p"])).await;
    let enqueue = node.as_token("POST", "/v1/pipelines/p/jobs", &token);
    assert_eq!(status(enqueue.json(&serde_json::json!({}))).await, 202);
    let job = job_of("p").to_string();
    let cancel = format!("/v1/jobs/{job}/cancel");
    assert_eq!(status(node.as_token("POST", &cancel, &token)).await, 200);
    assert_eq!(status(node.as_token("DELETE", "/v1/pipelines/p", &token)).await, 403);
    assert_eq!(status(node.as_token("GET", "/v1/version", &token)).await, 200);
    assert_eq!(status(node.as_token("DELETE", "/v1/pipelines/p", "guess")).await, 401);
    // Nobody could hold strangers to account for these: they would only fill the log.
    assert_eq!(status(node.request("DELETE", "/v1/pipelines/p")).await, 401);
    let lines = node.audit().await;
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let event = &line.event;
            assert_eq!(event.from.as_deref(), Some("127.0.0.1"));
            (event.who.as_str(), event.route.as_str(), event.status, event.outcome.as_str())
        })
        .collect();
    let expected = [
        ("token ci", "/v1/pipelines/{name}/jobs", Some(202), "done"),
        ("token ci", "/v1/jobs/{id}/cancel", Some(200), "done"),
        ("token ci", "/v1/pipelines/{name}", Some(403), "denied"),
        ("unknown", "/v1/pipelines/{name}", Some(401), "denied"),
    ];
    assert_eq!(told, expected);
    assert_eq!(lines[0].event.pipeline.as_deref(), Some("p"));
    assert!(lines[0].event.job.is_some());
    assert_eq!(lines[1].event.job.as_deref(), Some(job.as_str()));
    assert_eq!(lines[1].event.pipeline.as_deref(), Some("p"));
    let text = fs::read_to_string(node.folder.path().join(super::audit::FILE)).unwrap();
    assert!(!text.contains(token.as_str()) && !text.contains("guess"));
}

#[tokio::test]
async fn reads_are_in_the_audit_log_if_that_is_wanted() {
    let token = make_token();
    let node = node(&entry("ci", &token, &["read:*"]), |settings, _| {
        settings.audit = Some(Level::All);
    })
    .await;
    assert_eq!(status(node.as_token("GET", "/v1/nodes", &token)).await, 200);
    assert_eq!(status(node.request("GET", "/healthz")).await, 200);
    let lines = node.audit().await;
    assert_eq!(lines.len(), 1);
    assert_eq!((lines[0].event.method.as_str(), lines[0].event.outcome.as_str()), ("GET", "done"));
}

#[tokio::test]
async fn a_change_whose_caller_went_away_is_in_the_audit_log() {
    let token = make_token();
    let node = plain(&entry("ci", &token, &["enqueue:p"])).await;
    let head = format!(
        "POST /v1/pipelines/p/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n",
        &*token
    );
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let lines = timeout(PATIENCE, async {
        loop {
            let lines = node.audit().await;
            if !lines.is_empty() {
                return lines;
            }
            tokio::task::yield_now().await;
        }
    });
    let lines = lines.await.unwrap();
    assert!(["unknown", "refused"].contains(&lines[0].event.outcome.as_str()), "{lines:?}");
}

#[tokio::test]
async fn tokens_are_taken_back_without_a_restart() {
    let (one, other) = (make_token(), make_token());
    let node = plain(&entry("one", &one, &["read:*"])).await;
    assert_eq!(status(node.as_token("GET", "/v1/nodes", &one)).await, 200);
    let path = node.folder.path().join("tokens.toml");
    // What cannot be read changes nothing.
    fs::write(&path, "tokens = 7").unwrap();
    node.security.door.as_ref().unwrap().look();
    assert_eq!(node.grants(), 1);
    fs::write(&path, entry("other", &other, &["read:*"])).unwrap();
    node.security.door.as_ref().unwrap().look();
    assert_eq!(status(node.as_token("GET", "/v1/nodes", &one)).await, 401);
    assert_eq!(status(node.as_token("GET", "/v1/nodes", &other)).await, 200);
}
