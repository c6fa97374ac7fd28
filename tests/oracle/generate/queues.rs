//! Queues and their bindings.

use amq_protocol::protocol::{AMQPClass, queue};
use amq_protocol::types::{FieldTable, ShortString};
use rand::Rng;

use super::{KEYS, Maker, QUEUES, queue_name, themes};
use crate::program::{Operation, PLACE};
use crate::values;

impl Maker {
    pub(super) fn any_queue(&mut self) -> ShortString {
        match self.random.random_range(0..40) {
            0 => format!("{PLACE}never").into(),
            // The queue that the channel declared last.
            1..4 => "".into(),
            _ => queue_name(self.random.random_range(0..QUEUES)),
        }
    }

    pub(super) fn queue_declare(&mut self, number: Option<usize>) -> Operation {
        let unnamed = number.is_none() && self.one_in(6);
        let name = match number {
            Some(number) => queue_name(number),
            None if unnamed => "".into(),
            None => self.any_queue(),
        };
        let exchange = self.dead_letter_exchange();
        let key = self.dead_letter_key();
        let mut arguments = self.themes.queue_arguments(&mut self.random, exchange, key);
        // RabbitMQ fails on an unknown type where it makes up the name (541, docs/mapping.md); elsewhere it is 406.
        if name.as_str().is_empty() && values::is_of_unknown_type(&arguments) {
            arguments.insert("x-queue-type".into(), values::text("classic"));
        }
        // A quorum queue is durable and nobody's own; now and then one is asked for that is not.
        let is_quorum = themes::is_quorum(&arguments) && !(self.odd && self.one_in(8));
        let declare = queue::Declare {
            queue: name,
            passive: false,
            durable: is_quorum || !self.one_in(3),
            exclusive: !is_quorum && self.one_in(if unnamed { 2 } else { 10 }),
            auto_delete: !is_quorum && self.one_in(6),
            nowait: !unnamed && number.is_none() && self.one_in(12),
            arguments,
        };
        let nowait = declare.nowait && !declare.queue.as_str().is_empty();
        Operation::Call(AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare { nowait, ..declare })))
    }

    pub(super) fn queue_bind(&mut self) -> Operation {
        Operation::Call(AMQPClass::Queue(queue::AMQPMethod::Bind(queue::Bind {
            queue: self.any_queue(),
            exchange: self.any_exchange(),
            routing_key: self.pick(&KEYS).into(),
            nowait: self.one_in(12),
            arguments: self.binding_arguments(),
        })))
    }

    pub(super) fn binding_arguments(&mut self) -> FieldTable {
        if self.one_in(3) { values::binding_arguments(&mut self.random) } else { values::none() }
    }

    fn dead_letter_exchange(&mut self) -> ShortString {
        if self.one_in(2) { "".into() } else { self.any_exchange() }
    }

    /// Mostly the name of a queue, so that the default exchange finds one.
    fn dead_letter_key(&mut self) -> ShortString {
        if self.one_in(4) { self.pick(&KEYS).into() } else { queue_name(self.random.random_range(0..QUEUES)) }
    }
}

pub(super) fn plain_queue(queue: ShortString) -> queue::Declare {
    queue::Declare {
        queue,
        passive: false,
        durable: true,
        exclusive: false,
        auto_delete: false,
        nowait: false,
        arguments: values::none(),
    }
}
