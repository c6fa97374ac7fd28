//! What JetStream alone honours, and a JetStream beside RabbitMQ cannot: two brokers would each do it on their own.

use super::exchange::{self, ExchangeDefinition, ExchangeKind};
use super::queue::{self, QueueDefinition, QueueKind};
use crate::error::AmqpError;

/// Refuses a queue with a single active consumer, and a stream: each of two brokers would have an active consumer, or offsets,
/// of its own.
///
/// # Errors
/// `NotImplemented`, naming the queue.
pub fn check_queue(vhost: &str, definition: &QueueDefinition) -> Result<(), AmqpError> {
    let feature = match &definition.settings {
        settings if settings.single_active_consumer => "argument 'x-single-active-consumer'",
        settings if settings.kind == QueueKind::Stream => "type 'stream'",
        _ => return Ok(()),
    };
    Err(refused(feature.into(), &queue::display(vhost, &definition.name)))
}

/// Refuses an exchange that hashes or delays. With consistent hashing a key has a queue in each of two brokers and not the
/// same one, so that its order would be lost when it moves. What RabbitMQ delays is in no queue, so that nobody could tell
/// when it has been drained.
///
/// # Errors
/// `NotImplemented`, naming the exchange.
pub fn check_exchange(vhost: &str, definition: &ExchangeDefinition) -> Result<(), AmqpError> {
    match definition.kind {
        ExchangeKind::ConsistentHash | ExchangeKind::Delayed => {
            let what = exchange::display(vhost, &definition.name);
            Err(refused(format!("type '{}'", definition.kind.name()), &what))
        }
        ExchangeKind::Direct | ExchangeKind::Fanout | ExchangeKind::Topic | ExchangeKind::Headers => Ok(()),
    }
}

fn refused(feature: String, what: &str) -> AmqpError {
    AmqpError::not_implemented(format!(
        "{feature} of {what} is not implemented beside RabbitMQ; see docs/mapping.md of nats-bridge"
    ))
}
