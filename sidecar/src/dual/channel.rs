//! What one channel of a link holds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Consume, DeliveryId, Got, Message, Reply, Topology};
use foldhash::{HashMap, HashSet};

use super::merge::Merge;
use crate::copies::backlog::Likeness;
use crate::fence::{MessageKey, QueueName, Stamp};
use crate::ownership::{Bucket, Side};
use crate::traces::Span;

/// One channel of a link.
#[derive(Debug, Default)]
pub struct Channel {
    /// What the client waits for.
    pub request: Option<Request>,
    /// By tag.
    pub consumers: HashMap<ShortString, Consumer>,
    /// Publishes that are not confirmed, by number.
    pub publishes: HashMap<u64, InFlight>,
    /// Publishes that their owner has confirmed and whose standby copies are not stored, by number.
    pub copying: HashMap<u64, Copying>,
    /// Of which queues it was given something.
    pub read: Read,
    /// Whether its side has closed it.
    pub failed: bool,
}

/// A publish whose standby copies are not stored.
#[derive(Debug)]
pub struct Copying {
    /// Its id.
    pub id: u128,
    /// It is over when the client is told.
    pub span: Option<Box<Span>>,
}

/// The queues that a channel has read.
#[derive(Debug, Default)]
pub struct Read {
    /// These, and no more than [`Read::MOST`].
    pub some: HashSet<QueueName>,
    /// There were more.
    pub any: bool,
}

impl Read {
    const MOST: usize = 256;

    /// It is about to read this one.
    pub fn note(&mut self, queue: &QueueName) {
        if self.some.len() < Self::MOST {
            self.some.insert(queue.clone());
        } else {
            self.any |= !self.some.contains(queue);
        }
    }

    /// Whether it may have read this one.
    pub fn has(&self, queue: &QueueName) -> bool {
        self.any || self.some.contains(queue)
    }
}

/// A publish that is not confirmed.
#[derive(Debug)]
pub struct InFlight {
    /// What it is counted under; `None` in `native`.
    pub stamp: Option<Stamp>,
    /// Its id.
    pub id: u128,
    /// When it was taken.
    pub since: Duration,
    /// Its exchange, when JetStream does not have it; it is missed there if RabbitMQ does.
    pub missed: Option<ShortString>,
    /// Whether its standby copies are not stored yet.
    pub copying: bool,
    /// If its trace is recorded.
    pub span: Option<Box<Span>>,
}

/// A consumer on both sides.
#[derive(Debug)]
pub struct Consumer {
    /// Its queue.
    pub queue: QueueName,
    /// What the client asked for, to attach it again.
    pub consume: Consume,
    /// Its two halves.
    pub merge: Merge<Item>,
    /// Whether each side has said that it began, RabbitMQ first.
    pub on: [bool; 2],
    /// Whether it has yet to begin on JetStream, which did not have its queue.
    pub late: Late,
    /// Whether the client knows that it began.
    pub live: bool,
    /// How many lifts had happened when it last looked at what waits.
    pub lifted: u64,
    /// How many deliveries it has reported as held.
    pub held: usize,
    /// Whether it is let go of on RabbitMQ while its queue is read by the sidecar itself.
    pub paused: bool,
}

/// Whether a consumer has yet to begin on JetStream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// It has begun, or its answer is the first.
    No,
    /// JetStream did not have its queue.
    Waits,
    /// It was asked for again.
    Asked,
}

/// A delivery that the client does not have yet.
#[derive(Debug)]
pub struct Item {
    /// Its side's name for it.
    pub inner: DeliveryId,
    /// The generation of its side.
    pub generation: u64,
    /// Whether it may have been delivered before.
    pub redelivered: bool,
    /// How long the client may take to settle it.
    pub ack_timeout: Option<Duration>,
    /// Without stamp.
    pub message: Message,
    /// What it is known by.
    pub key: MessageKey,
    /// Of its ordering key.
    pub bucket: Bucket,
    /// That it was published in.
    pub epoch: u64,
    /// If its trace is recorded.
    pub span: Option<Box<Span>>,
}

/// A delivery that the client has not settled.
#[derive(Debug)]
pub struct Open {
    /// Its channel.
    pub channel: ChannelId,
    /// Its consumer; `None` for the answer to a get.
    pub tag: Option<ShortString>,
    /// Its queue.
    pub queue: QueueName,
    /// Where it came from.
    pub side: Side,
    /// The generation of its side.
    pub generation: u64,
    /// Its side's name for it.
    pub inner: DeliveryId,
    /// What it is known by.
    pub key: MessageKey,
    /// The queues that have dead-lettered it before.
    pub died_in: Vec<Arc<str>>,
    /// What it is known by to its standby copy, when it has no stamp.
    pub likeness: Option<Likeness>,
    /// If its trace is recorded.
    pub span: Option<Box<Span>>,
}

/// A request of the client that is not answered.
#[derive(Debug)]
pub struct Request {
    /// Tells a late reply from one that is awaited.
    pub number: u64,
    /// When it came.
    pub since: Duration,
    /// The sides whose reply is awaited, RabbitMQ first.
    pub waiting: [bool; 2],
    /// What the leading side answered.
    pub first: Option<Reply>,
    /// What is asked.
    pub asked: Asked,
}

/// What a client asks for.
#[derive(Debug)]
pub enum Asked {
    /// `channel.open`.
    Open,
    /// `channel.close`.
    Close,
    /// Topology.
    Topology(Topology),
    /// `basic.consume` with this tag.
    Consume(ShortString),
    /// `basic.cancel` of this tag.
    Cancel(ShortString),
    /// `basic.get`.
    Get {
        /// The queue.
        queue: QueueName,
        /// The sides that are still to be asked.
        next: VecDeque<Side>,
        /// What was got, while the other side is asked for its count.
        got: Option<Box<Got>>,
    },
}
