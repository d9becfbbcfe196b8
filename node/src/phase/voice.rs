//! What an attempt says, on its way to whoever follows its job: lines of its log, and how far it is.
//!
//! Nobody waits for it. Each line has a number, also those that are left out because there were too
//! many of them or the node was busy: who reads the others sees how many are missing.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use carbonmesh_protocol::{
    event::{LogLevel, MAX_LINE_BYTES, Said, cut},
    id::Token,
};
use tokio::sync::mpsc;

use crate::{clock, scope::hidden};

/// How many lines, and bytes of them, an attempt may say at once, and each second after that.
const LINES: f64 = 2000.0;
const LINES_A_SECOND: f64 = 200.0;
const BYTES: f64 = (512 << 10) as f64;
const BYTES_A_SECOND: f64 = (64 << 10) as f64;

/// A line, and whose it is.
pub(crate) type Heard = (Token, Said);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Voice {
    token: Token,
    /// Nobody listens without it.
    to: Option<mpsc::Sender<Heard>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the next line.
    next: u64,
    /// How many of the last ones were left out.
    left_out: u64,
    lines: f64,
    bytes: f64,
    since: Instant,
}

impl State {
    /// Whether there is room for one more line.
    fn takes(&mut self, bytes: usize) -> bool {
        let passed = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        self.lines = (self.lines + passed * LINES_A_SECOND).min(LINES);
        self.bytes = (self.bytes + passed * BYTES_A_SECOND).min(BYTES);
        if self.lines < 1.0 || self.bytes <= 0.0 {
            return false;
        }
        self.lines -= 1.0;
        self.bytes -= bytes as f64;
        true
    }
}

impl Voice {
    pub(super) fn new(token: Token, to: Option<mpsc::Sender<Heard>>) -> Self {
        let since = Instant::now();
        let state = State { next: 0, left_out: 0, lines: LINES, bytes: BYTES, since };
        Self { token, to, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says a line, or how far the attempt is, in ten-thousandths.
    pub(super) fn say(&self, level: LogLevel, done: Option<u16>, text: &str) {
        let Some(to) = &self.to else { return };
        let mut state = self.lock();
        let line = state.next;
        state.next += 1;
        let text = cut(&hidden(text), MAX_LINE_BYTES);
        let taken = state.takes(text.len())
            && to
                .try_send((self.token, Said { line, at_ms: clock::unix_ms(), level, done, text }))
                .is_ok();
        state.left_out = if taken { 0 } else { state.left_out + 1 };
    }

    /// Says, at the attempt's end, whether lines were left out before it.
    pub(super) async fn end(&self) {
        let (Some(to), (line, left_out)) = (&self.to, {
            let state = self.lock();
            (state.next, state.left_out)
        }) else {
            return;
        };
        if left_out > 0 {
            let text =
                format!("the last {left_out} lines were left out: they were too many").into();
            let (at_ms, level) = (clock::unix_ms(), LogLevel::Warning);
            // Nobody listens only when the node ends.
            let _ = to.send((self.token, Said { line, at_ms, level, done: None, text })).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use carbonmesh_protocol::id::{NodeId, Term};

    use super::*;

    fn token() -> Token {
        let term = Term { counter: 1, node: NodeId::from_bytes([1; 16]), boot: 1 };
        Token { term, sequence: 1 }
    }

    #[tokio::test]
    async fn lines_that_are_too_many_are_left_out_and_told() {
        let (to, mut said) = mpsc::channel(10_000);
        let voice = Voice::new(token(), Some(to));
        for at in 0..3000 {
            voice.say(LogLevel::Info, None, &format!("line {at}"));
        }
        voice.end().await;
        let mut lines = Vec::new();
        while let Ok((_, line)) = said.try_recv() {
            lines.push(line);
        }
        // A slow machine may let some more through.
        assert!((2000..2900).contains(&lines.len()), "{}", lines.len());
        assert!(lines.windows(2).all(|two| two[0].line < two[1].line));
        let last = lines.last().expect("a last line");
        assert!(last.line == 3000 && last.text.contains("left out"), "{last:?}");
    }

    #[tokio::test]
    async fn a_busy_node_makes_nobody_wait() {
        let (to, mut said) = mpsc::channel(1);
        let voice = Voice::new(token(), Some(to));
        voice.say(LogLevel::Info, None, "first");
        voice.say(LogLevel::Info, None, "second");
        assert_eq!(said.try_recv().map(|(_, line)| line.line), Ok(0));
        voice.say(LogLevel::Error, Some(5000), &"x".repeat(100_000));
        let (_, line) = said.try_recv().expect("the third");
        assert_eq!((line.line, line.done, line.text.len()), (2, Some(5000), MAX_LINE_BYTES));
    }
}
