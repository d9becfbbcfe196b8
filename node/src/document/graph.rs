//! Draws a pipeline's phases: as text, in Graphviz's language, or as a picture.

use std::fmt::Write;

use carbonmesh_protocol::pipeline::{PhaseDef, PipelineDef};
use clap::ValueEnum;
use layout::{
    backends::svg::SVGWriter,
    gv::{DotParser, GraphBuilder},
};

/// As what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Phases in layers, each with what it comes after
    Text,
    /// For Graphviz
    Dot,
    /// A picture
    Svg,
}

/// The pipeline as a graph.
pub(crate) fn draw(pipeline: &PipelineDef, format: Format) -> String {
    match format {
        Format::Text => text(pipeline),
        Format::Dot => dot(pipeline),
        // Names have no character that would have to be escaped.
        Format::Svg => picture(&dot(pipeline)),
    }
}

/// What happens at a phase, in a few words.
fn label(phase: &PhaseDef) -> String {
    match (&phase.wait_for, &phase.each) {
        (Some(signal), _) => format!("{} (waits for {signal})", phase.name),
        (None, Some(each)) => {
            let within: Vec<String> = each.phases.iter().map(label).collect();
            format!("{} (for each item: {})", phase.name, within.join(", "))
        }
        (None, None) if phase.phase.local() == phase.name.as_str() => phase.name.to_string(),
        (None, None) => format!("{} ({})", phase.name, phase.phase.local()),
    }
}

/// Phases of one line can run at one time.
fn text(pipeline: &PipelineDef) -> String {
    let mut depths: Vec<usize> = Vec::with_capacity(pipeline.phases.len());
    for phase in &pipeline.phases {
        let before = phase.after.iter().map(|at| depths[usize::from(*at)] + 1);
        depths.push(before.max().unwrap_or_default());
    }
    let mut out = format!("{}\n", pipeline.name);
    for depth in 0..=depths.iter().copied().max().unwrap_or_default() {
        let mut here = String::new();
        for (phase, _) in pipeline.phases.iter().zip(&depths).filter(|(_, at)| **at == depth) {
            let names =
                phase.after.iter().map(|at| pipeline.phases[usize::from(*at)].name.as_str());
            let names: Vec<_> = names.collect();
            let after = if names.is_empty() { String::new() } else { names.join(", ") + " → " };
            let _ =
                write!(here, "{}{after}{}", if here.is_empty() { "" } else { "   " }, label(phase));
        }
        let _ = writeln!(out, "{:>3}  {here}", depth + 1);
    }
    out
}

fn dot(pipeline: &PipelineDef) -> String {
    let mut out = format!("digraph \"{}\" {{\n  rankdir=LR;\n  node [shape=box];\n", pipeline.name);
    for phase in &pipeline.phases {
        let _ = writeln!(out, "  \"{}\" [label=\"{}\"];", phase.name, label(phase));
    }
    for phase in &pipeline.phases {
        for before in &phase.after {
            let before = &pipeline.phases[usize::from(*before)].name;
            let _ = writeln!(out, "  \"{before}\" -> \"{}\";", phase.name);
        }
    }
    out + "}\n"
}

/// A graph in Graphviz's language as a picture (SVG); what cannot be read of it is left out.
pub(crate) fn picture(source: &str) -> String {
    let mut builder = GraphBuilder::new();
    if let Ok(graph) = DotParser::new(source).process() {
        builder.visit_graph(&graph);
    }
    let mut picture = SVGWriter::new();
    builder.get().do_it(false, false, false, &mut picture);
    picture.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::PipelineDocument;

    fn diamond() -> PipelineDef {
        let text = r#"{"name": "d", "phases": ["a", {"name": "b", "after": ["a"]},
            {"name": "c", "after": ["a"], "phase": "other"},
            {"name": "ok", "after": ["b", "c"], "wait_for": "approval"}]}"#;
        PipelineDocument::from_text(text).and_then(|it| it.definition()).expect("a pipeline")
    }

    #[test]
    fn text_shows_what_may_run_together_and_what_comes_after_what() {
        let expected =
            "d\n  1  a\n  2  a → b   a → c (other)\n  3  b, c → ok (waits for approval)\n";
        assert_eq!(draw(&diamond(), Format::Text), expected);
    }

    #[test]
    fn every_edge_is_in_the_dot_and_every_phase_in_the_picture() {
        let dot = draw(&diamond(), Format::Dot);
        for edge in ["\"a\" -> \"b\"", "\"a\" -> \"c\"", "\"b\" -> \"ok\"", "\"c\" -> \"ok\""] {
            assert!(dot.contains(edge), "{dot}");
        }
        let svg = draw(&diamond(), Format::Svg);
        assert!(svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("waits for approval"), "{svg}");
        assert_eq!(svg.matches("marker-end").count(), 4, "{svg}");
    }
}
