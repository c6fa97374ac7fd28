//! What this process remembers about failed messages between their deliveries. Pure.

use std::collections::VecDeque;
use std::time::SystemTime;

use foldhash::HashMap;

use crate::dead_letter::{Failure, Reason};

/// A message's failures so far, as seen by this process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Remembered {
    pub first: SystemTime,
    pub last: SystemTime,
    /// The attempt that failed last, from 1, and its delivery.
    pub attempt: u64,
    pub delivery: u64,
    pub reason: Reason,
    pub failure: Failure,
}

/// Failures by stream sequence; at the bound the oldest are forgotten, which costs their first failure time and text.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    known: HashMap<u64, Remembered>,
    order: VecDeque<u64>,
}

const MAX: usize = 10_000;

impl Outcomes {
    /// Notes a failure and gives all that is known, this one included.
    pub fn failed(
        &mut self,
        sequence: u64,
        (attempt, delivery): (u64, u64),
        reason: Reason,
        failure: Failure,
        now: SystemTime,
    ) -> Remembered {
        let first = match self.known.get(&sequence) {
            Some(before) => before.first,
            None => {
                self.order.push_back(sequence);
                now
            }
        };
        let remembered = Remembered { first, last: now, attempt, delivery, reason, failure };
        self.known.insert(sequence, remembered.clone());
        // Entries of settled messages stay in the queue until here, so that settling stays cheap.
        while self.order.len() > MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        remembered
    }

    pub fn get(&self, sequence: u64) -> Option<&Remembered> {
        self.known.get(&sequence)
    }

    /// The message is done.
    pub fn forget(&mut self, sequence: u64) {
        if !self.known.is_empty() {
            self.known.remove(&sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_keeps_the_first_failure() {
        let mut outcomes = Outcomes::default();
        let at = |s| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(s);
        outcomes.failed(1, (1, 1), Reason::HandlerError, "a".into(), at(1));
        let second = outcomes.failed(1, (2, 3), Reason::Timeout, "b".into(), at(2));
        assert_eq!((second.first, second.last, second.attempt, second.delivery), (at(1), at(2), 2, 3));
        for sequence in 2..30_000 {
            outcomes.failed(sequence, (1, 1), Reason::HandlerError, "x".into(), at(3));
        }
        assert!(outcomes.known.len() <= MAX && outcomes.order.len() <= MAX);
        assert_eq!(outcomes.get(1), None);
        assert!(outcomes.get(29_999).is_some());
    }
}
