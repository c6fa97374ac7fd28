//! RabbitMQ's errors: a reply code and a text, passed on unchanged.

use crate::error::{AmqpError, ReplyCode};

/// The error of a `channel.close`, `connection.close` or `basic.return`.
///
/// RabbitMQ writes the name of the code at the head of the text, as [`AmqpError`] does when it is shown; it is taken off.
pub(super) fn from_close(code: u16, text: &str) -> AmqpError {
    let Some(code) = ReplyCode::from_u16(code) else {
        return AmqpError::new(ReplyCode::InternalError, format!("RabbitMQ closed with code {code}: {text}"));
    };
    let rest = match text.strip_prefix(code.name()) {
        Some(rest) => rest.strip_prefix(" - ").unwrap_or(rest),
        None => text,
    };
    AmqpError::new(code, rest)
}

/// The connection is gone without RabbitMQ having said why.
pub(super) fn lost(why: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::ConnectionForced, format!("the connection to RabbitMQ was lost: {why}"))
}

/// RabbitMQ sent something that has no place here.
pub(super) fn unexpected(what: impl std::fmt::Display) -> AmqpError {
    AmqpError::new(ReplyCode::InternalError, format!("unexpected from RabbitMQ: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_reads_the_same_as_rabbitmqs() {
        for (code, text) in [
            (404, "NOT_FOUND - no queue 'q' in vhost '/'"),
            (406, "PRECONDITION_FAILED - unknown delivery tag 5"),
            (320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"),
        ] {
            assert_eq!(from_close(code, text).to_string(), text);
        }
        assert_eq!(from_close(312, "NO_ROUTE"), AmqpError::new(ReplyCode::NoRoute, ""));
        assert_eq!(from_close(999, "what").code, ReplyCode::InternalError);
    }
}
