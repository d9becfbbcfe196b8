//! Documents of handlers.

use carbonmesh_protocol::handler::{HandlerEntry, HandlerVersion, Language};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::rfc3339;
use crate::http::openapi::schemas::language;

/// All handlers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandlersDoc {
    /// In order of their phases.
    pub handlers: Vec<HandlerDoc>,
}

/// The handler of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandlerDoc {
    /// The phase that it runs.
    pub phase: String,
    /// In what it is written.
    #[schema(schema_with = language)]
    pub language: Language,
    /// What names its source.
    pub sha256: String,
    /// How large that is.
    pub bytes: usize,
    /// How many attempts of it a node runs at once.
    pub slots: u32,
    /// What a node must have to offer it.
    pub requires: Vec<String>,
    /// The sources that it has and had, the latest first.
    pub versions: Vec<HandlerVersionDoc>,
    /// The source, if one handler is asked for: text, or a module in Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// A source that a handler has or had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandlerVersionDoc {
    /// What names it.
    pub sha256: String,
    /// When it was put.
    #[schema(format = DateTime)]
    pub put_at: String,
    /// With which of the handler's changes, counted from 1.
    pub change: u64,
}

impl From<&HandlerVersion> for HandlerVersionDoc {
    fn from(version: &HandlerVersion) -> Self {
        Self {
            sha256: version.hash.to_string(),
            put_at: rfc3339(version.put_ms),
            change: version.generation,
        }
    }
}

/// A handler was put.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HandlerPutDoc {
    /// For which phase.
    pub phase: String,
    /// What names its source.
    pub sha256: String,
    /// Whether that is new.
    pub changed: bool,
    /// On how many nodes it is on disk.
    pub copies: u32,
}

/// A source as documents have it: text, or Base64 where it is none.
pub(crate) fn source_text(language: Language, source: &[u8]) -> String {
    match language.is_text() {
        true => String::from_utf8_lossy(source).into_owned(),
        false => BASE64.encode(source),
    }
}

impl HandlerDoc {
    /// All of it; nothing if it was removed.
    pub(crate) fn with_source(entry: &HandlerEntry) -> Option<Self> {
        let handler = entry.handler.as_ref()?;
        let source = source_text(handler.language, &handler.source);
        Some(Self { source: Some(source), ..Self::without_source(entry)? })
    }

    /// What there is to say of it; nothing if it was removed.
    pub(crate) fn without_source(entry: &HandlerEntry) -> Option<Self> {
        let handler = entry.handler.as_ref()?;
        let latest = entry.versions.first()?;
        Some(Self {
            phase: entry.phase.to_string(),
            language: handler.language,
            // Known already: hashing hundreds of sources for each list would take its time.
            sha256: latest.hash.to_string(),
            bytes: handler.source.len(),
            slots: handler.slots,
            requires: handler.requires.iter().map(ToString::to_string).collect(),
            versions: entry.versions.iter().map(HandlerVersionDoc::from).collect(),
            source: None,
        })
    }
}
