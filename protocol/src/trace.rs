//! Where a job stands in somebody's trace: the span that was open when it was enqueued.
//!
//! Read from and written as a `traceparent` of W3C Trace Context. It is kept beside what was enqueued, in
//! a component of its own, and is nothing that a job's way depends on.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::codec::{Encoded, Kind};

/// The length of the text of version 00, and of the start of later ones.
const TEXT_BYTES: usize = 55;

/// The flag of a trace that somebody keeps. Others are not handed on, as the standard wants it.
const SAMPLED: u8 = 1;

/// A span in a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TraceParent {
    trace: [u8; 16],
    span: [u8; 8],
    flags: u8,
}

impl Encoded for TraceParent {
    const KIND: Kind = 0x104;
}

/// A text is no `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceParentError {
    /// Its form is another.
    #[error(
        "no trace context: 00-TRACE-SPAN-FLAGS is wanted, in small hexadecimal digits: 32, 16 and 2"
    )]
    Form,
    /// An id that names nothing.
    #[error("its trace or its span is all zeros, which names none")]
    Zero,
}

impl TraceParent {
    /// The trace: 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        hex(&self.trace)
    }

    /// The span: 16 hexadecimal digits.
    pub fn span_id(&self) -> String {
        hex(&self.span)
    }

    /// Whether whoever began the trace keeps it.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Whether both ids name something: not so if somebody made it of bytes.
    pub(crate) fn is_valid(&self) -> bool {
        self.trace != [0; 16] && self.span != [0; 8]
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.flags & SAMPLED;
        write!(f, "00-{}-{}-{flags:02x}", self.trace_id(), self.span_id())
    }
}

impl FromStr for TraceParent {
    type Err = TraceParentError;

    /// Reads version 00 exactly, and of later ones what they have in common with it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let version =
            bytes.first_chunk::<2>().and_then(digits::<1>).ok_or(TraceParentError::Form)?;
        let fits = match version {
            [0xff] => false,
            [0] => bytes.len() == TEXT_BYTES,
            _ => bytes.len() == TEXT_BYTES || bytes.get(TEXT_BYTES) == Some(&b'-'),
        };
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        let parts = || {
            let trace = digits(bytes.get(3..35)?)?;
            let span = digits(bytes.get(36..52)?)?;
            let [flags] = digits(bytes.get(53..55)?)?;
            Some(Self { trace, span, flags: flags & SAMPLED })
        };
        let read = parts().filter(|_| fits && dashes).ok_or(TraceParentError::Form)?;
        if read.is_valid() { Ok(read) } else { Err(TraceParentError::Zero) }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads digits, which are small ones: capitals are refused.
fn digits<const N: usize>(text: impl AsRef<[u8]>) -> Option<[u8; N]> {
    let text = text.as_ref();
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut read = [0; N];
    let (pairs, rest) = text.as_chunks::<2>();
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in read.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Some(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(text: &str) -> Result<TraceParent, TraceParentError> {
        text.parse()
    }

    #[test]
    fn what_is_read_is_written_again() {
        let parent = read(TEXT).expect("valid");
        assert_eq!(parent.to_string(), TEXT);
        assert_eq!(parent.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((parent.span_id().as_str(), parent.is_sampled()), ("00f067aa0ba902b7", true));
        assert!(!read(&TEXT.replace("-01", "-00")).expect("valid").is_sampled());
    }

    #[test]
    fn flags_that_are_not_known_are_not_handed_on() {
        assert_eq!(read(&TEXT.replace("-01", "-ff")).expect("valid").to_string(), TEXT);
        assert!(!read(&TEXT.replace("-01", "-fe")).expect("valid").is_sampled());
    }

    #[test]
    fn later_versions_are_read_as_far_as_they_are_known() {
        assert_eq!(read(&format!("cc{}", &TEXT[2..])).expect("valid").to_string(), TEXT);
        assert_eq!(read(&format!("cc{}-more.of.it", &TEXT[2..])).expect("valid").to_string(), TEXT);
        assert_eq!(read(&format!("cc{}.more", &TEXT[2..])), Err(TraceParentError::Form));
        assert_eq!(read(&format!("{TEXT}-more")), Err(TraceParentError::Form));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let zero = TraceParentError::Zero;
        assert_eq!(read(&TEXT.replace("00f067aa0ba902b7", "0000000000000000")), Err(zero));
        assert_eq!(read(&format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32))), Err(zero));
        let others = [
            String::new(),
            "00".to_owned(),
            TEXT[..54].to_owned(),
            TEXT.to_uppercase(),
            TEXT.replace('-', "_"),
            format!("ff{}", &TEXT[2..]),
            format!(" {TEXT}"),
            TEXT.replace("4bf9", "4bg9"),
            TEXT.replace("4bf9", "é9"),
        ];
        for text in others {
            assert_eq!(read(&text), Err(TraceParentError::Form), "{text}");
        }
    }
}
