//! Exchange and queue methods: what is asked of the broker, and what the client is told when it is done.

use amq_protocol::protocol::{AMQPClass, exchange, queue};
use amq_protocol::types::ShortString;

use crate::backend::{Binding, ExchangeDeclare, QueueDeclare, Reply, Topology};
use crate::error::{AmqpError, ReplyCode};

/// A method, taken apart.
#[derive(Debug)]
pub(super) struct Asked {
    /// What the broker is asked.
    pub(super) request: Topology,
    /// What the client is told.
    pub(super) answer: Answer,
    /// Whether the client waits for it.
    pub(super) nowait: bool,
}

/// The `-ok` method that ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// `exchange.declare-ok`
    ExchangeDeclare,
    /// `exchange.delete-ok`
    ExchangeDelete,
    /// `exchange.bind-ok`
    ExchangeBind,
    /// `exchange.unbind-ok`
    ExchangeUnbind,
    /// `queue.declare-ok`
    QueueDeclare,
    /// `queue.bind-ok`
    QueueBind,
    /// `queue.unbind-ok`
    QueueUnbind,
    /// `queue.purge-ok`
    QueuePurge,
    /// `queue.delete-ok`
    QueueDelete,
}

/// Takes an exchange method apart; `None` for one that only a server sends.
pub(super) fn exchange(method: exchange::AMQPMethod) -> Option<Asked> {
    use exchange::AMQPMethod as M;
    let (request, answer, nowait) = match method {
        M::Declare(m) => (
            Topology::ExchangeDeclare(ExchangeDeclare {
                exchange: m.exchange,
                kind: m.kind,
                passive: m.passive,
                durable: m.durable,
                auto_delete: m.auto_delete,
                internal: m.internal,
                arguments: m.arguments,
            }),
            Answer::ExchangeDeclare,
            m.nowait,
        ),
        M::Delete(m) => (
            Topology::ExchangeDelete { exchange: m.exchange, if_unused: m.if_unused },
            Answer::ExchangeDelete,
            m.nowait,
        ),
        M::Bind(m) => (
            Topology::ExchangeBind(Binding {
                source: m.source,
                destination: m.destination,
                routing_key: m.routing_key,
                arguments: m.arguments,
            }),
            Answer::ExchangeBind,
            m.nowait,
        ),
        M::Unbind(m) => (
            Topology::ExchangeUnbind(Binding {
                source: m.source,
                destination: m.destination,
                routing_key: m.routing_key,
                arguments: m.arguments,
            }),
            Answer::ExchangeUnbind,
            m.nowait,
        ),
        M::DeclareOk(_) | M::DeleteOk(_) | M::BindOk(_) | M::UnbindOk(_) => return None,
    };
    Some(Asked { request, answer, nowait })
}

/// Takes a queue method apart; `None` for one that only a server sends. `last` is the channel's last declared queue, for
/// which an empty name stands (AMQP 0-9-1, rule "default-queue").
///
/// # Errors
/// 404 for an empty name when no queue was declared.
pub(super) fn queue(method: queue::AMQPMethod, last: Option<&ShortString>) -> Result<Option<Asked>, AmqpError> {
    use queue::AMQPMethod as M;
    let (request, answer, nowait) = match method {
        M::Declare(m) => (
            Topology::QueueDeclare(QueueDeclare {
                queue: m.queue,
                passive: m.passive,
                durable: m.durable,
                exclusive: m.exclusive,
                auto_delete: m.auto_delete,
                arguments: m.arguments,
            }),
            Answer::QueueDeclare,
            m.nowait,
        ),
        M::Bind(m) => (
            Topology::QueueBind(Binding {
                source: m.exchange,
                routing_key: key(m.routing_key, &m.queue, last)?,
                destination: named(m.queue, last)?,
                arguments: m.arguments,
            }),
            Answer::QueueBind,
            m.nowait,
        ),
        M::Unbind(m) => (
            Topology::QueueUnbind(Binding {
                source: m.exchange,
                routing_key: key(m.routing_key, &m.queue, last)?,
                destination: named(m.queue, last)?,
                arguments: m.arguments,
            }),
            Answer::QueueUnbind,
            false,
        ),
        M::Purge(m) => (Topology::QueuePurge { queue: named(m.queue, last)? }, Answer::QueuePurge, m.nowait),
        M::Delete(m) => (
            Topology::QueueDelete { queue: named(m.queue, last)?, if_unused: m.if_unused, if_empty: m.if_empty },
            Answer::QueueDelete,
            m.nowait,
        ),
        M::DeclareOk(_) | M::BindOk(_) | M::UnbindOk(_) | M::PurgeOk(_) | M::DeleteOk(_) => return Ok(None),
    };
    Ok(Some(Asked { request, answer, nowait }))
}

/// The queue that a name stands for.
///
/// # Errors
/// 404 for an empty name when no queue was declared.
pub(super) fn named(queue: ShortString, last: Option<&ShortString>) -> Result<ShortString, AmqpError> {
    if !queue.as_str().is_empty() {
        return Ok(queue);
    }
    last.cloned().ok_or_else(|| AmqpError::new(ReplyCode::NotFound, "no previously declared queue"))
}

/// An empty key with an empty queue name stands for the last declared queue's name as well.
fn key(key: ShortString, queue: &ShortString, last: Option<&ShortString>) -> Result<ShortString, AmqpError> {
    if key.as_str().is_empty() && queue.as_str().is_empty() { named(key, last) } else { Ok(key) }
}

impl Answer {
    /// The method that tells the client; `None` when the broker's reply does not fit (a backend's mistake).
    pub(super) fn method(self, reply: Reply) -> Option<AMQPClass> {
        use AMQPClass::{Exchange, Queue};
        Some(match (self, reply) {
            (Answer::ExchangeDeclare, Reply::Done) => Exchange(exchange::AMQPMethod::DeclareOk(exchange::DeclareOk {})),
            (Answer::ExchangeDelete, Reply::Done) => Exchange(exchange::AMQPMethod::DeleteOk(exchange::DeleteOk {})),
            (Answer::ExchangeBind, Reply::Done) => Exchange(exchange::AMQPMethod::BindOk(exchange::BindOk {})),
            (Answer::ExchangeUnbind, Reply::Done) => Exchange(exchange::AMQPMethod::UnbindOk(exchange::UnbindOk {})),
            (Answer::QueueDeclare, Reply::Queue { queue, message_count, consumer_count }) => {
                Queue(queue::AMQPMethod::DeclareOk(queue::DeclareOk { queue, message_count, consumer_count }))
            }
            (Answer::QueueBind, Reply::Done) => Queue(queue::AMQPMethod::BindOk(queue::BindOk {})),
            (Answer::QueueUnbind, Reply::Done) => Queue(queue::AMQPMethod::UnbindOk(queue::UnbindOk {})),
            (Answer::QueuePurge, Reply::MessageCount(message_count)) => {
                Queue(queue::AMQPMethod::PurgeOk(queue::PurgeOk { message_count }))
            }
            (Answer::QueueDelete, Reply::MessageCount(message_count)) => {
                Queue(queue::AMQPMethod::DeleteOk(queue::DeleteOk { message_count }))
            }
            _ => return None,
        })
    }
}
