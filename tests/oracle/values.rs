//! Arguments and properties, of every type of value, right ones and wrong ones.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, ShortString};
use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

pub fn none() -> FieldTable {
    FieldTable::default()
}

pub fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

fn pick<T: Clone>(random: &mut StdRng, from: &[T]) -> T {
    from.choose(random).cloned().expect("something to choose from")
}

pub fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = none();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

/// A value of any type.
pub fn any(random: &mut StdRng) -> AMQPValue {
    match random.random_range(0..17) {
        0 => AMQPValue::Boolean(random.random()),
        1 => AMQPValue::ShortShortInt(random.random()),
        2 => AMQPValue::ShortShortUInt(random.random()),
        3 => AMQPValue::ShortInt(random.random()),
        4 => AMQPValue::ShortUInt(random.random()),
        5 => AMQPValue::LongInt(random.random()),
        6 => AMQPValue::LongUInt(random.random()),
        7 => AMQPValue::LongLongInt(random.random()),
        8 => AMQPValue::Float(1.5),
        9 => AMQPValue::Double(-0.1),
        10 => AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 }),
        11 => text(["", "a", "ä€", "a\nb"][random.random_range(0..4)]),
        12 => AMQPValue::FieldArray(FieldArray::from(vec![text("x"), AMQPValue::LongInt(1), AMQPValue::Void])),
        13 => AMQPValue::Timestamp(1_700_000_000),
        14 => AMQPValue::FieldTable(table(&[("in", text("side")), ("n", AMQPValue::LongInt(-1))])),
        15 => AMQPValue::ByteArray(vec![0, b'b', 10].into()),
        _ => AMQPValue::Void,
    }
}

/// A value for an argument that may be there with another one: RabbitMQ fails with 541 if one of the two is a decimal.
fn any_compared(random: &mut StdRng) -> AMQPValue {
    match any(random) {
        AMQPValue::DecimalValue(_) => AMQPValue::Timestamp(314),
        value => value,
    }
}

const UNKNOWN_TYPE: &str = "no-such-type";

pub fn is_of_unknown_type(arguments: &FieldTable) -> bool {
    arguments.inner().get("x-queue-type") == Some(&text(UNKNOWN_TYPE))
}

/// Mostly none; times are so long that nothing expires meanwhile.
pub fn queue_arguments(random: &mut StdRng) -> FieldTable {
    if random.random_ratio(3, 5) {
        return none();
    }
    let hour = 3_600_000;
    let right = [
        ("x-message-ttl", AMQPValue::LongInt(hour)),
        ("x-message-ttl", AMQPValue::LongLongInt(hour.into())),
        ("x-expires", AMQPValue::LongInt(hour)),
        ("x-queue-type", text("classic")),
        ("x-queue-mode", text("lazy")),
        ("x-queue-version", AMQPValue::LongInt(1)),
        ("x-unknown", text("kept")),
        ("x-queue-master-locator", text("min-masters")),
    ];
    let (name, value) = pick(random, &right);
    let mut arguments = table(&[(name, value)]);
    if random.random_ratio(1, 6) {
        let times = ["x-message-ttl", "x-expires"];
        let (name, value) = match random.random_range(0..6) {
            0 => (pick(random, &times), AMQPValue::LongInt(-1)),
            1 => (pick(random, &times), AMQPValue::LongLongInt(1 << 40)),
            2 => (pick(random, &times), any_compared(random)),
            // Of another type than text it is an internal error of RabbitMQ's.
            3 => ("x-queue-type", text(UNKNOWN_TYPE)),
            4 => ("x-queue-mode", text("no-such-mode")),
            _ => ("x-queue-version", AMQPValue::LongInt(-1)),
        };
        arguments.insert(name.into(), value);
    }
    arguments
}

pub fn exchange_arguments(random: &mut StdRng, alternate: &ShortString) -> FieldTable {
    match random.random_range(0..12) {
        0..3 => table(&[("alternate-exchange", text(alternate.as_str()))]),
        3 => table(&[("alternate-exchange", any_compared(random))]),
        4 => table(&[("x-unknown", any(random))]),
        _ => none(),
    }
}

/// Those of a headers exchange.
pub fn binding_arguments(random: &mut StdRng) -> FieldTable {
    let mut arguments = none();
    if random.random_ratio(3, 4) {
        let how = ["all", "any", "all", "any", "all-with-x", "any-with-x", "some"];
        arguments.insert("x-match".into(), text(pick(random, &how)));
    }
    for _ in 0..random.random_range(0..3) {
        let (name, value) = header(random);
        arguments.insert(name.into(), value);
    }
    arguments
}

/// A header that bindings and messages often share.
fn header(random: &mut StdRng) -> (&'static str, AMQPValue) {
    let name = pick(random, &["h", "k", "x-h"]);
    let value = match random.random_range(0..8) {
        0 => AMQPValue::Void,
        1 => AMQPValue::LongInt(1),
        2 => AMQPValue::LongLongInt(1),
        3 => AMQPValue::Boolean(true),
        4 => any(random),
        _ => text("1"),
    };
    (name, value)
}

/// Properties of a message; `keys` may become further routing keys.
pub fn properties(random: &mut StdRng, keys: &[ShortString], odd: bool) -> AMQPProperties {
    let mut properties = AMQPProperties::default();
    let has = |random: &mut StdRng, n: u32| random.random_ratio(1, n);
    if has(random, 2) {
        let mut headers = none();
        for _ in 0..random.random_range(0..4) {
            let (name, value) = header(random);
            headers.insert(name.into(), value);
        }
        for name in ["CC", "BCC"] {
            if has(random, 5) {
                let mut values: Vec<_> = keys.iter().map(|key| text(key.as_str())).collect();
                if has(random, 3) {
                    values.push(any(random));
                }
                let value = if odd && has(random, 6) { any(random) } else { AMQPValue::FieldArray(values.into()) };
                headers.insert(name.into(), value);
            }
        }
        properties = properties.with_headers(headers);
    }
    if has(random, 3) {
        properties = properties.with_content_type("text/plain".into()).with_content_encoding("utf-8".into());
    }
    if has(random, 3) {
        properties = properties.with_delivery_mode(pick(random, &[1, 2, 2, if odd { 3 } else { 2 }]));
    }
    if has(random, 3) {
        properties = properties.with_priority(pick(random, &[0, 5, 255]));
    }
    if has(random, 3) {
        properties = properties.with_correlation_id("id-1".into()).with_reply_to("nobody".into());
    }
    if has(random, 3) {
        let wrong = odd && has(random, 3);
        let good = ["3600000", "315360000000"];
        let bad = ["", "abc", "-1", "1 ", "315360000001", "+5", "1.5"];
        properties = properties.with_expiration(if wrong { pick(random, &bad) } else { pick(random, &good) }.into());
    }
    if has(random, 4) {
        properties = properties.with_message_id("ä-1".into()).with_timestamp(random.random()).with_type("type".into());
    }
    if has(random, 8) {
        properties = properties.with_user_id(if odd && has(random, 2) { "somebody" } else { "guest" }.into());
    }
    if has(random, 4) {
        properties = properties.with_app_id("app".into()).with_cluster_id("cluster".into());
    }
    properties
}
