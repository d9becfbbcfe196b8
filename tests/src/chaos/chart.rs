//! The timeline: what was done to each node, above what the cluster got done each second.

use carbonmesh_examples::api::Error;
use plotters::{coord::Shift, prelude::*};

use crate::{
    fault::Kind,
    history::{History, Outcome},
    journal::Moment,
    work::STEPS,
};

const SIZE: (u32, u32) = (1200, 560);
const BARS_HEIGHT: u32 = 250;

/// One colour a kind of fault, far apart from each other.
fn colour(kind: Kind) -> RGBColor {
    let at = Kind::ALL.iter().position(|one| *one == kind).unwrap_or_default();
    let (r, g, b) = HSLColor(at as f64 / Kind::ALL.len() as f64, 0.65, 0.5).rgb();
    RGBColor(r, g, b)
}

/// The chart as SVG.
pub(crate) fn timeline(history: &History) -> Result<String, Error> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (above, below) = root.split_vertically(BARS_HEIGHT);
        let seconds = history.drained_ms.saturating_sub(history.began_ms) as f64 / 1e3;
        faults(&above, history, seconds).map_err(|error| error.to_string())?;
        rates(&below, history, seconds).map_err(|error| error.to_string())?;
        root.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// A bar for each fault on each node that it hit.
fn faults(area: &Area<'_>, history: &History, seconds: f64) -> Drawn {
    let nodes = history.nodes.len();
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .set_label_area_size(LabelAreaPosition::Left, 50)
        .set_label_area_size(LabelAreaPosition::Bottom, 25)
        .build_cartesian_2d(0.0..seconds, 0.0..nodes as f64)?;
    let name = |row: &f64| {
        let at = nodes as f64 - row - 0.5;
        let whole = (at - at.round()).abs() < 0.01;
        let name = history.nodes.get(at.round() as usize).filter(|_| whole && at > -0.1);
        name.cloned().unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_mesh()
        .y_labels(2 * nodes + 1)
        .y_label_formatter(&name)
        .draw()?;
    for fault in &history.faults {
        let second = |at: u64| at.saturating_sub(history.began_ms) as f64 / 1e3;
        let (from, until) = (second(fault.from_ms), second(fault.until_ms));
        for node in &fault.nodes {
            let Some(at) = history.nodes.iter().position(|name| name == node) else { continue };
            let row = (nodes - 1 - at) as f64;
            let style = colour(fault.kind).mix(0.8).filled();
            let corners = [(from, row + 0.15), (until, row + 0.85)];
            chart.draw_series([Rectangle::new(corners, style)])?;
            let font = ("sans-serif", 11).into_font();
            let label = Text::new(fault.kind.name(), (from, row + 0.55), font);
            chart.draw_series([label])?;
        }
    }
    Ok(())
}

/// Jobs acknowledged and jobs finished, each second.
fn rates(area: &Area<'_>, history: &History, seconds: f64) -> Drawn {
    let acks = history.ops.iter().filter(|op| matches!(op.outcome, Outcome::Ok { .. }));
    let acks = per_second(history, seconds, acks.map(|op| op.at_ms));
    let last = STEPS.last().copied().unwrap_or_default();
    let ends = |run: &&crate::journal::Record| run.moment == Moment::Finish && run.step == last;
    let ends = per_second(history, seconds, history.runs.iter().filter(ends).map(|run| run.at_ms));
    let top = acks.iter().chain(&ends).map(|(_, count)| *count).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .margin(10)
        .caption("jobs a second: acknowledged (blue), finished (green)", ("sans-serif", 14))
        .set_label_area_size(LabelAreaPosition::Left, 50)
        .set_label_area_size(LabelAreaPosition::Bottom, 30)
        .build_cartesian_2d(0.0..seconds, 0.0..top * 1.05)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc("seconds").draw()?;
    chart.draw_series(LineSeries::new(acks, RGBColor(30, 90, 200).stroke_width(2)))?;
    chart.draw_series(LineSeries::new(ends, RGBColor(30, 150, 60).stroke_width(2)))?;
    Ok(())
}

fn per_second(
    history: &History,
    seconds: f64,
    times: impl Iterator<Item = u64>,
) -> Vec<(f64, f64)> {
    let mut counts: Vec<(f64, f64)> =
        (0..=seconds as usize).map(|second| (second as f64, 0.0)).collect();
    for at_ms in times {
        let second = at_ms.saturating_sub(history.began_ms) / 1000;
        if let Some((_, count)) = counts.get_mut(second as usize) {
            *count += 1.0;
        }
    }
    counts
}
