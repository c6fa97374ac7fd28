//! The client's consumers over two sides.

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Command, Consume, Event, Outcome, Reply};
use amqp_compat::error::{AmqpError, ReplyCode};

use super::channel::{Consumer, Late, Request};
use super::delivering::report_held;
use super::engine::Engine;
use super::lane::Purpose;
use crate::control_api::Phase;
use crate::ownership::Side;

impl Engine {
    /// The consume that attaches a consumer to a side, with the credit that the side may have.
    pub(super) fn consume_command(&mut self, channel: ChannelId, tag: &ShortString, side: Side) -> Option<Command> {
        if side == Side::Nats && self.is_reply_consumer(channel, tag) {
            return None;
        }
        let consumer = self.consumer(channel, tag)?;
        if side == Side::Nats && consumer.late == Late::Waits {
            consumer.late = Late::Asked;
        }
        let credit = consumer.merge.attach(side);
        Some(Command::Consume { channel, consume: Consume { credit, ..consumer.consume.clone() } })
    }

    pub(super) fn consume_step(
        &mut self,
        side: Side,
        channel: ChannelId,
        tag: ShortString,
        mut request: Request,
        reply: Result<Reply, AmqpError>,
    ) {
        let is_lead = request.first.is_none();
        match reply {
            Ok(reply) => {
                self.consumer_began(side, channel, &tag);
                if is_lead {
                    let follower = side.other();
                    if self.half(follower).attached()
                        && let Some(command) = self.consume_command(channel, &tag, follower)
                    {
                        if self.waits_for(follower) {
                            request.waiting[follower.index()] = true;
                            request.first = Some(reply);
                            self.half_mut(follower).request(command, Purpose::Client(request.number));
                            return self.park(channel, request);
                        }
                        self.half_mut(follower).request(command, Purpose::Consume(tag.clone()));
                    }
                }
            }
            Err(error) if is_lead => {
                if let Some(open) = self.channels.get_mut(&channel) {
                    open.consumers.remove(&tag);
                }
                self.replies.cancel(channel, &tag);
                return self.answer(channel, Err(error));
            }
            Err(error) => {
                self.consumer_refused(side, channel, &tag, &error);
                if error.code != ReplyCode::NotFound && self.phase() >= Phase::Canary {
                    return self.answer(channel, Err(error));
                }
            }
        }
        self.consumer_live(channel, &tag);
    }

    /// Tells the client that its consumer began, and gives it what has come meanwhile.
    pub(super) fn consumer_live(&mut self, channel: ChannelId, tag: &ShortString) {
        self.answer(channel, Ok(Reply::Done));
        let Some(consumer) = self.consumer(channel, tag) else { return };
        consumer.live = true;
        let queue = consumer.queue.clone();
        *self.shared.order().consumers.entry(queue).or_default() += 1;
        self.pump(channel, tag);
    }

    pub(super) fn consumer_began(&mut self, side: Side, channel: ChannelId, tag: &ShortString) {
        if let Some(consumer) = self.consumer(channel, tag) {
            consumer.on[side.index()] = true;
            if side == Side::Nats && consumer.late != Late::No {
                consumer.late = Late::No;
                let queue = consumer.queue.clone();
                self.shared.mapped(&queue.vhost, "queue", &queue.queue);
            }
        }
        self.pump(channel, tag);
    }

    /// Attaches consumers to queues that JetStream did not have when they began: another connection has declared them there since.
    pub(super) fn attach_late(&mut self) {
        if !self.half(Side::Nats).attached() {
            return;
        }
        let routes = self.shared.routes.clone();
        let is_there = |c: &Consumer| {
            routes.as_ref().is_none_or(|routes| routes.declared(&c.queue.vhost, &c.queue.queue).is_some())
        };
        let now_there: Vec<(ChannelId, ShortString)> = self
            .channels
            .iter()
            .flat_map(|(id, channel)| channel.consumers.iter().map(move |(tag, consumer)| (*id, tag, consumer)))
            .filter(|(.., consumer)| consumer.live && consumer.late == Late::Waits && is_there(consumer))
            .map(|(id, tag, _)| (id, tag.clone()))
            .collect();
        for (channel, tag) in now_there {
            if let Some(command) = self.consume_command(channel, &tag, Side::Nats) {
                self.half_mut(Side::Nats).request(command, Purpose::Consume(tag));
            }
        }
    }

    pub(super) fn consumer_refused(&mut self, side: Side, channel: ChannelId, tag: &ShortString, error: &AmqpError) {
        let Some(consumer) = self.consumer(channel, tag) else { return };
        consumer.merge.detach(side);
        consumer.on[side.index()] = false;
        if side == Side::Nats {
            consumer.late = if error.code == ReplyCode::NotFound { Late::Waits } else { Late::No };
        }
        let queue = consumer.consume.queue.clone();
        if side == Side::Nats {
            let reason = format!("its consumers cannot be attached: {error}");
            self.shared.unmapped(&self.vhost, "queue", queue.as_str(), reason);
        }
    }

    /// A side ended a consumer.
    pub(super) fn consumer_ended(&mut self, side: Side, channel: ChannelId, tag: ShortString) {
        let ends_both = side == self.lead() || self.phase() >= Phase::Canary;
        let Some(open) = self.channels.get_mut(&channel) else { return };
        if !ends_both {
            if let Some(consumer) = open.consumers.get_mut(&tag) {
                consumer.on[side.index()] = false;
                self.drop_buffered(side, channel, &tag);
                self.shared.warn("nats_consumer_ended", format!("consumer {tag}: JetStream ended it"));
            }
            return;
        }
        let Some(consumer) = open.consumers.remove(&tag) else { return };
        let other = side.other();
        if self.half(other).attached() && consumer.on[other.index()] {
            let cancel = Command::Cancel { channel, consumer_tag: tag.clone() };
            self.half_mut(other).request(cancel, Purpose::Cancel(tag.clone()));
        }
        self.put_back(Some(channel), consumer);
        self.events.push_back(Event::ConsumerCancelled { channel, consumer_tag: tag });
    }

    /// Forgets what a lost or ended side had buffered for a consumer.
    pub(super) fn drop_buffered(&mut self, side: Side, channel: ChannelId, tag: &ShortString) {
        let (shared, now) = (self.shared.clone(), self.shared.now());
        let Some(consumer) = self.consumer(channel, tag) else { return };
        let mut actions = Vec::new();
        for item in consumer.merge.detach(side) {
            actions.extend(shared.order().fences.requeued(&consumer.queue, side, item.key, now));
        }
        report_held(&shared, consumer);
        shared.act(actions);
    }

    /// Ends a consumer. What it had buffered goes back into its queues; `channel` is `None` when the channel is closed,
    /// and its brokers have done that themselves.
    pub(super) fn put_back(&mut self, channel: Option<ChannelId>, mut consumer: Consumer) {
        let (shared, now) = (self.shared.clone(), self.shared.now());
        let mut actions = Vec::new();
        for (side, item) in consumer.merge.drain() {
            actions.extend(shared.order().fences.requeued(&consumer.queue, side, item.key, now));
            if let Some(channel) = channel {
                self.settle_inner(side, channel, item.inner, Outcome::Requeue);
            }
        }
        report_held(&shared, &mut consumer);
        if consumer.live {
            let mut order = shared.order();
            if let Some(count) = order.consumers.get_mut(&consumer.queue) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    order.consumers.remove(&consumer.queue);
                }
            }
        }
        shared.act(actions);
    }
}
