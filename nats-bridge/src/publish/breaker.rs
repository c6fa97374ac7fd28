//! A circuit breaker: fails at once while nothing is confirmed, and lets one message through now and then. Pure.

use std::time::{Duration, Instant};

/// When a publisher stops taking messages because none is confirmed.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerConfig {
    /// Opens when something waits for its confirm and nothing was confirmed for this long; default 2 s.
    pub trip_after: Duration,
    /// How often one message is let through while it is open; default 1 s. Anything that is confirmed closes it, also a
    /// message from before.
    pub probe_every: Duration,
}

/// Whether a publisher takes messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It does.
    Closed,
    /// It refuses them with `BreakerOpen`; nothing of them lands.
    Open,
    /// One is on its way to see whether NATS is back; others are refused.
    HalfOpen,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        BreakerConfig { trip_after: Duration::from_secs(2), probe_every: Duration::from_secs(1) }
    }
}

impl BreakerState {
    /// `closed`, `open` or `half_open`.
    pub fn name(self) -> &'static str {
        match self {
            BreakerState::Closed => "closed",
            BreakerState::Open => "open",
            BreakerState::HalfOpen => "half_open",
        }
    }
}

/// The rule: answers and time in, the state out.
#[derive(Debug)]
pub(crate) struct Breaker {
    config: BreakerConfig,
    state: BreakerState,
    // Since when something waits and nothing was heard; none while nothing waits.
    quiet_since: Option<Instant>,
    // When the next message may be let through.
    probe_at: Instant,
}

impl Breaker {
    pub fn new(config: BreakerConfig, now: Instant) -> Self {
        Breaker { config, state: BreakerState::Closed, quiet_since: None, probe_at: now }
    }

    pub fn state(&self) -> BreakerState {
        self.state
    }

    /// Whether a message may be handed over now.
    pub fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            BreakerState::Closed => true,
            BreakerState::Open | BreakerState::HalfOpen if now >= self.probe_at => {
                self.state = BreakerState::HalfOpen;
                self.probe_at = now + self.config.probe_every;
                true
            }
            BreakerState::Open | BreakerState::HalfOpen => false,
        }
    }

    /// JetStream answered something.
    pub fn heard(&mut self) {
        self.state = BreakerState::Closed;
        self.quiet_since = None;
    }

    /// Time passes; `waiting`: whether something waits for its confirm.
    pub fn tick(&mut self, waiting: bool, now: Instant) {
        match self.state {
            BreakerState::Closed if waiting => {
                let since = *self.quiet_since.get_or_insert(now);
                if now.duration_since(since) >= self.config.trip_after {
                    self.state = BreakerState::Open;
                    self.probe_at = now + self.config.probe_every;
                }
            }
            BreakerState::Closed => self.quiet_since = None,
            // The one that was let through had no answer.
            BreakerState::HalfOpen if now >= self.probe_at => self.state = BreakerState::Open,
            BreakerState::HalfOpen | BreakerState::Open => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_silence_lets_one_through_and_closes_on_an_answer() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut breaker = Breaker::new(BreakerConfig::default(), start);
        breaker.tick(false, at(9_000));
        breaker.tick(true, at(9_050));
        breaker.tick(true, at(11_000));
        assert!(breaker.admit(at(11_000)));
        breaker.tick(true, at(11_050));
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(!breaker.admit(at(12_000)));
        assert!(breaker.admit(at(12_050)) && breaker.state() == BreakerState::HalfOpen);
        assert!(!breaker.admit(at(12_100)), "one at a time");
        breaker.tick(true, at(13_050));
        assert_eq!(breaker.state(), BreakerState::Open);
        assert!(breaker.admit(at(13_060)));
        breaker.heard();
        assert!(breaker.admit(at(13_070)) && breaker.state() == BreakerState::Closed);
        // What answers keeps it closed.
        for ms in (14_000..30_000).step_by(500) {
            breaker.tick(true, at(ms));
            breaker.heard();
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
    }
}
