//! Handles of a consumer's metrics, made once.

use ::metrics::{Counter, Gauge, counter, gauge};

pub(super) struct ConsumeMetrics {
    pub delivered: Counter,
    pub redelivered: Counter,
    pub acked: Counter,
    pub retried: Counter,
    pub dead_lettered: Counter,
    pub dead_letter_failed: Counter,
    pub not_decrypted: Counter,
    pub schema_violations: Counter,
    pub dropped: Counter,
    pub told_again: Counter,
    pub overtime: Counter,
    pub pulls: Counter,
    pub rebuilt_heartbeat: Counter,
    pub rebuilt_stalled: Counter,
    pub held: Gauge,
    pub pending: Gauge,
    pub paused: Gauge,
    pub active: Gauge,
    pub activated: Counter,
}

impl ConsumeMetrics {
    pub fn new(stream: &str, consumer: &str) -> Self {
        let labels = [("stream", stream.to_owned()), ("consumer", consumer.to_owned())];
        let rebuilt = |reason: &'static str| {
            counter!(
                "natsbridge_consumer_rebuilds_total",
                "stream" => stream.to_owned(), "consumer" => consumer.to_owned(), "reason" => reason
            )
        };
        ConsumeMetrics {
            delivered: counter!("natsbridge_delivered_total", &labels),
            redelivered: counter!("natsbridge_redelivered_total", &labels),
            acked: counter!("natsbridge_acked_total", &labels),
            retried: counter!("natsbridge_retried_total", &labels),
            dead_lettered: counter!("natsbridge_dead_lettered_total", &labels),
            dead_letter_failed: counter!("natsbridge_dead_letter_failures_total", &labels),
            schema_violations: counter!("natsbridge_schema_violations_total", &labels),
            not_decrypted: counter!("natsbridge_not_decrypted_total", &labels),
            dropped: counter!("natsbridge_deliveries_dropped_total", &labels),
            told_again: counter!("natsbridge_settled_again_total", &labels),
            overtime: counter!("natsbridge_handler_overtime_total", &labels),
            pulls: counter!("natsbridge_pulls_total", &labels),
            rebuilt_heartbeat: rebuilt("heartbeat"),
            rebuilt_stalled: rebuilt("stalled"),
            held: gauge!("natsbridge_consumer_held", &labels),
            pending: gauge!("natsbridge_consumer_pending", &labels),
            paused: gauge!("natsbridge_consumer_paused", &labels),
            active: gauge!("natsbridge_consumer_active", &labels),
            activated: counter!("natsbridge_consumer_activations_total", &labels),
        }
    }
}
