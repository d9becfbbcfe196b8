//! What is known of an upload that stopped: which lines were answered, and where to go on.

use std::{collections::BTreeSet, fmt};

/// Which lines were answered when an upload stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unanswered {
    /// All lines up to this one were answered, or are blank or left out.
    pub(super) answered_up_to: u64,
    /// Lines behind it that were answered as well.
    pub(super) answered: BTreeSet<u64>,
    /// The last line that was sent.
    pub(super) sent_up_to: u64,
    /// Whether sending a job twice is harmless.
    pub(super) keyed: bool,
}

impl Unanswered {
    /// How to go on.
    pub(super) fn way_on(&self) -> String {
        let skip = self.answered_up_to;
        match (self.keyed, self.sent_up_to > skip) {
            (true, _) => format!("go on with --skip {skip}: keys make sending twice harmless"),
            (false, false) => format!("go on with --skip {skip}"),
            (false, true) => format!(
                "--skip {skip} goes on, but enqueues jobs again that were accepted without an \
                 answer or are named above: --key FIELD would prevent that"
            ),
        }
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.answered_up_to {
            0 => f.write_str("answered: no line")?,
            last => write!(f, "answered: lines 1 to {last}")?,
        }
        for (first, last) in ranges(&self.answered) {
            write!(f, ", {first} to {last}")?;
        }
        if self.sent_up_to > self.answered_up_to {
            write!(f, "; sent: up to line {}", self.sent_up_to)?;
        }
        Ok(())
    }
}

fn ranges(lines: &BTreeSet<u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for &line in lines {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == line => *last = line,
            _ => ranges.push((line, line)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answered_lines_are_named_as_ranges() {
        let unanswered = Unanswered {
            answered_up_to: 4000,
            answered: [4003, 4004, 4005, 4009].into(),
            sent_up_to: 5000,
            keyed: false,
        };
        let text = "answered: lines 1 to 4000, 4003 to 4005, 4009 to 4009; sent: up to line 5000";
        assert_eq!(unanswered.to_string(), text);
        assert!(unanswered.way_on().contains("--skip 4000"));
        assert_eq!(Unanswered::default().to_string(), "answered: no line");
    }
}
