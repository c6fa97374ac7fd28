//! What a message is compared by.

use std::io::Write;

use amq_protocol::frame::WriteContext;
use amq_protocol::protocol::basic::{AMQPProperties, gen_properties};
use amqp_compat::backend::Message;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Headers that RabbitMQ adds or removes on the way to a consumer, and that are therefore not compared: the delivery count
/// of quorum queues ("Poison Message Handling") and the hidden recipients ("Sender-Selected Distribution").
pub const NOT_COMPARED: [&str; 2] = ["x-delivery-count", "BCC"];

/// A message's payload, properties and routing, as three xxh3 hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest {
    /// Of the body.
    pub payload: u64,
    /// Of all properties and headers, with their AMQP types, without [`NOT_COMPARED`].
    pub properties: u64,
    /// Of exchange and routing key.
    pub routing: u64,
}

/// The digest of a message. Whatever the sidecar stamped on it has to be off already.
pub fn digest(message: &Message) -> Digest {
    let mut routing = Xxh3::new();
    routing.update(message.exchange.as_str().as_bytes());
    // No exchange has a NUL in its name: the border between both is unambiguous.
    routing.update(&[0]);
    routing.update(message.routing_key.as_str().as_bytes());
    Digest { payload: xxh3_64(&message.body), properties: properties(&message.properties), routing: routing.digest() }
}

fn properties(properties: &AMQPProperties) -> u64 {
    let table = properties.headers().as_ref();
    let changed = table.is_some_and(|table| NOT_COMPARED.iter().any(|name| table.contains_key(name)));
    if !changed {
        return encoded(properties);
    }
    let mut kept = table.cloned().unwrap_or_default().inner().clone();
    NOT_COMPARED.iter().for_each(|name| {
        kept.remove(*name);
    });
    // RabbitMQ makes a table where there was none; that it is empty again says nothing.
    let mut other = properties.clone();
    other = other.with_headers(kept.into());
    encoded(&other)
}

/// The properties as AMQP bytes; a table's entries are sorted by name there.
fn encoded(properties: &AMQPProperties) -> u64 {
    let context = WriteContext { write: Vec::with_capacity(256), position: 0 };
    let mut bytes = gen_properties(properties)(context).map(|done| done.write).unwrap_or_default();
    // Never for a message that was a frame once; kept apart from all others nevertheless.
    if bytes.is_empty() {
        let _ = write!(bytes, "{properties:?}");
    }
    xxh3_64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::types::{AMQPValue, FieldTable};

    fn message(headers: &[(&str, AMQPValue)]) -> Message {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        Message {
            exchange: "e".into(),
            routing_key: "k".into(),
            properties: AMQPProperties::default().with_headers(table).with_priority(1),
            body: "body".into(),
        }
    }

    #[test]
    fn each_part_has_a_hash_of_its_own() {
        let base = message(&[]);
        let of = |change: &dyn Fn(&mut Message)| {
            let mut other = base.clone();
            change(&mut other);
            let (a, b) = (digest(&base), digest(&other));
            (a.payload == b.payload, a.properties == b.properties, a.routing == b.routing)
        };
        assert_eq!(of(&|_| ()), (true, true, true));
        assert_eq!(of(&|m| m.body = "other".into()), (false, true, true));
        assert_eq!(of(&|m| m.properties = m.properties.clone().with_priority(2)), (true, false, true));
        assert_eq!(of(&|m| m.routing_key = "other".into()), (true, true, false));
        assert_eq!(of(&|m| (m.exchange, m.routing_key) = ("ek".into(), "".into())), (true, true, false));
    }

    #[test]
    fn the_type_of_a_header_is_compared_and_what_rabbitmq_adds_is_not() {
        let int = digest(&message(&[("a", AMQPValue::LongInt(1))]));
        assert_ne!(int, digest(&message(&[("a", AMQPValue::LongLongInt(1))])));
        let counted = message(&[("a", AMQPValue::LongInt(1)), ("x-delivery-count", AMQPValue::LongInt(3))]);
        assert_eq!(int, digest(&counted));
    }
}
