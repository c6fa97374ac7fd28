//! Whether what a service needs is there, and whether its consumers keep up.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use foldhash::HashMap;
use serde::Serialize;
use serde_json::Value;

use crate::api::ask;
use crate::bridge::Bridge;
use crate::error::{ErrorKind, Result};

/// What a service needs to work.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Required {
    /// Streams that must exist and have a leader.
    pub streams: Vec<String>,
    /// Consumers that must exist, as stream and name.
    pub consumers: Vec<(String, String)>,
    /// Dead-letter streams that must exist and have room.
    pub dead_letters: Vec<String>,
    /// How many messages may wait for a consumer before that is a problem; default no bound.
    pub max_pending: Option<u64>,
    /// How far a mirror may lag behind, in messages; default no bound.
    pub max_mirror_lag: Option<u64>,
}

/// Looks at what is required, and remembers enough to tell how the lag develops.
/// ```no_run
/// # async fn example(bridge: nats_bridge::Bridge) {
/// use nats_bridge::health::{HealthCheck, Required};
///
/// let check = HealthCheck::new(&bridge, Required {
///     streams: vec!["ORDERS".into()],
///     consumers: vec![("ORDERS".into(), "billing".into())],
///     dead_letters: vec!["ORDERS_DLQ".into()],
///     max_pending: Some(10_000),
///     ..Required::default()
/// });
/// // Keep it, and look now and then: what was seen before tells how the lag develops.
/// let health = check.look().await;
/// for problem in &health.problems {
///     println!("not ready: {problem}");
/// }
/// for lag in &health.consumers {
///     println!("{} has {} to deliver, {:?} more each second", lag.consumer, lag.pending, lag.pending_per_second);
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct HealthCheck {
    bridge: Bridge,
    required: Required,
    seen: Mutex<HashMap<(String, String), Slope>>,
}

/// What a [`HealthCheck`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Whether there is no problem.
    pub ready: bool,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// The server that is connected, such as `2.15.1`.
    pub server_version: String,
    /// How far each required consumer is.
    pub consumers: Vec<Lag>,
    /// How far each required stream that is a mirror lags behind.
    pub mirrors: Vec<MirrorLag>,
}

/// How far a consumer is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lag {
    /// Its stream.
    pub stream: String,
    /// Its name.
    pub consumer: String,
    /// Messages that it has still to deliver.
    pub pending: u64,
    /// Messages that are delivered and not settled.
    pub ack_pending: u64,
    /// Messages that are being delivered again.
    pub redelivered: u64,
    /// Messages by which `pending` grows in a second, over the last looks (at most 30, at most 5 minutes): above 0 it falls
    /// behind. None until there were two.
    pub pending_per_second: Option<f64>,
}

/// How far a mirror is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MirrorLag {
    /// The mirror.
    pub stream: String,
    /// Messages of its origin that it does not have yet.
    pub lag: u64,
    /// Milliseconds since it heard of its origin last; none when it never has.
    pub silent_ms: Option<u64>,
}

impl HealthCheck {
    /// A check on this connection.
    pub fn new(bridge: &Bridge, required: Required) -> HealthCheck {
        HealthCheck { bridge: bridge.clone(), required, seen: Mutex::default() }
    }

    /// Looks now. What is wrong is in the answer; asking itself does not fail.
    pub async fn look(&self) -> Health {
        let mut health = Health {
            ready: false,
            problems: Vec::new(),
            server_version: self.bridge.server_version(),
            consumers: Vec::new(),
            mirrors: Vec::new(),
        };
        if !self.bridge.connection().borrow().connected {
            health.problems.push("NATS is not connected".into());
        } else {
            for stream in &self.required.streams {
                self.look_at_stream(stream, &mut health).await;
            }
            for stream in &self.required.dead_letters {
                self.look_at_dead_letters(stream, &mut health).await;
            }
            for (stream, consumer) in &self.required.consumers {
                self.look_at_consumer(stream, consumer, &mut health).await;
            }
        }
        health.ready = health.problems.is_empty();
        health
    }

    async fn look_at_stream(&self, stream: &str, health: &mut Health) -> Option<Value> {
        let what = format!("stream {stream}");
        let info = self.ask(format!("STREAM.INFO.{stream}"), &what, health).await?;
        self.has_leader(&what, &info, health);
        if let Some(mirror) = info.get("mirror").filter(|mirror| mirror.is_object()) {
            let lag = mirror.get("lag").and_then(Value::as_u64).unwrap_or(0);
            // Nanoseconds; -1 as long as nothing was heard.
            let silent_ms =
                mirror.get("active").and_then(Value::as_i64).and_then(|n| u64::try_from(n / 1_000_000).ok());
            metrics::gauge!("natsbridge_mirror_lag", "stream" => stream.to_owned()).set(lag as f64);
            if self.required.max_mirror_lag.is_some_and(|max| lag > max) {
                health.problems.push(format!("mirror {stream} is {lag} messages behind"));
            }
            health.mirrors.push(MirrorLag { stream: stream.to_owned(), lag, silent_ms });
        }
        Some(info)
    }

    async fn look_at_dead_letters(&self, stream: &str, health: &mut Health) {
        let Some(info) = self.look_at_stream(stream, health).await else { return };
        let number = |path: &str| info.pointer(path).and_then(Value::as_i64).unwrap_or(0);
        let full = |limit: i64, used: i64| limit > 0 && used >= limit;
        if info.pointer("/config/sealed").and_then(Value::as_bool).unwrap_or(false) {
            health.problems.push(format!("dead-letter stream {stream} is sealed"));
        } else if info.pointer("/config/discard").and_then(Value::as_str) == Some("new")
            && (full(number("/config/max_bytes"), number("/state/bytes"))
                || full(number("/config/max_msgs"), number("/state/messages")))
        {
            health.problems.push(format!("dead-letter stream {stream} is full: consumers will pause"));
        }
    }

    async fn look_at_consumer(&self, stream: &str, consumer: &str, health: &mut Health) {
        let what = format!("consumer {stream}/{consumer}");
        let Some(info) = self.ask(format!("CONSUMER.INFO.{stream}.{consumer}"), &what, health).await else { return };
        self.has_leader(&what, &info, health);
        let number = |field: &str| info.get(field).and_then(Value::as_u64).unwrap_or(0);
        let pending = number("num_pending");
        let pending_per_second = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let slope = seen.entry((stream.to_owned(), consumer.to_owned())).or_default();
            slope.add(Instant::now(), pending);
            slope.per_second()
        };
        let labels = [("stream", stream.to_owned()), ("consumer", consumer.to_owned())];
        metrics::gauge!("natsbridge_consumer_pending", &labels).set(pending as f64);
        metrics::gauge!("natsbridge_consumer_pending_per_second", &labels).set(pending_per_second.unwrap_or(0.0));
        if self.required.max_pending.is_some_and(|max| pending > max) {
            health.problems.push(format!("{what} has {pending} messages waiting"));
        }
        health.consumers.push(Lag {
            stream: stream.to_owned(),
            consumer: consumer.to_owned(),
            pending,
            ack_pending: number("num_ack_pending"),
            redelivered: number("num_redelivered"),
            pending_per_second,
        });
    }

    async fn ask(&self, call: String, what: &str, health: &mut Health) -> Option<Value> {
        let answer: Result<Value> = self.bridge.unless_denied(ask(self.bridge.jetstream(), call)).await;
        match answer {
            Ok(info) => Some(info),
            Err(error) => {
                health.problems.push(match error.kind() {
                    ErrorKind::NotFound => format!("{what} does not exist"),
                    _ => format!("{what} cannot be looked at: {error}"),
                });
                None
            }
        }
    }

    // Only a clustered server says who leads.
    fn has_leader(&self, what: &str, info: &Value, health: &mut Health) {
        let cluster = info.get("cluster").filter(|cluster| cluster.get("name").is_some());
        if cluster.is_some_and(|cluster| cluster.get("leader").and_then(Value::as_str).unwrap_or("").is_empty()) {
            health.problems.push(format!("{what} has no leader at present"));
        }
    }
}

/// The last counts and when they were taken.
#[derive(Debug, Default)]
struct Slope(VecDeque<(Instant, u64)>);

const LOOKS: usize = 30;
const SPAN: Duration = Duration::from_secs(300);

impl Slope {
    fn add(&mut self, now: Instant, count: u64) {
        while self.0.len() >= LOOKS || self.0.front().is_some_and(|(at, _)| now.duration_since(*at) > SPAN) {
            self.0.pop_front();
        }
        self.0.push_back((now, count));
    }

    // The line with the least squares through the points.
    fn per_second(&self) -> Option<f64> {
        let first = self.0.front()?.0;
        let points = || self.0.iter().map(|(at, count)| (at.duration_since(first).as_secs_f64(), *count as f64));
        let n = self.0.len() as f64;
        let (sum_x, sum_y) = points().fold((0.0, 0.0), |(a, b), (x, y)| (a + x, b + y));
        let (mean_x, mean_y) = (sum_x / n, sum_y / n);
        let spread: f64 = points().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let together: f64 = points().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        (self.0.len() > 1 && spread > 0.0).then(|| together / spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_last_looks() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut slope = Slope::default();
        slope.add(at(0), 100);
        assert_eq!(slope.per_second(), None);
        slope.add(at(10), 200);
        assert_eq!(slope.per_second(), Some(10.0));
        for n in 0..100u64 {
            slope.add(at(20 + n), 1000 - 5 * n);
        }
        assert!((slope.per_second().unwrap() + 5.0).abs() < 1e-6);
        assert_eq!(slope.0.len(), LOOKS);
        slope.add(at(10_000), 7);
        assert_eq!(slope.0.len(), 1, "what is old does not count");
    }
}
