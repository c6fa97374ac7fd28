//! When to send a heartbeat, and when a silent peer is gone.
//!
//! Source: AMQP 0-9-1 specification, section 4.2.7 "Heartbeat Frames"; RabbitMQ's "Detecting Dead TCP Connections with
//! Heartbeats": a frame is sent after half the interval without one, and two missed intervals end the connection.

use std::time::{Duration, Instant};

/// The heartbeats of one connection; off until [`Heartbeat::start`].
#[derive(Debug)]
pub(super) struct Heartbeat {
    interval: Option<Duration>,
    sent: Instant,
    received: Instant,
}

impl Heartbeat {
    pub(super) fn new(now: Instant) -> Self {
        Self { interval: None, sent: now, received: now }
    }

    /// Starts with the negotiated interval in seconds; 0 keeps heartbeats off.
    pub(super) fn start(&mut self, seconds: u16, now: Instant) {
        self.interval = (seconds > 0).then(|| Duration::from_secs(seconds.into()));
        self.sent = now;
        self.received = now;
    }

    /// Something was written.
    pub(super) fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// Something was read.
    pub(super) fn received(&mut self, now: Instant) {
        self.received = now;
    }

    /// Whether a heartbeat frame is due.
    pub(super) fn send_due(&self, now: Instant) -> bool {
        self.interval.is_some_and(|interval| now >= self.sent + interval / 2)
    }

    /// Whether the peer was silent for two intervals.
    pub(super) fn peer_is_gone(&self, now: Instant) -> bool {
        self.interval.is_some_and(|interval| now >= self.received + interval * 2)
    }

    /// When something is due next.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.interval.map(|interval| (self.sent + interval / 2).min(self.received + interval * 2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_sent_after_half_the_interval_and_a_peer_is_gone_after_two() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut heartbeat = Heartbeat::new(start);
        assert_eq!(heartbeat.deadline(), None);
        heartbeat.start(10, start);
        assert_eq!(heartbeat.deadline(), Some(after(5)));
        assert!(!heartbeat.send_due(after(4)) && heartbeat.send_due(after(5)));
        heartbeat.sent(after(19));
        assert_eq!(heartbeat.deadline(), Some(after(20)));
        assert!(!heartbeat.peer_is_gone(after(19)) && heartbeat.peer_is_gone(after(20)));
        heartbeat.received(after(19));
        assert!(!heartbeat.peer_is_gone(after(38)));
        heartbeat.start(0, start);
        assert!(!heartbeat.send_due(after(1000)) && !heartbeat.peer_is_gone(after(1000)));
    }
}
