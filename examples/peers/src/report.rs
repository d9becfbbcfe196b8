//! What is told of a whole run: a table, and a document.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::figures::Figures;

/// All figures of one queue in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// What it says of a job that it has acknowledged: how many copies, and where they are.
    pub promise: String,
    /// The version of its program.
    pub version: String,
    /// What each round measured.
    pub rounds: Vec<Figures>,
}

impl Entry {
    /// The median of all rounds.
    pub fn median(&self) -> Figures {
        Figures::median(&self.rounds)
    }
}

/// A whole run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The name of our own entry.
    pub ours: String,
    /// All queues, by the order in which they take their turns.
    pub entries: Vec<(String, Entry)>,
    /// Those that were not measured, and what they lack.
    pub skipped: BTreeMap<String, String>,
    /// Those that failed in a round, and how.
    pub failed: BTreeMap<String, String>,
}

impl Report {
    /// The table that is printed: a line for each queue, and how many times ours is the peer's.
    pub fn table(&self) -> String {
        let head = ["", "w1/s", "ours", "w3/s", "ours", "p50 ms", "ours", "p99 ms", "ours"];
        let mut lines = vec![line(&head.map(str::to_owned), "promise")];
        let ours = self.ours().map(Entry::median);
        for (name, entry) in self.entries.iter().filter(|(_, entry)| !entry.rounds.is_empty()) {
            let figures = entry.median();
            let ratio = ours.filter(|_| *name != self.ours).map(|ours| ours.ratio(&figures));
            let times = |figure: fn(&Figures) -> f64| {
                ratio.map_or_else(String::new, |ratio| format!("x{}", digits(figure(&ratio))))
            };
            let cells = [
                name.clone(),
                digits(figures.w1_jobs_per_s),
                times(|of| of.w1_jobs_per_s),
                digits(figures.w3_jobs_per_s),
                times(|of| of.w3_jobs_per_s),
                digits(figures.single_w3_p50_ms),
                times(|of| of.single_w3_p50_ms),
                digits(figures.single_w3_p99_ms),
                times(|of| of.single_w3_p99_ms),
            ];
            lines.push(line(&cells, &entry.promise));
        }
        lines.join("\n")
    }

    /// The document: medians, ratios to ours, and what each round measured.
    pub fn json(&self) -> Value {
        let ours = self.ours();
        let peers: BTreeMap<&str, Value> = self
            .entries
            .iter()
            .filter(|(name, entry)| *name != self.ours && !entry.rounds.is_empty())
            .map(|(name, entry)| {
                let ratio = ours.map(|ours| ours.median().ratio(&entry.median()).rounded());
                let mut document = described(entry);
                document["ours_to_peer"] = json!(ratio);
                (name.as_str(), document)
            })
            .collect();
        json!({
            "ours": ours.map(described),
            "peers": peers,
            "skipped": self.skipped,
            "failed": self.failed,
        })
    }

    fn ours(&self) -> Option<&Entry> {
        let entry = self.entries.iter().find(|(name, _)| *name == self.ours)?;
        Some(&entry.1).filter(|entry| !entry.rounds.is_empty())
    }
}

fn described(entry: &Entry) -> Value {
    let rounds: Vec<Figures> = entry.rounds.iter().map(Figures::rounded).collect();
    json!({
        "promise": entry.promise,
        "version": entry.version,
        "median": entry.median().rounded(),
        "rounds": rounds,
    })
}

fn line(cells: &[String; 9], promise: &str) -> String {
    let [name, rest @ ..] = cells;
    let rest: Vec<String> = rest.iter().map(|cell| format!("{cell:>7}")).collect();
    format!("{name:22}{}   {promise}", rest.concat())
}

fn digits(value: f64) -> String {
    let places = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 100.0) };
    format!("{value:.places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(w1: f64) -> Entry {
        let round = Figures {
            w1_jobs_per_s: w1,
            w3_jobs_per_s: 500.0,
            single_w3_p50_ms: 2.0,
            single_w3_p99_ms: 4.0,
        };
        Entry { promise: "1 copy".to_owned(), version: "1.2".to_owned(), rounds: vec![round] }
    }

    fn report() -> Report {
        let entries = vec![("us".to_owned(), entry(3000.0)), ("peer".to_owned(), entry(1000.0))];
        let skipped = BTreeMap::from([("gone".to_owned(), "install it".to_owned())]);
        Report { ours: "us".to_owned(), entries, skipped, ..Report::default() }
    }

    #[test]
    fn a_peer_is_told_with_how_many_times_as_fast_ours_is() {
        let document = report().json();
        assert_eq!(document["ours"]["median"]["w1_jobs_per_s"], 3000.0);
        assert_eq!(document["peers"]["peer"]["ours_to_peer"]["w1_jobs_per_s"], 3.0);
        assert_eq!(document["peers"]["peer"]["ours_to_peer"]["single_w3_p50_ms"], 1.0);
        assert_eq!(document["peers"]["us"], Value::Null);
        assert_eq!(document["skipped"]["gone"], "install it");
    }

    #[test]
    fn the_table_has_a_line_for_each_queue() {
        let table = report().table();
        let lines: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1][..3], ["us", "3000", "500"]);
        assert_eq!(lines[2][..5], ["peer", "1000", "x3.00", "500", "x1.00"]);
    }

    #[test]
    fn without_ours_there_are_no_ratios() {
        let mut report = report();
        report.entries.remove(0);
        let document = report.json();
        assert_eq!(document["ours"], Value::Null);
        assert_eq!(document["peers"]["peer"]["ours_to_peer"], Value::Null);
        assert!(!report.table().contains('x'));
    }
}
