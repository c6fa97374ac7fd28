//! The methods that carry out what a session asks for.

use amq_protocol::protocol::{AMQPClass, basic, exchange, queue};
use amq_protocol::types::ShortString;

use crate::backend::{Outcome, Topology};

/// The request in flight, by the answer it waits for.
#[derive(Debug)]
pub(super) enum Asked {
    /// `channel.open`, with `confirm.select`.
    Open,
    /// `channel.close`.
    Close,
    /// `basic.consume`.
    Consume,
    /// `basic.cancel` of this consumer.
    Cancel(ShortString),
    /// `basic.get`.
    Get,
    /// A request with nothing in its answer.
    Done,
    /// `queue.declare`.
    Queue,
    /// `queue.purge` or `queue.delete`.
    Count,
}

/// How deliveries end; with `multiple`, all up to this tag.
pub(super) fn settlement(delivery_tag: u64, multiple: bool, outcome: Outcome) -> AMQPClass {
    let requeue = outcome == Outcome::Requeue;
    AMQPClass::Basic(match (outcome, multiple) {
        (Outcome::Ack, multiple) => basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple }),
        (_, true) => basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, requeue }),
        (_, false) => basic::AMQPMethod::Reject(basic::Reject { delivery_tag, requeue }),
    })
}

/// The method of a topology request, and the answer it gets.
pub(super) fn topology(request: Topology) -> (AMQPClass, Asked) {
    let nowait = false;
    match request {
        Topology::ExchangeDeclare(d) => {
            let declare = exchange::Declare {
                exchange: d.exchange,
                kind: d.kind,
                passive: d.passive,
                durable: d.durable,
                auto_delete: d.auto_delete,
                internal: d.internal,
                nowait,
                arguments: d.arguments,
            };
            (AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare)), Asked::Done)
        }
        Topology::ExchangeDelete { exchange, if_unused } => {
            let delete = exchange::Delete { exchange, if_unused, nowait };
            (AMQPClass::Exchange(exchange::AMQPMethod::Delete(delete)), Asked::Done)
        }
        Topology::ExchangeBind(b) => {
            let (destination, source, routing_key, arguments) = (b.destination, b.source, b.routing_key, b.arguments);
            let bind = exchange::Bind { destination, source, routing_key, nowait, arguments };
            (AMQPClass::Exchange(exchange::AMQPMethod::Bind(bind)), Asked::Done)
        }
        Topology::ExchangeUnbind(b) => {
            let (destination, source, routing_key, arguments) = (b.destination, b.source, b.routing_key, b.arguments);
            let unbind = exchange::Unbind { destination, source, routing_key, nowait, arguments };
            (AMQPClass::Exchange(exchange::AMQPMethod::Unbind(unbind)), Asked::Done)
        }
        Topology::QueueDeclare(d) => {
            let declare = queue::Declare {
                queue: d.queue,
                passive: d.passive,
                durable: d.durable,
                exclusive: d.exclusive,
                auto_delete: d.auto_delete,
                nowait,
                arguments: d.arguments,
            };
            (AMQPClass::Queue(queue::AMQPMethod::Declare(declare)), Asked::Queue)
        }
        Topology::QueueBind(b) => {
            let (queue, exchange, routing_key, arguments) = (b.destination, b.source, b.routing_key, b.arguments);
            let bind = queue::Bind { queue, exchange, routing_key, nowait, arguments };
            (AMQPClass::Queue(queue::AMQPMethod::Bind(bind)), Asked::Done)
        }
        Topology::QueueUnbind(b) => {
            let (queue, exchange, routing_key, arguments) = (b.destination, b.source, b.routing_key, b.arguments);
            let unbind = queue::Unbind { queue, exchange, routing_key, arguments };
            (AMQPClass::Queue(queue::AMQPMethod::Unbind(unbind)), Asked::Done)
        }
        Topology::QueuePurge { queue } => {
            (AMQPClass::Queue(queue::AMQPMethod::Purge(queue::Purge { queue, nowait })), Asked::Count)
        }
        Topology::QueueDelete { queue, if_unused, if_empty } => {
            let delete = queue::Delete { queue, if_unused, if_empty, nowait };
            (AMQPClass::Queue(queue::AMQPMethod::Delete(delete)), Asked::Count)
        }
    }
}
