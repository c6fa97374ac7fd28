//! What the order keeper is told and tells.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::control_api::{FenceState, Weight};
use crate::ownership::{Bucket, Side};

/// A queue of a vhost.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName {
    /// The vhost.
    pub vhost: Arc<str>,
    /// The queue's name.
    pub queue: Arc<str>,
}

impl fmt::Display for QueueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in vhost {}", self.queue, self.vhost)
    }
}

/// The name of one fence message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FenceId {
    pub(super) life: u64,
    pub(super) number: u64,
}

impl fmt::Display for FenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:x}", self.life, self.number)
    }
}

impl FromStr for FenceId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (life, number) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { life: u64::from_str_radix(life, 16)?, number: u64::from_str_radix(number, 16)? })
    }
}

/// What tells one message from another while it is on its way through a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKey {
    /// The id that it was stamped with; the same when it is delivered again.
    Stamped(u128),
    /// A message that was not published through the sidecar: this delivery of it on this link. A requeue ends it,
    /// because it cannot be known again.
    Anonymous {
        /// The link.
        link: u64,
        /// The delivery.
        delivery: u64,
    },
}

/// What a publish is stamped with and counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch in force when it was taken.
    pub epoch: u64,
    /// The side it is published to.
    pub owner: Side,
}

/// A change of weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shift {
    /// The epoch that it brought.
    pub epoch: u64,
    /// The weight before.
    pub from: Weight,
    /// The weight since.
    pub to: Weight,
}

impl Shift {
    /// The side that keys moved away from.
    pub fn losing(&self) -> Side {
        if self.to > self.from { Side::Rabbit } else { Side::Nats }
    }

    pub(super) fn covers(&self, side: Side, bucket: Bucket, epoch: u64) -> bool {
        side != self.losing() && epoch >= self.epoch && bucket.moves(self.from, self.to)
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Publish this fence into this queue of this side; then say [`fence_stored`](super::Fences::fence_stored), or
    /// [`passed`](super::Fences::passed) when the queue is not there or is empty and has no consumer.
    PublishFence {
        /// The queue.
        queue: QueueName,
        /// The losing side.
        side: Side,
        /// The fence.
        fence: FenceId,
    },
    /// A hold is lifted: look again at what waits on this queue.
    Lifted {
        /// The queue.
        queue: QueueName,
        /// The epoch whose hold it was.
        epoch: u64,
        /// Whether its time was over before the losing side was drained.
        timed_out: bool,
    },
}

/// What became of a delivery that was just received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its place among all deliveries of the queue: that of its first delivery, when it comes again.
    pub place: u64,
    /// Whether it has to wait.
    pub waits: bool,
    /// Whether it has lifted holds: look again at what waits on this queue.
    pub lifts: bool,
}

/// What is known of one queue, for status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueView {
    /// Deliveries that have not ended, RabbitMQ's first.
    pub unsettled: [u64; 2],
    /// How far the last change is.
    pub fence: FenceState,
    /// Fences that are in the queue, RabbitMQ's first.
    pub fences: [u64; 2],
}
