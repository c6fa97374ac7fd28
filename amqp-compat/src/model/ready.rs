//! What a queue with a length limit has ready, and what the limit means.
//!
//! Those who store into the queue and its actor keep it together: a message counts from its admission to its hand-out,
//! and again when it is put back. Only ready messages count, as in RabbitMQ; those that consumers are about to take do
//! not.

use std::collections::BTreeMap;

/// The ready messages of one queue: about 40 bytes for each, for as long as the queue's limit lets them lie.
#[derive(Debug)]
pub struct Ready {
    max_length: u64,
    max_bytes: u64,
    /// The size of each ready message, by sequence.
    sizes: BTreeMap<u64, u64>,
    bytes: u64,
    /// Admitted and not stored yet.
    coming: u64,
    coming_bytes: u64,
    /// By priority, the highest sequence that the queue's actor has been given: what is at or below it is the actor's to
    /// count.
    arrived: Box<[u64]>,
    /// How many messages the consumers may have at once.
    credit: u64,
}

impl Ready {
    /// Nothing yet, under these limits, in a queue with priorities from 0 to `highest`.
    pub fn new(max_length: Option<u64>, max_bytes: Option<u64>, highest: u8) -> Self {
        Self {
            max_length: max_length.unwrap_or(u64::MAX),
            max_bytes: max_bytes.unwrap_or(u64::MAX),
            sizes: BTreeMap::new(),
            bytes: 0,
            coming: 0,
            coming_bytes: 0,
            arrived: vec![0; usize::from(highest) + 1].into(),
            credit: 0,
        }
    }

    /// Nothing yet, where the queue's actor has been given messages up to these, by priority.
    pub fn after(max_length: Option<u64>, max_bytes: Option<u64>, arrived: &[u64]) -> Self {
        Self { arrived: arrived.into(), ..Self::new(max_length, max_bytes, 0) }
    }

    /// Other limits.
    pub fn set_limits(&mut self, max_length: Option<u64>, max_bytes: Option<u64>) {
        self.max_length = max_length.unwrap_or(u64::MAX);
        self.max_bytes = max_bytes.unwrap_or(u64::MAX);
    }

    /// Whether a message of this size would make the queue too long.
    pub fn refuses(&self, size: u64) -> bool {
        let length = (self.sizes.len() as u64 + self.coming).saturating_sub(self.credit);
        // What the consumers take at once takes up no room; when that is everything, the queue is empty.
        let bytes = if length == 0 { 0 } else { self.bytes + self.coming_bytes };
        length.saturating_add(1) > self.max_length || bytes.saturating_add(size) > self.max_bytes
    }

    /// Whether so much may not be ready.
    pub fn is_too_much(&self, length: u64, bytes: u64) -> bool {
        length > self.max_length || bytes > self.max_bytes
    }

    /// Whether the head of the queue has to go.
    pub fn is_over(&self) -> bool {
        let length = (self.sizes.len() as u64).saturating_sub(self.credit);
        length > 0 && (length > self.max_length || (self.credit == 0 && self.bytes > self.max_bytes))
    }

    /// A message is on its way into the queue.
    pub fn admit(&mut self, size: u64) {
        self.coming += 1;
        self.coming_bytes += size;
    }

    /// A message that was on its way has not been stored.
    pub fn lost(&mut self, size: u64) {
        self.coming = self.coming.saturating_sub(1);
        self.coming_bytes = self.coming_bytes.saturating_sub(size);
    }

    /// A message that was on its way is stored.
    pub fn stored(&mut self, priority: u8, sequence: u64, size: u64) {
        self.lost(size);
        if self.arrived.get(usize::from(priority)).is_none_or(|arrived| sequence > *arrived) {
            self.put(sequence, size);
        }
    }

    /// A message came to the queue's actor.
    pub fn arrived(&mut self, priority: u8, sequence: u64, size: u64) {
        if let Some(arrived) = self.arrived.get_mut(usize::from(priority)) {
            *arrived = sequence.max(*arrived);
        }
        self.put(sequence, size);
    }

    /// A message is ready.
    pub fn put(&mut self, sequence: u64, size: u64) {
        self.bytes += size;
        self.bytes -= self.sizes.insert(sequence, size).unwrap_or(0);
    }

    /// A message is not ready any more: handed out, or gone.
    pub fn take(&mut self, sequence: u64) {
        self.bytes -= self.sizes.remove(&sequence).unwrap_or(0);
    }

    /// Nothing at or below this sequence is ready.
    pub fn clear_to(&mut self, sequence: u64) {
        let rest = match sequence.checked_add(1) {
            Some(next) => self.sizes.split_off(&next),
            None => BTreeMap::new(),
        };
        self.sizes = rest;
        self.bytes = self.sizes.values().sum();
        self.arrived.iter_mut().for_each(|arrived| *arrived = sequence.max(*arrived));
    }

    /// The queue counts again from this sequence on: what was there is gone.
    pub fn forget_from(&mut self, sequence: u64) {
        self.sizes.split_off(&sequence);
        self.bytes = self.sizes.values().sum();
        let last = sequence.saturating_sub(1);
        self.arrived.iter_mut().for_each(|arrived| *arrived = last.min(*arrived));
    }

    /// How many messages the consumers may have at once.
    pub fn set_credit(&mut self, credit: u64) {
        self.credit = credit;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Ready;

    #[test]
    fn a_queue_refuses_what_would_make_it_too_long() {
        let mut ready = Ready::new(Some(2), None, 0);
        ready.admit(1);
        assert!(!ready.refuses(1));
        ready.admit(1);
        assert!(ready.refuses(1), "what is on its way counts");
        ready.lost(1);
        assert!(!ready.refuses(1));
        ready.stored(0, 1, 1);
        ready.put(2, 1);
        assert!(ready.refuses(1));
        ready.take(1);
        assert!(!ready.refuses(1), "what is handed out does not count");
        ready.put(1, 1);
        ready.set_credit(1);
        assert!(!ready.refuses(1), "what a consumer is about to take does not count");
        assert!(Ready::new(Some(0), None, 0).refuses(0), "a queue of length 0 takes nothing");
    }

    #[test]
    fn limits_that_come_late_count_what_comes_and_what_is_learnt() {
        let mut ready = Ready::after(Some(2), None, &[4]);
        ready.stored(0, 4, 1);
        assert!(!ready.refuses(1), "the queue's actor counts what it has been given");
        ready.stored(0, 5, 1);
        ready.arrived(0, 3, 1);
        assert!(ready.refuses(1) && !ready.is_over());
        ready.set_limits(Some(1), None);
        assert!(ready.is_over());
        ready.set_limits(None, None);
        assert!(!ready.refuses(1));
    }

    #[test]
    fn the_head_goes_while_the_queue_is_over_its_limit() {
        let mut ready = Ready::new(None, Some(10), 0);
        for (sequence, size) in [(1, 4), (2, 4), (3, 4)] {
            ready.admit(size);
            ready.stored(0, sequence, size);
        }
        assert!(ready.is_over());
        ready.take(1);
        assert!(!ready.is_over());
        ready.put(4, 11);
        assert!(ready.is_over());
        ready.clear_to(3);
        assert!(ready.is_over(), "a message that is larger than the limit does not stay");
        ready.take(4);
        assert!(!ready.is_over());
    }

    #[test]
    fn what_came_before_its_confirm_is_counted_once() {
        let mut ready = Ready::new(Some(1), None, 1);
        ready.admit(1);
        ready.arrived(0, 1, 1);
        ready.take(1);
        ready.stored(0, 1, 1);
        assert!(!ready.refuses(1));
        ready.forget_from(1);
        ready.admit(1);
        ready.stored(0, 1, 1);
        assert!(ready.refuses(1), "a sequence that comes again is another message");
        ready.take(1);
        ready.arrived(1, 5, 1);
        ready.take(5);
        ready.admit(1);
        ready.stored(0, 3, 1);
        assert!(ready.refuses(1), "an older message of a lower priority has not come yet");
    }

    proptest! {
        #[test]
        fn bytes_are_the_sum_of_the_sizes(steps in proptest::collection::vec((0u8..6, 0u64..20, 0u64..9), 0..200)) {
            let mut ready = Ready::new(Some(5), Some(20), 0);
            for (kind, sequence, size) in steps {
                match kind {
                    0 => ready.admit(size),
                    1 => ready.stored(0, sequence, size),
                    2 => ready.arrived(0, sequence, size),
                    3 => ready.take(sequence),
                    4 => ready.clear_to(sequence),
                    _ => ready.forget_from(sequence),
                }
                prop_assert_eq!(ready.bytes, ready.sizes.values().sum::<u64>());
            }
        }
    }
}
