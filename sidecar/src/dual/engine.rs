//! One link: commands of the client and events of both sides in, commands to both sides and events to the client out.
//!
//! It does no I/O and never waits: [`super::link`] moves what it puts into its outboxes. RabbitMQ leads while it is
//! attached: its answers are the client's answers. What `observe` and `shadow` tell NATS is told without waiting for it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amq_protocol::types::{AMQPValue, ShortString};
use amqp_compat::backend::reply_to::ReplyConsumers;
use amqp_compat::backend::{
    ChannelId, Command, Delivery, DeliveryId, Event, Message, Outcome, Publish, PublishOutcome, Reply, Topology,
};
use amqp_compat::error::{AmqpError, ReplyCode};
use smallvec::SmallVec;
use tokio::sync::mpsc;

use super::channel::{Channel, Consumer, Copying, InFlight, Item, Open};
use super::half::{Half, Presence};
use super::shared::{Shared, Why};
use super::stamp;
use crate::control_api::Phase;
use crate::copies::{Copied, Waiter};
use crate::fence::{MessageKey, QueueName};
use crate::integrity::Seen;
use crate::ownership::Side;
use crate::parity;

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
    in_flight: usize,
    /// Publishes that wait for their standby copies alone.
    pub(super) copying: usize,
    /// Where it is said that copies are stored; taken by the task of the link.
    copied: mpsc::UnboundedSender<Copied>,
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

    /// Looks again at what waits for fences, after holds were lifted.
    pub fn lifted(&mut self) {
        let waiting: Vec<(ChannelId, ShortString)> = self
            .channels
            .iter()
            .flat_map(|(id, c)| {
                c.consumers.iter().filter(|(_, c)| c.merge.held() > 0).map(|(tag, _)| (*id, tag.clone()))
            })
            .collect();
        for (channel, tag) in waiting {
            self.release(channel, &tag);
            self.pump(channel, &tag);
        }
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

    fn publish(&mut self, mut publish: Box<Publish>) {
        let (channel, seq) = (publish.channel, publish.seq);
        if !self.channels.contains_key(&channel) {
            return;
        }
        if let Some(name) = stamp::reserved(&publish.message) {
            let text = format!("the header '{name}' is reserved for the bridge; publish without it");
            return self.refuse_publish(channel, seq, AmqpError::new(ReplyCode::PreconditionFailed, text));
        }
        let Ok(named) = self.reply_names(&publish) else { return };
        let shared = Arc::clone(&self.shared);
        if shared.nats_is_lost() {
            // What waits for NATS comes first, once it has another owner.
            self.detach_nats();
        }
        let bucket = shared.bucket(&publish.message);
        let rabbit = self.half(Side::Rabbit).attached();
        let mut why = None;
        let taken = shared.publish(bucket, || {
            why = if rabbit { shared.only_for_rabbit(&self.vhost, &publish.message) } else { None };
            why.is_some()
        });
        let missed = (why == Some(Why::NoExchange)).then(|| publish.message.exchange.clone());
        let id = shared.ids.next();
        if let Some(named) = named
            && taken.is_none_or(|(_, stamp)| stamp.owner == Side::Nats)
        {
            publish.message.properties = named;
        }
        let traced = taken.map_or(Side::Nats, |(_, stamp)| stamp.owner);
        let span = shared.traces.as_ref().and_then(|traces| traces.publish(&self.vhost, &publish.message, traced));
        let mut copying = false;
        let owner = match taken {
            None => Side::Nats,
            Some((phase, taken)) => {
                if phase == Phase::Shadow
                    && taken.owner == Side::Rabbit
                    && let Some(shadow) = &shared.shadow
                {
                    let behind = shared.behind() > 0;
                    shadow.published(&self.vhost, id, taken.epoch, &publish.message, behind);
                }
                let copies = shared.copies_of(taken.owner).filter(|_| has_copies(phase));
                if taken.owner == Side::Nats || copies.is_some() {
                    let (queues, others) = shared.queues_of(&self.vhost, &publish.message);
                    if taken.owner == Side::Nats {
                        self.remember(id, channel, &publish.message, &queues);
                    }
                    if let Some(copies) = copies {
                        // In `shadow` nobody waits for NATS.
                        let waiter = Waiter { to: self.copied.clone(), copied: Copied { channel, seq, id } };
                        let waiter = (phase != Phase::Shadow).then_some(waiter);
                        copying = copies.keep(&queues, id, taken.epoch, &publish.message, waiter);
                        if let Some(why) = others.filter(|_| taken.owner == Side::Rabbit) {
                            copies.cannot_keep(id, why);
                        }
                    }
                }
                stamp::stamp(&mut publish.message, id, taken.epoch);
                taken.owner
            }
        };
        if let Some(open) = self.channels.get_mut(&channel) {
            let since = shared.now();
            let stamp = taken.map(|(_, stamp)| stamp);
            open.publishes.insert(seq, InFlight { stamp, id, since, missed, copying, span });
            self.in_flight += 1;
        }
        let half = self.half_mut(owner);
        if half.attached() {
            half.tell(Command::Publish(publish));
        } else {
            half.parked.push_back(publish);
        }
    }

    fn confirmed(&mut self, channel: ChannelId, seq: u64, outcome: PublishOutcome) {
        let Some(mut in_flight) = self.channels.get_mut(&channel).and_then(|c| c.publishes.remove(&seq)) else {
            return;
        };
        let owner = in_flight.stamp.map_or(Side::Nats, |stamp| stamp.owner);
        match outcome {
            PublishOutcome::Stored => {
                self.shared.meters.confirmed(owner, self.shared.now().saturating_sub(in_flight.since));
            }
            PublishOutcome::Failed => self.shared.meters.failed(owner),
        }
        let copying = in_flight.copying && outcome == PublishOutcome::Stored;
        let waits = copying.then(|| Copying { id: in_flight.id, span: in_flight.span.take() });
        self.publish_ended(in_flight, outcome);
        match waits.and_then(|waits| Some((self.channels.get_mut(&channel)?, waits))) {
            Some((open, mut waits)) => {
                if let Some(span) = &mut waits.span {
                    span.event("stored by its owner");
                }
                open.copying.insert(seq, waits);
                self.copying += 1;
            }
            None => self.events.push_back(Event::Confirm { channel, seq, outcome }),
        }
    }

    /// The standby copies of a publish are stored, or given up.
    pub fn copied(&mut self, Copied { channel, seq, id }: Copied) {
        let Some(open) = self.channels.get_mut(&channel) else { return };
        // The number may be another publish's: its channel was opened again.
        if let Some(in_flight) = open.publishes.get_mut(&seq).filter(|in_flight| in_flight.id == id) {
            in_flight.copying = false;
            if let Some(span) = &mut in_flight.span {
                span.event("standby copy stored");
            }
        } else if open.copying.get(&seq).is_some_and(|waits| waits.id == id) {
            if let Some(Copying { span: Some(mut span), .. }) = open.copying.remove(&seq) {
                span.event("standby copy stored");
                span.outcome("confirmed");
            }
            self.copying -= 1;
            self.events.push_back(Event::Confirm { channel, seq, outcome: PublishOutcome::Stored });
        }
    }

    /// A publish needs no confirm any more.
    pub(super) fn publish_ended(&mut self, mut in_flight: InFlight, outcome: PublishOutcome) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(span) = &mut in_flight.span {
            match outcome {
                PublishOutcome::Stored => span.outcome("confirmed"),
                PublishOutcome::Failed => span.failed("not confirmed"),
            }
        }
        if let Some(stamp) = in_flight.stamp {
            let actions = self.shared.order().fences.published(stamp);
            self.shared.act(actions);
            let stored = outcome == PublishOutcome::Stored;
            if stamp.owner == Side::Nats {
                self.shared.integrity().confirmed(in_flight.id, stored, self.shared.now());
            }
            if let Some(copies) = self.shared.copies_of(stamp.owner) {
                copies.answered(in_flight.id, stored);
            }
        }
        // Declared meanwhile, it is not missed any more.
        if outcome == PublishOutcome::Stored
            && let Some(exchange) = &in_flight.missed
            && self.shared.lacks_exchange(&self.vhost, exchange)
        {
            let reason = "published to, and not in JetStream: let the application that owns it declare it";
            self.shared.unmapped(&self.vhost, "exchange", exchange.as_str(), reason);
        }
        if outcome == PublishOutcome::Failed
            && let Some(shadow) = &self.shared.shadow
        {
            shadow.failed(in_flight.id);
        }
    }

    fn delivered(&mut self, side: Side, channel: ChannelId, tag: ShortString, delivery: Delivery) {
        if delivery.id == DeliveryId::DIRECT {
            return self.direct_reply(channel, tag, delivery);
        }
        let inner = delivery.id;
        let live = self.consumer(channel, &tag).is_some_and(|c| c.on[side.index()]);
        if !live {
            self.settle_inner(side, channel, inner, Outcome::Requeue);
            return;
        }
        if let Some(fence) = stamp::is_fence(&delivery.message) {
            self.settle_inner(side, channel, inner, Outcome::Ack);
            let Some(consumer) = self.consumer(channel, &tag) else { return };
            consumer.merge.fence(side);
            let queue = consumer.queue.clone();
            let actions = self.shared.order().fences.fence_out(&queue, fence);
            self.shared.act(actions);
            self.release(channel, &tag);
            self.pump(channel, &tag);
            return;
        }
        let mut item = self.item(side, delivery);
        self.died_elsewhere(side, channel, &tag, &item);
        self.release(channel, &tag);
        let (shared, now) = (Arc::clone(&self.shared), self.shared.now());
        let Some(consumer) = self.consumer(channel, &tag) else { return };
        let (received, phase) = {
            let mut order = shared.order();
            let phase = order.phase;
            (order.fences.received(&consumer.queue, side, item.key, item.bucket, item.epoch, now), phase)
        };
        item.span = shared.delivery_span(&consumer.queue, side, &item.message, item.redelivered);
        if phase == Phase::Shadow
            && side == Side::Rabbit
            && let (Some(shadow), MessageKey::Stamped(id)) = (&shared.shadow, item.key)
        {
            shadow.delivered(&consumer.queue, id, item.epoch, &item.message, item.redelivered);
        }
        consumer.merge.received(side, received.place, received.waits, item);
        report_held(&shared, consumer);
        if received.lifts {
            shared.look_again();
            self.release(channel, &tag);
        }
        self.pump(channel, &tag);
    }

    /// What was received, without its stamp.
    pub(super) fn item(&self, side: Side, delivery: Delivery) -> Item {
        let Delivery { id: inner, redelivered, ack_timeout, mut message } = delivery;
        let read = stamp::unstamp(&mut message);
        let bucket = self.shared.bucket(&message);
        let generation = self.half(side).generation;
        let key = match read.id {
            Some(id) => MessageKey::Stamped(id),
            // Both sides may use the same numbers; a generation begins them again.
            None => MessageKey::Anonymous { link: self.link << 16 | (generation & 0xffff), delivery: inner.0 },
        };
        let redelivered = redelivered || read.again;
        Item { inner, generation, redelivered, ack_timeout, message, key, bucket, epoch: read.epoch, span: None }
    }

    /// The queues that have dead-lettered a message: their standby copies are over when it is settled.
    pub(super) fn died_in(&self, side: Side, message: &Message) -> Vec<Arc<str>> {
        if self.shared.copies_of(side).is_none() {
            return Vec::new();
        }
        let deaths = message.properties.headers().as_ref().and_then(|table| table.inner().get("x-death"));
        let Some(AMQPValue::FieldArray(deaths)) = deaths else { return Vec::new() };
        let queue = |death: &AMQPValue| match death {
            AMQPValue::FieldTable(death) => match death.inner().get("queue") {
                Some(AMQPValue::LongString(queue)) => std::str::from_utf8(queue.as_bytes()).ok().map(Arc::from),
                _ => None,
            },
            _ => None,
        };
        deaths.as_slice().iter().filter_map(queue).collect()
    }

    /// A dead letter has ended in the queue where it died, also when a consumer had given it back there and a change of weight waits for it.
    fn died_elsewhere(&mut self, side: Side, channel: ChannelId, tag: &ShortString, item: &Item) {
        for queue in self.died_in(side, &item.message) {
            let name = QueueName { vhost: self.vhost.clone(), queue };
            if self.consumer(channel, tag).is_some_and(|consumer| consumer.queue != name) {
                let actions = self.shared.order().fences.settled(&name, side, item.key);
                self.shared.act(actions);
            }
        }
    }

    /// Looks again at what waits in one consumer, if any hold was lifted since it last did.
    fn release(&mut self, channel: ChannelId, tag: &ShortString) {
        let (shared, now) = (Arc::clone(&self.shared), self.shared.now());
        let Some(consumer) = self.consumer(channel, tag) else { return };
        if consumer.merge.held() == 0 {
            return;
        }
        let mut order = shared.order();
        let lifted = order.fences.lifted();
        if consumer.lifted != lifted {
            consumer.lifted = lifted;
            let Consumer { merge, queue, .. } = consumer;
            merge.release(|side, item| order.fences.must_wait(queue, side, item.bucket, item.epoch, now));
        }
        drop(order);
        report_held(&shared, consumer);
    }

    /// Gives the client what it may have, and each side the credit that this frees.
    pub(super) fn pump(&mut self, channel: ChannelId, tag: &ShortString) {
        loop {
            let consumer = self.channels.get_mut(&channel).and_then(|c| c.consumers.get_mut(tag));
            let Some(consumer) = consumer.filter(|consumer| consumer.live) else { return };
            let Some((side, mut item)) = consumer.merge.pop() else { break };
            let queue = consumer.queue.clone();
            if let Some(span) = &mut item.span {
                span.event("given to the application");
            }
            let died_in = self.died_in(side, &item.message);
            self.next_delivery += 1;
            let id = DeliveryId(self.next_delivery);
            let open = Open {
                channel,
                tag: Some(tag.clone()),
                queue: queue.clone(),
                side,
                generation: item.generation,
                inner: item.inner,
                key: item.key,
                died_in,
                likeness: self.likeness(side, &queue, item.key, &item.message),
                span: item.span,
            };
            self.unsettled.insert(id.0, open);
            self.shared.delivered[side.index()].fetch_add(1, Ordering::Relaxed);
            if let (Side::Nats, MessageKey::Stamped(id)) = (side, item.key) {
                let only = Reader { link: self.link, channel, tag: Some(tag) };
                look_at(&self.shared, &queue, id, item.redelivered, &item.message, only);
            }
            let Item { redelivered, ack_timeout, message, .. } = item;
            let delivery = Box::new(Delivery { id, redelivered, ack_timeout, message });
            self.events.push_back(Event::Delivery { channel, consumer_tag: tag.clone(), delivery });
        }
        let Some(consumer) = self.channels.get_mut(&channel).and_then(|c| c.consumers.get_mut(tag)) else { return };
        for side in Side::BOTH {
            let amount = consumer.merge.grant(side);
            if amount > 0 {
                self.halves[side.index()].tell(Command::Credit { channel, consumer_tag: tag.clone(), amount });
            }
        }
    }

    fn settle(&mut self, channel: ChannelId, deliveries: &[DeliveryId], outcome: Outcome, now: Duration) {
        let mut run: Option<(Side, SmallVec<[DeliveryId; 1]>)> = None;
        let mut touched: SmallVec<[ShortString; 2]> = SmallVec::new();
        let mut actions = Vec::new();
        let mut rejected = [0, 0];
        for id in deliveries {
            let Some(mut open) = self.unsettled.remove(&id.0) else { continue };
            if let Some(tag) = open.tag {
                if let Some(consumer) = self.channels.get_mut(&channel).and_then(|c| c.consumers.get_mut(&tag)) {
                    consumer.merge.settled(open.side);
                }
                if !touched.contains(&tag) {
                    touched.push(tag);
                }
            }
            let half = &self.halves[open.side.index()];
            if !half.attached() || half.generation != open.generation {
                // Its side was lost meanwhile and has it back in its queue: it will come again, as redelivered.
                continue;
            }
            if let Some(span) = &mut open.span {
                span.outcome(match outcome {
                    Outcome::Ack => "acknowledged",
                    Outcome::Reject => "rejected",
                    Outcome::Requeue => "requeued",
                });
            }
            rejected[open.side.index()] += u64::from(outcome == Outcome::Reject);
            if outcome != Outcome::Requeue
                && open.side == Side::Rabbit
                && let (Some(shadow), MessageKey::Stamped(id)) = (&self.shared.shadow, open.key)
            {
                shadow.settled(&open.queue, id);
            }
            if outcome != Outcome::Requeue
                && let (Some(copies), MessageKey::Stamped(id)) = (self.shared.copies_of(open.side), open.key)
            {
                copies.settled(&open.queue, id, outcome == Outcome::Reject, &open.died_in);
            }
            if outcome != Outcome::Requeue
                && let (Some(copies), Some(likeness)) = (self.shared.copies_of(open.side), open.likeness)
            {
                copies.settled_alike(&open.queue, likeness, outcome == Outcome::Reject);
            }
            let mut order = self.shared.order();
            actions.extend(match outcome {
                Outcome::Ack | Outcome::Reject => order.fences.settled(&open.queue, open.side, open.key),
                Outcome::Requeue => order.fences.requeued(&open.queue, open.side, open.key, now),
            });
            drop(order);
            match &mut run {
                Some((side, ids)) if *side == open.side => ids.push(open.inner),
                _ => {
                    let next = (open.side, SmallVec::from_elem(open.inner, 1));
                    if let Some((side, deliveries)) = run.replace(next) {
                        self.halves[side.index()].tell(Command::Settle { channel, deliveries, outcome });
                    }
                }
            }
        }
        if let Some((side, deliveries)) = run {
            self.half_mut(side).tell(Command::Settle { channel, deliveries, outcome });
        }
        self.shared.act(actions);
        for side in Side::BOTH.into_iter().filter(|side| rejected[side.index()] > 0) {
            self.shared.meters.rejected(side, rejected[side.index()]);
        }
        for tag in touched {
            self.release(channel, &tag);
            self.pump(channel, &tag);
        }
    }

    /// Settles a delivery that the client never saw.
    pub(super) fn settle_inner(&mut self, side: Side, channel: ChannelId, inner: DeliveryId, outcome: Outcome) {
        self.half_mut(side).tell(Command::Settle { channel, deliveries: SmallVec::from_elem(inner, 1), outcome });
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

    /// Remembers what is given to JetStream, to be looked at when it comes back.
    fn remember(&self, id: u128, channel: ChannelId, message: &Message, queues: &[QueueName]) {
        if queues.is_empty() {
            return;
        }
        let mut flow = DefaultHasher::new();
        (self.link, channel, message.exchange.as_str(), message.routing_key.as_str()).hash(&mut flow);
        message.properties.priority().hash(&mut flow);
        let (digest, expires) = (parity::digest(message), message.properties.expiration().is_some());
        self.shared.integrity().published(id, digest, flow.finish(), queues, expires);
    }

    /// Tells the client the answer to its request.
    pub(super) fn answer(&mut self, channel: ChannelId, reply: Result<Reply, AmqpError>) {
        self.events.push_back(Event::Reply { channel, reply });
    }
}

/// Whether what is published has copies.
fn has_copies(phase: Phase) -> bool {
    matches!(phase, Phase::Shadow | Phase::Canary | Phase::Cutover)
}

/// Who got a delivery.
pub(super) struct Reader<'a> {
    pub link: u64,
    pub channel: ChannelId,
    /// `None` for a get.
    pub tag: Option<&'a ShortString>,
}

/// Looks at a message that JetStream gave back.
pub(super) fn look_at(
    shared: &Shared,
    queue: &QueueName,
    id: u128,
    redelivered: bool,
    message: &Message,
    reader: Reader<'_>,
) {
    if message.properties.headers().as_ref().is_some_and(|table| table.contains_key("x-death")) {
        return shared.integrity().not_judged(queue, id);
    }
    let digest = parity::digest(message);
    let alone = shared.order().consumers.get(queue).is_some_and(|consumers| *consumers == 1);
    let consumer = reader.tag.filter(|_| alone).map(|tag| {
        let mut name = DefaultHasher::new();
        (reader.link, reader.channel, tag.as_str()).hash(&mut name);
        name.finish()
    });
    shared.integrity().delivered(queue, Seen { id, digest, redelivered, consumer });
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

/// Keeps the count of what waits in a queue up to date.
pub(super) fn report_held(shared: &Shared, consumer: &mut Consumer) {
    let held = consumer.merge.held();
    if held == consumer.held {
        return;
    }
    let mut order = shared.order();
    let count = order.held.entry(consumer.queue.clone()).or_default();
    *count = (*count + held as u64).saturating_sub(consumer.held as u64);
    if *count == 0 {
        order.held.remove(&consumer.queue);
    }
    consumer.held = held;
}
