//! Problem documents (RFC 9457): how this interface says no.
//!
//! One place decides which refusal has which status, so that clients can tell "change the request"
//! (4xx) from "try again, perhaps elsewhere" (429, 5xx).

use std::borrow::Cow;

use axum::{
    http::{
        StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use carbonmesh_protocol::{io::Refusal, secret::MAX_SECRETS};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    document::{DocumentError, InstructionsError},
    handle::Stopped,
};

/// How long a client that was sent away should stay away, in seconds: long enough for some jobs to
/// end, or for a lease to expire and another replica to take over.
const RETRY_BUSY_S: u64 = 1;
const RETRY_NO_REPLICA_S: u64 = 3;

/// A refusal as clients get it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind it is: `urn:carbonmesh:problem:` and a word that does not change.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: Cow<'static, str>,
    /// The HTTP status.
    pub status: u16,
    /// What was wrong this time, and the way out.
    pub detail: String,
    /// After how many seconds it may go better, if it may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u64>,
    /// Values that the detail names, for programs.
    #[serde(flatten)]
    pub values: Map<String, Value>,
}

impl Problem {
    /// A problem of the kind `slug`.
    pub(crate) fn new(
        status: StatusCode,
        slug: &str,
        title: &'static str,
        detail: impl Into<String>,
    ) -> Self {
        #[cfg(test)]
        assert!(super::kinds::is_known(slug, status.as_u16()), "{slug} is not among the kinds");
        Self {
            kind: format!("urn:carbonmesh:problem:{slug}"),
            title: title.into(),
            status: status.as_u16(),
            detail: detail.into(),
            retry_after_s: None,
            values: Map::new(),
        }
    }

    /// Adds a value for programs.
    pub(crate) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to try again.
    fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// The request itself is malformed.
    pub(crate) fn bad_request(slug: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, slug, "bad request", detail)
    }

    /// More bytes than allowed; `what` begins the sentence.
    pub(crate) fn too_large(what: &str, limit: usize) -> Self {
        let detail = format!("{what} is larger than {limit} bytes, which is the limit");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "too large", detail)
            .with("limit", limit)
    }

    /// The node gave an answer that belongs to another question: a defect.
    pub(crate) fn unexpected(answer: &carbonmesh_protocol::io::Response) -> Self {
        tracing::error!(?answer, "the node's answer does not fit the request");
        let detail = "the node's answer does not fit the request: this is a defect, see its log";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "internal error", detail)
    }

    /// The word that tells its kind.
    pub(crate) fn slug(&self) -> &str {
        self.kind.strip_prefix("urn:carbonmesh:problem:").unwrap_or(&self.kind)
    }

    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status_code(), axum::Json(&self)).into_response();
        let headers = response.headers_mut();
        headers
            .insert(CONTENT_TYPE, axum::http::HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        // For the guard, and the layer that adds whose request it answers.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Stopped> for Problem {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Before => Refusal::Stopping.into(),
            Stopped::Unanswered => Refusal::Unknown.into(),
        }
    }
}

impl From<InstructionsError> for Problem {
    fn from(error: InstructionsError) -> Self {
        let detail = error.to_string();
        match error {
            InstructionsError::NotAnObject(_) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "not-an-object", "no object", detail)
            }
            _ => Self::bad_request("bad-json", detail),
        }
    }
}

impl From<DocumentError> for Problem {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Syntax(_) => Self::bad_request("bad-json", error.to_string()),
            _ => Self::invalid_pipeline(error.to_string()),
        }
    }
}

impl Problem {
    /// The document is readable, and no pipeline.
    pub(crate) fn invalid_pipeline(detail: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self::new(status, "invalid-pipeline", "invalid pipeline", detail)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        use StatusCode as Status;
        let problem = |status, slug, title| Self::new(status, slug, title, refusal.to_string());
        match &refusal {
            Refusal::UnknownPipeline { known, .. } => {
                problem(Status::NOT_FOUND, "unknown-pipeline", "unknown pipeline")
                    .with("known", known.clone())
            }
            Refusal::UnknownJob(_) => problem(Status::NOT_FOUND, "unknown-job", "unknown job"),
            Refusal::TooLarge { limit, .. } => {
                problem(Status::PAYLOAD_TOO_LARGE, "too-large", "too large").with("limit", *limit)
            }
            Refusal::KeyLength { limit, .. } => {
                problem(Status::BAD_REQUEST, "key-length", "bad idempotency key")
                    .with("limit", *limit)
            }
            Refusal::KeyConflict { job, .. } => {
                problem(Status::CONFLICT, "key-conflict", "idempotency key in use")
                    .with("instance", format!("/v1/jobs/{job}"))
                    .with("job", job.to_string())
            }
            Refusal::Busy { waiting, limit } => {
                problem(Status::TOO_MANY_REQUESTS, "busy", "too many jobs wait")
                    .with("waiting", *waiting)
                    .with("limit", *limit)
                    .retry_after(RETRY_BUSY_S)
            }
            Refusal::MemoryFull { bytes, limit } => {
                problem(Status::TOO_MANY_REQUESTS, "memory-full", "too many jobs wait")
                    .with("bytes", *bytes)
                    .with("limit", *limit)
                    .retry_after(RETRY_BUSY_S)
            }
            Refusal::TooManyRequests(limit) => {
                problem(Status::TOO_MANY_REQUESTS, "too-many-requests", "too many requests")
                    .with("limit", *limit)
                    .retry_after(RETRY_BUSY_S)
            }
            Refusal::StorageFull(_) => {
                problem(Status::INSUFFICIENT_STORAGE, "storage-full", "storage full")
            }
            Refusal::NoReplica => {
                problem(Status::SERVICE_UNAVAILABLE, "no-replica", "no replica reachable")
                    .retry_after(RETRY_NO_REPLICA_S)
            }
            Refusal::Unknown => problem(Status::GATEWAY_TIMEOUT, "unknown", "outcome unknown"),
            Refusal::PipelineInUse { unfinished, .. } => {
                problem(Status::CONFLICT, "pipeline-in-use", "pipeline in use")
                    .with("unfinished", *unfinished)
            }
            Refusal::NoCoordinator(_) => {
                problem(Status::SERVICE_UNAVAILABLE, "no-coordinator", "no coordinator")
                    .retry_after(RETRY_NO_REPLICA_S)
            }
            Refusal::WhichPartition { .. } => {
                problem(Status::BAD_REQUEST, "which-partition", "partition needed")
            }
            Refusal::TooManyPipelines(limit) => {
                problem(Status::CONFLICT, "too-many-pipelines", "too many pipelines")
                    .with("limit", *limit)
            }
            Refusal::WrongState { state, .. } => {
                problem(Status::CONFLICT, "wrong-state", "the job's state does not allow it")
                    .with("state", state.name())
            }
            Refusal::Unsettled(_) => {
                problem(Status::SERVICE_UNAVAILABLE, "unsettled", "replicas are not up to date")
                    .retry_after(RETRY_NO_REPLICA_S)
            }
            Refusal::PartOf { parent, .. } => {
                problem(Status::CONFLICT, "part-of", "it goes with the job that it is a part of")
                    .with("parent", parent.to_string())
            }
            Refusal::Compensating { by, .. } => {
                problem(Status::CONFLICT, "compensating", "what the job has done is not undone yet")
                    .with("by", by.to_string())
            }
            Refusal::Compensated(_) => {
                problem(Status::CONFLICT, "compensated", "what the job had done was undone")
            }
            Refusal::NotAwaited { .. } => {
                problem(Status::CONFLICT, "not-awaited", "nothing waits for the signal")
            }
            Refusal::UnknownStep { .. } => {
                problem(Status::NOT_FOUND, "unknown-phase", "unknown phase")
            }
            Refusal::InvalidPipeline(detail) => Self::invalid_pipeline(detail.clone()),
            Refusal::NotGateway => {
                problem(Status::SERVICE_UNAVAILABLE, "not-gateway", "not a gateway")
            }
            Refusal::Stopping => problem(Status::SERVICE_UNAVAILABLE, "stopping", "node stopping"),
            Refusal::NotRecoverable(_) => {
                problem(Status::CONFLICT, "not-recoverable", "not recovered")
            }
            Refusal::InvalidHandler(_) => {
                problem(Status::UNPROCESSABLE_ENTITY, "invalid-handler", "invalid handler")
            }
            Refusal::UnknownHandler { known, .. } => {
                problem(Status::NOT_FOUND, "unknown-handler", "unknown handler")
                    .with("known", known.clone())
            }
            Refusal::HandlerInUse { pipelines, .. } => {
                problem(Status::CONFLICT, "handler-in-use", "handler in use")
                    .with("pipelines", pipelines.clone())
            }
            Refusal::TooManyHandlers(limit) => {
                problem(Status::CONFLICT, "too-many-handlers", "too many handlers")
                    .with("limit", *limit)
            }
            Refusal::InvalidSecret(_) => {
                problem(Status::UNPROCESSABLE_ENTITY, "invalid-secret", "invalid value or secret")
            }
            Refusal::UnknownSecret(_) => {
                problem(Status::NOT_FOUND, "unknown-secret", "unknown value or secret")
            }
            Refusal::TooManySecrets { .. } => {
                problem(Status::CONFLICT, "too-many-secrets", "too many values and secrets")
                    .with("limit", MAX_SECRETS)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_stopped_before_it_answered_refused_nothing() {
        assert_eq!(Problem::from(Stopped::Before).status, 503);
        assert_eq!(Problem::from(Stopped::Unanswered).status, 504);
    }

    #[test]
    fn every_refusal_has_its_status_and_kind() {
        let job = carbonmesh_protocol::id::JobId::MIN;
        let cases = [
            (Refusal::UnknownPipeline { name: "p".into(), known: vec![] }, 404, "unknown-pipeline"),
            (Refusal::UnknownJob(job), 404, "unknown-job"),
            (Refusal::TooLarge { bytes: 2, limit: 1 }, 413, "too-large"),
            (Refusal::KeyLength { bytes: 0, limit: 255 }, 400, "key-length"),
            (Refusal::KeyConflict { key: "k".into(), job }, 409, "key-conflict"),
            (Refusal::Busy { waiting: 2, limit: 2 }, 429, "busy"),
            (Refusal::MemoryFull { bytes: 2, limit: 1 }, 429, "memory-full"),
            (Refusal::TooManyRequests(1), 429, "too-many-requests"),
            (Refusal::StorageFull("disk".into()), 507, "storage-full"),
            (Refusal::NoReplica, 503, "no-replica"),
            (Refusal::Unknown, 504, "unknown"),
            (Refusal::PipelineInUse { name: "p".into(), unfinished: 1 }, 409, "pipeline-in-use"),
            (Refusal::NoCoordinator("p".into()), 503, "no-coordinator"),
            (Refusal::TooManyPipelines(1), 409, "too-many-pipelines"),
            (Refusal::InvalidPipeline("why".into()), 422, "invalid-pipeline"),
            (
                Refusal::WrongState {
                    job,
                    state: carbonmesh_protocol::view::JobState::Dead,
                    needs: carbonmesh_protocol::io::ChangeName::Cancelled,
                },
                409,
                "wrong-state",
            ),
            (Refusal::Unsettled(job), 503, "unsettled"),
            (Refusal::PartOf { job, parent: job }, 409, "part-of"),
            (Refusal::Compensating { job, by: job }, 409, "compensating"),
            (Refusal::Compensated(job), 409, "compensated"),
            (Refusal::NotAwaited { job, signal: "s".into() }, 409, "not-awaited"),
            (
                Refusal::UnknownStep { step: "s".into(), known: vec!["a".into()] },
                404,
                "unknown-phase",
            ),
            (Refusal::NotGateway, 503, "not-gateway"),
            (Refusal::Stopping, 503, "stopping"),
            (Refusal::NotRecoverable(String::new()), 409, "not-recoverable"),
            (Refusal::InvalidHandler("why".into()), 422, "invalid-handler"),
            (Refusal::UnknownHandler { phase: "p".into(), known: vec![] }, 404, "unknown-handler"),
            (
                Refusal::HandlerInUse { phase: "p".into(), pipelines: vec!["q".into()] },
                409,
                "handler-in-use",
            ),
            (Refusal::TooManyHandlers(1), 409, "too-many-handlers"),
            (Refusal::InvalidSecret("why".into()), 422, "invalid-secret"),
            (Refusal::UnknownSecret("KEY".into()), 404, "unknown-secret"),
            (
                Refusal::TooManySecrets {
                    whose: "w".into(),
                    there: 1,
                    most: 1,
                    places: 1,
                    most_places: 1,
                },
                409,
                "too-many-secrets",
            ),
        ];
        for (refusal, status, slug) in cases {
            let again = ["no-replica", "no-coordinator", "unsettled"].contains(&slug);
            let retry = status == 429 || again;
            let detail = refusal.to_string();
            let problem = Problem::from(refusal);
            assert_eq!(problem.status, status, "{slug}");
            assert_eq!(problem.kind, format!("urn:carbonmesh:problem:{slug}"));
            assert_eq!(problem.detail, detail);
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), retry, "{slug}");
        }
    }
}
