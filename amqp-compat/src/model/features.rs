//! The one list of what is honoured and what is refused.
//!
//! The model asks it before it accepts an argument, and a test holds `docs/mapping.md` against it, so that neither can
//! say more than the other.

use crate::error::AmqpError;

/// What a feature belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Area {
    /// A type of exchange.
    ExchangeType,
    /// An argument of `exchange.declare`.
    ExchangeArgument,
    /// A flag or kind of queue.
    Queue,
    /// An argument of `queue.declare`.
    QueueArgument,
    /// An argument of `basic.consume`.
    ConsumerArgument,
    /// A property or header of a message.
    Message,
    /// A key of a policy.
    Policy,
    /// A method or protocol behaviour.
    Method,
}

impl Area {
    /// The one whose table has this title in `docs/mapping.md`.
    pub fn titled(title: &str) -> Option<Self> {
        Some(match title {
            "Exchange types" => Area::ExchangeType,
            "Exchange arguments" => Area::ExchangeArgument,
            "Queues" => Area::Queue,
            "Queue arguments" => Area::QueueArgument,
            "Consumer arguments" => Area::ConsumerArgument,
            "Messages" => Area::Message,
            "Policies" => Area::Policy,
            "Methods" => Area::Method,
            _ => return None,
        })
    }
}

/// What becomes of a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does what it does in RabbitMQ; `docs/mapping.md` names any residual difference.
    Honoured,
    /// Accepted: a hint about RabbitMQ's own storage or placement that promises an application nothing.
    Hint,
    /// Refused with an AMQP error, never accepted and ignored.
    Refused,
}

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// What it belongs to.
    pub area: Area,
    /// Its name, as AMQP or RabbitMQ writes it.
    pub name: &'static str,
    /// What becomes of it.
    pub support: Support,
}

const fn row(area: Area, name: &'static str, support: Support) -> Feature {
    Feature { area, name, support }
}

use Area::{ConsumerArgument, ExchangeArgument, ExchangeType, Message, Method, Policy, Queue, QueueArgument};
use Support::{Hint, Honoured, Refused};

/// Every feature that has been decided upon.
pub const FEATURES: &[Feature] = &[
    row(ExchangeType, "default", Honoured),
    row(ExchangeType, "direct", Honoured),
    row(ExchangeType, "fanout", Honoured),
    row(ExchangeType, "topic", Honoured),
    row(ExchangeType, "headers", Honoured),
    row(ExchangeType, "x-consistent-hash", Honoured),
    row(ExchangeType, "x-delayed-message", Honoured),
    row(ExchangeType, "x-modulus-hash", Refused),
    row(ExchangeType, "x-random", Refused),
    row(ExchangeType, "x-recent-history", Refused),
    row(ExchangeArgument, "alternate-exchange", Honoured),
    row(ExchangeArgument, "hash-header", Honoured),
    row(ExchangeArgument, "hash-property", Honoured),
    row(ExchangeArgument, "x-delayed-type", Honoured),
    row(Queue, "durable", Honoured),
    row(Queue, "transient", Honoured),
    row(Queue, "exclusive", Honoured),
    row(Queue, "auto-delete", Honoured),
    row(Queue, "server-named", Honoured),
    row(Queue, "classic", Honoured),
    row(Queue, "quorum", Honoured),
    row(Queue, "stream", Honoured),
    row(QueueArgument, "x-queue-type", Honoured),
    row(QueueArgument, "x-expires", Honoured),
    row(QueueArgument, "x-message-ttl", Honoured),
    row(QueueArgument, "x-dead-letter-exchange", Honoured),
    row(QueueArgument, "x-dead-letter-routing-key", Honoured),
    row(QueueArgument, "x-dead-letter-strategy", Refused),
    row(QueueArgument, "x-max-length", Honoured),
    row(QueueArgument, "x-max-length-bytes", Honoured),
    row(QueueArgument, "x-overflow", Honoured),
    row(QueueArgument, "x-max-priority", Honoured),
    row(QueueArgument, "x-single-active-consumer", Honoured),
    row(QueueArgument, "x-delivery-limit", Honoured),
    row(QueueArgument, "x-max-age", Honoured),
    row(QueueArgument, "x-stream-max-segment-size-bytes", Hint),
    row(QueueArgument, "x-initial-cluster-size", Hint),
    row(QueueArgument, "x-consumer-timeout", Honoured),
    row(QueueArgument, "x-message-deduplication", Refused),
    row(QueueArgument, "x-quorum-initial-group-size", Hint),
    row(QueueArgument, "x-queue-leader-locator", Hint),
    row(QueueArgument, "x-queue-master-locator", Hint),
    row(QueueArgument, "x-max-in-memory-length", Hint),
    row(QueueArgument, "x-max-in-memory-bytes", Hint),
    row(QueueArgument, "x-queue-mode", Hint),
    row(QueueArgument, "x-queue-version", Hint),
    row(ConsumerArgument, "x-priority", Honoured),
    row(ConsumerArgument, "x-stream-offset", Honoured),
    row(ConsumerArgument, "x-cancel-on-ha-failover", Hint),
    row(Message, "CC", Honoured),
    row(Message, "BCC", Honoured),
    row(Message, "expiration", Honoured),
    row(Message, "x-delay", Honoured),
    row(Message, "user-id", Honoured),
    row(Message, "delivery-mode", Honoured),
    row(Message, "priority", Honoured),
    row(Message, "reply-to amq.rabbitmq.reply-to", Honoured),
    row(Policy, "message-ttl", Honoured),
    row(Policy, "expires", Honoured),
    row(Policy, "max-length", Honoured),
    row(Policy, "max-length-bytes", Honoured),
    row(Policy, "overflow", Honoured),
    row(Policy, "dead-letter-exchange", Honoured),
    row(Policy, "dead-letter-routing-key", Honoured),
    row(Policy, "alternate-exchange", Honoured),
    row(Policy, "delivery-limit", Honoured),
    row(Policy, "consumer-timeout", Honoured),
    row(Policy, "max-in-memory-length", Hint),
    row(Policy, "max-in-memory-bytes", Hint),
    row(Policy, "queue-mode", Hint),
    row(Policy, "queue-version", Hint),
    row(Policy, "queue-leader-locator", Hint),
    row(Policy, "queue-master-locator", Hint),
    row(Policy, "ha-mode", Refused),
    row(Policy, "ha-params", Refused),
    row(Policy, "ha-sync-mode", Refused),
    row(Policy, "ha-sync-batch-size", Refused),
    row(Policy, "ha-promote-on-shutdown", Refused),
    row(Policy, "ha-promote-on-failure", Refused),
    row(Policy, "dead-letter-strategy", Refused),
    row(Policy, "federation-upstream", Refused),
    row(Policy, "federation-upstream-set", Refused),
    row(Policy, "max-age", Refused),
    row(Policy, "stream-max-segment-size-bytes", Refused),
    row(Policy, "initial-cluster-size", Refused),
    row(Method, "exchange.bind", Honoured),
    row(Method, "mandatory", Honoured),
    row(Method, "confirm.select", Honoured),
    row(Method, "tx", Honoured),
    row(Method, "basic.get", Honoured),
    row(Method, "basic.qos", Honoured),
    row(Method, "basic.qos prefetch-size", Refused),
    row(Method, "basic.recover", Honoured),
    row(Method, "basic.recover requeue=false", Refused),
    row(Method, "basic.publish immediate", Refused),
    row(Method, "channel.flow active=false", Refused),
    row(Method, "delivery acknowledgement timeout", Honoured),
    row(Method, "connection.blocked", Honoured),
    row(Method, "connection.update-secret", Honoured),
    row(Method, "login PLAIN, AMQPLAIN", Honoured),
    row(Method, "login EXTERNAL", Honoured),
    row(Method, "basic.consume exclusive", Honoured),
];

/// The row of a feature, if it has one.
pub fn find(area: Area, name: &str) -> Option<Feature> {
    FEATURES.iter().find(|feature| feature.area == area && feature.name == name).copied()
}

/// Refuses what the list refuses, for `what`, such as `queue 'orders' in vhost '/'`. A name without a row passes: RabbitMQ
/// ignores arguments that it does not know.
///
/// # Errors
/// `NotImplemented` for a refused feature.
pub fn check(area: Area, name: &str, what: &str) -> Result<(), AmqpError> {
    match find(area, name) {
        Some(Feature { support: Support::Refused, .. }) => {
            let kind = match area {
                Area::QueueArgument | Area::ExchangeArgument => "argument",
                Area::ConsumerArgument => "consumer argument",
                Area::Queue => "type",
                Area::ExchangeType | Area::Message | Area::Policy | Area::Method => "feature",
            };
            // The argument first: a reply text is cut off after 255 bytes, and a queue's name may have as many.
            let text = format!("{kind} '{name}' of {what} is not implemented; see docs/mapping.md of nats-bridge");
            Err(AmqpError::not_implemented(text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_feature_is_listed_twice() {
        for (index, feature) in FEATURES.iter().enumerate() {
            let rest = &FEATURES[index + 1..];
            assert!(!rest.iter().any(|f| f.area == feature.area && f.name == feature.name), "{}", feature.name);
        }
    }

    #[test]
    fn what_is_refused_says_so_with_540() {
        let refused = FEATURES.iter().filter(|f| f.support == Refused && f.area == QueueArgument);
        for feature in refused {
            let error = check(feature.area, feature.name, "queue 'q' in vhost '/'").expect_err("refused");
            assert_eq!(
                error.to_string(),
                format!(
                    "NOT_IMPLEMENTED - argument '{}' of queue 'q' in vhost '/' is not implemented; see docs/mapping.md of \
                     nats-bridge",
                    feature.name
                )
            );
        }
        assert_eq!(check(QueueArgument, "x-of-my-own", "queue"), Ok(()));
    }
}
