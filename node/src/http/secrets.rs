//! Routes of the values and secrets for phases that the cluster keeps: put, list, show, remove.
//!
//! What comes is sealed already: no node and no route here has, or gives back, what it says.

use axum::{
    Json,
    body::Body,
    extract::{FromRequestParts, Path, State},
    http::{HeaderMap, StatusCode, request::Parts},
};
use carbonmesh_protocol::{
    io::{Refusal, Request, Response as Answer},
    name::Namespace,
    secret::{KeyId, MAX_SECRET_BYTES, Pattern, Place, Sealed, SecretEntry},
};
use data_encoding::BASE64;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Problem,
    access::Access,
    extract::{Parameters, media_type, read_body, wrong_media_type},
    openapi::schemas::{self, Missing, SecretPath},
    view::{SecretDoc, SecretPutDoc, SecretsDoc},
};

/// The largest document: what is sealed in Base64, and what is beside it.
const DOCUMENT_BYTES: usize = 2 * MAX_SECRET_BYTES + (4 << 10);

/// A value or secret as a client hands it in: sealed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SealedDoc {
    /// What tells the key apart that it is sealed with.
    #[schema(pattern = "^[0-9a-f]{16}$")]
    key: String,
    /// Whether it is a secret, hidden in what nodes log; otherwise a value.
    hidden: bool,
    /// Nonce, cipher text and tag of XChaCha20-Poly1305, in Base64.
    sealed: String,
}

/// Whose it is, within the namespace.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PlaceParameters {
    /// Of which pipelines: a name, or how it begins and a `*`; all unless given.
    #[param(required = false)]
    pipeline: Option<String>,
    /// Of which phases, likewise.
    #[param(required = false)]
    phase: Option<String>,
}

/// Which place is meant, by path and query.
pub(super) struct At(Place);

impl<S: Send + Sync> FromRequestParts<S> for At {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let wrong = |reason: String| Problem::bad_request("bad-path", reason);
        let Path((namespace, name)) = Path::<(String, String)>::from_request_parts(parts, state)
            .await
            .map_err(|rejection| wrong(rejection.body_text()))?;
        let Parameters(PlaceParameters { pipeline, phase }) =
            Parameters::from_request_parts(parts, state).await?;
        let namespace: Namespace = namespace.parse().map_err(|error| wrong(format!("{error}")))?;
        let pattern = |field: &str, text: Option<String>| match text {
            None => Ok(Pattern::default()),
            Some(text) => Pattern::new(&text).map_err(|error| {
                let reason = format!("{field}: `{text}` is not possible: {error}");
                Problem::bad_request("bad-query", reason)
            }),
        };
        let (pipeline, phase) = (pattern("pipeline", pipeline)?, pattern("phase", phase)?);
        let place = Place { namespace, pipeline, phase, name };
        place.check().map_err(wrong)?;
        Ok(Self(place))
    }
}

/// `GET /v1/secrets`
#[utoipa::path(
    get, path = "/v1/secrets", tag = "cluster", operation_id = "listSecrets",
    summary = "The values and secrets that the cluster keeps for phases, without what they say",
    responses((status = 200, description = "In order of their places", body = SecretsDoc))
)]
pub(super) async fn list(
    State(api): State<Api>,
    access: Access,
) -> Result<Json<SecretsDoc>, Problem> {
    let all = all(&api).await?.into_iter();
    let seen = all.filter(|entry| access.sees_all_of(entry.place.namespace.as_str()));
    Ok(Json(SecretsDoc { secrets: seen.filter_map(|entry| SecretDoc::of(&entry)).collect() }))
}

/// `GET /v1/secrets/{namespace}/{secret}?pipeline=&phase=`
#[utoipa::path(
    get, path = "/v1/secrets/{namespace}/{secret}", tag = "cluster", operation_id = "showSecret",
    summary = "What is known of one value or secret, but for what it says",
    params(SecretPath, PlaceParameters),
    responses((status = 200, description = "It is kept", body = SecretDoc), Missing)
)]
pub(super) async fn show(
    State(api): State<Api>,
    At(place): At,
) -> Result<Json<SecretDoc>, Problem> {
    let found = all(&api).await?.into_iter().find(|entry| entry.place == place);
    let found = found.as_ref().and_then(SecretDoc::of);
    found.map(Json).ok_or_else(|| Refusal::UnknownSecret(place.to_string()).into())
}

/// `PUT /v1/secrets/{namespace}/{secret}?pipeline=&phase=`
#[utoipa::path(
    put, path = "/v1/secrets/{namespace}/{secret}", tag = "cluster", operation_id = "putSecret",
    summary = "Give the cluster a sealed value or secret for phases",
    description = "Every node keeps it. Attempts that begin from now on get it, where the node has its key.",
    params(SecretPath, PlaceParameters),
    request_body(content = SealedDoc, content_type = "application/json"),
    responses((status = 200, description = "It is on disk", body = SecretPutDoc), schemas::Secret)
)]
pub(super) async fn put(
    State(api): State<Api>,
    At(place): At,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SecretPutDoc>, Problem> {
    match media_type(&headers).as_str() {
        "application/json" => {}
        other => return Err(wrong_media_type(other, "application/json")),
    }
    let json = read_body(body, DOCUMENT_BYTES).await?;
    let SealedDoc { key, hidden, sealed } = serde_json::from_slice(&json)
        // What was sent is not told again: it may be a secret that somebody forgot to seal.
        .map_err(|error| {
            let (line, column) = (error.line(), error.column());
            Problem::bad_request(
                "bad-json",
                format!("line {line}, column {column}: an object with key, hidden and sealed is expected"),
            )
        })?;
    let key = KeyId::parse(&key).ok_or_else(|| {
        Refusal::InvalidSecret("key: it is no id of a key: 16 digits of 0-9 and a-f".to_owned())
    })?;
    let bytes = BASE64
        .decode(sealed.as_bytes())
        .map_err(|error| Refusal::InvalidSecret(format!("sealed: it is no Base64: {error}")))?;
    let sealed = Box::new(Sealed { key, hidden, bytes: bytes.into() });
    let request = Request::PutSecret { place: Box::new(place.clone()), sealed };
    match api.ask(request).await? {
        Answer::SecretPut { changed_ms, copies } => {
            Ok(Json(SecretPutDoc::new(&place, key, hidden, changed_ms, copies)))
        }
        other => Err(Problem::unexpected(&other)),
    }
}

/// `DELETE /v1/secrets/{namespace}/{secret}?pipeline=&phase=`
#[utoipa::path(
    delete, path = "/v1/secrets/{namespace}/{secret}", tag = "cluster", operation_id = "removeSecret",
    summary = "Forget a value or secret: attempts that begin from now on go without it",
    params(SecretPath, PlaceParameters),
    responses((status = 204, description = "It is gone"), Missing)
)]
pub(super) async fn remove(State(api): State<Api>, At(place): At) -> Result<StatusCode, Problem> {
    match api.ask(Request::RemoveSecret(Box::new(place))).await? {
        Answer::Removed => Ok(StatusCode::NO_CONTENT),
        other => Err(Problem::unexpected(&other)),
    }
}

async fn all(api: &Api) -> Result<Vec<SecretEntry>, Problem> {
    match api.ask(Request::Secrets).await? {
        Answer::Secrets(all) => Ok(all),
        other => Err(Problem::unexpected(&other)),
    }
}
