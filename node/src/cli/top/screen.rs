//! Draws the screen.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Paragraph, Row, Table},
};

use super::State;
use crate::{
    cli::{
        output::{clean, or_dash},
        pipeline::node,
    },
    http::view::{EventDoc, NodeDoc, PipelineDoc},
};

const KEYS: &str = " q quit   space pause   up/down scroll failures   g newest";

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let nodes = state.nodes.as_ref().map_or(0, |nodes| nodes.nodes.len());
    let pipelines = state.status.as_ref().map_or(0, |status| status.pipelines.len());
    // A border above and below, and a header.
    let rows = |count: usize| u16::try_from(count).unwrap_or(u16::MAX).saturating_add(3);
    let third = (frame.area().height / 3).max(4);
    let areas = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(rows(nodes).min(third)),
        Constraint::Length(rows(pipelines).min(third)),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .split(frame.area());
    frame.render_widget(Paragraph::new(head(state)), areas[0]);
    draw_nodes(frame, areas[1], state);
    draw_pipelines(frame, areas[2], state);
    draw_failures(frame, areas[3], state);
    let keys = match state.paused {
        true => format!("{KEYS}   [paused]"),
        false => KEYS.to_owned(),
    };
    let style = Style::new().add_modifier(Modifier::REVERSED);
    frame.render_widget(Paragraph::new(keys).style(style), areas[4]);
}

fn head(state: &State) -> Line<'static> {
    if let Some(trouble) = &state.trouble {
        return Line::styled(format!(" {}", clean(trouble)), Style::new().fg(Color::Red));
    }
    let Some(status) = &state.status else { return Line::raw(" asking the node") };
    let members = &status.members;
    let away = members.suspect + members.down;
    let text = format!(
        " carbonmesh {}   seen from {}   {} nodes alive, {away} away",
        clean(&status.version),
        node(&status.node),
        members.alive
    );
    Line::styled(text, Style::new().add_modifier(Modifier::BOLD))
}

fn header<const N: usize>(names: [&'static str; N]) -> Row<'static> {
    Row::new(names).style(Style::new().add_modifier(Modifier::BOLD))
}

fn draw_nodes(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.nodes.iter().flat_map(|nodes| &nodes.nodes).map(node_row);
    let widths = [
        Constraint::Length(20),
        Constraint::Length(8),
        Constraint::Length(12),
        Constraint::Fill(1),
    ];
    let table = Table::new(rows, widths)
        .header(header(["NAME", "STATE", "BUSY SLOTS", "PHASES"]))
        .block(Block::bordered().title(" Nodes "));
    frame.render_widget(table, area);
}

fn node_row(of: &NodeDoc) -> Row<'static> {
    let (busy, slots) = of.phases.iter().fold((0, 0), |(busy, slots), phase| {
        (busy + u64::from(phase.busy), slots + u64::from(phase.slots))
    });
    let phases = of.phases.iter();
    let phases =
        phases.map(|phase| format!("{} {}/{}", clean(&phase.phase), phase.busy, phase.slots));
    let phases: Vec<String> = phases.collect();
    let state = of.liveness.to_string();
    let row =
        Row::new([clean(&of.name), state.clone(), format!("{busy}/{slots}"), phases.join("  ")]);
    match state.as_str() {
        "alive" => row,
        "suspect" => row.style(Style::new().fg(Color::Yellow)),
        _ => row.style(Style::new().fg(Color::Red)),
    }
}

fn draw_pipelines(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let pipelines = state.status.iter().flat_map(|status| &status.pipelines);
    let rows = pipelines.map(|pipeline| pipeline_row(pipeline, state));
    let widths = [
        Constraint::Fill(2),
        Constraint::Fill(1),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(10),
        Constraint::Length(8),
        Constraint::Length(10),
    ];
    let names = ["NAME", "COORDINATOR", "QUEUED", "RUNNING", "SUCCEEDED", "DEAD", "ENDED/S"];
    let table = Table::new(rows, widths)
        .header(header(names))
        .block(Block::bordered().title(" Pipelines "));
    frame.render_widget(table, area);
}

fn pipeline_row(pipeline: &PipelineDoc, state: &State) -> Row<'static> {
    let count = |count: Option<u64>| or_dash(count);
    let counts = pipeline.counts.as_ref();
    let paused = if pipeline.paused { " (paused)" } else { "" };
    let rate = state.rates.get(&pipeline.name).map(|rate| format!("{rate:.1}"));
    let row = Row::new([
        format!("{}{paused}", clean(&pipeline.name)),
        or_dash(pipeline.coordinator.as_ref().map(node)),
        count(counts.map(|counts| counts.queued)),
        count(counts.map(|counts| counts.running)),
        count(counts.map(|counts| counts.succeeded)),
        count(counts.map(|counts| counts.dead)),
        or_dash(rate),
    ]);
    match pipeline.leaderless() {
        0 => row,
        _ => row.style(Style::new().fg(Color::Yellow)),
    }
}

fn draw_failures(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let rows = state.failures.iter().skip(state.scrolled).map(failure_row);
    let widths = [
        Constraint::Length(24),
        Constraint::Length(14),
        Constraint::Length(16),
        Constraint::Length(36),
        Constraint::Length(16),
        Constraint::Fill(1),
    ];
    let title = match state.failures.len() {
        0 => " Failures: none seen ".to_owned(),
        count => format!(" Failures: {count}, newest first "),
    };
    let table = Table::new(rows, widths)
        .header(header(["WHEN", "WHAT", "PIPELINE", "JOB", "PHASE", "WHY"]))
        .block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

fn failure_row(event: &EventDoc) -> Row<'static> {
    let phase = event.phase.as_deref().map(|phase| match event.attempt {
        Some(attempt) => format!("{}#{attempt}", clean(phase)),
        None => clean(phase),
    });
    let row = Row::new([
        clean(&event.at),
        clean(&event.kind),
        or_dash(event.pipeline.as_deref().map(clean)),
        or_dash(event.job.as_deref().map(clean)),
        or_dash(phase),
        or_dash(event.error.as_deref().map(clean)),
    ]);
    match event.kind.as_str() {
        "dead" => row.style(Style::new().fg(Color::Red)),
        _ => row,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::http::{
        fake,
        view::{NodesDoc, StatusDoc},
    };

    fn drawn(state: &State, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal");
        terminal.draw(|frame| draw(frame, state)).expect("drawn");
        terminal.backend().to_string()
    }

    fn state() -> State {
        let cluster = fake::cluster();
        let mut state = State::default();
        let nodes = cluster.members.iter().map(NodeDoc::from).collect();
        let nodes = NodesDoc { nodes, next: None };
        state.look(StatusDoc::new(&cluster), nodes, Instant::now());
        state
    }

    #[test]
    fn the_screen_shows_nodes_pipelines_failures_and_keys() {
        let mut state = state();
        for at in 0..3 {
            let event = json!({
                "token": "t", "at": "2026-01-01T00:00:00.000Z", "kind": "dead", "pipeline": "p",
                "job": format!("job-{at}"), "error": "no \u{1b}[31mroom",
            });
            state.fail(serde_json::from_value(event).expect("an event"));
        }
        let text = drawn(&state, 150, 24);
        for part in ["here", "there", "down", "1/4", "work 1/4", "job-2", "q quit", "Failures: 3"] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        let (newest, oldest) = (text.find("job-2"), text.find("job-0"));
        assert!(newest < oldest && !text.contains('\u{1b}'));
        state.scrolled = 2;
        assert!(!drawn(&state, 150, 24).contains("job-2"));
        state.paused = true;
        assert!(drawn(&state, 150, 24).contains("[paused]"));
    }

    #[test]
    fn any_size_can_be_drawn() {
        let state = state();
        for (width, height) in [(1, 1), (10, 3), (40, 8), (300, 100)] {
            drawn(&state, width, height);
        }
        drawn(&State::default(), 80, 24);
    }

    #[test]
    fn trouble_takes_the_place_of_the_head() {
        let state = State { trouble: Some("no node answers".to_owned()), ..state() };
        assert!(drawn(&state, 100, 20).contains("no node answers"));
    }
}
