//! Deliveries that a client takes too long to settle: RabbitMQ's "delivery acknowledgement timeout".
//!
//! How long is said with each delivery, since a queue may set its own. Nothing is done while deliveries come and go but to
//! note the earliest time at which one of them could be over; only then all of them are looked through, at most once in
//! [`APART`]. So a client hears of it up to that long after its time is over; RabbitMQ looks once a minute.
//!
//! Source: RabbitMQ, "Consumers", section "Delivery Acknowledgement Timeout".

use std::time::{Duration, Instant};

use super::frame::Fault;
use crate::backend::ChannelId;
use crate::error::ReplyCode;

/// How far apart deliveries are looked through.
pub(super) const APART: Duration = Duration::from_secs(1);

/// Until when a delivery is to be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    /// The end of it.
    pub(super) at: Instant,
    /// What the client was given, in milliseconds.
    timeout_ms: u64,
}

impl Due {
    /// Of a delivery that is made now; nothing for one that may take as long as it likes, or longer than a clock goes.
    pub(super) fn from_now(now: Instant, timeout: Option<Duration>) -> Option<Self> {
        let timeout = timeout?;
        let timeout_ms = u64::try_from(timeout.as_millis()).ok()?;
        Some(Self { at: now.checked_add(timeout)?, timeout_ms })
    }

    /// What its channel is closed with.
    pub(super) fn fault(self, channel: ChannelId) -> Fault {
        let text = format!(
            "delivery acknowledgement on channel {channel} timed out. Timeout value used: {} ms. This timeout value can be \
             configured, see consumers doc guide to learn more",
            self.timeout_ms
        );
        Fault::new(ReplyCode::PreconditionFailed, text)
    }
}

/// When deliveries are to be looked through.
#[derive(Debug, Default)]
pub(super) struct Watch {
    next: Option<Instant>,
}

impl Watch {
    /// A delivery is to be settled by then.
    pub(super) fn add(&mut self, due: Option<Due>) {
        if let Some(due) = due {
            self.next = Some(self.next.map_or(due.at, |next| next.min(due.at)));
        }
    }

    /// When to look next: nothing is over before.
    pub(super) fn next(&self) -> Option<Instant> {
        self.next
    }

    /// Whether it is time to look.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next.is_some_and(|next| now >= next)
    }

    /// All were looked through at `now`; of those that stay, the first is over at `earliest`.
    pub(super) fn looked(&mut self, earliest: Option<Instant>, now: Instant) {
        self.next = earliest.map(|earliest| earliest.max(now + APART));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_looked_at_the_earliest_end_and_not_more_often_than_it_has_to_be() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let within = |ms| Due::from_now(start, Some(Duration::from_millis(ms)));
        let mut watch = Watch::default();
        watch.add(None);
        assert_eq!(watch.next(), None);
        for ms in [5000, 3000, 4000] {
            watch.add(within(ms));
        }
        assert_eq!(watch.next(), Some(after(3000)));
        assert!(!watch.is_due(after(2999)) && watch.is_due(after(3000)));
        // The one of 3 s was settled long ago.
        watch.looked(Some(after(4000)), after(3000));
        assert_eq!(watch.next(), Some(after(4000)));
        watch.looked(Some(after(4001)), after(4000));
        assert_eq!(watch.next(), Some(after(5000)), "a second later at the earliest");
        watch.looked(None, after(5000));
        assert!(!watch.is_due(after(1_000_000)));
    }

    #[test]
    fn no_time_is_too_long_to_be_reckoned_with() {
        assert_eq!(Due::from_now(Instant::now(), Some(Duration::MAX)), None);
        assert_eq!(Due::from_now(Instant::now(), None), None);
    }
}
