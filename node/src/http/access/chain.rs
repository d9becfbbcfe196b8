//! The audit log's lines: each holds the SHA-256 of the one before it, so that a line that was
//! changed, taken out or put in breaks the chain behind it.
//!
//! What a chain cannot show is that its end was cut off, or that all of it was written anew by somebody
//! who owns the disk. For that its head has to be known elsewhere: nodes log it, `audit verify` prints
//! and compares it.

use std::io::{self, BufRead};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What the first line of all names as the one before it.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// Longer lines are none of ours, in bytes.
const MAX_LINE: usize = 64 << 10;

/// What happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When (RFC 3339).
    pub at: String,
    /// Who: `token NAME`, `certificate NAME`, `local`, or `unknown`.
    pub who: String,
    /// From which address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// How it was asked.
    pub method: String,
    /// The route.
    pub route: String,
    /// Which pipeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<String>,
    /// Which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    /// The answer's status; none if nobody waited for it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `done`, `refused`, `denied`, `failed`, or `unknown`.
    pub outcome: String,
    /// How many failed logins before this were not written.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Counts from 1, over all files.
    pub seq: u64,
    /// The hash of the line before.
    pub prev: String,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// Where a chain ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The last line's number; 0 if there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { seq: 0, hash: GENESIS.to_owned() }
    }
}

impl Head {
    /// The next line, with its end, and the head behind it.
    pub fn append(&self, event: Event) -> Result<(Vec<u8>, Self), serde_json::Error> {
        let line = Line { seq: self.seq + 1, prev: self.hash.clone(), event };
        let mut bytes = serde_json::to_vec(&line)?;
        let head = Self { seq: line.seq, hash: hash(&bytes) };
        bytes.push(b'\n');
        Ok((bytes, head))
    }
}

/// The hash of a line without its end.
pub fn hash(line: &[u8]) -> String {
    HEXLOWER.encode(&Sha256::digest(line))
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// In which file, as it was named.
    pub file: String,
    /// On which line, from 1.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

/// What a check has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// How many lines there are.
    pub lines: u64,
    /// The first line's number.
    pub first: Option<u64>,
    /// Where the chain ends.
    pub head: Option<Head>,
    /// Faults, the first some of them.
    pub faults: Vec<Fault>,
}

/// How many faults are told: the first is what matters.
const MAX_FAULTS: usize = 20;

impl Checked {
    fn fault(&mut self, file: &str, line: u64, what: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(Fault { file: file.to_owned(), line, what });
        }
    }

    /// Goes on with a file, which follows what was checked before.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn file(&mut self, name: &str, mut lines: impl BufRead) -> io::Result<()> {
        let mut bytes = Vec::new();
        for number in 1.. {
            bytes.clear();
            let mut limited = io::Read::take(&mut lines, MAX_LINE as u64 + 1);
            if limited.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            let ended = bytes.last() == Some(&b'\n');
            if ended {
                bytes.pop();
            } else if bytes.len() > MAX_LINE {
                self.fault(name, number, format!("is longer than {MAX_LINE} bytes"));
                break;
            } else {
                self.fault(name, number, "was not written to its end".to_owned());
            }
            self.line(name, number, &bytes);
        }
        Ok(())
    }

    fn line(&mut self, file: &str, number: u64, bytes: &[u8]) {
        self.lines += 1;
        let found = hash(bytes);
        let line = match serde_json::from_slice::<Line>(bytes) {
            Ok(line) => line,
            Err(error) => {
                self.fault(file, number, format!("is no line of an audit log: {error}"));
                let seq = self.head.as_ref().map_or(0, |head| head.seq + 1);
                self.head = Some(Head { seq, hash: found });
                return;
            }
        };
        match &self.head {
            None => {
                self.first = Some(line.seq);
                if line.seq == 1 && line.prev != GENESIS {
                    self.fault(
                        file,
                        number,
                        "says that it is the first, and names one before".into(),
                    );
                }
            }
            Some(head) => {
                if line.prev != head.hash {
                    let what = format!(
                        "entry {} does not follow from the line before it: that line was changed, or \
                         lines were taken out or put in between",
                        line.seq
                    );
                    self.fault(file, number, what);
                } else if line.seq != head.seq + 1 {
                    let what = format!("is entry {}, and {} was due", line.seq, head.seq + 1);
                    self.fault(file, number, what);
                }
            }
        }
        self.head = Some(Head { seq: line.seq, hash: found });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(entries: u64) -> Vec<Vec<u8>> {
        let mut head = Head::default();
        (0..entries)
            .map(|at| {
                let event = Event { who: format!("token t{at}"), ..Event::default() };
                let (line, next) = head.append(event).expect("a line");
                head = next;
                line
            })
            .collect()
    }

    fn check(lines: &[Vec<u8>]) -> Checked {
        let mut checked = Checked::default();
        checked.file("audit", lines.concat().as_slice()).expect("readable");
        checked
    }

    #[test]
    fn a_log_that_nobody_touched_is_whole_over_files() {
        let lines = log(6);
        let mut checked = check(&lines[..4]);
        checked.file("next", lines[4..].concat().as_slice()).expect("readable");
        assert_eq!((checked.lines, checked.first, &checked.faults), (6, Some(1), &vec![]));
        assert_eq!(checked.head.expect("a head").seq, 6);
        // Older files may be gone.
        let later = check(&lines[2..]);
        assert_eq!((later.first, later.faults), (Some(3), vec![]));
    }

    #[test]
    fn every_kind_of_tampering_is_found_where_it_is() {
        let whole = log(5);
        let text = |line: &[u8], from: &str, to: &str| {
            String::from_utf8(line.to_vec()).expect("text").replace(from, to).into_bytes()
        };
        let changed = |at: usize, from: &str, to: &str| {
            let mut lines = whole.clone();
            lines[at] = text(&lines[at], from, to);
            lines
        };
        let cases = [
            ("changed", changed(1, "t1", "t9"), 3),
            ("first changed", changed(0, "t0", "t9"), 2),
            ("renumbered", changed(2, "\"seq\":3", "\"seq\":4"), 3),
            ("one space more", changed(1, "{", "{ "), 3),
            ("no JSON", changed(1, "{", ""), 2),
            ("taken out", [&whole[..1], &whole[2..]].concat(), 2),
            ("put in", [&whole[..2], &whole[1..]].concat(), 3),
            ("in another order", vec![whole[0].clone(), whole[2].clone(), whole[1].clone()], 2),
            ("cut off in a line", vec![whole[0].clone(), whole[1][..20].to_vec()], 2),
        ];
        for (how, lines, line) in cases {
            let checked = check(&lines);
            assert_eq!(checked.faults.first().map(|fault| fault.line), Some(line), "{how}");
        }
    }

    #[test]
    fn an_end_that_was_cut_off_shows_in_the_head_alone() {
        let lines = log(5);
        let (whole, cut) = (check(&lines), check(&lines[..4]));
        assert!(cut.faults.is_empty());
        assert_ne!(whole.head, cut.head);
    }
}
