//! The two clocks of a node: one that only goes forward, one for people.

use std::{
    io,
    time::{SystemTime, UNIX_EPOCH},
};

use carbonmesh_protocol::time::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the machine was started, its sleep included: a laptop that slept knows that
/// its leases ran out.
///
/// # Errors
/// The system has no such clock.
pub(crate) fn now() -> io::Result<Timestamp> {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    let ms = time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000;
    Ok(Timestamp::from_millis(u64::try_from(ms).unwrap_or_default()))
}

/// Milliseconds since 1970; zero if the clock is set before that.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
