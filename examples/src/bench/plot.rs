//! Charts of the figures, as SVG.
//!
//! Every chart has the same form: points at equal distances, one for each case that was measured,
//! over values from zero, or over their decades where they differ a lot.

use std::{ops::Range, path::Path};

use plotters::prelude::{
    BLACK, ChartBuilder, Circle, Color, IntoDrawingArea, LineSeries, Palette, Palette99,
    PathElement, SVGBackend, SeriesLabelPosition, WHITE,
};
use serde_json::Value;

use crate::api::Error;

/// One chart: for each line its name, and for each case its name and where its value stands.
struct Chart {
    file: &'static str,
    title: &'static str,
    cases_are: &'static str,
    values_are: &'static str,
    /// Whether values stand at their logarithms.
    decades: bool,
    cases: &'static [(&'static str, &'static str)],
    lines: &'static [(&'static str, &'static str)],
}

/// A value stands where the case says, with the line's word in place of `*`.
const CHARTS: [Chart; 6] = [
    Chart {
        file: "latency.svg",
        title: "From the time a job of three phases is due until its result",
        cases_are: "jobs a second",
        values_are: "ms",
        decades: true,
        cases: &[
            ("1", "/latency_w3/rate_1/*_ms"),
            ("100", "/latency_w3/rate_100/*_ms"),
            ("1,000", "/latency_w3/rate_1000/*_ms"),
        ],
        lines: &[("median", "p50"), ("90 %", "p90"), ("99 %", "p99"), ("99.9 %", "p999")],
    },
    Chart {
        file: "throughput_nodes.svg",
        title: "Jobs a second by nodes",
        cases_are: "nodes",
        values_are: "jobs a second",
        decades: false,
        cases: &[
            ("1", "/nodes_1/*/jobs_per_s"),
            ("3", "/*/jobs_per_s"),
            ("5", "/nodes_5/*/jobs_per_s"),
        ],
        lines: &[("one phase", "w1"), ("three phases", "w3")],
    },
    Chart {
        file: "throughput_workers.svg",
        title: "Jobs of one phase a second by workers",
        cases_are: "workers, beside three replicas that run nothing",
        values_are: "jobs a second",
        decades: false,
        cases: &[
            ("1", "/workers_1/*/jobs_per_s"),
            ("2", "/workers_2/*/jobs_per_s"),
            ("4", "/workers_4/*/jobs_per_s"),
            ("8", "/workers_8/*/jobs_per_s"),
        ],
        lines: &[("one phase", "w1")],
    },
    Chart {
        file: "throughput_partitions.svg",
        title: "Jobs a second by partitions of their pipeline",
        cases_are: "partitions",
        values_are: "jobs a second",
        decades: false,
        cases: &[
            ("1", "/partitions/*_1/jobs_per_s"),
            ("3", "/partitions/*_3/jobs_per_s"),
            ("6", "/partitions/*_6/jobs_per_s"),
        ],
        lines: &[("one phase", "w1"), ("three phases", "w3")],
    },
    Chart {
        file: "throughput_payload.svg",
        title: "Jobs of one phase a second by their size",
        cases_are: "bytes of each job",
        values_are: "a second",
        decades: true,
        cases: &[
            ("100 B", "/payload_100b/w1/*_per_s"),
            ("10 KB", "/payload_10kb/w1/*_per_s"),
            ("1 MB", "/payload_1mb/w1/*_per_s"),
        ],
        lines: &[("jobs", "jobs"), ("MB", "mb")],
    },
    Chart {
        file: "memory.svg",
        title: "Memory of a node by the jobs that wait",
        cases_are: "jobs that wait",
        values_are: "MiB resident",
        decades: true,
        cases: &[
            ("0", "/idle/*"),
            ("10^4", "/queued_1e4/*"),
            ("10^5", "/queued_1e5/*"),
            ("10^6", "/queued_1e6/*"),
            ("10^7", "/queued_1e7/*"),
        ],
        lines: &[("the fullest node", "rss_mib")],
    },
];

/// Writes those charts into a folder for which there are figures.
///
/// # Errors
/// A file cannot be written.
pub fn write(folder: &Path, figures: &Value) -> Result<(), Error> {
    for chart in &CHARTS {
        let lines: Vec<_> =
            chart.lines.iter().map(|(_, word)| chart.points(figures, word)).collect();
        if lines.iter().any(|points| !points.is_empty()) {
            chart.draw(&folder.join(chart.file), &lines)?;
        }
    }
    Ok(())
}

impl Chart {
    /// The cases that were measured: which, and where the value stands on its axis.
    fn points(&self, figures: &Value, word: &str) -> Vec<(f64, f64)> {
        let value = |place: &str| figures.pointer(&place.replace('*', word))?.as_f64();
        let on_axis = |value: f64| if self.decades { value.log10() } else { value };
        let cases = self.cases.iter().enumerate();
        let points = cases.filter_map(|(at, (_, place))| Some((at as f64, on_axis(value(place)?))));
        points.filter(|(_, y)| y.is_finite()).collect()
    }

    fn draw(&self, path: &Path, lines: &[Vec<(f64, f64)>]) -> Result<(), Error> {
        let root = SVGBackend::new(path, (800, 480)).into_drawing_area();
        root.fill(&WHITE)?;
        let values = self.range(lines);
        let marks = if self.decades { (values.end - values.start) as usize + 1 } else { 8 };
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(-0.5..self.cases.len() as f64 - 0.5, values)?;
        let case = |at: &f64| {
            let whole = (at.fract() == 0.0 && *at >= 0.0).then_some(*at as usize);
            let name = whole.and_then(|at| self.cases.get(at)).map(|(name, _)| *name);
            name.unwrap_or_default().to_owned()
        };
        let value = |y: &f64| (if self.decades { 10_f64.powf(*y) } else { *y }).to_string();
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_labels(self.cases.len() * 2)
            .x_label_formatter(&case)
            .y_labels(marks)
            .y_label_formatter(&value)
            .x_desc(self.cases_are)
            .y_desc(self.values_are)
            .draw()?;
        for (at, (points, (name, _))) in lines.iter().zip(self.lines).enumerate() {
            let color = Palette99::pick(at).to_rgba();
            chart
                .draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
            let dot = |point: &(f64, f64)| Circle::new(*point, 4, color.filled());
            chart.draw_series(points.iter().map(dot))?;
        }
        if lines.len() > 1 {
            let labels = &mut chart.configure_series_labels();
            labels.position(SeriesLabelPosition::UpperLeft).label_font(("sans-serif", 14));
            labels.border_style(BLACK).background_style(WHITE).draw()?;
        }
        root.present()?;
        Ok(())
    }

    /// From zero, or the power of ten below all values, to where the legend hides none of them.
    fn range(&self, lines: &[Vec<(f64, f64)>]) -> Range<f64> {
        let values = || lines.iter().flatten().map(|(_, y)| *y);
        let (low, high) = (values().fold(f64::MAX, f64::min), values().fold(f64::MIN, f64::max));
        match self.decades {
            true => low.floor()..(high + 0.5).ceil(),
            false => 0.0..high.max(1.0) * 1.3,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_chart_is_drawn_of_what_was_measured_and_of_nothing_else() {
        let folder = tempfile::tempdir().expect("room");
        let figures = json!({
            "idle": { "rss_mib": 41.5 },
            "queued_1e4": { "rss_mib": 60.0 },
            "w1": { "jobs_per_s": 15_000 },
        });
        write(folder.path(), &figures).expect("written");
        let read = |file: &str| std::fs::read_to_string(folder.path().join(file));
        let memory = read("memory.svg").expect("drawn");
        assert_eq!(memory.matches("<circle").count(), 2);
        assert!(memory.contains("10^7"), "cases that are missing stay on the axis");
        assert!(read("throughput_nodes.svg").expect("drawn").contains("three phases"));
        assert!(read("latency.svg").is_err());
    }
}
