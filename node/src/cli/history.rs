//! A pipeline's earlier definitions: listed, compared, and taken up again.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use carbonmesh_protocol::{name::Name, pipeline::PipelineDef};
use reqwest::Method;
use similar::TextDiff;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, table},
    pipeline::{applied, read},
};
use crate::{
    document::{PhaseDocument, PhaseItem, PipelineDocument},
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
        let document = document.map_err(|error| usage(&error))?;
        let definition = document.definition().map_err(|error| usage(&error))?;
        let current = current(&definition.name, client).await?;
        let old = current.map(|current| current.definition);
        return out.text(&unified(old.as_ref(), &PipelineDocument::from(&definition)));
    }
    let name: Name = what.parse().map_err(|error| usage(&error))?;
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

/// What goes and what comes, in the words of the document.
fn unified(old: Option<&PipelineDocument>, new: &PipelineDocument) -> String {
    let text = |document: &PipelineDocument| {
        // With each key of each phase on a line of its own.
        let mut document = document.clone();
        for phase in &mut document.phases {
            if let PhaseItem::Name(name) = phase {
                let named = PhaseDocument { name: name.clone(), ..PhaseDocument::default() };
                *phase = PhaseItem::Full(Box::new(named));
            }
        }
        toml::to_string_pretty(&document).unwrap_or_default()
    };
    let (old, new) = (old.map(text).unwrap_or_default(), text(new));
    if old == new {
        return "nothing changes".to_owned();
    }
    let diff = TextDiff::from_lines(&old, &new);
    diff.unified_diff().context_radius(3).to_string().trim_end().to_owned()
}

/// Phases that a new definition leaves out, for whoever applies it: jobs that began with them end as
/// they began.
pub(super) async fn left_out(new: &PipelineDef, client: &Client) -> Result<Vec<String>, Failure> {
    let Some(current) = current(&new.name, client).await? else { return Ok(Vec::new()) };
    let Ok(old) = current.definition.definition() else { return Ok(Vec::new()) };
    let names = |pipeline: &PipelineDef| -> Vec<String> {
        pipeline.all_phases().iter().map(|phase| phase.name.to_string()).collect()
    };
    let kept = names(new);
    Ok(names(&old).into_iter().filter(|name| !kept.contains(name)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_diff_shows_what_goes_and_what_comes() {
        let read = |text: &str| PipelineDocument::from_text(text).expect("a document");
        let old = read(r#"{"name":"p","phases":["a",{"name":"b","timeout":"5s"}]}"#);
        let new = read(r#"{"name":"p","phases":["a",{"name":"b","timeout":"9s"}]}"#);
        let diff = unified(Some(&old), &new);
        assert!(diff.contains("-timeout = \"5s\"") && diff.contains("+timeout = \"9s\""), "{diff}");
        assert_eq!(unified(Some(&old), &old), "nothing changes");
        assert!(unified(None, &new).lines().any(|line| line == "+name = \"p\""));
    }
}
