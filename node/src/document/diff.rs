//! What differs between two definitions of a pipeline, in the words of its document.

use carbonmesh_protocol::pipeline::PipelineDef;
use similar::TextDiff;

use super::{PhaseDocument, PhaseItem, PipelineDocument};

/// What goes and what comes, as a unified diff of the documents in TOML; none if nothing changes.
pub(crate) fn unified_diff(
    old: Option<&PipelineDocument>,
    new: &PipelineDocument,
) -> Option<String> {
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
        return None;
    }
    let diff = TextDiff::from_lines(&old, &new);
    Some(diff.unified_diff().context_radius(3).to_string().trim_end().to_owned())
}

/// Phases that a new definition leaves out, for whoever applies it: jobs that began with them end as
/// they began.
pub(crate) fn left_out(old: &PipelineDef, new: &PipelineDef) -> Vec<String> {
    let names = |pipeline: &PipelineDef| -> Vec<String> {
        pipeline.all_phases().iter().map(|phase| phase.name.to_string()).collect()
    };
    let kept = names(new);
    names(old).into_iter().filter(|name| !kept.contains(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> PipelineDocument {
        PipelineDocument::from_text(text).expect("a document")
    }

    #[test]
    fn a_diff_shows_what_goes_and_what_comes() {
        let old = read(r#"{"name":"p","phases":["a",{"name":"b","timeout":"5s"}]}"#);
        let new = read(r#"{"name":"p","phases":["a",{"name":"b","timeout":"9s"}]}"#);
        let diff = unified_diff(Some(&old), &new).expect("a difference");
        assert!(diff.contains("-timeout = \"5s\"") && diff.contains("+timeout = \"9s\""), "{diff}");
        assert_eq!(unified_diff(Some(&old), &old), None);
        let first = unified_diff(None, &new).expect("a difference");
        assert!(first.lines().any(|line| line == "+name = \"p\""));
    }

    #[test]
    fn phases_that_are_left_out_are_named() {
        let define = |text: &str| read(text).definition().expect("a pipeline");
        let old = define(r#"{"name":"p","phases":["a","b"]}"#);
        let new = define(r#"{"name":"p","phases":["b","c"]}"#);
        assert_eq!(left_out(&old, &new), ["a"]);
    }
}
