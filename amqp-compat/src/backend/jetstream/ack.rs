//! The reply subject of a JetStream delivery, which says what the delivery is.

use std::collections::BTreeMap;

/// What the reply subject of a delivery says.
///
/// Source: NATS ADR-15: `$JS.ACK.<stream>.<consumer>.<delivered>.<stream seq>.<consumer seq>.<time>.<pending>`, with
/// `<domain>.<account hash>` after `ACK` in the newer form, which may have one more token at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// How often it was delivered, this time included.
    pub(crate) delivered: u64,
    /// Its sequence in the stream.
    pub(crate) sequence: u64,
    /// Its number among the consumer's deliveries.
    pub(crate) consumer_sequence: u64,
    /// When it was stored, in nanoseconds since 1970.
    pub(crate) stored_ns: u64,
    /// How many messages the consumer has not delivered yet.
    pub(crate) pending: u64,
}

/// Reads a reply subject; `None` for one that is none.
pub(crate) fn read(reply: &str) -> Option<Metadata> {
    let rest = reply.strip_prefix("$JS.ACK.")?.as_bytes();
    let skip = match rest.iter().filter(|byte| **byte == b'.').count() + 3 {
        9 => 2,
        11 | 12 => 4,
        _ => return None,
    };
    // Each delivery and each acknowledgement passes here: bytes are less work than texts.
    let mut tokens = rest.split(|byte| *byte == b'.').skip(skip);
    let mut number = || digits(tokens.next()?);
    let (delivered, sequence, consumer_sequence, stored_ns, pending) =
        (number()?, number()?, number()?, number()?, number()?);
    Some(Metadata { delivered, sequence, consumer_sequence, stored_ns, pending })
}

/// The number that these digits are; `None` when there are none, others, or too many.
fn digits(text: &[u8]) -> Option<u64> {
    let (first, rest) = text.split_first()?;
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    rest.iter().try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

/// A set of sequences that remembers runs of them, at most [`MAX_RUNS`]; beyond it the lowest are forgotten.
#[derive(Debug, Default)]
pub(crate) struct Sequences {
    /// First and last of each run.
    runs: BTreeMap<u64, u64>,
}

/// How many runs [`Sequences`] remembers.
pub(crate) const MAX_RUNS: usize = 4096;

impl Sequences {
    /// Adds a sequence.
    pub(crate) fn insert(&mut self, sequence: u64) {
        let before = self.runs.range(..=sequence).next_back().map(|(first, last)| (*first, *last));
        let mut run = (sequence, sequence);
        if let Some((first, last)) = before {
            if last >= sequence {
                return;
            }
            if last + 1 == sequence {
                run.0 = first;
            }
        }
        if let Some(last) = self.runs.remove(&(sequence + 1)) {
            run.1 = last;
        }
        self.runs.insert(run.0, run.1);
        if self.runs.len() > MAX_RUNS {
            self.runs.pop_first();
        }
    }

    /// Adds every sequence up to this one.
    pub(crate) fn insert_to(&mut self, sequence: u64) {
        let above = self.runs.split_off(&(sequence + 1));
        let last = self.runs.last_key_value().map_or(sequence, |(_, last)| sequence.max(*last));
        self.runs = above;
        self.runs.insert(0, last);
        if let Some(last) = self.runs.remove(&(last + 1)) {
            self.runs.insert(0, last);
        }
    }

    /// Whether it has a sequence.
    pub(crate) fn contains(&self, sequence: u64) -> bool {
        self.runs.range(..=sequence).next_back().is_some_and(|(_, last)| *last >= sequence)
    }

    /// Forgets every sequence from this one on.
    pub(crate) fn forget_from(&mut self, sequence: u64) {
        self.runs.split_off(&sequence);
        if let Some((_, last)) = self.runs.iter_mut().next_back() {
            *last = (*last).min(sequence.saturating_sub(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_reply_subject_are_read() {
        let expected = Metadata { delivered: 2, sequence: 17, consumer_sequence: 5, stored_ns: 1234567890, pending: 3 };
        for reply in [
            "$JS.ACK.S.amqp.2.17.5.1234567890.3",
            "$JS.ACK.hub.ACC.S.amqp.2.17.5.1234567890.3",
            "$JS.ACK._.ACC.S.amqp.2.17.5.1234567890.3.rnd",
        ] {
            assert_eq!(read(reply), Some(expected), "{reply}");
        }
        for reply in [
            "",
            "$JS.ACK.",
            "$JS.ACK.S.amqp.x.17.5.1.3",
            "$JS.ACK.S.amqp..17.5.1.3",
            "$JS.ACK.S.amqp.2.+17.5.1.3",
            "$JS.ACK.S.amqp.2.18446744073709551616.5.1.3",
            "$JS.ACK.S.amqp.2.17.5.1",
            "a.b.c.d.1.2.3.4.5",
        ] {
            assert_eq!(read(reply), None, "{reply}");
        }
        assert_eq!(digits(u64::MAX.to_string().as_bytes()), Some(u64::MAX));
    }

    #[test]
    fn sequences_are_kept_as_runs() {
        let mut set = Sequences::default();
        for sequence in [5, 3, 4, 9, 4, 1] {
            set.insert(sequence);
        }
        assert_eq!(set.runs.len(), 3);
        for sequence in 0..12 {
            assert_eq!(set.contains(sequence), [1, 3, 4, 5, 9].contains(&sequence), "{sequence}");
        }
        set.forget_from(4);
        assert!(set.contains(3) && set.contains(1) && !set.contains(4) && !set.contains(9));
    }

    #[test]
    fn all_up_to_a_sequence_are_added_at_once() {
        let mut set = Sequences::default();
        for sequence in [2, 5, 6, 9, 12] {
            set.insert(sequence);
        }
        set.insert_to(5);
        assert_eq!(set.runs.iter().collect::<Vec<_>>(), [(&0, &6), (&9, &9), (&12, &12)]);
        set.insert_to(8);
        assert_eq!(set.runs.iter().collect::<Vec<_>>(), [(&0, &9), (&12, &12)]);
    }

    #[test]
    fn the_lowest_runs_are_forgotten_at_the_bound() {
        let mut set = Sequences::default();
        (0..=MAX_RUNS as u64).for_each(|n| set.insert(n * 2));
        assert!(!set.contains(0));
        assert!(set.contains(2) && set.contains(MAX_RUNS as u64 * 2));
    }
}
