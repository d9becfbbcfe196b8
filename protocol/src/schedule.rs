//! When a pipeline enqueues jobs by itself: cron expressions in a time zone, as Vixie cron reads them,
//! with an optional field for seconds in front.
//!
//! Where clocks are put forward or back, a run at a fixed hour happens once: what falls into a gap
//! comes right behind it. `croner` says when, with the IANA zones of `chrono-tz`; neither looks at a
//! clock.

use bytes::Bytes;
use chrono::{DateTime, TimeZone, Utc};
use chrono_tz::Tz;
use croner::Cron;
use serde::{Deserialize, Serialize};

use crate::{
    id::{JobId, PipelineId},
    name::Name,
};

/// What the keys of schedules' runs begin with.
pub(crate) const RUN_KEY: &str = "schedule/";

/// The most schedules that one pipeline may have.
pub const MAX_SCHEDULES: usize = 100;

/// What becomes of runs for which nobody was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// They are left out.
    Skip,
    /// The last of them is made good.
    #[default]
    Last,
    /// All are made good, the last hundred.
    All,
}

/// What becomes of a run while one before is not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// It is enqueued beside the other.
    #[default]
    Allow,
    /// It is left out.
    Skip,
}

/// Jobs that a pipeline enqueues by itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Schedule {
    /// Its name within the pipeline.
    pub name: Name,
    /// When: minute, hour, day of month, month, day of week; seconds may stand in front.
    pub cron: String,
    /// In which time zone, by its IANA name.
    pub timezone: String,
    /// What is enqueued: a JSON object.
    pub instructions: Bytes,
    /// What becomes of runs for which nobody was there.
    pub missed: Missed,
    /// What becomes of a run while one before is not finished.
    pub overlap: Overlap,
    /// Since when it is in force (ms since 1970); nothing before that was missed.
    pub since_ms: u64,
}

/// A schedule that can be asked.
#[derive(Debug)]
pub struct Times {
    cron: Cron,
    zone: Tz,
}

impl Schedule {
    /// The moments that it names.
    ///
    /// # Errors
    /// Says which part cannot be, and why.
    pub fn times(&self) -> Result<Times, (&'static str, String)> {
        let zone: Tz = self.timezone.parse().map_err(|_| {
            let known = "give an IANA name such as Europe/Berlin, or UTC";
            ("timezone", format!("`{}` is no time zone that is known: {known}", self.timezone))
        })?;
        let cron = self.cron.parse().map_err(|error: croner::errors::CronError| {
            ("cron", format!("`{}` is no cron expression: {error}", self.cron))
        })?;
        Ok(Times { cron, zone })
    }

    /// Whether it names the same moments as another.
    pub fn is_alike(&self, other: &Self) -> bool {
        (&self.name, &self.cron, &self.timezone) == (&other.name, &other.cron, &other.timezone)
    }

    /// The idempotency key of the run at a moment: whoever enqueues it, it is one job.
    pub fn key(&self, at_ms: u64) -> String {
        let at = i64::try_from(at_ms).ok().and_then(DateTime::from_timestamp_millis);
        let at = at.unwrap_or_default().format("%Y-%m-%dT%H:%M:%SZ");
        format!("{RUN_KEY}{}/{at}", self.name)
    }

    /// The job of the run at a moment.
    pub fn job(&self, pipeline: PipelineId, at_ms: u64) -> JobId {
        JobId::of_key(pipeline, &self.key(at_ms))
    }
}

impl Times {
    /// The first moment behind another, both in ms since 1970; none if it never comes.
    pub fn after(&self, ms: u64) -> Option<u64> {
        to_ms(&self.cron.find_next_occurrence(&self.moment(ms)?, false).ok()?)
    }

    /// The last moment at or before another.
    pub fn until(&self, ms: u64) -> Option<u64> {
        to_ms(&self.cron.find_previous_occurrence(&self.moment(ms)?, true).ok()?)
    }

    fn moment(&self, ms: u64) -> Option<DateTime<Tz>> {
        let utc = Utc.timestamp_millis_opt(i64::try_from(ms).ok()?).single()?;
        Some(utc.with_timezone(&self.zone))
    }
}

fn to_ms(moment: &DateTime<Tz>) -> Option<u64> {
    u64::try_from(moment.timestamp_millis()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(cron: &str, timezone: &str) -> Schedule {
        Schedule {
            name: "nightly".parse().expect("a name"),
            cron: cron.to_owned(),
            timezone: timezone.to_owned(),
            instructions: Bytes::from_static(b"{}"),
            missed: Missed::Last,
            overlap: Overlap::Allow,
            since_ms: 0,
        }
    }

    fn ms(text: &str) -> u64 {
        let moment = DateTime::parse_from_rfc3339(text).expect("a moment");
        u64::try_from(moment.timestamp_millis()).expect("after 1970")
    }

    fn days(cron: &str, from: &str, count: usize) -> Vec<String> {
        let schedule = schedule(cron, "Europe/Berlin");
        let times = schedule.times().expect("a schedule");
        let next = |at: &u64| times.after(*at);
        let all = std::iter::successors(times.after(ms(from)), next);
        all.take(count).map(|at| schedule.key(at)).collect()
    }

    #[test]
    fn a_run_in_the_hour_that_is_left_out_comes_once() {
        // 2026-03-29: 02:00 becomes 03:00 in Berlin.
        let runs = days("30 2 * * *", "2026-03-28T12:00:00Z", 2);
        assert_eq!(runs.len(), 2, "{runs:?}");
        assert!(runs[0].starts_with("schedule/nightly/2026-03-29T01:"), "{runs:?}");
        assert_eq!(runs[1], "schedule/nightly/2026-03-30T00:30:00Z");
    }

    #[test]
    fn a_run_in_the_hour_that_comes_twice_comes_once() {
        // 2026-10-25: 03:00 becomes 02:00 in Berlin.
        let runs = days("30 2 * * *", "2026-10-24T12:00:00Z", 2);
        assert_eq!(runs[1], "schedule/nightly/2026-10-26T01:30:00Z", "{runs:?}");
        assert!(runs[0].starts_with("schedule/nightly/2026-10-25T0"), "{runs:?}");
    }

    #[test]
    fn moments_are_found_in_both_directions() {
        let times = schedule("*/5 * * * * *", "UTC").times().expect("a schedule");
        let at = ms("2026-01-01T00:00:05Z");
        assert_eq!(times.after(at), Some(at + 5000));
        assert_eq!(times.until(at), Some(at));
        assert_eq!(times.until(at - 1), Some(at - 5000));
    }

    #[test]
    fn what_is_no_schedule_is_refused_with_the_part() {
        assert_eq!(schedule("61 * * * *", "UTC").times().map(drop).map_err(|it| it.0), Err("cron"));
        let zone = schedule("* * * * *", "Berlin").times().map(drop);
        assert_eq!(zone.map_err(|it| it.0), Err("timezone"));
    }
}
