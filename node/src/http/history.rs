//! The route of what pipelines did within the last hour or day, as the node that is asked has seen it.

use axum::{Json, extract::State};
use carbonmesh_protocol::{io::Refusal, name::Name};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Api, Problem,
    access::{Access, scope::Verb},
    extract::{Parameters, parsed},
    openapi::schemas::{Missing, history_range},
    pipelines::cluster,
    view::HistoryDoc,
};
use crate::history::Range;

/// How many pipelines a refusal names.
const NAMED: usize = 10;

/// What is asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Query {
    /// Of this pipeline; of all together unless given.
    #[serde(default, deserialize_with = "parsed")]
    #[param(value_type = String, required = false, pattern = "^([a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}/)?[a-zA-Z0-9][-_.a-zA-Z0-9]{0,62}$")]
    pipeline: Option<Name>,
    /// How far back: an hour unless given.
    #[serde(default, deserialize_with = "parsed")]
    #[param(schema_with = history_range, required = false)]
    range: Option<Range>,
}

/// `GET /v1/history?pipeline=&range=`
#[utoipa::path(
    get, path = "/v1/history", tag = "cluster", operation_id = "history",
    summary = "What pipelines did within the last hour or day, as the node that is asked has seen it",
    params(Query),
    responses((status = 200, description = "By steps of time", body = HistoryDoc), Missing)
)]
pub(super) async fn history(
    State(api): State<Api>,
    access: Access,
    Parameters(query): Parameters<Query>,
) -> Result<Json<HistoryDoc>, Problem> {
    let Query { pipeline, range } = query;
    match &pipeline {
        Some(name) => access.check(Verb::Read, name.as_str())?,
        // Sums tell of pipelines that the caller may not see.
        None => access.check_all(Verb::Read)?,
    }
    if let Some(name) = &pipeline {
        let cluster = cluster(&api).await?;
        if !cluster.pipelines.iter().any(|one| one.definition.name == *name) {
            let known = cluster.pipelines.iter().take(NAMED);
            let known = known.map(|one| one.definition.name.to_string()).collect();
            return Err(Refusal::UnknownPipeline { name: name.to_string(), known }.into());
        }
    }
    let range = range.unwrap_or(Range::Hour);
    let steps = api.handle.history().steps(pipeline.as_ref(), range);
    Ok(Json(HistoryDoc::new(pipeline.as_ref(), range, &steps)))
}
