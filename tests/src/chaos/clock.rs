//! The one clock of a run: milliseconds since the machine was started.
//!
//! Clients, workers and the nemesis are processes of one machine, in which this clock is the same
//! for all; the clock jumps that a node is made to see do not change it.

use nix::time::{ClockId, clock_gettime};

/// The time now; zero on a system without such a clock, which Linux is not.
pub(crate) fn now_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let ms = time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000;
        u64::try_from(ms).unwrap_or_default()
    })
}
