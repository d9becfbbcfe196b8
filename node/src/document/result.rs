//! Where a pipeline's results go: a key of the document that stands for one more phase.
//!
//! That phase comes after all others, is tried again like any, and is seen in each job's timeline. A
//! definition knows of no other kind: read back, the document has the phase in its place.

use carbonmesh_protocol::pipeline::PhaseInput;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{BackoffDocument, DocumentError, PhaseDocument, PhaseItem, field};

/// The phase's name unless the document gives one.
const NAME: &str = "result";

/// Others may be away for longer than a phase's usual attempts take: with this backoff, ten are most
/// of an hour.
const ATTEMPTS: u32 = 10;
const BACKOFF: (&str, &str) = ("2s", "10m");

/// The longest address.
const MAX_BYTES: usize = 300;

/// Where results go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResultDocument {
    /// `inline`: they stay with their jobs, as always. `file:PATH`, `https://…` or `mailto:ADDRESS`:
    /// a worker takes them there as well. `{job}`, `{pipeline}` and `{key}` stand for the job's own.
    pub to: String,
    /// The name of the phase that does it; `result` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How often it is tried; 10 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
}

impl ResultDocument {
    /// The phase that takes the results of `phases` away; none if they stay.
    pub(super) fn phase(&self, phases: &[PhaseInput]) -> Result<Option<PhaseInput>, DocumentError> {
        let Some(phase) = self.writer()? else { return Ok(None) };
        let document = PhaseDocument {
            name: self.name.clone().unwrap_or_else(|| NAME.to_owned()),
            phase: Some(phase.to_owned()),
            after: Some(last(phases)),
            max_attempts: Some(self.max_attempts.unwrap_or(ATTEMPTS)),
            backoff: Some(BackoffDocument {
                initial: Some(BACKOFF.0.to_owned()),
                max: Some(BACKOFF.1.to_owned()),
                jitter_percent: None,
            }),
            input_mapping: Some(self.mapping(phases)),
            ..PhaseDocument::default()
        };
        PhaseItem::Full(Box::new(document)).input("result").map(Some)
    }

    /// What workers offer that can do it.
    fn writer(&self) -> Result<Option<&'static str>, DocumentError> {
        let to = self.to.as_str();
        let wrong = |reason: &str| field("result.to", format!("`{to}`: {reason}"));
        if to.len() > MAX_BYTES || to.chars().any(|it| it.is_control() || "'\\".contains(it)) {
            return Err(wrong("at most 300 characters are possible, and no quotes or backslashes"));
        }
        let (scheme, rest) = to.split_once(':').unwrap_or((to, ""));
        match (scheme, rest) {
            ("inline", "") => Ok(None),
            ("file" | "http" | "https" | "mailto", "") => Err(wrong("say where behind the colon")),
            ("file", _) => Ok(Some(WRITE_FILE)),
            ("http" | "https", rest) if rest.starts_with("//") => Ok(Some(HTTP_POST)),
            ("mailto", _) => Ok(Some(EMAIL)),
            _ => Err(wrong("write inline, file:PATH, https://HOST/PATH or mailto:ADDRESS")),
        }
    }

    /// All that the phases gave, in their order, for the writer to merge.
    fn mapping(&self, phases: &[PhaseInput]) -> String {
        let of = |phase: &PhaseInput| format!("results.\"{}\"", phase.name);
        let results = phases.iter().filter(|phase| phase.each.is_none()).map(of);
        let gathered = phases.iter().filter(|phase| phase.each.is_some());
        let gathered: Vec<_> =
            gathered.map(|phase| format!("\"{}\":{}", phase.name, of(phase))).collect();
        let gathered = match gathered.as_slice() {
            [] => String::new(),
            all => format!(",gathered:{{{}}}", all.join(",")),
        };
        let results = results.collect::<Vec<_>>().join(",");
        let results =
            if results.is_empty() { String::new() } else { format!(",results:[{results}]") };
        format!("{{to:'{}',instructions:instructions{results}{gathered}}}", self.to)
    }
}

/// Phases that workers offer where their operator has said where results may go.
pub(crate) const WRITE_FILE: &str = "carbonmesh.write-file";
pub(crate) const HTTP_POST: &str = "carbonmesh.http-post";
pub(crate) const EMAIL: &str = "carbonmesh.email";

/// The phases that nothing comes after.
fn last(phases: &[PhaseInput]) -> Vec<String> {
    let before = |(at, phase): (usize, &PhaseInput)| match (&phase.after, &phase.each) {
        (Some(after), _) => after.clone(),
        (None, Some(each)) => vec![each.of.clone()],
        (None, None) => {
            let before = at.checked_sub(1).and_then(|before| phases.get(before));
            before.map(|before| before.name.clone()).into_iter().collect()
        }
    };
    let before: Vec<_> = phases.iter().enumerate().flat_map(before).collect();
    let last = phases.iter().filter(|phase| !before.contains(&phase.name));
    last.map(|phase| phase.name.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::pipeline::PipelineDef;

    use super::*;
    use crate::document::PipelineDocument;

    fn define(text: &str) -> Result<PipelineDef, String> {
        let document = PipelineDocument::from_text(text).map_err(|error| error.to_string())?;
        document.definition().map_err(|error| error.to_string())
    }

    #[test]
    fn a_result_that_goes_somewhere_is_one_more_phase() {
        let text = r#"{"name": "p", "phases": ["a", {"name": "b", "after": ["a"]},
            {"name": "c-d", "after": ["a"]}], "result": {"to": "file:{job}.json"}}"#;
        let definition = define(text).expect("a pipeline");
        let phase = &definition.phases[3];
        assert_eq!((phase.name.as_str(), phase.phase.as_str()), ("result", WRITE_FILE));
        assert_eq!((phase.after.as_slice(), phase.max_attempts), (&[1, 2][..], 10));
        let mapping = phase.handling.input.as_deref();
        let expected = "{to:'file:{job}.json',instructions:instructions,\
                        results:[results.\"a\",results.\"b\",results.\"c-d\"]}";
        assert_eq!(mapping, Some(expected));
        // It reads back as what it stands for.
        let again = PipelineDocument::from(&definition);
        assert_eq!(again.definition().expect("a pipeline"), definition);
        assert_eq!(again.phases.len(), 4);
    }

    #[test]
    fn results_of_items_are_gathered() {
        let text = r#"{"name": "p", "phases": ["a", {"name": "b", "for_each": "a"}],
            "result": {"to": "mailto:a@b.example", "name": "tell", "max_attempts": 2}}"#;
        let definition = define(text).expect("a pipeline");
        let phase = &definition.phases[2];
        assert_eq!((phase.name.as_str(), phase.phase.as_str()), ("tell", EMAIL));
        assert_eq!((phase.after.as_slice(), phase.max_attempts), (&[1][..], 2));
        let mapping = phase.handling.input.as_deref().expect("a mapping");
        assert!(mapping.ends_with("results:[results.\"a\"],gathered:{\"b\":results.\"b\"}}"));
    }

    #[test]
    fn inline_adds_nothing_and_other_places_are_refused() {
        let with = |to: &str| {
            define(&format!(r#"{{"name": "p", "phases": ["a"], "result": {{"to": "{to}"}}}}"#))
        };
        assert_eq!(with("inline").expect("a pipeline").phases.len(), 1);
        assert_eq!(
            with("https://h.example/x").expect("a pipeline").phases[1].phase.as_str(),
            HTTP_POST
        );
        for bad in ["", "out.json", "file:", "ftp://x", "https:x", "file:it's", "mailto:"] {
            let error = with(bad).expect_err(bad);
            assert!(error.starts_with("result.to: "), "{bad}: {error}");
        }
        let twice = r#"{"name": "p", "phases": ["result"], "result": {"to": "file:x"}}"#;
        assert!(define(twice).expect_err("the name is there").contains("result"));
    }
}
