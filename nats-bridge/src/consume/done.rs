//! The deliveries that this process has ended, in case the server has not heard of it. Pure.
//!
//! An ack is lost with the connection that carried it, and a nats-server that was killed may have forgotten acks and delivery
//! counts that it had. What comes again although it is done is told to the server again instead of being handled twice.

use std::collections::VecDeque;

use super::place::Place;

/// How a delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Acked,
    DeadLettered,
}

/// The last deliveries that ended, and how far this process has come in the stream.
#[derive(Debug, Default)]
pub(crate) struct Done {
    ended: VecDeque<(u64, i128, End)>,
    newest_sequence: u64,
    newest_stored_at: i128,
}

/// How many are remembered: more than can be unheard of, which is at most what a consumer may hold.
const MAX: usize = 32_768;

impl Done {
    pub fn ended(&mut self, sequence: u64, stored_at: i128, end: End) {
        if self.ended.len() == MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((sequence, stored_at, end));
    }

    /// How a message that came again had ended here; none when it did not, or is new. The time tells a message from one
    /// with its sequence in a stream of the same name that was made anew.
    pub fn end_of(&self, place: &Place) -> Option<End> {
        let same = |(sequence, stored_at, _): &&(u64, i128, End)| {
            (*sequence, *stored_at) == (place.stream_sequence, place.stored_at)
        };
        self.ended.iter().rev().find(same).map(|(_, _, end)| *end)
    }

    /// Whether the message may have come to this process before.
    pub fn may_be_known(&self, place: &Place) -> bool {
        place.delivered > 1 || self.came_before(place)
    }

    /// Notes a delivery, and tells whether it may have been delivered before whatever the server counts: a stream is
    /// delivered in order, so what lies behind the newest is not new.
    pub fn arrived(&mut self, place: &Place) -> bool {
        let before = self.came_before(place);
        if !before {
            self.newest_sequence = place.stream_sequence;
            self.newest_stored_at = place.stored_at;
        }
        before
    }

    fn came_before(&self, place: &Place) -> bool {
        place.stream_sequence <= self.newest_sequence && place.stored_at <= self.newest_stored_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(delivered: u64, stream_sequence: u64, stored_at: i128) -> Place {
        Place { delivered, stream_sequence, stored_at, pending: 0 }
    }

    #[test]
    fn what_ended_is_known_when_it_comes_again_and_a_new_stream_of_that_name_is_new() {
        let mut done = Done::default();
        assert!(!done.arrived(&place(1, 1, 10)) && !done.arrived(&place(1, 2, 20)));
        done.ended(1, 10, End::Acked);
        assert_eq!(done.end_of(&place(2, 1, 10)), Some(End::Acked));
        // The server has forgotten that it delivered it.
        assert_eq!(done.end_of(&place(1, 1, 10)), Some(End::Acked));
        assert_eq!(done.end_of(&place(2, 2, 20)), None);
        assert!(done.arrived(&place(1, 2, 20)));
        // The stream was made anew: its first message is younger than anything before.
        assert_eq!(done.end_of(&place(1, 1, 30)), None);
        assert!(!done.arrived(&place(1, 1, 30)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut done = Done::default();
        (0..100_000).for_each(|n| done.ended(n, 0, End::Acked));
        assert_eq!(done.ended.len(), MAX);
    }
}
