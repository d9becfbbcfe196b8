//! Durations as people write them: `500ms`, `30s`, `5m`, `1h`, `1h 30m`.

use std::time::Duration;

use jiff::SignedDuration;
use thiserror::Error;

/// The text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{0}` is no duration: write a number with its unit, such as 500ms, 30s, 5m or 1h")]
pub struct DurationError(pub String);

/// Reads a duration; zero is one, a negative is none.
///
/// # Errors
/// The text is no duration, or a negative one.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let signed = text.parse::<SignedDuration>().map_err(|_| DurationError(text.to_owned()))?;
    Duration::try_from(signed).map_err(|_| DurationError(text.to_owned()))
}

/// Writes a duration so that [`parse_duration`] reads the same one.
pub fn format_duration(duration: Duration) -> String {
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
        let odd = Duration::from_millis(5_400_250);
        assert_eq!(parse_duration(&format_duration(odd)), Ok(odd));
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
    }

    #[test]
    fn what_is_no_duration_is_refused_with_examples() {
        for text in ["", "30", "-5s", "soon", "5 parsecs", "99999999999999999999h"] {
            let error = parse_duration(text).expect_err(text);
            assert!(error.to_string().contains("such as 500ms"), "{error}");
        }
    }
}
