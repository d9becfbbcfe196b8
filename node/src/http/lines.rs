//! Cuts a stream of bytes into lines, numbered from 1.
//!
//! Invariant: no more than one line's limit and one chunk are held; a longer line is skipped and
//! reported by its number. Blank lines count, but are not reported.

use bytes::{Bytes, BytesMut};

/// A line that is not blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// What it says; nothing if it was over the limit.
    pub(super) text: Option<Bytes>,
}

/// Lines of what was pushed so far.
#[derive(Debug)]
pub(super) struct Lines {
    limit: usize,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    scanned: usize,
    /// Whether the line that the buffer continues is over the limit.
    too_long: bool,
    number: u64,
}

impl Lines {
    /// Lines of at most `limit` bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, buffer: BytesMut::new(), scanned: 0, too_long: false, number: 0 }
    }

    /// More bytes.
    pub(super) fn push(&mut self, chunk: &[u8]) {
        self.buffer.extend_from_slice(chunk);
    }

    /// The number of the line that is last begun or ended.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// The next whole line.
    pub(super) fn next(&mut self) -> Option<Line> {
        while let Some(at) = self.buffer[self.scanned..].iter().position(|&byte| byte == b'\n') {
            let text = self.buffer.split_to(self.scanned + at + 1).freeze();
            self.scanned = 0;
            let line = self.line(text);
            if line.is_some() {
                return line;
            }
        }
        self.too_long |= self.buffer.len() > self.limit;
        if self.too_long {
            self.buffer.clear();
        }
        self.scanned = self.buffer.len();
        None
    }

    /// What stands behind the last line end, once no more bytes come.
    pub(super) fn finish(&mut self) -> Option<Line> {
        let text = self.buffer.split().freeze();
        self.scanned = 0;
        self.line(text)
    }

    fn line(&mut self, text: Bytes) -> Option<Line> {
        self.number += 1;
        let number = self.number;
        // The line end is not the line's.
        if std::mem::take(&mut self.too_long) || text.len() > self.limit + 1 {
            return Some(Line { number, text: None });
        }
        (!text.trim_ascii().is_empty()).then_some(Line { number, text: Some(text) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(chunks: &[&str], limit: usize) -> Vec<(u64, Option<String>)> {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for chunk in chunks {
            lines.push(chunk.as_bytes());
            found.extend(std::iter::from_fn(|| lines.next()));
        }
        found.extend(lines.finish());
        let text = |line: Line| {
            let text = line.text.map(|text| String::from_utf8_lossy(text.trim_ascii()).into());
            (line.number, text)
        };
        found.into_iter().map(text).collect()
    }

    #[test]
    fn lines_do_not_depend_on_how_they_are_cut() {
        let expected = vec![(1, Some("ab".into())), (3, Some("c".into())), (4, Some("d".into()))];
        assert_eq!(cut(&["ab\r\n\nc\nd"], 10), expected);
        assert_eq!(cut(&["a", "b\r", "\n", "\nc", "\n", "d"], 10), expected);
    }

    #[test]
    fn a_long_line_is_skipped_and_the_next_one_read() {
        let expected = vec![(1, None), (2, Some("ok".into())), (3, None)];
        assert_eq!(cut(&["12345\nok\n12345"], 4), expected);
        assert_eq!(cut(&["123", "45", "678", "\nok\n", "123", "45"], 4), expected);
    }
}
