//! Queues: their definition, their arguments, and when a second declaration is the same.

use std::sync::Arc;

use amq_protocol::types::{AMQPValue, FieldTable};

use super::arguments::{integer, invalid, invalid_type, same_arguments, same_flag, text, type_name};
use super::features::{self, Area};
use super::stream;
use crate::backend::QueueDeclare;
use crate::error::{AmqpError, ReplyCode};

/// The longest time that RabbitMQ takes in an argument or an expiration, in milliseconds: ten years.
pub const MAX_MILLISECONDS: i64 = 315_360_000_000;

/// A connection, as the owner of exclusive queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub u64);

/// The types of queue that are honoured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum QueueKind {
    /// A classic queue.
    #[default]
    Classic,
    /// A replicated queue.
    Quorum,
    /// An append-only log, from which nothing is taken.
    Stream,
}

impl QueueKind {
    /// Its name in RabbitMQ's texts.
    pub fn module(self) -> &'static str {
        match self {
            QueueKind::Classic => "rabbit_classic_queue",
            QueueKind::Quorum => "rabbit_quorum_queue",
            QueueKind::Stream => "rabbit_stream_queue",
        }
    }
}

/// What happens to a publish when a queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Overflow {
    /// The oldest message goes.
    #[default]
    DropHead,
    /// The publish is refused.
    RejectPublish,
    /// The publish is refused and dead-lettered.
    RejectPublishDlx,
}

/// The arguments of a queue, read and checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueArguments {
    /// `x-queue-type`.
    pub kind: QueueKind,
    /// `x-expires`, in milliseconds.
    pub expires_ms: Option<u64>,
    /// `x-message-ttl`, in milliseconds.
    pub message_ttl_ms: Option<u64>,
    /// `x-dead-letter-exchange`.
    pub dead_letter_exchange: Option<String>,
    /// `x-dead-letter-routing-key`.
    pub dead_letter_routing_key: Option<String>,
    /// `x-max-length`, in messages.
    pub max_length: Option<u64>,
    /// `x-max-length-bytes`.
    pub max_length_bytes: Option<u64>,
    /// `x-overflow`.
    pub overflow: Overflow,
    /// `x-max-priority`.
    pub max_priority: Option<u8>,
    /// `x-max-age` of a stream queue, in seconds.
    pub max_age_seconds: Option<u64>,
    /// `x-single-active-consumer`.
    pub single_active_consumer: bool,
    /// `x-delivery-limit`.
    pub delivery_limit: Option<u64>,
    /// `x-consumer-timeout`, in milliseconds.
    pub consumer_timeout_ms: Option<u64>,
}

/// The arguments that make two declarations differ, in the order in which RabbitMQ looks at them.
const COMPARED: &[&str] = &[
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-max-priority",
    "x-overflow",
    "x-queue-mode",
    "x-queue-version",
    "x-single-active-consumer",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-initial-cluster-size",
    "x-queue-leader-locator",
    "x-delivery-limit",
    "x-consumer-timeout",
    "x-queue-master-locator",
    "x-message-deduplication",
];

/// The same of a quorum queue.
const COMPARED_QUORUM: &[&str] = &[
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-expires",
    "x-max-length",
    "x-max-length-bytes",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-overflow",
    "x-single-active-consumer",
    "x-queue-type",
    "x-quorum-initial-group-size",
    "x-delivery-limit",
    "x-message-ttl",
    "x-queue-leader-locator",
    "x-consumer-timeout",
];

const NOT_CLASSIC: &[&str] = &[
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
    "x-delivery-limit",
    "x-quorum-initial-group-size",
    "x-dead-letter-strategy",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-queue-leader-locator",
    "x-initial-cluster-size",
];

const NOT_QUORUM: &[&str] = &[
    "x-max-priority",
    "x-queue-mode",
    "x-queue-master-locator",
    "x-max-age",
    "x-stream-max-segment-size-bytes",
    "x-initial-cluster-size",
];

const NOT_STREAM: &[&str] = &[
    "x-max-length",
    "x-expires",
    "x-message-ttl",
    "x-dead-letter-exchange",
    "x-dead-letter-routing-key",
    "x-dead-letter-strategy",
    "x-overflow",
    "x-max-priority",
    "x-single-active-consumer",
    "x-delivery-limit",
    "x-queue-mode",
    "x-queue-version",
    "x-quorum-initial-group-size",
    "x-queue-master-locator",
    "x-max-in-memory-length",
    "x-max-in-memory-bytes",
];

/// The largest segment that RabbitMQ makes of a stream, in bytes.
const MAX_SEGMENT: u64 = 3_000_000_000;

impl QueueArguments {
    /// Whether what comes back is first in the queue, in the order in which it came back: so in quorum queues with a
    /// delivery limit. Elsewhere it returns to its place.
    pub fn returns_first(&self) -> bool {
        self.kind == QueueKind::Quorum && self.delivery_limit.is_some()
    }

    /// Whether the number or the bytes of its ready messages are limited.
    pub fn has_length_limit(&self) -> bool {
        self.max_length.is_some() || self.max_length_bytes.is_some()
    }

    /// Reads and checks arguments. `what` is `queue 'q' in vhost '/'`.
    ///
    /// # Errors
    /// `PreconditionFailed` with RabbitMQ's text for an invalid value, `NotImplemented` for an argument that is
    /// valid and not honoured.
    pub fn read(arguments: &FieldTable, what: &str) -> Result<Self, AmqpError> {
        let table = arguments.inner();
        let number = |name: &str| -> Result<Option<i64>, AmqpError> {
            let Some(value) = table.get(name) else { return Ok(None) };
            match integer(value) {
                Some(number) => Ok(Some(number)),
                None => Err(invalid(name, what, &format!("\"expected integer, got {}\"", type_name(value)))),
            }
        };
        let not_negative = |name: &str| -> Result<Option<u64>, AmqpError> {
            let Some(number) = number(name)? else { return Ok(None) };
            u64::try_from(number).map(Some).map_err(|_| invalid(name, what, &format!("{{value_negative,{number}}}")))
        };
        let milliseconds = |name: &str| -> Result<Option<u64>, AmqpError> {
            match not_negative(name)? {
                Some(value) if value > MAX_MILLISECONDS.unsigned_abs() => {
                    Err(invalid(name, what, &format!("{{value_too_large,{value}}}")))
                }
                value => Ok(value),
            }
        };
        let words = |name: &str| -> Result<Option<&str>, AmqpError> {
            let Some(value) = table.get(name) else { return Ok(None) };
            match text(value) {
                Some(text) => Ok(Some(text)),
                None => Err(invalid(name, what, &format!("{{unacceptable_type,{}}}", type_name(value)))),
            }
        };

        let dead_letter_exchange = match table.get("x-dead-letter-exchange") {
            None => None,
            Some(value) => {
                Some(text(value).ok_or_else(|| invalid_type("x-dead-letter-exchange", what, value))?.to_owned())
            }
        };
        let kind = match words("x-queue-type")? {
            None | Some("classic") => QueueKind::Classic,
            Some("quorum") => QueueKind::Quorum,
            Some("stream") => QueueKind::Stream,
            Some(other) => {
                return Err(invalid("x-queue-type", what, &format!("\"unsupported queue type '{other}'\"")));
            }
        };
        let unsuited = match kind {
            QueueKind::Classic => NOT_CLASSIC,
            QueueKind::Quorum => NOT_QUORUM,
            QueueKind::Stream => NOT_STREAM,
        };
        if let Some(name) = unsuited.iter().find(|name| table.contains_key(**name)) {
            return Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                format!("invalid arg '{name}' for {what} of queue type {}", kind.module()),
            ));
        }
        let expires_ms = milliseconds("x-expires")?;
        if expires_ms == Some(0) {
            return Err(invalid("x-expires", what, "{value_zero,0}"));
        }
        let message_ttl_ms = milliseconds("x-message-ttl")?;
        let consumer_timeout_ms = milliseconds("x-consumer-timeout")?;
        if consumer_timeout_ms == Some(0) {
            // Some mean "never" by it; RabbitMQ closes the channel with the first delivery.
            return Err(invalid("x-consumer-timeout", what, "{value_zero,0}"));
        }
        let dead_letter_routing_key = words("x-dead-letter-routing-key")?.map(str::to_owned);
        if dead_letter_routing_key.is_some() && dead_letter_exchange.is_none() {
            return Err(invalid("x-dead-letter-routing-key", what, "routing_key_but_no_dlx_defined"));
        }
        let max_priority = match not_negative("x-max-priority")? {
            None => None,
            Some(value) => Some(
                u8::try_from(value)
                    .map_err(|_| invalid("x-max-priority", what, &format!("{{max_value_exceeded,{value}}}")))?,
            ),
        };
        let overflow = match words("x-overflow")? {
            None | Some("drop-head") => Overflow::DropHead,
            Some("reject-publish") => Overflow::RejectPublish,
            Some("reject-publish-dlx") => Overflow::RejectPublishDlx,
            Some(_) => return Err(invalid("x-overflow", what, "invalid_overflow")),
        };
        // A quorum queue of RabbitMQ 3.10 does not know it, and drops its head.
        let overflow = match (kind, overflow) {
            (QueueKind::Quorum, Overflow::RejectPublishDlx) => Overflow::DropHead,
            (_, overflow) => overflow,
        };
        if let Some(mode) = words("x-queue-mode")?
            && !["default", "lazy"].contains(&mode)
        {
            return Err(invalid("x-queue-mode", what, &format!("\"unsupported queue mode '{mode}'\"")));
        }
        if let Some(version) = not_negative("x-queue-version")?
            && ![1, 2].contains(&version)
        {
            return Err(invalid("x-queue-version", what, &format!("\"unsupported queue version '{version}'\"")));
        }
        let single_active_consumer = match table.get("x-single-active-consumer") {
            None => false,
            Some(AMQPValue::Boolean(value)) => *value,
            Some(other) => {
                let reason = format!("{{unacceptable_type,{}}}", type_name(other));
                return Err(invalid("x-single-active-consumer", what, &reason));
            }
        };
        let max_age_seconds = stream::max_age(arguments, what)?;
        if not_negative("x-stream-max-segment-size-bytes")?.is_some_and(|bytes| bytes > MAX_SEGMENT) {
            return Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                "Exceeded max value for x-stream-max-segment-size-bytes",
            ));
        }
        not_negative("x-initial-cluster-size")?;
        if let Some(locator) = words("x-queue-leader-locator")?
            && !["client-local", "random", "least-leaders", "balanced"].contains(&locator)
        {
            return Err(invalid("x-queue-leader-locator", what, "invalid_queue_locator_arg"));
        }
        let read = Self {
            kind,
            expires_ms,
            message_ttl_ms,
            dead_letter_exchange,
            dead_letter_routing_key,
            max_length: not_negative("x-max-length")?,
            max_length_bytes: not_negative("x-max-length-bytes")?,
            overflow,
            max_priority,
            max_age_seconds,
            single_active_consumer,
            // RabbitMQ checks nothing here: what is no number is no limit, and a negative one is passed at once.
            delivery_limit: table.get("x-delivery-limit").and_then(integer).map(|limit| limit.max(0).unsigned_abs()),
            consumer_timeout_ms,
        };
        for name in table.keys() {
            features::check(Area::QueueArgument, name.as_str(), what)?;
        }
        Ok(read)
    }
}

/// What a queue was declared with.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueDefinition {
    /// Its name.
    pub name: Arc<str>,
    /// Survives a restart.
    pub durable: bool,
    /// The connection that it belongs to and goes with, for an exclusive queue.
    pub owner: Option<Owner>,
    /// Deleted when the last consumer goes.
    pub auto_delete: bool,
    /// Its arguments, as declared.
    pub arguments: FieldTable,
    /// Its arguments, read.
    pub settings: QueueArguments,
}

impl QueueDefinition {
    /// The definition that a declaration by `owner` asks for, under `name`.
    ///
    /// # Errors
    /// As [`QueueArguments::read`]; `PreconditionFailed` for a quorum or stream queue that is transient, exclusive or auto-delete.
    pub fn from_declare(vhost: &str, name: &str, declare: &QueueDeclare, owner: Owner) -> Result<Self, AmqpError> {
        let what = display(vhost, name);
        let settings = QueueArguments::read(&declare.arguments, &what)?;
        if settings.kind != QueueKind::Classic {
            let wrong = [
                (declare.auto_delete, "auto-delete"),
                (declare.exclusive, "exclusive-owner"),
                (!declare.durable, "non-durable"),
            ];
            if let Some((_, property)) = wrong.iter().find(|(wrong, _)| *wrong) {
                return Err(AmqpError::new(
                    ReplyCode::PreconditionFailed,
                    format!("invalid property '{property}' for {what}"),
                ));
            }
        }
        Ok(Self {
            name: name.into(),
            durable: is_durable(declare),
            owner: declare.exclusive.then_some(owner),
            auto_delete: declare.auto_delete,
            arguments: declare.arguments.clone(),
            settings,
        })
    }

    /// Whether it outlives the broker: durable, and no connection's own.
    pub fn is_persistent(&self) -> bool {
        self.durable && self.owner.is_none()
    }

    /// Refuses everybody but the owner of an exclusive queue.
    ///
    /// # Errors
    /// `ResourceLocked` with RabbitMQ's text.
    pub fn accessible_to(&self, vhost: &str, by: Owner) -> Result<(), AmqpError> {
        match self.owner {
            Some(owner) if owner != by => Err(locked(vhost, &self.name)),
            _ => Ok(()),
        }
    }

    /// Refuses a second declaration that is not the same.
    ///
    /// # Errors
    /// `ResourceLocked` when exclusiveness or its owner differs, else `PreconditionFailed` for the first difference, with
    /// RabbitMQ's texts.
    pub fn same_as(&self, vhost: &str, declare: &QueueDeclare, by: Owner) -> Result<(), AmqpError> {
        let what = display(vhost, &self.name);
        if self.owner != declare.exclusive.then_some(by) {
            return Err(locked(vhost, &self.name));
        }
        same_flag("durable", &what, is_durable(declare), self.durable)?;
        same_flag("auto_delete", &what, declare.auto_delete, self.auto_delete)?;
        let compared = match self.settings.kind {
            QueueKind::Classic | QueueKind::Stream => COMPARED,
            QueueKind::Quorum => COMPARED_QUORUM,
        };
        same_arguments(compared, &what, &declare.arguments, &self.arguments, |name| {
            (name == "x-queue-type").then(|| AMQPValue::LongString("classic".into()))
        })
    }
}

/// An exclusive queue is never durable, whatever its declaration says.
fn is_durable(declare: &QueueDeclare) -> bool {
    declare.durable && !declare.exclusive
}

/// A queue as RabbitMQ's texts name it.
pub fn display(vhost: &str, name: &str) -> String {
    format!("queue '{name}' in vhost '{vhost}'")
}

fn locked(vhost: &str, name: &str) -> AmqpError {
    AmqpError::new(
        ReplyCode::ResourceLocked,
        format!(
            "cannot obtain exclusive access to locked {}. It could be originally declared on another connection or the \
             exclusive property value does not match that of the original declaration.",
            display(vhost, name)
        ),
    )
}

/// Checks a message's `expiration`: milliseconds, as text.
///
/// # Errors
/// `PreconditionFailed` with RabbitMQ's text.
pub fn check_expiration(expiration: &str) -> Result<u64, AmqpError> {
    let wrong = |reason: String| {
        Err(AmqpError::new(ReplyCode::PreconditionFailed, format!("invalid expiration '{expiration}': {reason}")))
    };
    let digits = expiration.strip_prefix(['-', '+']).unwrap_or(expiration);
    let end = digits.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    if end == 0 {
        return wrong("no_integer".into());
    }
    if end < digits.len() {
        return wrong(format!("{{leftover_string,\"{}\"}}", &digits[end..]));
    }
    match expiration.parse::<i128>() {
        Ok(number) if number < 0 => wrong(format!("{{value_negative,{number}}}")),
        Ok(number) if number <= i128::from(MAX_MILLISECONDS) => Ok(u64::try_from(number).unwrap_or_default()),
        _ => wrong(format!("{{value_too_large,{digits}}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::check_expiration;

    #[test]
    fn expirations_are_checked_with_rabbitmqs_texts() {
        for good in ["0", "10", "315360000000"] {
            assert_eq!(check_expiration(good).map(|ms| ms.to_string()), Ok(good.to_owned()));
        }
        for (bad, reason) in [
            ("abc", "no_integer"),
            ("", "no_integer"),
            ("-", "no_integer"),
            ("-1", "{value_negative,-1}"),
            ("10 ", "{leftover_string,\" \"}"),
            ("99999999999999", "{value_too_large,99999999999999}"),
        ] {
            let text = check_expiration(bad).expect_err("refused").to_string();
            assert_eq!(text, format!("PRECONDITION_FAILED - invalid expiration '{bad}': {reason}"));
        }
    }
}
