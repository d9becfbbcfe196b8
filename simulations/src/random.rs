//! The one source of chance.

use std::time::Duration;

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// A number that some bytes always give, and that looks like chance.
pub(crate) fn mix(bytes: &[u8]) -> u64 {
    // FNV-1a, then the end of a splitmix: the former alone leaves low bits alike.
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed: u64 = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 31)
}

/// Draws everything that is left to chance.
#[derive(Clone, Debug)]
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// From zero up to, not including, `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    /// With so many chances in a thousand.
    pub(crate) fn per_mille(&mut self, chances: u32) -> bool {
        self.0.next_u64() % 1000 < u64::from(chances)
    }

    /// Whole milliseconds, ends included.
    pub(crate) fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.0.next_u64() % (most - least + 1))
    }
}
