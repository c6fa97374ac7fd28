//! Which entry may be sent next: of one subject one at a time and in order, of several subjects at once. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use foldhash::HashMap;

/// The numbers of all entries that wait, by subject.
///
/// Of each subject only the first is ever out: the next one follows when it is settled. One that failed and may pass keeps its
/// place, and its subject waits; other subjects go on.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<Arc<str>, Lane>,
    // Subjects whose first entry may be sent, by its number.
    ready: BTreeMap<u64, Arc<str>>,
    // Subjects that wait after a failure.
    paused: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Debug)]
struct Lane {
    // Number, and when it was put (milliseconds since 1970).
    numbers: VecDeque<(u64, u64)>,
    failures: u32,
}

impl Lanes {
    /// Appends an entry to its subject. Numbers rise.
    pub fn push(&mut self, subject: &str, number: u64, put_ms: u64) {
        if let Some(lane) = self.lanes.get_mut(subject) {
            lane.numbers.push_back((number, put_ms));
            return;
        }
        let subject: Arc<str> = subject.into();
        self.ready.insert(number, subject.clone());
        self.lanes.insert(subject, Lane { numbers: VecDeque::from([(number, put_ms)]), failures: 0 });
    }

    /// Takes out the oldest entry that may be sent at this time. It has to be settled, or to fail.
    pub fn next(&mut self, now: Instant) -> Option<(Arc<str>, u64)> {
        while let Some((until, subject)) = self.paused.first().cloned()
            && until <= now
        {
            self.paused.pop_first();
            self.make_ready(&subject);
        }
        let (number, subject) = self.ready.pop_first()?;
        Some((subject, number))
    }

    /// When the first pause ends.
    pub fn due(&self) -> Option<Instant> {
        self.paused.first().map(|(until, _)| *until)
    }

    /// The entry that is out of this subject is done with: the next one may be sent.
    pub fn settled(&mut self, subject: &str) {
        let Some(lane) = self.lanes.get_mut(subject) else { return };
        lane.numbers.pop_front();
        lane.failures = 0;
        match lane.numbers.is_empty() {
            true => drop(self.lanes.remove(subject)),
            false => self.make_ready(subject),
        }
    }

    /// The entry that is out of this subject was not taken: it goes again after a pause, which `pause` makes of the number of
    /// failures in a row.
    pub fn failed(&mut self, subject: &Arc<str>, pause: impl FnOnce(u32) -> Instant) {
        let Some(lane) = self.lanes.get_mut(subject) else { return };
        lane.failures = lane.failures.saturating_add(1);
        self.paused.insert((pause(lane.failures), subject.clone()));
    }

    /// When the oldest entry was put, in milliseconds since 1970.
    pub fn oldest_ms(&self) -> Option<u64> {
        self.lanes.values().filter_map(|lane| lane.numbers.front()).min().map(|(_, put_ms)| *put_ms)
    }

    fn make_ready(&mut self, subject: &str) {
        if let Some((subject, lane)) = self.lanes.get_key_value(subject)
            && let Some(first) = lane.numbers.front()
        {
            self.ready.insert(first.0, subject.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn length(lanes: &Lanes) -> usize {
        lanes.lanes.values().map(|lane| lane.numbers.len()).sum()
    }

    #[test]
    fn one_subject_goes_in_order_and_holds_no_other_up() {
        let mut lanes = Lanes::default();
        let now = Instant::now();
        for (number, subject) in ["a", "a", "b", "a"].into_iter().enumerate() {
            lanes.push(subject, number as u64, 100 + number as u64);
        }
        let (a, number) = lanes.next(now).expect("a is ready");
        assert_eq!((&*a, number), ("a", 0));
        let (b, number) = lanes.next(now).expect("b is ready");
        assert_eq!((&*b, number), ("b", 2));
        assert_eq!(lanes.next(now), None);
        let later = now + Duration::from_secs(1);
        lanes.failed(&a, |failures| {
            assert_eq!(failures, 1);
            later
        });
        lanes.settled(&b);
        assert_eq!((lanes.next(now), lanes.due(), length(&lanes)), (None, Some(later), 3));
        assert_eq!(lanes.next(later).map(|(_, number)| number), Some(0));
        lanes.settled("a");
        assert_eq!(lanes.next(now).map(|(_, number)| number), Some(1));
        assert_eq!(lanes.oldest_ms(), Some(101));
    }

    proptest! {
        #[test]
        fn every_entry_comes_out_once_and_in_the_order_of_its_subject(
            subjects in proptest::collection::vec("[a-d]", 1..60),
            choices in proptest::collection::vec((0usize..8, 0u8..4), 400)
        ) {
            let mut lanes = Lanes::default();
            let start = Instant::now();
            let mut out: Vec<(Arc<str>, u64)> = Vec::new();
            let mut done: Vec<(Arc<str>, u64)> = Vec::new();
            let mut pushed = subjects.iter().enumerate();
            for (step, (which, what)) in choices.into_iter().enumerate() {
                let now = start + Duration::from_millis(step as u64);
                match what {
                    0 => if let Some((number, subject)) = pushed.next() { lanes.push(subject, number as u64, 0) },
                    1 => if let Some(next) = lanes.next(now) {
                        prop_assert!(out.iter().all(|(subject, _)| *subject != next.0), "two of one subject are out");
                        out.push(next);
                    },
                    _ if out.is_empty() => {}
                    2 => {
                        let (subject, _) = out.swap_remove(which % out.len());
                        lanes.failed(&subject, |_| now + Duration::from_millis(which as u64));
                    }
                    _ => {
                        let (subject, number) = out.swap_remove(which % out.len());
                        lanes.settled(&subject);
                        done.push((subject, number));
                    }
                }
            }
            for (number, subject) in pushed { lanes.push(subject, number as u64, 0) }
            let end = start + Duration::from_secs(60);
            loop {
                for (subject, number) in out.drain(..) {
                    lanes.settled(&subject);
                    done.push((subject, number));
                }
                let Some(next) = lanes.next(end) else { break };
                out.push(next);
            }
            prop_assert_eq!(length(&lanes), 0);
            prop_assert_eq!(done.len(), subjects.len());
            for subject in ["a", "b", "c", "d"] {
                let numbers: Vec<u64> = done.iter().filter(|(s, _)| &**s == subject).map(|(_, n)| *n).collect();
                prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{subject}: {numbers:?}");
            }
        }
    }
}
