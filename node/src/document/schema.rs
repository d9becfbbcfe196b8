//! The pipeline document as a JSON Schema, for editors: made of the types that read it.

use schemars::{Schema, SchemaGenerator, json_schema, schema_for};

use super::PipelineDocument;

/// The schema of pipeline documents, in JSON.
pub fn json_schema() -> String {
    let mut text = serde_json::to_string_pretty(&schema_for!(PipelineDocument)).unwrap_or_default();
    text.push('\n');
    text
}

// The protocol's own types know no schemas.

pub(super) fn quorum(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["any", "majority"] })
}

pub(super) fn input(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["merge", "replace", "named"] })
}

pub(super) fn combine(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["group", "list"] })
}

pub(super) fn missed(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["skip", "last", "all"] })
}

pub(super) fn overlap(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "enum": ["allow", "skip"] })
}
