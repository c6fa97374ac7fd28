//! What the page draws: rates and latencies over the last hour, and the last changes. Bounded, in memory.

use std::collections::VecDeque;
use std::time::Duration;

use crate::control_api::{ChangeRecord, History, Sample, SideSample};
use crate::dual::meters::Totals;

/// How often a sample is taken.
pub const EVERY: Duration = Duration::from_secs(5);
/// How many samples are kept: one hour.
pub const SAMPLES: usize = 720;
/// How many changes are kept.
pub const CHANGES: usize = 64;

/// The samples of the last hour.
#[derive(Debug, Default)]
pub struct Samples {
    kept: VecDeque<Sample>,
    last: Option<(Duration, [u64; 2], Totals)>,
}

/// What is true of both sides at one moment, besides what is counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moment {
    /// Seconds since 1970.
    pub unix: u64,
    /// The weight in force.
    pub weight_percent: f64,
    /// Copies on their way.
    pub unread: u64,
    /// Messages that differed in `shadow`.
    pub differences: u64,
    /// Messages compared in `shadow`.
    pub compared: u64,
    /// Faults of messages that JetStream owns.
    pub faults: u64,
}

impl Samples {
    /// Takes a sample: `published` and `totals` are counts since the start, `now` the time since then.
    pub fn take(&mut self, now: Duration, published: [u64; 2], totals: Totals, moment: Moment) {
        let Some((then, before, counted)) = self.last.replace((now, published, totals.clone())) else { return };
        let seconds = now.saturating_sub(then).as_secs_f64().max(0.001);
        let since = totals.since(&counted);
        let ms = |side: usize, share: f64| since.latency[side].percentile(share).map(|p| round(p.as_secs_f64() * 1e3));
        let side = |side: usize| SideSample {
            published_per_s: round(published[side].saturating_sub(before[side]) as f64 / seconds),
            delivered_per_s: round(since.delivered[side] as f64 / seconds),
            confirm_p50_ms: ms(side, 0.5),
            confirm_p99_ms: ms(side, 0.99),
        };
        let Moment { unix, weight_percent, unread, differences, compared, faults } = moment;
        if self.kept.len() == SAMPLES {
            self.kept.pop_front();
        }
        let (rabbit, nats) = (side(0), side(1));
        self.kept.push_back(Sample { unix, weight_percent, rabbit, nats, unread, differences, compared, faults });
    }

    /// All samples, oldest first.
    pub fn history(&self) -> History {
        History { every_seconds: EVERY.as_secs(), samples: self.kept.iter().cloned().collect() }
    }
}

/// The last changes.
#[derive(Debug, Default)]
pub struct Changes(VecDeque<ChangeRecord>);

impl Changes {
    /// Adds a change, unless it is there already.
    pub fn add(&mut self, change: ChangeRecord) {
        if self.0.iter().any(|known| known.epoch == change.epoch) {
            return;
        }
        if self.0.len() == CHANGES {
            self.0.pop_front();
        }
        self.0.push_back(change);
    }

    /// All of them, newest first.
    pub fn newest_first(&self) -> Vec<ChangeRecord> {
        self.0.iter().rev().cloned().collect()
    }
}

fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::control_api::{Phase, Weight};
    use crate::dual::meters::Meters;
    use crate::ownership::Side;

    #[test]
    fn rates_and_latencies_are_of_the_time_between_two_samples_and_an_hour_is_kept() {
        let (meters, delivered) = (Meters::default(), [const { AtomicU64::new(0) }; 2]);
        let moment = Moment { unix: 7, weight_percent: 5.0, unread: 1, differences: 0, compared: 2, faults: 0 };
        let mut samples = Samples::default();
        samples.take(Duration::ZERO, [0, 0], meters.totals(&delivered), moment);
        assert!(samples.history().samples.is_empty(), "one moment has no rate");
        for _ in 0..10 {
            meters.confirmed(Side::Nats, Duration::from_millis(4));
        }
        samples.take(Duration::from_secs(5), [50, 10], meters.totals(&delivered), moment);
        let first = samples.history().samples[0].clone();
        assert_eq!((first.rabbit.published_per_s, first.nats.published_per_s), (10.0, 2.0));
        assert_eq!(first.rabbit.confirm_p99_ms, None);
        assert!(first.nats.confirm_p50_ms.is_some_and(|ms| (4.0..=5.0).contains(&ms)));
        for n in 2..2_000 {
            samples.take(Duration::from_secs(5 * n), [50, 10], meters.totals(&delivered), moment);
        }
        let history = samples.history();
        assert_eq!((history.samples.len(), history.samples[0].nats.published_per_s), (SAMPLES, 0.0));
    }

    #[test]
    fn a_change_is_kept_once_and_the_newest_comes_first() {
        let change = |epoch| ChangeRecord {
            epoch,
            at: String::new(),
            phase: Phase::Shadow,
            weight_percent: Weight::NONE,
            by: "ann".to_owned(),
            reason: String::new(),
            forced: false,
            automatic: false,
        };
        let mut changes = Changes::default();
        for epoch in [1, 1, 2, 3, 2] {
            changes.add(change(epoch));
        }
        let epochs = |changes: &Changes| changes.newest_first().iter().map(|c| c.epoch).collect::<Vec<_>>();
        assert_eq!(epochs(&changes), [3, 2, 1]);
        for epoch in 4..1_000 {
            changes.add(change(epoch));
        }
        assert_eq!((changes.newest_first().len(), epochs(&changes)[0]), (CHANGES, 999));
    }
}
