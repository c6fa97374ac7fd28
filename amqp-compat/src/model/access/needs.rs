//! Which rights a method needs.

use amq_protocol::types::{AMQPValue, FieldTable};
use smallvec::{SmallVec, smallvec};

use super::permission::{Right, Thing};
use crate::backend::Topology;

/// One right that is needed, and what for.
pub type Need<'a> = (Right, Thing, &'a str);

/// The rights that a change of exchanges, queues or bindings needs, in the order in which RabbitMQ asks for them. `named` is
/// the name of a queue whose declaration has none; `is_there` says whether what is declared exists already: then what its
/// arguments name is not looked at.
pub fn of_topology<'a>(
    request: &'a Topology,
    named: &'a str,
    is_there: impl FnOnce(Thing, &str) -> bool,
) -> SmallVec<[Need<'a>; 3]> {
    use Right::{Configure, Read, Write};
    use Thing::{Exchange, Queue};
    match request {
        Topology::ExchangeDeclare(asked) if asked.passive => SmallVec::new(),
        Topology::ExchangeDeclare(asked) => {
            let name = asked.exchange.as_str();
            let mut needs = smallvec![(Configure, Exchange, name)];
            if let Some(alternate) = text(&asked.arguments, "alternate-exchange")
                && !is_there(Exchange, name)
            {
                needs.extend([(Read, Exchange, name), (Write, Exchange, alternate)]);
            }
            needs
        }
        Topology::ExchangeDelete { exchange, .. } => smallvec![(Configure, Exchange, exchange.as_str())],
        Topology::ExchangeBind(binding) | Topology::ExchangeUnbind(binding) => {
            smallvec![(Write, Exchange, binding.destination.as_str()), (Read, Exchange, binding.source.as_str())]
        }
        Topology::QueueDeclare(asked) if asked.passive => SmallVec::new(),
        Topology::QueueDeclare(asked) => {
            let name = if asked.queue.as_str().is_empty() { named } else { asked.queue.as_str() };
            let mut needs = smallvec![(Configure, Queue, name)];
            if let Some(dead_letters) = text(&asked.arguments, "x-dead-letter-exchange")
                && !is_there(Queue, name)
            {
                needs.extend([(Read, Queue, name), (Write, Exchange, dead_letters)]);
            }
            needs
        }
        Topology::QueueDelete { queue, .. } => smallvec![(Configure, Queue, queue.as_str())],
        Topology::QueuePurge { queue } => smallvec![(Read, Queue, queue.as_str())],
        Topology::QueueBind(binding) | Topology::QueueUnbind(binding) => {
            smallvec![(Write, Queue, binding.destination.as_str()), (Read, Exchange, binding.source.as_str())]
        }
    }
}

fn text<'a>(arguments: &'a FieldTable, name: &str) -> Option<&'a str> {
    match arguments.inner().get(name)? {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}
