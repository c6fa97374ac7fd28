//! Consumers that are let go of on RabbitMQ while the sidecar itself reads their queue, and the question whether RabbitMQ has taken what they
//! gave back. The client notices that nothing comes.

use amq_protocol::types::ShortString;
use amqp_compat::backend::{ChannelId, Command, Message, QueueDeclare, Topology};
use foldhash::HashMap;

use super::channel::{Asked, Consumer, Request};
use super::engine::Engine;
use super::lane::{Lane, Purpose};
use crate::control_api::Phase;
use crate::copies::backlog::Likeness;
use crate::fence::{MessageKey, QueueName};
use crate::ownership::Side;

impl Engine {
    /// Lets go of the consumers of queues that are paused now, and attaches those again that are so no more.
    pub fn follow_pauses(&mut self) {
        if !self.half(Side::Rabbit).attached() {
            return self.ask_back();
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
        self.ask_back();
    }

    /// Asks RabbitMQ something on each channel that was given anything of a paused queue, once nothing more of it can be settled there: when
    /// it answers, it has taken everything that was sent before.
    fn ask_back(&mut self) {
        let paused = self.shared.returns().of_link(self.link);
        self.returning.retain(|queue, _| paused.contains(queue));
        for queue in paused {
            let attached = self.half(Side::Rabbit).attached();
            let channels = &self.channels;
            // Without RabbitMQ there is nobody to ask, and a channel that it has closed has nothing.
            let read = || channels.iter().filter(|(_, c)| attached && !c.failed && c.read.has(&queue));
            let open =
                self.returning.entry(queue.clone()).or_insert_with(|| read().map(|(id, _)| (*id, false)).collect());
            open.retain(|id, _| attached && channels.get(id).is_some_and(|channel| !channel.failed));
            let unasked: Vec<ChannelId> = open.iter().filter(|(_, asked)| !**asked).map(|(id, _)| *id).collect();
            let in_hand = self.shared.order().fences.view(&queue).map_or(0, |view| view.unsettled[0]);
            for channel in unasked {
                if in_hand == 0 && self.has_let_go(channel, &queue) {
                    let declare = QueueDeclare::passive(ShortString::from(&*queue.queue));
                    let command = Command::Topology { channel, request: Topology::QueueDeclare(declare) };
                    self.half_mut(Side::Rabbit).request(command, Purpose::Returned(queue.clone()));
                    self.returning.entry(queue.clone()).or_default().insert(channel, true);
                }
            }
            self.report_returned(&queue);
        }
    }

    /// Whether a channel can be given nothing more of a paused queue: nothing is in RabbitMQ's hands that could bring it.
    fn has_let_go(&self, channel: ChannelId, queue: &QueueName) -> bool {
        let idle = self.half(Side::Rabbit).lanes.get(&channel).is_none_or(Lane::idle);
        let Some(open) = self.channels.get(&channel) else { return false };
        let consumes = |c: &Consumer| c.on[Side::Rabbit.index()] && c.queue == *queue;
        let closes = open.request.as_ref().is_some_and(|request| matches!(request.asked, Asked::Close));
        idle && !closes && !open.consumers.values().any(consumes)
    }

    /// RabbitMQ has answered on a channel.
    pub(super) fn returned(&mut self, channel: ChannelId, queue: &QueueName) {
        if let Some(open) = self.returning.get_mut(queue) {
            open.remove(&channel);
        }
        self.report_returned(queue);
    }

    /// A channel is closed: RabbitMQ has everything of it.
    pub(super) fn channel_returned(&mut self, channel: ChannelId) {
        let queues: Vec<QueueName> = self
            .returning
            .iter_mut()
            .filter_map(|(queue, open)| open.remove(&channel).map(|_| queue.clone()))
            .collect();
        queues.iter().for_each(|queue| self.report_returned(queue));
    }

    fn report_returned(&self, queue: &QueueName) {
        if self.returning.get(queue).is_some_and(HashMap::is_empty) {
            self.shared.returns().answered(self.link, queue);
        }
    }

    /// RabbitMQ is lost and has not said that it has everything back.
    pub fn lost_unsaid(&self) {
        let (mut returns, now) = (self.shared.returns(), self.shared.now());
        for read in self.channels.values().map(|channel| &channel.read) {
            read.some.iter().for_each(|queue| returns.lost(&self.vhost, Some(&queue.queue), now));
            if read.any {
                returns.lost(&self.vhost, None, now);
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
