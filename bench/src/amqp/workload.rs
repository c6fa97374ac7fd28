//! What is measured: one row for each shape of traffic and each thing that takes memory.

use super::servers::Profile;

/// The type of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Classic,
    Quorum,
}

impl Kind {
    /// The value of `x-queue-type`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

/// One shape of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// So many publishers and as many consumers on one queue; each acknowledgement stands for so many deliveries.
    Queue { kind: Kind, pairs: usize, ack_every: usize },
    /// A fanout exchange with so many queues; deliveries are counted.
    Fanout(usize),
    /// A topic exchange with so many bindings to one queue, of which each key matches one.
    Topic(usize),
    /// One publisher, one consumer, beside JetStream itself: async-nats publishing to and pulling from a work-queue stream.
    Raw(Kind),
    /// Publish and consume at half of the slower broker's rate: latency, not throughput.
    Paced(Kind),
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
    /// Whether they get it by a fanout exchange.
    pub is_fanout: bool,
    /// Deliveries that one acknowledgement stands for.
    pub ack_every: usize,
    /// The type of the queues.
    pub kind: Kind,
    /// Bindings of the topic exchange, where there is one.
    pub topic_bindings: usize,
    /// Messages a second, where it is not as fast as possible.
    pub pace: Option<f64>,
}

impl Shape {
    /// One publisher and one consumer, each message acknowledged by itself.
    pub fn single(kind: Kind) -> Self {
        let (publishers, consumers, queues, is_fanout) = (1, 1, 1, false);
        Self { publishers, consumers, queues, is_fanout, ack_every: 1, kind, topic_bindings: 0, pace: None }
    }
}

impl Workload {
    /// All of a profile, each with the sizes that it is measured with.
    pub fn all(profile: Profile, sizes: &[usize]) -> Vec<(Self, usize)> {
        let kinds: &[Kind] = if profile == Profile::Three { &[Kind::Quorum] } else { &[Kind::Classic, Kind::Quorum] };
        let mut all = Vec::new();
        for &kind in kinds {
            for &size in sizes {
                for pairs in [1, 4] {
                    all.extend([1, 64].map(|ack_every| (Self::Queue { kind, pairs, ack_every }, size)));
                }
            }
        }
        let more: &[Self] = match profile {
            Profile::Default => &[
                Self::Fanout(1),
                Self::Fanout(3),
                Self::Fanout(10),
                Self::Topic(10_000),
                Self::Raw(Kind::Classic),
                Self::Paced(Kind::Classic),
                Self::Rpc,
            ],
            Profile::Always => &[Self::Fanout(3), Self::Raw(Kind::Classic), Self::Paced(Kind::Classic)],
            Profile::Three => &[Self::Raw(Kind::Quorum), Self::Paced(Kind::Quorum)],
        };
        all.extend(sizes.first().into_iter().flat_map(|size| more.iter().map(|workload| (*workload, *size))));
        all
    }

    /// Whom the listener is compared with.
    pub fn peer(self) -> &'static str {
        if matches!(self, Self::Raw(_)) { "JetStream" } else { "RabbitMQ" }
    }

    /// Its name in the report.
    pub fn name(self) -> String {
        match self {
            Self::Queue { kind, pairs, ack_every: 1 } => format!("{}, {pairs} to {pairs}", kind.name()),
            Self::Queue { kind, pairs, ack_every } => format!("{}, {pairs} to {pairs}, ack {ack_every}", kind.name()),
            Self::Fanout(queues) => format!("fanout to {queues}"),
            Self::Topic(bindings) => format!("topic, {bindings} bindings"),
            Self::Raw(kind) => format!("{}, beside raw JetStream", kind.name()),
            Self::Paced(kind) => format!("{}, half load", kind.name()),
            Self::Rpc => "RPC round trip".to_owned(),
        }
    }

    /// The shape of its traffic; none for a round trip.
    pub fn shape(self) -> Option<Shape> {
        let classic = Shape::single(Kind::Classic);
        Some(match self {
            Self::Queue { kind, pairs, ack_every } => {
                Shape { publishers: pairs, consumers: pairs, ack_every, ..Shape::single(kind) }
            }
            Self::Raw(kind) | Self::Paced(kind) => Shape::single(kind),
            Self::Fanout(queues) => Shape { queues, is_fanout: true, ..classic },
            Self::Topic(topic_bindings) => Shape { topic_bindings, ..classic },
            Self::Rpc => return None,
        })
    }

    /// How many publishes one round has, of `messages` that the simplest has: about the same time for each.
    pub fn publishes(self, messages: usize, size: usize) -> usize {
        let messages = if size > 4096 { messages / 8 } else { messages };
        match self {
            Self::Fanout(queues) => messages * 3 / (queues + 2),
            Self::Rpc => messages / 20,
            _ => messages,
        }
        .max(1)
    }
}

/// What takes memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Connections with one channel each that do nothing.
    Connection,
    /// Declared durable queues with nothing in them.
    Queue(Kind),
    /// Messages that lie in one queue.
    Queued(Kind),
}

impl Memory {
    /// All of a profile: where only the time of a flush differs, so does nothing of this.
    pub fn all(profile: Profile) -> &'static [Self] {
        match profile {
            Profile::Default => {
                &[Self::Connection, Self::Queue(Kind::Classic), Self::Queue(Kind::Quorum), Self::Queued(Kind::Classic)]
            }
            Profile::Always => &[],
            Profile::Three => &[Self::Queue(Kind::Quorum), Self::Queued(Kind::Quorum)],
        }
    }

    /// Its name in the report.
    pub fn name(self) -> String {
        match self {
            Self::Connection => "memory per connection".to_owned(),
            Self::Queue(kind) => format!("memory per {} queue", kind.name()),
            Self::Queued(kind) => format!("memory with messages in a {} queue", kind.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_apart_what_is_measured() {
        for profile in [Profile::Default, Profile::Always, Profile::Three] {
            let rates =
                Workload::all(profile, &[128, 1024]).into_iter().map(|(w, size)| format!("{}, {size}", w.name()));
            let mut names: Vec<String> = rates.chain(Memory::all(profile).iter().map(|m| m.name())).collect();
            let count = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), count, "{profile:?}");
        }
    }
}
