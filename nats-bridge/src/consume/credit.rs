//! How much may be asked for: what is held and what is on its way never exceed the bounds. Pure.

/// The bounds, what is held, and the one pull that is open.
#[derive(Debug)]
pub(crate) struct Credit {
    max_messages: usize,
    max_bytes: usize,
    held_messages: usize,
    held_bytes: usize,
    pull: Option<Pull>,
    number: u64,
}

#[derive(Debug, Clone, Copy)]
struct Pull {
    messages: usize,
    bytes: usize,
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
        Credit { max_messages, max_bytes, held_messages: 0, held_bytes: 0, pull: None, number: 0 }
    }

    /// A message came: it is held from now on, and the open pull has less to give.
    pub fn received(&mut self, bytes: usize) {
        self.held_messages += 1;
        self.held_bytes += bytes;
        if let Some(pull) = &mut self.pull {
            pull.messages = pull.messages.saturating_sub(1);
            pull.bytes = pull.bytes.saturating_sub(bytes);
            if pull.messages == 0 {
                self.pull = None;
            }
        }
    }

    /// A held message was settled.
    pub fn settled(&mut self, bytes: usize) {
        self.held_messages = self.held_messages.saturating_sub(1);
        self.held_bytes = self.held_bytes.saturating_sub(bytes);
    }

    /// The open pull ended, or is lost.
    pub fn pull_over(&mut self) {
        self.pull = None;
    }

    pub fn is_current(&self, number: u64) -> bool {
        self.pull.is_some() && self.number == number
    }

    pub fn pull_open(&self) -> bool {
        self.pull.is_some()
    }

    pub fn held(&self) -> usize {
        self.held_messages
    }

    /// Whether asking again is worth it: no pull is open and a quarter of the bounds is free.
    pub fn wants_pull(&self) -> bool {
        let messages = self.max_messages - self.held_messages.min(self.max_messages);
        let bytes = self.max_bytes - self.held_bytes.min(self.max_bytes);
        self.pull.is_none() && messages >= self.max_messages.div_ceil(4) && bytes >= self.max_bytes.div_ceil(4)
    }

    /// Opens a pull for all that is free, if that is worth it.
    ///
    /// `alone`: the last pull ended because one message is larger than its bytes; with nothing held it is let through.
    pub fn ask(&mut self, alone: bool) -> Option<Ask> {
        if !self.wants_pull() {
            return None;
        }
        let messages = self.max_messages - self.held_messages;
        let bytes = self.max_bytes - self.held_bytes;
        self.number += 1;
        let (messages, limit) = match alone && self.held_messages == 0 {
            true => (1, None),
            false => (messages, Some(bytes)),
        };
        self.pull = Some(Pull { messages, bytes });
        Some(Ask { number: self.number, messages, bytes: limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pull_asks_for_what_is_free_and_no_sooner_than_a_quarter_is() {
        let mut credit = Credit::new(8, 1000);
        assert_eq!(credit.ask(false), Some(Ask { number: 1, messages: 8, bytes: Some(1000) }));
        assert_eq!(credit.ask(false), None);
        (0..8).for_each(|_| credit.received(10));
        assert_eq!(credit.ask(false), None);
        credit.settled(10);
        assert_eq!(credit.ask(false), None);
        credit.settled(10);
        assert_eq!(credit.ask(false), Some(Ask { number: 2, messages: 2, bytes: Some(940) }));
        assert!(credit.is_current(2) && !credit.is_current(1));
    }

    #[test]
    fn a_message_larger_than_all_bytes_goes_alone() {
        let mut credit = Credit::new(8, 1000);
        credit.ask(false);
        credit.pull_over();
        assert_eq!(credit.ask(true), Some(Ask { number: 2, messages: 1, bytes: None }));
        credit.received(5000);
        assert_eq!(credit.ask(false), None);
        credit.settled(5000);
        assert!(credit.ask(false).is_some());
    }

    proptest! {
        // The server keeps to what is asked for; then what is held never exceeds the bounds.
        #[test]
        fn what_is_held_stays_within_the_bounds(
            max_messages in 1usize..50, max_bytes in 1usize..1000,
            steps in proptest::collection::vec((0u8..4, 1usize..200), 0..300)
        ) {
            let mut credit = Credit::new(max_messages, max_bytes);
            let mut held: Vec<usize> = Vec::new();
            let mut open: Option<(usize, usize)> = None;
            for (step, size) in steps {
                match step {
                    0 => if let Some(ask) = credit.ask(false) { open = Some((ask.messages, ask.bytes.unwrap())) },
                    1 => if let Some((messages, bytes)) = open && messages > 0 && bytes >= size {
                        credit.received(size);
                        held.push(size);
                        open = (messages > 1).then_some((messages - 1, bytes - size));
                    },
                    2 => if let Some(size) = held.pop() { credit.settled(size) },
                    _ => { credit.pull_over(); open = None }
                }
                prop_assert!(held.len() <= max_messages);
                prop_assert!(held.iter().sum::<usize>() <= max_bytes);
                prop_assert_eq!(credit.held(), held.len());
                prop_assert_eq!(credit.pull_open(), open.is_some());
            }
        }
    }
}
