//! The figures of one measurement, and the arithmetic on several.

use serde::{Deserialize, Serialize};

/// What is measured of every queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Jobs a second, each processed by one no-op phase.
    pub w1_jobs_per_s: f64,
    /// Jobs a second, each processed by three, one handing over to the next.
    pub w3_jobs_per_s: f64,
    /// One job alone through three phases, until it is known to be done: the median, in ms.
    pub single_w3_p50_ms: f64,
    /// The same, 99 of 100.
    pub single_w3_p99_ms: f64,
}

impl Figures {
    /// Each figure's median over several rounds; all are zero without any.
    pub fn median(rounds: &[Self]) -> Self {
        Self::each(|figure| median(rounds.iter().map(figure).collect()))
    }

    /// Each figure divided by that of `other`: above 1 is good for throughput, below 1 for latency.
    pub fn ratio(&self, other: &Self) -> Self {
        Self::each(|figure| figure(self) / figure(other))
    }

    /// The same with a few significant digits: more than a run repeats.
    pub fn rounded(&self) -> Self {
        Self::each(|figure| round(figure(self)))
    }

    fn each(value: impl Fn(fn(&Self) -> f64) -> f64) -> Self {
        Self {
            w1_jobs_per_s: value(|at| at.w1_jobs_per_s),
            w3_jobs_per_s: value(|at| at.w3_jobs_per_s),
            single_w3_p50_ms: value(|at| at.single_w3_p50_ms),
            single_w3_p99_ms: value(|at| at.single_w3_p99_ms),
        }
    }
}

/// The value that `part` (0 to 1) of the sorted values do not exceed; 0 without any.
pub fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() as f64 * part).ceil() as usize;
    values.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// How many jobs take about `seconds` at a rate, within bounds that keep a run short and its start
/// unimportant.
pub fn jobs_for(rate: f64, seconds: f64) -> usize {
    ((rate * seconds) as usize).clamp(100, 500_000)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[half],
        _ => f64::midpoint(values[half - 1], values[half]),
    }
}

fn round(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let scale = 10_f64.powi(2 - value.abs().log10().floor() as i32);
    let rounded = (value * scale).round() / scale;
    // Division by a power of ten leaves no trace that three decimals would show.
    (rounded * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(w1: f64, p50: f64) -> Figures {
        Figures {
            w1_jobs_per_s: w1,
            w3_jobs_per_s: w1 / 4.0,
            single_w3_p50_ms: p50,
            single_w3_p99_ms: 2.0 * p50,
        }
    }

    #[test]
    fn a_median_is_that_of_each_figure_by_itself() {
        let rounds = [figures(300.0, 1.0), figures(100.0, 3.0), figures(200.0, 2.0)];
        assert_eq!(Figures::median(&rounds), figures(200.0, 2.0));
        assert_eq!(Figures::median(&rounds[..2]), figures(200.0, 2.0));
        assert_eq!(Figures::median(&[]), Figures::default());
    }

    #[test]
    fn a_ratio_says_how_many_times_ours_is_the_peers() {
        let ratio = figures(300.0, 1.0).ratio(&figures(100.0, 4.0));
        assert_eq!((ratio.w1_jobs_per_s, ratio.single_w3_p50_ms), (3.0, 0.25));
    }

    #[test]
    fn three_digits_are_kept() {
        for (value, rounded) in [(12_345.6, 12_300.0), (0.123_45, 0.123), (9.999, 10.0), (0.0, 0.0)]
        {
            assert_eq!(round(value), rounded, "{value}");
        }
        assert_eq!(round(1.0 / 0.0), 0.0);
    }

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(values.clone(), 0.5), 50.0);
        assert_eq!(quantile(values.clone(), 0.99), 99.0);
        assert_eq!(quantile(values, 1.0), 100.0);
        assert_eq!(quantile(vec![7.0], 0.5), 7.0);
        assert_eq!(quantile(vec![], 0.5), 0.0);
    }

    #[test]
    fn a_run_is_neither_too_short_nor_too_long() {
        assert_eq!(jobs_for(1000.0, 3.0), 3000);
        assert_eq!(jobs_for(1.0, 3.0), 100);
        assert_eq!(jobs_for(1e9, 3.0), 500_000);
    }
}
