//! One side of a link: whether it is there, what is to be sent to it, and what it has to catch up with.

use std::collections::VecDeque;

use amqp_compat::backend::{ChannelId, Command, Publish, Topology};
use foldhash::{HashMap, HashMapExt};

use super::lane::{Lane, Purpose};
use crate::ownership::Side;

/// Whether a side of a link is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Its link is open.
    Attached,
    /// Its link is lost, and is to be opened again.
    Lost,
    /// RabbitMQ after `detach`.
    Gone,
}

/// One side of a link.
#[derive(Debug)]
pub struct Half {
    /// Which.
    pub side: Side,
    /// Whether it is there.
    pub presence: Presence,
    /// Grows with every loss: a delivery of an older one cannot be settled.
    pub generation: u64,
    /// One a channel.
    pub lanes: HashMap<ChannelId, Lane>,
    /// What is to be sent, in order.
    pub outbox: VecDeque<Command>,
    /// Topology to repeat once it is back.
    pub replay: VecDeque<(ChannelId, Topology)>,
    /// Publishes that it owns and that were not sent before it was lost.
    pub parked: VecDeque<Box<Publish>>,
    /// Whether it takes no publishes for now.
    pub blocked: bool,
}

impl Half {
    /// The generation of what cannot be settled any more, whatever comes.
    pub const NONE: u64 = u64::MAX;
    /// How much topology is kept for a lost side; beyond it the queues and exchanges concerned are recorded as unmapped.
    pub const REPLAY_MOST: usize = 8192;

    /// A side of a new link.
    pub fn new(side: Side, presence: Presence) -> Self {
        Self {
            side,
            presence,
            generation: 0,
            lanes: HashMap::new(),
            outbox: VecDeque::new(),
            replay: VecDeque::new(),
            parked: VecDeque::new(),
            blocked: false,
        }
    }

    /// Whether its link is open.
    pub fn attached(&self) -> bool {
        self.presence == Presence::Attached
    }

    /// Sends a request. Call only while attached.
    pub fn request(&mut self, command: Command, purpose: Purpose) {
        let lane = self.lanes.entry(command.channel()).or_default();
        lane.request(command, purpose, &mut self.outbox);
    }

    /// Sends what has no reply; nothing while it is not attached.
    pub fn tell(&mut self, command: Command) {
        if self.attached() {
            let lane = self.lanes.entry(command.channel()).or_default();
            lane.tell(command, &mut self.outbox);
        }
    }

    /// What a reply on this channel is for.
    pub fn replied(&mut self, channel: ChannelId) -> Option<Purpose> {
        self.lanes.get_mut(&channel)?.replied(&mut self.outbox)
    }

    /// How much is to be sent to it, in entries.
    pub fn backlog(&self) -> usize {
        self.outbox.len() + self.lanes.values().map(Lane::waiting).sum::<usize>()
    }

    /// Whether it has yet to be told topology that the other side has, or to answer it.
    pub fn lacks_topology(&self) -> bool {
        !self.replay.is_empty() || self.lanes.values().any(Lane::repeats)
    }

    /// Whether everything that it was told has been answered.
    pub fn caught_up(&self) -> bool {
        self.attached() && self.replay.is_empty() && self.lanes.values().all(Lane::caught_up)
    }
}
