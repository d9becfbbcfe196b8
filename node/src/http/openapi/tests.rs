//! The document is held to the router, to the kinds of problems, and to what answers really are.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    body::{Body, to_bytes},
    http::{Method, Request as HttpRequest},
};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::*;
use crate::{
    document::PipelineDocument,
    http::{HttpLimits, Router, fake, problem::Problem, reader, router},
};

const METHODS: [Method; 5] =
    [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH];

/// Served for browsers, not for programs.
const PAGES: [&str; 2] = ["/", "/page/"];

fn served() -> Router {
    router(fake::handle(fake::answer), HttpLimits::default())
}

fn document() -> Value {
    serde_json::from_str(json()).expect("JSON")
}

async fn ask(router: &Router, method: &Method, path: &str, body: Body) -> (u16, Value) {
    let request = HttpRequest::builder().method(method).uri(path).header("host", "localhost");
    let request = request.header("content-type", "application/json").body(body);
    send(router, request.expect("a request")).await
}

async fn send(router: &Router, request: HttpRequest<Body>) -> (u16, Value) {
    let answer = TowerToHyperService::new(router.clone()).call(request).await;
    let answer = answer.expect("a router never fails");
    let status = answer.status().as_u16();
    let body = to_bytes(answer.into_body(), usize::MAX).await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// Every path that the router knows, as its debug output lists them.
fn paths_of(router: &Router) -> BTreeSet<String> {
    let text = format!("{router:?}");
    let quoted = text.split('"').skip(1).step_by(2);
    let paths = quoted.filter(|it| it.starts_with('/') && !it.contains("__private"));
    paths.map(str::to_owned).collect()
}

fn is_page(path: &str) -> bool {
    path == PAGES[0] || path.starts_with(PAGES[1]) || reader::paths().any(|it| it == path)
}

/// A path with values in its variable parts.
fn filled(path: &str) -> String {
    let id =
        if path.starts_with("/v1/nodes") { "self" } else { "0198c2f2-0000-7000-8000-000000000000" };
    path.replace("{name}", "p").replace("{phase}", "p").replace("{id}", id)
}

#[tokio::test]
async fn every_route_is_in_the_document_and_nothing_else_is() {
    let router = served();
    let document = document();
    let mut routed = BTreeSet::new();
    for path in paths_of(&router).into_iter().filter(|path| !is_page(path)) {
        for method in METHODS {
            let (status, _) = ask(&router, &method, &filled(&path), Body::empty()).await;
            if status != 405 {
                routed.insert(format!("{} {path}", method.as_str().to_lowercase()));
            }
        }
    }
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        let methods = item.as_object().expect("methods").keys();
        described.extend(methods.map(|method| format!("{method} {path}")));
    }
    assert!(described.len() > 25, "{described:?}");
    assert_eq!(routed, described, "describe it with utoipa::path, and name it in openapi.rs");
}

#[test]
fn operations_are_named_once_and_all_references_lead_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let document = document();
    assert_eq!(document["openapi"], "3.1.0");
    let (mut names, mut count) = (BTreeSet::new(), 0);
    for item in document["paths"].as_object().expect("paths").values() {
        for operation in item.as_object().expect("methods").values() {
            assert!(operation["summary"].is_string(), "{operation}");
            names.insert(operation["operationId"].as_str().expect("a name").to_owned());
            count += 1;
        }
    }
    assert_eq!(names.len(), count);
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 30);
    for reference in found {
        let at = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(at).is_some(), "{reference}");
    }
}

#[test]
fn every_kind_of_problem_is_listed() {
    let document = document();
    let listed = &document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"];
    for kind in kinds::KINDS {
        let named: Value = problem_type(kind.slug).into();
        assert!(listed.as_array().expect("a list").contains(&named), "{}", kind.slug);
        let response = &document["components"]["responses"][format!("Problem{}", kind.status)];
        let text = response["description"].as_str().expect("text");
        assert!(text.contains(kind.slug) && text.contains(kind.means), "{text}");
    }
}

#[test]
fn examples_are_what_they_are_examples_of() {
    let document = document();
    let schemas = &document["components"]["schemas"];
    let example = schemas["Problem"]["examples"][0].clone();
    let problem: Problem = serde_json::from_value(example).expect("a problem");
    assert!(kinds::is_known(problem.slug(), problem.status));
    let jobs = schemas["JobsBody"]["example"].as_str().expect("an example");
    for line in jobs.lines() {
        crate::document::Instructions::parse(line.as_bytes()).expect("a job");
    }
    assert_eq!(jobs.lines().count(), 2);
    // The schema of pipelines is that of their parser: what has all that it asks for is one.
    let required = schemas["PipelineDocument"]["required"].as_array().expect("a list");
    assert_eq!(required, &[json!("name"), json!("phases")]);
    PipelineDocument::from_json(br#"{"name": "p", "phases": ["a"]}"#).expect("a document");
}

#[test]
fn the_copy_in_the_documentation_is_the_same() {
    let kept = include_str!("../../../../docs/openapi.json");
    assert_eq!(json(), kept, "write what `carbonmesh openapi` prints to docs/openapi.json");
}

/// Numbers that are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, most: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % most
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// A value for a parameter: often one that fits its schema, else anything.
fn value_of(parameter: &Value, chance: &mut Chance) -> String {
    const ANY: [&str; 12] = [
        "",
        "0",
        "-1",
        "999999999999999999999",
        "p",
        "a%00b",
        "%ff",
        "null",
        "x,y",
        "1s",
        "*",
        "ä",
    ];
    let schema = &parameter["schema"];
    if chance.below(3) == 0 {
        return chance.one(&ANY).to_owned();
    }
    // What the node of this test has.
    if parameter["in"] == "path" && schema["format"].is_null() && chance.below(2) == 0 {
        return "p".to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        return values[chance.below(values.len())].as_str().unwrap_or_default().to_owned();
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("integer"), _) => chance.below(1200).to_string(),
        (Some("boolean"), _) => chance.one(&["true", "false"]).to_owned(),
        (_, Some("uuid")) => "0198c2f2-0000-7000-8000-000000000000".to_owned(),
        (_, Some("date-time")) => "2100-01-01T00:00:00Z".to_owned(),
        _ => {
            chance.one(&["p", "self", "10ms", "id", "svg", "000000000000001f", "\"1f\""]).to_owned()
        }
    }
}

fn body_of(chance: &mut Chance) -> &'static str {
    const GOOD: [&str; 2] = [
        "{\"name\": \"p\", \"phases\": [\"a\"]}",
        "{\"language\": \"shell\", \"source\": \"cat\"}",
    ];
    if chance.below(2) == 0 {
        return chance.one(&GOOD);
    }
    chance.one(&[
        "",
        "{}",
        "{\"reason\": \"why\"}",
        "{\"from_start\": true}",
        "{\"name\": \"p\", \"phases\": [\"a\"]}",
        "{\"name\": \"p\", \"phases\": [{\"name\": \"a\", \"after\": [\"a\"]}]}",
        "[1, 2]",
        "null",
        "{\"a\"",
        "{\"name\": \"p\", \"phases\": []}",
    ])
}

#[tokio::test]
async fn requests_made_of_the_document_get_answers_that_it_knows() {
    let router = served();
    let document = document();
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            for _ in 0..60 {
                let (mut target, mut query, mut headers) = (path.clone(), Vec::new(), Vec::new());
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    let parameter = match parameter["$ref"].as_str() {
                        Some(at) => document.pointer(&at[1..]).expect("a parameter"),
                        None => parameter,
                    };
                    let name = parameter["name"].as_str().expect("a name");
                    let value = value_of(parameter, &mut chance);
                    let given = parameter["required"] == true || chance.below(3) == 0;
                    match parameter["in"].as_str() {
                        Some("path") => {
                            let value = if value.is_empty() { "p" } else { &value };
                            target = target.replace(&format!("{{{name}}}"), value);
                        }
                        Some("query") if given => query.push(format!("{name}={value}")),
                        Some("header") if given => headers.push((name.to_owned(), value)),
                        _ => {}
                    }
                }
                let target = format!("{target}?{}", query.join("&"))
                    .replace('ä', "%C3%A4")
                    .replace('"', "%22");
                let mut request = HttpRequest::builder()
                    .method(method.to_uppercase().as_str())
                    .uri(&target)
                    .header("host", "localhost")
                    .header("content-type", "application/json");
                for (name, value) in headers {
                    request = request.header(name, value.as_bytes());
                }
                let request = request.body(Body::from(body_of(&mut chance)));
                let (status, body) = send(&router, request.expect("a request")).await;
                *seen.entry(status).or_default() += 1;
                // This node has no machine of which it could tell.
                let starting = path == "/v1/facts" && body["type"] == problem_type("starting");
                assert!(status < 500 || starting, "{method} {target}: {body}");
                let listed = operation["responses"].get(status.to_string());
                assert!(listed.is_some(), "{method} {target}: {status} is not listed: {body}");
            }
        }
    }
    // It is no test if all is refused.
    for status in [200, 204, 400, 404, 422] {
        assert!(seen.contains_key(&status), "{seen:?}");
    }
}
