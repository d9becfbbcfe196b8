//! Schemas that no derive can make: of the protocol's own types, of pipeline documents, of problems;
//! and what operations say of paths and refusals in common.

use std::{borrow::Cow, collections::BTreeMap};

use carbonmesh_protocol::{
    event::{EventKind, LogLevel},
    handler::Language,
    view::{Counts, ItemsView, JobState, Liveness},
};
use schemars::generate::SchemaSettings;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::{
    IntoParams, IntoResponses, PartialSchema, ToSchema,
    openapi::{
        Ref, RefOr,
        response::Response,
        schema::{OneOfBuilder, Schema, SchemaType, Type},
    },
};

use crate::{document::PipelineDocument, http::kinds};

/// What `?fields=` takes; the limits on number and depth are left to the server.
pub(super) const FIELDS: &str =
    r"^[-_a-zA-Z0-9]+(\.[-_a-zA-Z0-9]+){0,7}(,[-_a-zA-Z0-9]+(\.[-_a-zA-Z0-9]+){0,7}){0,15}$";

fn reference(name: &str) -> RefOr<Schema> {
    Ref::from_schema_name(name).into()
}

/// What may be `null`.
fn or_null(name: &str) -> RefOr<Schema> {
    let null = utoipa::openapi::schema::ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Null))
        .build();
    let either = OneOfBuilder::new().item(null).item(Ref::from_schema_name(name)).build();
    RefOr::T(either.into())
}

/// [`JobState`]
pub(in crate::http) fn job_state() -> RefOr<Schema> {
    reference("JobState")
}

/// [`JobState`] where a parameter is one.
pub(in crate::http) struct JobStateName;

impl PartialSchema for JobStateName {
    fn schema() -> RefOr<Schema> {
        job_state()
    }
}

impl ToSchema for JobStateName {
    fn name() -> Cow<'static, str> {
        "JobState".into()
    }
}

/// A problem document
pub(in crate::http) fn problem_document() -> RefOr<Schema> {
    reference("Problem")
}

/// [`Liveness`]
pub(in crate::http) fn liveness() -> RefOr<Schema> {
    reference("Liveness")
}

/// [`Counts`], or nothing
pub(in crate::http) fn counts() -> RefOr<Schema> {
    or_null("Counts")
}

/// [`ItemsView`]
pub(in crate::http) fn items() -> RefOr<Schema> {
    reference("Items")
}

/// [`PipelineDocument`]
pub(in crate::http) fn pipeline_document() -> RefOr<Schema> {
    reference("PipelineDocument")
}

/// [`Language`]
pub(in crate::http) fn language() -> RefOr<Schema> {
    reference("Language")
}

/// [`EventKind`]
pub(in crate::http) fn event_kind() -> RefOr<Schema> {
    reference("EventKind")
}

/// [`LogLevel`]
pub(in crate::http) fn log_level() -> RefOr<Schema> {
    reference("LogLevel")
}

/// How far back a history goes
pub(in crate::http) fn history_range() -> RefOr<Schema> {
    reference("HistoryRange")
}

/// Everything that is referred to and not made by a derive.
pub(super) fn all() -> Map<String, Value> {
    let settings = SchemaSettings::draft2020_12()
        .with(|it| it.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let _reference = generator.subschema_for::<PipelineDocument>();
    let mut all = generator.take_definitions(true);
    let states = JobState::ALL.map(JobState::name);
    let levels = [LogLevel::Debug, LogLevel::Info, LogLevel::Warning, LogLevel::Error];
    let liveness = [Liveness::Alive, Liveness::Suspect, Liveness::Down, Liveness::Retired];
    all.extend([
        ("JobState".to_owned(), json!({ "type": "string", "enum": states })),
        (
            "Liveness".to_owned(),
            json!({ "type": "string", "enum": liveness.map(|it| it.to_string()) }),
        ),
        (
            "Language".to_owned(),
            json!({ "type": "string", "enum": Language::ALL.map(Language::name) }),
        ),
        ("EventKind".to_owned(), event_kinds()),
        ("LogLevel".to_owned(), json!({ "type": "string", "enum": levels.map(LogLevel::name) })),
        ("HistoryRange".to_owned(), json!({ "type": "string", "enum": ["hour", "day"] })),
        ("Counts".to_owned(), numbers("A pipeline's jobs by state.", &Counts::default())),
        (
            "Items".to_owned(),
            numbers(
                "How far the items of a phase are.",
                &ItemsView { total: 0, ended: 0, failed: 0 },
            ),
        ),
        ("Problem".to_owned(), problem()),
    ]);
    all
}

fn event_kinds() -> Value {
    let kinds: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
    json!({
        "type": "string",
        "description": "Later releases may have more: skip those that you do not know.",
        "enum": kinds,
    })
}

/// An object all of whose fields are counts.
fn numbers(about: &str, example: &impl Serialize) -> Value {
    let example = serde_json::to_value(example).unwrap_or_default();
    let names: Vec<&String> = example.as_object().into_iter().flat_map(Map::keys).collect();
    let count = json!({ "type": "integer", "minimum": 0 });
    let properties = names.iter().map(|name| ((*name).clone(), count.clone()));
    json!({
        "type": "object",
        "description": about,
        "required": names,
        "properties": properties.collect::<Map<_, _>>(),
    })
}

fn problem() -> Value {
    let kinds: Vec<String> =
        kinds::KINDS.iter().map(|kind| super::problem_type(kind.slug)).collect();
    json!({
        "type": "object",
        "description": "Why something was not done (RFC 9457). Unless it says otherwise, nothing was \
                        changed. Some kinds have more fields, such as `limit` or `known`.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string", "enum": kinds },
            "title": { "type": "string", "description": "The kind in words." },
            "status": { "type": "integer", "description": "The HTTP status." },
            "detail": {
                "type": "string", "description": "What was wrong this time, and the way out."
            },
            "retry_after_s": {
                "type": "integer", "minimum": 0,
                "description": "After how many seconds it may go better, if it may.",
            },
            "request_id": { "type": "string", "description": "Whose request it answers." },
        },
        "examples": [{
            "type": super::problem_type("unknown-pipeline"),
            "title": "unknown pipeline",
            "status": 404,
            "detail": "no pipeline is named `reprots`: known are reports",
            "known": ["reports"],
            "request_id": "9f0c2b7d5e1a48c3b6d0e8f7a1c2b3d4",
        }],
    })
}

/// A pipeline's name in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is read by the derive alone")]
pub(in crate::http) struct PipelinePath {
    /// The pipeline: `NAME`, or `NAMESPACE/NAME` (with `%2F` for the slash).
    #[param(
        pattern = "^([a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}/)?[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$",
        example = "reports"
    )]
    name: String,
}

/// A phase's name in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is read by the derive alone")]
pub(in crate::http) struct PhasePath {
    /// The phase: `NAME`, or `NAMESPACE/NAME` (with `%2F` for the slash).
    #[param(
        pattern = "^([a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}/)?[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$",
        example = "render"
    )]
    phase: String,
}

/// What is kept for a namespace, in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is read by the derive alone")]
pub(in crate::http) struct SecretPath {
    /// Of which namespace.
    #[param(pattern = "^[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$", example = "default")]
    namespace: String,
    /// What phases know it by.
    #[param(pattern = "^[a-zA-Z_][_a-zA-Z0-9]{0,127}$", example = "LEDGER_KEY")]
    secret: String,
}

/// A job's id in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "it is read by the derive alone")]
pub(in crate::http) struct JobPath {
    /// The job.
    #[param(format = "uuid")]
    id: String,
}

/// The problems of some statuses, beside those that every path may end in.
fn refusals(statuses: &[u16]) -> BTreeMap<String, RefOr<Response>> {
    let refusal = |status: &u16| {
        let name = format!("Problem{status}");
        (status.to_string(), RefOr::Ref(Ref::from_response_name(name)))
    };
    statuses.iter().map(refusal).collect()
}

macro_rules! refusals {
    ($($(#[$about:meta])* $name:ident: $statuses:expr;)*) => {$(
        $(#[$about])*
        pub(in crate::http) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                refusals(&$statuses)
            }
        }
    )*};
}

refusals! {
    /// There may be no such thing.
    Missing: [404];
    /// A pipeline's document may not do.
    Document: [408, 409, 412, 413, 415, 422, 507];
    /// A document that is only looked at may not do.
    Looked: [404, 408, 413, 415, 422];
    /// Jobs may not be taken.
    Enqueue: [404, 408, 409, 413, 415, 422, 507];
    /// A change may not fit.
    Change: [404, 408, 409, 413, 415];
    /// The same, with a job's data.
    Signal: [404, 408, 409, 413, 415, 422];
    /// A thing may be in use.
    InUse: [404, 409];
    /// There may be no such thing, or no such form of it.
    Stream: [404, 406];
    /// No form of it may be what the client takes.
    Form: [406];
    /// A handler may not do.
    Handler: [408, 409, 413, 415, 422, 507];
    /// A value or secret may not do.
    Secret: [408, 409, 413, 415, 422, 507];
    /// A backup may not be made.
    Backup: [408, 409, 413, 415, 507];
    /// Logs may not be the node's.
    Logs: [409];
    /// The same, with a document.
    LogLevels: [408, 409, 413, 415];
}
