//! `nats-bridge drain`: what the side that lost its keys still holds, until it holds nothing.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::{Control, Failure, request};
use crate::control_api::{FenceState, Phase, QueueStatus, Status};
use crate::ownership::Side;

/// Arguments of `drain`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  nats-bridge drain --timeout 10m && nats-bridge detach\n  nats-bridge drain --timeout 0s      # only looks\n\nAt 100 % it is RabbitMQ that drains, at 0 NATS; in between it is what is older than the last change of weight. It changes nothing: consumers drain.\n\nExit codes: 0 drained; 1 something is left; 2 no sidecar answers, or a broker does not say what it holds."
)]
pub struct DrainArgs {
    /// How long to wait.
    #[arg(long, value_parser = super::duration, default_value = "10m", value_name = "TIME")]
    pub timeout: Duration,
    /// The sidecar to talk to.
    #[command(flatten)]
    pub control: Control,
}

/// What is left.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Drain {
    /// The side that drains.
    side: Side,
    drained: bool,
    /// Messages that are ready or in hand.
    left: u64,
    /// Seconds until nothing is left at the rate of the last seconds; absent when nothing drains, or it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_s: Option<u64>,
    queues: Vec<Draining>,
}

/// One queue that is not drained.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Draining {
    vhost: String,
    name: String,
    ready: u64,
    in_flight: u64,
    /// Messages a second, over the last seconds.
    per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    left_s: Option<u64>,
    /// Why it does not drain.
    #[serde(skip_serializing_if = "Option::is_none")]
    stuck: Option<String>,
}

/// How often the sidecar is asked.
const EVERY: Duration = Duration::from_millis(500);
/// Over how long a rate is taken.
const OVER: Duration = Duration::from_secs(10);

/// Waits until nothing is left.
///
/// # Errors
/// `refused` when something is, `cannot_run` when it cannot be known.
pub async fn run(args: DrainArgs) -> Result<(), Failure> {
    let DrainArgs { timeout, control } = &args;
    let (began, mut rates) = (Instant::now(), Rates::default());
    let bar = request::bar(control.json, "draining");
    let mut most = 0;
    let drain = loop {
        let status: Status = request::get(control, "/status").await?;
        let drain = look(&status, began.elapsed(), &mut rates).map_err(Failure::cannot_run)?;
        most = most.max(drain.left);
        bar.set_length(most);
        bar.set_position(most - drain.left);
        if drain.drained || began.elapsed() >= *timeout {
            break drain;
        }
        tokio::time::sleep(EVERY.min(timeout.saturating_sub(began.elapsed()))).await;
    };
    bar.finish_and_clear();
    match control.json {
        true => request::print_json(&drain)?,
        false => request::print(&text(&drain)),
    }
    match drain.drained {
        true => Ok(()),
        false => Err(Failure::refused(format!("{} messages are left on {}", drain.left, drain.side))),
    }
}

/// How much a queue held at which time.
#[derive(Default)]
struct Rates(HashMap<(String, String), Vec<(Duration, u64)>>);

impl Rates {
    /// Messages a second that went, over the last seconds.
    fn per_s(&mut self, queue: &QueueStatus, held: u64, now: Duration) -> f64 {
        let seen = self.0.entry((queue.vhost.clone(), queue.name.clone())).or_default();
        seen.push((now, held));
        seen.retain(|(at, _)| *at + OVER >= now);
        match seen.first() {
            Some((at, before)) if now > *at => before.saturating_sub(held) as f64 / (now - *at).as_secs_f64(),
            _ => 0.0,
        }
    }
}

fn look(status: &Status, now: Duration, rates: &mut Rates) -> Result<Drain, String> {
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
            unknown = Some(format!("{side} does not say what queue '{}' in vhost '{}' holds", queue.name, queue.vhost));
            continue;
        };
        let held = ready + in_flight;
        if held == 0 && !(between && waits) {
            continue;
        }
        let per_s = rates.per_s(queue, held, now);
        let stuck = match (queue.consumers, per_s > 0.0) {
            (0, false) => Some("not draining: no consumer".to_owned()),
            (_, false) if now >= OVER => Some("not draining: its consumers settle nothing".to_owned()),
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

fn text(drain: &Drain) -> String {
    let Drain { side, left, .. } = drain;
    if drain.drained {
        return format!("{side} holds nothing that has to drain\n");
    }
    let time = |left: Option<u64>| left.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds} s"));
    let mut out = format!("{side} holds {left} messages that have to drain, time left {}\n", time(drain.left_s));
    let _ = writeln!(out, "{:<36}  {:>9}  {:>9}  {:>9}  {:>9}", "queue", "ready", "in flight", "per s", "time left");
    for Draining { vhost, name, ready, in_flight, per_s, left_s, stuck } in &drain.queues {
        let (name, stuck) = (format!("{vhost} {name}"), stuck.as_deref().unwrap_or(""));
        let line = format!("{name:<36}  {ready:>9}  {in_flight:>9}  {per_s:>9}  {:>9}  {stuck}", time(*left_s));
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
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
        let mut rates = Rates::default();
        let at = |seconds| Duration::from_secs(seconds);
        let queues = |a, b| status(100.0, &[("a", a, 5, 1, "passed"), ("b", b, 0, 0, "passed")]);
        look(&queues(99, 49), at(0), &mut rates).expect("known");
        let drain = look(&queues(79, 49), at(2), &mut rates).expect("known");
        assert_eq!((drain.side, drain.left, drain.left_s), (Side::Rabbit, 130, None));
        assert_eq!((drain.queues[0].per_s, drain.queues[0].left_s), (10.0, Some(8)));
        assert_eq!(drain.queues[1].stuck.as_deref(), Some("not draining: no consumer"));
        assert!(text(&drain).contains("not draining: no consumer"));
    }

    #[test]
    fn after_a_rollback_nats_drains_and_in_between_what_lies_before_a_fence() {
        let mut rates = Rates::default();
        let nats = look(&status(0.0, &[("a", 7, 0, 1, "passed")]), Duration::ZERO, &mut rates).expect("known");
        assert_eq!((nats.side, nats.drained), (Side::Nats, true), "what RabbitMQ has is its own");
        let passed = look(&status(5.0, &[("a", 7, 9, 1, "passed")]), Duration::ZERO, &mut rates).expect("known");
        assert!(passed.drained);
        let waits = look(&status(5.0, &[("a", 7, 9, 1, "sent")]), Duration::ZERO, &mut rates).expect("known");
        assert_eq!((waits.side, waits.left, waits.drained), (Side::Rabbit, 8, false));
    }
}
