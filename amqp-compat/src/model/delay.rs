//! The delayed exchange: a message with an `x-delay` header reaches its bindings after that many milliseconds.
//!
//! Source of the rules: the documentation of RabbitMQ's plug-in `rabbitmq_delayed_message_exchange`.

use amq_protocol::protocol::basic::AMQPProperties;
use amq_protocol::types::{AMQPValue, FieldTable};

use super::arguments::{integer, text};
use super::exchange::ExchangeKind;
use crate::error::{AmqpError, ReplyCode};

/// The argument of an exchange that says how it routes what is due.
pub const DELAYED_TYPE: &str = "x-delayed-type";

/// The header with the delay.
pub const DELAY: &str = "x-delay";

/// The longest delay, in milliseconds: 2^32 - 1, about 49 days. With a longer one a message is not delayed at all.
pub const MAX_DELAY: i64 = 4_294_967_295;

/// How a delayed exchange with these arguments routes what is due.
///
/// # Errors
/// `PreconditionFailed` without `x-delayed-type`, or when that is a delayed exchange again; `CommandInvalid` for an unknown
/// type.
pub fn routing_of(arguments: &FieldTable) -> Result<ExchangeKind, AmqpError> {
    let invalid = || {
        let text = "Invalid argument, 'x-delayed-type' must be an existing exchange type";
        AmqpError::new(ReplyCode::PreconditionFailed, text)
    };
    let name = arguments.inner().get(DELAYED_TYPE).and_then(text).ok_or_else(invalid)?;
    match ExchangeKind::from_name(name)? {
        ExchangeKind::Delayed => Err(invalid()),
        kind => Ok(kind),
    }
}

/// For how many milliseconds a delayed exchange keeps a message; `None` when it goes on at once: without the header, and
/// with one that is not above 0, too long, or neither a number nor a text.
///
/// # Errors
/// `PreconditionFailed` for a text that is no whole number.
pub fn delay_of(properties: &AMQPProperties) -> Result<Option<u64>, AmqpError> {
    Ok(given(properties)?.filter(|delay| (1..=MAX_DELAY).contains(delay)).and_then(|delay| u64::try_from(delay).ok()))
}

/// The properties with the delay negated, so that nothing delays the message again and its consumer sees that it was.
pub fn negated(properties: &AMQPProperties) -> AMQPProperties {
    let (Ok(Some(delay)), Some(headers)) = (given(properties), properties.headers()) else { return properties.clone() };
    let mut entries = headers.inner().clone();
    let delay = delay.saturating_neg();
    let value = i32::try_from(delay).map_or(AMQPValue::LongLongInt(delay), AMQPValue::LongInt);
    entries.insert(DELAY.into(), value);
    properties.clone().with_headers(FieldTable::from(entries))
}

fn given(properties: &AMQPProperties) -> Result<Option<i64>, AmqpError> {
    let Some(value) = properties.headers().as_ref().and_then(|headers| headers.inner().get(DELAY)) else {
        return Ok(None);
    };
    if let Some(number) = integer(value) {
        return Ok(Some(number));
    }
    // A float beyond the range of an integer becomes the nearest one, which is no delay either.
    match value {
        AMQPValue::Float(value) => Ok(Some(*value as i64)),
        AMQPValue::Double(value) => Ok(Some(*value as i64)),
        AMQPValue::LongString(given) => text(value).and_then(|text| text.parse().ok()).map(Some).ok_or_else(|| {
            let text = format!("invalid 'x-delay' header '{given}': not a whole number of milliseconds");
            AmqpError::new(ReplyCode::PreconditionFailed, text)
        }),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(value: AMQPValue) -> AMQPProperties {
        let mut headers = FieldTable::default();
        headers.insert("other".into(), AMQPValue::Boolean(true));
        headers.insert(DELAY.into(), value);
        AMQPProperties::default().with_headers(headers)
    }

    #[test]
    fn numbers_and_texts_are_delays() {
        for (value, delay) in [
            (AMQPValue::LongInt(5000), Some(5000)),
            (AMQPValue::ShortShortUInt(7), Some(7)),
            (AMQPValue::LongString("5000".into()), Some(5000)),
            (AMQPValue::Double(12.9), Some(12)),
            (AMQPValue::LongLongInt(MAX_DELAY), Some(4_294_967_295)),
            (AMQPValue::LongLongInt(MAX_DELAY + 1), None),
            (AMQPValue::LongInt(0), None),
            (AMQPValue::LongInt(-5000), None),
            (AMQPValue::Boolean(true), None),
        ] {
            assert_eq!(delay_of(&with(value.clone())), Ok(delay), "{value:?}");
        }
        assert_eq!(delay_of(&AMQPProperties::default()), Ok(None));
        for wrong in ["soon", "", "5s"] {
            let error = delay_of(&with(AMQPValue::LongString(wrong.into()))).expect_err("no number");
            assert_eq!(error.code, ReplyCode::PreconditionFailed);
        }
    }

    #[test]
    fn a_message_that_was_delayed_says_so_and_is_not_delayed_again() {
        let negative = negated(&with(AMQPValue::LongString("5000".into())));
        let headers = negative.headers().as_ref().expect("headers").inner();
        assert_eq!(headers.get(DELAY), Some(&AMQPValue::LongInt(-5000)));
        assert_eq!(headers.get("other"), Some(&AMQPValue::Boolean(true)));
        assert_eq!(delay_of(&negative), Ok(None));
        let long = negated(&with(AMQPValue::LongLongInt(MAX_DELAY)));
        let value = long.headers().as_ref().and_then(|headers| headers.inner().get(DELAY)).cloned();
        assert_eq!(value, Some(AMQPValue::LongLongInt(-MAX_DELAY)));
        assert_eq!(negated(&AMQPProperties::default()), AMQPProperties::default());
    }

    #[test]
    fn the_type_behind_it_is_checked() {
        let of = |kind: Option<&str>| {
            let mut arguments = FieldTable::default();
            if let Some(kind) = kind {
                arguments.insert(DELAYED_TYPE.into(), AMQPValue::LongString(kind.into()));
            }
            routing_of(&arguments)
        };
        assert_eq!(of(Some("topic")), Ok(ExchangeKind::Topic));
        assert_eq!(of(Some("x-consistent-hash")), Ok(ExchangeKind::ConsistentHash));
        assert_eq!(of(None).expect_err("missing").code, ReplyCode::PreconditionFailed);
        assert_eq!(of(Some("x-delayed-message")).expect_err("twice").code, ReplyCode::PreconditionFailed);
        assert_eq!(of(Some("nope")).expect_err("unknown").code, ReplyCode::CommandInvalid);
    }
}
