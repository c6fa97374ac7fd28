//! What a program is about besides what all of them are about.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable, ShortString};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

use crate::values;

/// The features of one program.
#[derive(Debug)]
pub(super) struct Themes {
    pub(super) dead_letters: bool,
    limits: bool,
    pub(super) priorities: bool,
    /// Consumer priorities and single active consumers.
    turns: bool,
    pub(super) quorum: bool,
    /// Direct replies.
    pub(super) replies: bool,
}

fn pick<T: Clone>(random: &mut StdRng, from: &[T]) -> T {
    from.choose(random).cloned().expect("something to choose from")
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// Whether a declaration with these arguments is for a quorum queue.
pub(super) fn is_quorum(arguments: &FieldTable) -> bool {
    arguments.inner().get("x-queue-type") == Some(&text("quorum"))
}

impl Themes {
    pub(super) fn new(random: &mut StdRng) -> Self {
        let mut one_in = |n| random.random_ratio(1, n);
        Self {
            dead_letters: one_in(2),
            limits: one_in(4),
            priorities: one_in(4),
            turns: one_in(4),
            quorum: one_in(6),
            replies: one_in(6),
        }
    }

    /// The arguments of a queue: those of the themes, else mostly none.
    pub(super) fn queue_arguments(&self, random: &mut StdRng, exchange: ShortString, key: ShortString) -> FieldTable {
        let quorum = self.quorum && random.random_ratio(1, 2);
        let mut arguments = match self.is_plain() {
            true => values::queue_arguments(random),
            false => values::none(),
        };
        let mut put = |name: &str, value| {
            arguments.insert(name.into(), value);
        };
        if quorum {
            put("x-queue-type", text("quorum"));
            // Without one, what comes back goes to the end in RabbitMQ 3.10 alone: docs/mapping.md.
            put("x-delivery-limit", AMQPValue::LongInt(pick(random, &[0, 0, 1, 2, 9])));
        }
        if self.dead_letters && random.random_ratio(2, 3) {
            put("x-dead-letter-exchange", text(exchange.as_str()));
            if random.random_ratio(2, 3) {
                put("x-dead-letter-routing-key", text(key.as_str()));
            }
            if self.expires_at_once() && random.random_ratio(1, 6) {
                put("x-message-ttl", AMQPValue::LongInt(0));
            }
        }
        if self.limits && random.random_ratio(2, 3) {
            if random.random_ratio(2, 3) {
                put("x-max-length", AMQPValue::LongInt(pick(random, &[0, 1, 1, 2, 3])));
            }
            // RabbitMQ's quorum queue dead-letters what one publish pushes out from the last to the first.
            if random.random_ratio(1, 3) && !(quorum && self.dead_letters) {
                put("x-max-length-bytes", AMQPValue::LongInt(pick(random, &[0, 4, 8, 310, 9000])));
            }
            // A quorum queue finds out that it is full some time after it is.
            if !quorum && random.random_ratio(1, 2) {
                put("x-overflow", text(pick(random, &["drop-head", "reject-publish", "reject-publish-dlx"])));
            }
        }
        if self.priorities && !quorum && random.random_ratio(2, 3) {
            put("x-max-priority", AMQPValue::LongInt(pick(random, &[1, 2, 5, 10, 255])));
        }
        if self.turns && random.random_ratio(1, 3) {
            put("x-single-active-consumer", AMQPValue::Boolean(pick(random, &[true, true, false])));
        }
        if !self.is_plain() && random.random_ratio(1, 12) {
            let (name, value) = wrong(random);
            put(name, value);
        }
        arguments
    }

    pub(super) fn consumer_arguments(&self, random: &mut StdRng) -> FieldTable {
        let mut arguments = values::none();
        if self.turns && random.random_ratio(1, 2) {
            let value = match random.random_range(0..20) {
                0 => text("1"),
                _ => AMQPValue::LongInt(pick(random, &[-1, 0, 1, 2])),
            };
            arguments.insert("x-priority".into(), value);
        }
        arguments
    }

    /// A message's properties with those of the themes.
    pub(super) fn properties(&self, random: &mut StdRng, properties: AMQPProperties) -> AMQPProperties {
        let mut properties = properties;
        if self.priorities && random.random_ratio(2, 3) {
            properties = properties.with_priority(pick(random, &[0, 1, 1, 2, 3, 9, 255]));
        }
        if self.dead_letters && self.expires_at_once() && random.random_ratio(1, 6) {
            properties = properties.with_expiration("0".into());
        }
        properties
    }

    /// Not where it is open whether one that expires at once is gone before the next one is there: docs/mapping.md.
    fn expires_at_once(&self) -> bool {
        !self.priorities && !self.limits && !self.quorum
    }

    fn is_plain(&self) -> bool {
        !(self.dead_letters || self.limits || self.priorities || self.turns || self.quorum)
    }
}

/// An argument that is refused.
fn wrong(random: &mut StdRng) -> (&'static str, AMQPValue) {
    let numbers = ["x-max-length", "x-max-length-bytes", "x-max-priority", "x-message-ttl"];
    match random.random_range(0..7) {
        0 => (pick(random, &numbers), AMQPValue::LongInt(-1)),
        1 => (pick(random, &numbers), text("1")),
        2 => ("x-max-priority", AMQPValue::LongInt(256)),
        3 => ("x-overflow", text("spill")),
        4 => ("x-dead-letter-exchange", AMQPValue::LongInt(1)),
        5 => ("x-dead-letter-routing-key", AMQPValue::LongInt(1)),
        _ => ("x-single-active-consumer", AMQPValue::LongInt(1)),
    }
}
