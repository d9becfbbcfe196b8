//! A pipeline's earlier definitions: listed, compared, and taken up again.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use carbonmesh_protocol::{name::Name, pipeline::PipelineDef};
use reqwest::Method;

use super::{
    client::{Client, Typed},
    failure::Failure,
    output::{Output, table},
    pipeline::{applied, read},
};
use crate::{
    document::{PipelineDocument, diff},
    http::view::{AppliedDoc, PipelineDoc, RevisionDoc, RevisionsDoc},
};

/// Lists the definitions that are kept, the latest first.
pub(super) async fn list(name: &Name, client: &Client, out: &Output) -> Result<(), Failure> {
    let path = ["pipelines", name.as_str(), "revisions"];
    out.answer(&client.get::<RevisionsDoc>(&path, &[]).await?, |found| {
        let rows = found.revisions.iter().map(|one| {
            [
                one.revision.clone(),
                one.applied.to_string(),
                one.definition.phases.len().to_string(),
                if one.current { "current" } else { "" }.to_owned(),
            ]
        });
        table(["REVISION", "CHANGE", "PHASES", ""], rows)
    })
}

/// Shows what applying a file would change, or what has changed since a revision.
pub(super) async fn diff(
    what: &str,
    revision: Option<&str>,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::Usage(error.to_string());
    if revision.is_none() && (what == "-" || Path::new(what).is_file()) {
        let document = PipelineDocument::from_text(&read(&PathBuf::from(what))?);
        let mut document = document.map_err(|error| usage(&error))?;
        place(&mut document, client);
        let definition = document.definition().map_err(|error| usage(&error))?;
        let current = current(&definition.name, client).await?;
        let old = current.map(|current| current.definition);
        return out.text(&unified(old.as_ref(), &PipelineDocument::from(&definition)));
    }
    let typed: Typed = what.parse().map_err(|error| usage(&error))?;
    let name = client.full(&typed);
    let (found, now) = earlier(&name, revision, client).await?;
    out.text(&unified(Some(&found.definition), &now.definition))
}

/// Makes an earlier definition the current one again: jobs to come follow it.
pub(super) async fn roll_back(
    name: &Name,
    revision: Option<&str>,
    client: &Client,
    out: &Output,
) -> Result<(), Failure> {
    let (found, _) = earlier(name, revision, client).await?;
    let request = client.request(Method::PUT, &["pipelines", name.as_str()], &[]);
    let request = request.json(&found.definition);
    let answer = client.answer::<AppliedDoc>(request, Duration::ZERO).await?;
    out.answer(&answer, applied)
}

/// What a file defines lives where the client works, unless it says where.
pub(super) fn place(document: &mut PipelineDocument, client: &Client) {
    if let (Some(namespace), false) = (client.namespace(), document.name.contains('/')) {
        document.name = format!("{namespace}/{}", document.name);
    }
}

/// The definition of a revision, or the one before the current, and the current one.
async fn earlier(
    name: &Name,
    revision: Option<&str>,
    client: &Client,
) -> Result<(RevisionDoc, RevisionDoc), Failure> {
    let path = ["pipelines", name.as_str(), "revisions"];
    let revisions = client.get::<RevisionsDoc>(&path, &[]).await?.document.revisions;
    let now = revisions.iter().find(|one| one.current).cloned();
    let found = revisions.into_iter().find(|one| match revision {
        Some(revision) => one.revision == revision,
        None => !one.current,
    });
    let missing = |revision: Option<&str>| {
        Failure::Usage(match revision {
            Some(revision) => format!(
                "pipeline `{name}` has no revision {revision}: `carbonmesh pipeline history {name}` \
                 lists those that are kept"
            ),
            None => format!("pipeline `{name}` has had no other definition that is kept"),
        })
    };
    found.zip(now).ok_or_else(|| missing(revision))
}

async fn current(name: &Name, client: &Client) -> Result<Option<PipelineDoc>, Failure> {
    let all = client.get::<crate::http::view::PipelinesDoc>(&["pipelines"], &[]).await?;
    Ok(all.document.pipelines.into_iter().find(|one| one.name == name.as_str()))
}

fn unified(old: Option<&PipelineDocument>, new: &PipelineDocument) -> String {
    diff::unified_diff(old, new).unwrap_or_else(|| "nothing changes".to_owned())
}

/// Phases that a new definition leaves out, for whoever applies it: jobs that began with them end as
/// they began.
pub(super) async fn left_out(new: &PipelineDef, client: &Client) -> Result<Vec<String>, Failure> {
    let Some(current) = current(&new.name, client).await? else { return Ok(Vec::new()) };
    let Ok(old) = current.definition.definition() else { return Ok(Vec::new()) };
    Ok(diff::left_out(&old, new))
}
