//! Direct reply-to over two sides.
//!
//! A request that RabbitMQ owns is answered through RabbitMQ, which gives it a name of its own: its server may have come
//! past the sidecar. A request that NATS owns gets a name of ours, and what is published to that name goes to its client
//! here, whoever owns the name as a key. The client's consumer is therefore in RabbitMQ, while that is attached, and here.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::ShortString;
use amqp_compat::backend::reply_to::{is_own_name, is_pseudo_queue, is_reply_name};
use amqp_compat::backend::{ChannelId, Command, Delivery, Event, Publish, PublishOutcome, Reply, Topology};
use amqp_compat::error::AmqpError;

use super::engine::Engine;
use super::stamp;
use crate::ownership::Side;

impl Engine {
    /// Begins a request that has to do with direct replies; gives its answer when no side is to be asked.
    pub(super) fn begin_replies(&mut self, command: &Command) -> Option<Result<Reply, AmqpError>> {
        match command {
            Command::Consume { channel, consume } if is_pseudo_queue(consume.queue.as_str()) => {
                self.replies.consume(*channel, consume).err().map(Err)
            }
            Command::Cancel { channel, consumer_tag } => {
                self.replies.cancel(*channel, consumer_tag);
                None
            }
            Command::CloseChannel { channel } => {
                self.replies.close(*channel);
                None
            }
            Command::Topology { request: Topology::QueueDeclare(declare), .. }
                if is_own_name(declare.queue.as_str()) =>
            {
                self.replies.declare(&self.vhost, declare.queue.as_str())
            }
            _ => None,
        }
    }

    /// Whether a declaration asks for somebody's answers, and makes nothing on any side.
    pub(super) fn is_about_replies(topology: &Topology) -> bool {
        match topology {
            Topology::QueueDeclare(declare) => {
                is_pseudo_queue(declare.queue.as_str()) || is_reply_name(declare.queue.as_str())
            }
            _ => false,
        }
    }

    /// Whether a consumer waits for direct replies; NATS is not asked to attach it.
    pub(super) fn is_reply_consumer(&self, channel: ChannelId, tag: &ShortString) -> bool {
        let consumer = self.channels.get(&channel).and_then(|c| c.consumers.get(tag));
        consumer.is_some_and(|consumer| is_pseudo_queue(consumer.consume.queue.as_str()))
    }

    /// Hands an answer to its client, and gives the properties that a request has if NATS owns it: `Ok(None)` for what is
    /// no request. An error ends the publish and its channel, and the client is told.
    pub(super) fn reply_names(&mut self, publish: &Publish) -> Result<Option<AMQPProperties>, ()> {
        self.replies.deliver(&publish.message);
        let properties = &publish.message.properties;
        if !properties.reply_to().as_ref().is_some_and(|reply_to| is_pseudo_queue(reply_to.as_str())) {
            return Ok(None);
        }
        let mut named = properties.clone();
        match self.replies.name(publish.channel, &mut named) {
            Ok(()) => Ok(Some(named)),
            Err(error) => {
                self.refuse_publish(publish.channel, publish.seq, error);
                Err(())
            }
        }
    }

    /// Whether the side that leads is one that has no consumer for direct replies.
    pub(super) fn replies_begin_here(&self, channel: ChannelId, tag: &ShortString) -> bool {
        self.lead() == Side::Nats && self.is_reply_consumer(channel, tag)
    }

    /// RabbitMQ has answered a client: nothing of it is counted, held or settled.
    pub(super) fn direct_reply(&mut self, channel: ChannelId, tag: ShortString, mut delivery: Delivery) {
        if self.is_reply_consumer(channel, &tag) {
            stamp::unstamp(&mut delivery.message);
            let delivery = Box::new(delivery);
            self.events.push_back(Event::Delivery { channel, consumer_tag: tag, delivery });
        }
    }

    pub(super) fn refuse_publish(&mut self, channel: ChannelId, seq: u64, error: AmqpError) {
        self.events.push_back(Event::Confirm { channel, seq, outcome: PublishOutcome::Failed });
        self.events.push_back(Event::ChannelFailed { channel, error });
    }
}
