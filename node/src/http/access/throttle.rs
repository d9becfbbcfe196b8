//! Failed logins of an address: after some of them it is not listened to for a while.
//!
//! Who has got in from an address before goes on getting in from it: a stranger behind the same
//! router cannot lock others out, and gains nothing by that, as its guesses were never right.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How many logins may fail within the window before an address is not listened to.
pub(super) const FAILURES: u32 = 10;
pub(super) const WINDOW: Duration = Duration::from_secs(60);

/// How many addresses are remembered; the oldest gives way. Some hundred KiB at most.
const ADDRESSES: usize = 4096;

/// How many of those who got in are remembered for each.
const KNOWN: usize = 8;

/// The failed logins of all addresses.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    addresses: HashMap<IpAddr, Logins>,
    order: VecDeque<IpAddr>,
}

#[derive(Debug, Default)]
struct Logins {
    since: Option<Instant>,
    failures: u32,
    known: Vec<Arc<str>>,
}

impl Logins {
    fn blocked(&self, now: Instant) -> Option<Duration> {
        let since = self.since.filter(|_| self.failures >= FAILURES)?;
        (since + WINDOW).checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

impl Throttle {
    /// How long this address is not listened to, if so; `name` is whose credential it has shown, if
    /// that is a right one.
    pub(super) fn blocked(
        &self,
        address: IpAddr,
        name: Option<&str>,
        now: Instant,
    ) -> Option<Duration> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let logins = state.addresses.get(&site(address))?;
        let is_known = name.is_some_and(|name| logins.known.iter().any(|one| **one == *name));
        if is_known { None } else { logins.blocked(now) }
    }

    /// A login failed.
    pub(super) fn failed(&self, address: IpAddr, now: Instant) {
        self.change(address, |logins| {
            if logins.since.is_none_or(|since| now.duration_since(since) >= WINDOW) {
                (logins.since, logins.failures) = (Some(now), 0);
            }
            logins.failures += 1;
            if logins.failures == FAILURES {
                // The wait begins with the last failure.
                logins.since = Some(now);
                tracing::warn!(%address, "too many failed logins: not listening to it for a while");
            }
        });
    }

    /// Somebody got in.
    pub(super) fn succeeded(&self, address: IpAddr, name: &Arc<str>) {
        self.change(address, |logins| {
            if !logins.known.contains(name) {
                if logins.known.len() == KNOWN {
                    logins.known.remove(0);
                }
                logins.known.push(name.clone());
            }
        });
    }

    fn change(&self, address: IpAddr, change: impl FnOnce(&mut Logins)) {
        let address = site(address);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        if !state.addresses.contains_key(&address) {
            if state.order.len() == ADDRESSES
                && let Some(oldest) = state.order.pop_front()
            {
                state.addresses.remove(&oldest);
            }
            state.order.push_back(address);
        }
        change(state.addresses.entry(address).or_default());
    }
}

/// Who is one client: an address, or the 2^64 addresses that an IPv6 host can take by itself.
fn site(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn guessing_ends_after_some_failures_and_may_go_on_later() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..FAILURES {
            assert_eq!(throttle.blocked(ip("10.0.0.1"), None, now), None);
            throttle.failed(ip("10.0.0.1"), now);
        }
        assert_eq!(throttle.blocked(ip("10.0.0.1"), None, now), Some(WINDOW));
        // A right guess comes too late.
        assert!(throttle.blocked(ip("10.0.0.1"), Some("ci"), now).is_some());
        assert!(throttle.blocked(ip("::ffff:10.0.0.1"), None, now).is_some());
        assert_eq!(throttle.blocked(ip("10.0.0.2"), None, now), None);
        assert_eq!(throttle.blocked(ip("10.0.0.1"), None, now + WINDOW), None);
        throttle.failed(ip("10.0.0.1"), now + WINDOW);
        assert_eq!(throttle.blocked(ip("10.0.0.1"), None, now + WINDOW), None);
    }

    #[test]
    fn who_was_in_before_is_not_locked_out_by_others() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        throttle.succeeded(ip("10.0.0.1"), &"ci".into());
        for _ in 0..FAILURES * 2 {
            throttle.failed(ip("10.0.0.1"), now);
        }
        assert_eq!(throttle.blocked(ip("10.0.0.1"), Some("ci"), now), None);
        assert!(throttle.blocked(ip("10.0.0.1"), Some("other"), now).is_some());
        assert!(throttle.blocked(ip("10.0.0.1"), None, now).is_some());
    }

    #[test]
    fn a_host_is_one_address_and_memory_is_bounded() {
        let (throttle, now) = (Throttle::default(), Instant::now());
        for host in 0..FAILURES {
            throttle.failed(ip(&format!("2001:db8::{host:x}")), now);
        }
        assert!(throttle.blocked(ip("2001:db8::ffff"), None, now).is_some());
        assert!(throttle.blocked(ip("2001:db8:0:1::1"), None, now).is_none());
        for address in 0..ADDRESSES as u32 * 2 {
            throttle.failed(IpAddr::V4(address.into()), now);
        }
        let state = throttle.state.lock().expect("not poisoned");
        assert_eq!((state.addresses.len(), state.order.len()), (ADDRESSES, ADDRESSES));
    }
}
