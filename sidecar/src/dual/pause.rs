//! Consumers that are let go of on RabbitMQ while the sidecar itself reads their queue. The client notices that nothing comes.

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Command, Message};

use super::channel::{Asked, Request};
use super::engine::Engine;
use super::lane::Purpose;
use crate::control_api::Phase;
use crate::copies::backlog::Likeness;
use crate::fence::{MessageKey, QueueName};
use crate::ownership::Side;

impl Engine {
    /// Lets go of the consumers of queues that are paused now, and attaches those again that are so no more.
    pub fn follow_pauses(&mut self) {
        if !self.half(Side::Rabbit).attached() {
            return;
        }
        let consumers: Vec<(ChannelId, ShortString)> =
            self.channels.iter().flat_map(|(id, c)| c.consumers.keys().map(|tag| (*id, tag.clone()))).collect();
        for (channel, tag) in consumers {
            let pause = self.waits_for_reading(channel, &tag);
            let Some(consumer) = self.consumer(channel, &tag) else { continue };
            match (consumer.paused, pause) {
                (false, true) if consumer.live && consumer.on[Side::Rabbit.index()] => {
                    self.pause_consumer(channel, &tag);
                    let cancel = Command::Cancel { channel, consumer_tag: tag };
                    self.half_mut(Side::Rabbit).request(cancel, Purpose::Nothing);
                }
                (true, false) => {
                    consumer.paused = false;
                    if let Some(command) = self.consume_command(channel, &tag, Side::Rabbit) {
                        self.half_mut(Side::Rabbit).request(command, Purpose::Consume(tag));
                    }
                }
                _ => {}
            }
        }
        let waiting: Vec<ChannelId> = self.channels.keys().copied().collect();
        for channel in waiting {
            let asks = |r: &mut Request| {
                r.waiting == [false, false] && matches!(r.asked, Asked::Consume(_) | Asked::Get { .. })
            };
            if let Some(request) = self.channels.get_mut(&channel).and_then(|c| c.request.take_if(asks)) {
                self.start(channel, request);
            }
        }
    }

    pub(super) fn pause_consumer(&mut self, channel: ChannelId, tag: &ShortString) {
        if let Some(consumer) = self.consumer(channel, tag) {
            (consumer.paused, consumer.on[Side::Rabbit.index()]) = (true, false);
            consumer.merge.pause(Side::Rabbit);
        }
    }

    /// Whether the queue of a consumer is paused.
    pub(super) fn waits_for_reading(&mut self, channel: ChannelId, tag: &ShortString) -> bool {
        let shared = self.shared.clone();
        self.consumer(channel, tag).is_some_and(|consumer| shared.is_paused(&consumer.queue))
    }

    /// What a delivery of RabbitMQ's without stamp is known by to its standby copy.
    pub(super) fn likeness(
        &self,
        side: Side,
        queue: &QueueName,
        key: MessageKey,
        message: &Message,
    ) -> Option<Likeness> {
        match key {
            MessageKey::Anonymous { .. } if side == Side::Rabbit && self.phase() > Phase::Observe => {
                self.shared.copies_of(side)?.likeness(queue, message)
            }
            _ => None,
        }
    }
}
