//! Putting messages of several regions in order, and choosing between those that contradict. Pure: the time is an argument.

use std::collections::{BTreeMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

use foldhash::{HashMap, HashMapExt};

/// Gives messages of each source in the order of their numbers, whatever order they arrive in.
///
/// It holds at most `max_held` messages and waits at most `max_wait` for one that is missing; then it goes on without it,
/// counted in [`Reorder::skipped`]. One that arrives after that, or a second time, is not given, counted in
/// [`Reorder::late`].
///
/// ```
/// use std::time::{Duration, Instant};
/// use nats_bridge::order::Reorder;
///
/// let mut reorder = Reorder::new(1000, Duration::from_secs(5));
/// let now = Instant::now();
/// assert_eq!(reorder.push("eu", 1, "a", now), ["a"]);
/// assert_eq!(reorder.push("eu", 3, "c", now), Vec::<&str>::new());
/// assert_eq!(reorder.push("eu", 2, "b", now), ["b", "c"]);
/// ```
#[derive(Debug)]
pub struct Reorder<T> {
    max_held: usize,
    max_wait: Duration,
    sources: HashMap<String, Source<T>>,
    held: usize,
    skipped: u64,
    late: u64,
}

#[derive(Debug)]
struct Source<T> {
    next: Option<u64>,
    waiting: BTreeMap<u64, (T, Instant)>,
}

impl<T> Reorder<T> {
    /// An empty buffer; `max_held` of 0 counts as 1. What is expected first of a source is what arrives first of it, unless
    /// [`Reorder::expect`] says otherwise.
    pub fn new(max_held: usize, max_wait: Duration) -> Self {
        Reorder { max_held: max_held.max(1), max_wait, sources: HashMap::new(), held: 0, skipped: 0, late: 0 }
    }

    /// Says which number of a source comes next, such as after a restart.
    pub fn expect(&mut self, source: &str, number: u64) {
        let source = self.sources.entry(source.to_owned()).or_insert_with(Source::empty);
        source.next = Some(number);
        let before = source.waiting.len();
        source.waiting = source.waiting.split_off(&number);
        self.held -= before - source.waiting.len();
    }

    /// Takes a message, and gives those that may go on now.
    pub fn push(&mut self, source: &str, number: u64, message: T, now: Instant) -> Vec<T> {
        let entry = self.sources.entry(source.to_owned()).or_insert_with(Source::empty);
        let next = *entry.next.get_or_insert(number);
        if number < next || entry.waiting.contains_key(&number) {
            self.late += 1;
            return self.due(now);
        }
        entry.waiting.insert(number, (message, now));
        self.held += 1;
        let mut out = Vec::new();
        self.held -= entry.take_ready(&mut out);
        // At the bound the source that holds most goes on without what it misses.
        while self.held > self.max_held {
            let fullest = self.sources.values_mut().max_by_key(|source| source.waiting.len());
            let Some(fullest) = fullest else { break };
            self.skipped += fullest.skip();
            self.held -= fullest.take_ready(&mut out);
        }
        out.append(&mut self.due(now));
        out
    }

    /// Gives those that have waited long enough for one that is missing.
    pub fn due(&mut self, now: Instant) -> Vec<T> {
        let mut out = Vec::new();
        for source in self.sources.values_mut() {
            let old = |(_, (_, since)): (&u64, &(T, Instant))| now.duration_since(*since) >= self.max_wait;
            while source.waiting.iter().any(old) {
                self.skipped += source.skip();
                self.held -= source.take_ready(&mut out);
            }
        }
        out
    }

    /// How many messages wait for one that is missing.
    pub fn held(&self) -> usize {
        self.held
    }

    /// How many numbers were gone past without having arrived.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// How many messages arrived too late or again, and were not given.
    pub fn late(&self) -> u64 {
        self.late
    }
}

impl<T> Source<T> {
    fn empty() -> Self {
        Source { next: None, waiting: BTreeMap::new() }
    }

    // Goes past what is missing before the first that waits; gives how many numbers that is.
    fn skip(&mut self) -> u64 {
        match (self.waiting.keys().next(), self.next) {
            (Some(first), Some(next)) => {
                let missing = first.saturating_sub(next);
                self.next = Some(*first);
                missing
            }
            _ => 0,
        }
    }

    fn take_ready(&mut self, out: &mut Vec<T>) -> usize {
        let mut taken = 0;
        while let Some(next) = self.next
            && let Some((message, _)) = self.waiting.remove(&next)
        {
            out.push(message);
            self.next = Some(next.saturating_add(1));
            taken += 1;
        }
        taken
    }
}

/// When and where something was written: the later one wins; of two at the same time the greater region, then the greater
/// id, so that every region chooses the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Milliseconds since 1970, by the writer's clock.
    pub millis: u64,
    /// The region that wrote it.
    pub region: String,
    /// The message's id.
    pub id: String,
}

/// Remembers the last stamp of each key, and tells which writes still count.
///
/// It remembers at most `max_keys`; beyond, the key that was written longest ago is forgotten, and a late write of it wins
/// again.
#[derive(Debug)]
pub struct LastWriter<K> {
    max_keys: usize,
    last: HashMap<K, Stamp>,
    order: VecDeque<(K, Stamp)>,
}

impl<K: Clone + Eq + Hash> LastWriter<K> {
    /// Remembers nothing yet; `max_keys` of 0 counts as 1.
    pub fn new(max_keys: usize) -> Self {
        LastWriter { max_keys: max_keys.max(1), last: HashMap::new(), order: VecDeque::new() }
    }

    /// Whether this write is later than all that were offered before for its key; then it is remembered. The same write
    /// offered again does not win.
    pub fn wins(&mut self, key: K, stamp: Stamp) -> bool {
        if self.last.get(&key).is_some_and(|last| *last >= stamp) {
            return false;
        }
        self.last.insert(key.clone(), stamp.clone());
        self.order.push_back((key, stamp));
        // Entries of keys that were written again meanwhile are only passed over.
        while self.last.len() > self.max_keys || self.order.len() > 2 * self.max_keys {
            let Some((key, stamp)) = self.order.pop_front() else { break };
            if self.last.get(&key) == Some(&stamp) {
                match self.last.len() > self.max_keys {
                    true => drop(self.last.remove(&key)),
                    false => self.order.push_back((key, stamp)),
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_is_waited_for_up_to_its_bounds_and_then_counted() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut reorder = Reorder::new(3, Duration::from_secs(5));
        assert_eq!(reorder.push("eu", 10, 10, at(0)), [10]);
        assert!(reorder.push("eu", 12, 12, at(1)).is_empty());
        assert!(reorder.due(at(5)).is_empty());
        assert_eq!(reorder.due(at(6)), [12]);
        assert_eq!((reorder.skipped(), reorder.held()), (1, 0));
        assert!(reorder.push("eu", 11, 11, at(7)).is_empty());
        assert_eq!(reorder.late(), 1);
        // Too many to hold: it goes on.
        for number in [14, 15, 16] {
            assert!(reorder.push("eu", number, number, at(8)).is_empty());
        }
        assert_eq!(reorder.push("eu", 17, 17, at(8)), [14, 15, 16, 17]);
        reorder.expect("us", 1);
        assert!(reorder.push("us", 2, 2, at(8)).is_empty());
        assert_eq!(reorder.push("us", 1, 1, at(8)), [1, 2]);
    }

    #[test]
    fn of_two_writes_every_region_chooses_the_same() {
        let stamp = |millis, region: &str, id: &str| Stamp { millis, region: region.into(), id: id.into() };
        let mut writer = LastWriter::new(2);
        assert!(writer.wins("a", stamp(5, "eu", "1")));
        assert!(!writer.wins("a", stamp(4, "us", "2")));
        assert!(writer.wins("a", stamp(5, "us", "0")));
        assert!(!writer.wins("a", stamp(5, "us", "0")));
        assert!(writer.wins("b", stamp(1, "eu", "1")) && writer.wins("c", stamp(1, "eu", "1")));
        assert!(writer.wins("a", stamp(1, "eu", "1")), "the oldest key was forgotten");
    }

    proptest! {
        #[test]
        fn every_order_of_arrival_gives_the_numbers_in_order(mut numbers in Just((0u64..40).collect::<Vec<_>>()).prop_shuffle()) {
            let mut reorder = Reorder::new(100, Duration::from_secs(1));
            reorder.expect("eu", 0);
            let now = Instant::now();
            let out: Vec<u64> = numbers.drain(..).flat_map(|n| reorder.push("eu", n, n, now)).collect();
            prop_assert_eq!(out, (0..40).collect::<Vec<_>>());
        }

        #[test]
        fn memory_stays_within_its_bounds(steps in proptest::collection::vec((0u8..3, 0u64..60), 0..300), keys in 1usize..9) {
            let mut reorder = Reorder::new(8, Duration::from_secs(1));
            let mut writer = LastWriter::new(keys);
            let now = Instant::now();
            let (mut given, mut pushed) = (0, 0);
            for (source, number) in steps {
                given += reorder.push(&source.to_string(), number, number, now).len() as u64;
                pushed += 1;
                prop_assert!(reorder.held() <= 8);
                prop_assert_eq!(given + reorder.held() as u64 + reorder.late(), pushed);
                writer.wins(number, Stamp { millis: number, region: String::new(), id: pushed.to_string() });
                prop_assert!(writer.last.len() <= keys && writer.order.len() <= 2 * keys + 1);
            }
        }

        #[test]
        fn the_winner_does_not_depend_on_the_order(mut stamps in proptest::collection::vec((0u64..5, "[a-c]", "[0-9]"), 1..12)) {
            let winner = |stamps: &[(u64, String, String)]| {
                let mut writer = LastWriter::new(10);
                let stamps = stamps.iter().map(|(millis, region, id)| Stamp { millis: *millis, region: region.clone(), id: id.clone() });
                stamps.filter(|stamp| writer.wins("k", stamp.clone())).last()
            };
            let forward = winner(&stamps);
            stamps.reverse();
            prop_assert_eq!(forward, winner(&stamps));
        }
    }
}
