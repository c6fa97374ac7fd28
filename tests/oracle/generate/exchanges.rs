//! Exchanges and the bindings between them.

use amq_protocol::protocol::{AMQPClass, exchange};
use amq_protocol::types::ShortString;
use rand::Rng;

use super::{EXCHANGES, KEYS, KINDS, Kind, Maker, exchange_name};
use crate::program::{Operation, PLACE};
use crate::values;

impl Maker {
    pub(super) fn any_exchange(&mut self) -> ShortString {
        match self.random.random_range(0..40) {
            0 => format!("{PLACE}never").into(),
            1 => "".into(),
            2..6 => self.pick(&["amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match"]).into(),
            _ => exchange_name(self.random.random_range(0..EXCHANGES)),
        }
    }

    pub(super) fn exchange_declare(&mut self, number: Option<usize>) -> Operation {
        let exchange = match number {
            Some(number) => exchange_name(number),
            None => self.any_exchange(),
        };
        // Mostly the kind that goes with the number, so that a second declaration is often the same.
        let usual = exchange.as_str().bytes().last().map_or(0, usize::from) % KINDS.len();
        let kind = if self.one_in(5) { self.pick(&KINDS) } else { KINDS[usual] };
        let kind = if self.odd && self.one_in(12) { "x-no-such-type" } else { kind };
        let alternate = exchange_name(self.random.random_range(0..EXCHANGES));
        Operation::Call(AMQPClass::Exchange(exchange::AMQPMethod::Declare(exchange::Declare {
            exchange,
            kind: kind.into(),
            passive: false,
            durable: !self.one_in(4),
            auto_delete: self.one_in(6),
            internal: self.one_in(10),
            nowait: number.is_none() && self.one_in(12),
            arguments: values::exchange_arguments(&mut self.random, &alternate),
        })))
    }

    pub(super) fn exchange(&mut self, kind: Kind) -> Operation {
        use exchange::AMQPMethod as X;
        let source = self.any_exchange();
        let nowait = self.one_in(12);
        Operation::Call(AMQPClass::Exchange(match kind {
            Kind::ExchangePassive => X::Declare(exchange::Declare {
                exchange: source,
                kind: self.pick(&["direct", "", "topic"]).into(),
                passive: true,
                durable: false,
                auto_delete: false,
                internal: false,
                nowait,
                arguments: values::none(),
            }),
            Kind::ExchangeDelete => X::Delete(exchange::Delete { exchange: source, if_unused: self.one_in(2), nowait }),
            Kind::ExchangeBind => X::Bind(exchange::Bind {
                destination: self.any_exchange(),
                source,
                routing_key: self.pick(&KEYS).into(),
                nowait,
                arguments: self.binding_arguments(),
            }),
            _ => X::Unbind(exchange::Unbind {
                destination: self.any_exchange(),
                source,
                routing_key: self.pick(&KEYS).into(),
                nowait,
                arguments: self.binding_arguments(),
            }),
        }))
    }
}
