//! What a kind of operation is, with its details.

use amq_protocol::protocol::{AMQPClass, basic, channel, confirm, queue};

use rand::Rng;

use super::queues::plain_queue;
use super::{KEYS, Kind, Maker};
use crate::program::Operation;

impl Maker {
    pub(super) fn operation(&mut self, kind: Kind, place: (usize, u16)) -> Operation {
        use basic::AMQPMethod as B;
        use queue::AMQPMethod as Q;
        match kind {
            Kind::Publish => self.publish(),
            Kind::Settle => self.settle(),
            Kind::Get => self.get(),
            Kind::Consume if self.limited.contains(&place) && self.consuming.contains(&place) => self.get(),
            Kind::Consume => self.consume(place),
            Kind::QueueDeclare => self.queue_declare(None),
            Kind::QueuePassive => {
                let queue = self.any_queue();
                let mut declare = plain_queue(queue);
                declare.passive = true;
                declare.durable = self.one_in(2);
                Operation::Call(AMQPClass::Queue(Q::Declare(declare)))
            }
            Kind::QueueDelete => Operation::Call(AMQPClass::Queue(Q::Delete(queue::Delete {
                queue: self.any_queue(),
                // RabbitMQ cannot do that for quorum queues.
                if_unused: !self.themes.quorum && self.one_in(3),
                if_empty: !self.themes.quorum && self.one_in(3),
                nowait: self.one_in(10),
            }))),
            Kind::QueuePurge => {
                let nowait = self.one_in(10);
                Operation::Call(AMQPClass::Queue(Q::Purge(queue::Purge { queue: self.any_queue(), nowait })))
            }
            Kind::QueueBind => self.queue_bind(),
            Kind::QueueUnbind => {
                let (queue, exchange) = (self.any_queue(), self.any_exchange());
                let (routing_key, arguments) = (self.pick(&KEYS).into(), self.binding_arguments());
                let unbind = queue::Unbind { queue, exchange, routing_key, arguments };
                Operation::Call(AMQPClass::Queue(Q::Unbind(unbind)))
            }
            Kind::ExchangeDeclare => self.exchange_declare(None),
            Kind::ExchangePassive | Kind::ExchangeDelete | Kind::ExchangeBind | Kind::ExchangeUnbind => {
                self.exchange(kind)
            }
            Kind::Qos => {
                // A limit for a channel with several consumers is kept in the session: docs/mapping.md.
                // RabbitMQ has none for quorum queues.
                let global = !self.themes.quorum && !self.consuming.contains(&place) && self.one_in(3);
                if global {
                    self.limited.push(place);
                }
                let prefetch_count = self.pick(&[0, 1, 1, 2, 3]);
                Operation::Call(AMQPClass::Basic(B::Qos(basic::Qos { prefetch_count, global })))
            }
            Kind::Cancel => {
                let consumer_tag = format!("t{}", self.random.random_range(0..=self.tags)).into();
                let nowait = self.one_in(10);
                Operation::Call(AMQPClass::Basic(B::Cancel(basic::Cancel { consumer_tag, nowait })))
            }
            Kind::Confirm => {
                if self.transactions.contains(&place) && !self.one_in(10) {
                    return self.publish();
                }
                self.confirms.push(place);
                let nowait = self.one_in(10);
                Operation::Call(AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait })))
            }
            Kind::Tx => self.tx(place),
            Kind::Recover => {
                let requeue = !(self.odd && self.one_in(10));
                Operation::Call(AMQPClass::Basic(match self.one_in(4) {
                    true => B::RecoverAsync(basic::RecoverAsync { requeue }),
                    false => B::Recover(basic::Recover { requeue }),
                }))
            }
            Kind::CloseChannel => {
                let close = channel::Close { reply_code: 200, reply_text: "bye".into(), class_id: 0, method_id: 0 };
                Operation::Call(AMQPClass::Channel(channel::AMQPMethod::Close(close)))
            }
            Kind::Disconnect => Operation::Disconnect,
            Kind::Lose => Operation::Lose,
            Kind::Request => self.request(),
            Kind::Answer => self.answer(),
            Kind::Odd if self.odd => self.odd(),
            Kind::Odd => self.get(),
        }
    }
}
