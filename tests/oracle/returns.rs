//! What is settled right behind each other: what the first gives credit for is delivered before the next one takes effect.
//!
//! Left out is what RabbitMQ does not do the same every time (docs/mapping.md).

use amq_protocol::protocol::basic::{self, AMQPProperties};
use amq_protocol::protocol::{AMQPClass, queue, tx};
use amq_protocol::types::{AMQPValue, FieldTable};

use crate::program::{How, Operation, PLACE, Program, Publish, Settle, Step, Which};
use crate::values::{none, table, text};

const BACK: How = How::Nack { requeue: true };
const CONSUMER: &str = "t1";
const MESSAGES: usize = 6;

fn call(method: basic::AMQPMethod) -> Operation {
    Operation::Call(AMQPClass::Basic(method))
}

fn queue_name() -> String {
    format!("{PLACE}q0")
}

/// What is done at once by a client that may hold so many messages: all of them, if 0.
fn endings() -> Vec<(&'static str, u16, Vec<Operation>)> {
    let settle = |nth, how| Operation::Settle(Settle { which: Which::Held(nth), multiple: false, how });
    let ack = || settle(0, How::Ack);
    let back = || settle(0, BACK);
    let all_back = Operation::Settle(Settle { which: Which::Zero, multiple: true, how: BACK });
    let reject = settle(0, How::Reject { requeue: false });
    let recover = call(basic::AMQPMethod::Recover(basic::Recover { requeue: true }));
    let get = || call(basic::AMQPMethod::Get(basic::Get { queue: queue_name().into(), no_ack: true }));
    let transaction = |method| Operation::Call(AMQPClass::Tx(method));
    let select = transaction(tx::AMQPMethod::Select(tx::Select {}));
    let commit = transaction(tx::AMQPMethod::Commit(tx::Commit {}));
    vec![
        ("an ack, then back", 2, vec![ack(), back()]),
        ("two acks, then back", 3, vec![ack(), ack(), back()]),
        ("an ack, then all back", 3, vec![ack(), all_back]),
        ("the second back, then the first", 2, vec![settle(1, BACK), back()]),
        ("the same without a limit", 0, vec![settle(1, BACK), back()]),
        ("rejected, then back", 2, vec![reject, back()]),
        ("an ack, then all recovered", 2, vec![ack(), recover]),
        ("in a transaction", 2, vec![select, ack(), back(), commit]),
        ("an ack, then a get", 2, vec![ack(), get()]),
        ("back, then a get", 2, vec![settle(1, BACK), get()]),
    ]
}

/// Each ending on each kind of queue.
pub fn programs() -> Vec<(String, Program)> {
    let queues = [
        ("classic", false, none()),
        ("exclusive", true, none()),
        ("with priorities", false, table(&[("x-max-priority", AMQPValue::LongInt(5))])),
        ("quorum", false, table(&[("x-queue-type", text("quorum")), ("x-delivery-limit", AMQPValue::LongInt(9))])),
    ];
    let mut programs = Vec::new();
    for (kind, exclusive, arguments) in queues {
        for (name, prefetch, operations) in endings() {
            let steps = steps(exclusive, arguments.clone(), prefetch, operations);
            programs.push((format!("{kind}: {name}"), Program { seed: 0, steps }));
        }
    }
    programs
}

fn steps(exclusive: bool, arguments: FieldTable, prefetch_count: u16, operations: Vec<Operation>) -> Vec<Step> {
    let declare = queue::Declare {
        queue: queue_name().into(),
        passive: false,
        durable: !exclusive,
        exclusive,
        auto_delete: false,
        nowait: false,
        arguments,
    };
    let publish = |number| {
        let method = basic::Publish {
            exchange: "".into(),
            routing_key: queue_name().into(),
            mandatory: false,
            immediate: false,
        };
        // Those of a lower priority come behind in any case.
        let properties = AMQPProperties::default().with_priority(u8::from(number <= MESSAGES / 2));
        Operation::Publish(Box::new(Publish { method, properties, number, size: 4 }))
    };
    let consume = basic::Consume {
        queue: queue_name().into(),
        consumer_tag: CONSUMER.into(),
        no_local: false,
        no_ack: false,
        exclusive: false,
        nowait: false,
        arguments: none(),
    };
    let on = |operations| Step { connection: 0, channel: 1, as_it_is: false, operations };
    vec![
        on(vec![Operation::Call(AMQPClass::Queue(queue::AMQPMethod::Declare(declare)))]),
        on(vec![call(basic::AMQPMethod::Qos(basic::Qos { prefetch_count, global: false }))]),
        on((1..=MESSAGES).map(publish).collect()),
        on(vec![call(basic::AMQPMethod::Consume(consume))]),
        on(operations),
    ]
}
