//! What the fuzz targets of all crates share: corpora, mutation, sealing. See `README.md`.
//!
//! A target is a function of bytes that panics if they lead to anything but a value or an error.
//! [`target!`] first gives it each input of its corpus as it is, then inputs made of these: the
//! engine ([`bolero`]) draws a script, and [`Corpus::mutate`] does to the inputs what it says. So
//! most inputs come past the first few checks of a decoder, with and without guidance by coverage.

mod corpus;
mod envelope;
mod script;

use std::{
    fs,
    panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

pub use bolero;
pub use corpus::Corpus;
pub use envelope::{body, seal};
pub use script::Script;

/// How long a target runs within the tests; `BOLERO_RANDOM_TEST_TIME_MS` overrules it.
pub const BOUND: Duration = Duration::from_millis(1000);

/// The longest script: longer ones only repeat themselves.
pub const SCRIPT_BYTES: usize = 512;

/// Runs a target: `check` must not panic for the corpus, nor for what can be made of it.
#[macro_export]
macro_rules! target {
    ($corpus:expr, $check:expr) => {{
        let target = $crate::Target::new($corpus, $check);
        target.replay();
        $crate::bolero::check!()
            .with_iterations(usize::MAX)
            .with_test_time($crate::BOUND)
            .with_max_len($crate::SCRIPT_BYTES)
            .for_each(move |script: &[u8]| target.run(script));
    }};
}

/// A corpus, and what must not panic for it.
#[derive(Debug)]
pub struct Target<F> {
    corpus: Corpus,
    check: F,
}

// A target that has panicked has failed: whatever state it is in, nobody relies on it.
impl<F> UnwindSafe for Target<F> {}
impl<F> RefUnwindSafe for Target<F> {}

impl<F: Fn(&[u8])> Target<F> {
    /// See [`target!`].
    pub fn new(corpus: Corpus, check: F) -> Self {
        Self { corpus, check }
    }

    /// Gives each input of the corpus to the target as it is.
    pub fn replay(&self) {
        self.corpus.inputs().iter().for_each(|input| (self.check)(input));
    }

    /// Gives it the input that a script makes. One for which it panics is kept in `tests/fuzz/found`, from
    /// where it can go into the corpus; a smaller one that the engine finds takes its place.
    pub fn run(&self, script: &[u8]) {
        let input = self.corpus.mutate(&mut Script::new(script));
        let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.check)(&input))) else { return };
        let (folder, name) = (corpus::folder("found"), self.corpus.name());
        match fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join(name), &input)) {
            Ok(()) => eprintln!("the input is in tests/fuzz/found/{name}"),
            Err(error) => eprintln!("the input cannot be kept in tests/fuzz/found/{name}: {error}"),
        }
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests;
