//! Figures, on the screen as they come and as nested objects in the end.

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use crate::api::Error;

/// Figures, by name.
#[derive(Debug)]
pub struct Results {
    figures: Value,
    lost: usize,
    broken: Option<String>,
}

impl Default for Results {
    fn default() -> Self {
        Self { figures: Value::Object(Map::new()), lost: 0, broken: None }
    }
}

impl Results {
    /// Prints a figure and keeps it: `name` is a path with dots; its last part ends in the unit.
    pub fn add(&mut self, name: &str, value: f64, meaning: &str) {
        // Three digits are more than a run repeats.
        let digits = if value.abs() < 10.0 { 2 } else { usize::from(value.abs() < 100.0) };
        println!("  {name:34} {value:>10.digits$}   {meaning}");
        self.keep(name, json!((value * 1000.0).round() / 1000.0));
    }

    /// Prints and keeps what must be zero.
    pub fn add_zero(&mut self, name: &str, value: usize, meaning: &str) {
        self.add(name, value as f64, meaning);
        if value > 0 {
            self.broken.get_or_insert_with(|| format!("{name} is {value}, not 0: {meaning}"));
        }
    }

    /// Keeps what is no figure of the cluster, without printing it.
    pub fn keep(&mut self, name: &str, value: Value) {
        let (parents, last) = name.rsplit_once('.').unwrap_or(("", name));
        let parents = parents.split('.').filter(|part| !part.is_empty());
        let parent = parents.fold(&mut self.figures, |at, part| &mut at[part]);
        parent[last] = value;
    }

    /// Adds percentiles of times in µs, as `NAME.p50_ms` and so on.
    pub(super) fn add_ms(
        &mut self,
        name: &str,
        times: &Histogram<u64>,
        percentiles: &[Percentile],
        meaning: &str,
    ) {
        for (at, (key, part, among)) in percentiles.iter().enumerate() {
            let ms = times.value_at_quantile(*part) as f64 / 1000.0;
            let among = if at == 0 { meaning } else { among };
            self.add(&format!("{name}.{key}_ms"), ms, among);
        }
    }

    /// Counts jobs that were acknowledged and are not done.
    pub(super) fn lose(&mut self, jobs: usize) {
        self.lost += jobs;
    }

    /// Adds `lost`, over all parts.
    pub fn add_lost(&mut self) {
        self.add_zero("lost", self.lost, "jobs that were acknowledged and are not done");
    }

    /// All figures, as nested objects.
    pub fn json(&self) -> &Value {
        &self.figures
    }

    /// What should be zero and is not.
    pub fn broken_promise(&self) -> Option<String> {
        self.broken.clone()
    }
}

/// A percentile: its name in keys, its part of all, and what that is in words.
pub(super) type Percentile = (&'static str, f64, &'static str);

/// For few values.
pub(super) const MEDIAN_AND_TAIL: [Percentile; 2] =
    [("p50", 0.5, "the median"), ("p99", 0.99, "the same, 99 of 100")];

/// For many values.
pub(super) const PERCENTILES: [Percentile; 4] = [
    ("p50", 0.5, "the median"),
    ("p90", 0.9, "the same, 9 of 10"),
    ("p99", 0.99, "the same, 99 of 100"),
    ("p999", 0.999, "the same, 999 of 1,000"),
];

/// An empty histogram, of three digits.
pub(super) fn histogram() -> Result<Histogram<u64>, Error> {
    Ok(Histogram::new(3)?)
}
