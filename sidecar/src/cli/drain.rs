//! `nats-bridge drain`: what the side that lost its keys still holds, until it holds nothing.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use clap::Args;

use super::{Control, Failure, request};
use crate::control_api::{Drain, DrainRates, Draining, Status};

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

/// How often the sidecar is asked.
const EVERY: Duration = Duration::from_millis(500);
/// Waits until nothing is left.
///
/// # Errors
/// `refused` when something is, `cannot_run` when it cannot be known.
pub async fn run(args: DrainArgs) -> Result<(), Failure> {
    let DrainArgs { timeout, control } = &args;
    let (began, mut rates) = (Instant::now(), DrainRates::default());
    let bar = request::bar(control.json, "draining");
    let mut most = 0;
    let drain = loop {
        let status: Status = request::get(control, "/status").await?;
        let drain = rates.look(&status, began.elapsed()).map_err(Failure::cannot_run)?;
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
    use crate::ownership::Side;

    #[test]
    fn a_queue_that_does_not_drain_says_why() {
        let stuck = Some("not draining: no consumer".to_owned());
        let (vhost, name) = ("/".to_owned(), "orders".to_owned());
        let queue = Draining { vhost, name, ready: 7, in_flight: 0, per_s: 0.0, left_s: None, stuck };
        let drain = Drain { side: Side::Rabbit, drained: false, left: 7, left_s: None, queues: vec![queue] };
        assert!(text(&drain).trim_end().ends_with("not draining: no consumer"));
    }
}
