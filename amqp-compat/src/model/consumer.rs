//! The arguments of `basic.consume`.

use amq_protocol::types::FieldTable;

use super::arguments::{integer, invalid, type_name};
use super::features::{self, Area};
use super::queue::QueueKind;
use super::stream::{OFFSET, Offset};
use crate::error::{AmqpError, ReplyCode};

/// The arguments of a consumer, read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerArguments {
    /// `x-priority`: consumers with a higher one come first while they have credit.
    pub priority: i64,
    /// `x-stream-offset`: where it begins, in a stream queue.
    pub offset: Offset,
}

impl ConsumerArguments {
    /// Reads and checks arguments of a consumer of a queue of this kind. `what` is `queue 'q' in vhost '/'`.
    ///
    /// # Errors
    /// `PreconditionFailed` with RabbitMQ's text for an invalid value and for an argument that such a queue's consumers do not
    /// have, `NotImplemented` for an argument that is valid and not honoured.
    pub fn read(arguments: &FieldTable, kind: QueueKind, what: &str) -> Result<Self, AmqpError> {
        for name in arguments.inner().keys() {
            features::check(Area::ConsumerArgument, name.as_str(), what)?;
        }
        let unsuited: &[&str] = match kind {
            QueueKind::Classic | QueueKind::Quorum => &[OFFSET],
            QueueKind::Stream => &["x-priority", "x-cancel-on-ha-failover"],
        };
        if let Some(name) = unsuited.iter().find(|name| arguments.contains_key(name)) {
            return Err(AmqpError::new(
                ReplyCode::PreconditionFailed,
                format!("invalid arg '{name}' for {what} of queue type {}", kind.module()),
            ));
        }
        let offset = Offset::read(arguments, what)?;
        let Some(value) = arguments.inner().get("x-priority") else { return Ok(Self { priority: 0, offset }) };
        match integer(value) {
            Some(priority) => Ok(Self { priority, offset }),
            None => Err(invalid("x-priority", what, &format!("\"expected integer, got {}\"", type_name(value)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use amq_protocol::types::AMQPValue;

    use super::*;

    #[test]
    fn a_priority_is_any_integer_and_nothing_else() {
        let read = |value| {
            let mut table = FieldTable::default();
            table.insert("x-priority".into(), value);
            ConsumerArguments::read(&table, QueueKind::Classic, "queue 'q' in vhost '/'")
                .map_err(|error| error.to_string())
        };
        assert_eq!(
            read(AMQPValue::LongLongInt(i64::MIN)),
            Ok(ConsumerArguments { priority: i64::MIN, offset: Offset::Next })
        );
        assert_eq!(read(AMQPValue::ShortShortUInt(7)), Ok(ConsumerArguments { priority: 7, offset: Offset::Next }));
        let text = |got| {
            format!(
                "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/': \"expected integer, got {got}\""
            )
        };
        assert_eq!(read(AMQPValue::LongString("banana".into())), Err(text("longstr")));
        assert_eq!(read(AMQPValue::Boolean(true)), Err(text("bool")));
        assert_eq!(
            ConsumerArguments::read(&FieldTable::default(), QueueKind::Quorum, ""),
            Ok(ConsumerArguments::default())
        );
    }
}
