//! What the links count for the gate and the page: confirms, failures, rejections, blocked connections, latencies. RabbitMQ first.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::ownership::Side;

/// Counters of all links of a sidecar.
#[derive(Debug, Default)]
pub struct Meters {
    confirmed: [AtomicU64; 2],
    failed: [AtomicU64; 2],
    rejected: [AtomicU64; 2],
    blocked: [AtomicU64; 2],
    latency: [Latency; 2],
}

/// What [`Meters`] have counted up to a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Publishes that a side confirmed.
    pub confirmed: [u64; 2],
    /// Publishes that a side refused or lost.
    pub failed: [u64; 2],
    /// Deliveries of a side that were rejected for good.
    pub rejected: [u64; 2],
    /// Deliveries of a side.
    pub delivered: [u64; 2],
    /// From a publish to its confirm.
    pub latency: [Times; 2],
}

impl Meters {
    /// A publish was confirmed after this time.
    pub fn confirmed(&self, side: Side, after: Duration) {
        self.confirmed[side.index()].fetch_add(1, Ordering::Relaxed);
        self.latency[side.index()].record(after);
    }

    /// A publish was refused, or nobody knows what became of it.
    pub fn failed(&self, side: Side) {
        self.failed[side.index()].fetch_add(1, Ordering::Relaxed);
    }

    /// Deliveries were rejected for good.
    pub fn rejected(&self, side: Side, count: u64) {
        self.rejected[side.index()].fetch_add(count, Ordering::Relaxed);
    }

    /// A connection is told to wait by a side, or no longer.
    pub fn blocked(&self, side: Side, begins: bool) {
        let blocked = &self.blocked[side.index()];
        if begins {
            blocked.fetch_add(1, Ordering::Relaxed)
        } else {
            blocked.fetch_sub(1, Ordering::Relaxed)
        };
    }

    /// How many connections are told to wait.
    pub fn blocked_now(&self) -> [u64; 2] {
        self.blocked.each_ref().map(|n| n.load(Ordering::Relaxed))
    }

    /// What was counted so far.
    pub fn totals(&self, delivered: &[AtomicU64; 2]) -> Totals {
        let read = |counts: &[AtomicU64; 2]| counts.each_ref().map(|n| n.load(Ordering::Relaxed));
        Totals {
            confirmed: read(&self.confirmed),
            failed: read(&self.failed),
            rejected: read(&self.rejected),
            delivered: read(delivered),
            latency: self.latency.each_ref().map(Latency::read),
        }
    }
}

impl Totals {
    /// What was counted between two moments.
    pub fn since(&self, before: &Totals) -> Totals {
        let less = |a: [u64; 2], b: [u64; 2]| [a[0].saturating_sub(b[0]), a[1].saturating_sub(b[1])];
        Totals {
            confirmed: less(self.confirmed, before.confirmed),
            failed: less(self.failed, before.failed),
            rejected: less(self.rejected, before.rejected),
            delivered: less(self.delivered, before.delivered),
            latency: [self.latency[0].since(&before.latency[0]), self.latency[1].since(&before.latency[1])],
        }
    }
}

/// Four steps for each doubling, from 1 us to more than an hour: a percentile is at most a fifth too high.
const STEPS: usize = 4 * 33;

/// Times, counted by size.
#[derive(Debug)]
struct Latency([AtomicU64; STEPS]);

impl Default for Latency {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; STEPS])
    }
}

impl Latency {
    fn record(&self, time: Duration) {
        self.0[step(time)].fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Times {
        Times(self.0.iter().map(|n| n.load(Ordering::Relaxed)).collect())
    }
}

/// How many times of which size there were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times(Vec<u64>);

impl Times {
    fn since(&self, before: &Times) -> Times {
        let old = before.0.iter().copied().chain(std::iter::repeat(0));
        Times(self.0.iter().zip(old).map(|(now, before)| now.saturating_sub(before)).collect())
    }

    /// The time that this share of them kept to, rounded up; `None` without any.
    pub fn percentile(&self, share: f64) -> Option<Duration> {
        let all: u64 = self.0.iter().sum();
        if all == 0 {
            return None;
        }
        let wanted = (all as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (step, count) in self.0.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                return Some(most(step));
            }
        }
        None
    }
}

fn step(time: Duration) -> usize {
    let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = us.ilog2() as usize;
    // The two bits below the highest.
    let quarter = (((us << 2) >> doubling) & 3) as usize;
    (doubling * 4 + quarter).min(STEPS - 1)
}

/// The longest time of a step.
fn most(step: usize) -> Duration {
    let (doubling, quarter) = (step / 4, (step % 4) as u64);
    Duration::from_micros(((5 + quarter) << doubling) >> 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_never_too_low_and_at_most_a_quarter_too_high() {
        for us in (1..2_000).chain([10_000, 123_456, 1_000_000, 60_000_000]) {
            let (time, meters) = (Duration::from_micros(us), Meters::default());
            meters.confirmed(Side::Nats, time);
            let found = meters.totals(&Default::default()).latency[1].percentile(0.99).expect("one");
            assert!(found >= time && found <= time.mul_f64(1.25) + Duration::from_micros(1), "{time:?} as {found:?}");
        }
        assert_eq!(step(Duration::MAX), STEPS - 1);
    }

    #[test]
    fn percentiles_are_of_what_came_since() {
        let meters = Meters::default();
        let now = || meters.totals(&[AtomicU64::new(5), AtomicU64::new(0)]);
        for _ in 0..99 {
            meters.confirmed(Side::Rabbit, Duration::from_millis(1));
        }
        meters.confirmed(Side::Rabbit, Duration::from_millis(100));
        let first = now();
        let p = |totals: &Totals, share| totals.latency[0].percentile(share).expect("some").as_millis();
        assert_eq!((p(&first, 0.5), p(&first, 0.99), first.confirmed), (1, 1, [100, 0]));
        assert!(p(&first, 1.0) >= 100);
        meters.confirmed(Side::Rabbit, Duration::from_millis(50));
        meters.rejected(Side::Nats, 3);
        meters.failed(Side::Nats);
        let since = now().since(&first);
        assert!((50..=63).contains(&p(&since, 0.01)));
        assert_eq!((since.confirmed, since.rejected, since.failed, since.delivered), ([1, 0], [0, 3], [0, 1], [0, 0]));
        assert_eq!(since.latency[1].percentile(0.5), None);
    }

    #[test]
    fn what_is_blocked_is_a_gauge() {
        let meters = Meters::default();
        meters.blocked(Side::Rabbit, true);
        meters.blocked(Side::Rabbit, true);
        meters.blocked(Side::Rabbit, false);
        assert_eq!(meters.blocked_now(), [1, 0]);
    }
}
