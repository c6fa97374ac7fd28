//! What RabbitMQ prints of a value of any type, where it refuses it.

use amq_protocol::protocol::{AMQPClass, exchange, queue};
use amq_protocol::types::{AMQPValue, DecimalValue, FieldTable};

use crate::program::{Operation, PLACE, Program, Step};
use crate::values::{none, table, text};

/// Values of every type, some too long for one line or one text.
fn every_type() -> Vec<AMQPValue> {
    let array = |values: Vec<AMQPValue>| AMQPValue::FieldArray(values.into());
    let nested = |entries: &[(&str, AMQPValue)]| AMQPValue::FieldTable(table(entries));
    let decimal = AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 314 });
    let long = text("a text of thirty bytes is here");
    let mut values = vec![
        AMQPValue::Boolean(true),
        AMQPValue::ShortShortInt(-128),
        AMQPValue::ShortShortUInt(255),
        AMQPValue::ShortInt(-32_768),
        AMQPValue::ShortUInt(65_535),
        AMQPValue::LongInt(i32::MIN),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::Float(0.1),
        AMQPValue::Timestamp(1_700_000_000),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::ByteArray(vec![0, b'b', 10].into()),
        AMQPValue::Void,
        decimal.clone(),
        text("ä€"),
        text(""),
    ];
    values.extend([-0.1, 0.0, 3.0, 100_000.0, 123_456.789, 1e22, 1e-7, 0.001].map(AMQPValue::Double));
    values.extend([
        array(vec![]),
        nested(&[]),
        array(vec![text("x"), AMQPValue::LongInt(1), AMQPValue::Void, decimal.clone()]),
        array(vec![array(vec![AMQPValue::Boolean(false)]), nested(&[("in", AMQPValue::Double(1e16))])]),
        nested(&[("bytes", AMQPValue::ByteArray(vec![0, 200].into())), ("text", text("\"ä\"\n")), ("€", text("€"))]),
        nested(&[("a", decimal), ("b", AMQPValue::Timestamp(1)), ("c", long.clone()), ("d", text(""))]),
        nested(&[(
            "inner",
            nested(&[("list", array(vec![long.clone(), long.clone()])), ("n", AMQPValue::LongInt(-1))]),
        )]),
        array(vec![long.clone(), AMQPValue::ByteArray((0..30).collect::<Vec<u8>>().into()), long.clone(), long]),
    ]);
    values
}

/// Each value against none, against a text and a number, and as `x-match`.
pub fn program() -> Program {
    let x = |number: usize| format!("{PLACE}x{number}").into();
    let q = |number: usize| format!("{PLACE}q{number}").into();
    let exchange = |number, kind: &str, arguments| {
        AMQPClass::Exchange(exchange::AMQPMethod::Declare(exchange::Declare {
            exchange: x(number),
            kind: kind.into(),
            passive: false,
            durable: true,
            auto_delete: false,
            internal: false,
            nowait: false,
            arguments,
        }))
    };
    let queue = |number, arguments| {
        AMQPClass::Queue(queue::AMQPMethod::Declare(queue::Declare {
            queue: q(number),
            passive: false,
            durable: true,
            exclusive: false,
            auto_delete: false,
            nowait: false,
            arguments,
        }))
    };
    let bind = |arguments: FieldTable| {
        AMQPClass::Queue(queue::AMQPMethod::Bind(queue::Bind {
            queue: q(0),
            exchange: x(2),
            routing_key: "".into(),
            nowait: false,
            arguments,
        }))
    };
    const ALTERNATE: &str = "alternate-exchange";
    const TTL: &str = "x-message-ttl";
    let mut calls = vec![
        exchange(0, "fanout", none()),
        exchange(1, "fanout", table(&[(ALTERNATE, text("ä€"))])),
        exchange(2, "headers", none()),
        queue(0, none()),
        queue(1, table(&[(TTL, AMQPValue::LongInt(1_700_000_000))])),
    ];
    for value in every_type() {
        calls.push(exchange(0, "fanout", table(&[(ALTERNATE, value.clone())])));
        calls.push(queue(0, table(&[(TTL, value.clone())])));
        calls.push(bind(table(&[("x-match", value.clone())])));
        // RabbitMQ fails with 541 there (docs/mapping.md).
        if !matches!(value, AMQPValue::DecimalValue(_)) {
            calls.push(exchange(1, "fanout", table(&[(ALTERNATE, value.clone())])));
            calls.push(queue(1, table(&[(TTL, value)])));
        }
    }
    // The same bytes and the same number, as other types.
    calls.push(exchange(1, "fanout", table(&[(ALTERNATE, AMQPValue::ByteArray("ä€".as_bytes().to_vec().into()))])));
    calls.push(exchange(1, "fanout", none()));
    calls.push(queue(1, none()));
    let step = |call| Step { connection: 0, channel: 1, as_it_is: false, operations: vec![Operation::Call(call)] };
    Program { seed: 0, steps: calls.into_iter().map(step).collect() }
}
