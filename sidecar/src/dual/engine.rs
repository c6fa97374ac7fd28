//! One link: commands of the client and events of both sides in, commands to both sides and events to the client out.
//!
//! It does no I/O and never waits: [`super::link`] moves what it puts into its outboxes. RabbitMQ leads while it is
//! attached: its answers are the client's answers. What `observe` and `shadow` tell NATS is told without waiting for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use amq_protocol::types::ShortString;
use amqp_compat::backend::reply_to::ReplyConsumers;
use amqp_compat::backend::{ChannelId, Command, Event, Reply, Topology};
use amqp_compat::error::{AmqpError, ReplyCode};
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};
use tokio::sync::mpsc;

use super::channel::{Channel, Consumer, Open};
use super::half::{Half, Presence};
use super::shared::Shared;
use super::stamp;
use crate::control_api::Phase;
use crate::copies::Copied;
use crate::fence::QueueName;
use crate::ownership::Side;

/// One AMQP connection over both sides.
pub struct Engine {
    pub(super) shared: Arc<Shared>,
    pub(super) link: u64,
    pub(super) vhost: Arc<str>,
    /// RabbitMQ first.
    pub halves: [Half; 2],
    pub(super) channels: HashMap<ChannelId, Channel>,
    pub(super) unsettled: HashMap<u64, Open>,
    pub(super) next_delivery: u64,
    pub(super) next_request: u64,
    pub(super) in_flight: usize,
    /// Publishes that wait for their standby copies alone.
    pub(super) copying: usize,
    /// Where it is said that copies are stored; taken by the task of the link.
    pub(super) copied: mpsc::UnboundedSender<Copied>,
    /// The other end of it.
    pub copies: Option<mpsc::UnboundedReceiver<Copied>>,
    /// Queues and bindings that go with this link, to be made again on a side that was lost.
    pub(super) own: Vec<(ChannelId, Topology)>,
    pub(super) own_queues: HashSet<ShortString>,
    /// What the client is to be told, in order. Bounded by the client's credit, by [`Engine::IN_FLIGHT_MOST`] and by
    /// one reply a channel.
    pub events: VecDeque<Event>,
    /// Whether the last event was [`Event::Closed`].
    pub ended: bool,
    /// Who waits for direct replies on this link, and on all.
    pub(super) replies: ReplyConsumers,
    behind: bool,
    lacking: bool,
    names: HashMap<ShortString, QueueName>,
    /// By paused queue, the channels on which RabbitMQ has yet to answer, and whether it was asked.
    pub(super) returning: HashMap<QueueName, HashMap<ChannelId, bool>>,
}

impl Engine {
    /// Publishes that may be unconfirmed on one link; beyond it the client's commands wait in its socket.
    pub const IN_FLIGHT_MOST: usize = 16_384;
    /// Commands that may wait for one side; beyond it the client's commands wait, or, for NATS in `observe` and
    /// `shadow`, its link is given up and opened again.
    pub const BACKLOG_MOST: usize = 8_192;

    /// A link whose sides are in these states. `link` is unique in this run.
    pub fn new(
        shared: Arc<Shared>,
        link: u64,
        vhost: &str,
        rabbit: Presence,
        nats: Presence,
        replies: ReplyConsumers,
    ) -> Self {
        let (copied, copies) = mpsc::unbounded_channel();
        let mut engine = Self {
            copying: 0,
            copied,
            copies: Some(copies),
            shared,
            link,
            vhost: vhost.into(),
            halves: [Half::new(Side::Rabbit, rabbit), Half::new(Side::Nats, nats)],
            channels: HashMap::new(),
            unsettled: HashMap::new(),
            next_delivery: 0,
            next_request: 0,
            in_flight: 0,
            own: Vec::new(),
            own_queues: HashSet::new(),
            events: VecDeque::new(),
            ended: false,
            replies,
            behind: false,
            lacking: false,
            names: HashMap::new(),
            returning: HashMap::new(),
        };
        engine.shared.returns().opened(link, &engine.vhost);
        engine.report_behind();
        engine
    }

    /// Whether the client's next command can be taken now.
    pub fn takes_commands(&self) -> bool {
        if self.ended || self.in_flight + self.copying >= Self::IN_FLIGHT_MOST {
            return false;
        }
        self.halves.iter().all(|half| {
            let may_overflow = half.side == Side::Nats && self.phase() < Phase::Canary;
            may_overflow || half.backlog() < Self::BACKLOG_MOST
        })
    }

    /// Takes a command of the client.
    pub fn command(&mut self, command: Command) {
        let now = self.shared.now();
        match command {
            Command::Publish(publish) => self.publish(publish),
            Command::Settle { channel, deliveries, outcome } => self.settle(channel, &deliveries, outcome, now),
            Command::Credit { channel, consumer_tag, amount } => {
                if let Some(consumer) = self.consumer(channel, &consumer_tag) {
                    consumer.merge.credit(amount);
                    self.pump(channel, &consumer_tag);
                }
            }
            Command::OpenChannel { .. }
            | Command::CloseChannel { .. }
            | Command::Topology { .. }
            | Command::Consume { .. }
            | Command::Cancel { .. }
            | Command::Get { .. } => self.ask(command, now),
        }
        self.check_nats();
    }

    /// Takes an event of a side. What a link still says after it was lost is not heard.
    pub fn event(&mut self, side: Side, event: Event) {
        if !self.half(side).attached() {
            return;
        }
        match event {
            // A link that is lost answers what it has in hand with the loss, before it says that it is closed.
            Event::Reply { reply: Err(error), .. } if answers_with_loss(side, &error) => self.side_closed(side, error),
            Event::Reply { channel, reply } => self.replied(side, channel, reply),
            Event::Confirm { channel, seq, outcome } => self.confirmed(channel, seq, outcome),
            Event::Returned { channel, error, mut message } => {
                stamp::unstamp(&mut message);
                self.events.push_back(Event::Returned { channel, error, message });
            }
            Event::Delivery { channel, consumer_tag, delivery } => {
                self.delivered(side, channel, consumer_tag, *delivery)
            }
            Event::ConsumerCancelled { channel, consumer_tag } => self.consumer_ended(side, channel, consumer_tag),
            Event::ChannelFailed { channel, error } => {
                if side == Side::Rabbit
                    && let Some(open) = self.channels.get_mut(&channel)
                {
                    // It has everything of it back.
                    open.failed = true;
                }
                if side == self.lead() || self.phase() >= Phase::Canary {
                    self.events.push_back(Event::ChannelFailed { channel, error });
                } else {
                    self.shared.warn("nats_channel_failed", error.to_string());
                }
            }
            Event::Blocked { reason } => self.blocked(side, Some(reason)),
            Event::Unblocked => self.blocked(side, None),
            Event::Closed { error } => self.side_closed(side, error),
        }
        self.check_nats();
    }

    /// The side whose answers are the client's.
    pub(super) fn lead(&self) -> Side {
        if self.half(Side::Rabbit).attached() { Side::Rabbit } else { Side::Nats }
    }

    pub(super) fn half(&self, side: Side) -> &Half {
        &self.halves[side.index()]
    }

    pub(super) fn half_mut(&mut self, side: Side) -> &mut Half {
        &mut self.halves[side.index()]
    }

    pub(super) fn phase(&self) -> Phase {
        self.shared.order().phase
    }

    /// Whether the client waits for NATS as well: not before NATS owns, or has owned, anything.
    pub(super) fn waits_for(&self, side: Side) -> bool {
        let order = self.shared.order();
        side == self.lead() || order.phase >= Phase::Canary || order.nats_may_hold
    }

    pub(super) fn consumer(&mut self, channel: ChannelId, tag: &ShortString) -> Option<&mut Consumer> {
        self.channels.get_mut(&channel)?.consumers.get_mut(tag)
    }

    pub(super) fn queue_name(&mut self, queue: &ShortString) -> QueueName {
        if let Some(name) = self.names.get(queue) {
            return name.clone();
        }
        let name = QueueName { vhost: self.vhost.clone(), queue: queue.as_str().into() };
        if self.names.len() < 1024 {
            self.names.insert(queue.clone(), name.clone());
        }
        name
    }

    pub(super) fn blocked(&mut self, side: Side, reason: Option<String>) {
        // An end is heard in every phase: the beginning may have been told in another one.
        if side == Side::Nats && reason.is_some() && self.phase() < Phase::Canary {
            return;
        }
        let was = self.halves.iter().any(|h| h.blocked);
        let before = std::mem::replace(&mut self.half_mut(side).blocked, reason.is_some());
        if before != reason.is_some() {
            self.shared.meters.blocked(side, !before);
        }
        let is = self.halves.iter().any(|h| h.blocked);
        match (was, is) {
            (false, true) => self.events.push_back(Event::Blocked { reason: reason.unwrap_or_default() }),
            (true, false) => self.events.push_back(Event::Unblocked),
            (true, true) | (false, false) => {}
        }
    }

    /// Gives NATS up, to be opened again, when it cannot follow in a phase in which nobody may wait for it; and says
    /// whether this link has caught up with it.
    fn check_nats(&mut self) {
        let nats = self.half(Side::Nats);
        if nats.attached() && nats.backlog() >= Self::BACKLOG_MOST && self.phase() < Phase::Canary {
            self.shared.warn("nats_behind", "NATS did not take what it was told; its link is opened again".to_owned());
            self.lose(Side::Nats);
        }
        self.report_behind();
    }

    pub(super) fn report_behind(&mut self) {
        let nats = self.half(Side::Nats);
        let now = [!self.ended && !nats.caught_up(), !self.ended && nats.lacks_topology()];
        let Self { shared, behind, lacking, .. } = self;
        for (count, was, is) in [(&shared.behind, behind, now[0]), (&shared.lacking, lacking, now[1])] {
            match (std::mem::replace(was, is), is) {
                (false, true) => drop(count.fetch_add(1, Ordering::Relaxed)),
                (true, false) => drop(count.fetch_sub(1, Ordering::Relaxed)),
                (true, true) | (false, false) => {}
            }
        }
    }

    /// Tells the client the answer to its request.
    pub(super) fn answer(&mut self, channel: ChannelId, reply: Result<Reply, AmqpError>) {
        self.events.push_back(Event::Reply { channel, reply });
    }
}

/// Whether a side answers a request like this only because its link has ended. JetStream refuses a request with
/// `InternalError` when it did not answer in time; RabbitMQ closes its connection with it.
fn answers_with_loss(side: Side, error: &AmqpError) -> bool {
    match error.code {
        ReplyCode::ConnectionForced => true,
        ReplyCode::InternalError => side == Side::Rabbit,
        _ => false,
    }
}
