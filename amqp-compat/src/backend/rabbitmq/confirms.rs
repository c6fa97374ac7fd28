//! RabbitMQ's confirm tags to the session's publish numbers.

use std::collections::VecDeque;

/// The publishes of one channel that RabbitMQ has not confirmed yet.
///
/// RabbitMQ counts the publishes of a channel from 1. The session's numbers grow as well, but may have gaps: what went to
/// another broker is not seen here.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// The tag of the first entry, less one.
    settled: u64,
    /// The session's numbers in the order of publishing; `None` once confirmed.
    open: VecDeque<Option<u64>>,
    /// How many entries are not confirmed.
    pending: usize,
}

impl Confirms {
    /// Notes a publish.
    pub(super) fn published(&mut self, seq: u64) {
        self.open.push_back(Some(seq));
        self.pending += 1;
    }

    /// How many publishes are not confirmed.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// Gives the numbers that a confirm settles, in the order of publishing. A tag that was never published, or is
    /// confirmed a second time, settles nothing.
    pub(super) fn confirmed(&mut self, tag: u64, multiple: bool, mut settle: impl FnMut(u64)) {
        let end = match tag {
            // "All outstanding" (AMQP 0-9-1, `basic.ack.multiple`).
            0 if multiple => self.open.len(),
            tag => usize::try_from(tag.saturating_sub(self.settled)).unwrap_or(usize::MAX).min(self.open.len() + 1),
        };
        if end > self.open.len() || end == 0 {
            return;
        }
        let start = if multiple { 0 } else { end - 1 };
        for entry in self.open.range_mut(start..end) {
            if let Some(seq) = entry.take() {
                self.pending -= 1;
                settle(seq);
            }
        }
        while self.open.front().is_some_and(Option::is_none) {
            self.open.pop_front();
            self.settled += 1;
        }
    }

    /// Gives up on all that is not confirmed.
    pub(super) fn abandon(&mut self, mut settle: impl FnMut(u64)) {
        self.settled += self.open.len() as u64;
        self.pending = 0;
        self.open.drain(..).flatten().for_each(&mut settle);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(confirms: &mut Confirms, tag: u64, multiple: bool) -> Vec<u64> {
        let mut settled = Vec::new();
        confirms.confirmed(tag, multiple, |seq| settled.push(seq));
        settled
    }

    #[test]
    fn tags_settle_the_numbers_they_stand_for_once() {
        let mut confirms = Confirms::default();
        for seq in [3, 4, 9, 10, 12] {
            confirms.published(seq);
        }
        assert_eq!(settled(&mut confirms, 2, false), [4]);
        assert_eq!(settled(&mut confirms, 2, false), [0; 0]);
        assert_eq!(settled(&mut confirms, 3, true), [3, 9]);
        assert_eq!(settled(&mut confirms, 1, true), [0; 0]);
        assert_eq!(settled(&mut confirms, 6, false), [0; 0]);
        assert_eq!(settled(&mut confirms, u64::MAX, true), [0; 0]);
        assert_eq!(confirms.pending(), 2);
        assert_eq!(settled(&mut confirms, 0, true), [10, 12]);
        confirms.published(13);
        assert_eq!(settled(&mut confirms, 6, false), [13]);
        assert_eq!(confirms.pending(), 0);
    }

    #[test]
    fn what_is_abandoned_keeps_the_count() {
        let mut confirms = Confirms::default();
        confirms.published(1);
        confirms.published(2);
        assert_eq!(settled(&mut confirms, 2, false), [2]);
        let mut left = Vec::new();
        confirms.abandon(|seq| left.push(seq));
        assert_eq!(left, [1]);
        confirms.published(3);
        assert_eq!(settled(&mut confirms, 3, false), [3]);
    }
}
