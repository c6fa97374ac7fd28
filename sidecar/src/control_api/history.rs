//! Rates and latencies over time: the answer of `GET /history`.

use serde::{Deserialize, Serialize};

/// Rates and latencies over time; the answer of `GET /history`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct History {
    /// How far samples are apart.
    pub every_seconds: u64,
    /// Oldest first; at most an hour.
    pub samples: Vec<Sample>,
}

/// What happened between two moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The end of it, in seconds since 1970.
    pub unix: u64,
    /// The weight then.
    pub weight_percent: f64,
    /// RabbitMQ.
    pub rabbit: SideSample,
    /// NATS JetStream.
    pub nats: SideSample,
    /// Copies that were on their way to be compared.
    pub unread: u64,
    /// Messages that differed so far.
    pub differences: u64,
    /// Messages that were compared so far.
    pub compared: u64,
    /// Faults of messages that JetStream owns so far.
    pub faults: u64,
}

/// What one broker did between two moments.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SideSample {
    /// Messages that it took as their owner, in a second.
    pub published_per_s: f64,
    /// Messages of it that were delivered, in a second.
    pub delivered_per_s: f64,
    /// From a publish to its confirm: half of them were faster.
    pub confirm_p50_ms: Option<f64>,
    /// From a publish to its confirm: 99 of 100 were faster.
    pub confirm_p99_ms: Option<f64>,
}
