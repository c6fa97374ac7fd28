//! `basic.get` over two sides: the side that keys moved away from is asked first, and nothing that waits is skipped.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Command, Delivery, DeliveryId, Got, Outcome, QueueDeclare, Reply, Topology};
use amqp_compat::error::AmqpError;

use super::channel::{Asked, Open, Request};
use super::delivering::{Reader, look_at};
use super::engine::Engine;
use super::lane::Purpose;
use super::stamp;
use crate::control_api::Phase;
use crate::fence::{MessageKey, QueueName};
use crate::ownership::Side;

impl Engine {
    pub(super) fn get_next(&mut self, channel: ChannelId, mut request: Request) {
        let Asked::Get { queue, next, .. } = &mut request.asked else { return };
        // One that was lost since has nothing to give.
        next.retain(|side| self.half(*side).attached());
        let Some(side) = next.front().copied() else {
            return self.answer(channel, Ok(Reply::Got(None)));
        };
        if side == Side::Rabbit && self.shared.is_paused(queue) {
            // Until the sidecar has read it.
            return self.park(channel, request);
        }
        next.pop_front();
        let queue = ShortString::from(&*queue.queue);
        request.waiting[side.index()] = true;
        self.half_mut(side).request(Command::Get { channel, queue }, Purpose::Client(request.number));
        self.park(channel, request);
    }

    pub(super) fn get_step(
        &mut self,
        side: Side,
        channel: ChannelId,
        mut request: Request,
        reply: Result<Reply, AmqpError>,
    ) {
        let lead = self.lead();
        let Asked::Get { queue, next, got } = &mut request.asked else { return };
        if let Some(mut got) = got.take() {
            // The other side's count; without one, what is known.
            if let Ok(Reply::Queue { message_count, .. }) = reply {
                got.message_count = got.message_count.saturating_add(message_count);
            }
            return self.answer(channel, Ok(Reply::Got(Some(got))));
        }
        let got = match reply {
            Ok(Reply::Got(Some(got))) => got,
            Err(error) if side == lead => return self.answer(channel, Err(error)),
            Ok(_) | Err(_) => return self.get_next(channel, request),
        };
        if let Some(fence) = stamp::is_fence(&got.delivery.message) {
            next.push_front(side);
            let actions = self.shared.order().fences.fence_out(queue, fence, self.shared.now());
            self.settle_inner(side, channel, got.delivery.id, Outcome::Ack);
            self.shared.act(actions);
            return self.get_next(channel, request);
        }
        next.retain(|side| self.half(*side).attached());
        let (queue, other) = (queue.clone(), next.pop_front());
        match self.take(side, channel, &queue, got.delivery) {
            None => self.answer(channel, Ok(Reply::Got(None))),
            Some(delivery) => {
                let got = Box::new(Got { delivery, message_count: got.message_count });
                let Some(other) = other else { return self.answer(channel, Ok(Reply::Got(Some(got)))) };
                let declare = QueueDeclare::passive(ShortString::from(&*queue.queue));
                let command = Command::Topology { channel, request: Topology::QueueDeclare(declare) };
                request.asked = Asked::Get { queue, next: VecDeque::new(), got: Some(got) };
                request.waiting[other.index()] = true;
                self.half_mut(other).request(command, Purpose::Client(request.number));
                self.park(channel, request);
            }
        }
    }

    /// Takes a delivery for a get; one that has to wait for a fence goes back.
    fn take(&mut self, side: Side, channel: ChannelId, queue: &QueueName, delivery: Delivery) -> Option<Delivery> {
        let now = self.shared.now();
        let item = self.item(side, delivery);
        let (received, phase) = {
            let mut order = self.shared.order();
            (order.fences.received(queue, side, item.key, item.bucket, item.epoch, now), order.phase)
        };
        if phase == Phase::Shadow
            && side == Side::Rabbit
            && let (Some(shadow), MessageKey::Stamped(id)) = (&self.shared.shadow, item.key)
        {
            shadow.delivered(queue, id, item.epoch, &item.message, item.redelivered);
        }
        if received.lifts {
            self.shared.look_again();
        }
        if received.waits {
            let actions = self.shared.order().fences.requeued(queue, side, item.key, now);
            self.shared.act(actions);
            self.settle_inner(side, channel, item.inner, Outcome::Requeue);
            return None;
        }
        self.shared.delivered[side.index()].fetch_add(1, Ordering::Relaxed);
        if let (Side::Nats, MessageKey::Stamped(id)) = (side, item.key) {
            let reader = Reader { link: self.link, channel, tag: None };
            look_at(&self.shared, queue, id, item.redelivered, &item.message, reader);
        }
        self.next_delivery += 1;
        let id = DeliveryId(self.next_delivery);
        let (inner, generation, key) = (item.inner, item.generation, item.key);
        let died_in = self.died_in(side, &item.message);
        let likeness = self.likeness(side, queue, key, &item.message);
        let span = self.shared.delivery_span(queue, side, &item.message, item.redelivered);
        let queue = queue.clone();
        let open = Open { channel, tag: None, queue, side, generation, inner, key, died_in, likeness, span };
        self.unsettled.insert(id.0, open);
        Some(Delivery { id, redelivered: item.redelivered, ack_timeout: item.ack_timeout, message: item.message })
    }
}
