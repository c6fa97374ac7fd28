//! Pure: what one end of a conversation has sent and not heard back of, and what it may take in next.
//!
//! NATS gives a message to a subscriber at most once. Two gateways that talk need every message, once and in order, also
//! when a nats-server is killed between them: frames are numbered, kept until the other side says that it has them, and
//! sent again from the first missing one on. A message that is too large for one frame is sent in several.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

/// How many frames may be on their way; the sender waits beyond it.
const MOST_FRAMES: usize = 4096;
/// The same in bytes.
const MOST_BYTES: usize = 32 << 20;
/// How long the other side may say nothing of the first frame on its way before all are sent again.
const PATIENCE: Duration = Duration::from_secs(1);

/// One frame on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    /// Its number, from 1 on.
    pub(super) number: u64,
    /// Whether the message ends with it.
    pub(super) is_last: bool,
    pub(super) payload: Bytes,
}

/// One end of a conversation.
#[derive(Debug, Default)]
pub(super) struct Window {
    sent: u64,
    under_way: VecDeque<Frame>,
    bytes: usize,
    /// Since when the first frame on its way has been waited for.
    waiting_since: Duration,
    received: u64,
    partial: BytesMut,
}

/// What a frame that came was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// The end of a message.
    Message(Bytes),
    /// A part of one.
    Part,
    /// It was there already, or one before it is missing: the other side is told what is there.
    OutOfOrder,
}

impl Window {
    /// Whether another message may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.under_way.len() < MOST_FRAMES && self.bytes < MOST_BYTES
    }

    /// Whether everything that was sent has come.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Up to which frame everything has come from the other side.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Takes a message to be sent, in frames of at most `most` bytes; gives how many frames it is, which are the last ones
    /// on their way.
    pub(super) fn send(&mut self, mut message: Bytes, most: usize, now: Duration) -> usize {
        let most = most.max(1);
        let mut frames = 0;
        loop {
            let payload = message.split_to(message.len().min(most));
            if self.under_way.is_empty() {
                self.waiting_since = now;
            }
            self.sent += 1;
            self.bytes += payload.len();
            let is_last = message.is_empty();
            self.under_way.push_back(Frame { number: self.sent, is_last, payload });
            frames += 1;
            if is_last {
                return frames;
            }
        }
    }

    /// The newest frames on their way, or all of them.
    pub(super) fn newest(&self, count: usize) -> impl Iterator<Item = &Frame> {
        self.under_way.iter().skip(self.under_way.len().saturating_sub(count))
    }

    /// The other side has everything up to here.
    pub(super) fn heard(&mut self, up_to: u64, now: Duration) {
        while let Some(frame) = self.under_way.front().filter(|frame| frame.number <= up_to) {
            self.bytes -= frame.payload.len();
            self.under_way.pop_front();
            self.waiting_since = now;
        }
    }

    /// Whether everything is to be sent again: nothing was heard of it for too long. Said once in that time.
    pub(super) fn is_stuck(&mut self, now: Duration) -> bool {
        let is_stuck = !self.under_way.is_empty() && now.saturating_sub(self.waiting_since) >= PATIENCE;
        if is_stuck {
            self.waiting_since = now;
        }
        is_stuck
    }

    /// Takes a frame of the other side.
    pub(super) fn receive(&mut self, number: u64, is_last: bool, payload: Bytes) -> Came {
        if number != self.received + 1 {
            return Came::OutOfOrder;
        }
        self.received = number;
        if is_last && self.partial.is_empty() {
            return Came::Message(payload);
        }
        self.partial.extend_from_slice(&payload);
        match is_last {
            true => Came::Message(self.partial.split().freeze()),
            false => Came::Part,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_not_heard_of_is_sent_again_and_taken_once() {
        let (mut here, mut there) = (Window::default(), Window::default());
        assert_eq!(here.send(Bytes::from_static(b"abcdef"), 4, ms(0)), 2);
        let frames: Vec<Frame> = here.newest(2).cloned().collect();
        // The first one gets lost.
        let second = &frames[1];
        assert_eq!(there.receive(second.number, second.is_last, second.payload.clone()), Came::OutOfOrder);
        assert!(!here.is_stuck(ms(999)) && here.is_stuck(ms(1000)) && !here.is_stuck(ms(1500)));
        assert_eq!(there.receive(1, false, frames[0].payload.clone()), Came::Part);
        assert_eq!(there.receive(1, false, frames[0].payload.clone()), Came::OutOfOrder);
        assert_eq!(there.receive(2, true, second.payload.clone()), Came::Message(Bytes::from_static(b"abcdef")));
        here.heard(there.received(), ms(1600));
        assert!(here.is_empty() && !here.is_stuck(ms(9000)));
    }

    #[test]
    fn a_sender_waits_at_the_bound() {
        let mut here = Window::default();
        for _ in 0..MOST_FRAMES {
            assert!(here.has_room());
            here.send(Bytes::from_static(b"x"), 64, ms(0));
        }
        assert!(!here.has_room());
        here.heard(1, ms(1));
        assert!(here.has_room());
        let mut here = Window::default();
        here.send(Bytes::from(vec![0; MOST_BYTES]), 1 << 20, ms(0));
        assert!(!here.has_room());
    }

    proptest! {
        #[test]
        fn over_a_line_that_loses_and_repeats_everything_comes_once_and_in_order(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..30),
            line in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 1..400),
        ) {
            let (mut here, mut there) = (Window::default(), Window::default());
            let mut line = line.into_iter().chain(std::iter::repeat((false, false, false)));
            let mut came: Vec<Bytes> = Vec::new();
            for message in &messages {
                here.send(Bytes::from(message.clone()), 16, ms(0));
            }
            let mut rounds = 0;
            while !here.is_empty() {
                rounds += 1;
                prop_assert!(rounds < 1000);
                for frame in here.newest(usize::MAX).cloned().collect::<Vec<_>>() {
                    let (is_lost, is_twice, _) = line.next().unwrap_or_default();
                    for _ in 0..if is_lost { 0 } else { 1 + usize::from(is_twice) } {
                        if let Came::Message(message) = there.receive(frame.number, frame.is_last, frame.payload.clone()) {
                            came.push(message);
                        }
                    }
                }
                if !line.next().unwrap_or_default().2 {
                    here.heard(there.received(), ms(rounds));
                }
            }
            prop_assert_eq!(came.iter().map(|message| message.to_vec()).collect::<Vec<_>>(), messages);
        }
    }
}
