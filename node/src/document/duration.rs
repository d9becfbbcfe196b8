//! Durations as people write them: `500ms`, `30s`, `5m`, `1h`, `1h 30m`, `7d`.

use std::time::Duration;

use jiff::SignedDuration;
use thiserror::Error;

const DAY_S: u64 = 24 * 3600;

/// The text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no duration: write a number with its unit, such as 500ms, 30s, 5m, 1h or 7d")]
pub struct DurationError(pub String);

/// Reads a duration; zero is one, a negative is none.
///
/// # Errors
/// The text is no duration, or a negative one.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let wrong = || DurationError(text.to_owned());
    // A day is 24 hours here, whatever a calendar says; jiff leaves that to its callers.
    if let Some(days) = text.strip_suffix('d')
        && let Ok(days) = days.parse::<u32>()
    {
        return Ok(Duration::from_secs(u64::from(days) * DAY_S));
    }
    let signed = text.parse::<SignedDuration>().map_err(|_| wrong())?;
    Duration::try_from(signed).map_err(|_| wrong())
}

/// Writes a duration so that [`parse_duration`] reads the same one.
pub fn format_duration(duration: Duration) -> String {
    let (seconds, rest) = (duration.as_secs(), duration.subsec_nanos());
    if rest == 0 && seconds > 0 && seconds.is_multiple_of(DAY_S) {
        // More of them are read in smaller units alone.
        if let Ok(days) = u32::try_from(seconds / DAY_S) {
            return format!("{days}d");
        }
    }
    format!("{:#}", SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_back_as_written() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)));
            assert_eq!(format_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * DAY_S)));
        assert_eq!(format_duration(Duration::from_secs(7 * DAY_S)), "7d");
        let odd = Duration::from_millis(5_400_250);
        assert_eq!(parse_duration(&format_duration(odd)), Ok(odd));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        for text in ["9223372036854720m", "4294967295d", "103079215104h"] {
            let long = parse_duration(text).expect(text);
            assert_eq!(parse_duration(&format_duration(long)), Ok(long), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_examples() {
        for text in ["", "30", "-5s", "soon", "5 parsecs", "99999999999999999999h"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.to_string().contains("such as 500ms"), "{error}");
        }
    }
}
