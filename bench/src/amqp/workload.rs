//! What is measured: one row for each shape of traffic.

use clap::ValueEnum;

/// One shape of traffic; the first column of the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// One publisher, one consumer, each message acknowledged by itself.
    Single,
    /// As `single`, acknowledged 64 at a time with `multiple`.
    Multiple,
    /// As `single`, into a quorum queue (one node: one replica on both sides).
    Quorum,
    /// Four publishers and four consumers on one queue.
    Four,
    /// A fanout exchange with 3 queues; deliveries are counted.
    Fanout3,
    /// A fanout exchange with 10 queues; deliveries are counted.
    Fanout10,
    /// A topic exchange with 10 000 bindings to one queue, of which each key matches one.
    Topic,
    /// As `single`, but the peer is JetStream itself: async-nats publishing to and pulling from a work-queue stream.
    Raw,
    /// Publish and consume at half of the slower broker's rate in `single`: latency, not throughput.
    Paced,
    /// One request at a time, answered over a second connection: round trips.
    Rpc,
}

/// What [`super::drive::drive`] does for a workload.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Publishing connections.
    pub publishers: usize,
    /// Consuming connections on each queue.
    pub consumers: usize,
    /// Queues that get a copy of each message.
    pub queues: usize,
    /// Deliveries that one acknowledgement stands for.
    pub ack_every: usize,
    /// The type of the queues.
    pub queue_type: &'static str,
    /// Bindings of the topic exchange, where there is one.
    pub topic_bindings: usize,
    /// Messages a second, where it is not as fast as possible.
    pub pace: Option<f64>,
}

impl Workload {
    /// Whom the listener is compared with.
    pub fn peer(self) -> &'static str {
        if self == Self::Raw { "JetStream" } else { "RabbitMQ" }
    }

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "1 publisher, 1 consumer",
            Self::Multiple => "ack 64 at a time",
            Self::Quorum => "quorum queue",
            Self::Four => "4 publishers, 4 consumers",
            Self::Fanout3 => "fanout to 3 queues",
            Self::Fanout10 => "fanout to 10 queues",
            Self::Topic => "topic, 10 000 bindings",
            Self::Raw => "beside raw JetStream",
            Self::Paced => "half load",
            Self::Rpc => "RPC round trip",
        }
    }

    /// The shape of its traffic; none for a round trip.
    pub fn shape(self) -> Option<Shape> {
        let single = Shape {
            publishers: 1,
            consumers: 1,
            queues: 1,
            ack_every: 1,
            queue_type: "classic",
            topic_bindings: 0,
            pace: None,
        };
        Some(match self {
            Self::Single | Self::Raw | Self::Paced => single,
            Self::Multiple => Shape { ack_every: 64, ..single },
            Self::Quorum => Shape { queue_type: "quorum", ..single },
            Self::Four => Shape { publishers: 4, consumers: 4, ..single },
            Self::Fanout3 => Shape { queues: 3, ..single },
            Self::Fanout10 => Shape { queues: 10, ..single },
            Self::Topic => Shape { topic_bindings: 10_000, ..single },
            Self::Rpc => return None,
        })
    }

    /// How many publishes one round has, of `messages` that `single` has: about the same time for each.
    pub fn publishes(self, messages: usize) -> usize {
        match self {
            Self::Fanout3 => messages / 2,
            Self::Fanout10 => messages / 6,
            Self::Rpc => messages / 20,
            _ => messages,
        }
        .max(1)
    }
}
