//! The document of this interface: OpenAPI 3.1, made of the handlers and documents themselves.
//!
//! What each path takes and gives stands at its handler; what holds for all of them is added here:
//! the problems that any may end in, the request id, the field selection. Tests hold the document to
//! the router, and the copy in `docs/` to the document.

pub(super) mod schemas;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use axum::{
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::{
    bulk, changes, cluster, definitions, events, handlers, history, jobs, kinds, local, notify,
    pipelines, secrets, trust, view,
};

/// Problems that every path may end in.
const ALWAYS: [u16; 7] = [400, 401, 403, 429, 500, 503, 504];

/// What all paths share.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "CarbonMesh",
        description = "Job pipelines on a cluster without a broker. Every node serves this interface; \
                       whatever is asked of one is answered for the whole cluster. Refusals are problem \
                       documents (RFC 9457)."
    ),
    tags(
        (name = "pipelines", description = "What jobs go through"),
        (name = "jobs", description = "What is done"),
        (name = "cluster", description = "Who does it"),
        (name = "node", description = "The node that is asked")
    ),
    paths(
        pipelines::list,
        pipelines::create,
        pipelines::show,
        pipelines::apply,
        pipelines::remove,
        pipelines::revisions,
        pipelines::pause,
        pipelines::resume,
        local::recover,
        events::of_pipeline,
        definitions::diff,
        definitions::compare,
        definitions::roll_back,
        definitions::graph,
        definitions::schema,
        changes::cancel_many,
        changes::retry_many,
        changes::discard_many,
        jobs::enqueue,
        jobs::list,
        jobs::show,
        jobs::explain,
        events::logs,
        changes::discard,
        changes::cancel,
        changes::retry,
        changes::signal,
        handlers::list,
        handlers::show,
        handlers::put,
        handlers::remove,
        secrets::list,
        secrets::show,
        secrets::put,
        secrets::remove,
        events::of_cluster,
        history::history,
        cluster::nodes,
        cluster::drain,
        cluster::phases,
        cluster::status,
        cluster::version,
        cluster::health,
        cluster::metrics,
        local::back_up,
        local::facts,
        local::levels,
        local::set_levels,
        notify::list,
        notify::test,
        trust::show,
        trust::revoke,
        trust::succeed,
        document,
    ),
    components(schemas(view::LineDoc, view::EventDoc, view::EndDoc, bulk::JobsBody))
)]
struct Document;

/// The document as it is served.
static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut text = serde_json::to_string_pretty(&value()).unwrap_or_default();
    text.push('\n');
    text
});

/// The document, in JSON, as `docs/openapi.json` has it.
pub fn json() -> &'static str {
    &TEXT
}

/// `GET /v1/openapi.json`
#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "node", operation_id = "openapi",
    summary = "This document",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
pub(super) async fn document() -> Response {
    ([(CONTENT_TYPE, "application/json")], json()).into_response()
}

/// The document as a value.
fn value() -> Value {
    let mut document = serde_json::to_value(Document::openapi()).unwrap_or_default();
    // The minimum of the standard's reader; the program's own version is in /v1/version.
    document["info"]["version"] = json!("1");
    if let Some(info) = document["info"].as_object_mut() {
        info.remove("contact");
        info.remove("license");
    }
    document["info"]["license"] = json!({ "name": env!("CARGO_PKG_LICENSE") });
    let paths = document["paths"].as_object_mut();
    for (_, item) in paths.into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            finish(method, operation);
        }
    }
    add(&mut document, "schemas", schemas::all());
    add(&mut document, "responses", problems());
    add(&mut document, "headers", headers());
    add(&mut document, "parameters", parameters());
    add(&mut document, "securitySchemes", security());
    // Where no tokens file is, nobody is asked.
    document["security"] = json!([{}, { "token": [] }]);
    document
}

/// What holds for every operation.
fn finish(method: &str, operation: &mut Value) {
    let reads_json = operation["responses"]["200"]["content"]["application/json"].is_object();
    for (status, response) in operation["responses"].as_object_mut().into_iter().flatten() {
        if response.get("$ref").is_none() {
            let named = json!({ "$ref": "#/components/headers/X-Request-Id" });
            response["headers"]["X-Request-Id"] = named;
            if method == "get" && reads_json && status == "200" {
                response["headers"]["ETag"] = json!({ "$ref": "#/components/headers/ETag" });
            }
        }
    }
    if let Some(body) = operation["requestBody"].as_object_mut() {
        finish_body(body);
    }
    for status in ALWAYS {
        operation["responses"][status.to_string()] = problem_of(status);
    }
    let mut shared = vec!["RequestId"];
    if method == "get" && reads_json {
        shared.extend(["Fields", "IfNoneMatch"]);
        let known =
            json!({ "description": "The document that If-None-Match names is still right" });
        operation["responses"]["304"] = known;
    }
    let parameters = operation["parameters"].take();
    let mut parameters = parameters.as_array().cloned().unwrap_or_default();
    let shared = shared.into_iter().map(|name| format!("#/components/parameters/{name}"));
    parameters.extend(shared.map(|name| json!({ "$ref": name })));
    operation["parameters"] = parameters.into();
}

/// A body that a handler takes as an `Option` may be left out; it is not `null`.
fn finish_body(body: &mut Map<String, Value>) {
    let mut required = true;
    for content in body["content"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        let schema = &mut content["schema"];
        let nullable = json!({ "type": "null" });
        if let Some(either) = schema["oneOf"].as_array().filter(|it| it.contains(&nullable)) {
            let other = either.iter().find(|one| **one != nullable).cloned();
            *schema = other.unwrap_or_default();
            required = false;
        } else if schema["type"] == json!(["object", "null"]) {
            schema["type"] = json!("object");
            required = false;
        }
    }
    body.insert("required".to_owned(), required.into());
}

fn add(document: &mut Value, kind: &str, parts: Map<String, Value>) {
    let components = &mut document["components"][kind];
    for (name, part) in parts {
        components[name] = part;
    }
}

/// A reference to the problems of one status.
fn problem_of(status: u16) -> Value {
    json!({ "$ref": format!("#/components/responses/Problem{status}") })
}

/// One response for each status that problems have: it lists their kinds.
fn problems() -> Map<String, Value> {
    let mut statuses: Vec<u16> = kinds::KINDS.iter().map(|kind| kind.status).collect();
    statuses.dedup();
    let response = |status: u16| {
        let kinds = kinds::of_status(status).map(|kind| format!("`{}`: {}", kind.slug, kind.means));
        let types = kinds::of_status(status).map(|kind| problem_type(kind.slug));
        let types: Vec<String> = types.collect();
        let response = json!({
            "description": kinds.collect::<Vec<_>>().join("; "),
            "headers": { "X-Request-Id": { "$ref": "#/components/headers/X-Request-Id" } },
            "content": { "application/problem+json": {
                "schema": { "allOf": [
                    { "$ref": "#/components/schemas/Problem" },
                    { "properties": { "type": { "enum": types }, "status": { "const": status } } },
                ] },
            } },
        });
        (format!("Problem{status}"), response)
    };
    statuses.into_iter().map(response).collect()
}

fn problem_type(slug: &str) -> String {
    format!("urn:carbonmesh:problem:{slug}")
}

fn headers() -> Map<String, Value> {
    let text = json!({ "type": "string" });
    let header = |about: &str| json!({ "description": about, "schema": text });
    Map::from_iter([
        (
            "X-Request-Id".to_owned(),
            header("The request's id: the client's own, or a new one. Logs name it too."),
        ),
        ("ETag".to_owned(), header("Names what was sent, for If-None-Match.")),
    ])
}

/// How callers say who they are.
fn security() -> Map<String, Value> {
    let token = json!({
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the node's tokens file, if it has one; a client's certificate may \
                        take its place.",
    });
    Map::from_iter([("token".to_owned(), token)])
}

fn parameters() -> Map<String, Value> {
    let parameter = |place: &str, name: &str, about: &str, schema: Value| {
        json!({
            "name": name, "in": place, "required": false, "description": about, "schema": schema,
        })
    };
    Map::from_iter([
        (
            "RequestId".to_owned(),
            parameter(
                "header",
                "X-Request-Id",
                "Names the request, in its answer and in logs: 1 to 128 visible characters. Without \
                 it, or if it is anything else, the request gets an id of its own.",
                json!({ "type": "string" }),
            ),
        ),
        (
            "Fields".to_owned(),
            parameter(
                "query",
                "fields",
                "Of the document, only these fields: names with commas between them, and dots into \
                 what they hold, as in `id,state,invocations.step`. Lists are gone through. What is not \
                 named is left out, also where the schema requires it.",
                json!({ "type": "string", "pattern": schemas::FIELDS, "examples": ["id,state"] }),
            ),
        ),
        (
            "IfNoneMatch".to_owned(),
            parameter(
                "header",
                "If-None-Match",
                "The ETag of what the client has: it is not sent again if it is still right.",
                json!({ "type": "string" }),
            ),
        ),
    ])
}
