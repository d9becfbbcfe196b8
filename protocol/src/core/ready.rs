//! What waits for a worker, for one step of a pipeline: the highest priority first; among equals,
//! each owner's jobs in turn; of one owner, those first that came first.
//!
//! Held back are jobs whose key has as many attempts as it may, until one of these ends; and all,
//! while as many attempts have begun as may begin in a time. Both are counted within one term.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    id::JobId,
    name::Name,
    pipeline::{KeyedLimit, Rate},
    time::Timestamp,
};

/// Names a queue: what a worker must offer, and the step.
pub(super) type QueueName = (Name, Name);

/// One invocation that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) job: JobId,
    pub(super) step: u16,
    pub(super) priority: i8,
    /// Whose it is, where owners come in turn.
    pub(super) owner: Option<Arc<str>>,
}

/// Where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It was given out already, and has waited for longer than all others.
    Front,
    /// As a rule.
    Back,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub(super) struct ReadyQueue {
    waiting: BTreeMap<Reverse<i8>, Turns>,
    /// By key: what waits until another with that key has ended, as it is ordered elsewhere.
    parked: BTreeMap<Arc<str>, BTreeMap<Reverse<i8>, VecDeque<Entry>>>,
    /// How many attempts each key has.
    running: BTreeMap<Arc<str>, u32>,
    /// Those of `parked` that are not held back any more, and the key that each stands for.
    woken: BTreeMap<(JobId, u16), Arc<str>>,
    /// When the last attempts began; as many as may begin in a time.
    begun: VecDeque<Timestamp>,
}

/// The owners of equal priority, in turn.
#[derive(Clone, Debug, Default)]
struct Turns {
    order: VecDeque<Option<Arc<str>>>,
    lanes: BTreeMap<Option<Arc<str>>, VecDeque<Slot>>,
}

/// An invocation in a queue: there may be millions, so that an id is kept as bytes, without the room
/// that its alignment would take.
#[derive(Clone, Copy, Debug)]
struct Slot {
    job: [u8; 16],
    step: u16,
}

impl Slot {
    fn new(job: JobId, step: u16) -> Self {
        Self { job: job.to_be_bytes(), step }
    }

    fn get(self) -> (JobId, u16) {
        (JobId::from_be_bytes(self.job), self.step)
    }
}

impl ReadyQueue {
    /// Whether nothing waits for a worker.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether nothing needs to be remembered.
    pub(super) fn is_idle(&self) -> bool {
        let nobody = self.parked.is_empty() && self.running.is_empty() && self.woken.is_empty();
        nobody && self.waiting.is_empty() && self.begun.is_empty()
    }

    /// How many wait, those that are held back included.
    pub(super) fn depth(&self) -> u64 {
        let lanes = self.waiting.values().flat_map(|turns| turns.lanes.values());
        let parked = self.parked.values().flat_map(BTreeMap::values);
        let waiting: usize = lanes.map(VecDeque::len).sum();
        (waiting + parked.map(VecDeque::len).sum::<usize>()) as u64
    }

    /// Those who come next, each in its turn or behind its key.
    pub(super) fn fronts(&self) -> impl Iterator<Item = (JobId, u16)> {
        let lanes = self.waiting.values().flat_map(|turns| turns.lanes.values());
        let parked = self.parked.values().flat_map(BTreeMap::values);
        let held_back = parked.filter_map(|entries| entries.front());
        let next = lanes.filter_map(|lane| lane.front().map(|slot| slot.get()));
        next.chain(held_back.map(|entry| (entry.job, entry.step)))
    }

    pub(super) fn push(&mut self, entry: Entry, place: Place) {
        let Entry { job, step, priority, owner } = entry;
        let turns = self.waiting.entry(Reverse(priority)).or_default();
        let lane = turns.lanes.entry(owner.clone()).or_insert_with(|| {
            turns.order.push_back(owner);
            VecDeque::new()
        });
        match place {
            Place::Front => lane.push_front(Slot::new(job, step)),
            Place::Back => lane.push_back(Slot::new(job, step)),
        }
    }

    /// The next in turn; if it does not hold any more, [`skip`](Self::skip) it.
    pub(super) fn pop(&mut self) -> Option<Entry> {
        let mut first = self.waiting.first_entry()?;
        let Reverse(priority) = *first.key();
        let turns = first.get_mut();
        let owner = turns.order.pop_front()?;
        let lane = turns.lanes.get_mut(&owner)?;
        let (job, step) = lane.pop_front()?.get();
        if lane.is_empty() {
            turns.lanes.remove(&owner);
        } else {
            turns.order.push_back(owner.clone());
        }
        if turns.lanes.is_empty() {
            first.remove();
        }
        Some(Entry { job, step, priority, owner })
    }

    /// From when on another attempt may begin, where that is later than now.
    pub(super) fn held_back(&mut self, now: Timestamp, rate: Option<Rate>) -> Option<Timestamp> {
        let Some(rate) = rate else {
            self.begun.clear();
            return None;
        };
        while self.begun.front().is_some_and(|at| *at + rate.per <= now) {
            self.begun.pop_front();
        }
        let over = (self.begun.len() + 1).checked_sub(rate.count as usize)?;
        let last = over.checked_sub(1)?;
        self.begun.get(last).map(|at| *at + rate.per)
    }

    /// An entry that was taken out does not begin: if it stood for others with its key, the next of
    /// these does.
    pub(super) fn skip(&mut self, entry: &Entry) {
        if let Some(key) = self.woken.remove(&(entry.job, entry.step)) {
            self.wake(&key);
        }
    }

    /// Whether a key has as many attempts as it may.
    pub(super) fn is_full(&self, key: &str, limit: &KeyedLimit) -> bool {
        self.running.get(key).is_some_and(|running| *running >= limit.running)
    }

    /// Keeps an entry until an attempt with the same key has ended.
    pub(super) fn park(&mut self, key: Arc<str>, entry: Entry) {
        self.woken.remove(&(entry.job, entry.step));
        let equals = self.parked.entry(key).or_default().entry(Reverse(entry.priority));
        equals.or_default().push_back(entry);
    }

    /// An attempt begins.
    pub(super) fn begin(
        &mut self,
        (job, step): (JobId, u16),
        now: Timestamp,
        rate: Option<Rate>,
        key: Option<&Arc<str>>,
    ) {
        self.woken.remove(&(job, step));
        if rate.is_some() {
            self.begun.push_back(now);
        }
        key.into_iter().for_each(|key| self.count(key));
    }

    /// An attempt runs with a key.
    pub(super) fn count(&mut self, key: &Arc<str>) {
        *self.running.entry(Arc::clone(key)).or_default() += 1;
    }

    /// Holds nothing back any more, and forgets what runs.
    pub(super) fn release(&mut self) {
        self.running.clear();
        self.woken.clear();
        let parked = std::mem::take(&mut self.parked);
        for entry in parked.into_values().flat_map(BTreeMap::into_values).flatten() {
            self.push(entry, Place::Back);
        }
    }

    /// An attempt has ended.
    pub(super) fn end(&mut self, key: &Arc<str>) {
        if let Some(running) = self.running.get_mut(key) {
            *running = running.saturating_sub(1);
            if *running == 0 {
                self.running.remove(key);
            }
        }
        self.wake(key);
    }

    /// Lets the next with a key come.
    fn wake(&mut self, key: &Arc<str>) {
        let Some(parked) = self.parked.get_mut(key) else { return };
        let Some(mut first) = parked.first_entry() else { return };
        let next = first.get_mut().pop_front();
        if first.get().is_empty() {
            first.remove();
        }
        if parked.is_empty() {
            self.parked.remove(key);
        }
        if let Some(entry) = next {
            self.woken.insert((entry.job, entry.step), Arc::clone(key));
            self.push(entry, Place::Front);
        }
    }
}

/// The value at a place in a JSON document, as text: what limits and turns go by. Values that are no
/// strings are taken as they are written.
pub(super) fn value_at(json: &[u8], pointer: &str) -> Option<Arc<str>> {
    let document: serde_json::Value = serde_json::from_slice(json).ok()?;
    match document.pointer(pointer)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.as_str().into()),
        other => Some(other.to_string().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn entry(job: u128, priority: i8, owner: Option<&str>) -> Entry {
        let job = JobId::from_be_bytes(job.to_be_bytes());
        Entry { job, step: 0, priority, owner: owner.map(Into::into) }
    }

    fn order(queue: &mut ReadyQueue) -> Vec<u128> {
        let jobs = std::iter::from_fn(|| queue.pop());
        jobs.map(|entry| u128::from_be_bytes(entry.job.to_be_bytes())).collect()
    }

    #[test]
    fn the_higher_priority_goes_first_and_equals_keep_their_order() {
        let mut queue = ReadyQueue::default();
        for (job, priority) in [(1, 0), (2, -3), (3, 5), (4, 0), (5, 5)] {
            queue.push(entry(job, priority, None), Place::Back);
        }
        queue.push(entry(6, 0, None), Place::Front);
        assert_eq!(order(&mut queue), [3, 5, 6, 1, 4, 2]);
        assert!(queue.is_idle());
    }

    #[test]
    fn owners_come_in_turn_however_much_one_has() {
        let mut queue = ReadyQueue::default();
        for job in 1..=5 {
            queue.push(entry(job, 0, Some("many")), Place::Back);
        }
        queue.push(entry(6, 0, Some("few")), Place::Back);
        queue.push(entry(7, 0, Some("few")), Place::Back);
        assert_eq!(order(&mut queue), [1, 6, 2, 7, 3, 4, 5]);
    }

    #[test]
    fn no_more_begin_in_any_span_of_time_than_the_rate_says() {
        let (mut queue, at) = (ReadyQueue::default(), Timestamp::from_millis);
        let rate = Some(Rate { count: 2, per: Duration::from_millis(100) });
        let mut begin = |now: u64| match queue.held_back(at(now), rate) {
            Some(until) => Err(until.as_millis()),
            None => {
                queue.begin((JobId::MIN, 0), at(now), rate, None);
                Ok(())
            }
        };
        assert_eq!(
            [begin(0), begin(60), begin(70), begin(99)],
            [Ok(()), Ok(()), Err(100), Err(100)]
        );
        assert_eq!([begin(100), begin(101), begin(160)], [Ok(()), Err(160), Ok(())]);
    }

    #[test]
    fn a_key_that_is_full_waits_for_the_end_of_one() {
        let mut queue = ReadyQueue::default();
        let limit = KeyedLimit { key: "/k".into(), running: 1 };
        let key: Arc<str> = "a".into();
        queue.begin((JobId::MIN, 0), Timestamp::default(), None, Some(&key));
        assert!(queue.is_full(&key, &limit));
        queue.park(Arc::clone(&key), entry(1, 0, None));
        queue.push(entry(2, 0, None), Place::Back);
        assert!(!queue.is_full("b", &limit));
        queue.park(Arc::clone(&key), entry(3, 0, None));
        queue.end(&key);
        let first = queue.pop().expect("one waits");
        assert_eq!(first, entry(1, 0, None));
        assert_eq!((queue.depth(), queue.fronts().count()), (2, 2));
        // It does not hold any more: the next with its key comes in its place.
        queue.skip(&first);
        assert_eq!(order(&mut queue), [3, 2]);
    }

    #[test]
    fn of_those_with_a_key_the_most_urgent_is_next() {
        let mut queue = ReadyQueue::default();
        let key: Arc<str> = "a".into();
        queue.begin((JobId::MIN, 0), Timestamp::default(), None, Some(&key));
        queue.park(Arc::clone(&key), entry(1, 0, None));
        queue.park(Arc::clone(&key), entry(2, 5, None));
        queue.end(&key);
        assert_eq!(queue.pop(), Some(entry(2, 5, None)));
    }

    #[test]
    fn nothing_is_held_back_once_limits_have_changed() {
        let mut queue = ReadyQueue::default();
        let key: Arc<str> = "a".into();
        queue.begin((JobId::MIN, 0), Timestamp::default(), None, Some(&key));
        queue.park(Arc::clone(&key), entry(1, 0, None));
        queue.park(Arc::clone(&key), entry(2, 0, None));
        queue.release();
        assert_eq!(order(&mut queue), [1, 2]);
        assert!(queue.is_idle());
    }

    #[test]
    fn values_are_found_by_pointer() {
        let json = br#"{"tenant":"a","of":{"n":7},"none":null}"#;
        let at = |pointer| value_at(json, pointer).map(|value| value.to_string());
        assert_eq!(at("/tenant").as_deref(), Some("a"));
        assert_eq!(at("/of/n").as_deref(), Some("7"));
        assert_eq!([at("/none"), at("/missing")], [None, None]);
        assert_eq!(value_at(b"no json", "/a"), None);
    }
}
