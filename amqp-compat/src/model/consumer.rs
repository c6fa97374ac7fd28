//! The arguments of `basic.consume`.

use amq_protocol::types::FieldTable;

use super::arguments::{integer, invalid, type_name};
use super::features::{self, Area};
use crate::error::AmqpError;

/// The arguments of a consumer, read and checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConsumerArguments {
    /// `x-priority`: consumers with a higher one come first while they have credit.
    pub priority: i64,
}

impl ConsumerArguments {
    /// Reads and checks arguments. `what` is `queue 'q' in vhost '/'`.
    ///
    /// # Errors
    /// `PreconditionFailed` with RabbitMQ's text for an invalid value, `NotImplemented` for an argument that is
    /// valid and not honoured.
    pub fn read(arguments: &FieldTable, what: &str) -> Result<Self, AmqpError> {
        for name in arguments.inner().keys() {
            features::check(Area::ConsumerArgument, name.as_str(), what)?;
        }
        let Some(value) = arguments.inner().get("x-priority") else { return Ok(Self::default()) };
        match integer(value) {
            Some(priority) => Ok(Self { priority }),
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
            ConsumerArguments::read(&table, "queue 'q' in vhost '/'").map_err(|error| error.to_string())
        };
        assert_eq!(read(AMQPValue::LongLongInt(i64::MIN)), Ok(ConsumerArguments { priority: i64::MIN }));
        assert_eq!(read(AMQPValue::ShortShortUInt(7)), Ok(ConsumerArguments { priority: 7 }));
        let text = |got| {
            format!(
                "PRECONDITION_FAILED - invalid arg 'x-priority' for queue 'q' in vhost '/': \"expected integer, got {got}\""
            )
        };
        assert_eq!(read(AMQPValue::LongString("banana".into())), Err(text("longstr")));
        assert_eq!(read(AMQPValue::Boolean(true)), Err(text("bool")));
        assert_eq!(ConsumerArguments::read(&FieldTable::default(), ""), Ok(ConsumerArguments::default()));
    }
}
