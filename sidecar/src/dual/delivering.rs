//! Deliveries of both sides: what waits for a fence, what the client gets, what is remembered of it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use amq_protocol::types::{AMQPValue, ShortString};
use amqp_compat::backend::{ChannelId, Command, Delivery, DeliveryId, Event, Message, Outcome};

use super::channel::{Consumer, Item, Open};
use super::engine::Engine;
use super::shared::Shared;
use super::stamp;
use crate::control_api::Phase;
use crate::fence::{MessageKey, QueueName};
use crate::integrity::Seen;
use crate::ownership::Side;
use crate::parity;

impl Engine {
    pub(super) fn delivered(&mut self, side: Side, channel: ChannelId, tag: ShortString, delivery: Delivery) {
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
            let (queue, now) = (consumer.queue.clone(), self.shared.now());
            let actions = self.shared.order().fences.fence_out(&queue, fence, now);
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
    pub(super) fn release(&mut self, channel: ChannelId, tag: &ShortString) {
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
