//! A hash over what a value prints, without printing it anywhere.
//!
//! The core has no `Hash` of its own: its parts hold messages, and these hold floats and bytes. What
//! they print names every field, and 128 bits make it unlikely beyond worry that two states which
//! differ are taken for one.

use std::fmt;

use xxhash_rust::xxh3::Xxh3;

/// A hash under way.
pub(super) struct Digest(Xxh3);

impl Digest {
    /// The hash of all that `print` writes.
    pub(super) fn of(print: impl FnOnce(&mut Self) -> fmt::Result) -> u128 {
        let mut digest = Self(Xxh3::new());
        print(&mut digest).expect("hashing takes everything");
        digest.0.digest128()
    }
}

impl fmt::Write for Digest {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}
