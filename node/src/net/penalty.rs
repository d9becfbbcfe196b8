//! Peers that sent what no node sends: at the third time they are kept out for a while.
//!
//! The gate asks here before it spends anything on a peer; links report what they could not read.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use libp2p::PeerId;

/// So many offences are forgiven, for what a defect may do once.
const FORGIVEN: u32 = 2;

/// For how long a peer is kept out, and after how long an offence is forgotten.
const KEPT_OUT: Duration = Duration::from_secs(60);

/// How many peers are kept in mind; only members get as far as to offend.
const PEERS: usize = 4096;

#[derive(Clone, Debug, Default)]
pub(super) struct Penalties(Arc<Mutex<BTreeMap<PeerId, Offences>>>);

#[derive(Clone, Copy, Debug)]
struct Offences {
    count: u32,
    last: Instant,
}

impl Penalties {
    /// A peer has offended; whether it is kept out now.
    pub(super) fn offended(&self, peer: PeerId, now: Instant) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, offences| now.saturating_duration_since(offences.last) < KEPT_OUT);
        if known.len() >= PEERS && !known.contains_key(&peer) {
            return true;
        }
        let offences = known.entry(peer).or_insert(Offences { count: 0, last: now });
        offences.count += 1;
        offences.last = now;
        offences.count > FORGIVEN
    }

    /// Whether a peer is kept out.
    pub(super) fn keep_out(&self, peer: PeerId, now: Instant) -> bool {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&peer).is_some_and(|offences| {
            offences.count > FORGIVEN && now.saturating_duration_since(offences.last) < KEPT_OUT
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_third_offence_keeps_a_peer_out_for_a_while() {
        let penalties = Penalties::default();
        let (peer, now) = (PeerId::random(), Instant::now());
        assert!(!penalties.offended(peer, now) && !penalties.offended(peer, now));
        assert!(!penalties.keep_out(peer, now));
        assert!(penalties.offended(peer, now) && penalties.keep_out(peer, now));
        assert!(!penalties.keep_out(PeerId::random(), now));
        let later = now + KEPT_OUT;
        assert!(!penalties.keep_out(peer, later) && !penalties.offended(peer, later));
    }
}
