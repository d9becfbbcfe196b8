//! Routes of trust: who this node is in its cluster, and who was shut out of it.
//!
//! What shuts somebody out is signed: whoever may call the route cannot make it up.

use axum::{Json, body::Body, extract::State, http::StatusCode};
use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use carbonmesh_protocol::codec;

use super::{
    Api, Problem,
    extract::read_body,
    openapi::schemas::{Change as Changes, Missing},
};
use crate::trust::{Membership, PublicKey, Revocation, Succession, Trust};

/// The largest entry, as JSON.
const ENTRY_BYTES: usize = 8 << 10;

/// `GET /v1/trust`: who this node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrustDoc {
    /// The cluster: the id of its root's key.
    pub cluster: String,
    /// The node's id.
    pub node: String,
    /// What it may do: worker, replica, gateway.
    pub roles: Vec<String>,
    /// Which phases it may offer; all, if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phases: Option<Vec<String>>,
    /// Since when its certificate is valid, in s since 1970.
    pub not_before_s: u64,
    /// Until when, in s since 1970.
    pub expires_s: u64,
    /// The ids of the keys that let it in, from the root's issuer to the node's own.
    pub chain: Vec<String>,
    /// Whether it renews others' certificates.
    pub renews: bool,
    /// The cluster's roots, the present one last, if others have followed the first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<RootDoc>,
    /// Who was shut out, as far as it knows.
    pub revoked: Vec<RevokedDoc>,
}

/// A root of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RootDoc {
    /// The id of its key.
    pub id: String,
    /// Until when it counts, in s since 1970; the present one counts for as long as nothing follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_s: Option<u64>,
}

/// `POST /v1/trust/successions`: one root takes over from another, signed by both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SuccessionDoc {
    /// It, in base64url.
    pub entry: String,
}

/// What came of a succession.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SucceededDoc {
    /// The id of the root that takes over.
    pub root: String,
    /// Whether that was news to this node.
    pub news: bool,
}

/// A key that was shut out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedDoc {
    /// Its id: a node's, an invitation's or an issuer's.
    pub key: String,
    /// When, in s since 1970.
    pub at_s: u64,
}

/// `POST /v1/trust/revocations`: an entry, signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RevocationDoc {
    /// It, in base64url.
    pub entry: String,
}

/// What came of an entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevokedNowDoc {
    /// Whose key it is about.
    pub key: String,
    /// Whether that was news to this node.
    pub news: bool,
}

impl TrustDoc {
    /// What a membership says.
    pub(crate) fn new(membership: &Membership, renews: bool, revoked: &[Revocation]) -> Self {
        let leaf = membership.chain.leaf();
        let roles = leaf.map(|leaf| leaf.rights.roles.to_string()).unwrap_or_default();
        let phases = leaf.and_then(|leaf| leaf.rights.phases.as_ref());
        let chain = membership.chain.links();
        Self {
            cluster: membership.root.cluster(),
            node: leaf.map(|leaf| format!("{:#}", leaf.subject.id())).unwrap_or_default(),
            roles: roles.split(',').filter(|role| !role.is_empty()).map(str::to_owned).collect(),
            phases: phases.map(|phases| phases.iter().map(ToString::to_string).collect()),
            not_before_s: leaf.map_or(0, |leaf| leaf.not_before_s),
            expires_s: leaf.map_or(0, |leaf| leaf.expires_s),
            chain: chain.map(|link| format!("{:#}", link.subject.id())).collect(),
            renews,
            roots: roots(membership),
            revoked: revoked
                .iter()
                .map(|entry| RevokedDoc { key: format!("{:#}", entry.key), at_s: entry.at_s })
                .collect(),
        }
    }
}

fn roots(membership: &Membership) -> Vec<RootDoc> {
    let id = |key: PublicKey| format!("{:#}", key.id());
    let later = &membership.later;
    let ended = later.iter().map(|one| RootDoc { id: id(one.old()), ends_s: Some(one.ends_s()) });
    let present = later.last().map(|one| RootDoc { id: id(one.successor()), ends_s: None });
    ended.chain(present).collect()
}

/// `POST /v1/trust/successions`
#[utoipa::path(
    post, path = "/v1/trust/successions", tag = "cluster", operation_id = "succeedRoot",
    summary = "Have another root take over",
    description = "The entry is signed by the present root and by the one that follows it.",
    request_body = SuccessionDoc,
    responses((status = 200, description = "It spreads", body = SucceededDoc), Changes)
)]
pub(super) async fn succeed(
    State(api): State<Api>,
    body: Body,
) -> Result<Json<SucceededDoc>, Problem> {
    let trust = trust(&api)?;
    let body = read_body(body, ENTRY_BYTES).await?;
    let bad = |detail: String| Problem::bad_request("bad-succession", detail);
    let document: SuccessionDoc =
        serde_json::from_slice(&body).map_err(|error| bad(format!("the body: {error}")))?;
    let entry = BASE64URL_NOPAD.decode(document.entry.as_bytes());
    let entry = entry.map_err(|error| bad(format!("`entry` is no base64url: {error}")))?;
    let entry: Succession =
        codec::decode(&entry).map_err(|error| bad(format!("`entry` is none: {error}")))?;
    let root = format!("{:#}", entry.successor().id());
    let news = trust.succeed(entry).map_err(|error| {
        let detail = error.to_string();
        Problem::new(StatusCode::FORBIDDEN, "no-successor", "no successor", detail)
    })?;
    Ok(Json(SucceededDoc { root, news }))
}

fn trust(api: &Api) -> Result<&Trust, Problem> {
    api.handle.trust().ok_or_else(|| {
        let detail = "this node's cluster has no certificates: see `carbonmesh cluster init`";
        Problem::new(StatusCode::NOT_FOUND, "no-certificates", "no certificates", detail)
    })
}

/// `GET /v1/trust`
#[utoipa::path(
    get, path = "/v1/trust", tag = "node", operation_id = "showTrust",
    summary = "Who the node is in a cluster with certificates, and who was shut out",
    responses((status = 200, description = "Its certificate", body = TrustDoc), Missing)
)]
pub(super) async fn show(State(api): State<Api>) -> Result<Json<TrustDoc>, Problem> {
    let trust = trust(&api)?;
    Ok(Json(TrustDoc::new(&trust.membership(), trust.is_issuer(), &trust.revocations())))
}

/// `POST /v1/trust/revocations`
#[utoipa::path(
    post, path = "/v1/trust/revocations", tag = "cluster", operation_id = "revoke",
    summary = "Shut a node, an invitation or an issuer out",
    description = "The entry is signed by a key above the one that it shuts out.",
    request_body = RevocationDoc,
    responses((status = 200, description = "It spreads", body = RevokedNowDoc), Changes)
)]
pub(super) async fn revoke(
    State(api): State<Api>,
    body: Body,
) -> Result<Json<RevokedNowDoc>, Problem> {
    let trust = trust(&api)?;
    let body = read_body(body, ENTRY_BYTES).await?;
    let bad = |detail: String| Problem::bad_request("bad-revocation", detail);
    let document: RevocationDoc =
        serde_json::from_slice(&body).map_err(|error| bad(format!("the body: {error}")))?;
    let entry = BASE64URL_NOPAD.decode(document.entry.as_bytes());
    let entry = entry.map_err(|error| bad(format!("`entry` is no base64url: {error}")))?;
    let entry: Revocation =
        codec::decode(&entry).map_err(|error| bad(format!("`entry` is none: {error}")))?;
    let key = format!("{:#}", entry.key);
    let news = trust.learn(vec![entry]).map_err(|error| {
        Problem::new(StatusCode::FORBIDDEN, "not-an-issuer", "not an issuer", error.to_string())
    })?;
    Ok(Json(RevokedNowDoc { key, news: news > 0 }))
}
