//! AMQP argument values as RabbitMQ compares, checks and prints them.

use amq_protocol::types::{AMQPValue, FieldTable};

use super::erlang;
use crate::error::{AmqpError, ReplyCode};

/// Types that RabbitMQ compares with each other: integers of any width, floats of any width, all else on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TypeClass {
    /// Any integer, and a decimal.
    Integer,
    /// `float` and `double`.
    Float,
    /// Any other type, by RabbitMQ's name of it.
    Other(&'static str),
}

impl TypeClass {
    /// The class of a value's type.
    pub fn of(value: &AMQPValue) -> Self {
        match value {
            AMQPValue::ShortShortInt(_)
            | AMQPValue::ShortShortUInt(_)
            | AMQPValue::ShortInt(_)
            | AMQPValue::ShortUInt(_)
            | AMQPValue::LongInt(_)
            | AMQPValue::LongUInt(_)
            | AMQPValue::LongLongInt(_)
            | AMQPValue::DecimalValue(_) => TypeClass::Integer,
            AMQPValue::Float(_) | AMQPValue::Double(_) => TypeClass::Float,
            other => TypeClass::Other(type_name(other)),
        }
    }
}

/// RabbitMQ's name of a value's type, as its error texts have it.
pub fn type_name(value: &AMQPValue) -> &'static str {
    match value {
        AMQPValue::Boolean(_) => "bool",
        AMQPValue::ShortShortInt(_) => "byte",
        AMQPValue::ShortShortUInt(_) => "unsignedbyte",
        AMQPValue::ShortInt(_) => "short",
        AMQPValue::ShortUInt(_) => "unsignedshort",
        AMQPValue::LongInt(_) => "signedint",
        AMQPValue::LongUInt(_) => "unsignedint",
        AMQPValue::LongLongInt(_) => "long",
        AMQPValue::Float(_) => "float",
        AMQPValue::Double(_) => "double",
        AMQPValue::DecimalValue(_) => "decimal",
        AMQPValue::ShortString(_) | AMQPValue::LongString(_) => "longstr",
        AMQPValue::FieldArray(_) => "array",
        AMQPValue::Timestamp(_) => "timestamp",
        AMQPValue::FieldTable(_) => "table",
        AMQPValue::ByteArray(_) => "binary",
        AMQPValue::Void => "void",
    }
}

/// The integer that a value is, if it is one.
pub fn integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortShortUInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortInt(n) => Some(i64::from(*n)),
        AMQPValue::ShortUInt(n) => Some(i64::from(*n)),
        AMQPValue::LongInt(n) => Some(i64::from(*n)),
        AMQPValue::LongUInt(n) => Some(i64::from(*n)),
        AMQPValue::LongLongInt(n) => Some(*n),
        _ => None,
    }
}

/// The text that a value is, if it is one and UTF-8.
pub fn text(value: &AMQPValue) -> Option<&str> {
    match value {
        AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str()),
        _ => None,
    }
}

/// Whether two values of one [`TypeClass`] are equal.
pub fn same_value(a: &AMQPValue, b: &AMQPValue) -> bool {
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => return a == b,
        (None, None) => {}
        _ => return false,
    }
    match (a, b) {
        (AMQPValue::Float(a), AMQPValue::Double(b)) | (AMQPValue::Double(b), AMQPValue::Float(a)) => {
            f64::from(*a) == *b
        }
        _ => a == b,
    }
}

/// A value as RabbitMQ's texts show it after `before` characters of their line: bytes as they are, all else as a term of
/// Erlang's.
pub fn display_value(value: &AMQPValue, before: usize) -> String {
    match value {
        AMQPValue::LongString(text) => text.to_string(),
        AMQPValue::ShortString(text) => text.to_string(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        value => erlang::term(value, before),
    }
}

/// Whether two values are one term of Erlang's, whatever their types: RabbitMQ takes them as the same.
fn is_same_term(a: &AMQPValue, b: &AMQPValue) -> bool {
    match (bytes(a), bytes(b)) {
        (Some(a), Some(b)) => return a == b,
        (None, None) => {}
        _ => return false,
    }
    match (a, b) {
        (AMQPValue::Timestamp(at), number) | (number, AMQPValue::Timestamp(at)) => {
            integer(number).is_some_and(|number| u64::try_from(number) == Ok(*at))
        }
        _ => false,
    }
}

fn bytes(value: &AMQPValue) -> Option<&[u8]> {
    match value {
        AMQPValue::LongString(text) => Some(text.as_bytes()),
        AMQPValue::ShortString(text) => Some(text.as_str().as_bytes()),
        AMQPValue::ByteArray(bytes) => Some(bytes.as_slice()),
        _ => None,
    }
}

/// Refuses a second declaration that differs in a flag. `what` is `queue 'q' in vhost '/'`.
///
/// # Errors
/// `PreconditionFailed` with RabbitMQ's text.
pub fn same_flag(name: &str, what: &str, received: impl ToString, current: impl ToString) -> Result<(), AmqpError> {
    let (received, current) = (received.to_string(), current.to_string());
    if received == current {
        return Ok(());
    }
    Err(inequivalent(name, what, &format!("'{received}'"), &format!("'{current}'")))
}

/// A value in a text on two declarations; one of no type counts as none.
fn quoted(value: &AMQPValue) -> String {
    match value {
        AMQPValue::Void => "none".to_owned(),
        value => format!("'{}'", display_value(value, 1)),
    }
}

/// Refuses a second declaration that differs in one of the arguments `names`. `default` gives the value that an absent
/// argument stands for, if it stands for one.
///
/// # Errors
/// `PreconditionFailed` with RabbitMQ's text for the first name that differs.
pub fn same_arguments(
    names: &[&str],
    what: &str,
    received: &FieldTable,
    current: &FieldTable,
    default: impl Fn(&str) -> Option<AMQPValue>,
) -> Result<(), AmqpError> {
    for name in names {
        let received = received.inner().get(*name);
        let current = current.inner().get(*name);
        let (a, b) = match (received, current) {
            (None, None) => continue,
            (Some(received), Some(current)) => {
                let is_same = TypeClass::of(received) == TypeClass::of(current) && same_value(received, current);
                if is_same || is_same_term(received, current) {
                    continue;
                }
                (quoted(received), quoted(current))
            }
            (received, current) => {
                let given = received.or(current);
                if let (Some(given), Some(default)) = (given, default(name))
                    && TypeClass::of(given) == TypeClass::of(&default)
                    && same_value(given, &default)
                {
                    continue;
                }
                (with_type(received), with_type(current))
            }
        };
        return Err(inequivalent(name, what, &a, &b));
    }
    Ok(())
}

fn with_type(value: Option<&AMQPValue>) -> String {
    match value {
        None => "none".to_owned(),
        Some(value) => {
            let before = "the value '";
            format!("{before}{}' of type '{}'", display_value(value, before.len()), type_name(value))
        }
    }
}

fn inequivalent(name: &str, what: &str, received: &str, current: &str) -> AmqpError {
    AmqpError::new(
        ReplyCode::PreconditionFailed,
        format!("inequivalent arg '{name}' for {what}: received {received} but current is {current}"),
    )
}

/// 406 for an argument that is not valid. `what` is `queue 'q' in vhost '/'`.
pub fn invalid(name: &str, what: &str, reason: &str) -> AmqpError {
    AmqpError::new(ReplyCode::PreconditionFailed, format!("invalid arg '{name}' for {what}: {reason}"))
}

/// 406 for a name that must be a text. `place` is `queue 'q' in vhost '/'`.
pub fn invalid_type(name: &str, place: &str, value: &AMQPValue) -> AmqpError {
    AmqpError::new(
        ReplyCode::PreconditionFailed,
        format!("invalid type '{}' for arg '{name}' in {place}", type_name(value)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_of_no_type_is_none_in_the_text_of_a_difference() {
        let table = |value| FieldTable::from(std::collections::BTreeMap::from([("alternate-exchange".into(), value)]));
        let (received, current) = (table(AMQPValue::Void), table(AMQPValue::LongString("x0".into())));
        let what = "exchange 'x1' in vhost '/'";
        let error =
            same_arguments(&["alternate-exchange"], what, &received, &current, |_| None).expect_err("different");
        assert!(error.text.ends_with("for exchange 'x1' in vhost '/': received none but current is 'x0'"), "{error}");
    }

    #[test]
    fn the_same_bytes_or_number_of_another_type_are_the_same_for_rabbitmq() {
        let same = |a: AMQPValue, b: AMQPValue| {
            let table = |value| FieldTable::from(std::collections::BTreeMap::from([("a".into(), value)]));
            same_arguments(&["a"], "queue 'q' in vhost '/'", &table(a), &table(b), |_| None).map_err(|error| error.text)
        };
        let text = || AMQPValue::LongString("x".into());
        assert_eq!(same(AMQPValue::ByteArray(b"x".to_vec().into()), text()), Ok(()));
        assert_eq!(same(AMQPValue::Timestamp(5), AMQPValue::LongInt(5)), Ok(()));
        let different = same(AMQPValue::Double(5.0), AMQPValue::LongInt(5)).expect_err("different");
        assert!(different.ends_with("received '5.0' but current is '5'"), "{different}");
        let different = same(AMQPValue::FieldTable(FieldTable::default()), text()).expect_err("different");
        assert!(different.ends_with("received '[]' but current is 'x'"), "{different}");
    }
}
