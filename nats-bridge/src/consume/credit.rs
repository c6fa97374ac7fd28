//! How much may be asked for: what is held and what is on its way never exceed the bounds. Pure.

/// The bounds, what is held, and what is asked for and has not come.
///
/// Pulls overlap: the next one is asked for before the last message of the one before has come, else the server would have
/// nothing to do until it is. Messages do not tell which pull they answer, and the server may serve several in turn, so that only the
/// sums are kept. What pulls that are complete had left of their bytes stays in the sum until all are over: then the next pull does
/// not overlap, and no bound is ever exceeded.
#[derive(Debug)]
pub(crate) struct Credit {
    max_messages: usize,
    max_bytes: usize,
    held_messages: usize,
    held_bytes: usize,
    asked_messages: usize,
    asked_bytes: usize,
    number: u64,
    // Statuses of pulls up to this one are stale.
    over: u64,
    // The bytes end before the messages do: then a pull is for all of them, and none overlaps.
    by_bytes: bool,
}

/// What to ask the server for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Which pull it is: statuses of others are stale.
    pub number: u64,
    pub messages: usize,
    /// None: the next message alone, whatever its size.
    pub bytes: Option<usize>,
}

impl Credit {
    pub fn new(max_messages: usize, max_bytes: usize) -> Self {
        Credit {
            max_messages,
            max_bytes,
            held_messages: 0,
            held_bytes: 0,
            asked_messages: 0,
            asked_bytes: 0,
            number: 0,
            over: 0,
            by_bytes: false,
        }
    }

    /// A message came: it is held from now on, and the open pulls have less to give.
    pub fn received(&mut self, bytes: usize) {
        self.held_messages += 1;
        self.held_bytes += bytes;
        self.asked_messages = self.asked_messages.saturating_sub(1);
        self.asked_bytes = self.asked_bytes.saturating_sub(bytes);
        self.by_bytes &= self.asked_messages > 0;
        self.forget_the_rest();
    }

    /// A held message was settled.
    pub fn settled(&mut self, bytes: usize) {
        self.held_messages = self.held_messages.saturating_sub(1);
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// An open pull ended with so many messages and bytes left; unknown how many: no pull is counted on any more.
    pub fn ended(&mut self, left: Option<(usize, usize)>) {
        let Some((messages, bytes)) = left else { return self.pull_over() };
        self.asked_messages = self.asked_messages.saturating_sub(messages);
        self.asked_bytes = self.asked_bytes.saturating_sub(bytes);
        self.forget_the_rest();
    }

    // Bytes that complete pulls had left.
    fn forget_the_rest(&mut self) {
        if self.asked_messages == 0 {
            self.asked_bytes = 0;
        }
    }

    /// The open pulls ended, or are lost.
    pub fn pull_over(&mut self) {
        (self.asked_messages, self.asked_bytes, self.over) = (0, 0, self.number);
    }

    pub fn is_current(&self, number: u64) -> bool {
        self.pull_open() && number > self.over
    }

    pub fn pull_open(&self) -> bool {
        self.asked_messages > 0
    }

    pub fn held(&self) -> usize {
        self.held_messages
    }

    /// Whether asking again is worth it: a quarter of the bounds is free, and what is asked for comes to an end.
    pub fn wants_pull(&self) -> bool {
        let (messages, bytes) = self.free();
        self.asked_messages <= self.max_messages / 4
            && messages >= self.max_messages.div_ceil(4)
            && bytes >= self.max_bytes.div_ceil(4)
    }

    fn free(&self) -> (usize, usize) {
        let messages = self.max_messages.saturating_sub(self.held_messages + self.asked_messages);
        (messages, self.max_bytes.saturating_sub(self.held_bytes + self.asked_bytes))
    }

    /// Opens a pull for all messages that are free, if that is worth it; for a quarter of the bytes, so that the next pull can
    /// overlap.
    ///
    /// `alone`: a pull ended because one message is larger than what it had left of its bytes. From then on pulls are for all bytes that
    /// are free, until one ends by its messages; with nothing held or asked for the message is let through.
    pub fn ask(&mut self, alone: bool) -> Option<Ask> {
        if !self.wants_pull() {
            return None;
        }
        let (messages, bytes) = self.free();
        self.by_bytes |= alone;
        let bytes = if self.by_bytes { bytes } else { bytes.min(self.max_bytes.div_ceil(4)) };
        let (messages, limit) = match alone && self.held_messages == 0 && self.asked_messages == 0 {
            true => (1, None),
            false => (messages, Some(bytes)),
        };
        self.number += 1;
        self.asked_messages += messages;
        self.asked_bytes += bytes;
        Some(Ask { number: self.number, messages, bytes: limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pull_asks_for_what_is_free_before_the_one_before_is_over() {
        let mut credit = Credit::new(8, 1000);
        assert_eq!(credit.ask(false), Some(Ask { number: 1, messages: 8, bytes: Some(250) }));
        assert_eq!(credit.ask(false), None);
        (0..6).for_each(|_| credit.received(10));
        assert_eq!(credit.ask(false), None, "nothing is free");
        (0..3).for_each(|_| credit.settled(10));
        assert_eq!(credit.ask(false), Some(Ask { number: 2, messages: 3, bytes: Some(250) }));
        assert!(credit.is_current(1) && credit.is_current(2));
        // The first one expires with two left; the second one goes on.
        credit.ended(Some((2, 190)));
        assert!(credit.pull_open());
        assert_eq!(credit.ask(false), None, "three are asked for");
        credit.pull_over();
        assert!(!credit.is_current(2) && !credit.pull_open());
    }

    #[test]
    fn bytes_that_complete_pulls_had_left_come_back_when_all_are_over() {
        let mut credit = Credit::new(4, 100);
        for _ in 0..4 {
            let ask = credit.ask(false).unwrap();
            (0..ask.messages.min(3)).for_each(|_| (credit.received(1), credit.settled(1)).0);
        }
        assert_eq!(credit.ask(false), None, "the bytes are used up");
        credit.received(1);
        credit.settled(1);
        assert!(!credit.pull_open() && credit.ask(false).is_some());
    }

    #[test]
    fn a_message_larger_than_all_bytes_goes_alone() {
        let mut credit = Credit::new(8, 1000);
        credit.ask(false);
        credit.ended(Some((8, 250)));
        assert_eq!(credit.ask(true), Some(Ask { number: 2, messages: 1, bytes: None }));
        credit.received(5000);
        assert_eq!(credit.ask(false), None);
        credit.settled(5000);
        assert!(credit.ask(false).is_some());
    }

    proptest! {
        // The server keeps to what each pull asks for, and serves them in any order; then what is held never exceeds the bounds.
        #[test]
        fn what_is_held_stays_within_the_bounds(
            max_messages in 1usize..50, max_bytes in 1usize..1000,
            steps in proptest::collection::vec((0u8..6, 1usize..200, any::<prop::sample::Index>()), 0..300)
        ) {
            let mut credit = Credit::new(max_messages, max_bytes);
            let mut held: Vec<usize> = Vec::new();
            let mut open: Vec<(usize, usize)> = Vec::new();
            for (step, size, which) in steps {
                let served = (!open.is_empty()).then(|| which.index(open.len()));
                match (step, served) {
                    (0, _) => if let Some(ask) = credit.ask(!held.is_empty()) {
                        open.push((ask.messages, ask.bytes.unwrap()));
                    },
                    (1 | 2, Some(at)) if open[at].1 >= size => {
                        credit.received(size);
                        held.push(size);
                        open[at] = (open[at].0 - 1, open[at].1 - size);
                        if open[at].0 == 0 {
                            open.remove(at);
                        }
                    }
                    (3, _) => if let Some(size) = held.pop() { credit.settled(size) },
                    (4, Some(at)) => credit.ended(Some(open.remove(at))),
                    (5, _) if size < 20 => { credit.pull_over(); open.clear() }
                    _ => {}
                }
                prop_assert!(held.len() <= max_messages);
                prop_assert!(held.iter().sum::<usize>() <= max_bytes);
                prop_assert_eq!(credit.held(), held.len());
                prop_assert_eq!(credit.asked_messages, open.iter().map(|(messages, _)| messages).sum::<usize>());
                prop_assert!(credit.asked_bytes >= open.iter().map(|(_, bytes)| bytes).sum::<usize>());
            }
        }
    }
}
