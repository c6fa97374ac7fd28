//! What a listener counts, as metrics with the prefix `natsbridge_amqp_`.

use metrics::{Counter, Gauge, counter, gauge};

use crate::session::Counts;

/// A count that only grows, and its metric.
type Growing = (fn(&Counts) -> u64, Counter);

/// The metrics of one connection; they are sums over all connections.
pub(super) struct Figures {
    told: Counts,
    connections: Gauge,
    channels: Gauge,
    consumers: Gauge,
    counters: [Growing; 8],
}

impl Figures {
    /// Counts one more connection.
    pub(super) fn open() -> Self {
        let figures = Self {
            told: Counts::default(),
            connections: gauge!("natsbridge_amqp_connections"),
            channels: gauge!("natsbridge_amqp_channels"),
            consumers: gauge!("natsbridge_amqp_consumers"),
            counters: [
                (|c| c.published, counter!("natsbridge_amqp_published_total")),
                (|c| c.acks, counter!("natsbridge_amqp_publisher_ack_frames_total")),
                (|c| c.nacks, counter!("natsbridge_amqp_publisher_nacks_total")),
                (|c| c.returned, counter!("natsbridge_amqp_returned_total")),
                (|c| c.delivered, counter!("natsbridge_amqp_delivered_total")),
                (|c| c.settled, counter!("natsbridge_amqp_settled_total")),
                (|c| c.channel_errors, counter!("natsbridge_amqp_channel_errors_total")),
                (|c| c.connection_errors, counter!("natsbridge_amqp_connection_errors_total")),
            ],
        };
        figures.connections.increment(1.0);
        counter!("natsbridge_amqp_connections_opened_total").increment(1);
        figures
    }

    /// Tells what has changed.
    pub(super) fn tell(&mut self, now: Counts) {
        if now == self.told {
            return;
        }
        self.channels.increment(now.channels as f64 - self.told.channels as f64);
        self.consumers.increment(now.consumers as f64 - self.told.consumers as f64);
        for (read, counter) in &self.counters {
            let grown = read(&now) - read(&self.told);
            if grown > 0 {
                counter.increment(grown);
            }
        }
        self.told = now;
    }
}

impl Drop for Figures {
    fn drop(&mut self) {
        self.tell(Counts { channels: 0, consumers: 0, ..self.told });
        self.connections.decrement(1.0);
    }
}

/// Counts a connection that found no place.
pub(super) fn refused() {
    counter!("natsbridge_amqp_connections_refused_total").increment(1);
}
