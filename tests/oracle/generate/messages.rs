//! Messages: published, got, settled, consumed, asked for and answered.

use amq_protocol::protocol::AMQPClass;
use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::types::ShortString;
use rand::Rng;

use super::{KEYS, Maker, QUEUES, queue_name};
use crate::program::{Answer, How, Operation, Publish, Settle, Which};
use crate::values;

/// Where direct replies come from.
const REPLIES: &str = "amq.rabbitmq.reply-to";

impl Maker {
    pub(super) fn publish(&mut self) -> Operation {
        self.messages += 1;
        // In a transaction a fault is found at the commit, and by RabbitMQ at once: none is made.
        let at_fault = self.at_fault && !self.in_transaction;
        let default = !at_fault || self.one_in(2);
        let odd = self.odd && at_fault;
        let (exchange, routing_key) = match default {
            true => ("".into(), queue_name(self.random.random_range(0..QUEUES))),
            false => (self.any_exchange(), self.pick(&KEYS).into()),
        };
        let extra = [queue_name(self.random.random_range(0..QUEUES)), self.pick(&KEYS).into()];
        Operation::Publish(Box::new(Publish {
            method: basic::Publish {
                exchange,
                routing_key,
                mandatory: self.one_in(3),
                immediate: odd && self.one_in(60),
            },
            properties: {
                let properties = match self.one_in(3) {
                    true => values::properties(&mut self.random, &extra, odd),
                    false => AMQPProperties::default(),
                };
                self.themes.properties(&mut self.random, properties)
            },
            number: self.messages,
            size: self.pick(&[4, 4, 4, 4, 4, 4, 0, 300, 4088, 4089, 9000]),
        }))
    }

    pub(super) fn settle(&mut self) -> Operation {
        let nth = self.random.random_range(0..8);
        let (requeue, multiple) = (self.one_in(2), self.one_in(3));
        let (which, multiple) = match self.random.random_range(0..60) {
            0 | 1 if !self.at_fault => (Which::Held(nth), multiple),
            0 => (Which::Unknown, multiple),
            1 => (Which::Again, multiple),
            2..5 => (Which::Zero, true),
            _ => (Which::Held(nth), multiple),
        };
        let how = match self.random.random_range(0..5) {
            0..2 => How::Ack,
            2..4 => How::Nack { requeue },
            // There is no `basic.reject` of all: it is at fault.
            _ if matches!(which, Which::Zero) && !self.at_fault => How::Nack { requeue },
            _ => How::Reject { requeue },
        };
        Operation::Settle(Settle { which, multiple, how })
    }

    pub(super) fn get(&mut self) -> Operation {
        // For RabbitMQ, who holds what it got from a quorum queue is a consumer of it.
        let (queue, no_ack) = (self.any_queue(), self.themes.quorum || self.one_in(3));
        Operation::Call(AMQPClass::Basic(basic::AMQPMethod::Get(basic::Get { queue, no_ack })))
    }

    pub(super) fn consume(&mut self, place: (usize, u16)) -> Operation {
        self.consuming.push(place);
        let replies = self.themes.replies && self.one_in(3);
        let nowait = self.one_in(12);
        Operation::Call(AMQPClass::Basic(basic::AMQPMethod::Consume(basic::Consume {
            queue: if replies { REPLIES.into() } else { self.any_queue() },
            consumer_tag: match (replies, !nowait && self.one_in(4)) {
                (_, true) => "".into(),
                // For RabbitMQ a consumer of direct replies has no tag that could be in use.
                (true, _) => format!("r{}", self.fresh_tag()).into(),
                (false, _) => self.new_tag(),
            },
            no_local: self.one_in(20),
            no_ack: if replies { !self.one_in(8) } else { self.one_in(4) },
            // Refused beside others; RabbitMQ 3.10 grants it on a quorum queue (docs/mapping.md).
            exclusive: self.one_in(8) && !self.themes.quorum,
            nowait,
            arguments: self.themes.consumer_arguments(&mut self.random),
        })))
    }

    /// A message whose sender waits for a direct reply.
    pub(super) fn request(&mut self) -> Operation {
        let mut operation = self.publish();
        // A fault would be found at the commit.
        if self.in_transaction {
            return operation;
        }
        if let Operation::Publish(publish) = &mut operation {
            publish.properties = std::mem::take(&mut publish.properties).with_reply_to(REPLIES.into());
        }
        operation
    }

    pub(super) fn answer(&mut self) -> Operation {
        self.messages += 1;
        let to = self.random.random_range(0..8);
        Operation::Answer(Answer { to, number: self.messages, mandatory: self.one_in(3), asks: self.one_in(3) })
    }

    /// A consumer tag: a new one, or where a connection may be closed for it, perhaps one that is in use.
    fn new_tag(&mut self) -> ShortString {
        if self.odd && self.one_in(3) { format!("t{}", self.tags).into() } else { self.fresh_tag() }
    }

    fn fresh_tag(&mut self) -> ShortString {
        self.tags += 1;
        format!("t{}", self.tags).into()
    }
}
