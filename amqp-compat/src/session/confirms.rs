//! Publisher confirms: whatever order the broker ends publishes in, the client hears of them in the order it published.
//!
//! Source: RabbitMQ, "Consumer Acknowledgements and Publisher Confirms".

use std::collections::VecDeque;

use crate::backend::PublishOutcome;

/// The publishes of one channel, and what has become of them.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// The last [`crate::backend::Publish::seq`] given out.
    last: u64,
    /// The last `seq` before `confirm.select`; delivery tags are counted from it. `None`: not in confirm mode.
    selected: Option<u64>,
    /// The publishes after `told`, oldest first, with their sizes in bytes; `None` while the broker works on one.
    open: VecDeque<(usize, Option<PublishOutcome>)>,
    /// How many of them the broker works on.
    working: usize,
    /// All publishes up to this `seq` have ended, and the client knows where it asked to.
    told: u64,
}

/// What to tell a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `basic.ack`.
    Ack {
        /// The delivery tag.
        tag: u64,
        /// Whether it stands for the earlier ones as well.
        multiple: bool,
    },
    /// `basic.nack` of one delivery tag.
    Nack {
        /// The delivery tag.
        tag: u64,
    },
}

impl Confirms {
    /// Enters confirm mode; publishes from here on are confirmed. Asking again changes nothing.
    pub(super) fn select(&mut self) {
        self.selected.get_or_insert(self.last);
    }

    /// Whether the channel is in confirm mode.
    pub(super) fn is_selected(&self) -> bool {
        self.selected.is_some()
    }

    /// Whether every publish has ended.
    pub(super) fn all_ended(&self) -> bool {
        self.working == 0
    }

    /// Numbers the next publish, of this size in bytes.
    pub(super) fn publish(&mut self, size: usize) -> u64 {
        self.last += 1;
        self.open.push_back((size, None));
        self.working += 1;
        self.last
    }

    /// How many publishes have not ended, or wait for an older one that has not.
    pub(super) fn open(&self) -> usize {
        self.open.len()
    }

    /// Notes the end of a publish and answers its size. One that is not open (a backend's mistake) is ignored: a
    /// confirm is never made up.
    pub(super) fn end(&mut self, seq: u64, outcome: PublishOutcome) -> Option<usize> {
        let index = usize::try_from(seq.checked_sub(self.told + 1)?).ok()?;
        let (size, slot @ None) = self.open.get_mut(index)? else { return None };
        *slot = Some(outcome);
        self.working -= 1;
        Some(*size)
    }

    /// The sizes of all publishes that have not ended, summed.
    pub(super) fn bytes(&self) -> usize {
        self.open.iter().filter(|(_, outcome)| outcome.is_none()).map(|(size, _)| size).sum()
    }

    /// Takes what the client can be told now: the publishes that have ended and have only ended ones before them.
    pub(super) fn tell(&mut self, mut say: impl FnMut(Verdict)) {
        let mut acked = 0;
        while let Some((_, Some(outcome))) = self.open.front().copied() {
            self.open.pop_front();
            self.told += 1;
            let Some(tag) = self.selected.and_then(|before| self.told.checked_sub(before)).filter(|tag| *tag > 0)
            else {
                continue;
            };
            match outcome {
                PublishOutcome::Stored => acked += 1,
                PublishOutcome::Failed => {
                    if acked > 0 {
                        say(Verdict::Ack { tag: tag - 1, multiple: acked > 1 });
                    }
                    acked = 0;
                    say(Verdict::Nack { tag });
                }
            }
        }
        if acked > 0 {
            let tag = self.told - self.selected.expect("only confirm mode counts acks");
            say(Verdict::Ack { tag, multiple: acked > 1 });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::PublishOutcome::{Failed, Stored};
    use super::*;

    fn told(confirms: &mut Confirms) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        confirms.tell(|verdict| verdicts.push(verdict));
        verdicts
    }

    #[test]
    fn confirms_wait_for_the_publishes_before_them() {
        let mut confirms = Confirms::default();
        confirms.publish(1);
        confirms.select();
        for _ in 0..4 {
            confirms.publish(1);
        }
        confirms.end(3, Stored);
        confirms.end(1, Stored);
        assert_eq!(told(&mut confirms), []);
        confirms.end(2, Stored);
        assert_eq!(told(&mut confirms), [Verdict::Ack { tag: 2, multiple: true }]);
        confirms.end(5, Stored);
        confirms.end(4, Failed);
        assert_eq!(told(&mut confirms), [Verdict::Nack { tag: 3 }, Verdict::Ack { tag: 4, multiple: false }]);
        assert_eq!(confirms.open(), 0);
    }

    #[test]
    fn a_confirm_that_nobody_waits_for_is_ignored() {
        let mut confirms = Confirms::default();
        confirms.select();
        confirms.publish(1);
        for seq in [0, 2, u64::MAX] {
            assert_eq!(confirms.end(seq, Stored), None);
        }
        assert_eq!(told(&mut confirms), []);
        assert_eq!((confirms.open(), confirms.bytes()), (1, 1));
    }

    proptest! {
        #[test]
        fn each_publish_is_told_once_in_order_and_truly(
            outcomes in proptest::collection::vec(any::<bool>(), 1..60),
            order in any::<u64>(),
            tell_every in 1usize..7,
        ) {
            let mut confirms = Confirms::default();
            confirms.select();
            let mut waiting: Vec<u64> = outcomes.iter().map(|_| confirms.publish(1)).collect();
            let mut random = order | 1;
            let mut heard: Vec<bool> = Vec::new();
            let mut ended = 0;
            while !waiting.is_empty() {
                random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let seq = waiting.swap_remove((random >> 33) as usize % waiting.len());
                confirms.end(seq, if outcomes[seq as usize - 1] { Stored } else { Failed });
                ended += 1;
                if ended % tell_every == 0 || waiting.is_empty() {
                    for verdict in told(&mut confirms) {
                        match verdict {
                            Verdict::Ack { tag, multiple: true } => {
                                prop_assert!(tag as usize > heard.len() + 1);
                                heard.resize(tag as usize, true);
                            }
                            Verdict::Ack { tag, multiple: false } => {
                                prop_assert_eq!(tag as usize, heard.len() + 1);
                                heard.push(true);
                            }
                            Verdict::Nack { tag } => {
                                prop_assert_eq!(tag as usize, heard.len() + 1);
                                heard.push(false);
                            }
                        }
                    }
                    // Nothing is told before it has ended.
                    prop_assert!(heard.len() <= ended);
                }
            }
            prop_assert_eq!(heard, outcomes);
        }
    }
}
