//! What is said of stream queues: how long they keep messages, and where a consumer begins.
//!
//! Source of the rules: RabbitMQ documentation, "Streams", and RabbitMQ 3.10 observed.

use amq_protocol::types::{AMQPValue, FieldTable};

use super::arguments::{integer, invalid, text, type_name};
use crate::error::AmqpError;

/// The argument of a consumer that says where it begins, and the header of a delivery that says where it was.
pub const OFFSET: &str = "x-stream-offset";

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offset {
    /// At the oldest message.
    First,
    /// At the newest message.
    Last,
    /// At the next message that is published.
    #[default]
    Next,
    /// At this offset, counted from 0 for the first message that was ever published.
    At(u64),
    /// At the first message that was published at this time or after it, in seconds since 1970.
    Since(u64),
    /// At the first message that was published at most this many seconds ago.
    Ago(u64),
}

impl Offset {
    /// Reads `x-stream-offset`. `what` is `queue 'q' in vhost '/'`.
    ///
    /// # Errors
    /// `PreconditionFailed` for what is no offset, with RabbitMQ's text where it has one.
    pub fn read(arguments: &FieldTable, what: &str) -> Result<Self, AmqpError> {
        let Some(value) = arguments.inner().get(OFFSET) else { return Ok(Self::default()) };
        let wrong = |shown: String| {
            let reason = format!("{{invalid_stream_offset_arg,{{{},{shown}}}}}", type_name(value));
            Err(invalid(OFFSET, what, &reason))
        };
        if let Some(number) = integer(value) {
            // Below 0 is before the first one.
            return Ok(u64::try_from(number).map_or(Offset::First, Offset::At));
        }
        match (value, text(value)) {
            (AMQPValue::Timestamp(at), _) => Ok(Offset::Since(*at)),
            (_, Some("first")) => Ok(Offset::First),
            (_, Some("last")) => Ok(Offset::Last),
            (_, Some("next")) => Ok(Offset::Next),
            (_, Some(other)) => match seconds(other) {
                Some(seconds) => Ok(Offset::Ago(seconds)),
                None => wrong(format!("<<\"{other}\">>")),
            },
            _ => wrong(super::erlang::term(value, 0)),
        }
    }
}

/// Reads `x-max-age`, in seconds. `what` is `queue 'q' in vhost '/'`.
///
/// # Errors
/// `PreconditionFailed` with RabbitMQ's text.
pub fn max_age(arguments: &FieldTable, what: &str) -> Result<Option<u64>, AmqpError> {
    const NAME: &str = "x-max-age";
    let Some(value) = arguments.inner().get(NAME) else { return Ok(None) };
    let Some(age) = text(value) else {
        return Err(invalid(NAME, what, &format!("{{unacceptable_type,{}}}", type_name(value))));
    };
    match seconds(age) {
        Some(seconds) if seconds > 0 => Ok(Some(seconds)),
        _ => Err(invalid(NAME, what, "invalid_max_age")),
    }
}

/// A time as RabbitMQ's streams write it: a number and a unit, of which a year has 365 days and a month 30.
fn seconds(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'D' => 86_400,
        'M' => 30 * 86_400,
        'Y' => 365 * 86_400,
        _ => return None,
    };
    let number = &text[..text.len() - 1];
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    // In nanoseconds it has to fit a signed number.
    let seconds = number.parse::<u64>().ok().filter(|_| is_number)?.checked_mul(unit)?;
    (seconds <= 9_000_000_000).then_some(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHAT: &str = "queue 's' in vhost '/'";

    fn table(name: &str, value: AMQPValue) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(name.into(), value);
        table
    }

    #[test]
    fn offsets_are_names_numbers_times_and_intervals() {
        let words = |text: &str| AMQPValue::LongString(text.into());
        for (value, offset) in [
            (words("first"), Offset::First),
            (words("last"), Offset::Last),
            (words("next"), Offset::Next),
            (AMQPValue::LongInt(5), Offset::At(5)),
            (AMQPValue::LongLongInt(-1), Offset::First),
            (AMQPValue::Timestamp(1_700_000_000), Offset::Since(1_700_000_000)),
            (words("1h"), Offset::Ago(3600)),
            (words("2D"), Offset::Ago(172_800)),
            (words("3M"), Offset::Ago(7_776_000)),
        ] {
            assert_eq!(Offset::read(&table(OFFSET, value.clone()), WHAT), Ok(offset), "{value:?}");
        }
        assert_eq!(Offset::read(&FieldTable::default(), WHAT), Ok(Offset::Next));
        for wrong in ["1x", "3", "bogus", "", "h", "-1h", "99999999999Y", "1\u{e9}"] {
            let error = Offset::read(&table(OFFSET, words(wrong)), WHAT).expect_err("no offset").to_string();
            let expected = format!(
                "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for {WHAT}: \
                 {{invalid_stream_offset_arg,{{longstr,<<\"{wrong}\">>}}}}"
            );
            assert_eq!(error, expected);
        }
        assert!(Offset::read(&table(OFFSET, AMQPValue::Boolean(true)), WHAT).is_err());
    }

    #[test]
    fn an_age_is_a_number_with_a_unit() {
        let age = |value: AMQPValue| max_age(&table("x-max-age", value), WHAT).map_err(|error| error.to_string());
        for (text, seconds) in [("10s", 10), ("5m", 300), ("1h", 3600), ("1D", 86_400), ("2M", 5_184_000)] {
            assert_eq!(age(AMQPValue::LongString(text.into())), Ok(Some(seconds)));
        }
        let wrong = |reason: &str| Err(format!("PRECONDITION_FAILED - invalid arg 'x-max-age' for {WHAT}: {reason}"));
        for text in ["1x", "1", "0s", "1.5h", "", "-1h"] {
            assert_eq!(age(AMQPValue::LongString(text.into())), wrong("invalid_max_age"), "{text:?}");
        }
        assert_eq!(age(AMQPValue::LongInt(5)), wrong("{unacceptable_type,signedint}"));
        assert_eq!(max_age(&FieldTable::default(), WHAT), Ok(None));
    }
}
