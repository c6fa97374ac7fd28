//! Deliveries: consumers, gets, and what is held, written or cancelled.

use super::*;

impl Channel {
    pub(super) fn consume(&mut self, consume: basic::Consume, shared: &mut Shared) -> Result<(), Fault> {
        const METHOD: (u16, u16) = (60, 20);
        let queue = topology::named(consume.queue, self.last_queue.as_ref()).map_err(|e| Fault::of(e, METHOD))?;
        shared.next_key += 1;
        let key = shared.next_key;
        let tag = if consume.consumer_tag.as_str().is_empty() {
            ShortString::from(format!("amq.ctag-{}{key:08x}", shared.tag_prefix))
        } else {
            consume.consumer_tag
        };
        if self.consumers.contains(&tag) {
            let text = format!("attempt to reuse consumer tag '{tag}'");
            return Err(Fault::of(AmqpError::new(ReplyCode::NotAllowed, text), METHOD));
        }
        let credit = self.consumers.add(key, tag.clone(), consume.no_ack);
        shared.counts.consumers += 1;
        let asked = Consume {
            queue,
            consumer_tag: tag.clone(),
            exclusive: consume.exclusive,
            no_ack: consume.no_ack,
            credit,
            prefetch: self.consumers.next_prefetch,
            no_limit: self.consumers.is_unlimited(key),
            arguments: consume.arguments,
        };
        self.consumers.note(key, &asked);
        let command = Command::Consume { channel: self.id, consume: asked };
        self.ask(command, Kind::Consume { tag }, METHOD, consume.nowait, shared);
        Ok(())
    }

    pub(super) fn got(&mut self, delivery: Delivery, message_count: u32, no_ack: bool, shared: &mut Shared) {
        let Delivery { id, redelivered, ack_timeout, message } = delivery;
        let Message { exchange, routing_key, properties, body } = message;
        let delivery_tag = if no_ack {
            self.note(Sent { generation: shared.generation, settle: Some(id), consumer: None }, shared);
            self.unacked.tag()
        } else {
            self.await_settlement(id, None, ack_timeout, shared)
        };
        let ok = basic::GetOk { delivery_tag, redelivered, exchange, routing_key, message_count };
        self.tell(basic::AMQPMethod::GetOk(ok), shared);
        shared.output.content(self.id, &properties, &body, shared.frame_max);
        shared.counts.delivered += 1;
    }

    /// Takes a delivery to a consumer.
    pub(in crate::session) fn deliver(&mut self, tag: &ShortString, delivery: Box<Delivery>, shared: &mut Shared) {
        if self.phase != Phase::Open {
            // Closing the channel requeues it.
            return;
        }
        match self.consumers.arrived(tag) {
            Some((key, true)) if delivery.id != DeliveryId::DIRECT => self.consumers.hold(key, delivery),
            Some((key, _)) => self.write(key, *delivery, shared),
            None if delivery.id == DeliveryId::DIRECT => {}
            None => {
                self.strays.push(delivery.id);
                self.touch(shared);
            }
        }
    }

    pub(super) fn write(&mut self, key: u32, delivery: Delivery, shared: &mut Shared) {
        let Some(consumer) = self.consumers.get(key) else { return };
        let (no_ack, tag) = (consumer.no_ack, consumer.tag.clone());
        let Delivery { id, redelivered, ack_timeout, message } = delivery;
        let delivery_tag = match no_ack {
            // As in RabbitMQ, where a direct reply says the next tag and leaves it to the next delivery.
            _ if id == DeliveryId::DIRECT => self.unacked.next_tag(),
            true => self.unacked.tag(),
            false => self.await_settlement(id, Some(key), ack_timeout, shared),
        };
        if self.consumers.sent(key) || no_ack {
            let settle = (no_ack && id != DeliveryId::DIRECT).then_some(id);
            self.note(Sent { generation: shared.generation, settle, consumer: Some(key) }, shared);
        }
        let Message { exchange, routing_key, properties, body } = message;
        let deliver = basic::Deliver { consumer_tag: tag, delivery_tag, redelivered, exchange, routing_key };
        self.tell(basic::AMQPMethod::Deliver(deliver), shared);
        shared.output.content(self.id, &properties, &body, shared.frame_max);
        shared.counts.delivered += 1;
    }

    /// Gives out a tag for a delivery that the client is to settle, by now and `ack_timeout`.
    fn await_settlement(
        &mut self,
        id: DeliveryId,
        consumer: Option<u32>,
        ack_timeout: Option<Duration>,
        shared: &mut Shared,
    ) -> u64 {
        let due = Due::from_now(shared.now, ack_timeout);
        shared.overdue.add(due);
        self.unacked.add(Entry { id, consumer, due })
    }

    /// Sends what the channel's prefetch held back and now lets through.
    pub(super) fn release(&mut self, shared: &mut Shared) {
        while let Some((key, delivery)) = self.consumers.release() {
            self.write(key, *delivery, shared);
        }
    }

    /// Removes a consumer; what was held for it goes back to its queue.
    pub(super) fn forget(&mut self, tag: &ShortString, shared: &mut Shared) {
        self.strays.extend(self.consumers.remove(tag));
        shared.counts.consumers -= 1;
        // Others may have waited behind them.
        self.release(shared);
        self.touch(shared);
    }

    /// The broker ended a consumer.
    pub(in crate::session) fn cancelled(&mut self, tag: ShortString, shared: &mut Shared) {
        if self.phase != Phase::Open || !self.consumers.contains(&tag) {
            return;
        }
        if self.request.is_some() {
            self.ended.push(tag);
            return;
        }
        self.forget(&tag, shared);
        if shared.capabilities.consumer_cancel_notify {
            self.tell(basic::AMQPMethod::Cancel(basic::Cancel { consumer_tag: tag, nowait: true }), shared);
        }
    }

    /// Tells the client of consumers that ended during the last request.
    pub(super) fn tell_ended(&mut self, shared: &mut Shared) {
        for tag in std::mem::take(&mut self.ended) {
            self.cancelled(tag, shared);
        }
    }

    /// All bytes of the generations before `shared.generation` are written.
    pub(in crate::session) fn written(&mut self, shared: &mut Shared) {
        while let Some(sent) = self.sent.pop_front_if(|sent| sent.generation < shared.generation) {
            self.done.extend(sent.settle);
            if let Some(key) = sent.consumer {
                self.consumers.written(key);
            }
        }
        self.touch(shared);
        if !self.sent.is_empty() {
            shared.unwritten.push(self.id);
        }
    }

    pub(super) fn note(&mut self, sent: Sent, shared: &mut Shared) {
        if self.sent.is_empty() {
            shared.unwritten.push(self.id);
        }
        self.sent.push_back(sent);
    }
}
