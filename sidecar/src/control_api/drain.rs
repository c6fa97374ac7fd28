//! What the side that lost its keys still holds, and how fast it goes.

use std::time::Duration;

use foldhash::HashMap;
use serde::{Deserialize, Serialize};

use super::{FenceState, Phase, QueueStatus, Status};
use crate::ownership::Side;

/// What is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// The side that drains.
    pub side: Side,
    /// Whether nothing is left.
    pub drained: bool,
    /// Messages that are ready or in hand.
    pub left: u64,
    /// Seconds until nothing is left at the rate of the last seconds; absent when nothing drains, or it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
    /// Those that are not drained.
    pub queues: Vec<Draining>,
}

/// One queue that is not drained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Draining {
    /// Its vhost.
    pub vhost: String,
    /// Its name.
    pub name: String,
    /// Messages that are ready.
    pub ready: u64,
    /// Messages that consumers have in hand.
    pub in_flight: u64,
    /// Messages a second, over the last seconds.
    pub per_s: f64,
    /// Seconds until it is empty, at that rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_s: Option<u64>,
    /// Why it does not drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stuck: Option<String>,
}

/// Over how long a rate is taken.
const OVER: Duration = Duration::from_secs(10);

/// What queues held, of several looks at the status.
#[derive(Debug, Default)]
pub struct DrainRates(HashMap<(String, String), Seen>);

/// How much a queue held at which time.
#[derive(Debug, Default)]
struct Seen {
    first: Duration,
    samples: Vec<(Duration, u64)>,
}

impl DrainRates {
    /// Messages a second that went, over the last seconds; and for how long the queue has been looked at.
    fn per_s(&mut self, queue: &QueueStatus, held: u64, now: Duration) -> (f64, Duration) {
        let new = || Seen { first: now, samples: Vec::new() };
        let seen = self.0.entry((queue.vhost.clone(), queue.name.clone())).or_insert_with(new);
        seen.samples.push((now, held));
        seen.samples.retain(|(at, _)| *at + OVER >= now);
        let rate = match seen.samples.first() {
            Some((at, before)) if now > *at => before.saturating_sub(held) as f64 / (now - *at).as_secs_f64(),
            _ => 0.0,
        };
        (rate, now.saturating_sub(seen.first))
    }

    /// What is left at the time `now`, which grows from look to look.
    ///
    /// # Errors
    /// A text for people: a broker does not say what a queue holds.
    pub fn look(&mut self, status: &Status, now: Duration) -> Result<Drain, String> {
        // A queue that nobody has looked at for a while begins anew.
        self.0.retain(|_, seen| seen.samples.last().is_some_and(|(at, _)| *at + OVER >= now));
        let percent = status.weight_percent.percent();
        let between = percent > 0.0 && percent < 100.0;
        // Both own something: what drains is what lies before a fence, on the side that the last change took keys from.
        let side = match (status.phase, percent) {
            (Phase::Native, _) => Side::Nats,
            (_, 0.0) => Side::Nats,
            (_, _) if between => status.losing.unwrap_or(Side::Rabbit),
            (_, _) => Side::Rabbit,
        };
        let mut drain = Drain { side, drained: true, left: 0, left_s: None, queues: Vec::new() };
        if status.phase == Phase::Native {
            // There is only one side: nothing is on its way to another.
            return Ok(drain);
        }
        let mut unknown = None;
        for queue in &status.queues {
            let waits = matches!(queue.fence, FenceState::Waiting | FenceState::Sent) || queue.held > 0;
            if between && !waits {
                continue;
            }
            let (ready, in_flight) = match side {
                Side::Rabbit => (queue.rabbit_ready, queue.rabbit_unsettled),
                Side::Nats => (queue.nats_ready, queue.nats_unsettled),
            };
            let Some(ready) = ready else {
                unknown =
                    Some(format!("{side} does not say what queue '{}' in vhost '{}' holds", queue.name, queue.vhost));
                continue;
            };
            let held = ready + in_flight;
            if held == 0 && !(between && waits) {
                continue;
            }
            let (per_s, watched) = self.per_s(queue, held, now);
            let stuck = match (queue.consumers, per_s > 0.0) {
                (0, false) => Some("not draining: no consumer".to_owned()),
                (_, false) if watched >= OVER => Some("not draining: its consumers settle nothing".to_owned()),
                _ => None,
            };
            let left_s = (per_s > 0.0).then(|| (held as f64 / per_s).ceil() as u64);
            drain.left += held;
            drain.drained = false;
            let (vhost, name) = (queue.vhost.clone(), queue.name.clone());
            drain.queues.push(Draining {
                vhost,
                name,
                ready,
                in_flight,
                per_s: (per_s * 10.0).round() / 10.0,
                left_s,
                stuck,
            });
        }
        if let Some(why) = unknown {
            return Err(why);
        }
        // It is done when its slowest queue is.
        let times: Option<Vec<u64>> = drain.queues.iter().map(|queue| queue.left_s).collect();
        drain.left_s = times.and_then(|times| times.into_iter().max());
        Ok(drain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(weight: f64, queues: &[(&str, u64, u64, u64, &str)]) -> Status {
        let queue = |(name, rabbit, nats, consumers, fence): &(&str, u64, u64, u64, &str)| {
            serde_json::json!({ "vhost": "/", "name": name, "rabbit_ready": rabbit, "nats_ready": nats, "rabbit_unsettled": 1,
                "nats_unsettled": 0, "held": 0, "fence": fence, "consumers": consumers })
        };
        let side = serde_json::json!({ "connected": true, "url": "", "published": 0, "delivered": 0, "unsettled": 0 });
        let phase = match weight {
            0.0 => "shadow",
            100.0 => "cutover",
            _ => "canary",
        };
        serde_json::from_value(
            serde_json::json!({ "phase": phase, "weight_percent": weight, "epoch": 1, "by": "", "reason": "",
            "at": "", "draining": false, "connections": 0, "standby_lag": 0, "sides": { "rabbit": side, "nats": side },
            "queues": queues.iter().map(queue).collect::<Vec<_>>(), "parity": [], "unmapped": [], "warnings": [] }),
        )
        .expect("a status")
    }

    #[test]
    fn at_100_percent_rabbitmq_drains_and_the_time_left_is_that_of_its_slowest_queue() {
        let mut rates = DrainRates::default();
        let at = |seconds| Duration::from_secs(seconds);
        let queues = |a, b| status(100.0, &[("a", a, 5, 1, "passed"), ("b", b, 0, 0, "passed")]);
        rates.look(&queues(99, 49), at(0)).expect("known");
        let drain = rates.look(&queues(79, 49), at(2)).expect("known");
        assert_eq!((drain.side, drain.left, drain.left_s), (Side::Rabbit, 130, None));
        assert_eq!((drain.queues[0].per_s, drain.queues[0].left_s), (10.0, Some(8)));
        assert_eq!(drain.queues[1].stuck.as_deref(), Some("not draining: no consumer"));
    }

    #[test]
    fn after_a_rollback_nats_drains_and_in_between_what_lies_before_a_fence() {
        let mut rates = DrainRates::default();
        let nats = rates.look(&status(0.0, &[("a", 7, 0, 1, "passed")]), Duration::ZERO).expect("known");
        assert_eq!((nats.side, nats.drained), (Side::Nats, true), "what RabbitMQ has is its own");
        let passed = rates.look(&status(5.0, &[("a", 7, 9, 1, "passed")]), Duration::ZERO).expect("known");
        assert!(passed.drained);
        let waits = rates.look(&status(5.0, &[("a", 7, 9, 1, "sent")]), Duration::ZERO).expect("known");
        assert_eq!((waits.side, waits.left, waits.drained), (Side::Rabbit, 8, false));
    }
}
