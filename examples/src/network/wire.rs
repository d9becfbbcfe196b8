//! One direction of a bad link: which frames arrive, when, and in which order.
//!
//! Time is an argument, and chance comes from a seed: the same frames at the same times have the same
//! fate.

use std::{collections::BTreeMap, fmt, ops::Add, time::Duration};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How many frames are under way at most; beyond that they are lost, as in a router's queue. A second
/// of a hundred megabit.
const UNDER_WAY: usize = 10_000;

/// How much later than it should a frame comes that is overtaken, in ms.
const LATE_MS: std::ops::RangeInclusive<u64> = 5..=50;

/// What a link does to frames, in either direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quality {
    /// How long a frame is under way, in ms.
    pub delay_ms: u64,
    /// By how much that varies, up and down, in ms; at most `delay_ms`. Frames keep their order.
    pub jitter_ms: u64,
    /// How many of a hundred frames are lost.
    pub lost: u32,
    /// How many of a hundred arrive twice.
    pub twice: u32,
    /// How many of a hundred arrive late, after such as were sent after them.
    pub overtaken: u32,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "each way {} ms ± {} ms", self.delay_ms, self.jitter_ms)?;
        let parts = [(self.lost, "lost"), (self.twice, "twice"), (self.overtaken, "overtaken")];
        for (percent, what) in parts.into_iter().filter(|(percent, _)| *percent > 0) {
            write!(f, ", {percent} % {what}")?;
        }
        Ok(())
    }
}

/// What became of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All.
    pub sent: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Delivered twice.
    pub twice: u64,
    /// Delivered late.
    pub overtaken: u64,
    /// Lost since too many were under way.
    pub refused: u64,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            lost: self.lost + other.lost,
            twice: self.twice + other.twice,
            overtaken: self.overtaken + other.overtaken,
            refused: self.refused + other.refused,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} frames", self.sent)?;
        let parts = [
            (self.lost, "lost"),
            (self.twice, "twice"),
            (self.overtaken, "overtaken"),
            (self.refused, "lost in a full queue"),
        ];
        for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, ", {count} {what}")?;
        }
        Ok(())
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Wire {
    quality: Quality,
    rng: ChaCha8Rng,
    /// By when they arrive, and then by when they were sent.
    under_way: BTreeMap<(Duration, u64), Vec<u8>>,
    /// The next frame's number.
    next: u64,
    /// When the last frame that is not overtaken arrives: none of its kind comes before it.
    last_at: Duration,
    counts: Counts,
}

impl Wire {
    pub(super) fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            rng: ChaCha8Rng::seed_from_u64(seed),
            under_way: BTreeMap::new(),
            next: 0,
            last_at: Duration::ZERO,
            counts: Counts::default(),
        }
    }

    /// A frame is sent.
    pub(super) fn push(&mut self, now: Duration, frame: &[u8]) {
        self.counts.sent += 1;
        if self.happens(self.quality.lost) {
            self.counts.lost += 1;
            return;
        }
        let at = self.arrival(now);
        self.send(at, frame);
        if self.happens(self.quality.twice) {
            self.counts.twice += 1;
            let at = self.arrival(now);
            self.send(at, frame);
        }
    }

    /// When a frame that is sent now arrives.
    fn arrival(&mut self, now: Duration) -> Duration {
        let Quality { delay_ms, jitter_ms, overtaken, .. } = self.quality;
        let delay_us = delay_ms * 1000;
        let jitter_us = jitter_ms.min(delay_ms) * 1000;
        let delay_us = self.rng.random_range(delay_us - jitter_us..=delay_us + jitter_us);
        let at = self.last_at.max(now + Duration::from_micros(delay_us));
        if self.happens(overtaken) {
            self.counts.overtaken += 1;
            return at + Duration::from_millis(self.rng.random_range(LATE_MS));
        }
        self.last_at = at;
        at
    }

    fn send(&mut self, at: Duration, frame: &[u8]) {
        if self.under_way.len() >= UNDER_WAY {
            self.counts.refused += 1;
            return;
        }
        self.under_way.insert((at, self.next), frame.to_vec());
        self.next += 1;
    }

    fn happens(&mut self, percent: u32) -> bool {
        self.rng.random_ratio(percent.min(100), 100)
    }

    /// The next frame that has arrived by now.
    pub(super) fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        let first = self.under_way.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// When the next frame arrives.
    pub(super) fn next_at(&self) -> Option<Duration> {
        self.under_way.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LATER: Duration = Duration::from_secs(1000);

    /// What arrives until then, each with when.
    fn arrivals(wire: &mut Wire, until: Duration) -> Vec<(Duration, Vec<u8>)> {
        let mut all = Vec::new();
        while let Some(at) = wire.next_at().filter(|at| *at <= until) {
            all.push((at, wire.pop(at).unwrap()));
        }
        all
    }

    /// Sends frames numbered from 0, one a millisecond; the numbers as they arrive.
    fn numbers(quality: Quality, seed: u64, count: u32) -> (Vec<u32>, Counts) {
        let mut wire = Wire::new(quality, seed);
        let mut arrived = Vec::new();
        for number in 0..count {
            let now = MS * number;
            arrived.extend(arrivals(&mut wire, now));
            wire.push(now, &number.to_be_bytes());
        }
        arrived.extend(arrivals(&mut wire, LATER));
        let number = |frame: Vec<u8>| u32::from_be_bytes(frame.try_into().unwrap());
        (arrived.into_iter().map(|(_, frame)| number(frame)).collect(), wire.counts())
    }

    #[test]
    fn a_frame_arrives_after_the_delay_and_not_before() {
        let mut wire = Wire::new(Quality { delay_ms: 200, ..Quality::default() }, 1);
        wire.push(MS * 5, b"a");
        assert_eq!(wire.next_at(), Some(MS * 205));
        assert_eq!(wire.pop(MS * 204), None);
        assert_eq!(wire.pop(MS * 205), Some(b"a".to_vec()));
        assert_eq!((wire.pop(LATER), wire.next_at()), (None, None));
    }

    #[test]
    fn a_perfect_link_hands_on_all_at_once_and_in_order() {
        let (arrived, counts) = numbers(Quality::default(), 1, 500);
        assert_eq!(arrived, (0..500).collect::<Vec<_>>());
        assert_eq!(counts, Counts { sent: 500, ..Counts::default() });
    }

    #[test]
    fn jitter_stays_within_its_bounds_and_keeps_the_order() {
        let quality = Quality { delay_ms: 100, jitter_ms: 40, ..Quality::default() };
        let (arrived, _) = numbers(quality, 2, 500);
        assert_eq!(arrived, (0..500).collect::<Vec<_>>());
        let mut delays = Vec::new();
        // One after another has arrived, so that none waits for the one before.
        let mut wire = Wire::new(quality, 2);
        for number in 0..200 {
            let sent = MS * 1000 * number;
            wire.push(sent, b"a");
            delays.extend(arrivals(&mut wire, LATER).into_iter().map(|(at, _)| at - sent));
        }
        assert!(delays.iter().all(|delay| (MS * 60..=MS * 140).contains(delay)), "{delays:?}");
        assert!(delays.iter().max().unwrap() > &(MS * 120), "{delays:?}");
        assert!(delays.iter().min().unwrap() < &(MS * 80), "{delays:?}");
    }

    #[test]
    fn jitter_beyond_the_delay_is_as_much_as_the_delay() {
        let mut wire = Wire::new(Quality { delay_ms: 1, jitter_ms: 50, ..Quality::default() }, 3);
        wire.push(MS, b"a");
        assert!((MS..=MS * 3).contains(&wire.next_at().unwrap()));
    }

    #[test]
    fn so_many_frames_are_lost_doubled_and_overtaken_as_was_said() {
        let quality = Quality { delay_ms: 10, jitter_ms: 2, lost: 20, twice: 10, overtaken: 15 };
        let (arrived, counts) = numbers(quality, 4, 10_000);
        assert_eq!(counts.sent, 10_000);
        assert!((1800..2200).contains(&counts.lost), "{counts}");
        assert!((700..900).contains(&counts.twice), "{counts}");
        assert!((1180..1460).contains(&counts.overtaken), "{counts}");
        assert_eq!(counts.refused, 0);
        assert_eq!(arrived.len() as u64, counts.sent - counts.lost + counts.twice);
        assert!(!arrived.is_sorted());
        let (again, same) = numbers(quality, 4, 10_000);
        assert_eq!((again, same), (arrived, counts));
    }

    #[test]
    fn too_many_under_way_are_lost_until_some_arrive() {
        let mut wire = Wire::new(Quality { delay_ms: 10, ..Quality::default() }, 5);
        for _ in 0..UNDER_WAY + 7 {
            wire.push(MS, b"a");
        }
        assert_eq!(wire.counts().refused, 7);
        assert_eq!(arrivals(&mut wire, MS * 11).len(), UNDER_WAY);
        wire.push(MS * 11, b"b");
        assert_eq!(wire.pop(LATER), Some(b"b".to_vec()));
    }
}
